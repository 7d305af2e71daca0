"""The one way out: what it lets through, what it refuses, and what it counts. Real sockets on loopback; of what lies
outside only that nobody tries to get there."""

from __future__ import annotations

import ast
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import memory_stream_pair

from engine.domain.errors import RuntimeUnavailable
from policies.egress import Meter, Permit, Purpose
from tests.fakes.processes import WATCHDOG_S
from transport import outbound
from transport.runtimes.plain_http import PlainTransport
from transport.runtimes.upstream import Upstream

ROOT = Path(__file__).parents[2]
PERMIT = Permit(Purpose.BROKER, "api.example.com", 443)
ELSEWHERE = [
    "93.184.215.14",
    "api.example.com",
    "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
    "0.0.0.0",
    "localhost.example",
]


@attrs.define(eq=False)
class NoNetwork(trio.abc.HostnameResolver, trio.abc.SocketFactory):
    """Stands in for name lookups and sockets, and counts how often somebody wants either."""

    wanted: int = 0

    async def getaddrinfo(self, *args, **kwargs):
        self.wanted += 1
        raise socket.gaierror("nobody may ask")

    async def getnameinfo(self, *args, **kwargs):
        raise AssertionError

    def socket(self, *args, **kwargs):
        self.wanted += 1
        raise OSError("nobody may open one")


@pytest.fixture
async def no_network() -> NoNetwork:
    found = NoNetwork()
    trio.socket.set_custom_hostname_resolver(found)
    trio.socket.set_custom_socket_factory(found)
    return found


@pytest.fixture(autouse=True)
def counters_as_before() -> Iterator[None]:
    """They are of the process, and other tests look at them."""
    before = attrs.asdict(outbound.COUNTERS)
    yield
    for name, value in before.items():
        setattr(outbound.COUNTERS, name, value)


@pytest.mark.parametrize("host", ELSEWHERE)
async def test_without_a_permit_nothing_leaves_not_even_a_lookup(host, no_network):
    refused = outbound.COUNTERS.refused
    for tls in (False, True):
        with pytest.raises(outbound.OutboundRefused):
            await outbound.connect(host, 443, tls=tls)
    assert no_network.wanted == 0
    assert outbound.COUNTERS.refused == refused + 2


@pytest.mark.parametrize(
    ("host", "port", "tls"),
    [("api.example.org", 443, True), ("api.example.com", 80, True), ("api.example.com", 443, False)],
)
async def test_a_permit_for_something_else_is_none(host, port, tls, no_network):
    with pytest.raises(outbound.OutboundRefused):
        await outbound.connect(host, port, tls=tls, permit=PERMIT)
    assert no_network.wanted == 0


async def test_with_its_permit_a_host_is_looked_up(no_network):
    with pytest.raises(OSError, match="nobody may ask"):
        await outbound.connect("api.example.com", 443, tls=True, permit=PERMIT)
    assert no_network.wanted == 1


async def test_an_upstream_elsewhere_says_so(no_network):
    upstream = Upstream("openai", "https://api.example.com", connect_s=WATCHDOG_S)
    with pytest.raises(RuntimeUnavailable, match="outside this machine"):
        await upstream.ask("GET", "/v1/models", timeout_s=WATCHDOG_S)
    assert no_network.wanted == 0
    with pytest.raises(RuntimeUnavailable, match="does not answer"):
        await upstream.under(PERMIT).ask("GET", "/v1/models", timeout_s=WATCHDOG_S)
    assert no_network.wanted == 1


async def test_loopback_needs_no_permit_and_is_not_counted():
    before = attrs.astuple(outbound.COUNTERS)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, _echo, listeners)
        for host in ("127.0.0.1", "localhost"):
            async with await outbound.connect(host, port) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()
    assert attrs.astuple(outbound.COUNTERS) == before


async def test_a_unix_socket_is_of_this_machine(tmp_path):
    path = str(tmp_path / "s")
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen()
        stream = await outbound.connect_unix(path)
        await stream.aclose()


async def test_what_is_written_is_counted_before_it_goes_and_nothing_else():
    near, far = memory_stream_pair()
    meter, before = Meter(), outbound.COUNTERS.bytes_out
    stream = outbound.CountedStream(near, meter)
    await stream.send_all(b"12345")
    await stream.send_all(memoryview(bytearray(8)).cast("Q"))
    await far.send_all(b"a long answer")
    assert await stream.receive_some() == b"a long answer"
    assert meter.bytes_out == 13
    assert outbound.COUNTERS.bytes_out == before + 13
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"x")


