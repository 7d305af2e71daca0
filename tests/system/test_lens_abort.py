"""Answers that end before their end, in each phase, over real sockets: a client that leaves, a stop, a shutdown. The
runtime (the mock Ollama) must be left each time, and nothing may stay behind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import msgspec
import pytest
import trio

from actors.session import Session
from engine.domain.generation import EndReason
from engine.settings import LimitSettings, Settings
from policies.access import loopback_rules
from tests.fakes.api import TOKEN, Api, running_api
from tests.fakes.mock_server import listening_mock
from tests.fakes.network import http_head
from transport.listen import bound_port, open_listener
from transport.mock_ollama.script import Schedule
from transport.mock_ollama.server import MockOllama
from transport.runtimes.ollama import OllamaRuntime
from web.guard import HttpServer

SLOW = Schedule(tps=50, ttft_ms=5, tokens=10_000, seed=1)  # minutes: it ends because somebody ends it
WATCHDOG_S = 120.0  # generous, also for all cycles together: only something stuck runs into it
STEP_S = 0.005
CYCLES = 200
AT_ONCE = 8
ONE = Settings(limits=LimitSettings(streams_max=1))


@attrs.frozen
class Phase:
    """How far an answer is when it is ended: by the model that gets stuck there, and what its session says then.
    `head`: the client of a stream has its head by then. `upstream`: the runtime was asked for it."""

    name: str
    model: str
    state: str
    head: bool = False
    upstream: bool = True
    tokens: bool = False

    def reached(self, session: Session, mock: MockOllama) -> bool:
        report = session.report()
        opened = not self.upstream or mock.counters.asked[self.model] > 1  # the first one loads it
        return report.state == self.state and opened and (report.tokens_generated > 0) is self.tokens


QUEUED = Phase("queued", "mock:steady", "queued", upstream=False)
LOADING = Phase("loading", "mock:slow-load", "loading", upstream=False)
NO_HEAD = Phase("before the head", "mock:stall-first", "waiting")
NO_TOKEN = Phase("before the first token", "mock:drip", "waiting", head=True)
STREAMING = Phase("mid-stream", "mock:steady", "streaming", head=True, tokens=True)
STALLED = Phase("stalled", "mock:stall", "streaming", head=True, tokens=True)
PHASES = (QUEUED, LOADING, NO_HEAD, NO_TOKEN, STREAMING, STALLED)
PATHS = ("/api/chat", "/v1/chat/completions", "/v1/messages")
PASSIVE = "x-wf-lens: passive"


def asked(model: str, *, stream: bool) -> dict[str, Any]:
    """As all three dialects take it."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": 100_000}


@attrs.define(eq=False)
class Client:
    """One connection with one request."""

    stream: trio.SocketStream
    parser: h11.Connection
    head: h11.Response | None = None

    async def until_head(self) -> int:
        while self.head is None:
            await self._next()
        return self.head.status_code

    async def rest(self) -> bytes:
        """The body to its end. Raises h11.RemoteProtocolError when the connection is cut inside of it."""
        body = b""
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += event.data
        return body

    async def _next(self) -> h11.Event:
        while (event := self.parser.next_event()) is h11.NEED_DATA:
            self.parser.receive_data(await self.stream.receive_some(65_536))
        if isinstance(event, h11.Response):
            self.head = event
        assert isinstance(event, h11.Event)
        return event


