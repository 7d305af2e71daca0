"""A child process: what it is allowed, what is kept of its output, and that nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from itertools import pairwise
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import RuntimeUnavailable
from tests.fakes.processes import (
    children_of_thread,
    is_reaped,
    is_running,
    open_files,
    permissions,
    proc,
    started_python,
    until,
    until_gone,
)
from transport.runtimes.child import LAUNCHER, LINE_CHARS_MAX, LINES_KEPT, Child, ChildCommand, OutputTail, open_child
from transport.runtimes.launcher import ORPHANED

SLEEPER: Final = ("/bin/sleep", "infinity")
PATH: Final = {"PATH": os.defpath}
SOON: Final = 0.1  # to SIGKILL, for children that ignore SIGTERM


def shell(script: str, **environ: str) -> ChildCommand:
    return ChildCommand(("/bin/sh", "-c", script), PATH | environ)


def python(program: str) -> ChildCommand:
    return ChildCommand((sys.executable, "-I", "-c", program), {})


async def lines_of(command: ChildCommand) -> tuple[str, ...]:
    """What it says until it ends by itself."""
    async with open_child(command, name="test") as child:
        assert await child.wait() == 0, child.last_lines()
        return child.last_lines()


async def first_line(child: Child) -> str:
    return (await until(child.last_lines))[0]


# ── life and end ──


async def test_leaving_stops_it_and_leaves_nothing_behind():
    before = open_files()
    async with open_child(ChildCommand(SLEEPER, {}), name="test") as child:
        assert is_running(child.pid)
        assert child.returncode is None
    assert child.returncode == -signal.SIGTERM
    assert is_reaped(child.pid)
    assert open_files() <= before


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", -9)])
async def test_its_exit_status_is_known(script, status):
    async with open_child(shell(script), name="test") as child:
        assert await child.wait() == status
        assert child.returncode == status
        assert await child.stop() == status  # and it can be stopped again


async def test_cancelled_it_is_stopped_before_the_block_is_left():
    with trio.CancelScope() as scope:
        async with open_child(ChildCommand(SLEEPER, {}), name="test") as child:
            scope.cancel()
            await child.wait()
    assert scope.cancelled_caught
    assert child.returncode == -signal.SIGTERM


async def test_waiting_can_be_cancelled_and_taken_up_again():
    async with open_child(ChildCommand(SLEEPER, {}), name="test") as child:
        with trio.CancelScope() as scope:
            scope.cancel()
            await child.wait()
        assert is_running(child.pid)
        assert await child.stop() == -signal.SIGTERM


async def test_an_error_of_the_block_comes_out_as_it_is():
    with pytest.raises(KeyError):
        async with open_child(ChildCommand(SLEEPER, {}), name="test") as child:
            raise KeyError
    assert child.returncode == -signal.SIGTERM


async def test_its_own_children_are_stopped_with_it():
    async with open_child(shell("sleep infinity & echo $!; wait"), name="test") as child:
        grandchild = int(await first_line(child))
        assert is_running(grandchild)
    await until_gone(grandchild)


@pytest.mark.parametrize("end", ["exit 3", "kill -KILL $$"])
async def test_what_it_leaves_behind_when_it_ends_is_killed(end):
    async with open_child(shell(f"trap '' TERM; sleep infinity & echo $!; {end}"), name="test") as child:
        await child.wait()
        await until_gone(int(child.last_lines()[0]))


async def test_one_that_ignores_sigterm_is_killed_with_its_children():
    script = "trap '' TERM; sleep infinity & echo $!; wait"
    async with open_child(shell(script), name="test", stop_s=SOON) as child:
        grandchild = int(await first_line(child))
    assert child.returncode == -signal.SIGKILL
    await until_gone(grandchild)


async def test_one_that_was_suspended_is_killed():
    async with open_child(ChildCommand(SLEEPER, {}), name="test", stop_s=SOON) as child:
        os.kill(child.pid, signal.SIGSTOP)
        await until(lambda: permissions(child.pid)["State"].startswith("T"))
    assert child.returncode == -signal.SIGKILL


async def test_output_held_by_one_that_left_the_group_does_not_hold_the_end():
    async with open_child(shell("setsid sh -c 'echo $$; exec sleep infinity' & wait"), name="test") as child:
        away = int(await first_line(child))
        await child.stop()
    assert is_running(away)  # not followed, as documented
    os.kill(away, signal.SIGKILL)


# ── what keeps it from outliving us ──

OWNER: Final = """
import sys, trio
from transport.runtimes.child import *
async def main():
    command = ChildCommand(("/bin/sleep", "infinity"), {}, death_signal=int(sys.argv[1]))
    async with open_child(command, name="test") as child:
        print(child.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_it_ends_when_its_owner_is_killed(number):
    with started_python(OWNER, str(int(number))) as owner:
        child = int(await trio.to_thread.run_sync(owner.stdout.readline))
        await until(lambda: proc(child, "comm") == "sleep\n")  # before that it is still being set up
        assert os.readlink(f"/proc/{child}/fd/0") == "/dev/null"  # and not the pipe that its owner reads from
        owner.kill()
        await until_gone(child)


def test_a_program_whose_owner_is_already_gone_is_not_run(tmp_path):
    """Between the fork and the moment when the kernel knows what to do at our end, our end goes unnoticed."""
    words = [str(os.getpid() + 1), "9", "/bin/touch", str(tmp_path / "ran")]
    assert subprocess.run([sys.executable, "-I", str(LAUNCHER), *words]).returncode == ORPHANED
    assert not (tmp_path / "ran").exists()


async def test_it_is_forked_by_the_main_thread():
    """The kernel ties the death signal to the thread that forked, not to its process. One of trio's worker threads ends
    after ten idle seconds and would take the child with it. Which thread it was can be seen at once."""
    async with open_child(ChildCommand(SLEEPER, {}), name="test") as child:
        assert child.pid in children_of_thread(threading.main_thread().native_id)


# ── what it is given ──


@pytest.mark.parametrize("environ", [{}, {"A": "1", "B": "x=y z"}, {"LC_CTYPE": "C"}])
async def test_it_gets_the_environment_given_and_nothing_else(environ):
    program = "print(open('/proc/self/environ').read().split('\\0')[:-1])"
    command = ChildCommand((sys.executable, "-I", "-c", program), environ)
    assert await lines_of(command) == (str([f"{name}={value}" for name, value in environ.items()]),)


async def test_arguments_reach_it_unchanged():
    words = ("a b", "$HOME", "*", "ü", "\udcff", "")
    command = ChildCommand((sys.executable, "-I", "-c", "import sys; print(ascii(sys.argv[1:]))", *words), {})
    assert await lines_of(command) == (ascii(list(words)).replace("\\", "\\\\"),)


async def test_no_descriptor_of_ours_is_passed_on():
    ours, other_end = os.pipe()
    os.set_inheritable(ours, True)
    program = "import os; print({fd: os.readlink(f'/proc/self/fd/{fd}').split(':')[0] for fd in range(3)})"
    program += "; print([fd for fd in map(int, os.listdir('/proc/self/fd')) if fd > 3])"  # 3: of listdir itself
    try:
        assert await lines_of(python(program)) == ("{0: '/dev/null', 1: 'pipe', 2: 'pipe'}", "[]")
    finally:
        os.close(ours)
        os.close(other_end)


async def test_what_it_may_and_what_it_is():
    async with open_child(shell("echo ready; exec sleep infinity"), name="test") as child:
        await first_line(child)
        is_now = permissions(child.pid)
        assert {name: is_now[name] for name in ("Umask", "NoNewPrivs", "core")} == {
            "Umask": "0077", "NoNewPrivs": "1", "core": "0 0",
        }  # fmt: skip
        assert os.getpgid(child.pid) == os.getsid(child.pid) == child.pid


async def test_its_folder(tmp_path):
    assert await lines_of(ChildCommand(("/bin/pwd",), {}, tmp_path)) == (str(tmp_path),)


# ── what cannot be started ──


def test_a_program_needs_an_absolute_path():
    with pytest.raises(ValueError, match="absolute path"):
        ChildCommand(("sleep", "1"), {})


@pytest.mark.parametrize(("program", "why"), [("/no/such", "No such file"), ("/etc", "Permission denied")])
async def test_a_program_that_cannot_run_says_why(program, why):
    async with open_child(ChildCommand((program,), {}), name="test") as child:
        assert await child.wait() == 126
        (line,) = child.last_lines()
        assert line.startswith(f"cannot run {program}: {why}")


async def test_a_folder_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path):
    before = open_files()
    with pytest.raises(RuntimeUnavailable, match="cannot start test: No such file"):
        async with open_child(ChildCommand(SLEEPER, {}, tmp_path / "none"), name="test"):
            raise AssertionError("it did start")
    assert open_files() <= before


