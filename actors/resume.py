"""Going on with an answer whose runtime broke off: what was given of it, who is asked next, and the seam.

Off unless the request carries rules (`GenerationRequest.resume`). The decisions are policies/resume.py's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final

import attrs
import trio

from engine.domain.errors import EngineError, ModelLoadTimeout
from engine.domain.generation import Chunk, GenerationEnd, GenerationRequest, ResumeRules, Seam, TokenKind
from engine.domain.runtime import Runtime
from policies.resume import CONTINUING, TEXT_BYTES_MAX, Given, Refused, continuation, next_model

DETAIL: Final = "not_resumed"  # why, in the details of the error that ended an answer


@attrs.frozen
class Place:
    """Who goes on: a runtime, and its own name for the model."""

    runtime: Runtime
    model: str


Elsewhere = Callable[[str], AbstractAsyncContextManager[Place]]  # the model of a public name, for one stream
Ask = Callable[[Runtime, GenerationRequest, Seam], Awaitable[GenerationEnd]]


@attrs.define(eq=False)
class AnswerSoFar:
    """What an answer has given, kept only where it may be resumed. Bounded: a longer text is let go."""

    _texts: list[str] = attrs.field(factory=list)
    _tokens: int = 0
    _bytes: int = 0
    _kinds: set[TokenKind] = attrs.field(factory=set)

    def take(self, chunk: Chunk, tokens: int) -> None:
        """A chunk that was passed on, as `tokens` tokens."""
        self._tokens += tokens
        if chunk.text or chunk.tool_calls:
            self._kinds.add(TokenKind.TOOL if chunk.tool_calls else chunk.kind)
        if chunk.kind is TokenKind.ANSWER and chunk.text:
            self._bytes += len(chunk.text.encode())
            if self._bytes <= TEXT_BYTES_MAX:
                self._texts.append(chunk.text)
            else:
                self._texts.clear()

    @property
    def bytes_given(self) -> int:
        """Of the answer's text, in UTF-8: the offset of what comes next."""
        return self._bytes

    def given(self) -> Given:
        text = "".join(self._texts) if self._bytes <= TEXT_BYTES_MAX else None
        return Given(text, self._tokens, frozenset(self._kinds))


@attrs.define(eq=False)
class Resumption:
    """The further attempts at one answer. `elsewhere` lends other models; without it only the same one can go on.
    `waits_s` bounds the wait for another model."""

    rules: ResumeRules
    runtime: Runtime
    request: GenerationRequest
    stream_id: str
    model: str  # public name of who broke off first
    waits_s: float
    elsewhere: Elsewhere | None = None
    so_far: AnswerSoFar = attrs.field(factory=AnswerSoFar)
    resumed: int = 0  # seams
    attempts: int = 0

    async def go_on(self, broke: EngineError, ask: Ask) -> GenerationEnd:
        """The end of the answer that `broke`. `ask` streams a continuation, and marks its first chunk with the seam.

        Raises the error that it broke with (the last one, if it broke again) when it cannot be gone on with; the
        details then say why. Cancelled here: nothing more is asked."""
        failed: EngineError | None = None
        while True:
            asked = continuation(broke, self.request, self.so_far.given(), self.rules, self.attempts)
            name = self._next_model()
            why = next((found.why for found in (asked, name) if isinstance(found, Refused)), None)
            if isinstance(asked, Refused) or isinstance(name, Refused):
                raise self._told(broke, f"{why}; {failed.message}" if failed is not None else why)
            self.attempts += 1
            await trio.sleep(self.rules.pause_s * self.attempts)
            offset = self.so_far.bytes_given
            seam = Seam(self.stream_id, name, self.so_far.given().tokens, offset, broke.code, self.attempts)
            before = self.resumed
            try:
                async with AsyncExitStack() as stack:
                    place = await self._place(name, stack)
                    if place.runtime.kind not in CONTINUING:
                        raise self._told(broke, f"{place.runtime.name} cannot go on with a text")
                    end = await ask(place.runtime, attrs.evolve(asked, model=place.model), seam)
            except EngineError as error:
                if error is broke:
                    raise
                broke, failed = (error, None) if self.resumed > before else (broke, error)
                continue
            return attrs.evolve(end, prompt_tokens=None, eval_count=None, resumed=self.resumed)

    def _next_model(self) -> str | Refused:
        if self.rules.who == "other" and self.elsewhere is None:
            return Refused("no other model can be lent to it")
        return next_model(self.rules, self.model, self.attempts)

    async def _place(self, name: str, stack: AsyncExitStack) -> Place:
        """Raises ModelLoadTimeout after `waits_s`, and what getting the model raises."""
        if name == self.model or self.elsewhere is None:
            return Place(self.runtime, self.request.model)
        with trio.move_on_after(self.waits_s):
            return await stack.enter_async_context(self.elsewhere(name))
        raise ModelLoadTimeout(f"{name} could not be had within {self.waits_s:g} s", limit_s=self.waits_s)

    def _told(self, error: EngineError, why: str | None) -> EngineError:
        error.details[DETAIL] = why
        error.details["resumed"] = self.resumed
        return error
