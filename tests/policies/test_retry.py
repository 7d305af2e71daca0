"""When a failed call is made again: never after a token, never for long, and spread evenly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from policies.retry import RetryRules, is_passing, pause_s

RULES = RetryRules(attempts_max=4, base_s=0.5, cap_s=1.5)
BUSY = Overloaded("busy", retry_after_s=1)


def pause(error=BUSY, attempts=1, began=False, left_s=100.0, draw=0.5, rules=RULES):
    return pause_s(rules, error, attempts, began=began, left_s=left_s, draw=draw)


def test_the_bound_of_the_pause_doubles_up_to_its_cap():
    assert [pause(attempts=n, draw=1.0) for n in (1, 2, 3)] == [0.5, 1.0, 1.5]
    assert pause(attempts=4) is None


def test_nothing_is_tried_again_once_a_token_has_come():
    assert pause(began=True) is None


def test_a_server_that_says_how_long_is_waited_for():
    assert pause(Overloaded("later", retry_after_s=7), draw=0.0) == 7
    assert pause(Overloaded("later", retry_after_s=7), left_s=6.0) is None


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (RuntimeUnavailable("nothing listens"), True),
        (UpstreamTimeout("slow"), True),
        (UpstreamTruncated("cut"), True),
        (UpstreamProtocolError("bad gateway", status=502), True),
        (UpstreamProtocolError("overloaded", status=529), True),
        (UpstreamProtocolError("not JSON"), False),
        (UpstreamProtocolError("teapot", status=418), False),
        (RuntimeUnavailable("your key is wrong", status=401), False),
        (RuntimeUnavailable("no credit", status=402), False),
        (InvalidRequest("no"), False),
        (ModelNotFound("none"), False),
    ],
)
def test_what_may_have_passed_by_the_next_time(error, passing):
    assert is_passing(error) is passing
    assert (pause(error) is not None) is passing


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 100), st.integers(1, 10_000))
def test_a_pause_is_between_nothing_and_its_bound_and_leaves_time(attempts, draw, left_s, attempts_max):
    found = pause(attempts=attempts, draw=draw, left_s=left_s, rules=RetryRules(attempts_max, 0.5, 1.5))
    if found is None:
        assert attempts >= attempts_max or left_s <= 1.5
    else:
        assert 0 <= found <= min(1.5, 0.5 * 2.0 ** min(attempts - 1, 60))
        assert found < left_s
        assert attempts < attempts_max


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_the_jitter_is_full_and_even(one, other):
    first, second = pause(draw=one), pause(draw=other)
    assert first == one * 0.5
    assert (first < second) == (one * 0.5 < other * 0.5)
