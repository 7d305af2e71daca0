"""Calls at the lens that are no sessions, such as embeddings: an engine that stops still has a word for their
callers."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import attrs
import trio

from engine.domain.errors import Overloaded

RETRY_AFTER_S: Final = 1
T = TypeVar("T")


@attrs.define(eq=False)
class CallsInFlight:
    """Bounded by the connections that may be open."""

    _scopes: set[trio.CancelScope] = attrs.field(factory=set, init=False)
    _stopping: bool = attrs.field(default=False, init=False)

    async def run(self, call: Awaitable[T]) -> T:
        """What `call` returns. Raises Overloaded once the engine stops; the call is cancelled then."""
        with trio.CancelScope() as scope:
            if self._stopping:
                scope.cancel(reason="stopping")
            self._scopes.add(scope)
            try:
                return await call
            finally:
                self._scopes.discard(scope)
        raise Overloaded("the engine is stopping", retry_after_s=RETRY_AFTER_S)

    def stop(self) -> None:
        """Cut those in flight, and all that come. Returns at once."""
        self._stopping = True
        for scope in tuple(self._scopes):
            scope.cancel(reason="stopping")
