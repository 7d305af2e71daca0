"""Requests made up by Schemathesis from our own description, good and bad ones, against a real engine: never a failure
of ours, and every answer has a status, a content type, headers and a body that the description names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from engine.schemas import read_schemas
from tests.system.process import WATCHDOG_S, EngineProcess
from web.api_calls import JSON, NDJSON, SSE
from web.openapi import openapi_document

EXAMPLES_MAX = 12  # of one operation and kind
TOKENS_MAX = 2  # of an answer: what is checked is its shape
DOCUMENT = openapi_document(read_schemas())
API = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [found.ok() for found in API.get_all_operations()]
DIALECTS = {"ollama", "openai", "anthropic"}
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_OLLAMA = {"options": {"num_predict": TOKENS_MAX}}
_OPENAI = {"max_tokens": TOKENS_MAX}
LIMITS = {
    "/api/generate": _OLLAMA,
    "/api/chat": _OLLAMA,
    "/v1/chat/completions": _OPENAI,
    "/v1/completions": _OPENAI,
    "/v1/messages": _OPENAI,
    "/v1/responses": {"max_output_tokens": TOKENS_MAX},
}
# Nothing downloads here, which is said with a 503; that is the one failure of the far side that can be met.
NO_REGISTRY = {("POST", "/api/pull"): 503}


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False  # no proxy of the environment
        session.headers.clear()  # Schemathesis lets them win over those of a case
        yield session


@pytest.fixture
def ask(engine: EngineProcess, session: requests.Session) -> Callable[[Any], Any]:
    """Sends a case to the engine and gives the answer, checked."""

    def send(case: Any, **headers: str) -> Any:
        response = case.call(base_url=engine.http, session=session, timeout=WATCHDOG_S, headers=headers or None)
        allowed = NO_REGISTRY.get((case.method, case.path))
        strict = case.method == "POST" and DIALECTS.isdisjoint(case.operation.tags or ())
        rejects = [negative_data_rejection] if strict else []
        sound = [] if response.status_code == allowed else [not_a_server_error]
        case.validate_response(response, checks=[*CHECKS, *sound, *rejects])
        check_items(case, response)
        return response

    return send


def check_items(case: Any, response: Any) -> None:
    """Every line of NDJSON and every `data:` of an event fits, and there is at least one."""
    kind = response.headers.get("content-type", [""])[0].partition(";")[0]
    described = case.operation.definition.raw["responses"].get(str(response.status_code), {})
    media = described.get("content", {}).get(kind, {})
    if "x-each" not in media:
        return
    begins = "" if kind == NDJSON else "data: "
    lines = [line for line in response.content.decode().split("\n") if line and line.startswith(begins)]
    assert lines
    data = media["schema"] if kind == NDJSON else media["schema"]["properties"]["data"]
    if "anyOf" in data:
        assert lines.pop() == begins + data["anyOf"][0]["const"]
        data = data["anyOf"][1]
    validator = Draft202012Validator({"components": DOCUMENT["components"]} | data.get("contentSchema", data))
    for line in lines:
        validator.validate(json.loads(line.removeprefix(begins)))


def short(case: Any, model: str | None = None) -> Any:
    """The case with an answer of a few tokens at most, and with a model that is there, if one is given."""
    body = case.body
    if not isinstance(body, dict):
        return case
    parameters = body.get("parameters")
    if isinstance(parameters, dict) and isinstance(parameters.get("max_tokens"), int):
        parameters["max_tokens"] = min(parameters["max_tokens"], TOKENS_MAX)
    if model is not None:
        body |= {field: model for field in ("model", "name") if isinstance(body.get(field), str)}
        if case.path == "/generate":
            for field in ("runner_options", "models", "mode", "method", "judge", "broker"):  # Ollama's, councils'
                body.pop(field, None)
            body["model"] = model
            body["parameters"] = (body.get("parameters") or {}) | {"max_tokens": TOKENS_MAX}
        body |= LIMITS.get(case.path, {})
    return case


def exercise(strategy: Any, each: Callable[[Any], None]) -> None:
    """`each` on a bounded number of cases, the same ones each time."""

    @settings(
        max_examples=EXAMPLES_MAX,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(case: Any) -> None:
        each(case)

    run()


def named(*paths: str) -> list[Any]:
    return [next(operation for operation in OPERATIONS if operation.path == path) for path in paths]


operations = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)


def test_the_description_is_valid_openapi_and_the_one_that_is_served(engine):
    API.validate()
    with engine.client() as http:
        assert http.get("/openapi.json").json() == json.loads(json.dumps(DOCUMENT))


@operations
def test_whatever_fits_the_description_is_answered_as_described(ask, operation):
    statuses = set()
    exercise(operation.as_strategy(), lambda case: statuses.add(ask(short(case)).status_code))
    assert statuses


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.body], ids=lambda operation: operation.label)
def test_whatever_does_not_fit_is_refused_as_described(ask, operation):
    exercise(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), lambda case: ask(short(case)))


@pytest.mark.parametrize(
    "operation", named("/generate", "/models/load", "/models/unload"), ids=lambda operation: operation.label
)
def test_with_a_model_that_is_there_most_is_done(ask, operation):
    statuses: list[int] = []
    exercise(operation.as_strategy(), lambda case: statuses.append(ask(short(case, "synthetic/steady")).status_code))
    assert sum(status < 300 for status in statuses) >= len(statuses) / 2, statuses


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("operation", named(*LIMITS), ids=lambda operation: operation.label)
def test_a_drop_in_api_answers_as_described(ask, operation, stream):
    (example,) = operation.definition.raw["requestBody"]["content"]["application/json"]["schema"]["examples"]
    answer = ask(short(operation.Case(body=example | {"stream": stream}), "synthetic/steady"))
    assert answer.status_code == 200
    kind = answer.headers["content-type"][0].partition(";")[0]
    assert kind in ((NDJSON, SSE) if stream else (JSON,))
    statuses: list[int] = []
    exercise(operation.as_strategy(), lambda case: statuses.append(ask(short(case, "synthetic/steady")).status_code))
    assert set(statuses) <= {200, 400}


@pytest.mark.parametrize("accept", [SSE, "*/*"])
def test_a_session_is_streamed_followed_and_stopped_as_described(ask, accept):
    generate, stream, stop = named("/generate", "/stream/{session_id}", "/stop")
    body = {"model": "synthetic/steady", "prompt": "x", "parameters": {"max_tokens": TOKENS_MAX}}
    for more in ({}, {"energy": "1"}):
        answer = ask(generate.Case(body=body | {"stream": True}, query=more), accept=accept)
        assert answer.headers["content-type"][0].startswith(SSE if accept == SSE else NDJSON)
        (session_id,) = answer.headers["x-wf-session"]
        assert ask(stream.Case(path_parameters={"session_id": session_id}, query=more)).status_code == 200
        assert ask(stop.Case(body={"session_id": session_id})).status_code == 200


def test_pages_and_schemas_are_served_as_described(ask):
    files, schema = named("/static/{name}", "/schemas/{name}")
    for name in ("docs.html", "docs.js", "docs.css", "favicon.svg"):
        answer = ask(files.Case(path_parameters={"name": name}))
        assert answer.status_code == 200
        tag = {"if-none-match": answer.headers["etag"][0]}
        assert ask(files.Case(path_parameters={"name": name}, headers=tag)).status_code == 304
    for name in ("line", "generate.request"):
        assert ask(schema.Case(path_parameters={"name": name})).status_code == 200
