"""`wf top`: what it makes of frames, what it draws, and what its keys do. The frames are those of the contract."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from trio_websocket import CloseReason, ConnectionClosed

from engine.domain.errors import RuntimeUnavailable
from engine.top import Top
from engine.top_state import EVENTS_MAX, SESSIONS_MAX, TRACE_CELLS, TopState, summary
from engine.top_view import picture, trace

GOLDEN = Path(__file__).parents[1] / "contract" / "golden" / "1.0" / "events"


def golden(name: str, **changes: Any) -> dict[str, Any]:
    event = json.loads((GOLDEN / f"{name}.json").read_text())
    event["payload"] |= changes
    return event


def frame(number: int | None, *events: dict[str, Any], mono_ms: float = 0.0) -> bytes:
    perf = {"lateness_ms": 0.4, "degrade": 0}
    return json.dumps({"v": "1.0", "frame": number, "mono_ms": mono_ms, "perf": perf, "events": events}).encode()


def drawn(state: TopState, **options: Any) -> str:
    console = Console(record=True, width=150, file=io.StringIO())
    console.print(picture(state, **options))
    return console.export_text()


def told(*events: dict[str, Any]) -> TopState:
    state = TopState()
    for number, event in enumerate(events):
        state.take(frame(number, event, mono_ms=number * 1000 / 60))
    return state


def test_a_session_is_shown_with_the_engines_numbers():
    update = golden("energy.update")
    stream = update["payload"]["streams"][0]
    state = told(golden("experience.session_start"), update)
    text = drawn(state)
    assert f"{stream['energy']:.2f}" in text
    assert f"{stream['entropy_bits']:.2f}" in text
    assert "● a" in text
    assert "flowing" in text
    assert summary(state)["session"]["streams"][0]["energy"] == stream["energy"]


def test_time_to_first_token_is_the_engines_stamps_alone():
    start = golden("experience.session_start", start_us=4_100)
    token = golden("experience.token")
    token["payload"]["tokens"][0] |= {"position": 0, "t_us": 554_100}
    state = told(start, token, golden("energy.update"))
    assert list(state.shown.ttft_ms.values()) == [550.0]
    assert "550" in drawn(state)
    without = told(golden("experience.session_start"), golden("energy.update"))
    assert without.shown.ttft_ms == {}


def test_what_was_not_measured_is_a_dash():
    text = drawn(told(golden("energy.update.charging")))
    assert "—" in text
    assert "charging" in text


def test_a_stall_says_how_long():
    assert "stalling 813 ms" in drawn(told(golden("energy.update.stalling")))


def test_a_council_has_its_ensemble_and_the_engines_cue():
    update = golden("energy.update.council")
    ensemble = update["payload"]["ensemble"]
    state = told(golden("council.formed"), golden("council.resonance"), update)
    text = drawn(state)
    assert f"E ensemble {ensemble['energy']:.2f}" in text
    assert "RESONANCE" in text
    state.take(frame(9, golden("council.resonance.end")))
    assert "RESONANCE" not in drawn(state).split("events")[0]
    assert summary(state)["session"]["cue"] is None


def test_synthetic_is_said():
    start = golden("experience.session_start", synthetic=True)
    assert "SYNTHETIC" in drawn(told(start, golden("energy.update")))


def test_names_cannot_command_the_terminal():
    evil = "\x1b[2J\u202eevil"
    update = golden("energy.update")
    update["payload"]["streams"][0]["model"] = evil
    text = drawn(told(golden("experience.model", model=evil, reason=evil), update))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "evil" in text


def test_missed_frames_are_counted_and_replies_are_not():
    state = TopState()
    for number in (5, 6, None, 9):
        state.take(frame(number))
    assert (state.frames, state.missed) == (3, 2)


def test_everything_kept_is_bounded():
    state = TopState()
    for number in range(2_000):
        update = golden("energy.update")
        update["session_id"] = f"{number // 100:032d}"
        model = golden("experience.model")
        state.take(frame(number, update, model, mono_ms=number * 100.0))
    assert len(state.sessions) == SESSIONS_MAX
    assert len(state.events) == EVENTS_MAX
    assert all(len(cells) <= TRACE_CELLS for one in state.sessions.values() for cells in one.traces.values())


@given(st.binary() | st.text())
def test_what_is_no_frame_is_skipped(message):
    state = TopState()
    state.take(message)
    assert (state.frames, state.bad) in {(0, 1), (1, 0)}


@given(st.lists(st.none() | st.floats(-1, 2), max_size=80))
def test_a_trace_has_a_cell_for_each_energy(energies):
    assert len(trace(energies)) == len(energies)


def test_a_trace_rises_with_energy():
    assert trace([0.0, 0.5, 1.0, None]) == "▁▅█ "


def test_a_session_that_ran_before_is_known_with_all_that_the_snapshot_says():
    snapshot = json.loads((GOLDEN.parent / "ws" / "system.state_snapshot.active.json").read_text())
    known = snapshot["events"][0]["payload"]["sessions"][0]
    known["synthetic"] = True
    state = told(snapshot["events"][0])
    assert state.shown.id == known["session_id"]
    assert list(state.shown.ttft_ms.values()) == [known["ttft_ms"]]
    text = drawn(state)
    assert "SYNTHETIC" in text
    assert f"from {known['origin']}" in text
    over = json.loads((GOLDEN.parent / "ws" / "system.state_snapshot.ended.json").read_text())
    assert told(over["events"][0]).shown is None


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_escape_stops_the_session_shown_and_an_arrow_does_not():
    stopped: list[str] = []
    top = Top(told(golden("experience.session_start"), golden("energy.update")), stopped.append)
    await top.pressed(b"\x1b[A")
    assert stopped == []
    await top.pressed(b"\x1b")
    assert stopped == [top.state.shown.id]


async def test_a_stop_that_is_refused_says_why():
    def refuse(_: str) -> None:
        raise RuntimeUnavailable("the engine does not answer")

    top = Top(told(golden("experience.session_start"), golden("energy.update")), refuse)
    await top.pressed(b"\x1b")
    assert "the engine does not answer" in drawn(top.state, note=top.note)


async def test_nothing_is_stopped_when_nothing_runs():
    stopped: list[str] = []
    top = Top(told(golden("experience.session_end")), stopped.append)
    await top.pressed(b"\x1b")
    assert stopped == []


async def test_one_stream_alone_pause_and_quit(autojump_clock):
    top = Top(TopState(), print)
    await top.pressed(b"2")
    assert top.solo == 1
    await top.pressed(b"2")
    assert top.solo == -1
    await top.pressed(b"p")
    assert top.paused
    await top.pressed(b"q")
    await top.over()


async def test_the_engines_end_is_an_error_with_words():
    async def gone() -> bytes:
        raise ConnectionClosed(CloseReason(1001, ""))

    with pytest.raises(RuntimeUnavailable, match="has gone"):
        await Top(TopState(), print).listen(gone)
