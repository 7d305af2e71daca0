"""In which dialect a refusal is told: by the path, also where no handler was reached."""

from __future__ import annotations

from collections.abc import Callable

from engine.domain.errors import EngineError
from transport.wire.dialects import anthropic, ollama, openai

NATIVE: frozenset[str] = frozenset({"/api/bootstrap"})


def shape_of(path: str) -> Callable[[EngineError], bytes] | None:
    """What makes the body of an error on this path; None for the native API."""
    if path in NATIVE:
        return None
    if path.startswith("/v1/messages"):
        return anthropic.error_body
    if path.startswith("/v1/"):
        return openai.error_body
    return ollama.error_body if path.startswith("/api/") else None
