from __future__ import annotations

import math
import re

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode

from engine.domain.energy import EnergyMeter, EnergySample, Phase
from engine.domain.events import (
    HEARTBEAT,
    TOKEN,
    EnergyUpdatePayload,
    Event,
    HeartbeatPayload,
    StreamReading,
    TokensPayload,
)
from engine.domain.frames import Frame, Perf
from engine.domain.generation import Token, TokenKind, TopEntry
from tests.domain.strategies import PARAMS, token
from transport.wire.frames import (
    encode_event,
    encode_frame,
    encode_system,
    line_head,
    line_of,
    sse,
    text_frame,
)

PERF = Perf(lateness_ms=0.4, frame_ms=0.12, queue_depth=0, degrade=0, merged=0, dropped_visual=0)
HARD_TEXTS = [
    "",
    "\n",
    "\r\n\r\n",
    "data: x\n\nevent: y",
    "\u2028\u2029",
    "\x00\x1b[31m",
    "\U0001f642",
    "</script>",
    '"\\',
]
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(HARD_TEXTS)  # what UTF-8 can say
any_float = st.floats() | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan])


def sample(token: Token) -> EnergySample:
    return EnergyMeter.started(PARAMS, 0).token(token)


def tokens_event(*tokens: Token) -> Event:
    return Event(TOKEN, "s", TokensPayload("s:0", "a", tuple(map(sample, tokens))))


def tokens_of(event: Event, with_top: bool = False):
    return msgspec.json.decode(encode_event(event, with_top=with_top))["payload"]["tokens"]


# ── WebSocket framing ──


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_a_text_frame_is_read_back_by_a_real_client(size):
    payload = b"x" * size
    client = FrameProtocol(client=True, extensions=[])
    client.receive_bytes(text_frame(payload))
    frames = list(client.received_frames())
    assert b"".join(frame.payload.encode() for frame in frames) == payload
    assert frames[0].opcode is Opcode.TEXT
    assert frames[-1].message_finished


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_the_head_of_a_frame_is_the_shortest_for_its_size(size, head):
    frame = text_frame(b"x" * size)
    assert frame[: len(head)] == head
    assert len(frame) == len(head) + size


# ── messages ──


@given(
    st.integers(0, 2**53), st.integers(0, 2**53), st.integers(0, 2**53), st.lists(texts, max_size=4)
)  # stamps beyond 2^53 µs are 285 years away
def test_a_frame_message_decodes_to_what_was_put_in(number, ts_ms, mono_us, said):
    tokens = [msgspec.structs.replace(token(i, i, None), text=text) for i, text in enumerate(said)]
    event = tokens_event(*tokens)
    data = encode_event(event, with_top=False)
    message = msgspec.json.decode(encode_frame(Frame(number, ts_ms, mono_us, PERF, (event,)), [data, data]))
    assert list(message) == ["v", "frame", "ts_ms", "mono_ms", "perf", "events"]
    assert (message["v"], message["frame"], message["ts_ms"]) == ("1.0", number, ts_ms)
    assert message["mono_ms"] == mono_us / 1000
    assert message["perf"] == attrs.asdict(PERF)
    assert len(message["events"]) == 2
    assert [t["text"] for t in message["events"][0]["payload"]["tokens"]] == said


def test_a_frame_without_events_is_whole():
    assert msgspec.json.decode(encode_frame(Frame(1, 2, 3, PERF, ()), []))["events"] == []


@given(texts, st.integers(0, 2**53), st.floats(0, 1e12))
def test_a_system_message_has_no_frame_number(text, ts_ms, mono_ms):
    message = msgspec.json.decode(encode_system("system.pong", {"id": text}, ts_ms, mono_ms))
    assert message == {
        "v": "1.0",
        "frame": None,
        "ts_ms": ts_ms,
        "mono_ms": mono_ms,
        "perf": None,
        "events": [{"type": "system.pong", "session_id": None, "payload": {"id": text}}],
    }


# ── numbers ──


@given(any_float, any_float)
def test_what_is_not_finite_goes_out_as_null(logprob, other):
    entry = msgspec.structs.replace(token(0, 0, None), logprob=logprob, top=(TopEntry("a", other),))
    (item,) = tokens_of(tokens_event(entry), with_top=True)
    assert item["logprob"] == (logprob if math.isfinite(logprob) else None)
    assert item["top"] == [{"token": "a", "logprob": other if math.isfinite(other) else None}]


@given(any_float)
def test_no_message_ever_holds_a_number_that_json_has_not(value):
    reading = StreamReading(
        "s:0", "a", Phase.FLOWING, value, value, value, value, value, value, value, value, False, False, False, 1, 0
    )
    event = Event("energy.update", "s", EnergyUpdatePayload(1, value, value, value, (reading,)))
    text = encode_event(event, with_top=False)
    assert not re.search(rb"NaN|Infinity|inf", text)
    assert msgspec.json.decode(text)["payload"]["streams"][0]["energy"] == (value if math.isfinite(value) else None)


def test_times_are_milliseconds_and_the_stamp_stays_whole_microseconds():
    first, second = token(0, 1_234_567, None), token(1, 1_300_001, 65_434)
    items = tokens_of(tokens_event(first, second))
    assert [item["t_us"] for item in items] == [1_234_567, 1_300_001]
    assert [item["delta_ms"] for item in items] == [None, 65.434]


def test_top_is_absent_unless_asked_for_and_empty_when_there_was_none():
    event = tokens_event(token(0, 0, None, [-0.5, -1.0]), token(1, 1, 1))
    assert all("top" not in item for item in tokens_of(event))
    assert [len(item["top"]) for item in tokens_of(event, with_top=True)] == [2, 0]


def test_a_payload_without_tokens_is_the_same_with_and_without_top():
    event = Event(HEARTBEAT, None, HeartbeatPayload(60.0, 1.0, 2, 0))
    assert encode_event(event, with_top=True) == encode_event(event, with_top=False)


# ── event streams ──


@given(texts, st.integers(0, 2**53))
def test_any_text_stays_one_line_of_ndjson_and_one_sse_event(text, number):
    event = tokens_event(msgspec.structs.replace(token(0, 0, None), text=text))
    line = line_of(line_head(Frame(1, 1, 2_500, PERF, ())), encode_event(event, with_top=False))
    assert b"\n" not in line
    assert b"\r" not in line
    record = sse(line, event.type, number)
    assert record == b"event: experience.token\nid: %d\ndata: %s\n\n" % (number, line)
    assert record.count(b"\n") == 4
    assert msgspec.json.decode(line)["payload"]["tokens"][0]["text"] == text


def test_a_line_has_the_stamps_of_its_frame():
    event = tokens_event(token(0, 0, None))
    line = msgspec.json.decode(line_of(line_head(Frame(1, 17, 2_500, PERF, ())), encode_event(event, with_top=False)))
    assert list(line) == ["v", "ts_ms", "mono_ms", "type", "session_id", "payload"]
    assert (line["ts_ms"], line["mono_ms"], line["session_id"]) == (17, 2.5, "s")


@pytest.mark.parametrize("kind", list(TokenKind))
def test_a_kind_goes_out_as_its_word(kind):
    (item,) = tokens_of(tokens_event(msgspec.structs.replace(token(0, 0, None), kind=kind)))
    assert item["kind"] == kind.value
