"""The Ollama daemon: when it is started and when not, what it is given, and what happens when it ends.

The daemons are real processes that serve the mock Ollama on real sockets; pauses between restarts are not waited for.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import attrs
import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from policies.restart import NEVER
from tests.fakes.fake_ollama import Behaviour, FakeOllama
from tests.fakes.mock_server import listening_mock
from tests.fakes.processes import (
    WATCHDOG_S,
    is_reaped,
    is_running,
    permissions,
    proc,
    started_python,
    until,
    until_gone,
)
from transport.runtimes.daemon import (
    RESTARTS,
    DaemonState,
    DaemonStatus,
    OllamaDaemon,
    daemon_environ,
    find_ollama,
    unfit,
)

PAUSES_S: Final = [0.5, 1.0, 2.0, 4.0, 8.0]


@attrs.define(eq=False)
class Pauses:
    """Takes no time, and knows what was asked for. From the `held` one on it waits for ever."""

    held: int | None = None
    taken_s: list[float] = attrs.field(factory=list)

    async def __call__(self, seconds: float) -> None:
        self.taken_s.append(seconds)
        if len(self.taken_s) == self.held:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()


@pytest.fixture
def port() -> Iterator[int]:
    """One that nothing listens at, and that no connection is given by chance: it is bound."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.fixture
def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def daemon_of(ollama: FakeOllama | None, url: str, **options) -> OllamaDaemon:
    environ = {"PATH": os.defpath, "HOME": "/nowhere"} | options.pop("environ", {})
    return OllamaDaemon(url, ollama.binary if ollama else None, environ, 3, 2, **options)


@asynccontextmanager
async def running(daemon: OllamaDaemon) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        with trio.fail_after(WATCHDOG_S):
            yield
        nursery.cancel_scope.cancel()


async def status_after(daemon: OllamaDaemon) -> DaemonStatus:
    """What it says once it has ended by itself."""
    with trio.fail_after(WATCHDOG_S):
        await daemon.run()
    return daemon.status


async def version_at(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=WATCHDOG_S) as client:
        return (await client.get(f"{url}/api/version")).json()["version"]


# ── started, stopped ──


async def test_it_is_started_when_nothing_answers_and_stopped_with_us(tmp_path, url, port):
    ollama = FakeOllama.install(tmp_path)
    daemon = daemon_of(ollama, url)
    assert daemon.status == DaemonStatus(DaemonState.OFF)
    async with running(daemon):
        status = await daemon.wait_until(DaemonState.READY)
        (start,) = ollama.starts
        assert status == DaemonStatus(DaemonState.READY, None, start["pid"], 0)
        assert await version_at(url) == "0.0.0-mock"
        assert start["argv"] == ["serve"]
        assert start["cwd"] == "/"
        assert start["environ"] == {
            "PATH": os.defpath, "HOME": "/nowhere", "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_MAX_LOADED_MODELS": "3", "OLLAMA_NUM_PARALLEL": "2",
        }  # fmt: skip
        is_now = permissions(start["pid"])
        assert (is_now["Umask"], is_now["NoNewPrivs"], is_now["core"]) == ("0077", "1", "0 0")
    assert daemon.status == DaemonStatus(DaemonState.OFF, "stopped", None, 0)
    assert is_reaped(start["pid"])
    await until_gone(start["runner"])


async def test_one_that_ignores_sigterm_is_killed_with_its_runner(tmp_path, url):
    ollama = FakeOllama.install(tmp_path, Behaviour.STUBBORN)
    daemon = daemon_of(ollama, url, stop_s=0.1)
    async with running(daemon):
        await daemon.wait_until(DaemonState.READY)
    assert is_reaped(ollama.starts[0]["pid"])
    await until_gone(ollama.starts[0]["runner"])


OWNER: Final = """
import sys, trio
from transport.runtimes.daemon import *
async def main():
    async with trio.open_nursery() as nursery:
        daemon = OllamaDaemon(sys.argv[1], Path(sys.argv[2]), {}, 1, 1)
        nursery.start_soon(daemon.run)
        print((await daemon.wait_until(DaemonState.READY)).pid, flush=True)
trio.run(main)
"""


