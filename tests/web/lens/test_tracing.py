"""What the runtimes hear of a request's trace, and what a client gets of an answer up to a fault; in virtual time."""

from __future__ import annotations

import json
import re

import attrs
import httpx
import pytest

from tests.fakes.api import running_api
from tests.fakes.forwarding import ListeningOllama
from tests.fakes.ollama import Reply, Send, done, record, whole
from tests.web.lens.ways import ANTHROPIC, OLLAMA_GENERATE

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
GIVEN = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01", "tracestate": "rojo=1"}
NDJSON = {"content-type": "application/x-ndjson"}


@attrs.define(eq=False)
class HearingOllama(ListeningOllama):
    """Keeps the headers of what clients asked, and of embeddings."""

    heard: list[dict[str, str]] = attrs.field(factory=list)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        before = len(self.asked)
        response = await ListeningOllama.handle(self, request)
        if len(self.asked) > before:
            self.heard.append(dict(request.headers))
        return response


def answers(path: str) -> HearingOllama:
    server = HearingOllama()
    said = record("hi") + done() if path != "/api/chat" else b'{"message":{"role":"assistant","content":"hi"}}\n'
    if path == "/api/chat":
        said += b'{"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n'
    server.plays(path, *(Reply([Send(said)], headers=NDJSON) for _ in range(2)))
    return server


@pytest.mark.parametrize(("way", "path"), [(OLLAMA_GENERATE, "/api/generate"), (ANTHROPIC, "/api/chat")])
async def test_a_runtime_hears_the_trace_with_our_span_and_the_requests_id(way, path, autojump_clock):
    server = answers(path)
    async with running_api(server.runtime) as api:
        answer = await api.post(way.path, way.body(model="m"), x_request_id="abc-1", **GIVEN)
        assert answer.status == 200, answer.body
        (heard,) = server.heard
        assert heard["x-request-id"] == "abc-1"
        assert heard["tracestate"] == "rojo=1"
        assert heard["traceparent"] == answer.headers["traceparent"]
        found = re.fullmatch(rf"00-{TRACE_ID}-([0-9a-f]{{16}})-01", heard["traceparent"])
        assert found is not None
        assert found[1] != "00f067aa0ba902b7"


async def test_without_a_trace_only_the_id_goes_on_and_nothing_of_the_request_before(autojump_clock):
    server = answers("/api/generate")
    async with running_api(server.runtime) as api:
        await api.post("/api/generate", OLLAMA_GENERATE.body(model="m"), **GIVEN)
        second = await api.post("/api/generate", OLLAMA_GENERATE.body(model="m"), tracestate="rojo=1")
        heard = server.heard[1]
        assert heard["x-request-id"] == second.headers["x-request-id"]
        assert not {"traceparent", "tracestate"} & set(heard)


async def test_embeddings_carry_it_too(autojump_clock):
    server = HearingOllama().plays("/api/embed", whole({"embeddings": [[1.0]], "prompt_eval_count": 1}))
    async with running_api(server.runtime) as api:
        answer = await api.post("/api/embed", {"model": "m", "input": "x"}, **GIVEN)
        assert answer.status == 200, answer.body
        assert server.heard[0]["tracestate"] == "rojo=1"


async def test_text_in_the_same_read_before_an_unreadable_record_is_not_lost(autojump_clock):
    bad = b'{"response": 7}\n'
    server = HearingOllama().plays("/api/generate", Reply([Send(record("a") + record("b") + bad)], headers=NDJSON))
    async with running_api(server.runtime) as api:
        answer = await api.post("/api/generate", OLLAMA_GENERATE.streamed(model="m"))
        values = [json.loads(line) for line in answer.body.splitlines()]
        assert [value.get("response") for value in values] == ["a", "b", None]
        assert "error" in values[-1]
