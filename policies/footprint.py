"""What models take of main memory and of GPUs, and whether that fits into the budgets of both. Pure.

Where a model is, its runtime says. Before it does, what may go onto a GPU is open: it will be in GPU memory as far as
there is room for it, and the rest of it in main memory. So what is open fits if there is any split in which it does,
and none of it is counted in memory that is not there. Where the machine has no GPU that tells, everything is main
memory, also what a runtime says is on one: a GPU of which nothing is known shares it.
"""

from __future__ import annotations

from typing import Final, Protocol

import attrs

SPILL_SHARE: Final = 0.1  # of a model: less than that may be in main memory of one that is on GPUs


@attrs.frozen
class Footprint:
    """Bytes in main memory, on GPUs, and open."""

    ram_bytes: int = 0
    vram_bytes: int = 0
    open_bytes: int = 0

    @classmethod
    def split(cls, size_bytes: int, vram_bytes: int = 0, open_bytes: int = 0) -> Footprint:
        """Of `size_bytes` so many on GPUs and so many open; no more than there are, whatever a runtime says."""
        on_gpu = min(size_bytes, vram_bytes)
        unsaid = min(size_bytes - on_gpu, open_bytes)
        return cls(size_bytes - on_gpu - unsaid, on_gpu, unsaid)

    @classmethod
    def of(cls, *models: Placed) -> Footprint:
        """Of all of them together."""
        prints = [model.footprint for model in models]
        return cls(
            sum(one.ram_bytes for one in prints),
            sum(one.vram_bytes for one in prints),
            sum(one.open_bytes for one in prints),
        )

    @property
    def size_bytes(self) -> int:
        return self.ram_bytes + self.vram_bytes + self.open_bytes

    def without(self, other: Footprint) -> Footprint:
        return Footprint(
            self.ram_bytes - other.ram_bytes, self.vram_bytes - other.vram_bytes, self.open_bytes - other.open_bytes
        )


class Placed(Protocol):
    """A model that is in memory, or will be."""

    @property
    def footprint(self) -> Footprint: ...


@attrs.frozen
class Budget:
    """Bytes that models may take of main memory (null: as many as they like, there and on GPUs) and on GPUs (0: there
    is none that tells)."""

    ram_bytes: int | None = None
    vram_bytes: int = 0

    @property
    def size_bytes(self) -> int | None:
        return None if self.ram_bytes is None else self.ram_bytes + self.vram_bytes

    def placed(self, taken: Footprint) -> Footprint:
        """The same, with what is open where it will be."""
        if not self.vram_bytes:
            return Footprint(taken.size_bytes)
        on_gpu = min(taken.open_bytes, max(0, self.vram_bytes - taken.vram_bytes))
        return Footprint(taken.ram_bytes + taken.open_bytes - on_gpu, taken.vram_bytes + on_gpu)

    def fits(self, taken: Footprint, coming: Footprint) -> bool:
        """Is there room for `coming`, which are part of `taken`? GPU memory that is full is no reason against models
        that take none of it."""
        if self.ram_bytes is None:
            return True
        placed = self.placed(taken)
        if placed.ram_bytes > self.ram_bytes:
            return False
        return placed.vram_bytes <= self.vram_bytes or not (coming.vram_bytes or coming.open_bytes)


def left_out(size_bytes: int, vram_bytes: int, beside_bytes: int, budget_bytes: int) -> bool | None:
    """Was a model left out of GPU memory that had room for it, by what its runtime says right after the load? Of GPU
    memory others had `beside_bytes`, and all may have `budget_bytes`. False when it is on GPUs. Null when it is not and
    there was no room, which says nothing about the next one."""
    if size_bytes - vram_bytes <= SPILL_SHARE * size_bytes:
        return False
    return True if beside_bytes + size_bytes <= budget_bytes else None
