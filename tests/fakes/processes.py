"""Other processes, as /proc shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

ROOT: Final = Path(__file__).parents[2]
WATCHDOG_S: Final = 120.0  # never reached unless something is broken
STEP_S: Final = 0.01

T = TypeVar("T")


async def until(met: Callable[[], T]) -> T:
    """The first true value of `met`."""
    with trio.fail_after(WATCHDOG_S):
        while not (value := met()):  # noqa: ASYNC110  (what another process does sets no event of ours)
            await trio.sleep(STEP_S)
    return value


async def until_gone(pid: int) -> None:
    """Until it runs no more; whoever adopted it may still have to reap it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(WATCHDOG_S):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def is_running(pid: int) -> bool:
    """False for a zombie too."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it has gone, before the file was opened or before it was read
        return False
    return state not in "ZX"


def proc(pid: int, name: str) -> str:
    """A file of /proc/PID."""
    return Path("/proc", str(pid), name).read_text()


def permissions(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status, and the core limits under `core`: soft and hard."""
    fields = dict(line.split(":\t", 1) for line in proc(pid, "status").splitlines())
    core = next(line for line in proc(pid, "limits").splitlines() if line.startswith("Max core file size"))
    return fields | {"core": " ".join(core.split()[4:6])}


def children_of_thread(thread: int) -> list[int]:
    """The processes that this thread of ours has forked."""
    return [int(pid) for pid in proc(os.getpid(), f"task/{thread}/children").split()]


def open_files() -> set[tuple[str, str]]:
    """Our descriptors with what each is. What is there now and was not before has been left open since; others may
    have been closed meanwhile, by whoever opened them."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # the listing's own
            continue
    return found


def is_reaped(pid: int) -> bool:
    """True when there is no child of ours with this number, not even a zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


@contextmanager
def started_python(program: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the test's own, not under the care of what is tested; its input and output are pipes. Leaving kills
    it."""
    command = [sys.executable, "-c", program, *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()
