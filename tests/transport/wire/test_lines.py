"""Lines end at LF only, whatever the chunking, and have a longest length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import UpstreamProtocolError
from transport.wire.lines import LineSplitter

pieces = st.lists(
    st.sampled_from([b"a", b"bc", b"\r", b"\n", b"\r\n", "\x85\u2028\u2029".encode(), b"\x0b\x0c", b"\xff", b"\0"]),
    max_size=30,
)


def split(chunks: list[bytes], max_bytes: int = 1024) -> tuple[list[bytes], list[int], bytes | None]:
    """Lines, their offsets, and the rest (None: refused)."""
    splitter = LineSplitter(max_bytes)
    lines: list[bytes] = []
    starts: list[int] = []
    try:
        for chunk in chunks:
            got = splitter.feed(chunk)
            lines += got
            starts += splitter.starts
        return lines, starts, splitter.finish()
    except UpstreamProtocolError:
        return lines, starts, None


@given(pieces)
def test_lines_are_what_stands_between_line_feeds(parts: list[bytes]):
    data = b"".join(parts)
    lines, starts, rest = split([data])
    assert rest is not None
    *expected, tail = data.split(b"\n")
    assert lines == [line[:-1] if line.endswith(b"\r") else line for line in expected]
    assert rest == tail
    for line, start in zip(lines, starts, strict=True):
        assert data[start : start + len(line)] == line
        assert start == 0 or data[start - 1 : start] == b"\n"


@given(pieces, st.data(), st.sampled_from([0, 3, 8, 1024]))
def test_any_chunking_gives_the_same_lines(parts: list[bytes], data: st.DataObject, max_bytes: int):
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    byte_by_byte = [stream[at : at + 1] for at in range(len(stream))]
    assert split([stream], max_bytes) == split(chunks, max_bytes) == split(byte_by_byte, max_bytes)


def test_a_line_as_long_as_the_limit_passes():
    assert split([b"abcd\nabcd"], max_bytes=4) == ([b"abcd"], [0], b"abcd")


@pytest.mark.parametrize("data", [b"ok\nabcde", b"ok\nabcde\n", b"ok\nabcd\r\n"])
def test_an_endless_line_is_refused_after_the_lines_before_it(data: bytes):
    splitter = LineSplitter(max_bytes=4)
    assert splitter.feed(data) == [b"ok"]
    for call in (splitter.finish, lambda: splitter.feed(b"x\n")):
        with pytest.raises(UpstreamProtocolError, match=r"longer than 4 bytes \(it starts at byte 3\)") as caught:
            call()
        assert caught.value.details == {"limit_bytes": 4, "offset": 3}


def test_the_limit_holds_while_no_line_ends():
    splitter = LineSplitter(max_bytes=4)
    assert splitter.feed(b"abcd") == []
    with pytest.raises(UpstreamProtocolError):
        splitter.feed(b"e")
