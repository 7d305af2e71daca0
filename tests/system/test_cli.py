"""The verbs, as a person and a script use them: against a running engine, without one, and interrupted."""

from __future__ import annotations

import fcntl
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from engine import __version__
from tests.system.frames import LONG
from tests.system.process import WATCHDOG_S, EngineProcess, environment, wf

PROMPT = "what is a glacier?"
RUN = ("run", "embedded/lexicon", PROMPT, "--max-tokens", "12", "--seed", "3")
FAST = {"WF_EMBEDDED__PACE_TPS": "0"}


def run_beside(engine: EngineProcess, *words: str, **options) -> subprocess.CompletedProcess:
    """A command that finds this engine."""
    return wf(engine.folder, *words, **options)


def events_of(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


def answer_of(events: list[dict]) -> str:
    return "".join(t["text"] for e in events if e["type"] == "experience.token" for t in e["payload"]["tokens"])


def test_version(tmp_path):
    assert wf(tmp_path, "version").stdout == f"wf-engine {__version__}\n"
    assert json.loads(wf(tmp_path, "version", "--json").stdout) == {"version": __version__}


@pytest.mark.parametrize("words", [("models",), ("ps", "--json"), ("stop", "all")])
def test_without_an_engine_the_verbs_exit_69_and_say_what_to_do(tmp_path, words):
    done = wf(tmp_path, *words)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == "wf: no engine is running here; start one with `wf serve`\n"


def test_an_engine_that_was_killed_is_not_found(start):
    engine = start()
    engine.kill()
    assert run_beside(engine, "ps").returncode == 69


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The events of one answer of an engine that ran for it alone, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("alone")
    done = wf(folder, *RUN, "--json", env=FAST)
    assert done.returncode == 0, done.stderr
    return folder, events_of(done.stdout)


def test_run_in_process_gives_the_whole_session_and_keeps_no_state(alone):
    folder, events = alone
    assert events[0]["type"] == "experience.session_start"
    assert (events[-1]["type"], events[-1]["payload"]["reason"]) == ("experience.session_end", "length")
    assert not (folder / "state").exists()


def test_run_prints_the_answer_and_its_figures(alone, tmp_path):
    """The prompt comes from standard input here, which changes nothing."""
    words = [word if word != PROMPT else "-" for word in RUN]
    done = wf(tmp_path, *words, env=FAST, input=PROMPT)
    assert (done.returncode, done.stdout) == (0, answer_of(alone[1]) + "\n")
    assert "12 tokens" in done.stderr
    assert "length" in done.stderr


@pytest.mark.parametrize(
    "asked",
    [
        ("council:embedded/lexicon+embedded/mixed",),
        ("--council", "embedded/lexicon,embedded/mixed"),
        ("--seed", "3", "--council=embedded/lexicon,embedded/mixed"),
    ],
)
def test_run_prints_the_chosen_answer_of_a_council(tmp_path, asked):
    told = wf(tmp_path, "run", *asked, "entropy", "--max-tokens", "6", env={"WF_EMBEDDED__PACE_TPS": "0"})
    assert told.returncode == 0, told.stderr
    assert "council of embedded/lexicon, embedded/mixed" in told.stderr
    assert "agreement" in told.stderr
    assert "12 tokens" in told.stderr
    assert told.stdout.strip()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "required: PROMPT"),
        (("embedded/lexicon", "--council", "embedded/lexicon,embedded/mixed"), "unrecognized arguments: entropy"),
        (("--council",), "required: PROMPT"),
    ],
)
def test_run_needs_one_model_or_a_council(tmp_path, asked, said):
    told = wf(tmp_path, "run", *asked, "entropy")
    assert (told.returncode, told.stdout) == (2, "")
    assert said in told.stderr


