"""`/chat/completions` and `/generate` of a service: the shapes of their document, whole and streamed, and refusals."""

from __future__ import annotations

import re

import msgspec
import pytest
import trio

from engine.domain.errors import UpstreamProtocolError
from engine.domain.generation import EndReason, Origin
from engine.settings import LensSettings, Settings
from tests.fakes.api import ndjson
from tests.fakes.runtime import End, Fail, Say, words
from tests.web.services.running import (
    CLASSIFIER,
    LLAMA,
    TINY,
    Says,
    answering,
    running_service,
    scripted,
    with_service,
)

CHAT = {"model": "llama3.1:8b", "messages": [{"role": "user", "content": "What is 2+2?"}], "stream": False}
GENERATE = {"model": "llama3.1:8b", "prompt": "What is AI?", "stream": False, "options": {"num_predict": 500}}
FOUR = scripted(Say("It is "), Say("four."), End())


def frames(data: bytes):
    *blocks, rest = data.split(b"\n\n")
    assert rest == b""
    return [block.removeprefix(b"data: ") for block in blocks if not block.startswith(b":")]


async def test_a_chat_in_one_body(autojump_clock):
    async with running_service(make_runtime=FOUR) as api:
        answer = await api.post("/chat/completions", CHAT)
        body = answer.json
        assert answer.status == 200
        assert re.fullmatch("chat-[0-9a-f]+", body["id"])
        assert (body["object"], body["model"]) == ("chat.completion", "llama3.1:8b")
        assert isinstance(body["created"], int)
        [choice] = body["choices"]
        assert (choice["index"], choice["finish_reason"]) == (0, "stop")
        assert choice["message"] == {"role": "assistant", "content": "It is four."}
        usage = body["usage"]
        assert set(usage) == {"prompt_tokens", "completion_tokens", "total_tokens"}
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert answer.headers["x-wf-model"] == "llama3.1:8b"
        assert "x-wf-fallback" not in answer.headers


async def test_words_that_look_like_an_id_stay_as_they_are(autojump_clock):
    said = '{"id":"chatcmpl-1"} chatcmpl-'
    async with running_service(make_runtime=scripted(Say(said), End())) as api:
        body = (await api.post("/chat/completions", CHAT)).json
        assert body["choices"][0]["message"]["content"] == said


@pytest.mark.parametrize(
    ("headers", "agent"),
    [
        ({"user-agent": "curl/8.5.0"}, "llm_llama31_8b"),
        ({"x-wf-agent": "mine"}, "mine"),
        ({"x-wf-agent": "?"}, "llm_llama31_8b"),
    ],
)
async def test_what_is_asked_counts_for_the_service(autojump_clock, headers, agent):
    async with running_service(make_runtime=FOUR) as api:
        for path, asked in (("/chat/completions", CHAT), ("/generate", GENERATE)):
            assert (await api.post(path, asked, **headers)).status == 200
        await trio.sleep(0.1)  # an answer does not wait for being counted
        report = await api.engine.ledger.report("agent")
        assert [(group.key, group.sums.requests, group.sums.cost_nusd) for group in report.groups] == [(agent, 2, 0)]


