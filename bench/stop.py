"""How fast a session stops, in every phase it can be in, against the quickest answer the engine gives at all.

The upstream is in the bench's own process and looks at the clock itself when its connection closes.
"""

from __future__ import annotations

import time

import trio

from bench.engine import serving
from bench.slow_upstream import slow_upstream
from bench.table import Row, at_most, percentile
from tests.system.frames import frames_of

STOPS = 60
GOAL_MS = 50.0
# What is asked for and how far it has got when it is stopped. Stopping the wait for a load leaves the load alone.
PHASES = {
    "queued": ("stream", "queued"),
    "loading": ("loading", "loading"),
    "before the head": ("head", "waiting"),
    "before the first token": ("first", "waiting"),
    "mid-stream": ("stream", "streaming"),
}
NO_UPSTREAM = ("queued", "loading")


def measure() -> list[Row]:
    rows = []
    for phase in PHASES:
        took, told, health = trio.run(stops, phase)
        what = "answered" if phase in NO_UPSTREAM else "upstream closed"
        limit = {"limit": percentile(health, 99), "limit_is": "GET /health"}
        rows += [
            Row(f"{phase}: POST /stop to {what} p50", percentile(took, 50), "ms"),
            at_most(f"{phase}: POST /stop to {what} p99", percentile(took, 99), "ms", GOAL_MS, **limit),
            at_most(f"{phase}: POST /stop to session_end p99", percentile(told, 99), "ms", GOAL_MS, **limit),
        ]
    return rows


async def stops(phase: str) -> tuple[list[float], list[float], list[float]]:
    """In ms, from sending `POST /stop`: until the upstream saw its connection close, or, where there is none, until the
    answer; until a WebSocket client is told; and what a plain request takes in between."""
    took, told, health = [], [], []
    streams_max = "1" if phase == "queued" else "64"
    async with slow_upstream() as (upstream, url):
        env = {"WF_OLLAMA__ENABLED": "true", "WF_OLLAMA__URL": url, "WF_EMBEDDED__ENABLED": "false"}
        with serving(WF_LIMITS__STREAMS_MAX=streams_max, **env) as engine:
            async with engine.async_client() as http, frames_of(engine) as reader:
                if phase == "queued":
                    await started(http, "stream", "streaming")  # takes the only place
                for _ in range(STOPS):
                    upstream.begin()
                    session_id = await started(http, *PHASES[phase])
                    began = time.perf_counter()
                    await http.get("/health")
                    health.append((time.perf_counter() - began) * 1000)
                    began = time.perf_counter()
                    answer = await http.post("/stop", json={"session_id": session_id})
                    assert answer.json()["success"], answer.text
                    ended = time.perf_counter()
                    if phase not in NO_UPSTREAM:
                        await upstream.left.wait()
                        ended = upstream.left_s or ended
                    took.append((ended - began) * 1000)
                    await reader.until(lambda id_=session_id: has_ended(reader, id_))
                    told.append((time.perf_counter() - began) * 1000)
                    reader.messages.clear()
    return took, told, health


def has_ended(reader, session_id: str) -> bool:
    return any(e["session_id"] == session_id for e in reader.events("experience.session_end"))


async def started(http, model: str, state: str) -> str:
    """A session that has got so far; its id."""
    answer = await http.post("/generate", json={"model": model, "prompt": "on"})
    assert answer.status_code == 202, answer.text
    session_id = answer.json()["session_id"]
    while True:
        running = (await http.get("/stats")).json()["sessions"]["running"]
        found = [s["state"] for s in running if s["session_id"] == session_id]
        if found == [state]:
            return session_id
        assert found, f"the session ended before it was {state}"
        await trio.sleep(0.005)
