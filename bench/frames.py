"""The 60 Hz clock as a client on the WebSocket sees it during a generation, against a bare 60 Hz loop."""

from __future__ import annotations

import time

import trio

from bench.engine import serving
from bench.table import Row, at_least, percentile
from tests.system.frames import FrameReader, frames_of, start_session

TICK_HZ = 60
SECONDS = 20


def measure() -> list[Row]:
    bare = trio.run(bare_lateness_ms)
    rows = []
    for model in ("embedded/mixed", "synthetic/bursty"):
        frames, hz = trio.run(watched, model)
        perf = [frame["perf"] for frame in frames]
        lateness = [p["lateness_ms"] for p in perf]
        numbers = [frame["frame"] for frame in frames]
        rows += [
            at_least(f"{model}: frames received", hz, "Hz", 59.5, limit=TICK_HZ, limit_is="the clock's rate"),
            *(
                Row(f"{model}: tick lateness p{p}", percentile(lateness, p), "ms", percentile(bare, p), "bare loop")
                for p in (50, 99)
            ),
            Row(f"{model}: frames missed", numbers[-1] - numbers[0] + 1 - len(numbers), f"of {len(numbers)}"),
            Row(
                f"{model}: composing p99", percentile([p["frame_ms"] for p in perf], 99), "ms", 1000 / TICK_HZ, "a tick"
            ),
        ]
    return rows


async def watched(model: str) -> tuple[list[dict], float]:
    """The frames of SECONDS within one generation, and the rate at which they arrived."""
    with serving() as engine:
        async with frames_of(engine) as reader, engine.async_client() as http:
            await start_session(http, model)
            await reader.event("experience.token")
            first, began = composed(reader), time.perf_counter()
            await trio.sleep(SECONDS)
            last, seconds = composed(reader), time.perf_counter() - began
        return last[len(first) :], (len(last) - len(first)) / seconds


def composed(reader: FrameReader) -> list[dict]:
    """Messages that are frames; replies have no number."""
    return [message for message in reader.messages if message["frame"] is not None]


async def bare_lateness_ms() -> list[float]:
    """How late trio itself wakes a task that does nothing else."""
    began, late = trio.current_time(), []
    for tick in range(1, SECONDS * TICK_HZ // 2):
        await trio.sleep_until(began + tick / TICK_HZ)
        late.append((trio.current_time() - began - tick / TICK_HZ) * 1000)
    return late
