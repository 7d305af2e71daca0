"""Log-probabilities that the caller wants are given or refused by every runtime; in virtual time."""

from __future__ import annotations

import attrs
import pytest
import trio

from engine.domain.errors import InvalidRequest
from engine.domain.generation import Tool
from tests.fakes.cloud import anthropic_answer
from tests.fakes.ollama import Reply, ScriptedOllama, Send, done, record, refused, virtual_clock
from tests.fakes.openai import DONE, delta, entry, event, finish
from tests.fakes.streams import ASKED, KEY, chunks_of, failure_of, text_of
from transport.runtimes.anthropic import AnthropicRuntime
from transport.runtimes.ollama import OllamaRuntime
from transport.runtimes.openai import OpenAIRuntime

OPENAI = "/v1/chat/completions"
OLLAMA = "/api/generate"
NO = "logprobs is not supported with this model"
WANTED = attrs.evolve(ASKED, logprobs_wanted=True)
TOOLS = attrs.evolve(WANTED, tools=(Tool("f"),))


def openai(*replies: Reply) -> tuple[ScriptedOllama, OpenAIRuntime]:
    server = ScriptedOllama({OPENAI: list(replies)})
    return server, OpenAIRuntime(virtual_clock, "http://127.0.0.1:8080", transport=server.transport)


def answer(*deltas: bytes) -> Reply:
    return Reply([Send(b"".join((*deltas, finish(), DONE)))])


@pytest.mark.parametrize("request_", [WANTED, TOOLS], ids=["plain", "tools"])
async def test_an_openai_server_that_refuses_them_refuses_the_request(request_, autojump_clock: trio.testing.MockClock):
    server, runtime = openai(refused(400, NO), refused(400, NO), answer(delta("a")), refused(400, NO))
    error = await failure_of(runtime, request_)
    assert isinstance(error, InvalidRequest)
    assert NO in error.message
    unasked = attrs.evolve(request_, logprobs_wanted=False)
    assert text_of(await chunks_of(runtime, unasked)) == "a"  # given up for whoever did not ask
    assert NO in (await failure_of(runtime, request_)).message  # and still not for whoever does
    assert ["logprobs" in body for body in server.bodies(OPENAI)] == [True, True, False, True]


async def test_an_openai_server_that_passes_over_the_question_is_remembered(autojump_clock: trio.testing.MockClock):
    server, runtime = openai(answer(delta("a")), answer(delta("a", entry("a"))), answer(delta("a", entry("a"))))
    await chunks_of(runtime)
    error = await failure_of(runtime, WANTED)
    assert error.message == "logprobs: m gives none; leave them out, or use another model"
    assert len(server.requests) == 1  # nothing was asked
    await chunks_of(runtime)  # it learned to
    assert (await chunks_of(runtime, WANTED))[0].logprobs


@pytest.mark.parametrize("said", [b"", delta(reasoning="hm"), event({"choices": []})], ids=["none", "thought", "bare"])
async def test_an_answer_without_words_says_nothing_of_them(said, autojump_clock: trio.testing.MockClock):
    _, runtime = openai(answer(said), answer(delta("a", entry("a"))))
    await chunks_of(runtime)
    assert (await chunks_of(runtime, WANTED))[0].logprobs


async def test_an_ollama_that_refuses_them_refuses_the_request(autojump_clock: trio.testing.MockClock):
    no = '"m" does not support logprobs'
    reply = Reply([Send(record("a") + done())])
    server = ScriptedOllama({OLLAMA: [refused(400, no), refused(400, no), reply, refused(400, no)]})
    runtime = OllamaRuntime(virtual_clock, transport=server.transport)
    assert no in (await failure_of(runtime, WANTED)).message
    await chunks_of(runtime)
    assert no in (await failure_of(runtime, WANTED)).message
    assert ["logprobs" in body for body in server.bodies(OLLAMA)] == [True, True, False, True]


async def test_anthropic_has_none(autojump_clock: trio.testing.MockClock):
    server = ScriptedOllama({"/v1/messages": [anthropic_answer(["a"])]})
    runtime = AnthropicRuntime(virtual_clock, api_key=KEY, transport=server.transport)
    assert (await failure_of(runtime, WANTED)).message.startswith("logprobs: ")
    assert server.requests == []
