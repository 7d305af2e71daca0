from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.domain.energy import MICRO, EnergyMeter
from engine.domain.events import (
    ENERGY_UPDATE,
    MODEL,
    SESSION_END,
    SESSION_START,
    TOKEN,
    EnergyUpdatePayload,
    Event,
    ModelChanged,
    ModelPayload,
    SampleBatch,
    SessionClosed,
    SessionEndPayload,
    SessionOpened,
    SessionStartPayload,
    TokensPayload,
)
from engine.domain.frames import FrameState
from engine.domain.generation import EndReason, Origin, Parameters, StreamRef
from engine.domain.models import ModelState
from tests.domain.strategies import PARAMS, token

TICK_US = 16_667
END = {"ttft_ms": 10.0, "duration_ms": 1010.0, "stop_latency_ms": None, "cold": True}


def opened(session_id: str = "s", at_us: int = 0, models: tuple[str, ...] = ("a",)) -> SessionOpened:
    streams = tuple(StreamRef(session_id, f"{session_id}:{n}", model) for n, model in enumerate(models))
    return SessionOpened(session_id, at_us, "single", streams, ("dropped",), Parameters(), PARAMS, Origin.API, True)


def closed(session_id: str = "s", at_us: int = 0, tokens: int = 0, **more: Any) -> SessionClosed:
    return SessionClosed(session_id, at_us, EndReason.FINISHED, None, tokens, **(END | more))


@attrs.define(eq=False)
class Feed:
    """One stream's tokens as the mapper would send them."""

    ref: StreamRef
    meter: EnergyMeter = attrs.field(init=False)
    sent: int = 0
    at_us: int = 0

    def __attrs_post_init__(self) -> None:
        self.meter = EnergyMeter.started(PARAMS, 0)

    def batch(self, *gaps_us: int) -> SampleBatch:
        samples = []
        for gap in gaps_us:
            self.at_us += gap
            samples.append(self.meter.token(token(self.sent, self.at_us, gap if self.sent else None, [-0.5, -1.0])))
            self.sent += 1
        return SampleBatch(self.ref, tuple(samples), self.meter.state)


def started(models: tuple[str, ...] = ("a",)) -> tuple[FrameState, list[Feed]]:
    state, first = FrameState(), opened(models=models)
    state.fold(first)
    return state, [Feed(ref) for ref in first.streams]


def types(events: tuple[Event, ...]) -> list[str]:
    return [event.type for event in events]


def energy(events: tuple[Event, ...]) -> EnergyUpdatePayload:
    (payload,) = [e.payload for e in events if isinstance(e.payload, EnergyUpdatePayload)]
    return payload


def ending(events: tuple[Event, ...]) -> SessionEndPayload:
    (payload,) = [e.payload for e in events if isinstance(e.payload, SessionEndPayload)]
    return payload


# ── what a frame holds, and in which order ──


def test_a_session_is_told_from_start_to_end():
    state, (feed,) = started()
    assert types(state.compose(TICK_US, TICK_US, 0)) == [SESSION_START, ENERGY_UPDATE]
    assert types(state.compose(2 * TICK_US, TICK_US, 0)) == [ENERGY_UPDATE]
    state.fold(feed.batch(1000, 1000))
    assert types(state.compose(3 * TICK_US, TICK_US, 0)) == [TOKEN, ENERGY_UPDATE]
    state.fold(feed.batch(1000))
    state.fold(closed(at_us=feed.at_us, tokens=3))
    assert types(state.compose(4 * TICK_US, TICK_US, 0)) == [TOKEN, ENERGY_UPDATE, SESSION_END]
    assert state.compose(5 * TICK_US, TICK_US, 0) == ()
    assert not state.busy


def test_a_session_between_two_ticks_is_told_whole():
    state, (feed,) = started()
    state.fold(feed.batch(1000))
    state.fold(closed(at_us=feed.at_us, tokens=1))
    events = state.compose(TICK_US, TICK_US, 0)
    assert types(events) == [SESSION_START, TOKEN, ENERGY_UPDATE, SESSION_END]
    assert {event.session_id for event in events} == {"s"}


def test_the_start_says_everything_about_the_session():
    state, _ = started(models=("a", "b"))
    payload = state.compose(TICK_US, TICK_US, 0)[0].payload
    assert isinstance(payload, SessionStartPayload)
    assert (payload.models, payload.dropped_models) == (("a", "b"), ("dropped",))
    assert (payload.energy_params, payload.origin, payload.synthetic) == (PARAMS, Origin.API, True)
    assert payload.streams == opened(models=("a", "b")).streams


