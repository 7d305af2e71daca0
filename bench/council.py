"""A council of six on the 60 Hz clock: frames, composing, processor time, the maths of one frame, and the choice.

The engine's own actors with models that speak at a fixed pace (`council_engine.py`), without sockets; the maths of a
frame and the choice also alone, in the bench itself.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import attrs
import numpy as np
import trio

from bench.council_engine import MODELS, TPS, Job, Ran, engine_for, long_answers, script
from bench.table import Row, at_least, at_most, at_most_ratio, median, percentile
from engine.domain.energy import EnergyMeter, EnergyParams, EnergySample
from engine.domain.ensemble import EnsembleMeter, EnsembleParams, EnsembleStep
from engine.domain.generation import Token, TokenKind
from engine.domain.models import Tier
from engine.domain.synthesis import CouncilMethod, choose
from policies.load import load_policies

TICK_HZ = 60
TICK_MS = 1000 / TICK_HZ
SIX = len(MODELS)
SECONDS = 8.0
CHOOSING_S = 12.0
REPEATS = 3
STEPS = 3_000
GAP_US = 1_000_000 // TPS
COMPOSE_MS = 1.0
LATE_MS = 3.0
MISSED_PERCENT = 0.5
MATHS_MS = 0.3
CPU_RATIO = 1.2
TOLERANCE = 1e-9
WHAT = f"{SIX} × {TPS} tok/s"
JOBS = {
    "pacing": Job("pacing", SIX, SECONDS),
    "one": Job("sessions", 1, SECONDS),
    "council": Job("council", SIX, SECONDS),
    "sessions": Job("sessions", SIX, SECONDS),
}


def measure() -> list[Row]:
    runs: dict[str, list[tuple[Ran, list[float]]]] = {name: [] for name in JOBS}
    for _ in range(REPEATS):  # in turn, so that all see the same machine
        for name, job in JOBS.items():
            runs[name].append(trio.run(beside_bare_loop, job))
    councils = runs["council"]
    return [
        *clock_rows([ran for ran, _ in councils], [late for _, bare in councils for late in bare]),
        *composing_rows([ran for ran, _ in councils], [ran for ran, _ in runs["sessions"]]),
        *cpu_rows({name: [ran for ran, _ in found] for name, found in runs.items()}),
        *maths_rows(least([ran.steps_ms for ran, _ in councils])),
        *choice_rows(),
    ]


async def beside_bare_loop(job: Job) -> tuple[Ran, list[float]]:
    """What the engine did, and how late (ms) trio woke a task that does nothing else beside it."""
    late_ms: list[float] = []
    with engine_for(job) as go:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bare_loop, late_ms)
            ran = await trio.to_thread.run_sync(go)
            nursery.cancel_scope.cancel()
    return ran, late_ms


async def bare_loop(late_ms: list[float]) -> None:
    began = trio.current_time()
    for tick in itertools.count(1):
        await trio.sleep_until(began + tick / TICK_HZ)
        late_ms.append((trio.current_time() - began - tick / TICK_HZ) * 1000)


# ── the clock ──


def clock_rows(runs: Sequence[Ran], bare: list[float]) -> list[Row]:
    """Of all runs together, but the rate: that is the best of them, since another process can only lower it."""
    late = [frame[1] for ran in runs for frame in ran.frames]
    rate = max(len(ran.frames) / ran.seconds for ran in runs)
    windows = max(ran.windows / ran.seconds for ran in runs)
    missed = 100 * sum(ran.missed for ran in runs) / sum(ran.missed + len(ran.frames) for ran in runs)
    limit = {p: {"limit": percentile(bare, p), "limit_is": "a bare 60 Hz loop beside it"} for p in (50, 99)}
    return [
        at_least(f"council, {WHAT}: frames received", rate, "Hz", 59.5, limit=TICK_HZ, limit_is="the clock's rate"),
        Row("… with a new window", windows, "Hz", TICK_HZ, "the clock's rate"),
        Row("… tick lateness p50", percentile(late, 50), "ms", **limit[50]),
        at_most("… tick lateness p99", percentile(late, 99), "ms", LATE_MS, **limit[99]),
        at_most("… frames missed", missed, "%", MISSED_PERCENT),
    ]


def composing_rows(councils: Sequence[Ran], sessions: Sequence[Ran]) -> list[Row]:
    took, plain = (least([[frame[2] for frame in ran.frames] for ran in runs]) for runs in (councils, sessions))
    limit = {p: {"limit": percentile(plain, p), "limit_is": "a frame of 6 sessions"} for p in (50, 95)}
    return [
        Row("… composing one frame p50", percentile(took, 50), "ms", **limit[50]),
        at_most("… composing one frame p95", percentile(took, 95), "ms", COMPOSE_MS, **limit[95]),
    ]


def cpu_rows(runs: dict[str, list[Ran]]) -> list[Row]:
    """The least of each arrangement: what else runs on the machine only adds."""
    used = {name: min(ran.cores for ran in found) * 100 for name, found in runs.items()}
    per_token = {name: min(ran.cpu_s / ran.tokens for ran in found) * 1e6 for name, found in runs.items()}
    council, unit = used["council"], "% of a core"
    return [
        at_most_ratio(f"CPU, council, {WHAT}", council, unit, SIX * used["one"], "6 times one stream", CPU_RATIO),
        Row("… beside 6 sessions in one engine", council, unit, used["sessions"], "6 sessions"),
        Row(f"CPU, 6 sessions, {WHAT}", used["sessions"], unit, SIX * used["one"], "6 times one stream"),
        Row("CPU per token, council, frames included", per_token["council"], "µs", per_token["pacing"], "the pacing"),
    ]


def least(runs: Sequence[list[float]]) -> list[float]:
    """The run with the lowest p95: what else runs on the machine only adds."""
    return min(runs, key=lambda run: percentile(run, 95))


# ── the maths of one frame ──


@attrs.frozen
class Timed:
    """ms of each step, in order: with six new tokens, taking them not counted, the taking, and with nothing new."""

    new: list[float]
    take: list[float]
    unchanged: list[float]


def maths_rows(in_engine: list[float]) -> list[Row]:
    """`in_engine`: ms of the steps of running councils, which find the caches cold; the others follow each other."""
    policies = load_policies()
    ensemble, energy = policies.ensemble.params(), policies.energy.params(Tier.HIGH)
    found, worst = [], 0.0
    for like in (False, True):
        samples = samples_of(energy, like)
        timed = min((stepped(ensemble, samples) for _ in range(REPEATS)), key=lambda each: percentile(each.new, 95))
        took, differ = zip(*(written_out(ensemble, samples) for _ in range(REPEATS)), strict=True)
        plain, worst = least(took), max(worst, *differ)
        found.append((timed, plain))
    (apart, entropies), (together, entropies_together) = found
    return [
        *step_rows("EnsembleMeter.step in the engine, new windows", in_engine, apart.new, "one after the other"),
        *step_rows("… one after the other, new windows", apart.new, entropies, "its entropies alone"),
        *step_rows("… the same in resonance", together.new, entropies_together, "its entropies alone"),
        *step_rows("… nothing new", apart.unchanged, apart.new, "with a new window"),
        Row("EnsembleMeter.take, six tokens, p50", median(apart.take), "ms"),
        at_most("disagreement against recomputed, worst", worst, "", TOLERANCE),
    ]


def step_rows(what: str, took: list[float], limit: list[float], limit_is: str) -> list[Row]:
    given = {p: {"limit": percentile(limit, p), "limit_is": limit_is} for p in (50, 95, 99)}
    return [
        Row(f"{what}: p50", percentile(took, 50), "ms", **given[50]),
        at_most(f"{what}: p95", percentile(took, 95), "ms", MATHS_MS, **given[95]),
        Row(f"{what}: p99", percentile(took, 99), "ms", **given[99]),
    ]


def samples_of(params: EnergyParams, like: bool) -> list[list[EnergySample]]:
    """By frame, one token of each member, all in one rhythm. With `like` they say the same, and so come to resonance;
    else two thirds of the candidates are a member's own."""
    scripts = [script("a" if like else model) for model in MODELS]
    meters = [EnergyMeter.started(params, 0) for _ in MODELS]
    offsets = list(itertools.accumulate(GAP_US + (frame * 37 % 11 - 5) * 100 for frame in range(STEPS)))
    return [
        [
            meter.token(token(scripts[member][frame % len(scripts[member])], frame, offsets, member))
            for member, meter in enumerate(meters)
        ]
        for frame in range(STEPS)
    ]


