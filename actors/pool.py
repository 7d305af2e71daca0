"""ModelPool: who may use which model now. Decisions come from policies/admission, loads and warm-ups run
in tasks of the pool's own.

A load belongs to everybody who waits for the model: a caller who leaves never cancels it. A grant counts only if the
caller was still there to take it. What is in memory is what the runtimes say: a model that somebody else loaded is
shown and used as it is, and one that its runtime let go of is forgotten.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import attrs
import trio

from actors.catalog import ModelRef, Residency
from actors.kernel import Inlet, Outlet
from actors.lease import RETRY_AFTER_S, Grant, Lease, LeaseSet, Left, News, Reconcile, Release, Ticket, Unload
from actors.pool_decisions import DecisionLog, Kind, PoolCounters
from actors.pool_memory import ELSEWHERE, Entry, Memory, ModelStatus, Standing
from actors.pool_moves import LoadDone, UnloadDone, load, unload
from actors.pool_queue import Look
from actors.warm_up import UNASKED_S, WarmUp
from engine.domain.errors import EngineError, ModelLoadFailed, Overloaded, SessionConflict
from engine.domain.events import ModelChanged, SessionSignal
from engine.domain.generation import Clock
from engine.domain.models import Loaded, ModelState
from policies.admission import Admit, Numbers, PoolCaps, Refuse, Wait, admit, beyond, figures_of, plan_waves
from policies.footprint import Footprint
from policies.waiting import Paces

T = TypeVar("T")

LET_GO: Final = "its runtime let go of it"
GONE: Final = "its runtime is gone, and what it had in memory with it"
NO_FREE_ROOM: Final = "there is no free room for it now"
OVERTAKEN_MAX: Final = 16  # so often may others be served before one who waits; then they leave alone what it needs
OVERTAKEN: Final = "somebody who came before has waited long enough"


@attrs.frozen
class _Wake:
    """A model has cooled down."""

    at_us: int


Command = LeaseSet | Release | Left | Unload | Reconcile | LoadDone | UnloadDone | WarmUp | _Wake


def mailbox_capacity(caps: PoolCaps, callers_max: int) -> int:
    """Room for every command that can be outstanding, so that a release in a `finally` never finds the box full: a
    lease and a release per stream, a load or unload per caller, one look at what the runtimes said, one prefetch, and
    the completions of the pool's own tasks."""
    return 2 * (caps.streams_max + caps.queued_max) + callers_max + 2 + 4 * caps.loaded_models_max


