"""A scripted Ollama on a network in memory: every answer is a list of steps in virtual time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio

CAPTURES = Path(__file__).parents[1] / "fixtures" / "ollama"


@attrs.frozen
class Send:
    data: bytes
    after_s: float = 0.0


@attrs.frozen
class Break:
    """The connection is reset."""

    after_s: float = 0.0


@attrs.frozen
class Silence:
    """Nothing, for ever."""


Step = Send | Break | Silence


@attrs.define(eq=False)
class Body(httpx.AsyncByteStream):
    """`closed` is set when the client lets go of it."""

    steps: Sequence[Step]
    at: int = 0
    closed: bool = False

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        if self.at == len(self.steps):
            raise StopAsyncIteration
        step = self.steps[self.at]
        self.at += 1
        match step:
            case Send():
                await trio.sleep(step.after_s)
                return step.data
            case Break():
                await trio.sleep(step.after_s)
                raise httpx.ReadError("reset")
            case Silence():
                await trio.sleep_forever()
        raise AssertionError(step)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True


@attrs.define(eq=False)
class Reply:
    """One response; the head comes `after_s`."""

    steps: Sequence[Step] = ()
    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict)
    after_s: float = 0.0
    body: Body = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.body = Body(self.steps)


@attrs.define(eq=False)
class ScriptedOllama:
    """`replies` per path: each request takes the next one. `requests` are (path, body)."""

    replies: dict[str, list[Reply | Exception]]
    requests: list[tuple[str, Any]] = attrs.field(factory=list)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        content = await request.aread()
        self.requests.append((path, json.loads(content) if content else None))
        reply = self.replies[path].pop(0)
        if isinstance(reply, Exception):
            raise reply
        await trio.sleep(reply.after_s)
        return httpx.Response(reply.status, headers=reply.headers, stream=reply.body)

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.handle)

    def bodies(self, path: str) -> list[Any]:
        return [body for asked, body in self.requests if asked == path]


def whole(body: object, status: int = 200, **headers: str) -> Reply:
    """A JSON answer in one piece."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply((Send(data),), status, {name.replace("_", "-"): value for name, value in headers.items()})


def refused(status: int, text: str, **headers: str) -> Reply:
    return whole({"error": text}, status, **headers)


def record(text: str = "", **values: object) -> bytes:
    """One line of `/api/generate`."""
    return json.dumps({"model": "m", "response": text, "done": False} | values).encode() + b"\n"


def done(**values: object) -> bytes:
    return record(done=True, **({"done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2} | values))


def spoken(words: Iterable[bytes], after_s: float = 0.04) -> Reply:
    """A stream of records, one a read."""
    return Reply([Send(word, after_s) for word in words])


def capture(name: str) -> tuple[int, bytes]:
    """Status and body of a recorded answer of a real Ollama."""
    _, answer = (CAPTURES / f"{name}.txt").read_bytes().split(b"\nHTTP ", 1)
    head, _, body = answer.partition(b"\n\n")
    return int(head.split()[0]), body.split(b"... (")[0]


def virtual_clock() -> int:
    return round(trio.current_time() * 1e6)
