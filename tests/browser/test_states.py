"""What the page says while the engine cannot help yet, and downloads: each against a real engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.acts import ask, ended, free_port, post, report, run, show_models, until, wait_for
from tests.browser.conftest import Address, serving
from tests.browser.small_ollama import WATCHDOG_S, SmallOllama, small_ollama
from tests.fakes.fake_ollama import Behaviour, FakeOllama

pytestmark = pytest.mark.browser

SUGGESTED = {"WF_TIER": "low"}  # so that it is the same model on every machine
MODEL = "llama3.2:1b"
BAR = "#downloads progress"

Opener = Callable[[Address], Page]


@pytest.fixture(scope="module")
def ollama() -> Iterator[SmallOllama]:
    with small_ollama() as server:
        yield server


@pytest.fixture(scope="module")
def hungry(tmp_path_factory: pytest.TempPathFactory, ollama: SmallOllama) -> Iterator[Address]:
    """An engine with an Ollama that has no model."""
    env = {"WF_OLLAMA__ENABLED": "true", "WF_OLLAMA__SPAWN": "false", "WF_OLLAMA__URL": ollama.url} | SUGGESTED
    with serving(tmp_path_factory.mktemp("hungry"), **env) as address:
        yield address


@pytest.fixture
def page(open_blank: Opener, hungry: Address, ollama: SmallOllama) -> Page:
    """On the engine whose Ollama has no model, which is seen by now."""
    ollama.clear()
    page = open_blank(hungry)
    page.goto("/")
    expect(page.locator("#guide-title")).to_have_text("No model to ask yet")
    return page


def begin(page: Page, ollama: SmallOllama) -> None:
    page.click("#guide-download")
    expect(page.locator(".transfer")).to_contain_text(MODEL)


# ── what is missing ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_runtime_on_its_way_up_is_waited_for(open_blank: Opener, tmp_path: Path) -> None:
    (installed := tmp_path / "bin").mkdir()
    slow = FakeOllama.install(installed, Behaviour.SLOW)
    env = {"PATH": f"{slow.folder}:{os.environ['PATH']}", "OLLAMA_HOST": f"127.0.0.1:{free_port()}"}
    with serving(tmp_path / "engine", WF_OLLAMA__ENABLED="true", **env) as engine:
        page = open_blank(engine)
        page.goto("/")
        expect(page.locator("#guide-title")).to_contain_text("Looking for a model runtime · ")
        expect(page.locator("#guide-next")).to_contain_text("goes on by itself")
        expect(page.locator("#guide-tried")).to_contain_text("ollama")
        expect(page.locator("#announcer")).to_have_text("Looking for a model runtime")
        slow.release()  # and the page asks again by itself
        expect(page.locator("#guide")).to_be_hidden()
        expect(page.locator("#model option[value='mock:steady']")).to_be_attached()
        page.goto("about:blank")


def test_no_runtime_says_what_was_tried_and_what_to_do(open_blank: Opener, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    env = {"WF_OLLAMA__ENABLED": "true", "WF_OLLAMA__SPAWN": "false", "WF_OLLAMA__URL": url}
    with serving(tmp_path / "engine", **env) as engine:
        page = open_blank(engine)
        page.goto("/")
        expect(page.locator("#guide-title")).to_have_text("No model runtime answers")
        expect(page.locator("#guide-tried li")).to_have_count(1)  # the built-in models are no answer to this
        expect(page.locator("#guide-tried")).to_contain_text(f"ollama at {url} does not answer")
        expect(page.locator("#guide-next")).to_contain_text("https://ollama.com/download")
        expect(page.locator("#guide-next code")).to_have_text("wf serve --gguf FILE")
        expect(page.locator("#guide-demonstrations")).to_contain_text("they cannot help you")
        expect(page.locator("#guide-download")).to_be_hidden()
        page.wait_for_selector("#run:not([disabled])")
        run(page, "embedded/lexicon", max_tokens=3)  # and still they answer
        ended(page)
        with page.expect_request("**/models"):
            page.click("#guide-again")
        page.goto("about:blank")


def test_a_ready_engine_is_asked_once(blank: Page) -> None:
    asked: list[str] = []
    blank.on("request", lambda request: asked.append(request.url))
    blank.clock.install()
    blank.goto("/")
    blank.clock.run_for(1_000)
    blank.wait_for_selector("#run:not([disabled])")
    expect(blank.locator("#guide")).to_be_hidden()
    for _ in range(3):  # more than twice the interval, and never so much silence that the link is given up
        until(blank, f"window.__wf.framesReceived > {report(blank)['framesReceived']}")
        blank.clock.run_for(1_500)
    assert len([url for url in asked if url.endswith("/health")]) == 1


def test_who_may_connect_and_where_prompts_go_is_told(blank: Page) -> None:
    def open_to_others(route: Route) -> None:
        body = route.fetch().json()
        runtimes = [runtime | {"local": runtime["name"] != "synthetic"} for runtime in body["runtimes"]]
        route.fulfill(json=body | {"remote": True, "runtimes": runtimes})

    blank.route("**/health", open_to_others)
    blank.goto("/")
    expect(blank.locator("#remote")).to_contain_text("Other machines may connect")
    expect(blank.locator("#away")).to_contain_text("Prompts for synthetic leave this machine")
    expect(blank.locator("#local-status")).to_have_text("Not only local: synthetic")
    show_models(blank)
    marked = blank.locator("#model-list li", has=blank.locator(".away"))
    expect(marked.first).to_contain_text("synthetic/")
    expect(blank.locator("#model-list li", has_text="embedded/lexicon").locator(".away")).to_have_count(0)


def test_a_key_pressed_before_the_page_is_connected_says_why_nothing_happens(blank: Page) -> None:
    blank.route_web_socket("**/ws*", lambda _: None)  # taken, and never answered
    blank.goto("/")
    expect(blank.locator("#model option").first).to_be_attached()
    expect(blank.locator("#run")).to_be_disabled()
    blank.fill("#prompt", "What is a river?")
    blank.press("#prompt", "Control+Enter")
    expect(blank.locator("#refusal")).to_contain_text("not connected to the engine yet")
    assert blank.input_value("#prompt") == "What is a river?"


# ── downloads ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_offered_model_is_downloaded_and_can_be_asked(page: Page, ollama: SmallOllama) -> None:
    expect(page.locator("#guide-next")).to_contain_text(MODEL)
    expect(page.locator("#guide-download")).to_have_text(f"Download {MODEL}")
    begin(page, ollama)
    pull = ollama.next_pull()
    assert pull.model == MODEL
    pull.say("pulling manifest")
    expect(page.locator(".transfer")).to_contain_text("pulling manifest")
    assert page.eval_on_selector(BAR, "bar => bar.position") == -1  # nobody knows how far it is
    expect(page.locator("#guide-download")).to_be_hidden()
    pull.at(520_000_000, 1_300_000_000)
    expect(page.locator(".transfer")).to_contain_text("40 % · 520.0 MB of 1.30 GB")
    assert page.eval_on_selector(BAR, "bar => bar.value") == pytest.approx(0.4)
    pull.finish()
    expect(page.locator("#guide")).to_be_hidden()
    expect(page.locator("#downloads")).to_be_hidden()
    expect(page.locator("#model")).to_have_value(MODEL)
    expect(page.locator("#announcer")).to_contain_text("ready")
    ask(page, MODEL)
    expect(page.locator(".lane .text")).to_have_text("Yes, it is.")
    expect(page.locator("#outcome")).to_contain_text("loaded again in 260 ms")
    expect(page.locator("#model-news")).to_contain_text(f"{MODEL}: ready, loaded again in 260 ms")


def test_cancel_stops_the_download_and_go_on_takes_it_up(page: Page, ollama: SmallOllama) -> None:
    begin(page, ollama)
    pull = ollama.next_pull()
    pull.at(1, 4)
    expect(page.locator(".transfer")).to_contain_text("25 %")
    page.get_by_role("button", name=f"Cancel: download of {MODEL}").click()
    expect(page.locator(".transfer")).to_contain_text("stopped; what came is kept")
    assert pull.left.wait(WATCHDOG_S)
    expect(page.locator(BAR)).to_be_hidden()
    page.get_by_role("button", name=f"Go on: download of {MODEL}").click()
    again = ollama.next_pull()
    again.at(3, 4)
    expect(page.locator(".transfer")).to_contain_text("75 %")
    page.get_by_role("button", name="Cancel").click()
    assert again.left.wait(WATCHDOG_S)
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator("#downloads")).to_be_hidden()
    expect(page.locator("#guide-download")).to_be_visible()


def test_a_download_that_was_stopped_can_be_taken_up_whatever_is_told_late(page: Page) -> None:
    """A listing that was made before the click comes after the engine's word of the end."""
    told = page.evaluate(
        """async () => {
          const { Downloads } = await import("/static/downloads.js");
          window.fetch = (_, { signal }) => new Promise((_, fail) => { signal.onabort = () => fail(signal.reason); });
          const downloads = new Downloads(() => {});
          const started = downloads.start("a:1b");
          downloads.cancel("a:1b");
          await started;
          const states = [];
          const note = () => states.push(downloads.rows.get("a:1b")?.state ?? "gone");
          note();
          downloads.heard({ model: "a:1b", state: "absent", progress: null, reason: "stopped" });
          note();
          downloads.listed([{ name: "a:1b", status: "pulling", progress: 0.2 }]);
          note();
          downloads.listed([]);
          note();
          return states;
        }"""
    )
    assert told == ["stopped", "stopped", "pulling", "stopped"]