def test_every_stream_has_its_own_tokens_and_its_reading():
    state, (one, two) = started(models=("a", "b"))
    state.fold(one.batch(1000, 1000))
    state.fold(two.batch(500))
    state.fold(one.batch(1000))
    events = state.compose(TICK_US, TICK_US, 7)
    told = [e.payload for e in events if isinstance(e.payload, TokensPayload)]
    assert [(p.stream_id, p.model, [s.token.position for s in p.samples]) for p in told] == [
        ("s:0", "a", [0, 1, 2]),
        ("s:1", "b", [0]),
    ]
    payload = energy(events)
    assert [(r.stream_id, r.tokens, r.queue_depth) for r in payload.streams] == [("s:0", 3, 7), ("s:1", 1, 7)]
    assert payload.tokens == 4


def test_the_last_energy_is_drained_and_read_at_the_end():
    state, (feed,) = started()
    state.fold(feed.batch(1000, 1000))
    state.fold(closed(at_us=TICK_US + 5, tokens=2))
    (reading,) = energy(state.compose(TICK_US, TICK_US, 0)).streams
    assert reading.state == "DRAINED"
    assert reading.silence_ms == (TICK_US + 5 - feed.at_us) / 1000
    assert not reading.stall


def test_nothing_measured_is_null():
    state, _ = started()
    (reading,) = energy(state.compose(TICK_US, TICK_US, 0)).streams
    unknown = (reading.energy_base, reading.delta_ms, reading.certainty, reading.entropy_bits, reading.tail_mass)
    assert unknown == (None,) * 5
    assert (reading.state, reading.energy, reading.tps, reading.tokens) == ("CHARGING", 0.0, 0.0, 0)


def test_news_of_a_model_is_told_with_or_without_a_session():
    state, _ = started()
    state.fold(ModelChanged("s", "a", ModelState.LOADING))
    state.fold(ModelChanged(None, "b", ModelState.QUEUED, position=2, reason="full"))
    events = state.compose(TICK_US, TICK_US, 0)
    news = [e for e in events if e.type == MODEL]
    assert [e.session_id for e in news] == ["s", None]
    assert news[1].payload == ModelPayload("b", ModelState.QUEUED, None, 2, "full")
    assert types(events)[0] == SESSION_START


def test_news_of_a_model_alone_is_worth_a_frame():
    state = FrameState()
    assert not state.busy
    state.fold(ModelChanged(None, "b", ModelState.READY))
    assert state.busy
    assert types(state.compose(TICK_US, TICK_US, 0)) == [MODEL]
    assert not state.busy


# ── totals ──


def test_the_end_counts_what_was_measured():
    state, (feed,) = started()
    state.fold(feed.batch(10_000, 10_000, 600_000))  # the last one is past the stall line
    state.fold(closed(at_us=feed.at_us, tokens=3, prompt_tokens=9, eval_count=4, prompt_tokens_dropped=1))
    payload = ending(state.compose(TICK_US, TICK_US, 0))
    assert (payload.totals.tokens, payload.totals.eval_count) == (3, 4)
    assert (payload.totals.prompt_tokens, payload.totals.prompt_tokens_dropped) == (9, 1)
    assert (payload.summary.stalls, payload.summary.start_us, payload.summary.end_us) == (1, 0, feed.at_us)
    assert payload.summary.tps_average == 2.0  # two tokens after the first in one second


@pytest.mark.parametrize(("tokens", "ttft_ms"), [(0, None), (1, 10.0), (2, 1010.0)])
def test_no_pace_from_less_than_two_tokens_or_no_time(tokens, ttft_ms):
    state, _ = started()
    state.fold(closed(tokens=tokens, ttft_ms=ttft_ms))
    summary = ending(state.compose(TICK_US, TICK_US, 0)).summary
    assert summary.tps_average is None
    assert summary.energy_mean is None


