"""Takes the pictures of the dashboard: `python web/screenshots/take.py [FOLDER]`, from the repository's root.

What they show is measured: an engine is started, a council of the built-in models answers, and Chromium looks at it in
both themes and three sizes. Needs the extra `test` and a Chromium (`WF_CHROMIUM` names another binary).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM: Final = os.environ.get("WF_CHROMIUM", "/usr/bin/chromium")
FLAGS: Final = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
NO_LLAMA: Final = {"WF_LLAMA_CPP__ENABLED": "false"}
MEMBERS: Final = ("embedded/lexicon", "embedded/hacker", "embedded/mixed")
PROMPT: Final = "What is a lighthouse?"
WIDE, MIDDLE, NARROW = (1440, 900), (1024, 768), (390, 844)
PICTURES: Final = (  # name, address, window, theme, whether a council is to answer
    ("dashboard", "#/stream", WIDE, "dark", True),
    ("dashboard-light", "#/stream", WIDE, "light", True),
    ("dashboard-1024", "#/stream", MIDDLE, "light", True),
    ("dashboard-390", "#/stream", NARROW, "dark", True),
    ("evidence", "#/stream?evidence=1", WIDE, "dark", True),
    ("pool", "#/pool", WIDE, "dark", False),
    ("gateway", "#/gateway", WIDE, "light", False),
    ("events", "#/events", WIDE, "dark", False),
)
READY_S: Final = 30.0
ANSWER_TOKENS: Final = 80


class _Ports(msgspec.Struct):
    http: str


@contextmanager
def _engine(folder: Path) -> Iterator[str]:
    """The URL of a fresh engine with nothing but the built-in models."""
    ports = folder / "ports.json"
    env = os.environ | {"WF_DATA_DIR": str(folder / "state"), "WF_OLLAMA__ENABLED": "false"} | NO_LLAMA
    command = [sys.executable, "-m", "engine", "serve", "--port", "0", "--ws-port", "0", "--port-file", str(ports)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + READY_S
        while not ports.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the engine did not start")
            time.sleep(0.05)
        yield msgspec.json.decode(ports.read_bytes(), type=_Ports).http
    finally:
        process.terminate()
        process.wait(READY_S)


def _ask(page: Page) -> None:
    """Has a council answer, and waits until it is well on its way."""
    page.wait_for_selector("#run:not([disabled])")
    page.locator("#modes").get_by_text("Council").click()
    page.locator("#picker summary").click()
    for box in page.locator("#picker-list input").all():
        box.set_checked(box.get_attribute("value") in MEMBERS)
    page.keyboard.press("Escape")
    page.fill("#prompt", PROMPT)
    with page.expect_response("**/generate") as accepted:
        page.press("#prompt", "Control+Enter")
    session = accepted.value.json()["session_id"][:8]
    page.locator("#meta", has_text=session).wait_for()
    while page.evaluate("window.__wf.tokens") < ANSWER_TOKENS * len(MEMBERS):
        page.wait_for_timeout(100)


def _take(browser: Browser, url: str, folder: Path) -> None:
    for name, address, (width, height), theme, asks in PICTURES:
        context = browser.new_context(viewport={"width": width, "height": height})
        page = context.new_page()
        page.emulate_media(color_scheme="light" if theme == "light" else "dark")
        page.goto(f"{url}/{address}")
        if asks:
            _ask(page)
        else:
            page.wait_for_timeout(3_000)  # its figures are asked for every two seconds
        page.screenshot(path=folder / f"{name}.png")
        context.close()


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as state, _engine(Path(state)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        _take(browser, url, folder)
        browser.close()


if __name__ == "__main__":
    main()