async def test_a_chat_as_a_stream(autojump_clock):
    async with running_service(make_runtime=FOUR) as api:
        answer = await api.post("/chat/completions", CHAT | {"stream": True})
        *chunks, done = frames(answer.body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert done == b"[DONE]"
        parsed = [msgspec.json.decode(chunk) for chunk in chunks]
        [answer_id] = {one["id"] for one in parsed}
        assert re.fullmatch("chat-[0-9a-f]+", answer_id)
        assert {chunk["object"] for chunk in parsed} == {"chat.completion.chunk"}
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in parsed) == "It is four."
        assert parsed[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_generate_in_one_body_has_every_count(autojump_clock):
    async with running_service(make_runtime=scripted(Say("It "), Say("is"), End(), load_s=2.0)) as api:
        answer = await api.post("/generate", GENERATE)
        body = answer.json
        assert answer.status == 200
        assert (body["model"], body["response"], body["done"]) == ("llama3.1:8b", "It is", True)
        assert body["created_at"].endswith("Z")
        assert body["load_duration"] == 2_000_000_000
        assert body["total_duration"] >= 2_100_000_000
        assert body["eval_count"] == 2


async def test_what_was_not_measured_is_null(autojump_clock):
    """Nobody said how long the prompt was, and loading took no time: that is 0, and not unknown."""
    make_runtime = answering(lambda _: [Says("x")], prompt_tokens=None)
    async with running_service(make_runtime=make_runtime) as api:
        await api.post("/generate", GENERATE)
        body = (await api.post("/generate", GENERATE)).json
        assert body["prompt_eval_count"] is None
        assert body["load_duration"] == 0
        assert body["eval_duration"] == 0


async def test_an_answer_without_a_token_has_no_times_of_one(autojump_clock):
    async with running_service(make_runtime=answering(lambda _: [])) as api:
        body = (await api.post("/generate", GENERATE)).json
        assert (body["response"], body["eval_count"]) == ("", 0)
        assert (body["prompt_eval_duration"], body["eval_duration"]) == (None, None)


async def test_a_generate_as_a_stream_which_is_the_default(autojump_clock):
    async with running_service(make_runtime=FOUR) as api:
        answer = await api.post("/generate", {"prompt": "What is 2+2?"})
        *lines, last = ndjson(answer.body)
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        assert "".join(line["response"] for line in lines) == "It is four."
        assert all(line["done"] is False and "eval_count" not in line for line in lines)
        assert (last["done"], last["response"], last["eval_count"]) == (True, "", 2)
        assert {"total_duration", "load_duration", "prompt_eval_count"} <= set(last)


@pytest.mark.parametrize("model", ["llama3.1:8b", "llama31_8b", "llm_llama31_8b", None])
async def test_names_that_a_caller_may_use(autojump_clock, model):
    async with running_service(make_runtime=FOUR) as api:
        answer = await api.post("/chat/completions", CHAT | {"model": model})
        assert (answer.status, answer.json["model"]) == (200, "llama3.1:8b")


async def test_the_model_may_be_left_out(autojump_clock):
    async with running_service(TINY, FOUR) as api:
        chat = await api.post("/chat/completions", {"messages": CHAT["messages"]})
        generate = await api.post("/generate", {"prompt": "x", "stream": False})
        assert (chat.json["model"], generate.json["model"]) == ("tinyllama:1.1b", "tinyllama:1.1b")


@pytest.mark.parametrize("path", ["/chat/completions", "/generate"])
async def test_the_classifier_completes_too(autojump_clock, path):
    async with running_service(CLASSIFIER, FOUR) as api:
        answer = await api.post(path, (CHAT if path != "/generate" else GENERATE) | {"model": "tlc_classifier"})
        assert (answer.status, answer.json["model"]) == (200, "tinyllama:1.1b")
        assert api.slice.runtime.requests[-1].model == "tinyllama:1.1b"


async def test_parameters_reach_the_model(autojump_clock):
    async with running_service(make_runtime=FOUR) as api:
        await api.post("/chat/completions", CHAT | {"temperature": 0.7, "max_tokens": 500})
        await api.post("/generate", GENERATE | {"options": {"temperature": 0.2, "num_predict": 50}})
        chat, generate = (request.parameters for request in api.slice.runtime.requests)
        assert (chat.temperature, chat.max_tokens) == (0.7, 500)
        assert (generate.temperature, generate.max_tokens) == (0.2, 50)


async def test_a_session_of_a_service_is_seen_on_the_dashboard(autojump_clock):
    async with running_service(make_runtime=FOUR) as api:
        client = api.slice.client()
        answer = await api.post("/chat/completions", CHAT)
        await trio.sleep(1)
        [start] = client.events("experience.session_start")
        assert start["session_id"] == answer.headers["x-wf-session"]
        assert start["payload"]["origin"] == "service"
        assert client.text() == "It is four."
        assert client.events("energy.update")


@pytest.mark.parametrize("path", ["/chat/completions", "/generate"])
async def test_leaving_stops_the_model(autojump_clock, path):
    async with running_service(make_runtime=scripted(*words(1000))) as api:
        async with api.open("POST", path, (CHAT if path != "/generate" else GENERATE) | {"stream": True}) as leaving:
            await leaving.receive()
            session = api.slice.core.sessions.running()[0]
            assert session.asked.origin is Origin.SERVICE
        await session.closed.wait()
        assert session.reason is EndReason.ABORTED
        assert api.slice.runtime.closed == 1


REFUSED = [
    ("/chat/completions", b"{", "body"),
    ("/chat/completions", b"[1]", "body"),
    ("/chat/completions", {**CHAT, "model": "gpt-4"}, "model"),
    ("/chat/completions", {**CHAT, "model": 7}, "model"),
    ("/chat/completions", {**CHAT, "temperature": 3}, "temperature"),
    ("/chat/completions", {**CHAT, "max_tokens": 0}, "max_tokens"),
    ("/chat/completions", {**CHAT, "messages": []}, "messages"),
    ("/chat/completions", {"model": "llama3.1:8b"}, "messages"),
    ("/chat/completions", {**CHAT, "messages": [{"role": "poet", "content": "x"}]}, "messages[0].role"),
    ("/generate", {**GENERATE, "model": "gpt-4"}, "model"),
    ("/generate", {"model": "llama3.1:8b", "stream": False}, "prompt"),
    ("/generate", {**GENERATE, "prompt": 3}, "prompt"),
    ("/generate", {**GENERATE, "options": {"temperature": 9}}, "options.temperature"),
    ("/generate", {**GENERATE, "options": {"num_predict": 0}}, "options.num_predict"),
    ("/generate", {**GENERATE, "options": {"temperature": "hot"}}, "options.temperature"),
    ("/generate", {**GENERATE, "stream": "yes"}, "stream"),
]


@pytest.mark.parametrize(("path", "body", "field"), REFUSED, ids=str)
async def test_bad_input_is_told_with_its_field_in_the_native_shape(autojump_clock, path, body, field):
    async with running_service(make_runtime=FOUR) as api:
        answer = await api.post(path, body)
        assert answer.status == 400
        assert answer.error["code"] == "VALIDATION_ERROR"
        assert answer.error["details"]["field"] == field
        assert api.slice.runtime.opened == 0


async def test_no_refusal_repeats_what_was_asked(autojump_clock):
    async with running_service(make_runtime=FOUR) as api:
        for body in ({**CHAT, "messages": "the secret"}, {**CHAT, "model": "the secret"}):
            assert b"secret" not in (await api.post("/chat/completions", body)).body


async def test_a_runtime_that_fails_is_told_before_the_answer_and_within_it(autojump_clock):
    failing = scripted(Say("It "), Fail(UpstreamProtocolError("the runtime broke")))
    async with running_service(make_runtime=failing) as api:
        whole = await api.post("/chat/completions", CHAT)
        assert (whole.status, whole.error["code"]) == (502, "UPSTREAM_PROTOCOL_ERROR")
        streamed = await api.post("/chat/completions", CHAT | {"stream": True})
        assert streamed.status == 200
        assert "the runtime broke" in msgspec.json.decode(frames(streamed.body)[-1])["error"]["message"]
        lines = ndjson((await api.post("/generate", GENERATE | {"stream": True})).body)
        assert lines[-1] == {"error": "the runtime broke"}


async def test_other_paths_and_methods(autojump_clock):
    async with running_service(make_runtime=FOUR) as api:
        missing, wrong = await api.get("/classify_domain"), await api.get("/generate")
        assert (missing.status, missing.error["code"]) == (404, "NOT_FOUND")
        assert "/info" in missing.error["message"]
        assert (wrong.status, wrong.error["code"]) == (405, "METHOD_NOT_ALLOWED")


async def test_the_passive_lens_and_its_aliases_are_not_the_services(autojump_clock):
    settings = Settings(lens=LensSettings(mode="passive", aliases={"llama3.1:8b": "tinyllama:1.1b"}))
    async with with_service(LLAMA, FOUR, settings=settings) as (api, _):
        answer = await api.post("/chat/completions", CHAT)
        assert (answer.status, answer.headers["x-wf-model"]) == (200, "llama3.1:8b")
