"""HTTP behind the guard: connections end when they must, and last while they may."""

from __future__ import annotations

import math
import socket
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from policies.access import loopback_rules
from tests.fakes.http_server import BODY_MAX, BODY_S, HOST, RULES, get, make_app, serving
from tests.fakes.network import MemoryListener, ask, http_head, read_answer, read_to_end, receive
from transport.listen import RESET_ON_CLOSE, ListenLimits, bound_port, open_listener
from web.app import app_of
from web.guard import KEEP_ALIVE_MORE_S, HttpLimits, HttpServer

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


async def test_a_refusal_waits_for_the_body_so_that_the_connection_lasts(autojump_clock):
    """Clients send head and body in two pieces; an answer between the two would end the connection."""
    app = app_of([], body_bytes_max=100, lens_body_bytes_max=100, body_timeout_s=5)
    async with serving(app) as server:
        client = await server.listener.connect()
        for _ in range(2):
            await client.send_all(http_head("POST", "/nowhere", HOST, ["Content-Length: 2"]))
            await wait_all_tasks_blocked()
            assert (await ask(client, b"{}")).status == 404


async def test_keep_alive_keeps_the_connection_and_an_idle_one_ends(autojump_clock):
    async with serving(limits=HttpLimits(head_s=5.0)) as server:
        client = await server.listener.connect()
        for _ in range(3):
            await trio.sleep(4)
            assert (await ask(client, get())).status == 200
        began = trio.current_time()
        assert await receive(client) == b""
        assert trio.current_time() - began == pytest.approx(5.0 + KEEP_ALIVE_MORE_S)


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
        autojump_clock.autojump_threshold = math.inf  # it would not wait for the kernel to hand bytes on
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
