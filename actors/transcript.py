"""What one member of a council has said: kept whole until the choice, or handed on at once to the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from actors.reply_line import Begun, ReplySink
from engine.domain.energy import uncertainty
from engine.domain.errors import Overloaded
from engine.domain.generation import TOP_K, Chunk, TokenKind
from engine.domain.runtime import Read

ANSWER_BYTES_MAX: Final = 4 * 1_048_576  # of one member; more ends its part in the council
CHUNKS_MAX: Final = 131_072


@attrs.define(eq=False)
class Transcript:
    """Takes what a member's stream brings, as its reply would. `listener` gets it too, from the first words on when
    `claim` names one, or from `hand_on` on."""

    whole: bool = False
    claim: Callable[[], ReplySink | None] = lambda: None
    listener: ReplySink | None = None
    chunks: list[Chunk] = attrs.field(factory=list)
    _pieces: list[str] = attrs.field(factory=list)
    _size_bytes: int = 0
    _certainty_sum: float = 0.0
    _certainties: int = 0

    @property
    def text(self) -> str:
        """The answer so far, without thinking and tools."""
        if len(self._pieces) > 1:
            self._pieces[:] = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @property
    def certainty(self) -> float | None:
        """Mean certainty of its tokens, in [0, 1]; null when its runtime reports no log-probabilities."""
        return self._certainty_sum / self._certainties if self._certainties else None

    def try_put(self, item: Begun | Chunk | Read) -> bool:
        """Keep it; False when the listener has no room. Raises Overloaded beyond ANSWER_BYTES_MAX."""
        if not isinstance(item, Chunk):
            return True
        if self.listener is None and (item.text or item.tool_calls):
            self.listener = self.claim()
        if self.listener is not None and item.end is None and not self.listener.try_put(item):
            return False
        self._keep(item)
        return True

    async def put(self, item: Begun | Chunk | Read) -> float:
        """As `try_put`, waiting for the listener; the seconds that took."""
        assert self.listener is not None
        held_s = await self.listener.put(item)
        if isinstance(item, Chunk):
            self._keep(item)
        return held_s

    async def hand_on(self, listener: ReplySink) -> None:
        """Give `listener` everything said so far, and from now on what follows."""
        self.listener = listener
        for chunk in self.chunks:
            if chunk.end is None:
                await listener.put(chunk)

    def forget(self) -> None:
        self.chunks.clear()
        self._pieces.clear()
        self.listener = None

    def _keep(self, chunk: Chunk) -> None:
        self._size_bytes += len(chunk.text.encode()) + sum(len(call.arguments) for call in chunk.tool_calls)
        if self._size_bytes > ANSWER_BYTES_MAX or len(self.chunks) >= CHUNKS_MAX:
            raise Overloaded(f"the answer is longer than {ANSWER_BYTES_MAX} bytes, the most a council keeps of one")
        self.chunks.append(chunk)
        if chunk.kind is TokenKind.ANSWER and chunk.text:
            self._pieces.append(chunk.text)
        for entry in chunk.logprobs:
            logprobs = [candidate.logprob for candidate in entry.top] or [entry.logprob]
            certainty = uncertainty(logprobs, TOP_K).certainty
            if certainty is not None:
                self._certainty_sum += certainty
                self._certainties += 1
