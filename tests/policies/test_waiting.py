from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.waiting import MODELS_MAX, Paces, estimated_wait_ms, in_words

ms = st.floats(0, 1e6)


@pytest.mark.parametrize("missing", [(1, [5.0], None, 0.0), (1, [5.0], 10.0, None), (1, [], 10.0, 0.0)])
def test_what_was_not_measured_is_not_estimated(missing):
    assert estimated_wait_ms(*missing) is None


def test_the_leases_that_run_end_one_after_the_other():
    running = [1000.0, 4000.0, 9000.0]  # of 10 s each
    assert [estimated_wait_ms(n, running, 10_000, 0.0) for n in (1, 2, 3, 4, 5)] == [1000, 6000, 9000, 11_000, 16_000]
    assert estimated_wait_ms(1, running, 10_000, 2500.0) == 3500
    assert estimated_wait_ms(1, [12_000.0], 10_000, 0.0) == 0  # it may end at any moment


@given(st.integers(1, 50), st.lists(ms, min_size=1, max_size=8), ms, ms)
def test_a_later_place_never_waits_for_less(position, running, lease_ms, load_ms):
    here = estimated_wait_ms(position, running, lease_ms, load_ms)
    behind = estimated_wait_ms(position + 1, running, lease_ms, load_ms)
    assert load_ms <= here <= behind + 1e-6


def test_means_follow_what_was_seen():
    paces = Paces()
    assert (paces.lease_ms, paces.load_ms("a")) == (None, None)
    paces.saw_lease(1000)
    paces.saw_lease(2000)
    assert paces.lease_ms == pytest.approx(1300)
    paces.saw_load("a", 4000)
    paces.saw_load("b", 2000)
    assert (paces.load_ms("a"), paces.load_ms("unknown")) == (4000, 3000)


def test_so_many_models_are_remembered():
    paces = Paces()
    for n in range(MODELS_MAX + 5):
        paces.saw_load(f"m{n}", 1000.0 * n)
    assert len(paces._load_ms) == MODELS_MAX
    assert "m4" not in paces._load_ms


@pytest.mark.parametrize(
    ("wait_ms", "words"),
    [(0, "about 1 s"), (2600, "about 3 s"), (17_600, "about 20 s"), (200_000, "about 3 min")],
)
def test_an_estimate_sounds_like_one(wait_ms, words):
    assert in_words(wait_ms) == words
