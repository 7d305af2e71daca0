"""The HTTP client over real sockets, by its own transport and by that of httpx: what it sends, what it refuses, and
that letting go is felt on the other side."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import httpx
import pytest
import trio

from engine.domain.errors import (
    RuntimeFault,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.generation import GenerationRequest
from tests.fakes.network import receive
from tests.fakes.ollama import Reply, ScriptedOllama, Send, record, virtual_clock, whole
from transport.runtimes.ollama import OllamaRuntime
from transport.runtimes.plain_http import CONNECTIONS_MAX, POOL_S, WRITE_S, PlainTransport
from transport.runtimes.upstream import CLOSE_S, ERROR_BYTES_MAX, ERROR_S, Transport, Upstream, unix_socket

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
Handler = Callable[["Peer"], Awaitable[None]]
WATCHDOG_S = 120.0  # generous: only something stuck runs into it


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@attrs.define(eq=False)
class Peer:
    """The server's end of one connection."""

    stream: trio.SocketStream
    head: bytes = b""

    async def read_head(self) -> None:
        while b"\r\n\r\n" not in self.head:
            data = await receive(self.stream)
            if not data:
                raise EOFError
            self.head += data

    async def closed(self) -> None:
        """Wait until the client has closed."""
        while await receive(self.stream):
            pass


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A server on a free port of loopback; its URL."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(EOFError):
                await handler(Peer(stream))

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def answering(response: bytes) -> Handler:
    async def handle(peer: Peer) -> None:
        await peer.read_head()
        await peer.stream.send_all(response)

    return handle


@pytest.fixture(params=["plain", "httpx"])
def transport(request: pytest.FixtureRequest) -> Transport | None:
    if request.param == "plain":
        return None
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncHTTPTransport(verify=False, trust_env=False, limits=limits)


async def body_of(url: str, transport: Transport | None = None, body: bytes = b"") -> bytes:
    upstream = Upstream("x", url, transport)
    async with upstream.open_stream("POST" if body else "GET", "/", body, head_timeout_s=WATCHDOG_S) as response:
        return b"".join([data async for data in response])


async def test_what_is_sent(monkeypatch: pytest.MonkeyPatch, transport: Transport | None):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    heads: list[bytes] = []

    async def handle(peer: Peer) -> None:
        await peer.read_head()
        while not peer.head.endswith(b"}"):
            peer.head += await receive(peer.stream)
        heads.append(peer.head)
        await peer.stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nretry-after: 3\r\n\r\nok")

    async with serving(handle) as url:
        upstream = Upstream("x", f"{url}/under/", transport, {"authorization": "Bearer k", "user-agent": "me"})
        answer = await upstream.ask("POST", "/api/chat?a=ü%20b", b'{"a":1}', timeout_s=WATCHDOG_S)
    assert (answer.status, answer.body, answer.retry_after) == (200, b"ok", "3")
    head, _, body = heads[0].partition(b"\r\n\r\n")
    request, *lines = head.decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert request == "post /under/api/chat?a=%c3%bc%20b http/1.1"
    assert headers["host"] == url.removeprefix("http://")
    assert headers["accept-encoding"] == "identity"
    assert headers["content-type"] == "application/json"
    assert (headers["authorization"], headers["user-agent"]) == ("bearer k", "me")
    assert len(headers) == len(lines)
    assert (headers["content-length"], body) == ("7", b'{"a":1}')


async def test_a_name_and_a_password_in_the_address(transport: Transport | None):
    heads: list[bytes] = []

    async def handle(peer: Peer) -> None:
        await peer.read_head()
        heads.append(peer.head.lower())
        await peer.stream.send_all(b"HTTP/1.1 204 None\r\n\r\n")

    async with serving(handle) as url:
        address = url.replace("//", "//me:p%40ss@")
        await Upstream("x", address, transport, {"Authorization": "Bearer k"}).ask("GET", "/", timeout_s=WATCHDOG_S)
    lines = [line for line in heads[0].split(b"\r\n") if line.startswith((b"authorization:", b"host:"))]
    assert sorted(lines) == [b"authorization: basic bwu6cebzcw==", b"host: " + url.removeprefix("http://").encode()]


