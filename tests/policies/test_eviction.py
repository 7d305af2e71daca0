from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.eviction import Slot, evictable, victims

slots = st.lists(
    st.builds(
        Slot,
        st.uuids().map(str),
        st.integers(0, 1),
        st.integers(0, 50),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.none() | st.integers(0, 9),
        st.integers(0, 20),
    ),
    max_size=7,
    unique_by=lambda slot: slot.model,
)


def idle(model, used_us, size_bytes):
    return Slot(model, 0, used_us, size_bytes=size_bytes)


def frees(models, size_bytes):
    return lambda gone: len(gone) >= models and sum(slot.size_bytes for slot in gone) >= size_bytes


@given(slots, st.integers(0, 20))
def test_only_what_may_go_is_a_candidate_and_the_longest_unused_first(pool, now_us):
    found = evictable(pool, now_us)
    assert [slot.last_used_us for slot in found] == sorted(slot.last_used_us for slot in found)
    for slot in pool:
        held = slot.leases or slot.loading or slot.leaving or slot.pinned or slot.size_bytes is None
        assert (slot in found) == (not held and slot.cool_until_us <= now_us)


def test_a_hot_model_need_not_cool_down():
    cooling = Slot("a", 0, 0, cool_until_us=10)
    assert evictable([cooling], 5) == []
    assert evictable([cooling], 5, hot={"a"}) == [cooling]
    assert evictable([cooling], 10) == [cooling]


@given(slots, st.integers(0, 6), st.integers(0, 40))
def test_enough_goes_and_nobody_without_need(pool, models, size_bytes):
    candidates = evictable(pool, 100)
    gone = victims(candidates, frees(models, size_bytes))
    sizes = {slot.model: slot.size_bytes for slot in candidates}
    if gone is None:
        assert len(candidates) < models or sum(sizes.values()) < size_bytes
        return
    assert len(gone) >= models
    assert sum(sizes[name] for name in gone) >= size_bytes
    for spared in gone:
        rest = [name for name in gone if name != spared]
        assert len(rest) < models or sum(sizes[name] for name in rest) < size_bytes


def test_the_longest_unused_goes_unless_it_does_not_help():
    candidates = [idle("old", 1, 1), idle("older than new", 2, 8), idle("new", 3, 9)]
    assert victims(candidates, frees(0, 8)) == ("older than new",)
    assert victims(candidates, frees(1, 0)) == ("old",)
    assert victims(candidates, frees(2, 0)) == ("old", "older than new")
    assert victims(candidates, frees(0, 0)) == ()
    assert victims(candidates, frees(0, 19)) is None
