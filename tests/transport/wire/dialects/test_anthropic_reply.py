"""Answers in the Anthropic dialect against a recorded one, and against every way a runtime may cut its chunks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest, UpstreamProtocolError, UpstreamTruncated
from engine.domain.generation import Chunk, EndReason, GenerationEnd, TokenKind, ToolCallPart
from transport.wire.dialects import anthropic, anthropic_reply
from transport.wire.dialects.anthropic import COUNT_PATH, MESSAGES_PATH
from transport.wire.dialects.reply import Reply, ReplyEnd, ReplyFacts

CAPTURE = Path(__file__).parents[3] / "fixtures" / "ollama" / "anthropic-think-tools.txt"
FACTS = ReplyFacts("r1", 0.0, "mine")


def text(words: str) -> Chunk:
    return Chunk(words, 0)


def thought(words: str) -> Chunk:
    return Chunk(words, 0, TokenKind.THINKING)


def call(index: int, name: str = "", arguments: str = "", id: str = "") -> Chunk:
    return Chunk("{}", 0, TokenKind.TOOL, tool_calls=(ToolCallPart(index, name, arguments, id),))


def ended(reason: EndReason = EndReason.FINISHED, prompt: int | None = 7, count: int | None = 3) -> ReplyEnd:
    end = GenerationEnd(reason, prompt, count)
    return ReplyEnd(end, tokens=5, total_ms=1, load_ms=None, prompt_ms=None, generation_ms=None)


def reply(stream: bool, path: str = MESSAGES_PATH, **fields: Any) -> Reply:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": stream} | fields
    return anthropic.reply_for(anthropic.parse(path, json.dumps(body).encode()), False, FACTS)


def events(data: bytes) -> list[dict[str, Any]]:
    """Each event's data; its name must be its type."""
    found = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        name, line = block.split("\n")
        found.append(json.loads(line.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def streamed(chunks: Iterable[Chunk], end: ReplyEnd | None = None, **fields: Any) -> list[dict[str, Any]]:
    made = reply(True, **fields)
    return events(b"".join([*(made.feed(chunk) for chunk in chunks), made.finish(end or ended())]))


def whole(chunks: Iterable[Chunk], end: ReplyEnd | None = None, **fields: Any) -> dict[str, Any]:
    made = reply(False, **fields)
    assert made.content_type == "application/json"
    assert not any(made.feed(chunk) for chunk in chunks)
    message: dict[str, Any] = json.loads(made.finish(end or ended()))
    return message


def assembled(stream: list[dict[str, Any]]) -> dict[str, Any]:
    """The message of a stream; fails where the order of events is not the dialect's."""
    assert stream[0]["type"] == "message_start"
    assert [event["type"] for event in stream[-2:]] == ["message_delta", "message_stop"]
    message = stream[0]["message"]
    open_block: dict[str, Any] | None = None
    for event in stream[1:-2]:
        if event["type"] == "content_block_start":
            assert open_block is None
            assert event["index"] == len(message["content"])
            open_block = event["content_block"] | {"json": ""}
            message["content"].append(open_block)
            continue
        assert open_block is not None
        assert event["index"] == len(message["content"]) - 1
        if event["type"] == "content_block_stop":
            arguments = open_block.pop("json")
            if open_block["type"] == "tool_use" and arguments:
                open_block["input"] = json.loads(arguments)
            open_block = None
            continue
        kind = event["delta"].pop("type")
        ((field, value),) = event["delta"].items()
        assert kind == {"partial_json": "input_json_delta"}.get(field, f"{field}_delta")
        key = "json" if field == "partial_json" else field
        open_block[key] += value
    assert open_block is None
    message |= stream[-2]["delta"]
    message["usage"] |= stream[-2]["usage"]
    return message


def recorded_chunks() -> tuple[list[dict[str, Any]], list[Chunk]]:
    recorded = events(CAPTURE.read_bytes().partition(b"event-stream\n\n")[2])
    chunks = []
    for event in recorded:
        delta, block = event.get("delta", {}), event.get("content_block", {})
        if delta.get("type") == "thinking_delta":
            chunks.append(thought(delta["thinking"]))
        elif block.get("type") == "tool_use":
            chunks.append(call(0, block["name"], id=block["id"]))
        elif delta.get("type") == "input_json_delta":
            chunks.append(call(0, arguments=delta["partial_json"]))
    return recorded, chunks


def test_like_a_recorded_answer() -> None:
    recorded, chunks = recorded_chunks()
    made = streamed(chunks, ended(prompt=607, count=46))
    # What differs on purpose: ids and names, no estimate of the input, fields the dialect's own maker sends.
    recorded[0]["message"] |= {"id": "msg_r1", "model": "mine", "stop_reason": None, "stop_sequence": None}
    recorded[0]["message"]["usage"]["input_tokens"] = 0
    recorded[1]["content_block"]["signature"] = ""
    recorded[-2]["delta"]["stop_sequence"] = None
    (signature,) = (event for event in made if event.get("delta", {}).get("type") == "signature_delta")
    assert signature == {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "signature_delta", "signature": ""},
    }
    made.remove(signature)
    assert made == recorded


def test_bytes_of_a_stream() -> None:
    made = reply(True)
    assert made.content_type == "text/event-stream"
    assert made.feed(text("a\n\u2028😀")).decode() == (
        'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_r1","type":"message",'
        '"role":"assistant","model":"mine","content":[],"stop_reason":null,"stop_sequence":null,'
        '"usage":{"input_tokens":0,"output_tokens":0}}}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        '"content_block":{"type":"text","text":""}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"a\\n\u2028😀"}}\n\n'
    )
    assert made.finish(ended()).decode() == (
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
        '"usage":{"input_tokens":7,"output_tokens":3}}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )


def test_a_whole_message() -> None:
    chunks = [thought("hm"), thought("m"), text("Let "), text("me."), call(0, "f", '{"a":1.50}', "c1"), call(1, "g")]
    assert json.dumps(whole(chunks)) == json.dumps(
        {
            "id": "msg_r1",
            "type": "message",
            "role": "assistant",
            "model": "mine",
            "content": [
                {"type": "thinking", "thinking": "hmm", "signature": ""},
                {"type": "text", "text": "Let me."},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1.5}},
                {"type": "tool_use", "id": "toolu_r1_3", "name": "g", "input": {}},
            ],
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 7, "output_tokens": 3},
        }
    )


