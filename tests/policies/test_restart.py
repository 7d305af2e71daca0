"""How often a crashed actor comes back: bounded pauses that never shrink, and an end to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.restart import NEVER, RestartPolicy, delay_s

policies = st.builds(
    RestartPolicy,
    max_restarts=st.integers(0, 100),
    within_s=st.floats(0.001, 1000),
    backoff_s=st.floats(0, 10),
    backoff_max_s=st.floats(0, 10),
)
times = st.lists(st.floats(0, 1000), max_size=120).map(sorted)


def test_pauses_double_up_to_the_cap_and_then_it_is_over():
    policy = RestartPolicy(max_restarts=4, within_s=5, backoff_s=0.5, backoff_max_s=3)
    crashes = [10.0, 10.1, 10.2, 10.3, 10.4]
    assert [delay_s(policy, crashes[:n], crashes[n - 1]) for n in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, None]


def test_defaults_allow_three_restarts_in_five_seconds():
    policy = RestartPolicy()
    assert delay_s(policy, [0.0, 1.0, 2.0], 2.0) == 0.2
    assert delay_s(policy, [0.0, 1.0, 2.0, 4.9], 4.9) is None
    assert delay_s(policy, [0.0, 1.0, 2.0, 5.0], 5.0) == 0.2  # the first has left the window


def test_never():
    assert delay_s(NEVER, [1.0], 1.0) is None
    assert RestartPolicy(mode="never") == NEVER


@given(policies, times)
def test_pause_is_bounded(policy, crashes):
    now_s = crashes[-1] if crashes else 0.0
    pause_s = delay_s(policy, crashes, now_s)
    assert pause_s is None or 0 <= pause_s <= policy.backoff_max_s


@given(policies, times, st.floats(0, 1000))
def test_one_more_crash_never_shortens_the_pause(policy, crashes, now_s):
    before, after = delay_s(policy, crashes, now_s), delay_s(policy, [*crashes, now_s], now_s)
    assert after is None or (before is not None and after >= before)


@given(policies, st.floats(0, 1000))
def test_exhausted_exactly_after_max_restarts_in_the_window(policy, now_s):
    assert delay_s(policy, [now_s] * (policy.max_restarts + 1), now_s) is None
    assert delay_s(policy, [now_s] * policy.max_restarts, now_s) is not None


@given(policies, times)
def test_old_crashes_are_forgotten(policy, crashes):
    later_s = 2001.0 + policy.within_s
    assert delay_s(policy, [*crashes, later_s], later_s) == delay_s(policy, [later_s], later_s)


@pytest.mark.parametrize(
    "wrong", [{"mode": "sometimes"}, {"max_restarts": -1}, {"within_s": 0}, {"backoff_s": -1}, {"backoff_max_s": -1}]
)
def test_ranges(wrong):
    with pytest.raises(ValueError):
        RestartPolicy(**wrong)