async def test_a_unix_socket(tmp_path: Path):
    path, peers = tmp_path / "s", []
    socket = trio.socket.socket(trio.socket.AF_UNIX)
    await socket.bind(str(path))
    socket.listen()

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            peers.append(Peer(stream))
            await answering(HEAD + chunk(b"a") + b"0\r\n\r\n")(peers[0])

    with pytest.raises(RuntimeUnavailable, match="nothing listens"):
        await body_of("http://name", unix_socket(str(tmp_path / "none")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [trio.SocketListener(socket)])
        assert await body_of("http://name", unix_socket(str(path))) == b"a"
        nursery.cancel_scope.cancel()
    assert b"\r\nhost: name\r\n" in peers[0].head


async def test_a_plain_transport_is_for_http_only():
    with pytest.raises(ValueError, match="https://x is not"):
        Upstream("x", "https://x", unix_socket("/nowhere"))


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"x-nonsense"])
async def test_compressed_answers_are_refused(encoding: bytes):
    response = b"HTTP/1.1 200 OK\r\ncontent-encoding: %s\r\ncontent-length: 1\r\n\r\nx" % encoding
    async with serving(answering(response)) as url:
        with pytest.raises(UpstreamProtocolError, match="compressed"):
            await body_of(url)


async def test_redirects_are_not_followed():
    response = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(response)) as url:
        assert (await Upstream("x", url).ask("GET", "/", timeout_s=WATCHDOG_S)).status == 302


@pytest.mark.parametrize(
    ("response", "error", "text"),
    [
        (b"", UpstreamProtocolError, "broke off or does not speak HTTP"),
        (b"SSH-2.0-nonsense\r\n\r\n", UpstreamProtocolError, "does not speak HTTP"),
        (HEAD + b"zz\r\n", UpstreamProtocolError, "not HTTP"),
        (HEAD + chunk(b"half"), UpstreamTruncated, "broke the connection inside"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", UpstreamTruncated, "broke the connection inside"),
    ],
)
async def test_answers_that_break(transport: Transport | None, response: bytes, error: type[RuntimeFault], text: str):
    async with serving(answering(response)) as url:
        with pytest.raises(error, match=text) as caught:
            await body_of(url, transport)
        assert type(caught.value) is error
        assert url in caught.value.message


async def test_a_reset_in_the_body_is_truncated(transport: Transport | None):
    async def handle(peer: Peer) -> None:
        await peer.read_head()
        await peer.stream.send_all(HEAD + chunk(b"half"))
        linger = b"\1\0\0\0\0\0\0\0"  # close with a reset
        peer.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)

    async with serving(handle) as url:
        with pytest.raises(UpstreamTruncated):
            await body_of(url, transport)


async def test_nothing_listens(transport: Transport | None):
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(RuntimeUnavailable, match=f"x at http://127.0.0.1:{port} does not answer"):
        await body_of(f"http://127.0.0.1:{port}", transport)
    probe = await OllamaRuntime(virtual_clock, f"http://127.0.0.1:{port}").probe()
    assert probe.reason == (
        f"ollama at http://127.0.0.1:{port} does not answer: nothing listens there; start it with `ollama serve`"
    )