def test_the_environment_is_not_shown():
    assert "secret" not in repr(ChildCommand(SLEEPER, {"KEY": "secret"}))


# ── what it says ──


async def test_one_that_says_a_lot_neither_waits_nor_fills_our_memory():
    async with open_child(shell("yes 0123456789 2>/dev/null | head -n 1000000; echo last >&2"), name="test") as child:
        assert await child.wait() == 0
    assert child.last_lines() == ("0123456789",) * (LINES_KEPT - 1) + ("last",)
    assert child.lines_dropped == 1_000_001 - LINES_KEPT


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"plain\n", ("plain",)),
        (b"a\r\nb\n", ("a", "b")),
        (b"\n \none\n\n", ("one",)),
        (b"no end", ("no end",)),
        (b"\x1b[31mred\x1b[0m\ttab\n", ("\\x1b[31mred\\x1b[0m\\ttab",)),
        ("\u202egnp.exe \N{ROBOT FACE} ü\n".encode(), ("\\u202egnp.exe \N{ROBOT FACE} ü",)),
        (b"back\\slash\n", ("back\\\\slash",)),
        (b"bad \xff byte\n", ("bad \ufffd byte",)),
        (b"x" * LINE_CHARS_MAX + b"\n", ("x" * LINE_CHARS_MAX,)),
        (b"x" * (LINE_CHARS_MAX + 1) + b"\n", ("x" * (LINE_CHARS_MAX - 1) + "…",)),
        (("ü" * 10_000).encode(), ("ü" * (LINE_CHARS_MAX - 1) + "…",)),
    ],
)
def test_lines_are_shown_printable_and_short(said, shown):
    tail = OutputTail()
    tail.feed(said)
    assert tail.lines() == shown


