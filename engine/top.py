"""`wf top`: the running streams in the terminal, from the same frames as the dashboard's.

Without a terminal, or with `--json`, one JSON object a second; with `--once` one, and then the end.
"""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import attrs
import msgspec
import trio
from trio_websocket import ConnectionClosed

from engine import console
from engine.client import EngineClient, open_frames
from engine.domain.errors import EngineError, InvalidRequest, RuntimeUnavailable
from engine.settings import Settings
from engine.state import EngineAddress
from engine.top_state import TopState, summary

DRAW_HZ: Final = 10
LINE_S: Final = 1.0
FIRST_FRAME_S: Final = 5.0  # the engine sends one a second even when nothing runs
KEY_BYTES: Final = 16
ESCAPE: Final = b"\x1b"


@attrs.define(eq=False)
class Top:
    """What the keys have chosen. `stop` stops a session by its id and may block."""

    state: TopState
    stop: Callable[[str], object]
    solo: int = -1
    paused: bool = False
    note: str = ""
    began: trio.Event = attrs.field(factory=trio.Event)  # the first frame is here
    _over: trio.Event = attrs.field(factory=trio.Event)

    async def pressed(self, keys: bytes) -> None:
        """What a read from the terminal brought. An arrow key begins with Escape too, and is none."""
        match keys:
            case b"q" | b"Q" | b"\x03":
                self._over.set()
            case b"p" | b" ":
                self.paused = not self.paused
            case b"0":
                self.solo = -1
            case b"1" | b"2" | b"3" | b"4" | b"5" | b"6":
                place = int(keys) - 1
                self.solo = -1 if self.solo == place else place
            case _ if keys == ESCAPE:
                await self._stop()

    async def _stop(self) -> None:
        session = self.state.shown
        if session is None or session.ended is not None:
            return
        self.note = "cancelling…"
        try:
            await trio.to_thread.run_sync(self.stop, session.id, abandon_on_cancel=True)
            self.note = ""  # the end of the session is told by its event
        except EngineError as error:
            self.note = error.message

    async def listen(self, receive: Callable[[], Awaitable[bytes | str]]) -> None:
        """Folds frames until the engine leaves. Raises RuntimeUnavailable then."""
        try:
            while True:
                self.state.take(await receive())
                if self.state.frames > 0:
                    self.began.set()
        except ConnectionClosed:
            raise RuntimeUnavailable("the engine has gone") from None

    async def keys(self, fd: int) -> None:
        while not self._over.is_set():
            await trio.lowlevel.wait_readable(fd)
            await self.pressed(os.read(fd, KEY_BYTES))

    async def over(self) -> None:
        await self._over.wait()


async def run_top(address: EngineAddress, settings: Settings, *, as_json: bool, once: bool) -> int:
    """Until `q`, the interrupt, or the engine's end. Raises RuntimeUnavailable, and InvalidRequest without rich."""
    client = EngineClient.connect(address, settings)
    top = Top(TopState(), client.stop)
    pictured = sys.stdout.isatty() and sys.stdin.isatty() and not as_json
    async with open_frames(address, settings) as socket, trio.open_nursery() as nursery:
        nursery.start_soon(top.listen, socket.get_message)
        if once:
            await _first_frame(top)
            _print(top, pictured)
        elif pictured:
            await _paint(top, nursery)
        else:
            while True:
                await trio.sleep(LINE_S)
                _print(top, pictured)
        nursery.cancel_scope.cancel()
    return 0


async def _first_frame(top: Top) -> None:
    with trio.move_on_after(FIRST_FRAME_S):
        await top.began.wait()
        return
    raise RuntimeUnavailable(f"the engine sent no frame within {FIRST_FRAME_S:.0f} s")


def _print(top: Top, pictured: bool) -> None:
    if not pictured:
        console.say(msgspec.json.encode(summary(top.state)).decode())
        return
    from rich.console import Console

    from engine.top_view import picture

    Console().print(picture(top.state))


async def _paint(top: Top, nursery: trio.Nursery) -> None:
    try:
        from rich.live import Live
    except ImportError:
        raise InvalidRequest("wf top draws with rich: pip install 'wf-engine[tui]', or use --json") from None
    from engine.top_view import picture

    with _raw(sys.stdin.fileno()), Live(auto_refresh=False, screen=True) as live:

        def paint() -> None:
            live.update(picture(top.state, solo=top.solo, paused=top.paused, note=top.note), refresh=True)

        nursery.start_soon(top.keys, sys.stdin.fileno())
        nursery.start_soon(_draw, top, paint)
        await top.over()


async def _draw(top: Top, paint: Callable[[], None]) -> None:
    paint()
    while True:
        await trio.sleep(1 / DRAW_HZ)
        if not top.paused:
            paint()


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Keys come one by one and are not echoed; afterwards the terminal is as it was."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
