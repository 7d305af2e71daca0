"""The one way out of this process: every connection that the engine opens is opened here.

A connection to this machine (loopback, or a unix socket) needs nothing. Any other one needs a Permit for its very host
and port; without one it is refused before the name is looked up, because looking it up leaves the machine too. What is
written to connections that leave is counted where it reaches the socket, so TLS and its handshakes are in it.

What is counted belongs to the process, as its sockets do: there is one set of counters.
"""

from __future__ import annotations

import functools
import ssl
from typing import Final

import attrs
import httpx
import trio

from policies.egress import Meter, Permit, Purpose, stays_here


@attrs.define(eq=False)
class OutboundCounters:
    """Since the start. `bytes_out` left this machine; `refused` connections did not."""

    bytes_out: int = 0
    connections: int = 0  # that left
    refused: int = 0


COUNTERS: Final = OutboundCounters()


class OutboundRefused(OSError):
    """A connection that would have left this machine without leave."""


class NoTls(OSError):
    """The other side shows no certificate that is good for its name, or speaks no TLS that is good enough."""


async def connect(
    host: str, port: int, *, tls: bool = False, permit: Permit | None = None, trust: ssl.SSLContext | None = None
) -> trio.abc.Stream:
    """A connection to `host` (a name or an address without brackets). With `tls` its certificate has been checked
    against `host`; for the broker that is TLS 1.3, else at least 1.2. `trust` replaces the usual authorities.

    Raises OutboundRefused, NoTls, and OSError when it cannot be opened. Cancelled: nothing stays open."""
    here = stays_here(host)
    refuse_unless_permitted(host, port, tls=tls, permit=permit)
    stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
    assert isinstance(stream, trio.SocketStream)
    try:
        address = str(stream.socket.getpeername()[0])
        if here and not stays_here(address):
            COUNTERS.refused += 1
            raise OutboundRefused(f"{host} is not this machine")  # its hosts file says that localhost is elsewhere
        if not stays_here(address):
            COUNTERS.connections += 1
            stream = CountedStream(stream, permit.meter if permit is not None else Meter())
        return stream if not tls else await _encrypted(stream, host, permit, trust)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def refuse_unless_permitted(host: str, port: int, *, tls: bool, permit: Permit | None) -> None:
    """Raises OutboundRefused for what leads out of this machine without a permit for it."""
    if not stays_here(host) and (permit is None or not permit.covers(host, port, tls=tls)):
        COUNTERS.refused += 1
        raise OutboundRefused(f"{host}:{port} is outside this machine, and nobody permitted it")


def charge(stream: trio.abc.Stream, permit: Permit | None) -> None:
    """What is written to `stream`, one of `connect`, counts for this permit from now on."""
    inner = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if isinstance(inner, CountedStream):
        inner.meter = permit.meter if permit is not None else Meter()


def socket_of(stream: trio.abc.Stream) -> trio.socket.SocketType | None:
    """The socket under a stream of `connect`; null where there is none, or something that nobody read is left in it."""
    if isinstance(stream, trio.SSLStream):
        if stream.pending():
            return None
        stream = stream.transport_stream
    if isinstance(stream, CountedStream):
        stream = stream.stream
    return stream.socket if isinstance(stream, trio.SocketStream) else None


async def connect_unix(path: str) -> trio.abc.Stream:
    """A connection to the socket at `path`. Raises OSError."""
    return await trio.open_unix_socket(path)


@attrs.define(eq=False)
class CountedStream(trio.abc.Stream):
    """A connection that leaves this machine: what is written to it is counted, before it is written."""

    stream: trio.abc.Stream
    meter: Meter

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        size_bytes = memoryview(data).nbytes
        COUNTERS.bytes_out += size_bytes
        self.meter.bytes_out += size_bytes
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


async def _encrypted(
    stream: trio.abc.Stream, host: str, permit: Permit | None, trust: ssl.SSLContext | None
) -> trio.abc.Stream:
    if trust is None:  # reading all certificates takes 30 ms, once
        strict = permit is not None and permit.purpose is Purpose.BROKER
        trust = await trio.to_thread.run_sync(_client_context, strict)
    encrypted = trio.SSLStream(stream, trust, server_hostname=host, https_compatible=True)
    try:
        await encrypted.do_handshake()
    except trio.BrokenResourceError as error:
        raise NoTls(f"{host} shows no certificate that is good for its name") from error
    return encrypted


@functools.cache
def _client_context(strict: bool) -> ssl.SSLContext:
    context = httpx.create_ssl_context(trust_env=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if strict else ssl.TLSVersion.TLSv1_2
    return context
