from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.domain.errors import InsufficientMemory, TierLimitExceeded
from policies.admission import Admit, PoolCaps, Refuse, Wait, Wanted, admit, beyond, budgets, makes_way, plan_waves
from policies.eviction import Slot

NAMES = [f"m{n}" for n in range(10)]
CAPS = PoolCaps(streams_max=64, queued_max=256, parallel_models_max=2, loaded_models_max=3)

caps = st.builds(PoolCaps, st.integers(1, 12), st.just(256), st.integers(1, 6), st.integers(1, 8))


@st.composite
def pools(draw: st.DrawFn) -> list[Slot]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=8))
    return [Slot(name, draw(st.integers(0, 3)), draw(st.integers(0, 20)), draw(st.booleans())) for name in names]


def leases(slots: list[Slot]) -> int:
    return sum(slot.leases for slot in slots)


def after(model: str, slots: list[Slot], decision: Admit) -> list[Slot]:
    """The pool once the decision was carried out."""
    kept = [slot for slot in slots if slot.model not in decision.evict and slot.model != model]
    mine = next((slot for slot in slots if slot.model == model), Slot(model, 0, 0))
    return [*kept, Slot(model, mine.leases + 1, 99, mine.loading)]


@given(st.sampled_from(NAMES), pools(), caps)
def test_no_cap_is_ever_exceeded(model, slots, limits):
    decision = admit([Wanted(model)], slots, leases(slots), limits)
    assume(isinstance(decision, Admit))
    pool = after(model, slots, decision)
    assert leases(pool) <= limits.streams_max
    new = model not in [slot.model for slot in slots if slot.leases]
    assert not new or sum(slot.leases > 0 for slot in pool) <= limits.parallel_models_max
    loaded = model not in [slot.model for slot in slots]
    assert not loaded or len(pool) <= limits.loaded_models_max


@given(st.sampled_from(NAMES), pools(), caps)
def test_only_what_is_idle_goes_and_the_longest_unused_first(model, slots, limits):
    decision = admit([Wanted(model)], slots, leases(slots), limits)
    assume(isinstance(decision, Admit))
    by_name = {slot.model: slot for slot in slots}
    gone = [by_name[name] for name in decision.evict]
    assert all(slot.leases == 0 and not slot.loading and slot.model != model for slot in gone)
    assert len(set(decision.evict)) == len(decision.evict)
    assert [slot.last_used_us for slot in gone] == sorted(slot.last_used_us for slot in gone)
    stayed = [
        s for s in slots if s.model not in decision.evict and s.leases == 0 and not s.loading and s.model != model
    ]
    assert all(kept.last_used_us >= slot.last_used_us for kept in stayed for slot in gone)


@given(st.sampled_from(NAMES), pools(), caps)
def test_no_more_goes_than_must(model, slots, limits):
    decision = admit([Wanted(model)], slots, leases(slots), limits)
    assume(isinstance(decision, Admit))
    if decision.evict:
        assert len(after(model, slots, decision)) == limits.loaded_models_max
        assert model not in [slot.model for slot in slots]


@given(st.sampled_from(NAMES), pools(), caps)
def test_waiting_has_a_reason_that_holds(model, slots, limits):
    decision = admit([Wanted(model)], slots, leases(slots), limits)
    assume(isinstance(decision, Wait))
    used = [slot for slot in slots if slot.leases]
    idle = [slot for slot in slots if not slot.leases and not slot.loading]
    full = leases(slots) >= limits.streams_max
    crowded = len(used) >= limits.parallel_models_max and model not in [slot.model for slot in used]
    stuck = model not in [s.model for s in slots] and len(slots) + 1 - len(idle) > limits.loaded_models_max
    assert full or crowded or stuck
    assert any(
        str(n) in decision.reason for n in (limits.streams_max, limits.parallel_models_max, limits.loaded_models_max)
    )


