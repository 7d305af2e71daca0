"""What happens when a client of the lens goes: how soon the model server is left, and whether anything stays behind."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from pathlib import Path

import attrs
import httpx
import trio

from bench.engine import serving
from bench.lens_child import caller, child, until
from bench.lens_client import Job
from bench.slow_upstream import SlowUpstream, slow_upstream
from bench.stop import NO_UPSTREAM, PHASES, has_ended
from bench.table import Row, at_most, percentile
from tests.system.frames import frames_of
from tests.system.process import EngineProcess

LEAVES = 60
GOAL_MS = 50.0
CYCLES = 10_000
CYCLES_S = 240.0  # the cycles end then, however many they were
AT_ONCE = 20
STEP_S = 0.1
STEADY_STEPS = 25  # longer than a closed connection is still read from
SETTLE_STEPS_MAX = 100


# ── how soon ──


def phase_rows() -> list[Row]:
    rows = []
    for phase in PHASES:
        took, direct, answered = trio.run(leaves, phase)
        what = "told ended" if phase in NO_UPSTREAM else "upstream closed"
        limit_is = "GET /health" if phase in NO_UPSTREAM else "a direct call"
        limit = {"limit": percentile(direct or answered, 99), "limit_is": limit_is}
        rows += [
            Row(f"{phase}: client gone to {what} p50", percentile(took, 50), "ms"),
            at_most(f"{phase}: client gone to {what} p99", percentile(took, 99), "ms", GOAL_MS, **limit),
        ]
    return rows


async def leaves(phase: str) -> tuple[list[float], list[float], list[float]]:
    """In ms, from the client's close: until the upstream saw its connection close or, where there is none, until a
    WebSocket client was told of the end; the same of a direct client; and what a plain request takes in between."""
    took, direct, health = [], [], []
    model, state = PHASES[phase]
    limits = {"WF_LIMITS__STREAMS_MAX": "1" if phase == "queued" else "64"}
    async with slow_upstream() as (upstream, url):
        env = {"WF_OLLAMA__ENABLED": "true", "WF_OLLAMA__URL": url, "WF_EMBEDDED__ENABLED": "false"}
        with serving(**limits, **env) as engine:
            async with engine.async_client() as http, frames_of(engine) as reader:
                known: set[str] = set()
                if phase == "queued":
                    holder = await asked(engine.port(), "stream")  # takes the only place
                    known.add(await session_in(http, "streaming", known))
                for _ in range(LEAVES):
                    if phase not in NO_UPSTREAM:
                        direct.append(await direct_leave(upstream, httpx.URL(url).port or 0, model))
                    upstream.begin()
                    client = await asked(engine.port(), model)
                    session_id = await session_in(http, state, known)
                    if phase not in NO_UPSTREAM:
                        await upstream.asked.wait()
                    began = time.perf_counter()
                    await http.get("/health")
                    health.append((time.perf_counter() - began) * 1000)
                    began = time.perf_counter()
                    client.socket.close()
                    if phase in NO_UPSTREAM:
                        await reader.until(lambda id_=session_id: has_ended(reader, id_))
                        took.append((time.perf_counter() - began) * 1000)
                    else:
                        await upstream.left.wait()
                        took.append(((upstream.left_s or 0) - began) * 1000)
                        await reader.until(lambda id_=session_id: has_ended(reader, id_))
                    reader.messages.clear()
                if phase == "queued":
                    holder.socket.close()
    return took, direct, health


async def asked(port: int, model: str) -> trio.SocketStream:
    """A client of the drop-in API that waits for its answer."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    body = json.dumps({"model": model, "prompt": "on"}).encode()
    head = f"POST /api/generate HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-length: {len(body)}\r\n\r\n"
    await stream.send_all(head.encode() + body)
    return stream


async def session_in(http: httpx.AsyncClient, state: str, known: set[str]) -> str:
    """The one session that is not `known`, once it has got so far."""
    while True:
        running = (await http.get("/stats")).json()["sessions"]["running"]
        found = [s["session_id"] for s in running if s["state"] == state and s["session_id"] not in known]
        if found:
            return found[0]
        await trio.sleep(0.005)


