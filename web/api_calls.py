"""The calls of the native API, as data: what each takes, what it answers and how it refuses. `/openapi.json` and
`/docs` are made from these and from web/lens_calls.py; the tests find a route without a row and a row without a
route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import attrs

from engine.domain.errors import (
    BrokerDisabled,
    EngineError,
    FallbackFailed,
    InsufficientMemory,
    LevelLocked,
    ModelNotFound,
    NotFound,
    RuntimeFault,
    SessionConflict,
    SessionNotFound,
    TierLimitExceeded,
    TurboNotAvailable,
)
from transport.wire.json_schema import Json

Tag = Literal["sessions", "models", "state", "schemas", "page", "services", "ollama", "openai", "anthropic"]
Schema = str | Json  # the name of a published schema, or a schema without `$defs`

TAGS: Final[Mapping[Tag, str]] = {
    "sessions": "Ask a model, follow what it says, stop it.",
    "models": "What can be asked, what is in memory, and moving models in and out.",
    "state": "Is it well, and how is it doing. Never touches a model.",
    "schemas": "What is said and taken, for programs.",
    "page": "The dashboard and this documentation, for browsers.",
    "services": "A local service, the registry of agents, or the router: each on a port of its own.",
    "ollama": "Drop-in for programs written for Ollama.",
    "openai": "Drop-in for programs written for the OpenAI API.",
    "anthropic": "Drop-in for programs written for the Anthropic API.",
}
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
SSE: Final = "text/event-stream"
TEXT: Final[Json] = {"type": "string"}
RUNTIME_ERRORS: Final[tuple[type[EngineError], ...]] = tuple(RuntimeFault.__subclasses__())
STREAM_HEADERS: Final = {
    "x-wf-session": "the session, as `POST /stop` and `GET /stream/{session_id}` take it",
    "x-accel-buffering": "no: a proxy must pass each piece on as it comes",
}
ETAG: Final = {"etag": "changes when the file does; send it back as `if-none-match`"}


@attrs.frozen
class Parameter:
    name: str
    place: Literal["path", "query", "header"]
    doc: str
    example: str
    schema: Json = attrs.field(factory=lambda: TEXT)


@attrs.frozen
class Body:
    """Of a stream the schema is that of one line (NDJSON), or of the `data:` of one event (Server-Sent Events). `end`:
    the data of the last event where that is no JSON."""

    content_type: str
    schema: Schema
    end: str | None = None


@attrs.frozen
class Answer:
    """`headers`, with a line about each, are there in every such answer if `always`."""

    status: int
    doc: str
    bodies: tuple[Body, ...] = ()
    headers: Mapping[str, str] = attrs.field(factory=dict)
    always: bool = True


@attrs.frozen
class Call:
    """`path` with its parameters in braces; `takes` is the JSON body, None where there is none. `errors` are those of
    its own; what any request can meet comes on top. `forwards`: a runtime's own answer may come back as it is, with
    whatever status it has."""

    method: Literal["GET", "POST", "DELETE", "HEAD"]
    path: str
    tag: Tag
    summary: str
    answers: tuple[Answer, ...]
    doc: str = ""
    parameters: tuple[Parameter, ...] = ()
    takes: Schema | None = None
    errors: tuple[type[EngineError], ...] = ()
    forwards: bool = False


def _json(status: int, doc: str, schema: Schema) -> Answer:
    return Answer(status, doc, (Body(JSON, schema),))


def _file(doc: str, *content_types: str) -> tuple[Answer, ...]:
    found = Answer(200, doc, tuple(Body(content_type, TEXT) for content_type in content_types), ETAG)
    return found, Answer(304, "`if-none-match` named what is there now", headers=ETAG)


_SESSION: Final = Parameter("session_id", "path", "as `POST /generate` gave it", "5e0d7a3b9c1f2846")
_ENERGY: Final = Parameter("energy", "query", "`1` or `true`: `energy.update` events too; else left out", "1")

NATIVE: Final[tuple[Call, ...]] = (
    Call(
        "POST", "/generate", "sessions", "Start a session",
        (
            _json(202, "Without `stream`: it runs on, with or without a listener", "generate.response"),
            Answer(
                200, "With `stream`: the session's events; leaving aborts it",
                (Body(NDJSON, "line"), Body(SSE, "line")), STREAM_HEADERS,
            ),
        ),
        doc="With `stream: true` the events come as NDJSON, or as Server-Sent Events when `accept` names "
        "`text/event-stream`.",
        parameters=(_ENERGY,), takes="generate.request",
        errors=(
            ModelNotFound, LevelLocked, TurboNotAvailable, BrokerDisabled, TierLimitExceeded, InsufficientMemory,
            FallbackFailed,
            *RUNTIME_ERRORS,
        ),
    ),
    Call(
        "GET", "/stream/{session_id}", "sessions", "Follow a session",
        (Answer(200, "Its events from its start to its end", (Body(SSE, "line"),), STREAM_HEADERS),),
        doc="`event:` is the type, `id:` a running number. Leaving does not stop the session. Of a session with more "
        "than 1 MiB of events the oldest are gone, and `system.truncated_before` says so.",
        parameters=(_SESSION, _ENERGY), errors=(SessionNotFound,),
    ),
    Call(
        "POST", "/stop", "sessions", "Stop a session",
        (_json(200, "The connection to the runtime is closed", "stop.response"),),
        doc="May be repeated as long as the record of the session lives: a minute after its end.",
        takes="stop.request", errors=(SessionNotFound,),
    ),
    Call("GET", "/models", "models", "List models", (_json(200, "All models of all runtimes", "models"),)),
    Call(
        "GET", "/models/{name}/why", "models", "Why is a model where it is",
        (_json(200, "The last decisions on it, with their numbers", "models.why"),),
        parameters=(Parameter("name", "path", "as listed in `GET /models`; slashes may stand as they are",
                              "embedded/lexicon"),),
        errors=(ModelNotFound,),
    ),
    Call(
        "POST", "/models/load", "models", "Bring a model into memory",
        (_json(200, "It is there", "models.load.response"),),
        doc="An absent model is downloaded first where the configuration allows it; its steps are told as "
        "`experience.model` events.",
        takes="models.load.request",
        errors=(ModelNotFound, TierLimitExceeded, InsufficientMemory, *RUNTIME_ERRORS),
    ),
    Call(
        "POST", "/models/unload", "models", "Take a model out of memory",
        (_json(200, "It is gone, or was not there", "models.unload.response"),),
        takes="models.unload.request", errors=(ModelNotFound, SessionConflict, *RUNTIME_ERRORS),
    ),
    Call("GET", "/health", "state", "Is it well", (_json(200, "Also when it is not", "health"),)),
    Call(
        "GET", "/broker", "state", "What may be asked of models outside this machine, and what has left it",
        (_json(200, "Nothing, unless it was switched on", "broker.response"),),
    ),
    Call(
        "POST", "/broker", "state", "Switch it",
        (_json(200, "The mode now in force", "broker.response"),),
        doc="Needs the token of this start in `x-wf-token`, and the tier hybrid. Even then only requests leave that "
        'consent: `"broker": "allow"` in the body of `POST /generate`, or the header `x-wf-broker: allow`.',
        takes="broker.request", errors=(BrokerDisabled,),
    ),
    Call("GET", "/stats", "state", "How is it doing", (_json(200, "Measured since the start", "stats"),)),
    Call(
        "GET", "/usage", "state", "Who asked for how much, and what did it cost",
        (_json(200, "Kept across restarts; what is answered on this machine costs nothing", "usage"),),
        doc="A caller is named by its header `x-wf-agent`, else by the product in `user-agent`, else by the way it "
        "came. No prompt and no answer is ever kept.",
        parameters=(
            Parameter("by", "query", "what a row is about; `model` where it is left out", "model",
                      {"type": "string", "enum": ["agent", "model", "day"]}),
            Parameter("days", "query", "the last so many days, today (UTC) among them; else all that is kept", "30",
                      {"type": "integer", "minimum": 1, "maximum": 400}),
        ),
    ),
    Call(
        "GET", "/schemas", "schemas", "List the JSON Schemas",
        (_json(200, "Their names, with a line about each", {
            "type": "object", "required": ["schemas"],
            "properties": {"schemas": {"type": "array", "items": {
                "type": "object", "required": ["name", "description", "url"],
                "properties": {"name": TEXT, "description": TEXT, "url": TEXT},
            }}},
        }),),
    ),
    Call(
        "GET", "/schemas/{name}", "schemas", "One JSON Schema",
        (Answer(200, "A document of its own, with examples", (
            Body("application/schema+json", {
                "type": "object", "required": ["$schema", "$id", "title", "description", "x-schema-version"],
            }),
        )),),
        parameters=(Parameter("name", "path", "as listed in `GET /schemas`", "energy.update"),), errors=(NotFound,),
    ),
    Call(
        "GET", "/openapi.json", "schemas", "This document",
        (Answer(200, "OpenAPI 3.1", (Body(JSON, {
            "type": "object", "required": ["openapi", "info", "paths", "components"],
        }),), ETAG), Answer(304, "`if-none-match` named what is there now", headers=ETAG)),
    ),
    Call("GET", "/docs", "page", "This document, to read and to try", _file("The page", "text/html"),
         errors=(NotFound,)),
    Call(
        "GET", "/", "page", "The dashboard",
        (
            Answer(200, "The page", (Body("text/html", TEXT), Body("text/plain", {"const": "Ollama is running"})),
                   ETAG, always=False),
            Answer(304, "`if-none-match` named what is there now", headers=ETAG),
        ),
        doc="A program that does not accept `text/html` is told what it would hear from Ollama.", errors=(NotFound,),
    ),
    Call(
        "GET", "/static/{name}", "page", "A file of the pages",
        _file("The file", "text/html", "text/css", "text/javascript", "text/plain", "image/svg+xml", "font/woff2"),
        parameters=(Parameter("name", "path", "a file's name", "style.css"),), errors=(NotFound,),
    ),
    Call(
        "GET", "/api/bootstrap", "page", "What the dashboard needs to begin",
        (_json(200, "With the token of this start", "bootstrap"),),
        doc="For this engine's own page: pages of others are refused.",
    ),
)  # fmt: skip
