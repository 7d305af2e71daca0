"""Byte-level byte-pair encoding as GPT-2 does it, with the vocabulary and the merges of a GGUF file.

Text is split into words by GPT-2's rule; each word becomes its UTF-8 bytes, and the neighbours whose merge was learnt
first are joined until none is left. Every byte has a token, so any text can be written, and `decode` gives the same
bytes back. Control tokens such as `<|end|>` take no part: text that spells one is ordinary text.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Final

import attrs
import regex

from transport.runtimes.embedded.gguf import GgufFile

RUN_MAX_CHARS: Final = 1024  # a longer run of letters, digits, signs or spaces is cut, to keep a word's work bounded
CACHED_WORDS_MAX: Final = 8192
CACHED_WORD_MAX_CHARS: Final = 32

_RUN: Final = f"{{1,{RUN_MAX_CHARS}}}"
_WORD: Final = regex.compile(
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}{_RUN}| ?\p{{N}}{_RUN}| ?[^\s\p{{L}}\p{{N}}]{_RUN}|\s{_RUN}(?!\S)|\s{_RUN}"
)
_CONTROL: Final = 3  # tokenizer.ggml.token_type


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a vocabulary: itself where it can be seen, else one from
    U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


_ALPHABET: Final = _byte_alphabet()


@attrs.define(eq=False)
class Tokenizer:
    """The vocabulary of one model. Ids are positions in it; safe to share between threads.

    `token_bytes[id]` is what a token writes (nothing for a control token), `display[id]` its text for people.
    """

    token_bytes: tuple[bytes, ...]
    display: tuple[str, ...]
    end_id: int
    _byte_ids: tuple[int, ...]
    _merges: dict[tuple[int, int], tuple[int, int]]  # (left, right) → (rank, merged)
    _cache: dict[str, tuple[int, ...]] = attrs.field(factory=dict, init=False)

    @classmethod
    def from_gguf(cls, file: GgufFile) -> Tokenizer:
        """Raises `ModelLoadFailed` when the file holds another kind of tokenizer or an incomplete one."""
        for key, expected in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "gpt-2")):
            if file.text(key) != expected:
                file.fail(f"{key} is {file.text(key)!r}; only {expected!r} is supported")
        tokens = file.array("tokenizer.ggml.tokens", str)
        kinds = file.array("tokenizer.ggml.token_type", int)
        if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
            file.fail("tokenizer.ggml.tokens must be distinct, with one token_type each")
        end_id = file.integer("tokenizer.ggml.eos_token_id", 0, len(tokens) - 1)
        if file.integer("tokenizer.ggml.bos_token_id", 0, len(tokens) - 1) != end_id or kinds[end_id] != _CONTROL:
            file.fail("one control token must be both the begin and the end of text")
        writable = {token: n for n, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _CONTROL}
        if any(char not in _ALPHABET for token in writable for char in token):
            file.fail("tokenizer.ggml.tokens has a token with a character outside the byte alphabet")
        if not writable.keys() >= _ALPHABET.keys():
            file.fail("tokenizer.ggml.tokens lacks a token for some bytes")
        written = tuple(bytes(_ALPHABET[c] for c in token) if token in writable else b"" for token in tokens)
        return cls(
            token_bytes=written,
            display=tuple(raw.decode(errors="replace") or token for raw, token in zip(written, tokens, strict=True)),
            end_id=end_id,
            byte_ids=tuple(writable[char] for char, _ in sorted(_ALPHABET.items(), key=lambda item: item[1])),
            merges=_merge_table(file, writable),
        )

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`; a lone surrogate counts as `?`."""
        return self.encode_words(self.words(text))

    def decode(self, ids: Iterable[int]) -> bytes:
        """What the tokens write. Bytes: a token can be a part of a character."""
        return b"".join(self.token_bytes[id_] for id_ in ids)

    @staticmethod
    def words(text: str) -> Iterator[str]:
        """The pieces of `text` that are encoded on their own; joined they are `text` again."""
        return (match.group() for match in _WORD.finditer(text))

    def encode_words(self, words: Iterable[str]) -> list[int]:
        return [id_ for word in words for id_ in self._word(word)]

    def _word(self, word: str) -> tuple[int, ...]:
        ids = self._cache.get(word)
        if ids is None:
            ids = tuple(self._merged([self._byte_ids[byte] for byte in word.encode(errors="replace")]))
            if len(word) <= CACHED_WORD_MAX_CHARS and len(self._cache) < CACHED_WORDS_MAX:
                self._cache[word] = ids
        return ids

    def _merged(self, ids: list[int]) -> Iterator[int]:
        """Join neighbours, the earliest learnt merge first, leftmost first: a linked list and a heap, O(n log n)."""
        left, right = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))
        heap: list[tuple[int, int, int, int]] = []  # rank, position, and the pair as it was when pushed

        def offer(at: int) -> None:
            if at >= 0 and right[at] < len(ids):
                pair = ids[at], ids[right[at]]
                if pair in self._merges:
                    heapq.heappush(heap, (self._merges[pair][0], at, *pair))

        for position in range(len(ids)):
            offer(position)
        while heap:
            _, at, first, second = heapq.heappop(heap)
            gone = right[at]
            if ids[at] != first or gone >= len(ids) or ids[gone] != second:
                continue  # one of the two was joined to another neighbour meanwhile
            ids[at], ids[gone] = self._merges[first, second][1], -1
            right[at] = right[gone]
            if right[at] < len(ids):
                left[right[at]] = at
            offer(left[at])
            offer(at)
        return (id_ for id_ in ids if id_ >= 0)


def _merge_table(file: GgufFile, writable: dict[str, int]) -> dict[tuple[int, int], tuple[int, int]]:
    table: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(file.array("tokenizer.ggml.merges", str)):
        first, _, second = merge.partition(" ")
        pair = writable.get(first), writable.get(second)
        merged = writable.get(first + second)
        if pair[0] is None or pair[1] is None or merged is None:
            file.fail(f"tokenizer.ggml.merges names a token that the vocabulary lacks, at position {rank}")
        table.setdefault((pair[0], pair[1]), (rank, merged))
    return table
