"""What the engine says is what its golden samples say: a change there needs a new schema version."""

from __future__ import annotations

import pytest

from tests.contract.compare import differences, needed_version, samples_of
from transport.wire.frames import SCHEMA_VERSION, SCHEMA_VERSIONS

GOLDEN = samples_of(SCHEMA_VERSION)
HOW_TO = (
    "If this is meant: raise the {part} of SCHEMA_VERSION in transport/wire/frames.py, run `python -m "
    "tests.contract.regenerate`, and tell users in CHANGELOG.md. (A version that nobody has yet: `--amend`.)"
)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name, recording):
    assert name in recording, f"nothing says {name} any more. " + HOW_TO.format(part="major")
    found = list(differences(GOLDEN[name], recording[name]))
    lines = "\n".join(f"  {difference}" for difference in found[:20])
    told = (
        f"{name} is not what version {SCHEMA_VERSION} promised:\n{lines}\n{HOW_TO.format(part=needed_version(found))}"
    )
    assert not found, told


def test_every_sample_has_its_golden(recording):
    assert recording.keys() - GOLDEN.keys() == set(), "run `python -m tests.contract.regenerate`"


def test_the_version_in_force_is_offered_and_stamped(recording):
    assert SCHEMA_VERSION in SCHEMA_VERSIONS
    stamped = [sample for name, sample in recording.items() if name.startswith("ws/")]
    stamped += [sample for name, sample in recording.items() if name == "stream/ndjson"]
    assert {sample["v"] for sample in stamped} == {SCHEMA_VERSION}
    heads = [sample["headers"] for sample in recording.values() if "headers" in sample]
    assert {head["x-schema-version"] for head in heads} == {SCHEMA_VERSION}


@pytest.mark.parametrize(
    ("golden", "said", "told"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
        ({"a": 1}, {"a": 1.0}, ["a: changed int 1 → float 1.0"]),
        ({"a": 0}, {"a": None}, ["a: changed int 0 → null"]),
        ({"a": True}, {"a": 1}, ["a: changed bool True → int 1"]),
        ({"a": {}}, {"a": {"b": None}}, ["a.b: added null"]),
        ({"a": ""}, {}, ["a: removed str ''"]),
        ([1], [1, 2], ["the whole: changed 1 items → 2"]),
        ([{"a": 1.0}], [{"a": 1.0 + 1e-12}], []),
        ([{"a": 1.0}], [{"a": 1.0 + 1e-6}], ["[0].a: changed 1.0 → 1.000001"]),
        ("<ts_ms: int>", "<ts_ms: float>", ["the whole: changed '<ts_ms: int>' → '<ts_ms: float>'"]),
    ],
)
def test_what_counts_as_a_difference(golden, said, told):
    assert [str(difference) for difference in differences(golden, said)] == told


@pytest.mark.parametrize(
    ("golden", "said", "part"),
    [({}, {"new": 1}, "minor"), ({"old": 1}, {}, "major"), ({"a": 1}, {"a": "1", "new": 1}, "major")],
)
def test_a_new_field_needs_a_minor_and_anything_else_a_major(golden, said, part):
    assert needed_version(list(differences(golden, said))) == part
