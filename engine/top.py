"""`wf top`: the running streams in the terminal, from the same frames as the dashboard's.

With `--once`, with `--json` and without a terminal, one picture and then the end. Pictures are made and written in a
thread, only the newest is kept: a terminal that takes its time holds up nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

import attrs
import msgspec
import trio
from trio_websocket import ConnectionClosed

from engine import console
from engine.client import EngineClient, RemoteError, open_frames
from engine.domain.errors import EngineError, RuntimeUnavailable
from engine.settings import Settings
from engine.state import EngineAddress
from engine.top_draw import drawn, painted
from engine.top_view import Picture, TopFold, as_json, keys_in

DRAW_HZ: Final = 10
POLL_S: Final = 2.0
FIRST_FRAME_S: Final = 5.0  # the engine sends one a second even when nothing runs
SILENT_S: Final = 3.0  # and after this the screen says that none comes
BACKOFF_FIRST_S: Final = 0.25
BACKOFF_MAX_S: Final = 5.0
STOPS_MAX: Final = 4  # asked for and not yet answered
KEY_BYTES: Final = 64
WRITE_BYTES: Final = 512
WRITE_WAIT_S: Final = 0.25
PATTERNS: Final = (
    "energy.*", "council.*", "experience.session_start", "experience.session_end", "experience.model", "system.*",
)  # fmt: skip
SUBSCRIBE: Final = msgspec.json.encode({"type": "subscribe", "patterns": PATTERNS, "rate_hz": float(DRAW_HZ)}).decode()
RESYNC: Final = '{"type":"resync"}'
NO_RICH: Final = "wf top draws with rich: pip install 'wf-engine[tui]' (in a clone: .venv/bin/pip install -e '.[tui]')"
ENTER: Final = b"\x1b[?1049h\x1b[?25l"
LEAVE: Final = b"\x1b[0m\x1b[?25h\x1b[?1049l"
WIDTH_PLAIN: Final = 120  # of a picture that no terminal shows


# ── the terminal ──


@attrs.define(eq=False)
class Painter:
    """Writes pictures to a terminal in a thread, one at a time; of those that wait only the newest is kept, the others
    are counted in `dropped`. `make` gives the bytes of a picture and runs in the thread too."""

    fd: int
    dropped: int = 0
    _newest: Callable[[], bytes] | None = None
    _news: trio.Event = attrs.field(factory=trio.Event)
    _closed: bool = False
    _writing: threading.Lock = attrs.field(factory=threading.Lock)

    def show(self, make: Callable[[], bytes]) -> None:
        self.dropped += self._newest is not None
        self._newest = make
        self._news.set()

    async def run(self) -> None:
        """Until cancelled, which leaves a write that hangs behind."""
        try:
            while True:
                await self._news.wait()
                make, self._newest, self._news = self._newest, None, trio.Event()
                if make is not None:
                    await trio.to_thread.run_sync(self._write, make, abandon_on_cancel=True)
        finally:
            self.close()

    def _write(self, make: Callable[[], bytes]) -> None:
        data = make()
        while data and not self._closed:
            if select.select([], [self.fd], [], WRITE_WAIT_S)[1]:
                with self._writing, contextlib.suppress(BlockingIOError):
                    data = b"" if self._closed else data[os.write(self.fd, data[:WRITE_BYTES]) :]

    def close(self) -> None:
        """Nothing is written any more, unless a write hangs."""
        self._closed = True
        if self._writing.acquire(timeout=WRITE_WAIT_S):
            self._writing.release()


@contextlib.contextmanager
def taken(terminal: int, keys: int | None) -> Iterator[int]:
    """The terminal on its other screen, keys one by one and without echo; afterwards it is as it was. Output that it
    does not take is thrown away then, so that the end comes in any case. Gives the descriptor to write to."""
    before = None if keys is None else termios.tcgetattr(keys)
    try:  # a write that waits in the kernel would lock the terminal; the caller's descriptor is not ours to change
        out = os.open(os.ttyname(terminal), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        out = os.dup(terminal)
    try:
        if keys is not None:
            tty.setcbreak(keys, termios.TCSANOW)
        _put(out, ENTER)
        yield out
    finally:
        _put(out, LEAVE)
        if keys is not None and before is not None:
            termios.tcsetattr(keys, termios.TCSANOW, before)
        os.close(out)


def _put(fd: int, data: bytes) -> None:
    with contextlib.suppress(OSError, termios.error):  # a terminal that is gone needs nothing
        if not select.select([], [fd], [], WRITE_WAIT_S)[1]:
            termios.tcflush(fd, termios.TCOFLUSH)
        if select.select([], [fd], [], WRITE_WAIT_S)[1]:
            os.write(fd, data)


# ── the engine and the keys ──


@attrs.define(eq=False)
class Top:
    """A fold that follows an engine, also the next one that starts here, and what the keys have chosen."""

    find: Callable[[], Awaitable[EngineAddress]]  # raises RuntimeUnavailable when none runs
    settings: Settings
    fold: TopFold = attrs.field(factory=TopFold)
    client: EngineClient | None = None  # None while no engine is there
    selected: str | None = None
    note: str = ""
    link: str = ""  # what is wrong with the connection
    began: trio.Event = attrs.field(factory=trio.Event)  # the first whole picture is here
    over: trio.Event = attrs.field(factory=trio.Event)
    heard_s: float = 0.0
    _stopping: set[str] = attrs.field(factory=set)

    async def follow(self) -> None:
        """Until cancelled. Raises EngineError when the first connection fails, or an engine refuses us for good."""
        pause_s = BACKOFF_FIRST_S
        while True:
            try:
                address = await self.find()
                async with open_frames(address, self.settings) as socket:
                    self.client, self.fold = EngineClient.connect(address, self.settings), TopFold()
                    self.link, pause_s = "", BACKOFF_FIRST_S
                    with contextlib.suppress(ConnectionClosed):
                        await socket.send_message(SUBSCRIBE)
                        with trio.move_on_after(POLL_S):
                            await self._poll()
                        await self.listen(socket.get_message, socket.send_message)
            except (RuntimeUnavailable, RemoteError) as error:
                if not self.began.is_set() or (isinstance(error, RemoteError) and error.status < 500):
                    raise
            if not self.began.is_set():
                raise RuntimeUnavailable("the engine has gone")
            self.client, self.link = None, f"the engine has gone; looking again within {pause_s:.2g} s"
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, BACKOFF_MAX_S)

    async def listen(
        self, receive: Callable[[], Awaitable[bytes | str]], send: Callable[[str], Awaitable[Any]]
    ) -> None:
        """Folds frames until the connection ends."""
        while True:
            self.fold.take(await receive())
            self.heard_s = trio.current_time()
            if self.fold.ready:
                self.began.set()
            if self.fold.asks_for_snapshot():
                await send(RESYNC)

    async def polls(self) -> None:
        while True:
            await trio.sleep(POLL_S)
            await self._poll()

    async def _poll(self) -> None:
        fold, client = self.fold, self.client
        if client is None:
            return

        def ask() -> tuple[Any, Any]:
            return client.get("/stats"), client.get("/models")

        try:
            fold.polled(*await trio.to_thread.run_sync(ask, abandon_on_cancel=True))
        except EngineError:
            fold.unpolled()

    async def keys(self, fd: int, nursery: trio.Nursery) -> None:
        """Until the keyboard is gone."""
        while True:
            await trio.lowlevel.wait_readable(fd)
            try:
                pressed = os.read(fd, KEY_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                pressed = b""
            if not pressed:
                return
            for key in keys_in(pressed):
                self.press(key, nursery)

    def press(self, key: str, nursery: trio.Nursery) -> None:
        ids = [session.session_id for session in self.fold.picture().sessions]
        self.select(ids)
        match key:
            case "quit":
                self.over.set()
            case "up" | "down" if self.selected is not None:
                place = ids.index(self.selected) + (1 if key == "down" else -1)
                self.selected = ids[min(max(place, 0), len(ids) - 1)]
            case "stop" if self.selected is None:
                self.note = "there is no session to stop"
            case "stop" if self.client is not None and len(self._stopping) < STOPS_MAX:
                nursery.start_soon(self.stop, self.selected, self.client)

    def select(self, ids: list[str]) -> None:
        """The chosen session while it is shown, else the first."""
        if self.selected not in ids:
            self.selected = ids[0] if ids else None

    async def stop(self, session_id: str | None, client: EngineClient) -> None:
        """Asks the engine to stop it; the note is the engine's answer."""
        if session_id is None or session_id in self._stopping:
            return
        self._stopping.add(session_id)
        self.note = f"stopping {session_id[:8]} …"

        def ask() -> Any:
            return client.post("/stop", {"session_id": session_id})

        try:
            answer = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
            self.note = "; ".join(console.stopped_lines({"stopped": [{"session_id": session_id[:8]} | answer]}))
        except EngineError as error:
            self.note = f"{session_id[:8]} was not stopped: {error.message}"
        finally:
            self._stopping.discard(session_id)

    def notes(self) -> tuple[str, ...]:
        silent_s = trio.current_time() - self.heard_s
        silent = f"the engine is silent for {silent_s:.0f} s" if not self.link and silent_s > SILENT_S else ""
        return tuple(note for note in (self.link or silent, self.note) if note)

    def frame(self, size_: os.terminal_size) -> Callable[[], bytes]:
        """The making of the screen's bytes, of what is known now."""
        picture, notes, (width, height) = self.fold.picture(), self.notes(), size_
        self.select([session.session_id for session in picture.sessions])
        selected = self.selected

        def make() -> bytes:
            lines = drawn(picture, width, height, selected=selected, notes=notes)
            text = painted(lines, width, colours=True).rstrip("\n").replace("\n", "\x1b[K\r\n")
            return f"\x1b[H{text}\x1b[K\x1b[J".encode()

        return make


