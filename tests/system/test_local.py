"""What must not get out: prompts, secrets, packets; and what must not stay: descriptors, threads, processes."""

from __future__ import annotations

import json
import secrets
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.system.frames import LONG, frames_of, start_session
from tests.system.process import TCP_LISTEN, EngineProcess, wf

LOOPBACK_V4 = "7f"  # 127.0.0.0/8
FAST = {"WF_EMBEDDED__PACE_TPS": "0"}
ROUNDS, USERS = 50, 5

# Python runs this in every child of these tests, before anything else: it writes down each use of the network and each
# start of a program.
WITNESS = """
import os, sys

log = os.open(os.environ["WITNESS_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
watched = ("socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
           "socket.gethostbyname", "socket.gethostbyaddr", "subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn",
           "os.system", "urllib.Request", "webbrowser.open")

def witness(event, args):
    if event in watched:
        what = args[1] if event.startswith("socket.") and not isinstance(args[0], (str, bytes)) else args[0]
        os.write(log, f"{event} {what!r}\\n".encode())

sys.addaudithook(witness)
"""
LOADER = "subprocess.Popen '/sbin/ldconfig'"  # trio, imported, looks for libpthread with it, to name its threads


@pytest.fixture
def witnessed(tmp_path) -> tuple[dict[str, str], Callable[[], list[str]]]:
    """The environment that makes Python a witness of itself, and what it has seen."""
    folder = tmp_path / "witness"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WITNESS)
    log = folder / "log"

    def seen() -> list[str]:
        return [line for line in log.read_text().splitlines() if line != LOADER]

    return {"PYTHONPATH": str(folder), "WITNESS_LOG": str(log)}, seen


@pytest.mark.parametrize("model", ["embedded/mixed", "synthetic/steady"])
async def test_every_socket_of_an_engine_is_on_loopback(start, witnessed, model):
    env, seen = witnessed
    engine = start(env=env)
    async with frames_of(engine) as frames, engine.async_client() as http:
        await start_session(http, model)
        await frames.event("experience.token")
        await http.get("/models")
        sockets = engine.sockets()
        assert len([state for _, state in sockets if state == TCP_LISTEN]) == 4  # two listeners, both ends of each
        assert {address[:2] for address, state in sockets if state != TCP_LISTEN} == {LOOPBACK_V4}
        listening = {address for address, state in sockets if state == TCP_LISTEN}
        assert listening == {"7f000001", "00000000"}  # nobody is at the other end of a listener
        assert engine.children() == []
    engine.signal(signal.SIGTERM)
    assert await trio.to_thread.run_sync(engine.wait_exit) == 0
    assert seen() == ["socket.bind ('127.0.0.1', 0)"] * 2


def test_run_in_process_does_not_touch_the_network(witnessed, tmp_path):
    env, seen = witnessed
    done = wf(tmp_path, "run", "embedded/hacker", "what is a glacier?", "--max-tokens", "5", env=env | FAST)
    assert done.returncode == 0
    assert seen() == []


def test_ollama_is_looked_for_on_loopback_and_nowhere_else(witnessed, tmp_path):
    env, seen = witnessed
    env |= {"WF_OLLAMA__ENABLED": "true", "OLLAMA_HOST": "127.0.0.1:1"} | FAST
    done = wf(tmp_path, "run", "embedded/hacker", "what is a glacier?", "--max-tokens", "5", env=env)
    assert done.returncode == 0
    assert set(seen()) == {
        "socket.getaddrinfo '127.0.0.1'",
        "socket.connect ('127.0.0.1', 1)",
        "socket.bind ('127.0.0.1', 1)",  # is the address free, should an Ollama be started
    }


def test_run_beside_an_engine_connects_to_it_alone(start, witnessed):
    env, seen = witnessed
    engine = start()
    done = wf(engine.folder, "run", "synthetic/steady", "x", "--max-tokens", "2", env=env)
    assert done.returncode == 0
    lines = seen()
    assert [line for line in lines if line.startswith("socket.connect")] == [
        f"socket.connect ('127.0.0.1', {engine.port()})"
    ]
    lookups = [line for line in lines if not line.startswith("socket.connect")]
    assert set(lookups) <= {"socket.getaddrinfo '127.0.0.1'"}  # of an address: reads a number, asks nobody


def test_a_prompt_is_nowhere_but_in_its_session(start):
    canary = secrets.token_hex(16)
    engine = start("--log-level", "debug")
    with engine.client() as http:
        for body in mentions_of(canary):
            http.post("/generate", json=body)
        http.post("/generate", content=f'{{"prompt": "{canary}'.encode())
        for path in ("/models/load", "/models/unload", "/stop"):
            http.post(path, json={"name": f"{canary} {canary}", "session_id": canary, canary: canary})
        http.get(f"/stream/{canary}", params={"prompt": canary}, headers={"x-request-id": f"({canary})"})
        hostile_headers(engine, canary)
        shown = [http.get(path).text for path in ("/health", "/stats", "/models")]
        answer = answer_to(http, canary)
    done = wf(engine.folder, "run", "synthetic/steady", "-", "--max-tokens", "2", input=canary)
    assert canary not in done.stdout + done.stderr
    files = [path for path in engine.state.rglob("*") if path.is_file()]
    state = [path.read_bytes().decode("latin-1") for path in files]
    proc = Path("/proc", str(engine.process.pid))
    kernel = [(proc / name).read_text() for name in ("cmdline", "environ")]
    token = (engine.state / "token").read_text().strip()
    engine.signal(signal.SIGTERM)
    assert engine.wait_exit() == 0
    logged = engine.stderr()
    assert "stopping on SIGTERM" in logged
    for text in (*shown, *state, *kernel, engine.stdout(), logged):
        assert canary not in text
    assert answer not in logged
    assert token not in logged + engine.stdout() + "".join(shown + kernel)


