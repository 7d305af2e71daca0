"""`wf run`: one generation, through a running engine or in this process without opening a port."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from engine.domain.errors import EngineError, UpstreamTruncated
from engine.settings import Settings
from engine.state import EngineAddress

if TYPE_CHECKING:  # read when it is needed: asking a running engine needs none of it
    from actors.broker import Broker
    from engine.domain.generation import Clock
    from engine.domain.runtime import Runtime
    from policies.load import Policies
    from policies.tiers import TierChoice

Show = Callable[[bytes], None]  # one event line, as JSON


@attrs.frozen
class OneShot:
    model: str
    prompt: str
    parameters: dict[str, Any]
    broker: bool = False  # this one answer may come from outside this machine

    def body(self) -> dict[str, Any]:
        consent = {"broker": "allow"} if self.broker else {}
        asked = {"mode": "single", "model": self.model, "prompt": self.prompt, "parameters": self.parameters}
        return asked | consent


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
    """Run an engine of our own for this one answer: no listener, and no state folder unless the answer may come from
    outside this machine; then it is held meanwhile, for the broker's record and its budgets."""
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
    from engine.satellites import connections_kept
    from policies.broker import CONSENT
    from policies.selection import wants_of
    from web.schemas import GenerateBody, decode, generation_request

    body = decode(msgspec.json.encode(shot.body()), GenerateBody)
    _refuse_silent_leaving(shot, settings)
    CONSENT.set(shot.broker)
    clock, policies = EngineClock.start(), await trio.to_thread.run_sync(policies_of, settings)
    tier = await trio.to_thread.run_sync(tier_for, settings, policies)  # a GPU's driver may take its time
    runtimes = await runtimes_for(settings, clock, os.environ, policies.tiers.limits(tier.tier))
    reason = None
    async with _elsewhere(shot, settings, policies, tier, clock, runtimes.by_name) as (broker, everywhere):
        core = Core.build(everywhere, clock, settings, policies, tier, runtimes.starting, broker=broker)
        async with runtimes.attended(), connections_kept(everywhere), trio.open_nursery() as nursery:
            await nursery.start(core.run)
            name = body.model or ""
            wants = wants_of(generation_request(body, name))
            model = await core.providers.resolve(name, wants)
            asked, instead = generation_request(body, model.info.name), core.providers.stand_ins(model, wants)
            session = core.sessions.start(SessionRequest(model, asked, Origin.API, instead=instead))
            follower = core.hub.follow(session.id, energy=True)
            while lines := await follower.next_lines():
                for line in lines:
                    # In a thread: a slow reader of ours must not look like a slow model. Abandoned, so that Ctrl+C
                    # works.
                    await trio.to_thread.run_sync(show, line.data, abandon_on_cancel=True)
                    reason = _end_of(line.data) or reason
            core.close()
    return _ended(reason)


def _refuse_silent_leaving(shot: OneShot, settings: Settings) -> None:
    """Raises BrokerDisabled for a model that is outside this machine, unless this command consents to ask it."""
    from engine.domain.errors import BrokerDisabled
    from policies.providers import provider_specs

    provider = provider_specs(settings.providers).get(shot.model.partition("/")[0])
    if provider is not None and provider.satellite and not shot.broker:
        raise BrokerDisabled(f"{shot.model} is outside this machine ({provider.host}); --broker consents to ask it")


@asynccontextmanager
async def _elsewhere(
    shot: OneShot,
    settings: Settings,
    policies: Policies,
    tier: TierChoice,
    clock: Clock,
    runtimes: Mapping[str, Runtime],
) -> AsyncIterator[tuple[Broker | None, Mapping[str, Runtime]]]:
    """The runtimes, and with consent those outside this machine, with the broker who records what leaves. Raises
    AddressInUse where another engine holds the state folder."""
    import trio

    from engine.satellites import open_broker, with_satellites
    from engine.state import open_state, state_path

    if not shot.broker:
        yield None, runtimes
        return
    folder = await trio.to_thread.run_sync(open_state, state_path(os.environ))
    try:
        broker = await open_broker(settings, policies, tier, folder.path)
        yield broker, await with_satellites(runtimes, settings, clock, broker, os.environ, folder.path)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(folder.close)


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
