"""The frames endpoint on a network in memory, and connections to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from policies.access import loopback_rules
from tests.fakes.network import MemoryListener, RecordingSource, WebSocketPeer, upgrade
from transport.endpoint import FrameEndpoint, FrameLimits

HOST = "127.0.0.1:8146"
RULES = loopback_rules(8146, 8145, token="t")
MESSAGE_MAX = FrameLimits().message_bytes_max


def endpoint(
    listener: Any = None, rules: Any = RULES, source: RecordingSource | None = None, **limits
) -> FrameEndpoint:
    return FrameEndpoint(source or RecordingSource(), listener or MemoryListener(), rules, FrameLimits(**limits))


@asynccontextmanager
async def serving(server: FrameEndpoint | None = None) -> AsyncIterator[FrameEndpoint]:
    server = server or endpoint()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        server.stop_accepting()


async def connect(server: FrameEndpoint) -> WebSocketPeer:
    """An open connection whose hello has been read."""
    peer = await upgrade(await server.listener.connect(), HOST)
    assert await peer.next_text() == "hello"
    await wait_all_tasks_blocked()  # the write of it has returned
    return peer


def client_of(server: FrameEndpoint, n: int = -1) -> Any:
    return server.source.clients[n]  # type: ignore[attr-defined]


async def still_serves(server: FrameEndpoint) -> None:
    peer = await connect(server)
    await peer.send_text("still there?")
    await wait_all_tasks_blocked()
    assert client_of(server).received == [b"still there?"]
    await leave(peer)


async def leave(peer: WebSocketPeer) -> None:
    await peer.send(peer.close(1000))
    assert await peer.closed_with() == (1000, "")
    await peer.stream.aclose()