@pytest.mark.parametrize("how", ["leave", "cancel while reading", "cancel in the body", "raise", "unread"])
async def test_letting_go_is_felt_at_once(transport: Transport | None, how: str):
    """The server sees the close while the client is still inside its test, and no generator is left to the collector
    (which would be a ResourceWarning, hence a failure)."""
    closed = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.read_head()
        lines = [chunk(record(f"t{n}")) for n in range(3)]
        await peer.stream.send_all(HEAD + b"".join(lines))  # more than what is read below is under way
        await peer.closed()
        closed.set()

    async with serving(handle) as url:
        scope = trio.CancelScope()
        request = GenerationRequest("m", prompt="p")
        try:
            with scope:
                async with OllamaRuntime(virtual_clock, url, transport=transport).generate(request) as chunks:
                    if how != "unread":
                        assert (await anext(chunks)).text == "t0"
                    if how == "raise":
                        raise KeyError("a fault of the caller")
                    if how.startswith("cancel"):
                        scope.cancel()
                    if how == "cancel in the body":
                        await trio.lowlevel.checkpoint()
                    if how == "cancel while reading":
                        async for _ in chunks:
                            pass
        except KeyError:
            assert how == "raise"
        gc.collect()
        with trio.fail_after(WATCHDOG_S):
            await closed.wait()
    assert scope.cancelled_caught == how.startswith("cancel")


async def test_cancelled_while_it_sends(transport: Transport | None):
    """A server that does not read a long prompt: the write hangs, and is let go cleanly."""
    sending = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.read_head()
        sending.set()
        await trio.sleep_forever()

    async with serving(handle) as url:
        async with trio.open_nursery() as nursery:
            upstream = Upstream("x", url, transport)
            nursery.start_soon(partial(upstream.ask, "POST", "/", b"x" * 64_000_000, timeout_s=WATCHDOG_S))
            await sending.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        gc.collect()
    assert nursery.cancel_scope.cancelled_caught


async def test_cancelled_at_any_step_leaves_nothing_behind(transport: Transport | None):
    connected = closed = 0

    async def handle(peer: Peer) -> None:
        nonlocal connected, closed
        connected += 1
        with suppress(EOFError, trio.BrokenResourceError):
            await peer.read_head()
            await peer.stream.send_all(HEAD + chunk(b"a"))
            await peer.stream.send_all(chunk(b"b") + b"0\r\n\r\n")
        await peer.closed()
        closed += 1

    finished = False
    async with serving(handle) as url:
        port = int(url.rpartition(":")[2])
        plain = PlainTransport(partial(trio.open_tcp_stream, "localhost", port))
        for steps in range(1, 200):
            with trio.CancelScope() as scope, CancelAt(scope, steps):
                assert (await body_of(url, transport or plain, b"asked")) == b"ab"
            gc.collect()
            assert plain.connections_open == 0
            finished = not scope.cancelled_caught
            if finished:
                break
        with trio.fail_after(WATCHDOG_S):
            while closed < connected:
                await trio.testing.wait_all_tasks_blocked()
    assert finished
    assert steps > 5
    assert 1 < connected <= steps


@attrs.define(eq=False)
class CancelAt(trio.abc.Instrument):
    """Cancels `scope` when the task that entered this has been run `steps` times."""

    scope: trio.CancelScope
    steps: int
    _task: object = None

    def __enter__(self) -> None:
        self._task = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(self)

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.steps -= 1
            if self.steps == 0:
                self.scope.cancel()


# ── in virtual time ──


def upstream(*replies: Reply | Exception) -> Upstream:
    return Upstream("x", "http://127.0.0.1:1", ScriptedOllama({"/": list(replies)}).transport)


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (httpx.ConnectTimeout("t"), RuntimeUnavailable),
        (httpx.PoolTimeout("t"), RuntimeUnavailable),
        (httpx.WriteTimeout("t"), UpstreamTimeout),
        (httpx.WriteError("t"), RuntimeUnavailable),
        (httpx.ReadError("t"), RuntimeUnavailable),
        (httpx.LocalProtocolError("t"), UpstreamProtocolError),
        (httpx.UnsupportedProtocol("t"), RuntimeUnavailable),
    ],
)
async def test_faults_before_the_head(raised: Exception, error: type[RuntimeFault]):
    with pytest.raises(RuntimeFault) as caught:
        await upstream(raised).ask("GET", "/", timeout_s=1)
    assert type(caught.value) is error


