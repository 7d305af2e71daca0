"""Requests of chats and text completions: understood, refused with the field, and sent on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest, NotFound
from engine.domain.generation import Dialect, GenerationRequest, Message, Parameters, Tool, ToolCall
from tests.fakes.streams import json_values
from tests.transport.wire.dialects.openai_replies import CHAT, COMPLETIONS, FACTS, RESPONSES, asked
from transport.wire.dialects import openai

SECRET = "my darkest secret"
PIXEL = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": SCHEMA}}


def messages(*given, **fields):
    return asked(messages=list(given), **fields).request.messages


def refusal(path=CHAT, **fields):
    with pytest.raises(InvalidRequest) as caught:
        asked(path, **fields)
    error = caught.value
    assert error.message.startswith(f"{error.details['field']}: ")
    assert SECRET not in error.message
    return error.details["field"]


def wanted(path=CHAT, **fields):
    """What only a runtime that speaks the dialect can have."""
    options = asked(path, **fields).options
    return sorted(option.removeprefix("needs:") for option in options if option.startswith("needs:"))


# ── chats ──


def test_the_least():
    found = asked()
    assert (found.dialect, found.path, found.model, found.stream) == (Dialect.OPENAI, CHAT, "my/model", False)
    assert (found.logprobs, found.top_logprobs, found.load_only, found.options) == (False, 0, False, frozenset())
    assert found.request == GenerationRequest("", messages=(Message("user", "hi"),))


def test_the_most():
    found = asked(
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=9,
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        seed=-3,
        stop=["a", "b"],
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repeat_penalty=1.1,
        logprobs=True,
        top_logprobs=15,
        n=1,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "look"}},
        reasoning_effort="low",
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        user="u",
        metadata={"a": "b"},
        store=True,
        parallel_tool_calls=False,
        something_new=[1],
    )
    parameters = Parameters(0.5, 0.9, 40, 7, -3, ("a", "b"), 0.05, 0.5, -0.5, 1.1)
    assert (found.request.parameters, found.request.top_logprobs) == (parameters, 15)
    assert (found.stream, found.logprobs, found.top_logprobs) == (True, True, 15)
    assert found.options == {"include_usage"}
    (tool,) = found.request.tools
    assert (tool.name, tool.description, json.loads(tool.parameters)) == ("look", "d", SCHEMA)
    assert (found.request.tool_choice, found.request.think) == ("look", "low")
    assert json.loads(found.request.format) == SCHEMA


def test_nulls_are_fields_left_out():
    fields = (
        "stream",
        "stream_options",
        "max_tokens",
        "temperature",
        "top_p",
        "stop",
        "seed",
        "n",
        "tools",
        "logprobs",
    )
    more = ("tool_choice", "response_format", "functions", "function_call", "logit_bias", "reasoning_effort", "audio")
    assert asked(**dict.fromkeys([*fields, *more])).request == asked().request


def test_roles_and_parts():
    found = messages(
        {"role": "developer", "content": "be brief"},
        {"role": "USER", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "reasoning": "hm"},
        {"role": "assistant", "content": None, "reasoning_content": "so"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": f"data:;base64,{PIXEL}"}]},
    )
    assert found == (
        Message("system", "be brief"),
        Message("user", "a\nb"),
        Message("assistant", "c", thinking="hm"),
        Message("assistant", "", thinking="so"),
        Message("user", "", images=(PIXEL,)),
        Message("user", "", images=(PIXEL,)),
    )


def test_calls_of_the_past_and_their_results():
    function = {"name": "look", "arguments": '{"at": 1}'}
    found = messages(
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
        {"role": "assistant", "function_call": {"name": "old", "arguments": ""}},
        {"role": "function", "name": "old", "content": "done"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "sent", "arguments": {"as": "object"}}}]},
    )
    assert found == (
        Message("assistant", "", tool_calls=(ToolCall("look", '{"at": 1}', "c1"),)),
        Message("tool", "seen", tool_call_id="c1", tool_name="look"),
        Message("assistant", "", tool_calls=(ToolCall("old", "{}"),)),
        Message("tool", "done", tool_name="old"),
        Message("assistant", "", tool_calls=(ToolCall("sent", '{"as": "object"}'),)),
    )


@pytest.mark.parametrize(
    ("fields", "think"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning_effort": "max"}, "high"),
        ({"reasoning": {"effort": "medium"}}, "medium"),
        ({"reasoning": {"enabled": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}, "low"),
    ],
)
def test_thinking(fields, think):
    assert asked(**fields).request.think == think


@pytest.mark.parametrize(
    ("given", "format_"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_object", "schema": {}}, "json"),
        ({"type": "json_object", "schema": {"a": 1}}, '{"a": 1}'),
        ({"type": "json_schema", "json_schema": {"schema": {"a": 1}}}, '{"a": 1}'),
        ({"type": "json_schema", "schema": {"a": 1}}, '{"a": 1}'),
    ],
)
def test_formats(given, format_):
    assert asked(response_format=given).request.format == format_


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_choices_of_tools(choice):
    assert asked(tools=[TOOL], tool_choice=choice).request.tool_choice == choice


def test_habits_of_real_clients():
    assert asked(tools=[], tool_choice="auto").request.tools == ()
    assert asked(tools=[{"type": "function", "function": {"name": "bare"}}]).request.tools == (Tool("bare"),)
    assert asked(max_tokens=-1).request.parameters.max_tokens is None
    assert asked(stop="x").request.parameters.stop == ("x",)
    assert asked(stop=["", "x"]).request.parameters.stop == ("x",)
    assert asked(top_logprobs=0).logprobs is False
    assert asked(logprobs=True).request.top_logprobs == 10


def user(content):
    return [{"role": "user", "content": content}]


def image(url):
    return user([{"type": "image_url", "image_url": {"url": url}}])


URL = "messages[0].content[0].image_url"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"content": SECRET}]}, "messages[0].role"),
        ({"messages": [{"role": SECRET, "content": "x"}]}, "messages[0].role"),
        ({"messages": user(7)}, "messages[0].content"),
        ({"messages": image(f"https://example.com/{SECRET}.png")}, URL),
        ({"messages": image(f"data:text/plain;base64,{PIXEL}")}, URL),
        ({"messages": image("data:image/png;base64,no base64!")}, URL),
        ({"messages": user([{"type": "image_url"}])}, URL),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": SECRET}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["x"] * 11}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n": 2}, "n"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"reasoning_effort": SECRET}, "reasoning_effort"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [TOOL], "tool_choice": "absent"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_is_refused_in_chats(fields, field):
    assert refusal(**fields) == field


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"logit_bias": {"5": 1}}, ["logit_bias"]),
        ({"logit_bias": {}}, []),
        ({"grammar": 'root ::= "x"'}, ["grammar"]),
        ({"guided_json": SCHEMA, "guided_regex": "x"}, ["guided_json", "guided_regex"]),
        ({"modalities": ["text"]}, []),
        ({"modalities": ["text", "audio"], "audio": {"voice": "x"}}, ["audio", "modalities"]),
        ({"prediction": {"content": "x"}}, ["prediction"]),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}], "tool_choice": "required"}, ["tools[0].type"]),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, ["tool_choice.type"]),
        ({"chat_template_kwargs": {"x": 1}}, ["chat_template_kwargs"]),
        ({"response_format": {"type": "grammar"}}, ["response_format.type"]),
        ({"messages": user([{"type": "input_audio", "input_audio": {}}])}, ["messages[0].content[0].type"]),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{bad"}}]}]},
            ["messages[0].tool_calls[0].function.arguments"],
        ),
    ],
)
def test_what_only_a_runtime_of_the_dialect_can_have_is_noted(fields, needed):
    assert wanted(**fields) == needed


# ── text completions ──


def test_a_text_completion():
    found = asked(COMPLETIONS, prompt=["once"], suffix="end", max_tokens=5, logprobs=2, stream=True, best_of=1, n=1)
    parameters = Parameters(max_tokens=5)
    assert found.request == GenerationRequest("", prompt="once", suffix="end", parameters=parameters)
    assert (found.path, found.stream, found.logprobs, found.top_logprobs) == (COMPLETIONS, True, True, 2)
    assert asked(COMPLETIONS, logprobs=0).logprobs is True
    assert asked(COMPLETIONS).logprobs is False


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [SECRET, "b"]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"n": 3}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_what_is_refused_in_text_completions(fields, field):
    assert refusal(COMPLETIONS, **fields) == field


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]]])
def test_token_ids_are_for_a_runtime_of_the_dialect(prompt):
    assert wanted(COMPLETIONS, prompt=prompt) == ["prompt (token ids)"]


# ── bodies that are none, and paths ──


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": "\xff"}', b"[" * 100_000, b'{"x": "\xff"}'])
def test_bodies_that_are_none(path, body):
    with pytest.raises(InvalidRequest):
        openai.parse(path, body)


def test_a_path_that_is_none():
    with pytest.raises(NotFound):
        openai.parse("/v1/edits", b"{}")


names = st.sampled_from(
    "model messages role content type text image_url tools tool_calls function name arguments prompt stop seed input"
    " tool_choice response_format json_schema schema logprobs reasoning stream_options".split()
)


@given(st.sampled_from([CHAT, COMPLETIONS, RESPONSES]), st.dictionaries(names, json_values(names), max_size=6))
def test_any_json_is_understood_or_refused(path, fields):
    needed = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}
    try:
        found = openai.parse(path, json.dumps(needed | fields).encode())
    except InvalidRequest:
        return
    assert json.loads(openai.forward_body(found, "own"))["model"] == "own"
    openai.reply_for(found, False, FACTS)


# ── sent on ──


def forwarded(found, **more):
    return openai.forward_body(found, "own:7b", **more).decode()


def test_a_chat_is_sent_on_as_it_is():
    body = (
        b'{"x-new": {"z":1, "a":[1.50]}, "model":"gpt", "messages":[{"role":"user","content":"hi","extra":1}],'
        b' "stream":false,"stream_options":{"chunked":true}}'
    )
    assert forwarded(openai.parse(CHAT, body)) == (
        '{"x-new":{"z":1, "a":[1.50]},"model":"own:7b","messages":[{"role":"user","content":"hi","extra":1}],'
        '"stream":true,"stream_options":{"chunked":true,"include_usage":true},"logprobs":true,"top_logprobs":10}'
    )


def test_a_client_that_asks_for_more_gets_it():
    assert json.loads(forwarded(asked(logprobs=True, top_logprobs=15)))["top_logprobs"] == 15
    assert json.loads(forwarded(asked(logprobs=True, top_logprobs=3)))["top_logprobs"] == 10


def test_without_log_probabilities_of_ours():
    assert "logprobs" not in forwarded(asked(), logprobs=False)
    assert json.loads(forwarded(asked(logprobs=True, top_logprobs=3), logprobs=False))["top_logprobs"] == 3


def test_a_text_completion_is_sent_on_with_a_number():
    body = json.loads(forwarded(asked(COMPLETIONS, logprobs=2, stream_options=None)))
    assert (body["logprobs"], body["stream"], body["stream_options"]) == (10, True, {"include_usage": True})


def test_a_response_is_sent_on_without_what_it_does_not_know():
    body = json.loads(forwarded(asked(RESPONSES)))
    assert body == {"model": "own:7b", "input": "hi", "stream": True}
