"""Anthropic's events as chunks, and requests to it; its own dialect for clients is tested beside the other dialects."""

from __future__ import annotations

import json
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
)
from engine.domain.generation import (
    EndReason,
    GenerationEnd,
    GenerationRequest,
    Message,
    Parameters,
    TokenKind,
    Tool,
    ToolCall,
    ToolCallPart,
)
from tests.fakes.cloud import anthropic_event, block, message_end, message_start, text_delta
from transport.wire.anthropic import ChunkStream, error_text, refusal
from transport.wire.anthropic_requests import MAX_TOKENS_DEFAULT, request_body

HELLO = b"".join([message_start(25), anthropic_event("ping"), *block(0, "text", text_delta("Hel"), text_delta("lo"))])


def read(data: bytes, cuts: list[int] | None = None, stream: ChunkStream | None = None):
    stream = stream or ChunkStream()
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts or ())})
    chunks = [chunk for a, b in pairwise(edges) for chunk in stream.feed(data[a:b], 7)]
    return [*chunks, *stream.finish(7)], stream


# ── streams ──


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_any_chunking_gives_the_same_chunks(cuts):
    chunks, stream = read(HELLO + message_end(15), cuts)
    assert [chunk.text for chunk in chunks] == ["Hel", "lo", ""]
    assert chunks[-1].end == GenerationEnd(EndReason.FINISHED, 25, 15)
    assert all(chunk.logprobs == () for chunk in chunks)  # there are none: cadence is all there is
    assert (stream.ended, stream.cut, stream.late_records) == (True, False, 0)


def test_thinking_and_text_are_told_apart_and_signatures_are_not_text():
    thinking = block(0, "thinking", {"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta"})
    chunks, _ = read(b"".join([message_start(), *thinking, *block(1, "text", text_delta("yes")), message_end(3)]))
    assert [(chunk.kind, chunk.text) for chunk in chunks[:-1]] == [
        (TokenKind.THINKING, "hm"), (TokenKind.ANSWER, "yes"),
    ]  # fmt: skip


def test_tools_are_called_piece_by_piece():
    parts = [{"type": "input_json_delta", "partial_json": text} for text in ("", '{"city": ', '"Paris"}')]
    calls = [
        *block(0, "tool_use", *parts, id="toolu_1", name="weather"),
        *block(1, "tool_use", id="toolu_2", name="now"),
    ]
    chunks, _ = read(b"".join([message_start(), *calls, message_end(9, "tool_use")]))
    told = [call for chunk in chunks for call in chunk.tool_calls]
    assert told[0] == ToolCallPart(0, "weather", "", "toolu_1")
    assert "".join(call.arguments for call in told if call.index == 0) == '{"city": "Paris"}'
    assert told[-1] == ToolCallPart(1, "now", "", "toolu_2")
    assert {chunk.kind for chunk in chunks[:-1]} == {TokenKind.TOOL}


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("end_turn", EndReason.FINISHED), ("tool_use", EndReason.FINISHED), ("refusal", EndReason.FINISHED),
        ("pause_turn", EndReason.FINISHED), ("max_tokens", EndReason.LENGTH), ("stop_sequence", EndReason.STOP),
        ("model_context_window_exceeded", EndReason.LENGTH), ("something_new", EndReason.FINISHED),
    ],
)  # fmt: skip
def test_why_it_ended(word, reason):
    chunks, _ = read(HELLO + message_end(2, word))
    assert chunks[-1].end.reason is reason


def test_tokens_read_from_a_cache_are_prompt_tokens_too():
    start = message_start(4, cache_read_input_tokens=100, cache_creation_input_tokens=20)
    chunks, _ = read(start + message_end(2))
    assert chunks[-1].end.prompt_tokens == 124


def test_unknown_events_blocks_and_deltas_are_passed_over():
    new = anthropic_event("content_block_start", index=0, content_block={"type": "hologram", "data": [1]})
    new += anthropic_event("content_block_delta", index=0, delta={"type": "hologram_delta", "data": "x"})
    chunks, _ = read(message_start() + new + anthropic_event("message_dance", steps=3) + message_end(1))
    assert [chunk.text for chunk in chunks] == [""]