@given(st.sampled_from(NAMES), pools(), caps)
def test_what_fits_does_not_wait(model, slots, limits):
    used = [slot for slot in slots if slot.leases]
    assume(leases(slots) < limits.streams_max)
    assume(model in [slot.model for slot in used] or len(used) < limits.parallel_models_max)
    assume(model in [slot.model for slot in slots] or len(slots) < limits.loaded_models_max)
    assert admit([Wanted(model)], slots, leases(slots), limits) == Admit()


@given(st.sampled_from(NAMES), pools(), caps, st.randoms())
def test_the_order_of_the_pool_decides_nothing(model, slots, limits, random):
    assume(len({slot.last_used_us for slot in slots}) == len(slots))
    shuffled = list(slots)
    random.shuffle(shuffled)
    assert admit([Wanted(model)], shuffled, leases(slots), limits) == admit(
        [Wanted(model)], slots, leases(slots), limits
    )


def test_an_empty_pool_takes_anything():
    assert admit([Wanted("a")], [], 0, CAPS) == Admit()


def test_a_model_in_use_takes_more_streams_whatever_else_is_in_use():
    slots = [Slot("a", 1, 0), Slot("b", 1, 0)]
    assert admit([Wanted("a")], slots, 2, CAPS) == Admit()


def test_the_cap_counts_models_in_use_not_streams():
    slots = [Slot("a", 5, 0), Slot("b", 1, 0), Slot("c", 0, 0)]
    decision = admit([Wanted("c")], slots, 6, CAPS)
    assert isinstance(decision, Wait)
    assert decision.reason.startswith("2 models are in use")


def test_the_longest_unused_model_makes_room():
    slots = [Slot("a", 1, 0), Slot("b", 0, 20), Slot("c", 0, 10)]
    assert admit([Wanted("d")], slots, 1, CAPS) == Admit(evict=("c",))


@pytest.mark.parametrize("busy", [Slot("c", 0, 10, loading=True), Slot("c", 1, 10)])
def test_a_model_on_its_way_or_in_use_does_not_make_room(busy):
    """In use counts against the other cap as well, so there is one less."""
    limits = PoolCaps(64, 256, 6, 2)
    decision = admit([Wanted("d")], [Slot("b", 1, 20), busy], 1 + busy.leases, limits)
    assert isinstance(decision, Wait)
    assert "none is idle" in decision.reason


def test_streams_are_capped_even_for_a_model_that_is_there():
    decision = admit([Wanted("a")], [Slot("a", 64, 0)], 64, CAPS)
    assert isinstance(decision, Wait)
    assert decision.reason.startswith("64 streams")


# ── bytes, pins and cool-downs, alone and together ──

NOW = 100
sizes = st.none() | st.integers(0, 12)
parts = st.integers(0, 12)
full_caps = st.builds(
    PoolCaps,
    st.integers(1, 12),
    st.just(256),
    st.integers(1, 6),
    st.integers(1, 8),
    ram_budget_bytes=st.none() | st.integers(1, 30),
    model_bytes_max=st.none() | st.integers(4, 12),
    vram_budget_bytes=st.just(0) | st.integers(1, 20),
)


@st.composite
def full_pools(draw: st.DrawFn) -> list[Slot]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=8))
    return [
        Slot(
            name,
            draw(st.integers(0, 2)),
            draw(st.integers(0, 99)),
            loading=draw(st.booleans()),
            leaving=draw(st.booleans()),
            pinned=draw(st.booleans()),
            size_bytes=draw(sizes),
            cool_until_us=draw(st.sampled_from([0, NOW, NOW + 50])),
            vram_bytes=draw(parts),
            open_bytes=draw(parts),
        )
        for name in names
    ]


@st.composite
def wishes(draw: st.DrawFn) -> list[Wanted]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=4))
    disks = [draw(sizes) for _ in names]
    return [
        Wanted(name, disk, disk, draw(st.integers(0, 2)), draw(parts)) for name, disk in zip(names, disks, strict=True)
    ]


