"""trio-websocket without us: the day a test here fails, a fix has arrived upstream and the guard it stands for goes."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketServer, wrap_server_stream
from wsproto.utilities import LocalProtocolError

from tests.fakes.endpoint import HOST
from tests.fakes.network import UPGRADE, MemoryListener, WebSocketPeer, http_head, read_to_end


async def test_the_server_as_it_comes_dies_of_one_header():
    async def handler(request: Any) -> None:
        await request.accept()

    listener = MemoryListener()
    server = WebSocketServer(handler, [listener])  # type: ignore[list-item]
    with pytest.RaisesGroup(UnicodeDecodeError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            stream = await listener.connect()
            await stream.send_all(http_head("GET", "/ws", HOST, (*UPGRADE, "Sec-WebSocket-Protocol: \xff")))


async def test_a_late_ping_as_it_comes_raises_in_the_reader():
    ours, theirs = memory_stream_pair()
    with pytest.RaisesGroup(LocalProtocolError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await theirs.send_all(http_head("GET", "/ws", HOST, UPGRADE))
            ws = await (await wrap_server_stream(nursery, ours)).accept()
            nursery.start_soon(ws.aclose)
            await wait_all_tasks_blocked()
            await theirs.send_all(WebSocketPeer(theirs).ping(b"late"))


async def test_as_it_comes_1009_leaves_the_stream_open_for_ever(autojump_clock):
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        await theirs.send_all(http_head("GET", "/ws", HOST, UPGRADE))
        ws = await (await wrap_server_stream(nursery, ours, max_message_size=10)).accept()
        await theirs.send_all(WebSocketPeer(theirs).text("x" * 11))
        with pytest.raises(ConnectionClosed):
            await ws.get_message()
        await ws.aclose()
        with trio.move_on_after(1e6) as patience:
            await read_to_end(theirs)
        assert patience.cancelled_caught
        nursery.cancel_scope.cancel()
