"""Resonance: what starts it, what ends it, how often."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.resonance import Harmony, Resonance, ResonancePhase
from tests.domain.councils import MS, PARAMS

HIGH: dict[str, Any] = {"coherence": 0.9, "energy": 0.8, "correlation": 0.75, "fresh": True}
STEP_MS = 100


def run(steps, step_ms=STEP_MS):
    """The changes with the time of each, for steps that differ from HIGH by these values."""
    resonance, changes = Resonance(PARAMS), []
    for index, differing in enumerate(steps):
        now = HIGH | differing
        r = now.pop("correlation")
        change = resonance.step(index * step_ms * MS, Harmony(**now, correlation=lambda r=r: r, streams=("a", "b")))
        if change is not None:
            changes.append((index * step_ms, change))
    return changes


def phases(steps):
    return [(at, change.phase) for at, change in run(steps)]


def test_starts_after_the_dwell_and_says_why():
    ((at, change),) = run([{}] * 20)
    assert at == 800
    assert change.phase is ResonancePhase.START
    assert (change.coherence, change.energy, change.correlation, change.duration_ms) == (0.9, 0.8, 0.75, None)
    assert change.strength == 0.75
    assert change.streams == ("a", "b")


@pytest.mark.parametrize(
    "line", [{"coherence": 0.85}, {"energy": 0.70}, {"correlation": 0.7}, {"coherence": 0.85, "energy": 0.70}]
)
def test_the_lines_themselves_are_high_enough(line):
    assert phases([line] * 10) == [(800, ResonancePhase.START)]


@pytest.mark.parametrize(
    "low",
    [
        {"coherence": 0.84},
        {"energy": 0.69},
        {"correlation": 0.69},
        {"coherence": None},
        {"energy": None},
        {"correlation": None},
    ],
)
def test_one_break_begins_the_dwell_anew(low):
    assert phases([{}] * 7 + [low] + [{}] * 8) == []
    assert phases([{}] * 7 + [low] + [{}] * 9) == [(1600, ResonancePhase.START)]


def test_a_held_disagreement_does_not_start_it():
    assert phases([{}] + [{"fresh": False}] * 15) == []
    assert phases([{}] + [{"fresh": False}] * 9 + [{}]) == [(1000, ResonancePhase.START)]


@pytest.mark.parametrize("low", [{"coherence": 0.74}, {"energy": 0.59}, {"coherence": None}, {"energy": None}])
def test_ends_below_its_lower_lines(low):
    (_, start), (at, end) = run([{}] * 12 + [{"coherence": 0.8, "energy": 0.65, "correlation": None}] * 3 + [low])
    assert at == 1500
    assert end.phase is ResonancePhase.END
    assert end.duration_ms == 700
    assert end.strength == start.strength == 0.75
    assert end.coherence == (HIGH | low)["coherence"]
    assert end.energy == (HIGH | low)["energy"]
    assert end.streams == ("a", "b")


def test_the_best_of_it_is_told_at_the_end():
    best = {"coherence": 0.95, "energy": 0.97, "correlation": 0.93}
    (_, start), (_, end) = run([{}] * 10 + [best] + [{"energy": 0.1}])
    assert (start.strength, end.strength) == (0.75, 0.93)


def test_the_next_one_waits_for_its_interval():
    steps = [{}] * 10 + [{"energy": 0.1}] + [{}] * 60
    assert phases(steps) == [(800, ResonancePhase.START), (1000, ResonancePhase.END), (5800, ResonancePhase.START)]


def test_after_an_end_the_dwell_begins_anew():
    steps = [{}] * 70 + [{"energy": 0.1}] + [{}] * 20
    assert phases(steps) == [(800, ResonancePhase.START), (7000, ResonancePhase.END), (7900, ResonancePhase.START)]


moments = st.fixed_dictionaries(
    {},
    optional={
        "coherence": st.sampled_from([None, 0.7, 0.8, 0.9]),
        "energy": st.sampled_from([None, 0.5, 0.65, 0.9]),
        "correlation": st.sampled_from([None, 0.6, 0.9]),
        "fresh": st.booleans(),
    },
)


@given(st.lists(st.tuples(moments, st.integers(1, 30)), max_size=20))
def test_starts_and_ends_take_turns_and_starts_are_rare(runs):
    changes = run([moment for moment, times in runs for _ in range(times)])
    assert [change.phase for _, change in changes] == [
        (ResonancePhase.START, ResonancePhase.END)[index % 2] for index in range(len(changes))
    ]
    starts = [at for at, change in changes if change.phase is ResonancePhase.START]
    assert all(later - earlier >= 5000 for earlier, later in itertools.pairwise(starts))
    assert all(0.7 <= change.strength <= 1 for _, change in changes)
