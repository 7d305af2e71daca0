"""The model pool as others see it: a ticket to wait with, the grant it ends in, and the handle that gives both, for one
model or for a set of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import attrs
import trio

from actors.catalog import ModelRef, Residency
from actors.kernel import Outlet, Reply
from actors.warm_up import WarmUp
from engine.domain.errors import EngineError, ModelLoadFailed, Overloaded
from engine.domain.models import Capability, ModelState
from policies.waiting import in_words

if TYPE_CHECKING:
    from actors.pool import Command, ModelPool

RETRY_AFTER_S: Final = 1
LOST: Final = "it went out of memory again and again while the others were loaded"
SET_TRIES_MAX: Final = 3  # of a set of which one goes out of memory while the others are loaded

Tell = Callable[[ModelState, int | None, str | None], Awaitable[None]]  # state, place in the queue, reason
TellOf = Callable[[ModelRef, ModelState, int | None, str | None], Awaitable[None]]  # the same of one model of a set
RunnerOptions = Mapping[str, int | bool]


@attrs.frozen
class News:
    """A step on the way to a grant. `wait_ms` is the estimated time until then, null when nothing was measured; news
    that differ in nothing else are no news."""

    state: ModelState
    position: int | None = None
    reason: str | None = None
    wait_ms: float | None = attrs.field(default=None, eq=False)

    def words(self) -> str | None:
        """The reason, and the estimate where there is one."""
        if self.reason is None or self.wait_ms is None:
            return self.reason
        return f"{self.reason}; {in_words(self.wait_ms)}"


@attrs.frozen
class Grant:
    """The model is in memory and yours. `cold`: it had to be loaded for it (null: its runtime does not tell).
    `options_before` are the runner options of the request before this one, null when there was none."""

    model: str
    cold: bool | None
    load_ms: float | None  # null: its runtime does not tell
    resident_bytes: int | None
    evicted: tuple[str, ...]
    options_before: RunnerOptions | None = None


@attrs.frozen
class SetPlan:
    """In which company the models of a set can be used: all of a wave at once, one wave after the other."""

    waves: tuple[tuple[ModelRef, ...], ...]

    @property
    def together(self) -> bool:
        return len(self.waves) <= 1


@attrs.define(eq=False)
class Bell:
    """Wakes the one task that waits for a ticket, or for all tickets of a set."""

    _rung: trio.Event = attrs.field(factory=trio.Event)

    def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        """Until it rings; what rang before counts."""
        await self._rung.wait()
        self._rung = trio.Event()


@attrs.define(eq=False)
class Ticket:
    """A caller's place in the pool: news while it waits, then a grant or an error. A grant counts only if it was still
    wanted: an abandoned ticket refuses it. `granted_us` is the pool's, for how long the lease lasts; `warm_up` is what
    the model is held for, where that is no request. `lost`: while it was held its runtime let the model go."""

    bell: Bell = attrs.field(factory=Bell)
    grant: Grant | None = None
    error: EngineError | None = None
    news: News | None = None
    abandoned: bool = False
    granted_us: int = 0
    warm_up: WarmUp | None = None
    lost: bool = False

    @property
    def settled(self) -> bool:
        return self.grant is not None or self.error is not None

    def note(self, news: News) -> bool:
        """False when it is no news."""
        changed, self.news = self.news != news, news
        if changed:
            self.bell.ring()
        return changed

    def settle(self, grant: Grant) -> bool:
        if self.abandoned:
            return False
        self.grant = grant
        self.bell.ring()
        return True

    def fail(self, error: EngineError) -> None:
        self.error = error.again()
        self.bell.ring()


@attrs.frozen
class Lease:
    """One model for one caller. With `warm_up` its first token too, which takes a stream as a request does."""

    model: ModelRef
    stream: bool  # False: only bring it into memory
    ticket: Ticket
    pin: bool = False
    options: RunnerOptions = attrs.field(factory=dict)
    warm_up: bool = False


@attrs.define(eq=False)
class LeaseSet:
    """Leases that stand in the queue as one, and are admitted together or not yet. `hot`: models its caller has just
    done with, which need not cool down for it. `free_only`: only if nobody waits and nothing has to go, now or not at
    all. `refused`: why the set as a whole is not had."""

    leases: tuple[Lease, ...]
    hot: frozenset[str] = frozenset()
    free_only: bool = False
    refused: EngineError | None = None
    overtaken: int = 0  # others who came later and were served first
    judged: bool = False  # it was looked at once, and not refused

    @property
    def abandoned(self) -> bool:
        return all(lease.ticket.abandoned for lease in self.leases)

    @property
    def wants_streams(self) -> bool:
        return any(lease.stream for lease in self.leases)

    def refuse(self, error: EngineError) -> None:
        self.refused = error
        for lease in self.leases:
            if not lease.ticket.settled:
                lease.ticket.fail(error)


@attrs.frozen
class Release:
    model: str
    ticket: Ticket


@attrs.frozen
class Left:
    """Somebody who waited has gone: others may move up."""


@attrs.frozen
class Unload:
    model: ModelRef
    reply: Reply[int]


@attrs.frozen
class Reconcile:
    """Look at what the runtimes said is in their memory. At most one is under way."""


@attrs.frozen
class PoolHandle:
    """How the rest of the engine speaks to the pool."""

    pool: ModelPool
    commands: Outlet[Command]

    def plan(self, models: Sequence[ModelRef]) -> SetPlan:
        """In which waves a set of models can be used, as things are: what fits together when everything else that may
        go has gone. A model may stand in it more than once.

        Raises TierLimitExceeded or InsufficientMemory, with the numbers, when one of them can never be used."""
        return SetPlan(self.pool.plan(models))

    def refuse_impossible(self, models: Sequence[ModelRef]) -> None:
        """Raises TierLimitExceeded or InsufficientMemory, with the numbers, when one of the models can never be used as
        things are, even alone. What is only in use at the moment is no reason: it is waited for. Nothing is held."""
        self.pool.refuse_impossible(models)

    @contextlib.asynccontextmanager
    async def lease(self, model: ModelRef, tell: Tell, options: RunnerOptions | None = None) -> AsyncIterator[Grant]:
        """The model for one stream, which will send it the runner options `options`. Waits for its turn and its load;
        `tell` hears of each step. Raises Overloaded when the queue is full, TierLimitExceeded or InsufficientMemory
        when it can never be had, and what the load raised. Cancelled while waiting: the place in the queue is given
        up."""
        lease = Lease(model, True, Ticket(), options=options or {})
        self._send(LeaseSet((lease,)))
        try:
            yield await _granted(lease, tell)
        finally:
            self._leave(lease)

    @contextlib.asynccontextmanager
    async def lease_set(
        self,
        models: Sequence[ModelRef],
        tell: TellOf,
        *,
        hot: Sequence[ModelRef] = (),
        options: RunnerOptions | None = None,
    ) -> AsyncIterator[tuple[Grant | EngineError, ...]]:
        """All models at once, one stream each, which will send them the runner options `options`: nothing is held
        before all of them may be had together. In their order, each is a grant or why it could not be loaded; one that
        fails takes nothing from the others, and one that goes out of memory meanwhile is loaded again. `tell` hears of
        each step of each model. `hot` are the models of the caller's last wave: they need not cool down to make room.

        Raises Overloaded when the queue is full, and TierLimitExceeded or InsufficientMemory when the set cannot be had
        together (see `plan`). Cancelled while waiting: the place in the queue is given up, loads go on for others."""
        bell = Bell()
        leases: tuple[Lease, ...] = ()
        try:
            for _ in range(SET_TRIES_MAX):
                for lease in leases:
                    self._leave(lease)
                leases = tuple(Lease(model, True, Ticket(bell), options=options or {}) for model in models)
                asked = LeaseSet(leases, frozenset(model.name for model in hot))
                if leases:
                    self._send(asked)
                results = await _all_settled(asked, bell, tell)
                lost = {lease.model.name for lease in leases if lease.ticket.grant and lease.ticket.lost}
                if not lost:
                    break
            yield tuple(ModelLoadFailed(LOST) if m.name in lost else r for m, r in zip(models, results, strict=True))
        finally:
            for lease in leases:
                self._leave(lease)

    async def load(self, model: ModelRef, tell: Tell, *, pin: bool = False, warm_up: bool = False) -> Grant:
        """Bring a model into memory without using it; pinned, it stays until it is unloaded on purpose. `warm_up`:
        wait for its first token too, where it is a model that answers. Raises as `lease`, and why there was no first
        token. Cancelled here: the load and the warm-up go on, they are the pool's."""
        warms_up = warm_up and Capability.COMPLETION in model.info.capabilities
        lease = Lease(model, warms_up, Ticket(), pin, warm_up=warms_up)
        self._send(LeaseSet((lease,)))
        try:
            grant = await _granted(lease, tell)
            if lease.ticket.warm_up is not None:
                await lease.ticket.warm_up.wait()
            return grant
        finally:
            self._leave(lease)

    async def prefetch(self, model: ModelRef) -> Grant:
        """Bring a model into memory if there is room, nobody waits and nothing is loaded: else Overloaded is raised at
        once. It never makes another one go."""
        lease = Lease(model, False, Ticket())
        self._send(LeaseSet((lease,), free_only=True))
        try:
            return await _granted(lease, _tell_nobody)
        finally:
            self._give_up(lease)

    async def unload(self, model: ModelRef) -> int:
        """Bytes freed. Raises SessionConflict while streams use the model."""
        reply: Reply[int] = Reply()
        self._send(Unload(model, reply))
        return await reply.wait()

    def see(self, residency: Residency) -> None:
        """What a runtime says is in its memory; of one runtime the newest counts."""
        if self.pool.note_residency(residency):
            self._send(Reconcile())

    def _leave(self, lease: Lease) -> None:
        if lease.ticket.grant is None or not lease.stream:
            self._give_up(lease)
        elif not self.commands.offer(Release(lease.model.name, lease.ticket)):
            raise AssertionError("the pool's mailbox is sized so that a release always fits")

    def _give_up(self, lease: Lease) -> None:
        """Nobody wants it any more. Where the pool's box is full it looks at the queue soon in any case."""
        lease.ticket.abandoned = True
        if not lease.ticket.settled:
            self.commands.offer(Left())

    def _send(self, command: Command) -> None:
        if not self.commands.offer(command):
            raise Overloaded("the model pool has too many requests", retry_after_s=RETRY_AFTER_S)


