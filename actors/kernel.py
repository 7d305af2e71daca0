"""The actor kernel: bounded mailboxes with three verbs, and replies. See design.md for the convention.

`put` is lossless and waits; `offer` is lossy and counted; a command is an `offer` with a `Reply`. A mailbox needs an
integer capacity: infinity cannot be asked for.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Generic, Protocol, TypeVar

import attrs
import trio

T = TypeVar("T")


class Actor(Protocol):
    """A trio task that owns state nobody else touches. `run` ends when its input ends; a crash leaves it."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None: ...


@attrs.frozen
class FlowStats:
    """How a mailbox fares: batches sent, offers refused, seconds producers were held, depth now and at its peak."""

    name: str
    capacity: int
    depth: int
    peak: int
    sent: int
    refused: int
    blocked_s: float


@attrs.define(eq=False)
class _Counters:
    name: str
    capacity: int
    sent: int = 0
    refused: int = 0
    blocked_s: float = 0.0


@attrs.define(eq=False)
class Outlet(Generic[T]):
    """The sending end. `fork` makes another one for another producer; the counters are shared."""

    _channel: trio.MemorySendChannel[T]
    _counters: _Counters

    async def put(self, item: T) -> float:
        """Send without loss; returns the seconds it was held (0.0 when there was room). Cancelled here: not sent.

        Raises trio.BrokenResourceError when the receiver is gone for good."""
        if self.try_put(item):
            return 0.0
        began = trio.current_time()
        await self._channel.send(item)
        held_s = trio.current_time() - began
        self._counters.blocked_s += held_s
        self._counters.sent += 1
        return held_s

    def try_put(self, item: T) -> bool:
        """`put` where there is room; False where it would wait, which the caller then does."""
        try:
            self._channel.send_nowait(item)
        except trio.WouldBlock:
            return False
        self._counters.sent += 1
        return True

    def offer(self, item: T) -> bool:
        """Send if there is room; False (and counted) otherwise. Never waits."""
        try:
            self._channel.send_nowait(item)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self._counters.refused += 1
            return False
        self._counters.sent += 1
        return True

    def fork(self) -> Outlet[T]:
        return Outlet(self._channel.clone(), self._counters)

    def close(self) -> None:
        self._channel.close()

    def flow(self) -> FlowStats:
        c, stats = self._counters, self._channel.statistics()
        return FlowStats(
            c.name, c.capacity, stats.current_buffer_used, stats.peak_buffer_used, c.sent, c.refused, c.blocked_s
        )


@attrs.define(eq=False)
class Inlet(Generic[T]):
    """The receiving end. It outlives any one incarnation of its actor: after a crash the messages are still there."""

    _channel: trio.MemoryReceiveChannel[T]

    def open(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[T]]:
        """A receiver for one incarnation."""
        return self._channel.clone()

    def close(self) -> None:
        """Nobody will read again: producers get BrokenResourceError."""
        self._channel.close()

    @property
    def depth(self) -> int:
        return self._channel.statistics().current_buffer_used


class mailbox(tuple[Outlet[T], Inlet[T]]):
    """A bounded channel as a pair of its ends: `outlet, inlet = mailbox[Frame]("frames", 2)`."""

    __slots__ = ()

    def __new__(cls, name: str, capacity: int) -> mailbox[T]:
        send, receive = trio.open_memory_channel[T](capacity)
        return tuple.__new__(cls, (Outlet(send, _Counters(name, capacity)), Inlet(receive)))


def drain(channel: trio.MemoryReceiveChannel[T], first: T, limit: int) -> list[T]:
    """`first` and what else is already there, at most `limit` in all. Not a checkpoint, hence the bound."""
    batch = [first]
    while len(batch) < limit:
        try:
            batch.append(channel.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            break
    return batch


@attrs.define(eq=False)
class Reply(Generic[T]):
    """The answer to one command. A grant counts only if taken: `set` returns False when the asker has gone."""

    _done: trio.Event = attrs.field(factory=trio.Event)
    _value: list[T] = attrs.field(factory=list)
    _error: Exception | None = None
    abandoned: bool = False

    def set(self, value: T) -> bool:
        if self.abandoned:
            return False
        self._value.append(value)
        self._done.set()
        return True

    def fail(self, error: Exception) -> None:
        self._error = error
        self._done.set()

    async def wait(self) -> T:
        """The value, or the error raised. Cancelled here: marked abandoned, unless the answer was already given."""
        try:
            await self._done.wait()
        except trio.Cancelled:
            if not self._done.is_set():
                self.abandoned = True
                raise
        if self._error is not None:
            raise self._error
        return self._value[0]
