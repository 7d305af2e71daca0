"""Records of a real Ollama handed on: what the client gets is what it would have got without us."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import UpstreamProtocolError, UpstreamTruncated
from engine.domain.generation import Chunk, EndReason
from tests.fakes.ollama import capture
from tests.transport.wire.dialects.ollama_replies import asked, end, facts, records_of, replied
from transport.wire.dialects import ollama
from transport.wire.dialects.ollama_native import WHOLE_BYTES_MAX
from transport.wire.ollama import RecordStream

WANTED = {"logprobs": True, "top_logprobs": 2}


def recorded(name: str) -> tuple[list[dict[str, Any]], list[Chunk]]:
    """The lines of a recorded answer, and its chunks."""
    body = capture(name)[1]
    lines = [json.loads(line) for line in body.splitlines()]
    return lines, chunks_of(body)


def chunks_of(body: bytes) -> list[Chunk]:
    stream = RecordStream()
    return [*stream.feed(body, 7), *stream.finish(7)]


def lines_of(*records: dict[str, Any]) -> list[Chunk]:
    return chunks_of(b"".join(json.dumps(record).encode() + b"\n" for record in records))


def without(record: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in fields}


def exact(value: object) -> str:
    """Equal texts: equal values with their fields in the same order."""
    return json.dumps(value)


# ── streams ──


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("chat-think-tools", "/api/chat"),
        ("generate-context", "/api/generate"),
        ("chat-logprobs", "/api/chat"),
        ("generate-logprobs", "/api/generate"),
    ],
)
def test_a_client_that_asked_for_none_gets_every_record_without_log_probabilities(name: str, path: str):
    lines, chunks = recorded(name)
    data = replied(asked(path), chunks, end(), native=True)
    assert exact(records_of(data)) == exact([without(line, "logprobs") | {"model": "alias"} for line in lines])


def test_log_probabilities_asked_for_are_as_they_came_less_what_we_asked_beyond():
    lines, chunks = recorded("generate-logprobs")  # it has three alternatives
    for top in (0, 2, 3, 10):
        data = replied(asked("/api/generate", logprobs=True, top_logprobs=top), chunks, end(), native=True)
        expected = [line | {"model": "alias"} for line in json.loads(json.dumps(lines))]
        for line in expected:
            for entry in line.get("logprobs", ()):
                entry["top_logprobs"] = entry["top_logprobs"][:top]
                if not top:
                    del entry["top_logprobs"]
        assert exact(records_of(data)) == exact(expected)


def test_records_that_only_our_asking_caused_are_left_out():
    entry = {"token": "<", "logprob": -0.5, "bytes": [60], "top_logprobs": []}
    head = {"model": "m", "created_at": "2026-11-20T10:29:46Z"}
    silent = {**head, "message": {"role": "assistant", "content": ""}, "done": False}
    caused = {**silent, "logprobs": [entry]}
    odd = {**caused, "completed": 3}
    call = {"function": {"name": "f", "arguments": {}}}
    called = {**head, "message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False}
    thought = {**head, "message": {"role": "assistant", "content": "", "thinking": "h"}, "done": False}
    last = {**caused, "done": True, "done_reason": "stop", "eval_count": 3}
    chunks = lines_of(caused, silent, odd, {**called, "logprobs": [entry]}, {**thought, "logprobs": [entry]}, last)
    found = records_of(replied(asked(), chunks, end(), native=True))
    kept = (silent, without(odd, "logprobs"), called, thought, without(last, "logprobs"))
    assert exact(found) == exact([record | {"model": "alias"} for record in kept])
    found = records_of(replied(asked(logprobs=True), chunks, end(), native=True))
    assert len(found) == 6  # who asked for them gets them


def test_the_same_of_generate():
    blank = {"model": "m", "created_at": "2026-11-20T10:29:46Z", "response": "", "done": False}
    chunks = lines_of(
        {**blank, "logprobs": [{"token": "x", "logprob": -1}]}, {**blank, "response": "x"}, {**blank, "done": True}
    )
    assert [
        record["response"] for record in records_of(replied(asked("/api/generate"), chunks, end(), native=True))
    ] == [
        "x",
        "",
    ]


def test_unknown_fields_and_numbers_stay_as_they_are_written():
    line = b'{"model":"m","zz":{"b":1.50,"a":[1e2]},"message":{"role":"assistant","content":"\\u003c"},"done":false}\n'
    reply = ollama.reply_for(asked(), True, facts())
    (chunk,) = chunks_of(line)
    assert reply.feed(chunk) == line.replace(b'"m"', b'"alias"')


@pytest.mark.parametrize("reason", [EndReason.TRUNCATED, EndReason.ERROR])
def test_a_stream_that_just_stops_gets_an_error_at_its_end(reason: EndReason):
    lines, chunks = recorded("repeat-guard")
    found = records_of(replied(asked("/api/generate"), chunks, end(reason), native=True))
    assert exact(found[:-1]) == exact([line | {"model": "alias"} for line in lines])
    assert found[-1] == {"error": "the runtime broke off before the end of the answer"}


def test_a_stream_that_was_stopped_ends_without_a_reason():
    _, chunks = recorded("chat-logprobs")
    last = records_of(replied(asked(), chunks[:2], end(EndReason.ABORTED), native=True))[-1]
    assert last["done"] is True
    assert "done_reason" not in last
    assert last["eval_count"] == 2


def test_a_failure_is_the_dialect_s_error_line():
    reply = ollama.reply_for(asked(), True, facts())
    assert reply.content_type == "application/x-ndjson"
    assert reply.fail(UpstreamTruncated("it broke off")) == b'{"error":"it broke off"}\n'
    whole = ollama.reply_for(asked(stream=False), True, facts())
    assert whole.content_type == "application/json; charset=utf-8"
    assert whole.fail(UpstreamTruncated("it broke off")) == b'{"error":"it broke off"}'


def test_the_terminal_record_goes_out_whatever_it_holds_and_nothing_after_it():
    entry = {"token": "x", "logprob": -1.0, "top_logprobs": [{"token": str(n), "logprob": -1.0} for n in range(10)]}
    last = {"model": "m", "response": "", "done": True, "logprobs": [entry]}
    (chunk,) = lines_of(last)
    found = records_of(replied(asked("/api/generate"), [chunk, chunk], end(), native=True))
    assert found == [without(last, "logprobs") | {"model": "alias"}]
    wanted = asked("/api/generate", logprobs=True, top_logprobs=5)
    (found_last,) = records_of(replied(wanted, [chunk], end(), native=True))
    assert found_last["logprobs"] == [entry | {"top_logprobs": entry["top_logprobs"][:5]}]
    whole = json.loads(replied(asked("/api/generate", stream=False), [chunk, chunk], end(), native=True))
    assert whole == found[0]


# ── whole ──


def test_a_whole_answer_is_what_the_runtime_itself_gives():
    """The same question was recorded both ways; only times differ."""
    expected = json.loads(capture("chat-nostream")[1])
    _, chunks = recorded("chat-logprobs")
    found = json.loads(replied(asked(stream=False), chunks, end(), native=True))
    assert list(found) == list(expected)
    times = ("model", "created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    assert exact(without(found, *times)) == exact(without(expected, *times))
    assert found["model"] == "alias"


def test_a_whole_answer_in_one_record_is_that_record():
    body = capture("chat-nostream")[1]
    found = replied(asked(stream=False), chunks_of(body), end(), native=True)
    assert exact(json.loads(found)) == exact(json.loads(body) | {"model": "alias"})


def test_a_whole_chat_with_thinking_calls_and_log_probabilities():
    lines, chunks = recorded("chat-think-tools")
    found = json.loads(replied(asked(stream=False), chunks, end(), native=True))
    message = {
        "role": "assistant",
        "content": "",
        "thinking": "".join(line["message"].get("thinking", "") for line in lines),
        "tool_calls": lines[-2]["message"]["tool_calls"],
    }
    assert exact(found) == exact(lines[-1] | {"model": "alias", "message": message})
    lines, chunks = recorded("chat-logprobs")
    found = json.loads(replied(asked(stream=False, **WANTED), chunks, end(), native=True))
    assert found["logprobs"] == [entry for line in lines for entry in line.get("logprobs", ())]
    assert list(found)[:7] == ["model", "created_at", "message", "done", "done_reason", "logprobs", "total_duration"]


def test_a_whole_answer_to_a_prompt():
    lines, chunks = recorded("generate-context")
    found = json.loads(replied(asked("/api/generate", stream=False), chunks, end(), native=True))
    assert exact(found) == exact(lines[-1] | {"model": "alias", "response": " the model is"})
    lines, chunks = recorded("generate-logprobs")
    found = json.loads(replied(asked("/api/generate", stream=False, **WANTED), chunks, end(), native=True))
    assert list(found)[-1] == "logprobs"
    assert [len(entry["top_logprobs"]) for entry in found["logprobs"]] == [2, 2, 2]


def test_a_whole_prompt_with_thinking_has_it_behind_the_response():
    blank = {"model": "m", "created_at": "2026-11-20T10:29:46Z", "response": "", "done": False}
    chunks = lines_of({**blank, "thinking": "so"}, {**blank, "response": "x"}, {**blank, "done": True})
    found = json.loads(replied(asked("/api/generate", stream=False), chunks, end(), native=True))
    assert list(found.items())[2:4] == [("response", "x"), ("thinking", "so")]


def test_a_whole_answer_that_broke_off_or_was_stopped():
    _, chunks = recorded("repeat-guard")
    request = asked("/api/generate", stream=False)
    assert "error" in json.loads(replied(request, chunks, end(EndReason.TRUNCATED), native=True))
    found = json.loads(replied(request, chunks, end(EndReason.ABORTED), native=True))
    assert found["response"] == '"aaa'
    assert found["done"] is True


@pytest.mark.parametrize("name", ["load", "unload"])
def test_a_load_is_answered_whole_though_it_streams(name: str):
    body = capture(name)[1]
    request = ollama.parse("/api/generate", b'{"model":"alias"}')
    reply = ollama.reply_for(request, True, facts())
    assert reply.content_type == "application/json; charset=utf-8"
    assert [reply.feed(chunk) for chunk in chunks_of(body)] == [b""]
    assert exact(json.loads(reply.finish(end()))) == exact(json.loads(body) | {"model": "alias"})


def test_a_whole_answer_has_a_bound():
    reply = ollama.reply_for(asked(stream=False), True, facts())
    text = "x" * (WHOLE_BYTES_MAX // 8)
    record = {"model": "m", "message": {"role": "assistant", "content": text}, "done": False}
    chunk = Chunk(text, 7, raw=json.dumps(record).encode())
    for _ in range(8):
        reply.feed(chunk)
    with pytest.raises(UpstreamProtocolError, match="stream"):
        reply.feed(chunk)


@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), max_size=8), st.booleans())
def test_nothing_of_the_text_is_lost_or_changed(said: list[tuple[str, str]], wanted: bool):
    """Thinking and text, each with a log-probability per record: streamed and whole say the same."""
    records = [
        {
            "model": "m",
            "message": {"role": "assistant", "content": text} | ({"thinking": thought} if thought else {}),
            "done": False,
            "logprobs": [{"token": thought + text, "logprob": -1.0, "bytes": list((thought + text).encode())}],
        }
        for thought, text in said
    ]
    last = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    chunks = lines_of(*records, last)
    texts = ("".join(text for _, text in said), "".join(thought for thought, _ in said))
    streamed = records_of(replied(asked(logprobs=wanted), chunks, end(), native=True))
    whole = json.loads(replied(asked(logprobs=wanted, stream=False), chunks, end(), native=True))
    for found in ([record["message"] for record in streamed], [whole["message"]]):
        assert "".join(message["content"] for message in found) == texts[0]
        assert "".join(message.get("thinking", "") for message in found) == texts[1]
    token_bytes = [byte for entry in whole.get("logprobs", ()) for byte in entry["bytes"]]
    assert bytes(token_bytes) == ("".join(thought + text for thought, text in said).encode() if wanted else b"")
    assert [entry for record in streamed for entry in record.get("logprobs", ())] == whole.get("logprobs", [])
