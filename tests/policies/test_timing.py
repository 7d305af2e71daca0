"""Cadence of a model against cadence of a buffer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.timing import DRAFT_TOKENS_MAX, FASTEST_TOKEN_US, HELD_SHARE_MAX, PAUSE_US, timing_of

Reads = tuple[list[int], list[int]]

reads = st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 40)), max_size=60).map(
    lambda pairs: (list(itertools.accumulate(gap for gap, _ in pairs)), [count for _, count in pairs])
)


def buffered(made_us: Sequence[int], size_tokens: int, spread_us: int = 0) -> Reads:
    """What a reader sees of tokens made at `made_us` behind a buffer that lets go when it is full, and at the end; the
    tokens of one filling come in two reads, `spread_us` apart."""
    arrivals, counts = [], []
    for start in range(0, len(made_us), size_tokens):
        filling = made_us[start : start + size_tokens]
        first = len(filling) // 2
        arrivals += [filling[-1], filling[-1] + spread_us]
        counts += [first, len(filling) - first]
    return arrivals, counts


@given(st.integers(500, 2000), st.data())
def test_a_fast_model_token_by_token_is_measured(tokens_per_s: int, data: st.DataObject) -> None:
    usual_us = 1_000_000 // tokens_per_s
    gaps = data.draw(st.lists(st.integers(usual_us // 2, usual_us * 3), min_size=1, max_size=400))
    arrivals = list(itertools.accumulate(gaps))
    assert timing_of(arrivals, [1] * len(arrivals)) == "measured"


@given(st.integers(500, 2000), st.integers(1, 24), st.integers(1, 100))
def test_a_fast_model_read_in_slices_shorter_than_a_frame_is_measured(
    tokens_per_s: int, slice_ms: int, slices: int
) -> None:
    made = range(0, slices * slice_ms * 1000, 1_000_000 // tokens_per_s)
    arrivals = [number * slice_ms * 1000 for number in range(1, slices + 1)]
    counts = [
        sum(a <= t < a + slice_ms * 1000 for t in made) for a in range(0, slices * slice_ms * 1000, slice_ms * 1000)
    ]
    if len([count for count in counts if count]) >= 2:
        assert timing_of(arrivals, counts) == "measured"


@given(st.lists(st.tuples(st.integers(PAUSE_US, 500_000), st.integers(1, DRAFT_TOKENS_MAX)), min_size=1))
def test_a_few_tokens_at_once_are_measured(steps: list[tuple[int, int]]) -> None:
    arrivals = list(itertools.accumulate(gap for gap, _ in steps))
    assert timing_of(arrivals, [count for _, count in steps]) == "measured"


@given(st.integers(5_000, 200_000), st.integers(2, 4), st.integers(2, 100))
def test_speculative_decoding_at_a_steady_pace_is_measured(step_us: int, tokens: int, steps: int) -> None:
    arrivals = [number * step_us for number in range(steps)]
    assert timing_of(arrivals, [tokens] * steps) == "measured"
    one_by_one = [t for t in arrivals for _ in range(tokens)]  # the same, a record and a read for each token
    assert timing_of(one_by_one, [1] * len(one_by_one)) == "measured"


@given(st.integers(1_000, 100_000), st.integers(9, 200), st.integers(2, 8), st.integers(0, 500))
def test_a_buffer_is_untrusted(token_us: int, size_tokens: int, fillings: int, spread_us: int) -> None:
    size_tokens = max(size_tokens, (PAUSE_US + spread_us) // token_us + 1)
    made = range(0, token_us * size_tokens * fillings, token_us)
    assert timing_of(*buffered(made, size_tokens, spread_us)) == "untrusted"
    assert timing_of(made, [1] * len(made)) == "measured"


def test_a_buffer_of_the_whole_answer() -> None:
    assert timing_of([5_000_000], [200]) == "untrusted"


def test_16_kib_of_a_proxy() -> None:
    """80 tokens of 200 bytes at 30 tokens a second: half a minute of answer in twelve reads."""
    arrivals = [80 * 33_333 * number for number in range(1, 13)]
    assert timing_of(arrivals, [80] * 12) == "untrusted"


@given(st.integers(1_000, 20_000), st.integers(1_000_000, 60_000_000), st.integers(9, 200), st.integers(9, 200))
def test_a_stall_is_the_models_own(token_us: int, stall_us: int, before: int, after: int) -> None:
    arrivals = list(itertools.accumulate([token_us] * before + [stall_us] + [token_us] * after))
    assert timing_of(arrivals, [1] * len(arrivals)) == "measured"


@given(st.integers(9, 400), st.integers(0, 400), st.integers(PAUSE_US, 400_000))
def test_one_late_read_is_not_the_answer(late: int, more: int, gap_us: int) -> None:
    arrivals = list(itertools.accumulate([gap_us] * (late + more + 1)))
    assert timing_of(arrivals, [late, *[1] * (late + more)]) == "measured"


def test_the_lines_themselves() -> None:
    n = DRAFT_TOKENS_MAX + 1
    assert timing_of([0, PAUSE_US], [n - 1, n - 1]) == "measured"
    assert timing_of([0, PAUSE_US], [n, n]) == "untrusted"
    assert timing_of([0, PAUSE_US - 1], [n, n]) == "measured"  # one burst, and no faster than a model could be
    assert timing_of([0, n * FASTEST_TOKEN_US], [1, n - 1]) == "measured"
    assert timing_of([0, n * FASTEST_TOKEN_US - 1], [1, n - 1]) == "untrusted"
    assert HELD_SHARE_MAX == 0.5
    ones = [PAUSE_US * number for number in range(1, n + 1)]
    assert timing_of([0, *ones], [n, *[1] * n]) == "measured"
    assert timing_of([0, *ones[:-1]], [n, *[1] * (n - 1)]) == "untrusted"


def test_nothing_to_judge() -> None:
    assert timing_of([], []) == "measured"
    assert timing_of([1, 2, 3], [0, 0, 0]) == "measured"
    assert timing_of([7], [3]) == "measured"


def test_one_count_per_read() -> None:
    with pytest.raises(ValueError):
        timing_of([1, 2], [1])


@given(reads, st.integers(0, 10**12))
def test_only_differences_of_time_count(seen: Reads, shift_us: int) -> None:
    assert timing_of([t + shift_us for t in seen[0]], seen[1]) == timing_of(*seen)


@given(reads)
def test_how_a_moment_is_cut_into_reads_does_not_count(seen: Reads) -> None:
    arrivals = [t for t, count in zip(*seen, strict=True) for _ in range(count)]
    assert timing_of(arrivals, [1] * len(arrivals)) == timing_of(*seen)


@given(reads, st.lists(st.integers(0, 12_000_000), max_size=60))
def test_reads_without_tokens_do_not_count(seen: Reads, empty_us: list[int]) -> None:
    with_empty = sorted([*zip(*seen, strict=True), *((t, 0) for t in empty_us)])
    assert timing_of([t for t, _ in with_empty], [n for _, n in with_empty]) == timing_of(*seen)


def test_keep_alives_do_not_fill_a_silence() -> None:
    n = DRAFT_TOKENS_MAX + 1
    arrivals = [0, PAUSE_US // 2, PAUSE_US, PAUSE_US + PAUSE_US // 2]
    assert timing_of(arrivals, [n, 0, n, 0]) == "untrusted"
