"""The mock Ollama: clients that leave, and clients that are no clients."""

from __future__ import annotations

import re

import httpx
import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.mock_server import HOST, listening_mock, post, running_mock
from tests.fakes.network import http_head, read_answer, read_to_end, receive
from transport.listen import ListenLimits
from transport.mock_ollama import connection, server
from transport.mock_ollama.script import Schedule
from transport.mock_ollama.server import ABORTS_KEPT, Abort

WITHOUT_OPTIONS = ("/api/pull", "/api/show")


async def test_an_abort_is_counted_with_its_tokens(autojump_clock):
    async with running_mock(Schedule(tps=10, ttft_ms=0, tokens=100)) as client:
        stream = await client.open(post("/api/generate", {"model": "mock:steady", "prompt": "x"}))
        await trio.sleep(1.05)  # 20 ms of loading, tokens at 0, 100, … 1000 ms
        assert client.counters.streams_open == 1
        await stream.aclose()
        assert await client.mock.wait_left() == Abort("mock:steady", 11)
        assert (client.counters.streams_open, client.counters.streams_left) == (0, 1)
        await client.generate("mock:steady", options={"num_predict": 2})
        assert (client.counters.streams_opened, client.counters.streams_left) == (2, 1)


async def test_a_client_that_talks_on_and_leaves_is_noticed_when_written_to(autojump_clock):
    """What comes during an answer is read ahead up to a bound, and then no more."""
    async with running_mock(Schedule(tps=1, ttft_ms=1000, tokens=100)) as client:
        stream = await client.open(post("/api/generate", {"model": "mock:steady", "prompt": "x"}))
        await trio.sleep(0.5)
        await stream.send_all(b"x" * connection.PIPELINED_BYTES_MAX)
        await trio.sleep(2.0)
        await stream.aclose()
        await trio.sleep(0.1)
        assert client.counters.streams_left == 0
        assert await client.mock.wait_left() == Abort("mock:steady", 2)
        assert trio.current_time() < 4


async def test_a_connection_too_many_is_told_so(autojump_clock, monkeypatch):
    monkeypatch.setattr(server, "LIMITS", ListenLimits(connections_max=1, reserve=1))
    async with running_mock() as client:
        first = await client.open()
        assert (await client.get("/")).status == 503
        await first.send_all(http_head("GET", "/", HOST))
        assert (await read_answer(first)).status == 200


async def test_only_so_many_aborts_are_kept(autojump_clock):
    async with running_mock() as client:
        for n in range(1, ABORTS_KEPT + 3):
            stream = await client.open(post("/api/generate", {"model": "mock:stall-first", "prompt": "x"}))
            await stream.aclose()
            await client.mock.wait_left(n)
        assert len(client.counters.aborts) == ABORTS_KEPT


async def test_stopping_the_server_is_no_abort_of_a_client(autojump_clock):
    async with running_mock() as client:
        await client.open(post("/api/generate", {"model": "mock:stall", "prompt": "x"}))
        await trio.sleep(10)
    assert client.counters.streams_left == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: nine\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_request_are_refused_and_the_server_goes_on(request_bytes, autojump_clock):
    async with running_mock() as client:
        wire = await read_to_end(await client.open(request_bytes))
        assert re.findall(rb"HTTP/1.1 (\d+) ", wire)[-1] in (b"400", b"431", b"501")
        assert b"connection: close" in wire
        assert client.counters.malformed == 1
        assert (await client.get("/")).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"{" * 100_000,
        b"[" * 100_000,
        b'{"options":' * 50_000,
        b"\xff\xfe",
        b'{"model": 5}',
        b'"mock:steady"',
        b'{"model":"mock:steady","prompt":"x","options":{"num_predict":1e999}}',
        b'{"model":"mock:steady","prompt":"x","options":{"stop":["' + b'","'.join([b"a"] * 65) + b'"]}}',
    ],
)
async def test_hostile_bodies_are_refused_and_the_connection_goes_on(body, autojump_clock):
    async with running_mock() as client:
        for path in ("/api/generate", "/api/chat", "/api/pull", "/api/show"):
            stream = await client.open(post(path, body))
            answer = await read_answer(stream)
            assert answer.status in (400, 404, 500) or (path in WITHOUT_OPTIONS and b'"mock:steady"' in body)
            assert answer.body.startswith(b'{"error":') == (answer.status != 200)
            await stream.send_all(http_head("GET", "/", HOST))
            assert (await read_answer(stream)).status == 200
        assert client.counters.listen.crashed == 0


async def test_a_body_over_the_limit_is_refused(autojump_clock, monkeypatch):
    monkeypatch.setattr(connection, "BODY_BYTES_MAX", 1000)
    async with running_mock() as client:
        wire = await read_to_end(await client.open(post("/api/chat", b"x" * 1001)))
        assert wire.startswith(b"HTTP/1.1 413 ")


async def test_a_client_that_says_nothing_is_let_go(autojump_clock):
    async with running_mock() as client:
        assert await read_to_end(await client.open(b"GET / HT")) == b""
        assert trio.current_time() == pytest.approx(connection.IDLE_S)


async def test_a_slow_client_has_its_time_anew_with_every_piece(autojump_clock):
    async with running_mock() as client:
        stream = await client.open(b"GET / HT")
        for piece in (b"TP/1.1\r\n", b"Host: localhost\r\n", b"\r\n"):
            await trio.sleep(connection.IDLE_S - 1)
            await stream.send_all(piece)
        assert (await read_answer(stream)).status == 200


