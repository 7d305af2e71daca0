"""The description of the HTTP API against the app that serves it. tests/system holds it against a real engine."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import trio
from jsonschema import Draft202012Validator
from quart_trio import QuartTrio

from engine.schemas import read_schemas
from tests.fakes.api import ndjson, running_api
from tests.fakes.runtime import PullingRuntime
from transport.wire.json_schema import error_codes
from web import docs_page
from web.api_calls import JSON, NATIVE, NDJSON, SSE, Answer, Call
from web.assets import Asset, read_assets
from web.lens_calls import DONE, LENS, OPEN, REFUSALS, LensCall, lens_call
from web.openapi import all_calls, openapi_document

DOCUMENT = openapi_document(read_schemas())
METHODS = {"get", "post", "delete", "head", "put", "patch"}
OPERATIONS = [
    (method, path, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method in METHODS
]
operations = pytest.mark.parametrize(
    ("method", "path", "operation"), OPERATIONS, ids=[f"{method} {path}" for method, path, _ in OPERATIONS]
)
# Codes that no call of its own can meet: another method is another call, and no limit of tiers is enforced yet.
NOT_OF_A_CALL = {"METHOD_NOT_ALLOWED"}


def routes(app: QuartTrio) -> set[tuple[str, str]]:
    """(method, path) of every route; HEAD comes with GET by itself."""
    found = set()
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule.rule)
        methods = rule.methods - ({"HEAD"} if "GET" in rule.methods else set())
        found |= {(method.lower(), path) for method in methods}
    return found


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def looked_up(reference: str, document: dict[str, Any] = DOCUMENT) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def misfits(schema: dict[str, Any], instance: Any) -> list[str]:
    """What does not fit a schema of the document; references in it lead into the document."""
    whole = {"components": DOCUMENT["components"]} | schema
    return [f"{error.json_path}: {error.message:.300}" for error in Draft202012Validator(whole).iter_errors(instance)]


async def test_every_route_is_described_and_every_description_has_its_route(autojump_clock):
    async with running_api() as api:
        served, described = routes(api.app), {(method, path) for method, path, _ in OPERATIONS}
        assert served - described == set(), "say in web/api_calls.py or web/lens_calls.py what they are"
        assert described - served == set()


def test_no_call_is_in_two_rows():
    calls = [(call.method, call.path) for call in all_calls()]
    assert len(set(calls)) == len(calls) == len(NATIVE) + len(LENS) == len(OPERATIONS)


def test_every_reference_leads_somewhere_and_nothing_is_left_over():
    named = set(references(DOCUMENT))
    for reference in named:
        looked_up(reference)
    for kind in ("schemas", "responses", "headers", "parameters"):
        for name in DOCUMENT["components"][kind]:
            assert f"#/components/{kind}/{name}" in named
    assert "$defs" not in json.dumps(DOCUMENT)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for part in DOCUMENT["components"].values() for name in part)


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_a_schema_is_one_and_its_examples_fit(name):
    schema = DOCUMENT["components"]["schemas"][name]
    Draft202012Validator.check_schema(schema)
    for example in schema.get("examples", ()):
        assert misfits({"$ref": f"#/components/schemas/{name}"}, example) == []


@operations
def test_an_operation_says_what_a_client_needs(method, path, operation):
    named = set(re.findall(r"\{(.+?)\}", path))
    assert {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"} == named
    assert [operation["summary"], *operation["tags"]]
    responses = operation["responses"]
    assert any(status.startswith("2") for status in responses) or "refused" in operation["description"]
    takes = "requestBody" in operation
    assert not takes or method in ("post", "delete")
    refused = {"400", "401", "403", "431", "500", "503"} | ({"408", "413", "415"} if takes else set())
    assert refused <= responses.keys()
    for response in responses.values():
        whole = looked_up(response["$ref"]) if "$ref" in response else response
        assert {"x-request-id", "x-schema-version"} <= whole["headers"].keys()


def test_operations_have_names_of_their_own():
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    assert {"post_generate", "get_models", "get_stream_session_id"} <= set(names)


def test_every_code_is_told_with_its_status():
    told = {}
    for name, response in DOCUMENT["components"]["responses"].items():
        for code in re.findall(r"`([A-Z_]+)`", response["description"]):
            told.setdefault(code, set()).add(name.split(".")[0])
    assert told.keys() == set(error_codes()) - NOT_OF_A_CALL
    assert told.pop("PAYLOAD_TOO_LARGE") == {"413", "431"}
    assert all(len(statuses) == 1 for statuses in told.values())


def test_a_refusal_with_a_code_of_another_status_does_not_fit():
    response = looked_up("#/components/responses/404.SESSION_NOT_FOUND")
    schema = response["content"][JSON]["schema"]
    body = {"error": {"code": "SESSION_NOT_FOUND", "message": "x", "retryable": False, "details": {}}}
    assert misfits(schema, body) == []
    body["error"]["code"] = "OVERLOADED"
    assert misfits(schema, body)
    assert misfits(schema, {"error": "in the words of Ollama"})


def test_two_schemas_with_parts_of_one_name_stay_apart():
    def document(held: str) -> dict[str, Any]:
        properties = {name: {"$ref": "#/$defs/Part"} for name in ("a", "default")}
        return {"$id": held, "properties": properties, "$defs": {"Part": {"type": held}}}

    documents = {"one": document("string"), "two": document("integer"), "error": {"type": "object"}}
    calls = [Call("GET", f"/{name}", "state", name, (Answer(200, "", ()),), takes=name) for name in ("one", "two")]
    made = openapi_document(documents, calls)
    for name, held in (("one", "string"), ("two", "integer")):
        schema = made["paths"][f"/{name}"]["get"]["requestBody"]["content"][JSON]["schema"]
        for part in looked_up(schema["$ref"], made)["properties"].values():
            assert looked_up(part["$ref"], made) == {"type": held}
    with pytest.raises(KeyError):
        openapi_document(documents, [Call("GET", "/", "state", "", (), takes="three")])


@pytest.mark.parametrize(
    ("path", "dialect", "forwards"),
    [("/api/chat", "ollama", True), ("/v1/completions", "openai", True), ("/v1/messages", "anthropic", False)],
)
def test_a_row_of_a_dialect_becomes_a_call(path, dialect, forwards):
    row = LensCall("POST", path, dialect, "x", OPEN, (JSON, SSE), each={"const": 1}, answers_text=True)
    operation = openapi_document(read_schemas(), [lens_call(row)])["paths"][path]["post"]
    assert operation["tags"] == [dialect]
    assert {"x-wf-lens", "x-wf-on-disconnect", "x-wf-resume"} == {one["name"] for one in operation["parameters"]}
    content = operation["responses"]["200"]["content"]
    assert content[SSE]["x-each"] == "event"
    data = content[SSE]["schema"]["properties"]["data"]
    done, data = data["anyOf"] if dialect == "openai" else ({"const": DONE}, data)
    assert (done, data["contentSchema"]) == ({"const": DONE}, {"const": 1})
    assert content[JSON]["schema"] == OPEN
    assert operation["responses"]["404"]["$ref"].endswith(f".{dialect}")
    assert ("4XX" in operation["responses"]) == ("5XX" in operation["responses"]) == forwards


def test_what_a_download_takes():
    schema = DOCUMENT["paths"]["/api/pull"]["post"]["requestBody"]["content"][JSON]["schema"]
    for fits in ({"model": "a"}, {"name": "a", "stream": False}, {"model": "a", "name": None, "insecure": True}):
        assert misfits(schema, fits) == []
    for does_not in ({}, {"model": None}, {"model": ""}, {"model": "a", "stream": 1}, {"name": "a" * 331}):
        assert misfits(schema, does_not)


async def test_a_download_fits_its_description(autojump_clock):
    responses = DOCUMENT["paths"]["/api/pull"]["post"]["responses"]
    content = responses["200"]["content"]
    async with running_api(PullingRuntime) as api:
        for name, steps in (("new", 11), ("missing", 2)):
            lines = ndjson((await api.post("/api/pull", {"model": name})).body)
            assert len(lines) >= steps
            assert [misfit for line in lines for misfit in misfits(content[NDJSON]["schema"], line)] == []
        assert misfits(content[NDJSON]["schema"], {"completed": 1}), "a line without a word"
        whole = await api.post("/api/pull", {"model": "newer", "stream": False})
        assert misfits(content[JSON]["schema"], whole.json) == []
        for body, status in (({}, 400), ({"model": "missing", "stream": False}, 404), ({"model": "elsewhere"}, 503)):
            answer = await api.post("/api/pull", body)
            assert answer.status == status
            refusal = looked_up(responses[str(status)]["$ref"])["content"][JSON]["schema"]
            assert misfits(refusal, answer.json) == []
            assert misfits(REFUSALS["ollama"], answer.json) == []


async def test_the_document_is_served_as_it_was_made(autojump_clock):
    async with running_api() as api:
        answer = await api.get("/openapi.json")
        assert (answer.status, answer.headers["content-type"]) == (200, JSON)
        assert answer.json == msgspec.json.decode(msgspec.json.encode(DOCUMENT))
        assert answer.json["openapi"].startswith("3.1.")
        etag = answer.headers["etag"]
        again = await api.get("/openapi.json", if_none_match=etag)
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
        packed = await api.get("/openapi.json", accept_encoding="gzip")
        assert (packed.headers["content-encoding"], gzip.decompress(packed.body)) == ("gzip", answer.body)


@pytest.fixture
def docs() -> QuartTrio:
    """An app with nothing but the document and its page."""
    app = QuartTrio("docs", static_folder=None)
    app.register_blueprint(docs_page.blueprint(DOCUMENT, {"docs.html": Asset(b"<p>", "text/html", '"docs-1"')}))
    return app


async def test_the_page_may_run_its_own_scripts_and_nothing_else(docs):
    client = docs.test_client()
    for headers, status in (({}, 200), ({"if-none-match": '"docs-1"'}, 304)):
        answer = await client.get("/docs", headers=headers)
        assert answer.status_code == status
        parts = answer.headers["content-security-policy"].split("; ")
        policy = {name: values for name, _, values in (part.partition(" ") for part in parts)}
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["trusted-types"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"


async def test_without_its_file_the_page_is_missed_in_so_many_words(autojump_clock):
    async with running_api() as api:  # whose assets have no such page
        answer = await api.get("/docs")
        assert answer.error["code"] == "NOT_FOUND"
        assert "openapi.json" in answer.error["message"]


async def test_the_page_needs_nothing_from_elsewhere():
    assets = await trio.to_thread.run_sync(read_assets)
    page = assets[docs_page.PAGE].body.decode()
    named = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    assert {name.removeprefix("/static/") for name in named if name.startswith("/static/")} <= assets.keys()
    assert {name for name in named if not name.startswith("/static/")} == {"/", "/openapi.json"}
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|<style|\sstyle=", page), "the policy would forbid it"
    for script in ("docs.js", "docs_schema.js"):
        text = assets[script].body.decode()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", text)
        imported = re.findall(r'from "\./([^"]+)"', text)
        assert set(imported) <= assets.keys()
