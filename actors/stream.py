"""ModelStream: drives one runtime stream to its end and passes its tokens on, stamped by the runtime on arrival."""

from __future__ import annotations

import math
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
        """Until the runtime's terminal record.

        Raises UpstreamTruncated when the stream stops without one, UpstreamTimeout when no token comes in time, and
        whatever the runtime raises. Cancelled here: the runtime is stopped before this returns."""
        limit_s = self.timeouts.first_token_s
        with trio.CancelScope(deadline=trio.current_time() + limit_s) as patience:
            async with self.runtime.generate(self.request) as chunks:
                while (chunk := await anext(chunks, None)) is not None:
                    until = patience.deadline
                    patience.deadline = math.inf  # waiting for room of our own is not the runtime's fault
                    if await self._pass_on(chunk):
                        limit_s = self.timeouts.progress_s
                        until = trio.current_time() + limit_s
                    if chunk.end is not None:
                        return chunk.end
                    patience.deadline = until  # a record without a token is no progress
            raise UpstreamTruncated(f"{self.runtime.name} broke off without its final record", tokens=self.tokens)
        raise UpstreamTimeout(f"{self.runtime.name} gave no token for {limit_s:g} s", limit_s=limit_s)

    async def _pass_on(self, chunk: Chunk) -> bool:
        """Its tokens to the mapper; False when it has none."""
        _refuse_surrogates(chunk, self.runtime.name)
        tokens = self._ledger.take(chunk, throttled=self._held_s > 0)
        if not tokens:
            return False
        if self.first_us is None:
            self.first_us = chunk.t_us
        held_us = round(self._held_s * 1e6)
        self._held_s = 0.0
        for at in range(0, len(tokens), BATCH_TOKENS_MAX):
            batch = TokenBatch(self.ref, tokens[at : at + BATCH_TOKENS_MAX], held_us)
            self._held_s += await self.signals.put(batch)
            self.tokens += len(batch.tokens)
        return True


def _refuse_surrogates(chunk: Chunk, runtime: str) -> None:
    """Half a surrogate pair is no text: it cannot be sent on. Raises UpstreamProtocolError."""
    texts = [chunk.text]
    for entry in chunk.logprobs:
        texts.append(entry.token)
        texts += [candidate.token for candidate in entry.top]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise UpstreamProtocolError(f"{runtime} sent text that is not valid Unicode") from None
