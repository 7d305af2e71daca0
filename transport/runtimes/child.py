"""A child process with an owner: it runs inside a context and is gone, with everything it started, when that is left.

Whoever opens it decides its whole environment, and no descriptor of ours is passed on. It has a session and process
group of its own, makes files for its user only, gains no privileges, writes no core dumps and ends when we do, however
we end (launcher.py). What it says is read all the time, so that it never waits for us, and the last lines are kept.

The kernel ties "ends when we do" to the thread that forked. So the fork is made here, on trio's own thread; trio's way
of starting processes forks in a worker thread, and those end after ten idle seconds.

A process that leaves the group on purpose (a daemon that makes a session of its own) is not followed.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import attrs
import trio

from engine.domain.errors import RuntimeFault, RuntimeUnavailable

logger = logging.getLogger("wf.child")

STOP_S: Final = 5.0  # from SIGTERM to SIGKILL
KILL_S: Final = 5.0  # from SIGKILL to giving up: a process inside a driver call may not end
DRAIN_S: Final = 0.5  # for the rest of the output, if a process that outlived the group holds the pipe
LINES_KEPT: Final = 20
LINE_CHARS_MAX: Final = 500
READ_BYTES: Final = 64 * 1024
UMASK: Final = 0o077
LAUNCHER: Final = Path(__file__).with_name("launcher.py")


def _absolute(_instance: object, _field: object, argv: tuple[str, ...]) -> None:
    if not argv or not os.path.isabs(argv[0]):
        raise ValueError(f"a program is started by its absolute path, not {argv[:1]}")


@attrs.frozen
class ChildCommand:
    """`argv[0]` is an absolute path, `environ` all that the process gets. `death_signal` is what the kernel sends it
    when we end without stopping it. SIGKILL reaches only the process itself, so one that has children of its own and
    ends them on SIGTERM is better sent that."""

    argv: tuple[str, ...] = attrs.field(validator=_absolute)
    environ: Mapping[str, str] = attrs.field(repr=False)
    cwd: Path | None = None
    death_signal: signal.Signals = signal.SIGKILL


@asynccontextmanager
async def open_child(command: ChildCommand, *, name: str, stop_s: float = STOP_S) -> AsyncIterator[Child]:
    """A running process; `name` stands in errors. Leaving stops the group (SIGTERM, after `stop_s` SIGKILL), also when
    cancelled.

    Raises RuntimeUnavailable when no process can be made. A program that cannot be run shows as exit status 126, and
    `last_lines` says why. What the block raises comes out as it is.
    """
    child = _start(command, name)
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child._attend)
        try:
            yield child
        except BaseException as error:
            raised = error  # not through the nursery, which would wrap it
        finally:
            await child._end(stop_s)
    if raised is not None:
        raise raised


@attrs.define(eq=False)
class Child:
    """`returncode` is None while it runs; afterwards its exit status, or the negative number of the signal."""

    name: str
    _process: subprocess.Popen[bytes]
    _pidfd: int
    _output: trio.lowlevel.FdStream
    _tail: OutputTail = attrs.field(factory=lambda: OutputTail(), init=False, repr=False)
    returncode: int | None = attrs.field(default=None, init=False)
    _silent: trio.Event = attrs.field(factory=trio.Event, init=False)  # nobody holds the pipe any more
    _over: trio.Event = attrs.field(factory=trio.Event, init=False)  # and its last lines are in
    _tasks: trio.CancelScope = attrs.field(factory=lambda: trio.CancelScope(shield=True), init=False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lines_dropped(self) -> int:
        """Lines of its output that were not kept."""
        return self._tail.dropped

    async def wait(self) -> int:
        """Until it has ended, its group is gone and its last lines are in. Can be called, and cancelled, any time."""
        await self._over.wait()
        assert self.returncode is not None
        return self.returncode

    async def stop(self, grace_s: float = STOP_S) -> int:
        """SIGTERM to the group, after `grace_s` SIGKILL to the group; returns as `wait` does. Cancelled, it has sent
        what it has sent. Raises RuntimeUnavailable when it is still there 5 s after SIGKILL."""
        self._signal_group(signal.SIGTERM)
        with trio.move_on_after(grace_s):
            return await self.wait()
        self._signal_group(signal.SIGKILL)
        with trio.move_on_after(KILL_S + DRAIN_S):
            return await self.wait()
        raise RuntimeUnavailable(
            f"{self.name} (process {self.pid}) did not end within {KILL_S:g} s of SIGKILL; the kernel holds it"
        )

    def last_lines(self) -> tuple[str, ...]:
        """The last of what it wrote to stdout and stderr: at most 20 lines of at most 500 characters, printable."""
        return self._tail.lines()

    def _signal_group(self, number: signal.Signals) -> None:
        """Until it is reaped its number belongs to its group and to nobody else."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    # ── its tasks; they end with the context and not before, whatever is cancelled ──

    async def _attend(self) -> None:
        with self._tasks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_output)
                await trio.lowlevel.wait_readable(self._pidfd)
                self._signal_group(signal.SIGKILL)  # what it has left behind, before its number is free
                self.returncode = self._process.wait()  # at once: it has ended
                with trio.move_on_after(DRAIN_S):
                    await self._silent.wait()
                self._over.set()

    async def _read_output(self) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await self._output.receive_some(READ_BYTES):
                self._tail.feed(data)
        self._silent.set()

    async def _end(self, grace_s: float) -> None:
        """Stop it and let go of everything; at most `grace_s` and 5.5 s."""
        try:
            with trio.CancelScope(shield=True):
                await self.stop(grace_s)
        except RuntimeFault as error:
            logger.error("%s", error.message)
        finally:
            self._tasks.cancel(reason="the child is left")
            trio.lowlevel.notify_closing(self._pidfd)
            os.close(self._pidfd)
            self._output.close()


