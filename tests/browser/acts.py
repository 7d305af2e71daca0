"""What a person does on the page, and what is read from it."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from playwright.sync_api import Page, expect

from tests.browser.conftest import Address
from tests.system.process import free_port as free_port


def ask(page: Page, model: str, max_tokens: int | None = None, prompt: str = "What is a river?") -> None:
    expect(page.locator("#run")).to_be_enabled()  # models are known and frames arrive
    page.select_option("#model", model)
    page.fill("#max-tokens", "" if max_tokens is None else str(max_tokens))
    page.fill("#prompt", prompt)
    page.press("#prompt", "Control+Enter")


def run(page: Page, model: str, max_tokens: int) -> None:
    """Returns once the page shows the new session."""
    with page.expect_response("**/generate") as accepted:
        ask(page, model, max_tokens)
    expect(page.locator("#meta")).to_contain_text(accepted.value.json()["session_id"][:8])


def show_models(page: Page) -> None:
    """The list of models beside the stream, which a wide window shows by itself."""
    if not page.locator("#models[open]").count():
        page.click("#models summary")


def ended(page: Page) -> None:
    expect(page.locator(".lane .state")).to_have_text("DRAINED", timeout=30_000)


def until(page: Page, condition: str) -> None:
    """Waits at most 30 s. Playwright's own wait_for_function needs eval, which this page forbids."""
    page.evaluate(
        f"""() => new Promise((done, fail) => {{
          const limit = performance.now() + 30_000;
          const check = () => ({condition}) ? done() :
            performance.now() > limit ? fail(new Error("not within 30 s")) : requestAnimationFrame(check);
          check();
        }})"""
    )


def report(page: Page) -> dict[str, Any]:
    names = "framesReceived framesDrawn gaps strikes tokens lastEnergy".split()
    return page.evaluate("names => Object.fromEntries(names.map(name => [name, window.__wf[name]]))", names)


def post(engine: Address, path: str, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{engine.http}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
