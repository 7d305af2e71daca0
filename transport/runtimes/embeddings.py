"""The vectors of an answer, checked: one for each text, all of the same length; and their first numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from engine.domain.errors import UpstreamProtocolError
from engine.domain.runtime import Embeddings
from transport.wire import records
from transport.wire.requests import refused

EMBED_S: Final = 600.0  # with the load of the model
EMBED_BYTES_MAX: Final = 64 * 1024 * 1024


async def vectors_of(found: Sequence[msgspec.Raw], count: int, runtime: str) -> tuple[tuple[float, ...], ...]:
    """`found` as vectors; one after the other, so that nobody waits for all of them. Raises UpstreamProtocolError."""
    if len(found) != count:
        raise UpstreamProtocolError(f"{runtime} sent {len(found)} embeddings for {count} texts")
    vectors = []
    for data in found:
        vectors.append(records.vector(data))
        await trio.lowlevel.checkpoint()
    if len({len(vector) for vector in vectors}) > 1:
        raise UpstreamProtocolError(f"{runtime} sent embeddings of different lengths")
    return tuple(vectors)


async def shortened(made: Embeddings, dimensions: int | None) -> Embeddings:
    """The first `dimensions` numbers of each vector, of length 1 again, as Ollama has it. None: all of them. Raises
    InvalidRequest for more than there are."""
    width = len(made.vectors[0]) if made.vectors else 0
    if dimensions is None or dimensions == width:
        return made
    if not 0 < dimensions < width:
        raise refused("dimensions", f"the vectors of this model have {width}")
    vectors = []
    for vector in made.vectors:
        length = math.hypot(*vector[:dimensions])
        vectors.append(tuple(number / length if length else 0.0 for number in vector[:dimensions]))
        await trio.lowlevel.checkpoint()
    return Embeddings(tuple(vectors), made.prompt_tokens)