def test_nothing_said() -> None:
    assert [event["type"] for event in streamed([text("")])] == ["message_start", "message_delta", "message_stop"]
    assert streamed([]) == streamed([text("")])
    assert whole([])["content"] == []


def test_each_text_is_sent_at_once() -> None:
    made = reply(True)
    for number, word in enumerate(["a", "b", "c"]):
        sent = events(made.feed(text(word)))
        assert sent[-1]["delta"] == {"type": "text_delta", "text": word}
        assert len(sent) == (3 if number == 0 else 1)


@pytest.mark.parametrize(
    ("reason", "stop", "said"),
    [
        (EndReason.FINISHED, ["END"], ("end_turn", None)),
        (EndReason.LENGTH, ["END"], ("max_tokens", None)),
        (EndReason.STOP, ["END"], ("stop_sequence", "END")),
        (EndReason.STOP, ["END", "STOP"], ("stop_sequence", None)),
        (EndReason.ABORTED, [], (None, None)),
    ],
)
def test_why_it_stopped(reason: EndReason, stop: list[str], said: tuple[str | None, str | None]) -> None:
    delta = streamed([text("a")], ended(reason), stop_sequences=stop)[-2]["delta"]
    message = whole([text("a")], ended(reason), stop_sequences=stop)
    assert (delta["stop_reason"], delta["stop_sequence"]) == said
    assert (message["stop_reason"], message["stop_sequence"]) == said


def test_calls_cut_off_by_length_are_no_tool_use() -> None:
    chunks = [call(0, "f", '{"a":')]
    assert streamed(chunks, ended(EndReason.LENGTH))[-2]["delta"]["stop_reason"] == "max_tokens"
    message = whole(chunks, ended(EndReason.LENGTH))
    assert message["stop_reason"] == "max_tokens"
    assert message["content"][0]["input"] == {"INVALID_JSON": '{"a":'}


@pytest.mark.parametrize("arguments", ['"a"', "[1]", "{", "{}{}", "[" * 100_000])
def test_arguments_that_are_no_object(arguments: str) -> None:
    assert whole([call(0, "f", arguments)])["content"][0]["input"] == {"INVALID_JSON": arguments}


def test_no_tokens_show_none() -> None:
    chunks = [text("a"), call(0, "f", "{}")]
    message = whole(chunks, max_tokens=0)
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
    assert message["usage"] == {"input_tokens": 7, "output_tokens": 0}
    assert assembled(streamed(chunks, max_tokens=0)) == message
    assert whole(chunks, ended(EndReason.ABORTED), max_tokens=0)["stop_reason"] is None


def test_counts() -> None:
    assert whole([], ended(prompt=None, count=None))["usage"] == {"input_tokens": 0, "output_tokens": 5}
    assert streamed([], ended(prompt=None, count=None))[-2]["usage"] == {"output_tokens": 5}
    made = reply(False, COUNT_PATH)
    assert made.feed(text("a")) == b""
    assert made.finish(ended(EndReason.LENGTH)) == b'{"input_tokens":7}'
    with pytest.raises(InvalidRequest):
        made.finish(ended(prompt=None))
    cut = ReplyEnd(GenerationEnd(EndReason.LENGTH, 7, prompt_tokens_dropped=100), 1, 1, None, None, None)
    assert made.finish(cut) == b'{"input_tokens":107}'