async def test_it_and_its_runner_end_when_the_engine_is_killed(tmp_path, url):
    ollama = FakeOllama.install(tmp_path)
    with started_python(OWNER, url, str(ollama.binary)) as engine:
        pid = int(await trio.to_thread.run_sync(engine.stdout.readline))
        engine.kill()
    await until_gone(pid)
    await until_gone(ollama.starts[0]["runner"])


# ── not started ──


async def test_an_ollama_that_runs_is_used_and_left_alone(tmp_path):
    ollama = FakeOllama.install(tmp_path)
    async with listening_mock() as (_, url):
        status = await status_after(daemon_of(ollama, url))
        assert status == DaemonStatus(DaemonState.FOREIGN)
        assert await version_at(url) == "0.0.0-mock"
    assert ollama.starts == []


@asynccontextmanager
async def something_at(port: int, answer: bytes) -> AsyncIterator[None]:
    """Another program at the port, that says the same to everybody."""

    async def say(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), say, port)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", r"is no Ollama \(GET /api/version: 404\)"),
        (b'HTTP/1.1 500 Oh\r\nContent-Length: 15\r\n\r\n{"version":"7"}', "is no Ollama"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"version":7}', r"is no Ollama \(GET /api/version: 200\)"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"name":"x"}', "is no Ollama"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "broke off"),
    ],
)
async def test_an_address_that_another_program_has_is_left_to_it(tmp_path, port, url, answer, reason):
    ollama = FakeOllama.install(tmp_path)
    async with something_at(port, answer):
        status = await status_after(daemon_of(ollama, url))
    assert status.state is DaemonState.FOREIGN
    assert status.reason is not None
    assert re.search(reason, status.reason)
    assert "OLLAMA_HOST" in status.reason
    assert ollama.starts == []


async def test_an_address_taken_while_it_starts_is_left_to_whoever_took_it(tmp_path, port, url):
    ollama = FakeOllama.install(tmp_path, Behaviour.SLOW)
    daemon = daemon_of(ollama, url, sleep=Pauses())
    async with running(daemon):
        await until(lambda: ollama.starts)
        version = b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"version":"0.32.0"}'
        async with something_at(port, version):
            await trio.to_thread.run_sync(ollama.release)
            status = await daemon.wait_until(DaemonState.FOREIGN)
    assert status.pid is None
    assert len(ollama.starts) == 1


async def test_an_address_whose_holder_does_not_answer_is_left_to_it(tmp_path):
    """Another program is bound to it and refuses every connection: nothing answers, and yet nobody else can have it."""
    ollama = FakeOllama.install(tmp_path)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # without SO_REUSEADDR
        status = await status_after(daemon_of(ollama, f"http://127.0.0.1:{held.getsockname()[1]}"))
    assert status.state is DaemonState.FOREIGN
    assert "is taken by something that does not answer" in status.reason
    assert ollama.starts == []


async def test_without_a_program_it_is_absent(url):
    status = await status_after(daemon_of(None, url))
    assert status.state is DaemonState.ABSENT
    assert status.reason == (
        f"nothing answers at {url} and no `ollama` was found; "
        "install it from https://ollama.com, or add its folder to PATH"
    )


@pytest.mark.parametrize(
    "elsewhere",
    [
        "http://192.168.1.7:11434", "http://example.test:11434", "https://127.0.0.1:11434",
        "http://127.0.0.1:11434/ollama", "http://127.0.0.1:0",
    ],
)  # fmt: skip
async def test_for_an_address_it_could_not_serve_none_is_started(tmp_path, elsewhere):
    ollama = FakeOllama.install(tmp_path)
    status = await status_after(daemon_of(ollama, elsewhere))
    assert status.state is DaemonState.OFF
    assert status.reason is not None
    assert status.reason.startswith(elsewhere)
    assert ollama.starts == []


@pytest.mark.parametrize(
    "here", ["http://127.0.0.1:11434", "http://localhost:1", "http://[::1]:8080/", "http://127.0.0.1"]
)
def test_addresses_it_can_serve(here):
    assert unfit(here) is None


# ── it ends by itself ──


