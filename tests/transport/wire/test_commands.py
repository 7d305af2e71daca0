from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest
from transport.wire.commands import (
    COMMANDS,
    PATTERNS_MAX,
    Command,
    Ping,
    Resync,
    Subscribe,
    Subscription,
    Unsubscribe,
    parse_command,
    printable,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
almost_commands = st.fixed_dictionaries(
    {"type": st.sampled_from([*COMMANDS, "Ping", "", None, 1])},
    optional={
        "patterns": st.lists(st.sampled_from(["*", "energy.*", "*.*", "x"]) | json_values, max_size=40) | json_values,
        "session_id": json_values,
        "rate_hz": st.integers(-1, 61) | json_values,
        "top": json_values,
        "id": st.text(max_size=70) | json_values,
        "more": json_values,
    },
)
pattern_names = st.sampled_from(["*", "energy.*", "energy.update", "experience.token", "council.*", "system.pong"])


def accepted(message: bytes) -> Command | None:
    """The command, or None when refused as anything from outside must be."""
    try:
        command = parse_command(message)
    except InvalidRequest as error:
        told = error.message
    else:
        assert isinstance(command, Subscribe | Unsubscribe | Ping | Resync)
        return command
    assert told.isprintable()
    assert len(told) < 400
    return None


# ── parsing ──


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xef\xbb\xbf{}")
@example(b'{"type":"ping","id":"\\ud800"}')
@example(b'{"type":"ping","id":"\xed\xa0\x80"}')
@example(b'{"type":"ping"}{"type":"ping"}')
@example(b'{"type":"subscribe","rate_hz":1e400}')
@example(b'{"type":"subscribe","rate_hz":NaN}')
def test_bytes_are_a_command_or_refused(message):
    accepted(message)


@given(almost_commands | json_values)
def test_json_is_a_command_or_refused(value):
    accepted(msgspec.json.encode(value))


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"type":"ping","id":' + b"[" * 60_000,
        b'{"type":"subscribe","patterns":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b',"type":"ping"}',
    ],
)
def test_nesting_without_end_is_refused(bomb):
    assert accepted(bomb) is None


@pytest.mark.parametrize(
    ("message", "command"),
    [
        (b'{"type":"ping"}', Ping()),
        (b'{"type":"ping","id":"7"}', Ping("7")),
        (b'{"type":"resync","id":null}', Resync()),
        (b'{"type":"unsubscribe","patterns":["energy.*"]}', Unsubscribe(["energy.*"])),
        (b'{"type":"subscribe"}', Subscribe()),
        (
            b'{"type":"subscribe","patterns":["energy.*","council.*"],"session_id":null,"rate_hz":60,"top":false,"id":"1"}',
            Subscribe(["energy.*", "council.*"], None, 60.0, False, "1"),
        ),
    ],
)
def test_every_published_command_is_understood(message, command):
    assert parse_command(message) == command


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"hello", "not a JSON object"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `type`"),
        (b'{"type":"dance"}', "type"),
        (b'{"type":"ping","more":1}', "unknown field `more`"),
        (b'{"type":"unsubscribe"}', "patterns"),
        (b'{"type":"subscribe","patterns":"*"}', "$.patterns"),
        (b'{"type":"subscribe","rate_hz":0.5}', "$.rate_hz"),
        (b'{"type":"subscribe","rate_hz":61}', "$.rate_hz"),
        (b'{"type":"subscribe","rate_hz":null}', "$.rate_hz"),
        (b'{"type":"subscribe","top":1}', "$.top"),
        (b'{"type":"ping","id":1}', "$.id"),
        (b'{"type":"ping","id":"' + b"x" * 65 + b'"}', "$.id"),
        (b'{"type":"subscribe","session_id":"' + b"x" * 65 + b'"}', "$.session_id"),
    ],
)
def test_a_refusal_names_the_field(message, told):
    with pytest.raises(InvalidRequest) as caught:
        parse_command(message)
    assert told in caught.value.message
    assert caught.value.details == {"commands": list(COMMANDS)}


def test_a_message_can_hold_no_more_patterns_than_a_connection():
    patterns = [f"energy.{'x' * n}" for n in range(1, PATTERNS_MAX + 2)]
    assert parse_command(msgspec.json.encode(Subscribe(patterns[:-1])))
    with pytest.raises(InvalidRequest):
        parse_command(msgspec.json.encode(Subscribe(patterns)))


# ── patterns ──


@pytest.mark.parametrize("pattern", ["*", "energy.*", "energy.update", "a.b", "x" * 32 + "." + "y" * 48])
def test_a_pattern_is_a_type_a_channel_or_everything(pattern):
    assert parse_command(msgspec.json.encode(Subscribe([pattern])))
    assert parse_command(msgspec.json.encode(Unsubscribe([pattern])))


