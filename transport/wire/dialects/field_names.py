"""A refusal that names a field names it as the client wrote it. Runtimes know the neutral request only, and so do their
refusals; what a dialect's own parser refuses has its words already. Without IO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from engine.domain.errors import EngineError, InvalidRequest
from engine.domain.generation import Dialect
from transport.wire.dialects.reply import Asked

Names = Mapping[str, tuple[str, ...]]

_SAMPLED: Final[Names] = {"repeat_penalty": ("repeat_penalty", "repetition_penalty")}
_CHAT: Final[Names] = {
    "format": ("response_format",),
    "max_tokens": ("max_completion_tokens", "max_tokens"),
    "think": ("reasoning_effort", "reasoning", "chat_template_kwargs"),
    **_SAMPLED,
}
_RESPONSES: Final[Names] = {
    "format": ("text.format",),
    "max_tokens": ("max_output_tokens",),
    "messages": ("input",),
    "system": ("instructions",),
    "think": ("reasoning",),
    **_SAMPLED,
}
_ANTHROPIC: Final[Names] = {
    "format": ("output_config.format", "output_format"),
    "stop": ("stop_sequences",),
    "think": ("thinking", "output_config.effort"),
}
_OPTIONS: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
)
_OLLAMA: Final[Names] = {"max_tokens": ("options.num_predict",)} | {name: (f"options.{name}",) for name in _OPTIONS}

# Of each path; a name that is not here is the same in both.
_NAMES: Final[Mapping[tuple[Dialect, str], Names]] = {
    (Dialect.OPENAI, "/v1/chat/completions"): _CHAT,
    (Dialect.OPENAI, "/v1/completions"): _SAMPLED,
    (Dialect.OPENAI, "/v1/responses"): _RESPONSES,
    (Dialect.ANTHROPIC, "/v1/messages"): _ANTHROPIC,
    (Dialect.ANTHROPIC, "/v1/messages/count_tokens"): _ANTHROPIC,
    (Dialect.OLLAMA, "/api/generate"): _OLLAMA,
    (Dialect.OLLAMA, "/api/chat"): _OLLAMA,
}

_fields_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def in_words_of(asked: Asked, error: EngineError) -> EngineError:
    """`error`, with the field that it names called as in the request `asked`. Other errors are returned as they are."""
    field = error.details.get("field")
    if not isinstance(error, InvalidRequest) or not isinstance(field, str):
        return error
    named = _named(asked, field)
    if named == field:
        return error
    message = error.message
    if message.startswith(f"{field}: "):
        message = named + message.removeprefix(field)
    return InvalidRequest(message, **(error.details | {"field": named}))


def _named(asked: Asked, field: str) -> str:
    """The first of the names that stands in the body; the first of all where none does."""
    names = _NAMES.get((asked.dialect, asked.path), {})
    given = names.get(field) or names.get(field.partition(".")[0])
    if given is None:
        return field
    return next((name for name in given if _stands_in(asked.body, name)), given[0])


def _stands_in(body: bytes, name: str) -> bool:
    for part in name.split("."):
        try:
            fields = _fields_decoder.decode(body)
        except (msgspec.DecodeError, RecursionError):
            return False
        if part not in fields or bytes(fields[part]) == b"null":
            return False
        body = bytes(fields[part])
    return True
