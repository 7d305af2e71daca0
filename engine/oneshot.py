"""`wf run`: one generation, through a running engine or in this process without opening a port."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import attrs
import msgspec

from engine.domain.errors import EngineError, UpstreamTruncated
from engine.settings import Settings
from engine.state import EngineAddress

Show = Callable[[bytes], None]  # one event line, as JSON


@attrs.frozen
class OneShot:
    model: str
    prompt: str
    parameters: dict[str, Any]

    def body(self) -> dict[str, Any]:
        return {"mode": "single", "model": self.model, "prompt": self.prompt, "parameters": self.parameters}


class _Reason(msgspec.Struct):
    reason: str | None = None
    error: dict[str, Any] | None = None


class _Head(msgspec.Struct):
    """What decides here; the rest of a line is only shown."""

    type: str
    payload: _Reason


class SessionFailed(EngineError):
    """The session ended with an error; the message is the engine's."""

    status = 502


def ask_engine(shot: OneShot, address: EngineAddress, settings: Settings, show: Show) -> str:
    """Ask a running engine; the reason of the end. Interrupted here: the session is stopped."""
    from engine.client import EngineClient

    client, reason = EngineClient.connect(address, settings), None
    for line in client.stream("/generate?energy=1", shot.body() | {"stream": True}):
        show(line)
        reason = _end_of(line) or reason
    return _ended(reason)


def ask_in_process(shot: OneShot, settings: Settings, show: Show) -> str:
    """Run an engine of our own for this one answer; no listener, no state folder."""
    import trio

    return trio.run(_in_process, shot, settings, show)


async def _in_process(shot: OneShot, settings: Settings, show: Show) -> str:
    import trio

    from actors.clock import EngineClock
    from actors.session import SessionRequest
    from engine.app import tier_for
    from engine.config import policies_of
    from engine.core import Core
    from engine.domain.generation import Origin
    from engine.runtimes import runtimes_for
    from web.schemas import GenerateBody, decode, generation_request

    body = decode(msgspec.json.encode(shot.body()), GenerateBody)
    clock, policies = EngineClock.start(), await trio.to_thread.run_sync(policies_of, settings)
    tier = tier_for(settings, policies)
    runtimes = await runtimes_for(settings, clock, os.environ, policies.tiers.limits(tier.tier))
    core = Core.build(runtimes.by_name, clock, settings, policies, tier, runtimes.starting)
    reason = None
    async with runtimes.attended(), trio.open_nursery() as nursery:
        await nursery.start(core.run)
        model = await core.catalog.resolve(body.model or "")
        session = core.sessions.start(SessionRequest(model, generation_request(body, model.info.name), Origin.API))
        follower = core.hub.follow(session.id, energy=True)
        while lines := await follower.next_lines():
            for line in lines:
                # In a thread: a slow reader of ours must not look like a slow model. Abandoned, so that Ctrl+C works.
                await trio.to_thread.run_sync(show, line.data, abandon_on_cancel=True)
                reason = _end_of(line.data) or reason
        core.close()
    return _ended(reason)


def _end_of(line: bytes) -> str | None:
    """The reason, when the line is the session's end. Raises SessionFailed when it ended with an error."""
    if b'"experience.session_end"' not in line:
        return None
    head = msgspec.json.decode(line, type=_Head)
    if head.type != "experience.session_end":
        return None
    if head.payload.error is not None:
        raise SessionFailed(head.payload.error.get("message", "the session failed"))
    return head.payload.reason


def _ended(reason: str | None) -> str:
    if reason is None:
        raise UpstreamTruncated("the engine broke off before the session's end")
    return reason
