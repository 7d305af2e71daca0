"""Which models go to make room: the least recently used of those that may. Pure; policies/admission asks.

A model may go when nobody uses it, it is neither on its way nor pinned, and it is not cooling: one that was loaded a
moment ago stays for a while, else two callers with different models would have them loaded in turn for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import attrs

from policies.footprint import Footprint


@attrs.frozen
class Slot:
    """One model in memory, on its way there, or `leaving`. `leases` are streams using it or waiting for its load. A
    pinned one is never evicted, and none before `cool_until_us` (engine clock).

    `size_bytes` is what the runtime reports, before it does an estimate. Null: its runtime neither loads nor tells, or
    is on another machine, so it takes no place and no memory of ours. `vram_bytes` of it are on GPUs, and `open_bytes`
    may be (see policies/footprint). `stuck`: its runtime does not answer, so it cannot be made to go, and may still be
    there.
    """

    model: str
    leases: int
    last_used_us: int
    loading: bool = False
    leaving: bool = False
    pinned: bool = False
    size_bytes: int | None = 0
    cool_until_us: int = 0
    stuck: bool = False
    vram_bytes: int = 0
    open_bytes: int = 0

    @property
    def footprint(self) -> Footprint:
        return Footprint.split(self.size_bytes or 0, self.vram_bytes, self.open_bytes)

    @property
    def counted(self) -> bool:
        """Takes a place and memory, now and until somebody makes it go."""
        return self.size_bytes is not None and not self.leaving

    @property
    def movable(self) -> bool:
        """Could be evicted, now or when it has cooled down."""
        return self.leases == 0 and self.counted and not (self.loading or self.pinned or self.stuck)


def evictable(slots: Iterable[Slot], now_us: int, hot: Collection[str] = ()) -> list[Slot]:
    """The models that may go now, least recently used first. Those of `hot` need not cool down."""
    found = [slot for slot in slots if slot.movable and (slot.cool_until_us <= now_us or slot.model in hot)]
    return sorted(found, key=lambda slot: slot.last_used_us)


def victims(candidates: Sequence[Slot], enough: Callable[[Sequence[Slot]], bool]) -> tuple[str, ...] | None:
    """Who goes, of `candidates` in the order they would, so that it is `enough`; no model more than must. None when it
    is not enough that all of them go. What is enough stays so when more go.

    The first that make enough room are taken; then those among them that the others make needless stay, the latest used
    before the others.
    """
    chosen: list[Slot] = []
    for slot in candidates:
        if enough(chosen):
            break
        chosen.append(slot)
    if not enough(chosen):
        return None
    for slot in reversed(chosen):
        rest = [other for other in chosen if other is not slot]
        if enough(rest):
            chosen = rest
    return tuple(slot.model for slot in chosen)