def afterwards(wanted: list[Wanted], slots: list[Slot], decision: Admit) -> list[Slot]:
    kept = [slot for slot in slots if slot.model not in decision.evict]
    here = {slot.model for slot in kept if not slot.leaving}
    come = [w for w in wanted if w.model not in here]
    return [*kept, *(Slot(w.model, w.streams, NOW, size_bytes=w.size_bytes, open_bytes=w.open_bytes) for w in come)]


def bytes_on_gpus(slot: Slot, budget: int) -> range:
    """What of it may be there: what its runtime says, and all or nothing of what is open, or anything between."""
    size = slot.size_bytes or 0
    said = min(size, slot.vram_bytes)
    return range(said, min(size, said + slot.open_bytes) + 1) if budget else range(1)


def fits_both(slots: list[Slot], limits: PoolCaps, *, gpu_matters: bool = True) -> bool:
    """By trying every split of what is open. GPU memory that is too full already matters to nobody who takes none."""
    if limits.ram_budget_bytes is None:
        return True
    total, room = sum(slot.size_bytes or 0 for slot in slots), limits.vram_budget_bytes
    fixed = sum(bytes_on_gpus(slot, room)[0] for slot in slots)
    most = sum(bytes_on_gpus(slot, room)[-1] for slot in slots)
    splits = [gpu for gpu in range(fixed, most + 1) if gpu <= room or (gpu == fixed and not gpu_matters)]
    return any(total - gpu <= limits.ram_budget_bytes for gpu in splits)


@given(wishes(), full_pools(), full_caps, st.sets(st.sampled_from(NAMES)))
def test_a_set_exceeds_no_budget_and_nothing_goes_that_must_stay(wanted, slots, limits, hot):
    decision = admit(wanted, slots, leases(slots), limits, NOW, hot)
    assume(isinstance(decision, Admit))
    by_name = {slot.model: slot for slot in slots}
    for slot in (by_name[name] for name in decision.evict):
        assert slot.leases == 0
        assert not any((slot.loading, slot.leaving, slot.pinned))
        assert slot.cool_until_us <= NOW or slot.model in hot
        assert slot.model not in {w.model for w in wanted}
    pool = afterwards(wanted, slots, decision)
    missing = {w.model for w in wanted if w.size_bytes is not None} - by_name.keys()
    counted = [slot for slot in pool if slot.counted]
    if missing:
        assert len(counted) <= limits.loaded_models_max
        assert fits_both(counted, limits, gpu_matters=takes_gpu(wanted, slots))
    else:
        assert decision.evict == ()
    assert limits.model_bytes_max is None or all((w.disk_bytes or 0) <= limits.model_bytes_max for w in wanted)
    streams = sum(w.streams for w in wanted)
    assert not streams or leases(slots) + streams <= limits.streams_max


def makes_room(wanted: list[Wanted], slots: list[Slot], limits: PoolCaps, go: tuple[Slot, ...]) -> bool:
    names = {w.model for w in wanted}
    here = {slot.model for slot in slots}
    missing = [w for w in wanted if w.model not in here and w.size_bytes is not None]
    stay = [slot for slot in slots if slot.counted and (slot not in go or slot.model in names)]
    come = [Slot(w.model, 0, 0, size_bytes=w.size_bytes, open_bytes=w.open_bytes) for w in missing]
    fits = fits_both([*stay, *come], limits, gpu_matters=takes_gpu(wanted, slots))
    return not missing or (len(stay) + len(missing) <= limits.loaded_models_max and fits)


def takes_gpu(wanted: list[Wanted], slots: list[Slot]) -> bool:
    here = {slot.model for slot in slots if not slot.leaving}
    return any(w.size_bytes and w.open_bytes for w in wanted if w.model not in here)


