"""The HTTP API over the slice: the real app and real actors without sockets, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import unquote

import attrs
import msgspec
import trio
from quart_trio import QuartTrio

from actors.clock import EngineClock
from engine.app import handles
from engine.config import policies_of
from engine.schemas import read_schemas
from engine.settings import Settings
from tests.fakes.runtime import ScriptedRuntime
from tests.fakes.slice import MID, Slice, running_slice
from transport.endpoint import FrameCounters
from web.app import create_app
from web.assets import Asset
from web.guard import HttpCounters
from web.handles import PUSH, Engine

Message = MutableMapping[str, Any]

HOST: Final = "127.0.0.1:8145"
TOKEN: Final = "7" * 64
WS_PORT: Final = 8146
PIECES_MAX: Final = 10
ASSETS: Final = {
    "index.html": Asset(b"<!doctype html>", "text/html; charset=utf-8", '"page-1"'),
    "app.js": Asset(b"'use strict'", "text/javascript; charset=utf-8", '"app-1"'),
}


@attrs.frozen
class Answer:
    """A whole response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The native error; its shape is checked here, once for all."""
        body = self.json
        assert set(body) == {"error"}
        error: dict[str, Any] = body["error"]
        assert set(error) == {"code", "message", "retryable", "details"}
        assert error["details"]["request_id"] == self.headers["x-request-id"]
        return error


@attrs.define(eq=False)
class Connection:
    """The client's end of one request, as ASGI sees it. PIECES_MAX pieces of the answer wait for a client that does not
    read; then the app is held. Every other piece that is pushed is taken, the rest have to be sent."""

    status: int = 0
    headers: dict[str, str] = attrs.field(factory=dict)
    pushed: int = 0  # pieces that were taken
    _asked_to_push: int = 0
    _asked: tuple[trio.MemorySendChannel[Message], trio.MemoryReceiveChannel[Message]] = attrs.field(
        factory=lambda: trio.open_memory_channel[Message](8)
    )
    _pieces: tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes]] = attrs.field(
        factory=lambda: trio.open_memory_channel[bytes](PIECES_MAX)
    )

    async def serve(self, app: QuartTrio, scope: Message) -> None:
        with self._pieces[0]:
            await app(scope | {PUSH: self.push}, self._asked[1].receive, self.send)  # type: ignore[arg-type]

    def push(self, data: bytes) -> bool:
        assert self.status, "before the head"
        assert data, "an empty piece ends a body"
        self._asked_to_push += 1
        if self._asked_to_push % 2:
            return False
        try:
            self._pieces[0].send_nowait(data)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        self.pushed += 1
        return True

    def ask(self, body: bytes, *, whole: bool) -> None:
        self._asked[0].send_nowait({"type": "http.request", "body": body, "more_body": not whole})

    def leave(self) -> None:
        self._asked[0].send_nowait({"type": "http.disconnect"})

    async def receive(self) -> bytes:
        """The next piece of the body; empty at its end."""
        try:
            return await self._pieces[1].receive()
        except trio.EndOfChannel:
            return b""

    async def read_all(self) -> bytes:
        """The rest of the body."""
        data = b""
        while piece := await self.receive():
            data += piece
        return data

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
        elif message["body"]:
            await self._pieces[0].send(message["body"])


@attrs.define(eq=False)
class Api:
    """`ask`, `get` and `post` give the whole answer; `open` gives the connection, for streams and for leaving."""

    slice: Slice
    engine: Engine
    app: QuartTrio

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, **headers)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        return await self.ask("POST", path, body, **headers)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """`body` is sent as JSON; bytes go out as they are."""
        async with self.open(method, path, body, **headers) as connection:
            data = await connection.read_all()
            return Answer(connection.status, connection.headers, data)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        whole: bool = True,
        connection: Connection | None = None,
        **headers: str,
    ) -> AsyncIterator[Connection]:
        """A connection with its request sent (all of it, if `whole`). The client leaves at the end of the block."""
        data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        named = {"host": HOST, "content-length": str(len(data) + (not whole)), **headers}
        connection = connection or Connection()
        connection.ask(data, whole=whole)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.serve, self.app, _scope(method, path, named))
            yield connection
            connection.leave()

    async def generate(self, **more: Any) -> str:
        """The id of a session that runs on without a listener."""
        answer = await self.post("/generate", {"model": "a", "prompt": "hello", **more})
        assert answer.status == 202, answer.body
        return str(answer.json["session_id"])


def _scope(method: str, target: str, headers: Mapping[str, str]) -> Message:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()],
    }


@asynccontextmanager
async def running_api(
    make_runtime: Callable[[EngineClock], ScriptedRuntime] = ScriptedRuntime,
    settings: Settings | None = None,
    assets: Mapping[str, Asset] = ASSETS,
) -> AsyncIterator[Api]:
    """Runs until the block ends, then drains as the engine does at shutdown."""
    settings = settings or Settings()
    async with running_slice(make_runtime, settings) as running:
        edges = {"http": HttpCounters(), "ws": FrameCounters()}
        engine = handles(running.core, settings, policies_of(settings), MID, TOKEN, WS_PORT, edges)
        app = create_app(
            engine,
            assets,
            read_schemas(),
            body_bytes_max=settings.limits.body_bytes_max,
            lens_body_bytes_max=settings.lens.body_bytes_max,
            body_timeout_s=settings.limits.body_timeout_s,
        )
        yield Api(running, engine, app)
        engine.lens.calls.stop()


def ndjson(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n")
    return [msgspec.json.decode(line) for line in data.split(b"\n")[:-1]]


def sse(data: bytes) -> list[tuple[str, int, dict[str, Any]]]:
    """(event, id, data) of each; comments are left out."""
    assert data.endswith(b"\n\n")
    events = []
    for block in data.split(b"\n\n")[:-1]:
        if block.startswith(b":"):
            continue
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
        assert list(fields) == [b"event", b"id", b"data"]
        events.append((fields[b"event"].decode(), int(fields[b"id"]), msgspec.json.decode(fields[b"data"])))
    return events
