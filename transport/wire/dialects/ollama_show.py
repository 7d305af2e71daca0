"""Ollama's other calls: lists, `show`, `version`, `pull` and embeddings. Requests to values, values to bodies.

Where a runtime does not say what Ollama always says, the field has Go's zero (`0001-01-01T00:00:00Z`, 0, empty), as
Ollama's own do; typed clients fail on null. Only the digest is made up then, of the name: programs cut it to twelve
characters without looking, and take models with the same digest for one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import attrs
import msgspec

from engine.domain.errors import NotFound
from engine.domain.models import Capability, ModelInfo
from engine.domain.runtime import Embeddings, EmbedRequest
from transport.wire.dialects.ollama_records import nanoseconds
from transport.wire.dialects.ollama_request import ModelName, Number, decode, keep_alive, model_name

API_VERSION: Final = "0.33.0"  # of Ollama, whose behaviour this is; clients compare it
EMBED: Final = "/api/embed"
EMBEDDINGS: Final = "/api/embeddings"
TIME_ZERO: Final = "0001-01-01T00:00:00Z"
NEVER: Final = "2319-01-01T00:00:00Z"  # what Ollama writes for "for ever" is in that year
UNKNOWN_DIGEST: Final = "0" * 64
DIMENSIONS_MAX: Final = 65_536

_DETAILS: Final = ("parent_model", "format", "family", "families", "parameter_size", "quantization_level")
_SIZES: Final = ("context_length", "embedding_length")


@attrs.frozen
class Resident:
    """A model in memory. `vram_bytes` is the part on a GPU (null: not known), `expires_at` is RFC 3339 (null: no time
    takes it out), `context_length` in tokens (null: what the model was made for)."""

    info: ModelInfo
    size_bytes: int | None = None
    vram_bytes: int | None = None
    expires_at: str | None = None
    context_length: int | None = None


@attrs.frozen
class EmbedAsked:
    """A client's request for vectors. `model` is as the client wrote it, `request.model` is empty until it is
    resolved. Without inputs it only loads, and the answer has no vectors."""

    path: str
    body: bytes
    model: str
    request: EmbedRequest


@attrs.frozen
class ShowAsked:
    model: str
    verbose: bool


# ── lists ──


def tags(models: Iterable[ModelInfo]) -> bytes:
    """`GET /api/tags`."""
    listed = [
        {
            "name": info.name,
            "model": info.name,
            "modified_at": info.modified_at or TIME_ZERO,
            **_known(size=info.size_bytes),
            "digest": _digest(info),
            "details": _details(info) | {name: info.details[name] for name in _SIZES if info.details.get(name)},
            "capabilities": _capabilities(info),
        }
        for info in models
    ]
    return msgspec.json.encode({"models": listed})


def ps(models: Iterable[Resident]) -> bytes:
    """`GET /api/ps`."""
    listed = [
        {
            "name": model.info.name,
            "model": model.info.name,
            **_known(size=model.size_bytes),
            "digest": _digest(model.info),
            "details": _details(model.info),
            "expires_at": model.expires_at or NEVER,
            **_known(
                size_vram=model.vram_bytes,
                context_length=model.context_length or model.info.details.get("context_length"),
            ),
        }
        for model in models
    ]
    return msgspec.json.encode({"models": listed})


def version(text: str = API_VERSION) -> bytes:
    """`GET /api/version`."""
    return msgspec.json.encode({"version": text})


# ── show ──


class _Show(msgspec.Struct):
    model: ModelName | None = None
    name: ModelName | None = None
    verbose: bool | None = None


def parse_show(body: bytes) -> ShowAsked:
    """`POST /api/show`. Raises InvalidRequest."""
    asked = decode(body, _show_decoder)
    return ShowAsked(model_name(asked.model, asked.name), bool(asked.verbose))


def show(info: ModelInfo, *, template: str = "", system: str = "", license_text: str = "") -> bytes:
    """The answer for a model of a runtime that has no `show` of its own: what is known, under the names by which
    clients look for it (`model_info` has `<family>.context_length`)."""
    family = str(info.details.get("family") or "")
    architecture = {"general.architecture": family} if family else {}
    sizes = {f"{family or 'general'}.{name}": info.details[name] for name in _SIZES if info.details.get(name)}
    texts = {"license": license_text, "template": template, "system": system}
    body: dict[str, Any] = {name: text for name, text in texts.items() if text}
    body |= {
        "details": _details(info),
        "model_info": architecture | sizes,
        "capabilities": _capabilities(info),
        "modified_at": info.modified_at or TIME_ZERO,
    }
    return msgspec.json.encode(body)


# ── embeddings ──


class _Embed(msgspec.Struct):
    model: ModelName | None = None
    name: ModelName | None = None
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=0, le=DIMENSIONS_MAX)] | None = None
    keep_alive: str | Number | None = None


class _EmbedOne(msgspec.Struct):
    model: ModelName | None = None
    name: ModelName | None = None
    prompt: str | None = None
    keep_alive: str | Number | None = None


def parse_embed(path: str, body: bytes) -> EmbedAsked:
    """`/api/embed`, and the older `/api/embeddings` for one text. Raises InvalidRequest, NotFound for another path."""
    if path == EMBED:
        asked = decode(body, _embed_decoder)
        inputs = [asked.input] if isinstance(asked.input, str) and asked.input else list(asked.input or ())
        truncate, dimensions, kept = asked.truncate is not False, asked.dimensions or None, asked.keep_alive
        model = model_name(asked.model, asked.name)
    elif path == EMBEDDINGS:
        one = decode(body, _embed_one_decoder)
        inputs = [one.prompt] if one.prompt else []
        truncate, dimensions, kept = True, None, one.keep_alive
        model = model_name(one.model, one.name)
    else:
        raise NotFound(f"{path} is no path of this dialect")
    request = EmbedRequest("", tuple(inputs), truncate, dimensions, keep_alive(kept))
    return EmbedAsked(path, body, model, request)


def embed_body(
    asked: EmbedAsked, found: Embeddings, *, total_ms: float | None = None, load_ms: float | None = None
) -> bytes:
    """The vectors, in the order of the inputs (the older call has one); times in ms."""
    if asked.path == EMBEDDINGS:
        return msgspec.json.encode({"embedding": found.vectors[0] if found.vectors else ()})
    counts: Mapping[str, int] = {
        "total_duration": nanoseconds(total_ms),
        "load_duration": nanoseconds(load_ms),
        "prompt_eval_count": found.prompt_tokens or 0,
    }
    body: dict[str, Any] = {"model": asked.model, "embeddings": found.vectors}
    return msgspec.json.encode(body | {name: count for name, count in counts.items() if count})


_show_decoder: Final = msgspec.json.Decoder(_Show)
_embed_decoder: Final = msgspec.json.Decoder(_Embed)
_embed_one_decoder: Final = msgspec.json.Decoder(_EmbedOne)


# ── what is known of a model ──


def _known(**numbers: int | None) -> dict[str, int]:
    """Those that somebody measured. A zero would be taken for one of them."""
    return {name: number for name, number in numbers.items() if number is not None}


def _details(info: ModelInfo) -> dict[str, Any]:
    found: dict[str, Any] = {name: info.details.get(name) or "" for name in _DETAILS}
    families = info.details.get("families")
    found["families"] = families or ([found["family"]] if found["family"] else [])
    return found


def _capabilities(info: ModelInfo) -> list[str]:
    """In Ollama's own words where the runtime said them."""
    stated = info.details.get("capabilities")
    if stated is not None:
        return [str(word) for word in stated]
    return ["completion"] if Capability.COMPLETION in info.capabilities else []


def _digest(info: ModelInfo) -> str:
    """64 zeros where the runtime states none: clients cut it to length, and no file has this one."""
    return info.digest or UNKNOWN_DIGEST
