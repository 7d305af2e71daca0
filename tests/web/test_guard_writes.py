"""HTTP behind the guard: how many writes an answer takes, and what an idle connection's time does beside a request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from policies.access import loopback_rules
from tests.fakes.http_server import get, make_app, serving
from tests.fakes.network import ask, http_head, read_answer, receive
from transport import listen
from transport.listen import bound_port, open_listener
from web.guard import KEEP_ALIVE_MORE_S, HttpLimits

PIECE = {"type": "http.response.body", "more_body": True}
LAST = {"type": "http.response.body", "more_body": False}


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


@contextmanager
def writes_seen() -> Iterator[list[bytes]]:
    """Every write that did not have to wait; all of them, on an idle loopback connection."""
    seen: list[bytes] = []

    def write(fd: int, data: bytes | memoryview) -> int:
        seen.append(bytes(data))
        return os.write(fd, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listen, "os", SimpleNamespace(write=write, path=os.path))
        yield seen


async def writes_of(messages: list[dict[str, Any]], method: str = "GET") -> list[bytes]:
    """What an app that sends these messages has written, write by write."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(dict(message))

    app = make_app()
    app.asgi_app = answer  # type: ignore[method-assign,assignment]
    listener = await open_listener("127.0.0.1", 0)
    port = bound_port(listener)
    with writes_seen() as seen:
        async with serving(app, listener, rules=loopback_rules(port, port, token="t")):
            client = await trio.open_tcp_stream("127.0.0.1", port)
            await client.send_all(http_head(method, "/", f"127.0.0.1:{port}", (), "1.1"))
            await read_answer(client, method)
            await client.aclose()
    return seen


LENGTH = (b"content-length", b"6")


@pytest.mark.parametrize(
    ("messages", "method", "bodies"),
    [
        ([start(LENGTH), LAST | {"body": b"onetwo"}], "GET", [b"onetwo"]),
        ([start(LENGTH), PIECE | {"body": b"onetwo"}, LAST], "GET", [b"onetwo"]),
        ([start(LENGTH), PIECE | {"body": b"one"}, PIECE | {"body": b"two"}, LAST], "GET", [b"one", b"two"]),
        ([start(LENGTH), LAST], "HEAD", [b""]),
        ([start((b"content-length", b"0")), LAST], "GET", [b""]),
    ],
)
async def test_the_head_of_a_whole_answer_goes_out_with_its_body(messages, method, bodies):
    writes = await writes_of(messages, method)
    head, gap, first = writes[0].partition(b"\r\n\r\n")
    assert (head[:12], gap) == (b"HTTP/1.1 200", b"\r\n\r\n")
    assert [first, *writes[1:]] == bodies


async def test_the_head_of_a_stream_waits_for_nothing():
    writes = await writes_of([start(), PIECE | {"body": b"one"}, LAST | {"body": b"two"}])
    assert writes[0].endswith(b"\r\n\r\n")
    assert writes[1:] == [b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n"]


async def test_a_head_without_its_body_is_no_answer_and_ends_the_connection(caplog):
    """Whoever waits hears that nothing comes; no half of an answer is left to be taken for one."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start(LENGTH))
        raise RuntimeError("secret answer")

    app = make_app()
    app.asgi_app = answer  # type: ignore[method-assign,assignment]
    async with serving(app) as server:
        client = await server.listener.connect()
        await client.send_all(get())
        assert await receive(client) == b""
        await client.aclose()
    assert server.counters.crashed == 1
    assert "secret" not in caplog.text


async def test_a_request_in_the_very_moment_the_time_runs_out_is_answered_or_refused_whole(autojump_clock):
    """And where it is answered, the connection is idle from then on, for as long as any other."""
    answered = 0
    async with serving(limits=HttpLimits(head_s=5.0)) as server:
        for _ in range(30):
            client = await server.listener.connect()
            assert (await ask(client, get())).status == 200
            await trio.sleep(5.0 + KEEP_ALIVE_MORE_S)
            try:
                await client.send_all(get())
                data = await receive(client)
            except trio.BrokenResourceError:
                continue
            if data:
                assert data.startswith(b"HTTP/1.1 200 ")
                assert data.endswith(b'{"status":"ok"}\n')
                answered, began = answered + 1, trio.current_time()
                assert await receive(client) == b""
                assert trio.current_time() - began == pytest.approx(5.0 + KEEP_ALIVE_MORE_S)
            await client.aclose()
        assert server.counters.listen.crashed == 0


async def test_an_answer_longer_than_the_idle_time_does_not_count_as_idle(autojump_clock):
    async with serving(limits=HttpLimits(head_s=5.0)) as server:
        client = await server.listener.connect()
        await client.send_all(get("/every-second/12"))
        assert (await read_answer(client)).body == b"line\n" * 12
        began = trio.current_time()
        assert await receive(client) == b""
        assert trio.current_time() - began == pytest.approx(5.0 + KEEP_ALIVE_MORE_S)
        await client.aclose()
