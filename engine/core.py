"""The actors, wired: from sessions to bytes, without any network. engine/app adds the edges; `wf run` uses it as it is.

Starts bottom-up (hub, composer, mapper, pool, sessions) and ends top-down: sessions tell their end, then each stage
drains because the one before it closed.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import attrs
import trio

from actors import composer, hub, mapper
from actors.broker import Broker
from actors.catalog import Catalog
from actors.composer import FrameComposer, FrameCounter
from actors.councils import Councils, Gates
from actors.hub import FrameHub, HelloFacts
from actors.kernel import Actor, FlowStats, Inlet, Outlet, mailbox
from actors.lease import PoolHandle
from actors.ledger import LedgerHandle, UsageStore
from actors.mapper import EnergyMapper, MapperCounters
from actors.pool import Command, ModelPool, mailbox_capacity
from actors.prefetcher import Prefetcher
from actors.providers import Providers
from actors.pulls import ModelPulls
from actors.session import Constants, SessionTable
from actors.stream import Timeouts
from actors.supervise import supervise
from actors.usage_feed import Place, UsageFeed
from engine import __version__
from engine.domain.errors import InternalError, RestartsExhausted
from engine.domain.events import MappedSignal, SessionSignal
from engine.domain.frames import Frame
from engine.domain.generation import Clock
from engine.domain.models import Tier
from engine.domain.runtime import Runtime
from engine.domain.telemetry import Telemetry
from engine.hardware import ram_is_short
from engine.satellites import broker_of, discovered_only, fallback_rules
from engine.settings import Settings, TimeoutSettings, council_specs
from engine.store import Database
from engine.usage_store import SqliteUsage
from policies.admission import PoolCaps, budgets
from policies.degrade import Ladder
from policies.load import Policies
from policies.providers import preloaded
from policies.restart import NEVER, RestartPolicy
from policies.tiers import TierChoice, TierLimits, TierPolicy, below

logger = logging.getLogger("wf.core")

STAGE_RESTARTS: Final = RestartPolicy()
CATALOG_REFRESH_S: Final = 5.0
IDLE_REFRESH_S: Final = 30.0
WATCHED_US: Final = 60_000_000  # so long after its start an engine is watched, whoever is there
STARTING_REFRESH_S: Final = 0.25  # while a runtime of ours is on its way up
CLIENT_LIMITS: Final = ("streams_max", "queued_max", "body_bytes_max")


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


@attrs.define(eq=False)
class Core:
    """All actors of one engine. `run` owns their tasks; `close` lets it return."""

    clock: Clock
    boot: str
    facts: HelloFacts
    tick_hz: int
    catalog: Catalog
    pool: PoolHandle
    pulls: ModelPulls
    providers: Providers
    prefetcher: Prefetcher
    sessions: SessionTable
    ledger: LedgerHandle
    hub: FrameHub
    telemetry: Telemetry
    frame_counter: FrameCounter
    ladder: Ladder
    mapper_counters: MapperCounters
    signals: Outlet[SessionSignal]
    _signals_in: Inlet[SessionSignal]
    _samples: tuple[Outlet[MappedSignal], Inlet[MappedSignal]]
    _frames: Outlet[Frame]
    _outlets: list[Outlet[SessionSignal]] = attrs.field(factory=list)
    drained: trio.Event = attrs.field(factory=trio.Event)  # every session's end has reached the clients' sinks
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @classmethod
    def build(
        cls,
        runtimes: Mapping[str, Runtime],
        clock: Clock,
        settings: Settings,
        policies: Policies,
        tier: TierChoice,
        starting: Callable[[], bool] = lambda: False,
        usage: UsageStore | None = None,
        broker: Broker | None = None,
    ) -> Core:
        """Nothing runs yet. Inside a trio run, since `clock` follows its time. `starting`: is a runtime of ours on its
        way up? `usage` is where the ledger keeps things; without it that is memory."""
        limits = policies.tiers.limits(tier.tier)
        signals, signals_in = mailbox[SessionSignal]("signals", mapper.MAILBOX_BATCHES)
        samples = mailbox[MappedSignal]("samples", composer.MAILBOX_BATCHES)
        frames, frames_in = mailbox[Frame]("frames", hub.MAILBOX_FRAMES)
        caps = _caps(settings, tier, limits)
        callers_max = settings.limits.connections_max + settings.limits.connections_reserve
        pool = _pool(caps, callers_max, clock, settings.timeouts, signals.fork())
        catalog = Catalog(runtimes, clock, pool.see, starting)
        pool.pool.listed = catalog.listed
        ledger = LedgerHandle.of(usage or SqliteUsage(Database(), policies.prices.table()))
        feed = UsageFeed(ledger, lambda model: _place_of(catalog, model), time.time)
        telemetry, boot = Telemetry(also=feed.observe), secrets.token_hex(4)
        facts = HelloFacts(
            version=__version__,
            boot=boot,
            tier=tier.tier,
            level=settings.level,
            limits=client_limits(settings),
            tick_hz=limits.tick_hz,
        )
        constants = Constants(policies.energy.params(tier.tier), policies.ensemble.params())
        timeouts = settings.timeouts
        sessions = SessionTable(
            pool,
            signals,
            clock,
            constants,
            Timeouts(timeouts.first_token_s, timeouts.progress_s, timeouts.load_s),
            live_max=caps.streams_max + caps.queued_max,
            record_ttl_s=settings.session.record_ttl_s,
            find=catalog.find,
            pin_runner_options=settings.pool.pin_runner_options,
            new_id=feed.new_session_id,
        )
        catalog.councils = _councils(catalog, sessions, settings, policies.tiers, tier.tier)
        pulls = ModelPulls(catalog, signals.fork(), "never" if settings.core_lock else settings.pull)
        return cls(
            clock=clock,
            boot=boot,
            facts=facts,
            tick_hz=limits.tick_hz,
            catalog=catalog,
            pool=pool,
            pulls=pulls,
            providers=_providers(pulls, sessions, telemetry, settings, broker or broker_of(settings, policies, tier)),
            prefetcher=_prefetcher(catalog, pool, settings),
            sessions=sessions,
            ledger=ledger,
            hub=FrameHub(
                frames_in,
                clock,
                wall_ms,
                facts,
                telemetry,
                pending_bytes_max=settings.ws.pending_bytes_max,
                backlog_bytes_max=settings.session.backlog_bytes_max,
                record_ttl_s=settings.session.record_ttl_s,
            ),
            telemetry=telemetry,
            frame_counter=FrameCounter(),
            ladder=Ladder(policies.degrade, mapper.MAILBOX_BATCHES, 1000 / limits.tick_hz),
            mapper_counters=MapperCounters(),
            signals=signals,
            signals_in=signals_in,
            samples=samples,
            frames=frames,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """All actors, until `close` has drained them. Raises RestartsExhausted when one of them is beyond help."""
        async with trio.open_nursery() as stages:
            await stages.start(self._stage, "hub", lambda: self.hub, NEVER, None)
            await stages.start(self._keep_ledger)
            await stages.start(self._stage, "composer", self._composer, STAGE_RESTARTS, self._composed)
            await stages.start(self._stage, "mapper", self._mapper, STAGE_RESTARTS, self._samples[0].close)
            async with trio.open_nursery() as sources:
                await sources.start(self._stage, "pool", lambda: self.pool.pool, NEVER, None)
                await sources.start(self._stage, "sessions", lambda: self.sessions, NEVER, None)
                await sources.start(self._stage, "pulls", lambda: self.pulls, NEVER, None)
                await sources.start(self._stage, "prefetcher", lambda: self.prefetcher, STAGE_RESTARTS, None)
                sources.start_soon(self._keep_catalog)
                task_status.started()
                with self._scope:
                    await trio.sleep_forever()
                await self.sessions.close()
                sources.cancel_scope.cancel(reason="sessions closed")
            for outlet in (self.signals, self.pool.pool.news, self.pulls.signals, *self._outlets):
                outlet.close()
        self.drained.set()

    def close(self) -> None:
        """Stop the sessions, tell their ends, drain the stages; `run` returns when all is done."""
        self._scope.cancel(reason="close")

    def new_outlet(self) -> Outlet[SessionSignal]:
        """Another way into the mapper; closed with the engine."""
        self._outlets.append(self.signals.fork())
        return self._outlets[-1]

    def flows(self) -> list[FlowStats]:
        """The mailboxes between the stages, in the order of the data."""
        return [self.signals.flow(), self._samples[0].flow(), self._frames.flow(), self.pool.commands.flow()]

    async def _stage(
        self,
        name: str,
        make: Callable[[], Actor],
        policy: RestartPolicy,
        done: Callable[[], None] | None,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """One supervised actor; when it has drained, `done` closes what it fed."""
        await supervise(name, make, policy, on_crash=lambda _: self._lost_state(name), task_status=task_status)
        if done is not None:
            done()

    def _composed(self) -> None:
        """The composer has drained: nobody is told of any session any more."""
        self._frames.close()
        self.ledger.close()

    async def _keep_ledger(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Beyond help it is given up, and says so; the engine goes on without its figures."""
        try:
            await supervise("ledger", lambda: self.ledger.ledger, STAGE_RESTARTS, task_status=task_status)
        except RestartsExhausted as error:
            logger.error("the usage ledger is given up: %s", error.message)
            self.ledger.give_up()

    def _lost_state(self, stage: str) -> None:
        """A stage behind the sessions starts anew and empty: running sessions end rather than go on with a hole."""
        self.sessions.fail_all(InternalError(f"the {stage} was restarted; this session was lost with its state"))

    def _composer(self) -> Actor:
        return FrameComposer(
            self._samples[1],
            self._frames,
            self.clock,
            self.telemetry,
            self.frame_counter,
            self.ladder,
            lambda: self._signals_in.depth,
            self.tick_hz,
        )

    def _mapper(self) -> Actor:
        return EnergyMapper(self._signals_in, self._samples[0], self.mapper_counters)

    async def _keep_catalog(self) -> None:
        """Ask the runtimes: every 5 s while somebody watches, seldom while nobody does."""
        while True:
            self.catalog.looked = trio.Event()
            await self.catalog.refresh()
            asked_s = trio.current_time()
            await trio.sleep(CATALOG_REFRESH_S if self.catalog.settled.is_set() else STARTING_REFRESH_S)
            self.sessions.prune()
            while not self._watched() and trio.current_time() < asked_s + IDLE_REFRESH_S:
                with trio.move_on_after(CATALOG_REFRESH_S):
                    await self.catalog.looked.wait()
                self.sessions.prune()

    def _watched(self) -> bool:
        """The engine has just started, a session runs or ran in the last minute, a page is connected, somebody has just
        asked how we are, or a runtime of ours is on its way up."""
        if self.clock() < WATCHED_US or self.catalog.looked.is_set():
            return True
        if not self.catalog.settled.is_set() or self.catalog.starting():
            return True
        return bool(self.hub.clients) or bool(self.sessions.known())


