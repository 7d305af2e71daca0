"""`/v1/embeddings`, `/v1/models` and `/v1/models/{id}`, without IO."""

from __future__ import annotations

import base64
import datetime
import struct
from collections.abc import Iterable
from typing import Annotated, Any, Final

import attrs
import msgspec

from engine.domain.models import ModelInfo
from engine.domain.runtime import Embeddings, EmbedRequest
from transport.wire.dialects import openai_asks as asks
from transport.wire.dialects import openai_shapes as shapes
from transport.wire.dialects.openai_asks import refused
from transport.wire.request_json import decode

EMBEDDINGS_PATH: Final = "/v1/embeddings"
INPUTS_MAX: Final = 2048  # of the API itself
DIMENSIONS_MAX: Final = 65_536
ENCODINGS: Final = ("float", "base64")


@attrs.frozen
class EmbedAsked:
    """A client's request. `model` is as the client wrote it, `request.model` is empty until it is resolved."""

    model: str
    request: EmbedRequest
    encoding: str


class _Embed(msgspec.Struct):
    model: asks.Model
    input: str | list[str | int | list[int]] | None = None
    encoding_format: str | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=DIMENSIONS_MAX)] | None = None


_decoder: Final = msgspec.json.Decoder(_Embed)


def parse_embeddings(body: bytes) -> EmbedAsked:
    """Raises InvalidRequest naming the field."""
    asked = decode(body, _decoder)
    encoding = (asked.encoding_format or "float").lower()
    if encoding not in ENCODINGS:
        raise refused("encoding_format", f"one of {', '.join(ENCODINGS)}")
    return EmbedAsked(asked.model, EmbedRequest("", _inputs(asked), dimensions=asked.dimensions), encoding)


def _inputs(asked: _Embed) -> tuple[str, ...]:
    given = [asked.input] if isinstance(asked.input, str) else asked.input
    if not given:
        raise refused("input", "is missing")
    if any(not isinstance(text, str) for text in given):
        raise refused("input", "texts, not token ids")
    if len(given) > INPUTS_MAX:
        raise refused("input", f"at most {INPUTS_MAX} texts to a request")
    return tuple(text for text in given if isinstance(text, str))


def embeddings_body(asked: EmbedAsked, found: Embeddings) -> bytes:
    """Vectors as numbers, or as base64 of little-endian floats of 32 bits."""
    data = [
        {"object": "embedding", "embedding": _encoded(vector, asked.encoding), "index": index}
        for index, vector in enumerate(found.vectors)
    ]
    tokens = found.prompt_tokens or 0
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return shapes.encode({"object": "list", "data": data, "model": asked.model, "usage": usage})


def _encoded(vector: tuple[float, ...], encoding: str) -> tuple[float, ...] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def models_body(models: Iterable[tuple[str, ModelInfo]]) -> bytes:
    """The models by the names that clients use for them."""
    return shapes.encode({"object": "list", "data": [_model(name, info) for name, info in models]})


def model_body(name: str, info: ModelInfo) -> bytes:
    return shapes.encode(_model(name, info))


def _model(name: str, info: ModelInfo) -> dict[str, Any]:
    """`created` is 0 where the runtime does not say when a model was last changed."""
    return {"id": name, "object": "model", "created": _unix_s(info.modified_at), "owned_by": info.runtime}


def _unix_s(rfc3339: str | None) -> int:
    try:
        return int(msgspec.convert(rfc3339, datetime.datetime).timestamp())
    except (msgspec.ValidationError, OverflowError, ValueError):
        return 0
