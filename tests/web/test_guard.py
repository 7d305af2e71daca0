"""HTTP behind the guard: what is answered, what is refused, and when there is no room."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from quart import Response
from trio.testing import wait_all_tasks_blocked

from policies.access import loopback_rules
from tests.fakes.http_server import (
    BAD_SUBPROTOCOL,
    H2C,
    HOST,
    NON_ASCII,
    RULES,
    get,
    make_app,
    post,
    serving,
    still_serves,
)
from tests.fakes.network import UPGRADE, MemoryListener, ask, http_head, read_answer, read_to_end, receive
from transport.listen import ListenLimits, bound_port, open_listener
from web.guard import HttpLimits, HttpServer
from web.lens.exchange import ConnectionCut

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


@pytest.mark.parametrize(
    ("path", "is_its_own"),
    [
        ("/api/chat", lambda body: set(body) == {"error"} and isinstance(body["error"], str)),
        ("/v1/chat/completions", lambda body: {"message", "type", "param"} <= set(body["error"])),
        ("/v1/messages", lambda body: body["type"] == "error" and set(body["error"]) == {"type", "message"}),
        ("/api/bootstrap", lambda body: set(body["error"]) == {"code", "message", "retryable", "details"}),
    ],
)
async def test_a_refusal_is_in_the_shape_of_the_dialect_of_its_path(path, is_its_own):
    rules = loopback_rules(8145, 8145, token="t", api_keys=["key"])
    async with serving(rules=rules) as server:
        for request_bytes, status in (
            (http_head("POST", f"{path}?x=1", "evil.example"), 403),
            (http_head("POST", path, HOST, ["Origin: http://evil.example"]), 403),
            (http_head("POST", path, HOST), 401),
            (http_head("POST", f"{path}?x=1", HOST, ["Upgrade: x"]), 400),
        ):
            answer = await ask(await server.listener.connect(), request_bytes)
            assert answer.status == status
            assert is_its_own(json.loads(answer.body)), answer.body
            assert ("request-id" in answer.headers) == (path == "/v1/messages")


async def test_with_keys_a_request_without_one_is_told_how():
    rules = loopback_rules(8145, 8145, token="t", api_keys=["key"])
    async with serving(rules=rules) as server:
        client = await server.listener.connect()
        answer = await ask(client, get())
        assert (answer.status, answer.headers["www-authenticate"]) == (
            401,
            'Basic realm="WF Engine: the password is an API key"',
        )
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
    assert "RuntimeError at http_server.py:" in caplog.text
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

HOSTILE = {  # the bytes, and some of the words that say what is wrong with them
    "upgrade, bad subprotocol": (BAD_SUBPROTOCOL, "frames are at ws://127.0.0.1:8146/ws"),
    "upgrade, bad extensions": (get("/", *UPGRADE, f"Sec-WebSocket-Extensions: {NON_ASCII}"), "frames are at ws"),
    "upgrade, bad connection": (get("/", *UPGRADE, f"Connection: upgrade, {NON_ASCII}"), "frames are at ws"),
    "upgrade and a byte more": (get("/", *UPGRADE) + b"x", "frames are at ws"),
    "plain upgrade": (get("/", *UPGRADE), "frames are at ws://127.0.0.1:8146/ws"),
    "h2c": (H2C, "h2c"),
    "HTTP/2 prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), "ask without HTTP/2"),
    "absolute target": (get(f"http://{HOST}/health"), "must be a path"),
    "asterisk target": (http_head("OPTIONS", "*", HOST), "must be a path"),
    "authority target": (http_head("CONNECT", HOST, HOST), "must be a path"),
    "length and chunks": (
        http_head("POST", "/echo", HOST, ["Content-Length: 4", "Transfer-Encoding: chunked"]),
        "do not go together",
    ),
    "chunks in HTTP/1.0": (http_head("POST", "/echo", HOST, ["Transfer-Encoding: chunked"], "1.0"), "HTTP/1.0 has no"),
    "two lengths": (
        http_head("POST", "/echo", HOST, ["Content-Length: 4", "Content-Length: 5"]),
        "Content-Length must be one",
    ),
    "length with a sign": (http_head("POST", "/echo", HOST, ["Content-Length: +4"]), "Content-Length must be one"),
    "unknown coding": (http_head("POST", "/echo", HOST, ["Transfer-Encoding: xchunked"]), "served is chunked"),
    "HTTP/1.9": (get(version="1.9"), "only HTTP/1.1"),
    "two hosts": (http_head("GET", "/health", HOST, [f"Host: {HOST}"]), "exactly one Host"),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", "a Host header is needed"),
    "head over the size in one piece": (get("/health", f"X-Pad: {'p' * 17_000}"), "more than 16384 bytes"),
    "head over the size for ever": (b"GET /health HTTP/1.1\r\n" + b"X-Pad: p\r\n" * 2000, "more than 16384 bytes"),
    "a target over the size": (get("/" + "p" * 17_000), "more than 16384 bytes"),
    "too many headers": (get("/health", *(f"X-{n}: 1" for n in range(100))), "more than 100 headers"),
    "expects to continue into a refusal": (
        http_head("POST", "/echo", HOST, ["Expect: 100-continue", "Content-Length: 4", "Upgrade: x"]),
        "no upgrade",
    ),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(range(200)), "https://"),
    "zero bytes": (bytes(100), "https://"),
    "bare line ends": (b"GET\n\n\n", "request line"),
    "nonsense": (b"\xde\xad\xbe\xef \r\n\r\n", "request line"),
}


@pytest.mark.parametrize(("request_bytes", "words"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_unwelcome_bytes_are_told_what_is_wrong_and_the_server_lives_on(request_bytes, words, caplog):
    listener = await open_listener("127.0.0.1", 0)
    port = bound_port(listener)
    rules = loopback_rules(port, port, token="t")
    with caplog.at_level(logging.DEBUG):
        async with serving(listener=listener, rules=rules) as server:
            server.frames_url = "ws://127.0.0.1:8146/ws"
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                await client.send_all(request_bytes)
                answer = await read_answer(client)
                code = "PAYLOAD_TOO_LARGE" if answer.status == 431 else "VALIDATION_ERROR"
                assert (answer.status in (400, 431), answer.error["code"]) == (True, code)
                assert words in answer.error["message"]
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


async def test_a_passive_answer_that_was_cut_is_reset_and_is_no_failure_of_ours(caplog):
    app = make_app()

    @app.get("/passive")
    async def passive() -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            raise ConnectionCut

        return Response(pieces(), content_type="text/plain")

    with caplog.at_level(logging.DEBUG):
        async with serving(app) as server:
            client = await server.listener.connect()
            await client.send_all(get("/passive"))
            assert (await read_to_end(client)).endswith(b"5\r\nfirst\r\n")
            await still_serves(server)
    assert (server.counters.cut, server.counters.crashed) == (1, 0)
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("INFO", "wf.http")
    assert "passive" in record.message
