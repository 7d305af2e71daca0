"""Which tokens of a council belong together, how long the last disagreement is held, and why there is none."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.ensemble import DiMethod
from tests.domain.councils import CAT, DOG, MS, PARAMS, Council

T0 = 10_000 * MS


def told(step):
    reading = step.reading
    return (reading.di, reading.di_method, reading.di_stale, reading.reason)


NOT_YET = (None, DiMethod.NONE, False, "not_aligned_yet")
DISAGREE = (1.0, DiMethod.JSD_TOPK, False, None)


def aligned(*streams: str) -> Council:
    """A council whose members, all at 20 tokens per second, have just had a window, in full disagreement if two."""
    council = Council(*streams)
    for ms in range(-250, 1, 50):
        for index, stream in enumerate(streams):
            council.say(stream, T0 + ms * MS, {f"w{index}": 1.0})
    assert told(council.step(T0))[1] is DiMethod.JSD_TOPK
    return council


def test_two_tokens_close_together_are_a_window():
    council = Council("a", "b")
    council.say("a", T0 - 90 * MS, CAT)
    assert told(council.step(T0 - 50 * MS)) == NOT_YET
    council.say("b", T0 - 20 * MS, DOG)
    step = council.step(T0)
    assert told(step) == DISAGREE
    (window,) = step.windows
    assert window.positions == {"a": 0, "b": 0}
    assert (window.di, window.di_method, window.energy) == (1.0, DiMethod.JSD_TOPK, 0.8)
    assert window.sync_latency_ms == step.reading.sync_latency_ms == 70
    assert window.agreement == (("a", "b", 0.0),)
    assert step.reading.mixture_uncertainty == pytest.approx(0.5)


def test_a_window_is_told_once():
    council = aligned("a", "b")
    again = council.step(T0 + 16 * MS)
    assert again.windows == ()
    assert told(again) == DISAGREE
    council.say("b", T0 + 20 * MS, CAT)
    (window,) = council.step(T0 + 33 * MS).windows
    assert window.positions == {"a": 5, "b": 6}


def test_only_the_latest_token_of_a_member_counts():
    council = Council("a", "b")
    for t_ms, text in ((0, "x"), (10, "y"), (20, "dog")):
        council.say("a", T0 + t_ms * MS, {text: 1.0})
    council.say("b", T0 + 20 * MS, DOG)
    step = council.step(T0 + 30 * MS)
    assert step.reading.di == 0.0
    assert [window.positions for window in step.windows] == [{"a": 2, "b": 0}]


@pytest.mark.parametrize(("age_ms", "together"), [(100, True), (101, False)])
def test_the_window_is_100_ms_at_least(age_ms, together):
    council = Council("a", "b")
    council.say("a", T0 - age_ms * MS, CAT)
    council.say("b", T0, CAT)
    assert bool(council.step(T0).windows) == together


@pytest.mark.parametrize(("age_ms", "together"), [(450, True), (451, False)])
def test_the_window_grows_with_the_median_time_between_arrivals(age_ms, together):
    council = Council("a", "b", "c")  # 200, 300 and 500 ms between arrivals: 1.5 · 300 ms
    for stream, gap_ms, last_us in (("a", 200, T0 - 500 * MS), ("b", 300, T0), ("c", 500, T0 - age_ms * MS)):
        council.say(stream, last_us - gap_ms * MS, CAT)
        council.say(stream, last_us, CAT)
    (window,) = step.windows if (step := council.step(T0)).windows else (None,)
    assert (window is not None and window.positions == {"b": 1, "c": 1}) == together


def test_held_for_a_second_then_null_then_out_of_sync_then_back():
    council = aligned("a", "b")
    seen = {}
    for ms in range(0, 2500, 20):
        seen[ms] = told(council.step(T0 + ms * MS))
    assert seen[100] == DISAGREE
    assert seen[120] == seen[1100] == (1.0, DiMethod.JSD_TOPK, True, None)
    assert seen[1120] == seen[2100] == (None, DiMethod.NONE, False, "not_aligned")
    assert seen[2120] == seen[2480] == (None, DiMethod.NONE, False, "sync_lost")
    council.say("a", T0 + 3000 * MS, CAT)
    assert told(council.step(T0 + 3000 * MS))[3] == "sync_lost"
    council.say("b", T0 + 3010 * MS, DOG)
    assert told(council.step(T0 + 3016 * MS)) == DISAGREE


def test_a_window_that_lost_a_member_is_held_as_stale_until_there_is_another():
    council = aligned("a", "b", "c")
    for ms in (90, 91):
        council.say("a", T0 + ms * MS, CAT)
        council.say("b", T0 + ms * MS, CAT)
    assert council.step(T0 + 95 * MS).windows[0].positions.keys() == {"a", "b", "c"}
    late = council.step(T0 + 120 * MS)
    assert late.windows == ()
    assert late.reading.di_stale
    council.say("a", T0 + 130 * MS, CAT)
    assert council.step(T0 + 130 * MS).windows[0].positions.keys() == {"a", "b"}


def test_waiting_for_a_first_token_is_not_lost_sync():
    council = Council("a", "b")
    council.say("a", T0, CAT)
    for ms in range(0, 10_000, 500):
        council.say("a", T0 + ms * MS, CAT)
        assert told(council.step(T0 + ms * MS)) == NOT_YET


def test_never_together_is_lost_sync_two_seconds_after_the_second_began():
    council = Council("a", "b")
    council.say("a", T0, CAT)
    council.step(T0)
    council.say("b", T0 + 500 * MS, CAT)
    assert [told(council.step(T0 + ms * MS))[3] for ms in (600, 2599, 2600)] == [
        "not_aligned_yet",
        "not_aligned_yet",
        "sync_lost",
    ]


def test_time_apart_counts_from_the_last_window():
    council = aligned("a", "b")
    assert told(council.step(T0 + 1500 * MS))[3] == "not_aligned"
    for stream in ("a", "b"):
        council.say(stream, T0 + 2000 * MS, CAT)
    assert told(council.step(T0 + 2000 * MS))[0] == 0.0
    assert told(council.step(T0 + 2200 * MS))[2]
    assert [told(council.step(T0 + ms * MS))[3] for ms in (4199, 4200)] == ["not_aligned", "sync_lost"]


def test_fewer_than_two_members_have_no_disagreement():
    council = aligned("a", "b", "c")
    council.leave("c")
    assert told(council.step(T0 + MS))[0] is not None
    council.leave("b")
    assert told(council.step(T0 + 2 * MS)) == (None, DiMethod.NONE, False, "one_member")
    council.leave("a")
    assert council.step(T0 + 3 * MS).reading is None


def test_joining_again_begins_anew():
    council = aligned("a", "b")
    council.meter.join("a")
    council.last.pop("a")
    council.say("a", T0 + 5 * MS, DOG)
    (window,) = council.step(T0 + 5 * MS).windows
    assert window.positions == {"b": 5, "a": 0}


def test_what_comes_from_no_member_is_counted_and_does_nothing():
    council = aligned("a", "b")
    council.leave("b")
    council.say("b", T0, CAT)
    council.say("who", T0, CAT)
    assert council.meter.orphans == 2


# ── timing ──


def paced(gaps_ms: dict[str, int], until_ms: int, lists: dict[str, dict[str, float]] | None = None) -> Council:
    """Members that each speak every so often, ending together."""
    council = Council(*gaps_ms)
    for stream, gap in gaps_ms.items():
        for ms in range(until_ms % gap, until_ms + 1, gap):
            council.say(stream, T0 + ms * MS, (lists or {}).get(stream))
    return council


def test_pace_is_compared_where_a_member_reports_no_lists():
    step = paced({"a": 50, "b": 100}, 2000, {"a": CAT}).step(T0 + 2000 * MS)
    assert told(step) == (pytest.approx(0.25), DiMethod.TIMING, False, None)
    assert step.reading.mixture_uncertainty is None
    assert step.windows[0].agreement == ()


def test_those_who_do_report_them_are_still_compared_in_pairs():
    step = paced({"a": 50, "b": 50, "c": 50}, 2000, {"a": CAT, "c": CAT}).step(T0 + 2000 * MS)
    assert told(step) == (0.0, DiMethod.TIMING, False, None)
    assert step.windows[0].agreement == (("a", "c", 1.0),)


def test_without_lists_and_without_a_pace_nothing_is_known():
    council = Council("a", "b")
    council.say("a", T0)
    council.say("b", T0)
    step = council.step(T0)
    assert told(step) == (None, DiMethod.NONE, False, "no_logprobs")
    assert [(w.di, w.di_method) for w in step.windows] == [(None, DiMethod.NONE)]
    assert step.reading.modulated == step.reading.energy


def test_the_pace_of_all_in_the_window_is_needed():
    council = paced({"a": 50, "b": 100}, 2000)
    council.meter.join("c")
    council.say("c", T0 + 2000 * MS)
    assert told(council.step(T0 + 2000 * MS))[3] == "no_logprobs"


def test_a_throttled_token_has_a_text_but_no_time():
    council = Council("a", "b")
    council.say("a", T0, CAT)
    council.say("b", T0 + 50 * MS, DOG, throttled=True)
    reading = council.step(T0 + 60 * MS).reading
    assert reading.di == 1.0
    assert reading.sync_latency_ms is None
    for ms in (100, 150, 200):
        council.say("a", T0 + ms * MS)
        council.say("b", T0 + ms * MS, throttled=True)
    assert council.step(T0 + 200 * MS).reading.reason == "no_logprobs"


# ── under load ──


def test_under_load_only_energy_is_left():
    council = aligned("a", "b")
    council.say("a", T0 + 10 * MS, CAT)
    step = council.step(T0 + 16 * MS, patterns=False)
    assert told(step) == (None, DiMethod.NONE, False, "degraded")
    assert step.windows == ()
    assert (step.reading.energy, step.reading.gain) == (0.8, 0.0)
    assert (step.reading.mixture_uncertainty, step.reading.sync_latency_ms) == (None, None)
    assert len(council.step(T0 + 33 * MS).windows) == 1


def test_time_under_load_is_not_time_out_of_sync():
    council = aligned("a", "b")
    council.step(T0 + 200 * MS)
    for ms in range(500, 5000, 500):
        council.step(T0 + ms * MS, patterns=False)
    assert told(council.step(T0 + 5000 * MS))[3] == "not_aligned"
    assert told(council.step(T0 + 7000 * MS))[3] == "sync_lost"


@given(st.sampled_from(["window_ms", "hold_ms", "sync_lost_ms"]), st.integers(1, 50))
def test_the_constants_are_those_given(name, factor):
    council = Council("a", "b", params=attrs.evolve(PARAMS, **{name: getattr(PARAMS, name) * factor}))
    council.say("a", T0, CAT)
    council.say("b", T0, DOG)
    council.step(T0)
    whole = {"window_ms": factor}.get(name, 1) * 100
    held = whole + {"hold_ms": factor}.get(name, 1) * 1000
    assert told(council.step(T0 + whole * MS)) == DISAGREE
    assert told(council.step(T0 + held * MS)) == (1.0, DiMethod.JSD_TOPK, True, None)
    assert told(council.step(T0 + held * MS + 1))[0] is None
