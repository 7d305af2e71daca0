"""ReplyLine: what a session hands to one caller who answers in a dialect of his own. Bounded and lossless: while it is
full the session waits, and with it the runtime's stream."""

from __future__ import annotations

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


Item = Begun | Chunk | Read | Ended


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
        try:
            self._channel[0].send_nowait(item)
        except trio.WouldBlock:
            return False
        except trio.BrokenResourceError:
            pass
        return True

    def end(self, reason: EndReason, end: GenerationEnd | None, error: EngineError | None) -> None:
        """The last word; also when there is no room. Never waits."""
        self._ended = Ended(reason, end, error)
        self._channel[0].close()

    async def next(self) -> Item:
        """The next item; `Ended` again and again once everything was taken."""
        try:
            return await self._channel[1].receive()
        except trio.EndOfChannel:
            assert self._ended is not None
            return self._ended

    def leave(self) -> None:
        """The caller takes no more."""
        self._channel[1].close()
