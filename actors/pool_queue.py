"""What those who wait for a model are judged by: one look at everything, taken anew whenever somebody was served."""

from __future__ import annotations

import attrs

from actors.lease import LeaseSet
from actors.pool_memory import Memory
from engine.domain.models import ModelState
from policies.admission import Wait, makes_way
from policies.eviction import Slot
from policies.waiting import Paces, estimated_wait_ms


@attrs.define(eq=False)
class Look:
    """The models, the streams that hold or will hold one, and for how long the running leases have lasted. `full`: no
    further stream may run, so nobody who wants one need be judged again."""

    at_us: int
    slots: list[Slot]
    streams: int
    running_ms: list[float]
    full: Wait | None = None

    @classmethod
    def of(cls, memory: Memory) -> Look:
        now_us, entries = memory.clock(), memory.entries.values()
        running_ms = [(now_us - ticket.granted_us) / 1000 for entry in entries for ticket in entry.holders]
        return cls(now_us, memory.slots(), memory.streams, running_ms)

    def is_in_the_way(self, asked: LeaseSet, patient: LeaseSet, memory: Memory) -> bool:
        """Would `asked` take what `patient` waits for: anything, or a place in memory, or a model that has to go?"""
        way = makes_way(memory.wanted(patient.leases), self.slots, self.streams, memory.caps)
        here = {slot.model for slot in self.slots if not slot.leaving}
        return way is None or any(lease.model.name in way or lease.model.name not in here for lease in asked.leases)

    def wait_ms(self, asked: LeaseSet, wait: Wait, position: int, memory: Memory, paces: Paces) -> float | None:
        """How long `asked` will wait at this place, by what was measured; null where nothing was."""
        loads = [
            0.0 if memory.status(lease.model.name).state is ModelState.READY else paces.load_ms(lease.model.name)
            for lease in asked.leases
        ]
        load_ms = None if any(load is None for load in loads) else max(load or 0.0 for load in loads)
        turn_ms = estimated_wait_ms(position, self.running_ms, paces.lease_ms, load_ms)
        if wait.until_us is None or load_ms is None:
            return turn_ms
        return max(turn_ms or 0.0, (wait.until_us - self.at_us) / 1000 + load_ms)
