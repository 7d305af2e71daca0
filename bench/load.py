"""The 60 Hz clock under load: 100 streams of 100 tok/s from another process, 50 clients on `energy.*`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import attrs
import trio

from bench.engine import cpu_s, serving
from bench.flood import MODEL, flooding
from bench.table import Row, at_least, at_most, percentile
from bench.watchers import Watch, Watched, watchers

STREAMS = 100
TPS = 100
CLIENTS = 50
SECONDS = 10
WARM_UP_S = 3
TICK_HZ = 60
TICK_MS = 1000 / TICK_HZ


@contextmanager
def flooded(tps: float, **env: str):
    """An engine whose only runtime is a flood of `tps` per stream."""
    with flooding(tps) as url:
        own = {
            "WF_OLLAMA__ENABLED": "true",
            "WF_OLLAMA__URL": url,
            "WF_EMBEDDED__ENABLED": "false",
            "WF_LIMITS__STREAMS_MAX": "256",
        }
        with serving(**own | env) as engine:
            yield engine


@asynccontextmanager
async def streams(engine, count: int) -> AsyncIterator[list[str]]:
    """So many sessions on the flood, all streaming; their ids."""
    async with engine.async_client() as http:
        ids = []
        for _ in range(count):
            answer = await http.post("/generate", json={"model": MODEL, "prompt": "on"})
            assert answer.status_code == 202, answer.text
            ids.append(answer.json()["session_id"])
        while not all(s["state"] == "streaming" for s in await running(http)):  # noqa: ASYNC110  # only asking tells
            await trio.sleep(0.1)
        yield ids


async def running(http) -> list[dict]:
    return (await http.get("/stats")).json()["sessions"]["running"]


async def tokens_so_far(http) -> int:
    return sum(session["tokens"] for session in await running(http))


@attrs.frozen
class Load:
    """What the clients saw, what one more client saw of the tokens of one stream; the engine's share of a core, its
    tokens per second, and the lateness of a bare 60 Hz loop meanwhile."""

    seen: Watched
    tokens: Watched
    cores: float
    tokens_per_s: float
    bare_ms: list[float]


async def loaded(tps: float = TPS, count: int = STREAMS, clients: int = CLIENTS) -> Load:
    bare_ms: list[float] = []
    with flooded(tps) as engine:
        async with streams(engine, count) as ids, engine.async_client() as http:
            port = engine.port("ws")
            tokens_of_one = Watch(port, 1, SECONDS, ("experience.token",), ids[-1], stamps=True)
            with watchers(Watch(port, clients, SECONDS)) as watch, watchers(tokens_of_one) as watch_tokens:
                await trio.sleep(WARM_UP_S)
                used, tokens, began = cpu_s(engine), await tokens_so_far(http), time.perf_counter()
                seen: dict[str, Watched] = {}
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(bare_loop, bare_ms)
                    nursery.start_soon(collect, watch, seen, "crowd")
                    nursery.start_soon(collect, watch_tokens, seen, "tokens")
                took = time.perf_counter() - began
                cores = (cpu_s(engine) - used) / took
                rate = (await tokens_so_far(http) - tokens) / took
    return Load(seen["crowd"], seen["tokens"], cores, rate, bare_ms)


async def collect(watch: Callable[[], Watched], seen: dict[str, Watched], name: str) -> None:
    seen[name] = await trio.to_thread.run_sync(watch)


async def bare_loop(late_ms: list[float]) -> None:
    """How late trio wakes a task that does nothing else, in another process on the same machine."""
    began = trio.current_time()
    for tick in range(1, SECONDS * TICK_HZ):
        await trio.sleep_until(began + tick / TICK_HZ)
        late_ms.append((trio.current_time() - began - tick / TICK_HZ) * 1000)


def missed_percent(seen: Watched) -> float:
    first, *_, last = seen.numbers
    return 100 * (1 - len(seen.numbers) / (last - first + 1))


def measure() -> list[Row]:
    quarter, load = trio.run(loaded, TPS / 4), trio.run(loaded)
    alone = trio.run(partial(loaded, 50, 1, 1)).tokens.ages_ms
    return [
        *tick_rows(f"{STREAMS} × {TPS // 4} tok/s", quarter),
        *tick_rows(f"{STREAMS} × {TPS} tok/s", load),
        at_least("tokens per second", load.tokens_per_s, "tok/s", 0.99 * STREAMS * TPS),
        at_most("CPU", load.cores, "cores", 0.6),
        Row("CPU per token, frames and clients included", load.cores / load.tokens_per_s * 1e6, "µs"),
        *age_rows(f"{STREAMS} × {TPS} tok/s", load.tokens.ages_ms),
        *age_rows("1 × 50 tok/s", alone),
    ]


def tick_rows(what: str, load: Load) -> list[Row]:
    late, bare = load.seen.lateness_ms, load.bare_ms
    limit = {p: {"limit": percentile(bare, p), "limit_is": "a bare 60 Hz loop beside it"} for p in (50, 99)}
    return [
        Row(f"{what}: tick lateness p50", percentile(late, 50), "ms", **limit[50]),
        at_most(f"{what}: tick lateness p99", percentile(late, 99), "ms", 3, **limit[99]),
        at_most(f"{what}: frames missed", missed_percent(load.seen), "%", 0.5),
        Row(f"{what}: composing one frame p99", percentile(load.seen.frame_ms, 99), "ms", TICK_MS, "a tick"),
    ]


def age_rows(what: str, ages_ms: list[float]) -> list[Row]:
    tick = {"limit": TICK_MS, "limit_is": "a tick"}
    return [
        at_most(f"{what}: token to client p{p}", percentile(ages_ms, p), "ms", most, **tick)
        for p, most in ((50, 17), (99, 25))
    ]
