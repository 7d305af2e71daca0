"""ModelPool: who may use which model now. Decisions come from policies/admission, loads run in tasks of the pool's own.

A load belongs to everybody who waits for the model: a caller who leaves never cancels it. A grant counts only if the
caller was still there to take it. What is in memory is what the runtimes say: a model that somebody else loaded is
shown and used as it is, and one that its runtime let go of is forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from actors.catalog import ModelRef, Residency
from actors.kernel import Inlet, Outlet, Reply
from actors.lease import RETRY_AFTER_S, Grant, Lease, Reconcile, Release, RunnerOptions, Unload
from engine.domain.errors import (
    EngineError,
    InternalError,
    ModelLoadFailed,
    ModelLoadTimeout,
    Overloaded,
    SessionConflict,
    UpstreamTimeout,
)
from engine.domain.events import ModelChanged, SessionSignal
from engine.domain.generation import Clock
from engine.domain.models import Loaded, ModelState
from policies.admission import Admit, PoolCaps, Slot, Wait, admit

LET_GO: Final = "its runtime let go of it"

logger = logging.getLogger("wf.pool")


@attrs.frozen
class ModelStatus:
    """A model as the pool sees it. `last_used_us` is null before its first use."""

    state: ModelState
    resident_bytes: int | None
    leases: int
    last_used_us: int | None


@attrs.define
class PoolCounters:
    """Since the start. `lost`: models that a runtime dropped by itself; `reloads`: loaded again for a request although
    they were in memory."""

    loads: int = 0
    evictions: int = 0
    lost: int = 0
    reloads: int = 0


@attrs.frozen
class _LoadDone:
    model: str
    loaded: Loaded | None
    cold: bool | None
    error: EngineError | None


@attrs.frozen
class _UnloadDone:
    model: str
    freed_bytes: int
    error: EngineError | None


Command = Lease | Release | Unload | Reconcile | _LoadDone | _UnloadDone


@attrs.define(eq=False)
class _Entry:
    ref: ModelRef
    state: ModelState = ModelState.LOADING
    loaded: Loaded | None = None
    cold: bool | None = None  # its load found it out of memory
    options: RunnerOptions | None = None  # of the last request
    leases: int = 0
    last_used_us: int = 0
    used: bool = False
    evicted: tuple[str, ...] = ()
    room_for: set[str] = attrs.field(factory=set)  # models that must be out before its load may begin
    pinned: bool = False
    waiting: list[Lease] = attrs.field(factory=list)  # for the load to end
    unloads: list[Reply[int]] = attrs.field(factory=list)


def mailbox_capacity(caps: PoolCaps, callers_max: int) -> int:
    """Room for every command that can be outstanding, so that a release in a `finally` never finds the box full: a
    lease and a release per stream, a load or unload per caller, one look at what the runtimes said, and the completions
    of the pool's own tasks."""
    return 2 * (caps.streams_max + caps.queued_max) + callers_max + 1 + 2 * caps.loaded_models_max


