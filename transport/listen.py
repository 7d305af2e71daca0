"""The one accept loop. Every listener of the engine runs through it, so every connection has the same guards:

- a cap on connections, with a small reserve that may only be told so, and beyond it an immediate close;
- a deadline on every write, so that a peer which does not read can hold up nothing, least of all the shutdown;
- a lid: whatever exception a connection ends with ends that connection only.

    listener = await open_listener("127.0.0.1", 8145)
    acceptor = Acceptor(listener, handle, limits, counters)
    await nursery.start(acceptor.run)      # accepting now
    ...
    acceptor.stop_accepting()              # run() returns once the connections ended, after `drain_s` at the latest

Cancelling `run` instead skips the draining: all sockets are reset at once.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import struct
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import attrs
import trio

from engine.domain.errors import AddressInUse, ConfigError

ACCEPT_CAPACITY_ERRNOS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
ACCEPT_PAUSE_S: Final = 0.1  # after one of those; the backlog holds who comes meanwhile
WRITE_PIECE_BYTES: Final = 65_536  # the write deadline counts anew for each: slow is fine, standing still is not
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() throws unsent bytes away and sends RST
BACKLOG: Final = 512

logger = logging.getLogger("wf.listen")


@attrs.frozen
class ListenLimits:
    """`connections_max` are served; `reserve` more are handed on as overflow, to be refused politely; the rest is
    closed. `write_timeout_s`: how long a write may stand still. `drain_s`: what running connections get at the end."""

    connections_max: int = 256
    reserve: int = 16
    write_timeout_s: float = 5.0
    drain_s: float = 3.0


@attrs.define(eq=False)
class ListenCounters:
    """What happened at one listener since the start; `active` is now."""

    accepted: int = 0
    active: int = 0
    overflowed: int = 0  # served from the reserve
    refused: int = 0  # closed at once: reserve full
    lost: int = 0  # gone in the middle of something, by the peer's doing or our reset
    crashed: int = 0  # ended by any other exception
    write_timeouts: int = 0
    accept_errors: int = 0  # out of file descriptors or memory
    bytes_out: int = 0


Handler = Callable[["DeadlineStream", bool], Awaitable[None]]
"""Serves one connection; the flag says that it came over the cap. It need not close the stream."""


async def open_listener(host: str, port: int, *, backlog: int = BACKLOG) -> trio.SocketListener:
    """Bind and listen. `host` is an address, never a name: what a name points to is not ours to decide. Port 0 takes
    any free one.

    Raises AddressInUse, or ConfigError when the address is none or not this machine's.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ConfigError("the host to listen on must be an IP address, such as 127.0.0.1 or [::1]") from None
    sock = trio.socket.socket(trio.socket.AF_INET if address.version == 4 else trio.socket.AF_INET6)
    try:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        if address.version == 6:
            sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
        await sock.bind((str(address), port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        place = f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"{place} is in use by another program", host=host, port=port) from None
        raise ConfigError(f"cannot listen on {place}: {error.strerror}") from None
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


def bound_port(listener: trio.SocketListener) -> int:
    """The port a listener really has, also when 0 was asked for."""
    port: int = listener.socket.getsockname()[1]
    return port


@attrs.define(eq=False)
class DeadlineStream(trio.abc.HalfCloseableStream):
    """A connection whose writes cannot hang. One that stands still for `timeout_s`, or is cancelled half-way, resets
    the connection: part of a message may be out, and nothing sensible can follow it."""

    _inner: trio.abc.HalfCloseableStream
    timeout_s: float
    _counters: ListenCounters
    socket: trio.socket.SocketType | None = attrs.field(init=False)  # underneath; None for an in-memory stream

    def __attrs_post_init__(self) -> None:
        self.socket = self._inner.socket if isinstance(self._inner, trio.SocketStream) else None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises BrokenResourceError when the peer is gone or did not read in time. Cancelled here: reset."""
        try:
            for piece in _pieces(memoryview(data)):
                with trio.fail_after(self.timeout_s):
                    await self._inner.send_all(piece)
                self._counters.bytes_out += len(piece)
        except trio.TooSlowError:
            self._counters.write_timeouts += 1
            await self.reset()
            raise trio.BrokenResourceError("the peer did not read in time") from None
        except trio.Cancelled:
            await self.reset()
            raise

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Write what fits now and return how much that was; 0 also where there is no socket. The caller makes sure that
        no `send_all` is under way. Raises BrokenResourceError or ClosedResourceError when the connection is over."""
        sock = self.socket
        if sock is None:
            return 0
        fd = sock.fileno()
        if fd == -1:
            raise trio.ClosedResourceError
        try:
            sent = os.write(fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError from error
        self._counters.bytes_out += sent
        return sent

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._inner.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def finish(self, linger_s: float) -> None:
        """Say that nothing more comes, then read and throw away until the peer closes too, `linger_s` at most. Without
        this a close with unread input becomes a reset, which takes our last words away from the peer. Only for a caller
        who is alone with the stream."""
        try:
            with trio.move_on_after(linger_s):
                await self._inner.send_eof()
                while await self._inner.receive_some():
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def reset(self) -> None:
        """Close at once and throw away what was not sent yet; others waiting on this stream get ClosedResourceError."""
        if self.socket is not None and self.socket.fileno() != -1:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        await trio.aclose_forcefully(self._inner)

    async def aclose(self) -> None:
        await self._inner.aclose()


@attrs.define(eq=False)
class Acceptor:
    """Accepts on one listener, of sockets or of in-memory streams, and runs one task per connection."""

    listener: trio.abc.Listener[trio.SocketStream] | trio.abc.Listener[trio.abc.HalfCloseableStream]
    handler: Handler
    limits: ListenLimits
    counters: ListenCounters
    draining: trio.Event = attrs.field(factory=trio.Event)
    _accepting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _live: set[DeadlineStream] = attrs.field(factory=set)

    def stop_accepting(self) -> None:
        """Close the listener and let `run` return when the connections ended, after `drain_s` at the latest."""
        self.draining.set()
        self._accepting.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `stop_accepting`. Raises OSError only if the listener itself breaks. Cancelled: resets all at once."""
        async with trio.open_nursery() as outer:
            outer.start_soon(self._reset_when_cancelled)
            async with trio.open_nursery() as connections:
                async with self.listener:
                    task_status.started()
                    with self._accepting:
                        await self._accept(connections)
                outer.cancel_scope.deadline = trio.current_time() + self.limits.drain_s
            outer.cancel_scope.cancel()

    async def _accept(self, connections: trio.Nursery) -> None:
        limits, counters = self.limits, self.counters
        while True:
            try:
                inner: trio.abc.HalfCloseableStream = await self.listener.accept()
            except OSError as error:
                if error.errno not in ACCEPT_CAPACITY_ERRNOS:
                    raise
                counters.accept_errors += 1
                await trio.sleep(ACCEPT_PAUSE_S)
                continue
            stream = DeadlineStream(inner, limits.write_timeout_s, counters)
            counters.accepted += 1
            if counters.active >= limits.connections_max + limits.reserve:
                counters.refused += 1
                await stream.reset()
                continue
            overflow = counters.active >= limits.connections_max
            counters.overflowed += overflow
            counters.active += 1
            connections.start_soon(self._serve, stream, overflow)

    async def _serve(self, stream: DeadlineStream, overflow: bool) -> None:
        self._live.add(stream)
        try:
            await self.handler(stream, overflow)
        # `except*` finds them inside nested groups too, and lets cancellation pass.
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            self.counters.lost += 1
        except* Exception as group:
            self.counters.crashed += 1
            logger.warning("connection ended by %s", describe(group))
        finally:
            self._live.discard(stream)
            self.counters.active -= 1
            with trio.CancelScope(shield=True):  # else a Cancelled from here would hide what is on its way up
                await trio.aclose_forcefully(stream)

    async def _reset_when_cancelled(self) -> None:
        """Libraries shield their writes from cancellation. A closed socket ends those too."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for stream in tuple(self._live):
                    await stream.reset()


def describe(error: BaseException) -> str:
    """Types and places of an exception, or of all in a group, for the log. Never its text: that may quote the peer."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(sorted({describe(part) for part in error.exceptions}))
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + place


def _pieces(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, max(len(view), 1), WRITE_PIECE_BYTES):
        yield view[start : start + WRITE_PIECE_BYTES]
