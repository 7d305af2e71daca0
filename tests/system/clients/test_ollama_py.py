"""Ollama's own Python client, with nothing but its address changed."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import ollama
import pytest

from tests.system.clients.lens import (
    ANSWER,
    ANSWER_TOKENS,
    BROKEN,
    EMBEDDED,
    MODELS,
    PARAMETERS,
    PIXEL,
    SAID_BEFORE,
    SCHEMA,
    SCRIPTED,
    STEADY,
    TEXTS,
    THOUGHT,
)
from tests.system.process import WATCHDOG_S

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "now", "parameters": PARAMETERS}}
SEEDED = {"seed": 7, "num_predict": 12}
TIMES = {"created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}


@pytest.fixture(scope="module")
def client(lens):
    with ollama.Client(host=lens.url, verify=False) as client:
        yield client


def asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


# ── models ──


def listed(client: ollama.Client) -> list[str]:
    return [model.model for model in client.list().models]


def test_models_of_every_runtime_are_listed_and_shown(client, lens):
    lens.engine.wait_for(lambda: set(MODELS) <= set(listed(client)))  # a runtime may be late once, on a busy machine
    names = listed(client)
    assert len(names) == len(set(names))
    for name in MODELS:
        assert "completion" in (client.show(name).capabilities or ())
    assert client.show(EMBEDDED).modelinfo == {"general.context_length": 512}
    assert client.show("mock:tools").capabilities == ["completion", "tools"]


@pytest.mark.parametrize("model", [EMBEDDED, STEADY])
def test_a_model_is_loaded_seen_and_unloaded(client, model):
    assert client.generate(model, "").done_reason == "load"
    assert model in [loaded.model for loaded in client.ps().models]
    assert client.generate(model, "", keep_alive=0).done_reason == "unload"
    assert model not in [loaded.model for loaded in client.ps().models]


@pytest.mark.parametrize("call", ["show", "chat", "generate", "pull"])
def test_an_unknown_model_is_not_found(client, call):
    with pytest.raises(ollama.ResponseError, match="nope") as caught:
        client.generate("nope", "hi") if call == "generate" else getattr(client, call)("nope")
    assert caught.value.status_code == 404


@pytest.mark.parametrize(("call", "arguments"), [("delete", [STEADY]), ("copy", [STEADY, "mine"]), ("push", [STEADY])])
def test_nobody_changes_what_is_installed(client, lens, call, arguments):
    with pytest.raises(ollama.ResponseError, match="not served here") as caught:
        getattr(client, call)(*arguments)
    assert caught.value.status_code == 403
    lens.engine.wait_for(lambda: STEADY in listed(client))


# ── answers ──


@pytest.mark.parametrize("model", MODELS)
def test_a_chat_is_the_same_in_pieces_and_in_one(client, model):
    whole = client.chat(model, asked("What is a glacier? F"), options=SEEDED)
    pieces = list(client.chat(model, asked("What is a glacier? F"), options=SEEDED, stream=True))
    text = "".join(piece.message.content or "" for piece in pieces)
    assert text == whole.message.content != ""
    assert len(pieces) > 5
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for end in (whole, pieces[-1]):
        assert end.model == model
        assert end.prompt_eval_count
        assert end.eval_count == 12
        assert end.done_reason == "length"
        assert end.total_duration >= (end.eval_duration or 0)  # 0, of tokens that came together, is left out
        assert end.logprobs is None


def test_how_long_an_answer_took_is_told(client):
    """Of more tokens than can be read at once: they cannot all have come together."""
    answer = client.generate(SCRIPTED, "G", options={"num_predict": 1000})
    assert answer.eval_count == 1000
    assert answer.total_duration > answer.eval_duration > 0


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_is_completed(client, model):
    whole = client.generate(model, "What is a glacier? F", options=SEEDED)
    pieces = list(client.generate(model, "What is a glacier? F", options=SEEDED, stream=True))
    assert "".join(piece.response for piece in pieces) == whole.response != ""
    assert (whole.eval_count, whole.done_reason) == (pieces[-1].eval_count, pieces[-1].done_reason) == (12, "length")


@pytest.mark.parametrize("model", [EMBEDDED, STEADY])
def test_the_seed_decides(client, model):
    said = [client.generate(model, "glacier", options={"seed": seed, "num_predict": 12}).response for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


def test_characters_of_many_bytes_and_emoji_come_whole(client):
    pieces = [piece.message.content or "" for piece in client.chat(SCRIPTED, asked("A"), stream=True)]
    assert "".join(pieces) == TEXTS["A"] == client.generate(SCRIPTED, "A").response
    assert not [piece for piece in pieces if "\ufffd" in piece]


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_is_told_apart(client, stream):
    answers = client.chat(SCRIPTED, asked("B"), think=True, stream=stream)
    messages = [answer.message for answer in (answers if stream else [answers])]
    assert "".join(message.thinking or "" for message in messages) == THOUGHT
    assert "".join(message.content or "" for message in messages) == ANSWER


def test_the_thinking_of_ollama_goes_through(client):
    options = {"num_predict": 20}
    thought = client.chat("mock:thinking", asked("hm"), think=True, options=options)
    assert thought.message.thinking
    assert thought.message.content
    assert client.chat("mock:thinking", asked("hm"), think=False, options=options).message.thinking is None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_there_when_asked_for(client, model, stream):
    answers = client.chat(model, asked("F"), logprobs=True, top_logprobs=3, options={"num_predict": 4}, stream=stream)
    found = [entry for answer in (answers if stream else [answers]) for entry in answer.logprobs or ()]
    assert len(found) == 4
    for entry in found:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs == sorted(entry.top_logprobs, key=lambda one: -one.logprob)
    alone = client.generate(model, "F", logprobs=True, options={"num_predict": 2})
    assert [bool(entry.top_logprobs) for entry in alone.logprobs] == [False, False]


@pytest.mark.parametrize("model", MODELS)
def test_stop_strings_end_an_answer_and_are_not_said(client, model):
    full = client.generate(model, "F", options={"seed": 3, "num_predict": 16}).response
    stop = full.split()[3]
    cut = client.generate(model, "F", options={"seed": 3, "num_predict": 16, "stop": ["\x00", stop]})
    assert cut.response == full.partition(stop)[0]
    assert cut.done_reason == "stop"


def test_json_comes_from_who_can(client):
    for wanted in ("json", SCHEMA):
        answer = client.chat(SCRIPTED, asked("C"), format=wanted, options={"temperature": 0})
        assert json.loads(answer.message.content) == {"city": "Oslo", "degrees": 7}


# ── tools ──


@pytest.mark.parametrize(("model", "city"), [("mock:tools", "Oslo"), (SCRIPTED, "Tromsø")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(client, model, city, stream):
    question = asked("How is the weather? D")
    answers = client.chat(model, question, tools=[TOOL], stream=stream)
    messages = [answer.message for answer in (answers if stream else [answers])]
    (call,) = [call for message in messages for call in message.tool_calls or ()]
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": city})
    assert "".join(message.content or "" for message in messages) == ""
    made = next(message for message in messages if message.tool_calls)
    result = {"role": "tool", "tool_name": "get_weather", "tool_call_id": "call_1", "content": "cold F"}
    after = client.chat(model, [*question, made, result])
    assert after.message.content == TEXTS["F"] if model == SCRIPTED else after.message.content
    assert not after.message.tool_calls


def test_a_function_of_python_is_a_tool(client):
    def get_weather(city: str) -> str:
        """The weather.

        Args:
            city: where
        """
        return city

    answer = client.chat("mock:tools", asked("How is the weather?"), tools=[TOOL])
    assert answer.message.tool_calls[0].function.arguments == {"city": "Oslo"}


# ── refusals ──


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("format", {"format": "json"}),
        ("format", {"format": SCHEMA}),
        ("tools", {"tools": [TOOL]}),
        ("think", {"think": True}),
        ("images", {"messages": [{"role": "user", "content": "what is this?", "images": [PIXEL]}]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_built_in_models_cannot_do_is_refused_by_name(client, field, more, stream):
    with pytest.raises(ollama.ResponseError, match=rf"^{field}: .*leave it out") as caught:
        list(client.chat(**{"model": EMBEDDED, "messages": asked("hi"), "stream": stream} | more))
    assert caught.value.status_code == 400


def test_embeddings_are_the_runtimes_own(client, lens):
    with ollama.Client(host=lens.mock_url, verify=False) as direct:
        for ask in (
            lambda one: one.embed(STEADY, ["river and sea", "prices"]).embeddings,
            lambda one: one.embed(STEADY, "river", dimensions=8, keep_alive="1m").embeddings,
            lambda one: [one.embeddings(STEADY, "river").embedding],
        ):
            ours, own = ask(client), ask(direct)
            assert [list(vector) for vector in ours] == [pytest.approx(list(vector)) for vector in own]
            assert all(len(vector) in (8, 64) for vector in ours)


@pytest.mark.parametrize(("model", "words"), [(EMBEDDED, "makes no embeddings"), (SCRIPTED, "not support embeddings")])
def test_embeddings_are_refused_in_words(client, model, words):
    for call in (client.embed, client.embeddings):
        with pytest.raises(ollama.ResponseError, match=words) as caught:
            call(model, "a text")
        assert caught.value.status_code == 400


def test_the_words_of_ollama_stay_its_own(client):
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(STEADY, asked("hi"), think=True)
    assert (caught.value.status_code, caught.value.error) == (400, '"mock:steady" does not support thinking')


@pytest.mark.parametrize("model", BROKEN)
def test_an_answer_that_breaks_off_raises(client, model):
    said = []
    with pytest.raises(ollama.ResponseError, match=r"broke|cannot be read"):
        for answer in client.chat(model, asked("hi"), stream=True):
            assert not answer.done
            said.append(answer.message.content)
    assert len(said) >= SAID_BEFORE
    with pytest.raises(ollama.ResponseError, match=r"broke|cannot be read") as caught:
        client.chat(model, asked("hi"))
    assert caught.value.status_code == 502


# ── the one thing to change ──


def test_the_environment_is_all_it_takes(lens):
    """In a program of its own: the client reads its address when it is imported."""
    program = f"import ollama; print(ollama.generate({STEADY!r}, 'hi').eval_count)"
    env = {"OLLAMA_HOST": f"127.0.0.1:{lens.engine.port()}", "NO_PROXY": "127.0.0.1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=WATCHDOG_S)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == ANSWER_TOKENS


# ── byte for byte ──


def test_in_passive_mode_the_reply_is_the_runtimes_own(lens):
    """The scripted Ollama says the same twice, but for its times."""
    asking = {"model": STEADY, "messages": asked("hi"), "options": SEEDED, "logprobs": True, "stream": True}
    with ollama.Client(host=lens.mock_url, verify=False) as direct:
        expected = [answer.model_dump(exclude=TIMES) for answer in direct.chat(**asking)]
    with ollama.Client(host=lens.url, verify=False, headers={"x-wf-lens": "passive"}) as client:
        assert [answer.model_dump(exclude=TIMES) for answer in client.chat(**asking)] == expected
        with pytest.raises(ollama.ResponseError, match="passive needs a runtime that speaks ollama"):
            client.chat(EMBEDDED, asked("hi"))


def test_log_probabilities_that_the_runtime_refuses_are_refused(client):
    """llama.cpp gives none beside tools, and a client that wants some is told so."""
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="logprobs is not supported with tools") as caught:
            list(client.chat(SCRIPTED, asked("D"), tools=[TOOL], logprobs=True, stream=stream))
        assert caught.value.status_code == 400
    assert client.chat(SCRIPTED, asked("D"), tools=[TOOL]).message.tool_calls  # nobody asked


def test_a_model_that_gives_no_log_probabilities_cannot_be_asked_for_them_in_other_words(lens):
    """In its own words Ollama passes over the question; a reply made by us does not."""
    with httpx.Client(base_url=lens.url, trust_env=False, verify=False, timeout=WATCHDOG_S) as http:
        body = {"model": "mock:nologprobs", "messages": asked("hi"), "max_tokens": 3, "logprobs": True}
        answer = http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")


def test_keep_alive_0_takes_a_built_in_model_out_of_memory(client, lens):
    def in_memory():
        return [model.model for model in client.ps().models]

    client.generate(EMBEDDED, "hi", options={"num_predict": 1}, keep_alive="5m")
    assert EMBEDDED in in_memory()
    client.generate(EMBEDDED, "hi", options={"num_predict": 1}, keep_alive=0)
    lens.engine.wait_for(lambda: EMBEDDED not in in_memory())


def test_the_beginning_of_an_answer_is_gone_on_with(client):
    """What a chat ends with is not asked again but continued, by the built-in models too."""
    options = {"temperature": 0, "num_predict": 6}
    whole = client.chat(EMBEDDED, asked("glacier"), options=options | {"num_predict": 12}).message.content
    first = client.chat(EMBEDDED, asked("glacier"), options=options).message.content
    turns = [*asked("glacier"), {"role": "assistant", "content": first}]
    rest = client.chat(EMBEDDED, turns, options=options)
    assert first + rest.message.content == whole
