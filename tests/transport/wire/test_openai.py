"""The OpenAI dialect against recorded answers of a real server, and against events no server should send."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
)
from engine.domain.generation import Chunk, EndReason, GenerationEnd, TokenKind, TokenLogprob, TopEntry
from tests.fakes.ollama import capture
from tests.fakes.openai import DONE, delta, entry, event, finish, usage
from tests.fakes.streams import json_values, places, read_through, split_at, text_of
from transport.wire import openai
from transport.wire.openai import ChunkStream

COMPLETE = ("openai-chat-logprobs", "openai-think-tools")


def read(chunks: list[bytes], secret: str = "") -> tuple[list[Chunk], ChunkStream, EngineError | None]:
    return read_through(ChunkStream(secret), chunks)


def read_all(*events: bytes) -> list[Chunk]:
    chunks, _, error = read([b"".join(events)])
    assert error is None
    return chunks


def data_of(body: bytes) -> list[bytes]:
    return [line.removeprefix(b"data: ") for line in body.splitlines() if line]


# ── recorded answers ──


def test_chat_with_log_probabilities():
    body = capture("openai-chat-logprobs")[1]
    chunks, stream, error = read([body])
    assert error is None
    top = (TopEntry(" the", -2.239345073699951), TopEntry(" .", -2.344510316848755))
    assert chunks[0] == Chunk(
        " the", 7, logprobs=(TokenLogprob(" the", -2.239345073699951, top),), raw=data_of(body)[0]
    )
    assert text_of(chunks) == " the model is"
    assert chunks[-1] == Chunk("", 7, end=GenerationEnd(EndReason.LENGTH, 56, 3), raw=b"[DONE]")
    assert (stream.ended, stream.late_records, stream.cut, stream.logprobs) == (True, 0, False, 3)


def test_chat_with_thinking_and_a_tool_call():
    chunks = read_all(capture("openai-think-tools")[1])
    assert text_of(chunks, TokenKind.THINKING) == "The user wants the weather, so call the tool."
    function = {"name": "get_weather", "arguments": '{"city":"Oslo"}'}
    call = {"id": "call_49yu8k70", "index": 0, "type": "function", "function": function}
    assert text_of(chunks, TokenKind.TOOL) == json.dumps(call, separators=(",", ":"))
    assert text_of(chunks) == ""
    assert chunks[-1].end == GenerationEnd(EndReason.FINISHED)


def test_a_crash_leaves_no_end():
    chunks, stream, error = read([capture("crash-openai")[1]])
    assert (text_of(chunks), stream.ended, error) == (" fih measu( hig", False, None)
    assert all(chunk.end is None for chunk in chunks)


@pytest.mark.parametrize("name", [*COMPLETE, "crash-openai"])
def test_chunking_changes_nothing_and_the_wire_is_kept(name: str):
    body = capture(name)[1]
    chunks, whole, error = read([body])
    single, bytewise, single_error = read([body[at : at + 1] for at in range(len(body))])
    assert chunks == single
    assert (whole.ended, error, single_error) == (bytewise.ended, None, None)
    assert [chunk.raw for chunk in chunks] == data_of(body)


@pytest.mark.parametrize("name", COMPLETE)
def test_what_follows_done_is_ignored_and_counted(name: str):
    body = capture(name)[1].rstrip() + b"\n\n"
    first = read([body])[0]
    for trailing in (event({}), DONE, b"no field\n", event({"error": "late"}), b"data: \xff\n\n"):
        for pieces in ([body + trailing], [body, trailing], [body, trailing[:3], trailing[3:]]):
            chunks, stream, error = read(pieces)
            assert (chunks, error, stream.late_records) == (first, None, 1)
    assert read([body, event({}) + event({}), b"data: half"])[1].late_records == 3


def test_cut_anywhere_it_is_an_end_only_after_a_finish_reason():
    body = capture("openai-chat-logprobs")[1].rstrip()
    finished = body.index(b'"finish_reason":"length"}]}') + len(b'"finish_reason":"length"}]}')
    for size in range(len(body)):
        chunks, stream, error = read([body[:size]])
        assert error is None
        assert stream.ended == (size >= finished)
        assert [chunk.end is not None for chunk in chunks].count(True) == (size >= finished)
        last = body[:size].rpartition(b"\n")[2]
        assert stream.cut == (last not in (b"", *body.splitlines())), last


def test_the_end_without_counts_or_done():
    assert read_all(delta("a"), finish())[-1] == Chunk("", 7, end=GenerationEnd(EndReason.FINISHED))
    assert read_all(delta("a"), finish(), DONE.strip())[-1].raw == b"[DONE]"
    assert read_all(delta("a"), finish(), usage(), b"data: [DO")[-1].end == GenerationEnd(EndReason.FINISHED, 3, 2)
    chunks, stream, _ = read([delta("a") + DONE + delta("b")])
    assert [chunk.end for chunk in chunks] == [None, None]
    assert (stream.ended, stream.finishing, stream.late_records) == (True, False, 1)


@pytest.mark.parametrize(
    ("reason", "more", "expected"),
    [
        ("stop", {}, EndReason.FINISHED),
        ("stop", {"stop_reason": None}, EndReason.FINISHED),
        ("stop", {"stop_reason": 128009}, EndReason.FINISHED),
        ("stop", {"stop_reason": "###"}, EndReason.STOP),
        ("length", {}, EndReason.LENGTH),
        ("content_filter", {}, EndReason.FINISHED),
        ("tool_calls", {}, EndReason.FINISHED),
        ("something new", {}, EndReason.FINISHED),
    ],
)
def test_why_it_ended(reason: str, more: dict[str, object], expected: EndReason):
    assert read_all(finish(reason, **more), DONE)[-1].end == GenerationEnd(expected)


def test_counts_may_come_with_every_chunk():
    growing = [
        {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 9, "completion_tokens": n}}
        for n in (1, 2)
    ]
    nothing = {"choices": [], "usage": None}
    chunks = read_all(*map(event, [*growing, nothing]), finish(), DONE)
    assert chunks[-1].end == GenerationEnd(EndReason.FINISHED, 9, 2)


# ── the shape of events ──


def kinds_of(data: bytes) -> list[tuple[TokenKind, str, list[str]]]:
    return [(chunk.kind, chunk.text, [item.token for item in chunk.logprobs]) for chunk in read_all(data)]


def test_thinking_has_two_names():
    assert kinds_of(delta(None, reasoning="t")) == [(TokenKind.THINKING, "t", [])]
    assert kinds_of(delta("", reasoning_content="t")) == [(TokenKind.THINKING, "t", [])]
    assert kinds_of(delta(None, reasoning="t", reasoning_content="t")) == [(TokenKind.THINKING, "t", [])]
    both = delta("c", entry("a"), entry("b"), entry("c"), reasoning="ab")
    assert kinds_of(both) == [(TokenKind.THINKING, "ab", ["a", "b"]), (TokenKind.ANSWER, "c", ["c"])]
    unlike = delta("c", entry("a"), entry("c"), reasoning="x")
    assert kinds_of(unlike) == [(TokenKind.THINKING, "x", []), (TokenKind.ANSWER, "c", ["a", "c"])]
    assert [bool(chunk.raw) for chunk in read_all(both)] == [True, False]


def test_what_carries_no_text():
    assert kinds_of(delta(None, role="assistant")) == [(TokenKind.ANSWER, "", [])]
    assert kinds_of(delta(None, entry("<th"))) == [(TokenKind.ANSWER, "", ["<th"])]
    assert kinds_of(usage()) == [(TokenKind.ANSWER, "", [])]
    assert kinds_of(event({"choices": [{"index": 1, "delta": {"content": "another"}}]})) == [(TokenKind.ANSWER, "", [])]


def test_a_refusal_of_the_model_is_its_answer():
    assert kinds_of(delta(None, refusal="I cannot")) == [(TokenKind.ANSWER, "I cannot", [])]


def test_parts_of_tool_calls():
    first = delta(None, tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}])
    second = delta(None, tool_calls=[{"index": 0, "function": {"arguments": '{"n":'}}, {"index": 1}])
    assert text_of(read_all(first, second), TokenKind.TOOL) == (
        '{"index":0,"id":"c","function":{"name":"f","arguments":""}}'
        '{"index":0,"function":{"arguments":"{\\"n\\":"}}{"index":1}'
    )


def test_tokens_that_are_parts_of_characters():
    tick = "✅".encode()
    parts = [
        entry("a", data=b"a"),
        entry("\ufffd", data=tick[:2]),
        entry("\ufffd", data=tick[2:]),
        entry("b", data=b"b"),
    ]
    assert kinds_of(delta("a✅b", *parts)) == [(TokenKind.ANSWER, "a✅b", ["a", "", "✅", "b"])]
    # bytes that do not spell the text either: as reported
    assert kinds_of(delta("x", *parts[:2])) == [(TokenKind.ANSWER, "x", ["a", "\ufffd"])]
    assert kinds_of(delta("x", entry("y", data=b"\xff"), entry("z"))) == [(TokenKind.ANSWER, "x", ["y", "z"])]


def test_log_probabilities_of_llama_cpp():
    lowest = -3.4028234663852886e38
    top = [{"id": 5, "token": "a", "logprob": 1e-7}, {"id": 6, "token": "b", "logprob": lowest}]
    (chunk,) = read_all(delta("a", entry("a", 1e-7, id=5, top_logprobs=top)))
    assert chunk.logprobs == (TokenLogprob("a", 0.0, (TopEntry("a", 0.0), TopEntry("b", lowest))),)


def completion(text: str, **logprobs: object) -> bytes:
    return event({"object": "text_completion", "choices": [{"index": 0, "text": text, "logprobs": logprobs or None}]})


def test_text_completions():
    lists = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1], "top_logprobs": [{"a": -0.5, "x": -2}, None]}
    (chunk,) = read_all(completion("ab", **lists, text_offset=[0, 1]))
    assert (chunk.text, chunk.logprobs) == (
        "ab",
        (TokenLogprob("a", -0.5, (TopEntry("a", -0.5), TopEntry("x", -2))), TokenLogprob("b", -1)),
    )
    assert read_all(completion("ab"))[0].logprobs == ()
    for part in ({"tokens": ["a"]}, {"token_logprobs": [-0.5, None]}, {"top_logprobs": [{}]}):
        assert read_all(completion("ab", **(lists | part)))[0].logprobs == ()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (event({"error": {"message": "out of memory", "type": "server_error", "code": 500}}), ": out of memory"),
        (event({"error": "out of memory"}), ": out of memory"),
        (event({"error": {"code": None}}), "an error: "),
        (event({"object": "error", "message": "out of memory", "code": 400}), ": out of memory"),
        (finish("error"), "broke off its answer (error)"),
        (finish("abort"), "broke off its answer (abort)"),
    ],
)
def test_errors_in_the_middle_come_after_the_text_before_them(fault: bytes, said: str):
    chunks, stream, error = read([delta("a") + fault + delta("b")])
    assert isinstance(error, UpstreamProtocolError)
    assert error.message.endswith(said)
    assert (text_of(chunks), stream.ended) == ("a", False)


# ── events no server should send ──

HOSTILE = {
    "no event": b"secret\n\n",
    "not utf-8": b'data: {"choices":[{"delta":{"content":"secret \xff"}}]}\n\n',
    "not utf-8 in a field nobody reads": b'data: {"id":"\xff"}\n\n',
    "lone surrogate": b'data: {"choices":[{"text":"\\ud800"}]}\n\n',
    "wrong type": b'data: {"choices":"secret"}\n\n',
    "not an object": b'data: ["secret"]\n\n',
    "broken": b'data: {"choices":[{"text":"secret"}\n\n',
    "nearly done": b"data: [done]\n\n",
    "NaN": b'data: {"choices":[{"logprobs":{"content":[{"token":"secret","logprob":NaN}]}}]}\n\n',
    "infinite": b'data: {"choices":[{"logprobs":{"content":[{"token":"secret","logprob":-1e999}]}}]}\n\n',
    "positive": delta("secret", entry("secret", 0.5)),
    "not a byte": event({"choices": [{"logprobs": {"content": [{"token": "a", "logprob": -1, "bytes": [256]}]}}]}),
    "negative count": usage(-1),
    "huge count": usage(2**63),
    "huge token": delta("a", entry("x" * 16_385)),
    "many choices": event({"choices": [{}] * 17}),
    "nested": b'data: {"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}\n\n",
    "nested call": b'data: {"choices":[{"delta":{"tool_calls":[' + b"[" * 200_000 + b"]" * 200_000 + b"]}}]}\n\n",
    "huge line": b"data: " + b"x" * 1_048_577,
    "huge event": b"data: xxxxxxxx\n" * 131_072,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_events_say_nothing_of_what_they_hold(name: str):
    chunks, stream, error = read([delta("fine") + HOSTILE[name], b""])
    assert isinstance(error, UpstreamProtocolError)
    assert "secret" not in error.message
    assert "xxxx" not in error.message
    assert (text_of(chunks), stream.ended) == ("fine", False)


fields = st.sampled_from(
    "choices index delta content reasoning tool_calls text finish_reason stop_reason logprobs token logprob bytes "
    "tokens token_logprobs top_logprobs usage prompt_tokens completion_tokens error object message other".split()
)
values = json_values(fields)
choices = st.fixed_dictionaries({}, optional={"delta": values, "logprobs": values, "text": st.text(max_size=3)})


@given(
    st.binary(max_size=60)
    | st.dictionaries(fields, values, max_size=6).map(event)
    | choices.map(lambda choice: event({"choices": [choice]})),
    st.integers(0, 60),
)
@example(event({"choices": [{"delta": {"tool_calls": [None]}}]}), 0)
@example(event({"choices": None, "usage": None, "error": None}), 9)
def test_any_bytes_are_chunks_or_a_protocol_error_whatever_the_chunking(data: bytes, at: int):
    chunks, _, error = read([data])
    split, _, split_error = read([data[:at], data[at:]])
    assert (chunks, repr(error)) == (split, repr(split_error))
    assert error is None or type(error) is UpstreamProtocolError
    for chunk in chunks:
        chunk.text.encode()
        assert all(item.logprob <= 0 for item in chunk.logprobs)


events = st.sampled_from(
    [delta("é✅"), delta("\u2028", entry("\u2028")), delta("c", entry("t"), entry("c"), reasoning="t"), delta()]
    + [finish(), finish("length"), usage(), DONE, DONE.replace(b"\n", b"\r\n"), b": comment\n\n", b"\n"]
    + [data for data in HOSTILE.values() if len(data) < 100]
) | st.binary(max_size=20)


@given(st.lists(events, max_size=8).map(b"".join), places)
@example(delta("a") + finish() + usage() + DONE + delta("late"), range(7, 1000, 7))
@example(delta("a") + finish() + DONE.strip(), range(7, 1000, 7))
def test_any_chunking_gives_the_same_chunks(body: bytes, at: Sequence[int]):
    chunks, whole, error = read([body])
    split, pieces, split_error = read(split_at(body, at))
    assert (chunks, repr(error)) == (split, repr(split_error))
    assert getattr(error, "details", None) == getattr(split_error, "details", None)
    assert (whole.ended, whole.finishing, whole.cut) == (pieces.ended, pieces.finishing, pieces.cut)
    assert whole.logprobs == pieces.logprobs
    # What cannot be read after the end counts as one with all that its read holds, so the figure may differ.
    assert (whole.late_records > 0) == (pieces.late_records > 0)


@given(st.binary(max_size=80))
def test_any_answer_is_a_value_or_a_protocol_error(body: bytes):
    with suppress(UpstreamProtocolError):
        assert isinstance(openai.listed_models(body), list)
    assert isinstance(openai.error_text(body), str)


def test_what_a_template_takes():
    assert openai.takes_tools(b'{"chat_template_caps":{"supports_tools":true}}')
    assert openai.takes_tools(b"{}")
    assert not openai.takes_tools(b'{"chat_template_caps":{"supports_tools":false},"modalities":{}}')


# ── refusals ──


def test_refusals():
    status, body = capture("err-404-openai")
    error = openai.refusal(status, openai.error_text(body), "nope", "vllm")
    assert isinstance(error, ModelNotFound)
    assert error.message == "vllm has no model nope: model 'nope' not found"
    kinds = {
        400: InvalidRequest,
        401: RuntimeUnavailable,
        403: RuntimeUnavailable,
        404: UpstreamProtocolError,  # no such path: nothing is said about a model
        422: InvalidRequest,
        429: Overloaded,
        500: UpstreamProtocolError,
        503: Overloaded,
    }
    assert {status: type(openai.refusal(status, "", "m", "vllm")) for status in kinds} == kinds
    for body in (b'{"error":{"message":"no"}}', b'{"error":"no"}', b'{"object":"error","message":"no"}'):
        assert openai.error_text(body) == "no"
    assert [openai.error_text(body) for body in (b"<html>", b"[]", b'{"error":5}', b'{"detail":"Not Found"}')] == [
        ""
    ] * 4


def test_error_texts_hold_no_secret_and_no_prompt():
    assert openai.reported("wrong key sk-1 given\x1b", "sk-1") == "wrong key … given?"
    assert openai.reported("[{'type': 'x', 'input': 'my prompt'}]") == "[{'type': 'x', "
    assert openai.reported("bad [type=str, input_value='my prompt']") == "bad [type=str, "
    assert len(openai.reported("x" * 1000)) == 200
    assert "sk-1" not in openai.refusal(400, "bad sk-1", "m", "vllm", "sk-1").message
    assert "sk-" not in openai.refusal(401, "Incorrect API key: sk-****x", "m", "vllm", "sk-1").message
    _, _, error = read([event({"error": {"message": "bad sk-1"}})], secret="sk-1")
    assert error is not None
    assert "sk-1" not in error.message
    assert "sk-1" not in repr(ChunkStream("sk-1"))


def test_refusals_because_of_log_probabilities():
    assert openai.about_logprobs(400, "Requested sample logprobs of 10, which is greater than max allowed: 5")
    assert openai.about_logprobs(403, "You are not allowed to request logprobs from this model")
    assert not openai.about_logprobs(400, "top_k is not supported")
    assert not openai.about_logprobs(500, "logprobs")
