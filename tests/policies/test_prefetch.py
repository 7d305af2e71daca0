from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.admission import PoolCaps, Wanted
from policies.eviction import Slot
from policies.prefetch import OFTEN_MIN, Candidate, Purpose, choose

CAPS = PoolCaps(8, 8, 4, 3, ram_budget_bytes=10, cooldown_us=30)
NOW = 100


def candidate(model, purpose=Purpose.WARM, size=3, **more):
    return Candidate(Wanted(model, size, size), purpose, **more)


def test_warm_models_come_before_councils_and_those_before_what_is_used_often():
    often = candidate("often", Purpose.OFTEN, uses=99)
    council, warm = candidate("member", Purpose.COUNCIL), candidate("warm")
    assert choose([often, council, warm], [], CAPS, NOW) == "warm"
    assert choose([often, council], [], CAPS, NOW) == "member"
    assert choose([often], [], CAPS, NOW) == "often"
    assert choose([], [], CAPS, NOW) is None


def test_of_one_purpose_the_most_used_else_the_first_named():
    a, b = candidate("a", Purpose.OFTEN, uses=3), candidate("b", Purpose.OFTEN, uses=4)
    assert choose([a, b], [], CAPS, NOW) == "b"
    assert choose([candidate("x"), candidate("y")], [], CAPS, NOW) == "x"


def test_what_has_no_reason_to_come_stays_out():
    for out in (
        candidate("a", let_go=True),
        candidate("a", failed=True),
        candidate("a", evicted_us=NOW - 29),
        candidate("a", Purpose.OFTEN, uses=OFTEN_MIN - 1),
        candidate("a", size=None),
        candidate("a", size=11),
    ):
        assert choose([out], [], CAPS, NOW) is None
    assert choose([candidate("a", evicted_us=NOW - 30)], [], CAPS, NOW) == "a"
    assert choose([candidate("a")], [Slot("a", 0, 0)], CAPS, NOW) is None


def test_one_that_does_not_fit_keeps_no_room_from_the_next():
    slots = [Slot("here", 0, 0, size_bytes=6)]
    assert choose([candidate("large", size=5), candidate("small", size=4)], slots, CAPS, NOW) == "small"


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 12), st.sampled_from(Purpose)), max_size=6),
    st.lists(st.integers(0, 9), max_size=5),
)
def test_it_takes_free_room_only(wishes, sizes):
    slots = [Slot(f"s{n}", 0, 0, size_bytes=size) for n, size in enumerate(sizes)]
    chosen = choose([candidate(m, p, size, uses=5) for m, size, p in wishes], slots, CAPS, NOW)
    if chosen is not None:
        needed = min(size for m, size, _ in wishes if m == chosen)
        assert sum(sizes) + needed <= 10
        assert len(sizes) + 1 <= 3
