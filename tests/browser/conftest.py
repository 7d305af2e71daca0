"""A real engine as a subprocess and a real Chromium. `WF_CHROMIUM` names another browser binary; without one the tests
are skipped on a desk and fail under CI=1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, WebSocket, sync_playwright

CHROMIUM = Path(os.environ.get("WF_CHROMIUM", "/usr/bin/chromium"))
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_CHECKS = 600  # of 50 ms each
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}


@attrs.frozen
class Address:
    http: str
    ws: str


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """`serve` on free ports, with the built-in models and the seeded source."""
    folder = tmp_path_factory.mktemp("engine")
    port_file, log = folder / "ports.json", folder / "log"
    command = [sys.executable, "-m", "engine", "serve", "--port", "0", "--ws-port", "0"]
    command += ["--port-file", str(port_file), "--synthetic", "42"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | {"WF_DATA_DIR": str(folder / "state"), "WF_OLLAMA__ENABLED": "false"},
            stdout=output,
            stderr=output,
        )
    try:
        yield _ready(process, port_file, log)
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0, log.read_text()


def _ready(process: subprocess.Popen[bytes], port_file: Path, log: Path) -> Address:
    """The port file is written once the engine answers."""
    for _ in range(START_CHECKS):
        if port_file.is_file():
            address = json.loads(port_file.read_bytes())
            return Address(address["http"], address["ws"])
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"the engine ended at once:\n{log.read_text()}")
    pytest.fail(f"no port file came:\n{log.read_text()}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.is_file():
        why = f"no Chromium at {CHROMIUM}: apt-get install --no-install-recommends chromium, or set WF_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@attrs.define(eq=False, slots=False)  # Playwright hangs its wrappers on the object
class Watch:
    """What a page did that no test of it may let pass, and every frame it received."""

    faults: list[str] = attrs.field(factory=list)
    frames: list[dict] = attrs.field(factory=list)

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

    def last_energy(self) -> dict:
        """The newest `energy.update` that came over the wire."""
        updates = [e for frame in self.frames for e in frame["events"] if e["type"] == "energy.update"]
        return updates[-1]["payload"]


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def blank(browser: Browser, watch: Watch, engine: Address) -> Iterator[Page]:
    """A fresh page that has not gone anywhere; at the end, nothing may have gone wrong on it."""
    context = browser.new_context(base_url=engine.http, viewport={"width": 1440, "height": 900}, color_scheme="dark")
    page = context.new_page()
    page.on("console", watch.console)
    page.on("pageerror", lambda error: watch.faults.append(f"page error: {error}"))
    page.on("request", watch.request)
    page.on("websocket", watch.socket)
    yield page
    inside = page.evaluate("window.__wf ? window.__wf.errors : []")
    context.close()
    assert watch.faults + inside == []


@pytest.fixture
def page(blank: Page) -> Page:
    """The dashboard, connected and with its models listed."""
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    return blank
