"""The line to the engine: coming back after a break, and reporting what was painted."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.browser.acts import ended, report, run, turns, until, wait_for
from tests.browser.conftest import Watch

pytestmark = pytest.mark.browser

WORDS = 240  # ten seconds of them: the line breaks in their midst, however busy the machine is


def broken_once(page: Page, links: list[WebSocketRoute], then: Callable[[], None] = lambda: None) -> None:
    """A session whose line breaks after some tokens, `then`, and up to its end."""
    page.goto("/")
    page.wait_for_selector("#run:not([disabled])")
    run(page, "synthetic/steady", max_tokens=WORDS)
    until(page, "window.__wf.tokens >= 5")
    links[0].close(code=1011)
    then()
    ended(page)
    assert len(links) == 2
    expect(page.locator("#connection")).to_have_text("connected")
    assert report(page)["tokens"] == WORDS
    assert len((page.locator(".lane .text").text_content() or "").split()) == WORDS


def test_after_a_break_the_missed_frames_are_asked_for(blank: Page) -> None:
    links: list[WebSocketRoute] = []

    def pass_on(link: WebSocketRoute) -> None:
        links.append(link)
        link.connect_to_server()

    blank.route_web_socket("**/ws*", pass_on)
    broken_once(blank, links)
    assert "since" not in links[0].url
    assert re.search(r"\?since=[0-9a-f]+\.\d+$", links[1].url)
    until(blank, f"window.__wf.strikes === {WORDS}")  # none was missed, none came twice


def test_after_a_break_too_long_ago_a_snapshot_gives_the_text(blank: Page) -> None:
    links: list[WebSocketRoute] = []
    held: list[str] = []  # of the second line
    painted = threading.Event()

    def from_another_start(link: WebSocketRoute) -> None:
        """The page believes it is of a start of the engine that this engine does not know."""
        links.append(link)
        first = len(links) == 1

        def tell(message: str | bytes) -> None:
            told = re.sub(r'"boot":"[0-9a-f]+"', '"boot":"0"', str(message))
            if first or painted.is_set():
                link.send(told)
            else:
                held.append(told)

        link.connect_to_server().on_message(tell)

    def snapshot_then_frames() -> None:
        """The page paints between the two: one that does not is in the background, and counts no frame as missed."""
        frames = wait_for(blank, lambda: [n for n, message in enumerate(held) if json.loads(message)["frame"]])
        for message in held[: frames[0]]:
            links[1].send(message)
        turns(blank, 2)
        for message in held[frames[0] :]:
            links[1].send(message)
        painted.set()

    blank.route_web_socket("**/ws*", from_another_start)
    broken_once(blank, links, snapshot_then_frames)
    assert links[1].url.partition("since=")[2].startswith("0.")
    assert report(blank)["strikes"] < WORDS  # the picture of the tokens between is gone, and nothing stands in for it
    assert report(blank)["gaps"] > 0


def test_a_refused_resume_is_not_tried_again(blank: Page) -> None:
    links: list[WebSocketRoute] = []

    def refuse_resume(link: WebSocketRoute) -> None:
        links.append(link)
        if "since" in link.url:
            link.close(code=1011)
        else:
            link.connect_to_server()

    blank.route_web_socket("**/ws*", refuse_resume)
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    until(blank, "window.__wf.framesReceived > 0")
    links[0].close(code=1011)
    wait_for(blank, lambda: len(links) == 3)  # the line in between is refused, which may be over before anybody looks
    expect(blank.locator("#connection")).to_have_text("connected")
    assert ["since" in link.url for link in links] == [False, True, False]


def test_what_comes_twice_is_taken_once(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { Store } = await import("/static/store.js");
          const store = new Store();
          const start = { models: ["m"], energy_params: {}, origin: "api", streams: [{ stream_id: "t" }], start_us: 0 };
          const token = n => ({ position: n, text: `<${n}>`, kind: "answer", t_us: n, logprob: null, energy_base: 0 });
          const say = (frame, ...events) => store.ingest({ frame, mono_ms: 0, events }, 0);
          const tokens = (from, to) => {
            const list = [];
            for (let n = from; n < to; n += 1) list.push(token(n));
            return { type: "experience.token", session_id: "s", payload: { stream_id: "t", model: "m", tokens: list } };
          };
          const text = () => store.sessions.get("s").streams[0].segments.map(s => s.text).join("");
          say(1, { type: "experience.session_start", session_id: "s", payload: start }, tokens(0, 3));
          say(1, tokens(3, 9)); // a frame that was seen
          say(2, tokens(1, 4)); // tokens that were seen, and one that was not
          const seen = [text(), store.sessions.get("s").tokens];
          const stream = { stream_id: "t", model: "m", text: { answer: "<0><1><2><3><4>" } };
          const state = { session_id: "s", started_ms: 0, end: null, tokens: 5, streams: [stream] };
          say(null, { type: "system.state_snapshot", payload: { sessions: [state] } });
          say(3, tokens(3, 7));
          return [...seen, text(), store.sessions.get("s").tokens];
        }"""
    )
    assert found == ["<0><1><2><3>", 4, "<0><1><2><3><4><5><6>", 7]


def test_the_page_reports_what_it_painted(page: Page, watch: Watch) -> None:
    run(page, "synthetic/steady", max_tokens=45)
    ended(page)
    reports = [message for message in watch.sent if message["type"] == "ack_rendered"]
    events = [event for frame in watch.frames for event in frame["events"]]
    assert reports
    frames = {frame["frame"] for frame in watch.frames}
    for message in reports:
        assert set(message) == {"type", "frame", "fps", "lag_ms"}
        assert message["frame"] in frames
        assert 0 < message["fps"] <= 240
        assert message["lag_ms"] >= 0
    numbers = [message["frame"] for message in reports]
    assert numbers == sorted(set(numbers))
    answers = [event["type"] for event in events if event["type"] in ("system.acknowledged", "system.error")]
    assert "system.acknowledged" in answers
    assert "system.error" not in answers


def test_it_reports_once_a_second_what_is_new(page: Page) -> None:
    """In the page's own time: sixty animation frames a second, and an engine that falls silent after two of them."""
    told = page.evaluate(
        """async () => {
          const { RenderReport } = await import("/static/rendered.js");
          const sent = [];
          const report = new RenderReport(message => sent.push(message.frame));
          for (let turn = 0; turn < 300; turn += 1) report.painted(Math.min(turn, 119), 0, 60, (turn * 1_000) / 60);
          const later = () => new Promise(done => setTimeout(done, 10));
          for (let tries = 0; sent.length < 3 && tries < 1_000; tries += 1) await later();
          await later();
          return sent;
        }"""
    )
    assert told == [0, 60, 119]
