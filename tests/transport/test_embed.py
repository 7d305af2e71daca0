"""Embeddings of every runtime, what Ollama shows of a model, and requests that a runtime cannot follow."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
)
from engine.domain.generation import GenerationRequest, Message, Parameters, Tool
from engine.domain.runtime import Embedder, Embeddings, EmbedRequest
from tests.fakes.ollama import Reply, ScriptedOllama, capture, done, refused, spoken, virtual_clock, whole
from tests.fakes.openai import DONE, delta, finish
from tests.fakes.streams import KEY, PROMPT, chunks_of, failure_of
from transport.runtimes.embedded import EmbeddedRuntime
from transport.runtimes.ollama import OllamaRuntime
from transport.runtimes.openai import OpenAIRuntime
from transport.runtimes.synthetic import SyntheticRuntime
from transport.wire.requests import INPUTS_MAX

TWO = EmbedRequest("m", (PROMPT, "b"))


def ollama_of(server: ScriptedOllama, **options: Any) -> OllamaRuntime:
    return OllamaRuntime(virtual_clock, transport=server.transport, random_unit=lambda: 0.5, **options)


def openai_of(server: ScriptedOllama) -> OpenAIRuntime:
    return OpenAIRuntime(virtual_clock, "http://127.0.0.1:8080", api_key=KEY, transport=server.transport)


def ollama_embedding(reply: Reply) -> OllamaRuntime:
    return ollama_of(ScriptedOllama({"/api/embed": [reply]}))


def openai_embedding(reply: Reply) -> OpenAIRuntime:
    return openai_of(ScriptedOllama({"/v1/embeddings": [reply]}))


async def error_of(runtime: Embedder, request: EmbedRequest = TWO) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await runtime.embed(request)
    assert PROMPT not in caught.value.message
    assert KEY not in caught.value.message
    return caught.value


# ── embeddings ──


async def test_ollama_embeds(autojump_clock: trio.testing.MockClock):
    answer = {"model": "m", "embeddings": [[0.5, -1], [1e-3, 2]], "total_duration": 5, "prompt_eval_count": 7}
    server = ScriptedOllama({"/api/embed": [refused(503, "busy"), whole(answer)]})
    embedded = await ollama_of(server, keep_alive="30m").embed(TWO)
    assert embedded == Embeddings(((0.5, -1.0), (0.001, 2.0)), 7)
    body = {"model": "m", "input": [PROMPT, "b"], "truncate": True, "keep_alive": "30m"}
    assert server.bodies("/api/embed") == [body, body]


async def test_openai_embeds_in_the_order_of_the_texts(autojump_clock: trio.testing.MockClock):
    data = [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2]}]
    answer = {"object": "list", "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    assert await openai_embedding(whole(answer)).embed(TWO) == Embeddings(((1.0, 2.0), (3.0, 4.0)), 7)
    del answer["usage"]
    assert (await openai_embedding(whole(answer)).embed(TWO)).prompt_tokens is None


@pytest.mark.parametrize(
    "vectors",
    [
        "[[1]]",
        "[[1],[1],[1]]",
        "[[1],[1,2]]",
        "[[1],[]]",
        "[[1],[null]]",
        "[[1],[1e999]]",
        "[[1],[NaN]]",
        '[[1],["1"]]',
        "[[1],1]",
        "5",
        "[" * 200_000 + "]" * 200_000,
        "[[1],[" + ",".join(["0"] * 65_537) + "]]",
    ],
)
async def test_vectors_that_are_none(autojump_clock: trio.testing.MockClock, vectors: str):
    native = whole(b'{"embeddings":%s}' % vectors.encode())
    assert type(await error_of(ollama_embedding(native))) is UpstreamProtocolError
    try:
        found = json.loads(vectors)
        data = [{"index": at, "embedding": vector} for at, vector in enumerate(found)]
    except (TypeError, RecursionError):
        return
    compatible = whole(json.dumps({"data": data}).replace("Infinity", "1e999").encode())
    assert type(await error_of(openai_embedding(compatible))) is UpstreamProtocolError


@pytest.mark.parametrize("places", [(0, 0), (1, 2), (0, 2)])
async def test_a_text_without_its_vector(autojump_clock: trio.testing.MockClock, places: tuple[int, int]):
    answer = {"data": [{"index": at, "embedding": [1]} for at in places]}
    assert type(await error_of(openai_embedding(whole(answer)))) is UpstreamProtocolError


async def test_refused_embeddings(autojump_clock: trio.testing.MockClock):
    kinds = {
        400: InvalidRequest,
        501: InvalidRequest,
        404: ModelNotFound,
        401: RuntimeUnavailable,
        500: UpstreamProtocolError,
    }
    for status, kind in kinds.items():
        assert type(await error_of(ollama_embedding(refused(status, "no")))) is kind
        refusal = whole({"error": {"message": f"no, {KEY}"}}, status)
        assert type(await error_of(openai_embedding(refusal))) is kind
    busy = whole({"error": {"message": "busy"}}, 503, retry_after="4")
    error = await error_of(openai_embedding(busy))
    assert (type(error), error.details["retry_after_s"]) == (Overloaded, 4)


async def test_who_cannot_embed():
    for runtime in (EmbeddedRuntime(virtual_clock), SyntheticRuntime(virtual_clock, 1)):
        assert not isinstance(runtime, Embedder)
    too_many = EmbedRequest("m", ("a",) * (INPUTS_MAX + 1))
    server = ScriptedOllama({})
    for asked in (ollama_of(server), openai_of(server)):
        assert isinstance(await error_of(asked, too_many), InvalidRequest)
    assert isinstance(await error_of(ollama_of(server), EmbedRequest("big:cloud", ("a",))), ModelNotFound)
    assert server.requests == []


# ── what Ollama shows ──


async def test_show(autojump_clock: trio.testing.MockClock):
    shown = b'{"capabilities": ["completion"],\n "model_info": {"general.architecture": "llama"}}'
    server = ScriptedOllama({"/api/show": [whole(shown), whole(shown)]})
    runtime = ollama_of(server)
    assert await runtime.show_raw("m") == shown
    assert await runtime.show_raw("m", verbose=True) == shown
    assert server.bodies("/api/show") == [{"model": "m"}, {"model": "m", "verbose": True}]


async def test_show_of_what_is_not_here(autojump_clock: trio.testing.MockClock):
    status, body = capture("err-404")
    remote = {"remote_host": "https://ollama.com", "remote_model": "x"}
    server = ScriptedOllama({"/api/show": [whole(body, status), whole(remote), whole(b"<html>")]})
    runtime = ollama_of(server)
    for name in ("nope", "stub", "big:cloud", "stub"):
        with pytest.raises(ModelNotFound):
            await runtime.show_raw(name)
    assert [asked["model"] for asked in server.bodies("/api/show")] == ["nope", "stub"]
    assert isinstance(await failure_of(runtime, GenerationRequest("stub", prompt=PROMPT)), ModelNotFound)
    with pytest.raises(UpstreamProtocolError):
        await runtime.show_raw("m")


# ── requests as a whole ──


async def test_what_a_runtime_cannot_say_is_refused_before_anything_is_sent():
    server = ScriptedOllama({})
    tool = Tool("f")
    cannot = GenerationRequest("m", prompt=PROMPT, tools=(tool,), tool_choice="required")
    assert isinstance(await failure_of(ollama_of(server), cannot), InvalidRequest)
    assert isinstance(
        await failure_of(openai_of(server), GenerationRequest("m", prompt=PROMPT, suffix="b")), InvalidRequest
    )
    assert server.requests == []


async def test_a_raw_prompt_goes_to_the_path_for_it(autojump_clock: trio.testing.MockClock):
    server = ScriptedOllama({"/v1/completions": [spoken([delta("a"), finish(), DONE])]})
    await chunks_of(openai_of(server), GenerationRequest("m", prompt=PROMPT, raw=True))
    assert server.bodies("/v1/completions")[0]["prompt"] == PROMPT


async def test_a_refused_ability_is_not_blamed_on_log_probabilities(autojump_clock: trio.testing.MockClock):
    server = ScriptedOllama({"/api/generate": [refused(400, '"m" does not support thinking'), spoken([done()])]})
    runtime = ollama_of(server)
    error = await failure_of(runtime, GenerationRequest("m", prompt=PROMPT, think=True))
    assert (type(error), runtime.counters.without_logprobs) == (InvalidRequest, 0)
    assert error.message.endswith("does not support thinking")
    await chunks_of(runtime, GenerationRequest("m", prompt=PROMPT, keep_alive=0, think=False))
    assert server.bodies("/api/generate")[1]["keep_alive"] == 0


@pytest.mark.parametrize("model", ["lexicon", "steady"])
async def test_models_that_only_answer_in_words(autojump_clock: trio.testing.MockClock, model: str):
    runtime = SyntheticRuntime(virtual_clock, 1) if model == "steady" else EmbeddedRuntime(virtual_clock, pace_tps=0)
    error = await failure_of(runtime, GenerationRequest(model, prompt=PROMPT, format="json"))
    assert (type(error), error.details) == (InvalidRequest, {"field": "format"})
    harmless = GenerationRequest(
        model,
        messages=(Message("system", "s"), Message("user", PROMPT)),
        parameters=Parameters(max_tokens=2, repeat_penalty=1.0),
        think=False,
        keep_alive="5m",
        tools=(Tool("f"),),
        tool_choice="none",
    )
    assert len(await chunks_of(runtime, harmless)) == 2


async def test_the_built_in_models_know_no_penalties():
    asked = GenerationRequest("lexicon", prompt=PROMPT, parameters=Parameters(repeat_penalty=1.1))
    error = await failure_of(EmbeddedRuntime(virtual_clock), asked)
    assert (type(error), error.details) == (InvalidRequest, {"field": "repeat_penalty"})