def test_thinking_can_be_hidden() -> None:
    chunks = [thought("secret"), text("open")]
    thinking = {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}
    message = whole(chunks, thinking=thinking)
    assert message["content"][0] == {"type": "thinking", "thinking": "", "signature": ""}
    assert assembled(streamed(chunks, thinking=thinking)) == message


def test_mixed_calls_are_put_in_order() -> None:
    chunks = [call(0, "f", '{"a"', "c0"), call(1, "g", '{"b"', "c1"), text("and")]
    chunks += [call(1, arguments=":2}"), call(0, arguments=":1}")]
    made = reply(True)
    held = [made.feed(chunk) for chunk in chunks]
    assert held[1:4] == [b"", b"", b""]
    assert [event["type"] for event in events(held[4])] == [
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
    ]
    message = assembled(events(b"".join([*held, made.finish(ended())])))
    assert message == whole(chunks)
    assert [block.get("input") for block in message["content"]] == [{"a": 1}, {"b": 2}, None]


def test_servers_that_number_every_call_0() -> None:
    for first, second in (("c0", "c1"), ("", "")):
        chunks = [call(0, "f", '{"a":1}', first), call(0, "f", '{"a":2}', second)]
        message = assembled(streamed(chunks))
        assert [block["input"] for block in message["content"]] == [{"a": 1}, {"a": 2}]
        assert len({block["id"] for block in message["content"]}) == 2
        assert message == whole(chunks)


def test_a_name_said_twice_is_one_call() -> None:
    chunks = [call(0, "f", '{"a":', "c0"), call(0, "f", "1}", "c0")]
    assert assembled(streamed(chunks))["content"] == [{"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}}]


def test_what_no_stream_can_be_made_of() -> None:
    with pytest.raises(UpstreamProtocolError, match="name"):
        reply(True).feed(call(0, arguments="{}"))
    made = reply(True)
    made.feed(call(0, "f", "{}"))
    made.feed(text("a"))
    assert made.feed(call(0, arguments=" \n")) == b""
    with pytest.raises(UpstreamProtocolError, match="went on"):
        made.feed(call(0, arguments="{}"))


@pytest.mark.parametrize("stream", [True, False])
def test_answers_have_a_bound(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anthropic_reply, "ANSWER_CHARS_MAX", 10)
    made = reply(stream)
    made.feed(text("12345"))
    made.feed(call(0, "f", "12345"))
    with pytest.raises(UpstreamProtocolError, match="longer than 10"):
        made.feed(thought("1"))


def test_errors_end_a_stream() -> None:
    made = reply(True)
    made.feed(text("a"))
    (event,) = events(made.fail(UpstreamTruncated("the stream broke off")))
    assert event == {"type": "error", "error": {"type": "api_error", "message": "the stream broke off"}}
    assert json.loads(reply(False).fail(UpstreamTruncated("x")))["error"]["type"] == "api_error"
    assert json.loads(reply(False, COUNT_PATH).fail(UpstreamTruncated("x")))["type"] == "error"


arguments = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[Chunk], dict[str, str], list[dict[str, Any]]]:
    """Chunks of an answer, its text by kind, and the inputs of its calls; pieces of all of it are mixed."""
    words = draw(st.lists(st.tuples(st.sampled_from(["text", "thinking"]), st.text(max_size=6)), max_size=8))
    queues = [[text(part) if kind == "text" else thought(part) for kind, part in words]]
    inputs = draw(st.lists(arguments, max_size=3))
    for index, value in enumerate(inputs):
        body = json.dumps(value)
        cuts = sorted(draw(st.sets(st.integers(0, len(body)), max_size=3)) | {0, len(body)})
        pieces = [call(index, arguments=body[a:b]) for a, b in itertools.pairwise(cuts)]
        queues.append([call(index, f"f{index}", id=f"c{index}"), *pieces])
    chunks = []
    while any(queues):
        chunks.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    by_kind = {kind: "".join(part for this, part in words if this == kind) for kind in ("text", "thinking")}
    return chunks, by_kind, inputs


@given(answers(), st.sampled_from([EndReason.FINISHED, EndReason.LENGTH]))
def test_any_mix_gives_a_legal_stream_and_loses_nothing(
    answer: tuple[list[Chunk], dict[str, str], list[dict[str, Any]]], reason: EndReason
) -> None:
    chunks, by_kind, inputs = answer
    message = assembled(streamed(chunks, ended(reason)))
    assert message == whole(chunks, ended(reason))
    for kind, words in by_kind.items():
        assert "".join(block.get(kind, "") for block in message["content"] if block["type"] == kind) == words
    calls = {block["name"]: block["input"] for block in message["content"] if block["type"] == "tool_use"}
    assert calls == {f"f{index}": value for index, value in enumerate(inputs)}
