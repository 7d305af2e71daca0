"""The state folder: private, held by one engine at a time, and never believed beyond that engine's life."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.domain.errors import AddressInUse, ConfigError
from engine.state import EngineAddress, open_state, ram_total_bytes, read_engine, state_path, write_address
from tests.fakes.processes import open_files

HTTP, WS = "http://127.0.0.1:8145", "ws://127.0.0.1:8146/ws"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path):
    """A held folder that the test may close itself."""
    with contextlib.closing(open_state(tmp_path / "deep" / "state")) as held:
        yield held


def test_everything_is_private(tmp_path):
    before = os.umask(0)
    try:
        with contextlib.closing(open_state(tmp_path / "state")) as held:
            held.publish(HTTP, WS)
            assert mode(held.path) == 0o700
            assert {path.name: mode(path) for path in held.path.iterdir()} == {
                "lock": 0o600, "token": 0o600, "engine.json": 0o600,
            }  # fmt: skip
    finally:
        os.umask(before)


def test_a_token_for_every_start(tmp_path):
    tokens = []
    for _ in range(2):
        with contextlib.closing(open_state(tmp_path)) as held:
            assert re.fullmatch(r"[0-9a-f]{64}", held.token)
            assert (tmp_path / "token").read_text() == held.token + "\n"
            assert held.token not in repr(held)
            tokens.append(held.token)
    assert tokens[0] != tokens[1]


def test_published_address_is_read_until_close(folder):
    assert read_engine(folder.path) is None
    published = folder.publish(HTTP, WS, {"router": "http://127.0.0.1:6103"})
    assert published == EngineAddress(os.getpid(), HTTP, WS, {"router": "http://127.0.0.1:6103"})
    assert read_engine(folder.path) == published
    assert json.loads((folder.path / "engine.json").read_text()) == {
        "pid": os.getpid(), "http": HTTP, "ws": WS, "services": {"router": "http://127.0.0.1:6103"},
    }  # fmt: skip
    folder.close()
    folder.close()
    assert read_engine(folder.path) is None
    assert [path.name for path in folder.path.iterdir()] == ["lock"]


def test_a_second_engine_is_told_who_holds_the_folder(folder):
    with pytest.raises(AddressInUse) as before_publishing:
        open_state(folder.path)
    assert f"in use by process {os.getpid()};" in before_publishing.value.message
    folder.publish(HTTP, WS)
    with pytest.raises(AddressInUse) as refusal:
        open_state(folder.path)
    assert refusal.value.message == (
        f"{folder.path} is in use by process {os.getpid()} ({HTTP}); stop it, or set WF_DATA_DIR to another folder"
    )
    assert read_engine(folder.path) is not None  # the refused one changed nothing
    assert (folder.path / "token").read_text().strip() == folder.token


def test_somebody_asking_does_not_keep_the_folder(folder):
    folder.publish(HTTP, WS)
    left_behind = (folder.path / "engine.json").read_bytes()
    folder.close()
    (folder.path / "engine.json").write_bytes(left_behind)
    assert read_engine(folder.path) is None  # our process lives, but nobody holds the lock
    open_state(folder.path).close()


def test_a_killed_engine_leaves_nothing_that_is_believed(tmp_path):
    program = (
        "import pathlib, sys, signal; from engine.state import open_state\n"
        "open_state(pathlib.Path(sys.argv[1])).publish('http://a', 'ws://a'); print('up', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as engine:
        try:
            assert engine.stdout.readline() == b"up\n"
            assert read_engine(tmp_path) == EngineAddress(engine.pid, "http://a", "ws://a")
            with pytest.raises(AddressInUse, match=f"process {engine.pid} \\(http://a\\)"):
                open_state(tmp_path)
        finally:
            engine.send_signal(signal.SIGKILL)
    assert (tmp_path / "engine.json").exists()
    assert read_engine(tmp_path) is None
    with contextlib.closing(open_state(tmp_path)):
        assert not (tmp_path / "engine.json").exists()


def test_close_leaves_the_file_of_another(folder):
    folder.publish(HTTP, WS)
    other = json.dumps({"pid": os.getpid() + 1, "http": HTTP, "ws": WS, "services": {}})
    (folder.path / "engine.json").write_text(other)
    folder.close()
    assert (folder.path / "engine.json").read_text() == other


def test_children_do_not_inherit_the_lock(folder):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        folder.close()
        open_state(folder.path).close()
        child.communicate(b"\n")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40, deadline=None
)
@given(st.binary(max_size=100) | st.builds(lambda pid: b'{"pid":%d,"http":"h","ws":"w"}' % pid, st.integers(-9, 2**70)))
@example(b'{"pid":-1,"http":"h","ws":"w","services":{}}')
@example(b"[" * 65_536)
@example(b'{"pid":4194304000,"http":"h","ws":"w","services":{}}')
def test_any_file_content_is_no_engine_or_an_address_of_a_living_process(folder, data):
    (folder.path / "engine.json").write_bytes(data)
    address = read_engine(folder.path)
    assert address is None or os.path.exists(f"/proc/{address.pid}") or address.pid > 2**31
    with pytest.raises(AddressInUse):
        open_state(folder.path)


def test_no_folder_no_engine(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "as_folder" / "engine.json").mkdir(parents=True)
    for path in (tmp_path / "nowhere", tmp_path / "file", tmp_path, tmp_path / "as_folder"):
        assert read_engine(path) is None


def test_an_open_folder_is_closed_to_others(tmp_path):
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(0o777)
    open_state(path).close()
    assert mode(path) == 0o700


def test_a_link_to_a_folder_of_ours_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    open_state(tmp_path / "link").close()
    assert mode(tmp_path / "real") == 0o700
    assert (tmp_path / "real" / "lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_a_folder_of_another_user_is_refused(tmp_path):
    theirs, link, their_link = tmp_path / "theirs", tmp_path / "link", tmp_path / "their_link"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 12345, 12345)
    link.symlink_to(theirs)
    (tmp_path / "ours").mkdir()
    their_link.symlink_to("ours")
    os.chown(their_link, 12345, 12345, follow_symlinks=False)
    for path, words in (
        (theirs, "belongs to another"),
        (link, "leads to a folder of"),
        (their_link, "belongs to another"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_state(path)
    assert list(theirs.iterdir()) == []


def test_links_inside_the_folder_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    state = tmp_path / "state"
    state.mkdir()
    (state / "token").symlink_to(victim)
    open_state(state).close()
    assert not (state / "token").is_symlink()  # replaced, not written through
    (state / "lock").unlink()
    (state / "lock").symlink_to(victim)
    with pytest.raises(ConfigError, match="cannot be used"):
        open_state(state)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("make", [lambda path: path.touch(), lambda path: path.symlink_to("nowhere")])
def test_what_is_no_folder_is_refused(tmp_path, make):
    make(tmp_path / "state")
    with pytest.raises(ConfigError, match="state cannot be used: File exists"):
        open_state(tmp_path / "state")


def test_a_write_that_fails_keeps_the_old_file_whole_and_leaves_no_other(folder):
    folder.publish(HTTP, WS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # a disk with room for ten bytes
    try:
        with pytest.raises(ConfigError, match="cannot be used: File too large"):
            folder.publish("http://127.0.0.1:1", WS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_engine(folder.path).http == HTTP
    assert sorted(path.name for path in folder.path.iterdir()) == ["engine.json", "lock", "token"]


def test_a_start_that_fails_lets_the_folder_go(tmp_path):
    (tmp_path / "token").mkdir()
    (tmp_path / "token" / "in the way").touch()
    before = open_files()
    with pytest.raises(ConfigError, match="cannot be used"):
        open_state(tmp_path)
    assert open_files() <= before
    (tmp_path / "token" / "in the way").unlink()
    (tmp_path / "token").rmdir()
    open_state(tmp_path).close()


def test_port_file(tmp_path):
    write_address(tmp_path / "port.json", EngineAddress(7, HTTP, WS))
    assert json.loads((tmp_path / "port.json").read_text()) == {"pid": 7, "http": HTTP, "ws": WS, "services": {}}
    with pytest.raises(ConfigError, match="No such file"):
        write_address(tmp_path / "nowhere" / "port.json", EngineAddress(7, HTTP, WS))


def test_what_a_start_wrote_goes_with_it(tmp_path):
    port_file = tmp_path / "port.json"
    folder = open_state(tmp_path / "state")
    address = folder.publish(HTTP, WS, None, port_file)
    assert json.loads(port_file.read_text())["pid"] == address.pid
    folder.close()
    assert not port_file.exists()
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["lock"]


def test_a_port_file_of_another_engine_stays(tmp_path):
    port_file = tmp_path / "port.json"
    folder = open_state(tmp_path / "state")
    folder.publish(HTTP, WS, None, port_file)
    write_address(port_file, EngineAddress(7, HTTP, WS))
    folder.close()
    assert json.loads(port_file.read_text())["pid"] == 7


def test_where_the_folder_is(tmp_path):
    home = {"HOME": "/home/me"}
    assert str(state_path({"WF_DATA_DIR": "/data", **home})) == "/data"
    assert str(state_path({"XDG_STATE_HOME": "/xdg", **home})) == "/xdg/wf-engine"
    assert str(state_path({"XDG_STATE_HOME": "relative", **home})) == "/home/me/.local/state/wf-engine"
    assert str(state_path(home)) == "/home/me/.local/state/wf-engine"
    assert state_path({"WF_DATA_DIR": "relative"}).is_absolute()


def test_memory_is_what_the_kernel_says():
    with open("/proc/meminfo") as meminfo:
        total_kib = int(re.search(r"MemTotal: +(\d+) kB", meminfo.read()).group(1))
    assert ram_total_bytes() == total_kib * 1024
