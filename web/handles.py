"""What the HTTP handlers hold of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from actors.catalog import Catalog
from actors.composer import FrameCounter
from actors.hub import FrameHub
from actors.kernel import FlowStats, Outlet
from actors.lease import PoolHandle
from actors.ledger import LedgerHandle
from actors.mapper import MapperCounters
from actors.providers import Providers
from actors.pulls import ModelPulls
from actors.session import SessionTable
from engine.domain.events import SessionSignal
from engine.domain.generation import Clock, ResumeRules
from engine.domain.telemetry import Telemetry
from engine.domain.usage import PriceTable
from policies.tiers import TierLimits
from web.lens.calls import CallsInFlight
from web.lens.lists import Residences, WrittenLists

PUSH: Final = "wf.push"  # in an ASGI scope: writes a piece of the body now, or says that it has to be sent
_LEAVE: Final = "wf.leave"


def on_leave(scope: Any, call: Callable[[], None]) -> None:
    """Have `call` called when the request of this ASGI scope is over, however it ended."""
    scope.setdefault(_LEAVE, []).append(call)


def left(scope: Any) -> None:
    for call in scope.get(_LEAVE, ()):
        call()


@attrs.frozen
class EngineFacts:
    """Fixed for the life of the process. `limits` are the ones a client can run into."""

    version: str
    boot: str
    tier: str
    tier_reason: str
    level: int
    tick_hz: int
    policy_hash: str
    token: str
    ws_port: int
    limits: dict[str, Any]
    ram_total_bytes: int
    ram_budget_bytes: int
    vram_budget_bytes: int
    tier_limits: TierLimits
    suggested_model: str  # one that fits the tier
    remote: bool  # other machines may connect


@attrs.frozen
class LensRules:
    """How the drop-in APIs behave unless a request says otherwise."""

    mode: str  # active | passive
    on_disconnect: str
    aliases: Mapping[str, str]
    head_wait_s: float
    resume_enabled: bool
    resume: ResumeRules
    without_path: set[tuple[str, str]] = attrs.field(factory=set)  # runtimes, and paths that they do not have
    calls: CallsInFlight = attrs.field(factory=CallsInFlight)
    residences: Residences = attrs.field(factory=Residences)
    written: WrittenLists = attrs.field(factory=WrittenLists)


@attrs.frozen
class Engine:
    """Handles of the running engine; nothing here owns state."""

    facts: EngineFacts
    lens: LensRules
    clock: Clock
    catalog: Catalog
    pool: PoolHandle
    pulls: ModelPulls
    providers: Providers
    sessions: SessionTable
    ledger: LedgerHandle
    prices: PriceTable
    hub: FrameHub
    telemetry: Telemetry
    frame_counter: FrameCounter
    mapper_counters: MapperCounters
    signals: Outlet[SessionSignal]
    flows: Callable[[], list[FlowStats]]
    edges: Mapping[str, Any]  # counter objects of the listeners

    def ws_origin(self, host: str) -> str:
        """The frames endpoint under the name in a request's Host, so that a page on `localhost` stays on it."""
        name = host[: host.index("]") + 1] if host.startswith("[") else host.partition(":")[0]
        return f"ws://{name}:{self.facts.ws_port}"