def _place_of(catalog: Catalog, name: str) -> Place | None:
    """Where a model runs, and whether that is here; None when it is not listed any more."""
    found = next((model for model in catalog.models if model.name == name), None)
    return None if found is None else (found.runtime.name, found.runtime.local)


def client_limits(settings: Settings) -> dict[str, Any]:
    """The limits a client can run into, as hello and bootstrap tell them."""
    limits = {name: getattr(settings.limits, name) for name in CLIENT_LIMITS}
    ws = settings.ws
    return limits | {
        "pending_bytes_max": ws.pending_bytes_max,
        "message_bytes_max": ws.message_bytes_max,
        "messages_per_s_max": ws.messages_per_s_max,
    }


def _caps(settings: Settings, tier: TierChoice, limits: TierLimits) -> PoolCaps:
    ram_bytes, vram_bytes = budgets(tier.ram_bytes, tier.vram_bytes, limits.ram_budget_bytes, limits.vram_budget_bytes)
    return PoolCaps(
        settings.limits.streams_max,
        settings.limits.queued_max,
        limits.max_parallel_models,
        limits.max_loaded_models,
        ram_bytes,
        limits.max_model_size_bytes,
        settings.pool.size_overhead,
        round(settings.pool.cooldown_s * 1e6),
        settings.pool.cooldown_against == "all",
        vram_bytes,
    )


