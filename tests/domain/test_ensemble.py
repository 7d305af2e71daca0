"""Energy of a council as one, and whole runs of it: golden figures and every property of the specification."""

from __future__ import annotations

import itertools
import math
import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.ensemble import DiMethod, certainty_weight, modulate, weighted_mean
from engine.domain.interference import Pattern
from engine.domain.resonance import ResonancePhase
from tests.domain.councils import CAT, DOG, FRAME_US, MS, PARAMS, Council, play, scripts

T0 = 10_000 * MS
STREAMS = ("s0", "s1", "s2", "s3")
unit = st.floats(0, 1)
councils = st.lists(st.tuples(unit, st.sampled_from([0.8, 1.0, 1.2]) | st.floats(0.01, 2)), min_size=1, max_size=6)


# ── golden figures ──


@pytest.mark.parametrize(("di", "expected"), [(0.0, 0.875), (0.5, 0.7), (1.0, 0.525), (None, 0.7)])
def test_modulation_golden(di, expected):
    assert modulate(weighted_mean([0.6, 0.8], [1, 1]), di, PARAMS) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("certainty", "weight"),
    [(None, 1.0), (0.0, 0.8), (0.3, 0.8), (0.301, 1.0), (0.699, 1.0), (0.7, 1.2), (1.0, 1.2)],
)
def test_weight_by_certainty(certainty, weight):
    assert certainty_weight(certainty, PARAMS) == weight


# ── properties of the formulas ──


@given(councils, st.floats(1e-3, 1e3))
def test_the_mean_is_within_its_energies_and_knows_no_scale_of_weights(council, factor):
    energies, weights = zip(*council, strict=True)
    mean = weighted_mean(energies, weights)
    assert min(energies) <= mean <= max(energies)
    assert weighted_mean(energies, [factor * weight for weight in weights]) == pytest.approx(mean, abs=1e-12)


@given(unit, st.lists(st.floats(0.01, 2), min_size=1, max_size=6))
def test_the_mean_of_equal_energies_is_theirs(energy, weights):
    assert weighted_mean([energy] * len(weights), weights) == energy


@given(unit, st.none() | unit)
def test_modulated_is_more_only_when_members_agree(energy, di):
    found = modulate(energy, di, PARAMS)
    assert 0.0 <= found <= 1.0
    if di is None:
        assert found == energy
    elif di >= 0.5:
        assert found <= energy
    else:
        assert found >= energy


# ── a council ──


def test_members_are_weighted_by_their_last_second():
    council = Council("sure", "unsure", "silent")
    council.energies = {"sure": 0.9, "unsure": 0.3, "silent": 0.6, "stranger": 0.0}
    council.say("sure", T0, certainty=0.9)
    council.say("unsure", T0, certainty=0.1)
    reading = council.step(T0).reading
    assert reading.energy == pytest.approx((1.2 * 0.9 + 0.8 * 0.3 + 1.0 * 0.6) / 3.0)
    assert reading.weights == pytest.approx({"sure": 0.4, "unsure": 0.8 / 3, "silent": 1 / 3})
    assert council.step(T0 + 1000 * MS).reading.weights == reading.weights
    assert council.step(T0 + 1001 * MS).reading.energy == pytest.approx(0.6)


def test_who_has_no_energy_yet_is_left_out():
    council = Council("a", "b")
    assert council.meter.step(T0, {"a": None}).reading is None
    reading = council.meter.step(T0, {"a": None, "b": 0.4}).reading
    assert (reading.energy, reading.weights) == (0.4, {"b": 1.0})
    council.say("a", T0, CAT)
    council.say("b", T0, CAT)
    assert council.meter.step(T0, {}).windows == ()


def test_one_member_left_is_its_own_energy():
    council = Council("a", "b")
    council.energies = {"a": 0.1, "b": 0.7}
    council.step(T0)
    council.leave("a")
    reading = council.step(T0 + MS).reading
    assert (reading.energy, reading.modulated, reading.gain, reading.weights) == (0.7, 0.7, 0.0, {"b": 1.0})
    assert (reading.di, reading.di_method, reading.reason) == (None, DiMethod.NONE, "one_member")


def test_agreement_amplifies_and_says_by_how_much():
    council = Council("a", "b", energy=0.6)
    council.say("a", T0, CAT)
    council.say("b", T0, CAT)
    reading = council.step(T0).reading
    assert (reading.di, reading.mixture_uncertainty) == (0.0, 0.0)
    assert reading.modulated == pytest.approx(0.75)
    assert reading.gain == pytest.approx(0.15)


