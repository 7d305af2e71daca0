from __future__ import annotations

import statistics

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.events import ModelChanged, SampleBatch, SessionClosed
from engine.domain.generation import EndReason
from engine.domain.models import ModelState
from engine.domain.telemetry import FPS_WINDOW_US, MODELS_MAX, RECENT_MAX, ModelFigures, Telemetry, percentile
from tests.domain.test_frames import Feed, closed, opened

numbers = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60)


# ── percentiles ──


@given(numbers, st.floats(0.01, 100))
def test_a_percentile_is_a_value_with_so_many_at_or_below(values, percent):
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values) - 1e-9
    assert sum(value < found for value in values) < percent / 100 * len(values) + 1e-9


@given(numbers)
def test_the_ends_are_minimum_and_maximum(values):
    assert percentile(values, 0) == min(values)
    assert percentile(values, 100) == max(values)
    assert percentile(values, 50) == statistics.median_low(values)


def test_of_nothing_there_is_no_percentile():
    assert percentile([], 50) is None


# ── sessions ──


def run(telemetry: Telemetry, session_id: str = "s", model: str = "a", **end) -> tuple[Feed, SessionClosed]:
    """A session of four tokens, 100 ms apart."""
    first = opened(session_id, models=(model,))
    telemetry.observe(first)
    feed = Feed(first.streams[0])
    telemetry.observe(feed.batch(50_000, 100_000))
    telemetry.observe(feed.batch(100_000, 100_000))
    last = closed(session_id, at_us=feed.at_us, tokens=4, **{"ttft_ms": 50.0, "duration_ms": 350.0, **end})
    telemetry.observe(last)
    return feed, last


def test_a_session_is_counted_while_it_runs_and_after():
    telemetry, first = Telemetry(), opened()
    telemetry.observe(first)
    assert (telemetry.sessions_total, telemetry.models["a"].active_sessions) == (1, 1)
    telemetry.observe(Feed(first.streams[0]).batch(50_000, 100_000))
    assert telemetry.models["a"].tps_current == 10.0
    telemetry.observe(closed(tokens=2))
    figures = telemetry.models["a"]
    assert (figures.active_sessions, figures.sessions, figures.total_tokens) == (0, 1, 2)
    assert figures.tps_current is None
    assert telemetry.ended == {"finished": 1}


def test_averages_are_over_the_time_after_the_first_token():
    telemetry = Telemetry()
    feed, _ = run(telemetry)
    figures = telemetry.models["a"]
    assert figures.tps_average == pytest.approx(10.0)
    assert figures.eu_rate == pytest.approx(feed.meter.state.eu_micro / 1e6 / 0.3)


def test_the_first_token_of_a_cold_model_is_told_apart():
    telemetry = Telemetry()
    run(telemetry, "1", cold=True, ttft_ms=900.0, duration_ms=1200.0)
    run(telemetry, "2", cold=False, ttft_ms=50.0)
    run(telemetry, "3", cold=None, ttft_ms=None)
    figures = telemetry.models["a"]
    assert (figures.ttft_cold_ms, figures.ttft_warm_ms) == (900.0, 50.0)
    assert list(figures.ttft_ms) == [900.0, 50.0]


def test_nothing_measured_is_null():
    figures = ModelFigures()
    unknown = (figures.tps_current, figures.tps_average, figures.eu_rate, figures.ttft_cold_ms, figures.ttft_warm_ms)
    assert unknown == (None,) * 5


def test_a_session_without_two_tokens_has_no_pace():
    telemetry = Telemetry()
    telemetry.observe(opened())
    telemetry.observe(closed(tokens=1))
    assert telemetry.models["a"].tps_average is None
    assert list(telemetry.models["a"].ttft_ms) == [10.0]


def test_reasons_are_counted_apart():
    telemetry = Telemetry()
    for session_id, reason in (("1", EndReason.ERROR), ("2", EndReason.ERROR), ("3", EndReason.ABORTED)):
        telemetry.observe(opened(session_id))
        telemetry.observe(attrs.evolve(closed(session_id), reason=reason))
    assert telemetry.ended == {"error": 2, "aborted": 1}


