"""What a runtime, or the decoder of its bytes, hands out for one question: gathered, and with nothing secret in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import pytest
from hypothesis import strategies as st

from engine.domain.errors import EngineError
from engine.domain.generation import Chunk, GenerationRequest, TokenKind
from engine.domain.runtime import Runtime

PROMPT = "my darkest secret"
KEY = "sk-this-is-secret"
ASKED = GenerationRequest("m", prompt=PROMPT)


# ── runtimes ──


async def read_texts(runtime: Runtime, seen: list[str], *, leave_at_end: bool = False) -> None:
    """Adds the text of every chunk to `seen`, also of those before an error. With `leave_at_end` nothing is asked for
    once a chunk had the end."""
    async with runtime.generate(ASKED) as chunks:
        async for chunk in chunks:
            seen.append(chunk.text)
            if leave_at_end and chunk.end is not None:
                break


async def chunks_of(runtime: Runtime, request: GenerationRequest = ASKED) -> list[Chunk]:
    async with runtime.generate(request) as chunks:
        return [chunk async for chunk in chunks]


async def failure_of(runtime: Runtime, request: GenerationRequest = ASKED) -> EngineError:
    """The error of a question that must fail; neither it nor what caused it says the prompt or the key."""
    with pytest.raises(EngineError) as caught:
        await chunks_of(runtime, request)
    chain: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        chain.append(f"{error} {getattr(error, 'details', '')}")
        error = error.__cause__
    assert PROMPT not in " ".join(chain)
    assert KEY not in " ".join(chain)
    return caught.value


# ── decoders ──


class Decoder(Protocol):
    ended: bool
    late_records: int
    cut: bool

    def feed(self, data: bytes, t_us: int) -> Iterator[Chunk]: ...

    def finish(self, t_us: int) -> Iterator[Chunk]: ...


D = TypeVar("D", bound=Decoder)


def read_through(decoder: D, pieces: Iterable[bytes]) -> tuple[list[Chunk], D, EngineError | None]:
    """All chunks of a stream, every one at 7 µs; with the error that ended it, if one did."""
    seen: list[Chunk] = []
    try:
        for data in pieces:
            seen.extend(decoder.feed(data, 7))
        seen.extend(decoder.finish(7))
    except EngineError as error:
        return seen, decoder, error
    return seen, decoder, None


def text_of(chunks: list[Chunk], kind: TokenKind = TokenKind.ANSWER) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.kind is kind)


def split_at(data: bytes, places: Iterable[int]) -> list[bytes]:
    """`data` in pieces; a place beyond its end counts from its start again."""
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(bounds)]


# Anywhere, or every so many bytes.
places = st.lists(st.integers(0, 10_000), max_size=8) | st.integers(1, 20).map(lambda size: range(size, 1000, size))


def json_values(fields: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Any small JSON value whose objects have names from `fields`."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=4),
        max_leaves=12,
    )
