"""Traces that are hard on a pool of models, and the schedulers that replay them: ours (the real pool), the same without
its cool-down (plain LRU), and Ollama's own as its source describes it. SYNTHETIC: made-up requests in virtual time.

Ollama's (server/sched.go): requests that need a load are taken one at a time and in order, the one in front holds up
all behind it; where there is no room the idle model with the shortest keep-alive goes, which is the first by name as
long as all have the same; keep-alives (5 minutes) are longer than the pauses in these traces, so none runs out.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs
import trio
from trio.testing import MockClock

from engine.domain.models import ModelState
from policies.admission import PoolCaps
from tests.actors.pool_rig import SizedRuntime, rig

GB = 10**9
LOAD_S_PER_GB = 1.0  # a disk that reads 1 GB/s
COOLDOWN_S = 30.0
PLACES = 3  # models in memory, Ollama's default


@attrs.frozen
class Ask:
    at_s: float
    model: str
    for_s: float


@attrs.frozen
class Trace:
    name: str
    sizes: Mapping[str, int]
    asks: Sequence[Ask]


@attrs.define
class Tally:
    """What one scheduler made of one trace. `thrashes`: loads of a model that was evicted less than 30 s before.
    `waits_s` are from asking to having the model, in the order they were served."""

    loads: int = 0
    evictions: int = 0
    thrashes: int = 0
    waits_s: list[float] = attrs.field(factory=list)
    took_s: float = 0.0
    _evicted_s: dict[str, float] = attrs.field(factory=dict)

    def loaded(self, model: str) -> None:
        self.loads += 1
        self.thrashes += trio.current_time() - self._evicted_s.get(model, float("-inf")) < COOLDOWN_S

    def evicted(self, model: str) -> None:
        self.evictions += 1
        self._evicted_s[model] = trio.current_time()


def traces() -> list[Trace]:
    """The same on every run."""
    even = {f"m{n}": 4 * GB for n in range(4)}
    around = [Ask(2.0 * n, f"m{n % 4}", 1.0) for n in range(200)]
    chance = random.Random(7)
    many = {f"m{n}": (2 + n % 4) * GB for n in range(12)}
    names = sorted(many)
    weights = [1 / (1 + n) for n in range(len(names))]
    at_s, popular = 0.0, []
    for _ in range(300):
        at_s += chance.expovariate(1 / 2.5)
        popular.append(Ask(at_s, chance.choices(names, weights)[0], chance.uniform(0.5, 4)))
    hot = [Ask(3.0 * n, "a-hot", 1.0) for n in range(150)]
    scan = [Ask(9.0 * n + 1, f"scan{n % 10}", 1.0) for n in range(50)]
    scanned = {"a-hot": 6 * GB, **{f"scan{n}": 3 * GB for n in range(10)}}
    return [
        Trace("four in turn", even, around),
        Trace("a few popular ones", many, popular),
        Trace("a scan beside a hot one", scanned, sorted([*hot, *scan], key=lambda ask: ask.at_s)),
    ]


def replayed(trace: Trace, scheduler: Callable[[Trace], Awaitable[Tally]]) -> Tally:
    return trio.run(scheduler, trace, clock=MockClock(autojump_threshold=0))


async def pool(trace: Trace) -> Tally:
    """Ours, as it is."""
    return await _through_the_pool(trace, round(COOLDOWN_S * 1e6))


async def thrashing(trace: Trace) -> Tally:
    """Ours with `pool.cooldown_against: thrashing`."""
    return await _through_the_pool(trace, round(COOLDOWN_S * 1e6), spares_all=False)


async def lru(trace: Trace) -> Tally:
    """The same without a cool-down: the least recently used goes whenever there is no room."""
    return await _through_the_pool(trace, 0)


async def _through_the_pool(trace: Trace, cooldown_us: int, *, spares_all: bool = True) -> Tally:
    tally = Tally()
    caps = PoolCaps(64, 4096, PLACES, PLACES)
    async with rig(
        trace.sizes,
        streams=caps.streams_max,
        queued=caps.queued_max,
        parallel=PLACES,
        loaded=PLACES,
        cooldown_us=cooldown_us,
        spares_all=spares_all,
        make=lambda *args, **more: _Counted(tally, *args, **more),
    ) as p:

        async def ask(asked: Ask) -> None:
            began = trio.current_time()
            async with p.handle.lease(p.ref(asked.model), _nobody):
                tally.waits_s.append(trio.current_time() - began)
                await trio.sleep(asked.for_s)

        tally.took_s = await _all(trace, ask)
    return tally


class _Counted(SizedRuntime):
    """Loads take the time of their bytes, one at a time as in Ollama."""

    def __init__(self, tally: Tally, *args, **more):
        super().__init__(*args, **more)
        self.tally, self.disk = tally, trio.Lock()

    async def load(self, model):
        async with self.disk:
            self.tally.loaded(model)
            self.load_s = self.sizes[model] / GB * LOAD_S_PER_GB
            return await super().load(model)

    async def unload(self, model):
        self.tally.evicted(model)
        return await super().unload(model)


async def ollama(trace: Trace) -> Tally:
    """Ollama's own scheduling."""
    tally = Tally()
    in_use: dict[str, int] = {}  # the loaded models, by the requests that use them
    front = trio.Lock()  # first come, first served
    changed = [trio.Event()]

    def wake() -> None:
        changed[0].set()
        changed[0] = trio.Event()

    async def ask(asked: Ask) -> None:
        began = trio.current_time()
        async with front:
            while asked.model not in in_use:
                if len(in_use) < PLACES:
                    tally.loaded(asked.model)
                    await trio.sleep(trace.sizes[asked.model] / GB * LOAD_S_PER_GB)
                    in_use[asked.model] = 0
                    continue
                idle = sorted(model for model, uses in in_use.items() if not uses)
                if idle:
                    del in_use[idle[0]]
                    tally.evicted(idle[0])
                else:
                    await changed[0].wait()
            in_use[asked.model] += 1
        tally.waits_s.append(trio.current_time() - began)
        await trio.sleep(asked.for_s)
        in_use[asked.model] -= 1
        wake()

    tally.took_s = await _all(trace, ask)
    return tally


async def _all(trace: Trace, ask: Callable[[Ask], Awaitable[None]]) -> float:
    """Every request at its time; the seconds until the last one had its answer."""
    began = trio.current_time()

    async def later(asked: Ask) -> None:
        await trio.sleep_until(began + asked.at_s)
        await ask(asked)

    async with trio.open_nursery() as nursery:
        for asked in trace.asks:
            nursery.start_soon(later, asked)
    return trio.current_time() - began


async def _nobody(state: ModelState, position: int | None, reason: str | None) -> None:
    await trio.lowlevel.checkpoint()