@pytest.mark.parametrize(
    "pattern",
    ["", "energy", "energy.", ".update", "*.update", "**", "energy.*.x", "energy.up*", "Energy.*", "energy.*\n", "é.*",
     "x" * 33 + ".*", "x." + "y" * 49, "energy update", "energy..update", "1.2"],
)  # fmt: skip
def test_anything_else_is_no_pattern(pattern):
    for command in (Subscribe([pattern]), Unsubscribe([pattern])):
        with pytest.raises(InvalidRequest):
            parse_command(msgspec.json.encode(command))


# ── subscriptions ──


def test_everything_is_wanted_until_somebody_says_otherwise():
    fresh = Subscription()
    assert fresh.wants("energy.update", "s")
    assert fresh.wants("experience.model", None)
    assert not fresh.top


def test_the_first_subscribe_replaces_the_default_and_the_next_one_adds():
    first = Subscription().changed(Subscribe(["energy.*"]))
    assert first.patterns == {"energy.*"}
    second = first.changed(Subscribe(["experience.token"]))
    assert second.patterns == {"energy.*", "experience.token"}


def test_a_subscribe_without_patterns_leaves_them():
    changed = Subscription().changed(Subscribe(top=True))
    assert (changed.patterns, changed.top) == ({"*"}, True)
    assert changed.changed(Subscribe(["energy.*"])).patterns == {"energy.*"}


def test_unsubscribe_removes_exactly_what_stands_there():
    both = Subscription().changed(Subscribe(["energy.*", "council.*"]))
    assert both.changed(Unsubscribe(["council.*"])).patterns == {"energy.*"}
    assert both.changed(Unsubscribe(["energy.update"])) == both
    nothing = Subscription().changed(Unsubscribe(["*"]))
    assert not nothing.wants("energy.update", "s")
    assert nothing.changed(Subscribe(["council.*"])).patterns == {"council.*"}


def test_what_is_not_given_stays_and_null_clears_the_session():
    narrowed = Subscription().changed(Subscribe(session_id="s1", top=True))
    assert (narrowed.session_id, narrowed.top) == ("s1", True)
    same = narrowed.changed(Subscribe(["energy.*"]))
    assert (same.session_id, same.top) == ("s1", True)
    assert same.changed(parse_command(b'{"type":"subscribe","session_id":null}')).session_id is None


def test_a_connection_holds_so_many_patterns_and_no_more():
    subscription = Subscription()
    for n in range(1, PATTERNS_MAX + 1):
        subscription = subscription.changed(Subscribe([f"energy.{'x' * n}"]))
    with pytest.raises(InvalidRequest) as caught:
        subscription.changed(Subscribe(["council.*"]))
    assert caught.value.details == {"limit": PATTERNS_MAX}
    assert subscription.changed(Subscribe(["energy.x"])) == subscription


@pytest.mark.parametrize(
    ("patterns", "type_", "wanted"),
    [
        (["*"], "energy.update", True),
        (["energy.*"], "energy.update", True),
        (["energy.update"], "energy.update", True),
        (["energy.update"], "energy.updates", False),
        (["energy.*"], "experience.token", False),
        (["energy.*", "experience.token"], "experience.token", True),
        (["experience.token"], "experience.session_end", False),
    ],
)
def test_a_pattern_matches_its_type_or_its_channel(patterns, type_, wanted):
    assert Subscription(frozenset(patterns)).wants(type_, "s") is wanted


def test_a_session_filter_passes_its_session_and_what_is_of_none():
    one = Subscription(session_id="s1")
    assert one.wants("energy.update", "s1")
    assert not one.wants("energy.update", "s2")
    assert one.wants("experience.model", None)


@given(st.lists(st.tuples(st.sampled_from([Subscribe, Unsubscribe]), st.lists(pattern_names, max_size=3)), max_size=8))
def test_the_set_is_what_was_added_and_not_removed(steps):
    subscription, patterns, explicit = Subscription(), {"*"}, False
    for kind, names in steps:
        subscription = subscription.changed(kind(names))
        if kind is Unsubscribe:
            patterns, explicit = patterns - set(names), True
        elif names:
            patterns, explicit = (patterns if explicit else set()) | set(names), True
    assert subscription.patterns == patterns


def test_equal_subscriptions_share_their_frames():
    """However they came about: the hub encodes once per distinct one."""
    direct = Subscription(frozenset({"energy.*"}))
    asked = Subscription().changed(Subscribe(["energy.*"]))
    assert direct == asked
    assert hash(direct) == hash(asked)


@given(st.text(), st.integers(0, 50))
def test_printable_is_printable_and_short(text, chars_max):
    shown = printable(text, chars_max)
    assert shown.isprintable()
    assert len(shown) <= chars_max
    assert shown == text[:chars_max] or not text[:chars_max].isprintable()
