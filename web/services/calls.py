"""The calls of the local services, of the registry of agents and of the router, as data, and the schemas of what they
take and answer. Each of these ports tells its own calls in `/openapi.json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from quart import Blueprint

from engine.domain.errors import EngineError, FallbackFailed, ModelNotFound, NotFound, PayloadTooLarge
from transport.wire.json_schema import Documents, Json, asked, said
from web import registry, router, schema_docs
from web.api_calls import JSON, NDJSON, RUNTIME_ERRORS, SSE, Answer, Body, Call, Parameter
from web.lens_calls import DONE, OPEN
from web.openapi import openapi_document
from web.service_bodies import (
    Agents,
    Classified,
    Decisions,
    Deregistered,
    DomainVerdict,
    Extracted,
    HeartbeatAnswer,
    MapBody,
    Registered,
    RegistryHealth,
    Route,
    RouterHealth,
    ServiceHealth,
    ServiceInfo,
    TaxonomyBody,
    WhatIfAnswer,
)
from web.services.classify import ClassifyBody, ExtractBody, ValidateBody

OPENAPI: Final = "/openapi.json"
_ABOUT: Final = (
    "A port of WF Engine beside its own. Only programs on this machine may call, under the names 127.0.0.1, localhost "
    "and [::1]. A path with GET answers HEAD too; any other method is answered with 405 and `allow`."
)
_REQUESTS: Final[dict[str, tuple[type[msgspec.Struct], str]]] = {
    "services.classify_domain.request": (ClassifyBody, "body of POST /classify_domain of a classifier"),
    "services.extract_tmd.request": (ExtractBody, "body of POST /extract_tmd of a classifier"),
    "services.validate_domain.request": (ValidateBody, "body of POST /validate_domain of a classifier"),
    "registry.register.request": (registry.RegisterBody, "body of POST /register of the registry of agents"),
    "registry.discover.request": (registry.DiscoverBody, "body of POST /discover of the registry of agents"),
    "registry.heartbeat.request": (registry.HeartbeatBody, "body of POST /heartbeat of the registry of agents"),
    "registry.deregister.request": (registry.DeregisterBody, "body of POST /deregister of the registry of agents"),
    "router.route.request": (router.RouteBody, "body of POST /route of the router"),
    "router.what-if.request": (router.WhatIfBody, "body of POST /what-if of the router"),
}
_ANSWERS: Final[dict[str, tuple[type[msgspec.Struct], str]]] = {
    "services.health": (ServiceHealth, "answer of GET /health of a local service"),
    "services.info": (ServiceInfo, "answer of GET /info of a local service"),
    "services.classify_domain.response": (Classified, "answer of POST /classify_domain of a classifier"),
    "services.extract_tmd.response": (Extracted, "answer of POST /extract_tmd of a classifier"),
    "services.validate_domain.response": (DomainVerdict, "answer of POST /validate_domain of a classifier"),
    "services.taxonomy": (TaxonomyBody, "answer of GET /services/NAME/taxonomy of the engine, for its own page"),
    "registry.register.response": (Registered, "answer of POST /register of the registry of agents"),
    "registry.discover.response": (Agents, "answer of POST /discover of the registry of agents"),
    "registry.heartbeat.response": (HeartbeatAnswer, "answer of POST /heartbeat of the registry of agents"),
    "registry.deregister.response": (Deregistered, "answer of POST /deregister of the registry of agents"),
    "registry.health": (RegistryHealth, "answer of GET /health of the registry of agents"),
    "router.route.response": (Route, "answer of POST /route of the router"),
    "router.what-if.response": (WhatIfAnswer, "answer of POST /what-if of the router"),
    "router.decisions": (Decisions, "answer of GET /decisions of the router"),
    "router.map": (MapBody, "answer of GET /map of the router"),
    "router.health": (RouterHealth, "answer of GET /health of the router"),
}


def service_schemas() -> dict[str, tuple[str, Json]]:
    """Name to (a line about it, schema) of every request and answer that is not of a dialect."""
    asked_of = {name: (doc, asked(type_)) for name, (type_, doc) in _REQUESTS.items()}
    return asked_of | {name: (doc, said(type_)) for name, (type_, doc) in _ANSWERS.items()}


def described(documents: Documents, calls: Iterable[Call], title: str) -> Blueprint:
    """`/openapi.json` of a port that answers `calls`. Raises KeyError for a schema that is not among `documents`."""
    return schema_docs.openapi(openapi_document(documents, calls, title, _ABOUT))


def _get(path: str, summary: str, schema: str, *statuses: int, parameters: tuple[Parameter, ...] = ()) -> Call:
    answers = tuple(Answer(status, _WORDS[status], (Body(JSON, schema),)) for status in (200, *statuses))
    return Call("GET", path, "services", summary, answers, parameters=parameters)


def _post(path: str, summary: str, name: str, *errors: type[EngineError], doc: str = "") -> Call:
    answer = Answer(200, _WORDS[200], (Body(JSON, f"{name}.response"),))
    return Call("POST", path, "services", summary, (answer,), doc, takes=f"{name}.request", errors=errors)


def _text(path: str, summary: str, like: str, takes: Json, content_type: str, end: str | None) -> Call:
    bodies = (Body(JSON, OPEN), Body(content_type, OPEN, end))
    answer = Answer(200, f"As {like} has it, whole or with `stream: true` as it comes", bodies, always=False)
    doc = "`model` may be left out, or names the service or a model of it. `x-wf-fallback` says why another answers."
    return Call("POST", path, "services", summary, (answer,), doc, takes=takes, errors=(ModelNotFound, *RUNTIME_ERRORS))


_WORDS: Final = {200: "The answer", 503: "The same, while there is no model to answer"}
_SELF: Final = Call(
    "GET", OPENAPI, "services", "This document",
    (Answer(200, "OpenAPI 3.1", (Body(JSON, {"type": "object", "required": ["openapi", "info", "paths"]}),)),),
)  # fmt: skip
_CHAT: Final[Json] = {
    "type": "object",
    "required": ["messages"],
    "properties": {"messages": {"type": "array", "items": {"type": "object", "required": ["role"]}}},
    "examples": [{"messages": [{"role": "user", "content": "What is AI?"}], "max_tokens": 500, "stream": False}],
}
_PROMPT: Final[Json] = {
    "type": "object",
    "required": ["prompt"],
    "properties": {"prompt": {"type": "string"}, "options": {"type": "object"}},
    "examples": [{"prompt": "What is AI?", "stream": False, "options": {"temperature": 0.7, "num_predict": 500}}],
}
_LIMIT: Final = Parameter(
    "limit", "query", "so many, the latest first", "100", {"type": "integer", "minimum": 1, "maximum": router.SHOWN_MAX}
)

COMPLETION: Final[tuple[Call, ...]] = (
    _text("/chat/completions", "Answer messages", "OpenAI", _CHAT, SSE, DONE),
    _text("/generate", "Answer a prompt", "Ollama", _PROMPT, NDJSON, None),
    _get("/health", "Is it well", "services.health", 503),
    _get("/info", "What it is, and how it did here", "services.info"),
    _SELF,
)
CLASSIFIER: Final[tuple[Call, ...]] = (
    *COMPLETION,
    _post("/classify_domain", "Which domain a query belongs to", "services.classify_domain", ModelNotFound,
          *RUNTIME_ERRORS),
    _post("/extract_tmd", "Task, method and domain of a query", "services.extract_tmd", ModelNotFound,
          *RUNTIME_ERRORS),
    _post("/validate_domain", "Is a name a domain; no model is asked", "services.validate_domain"),
)  # fmt: skip
REGISTRY: Final[tuple[Call, ...]] = (
    _post("/register", "Register an agent of this machine, or change it", "registry.register", PayloadTooLarge),
    _post("/discover", "Agents with all of these capabilities", "registry.discover",
          doc="Without capabilities: all agents."),
    _post("/heartbeat", "I am still here", "registry.heartbeat", NotFound),
    _post("/deregister", "I leave", "registry.deregister", NotFound),
    _get("/health", "Is it well", "registry.health"),
    _SELF,
)  # fmt: skip
ROUTER: Final[tuple[Call, ...]] = (
    _post("/route", "Who serves a capability, and why", "router.route", NotFound, FallbackFailed,
          doc="It chooses and never calls. Nothing outside this machine is named unless the broker is on and the "
          "request consents (`x-wf-broker: allow`)."),
    _post("/what-if", "The latest decisions again, with another map", "router.what-if"),
    _get("/decisions", "The latest decisions", "router.decisions", parameters=(_LIMIT,)),
    _get("/map", "The map in force", "router.map"),
    _get("/health", "Is it well", "router.health"),
    _SELF,
)  # fmt: skip
