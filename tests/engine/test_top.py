"""`wf top`: what it makes of frames, what it draws, and what its keys do. The frames are those of the contract."""

from __future__ import annotations

import json
import os
import sys
import threading
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio_websocket import CloseReason, ConnectionClosed

from engine.domain.errors import RuntimeUnavailable
from engine.settings import Settings
from engine.top import PATTERNS, RESYNC, SUBSCRIBE, Painter, Top, require_rich
from engine.top_draw import drawn, painted
from engine.top_view import ENDED_MAX, KEYS, SESSIONS_MAX, TopFold, as_json, bar, keys_in
from transport.wire.commands import Subscribe, parse_command

GOLDEN = Path(__file__).parents[1] / "contract" / "golden" / "1.0"
EVIL = "\x1b[2J\x9b31m\u202eevil\nline\U000e0041"


def golden(name: str, **changes: Any) -> dict[str, Any]:
    event = json.loads((GOLDEN / "events" / f"{name}.json").read_text())
    event["payload"] |= changes
    return event


def replied(name: str) -> bytes:
    return (GOLDEN / "ws" / f"{name}.json").read_bytes()


def of_session(event: dict[str, Any], session_id: str) -> dict[str, Any]:
    return event | {"session_id": session_id}


def frame(number: int | None, *events: dict[str, Any], mono_ms: float = 0.0, degrade: int = 0) -> bytes:
    perf = {"lateness_ms": 0.4, "degrade": degrade}
    return json.dumps({"v": "1.0", "frame": number, "mono_ms": mono_ms, "perf": perf, "events": events}).encode()


def told(*events: dict[str, Any]) -> TopFold:
    fold = TopFold()
    for number, event in enumerate(events):
        fold.take(frame(number, event, mono_ms=number * 100.0))
    return fold


def text_of(fold: TopFold, width: int = 120, height: int | None = 40, **options: Any) -> str:
    return painted(drawn(fold.picture(), width, height, **options), width, colours=False)


def council() -> list[dict[str, Any]]:
    return [golden("council.formed"), golden("council.resonance"), golden("energy.update.council")]


# ── the fold ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_session_has_the_engines_own_numbers():
    update = golden("energy.update.council")
    (session,) = told(golden("experience.session_start"), update).picture().sessions
    sent, shown = update["payload"]["streams"][0], session.streams[0]
    for name in ("model", "energy", "delta_ms", "certainty", "tokens", "silence_ms", "tps"):
        assert getattr(shown, name) == sent[name], name
    assert (shown.state, session.origin, session.synthetic, session.ended) == ("flowing", "api", False, None)
    assert session.tokens == 159 + 159 + 1


def test_a_session_is_there_from_its_start_with_nothing_measured():
    (session,) = told(golden("experience.session_start")).picture().sessions
    (stream,) = session.streams
    assert (stream.model, stream.state, stream.energy, stream.tps, stream.tokens) == ("a", None, None, None, None)
    assert (session.tokens, session.ttft_ms) == (None, None)


def test_a_pace_takes_two_tokens():
    update = golden("energy.update")
    update["payload"]["streams"][0] |= {"tokens": 1, "tps": 1.0}
    assert told(update).picture().sessions[0].streams[0].tps is None


def test_what_its_model_waits_for_is_the_state_of_a_stream_without_tokens():
    start, pulling = golden("experience.session_start"), golden("experience.model", state="pulling", progress=0.4)
    assert told(start, pulling).picture().sessions[0].streams[0].state == "pulling 40%"
    speaking = told(start, pulling, golden("energy.update")).picture().sessions[0].streams[0]
    assert speaking.state == "flowing"


def test_time_to_first_token_comes_with_a_snapshot_that_is_asked_for_once():
    fold = told(golden("experience.session_start"), golden("energy.update.charging"))
    assert not fold.asks_for_snapshot()
    fold.take(frame(5, golden("energy.update")))
    assert fold.asks_for_snapshot()
    assert not fold.asks_for_snapshot()
    fold.take(replied("system.state_snapshot.active"))
    (session,) = fold.picture().sessions
    assert (session.ttft_ms, session.streams[0].ttft_ms) == (550.0, 550.0)


def test_the_time_of_a_council_is_not_that_of_its_members():
    events = [golden("experience.session_start", mode="council"), *council()]
    ended = told(*events, golden("council.model_end"), golden("experience.session_end")).picture().sessions[0]
    assert [s.ttft_ms for s in ended.streams] == [8.0, None, None]
    assert ended.ttft_ms == 550.0


