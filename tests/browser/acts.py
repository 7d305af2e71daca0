"""What a person does on the page, and what is read from it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Address
from tests.system.process import free_port as free_port


def ask(page: Page, model: str, max_tokens: int | None = None, prompt: str = "What is a river?") -> None:
    expect(page.locator("#run")).to_be_enabled()  # models are known and frames arrive
    page.select_option("#model", model)
    page.fill("#max-tokens", "" if max_tokens is None else str(max_tokens))
    page.fill("#prompt", prompt)
    page.press("#prompt", "Control+Enter")


def run(page: Page, model: str, max_tokens: int) -> str:
    """Returns the new session's id once the page shows it."""
    with page.expect_response("**/generate") as accepted:
        ask(page, model, max_tokens)
    session: str = accepted.value.json()["session_id"]
    expect(page.locator("#meta")).to_contain_text(session[:8])
    return session


def at_once(page: Page, *keys: str) -> None:
    """Presses keys in one turn of the page: it paints nothing between them and no time passes, however slow it is."""
    page.evaluate(
        """keys => {
          const what = { bubbles: true, cancelable: true };
          for (const key of keys) document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, ...what }));
        }""",
        keys,
    )


def stands(page: Page, pattern: str) -> None:
    """What the engine answers there first is its answer for the rest of the test: the page asks again and again, and
    other sessions of the same engine end meanwhile."""
    said: dict[str, Any] = {}

    def answer(route: Route) -> None:
        said.setdefault(route.request.url, None)
        if said[route.request.url] is None:
            said[route.request.url] = route.fetch().json()
        route.fulfill(json=said[route.request.url])

    page.route(pattern, answer)


def show_models(page: Page) -> None:
    """The list of models beside the stream, which a wide window shows by itself."""
    if not page.locator("#models[open]").count():
        page.click("#models summary")


def ended(page: Page) -> None:
    expect(page.locator(".lane .state")).to_have_text("DRAINED", timeout=60_000)


def until(page: Page, condition: str) -> None:
    """Waits at most 60 s. Playwright's own wait_for_function needs eval, which this page forbids."""
    page.evaluate(
        f"""() => new Promise((done, fail) => {{
          const limit = performance.now() + 60_000;
          const check = () => ({condition}) ? done() :
            performance.now() > limit ? fail(new Error("not within 60 s")) : requestAnimationFrame(check);
          check();
        }})"""
    )


def wait_for(page: Page, met: Callable[[], Any]) -> Any:
    """The first true value of something this side knows, while the page's messages are taken in. At most 60 s."""
    limit = time.monotonic() + 60
    while not (value := met()):
        assert time.monotonic() < limit
        page.wait_for_timeout(50)
    return value


def turns(page: Page, count: int) -> None:
    """Lets the page have its animation frames: what an answer or an event was to do is done by then."""
    turn = f"let n = 0; const turn = () => (n += 1) > {count} ? done() : requestAnimationFrame(turn); turn();"
    page.evaluate(f"() => new Promise(done => {{ {turn} }})")


def report(page: Page) -> dict[str, Any]:
    names = "framesReceived framesDrawn gaps strikes tokens lastEnergy".split()
    return page.evaluate("names => Object.fromEntries(names.map(name => [name, window.__wf[name]]))", names)


def post(engine: Address, path: str, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{engine.http}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
