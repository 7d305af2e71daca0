"""A real engine as a subprocess and a real Chromium. `WF_CHROMIUM` names another browser binary; without one the tests
are skipped on a desk and fail under CI=1. README.md says what `WF_BROWSER_SLOW` and `WF_BROWSER_LATE_MS` are for."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, WebSocket, expect, sync_playwright

from bench.dashboard_page import ARGS, CHROMIUM
from tests.system.process import EngineProcess

expect.set_options(timeout=30_000)  # the machine may be busy; only what does not come at all runs into it

LIBRARIES = Path(str(files("web").joinpath("static/vendor/vendor.js")))
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
SLOWER = float(os.environ.get("WF_BROWSER_SLOW", "1"))  # how many times slower a page thinks
LATE_MS = float(os.environ.get("WF_BROWSER_LATE_MS", "0"))  # how much later it is answered


@attrs.frozen
class Address:
    http: str
    ws: str


@contextmanager
def serving(folder: Path, **env: str) -> Iterator[Address]:
    """`serve` on free ports, with the built-in models and the seeded source."""
    engine = EngineProcess.spawn(folder, env=env)
    try:
        engine.wait_ready()
        yield Address(engine.http, engine.ws)
        engine.signal(signal.SIGTERM)
        assert engine.wait_exit() == 0, engine.stderr()
    finally:
        engine.kill()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with serving(tmp_path_factory.mktemp("engine")) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.is_file():
        why = f"no Chromium at {CHROMIUM}: apt-get install --no-install-recommends chromium, or set WF_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    if not LIBRARIES.is_file():
        why = "the dashboard's libraries were not built, for lack of npm's registry: pip install -e ."
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@attrs.define(eq=False, slots=False)  # Playwright hangs its wrappers on the object
class Watch:
    """What a page did that no test of it may let pass, and every frame it received and message it sent."""

    faults: list[str] = attrs.field(factory=list)
    frames: list[dict] = attrs.field(factory=list)
    sent: list[dict] = attrs.field(factory=list)

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text}")

    def request(self, request: Request) -> None:
        host = urlsplit(request.url).hostname
        if host not in LOOPBACK and not request.url.startswith("data:"):
            self.faults.append(f"request off this machine: {request.url}")

    def socket(self, socket: WebSocket) -> None:
        if urlsplit(socket.url).hostname not in LOOPBACK:
            self.faults.append(f"socket off this machine: {socket.url}")
        socket.on("framereceived", lambda payload: self.frames.append(json.loads(payload)))
        socket.on("framesent", lambda payload: self.sent.append(json.loads(payload)))

    def told(self, type_: str, session: str) -> list[dict[str, Any]]:
        """What came over the wire of a session. Others may run beside it: the engine is that of many tests."""
        events = [event for frame in self.frames for event in frame["events"] if event["session_id"] == session]
        return [event["payload"] for event in events if event["type"] == type_]

    def columns(self, session: str) -> int:
        """How many columns the field has of a session that is over: one a frame that told of it, and one a frame that
        never came until its end."""
        came = {frame["frame"] for frame in self.frames} - {None}
        told: dict[str, set[int]] = {"energy.update": set(), "experience.session_end": set()}
        for frame in self.frames:
            for event in frame["events"]:
                if event["session_id"] == session and event["type"] in told:
                    told[event["type"]].add(frame["frame"])
        first, (end,) = min(told["energy.update"]), told["experience.session_end"]
        return len(told["energy.update"]) + sum(number not in came for number in range(first, end))


def hamper(page: Page) -> None:
    """Makes a page as slow as the environment says, to find tests that are only right on a machine that is fast."""
    if SLOWER > 1 or LATE_MS > 0:
        debugger = page.context.new_cdp_session(page)
        debugger.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        debugger.send("Network.enable")
        full = {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
        debugger.send("Network.emulateNetworkConditions", full | {"latency": LATE_MS})


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def open_blank(browser: Browser, watch: Watch) -> Iterator[Callable[[Address], Page]]:
    """Opens a fresh page for an engine that has not gone anywhere; at the end, nothing may have gone wrong on it."""
    pages: list[Page] = []

    def open_page(engine: Address) -> Page:
        context = browser.new_context(
            base_url=engine.http, viewport={"width": 1440, "height": 900}, color_scheme="dark"
        )
        page = context.new_page()
        page.on("console", watch.console)
        page.on("pageerror", lambda error: watch.faults.append(f"page error: {error}"))
        page.on("request", watch.request)
        page.on("websocket", watch.socket)
        hamper(page)
        pages.append(page)
        return page

    yield open_page
    inside: list[str] = []
    for page in pages:
        inside += page.evaluate("window.__wf ? window.__wf.errors : []")
        page.unroute_all(behavior="ignoreErrors")  # the page asks on; an answer that a test makes may be under way
        page.context.close()
    assert watch.faults + inside == []


@pytest.fixture
def blank(open_blank: Callable[[Address], Page], engine: Address) -> Page:
    return open_blank(engine)


@pytest.fixture
def page(blank: Page) -> Page:
    """The dashboard, connected and with its models listed."""
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    return blank