@given(wishes(), full_pools(), full_caps)
def test_a_set_waits_only_where_no_choice_makes_room_and_is_refused_only_where_none_ever_can(wanted, slots, limits):
    """Against every choice of who could go."""
    names = {w.model for w in wanted}
    assume(not any(slot.leaving and slot.model in names for slot in slots))
    quiet = attrs.evolve(limits, streams_max=10**6, parallel_models_max=10**6)
    decision = admit(wanted, slots, leases(slots), quiet, NOW)
    others = [slot for slot in slots if slot.model not in names]
    may_go = [s for s in others if s.movable and s.cool_until_us <= NOW]
    choices = [go for n in range(len(may_go) + 1) for go in itertools.combinations(may_go, n)]
    possible = [go for go in choices if makes_room(wanted, slots, quiet, go)]
    too_large = any(quiet.model_bytes_max is not None and (w.disk_bytes or 0) > quiet.model_bytes_max for w in wanted)
    ever = not too_large and makes_room(wanted, slots, quiet, tuple(s for s in others if not s.pinned))
    match decision:
        case Admit():
            assert len(decision.evict) <= len(may_go)
            fewer = [go for go in possible if {s.model for s in go} < set(decision.evict)]
            assert possible
            assert not fewer  # nobody goes without need
        case Wait():
            assert not possible
            assert ever
            cooling = [s.cool_until_us for s in others if s.movable and s.cool_until_us > NOW]
            assert decision.until_us == (min(cooling) if cooling else None)
        case Refuse(error=error):
            assert not ever
            assert isinstance(error, TierLimitExceeded | InsufficientMemory)
            assert all(isinstance(value, int) for name, value in error.details.items() if name != "model")


@given(wishes(), full_pools(), full_caps, st.sets(st.sampled_from(NAMES)))
def test_without_a_gpu_it_is_the_sum_in_main_memory_that_counts_wherever_a_model_is(wanted, slots, limits, hot):
    """As if nobody had ever said anything of GPUs."""
    limits = attrs.evolve(limits, vram_budget_bytes=0)
    plain = (
        [attrs.evolve(w, open_bytes=0) for w in wanted],
        [attrs.evolve(s, vram_bytes=0, open_bytes=0) for s in slots],
    )

    def decided(wanted, slots):
        decision = admit(wanted, slots, leases(slots), limits, NOW, hot)
        return (decision.error.message, decision.error.details) if isinstance(decision, Refuse) else decision

    assert decided(wanted, slots) == decided(*plain)
    assert plan_waves(wanted, slots, limits).__class__ is plan_waves(*plain, limits).__class__
    assert makes_way(wanted, slots, 0, limits) == makes_way(*plain, 0, limits)


@given(wishes(), full_pools(), full_caps)
def test_waves_hold_every_model_once_and_each_fits(wanted, slots, limits):
    waves = plan_waves(wanted, slots, limits)
    if isinstance(waves, Refuse):
        assert any(beyond([model], slots, limits) is not None for model in wanted)
        return
    by_name = {model.model: model for model in wanted}
    assert sorted(name for wave in waves for name in wave) == sorted(by_name)
    for wave in waves:
        assert beyond([by_name[name] for name in wave], slots, limits) is None
    if beyond(wanted, slots, limits) is None:
        assert len(waves) == 1


@pytest.mark.parametrize(
    ("ram", "vram", "expected"),
    [(None, None, (16, 0)), (64, None, (16, 0)), (8, None, (8, 0)), (64, 24, (16, 12)), (64, 6, (16, 6))],
)
def test_budgets_are_what_the_tier_allows_of_what_is_there(ram, vram, expected):
    assert budgets(ram, vram, 16, 12) == expected


GPU = PoolCaps(64, 256, 6, 8, ram_budget_bytes=16 * 10**9, vram_budget_bytes=12 * 10**9)


def gb(name, size, vram, **more):
    return Slot(name, more.pop("leases", 0), 0, size_bytes=size * 10**9, vram_bytes=vram * 10**9, **more)


def open_(name, size):
    return Wanted(name, size * 10**9, open_bytes=size * 10**9)