async def run_top(find: Callable[[], EngineAddress], settings: Settings, *, json: bool, once: bool) -> int:
    """Until `q` or a signal; the exit code. Raises RuntimeUnavailable without an engine, and without rich, which only
    `json` does not need. `find` may block. Interrupted, the terminal is as it was."""
    if not json:
        require_rich()
    top = Top(partial(trio.to_thread.run_sync, find, abandon_on_cancel=True), settings)
    live = not (json or once) and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    code = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(top.follow)
        with trio.move_on_after(FIRST_FRAME_S):
            await top.began.wait()
        if not top.began.is_set():
            raise RuntimeUnavailable(f"the engine sent no frame within {FIRST_FRAME_S:.0f} s")
        if live:
            code = await _watch(top)
        else:
            await trio.to_thread.run_sync(_print, top.fold.picture(), json, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()
    return code


def require_rich() -> None:
    """Raises RuntimeUnavailable that says how to install it."""
    try:
        import rich  # noqa: F401
    except ImportError:
        raise RuntimeUnavailable(NO_RICH) from None


def _print(picture: Picture, json: bool) -> None:
    if json:
        console.print_line(as_json(picture))
        return
    width = shutil.get_terminal_size((WIDTH_PLAIN, 24)).columns
    console.say(painted(drawn(picture, width, None), width, colours=sys.stdout.isatty()).rstrip("\n"))


async def _watch(top: Top) -> int:
    terminal, keys = sys.stdout.fileno(), sys.stdin.fileno() if sys.stdin.isatty() else None
    code = 0

    async def end_on_signal() -> None:
        nonlocal code
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                code = 128 + number
                top.over.set()

    with taken(terminal, keys) as out:
        painter = Painter(out)
        async with trio.open_nursery() as nursery:
            for task in (end_on_signal, top.polls, painter.run):
                nursery.start_soon(task)
            if keys is not None:
                nursery.start_soon(top.keys, keys, nursery)
            while not top.over.is_set():
                painter.show(top.frame(os.get_terminal_size(terminal)))
                with trio.move_on_after(1 / DRAW_HZ):
                    await top.over.wait()
            nursery.cancel_scope.cancel()
    return code
