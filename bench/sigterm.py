"""From SIGTERM to the end of the process, with streams running, against an engine at rest."""

from __future__ import annotations

import signal
import time

import trio

from bench.engine import serving
from bench.table import Row, at_most, median
from tests.system.frames import frames_of, start_session
from tests.system.process import EngineProcess

REPEATS = 5
STREAMS = 4
GOAL_MS = 5000


def measure() -> list[Row]:
    pairs = [(trio.run(busy_exit_ms), trio.run(idle_exit_ms)) for _ in range(REPEATS)]
    busy, idle = zip(*pairs, strict=True)
    limit = {"limit": median(idle), "limit_is": "nothing running"}
    return [
        at_most(f"exit with {STREAMS} streams and a client", median(busy), "ms", GOAL_MS, **limit),
        at_most("the slowest of them", max(busy), "ms", GOAL_MS, limit=max(idle), limit_is="nothing running"),
    ]


async def busy_exit_ms() -> float:
    took: list[float] = []
    with serving() as engine:
        async with trio.open_nursery() as nursery, frames_of(engine) as reader, engine.async_client() as http:
            ids = {await start_session(http) for _ in range(STREAMS)}
            await reader.until(lambda: {e["session_id"] for e in reader.events("experience.token")} >= ids)
            nursery.start_soon(ended_ms, engine, took)
            await reader.until_closed()
    return took[0]


async def idle_exit_ms() -> float:
    took: list[float] = []
    with serving() as engine, engine.client() as http:
        http.get("/health", headers={"connection": "close"})
        await ended_ms(engine, took)
    return took[0]


async def ended_ms(engine: EngineProcess, took: list[float]) -> None:
    began = time.perf_counter()
    engine.signal(signal.SIGTERM)
    assert await trio.to_thread.run_sync(engine.wait_exit) == 0
    took.append((time.perf_counter() - began) * 1000)