def test_run_through_an_engine_gives_the_same_answer(alone, engine):
    through = run_beside(engine, *RUN, "--json")
    assert through.returncode == 0, through.stderr
    events = events_of(through.stdout)
    assert answer_of(events) == answer_of(alone[1]) != ""
    assert events[-1]["type"] == "experience.session_end"
    with engine.client() as http:
        assert http.get(f"/stream/{events[0]['session_id']}").status_code == 200  # the engine knows it


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("words", [("no/such-model", "x"), ("embedded/lexicon", "x", "--temperature", "7")])
def test_run_says_in_one_line_what_is_wrong(engine, tmp_path, beside, words):
    done = run_beside(engine, "run", *words) if beside else wf(tmp_path, "run", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("wf: ")
    assert done.stderr.count("\n") == 1


def test_run_interrupted_exits_130_and_the_engine_aborts_the_session(engine):
    command = [sys.executable, "-m", "engine", "run", "synthetic/steady", "x", "--max-tokens", "100000", "--json"]
    with subprocess.Popen(
        command, cwd=engine.folder, env=environment(engine.folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        try:
            session_id = json.loads(run.stdout.readline())["session_id"]
            run.send_signal(signal.SIGINT)
            _, err = run.communicate(timeout=WATCHDOG_S)
        finally:
            run.kill()
    assert run.returncode == 130
    assert b"Traceback" not in err
    with engine.client() as http:
        end = events_of_sse(http.get(f"/stream/{session_id}").text)[-1]
    assert (end["type"], end["payload"]["reason"]) == ("experience.session_end", "aborted")


def test_run_in_process_interrupted_exits_130(tmp_path):
    command = [sys.executable, "-m", "engine", "run", "synthetic/steady", "x", "--synthetic", "1", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        try:
            assert run.stdout.readline()
            run.send_signal(signal.SIGINT)
            _, err = run.communicate(timeout=WATCHDOG_S)
        finally:
            run.kill()
    assert run.returncode == 130
    assert b"Traceback" not in err


def test_a_reader_that_leaves_ends_run_quietly(engine):
    command = [sys.executable, "-m", "engine", "run", "synthetic/bursty", "x", "--max-tokens", "1000", "--json"]
    with subprocess.Popen(
        command, cwd=engine.folder, env=environment(engine.folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        try:
            run.stdout.readline()
            run.stdout.close()
            err = run.stderr.read()
            run.wait(timeout=WATCHDOG_S)
        finally:
            run.kill()
    assert run.returncode == 1
    assert err == b""


def test_models_ps_and_stop(engine):
    with engine.client() as http:
        session_id = http.post("/generate", json=LONG).json()["session_id"]
    models = json.loads(run_beside(engine, "models", "--json").stdout)
    names = [model["name"] for model in models["models"]]
    assert "embedded/lexicon" in names
    table = run_beside(engine, "models").stdout
    assert all(name in table for name in names)
    assert "SYNTHETIC" in table
    ps = json.loads(run_beside(engine, "ps", "--json").stdout)
    assert session_id in [session["session_id"] for session in ps["sessions"]]
    assert "synthetic/steady" in [model["name"] for model in ps["models"]]
    assert session_id in run_beside(engine, "ps").stdout
    stopped = json.loads(run_beside(engine, "stop", session_id[:12], "--json").stdout)
    assert [session["session_id"] for session in stopped["stopped"]] == [session_id]
    with engine.client() as http:
        assert session_id not in http.get("/stats").text


def test_load_and_unload(start):
    engine = start()
    assert "embedded/mixed loaded in" in run_beside(engine, "load", "embedded/mixed").stdout
    assert "was in memory already" in run_beside(engine, "load", "embedded/mixed").stdout
    assert "embedded/mixed  ready" in run_beside(engine, "ps").stdout
    assert json.loads(run_beside(engine, "unload", "embedded/mixed", "--json").stdout)["freed_bytes"] > 0
    assert run_beside(engine, "unload", "embedded/mixed").stdout == "it was not in memory\n"
    missing = run_beside(engine, "load", "nope")
    assert (missing.returncode, "there is no model nope" in missing.stderr) == (1, True)


def test_stop_all_and_stop_of_nothing(start):
    engine = start()
    with engine.client() as http:
        ids = [http.post("/generate", json=LONG).json()["session_id"] for _ in range(2)]
    told = run_beside(engine, "stop", "all").stdout
    assert all(f"stopped {session_id}" in told for session_id in ids)
    assert run_beside(engine, "stop", "all").stdout == "no session is running\n"
    nothing = run_beside(engine, "stop", "feed")
    assert nothing.returncode == 1
    assert "wf ps" in nothing.stderr


def test_check_of_a_machine_that_is_ready(tmp_path):
    (tmp_path / "wf.yaml").write_text("http: {port: 0}\nws: {port: 0}\napi_keys: [canary-key]\n")
    done = wf(tmp_path, "check", "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert {check["what"] for check in report["checks"]} >= {"configuration", "http port", "runtime embedded"}
    assert report["settings"]["api_keys"] == ["***"]
    assert "canary" not in done.stdout
    assert not (tmp_path / "state").exists()


def test_check_says_what_is_wrong(tmp_path):
    (tmp_path / "wf.yaml").write_text("levle: 3\n")
    done = wf(tmp_path, "check")
    assert done.returncode == 1
    assert "PROBLEM configuration: wf.yaml:1" in done.stdout
    assert "level?" in done.stdout


def services_at(registry_port: int, **more: str) -> dict[str, str]:
    table = {name: {"port": 0} for name in ("llama31_8b", "tinyllama", "tlc_domain_classifier")}
    ports = {"WF_SERVICES__REGISTRY_PORT": str(registry_port), "WF_SERVICES__ROUTER_PORT": str(registry_port)}
    return {"WF_SERVICES__ENABLED": "true", "WF_SERVICES__TABLE": json.dumps(table)} | ports | more


def test_check_looks_at_the_ports_of_the_services_too(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = wf(tmp_path, "check", "--json", env=services_at(port))
    found = {check["what"]: (check["ok"], check["found"]) for check in json.loads(done.stdout)["checks"]}
    assert found["service tinyllama"] == (True, "any free one")
    assert found["service registry"][0] is found["service router"][0] is None
    assert "services.registry_port" in found["service registry"][1]
    assert f"{port} is the port of registry too" in found["service router"][1]
    done = wf(tmp_path, "check", env=services_at(0, WF_SERVICES__TABLE='{"tinyllama": {"prot": 1}}'))
    assert done.returncode == 1
    assert "PROBLEM configuration" in done.stdout
    assert "did you mean services.table.tinyllama.port" in done.stdout


def test_a_runtime_at_a_port_of_our_services_is_refused(tmp_path):
    ours = services_at(18_123, WF_OLLAMA__ENABLED="true", WF_OLLAMA__SPAWN="false")
    told = wf(tmp_path, "check", env=ours | {"OLLAMA_HOST": "127.0.0.1:18123"})
    assert "OLLAMA_HOST names this engine itself" in told.stderr
    refused = wf(tmp_path, "check", env=ours | {"WF_OLLAMA__URL": "http://localhost:18123"})
    assert refused.returncode == 1
    assert "is this engine itself" in refused.stdout


def test_check_beside_an_engine_names_it(engine):
    done = run_beside(engine, "check")
    assert done.returncode == 0, done.stdout
    assert engine.http in done.stdout
    assert "PROBLEM" not in done.stdout


# ── what a hostile answer may do to a terminal ──

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202ereversed\u2066 kept: é 漢 👩\u200d🚀\n\ttab"
SHOWN = "\ufffd]0;owned\ufffd\ufffd[2J\ufffd31m\ufffdreversed\ufffd kept: é 漢 👩\u200d🚀\n\ttab"


def test_run_shows_a_hostile_answer_without_its_commands(tmp_path):
    with pretended_engine(tmp_path):
        done = wf(tmp_path, "run", "any", "x")
        raw = wf(tmp_path, "run", "any", "x", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout == SHOWN + "\n"
    assert answer_of(events_of(raw.stdout)) == HOSTILE  # a script gets what was said…
    assert "\x1b" not in raw.stdout  # …and JSON keeps control characters escaped


def test_tables_and_errors_show_hostile_names_without_their_commands(tmp_path):
    with pretended_engine(tmp_path):
        table = wf(tmp_path, "models")
        error = wf(tmp_path, "stop", "any")
    for output in (table.stdout, error.stderr):
        assert "owned" in output
        assert not set(output) & set("\x1b\x07\x9b\u202e\u2066")


@contextmanager
def pretended_engine(folder: Path) -> Iterator[None]:
    """A server that holds the state folder as an engine does, and says what no engine of ours says."""
    state = folder / "state"
    state.mkdir(mode=0o700)
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostileAnswers)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        address = {"pid": 1, "http": f"http://127.0.0.1:{server.server_port}", "ws": "", "services": {}}
        (state / "engine.json").write_text(json.dumps(address))
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class HostileAnswers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/stats":
            self._answer(503, {"error": {"code": "OVERLOADED", "message": HOSTILE, "retryable": True, "details": {}}})
            return
        model = {"name": HOSTILE, "runtime": "any", "size_bytes": 1, "state": "absent", "details": {"about": HOSTILE}}
        self._answer(200, {"models": [model]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        token = {"type": "experience.token", "payload": {"tokens": [{"text": HOSTILE}]}}
        totals = {"tokens": 1, "eu": 0.1}
        end = {"totals": totals, "summary": {"tps_average": None}, "ttft_ms": None, "reason": "finished", "error": None}
        self._answer(200, token, {"type": "experience.session_end", "payload": end})

    def _answer(self, status: int, *lines: dict) -> None:
        body = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def events_of_sse(body: str) -> list[dict]:
    return [json.loads(block.split("data: ", 1)[1]) for block in body.strip().split("\n\n")]
