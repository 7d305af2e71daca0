"""A place in the model pool: the ticket a caller waits with, and the grant it ends in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio

from actors.catalog import ModelRef
from engine.domain.errors import EngineError
from engine.domain.models import ModelState

News = tuple[ModelState, int | None, str | None]  # state, queue position, reason
Tell = Callable[[ModelState, int | None, str | None], Awaitable[None]]


@attrs.frozen
class Grant:
    """The model is in memory and yours. `cold`: it had to be loaded for it."""

    model: str
    cold: bool
    load_ms: float
    resident_bytes: int | None
    evicted: tuple[str, ...]


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
        if self.grant.cold:
            await tell(ModelState.READY, None, None)
        return self.grant


@attrs.frozen
class Lease:
    model: ModelRef
    stream: bool  # False: only bring it into memory
    ticket: Ticket
    pin: bool = False