@attrs.define(eq=False)
class Lens:
    """The engine behind a real listener, with the mock behind it."""

    api: Api
    mock: MockOllama
    server: HttpServer
    port: int
    cancel: Callable[[], None]

    @property
    def sessions(self) -> list[Session]:
        return list(self.api.slice.core.sessions.known())

    async def ask(self, path: str, body: dict[str, Any], *headers: str) -> Client:
        data = msgspec.json.encode(body)
        length = f"content-length: {len(data)}"
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        await stream.send_all(http_head("POST", path, f"127.0.0.1:{self.port}", [*headers, length]) + data)
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method="POST", target=path, headers=[("host", "x"), ("content-length", "0")]))
        parser.send(h11.EndOfMessage())
        return Client(stream, parser)

    async def in_phase(self, phase: Phase, path: str, *, stream: bool, headers: tuple[str, ...] = ()) -> _Asked:
        """A client whose answer is in that phase."""
        first: Client | None = None
        if phase is QUEUED:
            first = await self.ask("/api/chat", asked("mock:logprobs", stream=True))
            await first.until_head()
        known = set(self.sessions)
        client = await self.ask(path, asked(phase.model, stream=stream), *headers)
        await until(lambda: any(phase.reached(s, self.mock) for s in set(self.sessions) - known))
        (session,) = [s for s in set(self.sessions) - known if phase.reached(s, self.mock)]
        if phase.head and stream:
            assert await client.until_head() == 200
        return _Asked(client, session, first)

    async def nothing_upstream(self) -> None:
        await until(lambda: self.mock.counters.streams_open == 0)


@attrs.frozen
class _Asked:
    client: Client
    session: Session
    before: Client | None  # whose answer has the only place


async def until(met: Callable[[], Any]) -> None:
    while not met():  # noqa: ASYNC110  # of the other side of a socket: it sets no event
        await trio.sleep(STEP_S)


@asynccontextmanager
async def lens(settings: Settings | None = None) -> AsyncIterator[Lens]:
    with trio.fail_after(WATCHDOG_S):
        async with (
            listening_mock(SLOW) as (mock, url),
            running_api(lambda clock: OllamaRuntime(clock, url), settings) as api,  # type: ignore[arg-type, return-value]
            trio.open_nursery() as nursery,
        ):
            listener = await open_listener("127.0.0.1", 0)
            port = bound_port(listener)
            server = HttpServer(api.app, listener, loopback_rules(port, port, token=TOKEN))
            await nursery.start(server.run)
            yield Lens(api, mock, server, port, nursery.cancel_scope.cancel)
            server.stop_accepting()


async def over(found: Lens, phase: Phase, asked: _Asked, left_before: int) -> None:
    """What holds after every end: the session told it, and the runtime was left."""
    await asked.session.closed.wait()
    assert asked.session.state == "ended"
    if phase.upstream:
        assert (await found.mock.wait_left(left_before + 1)).model == phase.model
    if asked.before is not None:
        await asked.before.stream.aclose()
    await until(lambda: found.api.slice.core.sessions.live == 0)
    if phase is not LOADING:  # a load goes on for whoever wants the model next
        await found.nothing_upstream()
    if not phase.upstream:
        assert found.mock.counters.asked[phase.model] <= (1 if phase is LOADING else 0)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_a_client_that_leaves_takes_its_answer_with_it(phase: Phase, path: str, stream: bool):
    async with lens(ONE) as found:
        there = await found.in_phase(phase, path, stream=stream)
        left = found.mock.counters.streams_left
        await there.client.stream.aclose()
        await over(found, phase, there, left)
        assert there.session.reason is EndReason.ABORTED
        after = await found.ask("/api/chat", asked("mock:flood", stream=True))  # there is room for one
        assert await after.until_head() == 200
        await after.stream.aclose()


@pytest.mark.parametrize("phase", [NO_HEAD, NO_TOKEN, STREAMING, STALLED], ids=lambda phase: phase.name)
async def test_a_passive_client_that_leaves_takes_its_answer_with_it(phase: Phase):
    async with lens(ONE) as found:
        there = await found.in_phase(phase, "/api/chat", stream=True, headers=(PASSIVE,))
        left = found.mock.counters.streams_left
        await there.client.stream.aclose()
        await over(found, phase, there, left)
        assert there.session.reason is EndReason.ABORTED


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_a_stop_reaches_the_runtime_and_ends_the_clients_answer(phase: Phase, path: str):
    async with lens(ONE) as found:
        there = await found.in_phase(phase, path, stream=True)
        left = found.mock.counters.streams_left
        stop = await found.ask("/stop", {"session_id": there.session.id})
        assert await stop.until_head() == 200
        assert there.session.closed.is_set()
        body = await there.client.rest()
        assert there.client.head is not None
        assert there.client.head.status_code == (200 if phase.head else 502)
        assert (b"rror" in body) is not phase.head
        await there.client.stream.aclose()
        await stop.stream.aclose()
        await over(found, phase, there, left)
        assert there.session.reason is EndReason.ABORTED


