"""One writer for a WebSocket: trio-websocket's control frames and our prebuilt data frames, never torn, never mixed.

trio-websocket gets this as its stream. What it writes (handshake, ping, pong, close) passes through `send_all`; frames
are pushed past it with one non-blocking write. What did not fit stays first in line, and until it is out nothing else
is taken: a client that lags has at most one write of ours in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import trio
from wsproto.frame_protocol import FrameProtocol

from transport.listen import DeadlineStream

CLOSE_FRAME: Final = 0x88  # first byte of a final frame: 0x80 | opcode
PONG_FRAME: Final = 0x8A
NO_STATUS: Final = 1005  # what a close frame without a code means (RFC 6455 §7.1.5)


def nothing() -> None:
    pass


@attrs.define(eq=False)
class PushStream(trio.abc.Stream):
    """`replay` is what was already read from the stream. `on_release` is called when the library closes "its" stream,
    which stays open: the last word is ours. `on_ping` is called for every ping of the peer (seen by our pong)."""

    _stream: DeadlineStream
    _replay: bytes
    on_release: Callable[[], None] = nothing
    on_ping: Callable[[], None] = nothing
    close_code: int | None = None  # of the close frame that went out
    _flushers: trio.Nursery | None = None  # set while frames may be pushed
    _rest: memoryview = attrs.field(factory=lambda: memoryview(b""))
    _writing: trio.Lock = attrs.field(factory=trio.Lock)
    _released: bool = False

    def open(self, nursery: trio.Nursery) -> None:
        """From now on frames are taken; the handshake is over. `nursery` runs what has to wait for the peer."""
        self._flushers = nursery

    def push(self, frame: bytes) -> bool:
        """Take whole frames, or refuse (False) while earlier bytes are still on their way, and after the end."""
        if self._flushers is None or self._rest or self._writing.locked() or self.close_code is not None:
            return False
        try:
            sent = self._stream.send_nowait(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False  # the reader finds out too, and ends the connection
        if sent < len(frame):
            self._rest = memoryview(frame)[sent:]
            self._flushers.start_soon(self._flush)
        return True

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame after what is in flight, unless one went out already. Nothing is written after it.

        Raises BrokenResourceError or ClosedResourceError when the connection is over. Cancelled here: reset."""
        self._flushers = None
        async with self._writing:
            if self.close_code is None:
                await self._send_rest()
                await self._stream.send_all(FrameProtocol(client=False, extensions=[]).close(code, reason))
                self.close_code = code

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """For the library: one control frame, or the answer to the handshake."""
        async with self._writing:
            if self.close_code is not None and data[0] == CLOSE_FRAME:
                return  # its answer to the peer's close frame, which was the answer to ours
            if self.close_code is not None or self._released:
                raise trio.ClosedResourceError
            await self._send_rest()
            await self._stream.send_all(data)
            if data[0] == CLOSE_FRAME:
                self.close_code = int.from_bytes(data[2:4], "big") or NO_STATUS
        if data[0] == PONG_FRAME:
            self.on_ping()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """For the library: the replay first. After its `aclose` it gets ClosedResourceError, as from a real one."""
        if self._released:
            raise trio.ClosedResourceError
        if self._replay:
            data, self._replay = self._replay, b""
            return data
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """For the library: it has done with the stream."""
        self._released = True
        self.on_release()
        await trio.lowlevel.checkpoint()

    async def _flush(self) -> None:
        try:
            async with self._writing:
                await self._send_rest()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the reader finds out too, and ends the connection

    async def _send_rest(self) -> None:
        """With the lock held. A control frame must not land inside a data frame, so whoever writes sends this first."""
        if self._rest:
            rest = self._rest
            await self._stream.send_all(rest)
            self._rest = memoryview(b"")
