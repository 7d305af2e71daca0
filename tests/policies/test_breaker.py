"""The circuit breaker as a machine of three states, against a plain model of what it promises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.breaker import Breaker, BreakerRules, BreakerState

RULES = BreakerRules(failures=3, open_s=10.0, open_max_s=60.0, trials=1)
STEPS = st.lists(
    st.tuples(st.sampled_from(["fail", "succeed", "begin", "leave"]), st.floats(0, 30, allow_nan=False)), max_size=60
)


def failed(times: int, at_s: float = 0.0, rules: BreakerRules = RULES) -> Breaker:
    breaker = Breaker(rules)
    for _ in range(times):
        breaker = breaker.failed_at(at_s)
    return breaker


def test_failures_in_a_row_open_it():
    assert failed(2).state(0) is BreakerState.CLOSED
    assert failed(3).state(0) is BreakerState.OPEN
    assert not failed(3).allows(9.999)
    assert failed(3).wait_s(4) == 6


def test_a_success_between_them_counts_from_the_beginning():
    assert failed(2).succeeded().failed_at(0).failed_at(0).state(0) is BreakerState.CLOSED


def test_after_the_pause_one_is_let_through_at_a_time():
    breaker = failed(3)
    assert breaker.state(10) is BreakerState.HALF_OPEN
    assert breaker.allows(10)
    trying = breaker.began(10)
    assert not trying.allows(10)
    assert trying.left().allows(10)  # it was cancelled and said nothing
    assert trying.succeeded() == Breaker(RULES)


def test_a_failed_trial_opens_it_again_for_twice_as_long_up_to_a_bound():
    breaker, now_s, pauses = failed(3), 0.0, []
    for _ in range(5):
        pauses.append(breaker.wait_s(now_s))
        now_s += pauses[-1]
        breaker = breaker.began(now_s).failed_at(now_s)
    assert pauses == [10, 20, 40, 60, 60]


def test_what_fails_while_it_is_open_was_asked_before_and_says_nothing_new():
    breaker = failed(3)
    assert breaker.failed_at(5) == breaker


@given(STEPS)
def test_it_is_closed_exactly_until_so_many_failures_in_a_row(steps):
    breaker, now_s, in_a_row, opened = Breaker(RULES), 0.0, 0, False
    for what, wait_s in steps:
        now_s += wait_s
        match what:
            case "fail":
                if breaker.state(now_s) is not BreakerState.OPEN:
                    in_a_row += 1
                opened = opened or in_a_row >= RULES.failures
                breaker = breaker.failed_at(now_s)
            case "succeed":
                in_a_row, opened = 0, False
                breaker = breaker.succeeded()
            case "begin":
                if breaker.allows(now_s):
                    breaker = breaker.began(now_s)
            case "leave":
                breaker = breaker.left()
        assert (breaker.state(now_s) is BreakerState.CLOSED) == (not opened)
        assert 0 <= breaker.trying <= RULES.trials
        assert 0 <= breaker.wait_s(now_s) <= RULES.open_max_s
        assert breaker.allows(now_s + RULES.open_max_s) or breaker.trying