# ── whole runs ──


def in_rhythm(council: Council, frames: int, tops, at_us: int = T0, seed: int = 1, r: bool = True):
    """Frames of 50 ms in which both members speak, their gaps going up and down together or (not r) against each
    other."""
    chance, steps = random.Random(seed), []
    for _ in range(frames):
        at_us += 50 * MS
        jitter = chance.randrange(-5 * MS, 5 * MS)
        council.say("a", at_us - 20 * MS + jitter, tops[0])
        council.say("b", at_us - 20 * MS + (jitter if r else -jitter), tops[1])
        steps.append((at_us, council.step(at_us)))
    return steps


def test_a_run_in_agreement_is_constructive_and_resonates():
    council = Council("a", "b", energy=0.75)
    steps = in_rhythm(council, 60, (CAT, CAT))
    changes = [(at, step.interference) for at, step in steps if step.interference]
    assert [(at - T0, change.pattern) for at, change in changes] == [(150 * MS, Pattern.CONSTRUCTIVE)]
    assert changes[0][1].correlation is None  # not enough of it by then
    ((_, started),) = [(at, step.resonance) for at, step in steps if step.resonance]
    assert started.phase is ResonancePhase.START
    assert started.correlation == pytest.approx(1.0)
    assert (started.strength, started.streams) == (0.75, ("a", "b"))
    steps = in_rhythm(council, 20, (CAT, DOG), at_us=steps[-1][0])
    ends = [step.resonance for _, step in steps if step.resonance]
    assert [(end.phase, end.coherence) for end in ends] == [(ResonancePhase.END, 0.0)]
    patterns = [step.interference for _, step in steps if step.interference]
    assert [(change.pattern, change.intensity) for change in patterns] == [(Pattern.DESTRUCTIVE, 1.0)]
    assert patterns[0].correlation == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("energy", "tops", "r"), [(0.69, (CAT, CAT), True), (0.75, (CAT, CAT), False), (0.75, (None, None), True)]
)
def test_no_resonance_without_energy_or_rhythm_or_lists(energy, tops, r):
    steps = in_rhythm(Council("a", "b", energy=energy), 60, tops, r=r)
    assert all(step.resonance is None for _, step in steps)


def test_a_resonance_ends_when_it_is_no_longer_looked_at_or_a_member_leaves():
    for last in ("load", "leave", "all leave"):
        council = Council("a", "b", energy=0.75)
        at = in_rhythm(council, 60, (CAT, CAT))[-1][0]
        if last != "load":
            for stream in ("a", "b")[: 1 if last == "leave" else 2]:
                council.leave(stream)
        step = council.step(at + 16 * MS, patterns=last != "load")
        assert step.resonance is not None
        assert step.resonance.phase is ResonancePhase.END
        assert step.resonance.coherence is None
        assert step.resonance.duration_ms > 0
        assert council.step(at + 32 * MS).resonance is None


