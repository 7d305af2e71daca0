"""Tool calls of both dialects, and answers that are no streams."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import UpstreamProtocolError
from engine.domain.generation import Chunk, EndReason, GenerationEnd, TokenKind, ToolCallPart
from tests.fakes.ollama import capture
from tests.fakes.openai import delta, entry
from tests.fakes.streams import json_values, read_through
from transport.wire import ollama, openai

CLOSED = GenerationEnd(EndReason.FINISHED, 3, 2)


def calls_of(chunks: list[Chunk]) -> list[ToolCallPart]:
    return [part for chunk in chunks for part in chunk.tool_calls]


def dumped(value: object) -> bytes:
    return json.dumps(value).encode()


# ── tool calls ──


def test_recorded_calls():
    chunks, _, _ = read_through(ollama.RecordStream(), [capture("chat-think-tools")[1]])
    assert calls_of(chunks) == [ToolCallPart(0, "get_weather", '{"city":"Oslo"}', "call_dc858wh6")]
    assert [bool(chunk.tool_calls) for chunk in chunks] == [chunk.kind is TokenKind.TOOL for chunk in chunks]
    chunks, _, _ = read_through(openai.ChunkStream(), [capture("openai-think-tools")[1]])
    assert calls_of(chunks) == [ToolCallPart(0, "get_weather", '{"city":"Oslo"}', "call_49yu8k70")]
    assert chunks[-1].end == GenerationEnd(EndReason.FINISHED)


def test_calls_of_ollama_are_numbered_as_they_come():
    def record(*names: str, **message: Any) -> bytes:
        calls = [{"function": {"index": 0, "name": name, "arguments": {"n": 1.50}}} for name in names]
        return dumped({"message": {"content": "", "tool_calls": calls} | message}) + b"\n"

    chunks, _, error = read_through(
        ollama.RecordStream(), [record("a", "b"), record("c", content="so", thinking="t"), record("d").strip()]
    )
    assert error is None
    assert calls_of(chunks) == [ToolCallPart(at, name, '{"n":1.5}') for at, name in enumerate("abcd")]
    assert [chunk.kind for chunk in chunks if chunk.text == "so"] == [TokenKind.ANSWER]


def test_pieces_of_a_call_keep_their_index():
    pieces = [
        delta(None, tool_calls=[{"index": 1, "id": "c", "function": {"name": "f", "arguments": ""}}]),
        delta(None, tool_calls=[{"index": 1, "function": {"arguments": '{"n":'}}, {"index": 2}]),
        delta(None, tool_calls=[{"function": {"name": None, "arguments": None}}, {"id": None}]),
    ]
    chunks, _, error = read_through(openai.ChunkStream(), pieces)
    assert error is None
    assert calls_of(chunks) == [
        ToolCallPart(1, "f", "", "c"),
        ToolCallPart(1, "", '{"n":'),
        ToolCallPart(2),
        ToolCallPart(0),
        ToolCallPart(1),
    ]


@pytest.mark.parametrize("call", [5, None, [], {"function": 5}, {"index": -1}])
def test_what_is_no_call(call: object):
    line = dumped({"message": {"tool_calls": [call]}})
    _, _, error = read_through(ollama.RecordStream(), [b"{}\n" + line + b"\n"])
    assert type(error) is UpstreamProtocolError
    assert error.details == {"offset": 3}


@given(json_values(st.sampled_from("id index function name arguments".split())))
def test_any_call_is_parts_or_a_protocol_error(call: object):
    chunks, _, error = read_through(openai.ChunkStream(), [delta(None, tool_calls=[call])])
    assert (len(calls_of(chunks)), error) == (1, None) or type(error) is UpstreamProtocolError


# ── whole answers ──


@pytest.mark.parametrize("name", ["chat-nostream", "load", "unload"])
def test_a_recorded_answer_of_ollama(name: str):
    body = capture(name)[1].strip()
    (chunk,) = ollama.whole_answer(body, 7)
    assert (chunk.raw, chunk.t_us, chunk.end is not None) == (body, 7, True)
    if name == "chat-nostream":
        assert (chunk.text, chunk.end) == (
            " the model is",
            GenerationEnd(EndReason.LENGTH, 56, 3, load_ms=3.895437),
        )


def test_a_long_answer_keeps_all_its_log_probabilities():
    entries = [{"token": "a", "logprob": -1.0}] * 20_000
    body = dumped({"response": "a" * 20_000, "done": True, "logprobs": entries})
    assert len(ollama.whole_answer(body, 0)[0].logprobs) == 20_000
    choice = {"message": {"content": "a" * 20_000}, "logprobs": {"content": entries}, "finish_reason": "stop"}
    assert len(openai.whole_answer(dumped({"choices": [choice]}), 0)[0].logprobs) == 20_000


def completed(choice: dict[str, Any], **values: Any) -> bytes:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return dumped({"object": "chat.completion", "choices": [{"index": 0} | choice], "usage": usage} | values)


def test_a_chat_completion():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"n":1}'}}
    message = {"role": "assistant", "reasoning": "t", "content": "ab", "tool_calls": [call, call | {"id": "d"}]}
    body = completed(
        {"message": message, "finish_reason": "tool_calls", "logprobs": {"content": [entry("t"), entry("ab")]}}
    )
    thinking, answer, tool = openai.whole_answer(body, 7)
    assert [chunk.kind for chunk in (thinking, answer, tool)] == [
        TokenKind.THINKING,
        TokenKind.ANSWER,
        TokenKind.TOOL,
    ]
    assert (thinking.text, answer.text) == ("t", "ab")
    assert [len(chunk.logprobs) for chunk in (thinking, answer, tool)] == [1, 1, 0]
    assert tool.tool_calls == (ToolCallPart(0, "f", '{"n":1}', "c"), ToolCallPart(1, "f", '{"n":1}', "d"))
    assert (thinking.raw, answer.raw, thinking.end, tool.end) == (body, b"", None, CLOSED)


def test_a_text_completion():
    lists = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1], "top_logprobs": None}
    (chunk,) = openai.whole_answer(completed({"text": "ab", "finish_reason": "length", "logprobs": lists}), 0)
    assert [item.token for item in chunk.logprobs] == ["a", "b"]
    assert (chunk.text, chunk.end) == ("ab", GenerationEnd(EndReason.LENGTH, 3, 2))


def test_an_answer_without_its_end_is_not_complete():
    assert openai.whole_answer(completed({"message": {"content": "a"}}), 0)[-1].end is None
    assert openai.whole_answer(b"{}", 0) == (Chunk("", 0, raw=b"{}"),)
    assert ollama.whole_answer(b'{"response":"a"}', 0)[-1].end is None


@pytest.mark.parametrize("body", [b"<html>secret", b'{"error":{"message":"bad sk-1"}}', b'{"choices":5}', b"\xff"])
def test_what_is_no_answer(body: bytes):
    with pytest.raises(UpstreamProtocolError) as caught:
        openai.whole_answer(body, 0, secret="sk-1")
    assert "sk-1" not in caught.value.message
    assert "secret" not in caught.value.message
    with pytest.raises(UpstreamProtocolError):
        ollama.whole_answer(body.replace(b'{"message":"bad sk-1"}', b'"bad"').replace(b"choices", b"response"), 0)


# ── which model a request is for ──


@pytest.mark.parametrize(
    ("body", "only"),
    [
        (b'{"model":"m","stream":true}', True),
        (b'{"stream":true, "model":"m"}', True),
        (b'{"model":"m","Model":"x:cloud"}', False),
        (b'{"MODEL":"x:cloud","model":"m"}', False),
        (b'{"model":"m","model":"x:cloud"}', False),
        (b'{"model":"x:cloud","model":"m"}', True),
        (b'{"Model":"m"}', False),
        (b'{"model":"m","\\u006dodel":"x:cloud"}', False),
        (b'{"model":5}', False),
        (b'["model"]', False),
        (b"", False),
        (b'{"model":"m","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", False),
    ],
)
def test_a_request_names_one_model_whoever_reads_it(body: bytes, only: bool):
    assert ollama.names_only(body, "m") is only