@given(st.lists(st.integers(0, 3 * LINES_KEPT), max_size=6), st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_any_chunking_gives_the_same_lines(blocks, cuts, whole):
    """`blocks` are runs of lines, long ones between them."""
    lines = [b"%d.%d" % (b, i) for b, count in enumerate(blocks) for i in range(count)] + [b"y" * 5000] * len(blocks)
    stream = b"".join(line + b"\n" for line in lines) + (b"" if whole else b"rest")
    edges = sorted({0, len(stream), *(min(cut * 13, len(stream)) for cut in cuts)})
    tail = OutputTail()
    for start, end in pairwise(edges):
        tail.feed(stream[start:end])
    shown = [line.decode() if len(line) <= LINE_CHARS_MAX else "y" * (LINE_CHARS_MAX - 1) + "…" for line in lines]
    expected = [*shown, "rest"] if not whole else shown
    assert tail.lines() == tuple(expected[-LINES_KEPT:])
    assert tail.dropped == max(0, len(lines) - LINES_KEPT)


def test_endless_lines_take_no_memory():
    piece = b"z" * 65_536
    tail = OutputTail()
    tracemalloc.start()
    try:
        for _ in range(LINES_KEPT):
            for _ in range(32):
                tail.feed(piece)
            tail.feed(piece + b"\n")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * len(piece)
    assert len(tail.lines()) == LINES_KEPT
