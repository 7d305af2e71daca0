"""ModelPool: who may use which model now. Decisions come from policies/admission, loads run in tasks of the pool's own.

A load belongs to everybody who waits for the model: a caller who leaves never cancels it. A grant counts only if the
caller was still there to take it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import attrs
import trio

from actors.catalog import ModelRef
from actors.kernel import Inlet, Outlet, Reply
from actors.lease import Grant, Lease, Tell, Ticket
from engine.domain.errors import (
    EngineError,
    InternalError,
    ModelLoadFailed,
    ModelLoadTimeout,
    Overloaded,
    SessionConflict,
    UpstreamTimeout,
)
from engine.domain.generation import Clock
from engine.domain.models import Loaded, ModelState
from policies.admission import Admit, PoolCaps, Slot, Wait, admit

RETRY_AFTER_S: Final = 1

logger = logging.getLogger("wf.pool")


@attrs.frozen
class ModelStatus:
    """A model as the pool sees it. `last_used_us` is null before its first use."""

    state: ModelState
    resident_bytes: int | None
    leases: int
    last_used_us: int | None


@attrs.frozen
class Release:
    model: str


@attrs.frozen
class Unload:
    model: ModelRef
    reply: Reply[int]


@attrs.frozen
class _LoadDone:
    model: str
    loaded: Loaded | None
    error: EngineError | None


@attrs.frozen
class _UnloadDone:
    model: str
    freed_bytes: int
    error: EngineError | None


Command = Lease | Release | Unload | _LoadDone | _UnloadDone


@attrs.define(eq=False)
class _Entry:
    ref: ModelRef
    state: ModelState = ModelState.LOADING
    loaded: Loaded | None = None
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
    lease and a release per stream, a load or unload per caller, and the completions of the pool's own tasks."""
    return 2 * (caps.streams_max + caps.queued_max) + callers_max + 2 * caps.loaded_models_max


@attrs.define(eq=False)
class ModelPool:
    inlet: Inlet[Command]
    commands: Outlet[Command]  # its own, for the completions of its tasks
    caps: PoolCaps
    clock: Clock
    load_timeout_s: float
    _entries: dict[str, _Entry] = attrs.field(factory=dict)
    _queue: list[Lease] = attrs.field(factory=list)
    _failures: dict[str, str] = attrs.field(factory=dict)
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
            state = ModelState.FAILED if model in self._failures else ModelState.ABSENT
            return ModelStatus(state, 0, 0, None)
        resident = 0 if entry.loaded is None else entry.loaded.resident_bytes
        return ModelStatus(entry.state, resident, entry.leases, entry.last_used_us if entry.used else None)

    @property
    def resident_bytes(self) -> int:
        return sum(e.loaded.resident_bytes or 0 for e in self._entries.values() if e.loaded is not None)

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
            self._grant(entry, lease, cold=False)
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

    def _grant(self, entry: _Entry, lease: Lease, cold: bool) -> None:
        assert entry.loaded is not None
        grant = Grant(
            model=entry.ref.name,
            cold=cold,
            load_ms=entry.loaded.load_ms if cold else 0.0,
            resident_bytes=entry.loaded.resident_bytes,
            evicted=entry.evicted if cold else (),
        )
        entry.pinned |= lease.pin
        if lease.ticket.settle(grant) and lease.stream:
            entry.leases += 1
            entry.used = True
        entry.last_used_us = self.clock()

    def _start_load(self, model: ModelRef, decision: Admit) -> _Entry:
        for victim in decision.evict:
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
        if done.loaded is None:
            error = done.error or ModelLoadFailed(f"{done.model} did not load")
            del self._entries[done.model]
            self._failures[done.model] = error.message
            for lease in waiting:
                lease.ticket.fail(error)
            return
        entry.loaded, entry.state = done.loaded, ModelState.READY
        for lease in waiting:
            self._grant(entry, lease, cold=True)

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
        for reply in entry.unloads:
            reply.set(done.freed_bytes) if done.error is None else reply.fail(done.error)
        if done.error is not None and entry.loaded is not None:
            entry.state, entry.unloads = ModelState.READY, []  # as far as we know it is still there
            self._entries[done.model] = entry
        for waiting in [entry for entry in self._entries.values() if done.model in entry.room_for]:
            waiting.room_for.discard(done.model)
            if done.error is not None:  # no room was made; loading now would overcommit the machine
                error = ModelLoadFailed(f"{done.model} could not be unloaded to make room for {waiting.ref.name}")
                self._load_done(_LoadDone(waiting.ref.name, None, error))
            elif not waiting.room_for:
                self._spawn(self._load, waiting.ref)

    # ── the pool's own tasks ──

    def _spawn(self, task: Callable[[ModelRef], Awaitable[None]], model: ModelRef) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, model)

    async def _load(self, model: ModelRef) -> None:
        loaded: Loaded | None = None
        error: EngineError | None = None
        try:
            with trio.fail_after(self.load_timeout_s):
                loaded = await model.runtime.load(model.info.name)
        except trio.TooSlowError:
            error = ModelLoadTimeout(f"{model.name} was not loaded within {self.load_timeout_s:g} s")
        except EngineError as caught:
            error = caught
        except Exception as caught:
            logger.error("loading %s failed: %s", model.name, type(caught).__name__, exc_info=caught)
            error = ModelLoadFailed(f"{model.name} could not be loaded")
        await self.commands.put(_LoadDone(model.name, loaded, error))

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


@attrs.frozen
class PoolHandle:
    """How the rest of the engine speaks to the pool."""

    pool: ModelPool
    commands: Outlet[Command]

    @contextlib.asynccontextmanager
    async def lease(self, model: ModelRef, tell: Tell) -> AsyncIterator[Grant]:
        """The model for one stream. Waits for its turn and its load; `tell` hears of each step. Raises Overloaded
        when the
        queue is full, and what the load raised. Cancelled while waiting: the place in the queue is given up."""
        ticket = self._ticket(model, stream=True)
        try:
            yield await ticket.settled(tell)
        finally:
            self._leave(model, ticket)

    async def load(self, model: ModelRef, tell: Tell, *, pin: bool = False) -> Grant:
        """Bring a model into memory without using it; pinned, it stays until it is unloaded on purpose.

        Cancelled here: the load goes on for whoever else wants it."""
        ticket = self._ticket(model, stream=False, pin=pin)
        try:
            return await ticket.settled(tell)
        finally:
            ticket.abandoned = True

    async def unload(self, model: ModelRef) -> int:
        """Bytes freed. Raises SessionConflict while streams use the model."""
        reply: Reply[int] = Reply()
        self._send(Unload(model, reply))
        return await reply.wait()

    def _ticket(self, model: ModelRef, *, stream: bool, pin: bool = False) -> Ticket:
        ticket = Ticket()
        self._send(Lease(model, stream, ticket, pin))
        return ticket

    def _leave(self, model: ModelRef, ticket: Ticket) -> None:
        if ticket.grant is None:
            ticket.abandoned = True
        elif not self.commands.offer(Release(model.name)):
            raise AssertionError("the pool's mailbox is sized so that a release always fits")

    def _send(self, command: Command) -> None:
        if not self.commands.offer(command):
            raise Overloaded("the model pool has too many requests", retry_after_s=RETRY_AFTER_S)
