"""From chunks to tokens: text, position and byte offset of every token, with nothing lost and nothing invented."""

from __future__ import annotations

import attrs

from engine.domain.generation import Chunk, Token, TokenKind


@attrs.define(eq=False)
class TokenLedger:
    """The fold over one stream's chunks.

    The concatenated text of the tokens of a kind equals the text of its chunks, byte for byte. A chunk with n reported
    log-probabilities is n tokens, one with text but none is one token, one with neither is none. Tokens that share a
    chunk: the first gets the time since the token before, the others 0 and `coalesced`.
    """

    position: int = 0
    last_us: int | None = None
    _offsets: dict[TokenKind, int] = attrs.field(factory=dict)

    def take(self, chunk: Chunk, throttled: bool) -> tuple[Token, ...]:
        """The chunk's tokens. `throttled`: our own queue had held the reader up before it."""
        texts = _texts(chunk)
        if not texts:
            return ()
        kind, t_us, last_us, coalesced = chunk.kind, chunk.t_us, self.last_us, len(texts) > 1
        delta_us = None if last_us is None else max(0, t_us - last_us)
        position, offset, tokens = self.position, self._offsets.get(kind, 0), []
        for text, entry in zip(texts, chunk.logprobs or (None,), strict=True):
            logprob, top = (None, ()) if entry is None else (entry.logprob, entry.top)
            tokens.append(Token(text, kind, position, offset, t_us, delta_us, logprob, top, coalesced, throttled))
            position += 1
            offset += len(text.encode())
            delta_us = 0
        self.position, self._offsets[kind], self.last_us = position, offset, t_us
        return tuple(tokens)


def _texts(chunk: Chunk) -> list[str]:
    """One text per token. When the reported token texts do not add up to the chunk's text, the first carries all of
    it."""
    count = len(chunk.logprobs)
    if count == 0:
        return [chunk.text] if chunk.text else []
    if count > 1:
        reported = [entry.token for entry in chunk.logprobs]
        if "".join(reported) == chunk.text:
            return reported
    return [chunk.text] + [""] * (count - 1)
