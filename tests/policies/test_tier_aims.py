"""What was measured beside what the tier aims at."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.models import Tier
from engine.domain.telemetry import ModelFigures
from policies.load import load_policies
from policies.tier_aims import NEVER_COLD, NEVER_WARM, NO_ANSWER, NO_PACE, NOT_TOLD, hold

POLICY = load_policies().tiers
MID = POLICY.mid  # 15 tokens/s, 2 s warm, 10 s cold

figure = st.none() | st.floats(0.001, 1e6)
tiers = st.sampled_from(list(Tier))


def measured(tps=None, warm_ms=None, cold_ms=None, answers=1):
    """Figures of so many answers, the last of each kind as given."""
    figures = ModelFigures(ttft_warm_ms=warm_ms, ttft_cold_ms=cold_ms)
    figures.ttft_ms.extend([1.0] * answers)
    if tps is not None:
        figures.streamed_tokens, figures.streamed_ms = 100, 100 * 1000 / tps
    return figures


def parts(against):
    return (against.tps, against.ttft_warm_ms, against.ttft_cold_ms)


@pytest.mark.parametrize(
    ("tps", "warm_ms", "cold_ms", "missed", "below"),
    [
        (None, None, None, (None, None, None), None),
        (15.0, None, None, (False, None, None), False),
        (14.9, None, None, (True, None, None), True),
        (None, 2000.0, None, (None, False, None), False),
        (None, 2001.0, None, (None, True, None), True),
        (None, None, 10_000.0, (None, None, False), False),
        (None, None, 10_001.0, (None, None, True), True),
        (99.0, 100.0, 10_001.0, (False, False, True), True),
        (99.0, 100.0, 9000.0, (False, False, False), False),
        (99.0, 2001.0, 100.0, (False, True, False), True),
    ],
)
def test_a_miss_is_one_of_the_figure_that_missed(tps, warm_ms, cold_ms, missed, below):
    against = hold(MID, measured(tps, warm_ms, cold_ms))
    assert tuple(held.missed for held in parts(against)) == missed
    assert against.below is below


@given(tiers, figure, figure, figure)
def test_every_figure_stands_beside_its_own_aim_and_is_judged_by_it_alone(tier, tps, warm_ms, cold_ms):
    limits = POLICY.limits(tier)
    against = hold(limits, measured(tps, warm_ms, cold_ms))
    assert [held.aim for held in parts(against)] == [limits.tps_minimum, limits.ttft_warm_ms, limits.ttft_cold_ms]
    assert [held.measured for held in parts(against)] == [pytest.approx(tps), warm_ms, cold_ms]
    for held in parts(against):
        assert (held.measured is None) == (held.missed is None) == (held.reason is not None)
    for kind in ("ttft_warm_ms", "ttft_cold_ms"):
        alone = hold(limits, measured(**{kind.removeprefix("ttft_"): getattr(against, kind).measured}))
        assert getattr(alone, kind).missed == getattr(against, kind).missed
    if all(held.missed is None for held in parts(against)):
        assert against.below is None
    else:
        assert against.below is any(held.missed for held in parts(against))


@given(tiers, st.floats(0.001, 1e6), st.floats(0.001, 1e6))
def test_who_is_slower_never_hits_what_who_is_faster_missed(tier, one, other):
    slow, fast = sorted((one, other))
    limits = POLICY.limits(tier)
    assert hold(limits, measured(slow)).tps.missed >= hold(limits, measured(fast)).tps.missed
    for kind in ("warm_ms", "cold_ms"):
        late, early = (getattr(hold(limits, measured(**{kind: ms})), f"ttft_{kind}") for ms in (fast, slow))
        assert late.missed >= early.missed


@pytest.mark.parametrize(
    ("figures", "reasons"),
    [
        (None, (NO_ANSWER, NO_ANSWER, NO_ANSWER)),
        (ModelFigures(), (NO_ANSWER, NO_ANSWER, NO_ANSWER)),
        (measured(), (NO_PACE, NOT_TOLD, NOT_TOLD)),
        (measured(20.0), (None, NOT_TOLD, NOT_TOLD)),
        (measured(20.0, warm_ms=50.0), (None, None, NEVER_COLD)),
        (measured(20.0, cold_ms=900.0), (None, NEVER_WARM, None)),
        (measured(20.0, 50.0, 900.0), (None, None, None)),
    ],
)
def test_what_was_not_measured_is_null_and_says_why(figures, reasons):
    against = hold(MID, figures)
    assert tuple(held.reason for held in parts(against)) == reasons
    assert all((held.measured is None) == (held.reason is not None) for held in parts(against))


def test_the_aims_are_those_of_the_users_own_table():
    against = hold(attrs.evolve(MID, ttft_cold_ms=500.0), measured(cold_ms=900.0))
    assert (against.ttft_cold_ms.aim, against.ttft_cold_ms.missed) == (500.0, True)