async def test_killed_it_is_started_again(tmp_path, url):
    ollama = FakeOllama.install(tmp_path)
    pauses = Pauses()
    daemon = daemon_of(ollama, url, sleep=pauses)
    async with running(daemon):
        first = await daemon.wait_until(DaemonState.READY)
        os.kill(first.pid, signal.SIGKILL)
        restarting = await daemon.wait_until(DaemonState.RESTARTING)
        assert restarting.pid is None
        assert restarting.reason == "started again after 0.5 s; ollama was ended by signal 9 (Killed)"
        second = await daemon.wait_until(DaemonState.READY)
        assert second == DaemonStatus(DaemonState.READY, None, ollama.starts[1]["pid"], 1)
        assert second.pid != first.pid
        assert await version_at(url) == "0.0.0-mock"
        await until_gone(ollama.starts[0]["runner"])
    assert pauses.taken_s == PAUSES_S[:1]
    assert len(ollama.starts) == 2


async def test_while_it_starts_again_its_status_still_says_why(tmp_path, url):
    ollama = FakeOllama.install(tmp_path, Behaviour.SLOW)
    daemon = daemon_of(ollama, url, sleep=Pauses())
    async with running(daemon):
        await until(lambda: ollama.starts)
        os.kill(ollama.starts[0]["pid"], signal.SIGKILL)
        await until(lambda: len(ollama.starts) == 2)
        assert daemon.status == DaemonStatus(
            DaemonState.RESTARTING,
            "started again after 0.5 s; ollama was ended by signal 9 (Killed): looking for graphics cards",
            ollama.starts[1]["pid"],
            1,
        )


async def test_one_that_ends_at_once_is_given_up_after_a_few_starts(tmp_path, url):
    ollama = FakeOllama.install(tmp_path, Behaviour.EXIT)
    pauses = Pauses()
    status = await status_after(daemon_of(ollama, url, sleep=pauses))
    lines = " | ".join([*(f"line {number}" for number in range(21, 30)), "Error: no room on the device"])
    assert status == DaemonStatus(
        DaemonState.FAILED,
        f"given up after 6 starts: ollama ended with exit status 3: {lines}; "
        "start it yourself with `ollama serve` to see why",
        None,
        5,
    )
    assert len(ollama.starts) == 6
    assert pauses.taken_s == PAUSES_S


async def test_one_that_ends_now_and_then_is_always_started_again(tmp_path, url):
    """Only ends of the last ten minutes count."""
    ollama = FakeOllama.install(tmp_path, Behaviour.EXIT)
    pauses = Pauses(held=8)
    now_s = iter(range(0, 100_000, 601))
    daemon = daemon_of(ollama, url, sleep=pauses, clock=lambda: float(next(now_s)))
    async with running(daemon):
        await until(lambda: len(pauses.taken_s) == 8)
        assert daemon.status.state is DaemonState.RESTARTING
        assert daemon.status.restarts == 7
    assert pauses.taken_s == [0.5] * 8
    assert daemon.status.state is DaemonState.OFF


async def test_a_program_that_cannot_run_says_so(tmp_path, url):
    ollama = FakeOllama.install(tmp_path)
    ollama.binary.write_bytes(b"\x7fELF but not really")
    status = await status_after(daemon_of(ollama, url, restart=NEVER))
    assert status.state is DaemonState.FAILED
    assert f"exit status 126: cannot run {ollama.binary}: Exec format error" in status.reason


async def test_a_slow_start_is_told_and_waited_for(tmp_path, url):
    ollama = FakeOllama.install(tmp_path, Behaviour.SLOW)
    daemon = daemon_of(ollama, url, ready_s=0.0)
    async with running(daemon):
        said = "ollama has not answered for 0 s since its start: looking for graphics cards"
        await until(lambda: daemon.status.reason == said)
        assert daemon.status.state is DaemonState.STARTING
        assert daemon.status.pid == ollama.starts[0]["pid"]
        await trio.to_thread.run_sync(ollama.release)
        assert (await daemon.wait_until(DaemonState.READY)).reason is None
    assert len(ollama.starts) == 1


async def test_one_that_never_answers_is_ended(tmp_path, url):
    ollama = FakeOllama.install(tmp_path, Behaviour.SILENT)
    daemon = daemon_of(ollama, url, start_s=0.3, restart=NEVER)
    status = await status_after(daemon)
    assert status.state is DaemonState.FAILED
    assert "ollama did not answer within 0.3 s of its start" in status.reason
    assert status.pid is None
    for start in ollama.starts:
        assert is_reaped(start["pid"])
        await until_gone(start["runner"])


