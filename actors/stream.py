"""ModelStream: drives one runtime stream to its end and passes its tokens on, stamped by the runtime on arrival."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import attrs
import trio

from actors.kernel import Outlet
from engine.domain.alignment import TokenLedger
from engine.domain.errors import UpstreamProtocolError, UpstreamTimeout, UpstreamTruncated
from engine.domain.events import SessionSignal, StreamRef, TokenBatch
from engine.domain.generation import Chunk, GenerationEnd, GenerationRequest, Runtime

BATCH_TOKENS_MAX: Final = 256


@attrs.frozen
class Timeouts:
    """Seconds a caller waits for a runtime: until its first record, between records, for a load."""

    first_token_s: float = 300.0
    progress_s: float = 120.0
    load_s: float = 300.0


@attrs.define(eq=False)
class ModelStream:
    """`tokens` and `first_us` may be read while it runs."""

    ref: StreamRef
    runtime: Runtime
    request: GenerationRequest
    signals: Outlet[SessionSignal]
    timeouts: Timeouts
    tokens: int = 0
    first_us: int | None = None
    _ledger: TokenLedger = attrs.field(factory=TokenLedger)
    _held_s: float = 0.0

    async def run(self) -> GenerationEnd:
        """Until the runtime's terminal record. Raises UpstreamTruncated when the stream stops without one,
        UpstreamTimeout
        when nothing comes, and whatever the runtime raises. Cancelled here: the runtime is stopped before this
        returns."""
        async with self.runtime.generate(self.request) as chunks:
            while True:
                chunk = await self._next(chunks)
                if chunk is None:
                    raise UpstreamTruncated(
                        f"{self.runtime.name} broke off without its final record", tokens=self.tokens
                    )
                await self._pass_on(chunk)
                if chunk.end is not None:
                    return chunk.end

    async def _next(self, chunks: AsyncIterator[Chunk]) -> Chunk | None:
        limit_s = self.timeouts.first_token_s if self.first_us is None else self.timeouts.progress_s
        with trio.move_on_after(limit_s):
            return await anext(chunks, None)
        raise UpstreamTimeout(f"{self.runtime.name} sent nothing for {limit_s:g} s", limit_s=limit_s)

    async def _pass_on(self, chunk: Chunk) -> None:
        _refuse_surrogates(chunk, self.runtime.name)
        tokens = self._ledger.take(chunk, throttled=self._held_s > 0)
        if not tokens:
            return
        if self.first_us is None:
            self.first_us = chunk.t_us
        held_us = round(self._held_s * 1e6)
        self._held_s = 0.0
        for at in range(0, len(tokens), BATCH_TOKENS_MAX):
            batch = TokenBatch(self.ref, tokens[at : at + BATCH_TOKENS_MAX], held_us)
            self._held_s += await self.signals.put(batch)
            self.tokens += len(batch.tokens)


def _refuse_surrogates(chunk: Chunk, runtime: str) -> None:
    """Half a surrogate pair is no text: it cannot be sent on. Raises UpstreamProtocolError."""
    texts = [chunk.text]
    for entry in chunk.logprobs:
        texts.append(entry.token)
        texts.extend(candidate.token for candidate in entry.top)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise UpstreamProtocolError(f"{runtime} sent text that is not valid Unicode") from None
