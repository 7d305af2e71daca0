"""The model pool as its callers see it: a ticket to wait with, the grant it ends in, and the handle that gives both."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

import attrs
import trio

from actors.catalog import ModelRef, Residency
from actors.kernel import Outlet, Reply
from engine.domain.errors import EngineError, Overloaded
from engine.domain.models import ModelState

if TYPE_CHECKING:
    from actors.pool import Command, ModelPool

RETRY_AFTER_S: Final = 1

News = tuple[ModelState, int | None, str | None]  # state, queue position, reason
Tell = Callable[[ModelState, int | None, str | None], Awaitable[None]]
RunnerOptions = Mapping[str, int | bool]


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


@attrs.define(eq=False)
class Ticket:
    """A caller's place in the pool: news while it waits, then a grant or an error. A grant counts only if it was still
    wanted: an abandoned ticket refuses it."""

    grant: Grant | None = None
    error: EngineError | None = None
    news: News | None = None
    abandoned: bool = False
    _wake: trio.Event = attrs.field(factory=trio.Event)

    def note(self, state: ModelState, position: int | None = None, reason: str | None = None) -> None:
        if self.news != (news := (state, position, reason)):
            self.news = news
            self._wake.set()

    def settle(self, grant: Grant) -> bool:
        if self.abandoned:
            return False
        self.grant = grant
        self._wake.set()
        return True

    def fail(self, error: EngineError) -> None:
        self.error = error
        self._wake.set()

    async def settled(self, tell: Tell) -> Grant:
        """The grant; every step on the way there is told. Raises the error. Cancelled here: look at `grant`."""
        told = None
        while self.grant is None and self.error is None:
            await self._wake.wait()
            self._wake = trio.Event()
            if self.news is not None and self.news != told:
                told = self.news
                await tell(*told)
        if self.error is not None:
            await tell(ModelState.FAILED, None, self.error.message)
            raise self.error
        assert self.grant is not None
        if told is not None and told[0] is ModelState.LOADING:
            await tell(ModelState.READY, None, None)
        return self.grant


@attrs.frozen
class Lease:
    model: ModelRef
    stream: bool  # False: only bring it into memory
    ticket: Ticket
    pin: bool = False
    options: RunnerOptions = attrs.field(factory=dict)


@attrs.frozen
class Release:
    model: str


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

    @contextlib.asynccontextmanager
    async def lease(self, model: ModelRef, tell: Tell, options: RunnerOptions | None = None) -> AsyncIterator[Grant]:
        """The model for one stream, which will send it the runner options `options`. Waits for its turn and its load;
        `tell` hears of each step. Raises Overloaded when the queue is full, and what the load raised. Cancelled while
        waiting: the place in the queue is given up."""
        ticket = self._ticket(Lease(model, True, Ticket(), options=options or {}))
        try:
            yield await ticket.settled(tell)
        finally:
            self._leave(model, ticket)

    async def load(self, model: ModelRef, tell: Tell, *, pin: bool = False) -> Grant:
        """Bring a model into memory without using it; pinned, it stays until it is unloaded on purpose.

        Cancelled here: the load goes on for whoever else wants it."""
        ticket = self._ticket(Lease(model, False, Ticket(), pin))
        try:
            return await ticket.settled(tell)
        finally:
            ticket.abandoned = True

    async def unload(self, model: ModelRef) -> int:
        """Bytes freed. Raises SessionConflict while streams use the model."""
        reply: Reply[int] = Reply()
        self._send(Unload(model, reply))
        return await reply.wait()

    def see(self, residency: Residency) -> None:
        """What a runtime says is in its memory; of one runtime the newest counts."""
        if self.pool.note_residency(residency):
            self._send(Reconcile())

    def _ticket(self, lease: Lease) -> Ticket:
        self._send(lease)
        return lease.ticket

    def _leave(self, model: ModelRef, ticket: Ticket) -> None:
        if ticket.grant is None:
            ticket.abandoned = True
        elif not self.commands.offer(Release(model.name)):
            raise AssertionError("the pool's mailbox is sized so that a release always fits")

    def _send(self, command: Command) -> None:
        if not self.commands.offer(command):
            raise Overloaded("the model pool has too many requests", retry_after_s=RETRY_AFTER_S)