def token(said, frame: int, offsets: list[int], member: int) -> Token:
    delta_us = offsets[frame] - offsets[frame - 1] if frame else None
    t_us = offsets[frame] + 300 * member
    return Token(said.token, TokenKind.ANSWER, frame, 6 * frame, t_us, delta_us, said.logprob, said.top)


def stepped(params: EnsembleParams, frames: list[list[EnergySample]]) -> Timed:
    meter, timed = EnsembleMeter(params), Timed([], [], [])
    energies = dict.fromkeys(MODELS, 0.8)
    for model in MODELS:
        meter.join(model)
    for samples in frames:
        now_us = samples[-1].token.t_us + 1000
        began = time.perf_counter_ns()
        for model, sample in zip(MODELS, samples, strict=True):
            meter.take(model, (sample,))
        taken = time.perf_counter_ns()
        meter.step(now_us, energies)
        new = time.perf_counter_ns()
        meter.step(now_us + 1000, energies)
        unchanged = time.perf_counter_ns()
        timed.take.append((taken - began) / 1e6)
        timed.new.append((new - taken) / 1e6)
        timed.unchanged.append((unchanged - new) / 1e6)
    return timed


def written_out(params: EnsembleParams, frames: list[list[EnergySample]]) -> tuple[list[float], float]:
    """ms of the entropies of each window and nothing else: the lists lie in a table already. And how far, at most, the
    disagreement that follows from them is from that of the meter."""
    meter, took, worst = EnsembleMeter(params), [], 0.0
    for model in MODELS:
        meter.join(model)
    for samples in frames:
        for model, sample in zip(MODELS, samples, strict=True):
            meter.take(model, (sample,))
        step = meter.step(samples[-1].token.t_us + 1000, dict.fromkeys(MODELS, 0.8))
        table = table_of(samples)
        began = time.perf_counter_ns()
        di = disagreement(table)
        took.append((time.perf_counter_ns() - began) / 1e6)
        worst = max(worst, abs(told_di(step) - di))
    return took, worst


