"""Ollama's dialect against recorded answers of a real server, and against lines no server should send."""

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
from tests.fakes.ollama import capture, done, record
from tests.fakes.streams import json_values, places, read_through, split_at, text_of
from transport.wire import ollama
from transport.wire.ollama import RecordStream, parse_record

COMPLETE = (
    "chat-logprobs",
    "chat-nostream",
    "chat-think-tools",
    "generate-context",
    "generate-logprobs",
    "load",
    "unload",
)
INCOMPLETE = ("crash-chat", "crash-generate", "crash-nostream", "repeat-guard")


def read(chunks: list[bytes]) -> tuple[list[Chunk], RecordStream, EngineError | None]:
    return read_through(RecordStream(), chunks)


# ── recorded answers ──


def test_generate_with_log_probabilities():
    lines = capture("generate-logprobs")[1].splitlines()
    chunks, stream, error = read([capture("generate-logprobs")[1]])
    assert error is None
    assert chunks[0] == Chunk(
        text=" streams",
        t_us=7,
        logprobs=(
            TokenLogprob(
                " streams",
                -0.9269763827323914,
                (
                    TopEntry(" streams", -0.9269763827323914),
                    TopEntry(" stops", -0.9269763827323914),
                    TopEntry(" the", -3.7960565090179443),
                ),
            ),
        ),
        raw=lines[0],
    )
    assert text_of(chunks) == " streams tokens ."
    assert chunks[-1] == Chunk("", 7, end=GenerationEnd(EndReason.LENGTH, 3, 3, load_ms=1.496992), raw=lines[-1])
    assert (stream.ended, stream.late_records, stream.cut) == (True, 0, False)


