"""Anthropic's own Python client, with nothing but its address changed."""

from __future__ import annotations

import json

import anthropic
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

TOOL = {"name": "get_weather", "description": "now", "input_schema": PARAMETERS}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
FORMAT = {"format": {"type": "json_schema", "schema": SCHEMA}}
THINKING = {"type": "enabled", "budget_tokens": 1024}
CITIES = {"mock:tools": "Oslo", SCRIPTED: "Tromsø"}


@pytest.fixture(scope="module")
def client(lens):
    with anthropic.Anthropic(base_url=lens.url, api_key="unused", max_retries=0) as client:
        yield client


def body(model: str, text: str = "What is a glacier? F", **more) -> dict:
    return {"model": model, "max_tokens": 12, "messages": asked(text)} | more


def asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def texts(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# ── answers ──


@pytest.mark.parametrize("model", MODELS)
def test_a_message_is_whole_with_its_counts(client, model):
    message = client.messages.create(**body(model))
    assert (message.model, message.role, message.stop_reason) == (model, "assistant", "max_tokens")
    assert texts(message)
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens == 12
    assert client.messages.count_tokens(model=model, messages=asked("What is a glacier? F")).input_tokens == (
        message.usage.input_tokens
    )


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_is_put_together_by_the_client(client, model):
    with client.messages.stream(**body(model)) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 5
    assert texts(final) == "".join(pieces)
    assert final.stop_reason == "max_tokens"
    assert final.usage.input_tokens > 0
    assert final.usage.output_tokens == 12


@pytest.mark.parametrize("model", MODELS)
def test_the_events_are_those_of_the_api_in_their_order(client, model):
    kinds = [event.type for event in client.messages.create(**body(model), stream=True)]
    assert [kind for n, kind in enumerate(kinds) if n == 0 or kinds[n - 1] != kind] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_characters_of_many_bytes_and_emoji_come_whole(client):
    assert texts(client.messages.create(**body(SCRIPTED, "A", max_tokens=99))) == TEXTS["A"]
    with client.messages.stream(**body(SCRIPTED, "A", max_tokens=99)) as stream:
        assert stream.get_final_text() == TEXTS["A"]
        assert stream.get_final_message().stop_reason == "end_turn"


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_is_a_block_before_the_text(client, stream):
    asking = body(SCRIPTED, "B", max_tokens=2048, thinking=THINKING)
    if stream:
        with client.messages.stream(**asking) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**asking)
    thinking, text = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", THOUGHT)
    assert (text.type, text.text) == ("text", ANSWER)
    turns = [*asked("B"), {"role": "assistant", "content": message.content}, *asked("F")]
    assert texts(client.messages.create(**body(SCRIPTED, max_tokens=99, messages=turns))) == TEXTS["F"]


def test_the_thinking_of_ollama_is_told_in_this_dialect(client):
    kinds = [block.type for block in client.messages.create(**body("mock:thinking", max_tokens=20)).content]
    assert kinds == ["thinking", "text"]
    plain = client.messages.create(**body("mock:thinking", thinking={"type": "disabled"}))
    assert [block.type for block in plain.content] == ["text"]


@pytest.mark.parametrize("model", MODELS)
def test_stop_strings_end_an_answer_and_are_not_said(client, model):
    full = texts(client.messages.create(**body(model, extra_body={"temperature": 0})))
    stop = full.split()[3]
    cut = client.messages.create(**body(model, extra_body={"temperature": 0}, stop_sequences=[stop]))
    assert texts(cut) == full.partition(stop)[0]
    expected = ("stop_sequence", stop) if model == EMBEDDED else ("end_turn", None)  # who says which end it was
    assert (cut.stop_reason, cut.stop_sequence) == expected


def test_json_comes_from_who_can(client):
    message = client.messages.create(**body(SCRIPTED, "C", max_tokens=99, output_config=FORMAT))
    assert json.loads(texts(message)) == {"city": "Oslo", "degrees": 7}


# ── tools ──


@pytest.mark.parametrize("model", CITIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(client, model, stream):
    asking = body(model, "How is the weather? D", max_tokens=99, tools=[TOOL])
    if stream:
        with client.messages.stream(**asking) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**asking)
    assert message.stop_reason == "tool_use"
    (call,) = message.content
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": CITIES[model]})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "cold F"}
    turns = [
        *asking["messages"],
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    after = client.messages.create(**body(model, max_tokens=99, messages=turns))
    assert after.stop_reason in ("end_turn", "max_tokens")
    assert texts(after) == TEXTS["F"] if model == SCRIPTED else texts(after)


# ── refusals ──


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(client, stream):
    with pytest.raises(anthropic.NotFoundError, match="no model nope") as caught:
        client.messages.create(**body("nope"), stream=stream)
    assert caught.value.body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("format", {"output_config": FORMAT}),
        ("tools", {"tools": [TOOL]}),
        ("think", {"thinking": THINKING, "max_tokens": 2048}),
        ("images", {"messages": [{"role": "user", "content": [IMAGE]}]}),
        ("max_tokens", {"max_tokens": -1}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_built_in_models_cannot_do_is_refused_by_name(client, field, more, stream):
    with pytest.raises(anthropic.BadRequestError, match=field) as caught:
        client.messages.create(**body(EMBEDDED, **more), stream=stream)
    assert caught.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("model", BROKEN)
def test_an_answer_that_breaks_off_raises(client, model):
    said = []
    with pytest.raises(anthropic.APIStatusError, match=r"broke|cannot be read"):
        with client.messages.stream(**body(model)) as stream:
            said.extend(stream.text_stream)
    assert len(said) >= SAID_BEFORE
    with pytest.raises(anthropic.InternalServerError, match=r"broke|cannot be read") as caught:
        client.messages.create(**body(model))
    assert caught.value.status_code == 502


# ── the one thing to change ──


@pytest.mark.parametrize("key", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
def test_the_environment_is_all_it_takes(lens, monkeypatch, key):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", lens.url)
    monkeypatch.setenv(key, "unused")
    with anthropic.Anthropic() as client:
        message = client.messages.create(**body(STEADY, max_tokens=ANSWER_TOKENS))
    assert message.usage.output_tokens == ANSWER_TOKENS
