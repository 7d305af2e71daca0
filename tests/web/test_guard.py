"""HTTP behind the guard. Where a test is called `as_it_comes`, it runs the library without us: the day it fails, a fix
has arrived upstream and the guard it stands for may go."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app
from hypothesis import given, settings
from hypothesis import strategies as st
from quart import Response, request
from quart_trio import QuartTrio
from trio.testing import wait_all_tasks_blocked

from policies.access import loopback_rules
from tests.fakes.network import UPGRADE, MemoryListener, ask, http_head, read_answer, read_to_end, receive
from transport.listen import RESET_ON_CLOSE, ListenLimits, bound_port, open_listener
from web.guard import HttpLimits, HttpServer

HOST = "127.0.0.1:8145"
RULES = loopback_rules(8145, 8145, token="t0ken")
BODY_MAX, BODY_S = 1000, 10.0


def make_app() -> QuartTrio:
    app = QuartTrio(__name__)
    app.config.update(RESPONSE_TIMEOUT=None, MAX_CONTENT_LENGTH=BODY_MAX, BODY_TIMEOUT=BODY_S)
    app.ended = []  # type: ignore[attr-defined]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/id")
    async def request_id() -> dict[str, str]:
        return {"id": request.headers["x-request-id"]}

    @app.post("/echo")
    async def echo() -> Response:
        return Response(await request.get_data())

    @app.get("/every-second/<int:n>")
    async def every_second(n: int) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            try:
                for _ in range(n):
                    await trio.sleep(1)
                    yield b"line\n"
            finally:
                app.ended.append("every-second")  # type: ignore[attr-defined]

        return Response(lines(), content_type="text/plain")

    @app.get("/flood")
    async def flood() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65_536

        return Response(lines(), content_type="text/plain")

    @app.get("/breaks")
    async def breaks() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            yield b"first"
            raise RuntimeError("secret answer")

        return Response(lines(), content_type="text/plain")

    return app


@asynccontextmanager
async def serving(
    app: QuartTrio | None = None, listener: Any = None, limits: HttpLimits | None = None, rules: Any = RULES
) -> AsyncIterator[HttpServer]:
    """A server that is up, and that ends in good order afterwards."""
    server = HttpServer(app or make_app(), listener or MemoryListener(), rules, limits or HttpLimits())
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        server.stop_accepting()


def get(target: str = "/health", *headers: str, version: str = "1.1") -> bytes:
    return http_head("GET", target, HOST, headers, version)


def post(body: bytes, *headers: str, target: str = "/echo") -> bytes:
    return http_head("POST", target, HOST, (f"Content-Length: {len(body)}", *headers)) + body


async def still_serves(server: HttpServer) -> None:
    answer = await ask(await server.listener.connect(), get())
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}\n')


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_every_answer_carries_version_and_request_id():
    async with serving() as server:
        client = await server.listener.connect()
        answer = await ask(client, get("/id", "X-Request-Id: my-id_1.2"))
        assert answer.body == b'{"id":"my-id_1.2"}\n'
        assert answer.headers["x-request-id"] == "my-id_1.2"
        assert answer.headers["x-schema-version"] == "1.0"
        assert "server" not in answer.headers
        made_up = await ask(client, get("/id", "X-Request-Id: <script>"))
        assert made_up.body.decode() == f'{{"id":"{made_up.headers["x-request-id"]}"}}\n'
        assert "script" not in made_up.headers["x-request-id"]
        await client.aclose()
    assert server.counters.requests == 2


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GET /health HTTP/1.0\r\n\r\n", 400, "VALIDATION_ERROR"),
        (http_head("GET", "/health", "evil.example"), 403, "FORBIDDEN"),
        (http_head("GET", "/nowhere", "evil.example"), 403, "FORBIDDEN"),
        (get("/health", "Origin: http://evil.example"), 403, "FORBIDDEN_ORIGIN"),
        (get("/health", "Origin: null"), 403, "FORBIDDEN_ORIGIN"),
        (post(b"{}", "Sec-Fetch-Site: cross-site"), 403, "FORBIDDEN_ORIGIN"),
        (post(b"{}", "Sec-Fetch-Site: same-origin", "Content-Type: text/plain"), 415, "UNSUPPORTED_MEDIA_TYPE"),
    ],
)
async def test_access_is_judged_before_routing(request_bytes, status, code):
    async with serving() as server:
        client = await server.listener.connect()
        answer = await ask(client, request_bytes)
        assert (answer.status, answer.error["code"], answer.error["retryable"]) == (status, code, False)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-schema-version"] == "1.0"
        assert answer.error["details"] == {"request_id": answer.headers["x-request-id"]}
        assert b"evil" not in answer.body
        assert server.counters.refused == {code: 1}
        await client.aclose()


async def test_with_keys_a_request_without_one_is_told_how():
    rules = loopback_rules(8145, 8145, token="t", api_keys=["key"])
    async with serving(rules=rules) as server:
        client = await server.listener.connect()
        answer = await ask(client, get())
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (await ask(client, get("/health", "Authorization: Bearer key"))).status == 200
        await client.aclose()


async def test_a_refused_upload_does_not_stand_still(autojump_clock):
    """More body than hypercorn queues, and an answer that waits for none of it."""
    async with serving() as server:
        client = await server.listener.connect()
        body = b"".join(b"4\r\nbody\r\n" for _ in range(50)) + b"0\r\n\r\n"
        answer = await ask(client, http_head("POST", "/echo", "evil.example", ["Transfer-Encoding: chunked"]) + body)
        assert (answer.status, answer.headers["connection"]) == (403, "close")
        assert await receive(client) == b""
        await client.aclose()
        assert trio.current_time() == 0
        await still_serves(server)


async def test_a_broken_stream_has_no_proper_end_and_no_text_in_the_log(caplog, autojump_clock):
    async with serving() as server:
        client = await server.listener.connect()
        with caplog.at_level(logging.DEBUG):
            await client.send_all(get("/breaks"))
            got = await read_to_end(client)
        assert got.endswith(b"5\r\nfirst\r\n")
        await still_serves(server)
    assert server.counters.crashed == 1
    assert "RuntimeError at test_guard.py:" in caplog.text
    assert "secret" not in caplog.text


async def test_an_app_that_fails_before_it_answers_gives_500():
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("secret")

    app = make_app()
    app.asgi_app = broken  # type: ignore[method-assign]
    async with serving(app) as server:
        client = await server.listener.connect()
        answer = await ask(client, get())
        assert (answer.status, answer.error["code"]) == (500, "INTERNAL")
        assert b"secret" not in answer.body
        await client.aclose()
    assert server.counters.crashed == 1


# --- other heads that are not welcome ---------------------------------------------------------------------

NON_ASCII = "\xff\xfe"
HOSTILE = {
    "upgrade, bad subprotocol": get("/", *UPGRADE, f"Sec-WebSocket-Protocol: {NON_ASCII}"),
    "upgrade, bad extensions": get("/", *UPGRADE, f"Sec-WebSocket-Extensions: {NON_ASCII}"),
    "upgrade, bad connection": get("/", *UPGRADE, f"Connection: upgrade, {NON_ASCII}"),
    "upgrade and a byte more": get("/", *UPGRADE) + b"x",
    "plain upgrade": get("/", *UPGRADE),
    "h2c": get("/", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    "HTTP/2 prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "absolute target": get(f"http://{HOST}/health"),
    "asterisk target": http_head("OPTIONS", "*", HOST),
    "authority target": http_head("CONNECT", HOST, HOST),
    "length and chunks": http_head("POST", "/echo", HOST, ["Content-Length: 4", "Transfer-Encoding: chunked"]),
    "chunks in HTTP/1.0": http_head("POST", "/echo", HOST, ["Transfer-Encoding: chunked"], "1.0"),
    "two lengths": http_head("POST", "/echo", HOST, ["Content-Length: 4", "Content-Length: 5"]),
    "length with a sign": http_head("POST", "/echo", HOST, ["Content-Length: +4"]),
    "unknown coding": http_head("POST", "/echo", HOST, ["Transfer-Encoding: xchunked"]),
    "HTTP/1.9": get(version="1.9"),
    "two hosts": http_head("GET", "/health", HOST, [f"Host: {HOST}"]),
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "head over the size in one piece": get("/health", f"X-Pad: {'p' * 17_000}"),
    "head over the size for ever": b"GET /health HTTP/1.1\r\n" + b"X-Pad: p\r\n" * 2000,
    "a target over the size": get("/" + "p" * 17_000),
    "too many headers": get("/health", *(f"X-{n}: 1" for n in range(100))),
    "expects to continue into a refusal": http_head(
        "POST", "/echo", HOST, ["Expect: 100-continue", "Content-Length: 4", "Upgrade: x"]
    ),
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(range(200)),
    "zero bytes": bytes(100),
    "bare line ends": b"GET\n\n\n",
    "nonsense": b"\xde\xad\xbe\xef \r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", HOSTILE.values(), ids=HOSTILE.keys())
async def test_unwelcome_bytes_get_an_error_and_the_server_lives_on(request_bytes, caplog):
    listener = await open_listener("127.0.0.1", 0)
    port = bound_port(listener)
    rules = loopback_rules(port, port, token="t")
    with caplog.at_level(logging.DEBUG):
        async with serving(listener=listener, rules=rules) as server:
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                await client.send_all(request_bytes)
                answer = await read_answer(client)
                assert answer.status in (400, 431, 501, 505)
                assert answer.error["code"] == "VALIDATION_ERROR"
                assert answer.headers["connection"] == "close"
                assert await receive(client) == b""
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                assert (await ask(client, http_head("GET", "/health", f"127.0.0.1:{port}"))).status == 200
    assert sum(server.counters.malformed.values()) == 1
    assert server.counters.listen.crashed == 0
    assert server.counters.crashed == 0
    assert not caplog.records


PIECES = [
    b"GET /health HTTP/1.1\r\n",
    b"POST /echo HTTP/1.1\r\n",
    b"GET /health HTTP/1.0\r\n",
    f"Host: {HOST}\r\n".encode(),
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 3\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"Connection: close\r\n",
    b"Origin: null\r\n",
    b"\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"abc",
    b"\n",
]


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=12), max_size=12), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_bytes_break_a_connection_or_keep_it(pieces, at_once):
    """However requests are mangled: no exception reaches the lid, and no connection outlives its time-outs."""

    async def main() -> None:
        async with serving() as server:
            client = await server.listener.connect()
            try:
                for piece in [b"".join(pieces)] if at_once else pieces:
                    await client.send_all(piece)
                    await wait_all_tasks_blocked()
            except trio.BrokenResourceError:
                pass  # closed on us already
            await read_to_end(client)
            await trio.sleep(HttpLimits().linger_s + 0.1)
            assert server.counters.listen.active == 0
            await still_serves(server)
            assert server.counters.listen.crashed == 0
            assert server.counters.crashed == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_head_at_the_limits_is_served():
    async with serving() as server:
        client = await server.listener.connect()
        assert (await ask(client, get("/health", f"X-Pad: {'p' * 16_000}"))).status == 200
        assert (await ask(client, get("/health", *(f"X-{n}: 1" for n in range(99))))).status == 200
        await client.aclose()


async def test_pipelined_requests_are_answered_in_order():
    async with serving() as server:
        client = await server.listener.connect()
        await client.send_all(get("/health") + get("/id", "X-Request-Id: second"))
        data = b""
        while b"second" not in data.partition(b"\r\n\r\n")[2] or not data.endswith(b"}\n"):
            data += await receive(client)
        assert data.count(b"HTTP/1.1 200") == 2
        await client.aclose()


# --- what must close, closes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/health", "Connection: close"), 200),
        (get("/health", version="1.0"), 200),
        (get("/every-second/2", version="1.0"), 200),
        (get("/every-second/2", "Connection: close"), 200),
        (http_head("POST", "/echo", HOST, [f"Content-Length: {BODY_MAX + 1}"]), 413),
        (http_head("POST", "/echo", HOST, ["Content-Length: 10"]), 408),
        (http_head("POST", "/nowhere", HOST, ["Content-Length: 10"]), 404),
    ],
)
async def test_what_must_close_closes(request_bytes, status, autojump_clock):
    async with serving() as server:
        client = await server.listener.connect()
        await client.send_all(request_bytes)
        data = await read_to_end(client)
        assert data.startswith(f"HTTP/1.1 {status} ".encode())
        await client.aclose()
        await wait_all_tasks_blocked()
        assert server.counters.listen.active == 0


async def test_a_client_that_leaves_while_idle_is_gone_at_once(autojump_clock):
    async with serving() as server:
        client = await server.listener.connect()
        assert (await ask(client, get())).status == 200
        await wait_all_tasks_blocked()
        assert server.counters.listen.active == 1
        await client.aclose()
        await wait_all_tasks_blocked()
        assert server.counters.listen.active == 0
        assert trio.current_time() == 0


async def test_a_client_that_stays_after_our_close_is_dropped(autojump_clock):
    async with serving(limits=HttpLimits(linger_s=1.0)) as server:
        client = await server.listener.connect()
        await client.send_all(get("/health", "Connection: close"))
        await read_to_end(client)
        began = trio.current_time()
        await trio.sleep(1.1)
        assert server.counters.listen.active == 0
        assert trio.current_time() - began == pytest.approx(1.1)


async def test_keep_alive_keeps_the_connection_and_an_idle_one_ends(autojump_clock):
    async with serving(limits=HttpLimits(head_s=5.0)) as server:
        client = await server.listener.connect()
        for _ in range(3):
            await trio.sleep(4)
            assert (await ask(client, get())).status == 200
        began = trio.current_time()
        assert await receive(client) == b""
        assert trio.current_time() - began == pytest.approx(5.0)


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:8145\r\n"])
async def test_a_head_must_be_there_in_time(sent, autojump_clock):
    async with serving(limits=HttpLimits(head_s=5.0)) as server:
        client = await server.listener.connect()
        began = trio.current_time()
        await client.send_all(sent)
        assert await receive(client) == b""
        assert trio.current_time() - began == pytest.approx(5.0)


async def test_a_head_that_drips_gets_no_more_time(autojump_clock):
    async with serving(limits=HttpLimits(head_s=5.0)) as server:
        client = await server.listener.connect()

        async def drip() -> None:
            for byte in get("/health", f"X-Pad: {'p' * 100}"):
                await client.send_all(bytes([byte]))
                await trio.sleep(0.5)

        with pytest.raises(trio.BrokenResourceError):
            await drip()
        assert 5 <= trio.current_time() < 7


async def test_a_body_must_be_there_in_time(autojump_clock):
    async with serving() as server:
        client = await server.listener.connect()
        await client.send_all(http_head("POST", "/echo", HOST, ["Content-Length: 10"]) + b"12345")
        began = trio.current_time()
        assert (await read_answer(client)).status == 408
        assert trio.current_time() - began == pytest.approx(BODY_S)


async def test_an_early_answer_arrives_although_the_body_is_still_coming():
    """413 to a client that writes everything first: a plain close would reset the answer away."""
    listener = await open_listener("127.0.0.1", 0)
    port = bound_port(listener)
    async with serving(listener=listener, rules=loopback_rules(port, port, token="t")):
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            body = b"x" * 3_000_000
            head = http_head("POST", "/echo", f"127.0.0.1:{port}", [f"Content-Length: {len(body)}"])
            assert (await ask(client, head + body)).status == 413


# --- clients that do not read, or only listen ---------------------------------------------------------------


async def test_a_stream_may_last_while_the_client_is_silent(autojump_clock):
    async with serving() as server:
        client = await server.listener.connect()
        answer = await ask(client, get("/every-second/120"))
        assert answer.body == b"line\n" * 120
        await client.aclose()


async def test_leaving_ends_the_stream_at_once(autojump_clock):
    app = make_app()
    async with serving(app) as server:
        client = await server.listener.connect()
        await client.send_all(get("/every-second/1000"))
        await receive(client)
        began = trio.current_time()
        await client.aclose()
        await wait_all_tasks_blocked()
        assert app.ended == ["every-second"]  # type: ignore[attr-defined]
        assert server.counters.listen.active == 0
        assert trio.current_time() == began
    assert server.counters.crashed == 0


@pytest.mark.parametrize("target", ["/flood", "/every-second/1000", "/health"])
async def test_a_client_that_resets_is_no_failure_of_ours(target, caplog):
    listener = await open_listener("127.0.0.1", 0)
    port = bound_port(listener)
    async with serving(listener=listener, rules=loopback_rules(port, port, token="t")) as server:
        for moments in range(0, 60, 3):  # at many places of the server's way to its answer
            client = await trio.open_tcp_stream("127.0.0.1", port)
            await client.send_all(http_head("GET", target, f"127.0.0.1:{port}"))
            for _ in range(moments):
                await trio.lowlevel.checkpoint()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            await client.aclose()
    assert server.counters.crashed == server.counters.listen.crashed == 0
    assert not caplog.records


async def test_a_client_that_does_not_read_is_reset(autojump_clock):
    limits = HttpLimits(listen=ListenLimits(write_timeout_s=5.0))
    async with serving(listener=MemoryListener(lockstep=True), limits=limits) as server:
        client = await server.listener.connect()
        await client.send_all(get("/flood"))
        await trio.sleep(5.1)
        assert server.counters.listen.write_timeouts == 1
        assert server.counters.listen.active == 0
        assert server.counters.listen.crashed == 0


async def test_shutdown_gives_running_answers_time_and_then_cuts_them(autojump_clock):
    app = make_app()
    server = HttpServer(app, MemoryListener(), RULES, HttpLimits(listen=ListenLimits(drain_s=3.0)))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        idle, short, long = [await server.listener.connect() for _ in range(3)]
        assert (await ask(idle, get())).status == 200
        await short.send_all(get("/every-second/2"))
        await long.send_all(get("/every-second/1000"))
        await wait_all_tasks_blocked()
        began = trio.current_time()
        server.stop_accepting()
        await wait_all_tasks_blocked()
        assert await receive(idle) == b""
        assert trio.current_time() == began  # at once
        assert (await read_answer(short)).body == b"line\n" * 2
        cut = await read_to_end(long)
    assert not cut.endswith(b"0\r\n\r\n")
    assert trio.current_time() - began == pytest.approx(3.0)
    assert app.ended == ["every-second"] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("real", [False, True])
async def test_shutdown_does_not_wait_for_a_client_that_does_not_read(real, autojump_clock):
    """Cancelled, not drained: over in no time, although hypercorn shields the write and its deadline is far."""
    if real:
        listener: Any = await open_listener("127.0.0.1", 0)
        port = bound_port(listener)
    else:
        listener, port = MemoryListener(lockstep=True), 8145
    limits = HttpLimits(listen=ListenLimits(write_timeout_s=1e6))
    server = HttpServer(make_app(), listener, loopback_rules(port, port, token="t"), limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        client = await trio.open_tcp_stream("127.0.0.1", port) if real else await listener.connect()
        await client.send_all(http_head("GET", "/flood", f"127.0.0.1:{port}"))
        first = await receive(client)  # the answer began, and from here on nobody reads
        assert first.startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()
    assert server.counters.listen.active == 0
    assert trio.current_time() < 1e5
    await client.aclose()


# --- when there is no room -------------------------------------------------------------------------------------------


async def test_over_the_cap_only_health_is_answered():
    limits = HttpLimits(listen=ListenLimits(connections_max=1, reserve=2))
    async with serving(limits=limits) as server:
        first = await server.listener.connect()
        assert (await ask(first, get("/id"))).status == 200
        asks_health, asks_more, one_too_many = [await server.listener.connect() for _ in range(3)]
        answer = await ask(asks_health, get("/health"))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        refused = await ask(asks_more, get("/id"))
        assert (refused.status, refused.error["code"], refused.error["retryable"]) == (503, "OVERLOADED", True)
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
        assert await receive(asks_more) == b""
        assert await receive(one_too_many) == b""
        assert (await ask(first, get("/id"))).status == 200
        for client in (first, asks_health, asks_more):
            await client.aclose()
    assert server.counters.refused == {"OVERLOADED": 1}


async def test_health_over_the_cap_is_no_way_around_the_access_rules(autojump_clock):
    limits = HttpLimits(listen=ListenLimits(connections_max=0, reserve=2))
    async with serving(limits=limits) as server:
        assert (await ask(await server.listener.connect(), http_head("GET", "/health", "evil.example"))).status == 403
        assert (await ask(await server.listener.connect(), http_head("HEAD", "/health", HOST), "HEAD")).status == 503


# --- the app's life --------------------------------------------------------------------------------------------------


async def test_the_app_is_started_before_and_stopped_after_serving():
    app, events = make_app(), []

    @app.before_serving
    async def before() -> None:
        events.append("before")

    @app.after_serving
    async def after() -> None:
        events.append("after")

    @app.get("/background")
    async def background() -> dict[str, bool]:
        async def work() -> None:
            events.append("work")

        app.add_background_task(work)
        return {"ok": True}

    async with serving(app) as server:
        assert events == ["before"]
        client = await server.listener.connect()
        await ask(client, get("/background"))
        await client.aclose()
    assert events == ["before", "work", "after"]


async def test_an_app_that_cannot_start_never_reports_started():
    app = make_app()

    @app.before_serving
    async def fail() -> None:
        raise RuntimeError("no")

    app.logger.disabled = True
    server = HttpServer(app, MemoryListener(), RULES)
    with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)


# --- the libraries as they come --------------------------------------------------------------------------------------


def naive_connection(app: Any, stream: trio.SocketStream) -> TCPServer:
    config = Config()
    config.errorlog = None
    return TCPServer(wrap_app(app, 0, "asgi"), config, WorkerContext(None), {}, stream)  # type: ignore[arg-type]


async def naive_serve(handler: Callable[[trio.SocketStream], Any], request_bytes: bytes) -> bytes:
    """The first bytes of hypercorn's own answer."""
    listener = await open_listener("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        async with await trio.open_tcp_stream("127.0.0.1", bound_port(listener)) as client:
            await client.send_all(request_bytes)
            data = await receive(client)
        nursery.cancel_scope.cancel()
    return data


async def test_hypercorn_as_it_comes_dies_of_one_header():
    died = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        with trio.CancelScope(shield=True), pytest.RaisesGroup(UnicodeDecodeError, flatten_subgroups=True):
            await naive_connection(make_app(), stream).run()
        died.set()

    assert await naive_serve(handler, HOSTILE["upgrade, bad subprotocol"]) == b""
    assert died.is_set()


async def test_hypercorn_as_it_comes_speaks_h2c():
    async def handler(stream: trio.SocketStream) -> None:
        await naive_connection(make_app(), stream).run()

    assert (await naive_serve(handler, HOSTILE["h2c"])).startswith(b"HTTP/1.1 101 ")


async def test_hypercorn_as_it_comes_shields_a_write_without_end(autojump_clock):
    class Standing:
        async def send_all(self, data: bytes) -> None:
            await trio.sleep(1000)

    connection = naive_connection(make_app(), Standing())  # type: ignore[arg-type]
    with trio.move_on_after(1):
        await connection.protocol_send(RawData(b"x"))
    assert trio.current_time() == pytest.approx(1000)


async def test_quart_trio_as_it_comes_cancels_its_own_last_send():
    app = make_app()
    to_app, from_server = trio.open_memory_channel[dict[str, Any]](2)
    finished = False

    async def send(message: dict[str, Any]) -> None:
        nonlocal finished
        if message["type"] == "http.response.body" and not message["more_body"]:
            await to_app.send({"type": "http.disconnect"})  # as hypercorn does, before it closes or recycles
            await wait_all_tasks_blocked()
            finished = True

    scope: Any = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/health",
        "query_string": b"",
        "headers": [(b"host", HOST.encode())],
    }
    async with to_app, from_server:
        await to_app.send({"type": "http.request", "body": b"", "more_body": False})
        await app(scope, partial(from_server.receive), send)  # type: ignore[arg-type]
    assert not finished


def test_hypercorn_as_it_comes_has_the_harmful_timeout_off():
    """Its default; `test_a_stream_may_last_while_the_client_is_silent` would show a change of ours."""
    assert Config().read_timeout is None
