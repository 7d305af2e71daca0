"""Ollama's answers made from the chunks of any runtime: they look as its own do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest, ModelNotFound, UpstreamProtocolError, UpstreamTruncated
from engine.domain.generation import Chunk, EndReason, TokenKind, TokenLogprob, ToolCallPart, TopEntry
from tests.fakes.ollama import capture
from tests.transport.wire.dialects.ollama_replies import CREATED, CREATED_S, asked, end, facts, records_of, replied
from transport.wire.dialects import ollama
from transport.wire.dialects.ollama_records import rfc3339
from transport.wire.dialects.ollama_reply import ARGUMENTS_CHARS_MAX, CALLS_MAX
from transport.wire.dialects.reply import ReplyEnd
from transport.wire.ollama import RecordStream

TIMES = ("created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def said(text: str, kind: TokenKind = TokenKind.ANSWER, t_us: int = 0, **rest: Any) -> Chunk:
    return Chunk(text, t_us, kind, **rest)


def part(index: int, name: str = "", arguments: str = "", id_: str = "") -> Chunk:
    return said(arguments, TokenKind.TOOL, tool_calls=(ToolCallPart(index, name, arguments, id_),))


def timeless(record: dict[str, Any]) -> list[tuple[str, Any]]:
    """The fields in their order; of those that are times only the names."""
    return [(name, None if name in TIMES else value) for name, value in record.items()]


def chunks_of(name: str) -> list[Chunk]:
    """A recorded answer as another runtime would give it: without its records."""
    stream = RecordStream()
    found = [*stream.feed(capture(name)[1], 7), *stream.finish(7)]
    return [Chunk(c.text, c.t_us, c.kind, c.logprobs, c.end, b"", c.tool_calls) for c in found]


def ended(chunks: list[Chunk]) -> ReplyEnd:
    last = chunks[-1].end
    assert last is not None
    return ReplyEnd(last, 3, total_ms=9.5, load_ms=1.0, prompt_ms=2.0, generation_ms=4.0)


# ── as Ollama's own ──


@pytest.mark.parametrize(
    ("name", "path", "wanted"),
    [
        ("chat-logprobs", "/api/chat", {"logprobs": True, "top_logprobs": 2}),
        ("generate-logprobs", "/api/generate", {"logprobs": True, "top_logprobs": 3}),
        ("chat-think-tools", "/api/chat", {}),
        ("generate-context", "/api/generate", {}),
        ("chat-nostream", "/api/chat", {"stream": False}),
    ],
)
def test_made_records_are_those_of_the_real_thing(name: str, path: str, wanted: dict[str, Any]):
    chunks = chunks_of(name)
    data = replied(asked(path, **wanted), chunks, ended(chunks), native=False)
    found = [timeless(record | {"model": "m"}) for record in map(json.loads, data.splitlines())]
    expected = [json.loads(line) for line in capture(name)[1].splitlines()]
    for record in expected:
        record.pop("context", None)  # Ollama's own token ids
    assert found == [timeless(record | {"model": "m"}) for record in expected]


@pytest.mark.parametrize("name", ["load", "unload"])
@pytest.mark.parametrize("streaming", [True, False])
def test_loads_are_answered_as_ollama_does(name: str, streaming: bool):
    keep_alive = {"keep_alive": 0} if name == "unload" else {}
    body = {"model": "bigram", "stream": streaming} | keep_alive
    request = ollama.parse("/api/generate", json.dumps(body).encode())
    expected = json.loads(capture(name)[1]) | {"model": "alias", "created_at": CREATED}
    reply = ollama.reply_for(request, False, facts())
    assert reply.content_type == "application/json; charset=utf-8"
    assert list(json.loads(reply.finish(end())).items()) == list(expected.items())
    assert json.loads(ollama.load_body(request, facts())) == expected


def test_a_chat_that_only_loads():
    request = asked(messages=[])
    assert ollama.load_body(request, facts()) == (
        b'{"model":"alias","created_at":"2026-11-20T10:29:46.25Z","message":{"role":"assistant","content":""},'
        b'"done":true,"done_reason":"load"}'
    )


def test_counts_and_durations_are_in_nanoseconds_and_zeros_are_left_out():
    (last,) = records_of(replied(asked(), [], end(EndReason.LENGTH, prompt_tokens=7, eval_count=5), native=False))
    assert list(last.items())[3:] == [
        ("done", True), ("done_reason", "length"), ("total_duration", 9_500_000), ("load_duration", 1_000_000),
        ("prompt_eval_count", 7), ("prompt_eval_duration", 2_000_000), ("eval_count", 5), ("eval_duration", 4_000_000),
    ]  # fmt: skip
    nothing = ReplyEnd(end(eval_count=0).end, 0, total_ms=1.0, load_ms=None, prompt_ms=None, generation_ms=None)
    (last,) = records_of(replied(asked(), [], nothing, native=False))
    assert list(last)[3:] == ["done", "done_reason", "total_duration"]


def test_the_load_is_as_long_as_the_runtime_says_when_nobody_measured_it():
    unmeasured = ReplyEnd(end(load_ms=3.0).end, 1, total_ms=9.0, load_ms=None, prompt_ms=None, generation_ms=None)
    (last,) = records_of(replied(asked(), [], unmeasured, native=False))
    assert last["load_duration"] == 3_000_000


def test_our_own_count_stands_in_where_the_runtime_has_none():
    (last,) = records_of(replied(asked(), [], end(tokens=4), native=False))
    assert last["eval_count"] == 4
    assert "prompt_eval_count" not in last


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (EndReason.FINISHED, "stop"),
        (EndReason.STOP, "stop"),
        (EndReason.LENGTH, "length"),
        (EndReason.ABORTED, None),
        (EndReason.SHUTDOWN, None),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_reasons(reason: EndReason, word: str | None, path: str):
    last = records_of(replied(asked(path), [said("a")], end(reason), native=False))[-1]
    assert last["done"] is True
    assert last.get("done_reason") == word


@pytest.mark.parametrize("reason", [EndReason.TRUNCATED, EndReason.ERROR])
def test_an_answer_that_broke_off_ends_with_an_error(reason: EndReason):
    broke = {"error": "the runtime broke off before the end of the answer"}
    assert records_of(replied(asked(), [said("a")], end(reason), native=False))[-1] == broke
    assert json.loads(replied(asked(stream=False), [said("a")], end(reason), native=False)) == broke


def test_created_at_follows_the_chunks():
    chunks = [said("a", t_us=5_000_000), said("b", t_us=5_000_050), said("c", t_us=6_750_000)]
    stamps = [record["created_at"] for record in records_of(replied(asked(), chunks, end(), native=False))]
    assert stamps == [CREATED, "2026-11-20T10:29:46.25005Z", "2026-11-20T10:29:48Z", "2026-11-20T10:29:48Z"]
    assert rfc3339(round(CREATED_S * 1e6) + 999) == "2026-11-20T10:29:46.250999Z"


def test_created_at_never_goes_back():
    chunks = [said("a", t_us=5_000_000), said("b", t_us=5_500_000), said("c", t_us=5_100_000)]
    stamps = [record["created_at"] for record in records_of(replied(asked(), chunks, end(), native=False))]
    assert stamps == sorted(stamps)


# ── log-probabilities ──


def test_a_whole_answer_has_them_where_ollama_does():
    chunks = [said("a", logprobs=(TokenLogprob("a", -1.0),))]
    found = json.loads(replied(asked("/api/generate", stream=False, logprobs=True), chunks, end(), native=False))
    assert list(found)[-1] == "logprobs"
    found = json.loads(replied(asked(stream=False, logprobs=True), chunks, end(), native=False))
    assert list(found)[4:7] == ["done_reason", "logprobs", "total_duration"]


def test_alternatives_are_the_best_as_many_as_asked_for():
    top = (TopEntry("b", -2.0), TopEntry("é", -0.5), TopEntry("c", -3.0))
    chunk = said("é", logprobs=(TokenLogprob("é", -0.5, top),))

    def entries(**wanted: Any) -> Any:
        return records_of(replied(asked(**wanted), [chunk], end(), native=False))[0].get("logprobs")

    assert entries() is None
    assert entries(top_logprobs=2) is None
    bare = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    assert entries(logprobs=True) == [bare]
    both = {**bare, "top_logprobs": [bare, {"token": "b", "logprob": -2.0, "bytes": [98]}]}
    assert entries(logprobs=True, top_logprobs=2) == [both]
    assert len(entries(logprobs=True, top_logprobs=20)[0]["top_logprobs"]) == 3


def test_log_probabilities_without_text_are_kept_for_who_asked():
    silent = said("", logprobs=(TokenLogprob("<", -1.0),))
    call = part(0, "f", "{}")
    call = Chunk(call.text, 0, call.kind, (TokenLogprob("{}", -1.0),), None, b"", call.tool_calls)
    assert len(records_of(replied(asked(), [silent, call], end(), native=False))) == 2  # the call and the end
    found = records_of(replied(asked(logprobs=True), [silent, call], end(), native=False))
    assert ["".join(entry["token"] for entry in record.get("logprobs", ())) for record in found] == ["<", "{}", "", ""]


# ── tool calls ──


def calls_of(chunks: list[Chunk], **fields: Any) -> tuple[list[Any], str]:
    """The calls, and the text; streaming and whole must agree."""
    streamed = [record["message"] for record in records_of(replied(asked(**fields), chunks, end(), native=False))]
    whole = json.loads(replied(asked(stream=False, **fields), chunks, end(), native=False))["message"]
    calls = [call for message in streamed for call in message.get("tool_calls", ())]
    text = "".join(message["content"] for message in streamed)
    assert (calls, text) == (whole.get("tool_calls", []), whole["content"])
    return calls, text


def test_calls_that_come_in_pieces_are_given_whole():
    chunks = [
        said("Let me look."),
        part(0, "weather", "", "call_1"),
        part(0, arguments='{"city": '),
        part(1, "now"),
        part(0, arguments='"Oslo"}'),
    ]
    calls, text = calls_of(chunks)
    assert text == "Let me look."
    assert calls[0] == {
        "id": "call_1",
        "function": {"index": 0, "name": "weather", "arguments": {"city": "Oslo"}},
    }
    assert calls[1]["function"] == {"index": 1, "name": "now", "arguments": {}}
    assert calls[1]["id"].startswith("call_")
    assert len(calls[1]["id"]) == len("call_dc858wh6")


def test_a_call_is_given_before_the_text_that_follows_it():
    found = records_of(replied(asked(), [part(0, "f", '{"a":1}'), said("done"), part(0, "g")], end(), native=False))
    said_ = [(m["content"], [c["function"]["name"] for c in m.get("tool_calls", ())]) for m in _messages(found)]
    assert said_ == [("", ["f"]), ("done", []), ("", ["g"]), ("", [])]
    ids = {call["id"] for message in _messages(found) for call in message.get("tool_calls", ())}
    assert len(ids) == 2


def test_calls_are_in_the_order_of_their_indices():
    calls, _ = calls_of([part(1, "second"), part(0, "first")])
    assert [call["function"]["name"] for call in calls] == ["first", "second"]


def test_what_was_given_counts_no_more():
    reply = ollama.reply_for(asked(), False, facts())
    for _ in range(2):
        reply.feed(part(0, "f", "x" * (ARGUMENTS_CHARS_MAX - 1)))
        reply.feed(said("text"))


def _messages(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["message"] for record in records]


@pytest.mark.parametrize("arguments", ['{"city": "Os', "[1]", '"Oslo"', "Oslo", '{"a":1} {"b":2}', "[" * 100_000])
def test_a_call_that_is_none_is_given_as_text(arguments: str):
    calls, text = calls_of([part(0, "ok"), part(1, "weather", arguments)])
    assert [call["function"]["name"] for call in calls] == ["ok"]
    assert json.loads(text) == {"name": "weather", "arguments": arguments}


def test_a_call_without_a_name_or_without_parts_is_text():
    assert json.loads(calls_of([part(0, "", '{"a":1}')])[1]) == {"name": "", "arguments": '{"a":1}'}
    assert calls_of([said("<call>", TokenKind.TOOL)]) == ([], "<call>")


@pytest.mark.parametrize(
    "chunks",
    [
        [part(index, "f") for index in range(CALLS_MAX + 1)],
        [part(0, "f"), part(0, arguments="x" * ARGUMENTS_CHARS_MAX)],
    ],
)
def test_calls_have_bounds(chunks: list[Chunk]):
    reply = ollama.reply_for(asked(), False, facts())
    with pytest.raises(UpstreamProtocolError, match="tools"):
        for chunk in chunks:
            reply.feed(chunk)


def test_a_prompt_can_be_answered_with_a_call():
    found = json.loads(replied(asked("/api/generate", stream=False), [part(0, "f")], end(), native=False))
    assert list(found)[-1] == "tool_calls"
    assert found["response"] == ""


# ── errors ──


def test_errors():
    reply = ollama.reply_for(asked(), False, facts())
    assert reply.content_type == "application/x-ndjson"
    assert reply.fail(UpstreamTruncated("it broke off")) == b'{"error":"it broke off"}\n'
    whole = ollama.reply_for(asked(stream=False), False, facts())
    assert whole.fail(UpstreamTruncated("it broke off")) == b'{"error":"it broke off"}'
    assert ollama.error_body(InvalidRequest("no", field="x")) == b'{"error":"no"}'
    missing = json.loads(ollama.error_body(ModelNotFound("get it with `wf pull m`", model="m")))
    assert missing == {"error": "model 'm' not found: get it with `wf pull m`"}
    assert ollama.error_body(ModelNotFound("none")) == b'{"error":"none"}'


# ── any split ──


kinds = st.sampled_from([TokenKind.ANSWER, TokenKind.THINKING])


@given(st.lists(st.tuples(kinds, st.text(max_size=8)), max_size=10), st.sampled_from(["/api/chat", "/api/generate"]))
def test_any_split_of_a_text_says_the_same(spoken: list[tuple[TokenKind, str]], path: str):
    chunks = [said(text, kind, logprobs=(TokenLogprob(text, -1.0),)) for kind, text in spoken]

    def texts(records: list[dict[str, Any]]) -> tuple[str, str]:
        found = [record.get("message", record) for record in records]
        answer = "".join(message.get("content", message.get("response", "")) for message in found)
        return answer, "".join(message.get("thinking", "") for message in found)

    expected = tuple(
        "".join(text for kind, text in spoken if kind is wanted) for wanted in (TokenKind.ANSWER, TokenKind.THINKING)
    )
    streamed = records_of(replied(asked(path, logprobs=True), chunks, end(), native=False))
    whole = json.loads(replied(asked(path, logprobs=True, stream=False), chunks, end(), native=False))
    assert texts(streamed) == texts([whole]) == expected
    token_bytes = bytes(byte for entry in whole.get("logprobs", ()) for byte in entry.get("bytes", ()))
    assert token_bytes == "".join(text for _, text in spoken).encode()
    assert [entry for record in streamed for entry in record.get("logprobs", ())] == whole.get("logprobs", [])
