"""ReplyLine: what a session hands to one caller who answers in a dialect of his own. Bounded and lossless: while it is
full the session waits, and with it the runtime's stream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import attrs
import trio

from engine.domain.errors import EngineError
from engine.domain.generation import Chunk, EndReason, GenerationEnd
from engine.domain.runtime import Read

ITEMS_MAX: Final = 256


@attrs.frozen
class Begun:
    """The runtime answers, `waited_ms` after it was asked. Status and content type are of a forwarded answer, null
    otherwise."""

    waited_ms: float
    status: int | None = None
    content_type: str | None = None
    retry_after: str | None = None


@attrs.frozen
class Ended:
    """The session is over: with the runtime's end, with an error, or stopped (then with neither)."""

    reason: EndReason
    end: GenerationEnd | None
    error: EngineError | None


@attrs.frozen
class Spoken:
    """What an item was made into by the caller's `AtOnce`, and could not be given to its client there; or how that
    failed, after `data`."""

    data: bytes
    error: EngineError | None = None


Item = Begun | Chunk | Read | Spoken | Ended
AtOnce = Callable[[Begun | Chunk | Read], Spoken | None]
"""Takes an item while its caller waits for one: no task is woken for it. None when that was all. Never waits."""


class ReplySink(Protocol):
    """Who takes what a model stream brings, besides the frames."""

    whole: bool  # the body of a forwarded answer came to its own end

    async def put(self, item: Begun | Chunk | Read) -> float: ...
    def try_put(self, item: Begun | Chunk | Read) -> bool: ...


@attrs.define(eq=False)
class ReplyLine:
    """One end is the session's (`put`, `end`), the other the caller's (`next`). After `Ended` nothing comes."""

    _channel: tuple[trio.MemorySendChannel[Item], trio.MemoryReceiveChannel[Item]] = attrs.field(
        factory=lambda: trio.open_memory_channel[Item](ITEMS_MAX), init=False
    )
    _ended: Ended | None = attrs.field(default=None, init=False)
    _at_once: AtOnce | None = attrs.field(default=None, init=False)  # while nothing lies here, and the caller waits
    whole: bool = attrs.field(default=False, init=False)  # the body of a forwarded answer came to its own end

    async def put(self, item: Begun | Chunk | Read) -> float:
        """Hand on; the seconds it had to wait for room. A caller who has left takes nothing and holds nobody up."""
        if self.try_put(item):
            return 0.0
        began = trio.current_time()
        with suppress(trio.BrokenResourceError):
            await self._channel[0].send(item)
        return trio.current_time() - began

    def try_put(self, item: Begun | Chunk | Read) -> bool:
        """`put` where it need not wait; False where it would."""
        told: Item = item
        if self._at_once is not None:
            spoken = self._at_once(item)
            if spoken is None:
                return True
            told, self._at_once = spoken, None  # from here on nothing may overtake it
        try:
            self._channel[0].send_nowait(told)
        except trio.WouldBlock:
            return False
        except trio.BrokenResourceError:
            pass
        return True

    def end(self, reason: EndReason, end: GenerationEnd | None, error: EngineError | None) -> None:
        """The last word; also when there is no room. Never waits."""
        self._ended = Ended(reason, end, error)
        self._channel[0].close()

    async def next(self, at_once: AtOnce | None = None) -> Item:
        """The next item; `Ended` again and again once everything was taken. Those that `at_once` takes meanwhile are
        not given here."""
        if at_once is not None and not self._channel[1].statistics().current_buffer_used:
            self._at_once = at_once
        try:
            return await self._channel[1].receive()
        except trio.EndOfChannel:
            assert self._ended is not None
            return self._ended
        finally:
            self._at_once = None

    def leave(self) -> None:
        """The caller takes no more."""
        self._channel[1].close()
