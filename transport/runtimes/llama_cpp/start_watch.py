"""Is a process that is to load a model at work, or does it hang?

A load may take minutes, so it is not its length that tells. But it computes, or reads its file: the time of its
processors grows, or its memory, or the pages that it waits for. A process of which nothing moves for long hangs.
llama.cpp does that once in some thousand starts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import attrs

STUCK_S: Final = 30.0  # without a sign of life
CPU_STEP_S: Final = 0.5  # less of it within STUCK_S is no work: threads that wait look up now and then
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Activity:
    """What a process has done so far: time on processors (of all threads, user and kernel), faults that had to read
    from the disk, pages in memory."""

    cpu_s: float
    faults: int
    pages: int


@attrs.define(eq=False)
class StartWatch:
    """Hears of a process now and then and says whether it hangs. Times are seconds on any one clock."""

    stuck_s: float
    _mark: Activity | None = None
    _since_s: float = 0.0

    def hangs(self, seen: Activity, now_s: float) -> bool:
        mark = self._mark
        if (
            mark is None
            or seen.cpu_s - mark.cpu_s >= CPU_STEP_S
            or (seen.faults, seen.pages) != (mark.faults, mark.pages)
        ):
            self._mark, self._since_s = seen, now_s
            return False
        return now_s - self._since_s >= self.stuck_s


def activity_of(pid: int) -> Activity | None:
    """None when there is no such process any more. Blocks."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # from the third on; the second may hold anything
    faults, user, system, pages = (int(fields[at]) for at in (9, 11, 12, 21))
    return Activity((user + system) / _TICKS_PER_S, faults, pages)
