"""The page, the engine and the model server together: what a stop does at the far end, an engine that is killed and
comes back, a page in the background, a page that is too slow. tests/browser/README.md says which test is for what."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.acts import ended, free_port, post, report, run, until, wait_for
from tests.browser.conftest import Address, Watch, serving
from tests.browser.small_ollama import STEP_S, WATCHDOG_S, SmallOllama, small_ollama
from tests.system.process import EngineProcess

pytestmark = pytest.mark.browser

Opener = Callable[[Address], Page]

WORDS = 240  # ten seconds of them: there are some left, however late the page is

SIX = (
    "synthetic/steady",
    "synthetic/bursty",
    "synthetic/stalling",
    "synthetic/nologprobs",
    "embedded/lexicon",
    "embedded/hacker",
)


@attrs.define(eq=False)
class EndlessOllama(SmallOllama):
    """It speaks until nobody listens any more."""

    left: threading.Event = attrs.field(factory=threading.Event)

    def answer(self, handler: Any, path: str, body: dict[str, Any]) -> None:
        if path not in ("/api/generate", "/api/chat") or not (body.get("prompt") or body.get("messages")):
            SmallOllama.answer(self, handler, path, body)
            return
        handler.begin()
        while not handler.deserted():
            handler.line({"response": " on", "message": {"role": "assistant", "content": " on"}, "done": False})
            time.sleep(STEP_S)
        self.left.set()


@pytest.fixture(scope="module")
def endless() -> Iterator[EndlessOllama]:
    with small_ollama(EndlessOllama) as ollama:
        assert isinstance(ollama, EndlessOllama)
        ollama.models.add("endless:1b")
        yield ollama


@pytest.fixture(scope="module")
def high(tmp_path_factory: pytest.TempPathFactory, endless: EndlessOllama) -> Iterator[Address]:
    """An engine that lets six models speak together, beside an Ollama that never ends."""
    env = {"WF_OLLAMA__ENABLED": "true", "WF_OLLAMA__SPAWN": "false", "WF_OLLAMA__URL": endless.url}
    with serving(tmp_path_factory.mktemp("high"), WF_TIER="high", **env) as address:
        yield address


@pytest.fixture
def page(open_blank: Opener, high: Address) -> Page:
    page = open_blank(high)
    page.goto("/")
    page.wait_for_selector("#run:not([disabled])")
    return page


def council(engine: Address, tokens: int) -> str:
    body = {"mode": "council", "models": list(SIX), "prompt": "What is a river?"}
    answer = post(engine, "/generate", body | {"parameters": {"max_tokens": tokens}})
    assert answer["dropped_models"] == []
    return answer["session_id"]


# ── smoke ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_council_of_six_on_a_real_engine(page: Page, high: Address, watch: Watch) -> None:
    """Nothing failed, nothing left this machine, no policy was violated (the fixtures see to these), and each token
    that came is one strike and in its text."""
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    expect(page).to_have_title("WF Engine")
    session = council(high, tokens=12)
    expect(page.locator("#meta")).to_contain_text(session[:8])
    expect(page.locator(".lane")).to_have_count(6)
    wait_for(page, lambda: watch.told("council.synthesis", session))
    expect(page.locator(".lane .state")).to_have_text(["DRAINED"] * 6)
    texts: dict[str, str] = {}
    counts: dict[str, int] = {}
    for payload in watch.told("experience.token", session):
        for token in payload["tokens"]:
            texts[payload["model"]] = texts.get(payload["model"], "") + token["text"]
            counts[payload["model"]] = counts.get(payload["model"], 0) + 1
    names = page.locator(".lane .model-name").all_text_contents()
    assert sorted(names) == sorted(SIX)
    until(page, f"window.__wf.strikesByStream.join() === '{','.join(str(counts[name]) for name in names)}'")
    script = "async text => (await import('/static/text.js')).visible(text)"
    for name, text in zip(names, page.locator(".lane .text").all(), strict=True):
        assert text.text_content() == page.evaluate(script, texts[name])
    assert failed == []


# ── stopping ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_escape_reaches_the_model_server_and_nothing_comes_after(
    page: Page, endless: EndlessOllama, watch: Watch
) -> None:
    expect(page.locator("#model option[value='endless:1b']")).to_be_attached()
    endless.left.clear()
    session = run(page, "endless:1b", max_tokens=100_000)
    until(page, "window.__wf.tokens >= 5")
    page.keyboard.press("Escape")
    assert endless.left.wait(WATCHDOG_S)
    expect(page.locator("#outcome")).to_contain_text("Stopped in")
    (end,) = watch.told("experience.session_end", session)
    assert end["reason"] == "aborted"
    told = end["totals"]["tokens"]
    until(page, f"window.__wf.strikes === {told}")
    text = page.locator(".lane .text").text_content() or ""
    assert text.split() == ["on"] * told  # what came stays
    drawn = watch.columns(session)
    until(page, f"window.__wf.columns === {drawn}")
    heard = report(page)["framesReceived"]
    until(page, f"window.__wf.framesReceived > {heard}")  # the engine goes on to tell that it lives
    assert (report(page)["strikes"], page.evaluate("window.__wf.columns")) == (told, drawn)


def test_cancelling_is_not_yet_stopped(page: Page) -> None:
    held: list[Route] = []
    page.route("**/stop", lambda route: held.append(route))
    run(page, "synthetic/steady", max_tokens=3000)
    until(page, "window.__wf.tokens >= 2")
    page.keyboard.press("Escape")
    expect(page.locator("#outcome")).to_have_text("Cancelling…")
    expect(page.locator("#outcome")).not_to_have_class("mono good")
    wait_for(page, lambda: held)[0].continue_()
    expect(page.locator("#outcome")).to_contain_text("Stopped in")
    expect(page.locator("#outcome")).to_have_class("mono good")


# ── an engine that goes and comes back ──────────────────────────────────────────────────────────────────────────────


def test_an_engine_that_is_killed_and_started_again(open_blank: Opener, tmp_path: Path, watch: Watch) -> None:
    ports = ("--port", str(free_port()), "--ws-port", str(free_port()))
    first = EngineProcess.spawn(tmp_path / "engine", *ports)
    second = None
    try:
        first.wait_ready()
        page = open_blank(Address(first.http, first.ws))
        page.goto("/")
        page.wait_for_selector("#run:not([disabled])")
        run(page, "synthetic/steady", max_tokens=3000)
        until(page, "window.__wf.tokens >= 5")
        first.kill()
        trouble = page.locator("#trouble")
        expect(trouble).to_contain_text("Reconnecting")
        expect(trouble).to_contain_text("showing data up to")
        expect(trouble).to_contain_text(re.compile(r"next try in \d\.\d s, attempt \d"))
        expect(page.locator("#run")).to_be_disabled()
        kept = page.locator(".lane .text").text_content() or ""
        assert len(kept.split()) >= 5
        (tmp_path / "engine" / "ports.json").unlink()
        second = EngineProcess.spawn(tmp_path / "engine", *ports).wait_ready()
        expect(page.locator("#connection")).to_have_text("connected")
        expect(trouble).to_be_hidden()
        expect(page.locator("#outcome")).to_contain_text("Lost: the engine no longer knows this session")
        assert page.locator(".lane .text").text_content() == kept
        run(page, "synthetic/steady", max_tokens=4)  # and it is of use again
        ended(page)
        page.goto("about:blank")
    finally:
        first.kill()
        if second is not None:
            second.kill()
    watch.faults = [fault for fault in watch.faults if "net::ERR_" not in fault and "WebSocket" not in fault]


# ── nobody looks, or the page cannot keep up ────────────────────────────────────────────────────────────────────────

HOLD_FRAMES = """(() => {
  const native = window.requestAnimationFrame.bind(window);
  const waiting = [];
  window.held = false;
  window.requestAnimationFrame = turn => (window.held ? waiting.push(turn) : native(turn));
  window.goOn = () => { window.held = false; waiting.splice(0).forEach(turn => native(turn)); };
})()"""


def rates(watch: Watch) -> list[int]:
    return [message["rate_hz"] for message in watch.sent if message["type"] == "subscribe"]


def test_a_page_that_gets_no_animation_frames_asks_for_few_and_loses_no_token(
    open_blank: Opener, high: Address, watch: Watch
) -> None:
    """As a browser does to a tab behind another, while it goes on saying that it is visible."""
    page = open_blank(high)
    page.add_init_script(HOLD_FRAMES)
    page.goto("/")
    page.wait_for_selector("#run:not([disabled])")
    session = run(page, "synthetic/steady", max_tokens=WORDS)
    until(page, "window.__wf.tokens >= 3")
    page.evaluate("window.held = true")
    wait_for(page, lambda: rates(watch)[-1] == 4)
    drawn = page.evaluate("window.__wf.framesDrawn")
    heard = len(watch.told("experience.token", session))
    wait_for(page, lambda: len(watch.told("experience.token", session)) >= heard + 3)
    assert page.evaluate("window.__wf.framesDrawn") == drawn  # nothing was drawn, and nothing waits to be
    page.evaluate("window.goOn()")
    wait_for(page, lambda: rates(watch)[-1] == 60)
    ended(page)
    until(page, f"window.__wf.strikes === {WORDS}")
    assert len((page.locator(".lane .text").text_content() or "").split()) == WORDS
    columns = "async () => (await import('/static/columns.js')).COLUMNS"
    assert page.evaluate("window.__wf.columns") <= page.evaluate(columns)


SLOW_CANVAS = """(() => {
  const { clearRect } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.clearRect = function (...box) {
    const until = performance.now() + (this.canvas.id === "field" ? 40 : 0);
    while (performance.now() < until);
    clearRect.apply(this, box);
  };
})()"""


def test_a_page_that_cannot_keep_up_gives_something_up_and_says_so(open_blank: Opener, high: Address) -> None:
    """Drawing takes 40 ms here, so that each animation frame has something to draw and none is in time."""
    page = open_blank(high)
    page.add_init_script(SLOW_CANVAS)
    page.goto("/")
    page.wait_for_selector("#run:not([disabled])")
    run(page, "synthetic/steady", max_tokens=3000)
    until(page, "window.__wf.level > 0")
    expect(page.locator("#degraded")).to_contain_text("page under load")
    expect(page.locator("#link-dot")).to_have_class("dot strained")
    page.keyboard.press("Escape")
    expect(page.locator("#outcome")).to_contain_text("Stopped in")