def test_main_memory_that_is_full_is_not_made_good_by_free_gpu_memory():
    """The sum of both would do."""
    slots = [gb("a", 10, 0, leases=1), gb("b", 4, 4)]
    assert isinstance(admit([Wanted("cpu", 8 * 10**9)], slots, 1, GPU), Wait)
    assert admit([open_("gpu", 8)], slots, 1, GPU) == Admit()
    assert admit([open_("gpu", 15)], slots, 1, GPU) == Admit(("b",))
    assert isinstance(admit([open_("gpu", 19)], slots, 1, GPU), Wait)


def test_who_goes_is_who_makes_room_where_it_is_short():
    slots = [gb("on the gpu", 8, 8), gb("in main memory", 10, 0)]
    assert admit([Wanted("cpu", 8 * 10**9)], slots, 0, GPU) == Admit(("in main memory",))


def test_gpu_memory_that_is_too_full_is_no_reason_against_a_model_that_takes_none():
    full = [gb("a", 14, 14, leases=1)]
    assert admit([Wanted("cpu", 8 * 10**9)], full, 1, GPU) == Admit()
    assert isinstance(admit([open_("gpu", 8)], full, 1, GPU), Wait)


def test_a_refusal_names_both_memories():
    error = beyond([open_("x", 30)], [gb("p", 5, 3, pinned=True)], GPU)
    assert isinstance(error, InsufficientMemory)
    assert error.message == (
        "x would take 18.0 GB of main memory and 12.0 GB of GPU memory, and the budgets are 16.0 GB and 12.0 GB, "
        "of which pinned models keep 2.0 GB and 3.0 GB"
    )
    assert {name: value / 1e9 for name, value in error.details.items()} == {
        "needed_bytes": 30, "budget_bytes": 28, "used_bytes": 5, "evictable_bytes": 0,
        "needed_ram_bytes": 18, "needed_vram_bytes": 12, "used_ram_bytes": 2, "used_vram_bytes": 3,
        "ram_budget_bytes": 16, "vram_budget_bytes": 12,
    }  # fmt: skip
    error = beyond([Wanted("y", 17 * 10**9)], [], GPU)
    assert error is not None
    assert error.message.startswith("y would take 17.0 GB of main memory and 0.0 GB of GPU memory")


def test_a_wait_names_both_memories():
    decision = admit([open_("gpu", 9)], [gb("a", 20, 12, leases=1)], 1, GPU)
    assert isinstance(decision, Wait)
    assert decision.reason == (
        "9.0 GB more do not fit into the budgets of 16.0 GB of main memory and 12.0 GB of GPU memory, and none is idle"
    )


def test_a_model_that_takes_no_room_of_ours_needs_none():
    limits = PoolCaps(64, 256, 6, 1, ram_budget_bytes=4)
    slots = [Slot("a", 0, 0, size_bytes=4), Slot("b", 0, 0, size_bytes=None)]
    assert admit([Wanted("c", None)], slots, 0, limits) == Admit()
    assert admit([Wanted("d", 4)], slots, 0, limits) == Admit(evict=("a",))


def test_the_one_who_waits_long_needs_only_what_would_go_for_it():
    limits = PoolCaps(8, 8, 4, 8, ram_budget_bytes=10)
    busy = [
        Slot("a", 1, 5, size_bytes=4),
        Slot("b", 0, 9, size_bytes=4, cool_until_us=99),
        Slot("p", 0, 0, pinned=True),
    ]
    assert makes_way([Wanted("c", 4)], busy, 1, limits) == {"b"}  # idle, if not cool yet
    assert makes_way([Wanted("c", 7)], busy, 1, limits) == {"a", "b"}
    assert makes_way([Wanted("c", 2)], busy, 8, limits) is None  # no stream is free: everybody's are needed
    assert makes_way([Wanted("c", 2)], [*busy, *(Slot(n, 1, 0) for n in "xyz")], 4, limits) is None