async def _granted(lease: Lease, tell: Tell) -> Grant:
    """The grant; every step on the way there is told. Raises the error. Cancelled here: look at the ticket."""
    told: News | None = None
    ticket = lease.ticket
    while not ticket.settled:
        await ticket.bell.wait()
        if ticket.news is not None and ticket.news != told:
            told = ticket.news
            await tell(told.state, told.position, told.words())
    if ticket.error is not None:
        await tell(ModelState.FAILED, None, ticket.error.message)
        raise ticket.error
    assert ticket.grant is not None
    if told is not None and told.state is ModelState.LOADING:
        await tell(ModelState.READY, None, None)
    return ticket.grant


async def _all_settled(asked: LeaseSet, bell: Bell, tell: TellOf) -> tuple[Grant | EngineError, ...]:
    """What became of each lease, when that is known of all."""
    told: dict[int, News] = {}
    open_ = dict(enumerate(asked.leases))
    while open_:
        await bell.wait()
        for index, lease in list(open_.items()):
            ticket, news = lease.ticket, lease.ticket.news
            if news is not None and news != told.get(index):
                told[index] = news
                await tell(lease.model, news.state, news.position, news.words())
            if not ticket.settled:
                continue
            del open_[index]
            if ticket.error is not None:
                await tell(lease.model, ModelState.FAILED, None, ticket.error.message)
            elif index in told and told[index].state is ModelState.LOADING:
                await tell(lease.model, ModelState.READY, None, None)
    if asked.refused is not None:
        raise asked.refused
    results = (lease.ticket.grant or lease.ticket.error for lease in asked.leases)
    return tuple(result for result in results if result is not None)


async def _tell_nobody(state: ModelState, position: int | None, reason: str | None) -> None:
    await trio.lowlevel.checkpoint()
