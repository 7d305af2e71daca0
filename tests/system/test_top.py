"""`wf top` against a running engine: one picture as text and as JSON, and live in a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.system.frames import LONG
from tests.system.process import WATCHDOG_S, EngineProcess, environment, wf


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    engine = EngineProcess.spawn(tmp_path_factory.mktemp("top"))
    try:
        yield engine.wait_ready()
    finally:
        engine.kill()


@contextmanager
def running(engine: EngineProcess, body: dict[str, Any] = LONG) -> Iterator[str]:
    """The id of a session that has a token, and is stopped afterwards."""
    with engine.client() as client:
        session_id = str(client.post("/generate", json=body).json()["session_id"])

        def has_tokens() -> bool:
            rows = client.get("/stats").json()["sessions"]["running"]
            return any(row["session_id"] == session_id and row["tokens"] > 1 for row in rows)

        engine.wait_for(has_tokens)
        try:
            yield session_id
        finally:
            client.post("/stop", json={"session_id": session_id})


def test_once_prints_one_picture(engine: EngineProcess) -> None:
    with running(engine) as session_id:
        for words in (["top", "--once"], ["top"]):  # without a terminal it is the same
            done = wf(engine.folder, *words)
            assert (done.returncode, done.stderr) == (0, "")
            assert f"{session_id[:8]}  SYNTHETIC  running  from api" in done.stdout
            assert "out 0 B" in done.stdout
            assert "model synthetic/steady  ready" in done.stdout
            assert "\x1b" not in done.stdout


def test_json_is_the_picture(engine: EngineProcess) -> None:
    with running(engine) as session_id:
        done = wf(engine.folder, "top", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    picture = json.loads(done.stdout)
    session = next(s for s in picture["sessions"] if s["session_id"] == session_id)
    assert (session["synthetic"], session["ended"], session["council"]) == (True, None, None)
    (stream,) = session["streams"]
    assert stream["model"] == "synthetic/steady"
    assert 0 <= stream["energy"] <= 1
    assert stream["tokens"] > 1
    assert stream["ttft_ms"] == session["ttft_ms"] > 0
    assert picture["engine"]["bytes_out"] == 0
    assert picture["engine"]["missed"] is not None
    assert (picture["bad"], picture["last_error"]) == (0, None)


def test_a_council_has_its_di_or_the_reason_it_has_none(engine: EngineProcess) -> None:
    members = ["synthetic/steady", "embedded/lexicon"]
    body = {"mode": "council", "models": members, "prompt": "x", "parameters": {"max_tokens": 5_000}}
    with running(engine, body) as id_:
        picture = json.loads(wf(engine.folder, "top", "--json").stdout)
    session = next(s for s in picture["sessions"] if s["session_id"] == id_)
    assert [stream["model"] for stream in session["streams"]] == members
    council = session["council"]
    assert (council["di"] is None) == (council["di_reason"] is not None)


@pytest.mark.parametrize("words", [(), ("--once",), ("--json",)])
def test_without_an_engine_it_says_how_to_start_one(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = wf(tmp_path, "top", *words)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == "wf: no engine is running here; start one with `wf serve`\n"


def test_without_rich_it_says_what_to_install_and_json_goes_on(engine: EngineProcess) -> None:
    (engine.folder / "without").mkdir(exist_ok=True)
    (engine.folder / "without" / "rich.py").write_text("raise ImportError('not installed')")
    env = {"PYTHONPATH": str(engine.folder / "without")}
    done = wf(engine.folder, "top", "--once", env=env)
    assert (done.returncode, done.stdout) == (69, "")
    assert "pip install 'wf-engine[tui]'" in done.stderr
    assert wf(engine.folder, "top", "--json", env=env).returncode == 0


LEFT = b"\x1b[?25h\x1b[?1049l"


# ── in a terminal ───────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.define(eq=False)
class Terminal:
    """`wf top` on a terminal of its own, 120 by 40. It takes output only while a test waits for some."""

    process: subprocess.Popen[bytes]
    ours: int
    theirs: int
    before: list[Any]
    seen: bytes = b""

    def press(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def until(self, words: bytes, after: int = 0) -> int:
        """Where the words end that come after a place."""
        end = time.monotonic() + WATCHDOG_S
        while (place := self.seen.find(words, after)) < 0:
            assert time.monotonic() < end, self.seen[-3_000:]
            assert self.process.poll() is None, self.seen[-3_000:]
            self._read()
        return place + len(words)

    def ended(self, *, reads: bool = True) -> int:
        """Its exit code; the terminal is as it was."""
        end = time.monotonic() + WATCHDOG_S
        while reads and self.process.poll() is None and time.monotonic() < end:
            self._read()
        code = self.process.wait(WATCHDOG_S)
        while self._read():
            pass
        assert termios.tcgetattr(self.theirs) == self.before
        assert self.seen.rstrip().endswith(LEFT), self.seen[-300:]
        return code

    def _read(self) -> bool:
        if not select.select([self.ours], [], [], 0.1)[0]:
            return False
        self.seen += os.read(self.ours, 65_536)
        return True


@contextmanager
def top_in_a_terminal(folder: Path) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    before, env = termios.tcgetattr(theirs), environment(folder, TERM="xterm-256color")
    command = [sys.executable, "-m", "engine", "top"]
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    try:
        yield Terminal(process, ours, theirs, before)
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)


def test_it_draws_stops_the_selected_session_and_quits(engine: EngineProcess) -> None:
    with running(engine) as older, running(engine) as newer, top_in_a_terminal(engine.folder) as terminal:
        at = terminal.until(f"▸ {newer[:8]}".encode())
        terminal.press(b"\x1b[B")
        at = terminal.until(f"▸ {older[:8]}".encode(), at)
        assert b"SYNTHETIC" in terminal.seen
        terminal.press(b"s")
        terminal.until(f"stopped {older[:8]}: ".encode(), at)
        terminal.until(b"aborted", at)
        with engine.client() as client:
            rows = client.get("/stats").json()["sessions"]["running"]
        assert [row["session_id"] for row in rows] == [newer]
        terminal.press(b"q")
        assert terminal.ended() == 0


def test_interrupted_it_exits_130_and_the_terminal_is_as_it_was(engine: EngineProcess) -> None:
    with top_in_a_terminal(engine.folder) as terminal:
        terminal.until(b"WF Engine")
        assert termios.tcgetattr(terminal.theirs)[3] & termios.ISIG  # so that Ctrl+C is the signal
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended() == 130


def test_ended_by_a_signal_the_terminal_is_as_it_was(engine: EngineProcess) -> None:
    with top_in_a_terminal(engine.folder) as terminal:
        terminal.until(b"WF Engine")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 128 + signal.SIGTERM


def test_a_terminal_that_takes_nothing_does_not_hold_up_the_keys(engine: EngineProcess) -> None:
    """A session that is stopped from a terminal nobody reads, and then the end."""
    with running(engine) as session_id, top_in_a_terminal(engine.folder) as terminal:
        terminal.until(f"▸ {session_id[:8]}".encode())
        engine.wait_for(lambda: not select.select([], [terminal.theirs], [], 0)[1])  # it is full
        terminal.press(b"s")

        def stopped() -> bool:
            with engine.client() as client:
                rows = client.get("/stats").json()["sessions"]["running"]
            return session_id not in [row["session_id"] for row in rows]

        engine.wait_for(stopped)
        terminal.press(b"q")
        assert terminal.ended(reads=False) == 0


def test_it_finds_the_engine_again_after_a_restart(start: Callable[..., EngineProcess], tmp_path: Path) -> None:
    first = start()
    with top_in_a_terminal(tmp_path) as terminal:
        at = terminal.until(b"Nothing is running.")
        first.kill()
        at = terminal.until(b"the engine has gone", at)
        (tmp_path / "ports.json").unlink()
        with running(start()) as session_id:
            terminal.until(f"▸ {session_id[:8]}".encode(), at)
            terminal.press(b"q")
            assert terminal.ended() == 0
