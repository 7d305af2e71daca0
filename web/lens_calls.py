"""The calls of the drop-in APIs, as data: one row for each route. Their shapes are the dialects' own, so they are told
as far as we look into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import attrs

from engine.domain.errors import (
    EngineError,
    ModelNotFound,
    NotFound,
    SessionConflict,
)
from policies.leaving import LEAVE_PATTERN
from policies.resume import HEADER_PATTERN as RESUME_WORDS
from transport.wire.dialects import ollama, openai
from transport.wire.json_schema import Json, asked
from web.api_calls import JSON, NDJSON, RUNTIME_ERRORS, SSE, TEXT, Answer, Body, Call, Parameter
from web.schemas import PullBody

OPEN: Final[Json] = {"type": "object"}
DONE: Final = "[DONE]"  # how OpenAI ends its older streams


@attrs.frozen
class LensCall:
    """`takes` is the schema of the body (OPEN: any object), None where there is none; `gives` that of a whole answer,
    `each` that of one line or one `data:` where a content type is a stream's. `answers_text`: it is a session.
    Without content types it is always refused."""

    method: Literal["GET", "POST", "DELETE", "HEAD"]
    path: str
    dialect: Literal["ollama", "openai", "anthropic"]
    summary: str
    takes: Json | None = None
    content_types: tuple[str, ...] = (JSON,)
    gives: Json = attrs.field(factory=lambda: OPEN)
    each: Json = attrs.field(factory=lambda: OPEN)
    parameters: tuple[Parameter, ...] = ()
    answers_text: bool = False
    doc: str = ""
    listed: bool = False  # the runtimes were asked, lately


# How the dialects say an error. What is refused before its path is known is said in our own way.
REFUSALS: Final[Mapping[str, Json]] = {
    "ollama": {"type": "object", "required": ["error"], "properties": {"error": TEXT}},
    "openai": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {"type": "object", "required": ["message", "type"], "properties": {"message": TEXT, "type": TEXT}}
        },
    },
    "anthropic": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {"type": "object", "required": ["message", "type"], "properties": {"message": TEXT, "type": TEXT}},
        },
    },
}


def _pull_request() -> Json:
    """`model`, or `name` in its place."""
    one_of_them = [{"required": [field], "properties": {field: TEXT}} for field in ("model", "name")]
    return asked(PullBody) | {"anyOf": one_of_them, "examples": [{"model": "llama3.2:1b"}]}


_COUNT: Final[Json] = {"type": "integer", "minimum": 0, "x-unit": "bytes"}
_PULL_STEP: Final[Json] = {
    "oneOf": [
        {
            "type": "object",
            "required": ["status"],
            "properties": {"status": TEXT, "completed": _COUNT, "total": _COUNT},
            "examples": [{"status": "pulling layers", "completed": 400, "total": 1000}],
        },
        REFUSALS["ollama"],
    ]
}
_PULLED: Final[Json] = {"type": "object", "required": ["status"], "properties": {"status": {"const": "success"}}}

_MODEL: Final[Json] = {"type": "string"}
_MESSAGE: Final[Json] = {"type": "object", "required": ["role"], "properties": {"role": TEXT}}
_STREAMED: Final = (NDJSON, JSON)
_EVENTS: Final = (SSE, JSON)
_REFUSED: Final = "Always refused: calls that change what is installed are not served here."
_DIGEST: Final = Parameter("digest", "path", "as Ollama has it", "sha256:29fdb92e57cf0827ded04ae6461b5931d01fa595")


def _takes(example: Json, *needed: str, **fields: Json) -> Json:
    """An object with at least `needed`; more fields are carried through."""
    return {
        "type": "object",
        "required": list(needed),
        "properties": {"model": _MODEL, **fields},
        "examples": [example],
    }


_HELLO: Final = [{"role": "user", "content": "hello"}]
_CHAT: Final = _takes(
    {"model": "llama3.2:1b", "messages": _HELLO}, "model", messages={"type": "array", "items": _MESSAGE}
)
_PROMPT: Final = _takes({"model": "llama3.2:1b", "prompt": "hello"}, "model")
_INPUT: Final = _takes({"model": "llama3.2:1b", "input": "hello"}, "model")
_MESSAGES: Final = _takes(
    {"model": "llama3.2:1b", "max_tokens": 64, "messages": _HELLO}, "model", "messages",
    messages={"type": "array", "items": _MESSAGE}, max_tokens={"type": "integer"},
)  # fmt: skip
_ERROR_TOO: Final = "A stream ends in its last record, or in an error."

LENS: Final[tuple[LensCall, ...]] = (
    LensCall("GET", "/api/version", "ollama", "The version of Ollama that is spoken here"),
    LensCall("GET", "/api/tags", "ollama", "List models", listed=True),
    LensCall("GET", "/api/ps", "ollama", "List models in memory", listed=True),
    LensCall("POST", "/api/show", "ollama", "Describe a model", _takes({"model": "llama3.2:1b"})),
    LensCall(
        "POST", "/api/generate", "ollama", "Answer a prompt", _PROMPT, _STREAMED, answers_text=True,
        doc=f"Without a prompt: load the model, or with `keep_alive: 0` unload it. {_ERROR_TOO}",
    ),
    LensCall("POST", "/api/chat", "ollama", "Answer messages", _CHAT, _STREAMED, answers_text=True, doc=_ERROR_TOO),
    LensCall("POST", "/api/embed", "ollama", "Embed texts", _INPUT),
    LensCall("POST", "/api/embeddings", "ollama", "Embed one text (older)", _PROMPT),
    LensCall(
        "POST", "/api/pull", "ollama", "Download a model", _pull_request(), _STREAMED, _PULLED, _PULL_STEP,
        doc="As a stream the last line is `{\"status\": \"success\"}` or `{\"error\": …}`; with `stream: false` the "
        "answer comes when it is over. Leaving stops the download unless somebody else waits for it too.",
    ),
    LensCall("POST", "/api/create", "ollama", "Make a model", OPEN, (), doc=_REFUSED),
    LensCall("POST", "/api/copy", "ollama", "Copy a model", OPEN, (), doc=_REFUSED),
    LensCall("DELETE", "/api/delete", "ollama", "Delete a model", OPEN, (), doc=_REFUSED),
    LensCall("POST", "/api/push", "ollama", "Upload a model", OPEN, (), doc=_REFUSED),
    LensCall("POST", "/api/blobs/{digest}", "ollama", "Upload a file", None, (), parameters=(_DIGEST,), doc=_REFUSED),
    LensCall("HEAD", "/api/blobs/{digest}", "ollama", "Is a file there", None, (), parameters=(_DIGEST,), doc=_REFUSED),
    LensCall("GET", "/v1/models", "openai", "List models", listed=True),
    LensCall(
        "GET", "/v1/models/{name}", "openai", "Describe a model",
        parameters=(Parameter("name", "path", "the model's name, which may hold `/`", "llama3.2:1b"),),
    ),
    LensCall("POST", "/v1/chat/completions", "openai", "Answer messages", _CHAT, _EVENTS, answers_text=True),
    LensCall("POST", "/v1/completions", "openai", "Go on with a prompt", _PROMPT, _EVENTS, answers_text=True),
    LensCall("POST", "/v1/responses", "openai", "Answer an input", _INPUT, _EVENTS, answers_text=True),
    LensCall("POST", "/v1/embeddings", "openai", "Embed texts", _INPUT),
    LensCall("POST", "/v1/messages", "anthropic", "Answer messages", _MESSAGES, _EVENTS, answers_text=True),
    LensCall(
        "POST", "/v1/messages/count_tokens", "anthropic", "Count the tokens of messages", _CHAT, answers_text=True,
        doc="Only where the runtime can.",
    ),
)  # fmt: skip

_HOW: Final = (
    Parameter(
        "x-wf-lens", "header", "`active` or `passive`, else as configured", "active",
        {"type": "string", "enum": ["active", "passive"]},
    ),
    Parameter(
        "x-wf-on-disconnect", "header", "`cancel`, `continue` or `continue_for=30s`, else as configured", "cancel",
        {"type": "string", "pattern": f"^(?:{LEAVE_PATTERN})$"},
    ),
    Parameter(
        "x-wf-resume", "header", "may an answer that breaks off be gone on with: `allow` (not when passive) or `off`, "
        "else as configured", "allow", {"type": "string", "enum": list(RESUME_WORDS)},
    ),
)  # fmt: skip
_FORWARDED: Final = (*ollama.NATIVE_PATHS, *openai.NATIVE_PATHS)  # where a runtime's own refusal is passed on
_DECISIONS: Final = {
    "x-wf-model": "the model that answers",
    "x-wf-runtime": "where it runs",
    "x-wf-route": "`native` or `translated`",
    "x-wf-lens": "`active` or `passive`",
    "x-wf-session": "the session, as `POST /stop` and `GET /stream/{session_id}` take it",
    "x-wf-queue-ms": "how long it waited for room and for its model",
    "x-wf-overhead-ms": "what the engine itself took up to the head of the answer",
}
_AGE: Final = {"x-wf-age-ms": "since the runtimes were asked; what the engine itself has moved since is in it"}


def lens_call(row: LensCall) -> Call:
    """The row as a call: any error of ours in the words of its dialect."""
    end = DONE if row.path in openai.NATIVE_PATHS else None
    bodies = tuple(Body(kind, row.each if kind in (NDJSON, SSE) else row.gives, end) for kind in row.content_types)
    headers = _DECISIONS if row.answers_text else _AGE if row.listed else {}
    answer = Answer(200, f"As {row.dialect} has it", bodies, headers, always=row.listed)
    errors: tuple[type[EngineError], ...] = ()
    if row.takes is not None or row.parameters:
        errors = (NotFound, ModelNotFound, SessionConflict, *RUNTIME_ERRORS)
    parameters = row.parameters + (_HOW if row.answers_text else ())
    return Call(
        row.method, row.path, row.dialect, row.summary, (answer,) if bodies else (), row.doc, parameters, row.takes,
        errors if bodies else (), row.path in _FORWARDED,
    )  # fmt: skip