def mentions_of(canary: str) -> list[dict]:
    """Prompts that are served, and prompts beside every kind of mistake."""
    messages = [{"role": "system", "content": canary}, {"role": "user", "content": canary}]
    return [
        LONG | {"prompt": canary},
        LONG | {"model": "embedded/lexicon", "prompt": canary},
        {"model": "embedded/mixed", "messages": messages},
        {"model": "embedded/mixed", "messages": [{"role": canary, "content": canary}]},
        {"model": "no/such", "prompt": canary},
        {"model": canary * 20, "prompt": canary},
        LONG | {"prompt": canary, canary: 1},
        LONG | {"prompt": canary, "parameters": {"temperature": canary}},
        LONG | {"prompt": [canary]},
        LONG | {"prompt": canary, "parameters": {"stop": [canary] * 11}},
    ]


def hostile_headers(engine: EngineProcess, canary: str) -> None:
    """The same in places of the protocol that libraries like to log."""
    for listener in ("http", "ws"):
        for head in (
            f"GET /{canary} HTTP/1.1\r\nHost: {canary}\r\n\r\n",
            f"{canary} / HTTP/1.1\r\n\r\n",
            f"GET /{canary} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: {canary}\xff\r\n\r\n",
        ):
            with engine.connect(listener) as sock:
                sock.sendall(head.encode("latin-1"))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass


def answer_to(http, canary: str) -> str:
    """The words a model said, which are nobody else's business either."""
    body = {"model": "synthetic/bursty", "prompt": canary, "parameters": {"max_tokens": 8}, "stream": True}
    events = [json.loads(line) for line in http.post("/generate", json=body).text.splitlines()]
    return "".join(t["text"] for e in events if e["type"] == "experience.token" for t in e["payload"]["tokens"])


def test_sessions_and_connections_leave_no_descriptor_behind(start):
    engine = start(env=FAST)
    trio.run(use_it, engine, 1, 1)
    with engine.client() as http:
        assert http.get("/usage").status_code == 200  # what was used is on disk by now, and its file open
    baseline = settled_files(engine, None)
    trio.run(use_it, engine, ROUNDS // USERS, USERS)
    assert settled_files(engine, baseline) == baseline
    with engine.client() as http:
        stats = http.get("/stats").json()
    assert stats["sessions"]["active"] == 0
    assert stats["sessions"]["total"] == 2 * (1 + ROUNDS)
    assert stats["system"]["edges"]["ws"]["active"] == 0
    assert stats["system"]["edges"]["ws"]["opened"] == 2 * (1 + ROUNDS)
    assert stats["system"]["edges"]["http"]["listen"]["active"] == 1  # the one that asks
    assert stats["system"]["edges"]["http"]["listen"]["crashed"] == 0
    assert stats["system"]["edges"]["ws"]["listen"]["crashed"] == 0


async def use_it(engine: EngineProcess, rounds: int, users: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(users):
            nursery.start_soon(use_it_alone, engine, rounds)


async def use_it_alone(engine: EngineProcess, rounds: int) -> None:
    """Each round: a connection that says goodbye, one that is cut, a session to its end and one that is left."""
    body = {"model": "embedded/lexicon", "prompt": "x", "parameters": {"max_tokens": 2}, "stream": True}
    async with engine.async_client() as http:
        for _ in range(rounds):
            async with frames_of(engine) as frames:
                await frames.ws.aclose()
            async with frames_of(engine):
                pass
            assert b'"length"' in (await http.post("/generate", json=body)).content
            async with await trio.open_tcp_stream("127.0.0.1", engine.port()) as caller:
                await caller.send_all(engine.request("POST", "/generate", LONG | {"stream": True}))
                assert await caller.receive_some()


def settled_files(engine: EngineProcess, expected: list[str] | None) -> list[str]:
    """What is open, sockets without their numbers, once it is `expected` (or once only the listeners are left)."""

    def files() -> list[str]:
        return sorted(name.partition(":[")[0] for name in engine.open_files())

    def settled() -> bool:
        return files() == expected if expected is not None else len(engine.sockets()) == 4

    try:
        engine.wait_for(settled)
    except AssertionError:
        pass  # the caller compares, and says what is left
    return files()


async def test_a_whole_life_raises_no_warning(start):
    """Python's own checks: unclosed sockets, coroutines never awaited, wrong threads. Each would be an error here."""
    engine = start(interpreter=("-X", "dev", "-W", "error"))
    async with frames_of(engine) as frames, engine.async_client() as http:
        await start_session(http, "embedded/mixed")
        stopped = await start_session(http)
        await frames.event("experience.token")
        await http.post("/stop", json={"session_id": stopped})
        await frames.event("experience.session_end")
        engine.signal(signal.SIGTERM)
        assert await frames.until_closed() == 1001
    assert await trio.to_thread.run_sync(engine.wait_exit) == 0
    lines = engine.stderr().splitlines()
    assert [line for line in lines if " INFO wf." not in line] == []
