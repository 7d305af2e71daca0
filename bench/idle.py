"""What an engine costs while nothing happens, and after work."""

from __future__ import annotations

import time

import trio

from bench.engine import cpu_s, import_rss_bytes, rss_bytes, serving
from bench.table import Row
from tests.system.frames import frames_of, start_session

SECONDS = 10
MB = 1e6


def measure() -> list[Row]:
    return trio.run(idle)


async def idle() -> list[Row]:
    bare = import_rss_bytes() / MB
    with serving() as engine:
        rss = rss_bytes(engine) / MB
        alone = await cpu_percent(engine)
        async with frames_of(engine) as reader, engine.async_client() as http:
            watched = await cpu_percent(engine)
            await start_session(http, "embedded/mixed")
            await reader.event("experience.token")
            busy = await cpu_percent(engine)
            after = rss_bytes(engine) / MB
    return [
        Row("CPU, idle", alone, "% of a core"),
        Row("CPU, idle, one client", watched, "% of a core"),
        Row("CPU, embedded/mixed at 30 tok/s, one client", busy, "% of a core"),
        Row("memory when ready", rss, "MB", bare, "import of the same libraries"),
        Row("memory during a generation", after, "MB", bare, "import of the same libraries"),
    ]


async def cpu_percent(engine) -> float:
    began, used = time.perf_counter(), cpu_s(engine)
    await trio.sleep(SECONDS)
    return 100 * (cpu_s(engine) - used) / (time.perf_counter() - began)
