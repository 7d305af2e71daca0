from __future__ import annotations

import re

import attrs
import pytest

from engine.domain import events
from engine.domain.events import (
    ENERGY_UPDATE,
    HEARTBEAT,
    MODEL,
    SESSION_END,
    SESSION_START,
    TOKEN,
    Event,
    HeartbeatPayload,
)

PAYLOADS = [
    cls
    for name, cls in vars(events).items()
    if attrs.has(cls) and name.endswith("Payload")  # type: ignore[arg-type]
]
PAYLOAD = HeartbeatPayload(60.0, 1.0, 1, 0)


@pytest.mark.parametrize("type_", [SESSION_START, TOKEN, MODEL, SESSION_END])
def test_what_happened_is_never_lost(type_):
    assert Event(type_, "s", PAYLOAD).lossless


@pytest.mark.parametrize("type_", [ENERGY_UPDATE, HEARTBEAT])
def test_of_snapshots_only_the_newest_counts(type_):
    assert not Event(type_, "s", PAYLOAD).lossless


def test_types_are_a_channel_and_a_name():
    types = [value for name, value in vars(events).items() if name.isupper() and isinstance(value, str)]
    assert len(types) == 8
    assert all(re.fullmatch(r"(system|energy|experience|council)\.[a-z_]+", type_) for type_ in types)


@pytest.mark.parametrize("cls", PAYLOADS)
def test_payloads_are_values(cls):
    """Several clients are given the same one, so nothing may change it."""
    names = [field.name for field in attrs.fields(cls)]
    payload = cls(**dict.fromkeys(names))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(payload, names[0], 1)


@pytest.mark.parametrize("cls", PAYLOADS)
def test_numbers_of_a_payload_name_their_unit(cls):
    """What is a time ends in its unit."""
    for field in attrs.fields(cls):
        if re.search(r"(latency|duration|uptime|ttft|delta|silence)", field.name):
            assert field.name.endswith(("_ms", "_us")), field.name
