"""The degrade ladder: the table of marks, hysteresis, and what the levels take from events."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.energy import UNKNOWN, EnergySample
from engine.domain.errors import ConfigError
from engine.domain.events import ENERGY_UPDATE, TOKEN, EnergyUpdatePayload, Event, TokensPayload
from policies.degrade import Ladder, joined, lightened
from policies.load import load_policies
from policies.source import parse
from tests.domain.strategies import token

POLICY = load_policies().degrade
BUDGET_MS = 1000 / 60
ENTER = (0, 100, 800, 900, 950)  # of a depth of 1000
LEAVE = (0, 10, 600, 700, 800)


def ladder(level=0, capacity=1000, **state):
    return Ladder(POLICY, capacity, BUDGET_MS, level, **state)


def step(on, waiting=0, frame_ms=0.1, late=False):
    return on.step(waiting, frame_ms, late)


# ── the table ──


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_level_is_entered_at_its_mark_from_any_lower_one(level):
    for before in range(level):
        on = ladder(before, in_time=0)
        assert attrs.astuple(step(on, ENTER[level])) == (level, before, "queue")
    assert ladder(level - 1).step(ENTER[level] - 1, 0.1, False) is None


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_level_is_left_below_its_mark_for_the_next_lower_one(level):
    on = ladder(level)
    assert step(on, LEAVE[level]) is None
    assert attrs.astuple(step(on, LEAVE[level] - 1)) == (level - 1, level, "recovered")


def test_d1_is_left_below_its_mark_after_60_frames_in_time():
    on = ladder()
    for _ in range(1000):
        step(on, 99)  # frames in time before it do not count
    step(on, 100)
    for _ in range(59):
        assert step(on, 0) is None
    assert step(on, 10) is None  # the 60th, but not below 10
    assert attrs.astuple(step(on, 9)) == (0, 1, "recovered")


def test_an_overrun_starts_the_60_frames_anew():
    on = ladder()
    step(on, 100)
    for late in [False] * 58 + [True] + [False] * 59:
        assert step(on, 0, late=late) is None
    assert step(on, 0).level == 0


@pytest.mark.parametrize("overrun", [{"late": True}, {"frame_ms": BUDGET_MS + 0.01}])
def test_five_overruns_in_a_row_enter_d1_and_no_more(overrun):
    on = ladder()
    for _ in range(4):
        assert step(on, **overrun) is None
    assert step(on) is None  # in time: counted anew
    for _ in range(4):
        assert step(on, **overrun) is None
    assert attrs.astuple(step(on, **overrun)) == (1, 0, "overruns")
    assert [step(on, **overrun) for _ in range(100)] == [None] * 100


def test_the_marks_are_shares_of_the_capacity():
    assert step(ladder(capacity=512), 51) is None
    assert step(ladder(capacity=512), 52).level == 1
    assert step(ladder(capacity=512), 487).level == 4
    assert step(ladder(capacity=1), 0) is None


# ── hysteresis ──

frames = st.tuples(
    st.integers(0, 1100) | st.sampled_from([9, 10, 99, 100, 599, 600, 799, 800, 899, 900, 949, 950]),
    st.sampled_from([0.1, 12.0, 17.0]),
    st.booleans(),
)


@given(st.lists(frames, max_size=300))
def test_up_at_once_down_by_one_and_never_both_ways_for_one_depth(run):
    on = ladder()
    for waiting, frame_ms, late in run:
        before = on.level
        change = on.step(waiting, frame_ms, late)
        reached = max(level for level in range(5) if waiting >= ENTER[level])
        assert 0 <= on.level <= 4
        assert on.level >= reached  # never less careful than the depth asks for
        assert on.level >= before - 1
        if change is None:
            assert on.level == before
        elif on.level > before:
            assert on.level == reached or (on.level, change.reason) == (1, "overruns")
        else:
            assert change.reason == "recovered"
            assert waiting < LEAVE[before]
        assert change is None or (change.level, change.before) == (on.level, before)


@given(st.integers(1, 4), st.lists(st.integers(0, 999), min_size=1, max_size=200))
def test_inside_the_band_the_level_stays(level, offsets):
    """Between the mark that leaves a level and the one that enters the next, however it swings."""
    on = ladder(level)
    above = ENTER[level + 1] if level < 4 else 1100
    for offset in offsets:
        waiting = LEAVE[level] + offset % (above - LEAVE[level])
        assert step(on, waiting) is None
    assert on.level == level


@given(st.integers(0, 1100), st.integers(0, 1100))
def test_entry_is_monotone_in_depth(a, b):
    low, high = ladder(), ladder()
    step(low, min(a, b))
    step(high, max(a, b))
    assert low.level <= high.level


@given(st.integers(1, 1100), st.lists(frames, max_size=50))
def test_a_queue_of_a_steady_depth_settles(waiting, run):
    """No flapping: a constant depth, and frames in time, end in one level and stay there."""
    on = ladder()
    for each in run:
        on.step(*each)
    changes = [step(on, waiting) for _ in range(70)]
    levels = [change.level for change in changes if change is not None]
    assert len(levels) <= 5
    assert all(b == a - 1 for a, b in itertools.pairwise(levels))
    assert [step(on, waiting) for _ in range(200)] == [None] * 200


def test_recovery_goes_down_by_one_frame_by_frame():
    on = ladder()
    step(on, 1000)
    levels = [on.level]
    while on.level:
        step(on, 0)
        levels.append(on.level)
    assert [level for level, _ in itertools.groupby(levels)] == [4, 3, 2, 1, 0]
    assert len(levels) == 61  # 4, and 60 frames in time


# ── the patterns' own gate ──


def test_a_long_frame_pauses_the_patterns_without_changing_the_level():
    on = ladder()
    assert on.frame_level == 0
    step(on, frame_ms=BUDGET_MS * 0.70 + 0.01)
    paused = 0
    while on.frame_level == 1 and paused < 100:
        assert (on.level, on.drain_factor) == (0, 1)
        step(on)
        paused += 1
    assert paused == 60
    step(on, frame_ms=BUDGET_MS * 0.69)
    assert on.frame_level == 0


def test_what_a_frame_is_composed_at_is_never_less_than_the_level():
    assert [ladder(level, pause=9).frame_level for level in range(5)] == [1, 1, 2, 3, 4]
    assert [ladder(level).frame_level for level in range(5)] == [0, 1, 2, 3, 4]
    assert [ladder(level).drain_factor for level in range(5)] == [1, 2, 2, 2, 2]


# ── what is taken from events ──

ENERGY = Event(ENERGY_UPDATE, "s", EnergyUpdatePayload(0, 0.0, 0.0, 0.0, ()))


def said(stream_id, positions, **payload):
    samples = tuple(EnergySample(token(n, n, 1, [-0.5]), 0.5, 0.5, UNKNOWN, 1.0, False, False, 7) for n in positions)
    return Event(TOKEN, "s", TokensPayload(stream_id, "a", samples, **payload))


def order(events):
    """(stream, position) of every token, in order."""
    return [(e.payload.stream_id, s.token.position) for e in events if e.type == TOKEN for s in e.payload.samples]


streams = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20)) | st.none(), max_size=30)


@st.composite
def told(draw):
    """Token events of up to three streams with dense positions, and others between them."""
    at, events = dict.fromkeys("abc", 0), []
    for entry in draw(streams):
        if entry is None:
            events.append(ENERGY)
        else:
            stream_id, count = entry
            events.append(said(stream_id, range(at[stream_id], at[stream_id] + count)))
            at[stream_id] += count
    return tuple(events)


@given(told())
def test_joining_keeps_every_token_in_its_order_and_everything_else(events):
    after = joined(events)
    tokens = [event.payload.stream_id for event in after if event.type == TOKEN]
    assert len(tokens) == len(set(tokens))
    for stream_id in "abc":
        assert [t for t in order(after) if t[0] == stream_id] == [t for t in order(events) if t[0] == stream_id]
    assert [e for e in after if e.type != TOKEN] == [e for e in events if e.type != TOKEN]


@given(told(), st.integers(0, 4), st.integers(1, 30))
def test_lightening_takes_no_token_and_counts_what_it_takes_once(events, level, keep):
    light, dropped = lightened(events, level, keep)
    assert order(light) == order(events)
    assert [e for e in light if e.type != TOKEN] == [e for e in events if e.type != TOKEN]
    payloads = [e.payload for e in light if e.type == TOKEN]
    assert all(payload.with_top == (level < 3) for payload in payloads)
    assert dropped == sum(payload.text_only for payload in payloads)
    for payload in payloads:
        assert payload.text_only == (max(0, len(payload.samples) - keep) if level == 4 else 0)
    assert lightened(light, level, keep) == (light, 0)


@given(told(), told(), st.integers(1, 5))
def test_what_was_dropped_stays_dropped_when_frames_are_joined(kept, fresh, keep):
    light, first = lightened(joined(kept), 4, keep)
    together, more = lightened(joined(light + fresh), 4, keep)
    payloads = [event.payload for event in together if event.type == TOKEN]
    assert first + more == sum(payload.text_only for payload in payloads)
    assert all(payload.text_only == max(0, len(payload.samples) - keep) for payload in payloads)
    assert not any(payload.with_top for payload in payloads)
    calm, none = lightened(joined(light + fresh), 2, keep)
    assert none == 0
    assert sum(event.payload.text_only for event in calm if event.type == TOKEN) == first


# ── the file ──


def test_the_shipped_marks():
    assert [attrs.astuple(mark) for mark in POLICY.marks] == [(0.10, 0.01), (0.80, 0.60), (0.90, 0.70), (0.95, 0.80)]
    assert (POLICY.merge_overruns, POLICY.merge_clean_frames) == (5, 60)
    assert (POLICY.shed_keep_tokens, POLICY.patterns_budget, POLICY.patterns_pause_frames) == (8, 0.70, 60)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("merge: {enter: 0}", "merge.enter"),
        ("merge: {leave: 0.1}", "merge.leave must be less than enter (0.1)"),
        ("join: {enter: 0.1, leave: 0.05}", "join.enter must be more than merge.enter (0.1)"),
        ("shed: {leave: 0.6}", "shed.leave must be at least trim.leave (0.7)"),
        ("shed: {enter: 1.1}", "shed.enter"),
        ("shed_keep_tokens: 0", "shed_keep_tokens"),
        ("patterns_budget: 0", "patterns_budget"),
        ("merge_overrun: 5", "did you mean merge_overruns"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(text, problem):
    with pytest.raises(ConfigError, match=r"a\.yaml:1: ") as refused:
        load_policies(degrade=parse(text, "a.yaml"))
    assert problem in str(refused.value)


def test_a_change_is_taken_and_changes_the_hash():
    changed = load_policies(degrade=parse("shed_keep_tokens: 1", "a.yaml"))
    assert changed.degrade.shed_keep_tokens == 1
    assert changed.policy_hash != load_policies().policy_hash
