"""`wf top` against a running engine: as JSON without a terminal, and as a picture in one."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.process import WATCHDOG_S, EngineProcess, environment, wf

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    engine = EngineProcess.spawn(tmp_path_factory.mktemp("top"))
    try:
        yield engine.wait_ready()
    finally:
        engine.kill()


def asked(engine: EngineProcess) -> str:
    body = {"model": "synthetic/steady", "prompt": "x", "parameters": {"max_tokens": 5_000}}
    with engine.client() as client:
        return str(client.post("/generate", json=body).json()["session_id"])


def test_once_prints_one_object_without_a_terminal(engine: EngineProcess) -> None:
    done = wf(engine.folder, "top", "--once")
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["tier"]
    assert body["frame"] >= 0


def test_without_an_engine_it_says_how_to_start_one(tmp_path: Path) -> None:
    done = wf(tmp_path, "top", "--once")
    assert done.returncode == 69
    assert "wf serve" in done.stderr


def test_in_a_terminal_it_draws_stops_and_quits(engine: EngineProcess) -> None:
    session_id = asked(engine)
    terminal, far = pty.openpty()
    env = environment(engine.folder) | {"TERM": "xterm-256color", "COLUMNS": "150", "LINES": "40"}
    command = [sys.executable, "-m", "engine", "top"]
    process = subprocess.Popen(command, cwd=engine.folder, env=env, stdin=far, stdout=far, stderr=far)
    os.close(far)
    try:
        seen = _until(terminal, b"synthetic/steady")
        assert session_id[:8].encode() in seen
        assert b"SYNTHETIC" in seen  # also of a session that ran before
        os.write(terminal, b"\x1b")
        _until(terminal, b"aborted")
        os.write(terminal, b"q")
        with contextlib.suppress(OSError):  # it closes its end; until then what it draws must not hold it up
            while os.read(terminal, 65_536):
                pass
        assert process.wait(WATCHDOG_S) == 0
    finally:
        process.kill()
        process.wait(WATCHDOG_S)
        os.close(terminal)


def _until(terminal: int, words: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + WATCHDOG_S
    while words not in seen:
        assert time.monotonic() < end, seen
        assert select.select([terminal], [], [], WATCHDOG_S)[0], seen
        seen += os.read(terminal, 65_536)
    return seen
