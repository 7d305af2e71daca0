"""What runtimes are asked when an answer is to be gone on with; in virtual time."""

from __future__ import annotations

import json

import attrs
import pytest
import trio

from engine.domain.errors import UpstreamTruncated
from engine.domain.generation import GenerationRequest, ResumeRules, TokenKind
from policies.resume import Given, continuation
from tests.fakes.ollama import Reply, ScriptedOllama, Send, done, virtual_clock
from tests.fakes.openai import DONE, delta, finish
from tests.fakes.streams import chunks_of, text_of
from transport.runtimes.ollama import OllamaRuntime
from transport.runtimes.openai import OpenAIRuntime

HALF = Given("Once upon", 2, frozenset({TokenKind.ANSWER}))
ASKED = GenerationRequest("m", prompt="tell", system="be brief")
TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "tell"},
    {"role": "assistant", "content": "Once upon"},
]


def going_on(asked: GenerationRequest = ASKED) -> GenerationRequest:
    found = continuation(UpstreamTruncated("cut"), asked, HALF, ResumeRules(), 0)
    assert isinstance(found, GenerationRequest)
    return found


async def body_of(server: ScriptedOllama, path: str, request: GenerationRequest) -> dict[str, object]:
    kind = OpenAIRuntime(virtual_clock, "http://127.0.0.1:8080", transport=server.transport)
    runtime = kind if path.startswith("/v1") else OllamaRuntime(virtual_clock, transport=server.transport)
    assert text_of(await chunks_of(runtime, request)) == " a time"
    (body,) = server.bodies(path)
    return body


async def test_an_openai_server_is_told_to_go_on(autojump_clock: trio.testing.MockClock):
    path = "/v1/chat/completions"
    server = ScriptedOllama({path: [Reply([Send(delta(" a time") + finish() + DONE)])]})
    body = await body_of(server, path, going_on())
    assert body["messages"] == TURNS
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


async def test_an_openai_server_is_not_told_so_otherwise(autojump_clock: trio.testing.MockClock):
    path = "/v1/chat/completions"
    server = ScriptedOllama({path: [Reply([Send(delta(" a time") + finish() + DONE)])]})
    body = await body_of(server, path, attrs.evolve(going_on(), continues=False))
    assert not {"continue_final_message", "add_generation_prompt"} & set(body)


async def test_an_ollama_goes_on_with_the_last_message_by_itself(autojump_clock: trio.testing.MockClock):
    said = json.dumps({"message": {"role": "assistant", "content": " a time"}, "done": False}).encode() + b"\n"
    server = ScriptedOllama({"/api/chat": [Reply([Send(said + done(message={"role": "assistant", "content": ""}))])]})
    body = await body_of(server, "/api/chat", going_on())
    assert body["messages"] == TURNS
    assert "think" not in body


@pytest.mark.parametrize(("path", "runtime"), [("/api/generate", "ollama"), ("/v1/completions", "openai")])
async def test_a_raw_prompt_is_sent_longer(path, runtime, autojump_clock: trio.testing.MockClock):
    event = b'data: {"choices":[{"index":0,"text":" a time","finish_reason":"stop"}]}\n\n'
    record = json.dumps({"response": " a time", "done": False}).encode() + b"\n" + done()
    server = ScriptedOllama({path: [Reply([Send(event + DONE if runtime == "openai" else record)])]})
    body = await body_of(server, path, going_on(GenerationRequest("m", prompt="tell: ", raw=True)))
    assert body["prompt"] == "tell: Once upon"