def test_a_failed_download_says_why(page: Page, ollama: SmallOllama) -> None:
    show_models(page)
    page.fill("#download-name", "no such name")
    page.press("#download-name", "Enter")
    expect(page.locator("#downloads")).to_be_hidden()  # not a model's name: the field says so
    page.fill("#download-name", "nobody/knows:it")
    page.press("#download-name", "Enter")
    ollama.next_pull().fail("pull model manifest: file does not exist")
    expect(page.locator(".transfer")).to_contain_text("nobody/knows:it")
    expect(page.locator(".transfer")).to_contain_text("failed: ")
    expect(page.locator(".transfer")).to_contain_text("file does not exist")
    expect(page.locator("#model-news")).to_contain_text("nobody/knows:it: failed")
    expect(page.get_by_role("button", name="Try again: download of nobody/knows:it")).to_be_visible()
    page.set_viewport_size({"width": 380, "height": 780})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_a_reload_goes_on_with_the_download(page: Page, ollama: SmallOllama) -> None:
    begin(page, ollama)
    pull = ollama.next_pull()
    pull.at(1, 2)
    expect(page.locator(".transfer")).to_contain_text("50 %")

    held: list[Route] = []
    page.route("**/api/pull", lambda route: held.append(route))
    page.reload()
    wait_for(page, lambda: held)
    assert pull.left.wait(WATCHDOG_S)
    held[0].continue_()  # before the engine has noticed it would share the download that is being left
    again = ollama.next_pull()
    again.at(3, 5)
    expect(page.locator(".transfer")).to_contain_text("60 %")
    again.finish()
    expect(page.locator("#guide")).to_be_hidden()
    expect(page.locator("#model")).to_have_value(MODEL)


def test_a_download_of_somebody_else_is_seen_also_after_a_reload(
    page: Page, hungry: Address, ollama: SmallOllama
) -> None:
    body = {"model": "elsewhere:1b", "stream": False}
    other = threading.Thread(target=post, args=(hungry, "/api/pull", body))
    other.start()
    pull = ollama.next_pull()
    pull.at(1, 5)
    expect(page.locator(".transfer")).to_contain_text("elsewhere:1b")
    expect(page.locator(".transfer")).to_contain_text("started elsewhere")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)  # it is not this page's to stop
    page.reload()
    expect(page.locator(".transfer")).to_contain_text("20 %")
    pull.finish()
    other.join(WATCHDOG_S)
    expect(page.locator("#downloads")).to_be_hidden()
    expect(page.locator("#guide")).to_be_hidden()
    expect(page.locator("#model option[value='elsewhere:1b']")).to_be_attached()
