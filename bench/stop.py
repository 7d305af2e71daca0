"""How fast a running session stops, against the quickest answer the engine gives at all."""

from __future__ import annotations

import time

import trio

from bench.engine import serving
from bench.table import Row, at_most, percentile
from tests.system.frames import frames_of, start_session

STOPS = 25
GOAL_MS = 50.0


def measure() -> list[Row]:
    rows = []
    for model in ("embedded/mixed", "synthetic/steady"):
        told, upstream, health = trio.run(stops, model)
        floor = {"limit": percentile(health, 50), "limit_is": "GET /health"}
        rows += [
            at_most(f"{model}: POST /stop to session_end p{p}", percentile(told, p), "ms", GOAL_MS, **floor)
            for p in (50, 99)
        ]
        rows.append(Row(f"{model}: upstream closed p99", percentile(upstream, 99), "ms"))
    return rows


async def stops(model: str) -> tuple[list[float], list[float], list[float]]:
    """In ms: from the request to the event on the WebSocket, to the closed upstream as the engine reports it, and of a
    plain request in between."""
    told, upstream, health = [], [], []
    with serving() as engine:
        async with frames_of(engine) as reader, engine.async_client() as http:
            for _ in range(STOPS):
                session_id = await start_session(http, model)
                await reader.until(lambda id_=session_id: reader.text(id_))
                began = time.perf_counter()
                await http.get("/health")
                health.append((time.perf_counter() - began) * 1000)
                began = time.perf_counter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ended, reader, session_id, began, told)
                    report = (await http.post("/stop", json={"session_id": session_id})).json()
                upstream.append(report["stop_latency_ms"])
    return told, upstream, health


async def ended(reader, session_id: str, began: float, told: list[float]) -> None:
    await reader.until(lambda: [e for e in reader.events("experience.session_end") if e["session_id"] == session_id])
    told.append((time.perf_counter() - began) * 1000)