def test_a_council_has_its_ensemble_and_the_engines_cue():
    fold = told(*council())
    sent = golden("energy.update.council")["payload"]["ensemble"]
    shown = fold.picture().sessions[0].council
    assert (shown.energy, shown.di, shown.gain, shown.di_reason) == (sent["energy"], sent["di"], sent["gain"], None)
    assert shown.cue == "RESONANCE"
    fold.take(frame(9, golden("council.interference", pattern="destructive"), golden("council.resonance.end")))
    assert fold.picture().sessions[0].council.cue == "INTERFERENCE"
    fold.take(frame(10, golden("council.interference")))
    assert fold.picture().sessions[0].council.cue is None


@pytest.mark.parametrize(
    ("ensemble", "reason"),
    [({"energy": 0.5, "di": None, "reason": "no_logprobs"}, "no_logprobs"), (None, "no member has an energy")],
)
def test_a_di_that_is_not_known_has_its_reason(ensemble, reason):
    fold = told(golden("council.formed"), golden("energy.update.council", ensemble=ensemble))
    shown = fold.picture().sessions[0].council
    assert (shown.di, shown.di_reason) == (None, reason)
    assert f"DI — ({reason})" in text_of(fold)


def test_the_engine_line_is_the_heartbeats_perf_and_stats():
    fold = TopFold()
    fold.take(replied("system.hello"))
    before = fold.picture().engine
    assert (before.tier, before.fps, before.missed, before.bytes_out, before.degrade) == ("mid", None, None, None, None)
    stats = {"system": {"frames_missed": 3, "bytes_out": 12_300, "fps_current": 59.0}}
    fold.polled(stats, json.loads((GOLDEN / "http" / "models.json").read_text())["body"])
    assert fold.picture().engine.fps == 59.0
    fold.take(frame(7, golden("system.heartbeat", fps=60.0), degrade=2))
    engine = fold.picture().engine
    assert (engine.fps, engine.missed, engine.bytes_out, engine.degrade, engine.lateness_ms) == (
        60.0,
        3,
        12_300,
        2,
        0.4,
    )
    assert engine.tier == "mid"
    text = text_of(fold)
    for words in ("tier mid", "60.0 fps", "late 0.4 ms", "missed 3", "degrade 2", "out 12.3 kB"):
        assert words in text


def test_the_models_are_those_in_memory_and_events_are_newer_than_the_list():
    fold = TopFold()
    assert fold.picture().models is None
    body = json.loads((GOLDEN / "http" / "models.json").read_text())["body"]
    fold.polled({"system": {}}, body)
    assert {m.name: m.resident_bytes for m in fold.picture().models} == {"a": 1000, "b": 1000}
    fold.take(frame(1, golden("experience.model", model="c", state="loading", progress=0.25)))
    assert {m.name: m.state for m in fold.picture().models} == {"a": "ready", "b": "ready", "c": "loading"}
    assert "c  loading 25%" in text_of(fold)
    fold.unpolled()
    assert fold.picture().models is None
    assert "models in memory  —" in text_of(fold)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (golden("experience.session_end.truncated"), "UPSTREAM_TRUNCATED: "),
        (golden("council.model_error"), "UPSTREAM_PROTOCOL_ERROR: "),
        (golden("experience.model", state="failed", reason="no memory"), "failed: a: no memory"),
    ],
)
def test_the_last_error_is_told(event, words):
    fold = told(golden("experience.session_start"), event)
    assert words in text_of(fold)
    assert fold.picture().last_error.session_id == event["session_id"]


def test_a_snapshot_forgets_what_it_does_not_name_and_knows_what_is_over():
    fold = told(of_session(golden("energy.update"), "f" * 32))
    assert not fold.ready  # without a snapshot nobody knows what runs
    fold.take(replied("system.state_snapshot.ended"))
    fold.take(frame(3))
    (session,) = fold.picture().sessions
    assert (session.session_id, session.ended, session.tokens) == ("0" * 31 + "1", "finished", 5)
    assert fold.ready


def test_what_runs_comes_first_and_little_of_what_is_over():
    fold = TopFold()
    for number in range(9):
        fold.take(frame(number, of_session(golden("experience.session_start"), f"{number:032d}")))
        if number % 3:
            fold.take(frame(number, of_session(golden("experience.session_end"), f"{number:032d}")))
    shown = fold.picture().sessions
    assert [int(s.session_id) for s in shown] == [6, 3, 0, 8, 7, 5, 4]
    assert len([s for s in shown if s.ended]) == ENDED_MAX


def test_everything_kept_is_bounded_and_counted():
    fold = TopFold()
    for number in range(SESSIONS_MAX + 20):
        fold.take(frame(number, of_session(golden("energy.update"), f"{number:032d}")))
    picture = fold.picture()
    assert (len(picture.sessions), picture.forgotten) == (SESSIONS_MAX, 20)
    assert "20 sessions forgotten" in text_of(fold)