def test_every_model_of_a_session_has_its_own_figures():
    telemetry, first = Telemetry(), opened(models=("a", "b"))
    telemetry.observe(first)
    telemetry.observe(Feed(first.streams[1]).batch(1000, 1000, 1000))
    assert {name: f.total_tokens for name, f in telemetry.models.items()} == {"a": 0, "b": 3}
    telemetry.observe(closed(tokens=3))
    assert {f.active_sessions for f in telemetry.models.values()} == {0}


def test_an_end_of_no_running_session_is_not_counted():
    telemetry = Telemetry()
    telemetry.observe(closed("lost"))
    assert (telemetry.ended, telemetry.models) == ({}, {})


def test_news_of_a_model_is_no_figure():
    telemetry = Telemetry()
    telemetry.observe(ModelChanged(None, "a", ModelState.READY))
    assert telemetry.models == {}


# ── bounds ──


def test_recent_values_are_bounded():
    telemetry = Telemetry()
    for tick in range(RECENT_MAX + 50):
        telemetry.tick(tick, float(tick), 0.1, busy=True)
        run(telemetry, str(tick), ttft_ms=float(tick), duration_ms=1000.0)
    assert len(telemetry.lateness_ms) == len(telemetry.frame_ms) == RECENT_MAX
    assert len(telemetry.models["a"].ttft_ms) == RECENT_MAX
    assert min(telemetry.lateness_ms) == 50.0


def test_the_models_longest_unused_are_forgotten_first():
    telemetry = Telemetry()
    for number in range(MODELS_MAX):
        run(telemetry, str(number), model=f"m{number}")
    run(telemetry, "again", model="m0")
    run(telemetry, "new", model="new")
    assert len(telemetry.models) == MODELS_MAX
    assert "m0" in telemetry.models
    assert "m1" not in telemetry.models


def test_a_model_in_use_is_never_forgotten():
    telemetry = Telemetry()
    telemetry.observe(opened("long", models=("busy",)))
    for number in range(MODELS_MAX + 1):
        run(telemetry, str(number), model=f"m{number}")
    assert telemetry.models["busy"].active_sessions == 1
    telemetry.observe(closed("long"))
    assert telemetry.models["busy"].active_sessions == 0


# ── frames ──


def test_frames_of_the_last_second_are_counted():
    telemetry = Telemetry()
    for tick in range(1, 121):
        telemetry.tick(tick * 1_000_000 // 60, 0.0, 0.1, busy=True)
    assert telemetry.fps(2_000_000) == 60.0
    assert telemetry.fps(2_000_000 + FPS_WINDOW_US // 2) == 30.0
    assert telemetry.fps(9_000_000) == 0.0


def test_lateness_counts_only_while_frames_are_due_at_full_rate():
    telemetry = Telemetry()
    telemetry.tick(1, 5.0, 0.1, busy=False)
    telemetry.tick(2, 7.0, 0.2, busy=True)
    assert (list(telemetry.lateness_ms), list(telemetry.frame_ms)) == ([7.0], [0.2])
    assert telemetry.fps(2) == 2.0


@given(st.lists(st.sampled_from(["open", "close", "speak"]), max_size=40))
def test_active_sessions_are_those_opened_and_not_closed(steps):
    telemetry, running, total = Telemetry(), [], 0
    for number, step in enumerate(steps):
        if step == "open":
            first = opened(str(number), models=(f"m{number % 3}",))
            telemetry.observe(first)
            running.append(first)
        elif running and step == "close":
            telemetry.observe(closed(running.pop(0).session_id))
        elif running:
            batch: SampleBatch = Feed(running[-1].streams[0]).batch(1000)
            telemetry.observe(batch)
            total += 1
    assert sum(figures.active_sessions for figures in telemetry.models.values()) == len(running)
    assert sum(figures.total_tokens for figures in telemetry.models.values()) == total
