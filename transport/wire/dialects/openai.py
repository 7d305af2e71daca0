"""The OpenAI dialect of the lens: `/v1/chat/completions`, `/v1/completions` and `/v1/responses`. Without IO."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.domain.errors import EngineError, NotFound
from transport.wire.dialects import openai_asks as asks
from transport.wire.dialects import openai_shapes as shapes
from transport.wire.dialects import responses
from transport.wire.dialects.openai_native import NativeBody, NativeStream, NativeWhole
from transport.wire.dialects.openai_reply import ChatStream, ChatWhole, CompletionStream, CompletionWhole
from transport.wire.dialects.openai_requests import CHAT_PATH, COMPLETIONS_PATH, parse_chat, parse_completion
from transport.wire.dialects.reply import Asked, Reply, ReplyFacts
from transport.wire.dialects.responses_reply import ResponseStream, ResponseWhole

PATHS: Final = (CHAT_PATH, COMPLETIONS_PATH, responses.PATH)
NATIVE_PATHS: Final = (CHAT_PATH, COMPLETIONS_PATH)  # the others are always translated

_body_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TRUE: Final = msgspec.Raw(b"true")


def parse(path: str, body: bytes) -> Asked:
    """Raises InvalidRequest naming the field, and NotFound for a path that is none of PATHS."""
    match path:
        case "/v1/chat/completions":
            return parse_chat(body)
        case "/v1/completions":
            return parse_completion(body)
        case "/v1/responses":
            return responses.parse(body)
    raise NotFound(f"the paths of this dialect are {', '.join(PATHS)}")


def reply_for(asked: Asked, native: bool, facts: ReplyFacts) -> Reply:
    """`native` makes no difference where a reply is always translated."""
    if asked.path == responses.PATH:
        return ResponseStream(asked, facts) if asked.stream else ResponseWhole(asked, facts)
    if native and asks.AS_ONE in asked.options:
        return NativeBody(asked, facts)
    if native:
        return NativeStream(asked, facts) if asked.stream else NativeWhole(asked, facts)
    if asked.path == CHAT_PATH:
        return ChatStream(asked, facts) if asked.stream else ChatWhole(asked, facts)
    return CompletionStream(asked, facts) if asked.stream else CompletionWhole(asked, facts)


def forward_body(asked: Asked, model: str, *, logprobs: bool = True) -> bytes:
    """The client's own body for the runtime: its model's name, a stream (but for AS_ONE), the counts, and the
    log-probabilities that we measure. Everything else stays as it is, order included. Without `logprobs`, those that
    the client asked for."""
    body: dict[str, Any] = dict(_body_decoder.decode(asked.body))
    streams = asks.AS_ONE not in asked.options
    body |= {"model": model} | ({"stream": _TRUE} if streams else {})
    if streams and asked.path in NATIVE_PATHS:
        given = body.get("stream_options")
        kept = _body_decoder.decode(given) if isinstance(given, msgspec.Raw) and asks.is_given(given) else {}
        body["stream_options"] = kept | {"include_usage": _TRUE}
    if logprobs and asked.path == CHAT_PATH:
        body["logprobs"] = True
        if asks.DEFAULT_TOP not in asked.options:
            body["top_logprobs"] = asks.top_asked(asked.top_logprobs)
    elif logprobs and asked.path == COMPLETIONS_PATH:
        body["logprobs"] = asks.top_asked(asked.top_logprobs)
    return shapes.encode(body)


def error_body(error: EngineError) -> bytes:
    return shapes.error_body(error)