def _start(command: ChildCommand, name: str) -> Child:
    """Fork and exec: about a millisecond. See the head of the module for why it is not done in a thread."""
    if sys.platform != "linux":
        raise RuntimeUnavailable(f"{name} can only be started on Linux; start it yourself and give its address")
    words = (str(LAUNCHER), str(os.getpid()), str(int(command.death_signal)), *command.argv)
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            (sys.executable, "-I", "-S", *words),
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            cwd=command.cwd,
            env=dict(command.environ),
            umask=UMASK,
            start_new_session=True,
        )
    except OSError as error:
        os.close(read_end)
        raise RuntimeUnavailable(f"cannot start {name}: {error.strerror}") from error
    finally:
        os.close(write_end)
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:  # before Linux 5.3, or no descriptors left
        process.kill()
        process.wait()
        os.close(read_end)
        raise RuntimeUnavailable(f"cannot watch {name}: {error.strerror}") from error
    return Child(name, process, pidfd, trio.lowlevel.FdStream(read_end))


@attrs.define(eq=False)
class OutputTail:
    """The last lines of a byte stream, in bounded memory: 20 of them and the one that is not whole yet."""

    dropped: int = 0
    _lines: deque[bytes] = attrs.field(factory=lambda: deque(maxlen=LINES_KEPT), init=False)
    _rest: bytes = attrs.field(default=b"", init=False)

    def feed(self, data: bytes | bytearray) -> None:
        """Any chunking gives the same lines."""
        *whole, rest = bytes(data).rsplit(b"\n", LINES_KEPT + 1)
        if not whole:
            self._rest = _head(self._rest + rest)
            return
        ended = data.count(b"\n")
        if ended <= LINES_KEPT + 1:
            whole[0] = self._rest + whole[0]
        else:
            whole = whole[1:]  # holds many lines
        self.dropped += max(0, len(self._lines) + ended - LINES_KEPT)
        self._lines.extend(map(_head, whole))
        self._rest = _head(rest)

    def lines(self) -> tuple[str, ...]:
        """Without empty ones; the last one may not be whole."""
        begun = [self._rest] if self._rest else []
        return tuple(_shown(line) for line in [*self._lines, *begun][-LINES_KEPT:] if line.strip())


def _head(line: bytes) -> bytes:
    """Enough of a line to show its first 500 characters, and that there are more."""
    return line[: 4 * (LINE_CHARS_MAX + 1)]


def _shown(line: bytes) -> str:
    """Printable, on one line: other characters as `\\x1b`, the backslash itself doubled."""
    text = line.removesuffix(b"\r").decode("utf-8", "replace")
    shown = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown if len(shown) <= LINE_CHARS_MAX else shown[: LINE_CHARS_MAX - 1] + "…"
