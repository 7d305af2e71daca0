"""What an engine costs while nothing happens, and after work."""

from __future__ import annotations

import time

import trio

from bench.engine import cpu_s, import_rss_bytes, rss_bytes, serving
from bench.table import Row, at_most
from bench.watchers import Watch, watchers
from tests.system.frames import frames_of, start_session
from transport.runtimes.embedded.runtime import WEIGHTS_DIR

SECONDS = 10
SETTLE_S = 3
CROWD = 100
MB = 1e6
WEIGHTS_MB = (WEIGHTS_DIR / "mixed.gguf").stat().st_size * 2 / MB  # kept as float32, twice the size of the file


def measure() -> list[Row]:
    return trio.run(idle)


async def idle() -> list[Row]:
    bare = {"limit": import_rss_bytes() / MB, "limit_is": "import of the same libraries"}
    with serving() as engine:
        await trio.sleep(SETTLE_S)
        rss = rss_bytes(engine) / MB
        alone = await cpu_percent(engine)
        async with frames_of(engine) as reader, engine.async_client() as http:
            watched = await cpu_percent(engine)
            await start_session(http, "embedded/mixed")
            await reader.event("experience.token")
            busy = await cpu_percent(engine)
            during = rss_bytes(engine) / MB
            with watchers(Watch(engine.port("ws"), CROWD, SETTLE_S, ("*",))) as watch:
                await trio.to_thread.run_sync(watch)
                crowded = rss_bytes(engine) / MB
    return [
        at_most("CPU, idle", alone, "% of a core", 0.2),
        at_most("CPU, idle, one client", watched, "% of a core", 2),
        Row("CPU, embedded/mixed at 30 tok/s, one client", busy, "% of a core"),
        at_most("memory when ready", rss, "MB", 90, **bare),
        at_most("memory during a generation, weights included", during, "MB", 90 + WEIGHTS_MB, **bare),
        at_most(f"… and {CROWD} clients", crowded, "MB", 90 + WEIGHTS_MB, **bare),
    ]


async def cpu_percent(engine) -> float:
    began, used = time.perf_counter(), cpu_s(engine)
    await trio.sleep(SECONDS)
    return 100 * (cpu_s(engine) - used) / (time.perf_counter() - began)
