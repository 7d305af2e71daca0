"""The whole engine without sockets: real actors and channels, a scripted runtime, virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import msgspec
import trio

from actors.catalog import ModelRef
from actors.clock import EngineClock
from actors.frame_history import Since
from actors.session import Session, SessionRequest
from engine.config import policies_of
from engine.core import Core
from engine.domain.generation import GenerationRequest, Origin, Parameters
from engine.domain.models import Tier
from engine.settings import Settings
from policies.tiers import TierChoice
from tests.fakes.runtime import ScriptedRuntime

MID = TierChoice(Tier.MID, "chosen by the test")


def unframe(data: bytes) -> list[dict[str, Any]]:
    """The JSON messages of one or more whole, unmasked text frames."""
    messages = []
    while data:
        assert data[0] == 0x81
        size, at = data[1], 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[2 : 2 + width]), 2 + width
        messages.append(msgspec.json.decode(data[at : at + size]))
        data = data[at + size :]
    return messages


@attrs.define(eq=False)
class RecordingSink:
    """A client that reads when `reading` is set, and keeps all it got."""

    reading: bool = True
    messages: list[dict[str, Any]] = attrs.field(factory=list)
    closed: tuple[int, str] | None = None

    def push(self, frame: bytes) -> bool:
        if not self.reading or self.closed:
            return False
        self.messages += unframe(frame)
        return True

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    @property
    def frames(self) -> list[dict[str, Any]]:
        return [m for m in self.messages if m["frame"] is not None]

    def events(self, type_: str | None = None) -> list[dict[str, Any]]:
        return [e for m in self.messages for e in m["events"] if type_ is None or e["type"] == type_]

    def text(self) -> str:
        return "".join(t["text"] for e in self.events("experience.token") for t in e["payload"]["tokens"])


@attrs.define(eq=False)
class Slice:
    core: Core
    runtime: ScriptedRuntime
    clock: EngineClock

    def model(self, name: str = "a") -> ModelRef:
        return self.core.catalog.find(name)

    def start(self, model: str = "a", **parameters: Any) -> Session:
        request = GenerationRequest(model, prompt="hello", parameters=Parameters(**parameters))
        return self.core.sessions.start(SessionRequest(self.model(model), request, Origin.API))

    def client(self, since: Since | None = None) -> RecordingSink:
        sink = RecordingSink()
        self.core.hub.connect(sink, since)
        return sink


@asynccontextmanager
async def running_slice(
    make_runtime: Callable[[EngineClock], ScriptedRuntime] = ScriptedRuntime, settings: Settings | None = None
) -> AsyncIterator[Slice]:
    """Runs until the block ends, then drains as the engine does at shutdown."""
    clock = EngineClock.start()
    runtime = make_runtime(clock)
    settings = settings or Settings()
    core = Core.build({runtime.name: runtime}, clock, settings, policies_of(settings), MID)
    assert core.catalog.councils is not None
    gates = core.catalog.councils.gates
    core.catalog.councils.gates = attrs.evolve(gates, memory_is_short=lambda: False)  # whatever machine this is
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await core.catalog.asked.wait()
        yield Slice(core, runtime, clock)
        core.close()