@attrs.define(eq=False)
class ModelPool:
    inlet: Inlet[Command]
    commands: Outlet[Command]  # its own, for the completions of its tasks
    caps: PoolCaps
    clock: Clock
    load_timeout_s: float
    news: Outlet[SessionSignal]  # of models that move without a session; lossy: /models has the state
    counters: PoolCounters = attrs.field(factory=PoolCounters)
    _entries: dict[str, _Entry] = attrs.field(factory=dict)
    _queue: list[Lease] = attrs.field(factory=list)
    _failures: dict[str, str] = attrs.field(factory=dict)
    _said: dict[str, Residency] = attrs.field(factory=dict)  # by the runtimes, the newest of each
    _reconciling: bool = False
    _moved_us: dict[str, int] = attrs.field(factory=dict)  # by runtime: when we last moved a model of it
    _nursery: trio.Nursery | None = None

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
        for entry in self._entries.values():
            for lease in entry.waiting:
                lease.ticket.fail(error)
            for reply in entry.unloads:
                reply.fail(error)
        for lease in self._queue:
            lease.ticket.fail(error)

    # ── reads, between two awaits of anybody ──

    def status(self, model: str) -> ModelStatus:
        entry = self._entries.get(model)
        if entry is None:
            for said in self._said.values():
                if model in said.models:  # somebody else loaded it
                    return ModelStatus(ModelState.READY, said.models[model], 0, None)
            state = ModelState.FAILED if model in self._failures else ModelState.ABSENT
            return ModelStatus(state, 0, 0, None)
        resident = 0 if entry.loaded is None else entry.loaded.resident_bytes
        return ModelStatus(entry.state, resident, entry.leases, entry.last_used_us if entry.used else None)

    @property
    def resident_bytes(self) -> int:
        """Of the models whose runtime says their size, ours and those that others loaded."""
        names = {*self._entries, *(name for said in self._said.values() for name in said.models)}
        return sum(self.status(name).resident_bytes or 0 for name in names)

    @property
    def queued(self) -> int:
        return sum(not lease.ticket.abandoned for lease in self._queue)

    @property
    def streams(self) -> int:
        """Streams that hold a model, or will as soon as it is loaded."""
        return sum(slot.leases for slot in self._slots())

    # ── commands, one at a time; nothing below awaits ──

    def _handle(self, command: Command) -> None:
        match command:
            case Lease():
                self._queue = [lease for lease in self._queue if not lease.ticket.abandoned]
                if len(self._queue) >= self.caps.queued_max:
                    command.ticket.fail(
                        Overloaded(
                            f"{self.caps.queued_max} requests are waiting already",
                            limit=self.caps.queued_max,
                            retry_after_s=RETRY_AFTER_S,
                        )
                    )
                else:
                    self._queue.append(command)
            case Release(model=model):
                self._entries[model].leases -= 1
                self._entries[model].last_used_us = self.clock()
            case Unload():
                self._unload(command)
            case Reconcile():
                self._reconcile()
            case _LoadDone():
                self._load_done(command)
            case _UnloadDone():
                self._unload_done(command)
        self._serve_queue()

    def _serve_queue(self) -> None:
        """In order of arrival; one that must wait does not hold up one behind it that need not."""
        waiting: list[Lease] = []
        for lease in self._queue:
            if lease.ticket.abandoned:
                continue
            if not self._try(lease, position=len(waiting) + 1):
                waiting.append(lease)
        self._queue = waiting

    def _try(self, lease: Lease, position: int) -> bool:
        name = lease.model.name
        entry = self._entries.get(name)
        if entry is not None and entry.state is ModelState.UNLOADING:
            lease.ticket.note(ModelState.QUEUED, position, "the model is being unloaded")
            return False
        decision = admit(name, self._slots(), self.streams, self.caps)
        if isinstance(decision, Wait) and lease.stream:
            lease.ticket.note(ModelState.QUEUED, position, decision.reason)
            return False
        if entry is not None and entry.loaded is not None:
            self._grant(entry, lease, after_load=False)
            return True
        if entry is None:
            if isinstance(decision, Wait):
                lease.ticket.note(ModelState.QUEUED, position, decision.reason)
                return False
            entry = self._start_load(lease.model, decision)
        lease.ticket.note(ModelState.LOADING, None, None)
        entry.waiting.append(lease)
        return True

    def _slots(self) -> list[Slot]:
        return [
            Slot(
                name,
                entry.leases + sum(1 for lease in entry.waiting if lease.stream and not lease.ticket.abandoned),
                entry.last_used_us,
                loading=entry.state is ModelState.LOADING,
                leaving=entry.state is ModelState.UNLOADING,
                pinned=entry.pinned,
            )
            for name, entry in self._entries.items()
        ]

    def _grant(self, entry: _Entry, lease: Lease, *, after_load: bool) -> None:
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
        if lease.ticket.settle(grant) and lease.stream:
            entry.leases += 1
            entry.used = True
            entry.options = lease.options
        entry.last_used_us = self.clock()

    def _start_load(self, model: ModelRef, decision: Admit) -> _Entry:
        for victim in decision.evict:
            self.counters.evictions += 1
            self._tell(victim, ModelState.EVICTED, f"to make room for {model.name}")
            self._start_unload(self._entries[victim])
        self._failures.pop(model.name, None)
        entry = self._entries[model.name] = _Entry(model, evicted=decision.evict)
        if len(self._entries) > self.caps.loaded_models_max:
            entry.room_for = {name for name, e in self._entries.items() if e.state is ModelState.UNLOADING}
        if not entry.room_for:
            self._spawn(self._load, model)
        return entry

    def _load_done(self, done: _LoadDone) -> None:
        entry = self._entries[done.model]
        waiting, entry.waiting = entry.waiting, []
        self._moved_us[entry.ref.runtime.name] = self.clock()
        if done.loaded is None:
            error = done.error or ModelLoadFailed(f"{done.model} did not load")
            del self._entries[done.model]
            self._failures[done.model] = error.message
            for lease in waiting:
                lease.ticket.fail(error)
            return
        entry.loaded, entry.state, entry.cold = done.loaded, ModelState.READY, done.cold
        self.counters.loads += done.cold is not False
        for lease in waiting:
            self._grant(entry, lease, after_load=True)

    def _unload(self, command: Unload) -> None:
        entry = self._entries.get(command.model.name)
        if entry is None:  # not ours, but it may be in its runtime's memory all the same
            entry = self._entries[command.model.name] = _Entry(command.model)
            entry.unloads.append(command.reply)
            self._start_unload(entry)
        elif entry.leases or entry.waiting or entry.state is ModelState.LOADING:
            command.reply.fail(
                SessionConflict(f"{command.model.name} is in use; stop its sessions first", streams=entry.leases)
            )
        else:
            entry.unloads.append(command.reply)
            self._start_unload(entry)

    def _start_unload(self, entry: _Entry) -> None:
        if entry.state is not ModelState.UNLOADING:
            entry.state = ModelState.UNLOADING
            self._spawn(self._free, entry.ref)

    def _unload_done(self, done: _UnloadDone) -> None:
        entry = self._entries.pop(done.model)
        self._moved_us[entry.ref.runtime.name] = self.clock()
        if done.error is None:
            for said in self._said.values():  # it was there when the runtime was asked, and is not any more
                if said.runtime == entry.ref.runtime.name and done.model in said.models:
                    models = {name: size for name, size in said.models.items() if name != done.model}
                    self._said[said.runtime] = attrs.evolve(said, models=models)
                    break
        for reply in entry.unloads:
            reply.set(done.freed_bytes) if done.error is None else reply.fail(done.error)
        if done.error is not None and entry.loaded is not None:
            entry.state, entry.unloads = ModelState.READY, []  # as far as we know it is still there
            self._entries[done.model] = entry
        for waiting in [entry for entry in self._entries.values() if done.model in entry.room_for]:
            waiting.room_for.discard(done.model)
            if done.error is not None:  # no room was made; loading now would overcommit the machine
                error = ModelLoadFailed(f"{done.model} could not be unloaded to make room for {waiting.ref.name}")
                self._load_done(_LoadDone(waiting.ref.name, None, None, error))
            elif not waiting.room_for:
                self._spawn(self._load, waiting.ref)

    # ── what the runtimes say ──

    def note_residency(self, residency: Residency) -> bool:
        """Keep it; True when a `Reconcile` has to be sent for it, False when one is on its way."""
        held = self._said.get(residency.runtime)
        if held is not None and residency.asked_us < held.asked_us:
            return False
        if residency.asked_us <= self._moved_us.get(residency.runtime, -1):
            return False  # we moved a model since: its memory has changed
        self._said[residency.runtime] = residency
        was, self._reconciling = self._reconciling, True
        return not was

    def _reconcile(self) -> None:
        """Idle models that are not in memory any more are forgotten; sizes are what they are now."""
        self._reconciling = False
        for name, entry in list(self._entries.items()):
            said = self._said.get(entry.ref.runtime.name)
            if said is None or entry.state is not ModelState.READY or entry.loaded is None:
                continue
            if said.asked_us <= self._moved_us.get(said.runtime, -1):
                continue
            if name in said.models:
                entry.loaded = attrs.evolve(entry.loaded, resident_bytes=said.models[name])
            elif entry.leases == 0:
                del self._entries[name]
                self.counters.lost += 1
                self._tell(name, ModelState.ABSENT, LET_GO)

    def _tell(self, model: str, state: ModelState, reason: str) -> None:
        self.news.offer(ModelChanged(None, model, state, reason=reason))

    # ── the pool's own tasks ──

    def _spawn(self, task: Callable[[ModelRef], Awaitable[None]], model: ModelRef) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, model)

    async def _load(self, model: ModelRef) -> None:
        loaded: Loaded | None = None
        cold: bool | None = None
        error: EngineError | None = None
        try:
            with trio.fail_after(self.load_timeout_s):
                resident = await model.runtime.resident()
                cold = None if resident is None else model.info.name not in resident
                loaded = await model.runtime.load(model.info.name)
        except trio.TooSlowError:
            error = ModelLoadTimeout(f"{model.name} was not loaded within {self.load_timeout_s:g} s")
        except EngineError as caught:
            error = caught
        except Exception as caught:
            logger.error("loading %s failed: %s", model.name, type(caught).__name__, exc_info=caught)
            error = ModelLoadFailed(f"{model.name} could not be loaded")
        await self.commands.put(_LoadDone(model.name, loaded, cold, error))

    async def _free(self, model: ModelRef) -> None:
        freed_bytes = 0
        error: EngineError | None = None
        try:
            with trio.fail_after(self.load_timeout_s):
                freed_bytes = await model.runtime.unload(model.info.name)
        except trio.TooSlowError:
            error = UpstreamTimeout(f"{model.name} was not unloaded within {self.load_timeout_s:g} s")
        except EngineError as caught:
            error = caught
        except Exception as caught:
            logger.error("unloading %s failed: %s", model.name, type(caught).__name__, exc_info=caught)
            error = InternalError(f"{model.name} could not be unloaded")
        await self.commands.put(_UnloadDone(model.name, freed_bytes, error))