@attrs.define(eq=False)
class ModelPool:
    inlet: Inlet[Command]
    commands: Outlet[Command]  # its own, for the completions of its tasks
    caps: PoolCaps
    clock: Clock
    load_timeout_s: float
    news: Outlet[SessionSignal]  # of models that move without a session; lossy: /models has the state
    listed: Callable[[str], ModelRef | None] = lambda _: None  # a model by its public name, from the catalog
    first_token_s: float = 300.0  # how long a warm-up may take that somebody waits for
    counters: PoolCounters = attrs.field(factory=PoolCounters)
    decisions: DecisionLog = attrs.field(factory=DecisionLog)
    paces: Paces = attrs.field(factory=Paces)
    memory: Memory = attrs.field(init=False)
    _queue: list[LeaseSet] = attrs.field(factory=list)
    _reconciling: bool = False
    _alarm_us: int | None = None
    _nursery: trio.Nursery | None = None

    def __attrs_post_init__(self) -> None:
        self.memory = Memory(self.caps, self.clock, lambda name: self.listed(name))

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled. Loads in flight are cancelled with it."""
        async with self.inlet.open() as commands, trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                async for command in commands:
                    self._handle(command)
            finally:
                self._dismiss()

    def _dismiss(self) -> None:
        """On the way out: whoever still waits is told, and waits no more."""
        error = Overloaded("the engine is stopping", retry_after_s=RETRY_AFTER_S)
        for entry in self.memory.entries.values():
            for lease in entry.waiting:
                lease.ticket.fail(error)
            for reply in entry.unloads:
                reply.fail(error)
        for asked in self._queue:
            asked.refuse(error)

    # ── reads, between two awaits of anybody ──

    def status(self, model: str) -> ModelStatus:
        return self.memory.status(model)

    @property
    def resident_bytes(self) -> int:
        """Of the models whose runtime says their size, ours and those that others loaded."""
        return self.memory.resident_bytes

    @property
    def vram_bytes(self) -> int:
        """The part of these that counts as GPU memory."""
        return self.memory.vram_bytes

    @property
    def queued(self) -> int:
        return sum(not asked.abandoned for asked in self._queue)

    @property
    def streams(self) -> int:
        """Streams that hold a model, or will as soon as it is loaded."""
        return self.memory.streams

    @property
    def busy(self) -> bool:
        """Somebody uses a model or waits for one, or one is on its way in or out."""
        moving = (ModelState.LOADING, ModelState.UNLOADING)
        return bool(self._queue) or any(e.leases or e.state in moving for e in self.memory.entries.values())

    def waiting(self, model: str) -> list[News]:
        """What those in the queue for it were last told, in the order of their places."""
        tickets = [lease.ticket for asked in self._queue for lease in asked.leases if lease.model.name == model]
        return [ticket.news for ticket in tickets if ticket.news is not None and not ticket.abandoned]

    def standing(self, model: ModelRef) -> Standing:
        """Where one model stands, and what would happen if one stream asked for it now."""
        return self.memory.standing(model)

    def plan(self, models: Sequence[ModelRef]) -> tuple[tuple[ModelRef, ...], ...]:
        """See `PoolHandle.plan`."""
        leases = [Lease(model, True, Ticket()) for model in models]
        waves = plan_waves(self.memory.wanted(leases), self.memory.slots(), self.caps)
        if isinstance(waves, Refuse):
            raise waves.error
        return tuple(tuple(model for model in models if model.name in wave) for wave in waves)

    def refuse_impossible(self, models: Sequence[ModelRef]) -> None:
        """See `PoolHandle.refuse_impossible`."""
        slots = self.memory.slots()
        for wanted in self.memory.wanted([Lease(model, True, Ticket()) for model in models]):
            if (error := beyond([wanted], slots, self.caps)) is not None:
                self.counters.refused += 1
                self.decisions.note(self.clock(), wanted.model, Kind.REFUSED, error.message, figures_of(error))
                raise error

    # ── commands, one at a time; nothing below awaits ──

    def _handle(self, command: Command) -> None:
        match command:
            case LeaseSet():
                self._enqueue(command)
            case Left():
                pass  # the queue is served below
            case Release(model=model, ticket=ticket):
                self._release(model, ticket)
            case Unload():
                self._unload(command)
            case Reconcile():
                self._reconcile()
            case LoadDone():
                self._load_done(command)
            case UnloadDone():
                self._unload_done(command)
            case WarmUp():
                self._warmed_up(command)
            case _Wake(at_us=at_us) if at_us == self._alarm_us:
                self._alarm_us = None
        self._serve_queue()

    def _enqueue(self, asked: LeaseSet) -> None:
        self._queue = [waiting for waiting in self._queue if not waiting.abandoned]
        if asked.free_only:
            if self.busy or not self._try(asked, Look.of(self.memory), position=1):
                asked.refuse(Overloaded(NO_FREE_ROOM, retry_after_s=RETRY_AFTER_S))
        elif len(self._queue) >= self.caps.queued_max:
            most = self.caps.queued_max
            asked.refuse(Overloaded(f"{most} requests are waiting already", limit=most, retry_after_s=RETRY_AFTER_S))
        else:
            self._queue.append(asked)

    def _serve_queue(self) -> None:
        """In order of arrival; one that must wait does not hold up one behind it that need not, but only so often."""
        if not self._queue:
            return
        waiting: list[LeaseSet] = []
        look = Look.of(self.memory)
        patient: LeaseSet | None = None  # the first who was overtaken too often: nobody takes what it waits for
        for asked in self._queue:
            if asked.abandoned:
                continue
            position = len(waiting) + 1
            if not asked.judged and self._is_refused(asked, look):
                continue
            if patient is not None and look.is_in_the_way(asked, patient, self.memory):
                self._note_waiting(asked, look, Wait(OVERTAKEN), position)
            elif look.full is not None and asked.wants_streams:
                self._note_waiting(asked, look, look.full, position)
            elif self._try(asked, look, position):
                for other in waiting:
                    other.overtaken += 1
                look = Look.of(self.memory)
                continue
            waiting.append(asked)
            if patient is None and asked.overtaken >= OVERTAKEN_MAX:
                patient = asked
        self._queue = waiting

    def _is_refused(self, asked: LeaseSet, look: Look) -> bool:
        """Refuse what can never be had, a single model or the set; True when nothing is left to wait for."""
        asked.judged = True
        leases = [lease for lease in asked.leases if not lease.ticket.settled]
        for model in self.memory.wanted(leases):
            if (error := beyond([model], look.slots, self.caps)) is not None:
                self._refuse([lease for lease in leases if lease.model.name == model.model], error)
                leases = [lease for lease in leases if lease.model.name != model.model]
        if leases and (error := beyond(self.memory.wanted(leases), look.slots, self.caps)) is not None:
            self._refuse(leases, error)
            asked.refuse(error)
            return True
        return not leases

    def _try(self, asked: LeaseSet, look: Look, position: int) -> bool:
        """True when it need not wait (any more): it is served, or refused."""
        if self._is_refused(asked, look):
            return True
        leases = [lease for lease in asked.leases if not lease.ticket.settled]
        hot = self.memory.hot((lease.model.name for lease in leases), asked.hot)
        decision = admit(self.memory.wanted(leases), look.slots, look.streams, self.caps, self.clock(), hot)
        match decision:
            case Refuse(error=error):
                asked.refuse(error)
            case Wait():
                if not asked.free_only:
                    self._note_waiting(asked, look, decision, position)
                if look.streams >= self.caps.streams_max and asked.wants_streams:
                    look.full = decision
                return False
            case Admit(evict=evict):
                if asked.free_only and evict:
                    return False
                self._admit(asked, leases, evict)
        return True

    def _admit(self, asked: LeaseSet, leases: Sequence[Lease], evict: tuple[str, ...]) -> None:
        names = " and ".join(dict.fromkeys(lease.model.name for lease in leases))
        for victim in evict:
            self._evict(victim, f"to make room for {names}")
        for lease in leases:
            entry = self.memory.entries.get(lease.model.name)
            if entry is not None and entry.loaded is not None:
                self._grant(entry, lease, after_load=False)
                continue
            if entry is None:
                entry, evict = self._start_load(lease.model, evict), ()
                entry.prefetched = asked.free_only
            lease.ticket.note(News(ModelState.LOADING))
            entry.waiting.append(lease)

    def _refuse(self, leases: Sequence[Lease], error: EngineError) -> None:
        self.counters.refused += 1
        numbers = figures_of(error)
        for lease in leases:
            lease.ticket.fail(error)
            self.decisions.note(self.clock(), lease.model.name, Kind.REFUSED, error.message, numbers)

    def _note_waiting(self, asked: LeaseSet, look: Look, wait: Wait, position: int) -> None:
        if wait.until_us is not None:
            self._wake_at(wait.until_us)
        wait_ms = look.wait_ms(asked, wait, position, self.memory, self.paces)
        news = News(ModelState.QUEUED, position, wait.reason, wait_ms)
        for lease in asked.leases:
            if lease.ticket.settled:
                continue
            if lease.ticket.note(news):
                numbers: Numbers = {**wait.numbers, "position": position, "wait_ms": wait_ms}
                self.decisions.note(self.clock(), lease.model.name, Kind.WAITING, wait.reason, numbers)

    def _grant(self, entry: Entry, lease: Lease, *, after_load: bool) -> None:
        assert entry.loaded is not None
        grant = Grant(
            model=entry.ref.name,
            cold=entry.cold if after_load else False,
            load_ms=entry.loaded.load_ms if after_load else 0.0,
            resident_bytes=entry.loaded.resident_bytes,
            evicted=entry.evicted if after_load else (),
            options_before=entry.options,
        )
        entry.pinned |= lease.pin
        now_us = self.clock()
        if lease.ticket.settle(grant) and lease.stream:
            lease.ticket.granted_us = now_us
            entry.holders.add(lease.ticket)
            entry.used = True
            entry.options = lease.options
            trace = self.memory.trace(entry.ref.name)
            trace.idle = False
            trace.uses_us.append(now_us)
            if lease.warm_up:
                lease.ticket.warm_up = self._warm_up(entry, self.first_token_s)
            entry.stop_warm_up()
        entry.last_used_us = now_us

    def _release(self, model: str, ticket: Ticket) -> None:
        entry = self.memory.entries[model]
        entry.holders.remove(ticket)
        entry.last_used_us = self.clock()
        self.paces.saw_lease((entry.last_used_us - ticket.granted_us) / 1000)
        if entry.lost and not entry.holders:
            entry.stop_warm_up()
            self._forget(entry)

    # ── moving models ──

    def _start_load(self, model: ModelRef, evicted: tuple[str, ...]) -> Entry:
        self.memory.failures.pop(model.name, None)
        entry = self.memory.entries[model.name] = Entry(model, evicted=evicted)
        slots = [slot for slot in self.memory.slots() if slot.size_bytes is not None]
        taken = Footprint.of(*slots)
        if len(slots) > self.caps.loaded_models_max or not self.caps.budget.fits(taken, taken):
            entry.room_for = {slot.model for slot in slots if slot.leaving}
        if not entry.room_for:
            self._spawn(self._load, model)
        return entry

    def _evict(self, model: str, reason: str) -> None:
        entry = self.memory.entries.get(model)
        if entry is None:  # somebody else loaded it
            ref = self.listed(model)
            if ref is None:
                return
            entry = self.memory.entries[model] = Entry(ref)
        now_us = self.clock()
        self.counters.evictions += 1
        self.memory.trace(model).evicted_us = now_us
        self.decisions.note(now_us, model, Kind.EVICTED, reason, {"resident_bytes": self.status(model).resident_bytes})
        self._tell(model, ModelState.EVICTED, reason)
        self._start_unload(entry)

    def _load_done(self, done: LoadDone) -> None:
        entry = self.memory.entries[done.model]
        waiting, entry.waiting = entry.waiting, []
        now_us = self.clock()
        self.memory.moved(entry)
        if done.loaded is None:
            error = done.error or ModelLoadFailed(f"{done.model} did not load")
            del self.memory.entries[done.model]
            self.memory.failures[done.model] = error.message
            self.decisions.note(now_us, done.model, Kind.LOAD_FAILED, error.message)
            for lease in waiting:
                lease.ticket.fail(error)
            return
        entry.cold = done.cold
        loaded = self.memory.loaded(entry, done.loaded)
        if done.cold is False:
            self.decisions.note(now_us, done.model, Kind.FOUND, "it was in memory already", _figures(loaded))
        else:
            self._loaded_cold(entry, loaded, now_us)
        for lease in waiting:
            self._grant(entry, lease, after_load=True)
        worth_it = (entry.prefetched and done.cold) or any(lease.warm_up for lease in waiting)
        if worth_it and not entry.holders:  # who asked for it has gone, or nobody did; the next one is glad of it
            self._warm_up(entry, UNASKED_S)

    def _loaded_cold(self, entry: Entry, loaded: Loaded, now_us: int) -> None:
        name, entry.loaded_us = entry.ref.name, now_us
        trace = self.memory.trace(name)
        self.counters.loads += 1
        self.counters.prefetches += entry.prefetched
        if trace.evicted_us is not None and now_us - trace.evicted_us < self.caps.cooldown_us:
            self.counters.thrashes += 1
        if loaded.load_ms is not None:
            self.paces.saw_load(name, loaded.load_ms)
        kind = Kind.PREFETCHED if entry.prefetched else Kind.LOADED
        reason = None if entry.ref.runtime.local else ELSEWHERE
        self.decisions.note(now_us, name, kind, reason, _figures(loaded))

    def _warm_up(self, entry: Entry, limit_s: float) -> WarmUp:
        return entry.warm(limit_s, lambda begun: self._spawn(begun.run, self.commands.put))

    def _warmed_up(self, over: WarmUp) -> None:
        entry, error = self.memory.warmed_up(over), over.error
        if entry is not None and error is not None:
            self.decisions.note(self.clock(), entry.ref.name, Kind.NOT_WARMED_UP, error.message)
            self._tell(entry.ref.name, entry.state, error.message)

    def _unload(self, command: Unload) -> None:
        entry = self.memory.entries.get(command.model.name)
        if entry is None:  # not ours, but it may be in its runtime's memory all the same
            entry = self.memory.entries[command.model.name] = Entry(command.model)
            entry.unloads.append(command.reply)
            self._start_unload(entry)
        elif entry.leases or entry.waiting or entry.state is ModelState.LOADING:
            command.reply.fail(
                SessionConflict(f"{command.model.name} is in use; stop its sessions first", streams=entry.leases)
            )
        else:
            entry.unloads.append(command.reply)
            self._start_unload(entry)

    def _start_unload(self, entry: Entry) -> None:
        if entry.state is not ModelState.UNLOADING:
            entry.state = ModelState.UNLOADING
            entry.stop_warm_up()
            self._spawn(self._free, entry.ref)

    def _unload_done(self, done: UnloadDone) -> None:
        entry = self.memory.entries.pop(done.model)
        self.memory.moved(entry)
        if done.error is None:
            self.memory.forget_said(entry)
            if entry.unloads:
                self.memory.trace(done.model).idle = True
                figures = {"freed_bytes": done.freed_bytes}
                self.decisions.note(self.clock(), done.model, Kind.UNLOADED, "as was asked", figures)
        for reply in entry.unloads:
            reply.set(done.freed_bytes) if done.error is None else reply.fail(done.error)
        if done.error is not None and entry.loaded is not None:
            entry.state, entry.unloads = ModelState.READY, []  # as far as we know it is still there
            self.memory.entries[done.model] = entry
        for waiting in [entry for entry in self.memory.entries.values() if done.model in entry.room_for]:
            waiting.room_for.discard(done.model)
            if done.error is not None:  # no room was made; loading now would overcommit the machine
                error = ModelLoadFailed(f"{done.model} could not be unloaded to make room for {waiting.ref.name}")
                self._load_done(LoadDone(waiting.ref.name, None, None, error))
            elif not waiting.room_for:
                self._spawn(self._load, waiting.ref)

    # ── what the runtimes say ──

    def note_residency(self, residency: Residency) -> bool:
        """Keep it; True when a `Reconcile` has to be sent for it, False when one is on its way."""
        if not self.memory.note(residency):
            return False
        was, self._reconciling = self._reconciling, True
        return not was

    def _reconcile(self) -> None:
        """Idle models that are not in memory any more are forgotten; sizes are what they are now."""
        self._reconciling = False
        for entry in self.memory.lost():
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        name, gone = entry.ref.name, self.memory.is_gone(entry.ref.runtime.name)
        reason = GONE if gone else LET_GO
        del self.memory.entries[name]
        self.counters.lost += 1
        self.memory.trace(name).idle |= not gone  # nobody gave its memory back on purpose
        self.decisions.note(self.clock(), name, Kind.LOST, reason)
        self._tell(name, ModelState.ABSENT, reason)

    def _tell(self, model: str, state: ModelState, reason: str) -> None:
        self.news.offer(ModelChanged(None, model, state, reason=reason))

    # ── the pool's own tasks ──

    def _spawn(self, task: Callable[[T], Awaitable[None]], about: T) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, about)

    def _wake_at(self, at_us: int) -> None:
        """Look at the queue again then; one alarm at a time, the earliest."""
        if self._nursery is not None and (self._alarm_us is None or at_us < self._alarm_us):
            self._alarm_us = at_us
            self._nursery.start_soon(self._alarm, at_us)

    async def _alarm(self, at_us: int) -> None:
        await trio.sleep(max(0, at_us - self.clock()) / 1e6)
        await self.commands.put(_Wake(at_us))

    async def _load(self, model: ModelRef) -> None:
        entry = self.memory.entries[model.name]
        self.memory.load_begins(entry)
        await self.commands.put(await load(model, self.load_timeout_s))

    async def _free(self, model: ModelRef) -> None:
        await self.commands.put(await unload(model, self.load_timeout_s))


def _figures(loaded: Loaded) -> Numbers:
    return {"load_ms": loaded.load_ms, "resident_bytes": loaded.resident_bytes}
