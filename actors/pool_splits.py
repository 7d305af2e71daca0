"""Where models are: in main memory, or on GPUs. What their runtimes say of it counts, and before they say anything:

A model will be in main memory, unless its runtime puts models on GPUs. Then it is open (policies/footprint), from the
begin of its load only as far as there was room on GPUs at that moment. But once a runtime has left a model in main
memory for which the budget of GPU memory had room, its GPUs are fuller than we know, or it uses none: what it loads
then counts as main memory, until one is wholly on a GPU again, or its process is a new one.
"""

from __future__ import annotations

from typing import Final

import attrs

from actors.catalog import ModelRef
from engine.domain.models import Loaded, MemoryUse
from policies.admission import PoolCaps
from policies.footprint import left_out

UNSAID: Final = MemoryUse(None)


@attrs.define(eq=False)
class Splits:
    caps: PoolCaps
    _spilling: set[str] = attrs.field(factory=set)  # runtimes that left a model out of GPU memory that had room for it

    def of(
        self, ref: ModelRef | None, size_bytes: int | None, use: MemoryUse = UNSAID, beside_bytes: int | None = None
    ) -> tuple[int, int]:
        """How many bytes of a model are on GPUs, and how many are open. `use` is what its runtime said of it (`ref`
        null: of one that is not listed), `beside_bytes` what others had of GPUs when its load began (null: it has
        not)."""
        if use.vram_bytes is not None:
            return use.vram_bytes, 0
        if size_bytes is None or ref is None or not ref.info.may_use_gpu or ref.runtime.name in self._spilling:
            return 0, 0
        room_bytes = size_bytes if beside_bytes is None else max(0, self.caps.vram_budget_bytes - beside_bytes)
        return 0, min(size_bytes, room_bytes)

    def learn(self, ref: ModelRef, loaded: Loaded, beside_bytes: int) -> None:
        """Its load has just ended, and others had so many bytes of GPUs: does its runtime use what we think is free?"""
        if not ref.info.may_use_gpu or not loaded.resident_bytes or loaded.vram_bytes is None:
            return
        spills = left_out(loaded.resident_bytes, loaded.vram_bytes, beside_bytes, self.caps.vram_budget_bytes)
        if spills is not None:
            (self._spilling.add if spills else self._spilling.discard)(ref.runtime.name)

    def forget(self, runtime: str) -> None:
        """Its process is gone; the next one may do better."""
        self._spilling.discard(runtime)