def _pool(
    caps: PoolCaps, callers_max: int, clock: Clock, limits: TimeoutSettings, news: Outlet[SessionSignal]
) -> PoolHandle:
    commands, inlet = mailbox[Command]("pool", mailbox_capacity(caps, callers_max))
    pool = ModelPool(inlet, commands, caps, clock, limits.load_s, news, first_token_s=limits.first_token_s)
    return PoolHandle(pool, commands)


def _providers(
    pulls: ModelPulls, sessions: SessionTable, telemetry: Telemetry, settings: Settings, broker: Broker
) -> Providers:
    """It hears what the ledger hears, and decides which sessions may begin."""
    catalog = pulls.catalog
    catalog.only = discovered_only(settings)

    def busy_share() -> float:
        return 1.0 if sessions.pool.pool.queued else sessions.live / sessions.live_max

    providers = Providers(catalog, pulls, broker, catalog.clock, fallback_rules(settings), busy_share)
    telemetry.also = partial(_tell_both, telemetry.also, providers.observe)
    sessions.admit = providers.admit
    return providers


def _tell_both(
    first: Callable[[MappedSignal], None], second: Callable[[MappedSignal], None], signal: MappedSignal
) -> None:
    first(signal)
    second(signal)


def _prefetcher(catalog: Catalog, pool: PoolHandle, settings: Settings) -> Prefetcher:
    auto = settings.pool.prefetch == "auto"
    councils = [spec.members for spec in council_specs(settings.councils).values()] if auto else []
    warm = (*settings.pool.warm, *preloaded(settings.providers))
    return Prefetcher(catalog, pool, warm, councils, often=auto)


def _councils(catalog: Catalog, sessions: SessionTable, settings: Settings, tiers: TierPolicy, tier: Tier) -> Councils:
    level = tiers.level(settings.level)
    gates = Gates(
        limits=tiers.limits(tier),
        tier=tier,
        level=level,
        celebrates=tiers.limits(tier).allow_resonance and "resonance" in tiers.features(settings.level),
        smaller=tiers.limits(below(tier)).max_parallel_models,
        memory_is_short=ram_is_short,
    )
    councils = Councils(catalog, council_specs(settings.councils), gates)
    councils.runtime.table = sessions
    return councils
