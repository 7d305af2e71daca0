"""Time until both listeners answer, against a Python that only imports the same libraries."""

from __future__ import annotations

from bench.engine import import_s, ready_s
from bench.table import Row, at_most_ratio, median

REPEATS = 7


def measure() -> list[Row]:
    ready_s(), import_s()  # fill the file cache
    pairs = [(ready_s(), import_s()) for _ in range(REPEATS)]  # in turns: a busy moment hits both
    ready, bare = (median(times) * 1000 for times in zip(*pairs, strict=True))
    return [at_most_ratio("time to ready", ready, "ms", bare, "import of the same libraries", 2.0)]
