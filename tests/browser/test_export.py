"""Saved files have the values that came over the wire, and only what was asked for."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Download, Page, expect

from tests.browser.acts import ended, run, until
from tests.browser.conftest import Watch
from tests.browser.scripted import SESSION, council, peer, stream_id
from tests.browser.test_replay import open_file, over, seen

pytestmark = pytest.mark.browser

NAME = r"wf-[0-9a-f]{32}-\d{8}T\d{6}Z"


def save(page: Page, kind: str) -> Download:
    if not page.locator("#saving[open]").count():
        page.click("#saving-open")
    with page.expect_download() as download:
        page.click(f"#saving button[data-kind={kind}]")
    expect(page.locator("#saving-note")).to_have_text(f"Saved as {download.value.suggested_filename}")
    return download.value


def content(download: Download) -> str:
    return Path(download.path()).read_text(encoding="utf-8")


def wire(frames: list[dict[str, Any]], session: str) -> list[dict[str, Any]]:
    """What came of a session: the frames from its first event to its end, with its events alone."""
    came = []
    for frame in frames:
        own = [event for event in frame["events"] if event["session_id"] == session]
        if frame["frame"] is not None and (own or came):
            came.append(frame | {"events": own})
        if any(event["type"] == "experience.session_end" for event in own):
            return came
    return came


def tokens(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    told = [event for frame in frames for event in frame["events"] if event["type"] == "experience.token"]
    return [one | {"stream": event["payload"]["stream_id"]} for event in told for one in event["payload"]["tokens"]]


def same(cell: str, value: float | None) -> bool:
    return cell == "" if value is None else math.isclose(float(cell), value, rel_tol=1e-12)


def test_a_session_of_the_engine_is_saved_as_it_came(page: Page, watch: Watch) -> None:
    session = run(page, "synthetic/steady", max_tokens=25)
    ended(page)
    until(page, "window.__wf.tokens === 25")
    came = wire(watch.frames, session)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))

    saved = save(page, "jsonl")
    assert re.fullmatch(NAME + r"\.jsonl", saved.suggested_filename)
    assert [json.loads(line) for line in content(saved).splitlines()] == came

    saved = save(page, "csv")
    assert re.fullmatch(NAME + r"\.csv", saved.suggested_filename)
    text = content(saved)
    rows = list(csv.DictReader(io.StringIO(text)))
    told = tokens(came)
    assert len(rows) == len(told) == 25
    for row, token in zip(rows, told, strict=True):
        assert (row["session"], row["stream"], int(row["position"])) == (session, token["stream"], token["position"])
        assert int(row["t_us"]) == token["t_us"]
        for name, key in [("delta_ms", "delta_ms"), ("logprob", "logprob"), ("E_base", "energy_base"), ("E", "energy")]:
            assert same(row[name], token[key]), (name, row, token)
        assert same(row["p"], math.exp(token["logprob"]))
    assert "SYNTHETIC" not in text  # which is what it says: no text of the answer

    saved = save(page, "trace")
    assert re.fullmatch(NAME + r"-trace\.json", saved.suggested_filename)
    assert not [url for url in requests if not url.startswith("blob:") and "/static/" in url]


def test_the_csv_has_entropy_and_stalls_as_the_engine_told_them(blank: Page) -> None:
    messages = over(2, 5)
    peer(blank, messages)
    blank.goto("/")
    seen(blank, 300)
    rows = list(csv.DictReader(io.StringIO(content(save(blank, "csv")))))
    last: dict[str, Any] = {}
    entropies = {}
    stalled = set()
    silent: dict[str, bool] = {}
    for message in messages:
        for one in message["events"]:
            if one["type"] == "experience.token":
                for token in one["payload"]["tokens"]:
                    key = (one["payload"]["stream_id"], token["position"])
                    last[one["payload"]["stream_id"]] = key
                    if silent.pop(one["payload"]["stream_id"], False):
                        stalled.add(key)
            elif one["type"] == "energy.update":
                for reading in one["payload"]["streams"]:
                    key = last.pop(reading["stream_id"], None)
                    if key:
                        entropies[key] = reading["entropy_bits"]
                    if reading["stall"]:
                        silent[reading["stream_id"]] = True
    assert len(stalled) == 1  # what follows assumes it
    for row in rows:
        key = (row["stream"], int(row["position"]))
        assert same(row["entropy_bits"], entropies.get(key)), row
        assert row["stall"] == ("true" if key in stalled else "false")


def test_where_frames_were_missed_a_stall_is_not_known(blank: Page) -> None:
    messages = over(2, 2)
    del messages[60:70]
    peer(blank, messages)
    blank.goto("/")
    seen(blank, 120)
    rows = list(csv.DictReader(io.StringIO(content(save(blank, "csv")))))
    unknown = [row for row in rows if row["stall"] == ""]
    assert [row["stream"] for row in unknown] == [stream_id(0), stream_id(1)]
    assert all(int(row["frame"]) >= 170 for row in unknown)


def test_the_trace_is_what_perfetto_reads(blank: Page) -> None:
    messages = over(3, 3)
    peer(blank, messages)
    blank.goto("/")
    seen(blank, 180)
    trace = json.loads(content(save(blank, "trace")))
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    events = trace["traceEvents"]
    needed = {"X": {"ts", "dur", "pid", "tid", "name"}, "C": {"ts", "pid", "name", "args"}}
    needed |= {"M": {"pid", "name", "args"}, "i": {"ts", "pid", "s", "name"}}
    for one in events:
        assert needed[one["ph"]] <= set(one), one
    slices = [one for one in events if one["ph"] == "X"]
    told = tokens(messages)
    assert len(slices) == len(told)
    for one, token in zip(slices, told, strict=True):
        assert one["ts"] + one["dur"] == token["t_us"] == one["args"]["t_us"]
        assert one["dur"] == math.floor((token["delta_ms"] or 0) * 1000 + 0.5)
        assert one["args"]["E"] == token["energy"]
    counters = [one["args"]["DI"] for one in events if one["ph"] == "C" and one["name"] == "DI"]
    updates = [e["payload"]["ensemble"] for m in messages for e in m["events"] if e["type"] == "energy.update"]
    assert counters == [ensemble["di"] for ensemble in updates if ensemble]
    assert "lighthouse" not in json.dumps(trace)  # no word of the answer


def test_the_picture_is_a_png_of_the_field(blank: Page) -> None:
    peer(blank, over(2, 2, synthetic=True))
    blank.goto("/")
    seen(blank, 120)
    saved = save(blank, "png")
    assert re.fullmatch(NAME + r"-field\.png", saved.suggested_filename)
    data = Path(saved.path()).read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    field = blank.locator("#field")
    assert width == field.evaluate("canvas => canvas.width")
    assert height > field.evaluate("canvas => canvas.height")  # the line that says what it is


def test_a_saved_session_can_be_replayed_and_saved_again(blank: Page, tmp_path: Path) -> None:
    peer(blank, over(2, 2))
    blank.goto("/")
    seen(blank, 120)
    first = save(blank, "jsonl")
    path = tmp_path / first.suggested_filename
    first.save_as(path)
    blank.reload()  # nothing of it is in this page any more
    blank.goto("/#/replay")
    expect(blank.locator("#replay-pick")).to_be_visible()
    open_file(blank, path)
    expect(blank.locator("#replaying")).to_contain_text("from a file")
    again = save(blank, "jsonl")
    assert content(again) == path.read_text()
    assert again.suggested_filename == first.suggested_filename


def test_what_the_page_never_saw_cannot_be_saved(blank: Page) -> None:
    links = peer(blank)
    blank.goto("/")
    expect(blank.locator("#saving-open")).to_be_disabled()
    blank.wait_for_selector("#run:not([disabled])")
    state = {"session_id": SESSION, "mode": "single", "models": ["m"], "started_ms": 0, "origin": "api"}
    end = {"reason": "finished", "totals": {"tokens": 1}, "duration_ms": 5.0, "ttft_ms": 1.0}
    stream = {"stream_id": stream_id(0), "model": "m", "text": {"answer": "hello"}, "tokens": 1}
    snapshot = {"sessions": [state | {"end": end, "streams": [stream], "tokens": 1}]}
    message = {"v": "1.0", "frame": None, "ts_ms": 0, "mono_ms": 0, "perf": None}
    told = [{"type": "system.state_snapshot", "session_id": None, "payload": snapshot}]
    links[0].send(json.dumps(message | {"events": told}))
    expect(blank.locator(".lane .text")).to_have_text("hello")
    expect(blank.locator("#replay-this")).to_be_hidden()
    blank.click("#saving-open")
    expect(blank.locator("#saving button[data-kind=jsonl]")).to_be_disabled()
    expect(blank.locator("#saving-note")).to_contain_text("no frames of it")
    expect(blank.locator("#saving button[data-kind=png]")).to_be_enabled()
    blank.keyboard.press("Escape")
    blank.evaluate(f"location.hash = '#/stream/{SESSION[:8]}'")
    expect(blank.locator("#gone")).to_contain_text("was over before this page was opened")


def test_a_session_joined_late_is_recorded_from_then_on(blank: Page, tmp_path: Path) -> None:
    links = peer(blank)
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    stream = {"stream_id": stream_id(0), "model": "llama3.1:8b", "text": {"answer": "said before "}, "tokens": 7}
    state = {"session_id": SESSION, "mode": "council", "models": ["llama3.1:8b"], "started_ms": 0.5, "end": None}
    snapshot = {"sessions": [state | {"origin": "api", "synthetic": True, "streams": [stream], "tokens": 7}]}
    message = {"v": "1.0", "frame": None, "ts_ms": 0, "mono_ms": 0, "perf": None}
    told = [{"type": "system.state_snapshot", "session_id": None, "payload": snapshot}]
    links[0].send(json.dumps(message | {"events": told}))
    for late in over(1, 2)[60:]:
        links[0].send(json.dumps(late))
    expect(blank.locator("#replay-this")).to_be_visible()
    lines = [json.loads(line) for line in content(save(blank, "jsonl")).splitlines()]
    assert [line["frame"] for line in lines[:2]] == [None, 160]
    blank.keyboard.press("Escape")
    blank.click("#replay-this")
    expect(blank.locator("#replaying")).to_contain_text("recorded from 1.00 s on")
    expect(blank.locator("#synthetic")).to_be_visible()
    expect(blank.locator(".lane .text")).to_contain_text("said before")


def test_a_running_council_is_saved_as_far_as_it_has_come(blank: Page) -> None:
    messages = council(2, 1)
    peer(blank, messages)
    blank.goto("/")
    until(blank, "window.__wf.columns === 60")
    saved = [json.loads(line) for line in content(save(blank, "jsonl")).splitlines()]
    assert saved == messages
