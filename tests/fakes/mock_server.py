"""The mock Ollama on a network in memory, in virtual time, and a client that sees every byte of its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import msgspec
import trio

from tests.fakes.network import HttpAnswer, MemoryListener, Stream, http_head, read_answer, read_to_end
from transport.listen import bound_port, open_listener
from transport.mock_ollama.script import Schedule
from transport.mock_ollama.server import MockCounters, MockOllama

HOST: Final = "127.0.0.1:11434"
BEGAN_NS: Final = 1_795_169_386_000_000_000  # 2026-11-20T09:29:46Z or so
SHORT: Final = Schedule(tps=50, ttft_ms=100, tokens=20, seed=7)


def now_ns() -> int:
    """Unix time that follows trio's clock."""
    return BEGAN_NS + round(trio.current_time() * 1e9)


def post(path: str, body: Any, headers: Iterable[str] = ()) -> bytes:
    """A whole request; `body` is sent as JSON, bytes as they are."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return http_head("POST", path, HOST, [*headers, f"Content-Length: {len(data)}"]) + data


@attrs.define(eq=False)
class MockClient:
    """Clients of one running mock; every call opens a connection of its own."""

    mock: MockOllama
    listener: MemoryListener

    @property
    def counters(self) -> MockCounters:
        return self.mock.counters

    async def open(self, request: bytes = b"") -> Stream:
        stream = await self.listener.connect()
        if request:
            await stream.send_all(request)
        return stream

    async def get(self, path: str, method: str = "GET", *headers: str) -> HttpAnswer:
        stream = await self.open(http_head(method, path, HOST, headers))
        answer = await read_answer(stream, method)
        await stream.aclose()
        return answer

    async def post(self, path: str, body: Any, *headers: str) -> HttpAnswer:
        stream = await self.open(post(path, body, headers))
        answer = await read_answer(stream)
        await stream.aclose()
        return answer

    async def generate(self, model: str, **more: Any) -> HttpAnswer:
        return await self.post("/api/generate", {"model": model, "prompt": "hello there", **more})

    async def chat(self, model: str, **more: Any) -> HttpAnswer:
        messages = [{"role": "user", "content": "hello there"}]
        return await self.post("/api/chat", {"model": model, "messages": messages, **more})

    async def wire(self, model: str, **more: Any) -> bytes:
        """Every byte of a connection with one question, until the server ends it."""
        body = {"model": model, "prompt": "hello there", **more}
        return await read_to_end(await self.open(post("/api/generate", body)))


@asynccontextmanager
async def running_mock(schedule: Schedule = SHORT) -> AsyncIterator[MockClient]:
    listener = MemoryListener()
    mock = MockOllama(listener, schedule, now_ns)
    async with trio.open_nursery() as nursery:
        await nursery.start(mock.run)
        yield MockClient(mock, listener)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening_mock(schedule: Schedule = SHORT) -> AsyncIterator[tuple[MockOllama, str]]:
    """A mock on a real socket of loopback, and its URL."""
    listener = await open_listener("127.0.0.1", 0)
    mock = MockOllama(listener, schedule)
    async with trio.open_nursery() as nursery:
        await nursery.start(mock.run)
        yield mock, f"http://127.0.0.1:{bound_port(listener)}"
        nursery.cancel_scope.cancel()


def lines(answer: HttpAnswer) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.body.endswith(b"\n")
    return [msgspec.json.decode(line) for line in answer.body.split(b"\n")[:-1]]


def unchunked(wire: bytes) -> bytes:
    """The body, without the head and the chunked coding, as far as it goes."""
    rest = wire.partition(b"\r\n\r\n")[2]
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body
