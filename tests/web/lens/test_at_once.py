"""Whole answers of llama.cpp with log-probabilities: its own body, since its stream says less; in virtual time."""

from __future__ import annotations

import json
from typing import Any

import attrs
import httpx
import pytest
import trio

from actors.clock import EngineClock
from engine.settings import Settings, TimeoutSettings
from tests.fakes.api import running_api
from tests.fakes.ollama import Reply, ScriptedOllama, Send, whole
from tests.fakes.openai import DONE, delta, entry, finish
from transport.runtimes.openai import OpenAIRuntime

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
SCORED = ASK | {"logprobs": True, "top_logprobs": 1}
TOPS = [{"token": text, "logprob": -float(at)} for at, text in enumerate("abcdefghij")]
SAID: dict[str, Any] = {
    "choices": [
        {
            "finish_reason": "stop",
            "index": 0,
            "message": {"role": "assistant", "content": "hi"},
            "logprobs": {
                "content": [entry("hi", top_logprobs=TOPS), entry("", top_logprobs=TOPS)],
                "odd": {"x": 1},
            },
        }
    ],
    "created": 5,
    "model": "m",
    "object": "chat.completion",
    "usage": {"completion_tokens": 2, "prompt_tokens": 3, "total_tokens": 5},
    "id": "chatcmpl-1",
    "timings": {"predicted_n": 2},
}
CLIENTS: dict[str, Any] = json.loads(json.dumps(SAID))
for one in CLIENTS["choices"][0]["logprobs"]["content"]:
    one["top_logprobs"] = TOPS[:1]


@attrs.define(eq=False)
class Llama(ScriptedOllama):
    """An OpenAI-compatible server that calls itself `owner`; `asked` are the clients' requests."""

    owner: str = "llamacpp"
    asked: list[dict[str, Any]] = attrs.field(factory=list)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, stream=whole({"data": [{"id": "m", "owned_by": self.owner}]}).body)
        self.asked.append(json.loads(await request.aread()))
        return await ScriptedOllama.handle(self, request)

    def runtime(self, clock: EngineClock) -> OpenAIRuntime:
        return OpenAIRuntime(clock, "http://127.0.0.1:8080", transport=self.transport)


def body(value: object, after_s: float = 0.0) -> Reply:
    return Reply((Send(json.dumps(value).encode()),), headers={"content-type": "application/json"}, after_s=after_s)


def streamed() -> Reply:
    events = (delta("hi", entry("hi")), finish(), DONE)
    return Reply([Send(event) for event in events], headers={"content-type": "text/event-stream"})


def only_session(api: Any) -> Any:
    (session,) = api.slice.core.sessions.known()
    return session


async def test_the_client_gets_llama_cpps_own_body_less_the_alternatives_that_we_asked_for(autojump_clock):
    server = Llama({CHAT: [body(SAID)]})
    async with running_api(server.runtime) as api:
        answer = await api.post(CHAT, SCORED | {"odd": {"x": 1}})
        assert server.asked == [SCORED | {"odd": {"x": 1}, "top_logprobs": 10}]
        assert json.dumps(answer.json) == json.dumps(CLIENTS)  # order of fields included
        assert (answer.headers["x-wf-route"], answer.headers["x-wf-lens"]) == ("native", "active")
        assert only_session(api).report().tokens_generated == 2  # both are seen, the one that says nothing too


async def test_it_has_the_name_that_the_client_used(autojump_clock):
    server = Llama({CHAT: [body(SAID)]})
    async with running_api(server.runtime) as api:
        answer = await api.post(CHAT, SCORED | {"model": "openai/m"})
        assert (server.asked[0]["model"], answer.json["model"]) == ("m", "openai/m")


@pytest.mark.parametrize(
    ("more", "owner"), [({"stream": True}, "llamacpp"), ({"logprobs": False}, "llamacpp"), ({}, "vllm")]
)
async def test_all_others_are_streamed(more: dict[str, Any], owner: str, autojump_clock):
    """Then the answer is seen while it is made."""
    server = Llama({CHAT: [streamed()]}, owner=owner)
    async with running_api(server.runtime) as api:
        answer = await api.post(CHAT, ASK | {"logprobs": True} | more)
        assert answer.status == 200
        assert server.asked[0]["stream"] is True


async def test_tools_beside_log_probabilities_are_no_reason_to_refuse(autojump_clock):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    server = Llama({CHAT: [body(SAID)]})
    async with running_api(server.runtime) as api:
        assert (await api.post(CHAT, SCORED | {"tools": tools})).status == 200
        assert server.asked[0]["tools"] == tools


async def test_it_may_take_longer_than_a_first_token(autojump_clock):
    server = Llama({CHAT: [body(SAID, after_s=1000.0)]})
    hasty = Settings(timeouts=TimeoutSettings(first_token_s=5.0, progress_s=5.0))
    async with running_api(server.runtime, hasty) as api:
        answer = await api.post(CHAT, SCORED)
        assert answer.json == CLIENTS


async def test_a_stop_before_the_body_is_told(autojump_clock):
    server = Llama({CHAT: [body(SAID, after_s=60.0)]})
    async with running_api(server.runtime) as api, api.open("POST", CHAT, SCORED) as client:
        await trio.sleep(1)
        await api.post("/stop", {"session_id": only_session(api).id})
        told = json.loads(await client.read_all())
        assert client.status == 502
        assert "stopped" in told["error"]["message"]


async def test_a_refusal_is_llama_cpps(autojump_clock):
    refusal = {"error": {"code": 400, "message": "no", "type": "invalid_request_error"}}
    server = Llama({CHAT: [whole(refusal, 400)]})
    async with running_api(server.runtime) as api:
        answer = await api.post(CHAT, SCORED)
        assert (answer.status, answer.json) == (400, refusal)


async def test_a_body_that_breaks_off_is_none(autojump_clock):
    torn = Reply((Send(json.dumps(SAID).encode()[:-9]),), headers={"content-type": "application/json"})
    async with running_api(Llama({CHAT: [torn]}).runtime) as api:
        assert (await api.post(CHAT, SCORED)).status == 502


async def test_text_completions_too(autojump_clock):
    said = {"choices": [{"text": "hi", "index": 0, "logprobs": {"content": [entry("hi", top_logprobs=TOPS)]}}]}
    said["choices"][0]["finish_reason"] = "stop"
    server = Llama({COMPLETIONS: [body(said)]})
    async with running_api(server.runtime) as api:
        answer = await api.post(COMPLETIONS, {"model": "m", "prompt": "x", "logprobs": 2})
        assert server.asked == [{"model": "m", "prompt": "x", "logprobs": 10}]
        assert answer.json["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == TOPS[:2]
