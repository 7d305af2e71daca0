"""Bytes that have ended servers like ours, sent to the real process. After each the engine must answer as before.

The first group ends hypercorn or trio-websocket as they come: an upgrade whose headers cannot be decoded, a byte after
an upgrade request, a ping into a closing connection.
"""

from __future__ import annotations

import os
import struct

import pytest

from tests.system.process import upgrade

HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
POST = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
FLOOD = 1000  # messages: too many for any second of an engine that needs ten of them for all
TEXT, BINARY, CLOSE, PING, CONTINUATION = 0x1, 0x2, 0x8, 0x9, 0x0


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """One WebSocket frame of a client."""
    head = bytes([(fin << 7) | reserved | opcode])
    size, bit = len(payload), masked << 7
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack(">H", size)
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", size)
    return head + (b"\0\0\0\0" if masked else b"") + payload


def exchange(engine, listener: str, data: bytes) -> bytes:
    """Everything that comes back until the engine closes, which it must."""
    with engine.connect(listener) as sock:
        answer = b""
        try:
            sock.sendall(data)
            while piece := sock.recv(65536):
                answer += piece
        except ConnectionError:  # a reset is an answer too
            pass
    return answer


UNDECODABLE = [
    b"Sec-WebSocket-Protocol: \xff\r\n",
    b"Sec-WebSocket-Extensions: \xff\xfe\r\n",
    b"Sec-WebSocket-Protocol: caf\xc3\xa9\r\n",
    b"Connection: \x80\r\n",
]


@pytest.mark.parametrize("header", UNDECODABLE)
@pytest.mark.parametrize("listener", ["http", "ws"])
def test_an_upgrade_that_cannot_be_decoded_is_refused(engine, listener, header):
    answer = exchange(engine, listener, upgrade(engine.port(listener), header))
    assert answer.split(b" ")[1] == b"400"


@pytest.mark.parametrize("after", [b"x", b"\0", b"\x81\x85\0\0\0\0hello", b"GET / HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("listener", ["http", "ws"])
def test_bytes_behind_an_upgrade_are_refused(engine, listener, after):
    answer = exchange(engine, listener, upgrade(engine.port(listener), after=after))
    assert answer.split(b" ")[1] == b"400"


@pytest.mark.parametrize(
    "tail",
    [
        b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: +4\r\n\r\nxxxx",
        b"Transfer-Encoding: xchunked\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nZ\r\n",
        b"X: a\r\n folded\r\nUpgrade: h2c\r\n\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b"Host: 127.0.0.1\r\n\r\n",
        b"X: \0\r\n\r\n",
        b"X: " + b"a" * 20_000 + b"\r\n\r\n",
        b"".join(b"X%d: 1\r\n" % n for n in range(200)) + b"\r\n",
    ],
)
def test_a_malformed_request_is_refused_and_its_connection_closed(engine, tail):
    answer = exchange(engine, "http", POST % engine.port() + tail)
    assert answer.split(b" ")[1] in (b"400", b"431", b"501")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,  # a TLS hello
        b"\0" * 4096,
        b"GET http://127.0.0.1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"\r\n" * 10_000,
    ],
)
@pytest.mark.parametrize("listener", ["http", "ws"])
def test_what_is_no_request_of_ours_ends_its_connection_only(engine, listener, data):
    assert b" 200 " not in exchange(engine, listener, data)


def test_random_bytes_end_their_connection_only(engine):
    for listener in ("http", "ws"):
        for size in (1, 10, 1000, 30_000):
            exchange(engine, listener, os.urandom(size) + b"\r\n\r\n")


def test_a_head_that_comes_a_byte_at_a_time_is_cut_off(start):
    """By the clock, not by silence: each byte comes in time, the head as a whole does not."""
    engine = start(env={"WF_LIMITS__HEAD_TIMEOUT_S": "0.5"})
    for listener in ("http", "ws"):
        with engine.connect(listener) as sock:
            sock.settimeout(0.05)
            closed = False
            for byte in HEAD % engine.port(listener) + b"X-Slow: " + b"a" * 400:
                try:
                    sock.sendall(bytes([byte]))
                    closed = not sock.recv(65536) or closed
                except TimeoutError:
                    continue
                except ConnectionError:
                    closed = True
                if closed:
                    break
            assert closed


def test_http_1_0_is_served_and_closed(engine):
    answer = exchange(engine, "http", b"GET /health HTTP/1.0\r\nHost: 127.0.0.1:%d\r\n\r\n" % engine.port())
    assert answer.split(b" ")[1] == b"200"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"a" * 65_537), 1009),
        (frame(TEXT, b"a" * 60_000, fin=False) + frame(CONTINUATION, b"a" * 10_000), 1009),
        (frame(PING, b"") * FLOOD, 1008),
        (frame(TEXT, b'{"type":"ping"}') * FLOOD, 1008),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"hello", masked=False), 1002),
        (frame(TEXT, b"hello", reserved=0x40), 1002),
        (frame(0x3, b""), 1002),
        (frame(PING, b"a" * 126), 1002),
        (frame(CONTINUATION, b"a"), 1002),
        (frame(CLOSE, struct.pack(">H", 1000)) + frame(PING, b"late") * 20, 1000),
    ],
)
def test_a_broken_rule_of_the_frames_closes_with_its_code(engine, data, code):
    with engine.connect("ws") as sock:
        sock.sendall(upgrade(engine.port("ws")))
        answer = sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 101")
        try:
            sock.sendall(data)
            while piece := sock.recv(65536):
                answer += piece
        except ConnectionError:
            pass
    assert close_code(answer) == code


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize(
    "message",
    [b"", b"{", b"[]", b"null", b'{"type":"nonsense"}', b'{"type":"subscribe","patterns":5}', b"[" * 60_000,
     b'{"type":"subscribe","patterns":["*"],"rate_hz":1e999}', b'{"type":"ping","id":"\\ud800"}'],
)  # fmt: skip
def test_a_bad_message_is_answered_and_the_connection_stays(engine, message, opcode):
    with engine.connect("ws") as sock:
        sock.sendall(upgrade(engine.port("ws")))
        assert sock.recv(65536).startswith(b"HTTP/1.1 101")
        sock.sendall(frame(opcode, message) + frame(TEXT, b'{"type":"ping","id":"after"}'))
        answer = b""
        while b'"system.pong"' not in answer:
            piece = sock.recv(65536)
            assert piece, answer[-200:]
            answer += piece
    assert b'"system.error"' in answer


def close_code(answer: bytes) -> int:
    """The code in the close frame, which is the last thing that was said."""
    data = answer.split(b"\r\n\r\n", 1)[1]
    while data:
        opcode, size, start = data[0] & 0xF, data[1] & 0x7F, 2
        if size == 126:
            size, start = struct.unpack(">H", data[2:4])[0], 4
        elif size == 127:
            size, start = struct.unpack(">Q", data[2:10])[0], 10
        payload, data = data[start : start + size], data[start + size :]
        if opcode == CLOSE:
            assert not data, "something follows the close frame"
            return struct.unpack(">H", payload[:2])[0]
    return 0
