"""What one frame to one more client costs the engine, and how many clients get a steady 60 Hz.

The limit is a process that only writes: the same bytes, at the same pace, to the same clients. Clients that never read
must not be felt by those that do.
"""

from __future__ import annotations

import trio

from bench.bare import sending
from bench.engine import cpu_of, serving
from bench.table import Row, at_least, at_most, at_most_ratio, median, percentile
from bench.watchers import Watch, Watched, watchers
from tests.system.frames import start_session

FEW, MANY = 4, 104  # the slope between them leaves out what does not depend on clients
SIZE_BYTES = 750  # about what a frame with one stream has
REPEATS = 3
SECONDS = 5
CROWDS = (100, 200, 400, 600, 800)
CROWD_S = 5
RATE_HZ_MIN = 59.0
STEADY_PERCENT = 1.0  # of frames that may come more than 25 ms after the one before
READERS, STUCK = 50, 20
FILL_S = 10  # what the kernel takes for a client that does not read is full by then
MODEL = "synthetic/steady"


def measure() -> list[Row]:
    delivery_us, bare_us, size_bytes = trio.run(delivery)
    steady = trio.run(largest_crowd)
    alone, beside_stuck = trio.run(stuck)
    what = f"CPU per frame of {size_bytes} bytes and client"
    return [
        at_most_ratio(what, delivery_us, "µs", bare_us, "a process that only writes", 1.5),
        at_least("clients at a steady 60 Hz", steady, "", 400),
        at_most(
            f"frame gap p99 of {READERS} clients beside {STUCK} that never read",
            percentile(beside_stuck.gaps_ms, 99),
            "ms",
            25,
            limit=percentile(alone.gaps_ms, 99),
            limit_is="without them",
        ),
    ]


async def delivery() -> tuple[float, float, int]:
    """CPU per delivery of an engine and of the bare process, both at work at the same time, and the size of a frame."""
    ours, theirs, size_bytes = [], [], 0
    with serving() as engine, sending(SIZE_BYTES) as bare:
        async with engine.async_client() as http:
            await start_session(http, MODEL)
            for _ in range(REPEATS):
                spent: dict[tuple[int, int], tuple[Watched, float]] = {}
                for count in (FEW, MANY):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(watched, engine.process.pid, engine.port("ws"), count, spent)
                        nursery.start_soon(watched, bare.process.pid, bare.port, count, spent)
                for pid, found in ((engine.process.pid, ours), (bare.process.pid, theirs)):
                    found.append(slope_us(spent[pid, FEW], spent[pid, MANY]))
                seen = spent[engine.process.pid, MANY][0]
                size_bytes = seen.bytes_in // sum(seen.frames)
    return median(ours), median(theirs), size_bytes


def slope_us(few: tuple[Watched, float], many: tuple[Watched, float]) -> float:
    return (many[1] - few[1]) / (sum(many[0].frames) - sum(few[0].frames)) * 1e6


async def watched(pid: int, port: int, count: int, spent: dict[tuple[int, int], tuple[Watched, float]]) -> None:
    """Into `spent`: what `count` clients saw in SECONDS, and the processor seconds it took the process."""
    with watchers(Watch(port, count, SECONDS)) as watch:
        used = cpu_of(pid)
        seen = await trio.to_thread.run_sync(watch)
        spent[pid, count] = seen, cpu_of(pid) - used


async def largest_crowd() -> int:
    steady = 0
    with serving() as engine:
        async with engine.async_client() as http:
            await start_session(http, MODEL)
            for count in CROWDS:
                with watchers(Watch(engine.port("ws"), count, CROWD_S)) as watch:
                    await trio.sleep(1)
                    seen = await trio.to_thread.run_sync(watch)
                late_percent = 100 * seen.late_gaps / max(1, sum(seen.frames))
                rate_hz = sum(seen.frames) / count / CROWD_S
                print(f"  {count} clients: {rate_hz:.1f} Hz each, {late_percent:.2f} % of frames late")
                if late_percent <= STEADY_PERCENT and rate_hz >= RATE_HZ_MIN:
                    steady = count
    return steady


async def stuck() -> tuple[Watched, Watched]:
    with serving(WF_WS__STALL_S="300", WF_WS__PONG_TIMEOUT_S="300") as engine:
        async with engine.async_client() as http:
            await start_session(http, MODEL)
            seen = []
            for count in (0, STUCK):
                with watchers(Watch(engine.port("ws"), READERS, SECONDS, stuck=count)) as watch:
                    await trio.sleep(FILL_S if count else 1)
                    seen.append(await trio.to_thread.run_sync(watch))
    return seen[0], seen[1]
