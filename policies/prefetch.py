"""Which model to bring into free memory before anybody asks for it. Pure; actors/prefetcher carries it out.

Only into free room, never by making another model go, and never a model again that its runtime let go of or that a
person unloaded, until somebody has used it: whoever gave memory back had a reason.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from policies.admission import Admit, PoolCaps, Wanted, admit
from policies.eviction import Slot

OFTEN_MIN: Final = 3  # uses within OFTEN_WITHIN_S that make a model one that is used often
OFTEN_WITHIN_S: Final = 3600.0


class Purpose(enum.IntEnum):
    """Why a model should be there, the strongest reason first."""

    WARM = 0  # the configuration names it
    COUNCIL = 1  # a member of a configured council
    OFTEN = 2  # used often lately


@attrs.frozen
class Candidate:
    """`uses` in the last hour. `let_go`: its runtime dropped it, or a person did, and nobody has used it since;
    `failed`: its last load did; `evicted_us`: when we last made it go."""

    wanted: Wanted
    purpose: Purpose
    uses: int = 0
    let_go: bool = False
    failed: bool = False
    evicted_us: int | None = None


def choose(candidates: Iterable[Candidate], slots: Sequence[Slot], caps: PoolCaps, now_us: int) -> str | None:
    """The next model to bring in, None when there is none or no room. Of the same purpose the one used most, else the
    first named. A model evicted less than a cool-down ago stays out."""
    here = {slot.model for slot in slots}
    worth = [
        candidate
        for candidate in candidates
        if candidate.wanted.model not in here
        and not (candidate.let_go or candidate.failed)
        and (candidate.evicted_us is None or now_us - candidate.evicted_us >= caps.cooldown_us)
        and (candidate.purpose is not Purpose.OFTEN or candidate.uses >= OFTEN_MIN)
    ]
    for candidate in sorted(worth, key=lambda candidate: (candidate.purpose, -candidate.uses)):
        wanted = attrs.evolve(candidate.wanted, streams=0)
        if wanted.size_bytes is not None and admit([wanted], slots, 0, caps, now_us) == Admit():
            return wanted.model
    return None
