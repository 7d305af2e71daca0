"""Requests in the Anthropic dialect: what becomes of each field, and what is refused by its name."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.domain.errors import (
    EngineError,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    RuntimeUnavailable,
    SessionConflict,
    TierLimitExceeded,
    Unauthorized,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.generation import Dialect, GenerationRequest, Message, Parameters, Tool, ToolCall
from transport.wire.dialects import anthropic
from transport.wire.dialects.anthropic import COUNT_PATH, MESSAGES_PATH
from transport.wire.dialects.reply import Asked, ReplyFacts

HI = {"role": "user", "content": "hi"}
WEATHER = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
FACTS = ReplyFacts("1", 0.0, "m")


def parse(path: str = MESSAGES_PATH, **fields: Any) -> Asked:
    body = {"model": "m", "max_tokens": 9, "messages": [HI]} | fields
    return anthropic.parse(path, json.dumps(body).encode())


def request(**fields: Any) -> GenerationRequest:
    return parse(**fields).request


def turns(*messages: dict[str, Any]) -> tuple[Message, ...]:
    return request(messages=list(messages)).messages


def test_smallest_request() -> None:
    asked = parse()
    assert (asked.dialect, asked.path, asked.model) == (Dialect.ANTHROPIC, MESSAGES_PATH, "m")
    assert (asked.stream, asked.logprobs, asked.load_only, asked.options) == (False, False, False, frozenset())
    assert asked.request == GenerationRequest(
        model="", messages=(Message("user", "hi"),), parameters=Parameters(max_tokens=9)
    )
    assert json.loads(asked.body)["messages"] == [HI]


def test_sampling_and_stream() -> None:
    asked = parse(stream=True, temperature=0.5, top_p=1, top_k=40, stop_sequences=["\n\n", "END"], max_tokens=1)
    assert asked.stream
    assert asked.request.parameters == Parameters(0.5, 1.0, 40, 1, stop=("\n\n", "END"))


def test_what_is_passed_over() -> None:
    extra = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "betas": ["x"],
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "cache_control": {"type": "ephemeral"},
        "container": None,
        "mcp_servers": [],
        "system": None,
        "tools": None,
        "tool_choice": None,
        "thinking": None,
        "temperature": None,
        "stop_sequences": None,
        "stream": None,
        "something_new": [1, {"a": 2}],
    }
    assert request(**extra) == request()


def test_system_comes_first() -> None:
    assert request(system="be kind").messages == (Message("system", "be kind"), Message("user", "hi"))
    blocks = [
        {"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "be brief"},
    ]
    assert request(system=blocks).messages[0] == Message("system", "be kind\nbe brief")
    assert request(system="").messages == (Message("user", "hi"),)
    assert turns(HI, {"role": "system", "content": "now in French"})[1] == Message("system", "now in French")


def test_images_travel_as_base64() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    assert turns({"role": "user", "content": [image, {"type": "text", "text": "what is it?"}]}) == (
        Message("user", "what is it?", ("aGk=",)),
    )


def test_tools_there_and_back() -> None:
    messages = turns(
        HI,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I should look.", "signature": ""},
                {"type": "redacted_thinking", "data": "xx"},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Oslo", "n": 1.50}},
                {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t2", "content": "noon"},
                {"type": "tool_result", "tool_use_id": "t1", "is_error": True,
                 "content": [{"type": "text", "text": "no such city"}]},
                {"type": "text", "text": "well?"},
                {"type": "tool_result", "tool_use_id": "t9"},
            ],
        },
    )  # fmt: skip
    assert messages[1:] == (
        Message(
            "assistant",
            "Looking.",
            thinking="I should look.",
            tool_calls=(ToolCall("get_weather", '{"city": "Oslo", "n": 1.5}', "t1"), ToolCall("now", "{}", "t2")),
        ),
        Message("tool", "noon", tool_call_id="t2", tool_name="now"),
        Message("tool", "Error: no such city", tool_call_id="t1", tool_name="get_weather"),
        Message("user", "well?"),
        Message("tool", "", tool_call_id="t9"),
    )


def test_an_image_as_tool_result() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/webp", "data": "aGk="}}
    (message,) = turns({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [image]}]})
    assert message == Message("tool", "", ("aGk=",), tool_call_id="t")


def test_a_turn_of_nothing_stays_a_turn() -> None:
    assert turns({"role": "user", "content": []}, {"role": "assistant", "content": []}) == (
        Message("user", ""),
        Message("assistant", ""),
    )


def test_tools() -> None:
    tools = [WEATHER | {"description": "Weather."}, {"type": "custom", "name": "now", "input_schema": {}}]
    assert request(tools=tools).tools == (
        Tool("get_weather", "Weather.", json.dumps(WEATHER["input_schema"])),
        Tool("now", "", "{}"),
    )


@pytest.mark.parametrize(
    ("choice", "neutral"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "auto", "disable_parallel_tool_use": False}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "get_weather"}, "get_weather"),
    ],
)
def test_tool_choice(choice: dict[str, Any], neutral: str) -> None:
    assert request(tools=[WEATHER], tool_choice=choice).tool_choice == neutral


@pytest.mark.parametrize(
    ("fields", "think"),
    [
        ({}, None),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, None),
        ({"output_config": {"effort": "high"}}, None),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "low"}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "max"}}, "high"),
    ],
)
def test_thinking(fields: dict[str, Any], think: bool | str | None) -> None:
    assert request(**fields).think is think or request(**fields).think == think


def test_a_schema_for_the_answer() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    format_ = {"type": "json_schema", "schema": schema}
    assert request(output_config={"format": format_}).format == json.dumps(schema)
    assert request(output_format=format_).format == json.dumps(schema)


def test_no_tokens_run_one() -> None:
    asked = parse(max_tokens=0)
    assert not asked.load_only
    assert asked.options == {"prompt_only"}
    assert asked.request.parameters.max_tokens == 1


def test_a_count_needs_no_max_tokens_and_runs_one() -> None:
    asked = anthropic.parse(COUNT_PATH, json.dumps({"model": "m", "messages": [HI], "system": "s"}).encode())
    assert (asked.path, asked.stream, asked.load_only) == (COUNT_PATH, False, False)
    assert asked.request.parameters == Parameters(max_tokens=1)
    assert asked.request.messages == (Message("system", "s"), Message("user", "hi"))


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
RESULT = {"type": "tool_result", "tool_use_id": "t"}
BASE64 = {"type": "base64", "media_type": "image/png", "data": "data:image/png;base64,aGk="}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": "9"}, "max_tokens: must be"),
        ({"max_tokens": -1}, "max_tokens: must be"),
        ({"max_tokens": None}, "max_tokens: must be"),
        ({"model": ""}, "model: must be"),
        ({"messages": []}, "messages: must be"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "use user, assistant or system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
         "use text, image, tool_use"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
         "use base64 (nothing is fetched"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": BASE64}]}]},
         "messages[0].content: the data of an image"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": {}}]}]},
         "messages[0].content[0]: a tool_use block cannot stand in a turn of the user"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
         "a tool_result block cannot stand in a turn of the assistant"),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "image block cannot stand in a turn of the system"),
        ({"messages": [{"role": "system", "content": [RESULT]}]}, "cannot stand in a turn of the system"),
        ({"messages": [{"role": "assistant", "content": [IMAGE]}]}, "cannot stand in a turn of the assistant"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": []}]}]},
         "messages[0].content[0].input must be an object"),
        ({"messages": [{"role": "user", "content": [RESULT | {"content": [{"type": "document"}]}]}]},
         "use text or image"),
        ({"system": [{"type": "image"}]}, "use text"),
        ({"temperature": 3}, "temperature: must be"),
        ({"top_p": 1.1}, "top_p: must be"),
        ({"top_k": 0}, "top_k: must be"),
        ({"stop_sequences": ["x"] * 11}, "stop_sequences: must be"),
        ({"stop_sequences": [""]}, "stop_sequences[0]: must be"),
        ({"stream": "yes"}, "stream: must be"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type: there are no"),
        ({"tools": [{"name": "n"}]}, "tools[0].input_schema is required"),
        ({"tools": [{"name": "n", "input_schema": "{}"}]}, "tools[0].input_schema must be an object"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [WEATHER | {"strict": True}]}, "tools[0].strict"),
        ({"tool_choice": {"type": "any"}}, "needs `tools`"),
        ({"tool_choice": {"type": "required"}}, "use auto, any, none or tool"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name must be"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name must be"),
        ({"tools": [WEATHER | {"name": "none"}], "tool_choice": {"type": "tool", "name": "none"}},
         "cannot be demanded"),
        ({"tools": [WEATHER], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, "disable_parallel"),
        ({"thinking": {"type": "between_tools"}}, "use enabled, disabled or adaptive"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens: must be"),
        ({"output_config": {"format": {"type": "regex", "schema": {}}}}, "use json_schema"),
        ({"output_config": {"format": {"type": "json_schema", "schema": 1}}}, "output_config.format.schema must be"),
        ({"container": "c1"}, "container"),
        ({"mcp_servers": [{"type": "url", "url": "http://x"}]}, "mcp_servers"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(**fields)
    assert said in refused.value.message


@pytest.mark.parametrize(
    "body", [b"", b"[", b"\xff", b'{"model":"\xff"}', b"[" * 100_000, b'{"tools":[' + b"[" * 100_000]
)
def test_no_json(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        anthropic.parse(MESSAGES_PATH, body)


def test_broken_characters_within_what_is_carried_through() -> None:
    body = b'{"model":"m","max_tokens":1,"messages":[],"tools":[{"name":"n","input_schema":{"a":"\xff"}}]}'
    with pytest.raises(InvalidRequest):
        anthropic.parse(MESSAGES_PATH, body.replace(b'"messages":[]', b'"messages":[{"role":"user","content":"x"}]'))


@given(st.text())
@example("'")
@example('"')
def test_words_of_the_client_are_not_repeated(secret: str) -> None:
    word = f"s3cr3t{secret}"
    bad: list[dict[str, Any]] = [
        {"messages": [{"role": word, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": word}]}]},
        {"thinking": {"type": word}},
        {"tools": [{"name": word, "input_schema": {}}, {"name": word, "input_schema": {}}]},
        {"tools": [{"name": "n", "type": word}]},
        {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": word[:99]}},
        {"max_tokens": word},
    ]
    for fields in bad:
        with pytest.raises(InvalidRequest) as refused:
            parse(**fields)
        assert "s3cr3t" not in refused.value.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "text", "role", "content", "source", "name", "input", "id", "tool_use_id", "data"]),
        inner | st.sampled_from(["text", "image", "tool_use", "tool_result", "user", "assistant", "base64"]),
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(
    st.sampled_from(["messages", "system", "tools", "tool_choice", "thinking", "output_config", "model"]), json_values
)
def test_anything_is_understood_or_refused(field: str, value: Any) -> None:
    with suppress(InvalidRequest):
        assert parse(**{field: value}).request.messages


def test_never_forwarded() -> None:
    with pytest.raises(InternalError):
        anthropic.reply_for(parse(), True, FACTS)
    with pytest.raises(InternalError):
        anthropic.forward_body(parse(), "m")


@pytest.mark.parametrize(
    ("error", "type_"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (Unauthorized("x"), "authentication_error"),
        (ModelNotFound("x"), "not_found_error"),
        (SessionConflict("x"), "conflict_error"),
        (PayloadTooLarge("x"), "request_too_large"),
        (TierLimitExceeded("x"), "rate_limit_error"),
        (InternalError("x"), "api_error"),
        (UpstreamTruncated("x"), "api_error"),
        (RuntimeUnavailable("x"), "api_error"),
        (Overloaded("x"), "overloaded_error"),
        (UpstreamTimeout("x"), "timeout_error"),
    ],
)
def test_errors(error: EngineError, type_: str) -> None:
    assert json.loads(anthropic.error_body(error)) == {"type": "error", "error": {"type": type_, "message": "x"}}
    assert json.loads(anthropic.error_body(error, "req_1"))["request_id"] == "req_1"