def test_an_answer_is_whole_only_with_its_message_stop():
    told = HELLO + message_end(2)
    cut = told[: told.rindex(b"event: message_stop")]
    chunks, stream = read(cut)
    assert stream.finishing
    assert not stream.ended
    assert all(chunk.end is None for chunk in chunks)
    chunks, stream = read(HELLO + anthropic_event("message_stop"))  # without a reason nobody knows
    assert chunks[-1].end is None


def test_an_event_that_is_cut_is_no_error_and_a_broken_one_is():
    _, stream = read(HELLO + b'event: content_block_delta\ndata: {"type": "content_bl')
    assert stream.cut
    with pytest.raises(UpstreamProtocolError):
        read(HELLO + b"data: {nonsense\n\n")
    with pytest.raises(UpstreamProtocolError):
        read(b"<html>busy</html>\n")


def test_what_comes_after_the_end_is_counted():
    _, stream = read(HELLO + message_end(2) + anthropic_event("ping"))
    assert stream.late_records == 1


@pytest.mark.parametrize(("kind", "error"), [("overloaded_error", Overloaded), ("api_error", UpstreamProtocolError)])
def test_an_error_in_the_stream(kind, error):
    stream = ChunkStream(secret="sk-ant-secret")
    told = anthropic_event("error", error={"type": kind, "message": "Overloaded sk-ant-secret\x00"})
    with pytest.raises(error, match="Overloaded") as caught:
        read(HELLO + told, stream=stream)
    assert "sk-ant-secret" not in caught.value.message
    assert stream.reported


# ── refusals ──


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequest), (401, RuntimeUnavailable), (402, RuntimeUnavailable), (403, RuntimeUnavailable),
        (404, ModelNotFound), (413, InvalidRequest), (429, Overloaded), (500, UpstreamProtocolError), (529, Overloaded),
    ],
)  # fmt: skip
def test_a_refusal_by_its_status(status, error):
    body = json.dumps({"type": "error", "error": {"type": "x", "message": "it said sk-ant-1"}}).encode()
    found = refusal(status, error_text(body), "m", "anthropic", "sk-ant-1")
    assert isinstance(found, error)
    assert "sk-ant-1" not in found.message
    assert error_text(b"<html>") == ""


# ── requests ──


def body_of(**asked):
    return json.loads(request_body(GenerationRequest("claude", **asked)))


def test_a_prompt_is_the_message_of_a_user():
    assert body_of(prompt="hi", system="be brief") == {
        "model": "claude", "max_tokens": MAX_TOKENS_DEFAULT, "stream": True, "system": "be brief",
        "messages": [{"role": "user", "content": "hi"}],
    }  # fmt: skip


def test_parameters_by_the_names_they_have_there():
    parameters = Parameters(temperature=0.5, top_p=0.9, top_k=40, max_tokens=7, stop=("END",))
    body = body_of(prompt="x", parameters=parameters)
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "stop_sequences")} == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "max_tokens": 7, "stop_sequences": ["END"],
    }  # fmt: skip


def test_a_chat_with_tools_and_images():
    messages = (
        Message("system", "a"),
        Message("user", "look", images=("iVBORw0KGgoAAA",)),
        Message("assistant", "", thinking="hm", tool_calls=(ToolCall("weather", '{"city":"Paris"}', "1"),)),
        Message("tool", "rain", tool_call_id="1"),
    )
    body = body_of(messages=messages, tools=(Tool("weather", "tells it", '{"type":"object"}'),))
    user, assistant, result = body["messages"]
    assert user["content"][0]["source"] == {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgoAAA"}
    assert assistant["content"] == [{"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Paris"}}]
    assert result == {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "rain"}]}
    assert body["tools"] == [{"name": "weather", "description": "tells it", "input_schema": {"type": "object"}}]
    assert body["system"] == "a"


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("seed", {"parameters": Parameters(seed=1)}),
        ("temperature", {"parameters": Parameters(temperature=1.5)}),
        ("min_p", {"parameters": Parameters(min_p=0.1)}),
        ("presence_penalty", {"parameters": Parameters(presence_penalty=1)}),
        ("format", {"format": "json"}),
        ("think", {"think": True}),
        ("raw", {"raw": True}),
        ("suffix", {"suffix": "x"}),
        ("images", {"images": ("Qk0AAAA",)}),
    ],
)
def test_what_it_has_no_word_for_is_refused_and_never_left_out(field, asked):
    with pytest.raises(InvalidRequest) as caught:
        request_body(attrs.evolve(GenerationRequest("claude", prompt="x"), **asked))
    assert caught.value.details["field"] == field
