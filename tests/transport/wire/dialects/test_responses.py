"""`/v1/responses`: conversations of items in, numbered events out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest, TierLimitExceeded, UpstreamTruncated
from engine.domain.generation import (
    EndReason,
    GenerationRequest,
    Message,
    Parameters,
    TokenKind,
    Tool,
    ToolCall,
    ToolCallPart,
)
from tests.fakes.ollama import capture
from tests.transport.wire.dialects.openai_replies import (
    FACTS,
    RESPONSES,
    asked,
    called,
    data_of,
    ended,
    logprob,
    reply,
    said,
    streamed,
    thought,
    whole,
)
from transport.wire.dialects import openai

PIXEL = "iVBORw0KGgo="


# ── requests ──


def test_a_text():
    found = asked(RESPONSES, instructions="be brief", max_output_tokens=7, stream=True, store=True)
    conversation = (Message("system", "be brief"), Message("user", "hi"))
    assert found.request == GenerationRequest("", messages=conversation, parameters=Parameters(max_tokens=7))
    assert (found.stream, found.logprobs, found.options) == (True, False, {"always_translated"})


def test_items():
    found = asked(
        RESPONSES,
        input=[
            {"role": "developer", "content": "rules"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "see"}, image()]},
            {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at":1}'},
            {"type": "function_call", "call_id": "c2", "name": "wait", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "seen"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "ok"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "done"}]},
        ],
    )
    assert found.request.messages == (
        Message("system", "rules"),
        Message("user", "see", images=(PIXEL,)),
        Message(
            "assistant",
            "",
            thinking="hm",
            tool_calls=(ToolCall("look", '{"at":1}', "c1"), ToolCall("wait", "{}", "c2")),
        ),
        Message("tool", "seen", tool_call_id="c1", tool_name="look"),
        Message("tool", "ok", tool_call_id="c2", tool_name="wait"),
        Message("assistant", "done", thinking="so"),
    )


def image(url=f"data:image/png;base64,{PIXEL}"):
    return {"type": "input_image", "detail": "auto", "image_url": url}


def test_tools_formats_and_the_rest():
    schema = {"type": "object"}
    found = asked(
        RESPONSES,
        tools=[{"type": "function", "name": "look", "description": None, "parameters": schema, "strict": True}],
        tool_choice={"type": "function", "name": "look"},
        text={"format": {"type": "json_schema", "name": "x", "schema": schema}, "verbosity": "low"},
        reasoning={"effort": "high", "summary": "auto"},
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        top_logprobs=3,
    )
    assert found.request.tools == (Tool("look", "", json.dumps(schema)),)
    assert (found.request.tool_choice, found.request.think) == ("look", "high")
    assert json.loads(found.request.format) == schema
    assert (found.logprobs, found.top_logprobs) == (True, 3)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "alien", "content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [image("https://example.com/x.png")]}]},
            "input[0].content[0].image_url",
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "x"}}, "conversation"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"background": True}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_is_refused(fields, field):
    with pytest.raises(InvalidRequest) as caught:
        asked(RESPONSES, **fields)
    assert caught.value.details["field"] == field


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"tools": [{"type": "web_search"}]}, "needs:tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "needs:input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "needs:input[0].content[0].type"),
        ({"text": {"format": {"type": "grammar"}}}, "needs:text.format.type"),
    ],
)
def test_what_cannot_be_translated_is_noted(fields, needed):
    assert asked(RESPONSES, **fields).options == {"always_translated", needed}


# ── replies ──


def test_the_events_are_those_of_ollama():
    """The same types with the same fields, in the same order; how it ended is told better."""
    recorded = data_of(capture("responses")[1])
    sent = streamed(
        reply(RESPONSES, stream=True, max_output_tokens=2),
        [said(" a"), said(" stalled")],
        ended(EndReason.FINISHED, 56, 2),
    )
    assert [value["type"] for value in sent] == [value["type"] for value in recorded]
    for ours, theirs in zip(sent, recorded, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("sequence_number", "output_index", "content_index", "delta", "text", "part", "logprobs"):
            assert ours.get(name) == theirs.get(name)
    same = {"id", "created_at", "completed_at", "model", "output"}
    ours, theirs = sent[-1]["response"], recorded[-1]["response"]
    assert ours.keys() == theirs.keys()
    assert {name: ours[name] for name in ours.keys() - same} == {name: theirs[name] for name in theirs.keys() - same}
    assert [item | {"id": 0} for item in ours["output"]] == [item | {"id": 0} for item in theirs["output"]]


def test_events_are_named_by_their_type():
    body = reply(RESPONSES, stream=True).feed(said("x"))
    names = [line.removeprefix(b"event: ").decode() for line in body.split(b"\n") if line.startswith(b"event: ")]
    assert names == [value["type"] for value in data_of(body)]


CHUNKS = [
    thought("so "),
    thought("what", logprob("wh"), logprob("at")),
    said("42", logprob("42", -0.25, x=-1.0)),
    called(ToolCallPart(0, "look", '{"at"', "call_a"), ToolCallPart(1, "wait")),
    called(ToolCallPart(0, arguments=":1}")),
]


def test_thinking_text_and_calls_are_items():
    sent = streamed(reply(RESPONSES, stream=True), CHUNKS)
    assert [value["sequence_number"] for value in sent] == list(range(len(sent)))
    types = [value["type"].removeprefix("response.") for value in sent]
    assert types == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    done = [value["item"] for value in sent if value["type"] == "response.output_item.done"]
    assert done == sent[-1]["response"]["output"]
    assert done == [
        {
            "id": "rs_4f_0",
            "type": "reasoning",
            "status": "completed",
            "summary": [{"type": "summary_text", "text": "so what"}],
        },
        {
            "id": "msg_4f_1",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": "42"}],
        },
        call("fc_4f_2", "call_a", "look", '{"at":1}'),
        call("fc_4f_3", "call_4f_1", "wait", "{}"),
    ]
    assert sent[-1]["response"]["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}


def call(id_, call_id, name, arguments):
    named = {"call_id": call_id, "name": name, "arguments": arguments}
    return {"id": id_, "type": "function_call", "status": "completed", **named}


def test_log_probabilities_when_they_are_asked_for():
    shown = {"token": "42", "logprob": -0.25, "bytes": [52, 50]}
    shown["top_logprobs"] = [{"token": "x", "logprob": -1.0, "bytes": [120]}]
    body = whole(reply(RESPONSES, top_logprobs=1), CHUNKS)
    assert body["output"][1]["content"][0]["logprobs"] == [shown]
    sent = streamed(reply(RESPONSES, stream=True, top_logprobs=1), CHUNKS)
    assert [value["logprobs"] for value in sent if value["type"] == "response.output_text.delta"] == [[shown]]


def test_one_body_is_the_last_response_of_the_stream():
    for reason in (EndReason.FINISHED, EndReason.LENGTH):
        sent = streamed(reply(RESPONSES, stream=True), CHUNKS, ended(reason))
        assert whole(reply(RESPONSES), CHUNKS, ended(reason)) == sent[-1]["response"]


def test_an_answer_cut_short_is_incomplete():
    last = streamed(reply(RESPONSES, stream=True), [thought("a"), said("b")], ended(EndReason.LENGTH))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in last["response"]["output"]] == ["completed", "incomplete"]


def test_an_empty_answer_is_an_empty_message():
    (item,) = whole(reply(RESPONSES), [])["output"]
    assert item["content"] == [{"type": "output_text", "annotations": [], "logprobs": [], "text": ""}]


@pytest.mark.parametrize(
    ("error", "code"),
    [(UpstreamTruncated("it broke off"), "server_error"), (TierLimitExceeded("it broke off"), "rate_limit_exceeded")],
)
@pytest.mark.parametrize("chunks", [[], CHUNKS])
def test_a_stream_that_fails_says_so(chunks, error, code):
    failing = reply(RESPONSES, stream=True)
    sent = data_of(b"".join(map(failing.feed, chunks)) + failing.fail(error))
    assert (sent[0]["type"], sent[-1]["type"]) == ("response.created", "response.failed")
    response = sent[-1]["response"]
    assert (response["status"], response["error"]) == ("failed", {"code": code, "message": "it broke off"})
    assert [value["sequence_number"] for value in sent] == list(range(len(sent)))


def test_the_request_is_repeated():
    fields = {
        "instructions": "be brief",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "tools": [{"type": "function", "name": "look", "parameters": {"x": 1}}],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "text": {"format": {"type": "json_object"}},
        "max_output_tokens": 9,
    }
    body = whole(reply(RESPONSES, reasoning={"effort": "low"}, **fields), [said("x")])
    assert {name: body[name] for name in fields} == fields
    assert (body["reasoning"], body["top_p"], body["store"]) == ({"effort": "low", "summary": None}, 1, False)
    nulls = dict.fromkeys(fields)
    assert whole(reply(RESPONSES, **nulls), [said("x")]) == whole(reply(RESPONSES), [said("x")])


def test_a_request_laid_out_in_lines_breaks_no_event():
    fields = {"model": "m", "input": "hi", "stream": True, "metadata": {"a": ["b", "c"]}}
    laid_out = openai.parse(RESPONSES, json.dumps(fields, indent=2).replace("\n", "\r\n").encode())
    sent = streamed(openai.reply_for(laid_out, False, FACTS), [said("x")])
    assert sent[-1]["response"]["metadata"] == fields["metadata"]


# ── anything ──

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@given(st.lists(st.tuples(st.sampled_from([TokenKind.ANSWER, TokenKind.THINKING]), texts), max_size=10))
def test_any_split_of_a_text_is_the_same_text(parts):
    sent = streamed(reply(RESPONSES, stream=True), [said(text, kind=kind) for kind, text in parts])
    for kind, name in ((TokenKind.ANSWER, "output_text"), (TokenKind.THINKING, "reasoning_summary_text")):
        expected = "".join(text for of, text in parts if of is kind)
        for what, field in (("delta", "delta"), ("done", "text")):
            values = [value[field] for value in sent if value["type"] == f"response.{name}.{what}"]
            assert "".join(values) == expected
    opened = [value["output_index"] for value in sent if value["type"] == "response.output_item.added"]
    assert opened == list(range(len(sent[-1]["response"]["output"])))
