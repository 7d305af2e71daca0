"""An Ollama that is installed but not running: started with the engine, used, watched, stopped with it. The program is
a fake one (the mock behind a real process); the engine, the processes and the sockets are real."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.fakes.fake_ollama import Behaviour, FakeOllama
from tests.system.process import STEP_S, WATCHDOG_S, EngineProcess, free_port, wf


def gone(pids: list[int]) -> bool:
    """Within a generous time: a process that was killed may take a moment to end."""
    for _ in range(round(WATCHDOG_S / STEP_S)):
        if not any(map(is_running, pids)):
            return True
        time.sleep(STEP_S)
    return False


def is_running(pid: int) -> bool:
    """Zombies do not count: nobody may have taken their status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def ollama(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    return FakeOllama.install(folder)


def settings(ollama: FakeOllama, **more: str) -> dict[str, str]:
    return {
        "PATH": f"{ollama.folder}:{os.environ['PATH']}",
        "OLLAMA_HOST": f"127.0.0.1:{free_port()}",
        "WF_OLLAMA__ENABLED": "true",
        **more,
    }


def health(engine: EngineProcess) -> dict:
    with engine.client() as http:
        return http.get("/health").json()


def test_it_is_started_used_started_again_and_stopped_with_us(start, ollama):
    engine = start(env=settings(ollama, SECRET_KEY="do not pass on", HTTPS_PROXY="http://proxy:1"))
    engine.wait_for(lambda: health(engine)["state"] == "ready")
    (first,) = ollama.starts
    assert first["environ"]["OLLAMA_NO_CLOUD"] == "1"
    assert first["environ"]["OLLAMA_HOST"].startswith("127.0.0.1:")
    assert not {"SECRET_KEY", "HTTPS_PROXY"} & set(first["environ"])
    with engine.client() as http:
        body = {"model": "mock:steady", "prompt": "x", "stream": True}
        lines = http.post("/generate", json=body).text.splitlines()
        assert json.loads(lines[-1])["payload"]["reason"] == "finished"
    os.kill(first["pid"], signal.SIGKILL)
    engine.wait_for(lambda: len(ollama.starts) == 2)
    engine.wait_for(lambda: health(engine)["state"] == "ready")
    engine.signal(signal.SIGTERM)
    assert engine.wait_exit() == 0
    assert gone([pid for run in ollama.starts for pid in (run["pid"], run["runner"])])


def test_one_that_answers_already_is_used_and_not_touched(start, tmp_path, ollama):
    env = settings(ollama)
    owner = start(folder=tmp_path / "owner", env=env)
    owner.wait_for(lambda: health(owner)["state"] == "ready")
    guest = start(folder=tmp_path / "guest", env=env)
    guest.wait_for(lambda: health(guest)["state"] == "ready")
    guest.signal(signal.SIGTERM)
    assert guest.wait_exit() == 0
    assert [is_running(run["pid"]) for run in ollama.starts] == [True]


def test_one_that_cannot_start_is_told_with_its_last_words(start, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    broken = FakeOllama.install(folder, Behaviour.EXIT)
    engine = start(env=settings(broken))

    def told():
        ollama = next(r for r in health(engine)["runtimes"] if r["name"] == "ollama")
        return "line 29" in (ollama["reason"] or "") and ollama

    assert "ended with exit status 3" in engine.wait_for(told)["reason"]
    with engine.client() as http:  # and the engine is well
        assert http.post("/generate", json={"model": "embedded/lexicon", "prompt": "x"}).status_code == 202


def test_it_can_be_left_alone(start, ollama):
    engine = start(env=settings(ollama, WF_OLLAMA__SPAWN="false"))
    engine.wait_for(lambda: health(engine)["state"] == "no_runtime")
    reason = next(r["reason"] for r in health(engine)["runtimes"] if r["name"] == "ollama")
    assert "start it with `ollama serve`" in reason
    assert ollama.starts == []


def test_nothing_installed_is_said_with_where_to_get_it(start, tmp_path):
    engine = start(env={"WF_OLLAMA__ENABLED": "true", "PATH": "/nowhere", "OLLAMA_HOST": f"127.0.0.1:{free_port()}"})
    engine.wait_for(lambda: health(engine)["state"] == "no_runtime")
    body = health(engine)
    assert "https://ollama.com/download" in next(r["reason"] for r in body["runtimes"] if r["name"] == "ollama")
    assert "install Ollama" in body["next"]


def test_run_starts_one_for_a_single_answer_and_stops_it(tmp_path, ollama):
    answer = wf(tmp_path, "run", "mock:steady", "hello", env=settings(ollama))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()
    assert len(ollama.starts) == 1
    assert gone([run["pid"] for run in ollama.starts])


def test_pull_show_and_check(start, tmp_path, ollama):
    env = settings(ollama)
    engine = start(env=env)
    engine.wait_for(lambda: health(engine)["state"] == "ready")
    pulled = wf(tmp_path, "pull", "mock:missing", env=env)
    assert (pulled.returncode, pulled.stdout) == (0, "")
    assert pulled.stderr.splitlines()[-1] == "mock:missing: success"
    lines = [json.loads(line) for line in wf(tmp_path, "pull", "mock:missing", "--json", env=env).stdout.splitlines()]
    assert lines[-1]["status"] == "success"
    assert lines[-1]["completed"] == lines[-1]["total"] > 0
    missing = wf(tmp_path, "pull", "nobody-has-this", env=env)
    assert (missing.returncode, "does not exist" in missing.stderr) == (1, True)
    shown = wf(tmp_path, "show", "mock:steady", env=env)
    assert (shown.returncode, "runtime" in shown.stdout, "ollama" in shown.stdout) == (0, True, True)
    assert json.loads(wf(tmp_path, "show", "mock:steady", "--json", env=env).stdout)["name"] == "mock:steady"
    near = wf(tmp_path, "show", "mock:stedy", env=env)
    assert (near.returncode, "did you mean mock:steady?" in near.stderr) == (1, True)


def test_check_says_that_it_would_be_started(tmp_path, ollama):
    found = wf(tmp_path, "check", env=settings(ollama))
    assert f"{ollama.binary} is there and is started with the engine" in found.stdout
    assert ollama.starts == []
