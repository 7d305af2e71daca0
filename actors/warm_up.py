"""A model's first token after its load, so that nobody's request pays for what only the first pass does.

It is a task of the pool's own, one at a time of each model: whoever asks while it runs waits for the same one and hears
the same. Those who wait may leave; it goes on without them, and then gives way to whoever needs the model.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from actors.catalog import ModelRef
from engine.domain.errors import EngineError, InternalError, Overloaded, UpstreamTimeout, UpstreamTruncated
from engine.domain.generation import GenerationRequest, Parameters

UNASKED_S: Final = 10.0  # for one that nobody waits for; a model that takes longer is in memory all the same

logger = logging.getLogger("wf.pool")


@attrs.define(eq=False)
class WarmUp:
    """`error` is why there was no token; null while it runs, and when there was one."""

    model: ModelRef
    error: EngineError | None = None
    _limit_s: float = 0.0
    _began_s: float = attrs.field(factory=trio.current_time)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _over: trio.Event = attrs.field(factory=trio.Event)

    def allow(self, limit_s: float) -> None:
        """It may take so long, counted from when it began, or as long as it was allowed before."""
        self._limit_s = max(self._limit_s, limit_s)
        self._scope.deadline = self._began_s + self._limit_s

    def stop(self) -> None:
        """It gives way. Nobody may be waiting for it."""
        self._scope.cancel()

    async def run(self, over: Callable[[WarmUp], Awaitable[object]]) -> None:
        """Until there is a token, an error or the limit; `over` hears of it first, then those who wait. Raises nothing
        of its own. Cancelled here: the runtime is stopped, and those who wait are told that."""
        try:
            self.error = await self._outcome()
            await over(self)
        except trio.Cancelled:
            self.error = Overloaded("the engine is stopping", retry_after_s=1)
            raise
        finally:
            self._over.set()

    async def wait(self) -> None:
        """Until it is over. Raises why there was no token. Cancelled here: it goes on."""
        await self._over.wait()
        if self.error is not None:
            raise self.error.again()

    async def _outcome(self) -> EngineError | None:
        name = self.model.name
        try:
            with self._scope:
                return await self._first_token()
        except EngineError as error:
            return error
        except Exception as error:
            logger.error("warming %s up failed: %s", name, type(error).__name__, exc_info=error)
            return InternalError(f"{name} was loaded, but could not be warmed up")
        limit_s = self._limit_s
        return UpstreamTimeout(f"{name} was loaded, but gave no token within {limit_s:g} s", limit_s=limit_s)

    async def _first_token(self) -> EngineError | None:
        asked = GenerationRequest(self.model.info.name, prompt="warm up", parameters=Parameters(max_tokens=1))
        async with self.model.runtime.generate(asked) as chunks:
            async for chunk in chunks:
                if chunk.text or chunk.logprobs or chunk.end is not None:
                    return None
        return UpstreamTruncated(f"{self.model.name} was loaded, but its first answer broke off")