def told_di(step: EnsembleStep) -> float:
    (window,) = step.windows
    assert window.di is not None
    return window.di


def table_of(samples: list[EnergySample]) -> np.ndarray:
    """A row of probabilities for each member: every word that any of them has, and what is left."""
    words = sorted({entry.token for sample in samples for entry in sample.token.top})
    rows = [{entry.token: math.exp(entry.logprob) for entry in sample.token.top} for sample in samples]
    return np.array([[*(row.get(word, 0.0) for word in words), max(0.0, 1 - sum(row.values()))] for row in rows])


def disagreement(table: np.ndarray) -> float:
    """The Jensen-Shannon divergence of all rows in [0, 1], and on the way those of all pairs."""
    first, second = np.triu_indices(len(table), 1)
    rows = np.concatenate((table, table.mean(axis=0)[None, :], (table[first] + table[second]) / 2))
    bits = -(rows * np.log2(np.where(rows == 0, 1, rows))).sum(axis=1)
    return float(bits[len(table)] - bits[: len(table)].mean()) / math.log2(len(table))


# ── choosing the answer ──


def choice_rows() -> list[Row]:
    answers = long_answers()
    alone = min(timed_ms(lambda: choose(CouncilMethod.CONSENSUS, answers)) for _ in range(REPEATS))
    with engine_for(Job("council", SIX, CHOOSING_S, choosing=True)) as go:
        ran = go()
    took = [end - began for began, end in ran.choices]
    during = [frame for frame in ran.frames if any(began <= frame[3] <= end for began, end in ran.choices)]
    calm = [frame[1] for frame in ran.frames if frame not in during]
    due = sum(took) / TICK_MS
    late = [frame[1] for frame in during]
    return [
        Row("choosing among six answers of 8 KiB, in a worker thread", median(took), "ms", alone, "nothing beside it"),
        *(
            Row(f"… tick lateness meanwhile p{p}", percentile(late, p), "ms", percentile(calm, p), "between choices")
            for p in (50, 99)
        ),
        Row("… frames missed meanwhile", 100 * max(0.0, 1 - len(during) / due), "%"),
        Row("… frames missed in all of it", 100 * ran.missed / (ran.missed + len(ran.frames)), "%"),
    ]


def timed_ms(call) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000
