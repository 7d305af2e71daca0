"""HTTP behind the guard on a network in memory: a small app, and requests down to the byte."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from quart import Response, request
from quart_trio import QuartTrio

from policies.access import loopback_rules
from tests.fakes.network import UPGRADE, MemoryListener, ask, http_head
from web.guard import HttpLimits, HttpServer

HOST = "127.0.0.1:8145"
RULES = loopback_rules(8145, 8145, token="t0ken")
BODY_MAX, BODY_S = 1000, 10.0


def make_app() -> QuartTrio:
    app = QuartTrio(__name__)
    app.config.update(RESPONSE_TIMEOUT=None, MAX_CONTENT_LENGTH=BODY_MAX, BODY_TIMEOUT=BODY_S)
    app.ended = []  # type: ignore[attr-defined]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/id")
    async def request_id() -> dict[str, str]:
        return {"id": request.headers["x-request-id"]}

    @app.post("/echo")
    async def echo() -> Response:
        return Response(await request.get_data())

    @app.get("/every-second/<int:n>")
    async def every_second(n: int) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            try:
                for _ in range(n):
                    await trio.sleep(1)
                    yield b"line\n"
            finally:
                app.ended.append("every-second")  # type: ignore[attr-defined]

        return Response(lines(), content_type="text/plain")

    @app.get("/flood")
    async def flood() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65_536

        return Response(lines(), content_type="text/plain")

    @app.get("/breaks")
    async def breaks() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            yield b"first"
            raise RuntimeError("secret answer")

        return Response(lines(), content_type="text/plain")

    return app


@asynccontextmanager
async def serving(
    app: QuartTrio | None = None, listener: Any = None, limits: HttpLimits | None = None, rules: Any = RULES
) -> AsyncIterator[HttpServer]:
    """A server that is up, and that ends in good order afterwards."""
    server = HttpServer(app or make_app(), listener or MemoryListener(), rules, limits or HttpLimits())
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        server.stop_accepting()


def get(target: str = "/health", *headers: str, version: str = "1.1") -> bytes:
    return http_head("GET", target, HOST, headers, version)


def post(body: bytes, *headers: str, target: str = "/echo") -> bytes:
    return http_head("POST", target, HOST, (f"Content-Length: {len(body)}", *headers)) + body


async def still_serves(server: HttpServer) -> None:
    answer = await ask(await server.listener.connect(), get())
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}\n')


NON_ASCII = "\xff\xfe"
BAD_SUBPROTOCOL = get("/", *UPGRADE, f"Sec-WebSocket-Protocol: {NON_ASCII}")
H2C = get("/", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__")
