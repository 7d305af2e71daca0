"""The command palette: everything that can be done, found by typing, run by Enter, told to screen readers."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.scripted import SESSION, council, peer
from tests.browser.test_a11y import TOOLS, violations
from tests.browser.test_replay import over, seen
from tests.fakes.npm import installed

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def axe(request: pytest.FixtureRequest) -> Path:
    return installed(request.config, TOOLS) / "node_modules" / "axe-core" / "axe.min.js"


def type_and_run(page: Page, words: str, found: str) -> None:
    page.keyboard.press("Control+k")
    expect(page.locator("#palette-input")).to_be_focused()
    page.keyboard.type(words)
    expect(page.locator("#palette-list [aria-selected=true]")).to_contain_text(found)
    page.keyboard.press("Enter")
    expect(page.locator("#palette")).to_be_hidden()


def test_every_kind_of_thing_is_found_and_run_with_the_keyboard(blank: Page) -> None:
    peer(blank, over(3, 2))
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    seen(blank, 120)
    type_and_run(blank, "screen pool", "Pool")
    expect(blank.locator("#screen-pool")).to_be_visible()
    type_and_run(blank, "ask embedded/hacker", "Ask embedded/hacker")
    expect(blank.locator("#screen-stream")).to_be_visible()
    expect(blank.locator("#model")).to_have_value("embedded/hacker")
    expect(blank.locator("#prompt")).to_be_focused()
    type_and_run(blank, "solo mistral", "Solo mistral:7b")  # also out of a text field
    expect(blank.locator(".lane").first).to_be_hidden()
    type_and_run(blank, "all lanes", "All lanes")
    expect(blank.locator(".lane").first).to_be_visible()
    type_and_run(blank, "table", "The field as a table")
    expect(blank.locator("#twin")).to_be_focused()
    type_and_run(blank, f"replay {SESSION[:6]}", f"Replay {SESSION[:6]}")
    expect(blank.locator("#replaying")).to_be_visible()
    type_and_run(blank, f"show {SESSION[:6]}", f"Show {SESSION[:6]}")
    expect(blank.locator("#replaying")).to_be_hidden()
    with blank.expect_download() as saved:
        type_and_run(blank, "save csv", "Save: Raw signals, CSV")
    assert saved.value.suggested_filename.endswith(".csv")


def test_arrows_move_through_what_was_found(blank: Page) -> None:
    peer(blank, council(2, 1))
    blank.goto("/")
    expect(blank.locator(".lane")).to_have_count(2)
    blank.click("#palette-open")
    field, options = blank.locator("#palette-input"), blank.locator("#palette-list [role=option]")
    expect(field).to_have_attribute("aria-activedescendant", "command-0")
    total = options.count()
    for key, at in [("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("ArrowUp", 0), ("ArrowUp", total - 1)]:
        field.press(key)
        expect(field).to_have_attribute("aria-activedescendant", f"command-{at}")
        expect(blank.locator("#palette-list [aria-selected=true]")).to_have_count(1)
        expect(options.nth(at)).to_have_attribute("aria-selected", "true")
        expect(options.nth(at)).to_be_in_viewport(ratio=1)
    field.press("ArrowDown")
    expect(field).to_have_attribute("aria-activedescendant", "command-0")
    field.fill("no such thing as this")
    expect(options).to_have_count(0)
    expect(blank.locator("#palette-count")).to_have_text("Nothing of that name.")
    assert field.get_attribute("aria-activedescendant") is None
    field.press("Enter")
    expect(blank.locator("#palette")).to_be_visible()
    field.press("Escape")
    expect(blank.locator("#palette")).to_be_hidden()
    blank.keyboard.press("Control+k")
    blank.keyboard.press("Control+k")
    expect(blank.locator("#palette")).to_be_hidden()


def test_escape_closes_it_and_stops_nothing(blank: Page) -> None:
    peer(blank, council(2, 1))
    asked: list[str] = []
    blank.on("request", lambda request: asked.append(request.url))
    blank.goto("/")
    expect(blank.locator(".lane")).to_have_count(2)
    blank.keyboard.press("Control+k")
    blank.keyboard.press("Escape")
    expect(blank.locator("#palette")).to_be_hidden()
    blank.keyboard.press("Control+k")
    blank.evaluate(  # before the page paints again: the field in the closed dialog still has the focus
        """() => {
            const field = document.getElementById("palette-input");
            document.getElementById("palette").close();
            field.dispatchEvent(new KeyboardEvent("keydown", {key: "?", bubbles: true}));
        }"""
    )
    expect(blank.locator("#help")).to_be_visible()
    blank.keyboard.press("Control+k")  # one dialog at a time
    expect(blank.locator("#palette")).to_be_hidden()
    assert not [url for url in asked if url.endswith("/stop")]


def test_what_begins_with_the_words_comes_first_and_the_list_is_short(page: Page) -> None:
    names = page.evaluate(
        """async () => {
          const { matching } = await import("/static/palette.js");
          const act = () => {};
          const all = ["Pool", "Ask a pool", "Model pool", "Theme"].map(name => ({ kind: "action", name, act }));
          const of = typed => matching(all, typed).map(({ name }) => name);
          return [of("pool"), of("POOL model"), of("  "), of("zzz"), of("action the")];
        }"""
    )
    assert names == [
        ["Pool", "Ask a pool", "Model pool"],
        ["Model pool"],
        ["Pool", "Ask a pool", "Model pool", "Theme"],
        [],
        ["Theme"],
    ]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_nothing_in_it(blank: Page, axe: Path, theme: str) -> None:
    blank.emulate_media(color_scheme=theme)
    peer(blank, over(2, 1))
    blank.goto("/")
    expect(blank.locator("#replay-this")).to_be_visible()
    blank.keyboard.press("Control+k")
    expect(blank.locator("#palette-list [aria-selected=true]")).to_be_visible()
    assert violations(blank, axe) == []
    blank.keyboard.press("Escape")
    blank.click("#saving-open")
    assert violations(blank, axe) == []
    blank.keyboard.press("Escape")
    blank.click("#replay-this")
    expect(blank.locator("#replay-time")).to_be_visible()
    assert violations(blank, axe) == []


def test_its_names_are_only_text(blank: Page) -> None:
    messages = over(1, 1)
    for message in messages:
        for event in message["events"]:
            told = event["payload"]
            for part in [told, *told.get("streams", []), *told.get("members", [])]:
                if "model" in part:
                    part["model"] = "<img src=x onerror=window.pwned=1>\u202e"
    peer(blank, messages)
    blank.goto("/")
    expect(blank.locator("#replay-this")).to_be_visible()
    blank.keyboard.press("Control+k")
    blank.keyboard.type("show c0ffee")
    expect(blank.locator("#palette-list li").first).to_contain_text("<img src=x")
    assert blank.evaluate("window.pwned") is None
