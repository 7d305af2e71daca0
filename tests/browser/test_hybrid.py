"""Consent to be answered outside this machine: asked with what would leave, for one request, and gone with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Watch

pytestmark = pytest.mark.browser

BROKER = {
    "mode": "hybrid", "available": True, "provider": "far", "bytes_out": 0, "calls": 0, "failed": 0, "refused": {},
    "calls_last_hour": 0, "spent": {"tokens": 0, "usd": 0.0}, "context": "question",
    "limits": {"calls_per_hour": 100, "daily_tokens": 200_000, "daily_usd": 1.0},
    "providers": [
        {"name": "far", "host": "api.example.com", "key": True, "reason": None, "models": ["big"]},
        {"name": "other", "host": "keyless.example.com", "key": False, "reason": "no key", "models": []},
    ],
}  # fmt: skip
LEAVING = {
    "provider": "far", "host": "api.example.com", "model": "big", "messages": 1, "text_bytes": 7, "images": 0,
    "tools": 0, "kept_here": {}, "tokens_max": 1055, "usd_max": 0.0125,
}  # fmt: skip

Asked = list[dict[str, Any]]
Opened = tuple[Page, Asked]


def opened(page: Page, **broker: Any) -> Opened:
    """The page of an engine with a broker; what it asks of `/generate` is taken down and accepted."""
    asked: Asked = []

    def generate(route: Route) -> None:
        asked.append(route.request.post_data_json)
        named = asked[-1].get("models") or [asked[-1]["model"]]
        if "far/big" in named and "broker" not in asked[-1]:
            error = {"code": "BROKER_DISABLED", "message": "it has to consent", "retryable": False}
            route.fulfill(status=403, json={"error": error | {"details": {"would_leave": LEAVING}}})
        else:
            answer = {"session_id": f"{len(asked):032x}", "models": [], "dropped_models": []}
            route.fulfill(status=202, json=answer)

    def models(route: Route) -> None:
        body = route.fetch().json()
        details = {"satellite": True, "host": "api.example.com"}
        far = {"name": "far/big", "runtime": "far", "state": "ready", "capabilities": [], "details": details}
        route.fulfill(json=body | {"models": [*body["models"], far]})

    page.route("**/broker", lambda route: route.fulfill(json=BROKER | broker))
    page.route("**/generate", generate)
    page.route("**/models", models)
    page.goto("/")
    page.wait_for_selector("#run:not([disabled])")
    page.select_option("#model", "embedded/lexicon")
    return page, asked


@pytest.fixture
def with_broker(blank: Page) -> Callable[..., Opened]:
    return lambda **broker: opened(blank, **broker)


def agree(page: Page) -> None:
    page.get_by_role("button", name="It may, once").click()
    expect(page.locator("#leave")).to_be_hidden()


def test_it_is_off_and_a_request_says_nothing_of_it(with_broker: Callable[..., Opened]) -> None:
    page, asked = with_broker()
    switch = page.locator("#hybrid")
    expect(switch).to_have_attribute("aria-checked", "false")
    expect(switch).to_contain_text("Off")
    page.fill("#prompt", "a plain question")
    with page.expect_response("**/generate"):
        page.click("#run")
    expect(page.locator("#note")).to_be_hidden()
    assert [sorted(one) for one in asked] == [["mode", "model", "parameters", "prompt"]]


def test_turning_it_on_shows_who_gets_what_and_goes_with_one_request(with_broker: Callable[..., Opened]) -> None:
    page, asked = with_broker()
    page.fill("#prompt", "what <b>leaves</b>\u202e here?")
    page.click("#hybrid")
    rows = page.locator("#leave-rows")
    expect(rows).to_contain_text("far (api.example.com)")
    expect(rows).not_to_contain_text("keyless")
    expect(rows).to_contain_text("The question and its parameters, nothing else.")
    expect(rows).to_contain_text("100 calls an hour, 200000 tokens and $1.00 a day")
    expect(page.locator("#leave-text")).to_have_text("what <b>leaves</b>‹U+202E› here?")
    expect(page.get_by_role("button", name="Keep it here")).to_be_focused()
    agree(page)
    expect(page.locator("#hybrid")).to_have_attribute("aria-checked", "true")
    assert asked == []
    with page.expect_response("**/generate"):
        page.click("#run")
    expect(page.locator("#hybrid")).to_have_attribute("aria-checked", "false")
    with page.expect_response("**/generate"):
        page.click("#run")  # the next one stays here
    assert [one.get("broker") for one in asked] == ["allow", None]


def test_what_changed_since_is_asked_again(with_broker: Callable[..., Opened]) -> None:
    page, asked = with_broker()
    page.click("#hybrid")
    expect(page.locator("#leave-text")).to_contain_text("Nothing is written yet")
    agree(page)
    expect(page.locator("#hybrid")).to_have_attribute("aria-checked", "true")
    page.fill("#prompt", "a secret")
    page.click("#run")
    expect(page.locator("#leave-text")).to_have_text("a secret")
    page.get_by_role("button", name="Keep it here").click()
    expect(page.locator("#hybrid")).to_have_attribute("aria-checked", "false")
    assert asked == []  # it was not asked here either: that is for the person to say
    page.click("#hybrid")
    agree(page)
    expect(page.locator("#hybrid")).to_have_attribute("aria-checked", "true")
    page.fill("#temperature", "1.5")
    page.click("#run")
    expect(page.locator("#leave-rows")).to_contain_text("temperature 1.5")
    with page.expect_response("**/generate"):
        agree(page)
    expect(page.locator("#hybrid")).to_have_attribute("aria-checked", "false")
    assert [one["broker"] for one in asked] == ["allow"]


def test_a_model_outside_is_refused_first_and_the_engine_tells_what_would_leave(
    with_broker: Callable[..., Opened], watch: Watch
) -> None:
    page, asked = with_broker()
    page.select_option("#model", "far/big")
    page.fill("#prompt", "hello ?")
    page.click("#run")
    rows = page.locator("#leave-rows")
    expect(rows).to_contain_text("now: a model outside this machine is asked")
    expect(rows).to_contain_text("far (api.example.com)")
    expect(rows).to_contain_text("1 message, 7 bytes of text")
    expect(rows).to_contain_text("at most 1055 tokens, in and out, $0.0125")
    with page.expect_response("**/generate"):
        agree(page)
    expect(page.locator("#refusal")).to_be_hidden()
    assert [one.get("broker") for one in asked] == [None, "allow"]
    page.fill("#prompt", "again ?")
    page.click("#hybrid")  # before Run, it is the same preview
    expect(rows).to_contain_text("7 bytes of text")
    page.keyboard.press("Escape")
    expect(page.locator("#hybrid")).to_have_attribute("aria-checked", "false")
    watch.faults = [fault for fault in watch.faults if "403" not in fault]  # the browser's own note of the refusals


def test_a_broker_that_is_switched_off_takes_no_consent(with_broker: Callable[..., Opened]) -> None:
    page, asked = with_broker(mode="disabled")
    page.click("#hybrid")
    expect(page.locator("#leave-trouble")).to_contain_text("switched off: nothing leaves")
    expect(page.locator("#leave-yes")).to_be_disabled()
    page.get_by_role("button", name="To the Gateway").click()
    expect(page.locator("#screen-gateway")).to_be_visible()
    assert asked == []


def test_in_mode_advisory_nothing_leaves_where_nobody_outside_is_asked(with_broker: Callable[..., Opened]) -> None:
    page, _ = with_broker(mode="advisory")
    page.click("#hybrid")
    expect(page.locator("#leave-trouble")).to_contain_text("nothing would leave")
    expect(page.locator("#leave-rows")).to_contain_text("nobody")
    expect(page.locator("#leave-yes")).to_be_disabled()


def test_a_council_with_a_member_outside_is_asked_for_too(with_broker: Callable[..., Opened], watch: Watch) -> None:
    page, asked = with_broker(mode="advisory")
    page.locator("#modes label", has_text="Council").click()
    page.click("#picker summary")
    while page.locator("#picker-list input:checked").count():
        page.locator("#picker-list input:checked").first.uncheck()
    for name in ("embedded/lexicon", "far/big"):
        page.locator("#picker-list label", has_text=name).locator("input").check()
    page.keyboard.press("Escape")
    page.fill("#prompt", "hello ?")
    page.click("#run")
    expect(page.locator("#leave-rows")).to_contain_text("far (api.example.com)")
    with page.expect_response("**/generate"):
        agree(page)
    expect(page.locator("#refusal")).to_be_hidden()
    assert [one.get("broker") for one in asked] == [None, "allow"]
    assert set(asked[1]["models"]) == {"embedded/lexicon", "far/big"}
    watch.faults = [fault for fault in watch.faults if "403" not in fault]


def test_this_machine_alone_has_no_switch(page: Page) -> None:
    expect(page.locator("#local")).to_have_text("Local only · 0 B out")
    expect(page.locator("#hybrid")).to_be_hidden()


def test_what_left_is_in_the_header_while_it_leaves(blank: Page) -> None:
    out = iter(range(0, 10_000_000, 1_000))

    def broker(route: Route) -> None:
        route.fulfill(json=BROKER | {"bytes_out": next(out)})

    blank.route("**/broker", broker)
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    blank.select_option("#model", "synthetic/steady")
    blank.fill("#max-tokens", "3000")
    blank.fill("#prompt", "go on")
    blank.click("#run")
    for _ in range(3):
        shown = blank.locator("#local").text_content() or ""
        expect(blank.locator("#local")).not_to_have_text(shown)
    blank.keyboard.press("Escape")
    expect(blank.locator("#outcome")).to_contain_text("Stopped in")
