"""What one member of a council has said: kept whole until the choice, or handed on at once to the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import msgspec

from actors.reply_line import Begun, ReplySink
from engine.domain.energy import uncertainty
from engine.domain.errors import Overloaded
from engine.domain.generation import TOP_K, Chunk, TokenKind
from engine.domain.runtime import Read

ANSWER_BYTES_MAX: Final = 4 * 1_048_576  # of one member; more ends its part in the council
CHUNKS_MAX: Final = 131_072
CANDIDATES_MAX: Final = 262_144  # log-probabilities kept of one member, about 40 MB; later chunks are kept without


@attrs.define(eq=False)
class Transcript:
    """Takes what a member's stream brings, as its reply would. `listener` gets it too, from the first words on when
    `claim` names one, or from `hand_on` on. `keeps`: its chunks may have to be handed on; else only its text is kept.
    """

    whole: bool = False
    keeps: bool = True
    claim: Callable[[], ReplySink | None] = lambda: None
    listener: ReplySink | None = None
    chunks: list[Chunk] = attrs.field(factory=list)
    unlisted: int = 0  # tokens kept without their log-probabilities
    _pieces: list[str] = attrs.field(factory=list)
    _size_bytes: int = 0
    _taken: int = 0  # chunks
    _candidates: int = 0
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
        words = _words(item)
        if self.listener is None and (item.text or item.tool_calls):
            self.listener = self.claim()
        if self.listener is not None and words is not None and not self.listener.try_put(words):
            return False
        self._keep(item, words)
        return True

    async def put(self, item: Begun | Chunk | Read) -> float:
        """As `try_put`, waiting for the listener; the seconds that took."""
        assert self.listener is not None
        words = _words(item) if isinstance(item, Chunk) else None
        held_s = await self.listener.put(words or item)
        if isinstance(item, Chunk):
            self._keep(item, words)
        return held_s

    async def hand_on(self, listener: ReplySink) -> None:
        """Give `listener` everything said so far, and from now on what follows."""
        self.listener = listener
        for chunk in self.chunks:
            await listener.put(chunk)

    def forget(self) -> None:
        self.chunks.clear()
        self._pieces.clear()
        self.listener = None

    def _keep(self, chunk: Chunk, words: Chunk | None) -> None:
        self._size_bytes += len(chunk.text.encode()) + sum(len(call.arguments) for call in chunk.tool_calls)
        self._taken += 1
        if self._size_bytes > ANSWER_BYTES_MAX or self._taken > CHUNKS_MAX:
            raise Overloaded(
                f"the answer is longer than {ANSWER_BYTES_MAX} bytes or {CHUNKS_MAX} chunks, the most a council keeps"
            )
        if self.keeps and words is not None:
            self.chunks.append(self._within_bounds(words))
        if chunk.kind is TokenKind.ANSWER and chunk.text:
            self._pieces.append(chunk.text)
        for entry in chunk.logprobs:
            logprobs = [candidate.logprob for candidate in entry.top] or [entry.logprob]
            certainty = uncertainty(logprobs, TOP_K).certainty
            if certainty is not None:
                self._certainty_sum += certainty
                self._certainties += 1

    def _within_bounds(self, words: Chunk) -> Chunk:
        """Log-probabilities are many times what the text is: beyond their bound a chunk is kept without them."""
        self._candidates += sum(1 + len(entry.top) for entry in words.logprobs)
        if self._candidates <= CANDIDATES_MAX:
            return words
        self.unlisted += len(words.logprobs)
        return msgspec.structs.replace(words, logprobs=())


def _words(chunk: Chunk) -> Chunk | None:
    """What of it is the caller's: all but the end, which the session tells, and the record, which no council's reply is
    made of. Some runtimes give their last token with the end. None when nothing is left."""
    if not (chunk.text or chunk.tool_calls or chunk.logprobs or chunk.seam):
        return None
    return msgspec.structs.replace(chunk, end=None, raw=b"") if chunk.end is not None or chunk.raw else chunk
