"""The engine's own word inside replies of every dialect."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from engine.domain.generation import Seam
from transport.wire.dialects.openai_shapes import DONE_FRAME, frame, named_frame
from transport.wire.dialects.wf_field import has_record, seam_fields, with_wf

FIELDS = {"resumed": 1}


def test_a_whole_body_carries_it():
    assert json.loads(with_wf(b'{"a":{"b":1}}', FIELDS)) == {"wf": FIELDS, "a": {"b": 1}}


def test_records_of_a_stream_carry_it_first_or_last():
    lines = b'{"a":1}\n{"b":2}\n'
    assert [json.loads(line) for line in with_wf(lines, FIELDS).splitlines()] == [{"wf": FIELDS, "a": 1}, {"b": 2}]
    last = with_wf(lines, FIELDS, last=True).splitlines()
    assert [json.loads(line) for line in last] == [{"a": 1}, {"wf": FIELDS, "b": 2}]


def test_events_carry_it_and_the_word_that_ends_them_does_not():
    data = named_frame("one", {"text": "x\n{not a record"}) + frame({"b": 2}) + DONE_FRAME
    told = with_wf(data, FIELDS, last=True)
    assert told == named_frame("one", {"text": "x\n{not a record"}) + frame({"wf": FIELDS, "b": 2}) + DONE_FRAME


def test_without_a_record_nothing_changes():
    for data in (b"", DONE_FRAME, b": keep-alive\n\n", b"{}\n"):
        assert not has_record(data)
        assert with_wf(data, FIELDS) == data


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), min_size=1), min_size=1), st.booleans())
def test_nothing_else_changes(values, last):
    values = [{key: text for key, text in value.items() if key != "wf"} or {"x": ""} for value in values]
    data = b"".join(frame(value) for value in values)
    told = [json.loads(part.removeprefix(b"data: ")) for part in with_wf(data, FIELDS, last=last).split(b"\n\n")[:-1]]
    at = len(values) - 1 if last else 0
    assert told.pop(at) == values.pop(at) | {"wf": FIELDS}
    assert told == values


def test_a_seam_is_told_by_its_names():
    assert seam_fields(Seam("s:0", "a", 2, 10, "UPSTREAM_TRUNCATED", 1)) == {
        "stream_id": "s:0",
        "model": "a",
        "position": 2,
        "offset": 10,
        "reason": "UPSTREAM_TRUNCATED",
        "attempt": 1,
    }
