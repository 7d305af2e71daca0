"""Replay: a recorded session looks as it looked, says for its whole life that it is one, and draws nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.acts import at_once, ended, report, run, turns, until
from tests.browser.conftest import Watch
from tests.browser.scripted import FIRST_FRAME, SESSION, council, event, frame, peer, stream_id

pytestmark = pytest.mark.browser


def over(count: int, seconds: float, **start: Any) -> list[dict[str, Any]]:
    """A whole council, with its end."""
    messages = council(count, seconds)
    if start:
        messages[0]["events"][1]["payload"] |= start
    rest = {"reason": "finished", "error": None, "totals": {"tokens": 9}, "duration_ms": 2000.0, "ttft_ms": 9.0}
    end = event("experience.session_end", **rest, stop_latency_ms=None, summary={})
    return [*messages, frame(FIRST_FRAME + len(messages), end)]


def as_file(path: Path, messages: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(message) + "\n" for message in messages))
    return path


def open_file(page: Page, path: Path) -> None:
    page.set_input_files("#replay-file", path)


def seen(page: Page, columns: int) -> None:
    """A session is drawn up to there, and it is over."""
    until(page, f"window.__wf.columns === {columns}")
    expect(page.locator("#replay-this")).to_be_visible()


def seek(page: Page, seconds: float) -> None:
    expect(page.locator("#replay-time")).to_contain_text(" s of ")  # it is read, and the bar knows how long it is
    page.locator("#replay-at").evaluate(
        "(scrub, ms) => { scrub.value = ms; scrub.dispatchEvent(new Event('input')); }", seconds * 1000
    )


def drawn(page: Page) -> dict[str, Any]:
    """What a page shows of a session however busy it was: frames of a page in the background are not missed ones."""
    return {name: value for name, value in report(page).items() if name in ("strikes", "tokens", "lastEnergy")}


def strikes(page: Page) -> list[int]:
    return page.evaluate("window.__wf.strikesByStream")


def tokens_until(messages: list[dict[str, Any]], slot: int, frames: int) -> int:
    told = [one for message in messages[:frames] for one in message["events"] if one["type"] == "experience.token"]
    return sum(len(one["payload"]["tokens"]) for one in told if one["payload"]["stream_id"] == stream_id(slot))


# ── from what the page saw ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_session_that_is_over_is_replayed_frame_by_frame(page: Page, watch: Watch) -> None:
    session = run(page, "synthetic/steady", max_tokens=30)
    ended(page)
    columns = watch.columns(session)
    until(page, f"window.__wf.strikes === 30 && window.__wf.columns === {columns}")
    text, live = page.locator(".lane .text").text_content(), drawn(page)
    page.click("#replay-this")
    expect(page.locator("#replaying")).to_contain_text("REPLAY")
    expect(page.locator("#synthetic")).to_be_visible()
    expect(page).to_have_title("REPLAY · WF Engine")
    page.select_option("#replay-speed", "4")
    expect(page.locator("#replay-play")).to_have_text("Again")
    until(page, f"window.__wf.columns === {columns}")
    assert drawn(page) == live
    assert page.locator(".lane .text").text_content() == text
    expect(page.locator("#replaying")).to_be_visible()  # also at its end
    expect(page.locator("#outcome")).to_contain_text("30 tokens")
    page.click("#replay-live")
    expect(page.locator("#replaying")).to_be_hidden()
    expect(page.locator("#run")).to_be_visible()
    assert not [sent for sent in watch.sent if sent["type"] not in ("subscribe", "ack_rendered")]


def test_scrubbing_shows_what_had_come_by_then_and_no_more(blank: Page) -> None:
    messages = over(3, 4)
    peer(blank, messages)
    blank.goto("/")
    seen(blank, 240)
    blank.click("#replay-this")
    for seconds in (3.01, 1.01, 2.51):
        seek(blank, seconds)
        came = int(seconds * 60) + 1  # frame 0 came at 0 s
        until(blank, f"window.__wf.columns === {came}")
        assert strikes(blank) == [tokens_until(messages, slot, came) for slot in range(3)]
        expect(blank.locator("#replay-time")).to_have_text(f"{seconds:.2f} s of 4.00 s")
        expect(blank.locator("#n-tokens")).to_be_hidden()
    expect(blank.locator("#replay-play")).to_have_text("Play")  # scrubbing pauses
    shown = blank.locator("#members-rows tr").first
    reading = next(e for e in messages[150]["events"] if e["type"] == "energy.update")["payload"]["streams"][0]
    expect(shown).to_contain_text(f"{reading['energy']:.2f}")


def test_a_link_opens_the_replay_at_its_moment(blank: Page) -> None:
    links = peer(blank, over(2, 4))
    blank.goto("/")
    seen(blank, 240)
    blank.evaluate(f"location.hash = '#/replay/{SESSION[:8]}?at=2.5&solo=2&evidence=1&tok=2:40'")
    expect(blank.locator("#replay-time")).to_have_text("2.50 s of 4.00 s")
    expect(blank.locator("#evidence-token")).to_contain_text("Token 40:")
    expect(blank.locator(".lane").first).to_be_hidden()
    until(blank, f"location.hash === '#/replay/{SESSION}?at=2.5&evidence=1&solo=2&tok=2:40'")
    seek(blank, 2)  # what is looked at stays, where it is there
    until(blank, "location.hash.includes('at=2&')")
    until(blank, "location.hash.includes('solo=2&tok=2:40')")
    assert len(links) == 1


def test_a_link_to_a_stream_that_is_over_is_its_replay(blank: Page) -> None:
    peer(blank, over(2, 2))
    blank.goto("/")
    seen(blank, 120)
    blank.evaluate(f"location.hash = '#/stream/{SESSION[:8]}'")
    expect(blank.locator("#replaying")).to_be_visible()
    expect(blank.locator("#nav-replay")).to_have_attribute("aria-current", "page")


def test_a_link_to_what_is_not_here_says_why(blank: Page) -> None:
    peer(blank)
    blank.goto("/#/stream/0123456789ab")
    expect(blank.locator("#gone")).to_contain_text("Session 01234567 is over")
    blank.click("#gone a")
    expect(blank.locator("#replay-trouble")).to_contain_text("No session has ended while this page was open")
    blank.evaluate("location.hash = '#/replay/0123456789ab'")
    expect(blank.locator("#replay-trouble")).to_contain_text("no recording of session 01234567")
    expect(blank.locator("#gone")).to_be_hidden()
    assert report(blank)["strikes"] == 0


def test_a_running_session_is_not_replayed_yet(blank: Page) -> None:
    peer(blank, council(2, 1))
    blank.goto("/")
    until(blank, "window.__wf.columns === 60")
    expect(blank.locator("#replay-this")).to_be_hidden()
    blank.evaluate(f"location.hash = '#/replay/{SESSION[:8]}'")
    expect(blank.locator("#replay-trouble")).to_contain_text("still runs")


def test_missed_frames_stay_missing(blank: Page) -> None:
    messages = over(2, 3)
    del messages[60:90]
    peer(blank, messages)
    blank.goto("/")
    seen(blank, 180)
    live = strikes(blank)
    blank.click("#replay-this")
    expect(blank.locator("#replaying")).to_contain_text("30 frames missing")
    seek(blank, 3)
    until(blank, "window.__wf.columns === 180")
    assert strikes(blank) == live
    blank.evaluate("location.hash = '#/stream'")
    expect(blank.locator("#replaying")).to_be_hidden()


def test_keys_and_stop_in_a_replay_touch_nothing_that_runs(page: Page) -> None:
    run(page, "synthetic/steady", max_tokens=100)
    ended(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.click("#title")  # out of the prompt
    speed = page.locator("#replay-speed")
    speed.evaluate("select => { select.value = '0.25'; }")  # a quarter of a minute, in which somebody looks
    at_once(page, "g", "r")
    expect(page.locator("#replay-play")).to_have_text("Pause")
    page.locator("body").press(" ")
    expect(page.locator("#replay-play")).to_have_text("Play")
    seek(page, 0.5)
    page.locator("body").press("Escape")
    expect(page.locator("#run")).to_be_hidden()
    speed.select_option("4")
    page.locator("body").press(" ")
    expect(page.locator("#replay-play")).to_have_text("Again")
    assert not [url for url in asked if url.endswith(("/stop", "/generate"))]


# ── from a file ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_replayed_as_what_it_is(blank: Page, tmp_path: Path) -> None:
    peer(blank)
    messages = over(2, 2, synthetic=True)
    blank.goto("/#/replay")
    open_file(blank, as_file(tmp_path / "s.jsonl", messages))
    expect(blank.locator("#replaying")).to_contain_text("from a file")
    expect(blank.locator("#synthetic")).to_be_visible()
    seek(blank, 2)
    until(blank, "window.__wf.columns === 120")
    assert strikes(blank) == [tokens_until(messages, slot, 120) for slot in range(2)]


def test_a_file_that_is_read_late_takes_nothing_from_what_was_opened_since(blank: Page, tmp_path: Path) -> None:
    peer(blank, over(2, 2))
    blank.goto("/")
    seen(blank, 120)
    blank.evaluate(
        """() => {
          const { text } = Blob.prototype;
          const held = (file, done) => { window.goOn = () => done(text.call(file)); };
          File.prototype.text = function () { return new Promise(done => held(this, done)); };
        }"""
    )
    path = as_file(tmp_path / "s.jsonl", council(1, 1))
    blank.click("#nav-replay")
    expect(blank.locator("#replay-play")).to_have_text("Again")
    open_file(blank, path)
    blank.evaluate("location.hash = '#/replay/none'")
    expect(blank.locator("#replay-trouble")).to_contain_text("no recording of session none")
    blank.evaluate(f"location.hash = '#/replay/{SESSION[:8]}?at=1'")
    expect(blank.locator("#replay-time")).to_have_text("1.00 s of 2.00 s")
    blank.evaluate("window.goOn()")
    turns(blank, 20)
    expect(blank.locator("#replay-time")).to_be_visible()
    expect(blank.locator("#replaying")).not_to_contain_text("from a file")


def test_a_recording_without_its_end_says_so(blank: Page, tmp_path: Path) -> None:
    peer(blank)
    blank.goto("/#/replay")
    open_file(blank, as_file(tmp_path / "s.jsonl", council(2, 1)))
    expect(blank.locator("#replaying")).to_contain_text("its end is not in the recording")


BAD = [
    (b"", "There is nothing in it"),
    (b"\x00\x01\xffPNG", "Line 1: this is not JSON"),
    (b"[1]\n", "Line 1: the frame is not an object"),
    (b'{"type":"experience.token","payload":{}}\n', "Line 1: this is a single event"),
    (json.dumps(frame(1)).encode(), "No line is of a session"),
    (json.dumps(frame(1) | {"v": "2.0"}).encode(), "Line 1: it is of schema 2.0"),
    (json.dumps(frame(1) | {"events": 3}).encode(), "Line 1: the frame: events"),
    (
        json.dumps(frame(1, event("experience.token", stream_id="a", tokens=[{"text": 1}]))).encode(),
        "Line 1: a token: text is missing or of another kind",
    ),
    (json.dumps(frame(1, event("energy.update", streams=None))).encode(), "Line 1: energy.update: streams"),
    (
        b"".join(json.dumps(message).encode() + b"\n" for message in (*council(2, 0.1), frame(FIRST_FRAME))),
        "Line 7: frame 100 comes after frame 105",
    ),
    (
        json.dumps(frame(1, event("council.formed"), event("council.formed", session="b" * 32))).encode(),
        "Line 1: it is of another session",
    ),
    (
        json.dumps(frame(1, event("experience.session_start", streams=[{"stream_id": 1, "model": 2}]))).encode(),
        "Line 1: experience.session_start: stream_id is of another kind",
    ),
]


@pytest.mark.parametrize(("content", "words"), BAD)
def test_a_file_that_is_no_session_is_refused_with_its_fault(
    blank: Page, tmp_path: Path, content: bytes, words: str
) -> None:
    peer(blank)
    blank.goto("/#/replay")
    path = tmp_path / "<b>bad.jsonl"
    path.write_bytes(content)
    open_file(blank, path)
    trouble = blank.locator("#replay-trouble")
    expect(trouble).to_contain_text(words)
    expect(trouble).to_contain_text("<b>bad.jsonl is not a recorded session")
    expect(blank.locator("#replay-controls")).to_be_hidden()


def test_words_of_a_file_are_only_words(blank: Page, tmp_path: Path) -> None:
    peer(blank)
    hostile = '<img src=x onerror="window.pwned=1"></script>\x1b[31m\u202eevil'
    messages = over(2, 1)
    for message in messages:
        for one in message["events"]:
            for told in [*one["payload"].get("streams", []), *one["payload"].get("members", [])]:
                told["model"] = hostile
            for told in one["payload"].get("tokens", []) if one["type"] == "experience.token" else []:
                told["text"] = hostile
    blank.goto("/#/replay")
    open_file(blank, as_file(tmp_path / "s.jsonl", messages))
    seek(blank, 1)
    expect(blank.locator(".lane .text").first).to_contain_text("<img src=x onerror=")
    expect(blank.locator("#replaying")).to_contain_text("‹U+202E›")
    assert blank.evaluate("window.pwned") is None


def test_time_passes_as_fast_as_was_asked_for(page: Page) -> None:
    lines = "\n".join(json.dumps(message) for message in over(1, 10))
    told = page.evaluate(
        """async text => {
          const { Player, SPEEDS } = await import("/static/replay.js");
          const { read } = await import("/static/recorded.js");
          const track = await read(text);
          const told = SPEEDS.map(speed => {
            const player = new Player(track);
            Object.assign(player, { speed, playing: true });
            let now = 0;
            for (player.tick(now); now < 1_000; ) { // a second of animation frames
              player.tick(now += 20);
              while (!player.settled) player.tick(now);
            }
            const came = track.atMs.filter(ms => ms <= player.atMs).length;
            return [speed, Math.round(player.atMs), player.session.streams[0].columns.count === came];
          });
          const player = new Player(track);
          player.playing = true;
          player.tick(0);
          player.tick(60_000);
          while (!player.settled) player.tick(60_000);
          const over = [player.over, player.playing, player.session.end !== null];
          player.toggle();
          return [told, over, player.atMs, player.playing];
        }""",
        lines,
    )
    assert told[0] == [[speed, speed * 1000, True] for speed in (0.25, 0.5, 1, 2, 4)]
    assert told[1:] == [[True, False, True], 0, True]


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_kept_is_bounded_and_comes_back_as_it_came(page: Page) -> None:
    kept = page.evaluate(
        """async () => {
          const m = await import("/static/recordings.js");
          const all = new m.Recordings();
          const event = (id, type, payload = {}) => ({ type, session_id: id, payload });
          let n = 0;
          const say = (...events) => {
            const message = { v: "1.0", frame: (n += 1), ts_ms: 0, mono_ms: n, events };
            all.take(message, JSON.stringify(message));
          };
          for (let i = 0; i < m.RECORDED_SESSIONS + 6; i += 1) {
            say(event(`s${i}`, "energy.update"));
            say(event(`s${i}`, "experience.session_end"));
          }
          const few = [all.all.size, all.forgotten, all.find("s0"), all.ended[0].id];
          const random = size => Array.from(crypto.getRandomValues(new Uint8Array(size)), b => b.toString(36)).join("");
          for (let i = 0; i < 40; i += 1) { // longer than all the room there is
            for (let k = 0; k < 16; k += 1) say(event("long", "experience.token", { text: random(60_000) }));
            await all.all.get("long").text(); // until it is packed
          }
          const long = all.all.get("long");
          const lines = (await long.text()).split("\\n").filter(Boolean).map(line => JSON.parse(line).frame);
          const rising = lines.every((frame, i) => i === 0 || frame === lines[i - 1] + 1);
          const same = lines.length === long.lines;
          return { few, size: all.all.size, cut: long.cut, bytes: all.bytes, rising, lines: same };
        }"""
    )
    assert kept["few"] == [64, 6, None, "s69"]
    assert kept["size"] == 1  # the others made room
    assert kept["cut"] is True
    assert kept["rising"] is True
    assert kept["lines"] is True
    assert kept["bytes"] < 17 * 2**20


def test_sessions_side_by_side_are_told_apart(page: Page) -> None:
    lines = page.evaluate(
        """async () => {
          const { Recordings } = await import("/static/recordings.js");
          const all = new Recordings();
          const event = (id, type) => ({ type, session_id: id, payload: { streams: [] } });
          const take = (frame, ...events) => {
            const message = { v: "1.0", frame, ts_ms: 0, mono_ms: frame, events };
            all.take(message, JSON.stringify(message));
          };
          take(1, event("a", "energy.update"));
          take(2, event("a", "energy.update"), event("b", "energy.update"), event(null, "system.heartbeat"));
          take(3, event("b", "energy.update"));
          take(4, event("a", "experience.session_end"), event("b", "energy.update"));
          take(5, event("b", "experience.session_end"));
          take(6, event(null, "system.heartbeat"));
          const of = async id => (await all.all.get(id).text()).split("\\n").filter(Boolean)
            .map(line => JSON.parse(line)).map(({ frame, events }) => [frame, events.map(e => e.session_id).join()]);
          return [await of("a"), await of("b")];
        }"""
    )
    # a frame that says nothing of a session that runs was not missed
    assert lines == [[[1, "a"], [2, "a"], [3, ""], [4, "a"]], [[2, "b"], [3, "b"], [4, "b"], [5, "b"]]]