async def test_a_server_without_a_certificate_for_its_name_is_not_spoken_to():
    """On loopback, where a TLS server would need no permit: the handshake fails before a byte of a request is sent."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port, heard = listeners[0].socket.getsockname()[1], bytearray()

    async def no_tls(stream: trio.SocketStream) -> None:
        async with stream:
            heard.extend(await stream.receive_some())
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, no_tls, listeners)
        sent = {"authorization": "Bearer sk-secret"}
        upstream = Upstream("x", f"https://127.0.0.1:{port}", headers=sent, connect_s=WATCHDOG_S)
        with pytest.raises(RuntimeUnavailable, match="certificate"):
            await upstream.ask("GET", "/v1/models", timeout_s=WATCHDOG_S)
        nursery.cancel_scope.cancel()
    assert heard
    assert b"sk-secret" not in heard


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's side and a client's that trusts it: a certificate of its own for localhost."""
    folder, openssl = tmp_path_factory.mktemp("tls"), shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is needed to make a certificate")
    command = [
        openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=test", "-addext", "subjectAltName=DNS:localhost",
        "-keyout", str(folder / "key"), "-out", str(folder / "cert"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert", folder / "key")
    return server, ssl.create_default_context(cafile=str(folder / "cert"))


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n"


@asynccontextmanager
async def tls_server(context: ssl.SSLContext, seen: list[bytes], left: trio.Event) -> AsyncIterator[int]:
    """Answers every request with three pieces; `left` is set once a client has gone."""

    async def answer(stream: trio.SSLStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                seen.append(bytes(await stream.receive_some()))
                await stream.send_all(HEAD)
                for piece in (b"one", b"two", b"three"):
                    await stream.send_all(piece)
                await stream.receive_some()
        left.set()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1", https_compatible=True)
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        yield listeners[0].transport_listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def over_tls(port: int, trust: ssl.SSLContext, host: str = "localhost") -> Upstream:
    connect = partial(outbound.connect, host, port, tls=True, trust=trust)
    sent = {"authorization": "Bearer sk-secret"}
    return Upstream("x", f"http://{host}:{port}", PlainTransport(connect), sent, connect_s=WATCHDOG_S)


async def test_an_answer_over_tls(certificate):
    server, client = certificate
    seen: list[bytes] = []
    async with tls_server(server, seen, trio.Event()) as port:
        for _ in range(2):
            answer = await over_tls(port, client).ask("POST", "/v1/messages", b"{}", timeout_s=WATCHDOG_S)
            assert (answer.status, answer.body) == (200, b"onetwothree")
    assert all(b"POST /v1/messages HTTP/1.1" in head and b"Bearer sk-secret" in head for head in seen)


async def test_leaving_closes_a_tls_connection_at_once(certificate):
    server, client = certificate
    left = trio.Event()
    async with tls_server(server, [], left) as port:
        async with over_tls(port, client).open_stream("POST", "/", head_timeout_s=WATCHDOG_S) as response:
            assert (await anext(response)).startswith(b"one")
            assert not left.is_set()
        with trio.fail_after(WATCHDOG_S):
            await left.wait()


async def test_a_certificate_that_nobody_vouches_for_is_none(certificate):
    server, client = certificate
    seen: list[bytes] = []
    async with tls_server(server, seen, trio.Event()) as port:
        stranger = ssl.create_default_context()
        with pytest.raises(RuntimeUnavailable, match="certificate"):
            await over_tls(port, stranger).ask("GET", "/", timeout_s=WATCHDOG_S)
        with pytest.raises(RuntimeUnavailable, match="certificate"):  # as every upstream does it
            await Upstream("x", f"https://localhost:{port}", connect_s=WATCHDOG_S).ask("GET", "/", timeout_s=WATCHDOG_S)
        with pytest.raises(RuntimeUnavailable, match="certificate"):  # one for another name
            await over_tls(port, client, "127.0.0.1").ask("GET", "/", timeout_s=WATCHDOG_S)
    assert not any(seen)  # not a byte of a request


async def _echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


# What opens connections, by any library that is here. The tools of the command line speak to a running engine.
OPENERS = {
    "open_tcp_stream", "open_ssl_over_tcp_stream", "open_unix_socket", "create_connection", "urlopen",
    "AsyncHTTPTransport", "HTTPTransport", "HTTPConnection", "HTTPSConnection", "connect_ex", "open_websocket",
    "open_websocket_url", "connect_tcp",
}  # fmt: skip
COMMAND_LINE = {"engine/client.py", "engine/service_verbs.py"}


def test_nothing_else_in_the_product_opens_connections():
    found = {}
    for package in ("engine", "actors", "policies", "transport", "web"):
        for path in (ROOT / package).rglob("*.py"):
            names = {
                node.attr if isinstance(node, ast.Attribute) else node.id
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute | ast.Name)
            }
            if names & OPENERS:
                found[path.relative_to(ROOT).as_posix()] = sorted(names & OPENERS)
    assert {path: names for path, names in found.items() if path not in COMMAND_LINE} == {
        "transport/outbound.py": ["open_tcp_stream", "open_unix_socket"]
    }


def test_httpx_is_given_a_network_in_memory_or_is_part_of_the_command_line():
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("engine", "actors", "policies", "transport", "web")
        for path in (ROOT / package).rglob("*.py")
        if "import httpx" in path.read_text()
    }
    assert users == {*COMMAND_LINE, "transport/outbound.py", "transport/runtimes/upstream.py"}