def test_a_held_window_does_not_start_a_resonance():
    council = Council("a", "b", energy=0.75)
    steps = in_rhythm(council, 60, (CAT, CAT))
    (start,) = [at for at, step in steps if step.resonance]
    council = Council("a", "b", energy=0.75)
    at = in_rhythm(council, (start - T0) // (50 * MS) - 1, (CAT, CAT))[-1][0]
    held = council.step(at + 150 * MS)
    assert held.reading.di_stale
    assert held.resonance is None
    ((_, step),) = in_rhythm(council, 1, (CAT, CAT), at_us=at + 150 * MS)
    assert step.resonance is not None


def test_a_resonance_needs_its_number_of_members():
    council = Council("a", "b", energy=0.75, params=attrs.evolve(PARAMS, resonance_models=3))
    assert all(step.resonance is None for _, step in in_rhythm(council, 60, (CAT, CAT)))


def test_windows_before_a_gap_make_no_band():
    council = Council("a", "b")
    before = in_rhythm(council, 2, (CAT, CAT))
    council.step(T0 + 3000 * MS)
    after = in_rhythm(council, 3, (CAT, CAT), at_us=T0 + 5000 * MS)
    assert [step.interference is not None for _, step in before + after] == [False] * 4 + [True]


def test_who_joins_again_has_a_rhythm_again():
    council = Council("a", "b", energy=0.75)
    at = in_rhythm(council, 120, (CAT, CAT))[-1][0]
    at = in_rhythm(council, 3, (CAT, DOG), at_us=at)[-1][0]
    council.meter.join("a")
    council.last.pop("a")
    steps = in_rhythm(council, 60, (CAT, CAT), at_us=at)
    assert [step.resonance.phase for _, step in steps if step.resonance] == [ResonancePhase.START]


def test_correlation_needs_every_pair():
    council = Council("a", "b", "c", energy=0.75)
    chance, at = random.Random(2), T0
    for index in range(60):
        at += 50 * MS
        jitter = chance.randrange(-5 * MS, 5 * MS)
        for stream in ("a", "b"):
            council.say(stream, at - 20 * MS + jitter, CAT)
        council.say("c", at - 10 * MS, CAT, throttled=index % 2 == 0)
        assert council.step(at).resonance is None


def check(step, members):
    """What holds of every step."""
    reading = step.reading
    assert 0.0 <= reading.energy <= 1.0
    assert 0.0 <= reading.modulated <= 1.0
    assert reading.gain == reading.modulated - reading.energy
    assert math.fsum(reading.weights.values()) == pytest.approx(1.0)
    assert (reading.di is None) == (reading.di_method is DiMethod.NONE) == (reading.reason is not None)
    assert reading.di is None or 0.0 <= reading.di <= 1.0
    assert reading.di is not None or not reading.di_stale
    assert (reading.mixture_uncertainty is not None) == (reading.di_method is DiMethod.JSD_TOPK)
    if members < 2:
        assert reading.reason == "one_member"
    assert len(step.windows) <= 1
    for window in step.windows:
        assert len(window.positions) >= 2
        assert (window.di, window.di_method) == (reading.di, reading.di_method)
        assert all(0.0 <= value <= 1.0 for _, _, value in window.agreement)
        assert not reading.di_stale
    if step.interference:
        assert step.windows
        assert step.interference.coherence == 1 - reading.di


@given(scripts(), st.integers(1, 4))
def test_every_step_of_any_run(script, members):
    seen = dict.fromkeys(STREAMS, -1)
    for step in play(script, STREAMS[:members]):
        check(step, members)
        for window in step.windows:
            assert any(position > seen[stream] for stream, position in window.positions.items())
            seen |= window.positions


@given(scripts())
def test_the_same_run_says_the_same(script):
    assert play(script, STREAMS) == play(script, STREAMS)


@given(scripts())
def test_any_order_of_members_says_the_same(script):
    for one, other in zip(play(script, STREAMS), play(script, STREAMS[::-1]), strict=True):
        assert (one.reading.di is None) == (other.reading.di is None)
        assert other.reading.di == pytest.approx(one.reading.di, abs=1e-12)
        assert other.reading.reason == one.reading.reason
        assert other.reading.di_stale == one.reading.di_stale
        assert other.reading.energy == pytest.approx(one.reading.energy, abs=1e-12)
        assert other.reading.sync_latency_ms == one.reading.sync_latency_ms


@given(scripts(), st.integers(0, 3))
def test_reading_more_often_does_not_change_what_is_read(script, extra):
    """Steps between frames that brought nothing: no window comes of them, and none is lost."""
    council, plain, now_us = Council(*STREAMS[:2]), play(script, STREAMS[:2]), 1_000_000
    for (gap_ms, said), expected in zip(script, plain, strict=True):
        for part in range(extra):
            assert council.step(now_us + gap_ms * MS * part // (extra + 1)).windows == ()
        now_us += gap_ms * MS
        for index, (stream, top, certainty, throttled) in enumerate(said):
            council.say(stream, now_us - (len(said) - index) * MS, top, certainty=certainty, throttled=throttled)
        assert council.step(now_us).windows == expected.windows


@given(st.lists(st.sampled_from(["same", "other", "quiet"]), min_size=1, max_size=12), st.integers(0, 9))
def test_starts_of_resonance_are_five_seconds_apart(acts, seed):
    council, at, starts, on = Council("a", "b", energy=0.75), T0, [], False
    for act in acts:
        if act == "quiet":
            at += 1500 * MS
        steps = in_rhythm(council, 20, (CAT, DOG if act == "other" else CAT), at_us=at, seed=seed)
        at = steps[-1][0]
        for when, step in steps:
            if step.resonance:
                assert (step.resonance.phase is ResonancePhase.START) != on
                on = not on
                starts += [when] if on else []
    assert all(later - earlier >= 5000 * MS for earlier, later in itertools.pairwise(starts))


def test_a_frame_without_a_new_token_keeps_the_last_window():
    council = Council("a", "b")
    council.say("a", T0, CAT)
    council.say("b", T0, DOG)
    first = council.step(T0)
    assert council.step(T0 + FRAME_US).reading == first.reading
