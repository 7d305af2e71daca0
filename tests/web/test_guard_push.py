"""Pieces of a streamed answer that go out without the app's `send`, between those that take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes.network import ask, http_head, read_answer, read_to_end, receive
from tests.web.test_guard_streaming import (
    TAKES,
    asking,
    chunk,
    chunks_of,
    kernel_that_takes,
    pass_time_until,
    piece,
    start,
    streaming,
)
from transport import listen
from web.handles import PUSH

STEPS = st.lists(
    st.tuples(st.booleans(), st.integers(1, 20) | st.integers(1, 2 * listen.WRITE_PIECE_BYTES), st.booleans()),
    max_size=10,
)


@given(STEPS, TAKES)
@settings(max_examples=120, deadline=None)
def test_pushed_and_sent_pieces_come_in_the_order_in_which_they_were_said(steps, takes):
    """Wherever the kernel stops; what is not taken is sent, as its caller would."""
    pieces = [bytes([97 + n % 26]) * size for n, (_, size, _) in enumerate(steps)]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        push: Callable[[bytes], bool] = scope[PUSH]
        assert not push(b"no head yet")
        await send(start())
        for data, (pushes, _, pauses) in zip(pieces, steps, strict=True):
            if not (pushes and push(data)):
                await send(piece(data))
            if pauses:
                await trio.lowlevel.checkpoint()
        await send(piece(b"", more=False))

    async def main() -> None:
        async with streaming(answer) as (server, port):
            client = await asking(port, "GET", "1.1", "Connection: close")
            raw = await read_to_end(client)
            head, chunks = chunks_of(raw)
            assert chunks == pieces
            assert raw == head + b"\r\n\r\n" + b"".join(map(chunk, pieces)) + b"0\r\n\r\n"
            assert server.counters.listen.bytes_out == len(raw)
            await client.aclose()
        assert server.counters.crashed == server.counters.listen.crashed == 0

    with kernel_that_takes(takes):
        trio.run(main)


async def test_nothing_is_pushed_before_the_framing_is_known_or_after_the_end():
    answers: list[list[bool]] = []
    pushes: list[Callable[[bytes], bool]] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        push: Callable[[bytes], bool] = scope[PUSH]
        pushes.append(push)
        taken = [push(b"x")]
        await send(start())
        taken.append(push(b"x"))  # h11 decides with the first piece
        await send(piece(b"one"))
        taken += [push(b"two"), pushes[0](b"x")]  # the second is of the first request on this connection
        await send(piece(b"", more=False))
        answers.append([*taken, push(b"x")])

    async with streaming(answer) as (_, port):
        client = await trio.open_tcp_stream("127.0.0.1", port)
        for taken in (True, False):
            body = (await ask(client, http_head("GET", "/", f"127.0.0.1:{port}"))).body
            assert body == (b"onetwox" if taken else b"onetwo")
        await wait_all_tasks_blocked()
        assert answers == [[False, False, True, True, False], [False, False, True, False, False]]
        await client.aclose()


@pytest.mark.parametrize(("version", "headers"), [("1.0", ()), ("1.1", ((b"content-length", b"6"),))])
async def test_a_body_without_chunks_is_sent_in_the_usual_way(version, headers):
    taken = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start(*headers))
        await send(piece(b"one"))
        taken.append(scope[PUSH](b"two"))
        await send(piece(b"two", more=False))

    async with streaming(answer) as (_, port):
        client = await asking(port, "GET", version)
        assert (await read_answer(client, "GET")).body == b"onetwo"
        assert taken == [False]
        await client.aclose()


async def test_what_is_left_of_a_push_has_the_time_of_any_write(mock_clock: MockClock):
    """A client that does not read gets no more, and is cut like any other."""
    ended, pushed = trio.Event(), 0

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        nonlocal pushed
        await send(start())
        await send(piece(b"x"))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say, scope[PUSH], send)
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()
        finally:
            ended.set()

    async def say(push: Callable[[bytes], bool], send: Any) -> None:
        nonlocal pushed
        while True:
            if push(b"x" * 100_000):
                pushed += 1
            else:
                await send(piece(b"x" * 100_000))

    async with streaming(answer, write_timeout_s=5.0) as (server, port):
        client = await asking(port)
        assert (await receive(client)).startswith(b"HTTP/1.1 200")
        await wait_all_tasks_blocked()
        assert pushed
        assert not ended.is_set()
        await pass_time_until(ended, mock_clock, 5.1)
        assert server.counters.listen.write_timeouts == 1
        assert not (await read_to_end(client)).endswith(b"0\r\n\r\n")
        await client.aclose()
        assert server.counters.crashed == server.counters.listen.crashed == 0


async def test_a_push_to_a_client_that_is_gone_is_not_taken_and_the_next_write_ends_the_answer():
    ended = trio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(piece(b"x"))
        while scope[PUSH](b"x"):
            await trio.lowlevel.checkpoint()
        try:
            await send(piece(b"x"))
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            assert not scope[PUSH](b"x")
            ended.set()

    async with streaming(answer) as (server, port):
        client = await asking(port)
        await receive(client)
        await client.aclose()
        await ended.wait()
        assert server.counters.crashed == server.counters.listen.crashed == 0