async def test_a_stop_cuts_a_passive_stream():
    async with lens() as found:
        there = await found.in_phase(STREAMING, "/api/chat", stream=True, headers=(PASSIVE,))
        stop = await found.ask("/stop", {"session_id": there.session.id})
        assert await stop.until_head() == 200
        with pytest.raises((h11.RemoteProtocolError, trio.BrokenResourceError)):
            await there.client.rest()
        await there.client.stream.aclose()
        await stop.stream.aclose()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_a_shutdown_reaches_the_runtime_and_tells_the_client(phase: Phase, path: str):
    async with lens(ONE) as found:
        there = await found.in_phase(phase, path, stream=True)
        left = found.mock.counters.streams_left
        found.api.slice.core.close()
        body = await there.client.rest()
        assert there.client.head is not None
        assert there.client.head.status_code == (200 if phase.head else 503)
        assert b"stopping" in body
        await there.client.stream.aclose()
        await over(found, phase, there, left)
        assert there.session.reason is EndReason.SHUTDOWN


async def test_an_answer_that_goes_on_alone_keeps_its_connection_and_can_be_stopped():
    async with lens() as found:
        there = await found.in_phase(STREAMING, "/api/chat", stream=True, headers=("x-wf-on-disconnect: continue",))
        await there.client.stream.aclose()
        so_far = there.session.report().tokens_generated
        await until(lambda: there.session.report().tokens_generated > so_far + 5)
        assert (found.mock.counters.streams_open, found.mock.counters.streams_left) == (1, 0)
        await found.api.slice.core.sessions.stop(there.session.id)
        await found.mock.wait_left()


async def test_an_answer_that_may_go_on_for_a_while_ends_then():
    async with lens() as found:
        header = "x-wf-on-disconnect: continue_for=3s"  # long enough for tokens, however busy the machine is
        there = await found.in_phase(STREAMING, "/api/chat", stream=True, headers=(header,))
        so_far = there.session.report().tokens_generated
        await there.client.stream.aclose()
        await found.mock.wait_left()
        await there.session.closed.wait()
        assert there.session.report().tokens_generated > so_far
        assert there.session.reason is EndReason.ABORTED


# ── nothing stays behind ──


def open_sockets() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:  # the listing's own
            continue
    return found


def living() -> tuple[int, int]:
    return trio.lowlevel.current_statistics().tasks_living, open_sockets()


CYCLED = (NO_HEAD, NO_TOKEN, STREAMING, STALLED)


async def test_hundreds_of_clients_that_leave_leave_nothing_behind():
    """In all phases that the runtime is in, by all paths, several at once."""
    async with lens() as found:
        warm = await found.in_phase(STREAMING, "/v1/messages", stream=True)
        await warm.client.stream.aclose()
        await warm.session.closed.wait()
        await found.nothing_upstream()
        await until(lambda: found.server.counters.listen.active == 0)
        before = living()

        async def cycle(n: int) -> None:
            phase, path = CYCLED[n % len(CYCLED)], PATHS[n % len(PATHS)]
            client = await found.ask(path, asked(phase.model, stream=n % 5 > 0))
            if phase.head and n % 5:
                await client.until_head()
            else:
                await trio.sleep(STEP_S * (n % 7))  # waits for nothing: they leave at different moments
            await client.stream.aclose()

        for begin in range(0, CYCLES, AT_ONCE):
            async with trio.open_nursery() as nursery:
                for n in range(begin, begin + AT_ONCE):
                    nursery.start_soon(cycle, n)
        await until(lambda: found.api.slice.core.sessions.live == 0)
        await found.nothing_upstream()
        await until(lambda: living() <= before)
        await until(lambda: found.api.slice.core.pool.pool.streams == 0)  # it hears of an end a moment later
        assert found.server.counters.crashed == 0
        assert {s.reason for s in found.sessions} <= {EndReason.ABORTED, EndReason.ERROR}
