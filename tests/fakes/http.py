"""Any app of ours without sockets: whole answers, as ASGI sees them."""

from __future__ import annotations

from typing import Any

import attrs
import msgspec
import trio
from quart_trio import QuartTrio

from tests.fakes.api import HOST, Answer, Connection, _scope


@attrs.define(eq=False)
class Http:
    app: QuartTrio

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, b"", **headers)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        """`body` is sent as JSON; bytes go out as they are."""
        return await self.ask("POST", path, body if isinstance(body, bytes) else msgspec.json.encode(body), **headers)

    async def ask(self, method: str, path: str, body: bytes, **headers: str) -> Answer:
        connection = Connection()
        connection.ask(body, whole=True)
        named = {"host": HOST, "content-length": str(len(body)), **headers}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.serve, self.app, _scope(method, path, named))
            data = await connection.read_all()
            connection.leave()
        return Answer(connection.status, connection.headers, data)
