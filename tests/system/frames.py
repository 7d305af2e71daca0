"""A client of the frames WebSocket, on trio-websocket's own client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from engine.domain.generation import Token, TokenKind, TopEntry
from tests.system.process import WATCHDOG_S, EngineProcess

Event = dict[str, Any]

LONG = {"model": "synthetic/steady", "prompt": "what is a glacier?", "parameters": {"max_tokens": 100_000}}


@attrs.define(eq=False)
class FrameReader:
    """Keeps every message that came. `close_code` is set when the connection is over."""

    ws: WebSocketConnection
    messages: list[dict[str, Any]] = attrs.field(factory=list)
    close_code: int | None = None
    _news: trio.Condition = attrs.field(factory=trio.Condition)

    async def run(self) -> None:
        try:
            while True:
                self.messages.append(json.loads(await self.ws.get_message()))
                async with self._news:
                    self._news.notify_all()
        except ConnectionClosed as closed:
            self.close_code = closed.reason.code if closed.reason else 1006
            async with self._news:
                self._news.notify_all()

    async def until(self, met: Callable[[], Any]) -> Any:
        """The first true value of `met`, asked after every message and after the close."""
        with trio.fail_after(WATCHDOG_S):
            async with self._news:
                while not (value := met()):
                    assert self.close_code is None, f"closed with {self.close_code} before it happened"
                    await self._news.wait()
        return value

    async def until_closed(self) -> int:
        with trio.fail_after(WATCHDOG_S):
            async with self._news:
                while self.close_code is None:
                    await self._news.wait()
        return self.close_code

    async def event(self, type_: str) -> Event:
        """The first event of this type, also one that has come already."""
        return (await self.until(lambda: self.events(type_)))[0]

    async def another(self, type_: str) -> None:
        """Until one more event of this type comes than there is now."""
        before = len(self.events(type_))
        await self.until(lambda: len(self.events(type_)) > before)

    async def ask(self, message: dict[str, Any]) -> None:
        await self.ws.send_message(json.dumps(message))

    def events(self, type_: str | None = None) -> list[Event]:
        return [e for message in self.messages for e in message["events"] if type_ in (None, e["type"])]

    def text(self, session_id: str) -> str:
        return text_of([e for e in self.events("experience.token") if e["session_id"] == session_id])


@asynccontextmanager
async def frames_of(engine: EngineProcess, *, top: bool = False) -> AsyncIterator[FrameReader]:
    """Connected and past hello; with `top` also the lists of alternatives that energy is computed from."""
    stream = await trio.open_tcp_stream("127.0.0.1", engine.port("ws"))
    async with stream, trio.open_nursery() as nursery:  # a stream of our own: the library leaves some sockets open
        ws = await wrap_client_stream(nursery, stream, f"127.0.0.1:{engine.port('ws')}", "/ws")
        reader = FrameReader(ws)
        nursery.start_soon(reader.run)
        await reader.event("system.state_snapshot")
        if top:
            await reader.ask({"type": "subscribe", "patterns": ["*"], "top": True, "id": "top"})
            await reader.event("system.subscribed")
        yield reader
        nursery.cancel_scope.cancel()


def text_of(events: list[Event]) -> str:
    """The answer in the token events of one stream."""
    return "".join(token["text"] for event in events for token in event["payload"]["tokens"])


async def start_session(http: Any, model: str = "synthetic/steady", max_tokens: int = 100_000) -> str:
    """A session that runs on by itself; its id."""
    body = {"model": model, "prompt": "what is a glacier?", "parameters": {"max_tokens": max_tokens, "seed": 7}}
    response = await http.post("/generate", json=body)
    assert response.status_code == 202, response.text
    return response.json()["session_id"]


def rebuilt(item: dict[str, Any]) -> Token:
    """What the engine measured, from what it published."""
    return Token(
        text=item["text"],
        kind=TokenKind(item["kind"]),
        position=item["position"],
        offset=item["offset"],
        t_us=item["t_us"],
        delta_us=None if item["delta_ms"] is None else round(item["delta_ms"] * 1000),
        logprob=item["logprob"],
        top=tuple(TopEntry(e["token"], e["logprob"]) for e in item["top"]),
        coalesced=item["coalesced"],
        throttled=item["throttled"],
    )
