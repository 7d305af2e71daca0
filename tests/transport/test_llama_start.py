"""A process of llama.cpp that hangs before it answers: told from one that loads, ended, started once more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from engine.domain.errors import ModelLoadTimeout
from tests.fakes.ollama import virtual_clock
from tests.fakes.processes import WATCHDOG_S, is_reaped
from transport.runtimes.llama_cpp.process import STARTS_MAX, ModelProcess, ServerSettings
from transport.runtimes.llama_cpp.source import GgufSource
from transport.runtimes.llama_cpp.start_watch import CPU_STEP_S, Activity, StartWatch, activity_of

STUCK_S = 30.0
HANGS = "import signal; signal.pause()"
# What llama.cpp's server is to whoever waits for it: a socket that answers /health.
ANSWERS = """
import socket, sys
path = next(word for word in sys.argv if word.startswith("--socket=")).partition("=")[2]
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(path)
    listener.listen()
    while True:
        with listener.accept()[0] as caller:
            caller.recv(65536)
            caller.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\n{}")
"""
# Every start leaves its number behind; the first one hangs.
HANGS_ONCE = f"""
import os, pathlib
starts = pathlib.Path(__file__).with_suffix(".starts")
with starts.open("a") as file:
    file.write(f"{{os.getpid()}}\\n")
if len(starts.read_text().split()) == 1:
    {HANGS}
{ANSWERS}
"""


def process_of(folder: Path, program: str, stuck_s: float) -> ModelProcess:
    path = folder / "program.py"
    path.write_text(program)
    source = GgufSource("tiny", folder / "tiny.gguf")
    return ModelProcess(source, ServerSettings(), 512, folder / "a.sock", virtual_clock, str(path), stuck_s)


async def test_a_process_that_never_answers_is_ended_and_told(tmp_path: Path):
    process = process_of(tmp_path, HANGS, stuck_s=0.2)
    with trio.fail_after(WATCHDOG_S):
        await process.serve()
    assert process.gone.is_set()
    assert isinstance(process.failure, ModelLoadTimeout)
    assert process.failure.message == (
        "llama.cpp hangs while it loads tiny: 2 processes did nothing for 0.2 s each; "
        "ask again, or try another build of it"
    )
    assert process.hung == STARTS_MAX
    assert process.pid is not None
    assert is_reaped(process.pid)


async def test_one_that_hangs_is_started_again(tmp_path: Path):
    process = process_of(tmp_path, HANGS_ONCE, stuck_s=4.0)  # an interpreter on a busy machine may stand that long
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.serve)
        with trio.fail_after(WATCHDOG_S):
            await process.ready.wait()
        assert (process.failure, process.hung) == (None, 1)
        assert process.running
        first, second = map(int, (tmp_path / "program.starts").read_text().split())
        assert is_reaped(first)
        assert process.pid == second
        process.stop()
    assert process.gone.is_set()


@pytest.mark.parametrize(
    "moves",
    [
        lambda n: Activity(n * CPU_STEP_S, 0, 5),  # computes
        lambda n: Activity(0.0, n, 5),  # waits for the disk
        lambda n: Activity(0.0, 0, 5 + n),  # takes memory
        lambda n: Activity(0.0, 0, 5 - n % 2),  # or gives it back
    ],
)
def test_whatever_moves_does_not_hang(moves):
    watch = StartWatch(STUCK_S)
    assert not any(watch.hangs(moves(n), n * (STUCK_S - 1)) for n in range(100))


def test_what_stands_still_for_long_hangs():
    watch = StartWatch(STUCK_S)
    assert not watch.hangs(Activity(1.0, 3, 5), 100.0)
    assert not watch.hangs(Activity(1.0, 4, 5), 110.0)  # from here on
    assert not watch.hangs(Activity(1.0, 4, 5), 110.0 + STUCK_S - 0.01)
    assert watch.hangs(Activity(1.0 + CPU_STEP_S / 2, 4, 5), 110.0 + STUCK_S)  # looking up is no work


def test_what_a_process_has_done_so_far():
    before = activity_of(os.getpid())
    assert before is not None
    assert before.pages > 0
    sum(range(10_000_000))
    after = activity_of(os.getpid())
    assert after is not None
    assert after.cpu_s >= before.cpu_s > 0
    assert activity_of(1 << 30) is None
