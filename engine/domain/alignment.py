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
        tokens = []
        for index, text in enumerate(texts):
            entry = chunk.logprobs[index] if chunk.logprobs else None
            tokens.append(
                Token(
                    text=text,
                    kind=chunk.kind,
                    position=self.position,
                    offset=self._advance(chunk.kind, text),
                    t_us=chunk.t_us,
                    delta_us=self._delta_us(chunk.t_us) if index == 0 else 0,
                    logprob=None if entry is None else entry.logprob,
                    top=() if entry is None else entry.top,
                    coalesced=len(texts) > 1,
                    throttled=throttled,
                )
            )
            self.position += 1
            self.last_us = chunk.t_us
        return tuple(tokens)

    def _delta_us(self, t_us: int) -> int | None:
        return None if self.last_us is None else max(0, t_us - self.last_us)

    def _advance(self, kind: TokenKind, text: str) -> int:
        offset = self._offsets.get(kind, 0)
        self._offsets[kind] = offset + len(text.encode())
        return offset


def _texts(chunk: Chunk) -> list[str]:
    """One text per token. When the reported token texts do not add up to the chunk's text, the first carries all of
    it."""
    reported = [entry.token for entry in chunk.logprobs]
    if not reported:
        return [chunk.text] if chunk.text else []
    if len(reported) > 1 and "".join(reported) == chunk.text:
        return reported
    return [chunk.text] + [""] * (len(reported) - 1)
