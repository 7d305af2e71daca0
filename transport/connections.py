"""Connections to one server that are kept open for its next request, so that TLS is agreed on once and not every time.

A pool is of one host and port, and its connections go nowhere else. To take one needs the same permit as to open one,
and what is written to it counts for whoever has it. Kept is what was read to its end in good order, only while the pool
runs, only so many and only so long; one that the server lets go of meanwhile, or says something on unasked, is closed
at once. All of them are opened by transport/outbound.py.
"""

from __future__ import annotations

import select
import ssl
from typing import Final

import attrs
import trio

from policies.egress import ConnectionFigures, Permit
from transport import outbound

IN_USE_MAX: Final = 16  # to one server at once; more wait, and not for long
IDLE_MAX: Final = 4
IDLE_S: Final = 30.0


@attrs.define(eq=False)
class _Idle:
    stream: trio.abc.Stream
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


@attrs.define(eq=False)
class ConnectionPool:
    """`name` is the provider's. At most `in_use_max` connections are in use at once, `idle_max` wait, none for longer
    than `idle_s`. `trust` replaces the usual authorities. `figures` may be read at any time."""

    name: str
    host: str
    port: int
    tls: bool = True
    trust: ssl.SSLContext | None = None
    in_use_max: int = IN_USE_MAX
    idle_max: int = IDLE_MAX
    idle_s: float = IDLE_S
    figures: ConnectionFigures = attrs.field(factory=ConnectionFigures)
    free: trio.Semaphore = attrs.field(init=False)
    _idle: list[_Idle] = attrs.field(factory=list)
    _nursery: trio.Nursery | None = None

    def __attrs_post_init__(self) -> None:
        self.free = trio.Semaphore(self.in_use_max, max_value=self.in_use_max)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; connections are kept as long, and closed before this returns."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def under(self, permit: Permit | None) -> PermittedConnections:
        """The pool for whoever has this permit."""
        return PermittedConnections(self, permit)

    def close_idle(self) -> None:
        """Nothing is kept from now on that is idle now."""
        for idle in self._idle:
            idle.scope.cancel(reason="let go of")  # whoever minds it closes it

    def _take(self) -> trio.abc.Stream | None:
        """The one that was used last; the others may as well grow old. One on which something waits to be read is dead,
        or says what is no answer to us."""
        for idle in reversed(self._idle):
            if idle.scope.cancel_called:
                continue  # it is being closed
            idle.scope.cancel(reason="taken, or dead")
            if _is_quiet(idle.stream):
                self._idle.remove(idle)
                self.figures.idle = len(self._idle)
                return idle.stream
        return None

    def _keep(self, stream: trio.abc.Stream) -> bool:
        if self._nursery is None or len(self._idle) >= self.idle_max or outbound.socket_of(stream) is None:
            return False
        idle = _Idle(stream)
        self._idle.append(idle)
        self.figures.idle = len(self._idle)
        self._nursery.start_soon(self._mind, idle)
        return True

    async def _mind(self, idle: _Idle) -> None:
        """Close it, unless somebody takes it, once it is too old or there is something to be read: its end, or what
        nobody asked for."""
        sock = outbound.socket_of(idle.stream)
        assert sock is not None
        try:
            with idle.scope:
                if not idle.scope.cancel_called:
                    with trio.move_on_after(self.idle_s):
                        await trio.lowlevel.wait_readable(sock)
        finally:
            if idle in self._idle:
                self._idle.remove(idle)
                self.figures.idle = len(self._idle)
                self.figures.let_go += 1
                with trio.CancelScope(shield=True) as at_once:
                    at_once.cancel(reason="it is not waited for")
                    await idle.stream.aclose()


def _is_quiet(stream: trio.abc.Stream) -> bool:
    sock = outbound.socket_of(stream)
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return not poll.poll(0)


@attrs.frozen
class PermittedConnections:
    """What a transport needs of a pool, for whoever has `permit`."""

    pool: ConnectionPool
    permit: Permit | None

    @property
    def free(self) -> trio.Semaphore:
        return self.pool.free

    async def connect(self) -> trio.abc.Stream:
        """A new one. Raises as `outbound.connect`."""
        pool = self.pool
        stream = await outbound.connect(pool.host, pool.port, tls=pool.tls, permit=self.permit, trust=pool.trust)
        pool.figures.opened += 1
        return stream

    def take(self) -> trio.abc.Stream | None:
        """One that was kept, null when there is none. Raises OutboundRefused where the permit is for something else."""
        pool = self.pool
        outbound.refuse_unless_permitted(pool.host, pool.port, tls=pool.tls, permit=self.permit)
        stream = pool._take()
        if stream is not None:
            outbound.charge(stream, self.permit)
            pool.figures.reused += 1
        return stream

    def keep(self, stream: trio.abc.Stream) -> bool:
        """It is in good order, and nothing is on its way any more. False: whoever has it is to close it."""
        return self.pool._keep(stream)
