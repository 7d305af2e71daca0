"""The HTTP API over the slice: the real app and real actors without sockets, in virtual time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import msgspec
import trio
from quart.typing import TestClientProtocol
from quart_trio import QuartTrio

from actors.clock import EngineClock
from engine.app import _handles
from engine.config import policies_of
from engine.settings import Settings
from tests.fakes.runtime import ScriptedRuntime
from tests.fakes.slice import MID, Slice, running_slice
from transport.endpoint import FrameCounters
from web.app import create_app
from web.guard import HttpCounters
from web.handles import Engine
from web.page import Asset

HOST: Final = "127.0.0.1:8145"
TOKEN: Final = "7" * 64
WS_PORT: Final = 8146
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
class Api:
    """`ask` and `post` give the whole answer; `open` gives the connection, for streams and for leaving."""

    slice: Slice
    engine: Engine
    app: QuartTrio
    client: TestClientProtocol

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, **headers)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        return await self.ask("POST", path, body, **headers)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """`body` is sent as JSON; bytes go out as they are."""
        async with self.open(method, path, body, **headers) as connection:
            data = await read_all(connection)
            named = {name.lower(): value for name, value in connection.headers.items()}
            return Answer(connection.status_code, named, data)

    @asynccontextmanager
    async def open(self, method: str, path: str, body: Any = None, **headers: str) -> AsyncIterator[Any]:
        """A connection with its request sent: `receive()` is the next piece of the answer, `disconnect()` leaves."""
        named = {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(path, method=method, headers=named) as connection:
            if body is not None:
                await connection.send(body if isinstance(body, bytes) else msgspec.json.encode(body))
            await connection.send_complete()
            yield connection

    async def generate(self, **more: Any) -> str:
        """The id of a session that runs on without a listener."""
        answer = await self.post("/generate", {"model": "a", "prompt": "hello", **more})
        assert answer.status == 202, answer.body
        return str(answer.json["session_id"])


async def read_all(connection: Any) -> bytes:
    """The rest of a response's body."""
    data = b""
    with contextlib.suppress(trio.EndOfChannel):
        while True:
            data += await connection.receive()
    return data


@asynccontextmanager
async def running_api(
    make_runtime: Callable[[EngineClock], ScriptedRuntime] = ScriptedRuntime, settings: Settings | None = None
) -> AsyncIterator[Api]:
    """Runs until the block ends, then drains as the engine does at shutdown."""
    settings = settings or Settings()
    async with running_slice(make_runtime, settings) as running:
        edges = {"http": HttpCounters(), "ws": FrameCounters()}
        engine = _handles(running.core, settings, policies_of(settings), MID, TOKEN, WS_PORT, edges)
        app = create_app(
            engine,
            ASSETS,
            body_bytes_max=settings.limits.body_bytes_max,
            body_timeout_s=settings.limits.body_timeout_s,
        )
        yield Api(running, engine, app, app.test_client())


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
