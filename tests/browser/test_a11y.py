"""What keeps people out: axe-core on every screen in both themes, the keyboard, and what a screen reader is told."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Page, expect

from tests.browser.acts import until
from tests.browser.scripted import FIRST_FRAME, NAMES, council, event, frame, peer, stream_id
from tests.fakes.npm import installed

TOOLS = Path(__file__).parent / "node"

pytestmark = pytest.mark.browser

RULES: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SCREENS: Final = ["stream", "stream?evidence=1", "replay", "pool", "gateway", "events"]


@pytest.fixture(scope="module")
def axe(request: pytest.FixtureRequest) -> Path:
    return installed(request.config, TOOLS) / "node_modules" / "axe-core" / "axe.min.js"


def violations(page: Page, axe: Path) -> list[str]:
    """In an isolated world of the browser's debugger, where the page's policy does not reach."""
    session = page.context.new_cdp_session(page)
    tree = session.send("Page.getFrameTree")
    world = session.send("Page.createIsolatedWorld", {"frameId": tree["frameTree"]["frame"]["id"], "worldName": "axe"})
    context = world["executionContextId"]
    session.send("Runtime.evaluate", {"expression": axe.read_text(), "contextId": context})
    run = f"axe.run(document, {{runOnly: {RULES}, resultTypes: ['violations']}}).then(found => found.violations)"
    answer: dict[str, Any] = session.send(
        "Runtime.evaluate",
        {"expression": run, "contextId": context, "awaitPromise": True, "returnByValue": True},
    )
    assert "exceptionDetails" not in answer, answer
    found = answer["result"]["value"]
    return [f"{one['id']}: {node['html'][:160]}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing(blank: Page, axe: Path, screen: str, theme: str) -> None:
    blank.emulate_media(color_scheme=theme)
    peer(blank, council(3, 3))
    blank.goto(f"/#/{screen}")
    expect(blank.locator("#link")).to_contain_text("Live")
    expect(blank.locator("#model option").first).to_be_attached()
    blank.wait_for_selector(f"#nav-{screen.partition('?')[0]}[aria-current]")
    if screen == "events":
        blank.locator(".event").first.click()
    assert violations(blank, axe) == []


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_nothing_in_an_idle_page_and_its_help(blank: Page, axe: Path, theme: str) -> None:
    blank.emulate_media(color_scheme=theme)
    peer(blank)
    blank.goto("/")
    expect(blank.locator("#examples")).to_be_visible()
    assert violations(blank, axe) == []
    blank.locator("body").press("?")
    expect(blank.locator("#help")).to_be_visible()
    assert violations(blank, axe) == []


def test_everything_can_be_reached_with_tab(blank: Page) -> None:
    peer(blank, council(2, 2))
    blank.goto("/")
    expect(blank.locator("#link")).to_contain_text("Live")
    blank.wait_for_selector("#run:not([disabled])")
    reached = []
    for _ in range(60):
        blank.keyboard.press("Tab")
        reached.append(blank.evaluate("document.activeElement.id || document.activeElement.className"))
    for wanted in ("sessions", "evidence-toggle", "theme", "nav-pool", "nav-events", "solo", "prompt", "run", "stop"):
        assert wanted in reached, (wanted, reached)


def test_no_live_region_speaks_more_than_once_a_second(blank: Page) -> None:
    links = peer(blank)
    blank.goto("/")
    expect(blank.locator("#link")).to_have_text("Ready")
    blank.evaluate(
        """() => {
          window.spoken = [];
          const regions = document.querySelectorAll('[aria-live]:not([aria-live=off]), [role=status], [role=alert]');
          const what = { childList: true, characterData: true, subtree: true };
          for (const region of regions) {
            const at = [];
            window.spoken.push(at);
            new MutationObserver(() => at.push(performance.now())).observe(region, what);
          }
        }"""
    )
    for message in council(3, 5):
        links[0].send(json.dumps(message))
    until(blank, "window.__wf.columns >= 300")
    spoken = blank.evaluate("window.spoken")
    assert any(spoken)
    assert [at for at in spoken if any(later - earlier < 1000 for earlier, later in pairwise(at))] == []


def test_the_field_has_a_twin_in_words_and_numbers(blank: Page) -> None:
    messages = council(2, 3)
    peer(blank, messages)
    blank.goto("/")
    field, twin = blank.locator("#field"), blank.locator("#twin")
    expect(field).to_have_attribute("aria-details", "twin")
    until(blank, "document.querySelector('#field').ariaLabel.split('tokens per second').length === 3")
    last = next(event for event in messages[-1]["events"] if event["type"] == "energy.update")["payload"]
    cells = blank.locator("#twin-rows tr")
    for slot, reading in enumerate(last["streams"]):  # a reader finds them there, also while the picture is shown
        told = [NAMES[slot], reading["state"], f"{reading['energy']:.3f}", f"{reading['tps']:.1f}"]
        expect(cells.nth(slot).locator("th, td")).to_contain_text(
            [*told, "33.0", "", f"{reading['certainty']:.3f}", "", str(reading["tokens"])]
        )
    expect(blank.locator("#twin-ensemble")).to_contain_text(f"DI {last['ensemble']['di']:.3f}")
    assert blank.evaluate("document.elementFromPoint(500, 250).id") == "field"
    blank.locator("body").press("a")
    expect(twin).to_be_focused()
    assert blank.evaluate("document.elementFromPoint(500, 250).closest('#twin') !== null")
    blank.locator("body").press("a")
    assert blank.evaluate("document.elementFromPoint(500, 250).id") == "field"


@pytest.mark.parametrize("width", [380, 760, 1024])
def test_a_council_fits_a_narrow_window(blank: Page, width: int) -> None:
    peer(blank, council(6, 2))
    blank.set_viewport_size({"width": width, "height": 800})
    for screen in SCREENS:
        blank.goto(f"/#/{screen}")
        expect(blank.locator("#link")).to_contain_text("Live")
        expect(blank.locator(f"#nav-{screen.partition('?')[0]}")).to_have_attribute("aria-current", "page")
        assert blank.evaluate("document.documentElement.scrollWidth") <= width, screen


def ended_council(count: int) -> list[dict[str, Any]]:
    """One member left, and the first was chosen."""
    broken = {"code": "UPSTREAM_TRUNCATED", "message": "the runtime broke off", "retryable": True, "details": {}}
    left = event("council.model_error", stream_id=stream_id(1), model=NAMES[1], reason="error", error=broken)
    rest = {"reason": "finished", "error": None, "totals": {"tokens": 9}, "duration_ms": 2000.0, "ttft_ms": 9.0}
    end = event("experience.session_end", **rest, stop_latency_ms=None, summary={})
    chosen = {"stream_id": stream_id(0), "model": NAMES[0], "method": "best_certainty", "confidence": 0.87}
    last = event("council.synthesis", **chosen, reason="its mean certainty is the highest", report={})
    messages = council(count, 5)
    return [*messages, frame(FIRST_FRAME + len(messages), left, end, last)]


CUT = """() => [...document.querySelectorAll(`.lane header *, .lane footer, .ending-note, .title *, .top *, .controls *,
    .numbers *, .members *, .rail *`)]
  .filter(one => one instanceof HTMLElement && one.clientWidth > 1 && one.scrollWidth > one.clientWidth + 1)
  .map(one => `${one.id || one.className}: ${one.textContent}`)"""


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize(("width", "count"), [(1024, 3), (1024, 4), (1024, 5), (1024, 6), (1440, 6), (390, 3)])
def test_no_word_of_a_council_is_cut(blank: Page, width: int, count: int, theme: str) -> None:
    blank.emulate_media(color_scheme=theme)
    peer(blank, ended_council(count))
    blank.set_viewport_size({"width": width, "height": 768})
    blank.goto("/")
    expect(blank.locator(".lane .ending-note").first).to_have_text("chosen: best_certainty, certainty 0.87")
    assert blank.evaluate(CUT) == []
    heights = blank.eval_on_selector_all(".lane .scroll", "boxes => boxes.map(box => box.clientHeight)")
    assert min(heights) >= 44  # two lines of text
    assert max(heights) <= 400  # and a long answer scrolls in its lane
    error = blank.locator(".lane .error").nth(1)
    error.scroll_into_view_if_needed()
    expect(error).to_be_in_viewport(ratio=1)
    assert blank.evaluate("document.documentElement.scrollWidth") <= width


def test_targets_are_large_enough(blank: Page) -> None:
    peer(blank, [frame(FIRST_FRAME), *council(3, 2)[1:]])
    blank.goto("/")
    expect(blank.locator(".lane")).to_have_count(3)
    small = blank.evaluate(
        """() => [...document.querySelectorAll('button, select, summary, nav a')]
          .map(one => [one.id || one.className, one.getBoundingClientRect()])
          .filter(([, box]) => box.width > 0 && (box.width < 24 || box.height < 24)).map(([name]) => name)"""
    )
    assert small == []