@given(st.binary() | st.text() | st.sampled_from(sorted((GOLDEN / "events").iterdir())).map(Path.read_bytes))
def test_what_is_no_frame_is_counted_and_changes_nothing(message):
    fold = TopFold()
    fold.take(message)
    assert fold.bad == 1
    assert fold.picture().sessions == ()


@pytest.mark.parametrize("path", sorted((GOLDEN / "events").iterdir()), ids=lambda path: path.stem)
def test_every_event_of_the_contract_is_understood(path):
    event = json.loads(path.read_text())
    fold = told(event)
    assert fold.bad == 0
    text_of(fold)


@pytest.mark.parametrize("path", sorted((GOLDEN / "ws").iterdir()), ids=lambda path: path.stem)
def test_every_message_of_the_contract_is_understood(path):
    fold = TopFold()
    # a golden's clock and frame number are named, not told
    fold.take(path.read_bytes().replace(b'"<frame: int>"', b"1").replace(b'"<mono_ms: float>"', b"1.0"))
    assert fold.bad == 0


# ── the drawing ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_a_screen_is_never_larger_than_the_terminal(width, height):
    from rich.cells import cell_len
    from rich.console import Console

    events = [of_session(event, f"{number:032d}") for number in range(9) for event in council()]
    fold = told(*events, golden("experience.session_end.error"), golden("experience.model", reason="wide 漢字 " * 40))
    last = fold.picture().sessions[-1].session_id
    lines = drawn(fold.picture(), width, height, selected=last, notes=("stopping …",))
    console = Console(record=True, width=width, file=open(os.devnull, "w"))
    with console.file:
        for line in lines:
            console.print(line, no_wrap=True, highlight=False)
    shown = console.export_text().splitlines()
    assert len(shown) <= height
    assert max(map(cell_len, shown)) <= width
    assert any(line.startswith(f"▸ {last[:8]}") for line in shown)
    assert "… " in "".join(line for line in shown if "more" in line)
    assert shown[-2:] == ["stopping …", "q quit · ↑↓ select · s stop the selected session"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_stream_is_one_row_of_figures(width):
    update = golden("energy.update.council")
    row = next(line for line in text_of(told(update), width).splitlines() if line.startswith("  a "))
    sent = update["payload"]["streams"][0]
    figures = [f"{sent['energy']:.2f}", f"{sent['tps']:.1f}", f"{sent['delta_ms']:.0f}", f"{sent['certainty']:.2f}"]
    assert row.split()[-6:] == [*figures, "159", "—"]
    assert "flowing" in row
    assert "█" in row
    assert len(row) <= width


def test_what_was_not_measured_is_a_dash():
    row = next(line for line in text_of(told(golden("experience.session_start"))).splitlines() if line[:4] == "  a ")
    assert row.split() == ["a", *["—"] * 8]


def test_a_stall_says_how_long():
    assert "stall 0.8 s" in text_of(told(golden("energy.update.stalling")))


def test_synthetic_is_said_and_only_then():
    assert "SYNTHETIC" in text_of(told(golden("experience.session_start", synthetic=True)), 80, 24)
    assert "SYNTHETIC" not in text_of(told(golden("experience.session_start")))


def hostile() -> TopFold:
    update, start = golden("energy.update"), golden("experience.session_start", origin=EVIL)
    update["payload"]["streams"][0] |= {"model": EVIL, "state": EVIL}
    error = golden("experience.session_end.error", error={"code": EVIL, "message": EVIL})
    fold = told(start, update, error, golden("system.heartbeat", version=EVIL, tier=EVIL))
    fold.polled({"system": {}}, {"models": [{"name": EVIL, "state": EVIL, "resident_bytes": 1, "reason": EVIL}]})
    return fold


def test_names_cannot_command_the_terminal():
    text = text_of(hostile(), notes=(EVIL,))
    assert "evil" in text
    assert {ch for ch in text if unicodedata.category(ch) in ("Cc", "Cf", "Cs", "Co")} == {"\n"}
    assert len(text.splitlines()) == len(drawn(hostile().picture(), 120, 40, notes=(EVIL,)))


def test_nor_through_json_which_still_says_exactly_what_came():
    data = as_json(hostile().picture()).decode()
    assert {ch for ch in data if unicodedata.category(ch) in ("Cc", "Cf", "Cs", "Co")} == {"\n"}
    assert json.loads(data)["models"][0]["name"] == EVIL


@given(st.floats(-1, 2), st.integers(1, 40))
def test_a_bar_is_as_long_as_e_to_an_eighth_of_a_cell(energy, cells):
    drawn_bar = bar(energy, cells)
    eighths = sum(8 if ch == "█" else " ▏▎▍▌▋▊▉".index(ch) for ch in drawn_bar)
    assert abs(eighths / (cells * 8) - min(1.0, max(0.0, energy))) <= 0.5 / (cells * 8) + 1e-9
    assert len(drawn_bar) <= cells


# ── keys, the connection, the terminal ──────────────────────────────────────────────────────────────────────────────


def top_of(*events: dict[str, Any]) -> Top:
    async def nowhere() -> Any:
        raise RuntimeUnavailable("no engine is running here")

    return Top(nowhere, Settings(), told(*events))


def test_keys_may_come_together_and_strange_ones_are_nothing():
    assert list(keys_in(b"\x1b[Bj\x1bOAx\x1b[Zsq")) == ["down", "down", "up", "stop", "quit"]
    assert set(KEYS.values()) == {"up", "down", "stop", "quit"}


@given(st.binary(max_size=64))
def test_any_bytes_are_keys_or_nothing(pressed):
    assert set(keys_in(pressed)) <= set(KEYS.values())


async def test_arrows_select_within_what_is_shown_and_q_quits(nursery):
    ids = [f"{number:032d}" for number in (3, 2, 1)]  # the newest first
    top = top_of(*(of_session(golden("energy.update"), id_) for id_ in reversed(ids)))
    for key, expected in [("up", 0), ("down", 1), ("down", 2), ("down", 2), ("up", 1)]:
        top.press(key, nursery)
        assert top.selected == ids[expected]
    top.press("quit", nursery)
    assert top.over.is_set()


async def test_with_nothing_to_stop_it_says_so(nursery):
    top = top_of()
    top.press("stop", nursery)
    assert "no session" in top.note


async def test_without_an_engine_the_first_connection_is_an_error():
    with pytest.raises(RuntimeUnavailable, match="no engine"):
        await top_of().follow()


async def test_later_it_looks_again_with_longer_pauses(autojump_clock):
    asked_s: list[float] = []

    async def find() -> Any:
        asked_s.append(trio.current_time())
        raise RuntimeUnavailable("no engine is running here")

    top = Top(find, Settings())
    top.began.set()  # there was one
    with trio.move_on_after(20):
        await top.follow()
    pauses = [round(after - before, 3) for before, after in pairwise(asked_s)]
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert "looking again" in top.notes()[0]


async def test_frames_are_folded_and_a_missing_ttft_is_asked_for(autojump_clock):
    top, sent = top_of(), []
    messages = [frame(1, golden("energy.update")), frame(2, golden("energy.update"))]

    async def receive() -> bytes:
        if not messages:
            raise ConnectionClosed(CloseReason(1001, ""))
        return messages.pop(0)

    async def send(message: str) -> None:
        sent.append(message)

    with pytest.raises(ConnectionClosed):
        await top.listen(receive, send)
    assert sent == [RESYNC]


async def test_a_silent_engine_is_told(autojump_clock):
    top = top_of()
    top.heard_s = trio.current_time()
    assert top.notes() == ()
    await trio.sleep(4)
    assert top.notes() == ("the engine is silent for 4 s",)


def test_what_it_says_to_the_engine_is_understood_and_brings_no_text():
    command = parse_command(SUBSCRIBE.encode())
    assert isinstance(command, Subscribe)
    assert (tuple(command.patterns), command.rate_hz) == (PATTERNS, 10.0)
    assert "experience.token" not in command.patterns
    assert "experience.*" not in command.patterns
    parse_command(RESYNC.encode())


async def test_of_pictures_that_wait_for_a_slow_terminal_only_the_newest_is_drawn():
    reading, writing = os.pipe()
    go, began, made = threading.Event(), trio.Event(), []
    token = trio.lowlevel.current_trio_token()

    def make(number: int) -> bytes:
        made.append(number)
        if number == 0:
            trio.from_thread.run_sync(began.set, trio_token=token)
            go.wait(30)
        return b"%d " % number

    try:
        async with trio.open_nursery() as nursery:
            painter = Painter(writing)
            nursery.start_soon(painter.run)
            painter.show(lambda: make(0))
            await began.wait()  # it hangs in the thread, and this thread goes on
            for number in range(1, 6):
                painter.show(lambda number=number: make(number))
            go.set()
            shown = b""
            with trio.fail_after(30):
                while b"5" not in shown:
                    await trio.lowlevel.wait_readable(reading)
                    shown += os.read(reading, 100)
            nursery.cancel_scope.cancel()
        assert (shown, made, painter.dropped) == (b"0 5 ", [0, 5], 4)
    finally:
        go.set()
        os.close(reading)
        os.close(writing)


def test_without_rich_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'wf-engine\[tui\]'"):
        require_rich()
