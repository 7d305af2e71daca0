"""The page of the HTTP API: every call with what it takes and gives, and trying the ones that only ask."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Page, expect


@pytest.fixture
def docs(blank: Page) -> Page:
    blank.goto("/docs")
    blank.wait_for_selector(".call")
    return blank


def opened(docs: Page, operation: str):
    call = docs.locator(f"#{operation}")
    call.locator(":scope > summary").click()
    return call


def test_it_lists_every_call(docs, engine):
    document = httpx.get(f"{engine.http}/openapi.json", trust_env=False).json()
    methods = {"get", "post", "delete", "head"}
    names = {call["operationId"] for item in document["paths"].values() for m, call in item.items() if m in methods}
    shown = docs.eval_on_selector_all(".call", "calls => calls.map(call => call.id)")
    assert len(shown) == len(names)
    assert set(shown) == names


def test_a_call_tells_its_parameters_body_answers_errors_and_examples(docs):
    call = opened(docs, "post_generate")
    for heading in ("Parameters", "Body", "Answers", "Errors"):
        expect(call.locator("h4", has_text=re.compile(f"^{heading}$"))).to_be_visible()
    expect(call.locator("td", has_text="prompt").first).to_be_visible()
    expect(call.locator("td", has_text="MODEL_NOT_FOUND")).to_be_visible()
    expect(call.get_by_label("Example of application/json").first).to_contain_text('"prompt"')
    expect(call.locator("summary", has_text="MessageBody")).to_have_count(1)
    call.locator("summary", has_text="ParametersBody").click()
    expect(call.locator("td", has_text="0 to 2").first).to_be_visible()
    expect(call.get_by_role("button", name="Send")).to_have_count(0)


OPEN_ALL = """() => {
  const all = [...document.querySelectorAll("main details")];
  for (const details of all) details.open = true;
  return all.every((details) => details.childElementCount > 1) && all.length;
}"""


def test_everything_opens_without_a_fault(docs):
    """What is inside is made when it is opened, so this goes on until there is nothing left to open."""
    assert docs.wait_for_function(OPEN_ALL).json_value() > 100
    text = docs.locator("main").inner_text()
    assert not re.search(r"undefined|\[object|NaN", text)


def test_a_call_that_only_asks_can_be_tried(docs):
    call = opened(docs, "get_health")
    call.get_by_role("button", name="Send").click()
    expect(call.locator("output")).to_contain_text("200")
    expect(call.get_by_label("Body of the answer")).to_contain_text('"status": "ok"')
    expect(call.get_by_role("button", name="Send")).to_be_enabled()


def test_parameters_go_where_they_belong(docs):
    call = opened(docs, "get_schemas_name")
    call.get_by_label("name").fill("ping")
    with docs.expect_request(lambda asked: asked.url.endswith("/schemas/ping")):
        call.get_by_role("button", name="Send").click()
    expect(call.get_by_label("Body of the answer")).to_contain_text('"title": "ping"')


def test_a_refusal_is_shown(docs, watch):
    call = opened(docs, "get_stream_session_id")
    call.get_by_label("session_id").fill("no/such")
    call.get_by_label("energy").fill("1")
    with docs.expect_request(lambda asked: asked.url.endswith("/stream/no%2Fsuch?energy=1")):
        call.get_by_role("button", name="Send").click()
    expect(call.locator("output")).to_contain_text("404")
    expect(call.get_by_label("Body of the answer")).to_contain_text("NOT_FOUND")
    assert [fault for fault in watch.faults if "404" not in fault] == []
    watch.faults.clear()  # Chromium tells every refusal on its console


def test_a_stream_is_shown_as_it_comes_and_can_be_left(docs, engine):
    body = {"model": "synthetic/stalling", "prompt": "x", "parameters": {"max_tokens": 3000}}
    asked = httpx.post(f"{engine.http}/generate", json=body, trust_env=False).json()
    call = opened(docs, "get_stream_session_id")
    call.get_by_label("session_id").fill(asked["session_id"])
    call.get_by_role("button", name="Send").click()
    expect(call.get_by_label("Body of the answer")).to_contain_text("experience.token")
    call.get_by_role("button", name="Stop").click()
    expect(call.locator("output")).to_contain_text("Stopped.")
    httpx.post(f"{engine.http}/stop", json={"session_id": asked["session_id"]}, trust_env=False)


def test_calls_are_found_by_words_and_by_address(docs):
    docs.get_by_placeholder("Find a call…").fill("UNLOAD")
    expect(docs.locator(".call:visible")).to_have_count(1)
    docs.get_by_placeholder("Find a call…").fill("no such call")
    expect(docs.locator("#none")).to_be_visible()
    docs.get_by_placeholder("Find a call…").fill("")
    docs.goto("/docs#get_stats")
    expect(docs.locator("#get_stats")).to_have_attribute("open", "")


def test_it_is_dark_or_light_and_remembers(docs):
    background = "getComputedStyle(document.body).backgroundColor"
    dark = docs.evaluate(background)
    docs.locator("#theme").click()
    expect(docs.locator("body")).not_to_have_css("background-color", dark)
    light = docs.evaluate(background)
    docs.reload()
    expect(docs.locator("body")).to_have_css("background-color", light)


def test_it_fits_a_narrow_window(docs):
    docs.set_viewport_size({"width": 360, "height": 700})
    expect(opened(docs, "post_generate").locator("h4").first).to_be_visible()
    assert docs.evaluate("document.documentElement.scrollWidth <= innerWidth")
