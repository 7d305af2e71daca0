"""What a tap keeps, when an engine asks something by itself while a test begins anew."""

from __future__ import annotations

from tests.fakes.tap import Tap, _Line


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def test_an_answer_that_was_under_way_is_not_taken_for_that_of_the_next_request():
    line = _Line()
    tap = Tap("x", [line])
    line.up += request("/before") + request("/by-itself")
    line.down += answer(b"before")
    tap.forget()
    assert line.exchanges() == []
    line.down += answer(b"by itself")
    assert line.exchanges() == []
    line.up += request("/asked")
    assert [(one.path, one.whole) for one in line.exchanges()] == [("/asked", False)]
    line.down += answer(b"asked")
    assert [(one.path, one.body) for one in tap.heard("/asked")] == [("/asked", b"asked")]
    tap.forget()
    assert line.exchanges() == []
    line.up += request("/again")
    line.down += answer(b"again")
    assert [(one.path, one.body, one.whole) for one in tap.heard("/again")] == [("/again", b"again", True)]


def test_a_head_of_which_a_part_is_there_is_nobodys_yet():
    line = _Line()
    line.up += request("/cut")[:9]
    line.forget()
    line.up += request("/cut")[9:]
    line.down += answer(b"x")
    assert [one.path for one in line.exchanges()] == ["/cut"]
