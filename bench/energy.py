"""What measuring one token costs, against the same arithmetic written out in a loop.

And the check that makes the numbers worth anything: whether the energies on the wire follow from what was published.
"""

from __future__ import annotations

import math
import time
from collections import deque

import trio

from bench.engine import serving
from bench.table import Row, at_most, median
from engine.domain.energy import EnergyMeter, EnergyParams
from engine.domain.generation import Token, TokenKind, TopEntry
from engine.domain.models import Tier
from policies.load import load_policies
from tests.system.frames import frames_of, rebuilt, start_session

TOKENS = 20_000
REPEATS = 5
GAP_US = 33_000
TOLERANCE = 1e-9


def measure() -> list[Row]:
    params = load_policies().energy.params(Tier.MID)
    tokens = [token(n) for n in range(TOKENS)]
    pairs = [(metered_us(params, tokens), written_out_us(params, tokens)) for _ in range(REPEATS)]
    metered, plain = (median(times) for times in zip(*pairs, strict=True))
    worst = trio.run(worst_difference)
    return [
        Row("EnergyMeter.token", metered, "µs", plain, "the arithmetic alone"),
        at_most("wire against recomputed energy, worst", worst, "", TOLERANCE),
    ]


def token(n: int) -> Token:
    top = tuple(TopEntry(f" word{rank}", -0.3 - rank - 0.01 * (n % 7)) for rank in range(20))
    gap_us = GAP_US + n % 5 * 1000
    return Token(" word0", TokenKind.ANSWER, n, 6 * n, n * GAP_US, gap_us if n else None, top[0].logprob, top)


def metered_us(params: EnergyParams, tokens: list[Token]) -> float:
    meter, began = EnergyMeter.started(params, 0), time.perf_counter()
    for item in tokens:
        meter.token(item)
    return (time.perf_counter() - began) / len(tokens) * 1e6


def written_out_us(params: EnergyParams, tokens: list[Token]) -> float:
    """E of every token and nothing else: no state to read, no phases, no record of what was found."""
    window: deque[int] = deque()
    energy, last_us, began = 0.0, 0, time.perf_counter()
    for item in tokens:
        window.append(item.t_us)
        while window[0] < item.t_us - params.window_ms * 1000:
            window.popleft()
        span_us = max(1000, window[-1] - window[0])
        v = min(1.0, (len(window) - 1) * 1e6 / span_us / params.tps_max)
        delta_ms = (item.delta_us or 0) / 1000
        f = 1.0 - min(1.0, max(0.0, (delta_ms - params.stall_ms) / (params.ceil_ms - params.stall_ms)))
        masses = [math.exp(entry.logprob) for entry in item.top[: params.top_k]]
        mass = sum(masses)
        entropy = -sum(m / mass * math.log(m / mass) for m in masses)
        c = min(1.0, mass) * (1.0 - entropy / math.log(len(masses)))
        base = params.weight_velocity * v + params.weight_certainty * c * f + params.weight_flow * f
        silence_ms = max(0.0, (item.t_us - last_us) / 1000 - params.stall_ms)
        energy = params.alpha * base + (1 - params.alpha) * energy * 0.5 ** (silence_ms / params.half_life_ms)
        last_us = item.t_us
    return (time.perf_counter() - began) / len(tokens) * 1e6


async def worst_difference() -> float:
    """Over one answer of a real engine: the largest distance between an energy on the wire and ours."""
    with serving(WF_EMBEDDED__PACE_TPS="200") as engine:
        async with frames_of(engine, top=True) as reader, engine.async_client() as http:
            await start_session(http, "embedded/mixed", max_tokens=500)
            await reader.event("experience.session_end")
    start = reader.events("experience.session_start")[0]["payload"]
    meter = EnergyMeter.started(EnergyParams(**start["energy_params"]), start["start_us"])
    items = [item for event in reader.events("experience.token") for item in event["payload"]["tokens"]]
    return max(abs(meter.token(rebuilt(item)).energy - item["energy"]) for item in items)