async def direct_leave(upstream: SlowUpstream, port: int, model: str) -> float:
    upstream.begin()
    client = await asked(port, model)
    await upstream.asked.wait()
    began = time.perf_counter()
    client.socket.close()
    await upstream.left.wait()
    return ((upstream.left_s or 0) - began) * 1000


# ── what stays ──


@attrs.frozen
class Held:
    """What a process holds: trio tasks, sockets, other open files, memory."""

    tasks: int
    sockets: int
    files: int
    rss_bytes: int


@attrs.frozen
class WatchedEngine:
    engine: EngineProcess
    folder: Path

    def held(self) -> Held:
        told = self.folder / "tasks"
        told.unlink(missing_ok=True)
        self.engine.signal(signal.SIGUSR1)
        tasks = int(until(lambda: told.exists() and told.read_text()))
        files = self.engine.open_files()
        sockets = sum(name.startswith("socket:") for name in files)
        status = Path(f"/proc/{self.engine.process.pid}/status").read_text()
        rss_kib = int(status.partition("VmRSS:")[2].split()[0])
        return Held(tasks, sockets, len(files) - sockets, rss_kib * 1024)

    def settled(self) -> Held:
        """Once nothing runs any more and its tasks and sockets have not changed for a while."""
        with self.engine.client() as http:
            until(lambda: not http.get("/stats").json()["sessions"]["running"])
        seen = [self.held()]
        while len(seen) < SETTLE_STEPS_MAX:
            last = seen[-STEADY_STEPS:]
            if len(last) == STEADY_STEPS and len({(held.tasks, held.sockets) for held in last}) == 1:
                break
            time.sleep(STEP_S)
            seen.append(self.held())
        return seen[-1]


def watched_engine(folder: Path, url: str) -> WatchedEngine:
    """An engine on the model server at `url` that can be asked for its tasks and its profile."""
    env = {
        "WF_OLLAMA__ENABLED": "true",
        "WF_OLLAMA__URL": url,
        "WF_EMBEDDED__ENABLED": "false",
        "BENCH_TASKS": str(folder / "tasks"),
        "BENCH_PROFILE": str(folder / "profile"),
    }
    engine = EngineProcess.spawn(folder, env=env, interpreter=("-m", "bench.lens_watched")).wait_ready()
    return WatchedEngine(engine, folder)


def leak_rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as name, child("direct", "bench.lens_upstream", "50") as direct:
        watched = watched_engine(Path(name), f"http://127.0.0.1:{direct.port}")
        try:
            port = watched.engine.port()
            with caller(
                Job("leave", port, AT_ONCE, CYCLES_S, AT_ONCE * 10)
            ) as warm_up:  # what comes with the first use
                warm_up()
            before = watched.settled()
            with caller(Job("leave", port, AT_ONCE, CYCLES_S, CYCLES)) as leave:
                told = leave()
            after = watched.settled()
            in_upstream = sockets_of(direct.pid)
        finally:
            watched.engine.kill()
    done = {"limit": float(told["cycles"]), "limit_is": "cycles done"}
    return [
        Row("cycles of asking and leaving", told["cycles"], "", CYCLES, "asked for"),
        Row("… per second", told["cycles"] / told["seconds"], "/s"),
        at_most("tasks left over", after.tasks - before.tasks, "", 0, **done),
        at_most("sockets left over", after.sockets - before.sockets, "", 0, **done),
        at_most("other files left over", after.files - before.files, "", 0, **done),
        at_most("connections still open at the upstream", in_upstream, "", 0, **done),
        Row("memory more than before", (after.rss_bytes - before.rss_bytes) / 1e6, "MB"),
    ]


def sockets_of(pid: int | None) -> int:
    """Open sockets of the model server less its listener."""
    fds = (path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir())
    return sum(str(target).startswith("socket:") for target in fds) - 1
