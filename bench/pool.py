"""The model pool on SYNTHETIC traces in virtual time, against plain LRU and against Ollama's own scheduling."""

from __future__ import annotations

from bench.pool_trace import Tally, lru, ollama, pool, replayed, thrashing, traces
from bench.table import Row, percentile

OURS = (("", pool), (", against thrashing", thrashing))  # `pool.cooldown_against`: all, and thrashing


def measure() -> list[Row]:
    rows = []
    for trace in traces():
        others = [(replayed(trace, lru), "plain LRU"), (replayed(trace, ollama), "Ollama's scheduling")]
        for which, ours in OURS:
            tally = replayed(trace, ours)
            rows += [row for other, whose in others for row in compared(trace.name + which, tally, other, whose)]
    return rows


def compared(name: str, ours: Tally, other: Tally, whose: str) -> list[Row]:
    return [
        Row(f"{name}: loads", ours.loads, "loads", other.loads, whose),
        Row(f"{name}: evictions", ours.evictions, "evictions", other.evictions, whose),
        Row(f"{name}: loads within 30 s of an eviction", ours.thrashes, "loads", other.thrashes, whose),
        *(Row(f"{name}: wait p{p}", waited(ours, p), "s", waited(other, p), whose) for p in (50, 95)),
        Row(f"{name}: until all were served", ours.took_s, "s", other.took_s, whose),
    ]


def waited(tally: Tally, percent: int) -> float:
    return percentile(tally.waits_s, percent)
