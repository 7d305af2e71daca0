"""The vectors of an answer, checked: one for each text, all of the same length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from engine.domain.errors import UpstreamProtocolError
from transport.wire import records

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
