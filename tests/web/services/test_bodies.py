"""The answers of the services, field by field in the order of their document, and what each port says of itself."""

from __future__ import annotations

import json
import re

import pytest
from jsonschema import Draft202012Validator

from engine.schemas import read_schemas
from tests.fakes.http import Http
from tests.web.services.running import CLASSIFIER, LLAMA, Says, answering, question_of, with_service
from tests.web.test_registry import LLAMA as CARD
from tests.web.test_registry import serving as serving_registry
from tests.web.test_router import BIG
from tests.web.test_router import serving as serving_router
from web.app import app_of
from web.openapi import openapi_document
from web.services import blueprint, calls

DOCUMENTS = read_schemas()
# As the document of the services writes them; what it has no word for may only follow.
CHAT = ["id", "object", "created", "model", "choices", "usage"]
GENERATE = [
    "model", "created_at", "response", "done", "total_duration", "load_duration", "prompt_eval_count", "eval_count",
]  # fmt: skip
HEALTH = ["status", "service", "port", "ollama_backend", "model", "model_loaded", "uptime_seconds"]
INFO = ["service_name", "version", "model", "capabilities", "performance", "endpoints"]
AGENT = [
    "agent_id", "name", "tier", "role", "capabilities", "endpoint", "transport", "cost_per_1k_tokens", "metadata",
]  # fmt: skip


def keys(body: bytes, *path: str | int) -> list[str]:
    """Of the object at `path`, in the order in which they were sent."""
    found = json.loads(body)
    for part in path:
        found = found[part]
    return list(found)


def classifier(clock):
    labels = {"Which domain": "MEDICINE", "What does": "ANSWER", "How is": "DENSE"}

    def answer(request):
        return [Says(next(label for words, label in labels.items() if words in question_of(request)), 0.9)]

    return answering(answer, url="http://127.0.0.1:11434")(clock)


async def test_the_fields_of_every_service_are_in_the_order_of_the_document(autojump_clock):
    async with with_service(LLAMA, answering(lambda _: [Says("AI")])) as (api, _):
        asked = {"messages": [{"role": "user", "content": "What is AI?"}], "stream": False}
        body = (await api.post("/chat/completions", asked)).body
        assert keys(body)[: len(CHAT)] == CHAT
        assert keys(body, "choices", 0)[:3] == ["index", "message", "finish_reason"]
        assert keys(body, "choices", 0, "message")[:2] == ["role", "content"]
        assert keys(body, "usage")[:3] == ["prompt_tokens", "completion_tokens", "total_tokens"]
        body = (await api.post("/generate", {"prompt": "What is AI?", "stream": False})).body
        told = [key for key in keys(body) if key != "done_reason"]
        assert told[: len(GENERATE)] == GENERATE
        last = (await api.post("/generate", {"prompt": "What is AI?", "stream": True})).body.splitlines()[-1]
        assert [key for key in keys(last) if key != "done_reason"][: len(GENERATE)] == GENERATE
        assert keys((await api.get("/health")).body)[: len(HEALTH)] == HEALTH
        body = (await api.get("/info")).body
        assert keys(body)[: len(INFO)] == INFO
        assert keys(body, "model") == ["name", "parameters", "quantization", "context_length", "embedding_dim"]
        assert keys(body, "performance") == ["avg_throughput_tok_s", "avg_latency_ms", "p95_latency_ms"]


async def test_the_fields_of_the_classifier_are_in_the_order_of_the_document(autojump_clock):
    async with with_service(CLASSIFIER, classifier) as (api, _):
        body = (await api.post("/classify_domain", {"query": "glucose", "top_k": 3})).body
        assert keys(body)[:3] == ["query", "domains", "primary_domain"]
        assert keys(body, "domains", 0) == ["domain", "confidence"]
        body = (await api.post("/extract_tmd", {"query": "glucose", "context_docs": ["a"]})).body
        assert keys(body)[:3] == ["query", "tmd", "confidence"]
        for part in ("tmd", "confidence", "validated", "confidence_reason"):
            assert keys(body, part) == ["task", "method", "domain"]
        body = (await api.post("/validate_domain", {"domain": "MEDICINE"})).body
        assert keys(body)[:3] == ["valid", "domain", "nearest"]


async def test_the_fields_of_registry_and_router_are_in_the_order_of_the_document(autojump_clock):
    async with serving_registry() as (http, _):
        await http.post("/register", CARD)
        body = (await http.post("/discover", {})).body
        assert keys(body) == ["agents"]
        assert keys(body, "agents", 0)[: len(AGENT)] == AGENT
    async with serving_router() as rig:
        await rig.registered(BIG)
        body = (await rig.http.post("/route", {"capability": "reasoning"})).body
        assert keys(body)[:3] == keys(body, "candidates", 0)[:3] == ["provider", "model", "endpoint"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (LLAMA, calls.COMPLETION),
        (CLASSIFIER, calls.CLASSIFIER),
        ("registry", calls.REGISTRY),
        ("router", calls.ROUTER),
    ],
)
async def test_every_route_of_a_port_is_described_there_and_nothing_else(autojump_clock, kind, told):
    described = calls.described(DOCUMENTS, told, "a title")
    limits = {"body_bytes_max": 65_536, "lens_body_bytes_max": 65_536, "body_timeout_s": 10}
    if kind == "registry":
        async with serving_registry() as (http, _):
            rules, app = list(http.app.url_map.iter_rules()), app_of([described], **limits)
    elif kind == "router":
        async with serving_router() as rig:
            rules, app = list(rig.http.app.url_map.iter_rules()), app_of([described], **limits)
    else:
        async with with_service(kind) as (_, service):
            app = app_of([blueprint.blueprint(service), described], **limits)
            rules = list(app.url_map.iter_rules())
    served = {(m, rule.rule) for rule in rules for m in rule.methods if m != "HEAD"} | {("GET", calls.OPENAPI)}
    document = (await Http(app).get(calls.OPENAPI)).json
    assert {(m.upper(), path) for path, item in document["paths"].items() for m in item if m != "parameters"} == served
    assert document["info"]["title"] == "a title"
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_schema_of_a_service_is_in_one_of_the_descriptions():
    published = {name for name in DOCUMENTS if re.match(r"(services|registry|router)\.", name)}
    named = set()
    for told in (calls.CLASSIFIER, calls.REGISTRY, calls.ROUTER):
        named |= openapi_document(DOCUMENTS, told)["components"]["schemas"].keys()
    assert published - named == {"services.taxonomy"}  # it is for the page, under the engine's own port
