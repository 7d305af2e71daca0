"""What keeps an engine from starting, and what it leaves behind: exit codes, one readable line, private files."""

from __future__ import annotations

import json
import signal
import socket
import stat

import pytest

from tests.system.process import EngineProcess, wf


@pytest.fixture
def refused(tmp_path):
    """`refused(*flags, …)` starts an engine that must not start: (exit code, the one line on stderr)."""

    def run(*flags: str, folder=tmp_path, **options) -> tuple[int, str]:
        engine = EngineProcess.spawn(folder, *flags, **options)
        try:
            code = engine.wait_exit()
        finally:
            engine.kill()
        assert not (folder / "ports.json").exists()
        assert "Traceback" not in engine.stderr()
        assert engine.stdout() == ""
        return code, engine.stderr().strip()

    return run


def test_a_second_engine_on_the_same_state_folder_names_the_first(start, refused, tmp_path):
    first = start()
    second = tmp_path / "second"
    code, line = refused(folder=second, env={"WF_DATA_DIR": str(first.state)})
    assert code == 3
    assert f"process {first.process.pid}" in line
    assert first.http in line
    assert "WF_DATA_DIR" in line
    with first.client() as http:
        assert http.get("/health").status_code == 200
    assert json.loads((first.state / "engine.json").read_bytes())["pid"] == first.process.pid


@pytest.mark.parametrize("flag", ["--port", "--ws-port"])
def test_a_busy_port_is_told_with_the_flag_that_changes_it(refused, flag):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        code, line = refused(flag, str(port))
    assert code == 3
    assert f"127.0.0.1:{port} is in use" in line
    assert f" {flag} " in line


def test_after_a_conflict_the_state_folder_is_free_again(refused, start):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        assert refused("--ws-port", str(holder.getsockname()[1]))[0] == 3
    start()


def test_an_engine_starts_where_another_was_killed(start, tmp_path):
    first = start()
    first.kill()
    assert (first.state / "engine.json").exists()
    (tmp_path / "ports.json").unlink()
    second = start()
    assert json.loads((second.state / "engine.json").read_bytes())["pid"] == second.process.pid


def test_two_engines_with_their_own_folders_run_side_by_side(start, tmp_path):
    one, two = start(folder=tmp_path / "one"), start(folder=tmp_path / "two")
    assert len({one.http, one.ws, two.http, two.ws}) == 4


def test_a_mistake_in_the_configuration_is_told_with_its_place_and_the_nearest_name(refused, tmp_path):
    (tmp_path / "wf.yaml").write_text("level: 3\nlimits:\n  streems_max: 4\n")
    code, line = refused()
    assert code == 78
    assert "wf.yaml:3" in line
    assert "limits.streems_max" in line
    assert "streams_max?" in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http:\n  port: many\n", "wf.yaml:2"),
        ("level: 9\n", "wf.yaml:1"),
        ("a: [1\n", "wf.yaml:"),
        ("http:\n  host: 0.0.0.0\n", "allow_remote"),
        ("allow_remote: true\nhttp:\n  host: 0.0.0.0\n", "api_keys"),
    ],
)
def test_a_bad_configuration_exits_78(refused, tmp_path, text, told):
    (tmp_path / "wf.yaml").write_text(text)
    code, line = refused()
    assert code == 78
    assert told in line


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"flags": ("--host", "0.0.0.0")}, "allow_remote"),
        ({"flags": ("--runtime", "ollamma")}, "ollamma"),
        ({"flags": ("--config", "absent.yaml")}, "absent.yaml"),
        ({"env": {"WF_LIMITS__STREEMS_MAX": "4"}}, "WF_LIMITS__STREAMS_MAX?"),
        ({"env": {"WF_LEVEL": "high"}}, "WF_LEVEL"),
    ],
)
def test_bad_flags_and_variables_exit_78(refused, options, told):
    code, line = refused(*options.get("flags", ()), env=options.get("env"))
    assert code == 78
    assert told in line


@pytest.mark.parametrize(
    "words", [("serve", "--no-such-flag"), ("no-such-verb",), ("serve", "--tier", "huge"), ("run",)]
)
def test_a_usage_error_exits_2(tmp_path, words):
    done = wf(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: wf")
    assert done.stdout == ""


def test_flags_win_over_variables_and_those_over_the_file(start, tmp_path):
    (tmp_path / "wf.yaml").write_text("level: 1\ntier: low\nlimits:\n  streams_max: 3\n")
    engine = start("--level", "4", env={"WF_LEVEL": "2", "WF_TIER": "high"})
    with engine.client() as http:
        bootstrap = http.get("/api/bootstrap").json()
    assert (bootstrap["level"], bootstrap["tier"], bootstrap["limits"]["streams_max"]) == (4, "high", 3)


def test_a_ready_engine_says_where_it_is_and_its_files_are_private(start):
    engine = start()
    address = json.loads((engine.folder / "ports.json").read_bytes())
    assert address == {"pid": engine.process.pid, "http": engine.http, "ws": engine.ws, "services": {}}
    assert json.loads((engine.state / "engine.json").read_bytes()) == address
    assert stat.S_IMODE(engine.state.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in engine.state.iterdir()} == {
        "engine.json": 0o600,
        "lock": 0o600,
        "token": 0o600,
    }
    with engine.client() as http:
        assert http.get("/api/bootstrap").json()["token"] == (engine.state / "token").read_text().strip()
    assert engine.http in engine.stdout()
    assert engine.ws in engine.stdout()
    assert "SYNTHETIC" in engine.stdout()
    engine.signal(signal.SIGTERM)
    assert engine.wait_exit() == 0
    assert not (engine.state / "engine.json").exists()


def test_an_open_state_folder_is_closed_to_others(start, tmp_path):
    (tmp_path / "state").mkdir(mode=0o755)
    start()
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
