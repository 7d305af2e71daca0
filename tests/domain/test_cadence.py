"""Pace of one member and rhythm of two, against the whole history computed afresh."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.cadence import PAIR_SAMPLES_MAX, TOKENS_MAX, Pace, PairCadence
from tests.domain.councils import MS, sample

SPAN_US = 1_000_000


@st.composite
def histories(draw):
    gaps = draw(st.lists(st.sampled_from([0, 0, 20, 50, 400, 1200]), min_size=1, max_size=40))
    at, samples = 10_000_000, []
    for position, gap_ms in enumerate(gaps):
        at += gap_ms * MS if position else 0
        samples.append(
            sample(
                position,
                at,
                gap_ms * MS if position else None,
                certainty=draw(st.none() | st.floats(0, 1)),
                throttled=draw(st.sampled_from([False, False, True])),
            )
        )
    return samples


@given(histories(), st.integers(0, 1500))
def test_means_are_those_of_the_last_span(samples, later_ms):
    pace = Pace()
    for one in samples:
        pace.take(one)
    since = samples[-1].token.t_us + later_ms * MS - SPAN_US
    pace.forget(since)
    last = [s for s in samples if s.token.t_us >= since]
    timed = [s.token.delta_us for s in last if s.token.delta_us is not None and not s.token.throttled]
    arrivals = [delta for delta in timed if delta > 0]
    assert pace.mean_delta_ms() == (pytest.approx(sum(timed) / len(timed) / 1000) if arrivals else None)
    rated = [s.uncertainty.certainty for s in last if s.uncertainty.certainty is not None]
    assert pace.mean_certainty() == (pytest.approx(sum(rated) / len(rated), abs=1e-8) if rated else None)
    ever = [s.token.delta_us for s in samples if s.token.delta_us and not s.token.throttled]
    assert pace.typical_arrival_ms() == (statistics.median(ever[-5:]) / 1000 if ever else None)


def test_a_pause_does_not_change_the_typical_time():
    pace, at_ms = Pace(), 0
    for position, gap_ms in enumerate((50, 60, 3000, 40, 50)):
        at_ms += gap_ms
        pace.take(sample(position, at_ms * MS, gap_ms * MS))
    assert pace.typical_arrival_ms() == 50


def test_a_chunk_of_many_tokens_arrives_once():
    pace = Pace()
    for position in range(21):
        first_of_chunk = position % 10 == 0
        delta = None if position == 0 else 500 * MS if first_of_chunk else 0
        pace.take(sample(position, 500 * MS * (1 + position // 10), delta))
    assert pace.mean_delta_ms() == pytest.approx(50)
    assert pace.typical_arrival_ms() == pytest.approx(500)
    assert (pace.gap_us, pace.gap_position) == (500 * MS, 20)


def test_a_throttled_arrival_has_no_gap():
    pace = Pace()
    for position, throttled in enumerate((False, False, True)):
        pace.take(sample(position, (1 + position) * 50 * MS, 50 * MS if position else None, throttled=throttled))
    assert pace.gap_us is None
    assert pace.mean_delta_ms() == 50


def test_a_mean_at_a_line_stays_at_it_for_ever():
    pace = Pace()
    for position in range(20_000):
        pace.take(sample(position, position * 13 * MS, 13 * MS if position else None, certainty=0.7))
        pace.forget(position * 13 * MS - SPAN_US)
        assert pace.mean_certainty() == 0.7


def test_the_past_is_bounded():
    pace = Pace()
    for position in range(TOKENS_MAX + 100):
        pace.take(sample(position, position, 1 if position else None, certainty=float(position >= 100)))
    assert pace.mean_certainty() == 1.0


# ── two ──


def rhythm(gaps_ms, throttled=()):
    """The pair after windows that each bring a token of both, with these gaps."""
    first, second, pair = Pace(), Pace(), PairCadence()
    x_us = y_us = 0
    for index, (x, y) in enumerate(gaps_ms):
        x_us, y_us = x_us + x * MS, y_us + y * MS
        first.take(sample(index, x_us, x * MS, throttled=index in throttled))
        second.take(sample(index, y_us, y * MS))
        pair.take(first, second)
    return pair


five = [(40, 41), (60, 63), (50, 52), (45, 45), (55, 58)]


def test_the_same_rhythm_at_another_pace():
    assert rhythm([(x, 3 * x) for x, _ in five]).correlation(0, 5) == pytest.approx(1.0)
    assert rhythm([(x, 100 - x) for x, _ in five]).correlation(0, 5) == pytest.approx(-1.0)


def test_too_few_samples_say_nothing():
    assert rhythm(five).correlation(0, 5) is not None
    assert rhythm(five[:4]).correlation(0, 5) is None
    assert rhythm(five, throttled={2}).correlation(0, 5) is None
    assert rhythm(five).correlation(45 * MS, 5) is None  # the first sample is too old by then


def test_an_exactly_constant_pace_has_no_correlation():
    assert rhythm([(x, 50) for x, _ in five]).correlation(0, 5) is None
    assert rhythm([(50, 50)] * 9).correlation(0, 5) is None


def test_a_slow_member_is_counted_once_per_token_of_its_own():
    slow, fast, pair = Pace(), Pace(), PairCadence()
    for token, gap_ms in enumerate((200, 250)):
        slow.take(sample(token, (1 + token) * 250 * MS, gap_ms * MS))
        for position in range(10 * token, 10 * token + 10):
            fast.take(sample(position, (250 * (1 + token) + position) * MS, (9 + position) * MS))
            pair.take(slow, fast)
    assert pair.correlation(0, 2) == pytest.approx(1.0)
    assert pair.correlation(0, 3) is None


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=2, max_size=40))
def test_like_the_library_on_what_is_left_of_the_span(gaps):
    pair = rhythm(gaps)
    stamps = [
        max(sum(x for x, _ in gaps[: i + 1]), sum(y for _, y in gaps[: i + 1])) for i in range(len(gaps))
    ]  # fmt: skip
    left = [gap for gap, at in zip(gaps, stamps, strict=True) if at >= stamps[-1] - 1000]
    found = pair.correlation((stamps[-1] - 1000) * MS, 2)
    xs, ys = [x for x, _ in left], [y for _, y in left]
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(statistics.correlation(xs, ys), abs=1e-9)


def test_samples_of_a_pair_are_bounded():
    gaps = [(1, 500)] * 5 + [(1 + i % 2, 1 + i % 2) for i in range(PAIR_SAMPLES_MAX)]
    assert rhythm(gaps).correlation(0, 5) == pytest.approx(1.0)
