from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from policies.admission import Admit, PoolCaps, Wait, Wanted, admit
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
