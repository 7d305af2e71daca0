"""The Classifier screen on an engine with services, and the services' routes beside the engine's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Page, Route, expect

from policies.taxonomy import load_taxonomy
from tests.browser.conftest import Address, Watch, serving
from tests.browser.test_a11y import violations
from tests.fakes.npm import installed

TOOLS = Path(__file__).parent / "node"

pytestmark = pytest.mark.browser

NAMES: Final = ("llama31_8b", "tinyllama", "tlc_domain_classifier")
MOUNT: Final = "/services/tlc_domain_classifier"
ENV: Final = {
    "WF_SERVICES__ENABLED": "true",
    "WF_SERVICES__TABLE": json.dumps({name: {"port": 0} for name in NAMES}),
    "WF_SERVICES__REGISTRY": "off",
    "WF_SERVICES__ROUTER": "off",
}
PARTS: Final = ("domain", "task", "method")

Opener = Callable[[Address], Page]


@pytest.fixture(scope="module")
def offering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with serving(tmp_path_factory.mktemp("services"), **ENV) as address:
        yield address


@pytest.fixture
def screen(open_blank: Opener, offering: Address) -> Page:
    page = open_blank(offering)
    page.goto("/#/classifier")
    expect(page.locator("#screen-classifier")).to_be_visible()
    return page


def said(**more: Any) -> dict[str, Any]:
    """An answer of the classifier: sure of two, and not of the third."""
    return {
        "query": "q",
        "tmd": {"domain": "MEDICINE", "task": "EXPLAIN", "method": "DENSE"},
        "confidence": {"domain": 0.9134, "task": None, "method": None},
        "validated": {"domain": True, "task": True, "method": False},
        "confidence_source": "label_logprobs",
        "confidence_reason": {"domain": None, "task": "no log-probabilities", "method": "no label of the vocabulary"},
        "context_docs_used": 2,
        "context_chars_dropped": 0,
        "model": "tinyllama:1.1b",
        "fallback_reason": None,
    } | more


def row(page: Page, part: str) -> list[str]:
    return page.locator("#c-rows tr", has=page.get_by_role("rowheader", name=part)).locator("td").all_text_contents()


def test_a_query_gets_a_label_of_each_vocabulary_from_a_real_model(screen: Page) -> None:
    screen.fill("#c-query", "What is a lighthouse?")
    screen.fill("#c-docs", "A tower with a lamp.\n\n  \nIt stands at the coast.")
    with screen.expect_response("**/extract_tmd") as heard:
        screen.click("#c-run")
    expect(screen.locator("#c-answer")).to_be_visible()
    answer = heard.value.json()
    assert heard.value.request.post_data_json["context_docs"] == ["A tower with a lamp.", "It stands at the coast."]
    for part in PARTS:
        label, confidence, why = row(screen, part)
        assert label == answer["tmd"][part]
        known = answer["confidence"][part]
        assert confidence == ("—" if known is None else f"{known:.2f}")
        assert (answer["confidence_reason"][part] or "") in why
        assert why.startswith("stands in") is not answer["validated"][part]
    expect(screen.locator("#c-latency")).to_contain_text("s")
    expect(screen.locator("#c-model")).to_have_text(
        f"{answer['model']} answered and stands in: {answer['fallback_reason']}."
    )
    expect(screen.locator("#c-context")).to_have_text("2 of 2 context documents were read.")


def test_the_taxonomy_is_the_services_own(screen: Page) -> None:
    domains = load_taxonomy().domains
    expect(screen.locator("#c-domains li")).to_have_text(list(domains.labels))
    expect(screen.locator("#c-version")).to_contain_text(f"21 domains · taxonomy {domains.version}")
    expect(screen.locator("#c-fallback")).to_contain_text(domains.fallback)
    expect(screen.locator("#c-about")).to_contain_text("stands in for tinyllama:1.1b")


def test_what_is_not_known_is_a_dash_with_its_reason(screen: Page) -> None:
    screen.route("**/extract_tmd", lambda route: route.fulfill(json=said(context_chars_dropped=7)))
    screen.fill("#c-query", "q")
    screen.fill("#c-docs", "a\nb")
    screen.press("#c-query", "Control+Enter")
    expect(screen.locator("#c-model")).to_have_text("tinyllama:1.1b answered, the model this service is for.")
    assert row(screen, "domain") == ["MEDICINE", "0.91", ""]
    assert row(screen, "task") == ["EXPLAIN", "—", "no log-probabilities"]
    assert row(screen, "method") == ["DENSE", "—", "stands in: no label of the vocabulary"]
    expect(screen.locator("#c-domains [aria-current]")).to_have_text("MEDICINE")
    expect(screen.locator("#c-context")).to_contain_text("7 characters of them cut")


def test_a_refusal_can_be_tried_again_and_keeps_the_query(screen: Page, watch: Watch) -> None:
    error = {"code": "OVERLOADED", "message": "all places are taken", "retryable": True, "details": {}}
    answers = [{"status": 503, "json": {"error": error}}, {"json": said()}]
    screen.route("**/extract_tmd", lambda route: route.fulfill(**answers.pop(0)))
    screen.fill("#c-query", "keep me")
    screen.click("#c-run")
    expect(screen.locator("#c-trouble")).to_contain_text("OVERLOADED")
    expect(screen.locator("#c-answer")).to_be_hidden()
    screen.click("#c-again")
    expect(screen.locator("#c-answer")).to_be_visible()
    expect(screen.locator("#c-trouble")).to_be_hidden()
    expect(screen.locator("#c-query")).to_have_value("keep me")
    watch.faults = [fault for fault in watch.faults if "503" not in fault]  # the browser's own note of the refusal


def test_a_question_can_be_cancelled(screen: Page) -> None:
    held: list[Route] = []
    screen.route("**/extract_tmd", lambda route: held.append(route))
    screen.fill("#c-query", "q")
    screen.click("#c-run")
    expect(screen.locator("#c-state")).to_contain_text("asking the model")
    expect(screen.locator("#c-run")).to_be_disabled()
    screen.click("#c-cancel")
    expect(screen.locator("#c-state")).to_have_text("Cancelled.")
    expect(screen.locator("#c-run")).to_be_enabled()
    expect(screen.locator("#c-trouble")).to_be_hidden()


def test_too_many_documents_are_refused_before_they_are_sent(screen: Page) -> None:
    screen.fill("#c-query", "q")
    screen.fill("#c-docs", "\n".join(["x"] * 65))
    screen.click("#c-run")
    expect(screen.locator("#c-trouble")).to_contain_text("65 documents; at most 64")


def test_hostile_labels_are_only_text(screen: Page) -> None:
    evil = '<img src=x onerror="window.pwned=1">'
    parts = dict.fromkeys(PARTS, evil)
    screen.route("**/extract_tmd", lambda route: route.fulfill(json=said(tmd=parts, model=evil, fallback_reason=evil)))
    screen.fill("#c-query", "q")
    screen.click("#c-run")
    expect(screen.locator("#c-model")).to_contain_text("<img src=x")
    assert screen.locator("main img").count() == 0
    assert screen.evaluate("window.pwned") is None


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_nothing(screen: Page, request: pytest.FixtureRequest, theme: str) -> None:
    axe: Path = installed(request.config, TOOLS) / "node_modules" / "axe-core" / "axe.min.js"
    screen.emulate_media(color_scheme=theme)
    screen.route("**/extract_tmd", lambda route: route.fulfill(json=said()))
    screen.fill("#c-query", "q")
    screen.click("#c-run")
    expect(screen.locator("#c-answer")).to_be_visible()
    assert violations(screen, axe) == []


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_its_last_answer_stands_beside_the_stream(screen: Page, request: pytest.FixtureRequest, theme: str) -> None:
    axe: Path = installed(request.config, TOOLS) / "node_modules" / "axe-core" / "axe.min.js"
    screen.emulate_media(color_scheme=theme)
    card = screen.locator("#classifier-card")
    screen.click("#nav-stream")
    expect(card).to_contain_text("— this page has classified nothing yet")
    screen.click("#nav-classifier")
    screen.route("**/extract_tmd", lambda route: route.fulfill(json=said()))
    screen.fill("#c-query", "q")
    screen.click("#c-run")
    expect(screen.locator("#c-answer")).to_be_visible()
    screen.click("#nav-stream")
    expect(card.locator("tr").nth(0)).to_have_text(re.compile(r"domain\s+MEDICINE\s*0\.91"))
    expect(card.locator("tr").nth(1)).to_have_text(re.compile(r"task\s+EXPLAIN\s*—"))
    expect(card.locator("p")).to_have_text("— no log-probabilities; no label of the vocabulary")
    expect(card).to_contain_text(re.compile(r"[\d.]+ m?s · tinyllama:1\.1b"))
    assert violations(screen, axe) == []


@pytest.mark.parametrize("width", [390, 1024])
def test_it_fits_a_narrow_window(screen: Page, width: int) -> None:
    screen.set_viewport_size({"width": width, "height": 800})
    screen.route("**/extract_tmd", lambda route: route.fulfill(json=said()))
    screen.fill("#c-query", "q")
    screen.click("#c-run")
    expect(screen.locator("#c-answer")).to_be_visible()
    assert screen.evaluate("document.documentElement.scrollWidth") <= width


# ── where it is not offered ─────────────────────────────────────────────────────────────────────────────────────────


def test_without_services_there_is_no_classifier(blank: Page) -> None:
    asked: list[str] = []
    blank.on("request", lambda request: asked.append(request.url))
    blank.goto("/#/classifier")
    blank.wait_for_selector("#run:not([disabled])")
    expect(blank.locator("#nav-classifier")).to_be_hidden()
    expect(blank.locator("#screen-stream")).to_be_visible()
    assert [url for url in asked if "/services/" in url] == []
    assert blank.request.get(f"{MOUNT}/info").status == 404


def test_a_classifier_that_does_not_answer_is_left_out(open_blank: Opener, offering: Address, watch: Watch) -> None:
    page = open_blank(offering)
    page.route(f"**{MOUNT}/info", lambda route: route.fulfill(status=500, json={}))
    with page.expect_response(f"**{MOUNT}/info"):
        page.goto("/#/classifier")
    page.wait_for_selector("#run:not([disabled])")
    expect(page.locator("#nav-classifier")).to_be_hidden()
    watch.faults = [fault for fault in watch.faults if "500" not in fault]


def test_the_services_answer_beside_the_engines_own_calls(screen: Page) -> None:
    api = screen.request
    assert api.get("/api/bootstrap").json()["services"] == sorted(NAMES)
    for name in NAMES:
        assert api.get(f"/services/{name}/health").json()["status"] == "healthy"
    refused = api.post(f"{MOUNT}/extract_tmd", data={"query": " "})
    assert (refused.status, refused.json()["error"]["code"]) == (400, "VALIDATION_ERROR")
    assert api.get("/services/tinyllama/taxonomy").status == 404  # no classifier
    nothing = api.get("/services/nobody/info")
    assert (nothing.status, "GET /info" in nothing.text()) == (404, False)  # the engine's own word
    foreign = api.post(f"{MOUNT}/extract_tmd", data={"query": "q"}, headers={"origin": "https://example.org"})
    assert foreign.json()["error"]["code"] == "FORBIDDEN_ORIGIN"
    assert not any(path.startswith("/services") for path in api.get("/openapi.json").json()["paths"])
