"""Keys, and the page for those who do not look at it, or look at it enlarged, without colour or without motion."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.acts import at_once, ended, run, until
from tests.browser.conftest import Watch
from tests.browser.scripted import (
    FIRST_FRAME,
    SESSION,
    council,
    energy,
    frame,
    peer,
    reading,
    spoken,
    started,
    stream_id,
    token,
)

pytestmark = pytest.mark.browser


COUNCIL = council(3, 3)
NEWEST = max(  # of the first member, which is the one whose numbers are shown
    arrived["position"]
    for message in COUNCIL
    for one in message["events"]
    if one["type"] == "experience.token" and one["payload"]["stream_id"] == stream_id(0)
    for arrived in one["payload"]["tokens"]
)


@pytest.fixture
def council_page(blank: Page) -> Page:
    peer(blank, COUNCIL)
    blank.goto("/")
    expect(blank.locator(".lane")).to_have_count(3)
    until(blank, "window.__wf.columns === 180")
    return blank


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_single_letters_can_be_switched_off_and_stay_off(council_page: Page) -> None:
    page = council_page
    page.keyboard.press("?")
    page.get_by_label("Single-letter keys").uncheck()
    page.keyboard.press("Escape")
    for _ in range(2):
        for key in ("e", "2", "a", "t", "?", "/"):
            page.keyboard.press(key)
        expect(page.locator("#evidence")).to_be_hidden()
        expect(page.locator(".lane").first).to_be_visible()
        expect(page.locator("#twin")).not_to_be_focused()
        expect(page.locator("#help")).to_be_hidden()
        assert page.evaluate("document.documentElement.dataset.theme ?? ''") == ""
        page.keyboard.press("Control+k")  # with a modifier it is no single letter
        expect(page.locator("#palette")).to_be_visible()
        page.keyboard.press("Escape")
        page.reload()
        expect(page.locator("#help-open")).to_be_visible()


def test_letters_do_nothing_while_somebody_types(council_page: Page) -> None:
    page = council_page
    page.focus("#prompt")
    page.keyboard.type("tea? 2/0 [a] fg s")
    assert page.input_value("#prompt") == "tea? 2/0 [a] fg s"
    expect(page.locator("#evidence")).to_be_hidden()
    expect(page.locator("#help")).to_be_hidden()
    expect(page.locator(".lane").first).to_be_visible()


def test_slash_focuses_the_prompt_and_c_copies_the_evidence(council_page: Page) -> None:
    page = council_page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.keyboard.press("e")
    expect(page.locator("#evidence-token")).to_contain_text(f"Token {NEWEST}:")
    at_once(page, "ArrowLeft", "c")  # what is copied is what was picked, not what was painted
    expect(page.locator("#evidence-copied")).to_have_text("Copied")
    expect(page.locator("#evidence-token")).to_contain_text(f"Token {NEWEST - 1}:")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (copied["session_id"], copied["token"]["position"]) == (SESSION, NEWEST - 1)
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()
    assert page.input_value("#prompt") == ""
    page.click("#nav-replay")
    expect(page.locator("#prompt")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()


def test_f_is_the_field_on_the_whole_screen_and_back(council_page: Page) -> None:
    page = council_page
    page.keyboard.press("f")
    until(page, "document.fullscreenElement?.classList.contains('field') === true")
    page.keyboard.press("f")
    until(page, "document.fullscreenElement === null")


def test_t_and_r_are_kept_and_stand_in_the_address(council_page: Page) -> None:
    page = council_page
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    page.keyboard.press("r")
    until(page, "location.hash.includes('theme=light') && location.hash.includes('motion=reduce')")
    assert page.evaluate("[localStorage['wf.theme'], localStorage['wf.motion']]") == ["light", "reduce"]
    page.keyboard.press("r")
    until(page, "!location.hash.includes('motion')")


def test_nothing_but_preferences_is_kept(page: Page) -> None:
    run(page, "synthetic/steady", max_tokens=5)
    ended(page)
    page.click("#replay-this")
    expect(page.locator("#replay-time")).to_be_visible()
    names = page.evaluate("Object.keys(localStorage).concat(Object.keys(sessionStorage))")
    assert set(names) <= {f"wf.{name}" for name in "model members mode theme motion letters aloud".split()}
    assert "river" not in page.evaluate("JSON.stringify(localStorage)")


# ── the field without eyes ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_field_is_walked_through_with_arrows(council_page: Page) -> None:
    page = council_page
    cursor = page.get_by_role("slider", name="Token in the field")
    expect(page.locator("#evidence")).to_be_hidden()
    cursor.focus()
    expect(cursor).to_have_attribute("aria-valuenow", str(NEWEST))
    page.keyboard.press("ArrowLeft")
    expect(cursor).to_have_attribute("aria-valuenow", str(NEWEST - 1))
    expect(cursor).to_be_focused()
    expect(cursor).to_have_attribute("aria-valuetext", re.compile(rf"^llama3\.1:8b, token {NEWEST - 1}, “"))
    expect(page.locator("#evidence-token")).to_contain_text(f"Token {NEWEST - 1}:")
    page.keyboard.press("ArrowRight")
    expect(cursor).to_have_attribute("aria-valuenow", str(NEWEST))


# ── answers read aloud ──────────────────────────────────────────────────────────────────────────────────────────────


def said(number: int, *words: str, first: int = 0) -> dict[str, Any]:
    tokens = [token(first + n, word) for n, word in enumerate(words)]
    return frame(number, spoken(0, *tokens), energy(reading(0, tokens=first + len(words))))


def test_answers_are_read_in_sentences_where_somebody_asks_for_it(blank: Page) -> None:
    links = peer(blank)
    blank.goto("/")
    expect(blank.locator("#link")).to_have_text("Ready")
    begin = started(1, mode="single")[1]
    voice = blank.locator("#reader")
    links[0].send(json.dumps(frame(FIRST_FRAME, begin)))
    links[0].send(json.dumps(said(FIRST_FRAME + 1, "It is", " off.", " Quite", " so. ")))
    expect(blank.locator(".lane .text")).to_contain_text("Quite so.")
    blank.keyboard.press("?")
    blank.get_by_label("Read answers aloud").check()
    blank.keyboard.press("Escape")
    links[0].send(json.dumps(said(FIRST_FRAME + 2, "And", " now", " it", " is", " on", first=4)))
    expect(voice).to_have_text("It is off. Quite so.")  # the half sentence waits for its end
    links[0].send(json.dumps(said(FIRST_FRAME + 3, "! ", "No", first=9)))
    expect(voice).to_have_text("And now it is on!")
    blank.reload()
    blank.keyboard.press("?")
    expect(blank.get_by_label("Read answers aloud")).to_be_checked()


def test_sentences_come_at_most_once_a_second_and_end_with_the_session(page: Page) -> None:
    told = page.evaluate(
        """async () => {
          const { Reader, sentencesEnd } = await import("/static/reader.js");
          const { Stream } = await import("/static/stream.js");
          const reader = new Reader();
          const box = document.querySelector("#reader");
          const stream = new Stream("a", "m", 0, 0);
          const told = [];
          const follow = (over, now) => { reader.follow(stream, over, now); told.push(box.textContent); };
          stream.append("answer", "One. ");
          follow(false, 0); // off, as it is shipped
          reader.wanted.checked = true;
          stream.append("thinking", "What is this? ");
          follow(false, 10);
          stream.append("answer", "Two. Thr");
          follow(false, 900);
          follow(false, 1_100);
          follow(true, 2_200);
          return [told, ["a. b", "3.5 is", "Who?” No", "x\\ny", "no end"].map(sentencesEnd)];
        }"""
    )
    assert told == [["", "One.", "One.", "Two.", "Thr"], [3, 0, 6, 2, 0]]


# ── the reader's own place ──────────────────────────────────────────────────────────────────────────────────────────


def test_who_reads_further_up_is_left_there_also_at_the_end(page: Page) -> None:
    page.set_viewport_size({"width": 1000, "height": 640})
    run(page, "synthetic/steady", max_tokens=3000)
    scroller = page.locator(".lane .scroll")
    until(page, "(s => s.scrollHeight > s.clientHeight + 80)(document.querySelector('.lane .scroll'))")
    scroller.hover()
    page.mouse.wheel(0, -4_000)
    pill = page.locator(".lane .follow")
    expect(pill).to_contain_text("new token")
    until(page, "document.querySelector('.lane .scroll').scrollTop === 0")  # a scroll takes its time
    page.keyboard.press("Escape")
    ended(page)
    assert scroller.evaluate("box => box.scrollTop") == 0
    expect(pill).to_be_visible()
    pill.click()
    expect(pill).to_be_hidden()
    until(page, "(s => s.scrollHeight - s.clientHeight - s.scrollTop < 2)(document.querySelector('.lane .scroll'))")


def test_a_broken_line_says_up_to_where_the_data_is(blank: Page, watch: Watch) -> None:
    links = peer(blank, council(2, 2))
    blank.goto("/")
    until(blank, "window.__wf.columns === 120")
    expect(blank.locator("#trouble")).to_be_hidden()
    blank.route("**/api/bootstrap", lambda route: route.fulfill(status=503, json={"error": {"code": "OVERLOADED"}}))
    links[0].close(code=1011)
    expect(blank.locator("#trouble")).to_contain_text("showing data up to 1.98 s")
    expect(blank.locator("#link")).to_have_text("Reconnecting")
    watch.faults = [fault for fault in watch.faults if "503" not in fault]  # the browser's own note of it


# ── enlarged, without colour, without motion ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("screen", ["stream", "replay", "pool", "gateway", "events"])
def test_at_twice_the_size_it_is_one_column_and_nothing_is_lost(blank: Page, screen: str) -> None:
    peer(blank, council(3, 1))
    blank.set_viewport_size({"width": 640, "height": 400})  # 1280 × 800 at 200 %
    blank.goto(f"/#/{screen}")
    expect(blank.locator(f"#nav-{screen}")).to_have_attribute("aria-current", "page")
    assert blank.evaluate("document.documentElement.scrollWidth") <= 640
    beyond = blank.evaluate(
        """() => [...document.querySelectorAll('button, select, input:not([type=file]), textarea, nav a')]
          .filter(one => one.checkVisibility() && !one.closest('dialog, .lane, .scrolls'))
          .map(one => [one.id || one.className, one.getBoundingClientRect()])
          .filter(([, box]) => box.width > 1 && (box.left < 0 || box.right > 640)).map(([name]) => name)"""
    )
    assert beyond == []


def test_without_colours_of_its_own_the_field_has_those_of_the_system(blank: Page) -> None:
    blank.emulate_media(forced_colors="active")
    peer(blank, council(2, 2))
    blank.goto("/")
    until(blank, "window.__wf.columns === 120")
    same = blank.evaluate(
        """() => {
          const probe = document.createElement("i");
          document.body.append(probe);
          const of = (colour) => { probe.style.color = colour; return getComputedStyle(probe).color; };
          const names = { panel: "Canvas", text: "CanvasText", m1: "LinkText", m2: "CanvasText" };
          return Object.entries(names).map(([name, system]) => of(`var(--${name})`) === of(system));
        }"""
    )
    assert same == [True] * 4
    outline = blank.evaluate(
        """() => { document.querySelector("#theme").focus({ focusVisible: true });
          return getComputedStyle(document.querySelector("#theme")).outlineWidth; }"""
    )
    assert outline == "2px"


def test_with_reduced_motion_nothing_flies(blank: Page) -> None:
    blank.emulate_media(reduced_motion="reduce")
    peer(blank, council(2, 2))
    blank.goto("/")
    until(blank, "window.__wf.columns === 120")
    assert blank.evaluate("[window.__wf.bolts, window.__wf.strikes]") == [0, 0]
    expect(blank.locator("#members-rows")).to_contain_text("llama3.1:8b")  # the same numbers
