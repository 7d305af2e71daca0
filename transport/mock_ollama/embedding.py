"""Made-up vectors for texts. No model: the same text has the same vector, and texts with words in common lie near."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random
from typing import Any, Final

import msgspec

from transport.mock_ollama.requests import decode, seconds
from transport.mock_ollama.script import Fail

DIMENSIONS: Final = 64
WORDS_CACHED: Final = 4_096
PRETENDED_NS: Final = 1_000_000  # what every call says it took


class EmbedBody(msgspec.Struct):
    """/api/embed, and /api/embeddings with `prompt` in place of `input`."""

    model: str | None = None
    input: str | list[str] | None = None
    prompt: str | None = None
    dimensions: int | None = None
    keep_alive: float | str | None = None


def parse_embed(body: bytes) -> tuple[EmbedBody, float | None] | Fail:
    """With how long the model is to stay, in seconds, if it says."""
    parsed = decode(body, EmbedBody)
    if isinstance(parsed, Fail):
        return parsed
    keep_alive_s = seconds(parsed.keep_alive)
    return keep_alive_s if isinstance(keep_alive_s, Fail) else (parsed, keep_alive_s)


def embed_body(asked: EmbedBody) -> dict[str, Any]:
    """The answer of /api/embed: a vector of length 1 for each text."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input or []
    return {
        "model": asked.model,
        "embeddings": [vector_of(text, asked.dimensions) for text in texts],
        "total_duration": PRETENDED_NS,
        "load_duration": PRETENDED_NS,
        "prompt_eval_count": sum(len(text.split()) for text in texts),
    }


def embeddings_body(asked: EmbedBody) -> dict[str, Any]:
    """The answer of /api/embeddings, the older call."""
    return {"embedding": vector_of(asked.prompt) if asked.prompt else []}


def vector_of(text: str, dimensions: int | None = None) -> list[float]:
    """The sum of its words' directions, cut to `dimensions` and of length 1."""
    words = text.lower().split() or [text]
    summed = [math.fsum(parts) for parts in zip(*map(_direction, words), strict=True)]
    kept = summed[: dimensions if dimensions is not None and 0 < dimensions < DIMENSIONS else DIMENSIONS]
    length = math.hypot(*kept)
    return [part / length for part in kept]


@lru_cache(WORDS_CACHED)
def _direction(word: str) -> tuple[float, ...]:
    random = Random(word)
    return tuple(random.gauss(0, 1) for _ in range(DIMENSIONS))