def test_chat_with_thinking_and_a_tool_call():
    chunks, _, error = read([capture("chat-think-tools")[1]])
    assert error is None
    assert text_of(chunks, TokenKind.THINKING) == "The user wants the weather, so call the tool."
    call = {"id": "call_dc858wh6", "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}}}
    assert text_of(chunks, TokenKind.TOOL) == json.dumps(call, separators=(",", ":"))
    assert text_of(chunks) == ""
    assert chunks[-1].end == GenerationEnd(EndReason.FINISHED, 649, 46, load_ms=3.128684)


@pytest.mark.parametrize("name", ["crash-chat", "crash-generate", "crash-nostream"])
def test_a_crash_of_the_runner_is_told_after_the_text_before_it(name: str):
    chunks, stream, error = read([capture(name)[1]])
    assert isinstance(error, UpstreamProtocolError)
    assert error.message.endswith("an error was encountered while running the model: unexpected EOF")
    assert len(chunks) == (0 if name == "crash-nostream" else 10)
    assert not stream.ended


def test_the_repeat_guard_just_stops():
    chunks, stream, error = read([capture("repeat-guard")[1]])
    assert (text_of(chunks), stream.ended, error) == ('"aaa', False, None)


@pytest.mark.parametrize("name", COMPLETE + INCOMPLETE)
def test_chunking_changes_nothing_and_the_wire_is_kept(name: str):
    body = capture(name)[1]
    chunks, whole, error = read([body])
    single, bytewise, single_error = read([body[at : at + 1] for at in range(len(body))])
    assert chunks == single
    assert (whole.ended, repr(error)) == (bytewise.ended, repr(single_error))
    assert [chunk.raw for chunk in chunks] == [line for line in body.splitlines() if not line.startswith(b'{"error"')]
    assert whole.ended == (name in COMPLETE)


@pytest.mark.parametrize("name", COMPLETE)
def test_what_follows_the_terminal_record_is_ignored_and_counted(name: str):
    body = capture(name)[1].rstrip() + b"\n"
    first = read([body])[0]
    for trailing in (body, b"not json\n", b'{"error":"late"}\n', b"\xff\n"):
        chunks, stream, error = read([body + trailing])
        assert (chunks, error) == (first, None)
        assert stream.late_records == len(trailing.splitlines())
        later, stream, error = read([body, trailing, b"half"])
        assert (later, error) == (first, None)
        assert stream.late_records == len(trailing.splitlines()) + 1


@pytest.mark.parametrize("name", COMPLETE)
def test_cut_anywhere_it_is_not_complete_and_not_an_error(name: str):
    body = capture(name)[1].rstrip()
    for size in range(len(body)):
        _, stream, error = read([body[:size]])
        assert error is None
        assert not stream.ended
        assert stream.cut == (body[:size].rpartition(b"\n")[2] not in (b"", *body.splitlines()))
    assert read([body])[1].ended


def test_listings():
    tags = ollama.decode(capture("tags")[1], ollama.Tags).models
    assert tags is not None
    assert [model.name for model in tags] == [
        "scripted:latest",
        "toolish:latest",
        "slow:latest",
        "bigram:latest",
        "rnd:v1",
    ]
    assert tags[0].size == 4_265_302
    assert tags[0].capabilities == ["completion", "tools", "thinking"]
    assert tags[0].details.context_length == 2048
    assert not any(model.remote for model in tags)
    loaded = ollama.decode(capture("ps")[1], ollama.Running).models
    assert loaded is not None
    assert [(model.name, model.size, model.size_vram) for model in loaded] == [
        ("bigram:latest", 24_893_194, 0),
        ("scripted:latest", 15_749_610, 0),
        ("slow:latest", 202_459_053, 0),
    ]
    assert ollama.decode(capture("version")[1], ollama.Version).version == "0.33.0-rc2"
    assert ollama.decode(b'{"models":null}', ollama.Tags).models is None


def test_refusals():
    status, body = capture("err-404")
    error = ollama.refusal(status, ollama.error_text(body), "nope", "ollama")
    assert isinstance(error, ModelNotFound)
    assert error.message == "ollama has no model nope; get it with `ollama pull nope`"
    status, body = capture("err-400")
    error = ollama.refusal(status, ollama.error_text(body), "bigram", "ollama")
    assert isinstance(error, InvalidRequest)
    assert error.message.endswith("top_logprobs must be between 0 and 20")
    assert ollama.about_logprobs(status, ollama.error_text(body))
    for status, kind in ((503, Overloaded), (429, Overloaded), (403, RuntimeUnavailable), (500, UpstreamProtocolError)):
        assert type(ollama.refusal(status, "", "m", "ollama")) is kind


# ── the shape of records ──


def test_counts_that_go_leaves_out():
    def end(**values: object) -> GenerationEnd | None:
        return parse_record(json.dumps({"done": True} | values).encode(), 0)[-1].end

    assert end() == GenerationEnd(EndReason.FINISHED)
    assert end(done_reason="length", eval_count=4) == GenerationEnd(EndReason.LENGTH, None, 4)
    assert end(done_reason="stop", eval_duration=900, prompt_eval_count=5) == GenerationEnd(EndReason.FINISHED, 5, 0)
    assert (
        end(done_reason="load") == end(done_reason="unload") == end(done_reason="") == GenerationEnd(EndReason.FINISHED)
    )


def entry(token: str, logprob: float = -1.0) -> dict[str, object]:
    return {"token": token, "logprob": logprob}


def kinds_of(**message: object) -> list[tuple[TokenKind, str, list[str]]]:
    logprobs = message.pop("logprobs", None)
    line = json.dumps({"message": message, "logprobs": logprobs}).encode()
    return [(chunk.kind, chunk.text, [item.token for item in chunk.logprobs]) for chunk in parse_record(line, 0)]


def test_thinking_and_content_in_one_record_are_two_chunks():
    both = [entry("a"), entry("b"), entry("c")]
    thinking, answer = TokenKind.THINKING, TokenKind.ANSWER
    assert kinds_of(thinking="ab", content="c", logprobs=both) == [(thinking, "ab", ["a", "b"]), (answer, "c", ["c"])]
    assert kinds_of(thinking="x", content="c", logprobs=both) == [(thinking, "x", []), (answer, "c", ["a", "b", "c"])]
    line = b'{"message":{"thinking":"t","content":"c"},"done":true}'
    first, second = parse_record(line, 3)
    assert (first.raw, second.raw, first.end, second.end is not None) == (line, b"", None, True)


def test_log_probabilities_may_come_without_text_and_be_fewer_than_tokens():
    assert kinds_of(content="", logprobs=[entry("<th"), entry("ink>")]) == [(TokenKind.ANSWER, "", ["<th", "ink>"])]
    assert kinds_of(content="two tokens", logprobs=[entry(" tokens")]) == [
        (TokenKind.ANSWER, "two tokens", [" tokens"])
    ]
    assert kinds_of(content="x", logprobs=None) == [(TokenKind.ANSWER, "x", [])]


def test_tool_calls_are_compact_json():
    line = b'{"message":{"content":"", "tool_calls":[ {"function": {"name": "f", "arguments": {"n": 1.50}}}, {} ]}}'
    (chunk,) = parse_record(line, 0)
    assert (chunk.kind, chunk.text) == (TokenKind.TOOL, '{"function":{"name":"f","arguments":{"n":1.50}}}{}')


def test_a_logprob_a_little_above_zero_is_rounding():
    line = b'{"response":"a","logprobs":[{"token":"a","logprob":1e-7}]}'
    assert parse_record(line, 0)[0].logprobs[0].logprob == 0.0


def test_an_answer_from_another_machine_is_refused():
    with pytest.raises(UpstreamProtocolError, match="another machine"):
        parse_record(b'{"response":"hi","remote_host":"https://ollama.com"}', 0)


# ── lines no server should send ──

HOSTILE = {
    "not utf-8": (b'{"response":"secret \xff"}', 20),
    "not utf-8 in a field nobody reads": (b'{"created_at":"\xff"}', 15),
    "lone surrogate": (b'{"response":"\\ud800"}', 0),
    "wrong type": (b'{"response":5}', 0),
    "not an object": (b'["secret"]', 0),
    "broken": (b'{"response":"secret"', 0),
    "NaN": (b'{"logprobs":[{"token":"a","logprob":NaN}]}', 36),
    "infinite": (b'{"logprobs":[{"token":"a","logprob":-1e999}]}', 0),
    "positive": (b'{"logprobs":[{"token":"a","logprob":0.5}]}', 0),
    "negative count": (b'{"done":true,"eval_count":-1}', 0),
    "huge count": (b'{"done":true,"eval_count":9223372036854775807}', 0),
    "huge token": (b'{"logprobs":[{"token":"%s","logprob":-1}]}' % (b"x" * 16_385), 0),
    "nested": (b'{"context":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 0),
    "nested call": (b'{"message":{"tool_calls":[' + b"[" * 200_000 + b"]" * 200_000 + b"]}}", 0),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_records_name_their_place_and_nothing_else(name: str):
    line, at = HOSTILE[name]
    before = record("fine")
    chunks, stream, error = read([before + line + b"\n"])
    assert isinstance(error, UpstreamProtocolError)
    assert error.details == {"offset": len(before) + at}
    assert f"at byte {len(before) + at}: " in error.message
    assert "secret" not in error.message
    assert "xxxx" not in error.message
    assert (text_of(chunks), stream.ended) == ("fine", False)


fields = st.sampled_from(
    "response thinking message content tool_calls done done_reason logprobs token logprob top_logprobs eval_count "
    "prompt_eval_count eval_duration error remote_host other".split()
)
values = json_values(fields)


@given(
    st.binary(max_size=60) | st.dictionaries(fields, values, max_size=6).map(lambda value: json.dumps(value).encode())
)
@example(b'{"message":{"tool_calls":[null]}}')
@example(b'{"message":null,"logprobs":null,"tool_calls":null}')
def test_any_line_is_chunks_or_a_protocol_error(line: bytes):
    try:
        chunks = parse_record(line, 5)
    except UpstreamProtocolError:
        return
    assert chunks[0].raw == line
    assert {chunk.t_us for chunk in chunks} == {5}
    assert all(chunk.end is None for chunk in chunks[:-1])
    for chunk in chunks:
        chunk.text.encode()
        assert all(entry.logprob <= 0 for entry in chunk.logprobs)


lines = st.sampled_from(
    [record("é✅"), record("\u2028", logprobs=[entry("\u2028")]), record(thinking="t"), done(), b"\n", b" \r\n"]
    + [line + b"\r\n" for line, _ in HOSTILE.values() if len(line) < 100]
) | st.binary(max_size=20)


@given(st.lists(lines, max_size=8).map(b"".join), places)
@example(record("a") + done() + record("late"), range(7, 1000, 7))
@example(record("a") + done().strip(), range(7, 1000, 7))
def test_any_chunking_gives_the_same_chunks(body: bytes, at: Sequence[int]):
    chunks, whole, error = read([body])
    split, pieces, split_error = read(split_at(body, at))
    assert (chunks, repr(error)) == (split, repr(split_error))
    assert getattr(error, "details", None) == getattr(split_error, "details", None)
    assert (whole.ended, whole.cut, whole.late_records) == (pieces.ended, pieces.cut, pieces.late_records)


@given(st.binary(max_size=80))
def test_any_answer_is_a_value_or_a_protocol_error(body: bytes):
    for kind in (ollama.Tags, ollama.Running, ollama.Version, ollama.PullProgress):
        with suppress(UpstreamProtocolError):
            assert isinstance(ollama.decode(body, kind), kind)
    assert isinstance(ollama.error_text(body), str)


def test_reported_text_is_short_and_printable_and_quotes_no_answer():
    assert ollama.reported("bad\x1b[31m\nthing") == "bad?[31m?thing"
    assert len(ollama.reported("x" * 1000)) == 200
    assert ollama.reported("error parsing tool call: raw='my answer', err=eof") == "error parsing tool call:"


# ── names and lengths ──


def test_the_length_of_a_refused_prompt():
    refusal = {"error": {"code": 400, "message": "exceeds the context size", "n_prompt_tokens": 3502, "n_ctx": 2048}}
    assert ollama.context_excess(400, json.dumps(refusal)) == 3502
    assert ollama.context_excess(400, "the prompt exceeds the context length") == 0
    assert ollama.context_excess(400, '"m" does not support chat') is None
    assert ollama.context_excess(500, "context") is None


def test_names():
    cloud = ("gpt-oss:120b-cloud", "kimi:cloud", "a/b:CLOUD", "hf.co/a/b:x-cloud")
    local = ("cloud", "cloud/x:latest", "my-cloud:7b", "a:cloudy")
    assert [ollama.is_cloud_name(name) for name in cloud + local] == [True] * 4 + [False] * 4
    assert ollama.full_name("a/b") == "a/b:latest"
    assert ollama.full_name("a:7b") == "a:7b"


def test_done_records_of_loads():
    assert ollama.load_done(capture("load")[1])
    assert not ollama.load_done(record())
    assert ollama.load_done(done())


# ── log-probabilities that are not what they should be ──

odd = st.one_of(st.none(), st.floats(0.0, 1e-3, exclude_min=True))


@given(st.lists(st.floats(max_value=0.0, allow_nan=False, allow_infinity=False), min_size=1, max_size=6), st.data())
def test_an_odd_value_changes_nothing_about_the_others(values, data):
    """One entry a little above zero, or null, and the record is read in another way; what it says stays."""
    at = data.draw(st.integers(0, len(values)))
    strange = data.draw(odd)
    top = [{"token": f"t{n}", "logprob": value} for n, value in enumerate(values)]
    mixed = [*top[:at], {"token": "odd", "logprob": strange}, *top[at:]]

    def told(alternatives):
        entry = {"token": "a", "logprob": -0.5, "top_logprobs": alternatives}
        (chunk,) = parse_record(json.dumps({"response": "a", "logprobs": [entry]}).encode(), 0)
        return chunk

    (plain,), (found,) = told(top).logprobs, told(mixed).logprobs
    assert plain.top == tuple(TopEntry(f"t{n}", value) for n, value in enumerate(values))
    assert tuple(one for one in found.top if one.token != "odd") == plain.top
    assert [one.logprob for one in found.top if one.token == "odd"] == ([] if strange is None else [0.0])