@given(st.lists(st.lists(st.integers(0, 500_000), max_size=5), min_size=1, max_size=12), st.integers(1, 3))
def test_the_frames_of_a_session_share_out_its_tokens_and_its_eu_exactly(batches, streams):
    state, feeds = started(models=("a", "b", "c")[:streams])
    shown, frame_sum, rounded = [], 0, 0.0
    for tick, gaps in enumerate(batches, 1):
        feed = feeds[tick % streams]
        state.fold(feed.batch(*gaps))
        if tick == len(batches):
            state.fold(closed(at_us=feed.at_us, tokens=sum(f.sent for f in feeds)))
        events = state.compose(tick * TICK_US, TICK_US, 0)
        samples = [s for e in events if isinstance(e.payload, TokensPayload) for s in e.payload.samples]
        assert energy(events).tokens == len(samples)
        assert energy(events).eu_frame == round(sum(s.eu_micro for s in samples) / MICRO, 3)
        frame_sum += sum(s.eu_micro for s in samples)
        rounded += energy(events).eu_frame
        shown += samples
    total = sum(feed.meter.state.eu_micro for feed in feeds)
    assert frame_sum == total
    assert energy(events).eu_total == ending(events).totals.eu == round(total / MICRO, 3)
    assert rounded == pytest.approx(total / MICRO, abs=0.0005 * len(batches) + 1e-9)
    assert len(shown) == sum(feed.sent for feed in feeds)


# ── after a crash ──


def test_tokens_of_a_session_it_never_saw_are_counted_and_left_out():
    state, feed = FrameState(), Feed(StreamRef("lost", "lost:0", "a"))
    state.fold(feed.batch(1000))
    assert state.compose(TICK_US, TICK_US, 0) == ()
    assert (state.unknown, state.busy, state.pending_samples) == (1, False, 0)


def test_the_end_of_a_session_it_never_saw_is_told_without_what_it_cannot_know():
    state = FrameState()
    error = {"code": "INTERNAL"}
    state.fold(attrs.evolve(closed("lost", at_us=99, tokens=5), reason=EndReason.ERROR, error=error))
    (event,) = state.compose(TICK_US, TICK_US, 0)
    assert (event.type, event.session_id) == (SESSION_END, "lost")
    payload = ending((event,))
    assert (payload.reason, payload.error, payload.totals.tokens) == (EndReason.ERROR, error, 5)
    assert (payload.totals.eu, payload.summary.start_us, payload.summary.energy_mean) == (None, None, None)
    assert state.unknown == 1


class Sessions(RuleBasedStateMachine):
    """Any number of sessions, in any order, over any number of ticks."""

    def __init__(self) -> None:
        super().__init__()
        self.state = FrameState()
        self.feeds: dict[str, Feed] = {}
        self.waiting = 0
        self.told: dict[str, list[str]] = {}
        self.tick = self.opened = 0

    @rule()
    def open(self) -> None:
        self.opened += 1
        first = opened(str(self.opened))
        self.state.fold(first)
        self.feeds[first.session_id] = Feed(first.streams[0])

    @precondition(lambda self: self.feeds)
    @rule(pick=st.integers(0), gaps=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=4))
    def speak(self, pick: int, gaps: list[int]) -> None:
        feed = list(self.feeds.values())[pick % len(self.feeds)]
        self.state.fold(feed.batch(*gaps))
        self.waiting += len(gaps)

    @precondition(lambda self: self.feeds)
    @rule(pick=st.integers(0))
    def close(self, pick: int) -> None:
        session_id = list(self.feeds)[pick % len(self.feeds)]
        feed = self.feeds.pop(session_id)
        self.state.fold(closed(session_id, at_us=feed.at_us, tokens=feed.sent))

    @rule()
    def compose(self) -> None:
        self.tick += 1
        for event in self.state.compose(self.tick * TICK_US, TICK_US, 0):
            assert event.session_id is not None
            self.told.setdefault(event.session_id, []).append(event.type)
        self.waiting = 0

    @invariant()
    def tokens_wait_for_the_tick(self) -> None:
        assert self.state.pending_samples == self.waiting

    @invariant()
    def every_session_is_told_in_order(self) -> None:
        for told in self.told.values():
            assert told[0] == SESSION_START
            assert told.count(SESSION_START) == 1
            if SESSION_END in told:
                assert told[-2:] == [ENERGY_UPDATE, SESSION_END]
                assert told.count(SESSION_END) == 1

    @invariant()
    def busy_while_there_is_something_to_tell(self) -> None:
        if self.feeds or self.waiting:
            assert self.state.busy


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=50, stateful_step_count=30)
