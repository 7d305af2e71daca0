"""What a request becomes on the wire of each dialect, and what is refused by name instead of left out."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest
from engine.domain.generation import GenerationRequest, Message, Parameters, Tool, ToolCall
from engine.domain.runtime import EmbedRequest
from transport.wire import ollama_requests, openai_requests
from transport.wire.ollama_requests import embed_body, load_body, request_path, show_body
from transport.wire.requests import INPUTS_MAX, refuse_all_but_words, refuse_penalties, turns

PNG = "iVBORw0KGgoAAAANSUhEUg=="
WEATHER = Tool("get_weather", "of a city", '{"type":"object","properties":{"city":{"type":"string"}}}')
CLOCK = Tool("get_time")
BARE = GenerationRequest("m", prompt="hello")
ALL = Parameters(0.0, 0.5, 1, 9, 0, ("\n",), 0.1, -1.0, 2.0, 1.1)
SCHEMA = '{"type":"object","required":["b","a"]}'


def to_ollama(request: GenerationRequest, **options: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(ollama_requests.request_body(request, **options))
    return decoded


def to_openai(request: GenerationRequest, **options: bool) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(openai_requests.request_body(request, **options))
    return decoded


def asked(**values: Any) -> GenerationRequest:
    return attrs.evolve(BARE, **values)


def field_of(caught: pytest.ExceptionInfo[InvalidRequest]) -> str:
    field: str = caught.value.details["field"]
    assert caught.value.message.startswith(field)
    return field


# ── Ollama ──


def test_ollama_requests_hold_what_was_given_and_no_more():
    plain = {"model": "m", "stream": True, "prompt": "hello"}
    assert request_path(BARE) == "/api/generate"
    assert to_ollama(BARE) == plain | {"logprobs": True, "top_logprobs": 10}
    assert to_ollama(BARE, logprobs=False) == plain
    assert to_ollama(BARE, truncate=False)["truncate"] is False
    full = GenerationRequest(
        "m",
        messages=(Message("system", "be brief"), Message("user", "hé")),
        parameters=ALL,
        top_logprobs=99,
        runner_options={"num_ctx": 512},
    )
    assert request_path(full) == "/api/chat"
    assert to_ollama(full) == {
        "model": "m",
        "stream": True,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hé"}],
        "logprobs": True,
        "top_logprobs": 20,
        "options": {
            "temperature": 0.0,
            "top_p": 0.5,
            "top_k": 1,
            "num_predict": 9,
            "seed": 0,
            "stop": ["\n"],
            "min_p": 0.1,
            "presence_penalty": -1.0,
            "frequency_penalty": 2.0,
            "repeat_penalty": 1.1,
            "num_ctx": 512,
        },
    }
    assert json.loads(load_body("m", 0)) == {"model": "m", "stream": False, "keep_alive": 0}
    assert "prompt" not in json.loads(load_body("m"))
    assert json.loads(show_body("m", verbose=True)) == {"model": "m", "verbose": True}
    assert json.loads(show_body("m")) == {"model": "m"}


def test_what_stands_beside_a_prompt():
    beside = {"system": "s", "suffix": "}", "images": ("eA==",), "raw": True, "think": "low", "format": "json"}
    body = to_ollama(asked(**beside))
    assert {name: body[name] for name in beside} == beside | {"images": ["eA=="]}
    assert to_ollama(asked(think=False))["think"] is False
    assert not {*beside} & {*to_ollama(BARE)}


def test_a_keep_alive_of_its_own_wins():
    assert to_ollama(BARE, keep_alive="30m")["keep_alive"] == "30m"
    assert to_ollama(asked(keep_alive=0), keep_alive="30m")["keep_alive"] == 0
    assert json.loads(embed_body(EmbedRequest("m", ("a",), keep_alive=0), keep_alive="30m"))["keep_alive"] == 0
    assert json.loads(embed_body(EmbedRequest("m", ("a",)), keep_alive=-1))["keep_alive"] == -1


def test_a_schema_keeps_the_order_of_its_keys():
    body = ollama_requests.request_body(asked(format=SCHEMA))
    assert b'"format":' + SCHEMA.encode() in body
    assert SCHEMA.encode() in openai_requests.request_body(asked(format=SCHEMA))


HISTORY = (
    Message("user", "and now?", images=(PNG,)),
    Message("assistant", "", thinking="call it", tool_calls=(ToolCall("get_weather", '{"city":"Oslo"}'),)),
    Message("tool", "rain", tool_name="get_weather"),
)


def test_a_chat_with_tools_for_ollama():
    body = to_ollama(GenerationRequest("m", messages=HISTORY, tools=(WEATHER, CLOCK), think=True), logprobs=False)
    call = {"id": "call_0", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    assert body["messages"] == [
        {"role": "user", "content": "and now?", "images": [PNG]},
        {"role": "assistant", "content": "", "thinking": "call it", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_name": "get_weather", "tool_call_id": "call_0"},
    ]
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "of a city",
                "parameters": json.loads(WEATHER.parameters),
            },
        },
        {"type": "function", "function": {"name": "get_time", "parameters": {}}},
    ]
    assert body["think"] is True


def test_a_prompt_with_tools_is_a_chat():
    request = asked(tools=(CLOCK,), system="s", images=(PNG,))
    assert request_path(request) == "/api/chat"
    user = {"role": "user", "content": "hello", "images": [PNG]}
    assert to_ollama(request)["messages"] == [{"role": "system", "content": "s"}, user]
    without = attrs.evolve(request, tool_choice="none")
    assert (request_path(without), "tools" in to_ollama(without)) == ("/api/generate", False)


@pytest.mark.parametrize("choice", ["required", "get_time"])
def test_ollama_cannot_be_made_to_call_a_tool(choice: str):
    with pytest.raises(InvalidRequest) as caught:
        to_ollama(asked(tools=(CLOCK,), tool_choice=choice))
    assert field_of(caught) == "tool_choice"


# ── OpenAI ──


def test_openai_requests_hold_what_was_given_and_no_more():
    plain = {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert to_openai(BARE) == plain | {"logprobs": True, "top_logprobs": 10}
    assert to_openai(BARE, logprobs=False) == plain
    full = GenerationRequest(
        "m",
        messages=(Message("system", "be brief"), Message("user", "hé")),
        parameters=ALL,
        top_logprobs=99,
        keep_alive="30m",
    )
    assert to_openai(full) == plain | {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hé"}],
        "logprobs": True,
        "top_logprobs": 20,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 1,
        "max_tokens": 9,
        "seed": 0,
        "stop": ["\n"],
        "min_p": 0.1,
        "presence_penalty": -1.0,
        "frequency_penalty": 2.0,
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
    }


def test_a_chat_with_tools_for_openai():
    body = to_openai(GenerationRequest("m", messages=HISTORY, tools=(WEATHER,)))
    function = {"name": "get_weather", "arguments": '{"city":"Oslo"}'}
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "and now?"}, image]},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "call it",
            "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call_0"},
    ]
    assert body["tools"][0]["function"]["name"] == "get_weather"
    assert "tool_choice" not in body
    assert to_openai(asked(prompt="", images=(PNG,)))["messages"][0]["content"] == [image]


@pytest.mark.parametrize(
    ("choice", "told", "offered"),
    [
        ("auto", None, ["get_weather", "get_time"]),
        ("none", None, []),
        ("required", "required", ["get_weather", "get_time"]),
        ("get_time", "required", ["get_time"]),
    ],
)
def test_choices_of_a_tool(choice: str, told: str | None, offered: list[str]):
    body = to_openai(asked(tools=(WEATHER, CLOCK), tool_choice=choice))
    assert body.get("tool_choice") == told
    assert [tool["function"]["name"] for tool in body.get("tools", [])] == offered


def test_thinking_for_openai():
    assert to_openai(asked(think=False))["chat_template_kwargs"] == {"enable_thinking": False}
    body = to_openai(asked(think="low"))
    assert body["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "low"}
    assert body["reasoning_effort"] == "low"
    assert not {"chat_template_kwargs", "reasoning_effort"} & {*to_openai(BARE)}


def test_formats_for_openai():
    assert to_openai(asked(format="json"))["response_format"] == {"type": "json_object"}
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(SCHEMA)}}
    assert to_openai(asked(format=SCHEMA))["response_format"] == schema


def test_only_a_raw_prompt_is_continued():
    assert openai_requests.request_path(BARE) == "/v1/chat/completions"
    assert openai_requests.request_path(asked(raw=True)) == "/v1/completions"
    body = to_openai(asked(raw=True, think=False, parameters=Parameters(max_tokens=3)))
    assert body == {
        "model": "m",
        "prompt": "hello",
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": 10,
        "max_tokens": 3,
    }


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"suffix": ""}, "suffix"),
        ({"images": ("eA==",)}, "images"),
        ({"raw": True, "system": "s"}, "system"),
        ({"raw": True, "images": (PNG,)}, "images"),
        ({"raw": True, "tools": (CLOCK,)}, "tools"),
        ({"raw": True, "think": "low"}, "think"),
        ({"raw": True, "format": "json"}, "format"),
        ({"prompt": None, "messages": (Message("tool", "rain"),)}, "messages"),
    ],
)
def test_what_openai_has_no_word_for(values: dict[str, Any], field: str):
    with pytest.raises(InvalidRequest) as caught:
        to_openai(asked(**values))
    assert field_of(caught) == field


# ── both ──


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"format": "yes"}, "format"),
        ({"format": "[]"}, "format"),
        ({"format": '{"x":' + "[" * 200_000}, "format"),
        ({"tools": (Tool("f", parameters="{"),)}, "tools.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "nobody", "tools": (CLOCK,)}, "tool_choice"),
        ({"messages": (Message("assistant", "", tool_calls=(ToolCall("f", "5"),)),)}, "messages.tool_calls.arguments"),
        ({"messages": (Message("user", "a"),), "raw": True}, "raw|messages"),
        ({"messages": (Message("user", "a"),), "suffix": "b"}, "suffix"),
        ({"messages": (Message("user", "a"),), "images": (PNG,)}, "images"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(values: dict[str, Any], field: str):
    request = asked(**{"prompt": None if "messages" in values else "hello"} | values)
    for translate in (to_ollama, to_openai):
        with pytest.raises(InvalidRequest) as caught:
            translate(request)
        assert field_of(caught) in field.split("|")


def test_tool_messages_find_their_calls():
    calls = (ToolCall("a", "{}", "x"), ToolCall("b", "{}"), ToolCall("a", "{}"))
    messages = (
        Message("assistant", "", tool_calls=calls),
        Message("tool", "1", tool_name="a"),
        Message("tool", "2", tool_name="a"),
        Message("tool", "3"),
        Message("tool", "4", tool_call_id="x"),
        Message("tool", "5", tool_call_id="gone"),
        Message("tool", "6", tool_name="nobody"),
    )
    paired = turns(GenerationRequest("m", messages=messages))
    assert [(message.tool_call_id, message.tool_name) for message in paired[1:]] == [
        ("x", "a"),
        ("call_2", "a"),
        ("call_1", "b"),
        ("x", "a"),
        ("gone", ""),
        ("", "nobody"),
    ]


texts = st.text(st.characters(codec="utf-8"), max_size=8)
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    texts,
    tool_calls=st.lists(st.builds(ToolCall, texts, st.just('{"n":1}'), texts), max_size=2).map(tuple),
    tool_call_id=texts,
    tool_name=texts,
)


@given(st.lists(messages, max_size=6).map(tuple))
def test_nothing_that_was_said_is_lost(said: tuple[Message, ...]):
    told = turns(GenerationRequest("m", messages=said or (Message("user", ""),)))
    assert [(m.role, m.content, m.thinking) for m in told] == [
        (m.role, m.content, m.thinking) for m in said or (Message("user", ""),)
    ]
    for before, after in zip(said, told, strict=False):
        assert [(call.name, call.arguments) for call in after.tool_calls] == [
            (call.name, call.arguments) for call in before.tool_calls
        ]
        assert all(call.id for call in after.tool_calls)
        assert before.tool_call_id in ("", after.tool_call_id)
        assert before.tool_name in ("", after.tool_name)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"tools": (CLOCK,)}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"images": (PNG,)}, "images"),
        ({"messages": (Message("user", "a", images=(PNG,)),)}, "images"),
        ({"think": True}, "think"),
        ({"think": "low"}, "think"),
        ({"format": "json"}, "format"),
        ({"suffix": ""}, "suffix"),
        ({"raw": True}, "raw"),
    ],
)
def test_models_that_only_answer_in_words(values: dict[str, Any], field: str):
    with pytest.raises(InvalidRequest) as caught:
        refuse_all_but_words(asked(**values), "embedded")
    assert field_of(caught) == field
    harmless = {"think": False, "system": "s", "keep_alive": 0, "tools": (CLOCK,), "tool_choice": "none"}
    refuse_all_but_words(asked(**harmless), "embedded")


def test_penalties_that_change_nothing_are_no_matter():
    refuse_penalties(Parameters(min_p=0.0, presence_penalty=0.0, frequency_penalty=0, repeat_penalty=1.0), "embedded")
    for field in ("min_p", "presence_penalty", "frequency_penalty", "repeat_penalty"):
        with pytest.raises(InvalidRequest) as caught:
            refuse_penalties(Parameters(**{field: 0.5}), "embedded")  # type: ignore[arg-type]
        assert field_of(caught) == field


# ── embeddings ──


def test_requests_for_embeddings():
    plain, full = EmbedRequest("m", ("a", "b")), EmbedRequest("m", ("a",), truncate=False, dimensions=3)
    assert json.loads(embed_body(plain)) == {"model": "m", "input": ["a", "b"], "truncate": True}
    assert json.loads(embed_body(full)) == {"model": "m", "input": ["a"], "truncate": False, "dimensions": 3}
    assert json.loads(openai_requests.embed_body(plain)) == {
        "model": "m",
        "input": ["a", "b"],
        "encoding_format": "float",
    }
    assert json.loads(openai_requests.embed_body(full))["dimensions"] == 3
    for inputs in ((), ("a",) * (INPUTS_MAX + 1)):
        for translate in (embed_body, openai_requests.embed_body):
            with pytest.raises(InvalidRequest) as caught:
                translate(EmbedRequest("m", inputs))
            assert field_of(caught) == "input"
