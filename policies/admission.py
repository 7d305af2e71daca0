"""May a model be used now? Pure decisions of the model pool; the pool carries them out."""

from __future__ import annotations

from collections.abc import Sequence

import attrs


@attrs.frozen
class PoolCaps:
    """Ceilings in force: concurrent streams, streams waiting, distinct models in use, models in memory."""

    streams_max: int
    queued_max: int
    parallel_models_max: int
    loaded_models_max: int


@attrs.frozen
class Slot:
    """One model in memory, on its way there, or `leaving`. `leases` are streams using it or waiting for its load. A
    pinned one is never evicted."""

    model: str
    leases: int
    last_used_us: int
    loading: bool = False
    leaving: bool = False
    pinned: bool = False


@attrs.frozen
class Admit:
    """Use it; unload `evict` first (least recently used first)."""

    evict: tuple[str, ...] = ()


@attrs.frozen
class Wait:
    """Not now: `reason` says for what."""

    reason: str


def admit(model: str, slots: Sequence[Slot], streams: int, caps: PoolCaps) -> Admit | Wait:
    """May one more stream use `model`? Never evicts a model with leases, and never exceeds a cap.

    `streams` counts leases over all models. The parallel cap counts distinct models in use, not streams.
    """
    if streams >= caps.streams_max:
        return Wait(f"{caps.streams_max} streams are running, the most allowed at once")
    mine = next((slot for slot in slots if slot.model == model), None)
    in_use = [slot for slot in slots if slot.leases > 0]
    if (mine is None or mine.leases == 0) and len(in_use) >= caps.parallel_models_max:
        return Wait(f"{caps.parallel_models_max} models are in use, the most this tier allows at once")
    if mine is not None:
        return Admit()
    surplus = sum(not slot.leaving for slot in slots) + 1 - caps.loaded_models_max
    if surplus <= 0:
        return Admit()
    idle = sorted((slot for slot in slots if _evictable(slot)), key=lambda slot: slot.last_used_us)
    if len(idle) < surplus:
        return Wait(f"{caps.loaded_models_max} models are loaded, the most this tier allows, and none is idle")
    return Admit(evict=tuple(slot.model for slot in idle[:surplus]))


def _evictable(slot: Slot) -> bool:
    return slot.leases == 0 and not (slot.loading or slot.leaving or slot.pinned)
