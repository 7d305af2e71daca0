"""A model server in the bench's own process that is stuck wherever it is told to be, and knows when it was left."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from bench.flood import ANSWERS, HEAD, LOADED, chunk

# By model: where it stays until the caller leaves.
PHASES = {
    "loading": "while it loads",
    "head": "before the head of its answer",
    "first": "between the head and the first token",
    "stream": "never: a token every 20 ms",
}
GAP_S = 0.02


@attrs.define(eq=False)
class SlowUpstream:
    """`left_s`: when the last generation was left, on `time.perf_counter`; None while it runs."""

    left_s: float | None = None
    asked: trio.Event = attrs.field(factory=trio.Event)
    left: trio.Event = attrs.field(factory=trio.Event)

    def begin(self) -> None:
        self.left_s, self.asked, self.left = None, trio.Event(), trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        asked = b""
        while True:
            data = await stream.receive_some()
            if not data:
                return
            asked += data
            head, _, body = asked.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if length is None or len(body) == int(length[1]):
                break
        model = json.loads(body)["model"].partition(":")[0] if body else ""
        generating = b'"prompt"' in body
        if generating or model == "loading":
            await self._stay(stream, model, generating)
            return
        answer = ANSWERS.get(head.partition(b" HTTP/1.1\r\n")[0], LOADED)
        if b"/api/tags" in head:
            answer = {"models": [{"name": name, "size": 1, "capabilities": ["completion"]} for name in PHASES]}
        data = json.dumps(answer).encode()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))

    async def _stay(self, stream: trio.SocketStream, model: str, generating: bool) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notice_leaving, stream, nursery.cancel_scope)
            if generating and model != "head":
                await stream.send_all(HEAD)
            self.asked.set()
            while model == "stream":
                await stream.send_all(chunk())
                await trio.sleep(GAP_S)

    async def _notice_leaving(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            await stream.receive_some()
        except trio.BrokenResourceError:
            pass
        self.left_s = time.perf_counter()
        self.left.set()
        scope.cancel()


@asynccontextmanager
async def slow_upstream() -> AsyncIterator[tuple[SlowUpstream, str]]:
    """It and its URL."""
    upstream = SlowUpstream()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def lidded(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await upstream.serve(stream)
        except* trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, lidded, listeners)
        yield upstream, f"http://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()
