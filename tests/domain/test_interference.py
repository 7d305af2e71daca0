"""Bands of disagreement: edges, hysteresis, dwell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.ensemble_params import DiMethod
from engine.domain.interference import Interference, Pattern, band_after, band_of, interference_change
from tests.domain.councils import PARAMS

C, N, D = Pattern.CONSTRUCTIVE, Pattern.NEUTRAL, Pattern.DESTRUCTIVE
unit = st.floats(0, 1)


def bands(dis, method=DiMethod.JSD_TOPK):
    interference = Interference(PARAMS)
    return [interference.window(di, method) for di in dis]


@pytest.mark.parametrize(("di", "expected"), [(0, C), (0.3, C), (0.31, N), (0.69, N), (0.7, D), (1, D)])
def test_edges_without_memory(di, expected):
    assert band_of(di, PARAMS) is expected
    assert band_after(None, di, PARAMS) is expected


@pytest.mark.parametrize(
    ("band", "di", "expected"),
    [
        (C, 0.35, C),
        (C, 0.36, N),
        (C, 0.71, D),
        (N, 0.26, N),
        (N, 0.24, C),
        (N, 0.74, N),
        (N, 0.76, D),
        (D, 0.66, D),
        (D, 0.64, N),
        (D, 0.1, C),
    ],
)
def test_a_band_is_left_past_its_edge_only(band, di, expected):
    assert band_after(band, di, PARAMS) is expected


def test_three_windows_in_a_row_make_a_band():
    assert bands([0.1, 0.1, 0.1, 0.1]) == [None, None, C, None]
    assert bands([0.1, 0.1, 0.5, 0.1, 0.1, 0.1]) == [None, None, None, None, None, C]
    assert bands([0.1] * 3 + [0.5, 0.9, 0.9, 0.9]) == [None, None, C, None, None, None, D]


def test_windows_of_two_methods_do_not_add_up():
    interference = Interference(PARAMS)
    methods = [DiMethod.JSD_TOPK, DiMethod.JSD_TOPK, DiMethod.TIMING, DiMethod.TIMING, DiMethod.TIMING]
    assert [interference.window(0.1, method) for method in methods] == [None, None, None, None, C]


def test_a_gap_begins_the_count_anew():
    interference = Interference(PARAMS)
    interference.window(0.1, DiMethod.JSD_TOPK)
    interference.window(0.1, DiMethod.JSD_TOPK)
    interference.interrupt()
    assert [interference.window(0.1, DiMethod.JSD_TOPK) for _ in range(3)] == [None, None, C]


@given(st.lists(st.floats(0.25, 0.35) | st.floats(0.25, 0.35), min_size=3, max_size=60))
def test_noise_around_an_edge_changes_the_band_once_at_most(dis):
    assert len([band for band in bands(dis) if band is not None]) <= 1


@given(st.lists(unit, max_size=60))
def test_a_change_is_to_another_band_and_three_windows_wanted_it(dis):
    held = None
    for index, band in enumerate(bands(dis)):
        if band is not None:
            assert band is not held
            assert index >= 2
            assert {band_after(held, di, PARAMS) for di in dis[index - 2 : index + 1]} == {band}
            held = band


@given(unit)
def test_what_a_change_tells(di):
    change = interference_change(N, di, None, ("a", "b"))
    assert change.coherence == 1 - di
    assert change.intensity == abs(1 - 2 * di)
