"""May models be used now, alone or together? Pure decisions of the model pool; the pool carries them out.

Three things decide, in this order. The byte budgets of main memory and of GPUs: what is in memory and what is asked for
must fit both, by the sizes that runtimes report, and by the size on disk times an overhead until they do; how a model
of which nobody has said where it is counts, policies/footprint tells. The counts: streams, models in use, models in
memory. And the largest model that the tier takes. What can never be is refused with its numbers; what is only in use at
the moment is waited for.

A model of a runtime on another machine, or of one that neither loads nor tells what is in its memory, has no size
(null): it counts as nothing there, and only as a model in use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import attrs

from engine.domain.errors import EngineError, InsufficientMemory, TierLimitExceeded
from policies.eviction import Slot, evictable, victims
from policies.footprint import Budget, Footprint

SIZE_OVERHEAD: Final = 1.2  # what a model takes in memory, by its size on disk: weights, context and buffers

Numbers = Mapping[str, int | float | None]  # named with their units; nothing but figures


@attrs.frozen
class PoolCaps:
    """Ceilings in force: concurrent streams, streams waiting, distinct models in use, models in memory; the bytes they
    may take of main memory and the largest one on disk (null: not limited), and the bytes on GPUs (0: without one that
    tells). `spares_all`: a model that cools is not evicted for any other; else only not for one that was itself evicted
    less than a cool-down ago, which would be thrashing."""

    streams_max: int
    queued_max: int
    parallel_models_max: int
    loaded_models_max: int
    ram_budget_bytes: int | None = None
    model_bytes_max: int | None = None
    size_overhead: float = SIZE_OVERHEAD
    cooldown_us: int = 0
    spares_all: bool = True
    vram_budget_bytes: int = 0

    @property
    def budget(self) -> Budget:
        return Budget(self.ram_budget_bytes, self.vram_budget_bytes)

    def estimate_bytes(self, disk_bytes: int | None) -> int | None:
        """What a model should take in memory, before its runtime says so."""
        return None if disk_bytes is None else round(disk_bytes * self.size_overhead)


@attrs.frozen
class Wanted:
    """A model somebody wants: its size in memory as far as it is known, its size on disk, and for how many streams
    (0: only into memory). So many `open_bytes` may go onto GPUs, the rest goes into main memory."""

    model: str
    size_bytes: int | None = 0
    disk_bytes: int | None = None
    streams: int = 1
    open_bytes: int = 0

    @property
    def footprint(self) -> Footprint:
        return Footprint.split(self.size_bytes or 0, open_bytes=self.open_bytes)


@attrs.frozen
class Admit:
    """Use it; unload `evict` first (least recently used first)."""

    evict: tuple[str, ...] = ()


@attrs.frozen
class Wait:
    """Not now: `reason` says for what. `until_us` is when a model will have cooled down, null when that is not what
    it waits for."""

    reason: str
    numbers: Numbers = attrs.field(factory=dict)
    until_us: int | None = None


@attrs.frozen
class Refuse:
    """Never, as things are: TierLimitExceeded or InsufficientMemory, with the numbers in its details."""

    error: EngineError


Decided = Admit | Wait | Refuse


def figures_of(error: EngineError) -> Numbers:
    """The numbers of a refusal."""
    return {name: value for name, value in error.details.items() if isinstance(value, int | float)}


def budgets(ram_bytes: int | None, vram_bytes: int | None, ram_budget: int, vram_budget: int) -> tuple[int, int]:
    """The bytes that models may take in main memory and on GPUs, by what the machine has (`ram_bytes` null: not known)
    and what the tier allows. Memory that is not there is not given away, whatever the tier says: without a GPU
    (`vram_bytes` null) main memory alone decides."""
    ram = ram_budget if ram_bytes is None else min(ram_budget, ram_bytes)
    return ram, 0 if vram_bytes is None else min(vram_budget, vram_bytes)


def admit(
    wanted: Sequence[Wanted],
    slots: Sequence[Slot],
    streams: int,
    caps: PoolCaps,
    now_us: int = 0,
    hot: Collection[str] = (),
) -> Decided:
    """May all of `wanted` (each model once) be used from now on, together? Never evicts a model that is in use, pinned
    or cooling, and never exceeds a cap.

    `streams` counts leases over all models. The parallel cap counts distinct models in use, not streams. `hot` are
    models that the same caller has just done with: they need not cool down.
    """
    refused = beyond(wanted, slots, caps)
    if refused is not None:
        return Refuse(refused)
    names = {model.model for model in wanted}
    if (wait := _busy(wanted, slots, streams, caps)) is not None:
        return wait
    if any(slot.leaving for slot in slots if slot.model in names):
        return Wait("the model is being unloaded")
    missing = _missing(wanted, slots)
    if not missing:
        return Admit()
    others = [slot for slot in slots if slot.model not in names]
    evict = victims(evictable(others, now_us, hot), _enough(missing, slots, caps))
    return _no_room(missing, others, slots, caps, now_us) if evict is None else Admit(evict)


def beyond(wanted: Sequence[Wanted], slots: Sequence[Slot], caps: PoolCaps) -> EngineError | None:
    """Why `wanted` can never be in memory together, even if everything that is not pinned went; None when it can."""
    for model in wanted:
        if caps.model_bytes_max is not None and (model.disk_bytes or 0) > caps.model_bytes_max:
            return TierLimitExceeded(
                f"{model.model} has {_gb(model.disk_bytes)} on disk, and this tier takes models up to "
                f"{_gb(caps.model_bytes_max)}",
                model=model.model,
                model_bytes=model.disk_bytes,
                model_bytes_max=caps.model_bytes_max,
            )
    for count, most, what in (
        (sum(model.streams for model in wanted), caps.streams_max, "streams"),
        (sum(model.streams > 0 for model in wanted), caps.parallel_models_max, "models in use"),
    ):
        if count > most:
            return TierLimitExceeded(f"{count} {what} at once, and {most} are allowed", wanted=count, limit=most)
    missing = _missing(wanted, slots)
    if not missing:
        return None
    names = {model.model for model in wanted}
    pinned = [slot for slot in slots if slot.counted and slot.pinned and slot.model not in names]
    stay = [slot for slot in slots if slot.counted and slot.model in names]
    models = len(missing) + len(stay) + len(pinned)
    if models > caps.loaded_models_max:
        return TierLimitExceeded(
            f"{models} models in memory ({len(pinned)} of them pinned), and this tier allows {caps.loaded_models_max}",
            wanted=models,
            pinned=len(pinned),
            limit=caps.loaded_models_max,
        )
    needed, kept = Footprint.of(*missing, *stay), Footprint.of(*pinned)
    if caps.budget.fits(Footprint.of(*missing, *stay, *pinned), Footprint.of(*missing)):
        return None
    return InsufficientMemory(
        f"{_and(model.model for model in missing)} would take {_too_much(needed, kept, caps)}",
        **memory(needed, slots, names, caps),
    )


def plan_waves(wanted: Sequence[Wanted], slots: Sequence[Slot], caps: PoolCaps) -> tuple[tuple[str, ...], ...] | Refuse:
    """In which company `wanted` (each model once) can be used: one wave is together, else one wave after the other,
    each taken into the first wave with room. What is in memory already goes first, so that no wave evicts what a later
    one needs. Refused when a single one cannot be there, ever."""
    for model in wanted:
        if (error := beyond([model], slots, caps)) is not None:
            return Refuse(error)
    here = {slot.model for slot in slots if not slot.leaving}
    waves: list[list[Wanted]] = []
    for model in sorted(wanted, key=lambda model: model.model not in here):
        for wave in waves:
            if beyond([*wave, model], slots, caps) is None:
                wave.append(model)
                break
        else:
            waves.append([model])
    order = [model.model for model in wanted]
    return tuple(tuple(sorted((m.model for m in wave), key=order.index)) for wave in waves)


def makes_way(wanted: Sequence[Wanted], slots: Sequence[Slot], streams: int, caps: PoolCaps) -> frozenset[str] | None:
    """Which models others must leave alone so that `wanted`, who have waited long, get their room: those that would go
    for them, were they idle and cool, the least recently used first. None when it is not room that they wait for: then
    others must leave everything alone."""
    if _busy(wanted, slots, streams, caps) is not None:
        return None
    names = {model.model for model in wanted}
    others = [s for s in slots if s.counted and not (s.pinned or s.stuck) and s.model not in names]
    others.sort(key=lambda slot: (slot.leases > 0 or slot.loading, slot.last_used_us))
    chosen = victims(others, _enough(_missing(wanted, slots), slots, caps))
    return None if chosen is None else frozenset(chosen)


def memory(needed: Footprint, slots: Sequence[Slot], names: Collection[str], caps: PoolCaps) -> Numbers:
    """The numbers of a decision on memory. `evictable_bytes` is what would be free if everything idle went. Where there
    is a budget of GPU memory the others are of both memories together, and each of them has its own."""
    used = Footprint.of(*slots)
    numbers = {
        "needed_bytes": needed.size_bytes,
        "budget_bytes": caps.budget.size_bytes,
        "used_bytes": used.size_bytes,
        "evictable_bytes": sum(slot.size_bytes or 0 for slot in slots if slot.movable and slot.model not in names),
    }
    if not caps.vram_budget_bytes:
        return numbers
    needs, uses = caps.budget.placed(needed), caps.budget.placed(used)
    return numbers | {
        "needed_ram_bytes": needs.ram_bytes,
        "needed_vram_bytes": needs.vram_bytes,
        "used_ram_bytes": uses.ram_bytes,
        "used_vram_bytes": uses.vram_bytes,
        "ram_budget_bytes": caps.ram_budget_bytes,
        "vram_budget_bytes": caps.vram_budget_bytes,
    }


def _missing(wanted: Sequence[Wanted], slots: Sequence[Slot]) -> list[Wanted]:
    """Those that must come into memory; not those that take none of ours."""
    here = {slot.model for slot in slots if not slot.leaving}
    return [model for model in wanted if model.model not in here and model.size_bytes is not None]


def _enough(missing: Sequence[Wanted], slots: Sequence[Slot], caps: PoolCaps) -> Callable[[Sequence[Slot]], bool]:
    """Is there room for `missing` beside what is there, once some of that has gone?"""
    counted = [slot for slot in slots if slot.counted]
    coming, taken = Footprint.of(*missing), Footprint.of(*counted, *missing)
    models, budget = len(counted) + len(missing), caps.budget

    def enough(gone: Sequence[Slot]) -> bool:
        if models - len(gone) > caps.loaded_models_max:
            return False
        return budget.fits(taken.without(Footprint.of(*gone)), coming)

    return enough


def _busy(wanted: Sequence[Wanted], slots: Sequence[Slot], streams: int, caps: PoolCaps) -> Wait | None:
    more = sum(model.streams for model in wanted)
    if more and streams + more > caps.streams_max:
        numbers = {"streams": streams, "wanted_streams": more, "streams_max": caps.streams_max}
        if more == 1:
            return Wait(f"{caps.streams_max} streams are running, the most allowed at once", numbers)
        return Wait(f"{streams} of {caps.streams_max} streams are running, and {more} are wanted at once", numbers)
    in_use = {slot.model for slot in slots if slot.leases > 0}
    new = {model.model for model in wanted if model.streams} - in_use
    if new and len(in_use) + len(new) > caps.parallel_models_max:
        most = caps.parallel_models_max
        numbers = {"models_in_use": len(in_use), "wanted_models": len(new), "parallel_models_max": most}
        if len(in_use) >= most:
            return Wait(f"{most} models are in use, the most this tier allows at once", numbers)
        return Wait(f"{len(in_use)} of {most} models are in use, and {len(new)} more are wanted at once", numbers)
    return None


def _no_room(
    missing: Sequence[Wanted], others: Sequence[Slot], slots: Sequence[Slot], caps: PoolCaps, now_us: int
) -> Wait:
    needed, names = Footprint.of(*missing), {model.model for model in missing}
    counted = [slot for slot in slots if slot.counted]
    numbers = {
        **memory(needed, slots, names, caps),
        "loaded_models": len(counted),
        "loaded_models_max": caps.loaded_models_max,
    }
    if caps.budget.fits(Footprint.of(*counted, *missing), needed):
        full = f"{caps.loaded_models_max} models are loaded, the most this tier allows"
    elif caps.vram_budget_bytes:
        both = f"{_gb(caps.ram_budget_bytes)} of main memory and {_gb(caps.vram_budget_bytes)} of GPU memory"
        full = f"{_gb(needed.size_bytes)} more do not fit into the budgets of {both}"
    else:
        full = f"{_gb(needed.size_bytes)} more do not fit into the budget of {_gb(caps.ram_budget_bytes)}"
    cooling = [slot.cool_until_us for slot in others if slot.movable and slot.cool_until_us > now_us]
    stuck = [slot for slot in others if slot.stuck and slot.counted and not slot.leases]
    if not cooling and stuck:
        still = f"{_and(slot.model for slot in stuck)} may still be in memory, where no runtime answers"
        return Wait(f"{full}, and {still}", numbers | {"stuck_bytes": sum(slot.size_bytes or 0 for slot in stuck)})
    if not cooling:
        return Wait(f"{full}, and none is idle", numbers)
    return Wait(f"{full}, and those that are idle were loaded a moment ago", numbers, min(cooling))


def _too_much(needed: Footprint, kept: Footprint, caps: PoolCaps) -> str:
    """How much that is, how much is allowed, and what of that pinned models keep for themselves."""
    if not caps.vram_budget_bytes:
        besides = f", of which pinned models keep {_gb(kept.size_bytes)}" if kept.size_bytes else ""
        return f"{_gb(needed.size_bytes)} of memory, and the budget is {_gb(caps.ram_budget_bytes)}{besides}"
    needs, keeps = caps.budget.placed(needed), caps.budget.placed(kept)
    takes = f"{_gb(needs.ram_bytes)} of main memory and {_gb(needs.vram_bytes)} of GPU memory"
    besides = f", of which pinned models keep {_gb(keeps.ram_bytes)} and {_gb(keeps.vram_bytes)}"
    budgets_are = f"the budgets are {_gb(caps.ram_budget_bytes)} and {_gb(caps.vram_budget_bytes)}"
    return f"{takes}, and {budgets_are}{besides if kept.size_bytes else ''}"


def _and(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else str(last)


def _gb(size_bytes: int | None) -> str:
    """`4.2 GB`; what is too small for that as `1.2 MB`."""
    size = size_bytes or 0
    return f"{size / 1e9:.1f} GB" if size >= 1e8 or not size else f"{size / 1e6:.1f} MB"
