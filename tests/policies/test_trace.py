"""What goes on of a caller's trace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.trace import TRACESTATE_CHARS_MAX, Trace, trace_of

TRACE_ID, CALLER, OURS = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{CALLER}-01"


def test_the_trace_goes_on_with_a_span_of_ours():
    assert trace_of(PARENT, "rojo=00f067,congo=t61", OURS) == Trace(f"00-{TRACE_ID}-{OURS}-01", "rojo=00f067,congo=t61")


@pytest.mark.parametrize(
    "parent",
    [
        "",
        PARENT.upper(),
        f"ff-{TRACE_ID}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"{PARENT}-more",
        f"{PARENT}\r\nx: y",
    ],
)
def test_what_is_no_traceparent_starts_nothing(parent):
    assert trace_of(parent, "rojo=1", OURS) == Trace()


def test_a_later_version_is_read_as_far_as_we_know_it():
    assert trace_of(f"01-{TRACE_ID}-{CALLER}-ff-what", "", OURS).traceparent == f"00-{TRACE_ID}-{OURS}-03"


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (" a=1 ,, b@v=2\t", "a=1,b@v=2"),
        ("a=1,a=2", ""),
        ("A=1", ""),
        ("a=", ""),
        ("a=b=c", ""),
        ("a=\u00e9", ""),
        ("a=1\r\nx: y", ""),
        (",".join(f"k{i}=1" for i in range(32)), ",".join(f"k{i}=1" for i in range(32))),
        (",".join(f"k{i}=1" for i in range(33)), ""),
        (f"a={'1' * 250},b={'1' * 250},c={'1' * 250}", ""),
    ],
)
def test_a_tracestate_goes_on_whole_or_not_at_all(state, kept):
    assert trace_of(PARENT, state, OURS).tracestate == kept


@given(st.text(max_size=80), st.text(max_size=80))
def test_whatever_goes_on_can_stand_in_a_header(parent, state):
    for value in trace_of(parent, state, OURS).onward("").values():
        assert value.isascii()
        assert value.isprintable()
    kept = trace_of(PARENT, state, OURS).tracestate
    assert kept.isascii()
    assert not kept or kept.isprintable()
    assert len(kept) <= TRACESTATE_CHARS_MAX


def test_the_requests_id_goes_on_without_a_trace_too():
    assert Trace().onward("abc") == {"x-request-id": "abc"}
