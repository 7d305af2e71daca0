from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.leaving import CONTINUE_MAX_S, leave_after_s


@pytest.mark.parametrize(("text", "after_s"), [("cancel", 0.0), ("continue", None), ("continue_for=0s", 0.0)])
def test_the_words(text, after_s):
    assert leave_after_s(text) == after_s


@given(st.integers(0, 99_999))
def test_seconds_up_to_an_hour(seconds):
    text = f"continue_for={seconds}s"
    if seconds <= CONTINUE_MAX_S:
        assert leave_after_s(text) == seconds
    else:
        with pytest.raises(ValueError, match="at most 3600s"):
            leave_after_s(text)


@pytest.mark.parametrize("text", ["", "stop", "continue_for=", "continue_for=1.5s", "continue_for=-1s", "cancel\n"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError):
        leave_after_s(text)
