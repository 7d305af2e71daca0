"""The rules of the frames, held against recorded sessions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from engine.domain.generation import TokenKind
from tests.contract.sessions import whole

clients = pytest.mark.parametrize("client", ["quick", "slow", "10 Hz", "with top"])
reasons = pytest.mark.parametrize("reason", ["finished", "aborted", "truncated"])


def events_of(messages: list[dict[str, Any]], session_id: str) -> list[dict[str, Any]]:
    return [e for m in messages if m["frame"] is not None for e in m["events"] if e["session_id"] == session_id]


def tokens_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [token for e in events if e["type"] == "experience.token" for token in e["payload"]["tokens"]]


@clients
def test_hello_then_snapshot_come_first(recorded, client):
    first = [e["type"] for m in recorded.clients[client].messages[:2] for e in m["events"]]
    assert first == ["system.hello", "system.state_snapshot"]


@clients
def test_frame_numbers_and_times_strictly_rise(recorded, client):
    frames = recorded.clients[client].frames
    assert len(frames) > 20
    for field in ("frame", "mono_ms"):
        values = [message[field] for message in frames]
        assert all(a < b for a, b in itertools.pairwise(values))


@clients
def test_never_more_frames_than_the_rate_allows(recorded, client):
    rate_hz = 10 if client == "10 Hz" else 60
    at_ms = [message["mono_ms"] for message in recorded.clients[client].frames]
    for start in at_ms:
        assert sum(start <= at < start + 1000 for at in at_ms) <= rate_hz + 1


@clients
@reasons
def test_one_start_first_and_one_end_last(recorded, client, reason):
    types = [e["type"] for e in events_of(recorded.clients[client].messages, recorded.sessions[reason])]
    assert types[0] == "experience.session_start"
    assert types[-1] == "experience.session_end"
    assert types.count("experience.session_start") == types.count("experience.session_end") == 1


@clients
@reasons
def test_the_frame_with_the_end_has_the_last_energy(recorded, client, reason):
    session_id = recorded.sessions[reason]
    frames = recorded.clients[client].frames
    last = next(m for m in frames if "experience.session_end" in [e["type"] for e in events_of([m], session_id)])
    events = events_of([last], session_id)
    assert [e["type"] for e in events[-2:]] == ["energy.update", "experience.session_end"]
    assert {stream["state"] for stream in events[-2]["payload"]["streams"]} == {"DRAINED"}
    states = [
        e["payload"]["streams"][0]["state"] for e in events_of(frames, session_id) if e["type"] == "energy.update"
    ]
    assert states.count("DRAINED") == 1


@clients
@reasons
def test_at_most_one_energy_of_a_session_in_a_frame(recorded, client, reason):
    for message in recorded.clients[client].frames:
        types = [e["type"] for e in events_of([message], recorded.sessions[reason])]
        assert types.count("energy.update") <= 1


@reasons
def test_an_energy_every_tick_from_start_to_end(recorded, reason):
    """For a client that is level: every frame of the session's life has one."""
    session_id = recorded.sessions[reason]
    mine = [m for m in recorded.clients["quick"].frames if events_of([m], session_id)]
    numbers = [m["frame"] for m in mine]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert all("energy.update" in [e["type"] for e in events_of([m], session_id)] for m in mine)


@clients
@pytest.mark.parametrize("kind", list(TokenKind))
def test_the_text_is_what_the_runtime_said_byte_for_byte(recorded, client, kind):
    tokens = tokens_of(events_of(recorded.clients[client].messages, recorded.sessions["finished"]))
    assert b"".join(t["text"].encode() for t in tokens if t["kind"] == kind) == whole(kind)


@clients
@reasons
def test_positions_are_dense_and_offsets_count_bytes_of_their_kind(recorded, client, reason):
    tokens = tokens_of(events_of(recorded.clients[client].messages, recorded.sessions[reason]))
    assert [token["position"] for token in tokens] == list(range(len(tokens)))
    assert all(type(token["t_us"]) is int for token in tokens)
    ends = dict.fromkeys(TokenKind, 0)
    for token in tokens:
        assert token["offset"] == ends[TokenKind(token["kind"])]
        ends[TokenKind(token["kind"])] += len(token["text"].encode())


@reasons
def test_deltas_follow_from_the_stamps(recorded, reason):
    tokens = tokens_of(events_of(recorded.clients["quick"].messages, recorded.sessions[reason]))
    assert tokens[0]["delta_ms"] is None
    for before, token in itertools.pairwise(tokens):
        assert round(token["delta_ms"] * 1000) == token["t_us"] - before["t_us"]


@reasons
def test_what_was_not_measured_is_null_and_what_was_is_not(recorded, reason):
    events = events_of(recorded.clients["quick"].messages, recorded.sessions[reason])
    tokens = tokens_of(events)
    assert {token["logprob"] is None for token in tokens} == {True, False}
    assert all(token["energy"] is not None for token in tokens)
    before_the_first = events[: next(i for i, e in enumerate(events) if e["type"] == "experience.token")]
    early = [e["payload"]["streams"][0] for e in before_the_first if e["type"] == "energy.update"]
    assert early
    for reading in early:
        measured = ("energy_base", "delta_ms", "certainty", "entropy_bits", "tail_mass")
        assert {reading[name] for name in measured} == {None}
        assert (reading["state"], reading["energy"], reading["tokens"]) == ("CHARGING", 0.0, 0)
    end = events[-1]["payload"]
    assert (end["stop_latency_ms"] is None) == (reason != "aborted")
    assert (end["error"] is None) == (reason != "truncated")
    assert end["reason"] == reason


@clients
@reasons
def test_totals_are_the_sums_of_what_was_shown(recorded, client, reason):
    events = events_of(recorded.clients[client].messages, recorded.sessions[reason])
    energies = [e["payload"] for e in events if e["type"] == "energy.update"]
    totals = events[-1]["payload"]["totals"]
    assert totals["tokens"] == len(tokens_of(events)) == energies[-1]["streams"][0]["tokens"]
    assert totals["eu"] == energies[-1]["eu_total"]
    if client in ("quick", "with top"):
        assert sum(e["tokens"] for e in energies) == totals["tokens"]
        assert sum(e["eu_frame"] for e in energies) == pytest.approx(totals["eu"], abs=0.0005 * len(energies))


def test_top_lists_come_only_to_who_asked(recorded):
    session_id = recorded.sessions["finished"]
    asked = tokens_of(events_of(recorded.clients["with top"].messages, session_id))
    plain = tokens_of(events_of(recorded.clients["quick"].messages, session_id))
    assert all("top" in token for token in asked)
    assert [{k: v for k, v in token.items() if k != "top"} for token in asked] == plain


@pytest.mark.parametrize("stream", ["live", "late", "owned"])
def test_an_event_stream_tells_the_whole_session(recorded, stream):
    lines = recorded.lines[stream]
    types = [line["type"] for line in lines]
    assert types[0] == "experience.session_start"
    assert types[-1] == "experience.session_end"
    assert ("energy.update" in types) == (stream != "late")
    assert {line["type"].split(".")[0] for line in lines} <= {"experience", "energy"}
    for kind in TokenKind:
        assert b"".join(t["text"].encode() for t in tokens_of(lines) if t["kind"] == kind) == whole(kind)


def test_an_event_on_a_stream_is_the_one_of_the_frames(recorded):
    mine = events_of(recorded.clients["quick"].messages, recorded.sessions["finished"])
    told = [{k: line[k] for k in ("type", "session_id", "payload")} for line in recorded.lines["late"]]
    assert told == [e for e in mine if e["type"] != "energy.update"]