async def test_faults_of_the_plain_way(autojump_clock: trio.testing.MockClock):
    """Each with its words, through streams that are made here."""

    async def unread() -> trio.abc.Stream:
        return trio.testing.lockstep_stream_pair()[0]

    async def broken() -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        await server.aclose()
        return client

    for connect, method, error, text, after_s in (
        (trio.sleep_forever, "GET", RuntimeUnavailable, "did not take a connection within 3 s", 3),
        (unread, "GET", UpstreamTimeout, f"did not read the request for {WRITE_S:g} s", WRITE_S),
        (broken, "GET", UpstreamProtocolError, "broke off or does not speak HTTP", 0),
        (broken, "G T", UpstreamProtocolError, "broke off or does not speak HTTP", 0),
    ):
        begin_s = trio.current_time()
        with pytest.raises(RuntimeFault) as caught:
            await Upstream("x", "http://h", PlainTransport(connect), connect_s=3).ask(method, "/", timeout_s=99)
        assert (type(caught.value), caught.value.message) == (error, f"x at http://h {text}")
        assert trio.current_time() - begin_s == pytest.approx(after_s)


async def test_connections_are_bounded(autojump_clock: trio.testing.MockClock):
    async def connect() -> trio.abc.Stream:
        return trio.testing.memory_stream_pair()[0]

    server = PlainTransport(connect)
    upstream = Upstream("x", "http://h", server)
    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS_MAX):
            nursery.start_soon(partial(upstream.ask, "GET", "/", timeout_s=99))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RuntimeUnavailable, match="has all of our connections in use"):
            await upstream.ask("GET", "/", timeout_s=99)
        assert trio.current_time() == pytest.approx(POOL_S)
        nursery.cancel_scope.cancel()
    assert server.connections_open == 0


async def test_deadlines(autojump_clock: trio.testing.MockClock):
    for reply in (Reply(after_s=9), Reply([Send(b"x", after_s=9)]), Reply([Send(b"x", after_s=0.6) for _ in range(9)])):
        begin_s = trio.current_time()
        with pytest.raises(UpstreamTimeout, match="did not answer within 2 s"):
            await upstream(reply).ask("GET", "/", timeout_s=2)
        assert trio.current_time() - begin_s == pytest.approx(2)


async def test_sizes(autojump_clock: trio.testing.MockClock):
    assert (await upstream(whole(b"12345")).ask("GET", "/", timeout_s=1, size_max=5)).body == b"12345"
    with pytest.raises(UpstreamProtocolError, match="more than 4 bytes"):
        await upstream(whole(b"12345")).ask("GET", "/", timeout_s=1, size_max=4)


async def test_refusals_are_read_to_a_bound(autojump_clock: trio.testing.MockClock):
    endless = Reply([Send(b"x" * 50_000) for _ in range(100)], status=500)
    dripping = Reply([Send(b"x", after_s=2) for _ in range(100)], status=500)
    for reply, size, waited_s in ((endless, ERROR_BYTES_MAX, 0), (dripping, 2, ERROR_S)):
        begin_s = trio.current_time()
        async with upstream(reply).open_stream("GET", "/", head_timeout_s=1) as response:
            assert len(await response.read_error()) == size
        assert trio.current_time() - begin_s == pytest.approx(waited_s)
        assert reply.body.closed


async def test_a_stream_that_does_not_close_is_given_up(autojump_clock: trio.testing.MockClock):
    class Stuck(httpx.AsyncByteStream):
        def __aiter__(self) -> Stuck:
            return self

        async def __anext__(self) -> bytes:
            await trio.lowlevel.checkpoint()
            return b"x"

        async def aclose(self) -> None:
            await trio.sleep_forever()

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Stuck()))
    begin_s = trio.current_time()
    async with Upstream("x", "http://127.0.0.1:1", transport).open_stream("GET", "/", head_timeout_s=1) as response:
        await anext(response)
    assert trio.current_time() - begin_s == pytest.approx(CLOSE_S)