async def test_stopped_between_two_starts_it_is_off(tmp_path, url):
    ollama = FakeOllama.install(tmp_path, Behaviour.EXIT)
    daemon = daemon_of(ollama, url, sleep=Pauses(held=1))
    async with running(daemon):
        await daemon.wait_until(DaemonState.RESTARTING)
        await until(lambda: not is_running(ollama.starts[0]["runner"]))
    assert daemon.status.state is DaemonState.OFF
    assert len(ollama.starts) == 1


def test_the_bounds_of_restarting():
    assert (RESTARTS.max_restarts, RESTARTS.within_s) == (5, 600)
    assert (RESTARTS.backoff_s, RESTARTS.backoff_max_s) == (0.5, 30)


# ── what it is given ──

PASSED_ON: Final = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "XDG_DATA_HOME", "OLLAMA_MODELS", "OLLAMA_KEEP_ALIVE",
    "OLLAMA_CONTEXT_LENGTH", "OLLAMA_KV_CACHE_TYPE", "OLLAMA_FLASH_ATTENTION", "OLLAMA_GPU_OVERHEAD",
    "OLLAMA_SCHED_SPREAD", "OLLAMA_LLM_LIBRARY", "OLLAMA_LOAD_TIMEOUT", "OLLAMA_MAX_QUEUE", "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
)  # fmt: skip
KEPT_BACK: Final = (
    "OLLAMA_DEBUG", "OLLAMA_DEBUG_LOG_REQUESTS", "OLLAMA_ORIGINS", "OLLAMA_API_KEY", "OLLAMA_AUTH", "OLLAMA_REMOTES",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "NO_PROXY", "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH",
    "WF_API_KEYS", "SSH_AUTH_SOCK", "LLAMA_ARG_THREADS", "GGML_BACKEND_PATH", "CUDA_INJECTION64_PATH",
    "LANGUAGE", "MYPATH", "PATH\n",
)  # fmt: skip
OURS: Final = {
    "OLLAMA_HOST": "127.0.0.1:11434", "OLLAMA_NO_CLOUD": "1", "OLLAMA_MAX_LOADED_MODELS": "3",
    "OLLAMA_NUM_PARALLEL": "2",
}  # fmt: skip


def test_only_what_is_listed_is_passed_on():
    environ = dict.fromkeys((*PASSED_ON, *KEPT_BACK), "theirs")
    given = daemon_environ(environ, "http://127.0.0.1:11434", 3, 2)
    assert given == dict.fromkeys(PASSED_ON, "theirs") | OURS


@given(st.dictionaries(st.sampled_from([*OURS, "OLLAMA_ORIGINS"]), st.text()))
def test_what_we_decide_is_not_overruled(environ):
    assert daemon_environ(environ, "http://127.0.0.1:11434", 3, 2) == OURS


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://localhost:9999", "127.0.0.1:9999"),
        ("http://[::1]:11434", "[::1]:11434"),
        ("http://127.0.0.2:1/", "127.0.0.2:1"),
        ("http://127.0.0.1", "127.0.0.1:80"),
    ],
)
def test_it_listens_where_we_look_for_it(url, host):
    assert daemon_environ({}, url, 1, 1)["OLLAMA_HOST"] == host


async def test_a_setting_that_writes_prompts_to_disk_does_not_reach_it(tmp_path, url):
    ollama = FakeOllama.install(tmp_path)
    daemon = daemon_of(ollama, url, environ={"OLLAMA_DEBUG_LOG_REQUESTS": "1", "HTTPS_PROXY": "http://proxy:1"})
    async with running(daemon):
        status = await daemon.wait_until(DaemonState.READY)
        names = {entry.split("=", 1)[0] for entry in proc(status.pid, "environ").split("\0") if entry}
    assert names == {"PATH", "HOME", *OURS}


# ── found ──


def test_the_first_one_on_the_path_that_can_run_is_found(tmp_path, monkeypatch):
    for name in ("data", "folder", "first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "ollama").write_text("not a program")
    (tmp_path / "folder" / "ollama").mkdir()
    for name in ("first", "second"):
        FakeOllama.install(tmp_path / name)
    monkeypatch.chdir(tmp_path / "second")
    path = os.pathsep.join(["", ".", "first", *(str(tmp_path / name) for name in ("none", "data", "folder", "first"))])
    assert find_ollama({"PATH": path}) == tmp_path / "first" / "ollama"
    assert find_ollama({"PATH": os.pathsep.join(["", ".", "../first"])}) is None
    assert find_ollama({}) is None
