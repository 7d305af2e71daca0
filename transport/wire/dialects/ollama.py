"""Requests in Ollama's dialect, understood: `/api/generate`, `/api/chat`, and what they share with its other calls.

Unknown fields and unknown options are passed over, as Ollama does. What Ollama would heed and the neutral request
cannot say stands in `Asked.options` as `needs:<field>` (`needs:template`, `needs:options.typical_p`, …): such a request
can only go to a runtime that speaks this dialect. Numbers beyond the range of
`Parameters` are treated so too: Ollama has its own idea of them.
"""

from __future__ import annotations

from typing import Final

import attrs
import msgspec

from engine.domain.errors import InvalidRequest, NotFound
from engine.domain.generation import RUNNER_OPTIONS, TOP_K, Dialect
from transport.wire.dialects.ollama_records import error_body, load_body
from transport.wire.dialects.ollama_reply import reply_for
from transport.wire.dialects.ollama_request import (
    Chat,
    Generate,
    chat_decoder,
    chat_request,
    decode,
    generate_decoder,
    generate_request,
    model_name,
    with_shared,
)
from transport.wire.dialects.reply import NEEDS, Asked
from transport.wire.records import TOP_ASKED_MAX

__all__ = [
    "NATIVE_PATHS",
    "error_body",
    "forward_body",
    "load_body",
    "parse",
    "renamed",
    "reply_for",
]

GENERATE: Final = "/api/generate"
CHAT: Final = "/api/chat"
NATIVE_PATHS: Final = (GENERATE, CHAT)  # what a runtime can be asked directly
_OURS: Final = frozenset(  # Ollama takes keys in any case, and the last wins
    {"model", "stream", "logprobs", "top_logprobs", "options", "keep_alive", "truncate"}
)

_fields_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse(path: str, body: bytes) -> Asked:
    """The request in `body` to `path`. Raises InvalidRequest that names the field, without a word of what was asked;
    NotFound for another path."""
    asked: Generate | Chat
    if path == GENERATE:
        asked = decode(body, generate_decoder)
    elif path == CHAT:
        asked = decode(body, chat_decoder)
    else:
        raise NotFound(f"{path} is no path of this dialect")
    model = model_name(asked.model, asked.name)
    top_logprobs = asked.top_logprobs or 0
    if not 0 <= top_logprobs <= TOP_ASKED_MAX:
        raise InvalidRequest(f"top_logprobs must be between 0 and {TOP_ASKED_MAX}", field="top_logprobs")
    if asked.debug_render_only:
        raise InvalidRequest(
            "_debug_render_only is not served here; ask the runtime itself", field="_debug_render_only"
        )
    logprobs = bool(asked.logprobs)
    found: set[str] = set()
    request = generate_request(asked, found) if isinstance(asked, Generate) else chat_request(asked, found)
    load_only = not request.prompt and not request.messages
    return Asked(
        dialect=Dialect.OLLAMA,
        path=path,
        body=body,
        model=model,
        stream=asked.stream is not False,
        request=with_shared(request, asked, found, top_logprobs if logprobs else 0),
        logprobs=logprobs,
        top_logprobs=top_logprobs if logprobs else 0,
        load_only=load_only,
        options=frozenset(NEEDS + field for field in found),
    )


def forward_body(asked: Asked, model: str, *, logprobs: bool = True) -> bytes:
    """The client's own body for the runtime's own path: with the runtime's name of the model, streaming, and with
    log-probabilities unless `logprobs` is off (then they are as the client wrote them). A request that only loads has
    nothing but its model replaced. Raises InvalidRequest when one of these fields stands in it in another case."""
    fields = _renamed_fields(asked.body, model)
    if not asked.load_only:
        fields["stream"] = msgspec.Raw(b"true")
        if logprobs:
            fields["logprobs"] = msgspec.Raw(b"true")
            fields["top_logprobs"] = msgspec.Raw(str(max(TOP_K, asked.top_logprobs)).encode())
    return msgspec.json.encode(fields)


def without_runner_options(asked: Asked) -> Asked:
    """The request without its runner options, in its body too."""
    fields = decode(asked.body, _fields_decoder)
    options = decode(bytes(fields["options"]), _fields_decoder)
    kept = {name: value for name, value in options.items() if name not in RUNNER_OPTIONS}
    body = msgspec.json.encode(fields | {"options": kept})
    return attrs.evolve(asked, body=body, request=attrs.evolve(asked.request, runner_options={}))


def renamed(body: bytes, model: str) -> bytes:
    """A client's body (of any call) with the runtime's name of the model and no other change: the very bytes when that
    is the name it used. Raises InvalidRequest when it is no JSON object."""
    fields = _renamed_fields(body, model)
    before = decode(body, _fields_decoder).get("model")
    return body if before is not None and bytes(before) == bytes(fields["model"]) else msgspec.json.encode(fields)


def _renamed_fields(body: bytes, model: str) -> dict[str, msgspec.Raw]:
    fields = decode(body, _fields_decoder)
    for key in fields:
        if key.lower() in _OURS and key not in _OURS:
            raise InvalidRequest(f"bad request: `{key.lower()}` must be written in lower case", field=key.lower())
    if "model" not in fields:
        fields = {("model" if key == "name" else key): value for key, value in fields.items()}
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return fields
