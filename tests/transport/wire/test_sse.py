"""Server-sent events: fields, chunking, and what no server should send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import UpstreamProtocolError
from transport.wire.sse import Event, EventStream

FIELDS = b"data: a|data:b|data|event: e|id: 1|: ping|retry: 5|\r|\xff|\0|junk\n|\xef\xbb\xbf|\xe2\x80\xa8|\xc2\x85"
ENDS = b"\n|\n|\r\n|\n\n|\r\n\r\n"
pieces = st.lists(st.sampled_from(FIELDS.split(b"|")) | st.sampled_from(ENDS.split(b"|")), max_size=30)


def read(chunks: list[bytes], max_bytes: int = 1024) -> tuple[list[Event], Event | str | None]:
    """The events, and what the stream ended in: an event, nothing, or the text of an error."""
    stream = EventStream(max_bytes)
    events: list[Event] = []
    try:
        for chunk in chunks:
            events.extend(stream.feed(chunk))
        return events, stream.finish()
    except UpstreamProtocolError as error:
        return events, error.message


def events_of(data: bytes) -> list[Event]:
    events, rest = read([data])
    assert rest is None
    return events


@given(pieces, st.data(), st.sampled_from([0, 7, 16, 1024]))
def test_any_chunking_gives_the_same_events(parts: list[bytes], data: st.DataObject, max_bytes: int):
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    byte_by_byte = [stream[at : at + 1] for at in range(len(stream))]
    assert read([stream], max_bytes) == read(chunks, max_bytes) == read(byte_by_byte, max_bytes)


@given(st.lists(st.lists(st.binary(max_size=9).map(lambda value: value.replace(b"\n", b"")), min_size=1, max_size=4)))
def test_data_goes_through_unchanged(events: list[list[bytes]]):
    values = [[value.removesuffix(b"\r") for value in event] for event in events]
    wire = b"".join(b"".join(b"data: " + value + b"\r\n" for value in event) + b"\r\n" for event in values)
    assert [event.data for event in events_of(wire)] == [b"\n".join(event) for event in values]


def test_fields():
    assert events_of(b"data: a\ndata:b\ndata:  c\ndata\n\n") == [Event(b"a\nb\n c\n")]
    assert events_of(b"\xef\xbb\xbfdata: a:b\n\n") == [Event(b"a:b")]
    assert events_of(b": ping\nretry: 3\n\n:\n\ndata: a\n: inside\n\n") == [Event(b"a")]
    assert events_of(b"data:\n\n") == [Event(b"")]


def test_the_type_is_of_one_event_and_the_id_stays():
    wire = b"event: x\nid: 7\ndata: a\n\ndata: b\n\nevent: lost\n\ndata: c\nid: no\0\n\nid\ndata: d\n\n"
    expected = [Event(b"a", "x", "7"), Event(b"b", "", "7"), Event(b"c", "", "7"), Event(b"d", "", "")]
    assert events_of(wire) == expected


@pytest.mark.parametrize(
    ("rest", "ended_in"),
    [
        (b"", None),
        (b"\r", None),
        (b": pin", None),
        (b"da", Event(b"")),
        (b"event: x\n", Event(b"", "x")),
        (b"data: a", Event(b"a")),
        (b"data: a\r", Event(b"a")),
        (b"data: a\n", Event(b"a")),
        (b"data: a\r\n\r", Event(b"a")),
        (b"data: a\ndata: b", Event(b"a\nb")),
    ],
)
def test_what_the_stream_ended_in(rest: bytes, ended_in: Event | None):
    assert read([b"data: 1\n\n" + rest]) == ([Event(b"1")], ended_in)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"error":"here"}\n', "no field of an event (it starts at byte 9)"),
        (b"<html>\n", "no field of an event (it starts at byte 9)"),
        (b" data: a\n", "no field of an event (it starts at byte 9)"),
        (b"event: \xff\n", "not UTF-8 (the line starts at byte 9)"),
        (b"id: \xff\n", "not UTF-8 (the line starts at byte 9)"),
        (b"data: 0123456789012\n", "longer than 16 bytes"),
        (b"data: 01234567\ndata: 01234567\n\n", "longer than 16 bytes"),
    ],
)
def test_what_is_refused_comes_after_the_events_before_it(line: bytes, said: str):
    events, error = read([b"data: 1\n\n" + line], max_bytes=16)
    assert events == [Event(b"1")]
    assert isinstance(error, str)
    assert said in error
    assert "01234" not in error
    assert "here" not in error


def test_as_much_as_the_limit_passes():
    assert read([b"data: 0123456789\n\n"], max_bytes=16) == ([Event(b"0123456789")], None)
    assert read([b"data:01234567\ndata:8901234\n\n"], max_bytes=16) == ([Event(b"01234567\n8901234")], None)
    assert read([b"data:01234567\ndata:89012345\n\n"], max_bytes=16)[0] == []