async def test_uploads_in_chunks_and_with_expect(autojump_clock):
    body = msgspec.json.encode({"model": "mock:steady"})
    async with running_mock() as client:
        head = http_head("POST", "/api/generate", HOST, ["Transfer-Encoding: chunked"])
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        assert (await read_answer(await client.open(head + chunks))).status == 200
        head = http_head("POST", "/api/generate", HOST, [f"Content-Length: {len(body)}", "Expect: 100-continue"])
        stream = await client.open(head)
        assert await receive(stream) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(body)
        assert (await read_answer(stream)).status == 200


async def test_closing_one_side_is_leaving_a_stream_and_harmless_elsewhere(autojump_clock):
    """As with Go's server."""
    async with running_mock() as client:
        stream = await client.open(http_head("GET", "/", HOST))
        await stream.send_eof()
        assert (await read_answer(stream)).status == 200
        stream = await client.open(post("/api/generate", {"model": "mock:steady", "prompt": "x"}))
        await stream.send_eof()
        assert await client.mock.wait_left() == Abort("mock:steady", 0)


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
async def test_head_is_get_without_a_body(path, autojump_clock):
    async with running_mock() as client:
        head, get = await client.get(path, "HEAD"), await client.get(path)
        assert (head.status, head.headers, head.body) == (200, get.headers, b"")


async def test_requests_one_after_the_other_and_all_at_once(autojump_clock):
    async with running_mock() as client:
        ask = post("/api/generate", {"model": "mock:steady", "prompt": "x"})
        stream = await client.open(
            ask + http_head("GET", "/", HOST) + http_head("GET", "/api/ps", HOST, ["Connection: close"])
        )
        wire = await read_to_end(stream)
        assert wire.count(b"HTTP/1.1 200 ") == 3
        assert client.counters.streams_left == 0


async def test_http_1_0_is_served_without_chunks_and_closed(autojump_clock):
    body = b'{"model":"mock:steady","prompt":"x"}'
    async with running_mock() as client:
        head = http_head("POST", "/api/generate", HOST, [f"Content-Length: {len(body)}"], version="1.0")
        wire = await read_to_end(await client.open(head + body))
        assert b"transfer-encoding" not in wire
        assert wire.count(b"\n{") == 21


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/api/embed", 405, b"405 method not allowed"),
        ("POST", "/v1/chat/completions", 404, b"404 page not found"),
        ("GET", "/api/chat", 405, b"405 method not allowed"),
        ("DELETE", "/api/tags", 405, b"405 method not allowed"),
        ("HEAD", "/api/ps", 405, b""),
        ("GET", "/api/status", 200, b'{"cloud":{"disabled":true,"source":"none"}}'),
    ],
)
async def test_other_paths_and_methods(method, path, status, body, autojump_clock):
    async with running_mock() as client:
        answer = await client.get(path, method)
        assert (answer.status, answer.body) == (status, body)


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:11434", None, 200),
        ("[::1]:11434", None, 200),
        ("evil.example", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("[::1", None, 403),
        ("localhost", "http://127.0.0.1:3000", 200),
        ("localhost", "https://evil.example", 403),
        ("localhost", "null", 403),
    ],
)
async def test_other_names_and_foreign_pages_are_refused(host, origin, status, autojump_clock):
    async with running_mock() as client:
        headers = [] if origin is None else [f"Origin: {origin}"]
        stream = await client.open(http_head("GET", "/", host, headers))
        assert (await read_answer(stream)).status == status


# ── real sockets ──


@pytest.fixture
async def real():
    async with (
        listening_mock(Schedule(tps=0, ttft_ms=0, tokens=20)) as (mock, url),
        httpx.AsyncClient(
            base_url=url, trust_env=False, timeout=None, limits=httpx.Limits(keepalive_expiry=None)
        ) as http,
    ):
        yield mock, http


async def test_a_real_client_gets_a_stream_and_reuses_the_connection(real):
    mock, http = real
    for _ in range(2):
        answer = await http.post(
            "/api/chat", json={"model": "mock:steady", "messages": [{"role": "user", "content": "x"}]}
        )
        assert len(answer.text.splitlines()) == 21
    assert mock.counters.listen.accepted == 1


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("mock:rst", httpx.ReadError),
        ("mock:cut", httpx.RemoteProtocolError),
        ("mock:cut-json", httpx.RemoteProtocolError),
        ("mock:bad-chunk", httpx.RemoteProtocolError),
    ],
)
async def test_a_real_client_sees_a_broken_connection(model, error, real):
    mock, http = real
    with pytest.raises(error):
        await http.post("/api/generate", json={"model": model, "prompt": "x"})
    assert mock.counters.streams_left == 0
    assert (await http.get("/")).status_code == 200


@pytest.mark.parametrize("model", ["mock:stall", "mock:endless-line", "mock:gzip-bomb"])
async def test_a_real_client_that_leaves_is_noticed(model, real):
    mock, http = real
    stream = await trio.open_tcp_stream("127.0.0.1", http.base_url.port)
    await stream.send_all(post("/api/generate", {"model": model, "prompt": "x"}))
    assert await receive(stream)
    await stream.aclose()
    assert (await mock.wait_left()).model == model
    assert mock.counters.listen.crashed == 0


async def test_a_client_that_does_not_read_holds_up_nobody(real):
    mock, http = real
    async with http.stream("POST", "/api/generate", json={"model": "mock:endless-line", "prompt": "x"}):
        assert (await http.get("/api/version")).json() == {"version": "0.0.0-mock"}
        await wait_all_tasks_blocked()
        assert mock.counters.streams_open == 1
