"""The dashboard in Debian's Chromium, and what the browser says it costs.

Times are of the browser's main thread alone (`threadTicks`): what else runs on the machine is not in them. A page's
clock is the machine's monotonic clock less the moment the browser began to fetch the page, so that it can be compared
with the stamps of other processes. Playwright listens to the page's WebSocket; what that costs the page is in the
figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

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
VIEWPORT = {"width": 1440, "height": 900}
WATCHDOG_MS = 30_000
STEP_S = 0.05
MISSING_PLAYWRIGHT = (
    "`dashboard` drives a browser with Playwright, which is in the extra `test` only:\n"
    "  .venv/bin/pip install -e '.[test]'"
)
MISSING_CHROMIUM = (
    f"`dashboard` needs Chromium, and there is none at {CHROMIUM}:\n"
    "  apt-get install --no-install-recommends chromium, or set WF_CHROMIUM"
)

# Notes every message of the page's WebSocket with the moment it came, and every animation frame in which the page drew
# with the moment its picture was out of its hands and how many messages had come before it.
PROBE = """(() => {
  const noted = (window.__noted = { heard: [], drawn: [] });
  const Native = window.WebSocket;
  window.WebSocket = class extends Native {
    constructor(...words) {
      super(...words);
      this.addEventListener("message", ({ data }) => noted.heard.push([performance.now(), data]));
    }
  };
  let before = 0;
  const turn = () => {
    requestAnimationFrame(turn);
    const heard = noted.heard.length;
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      const count = window.__wf?.framesDrawn ?? 0;
      if (count !== before) noted.drawn.push([performance.now(), heard]);
      before = count;
    };
    port2.postMessage(null);
  };
  requestAnimationFrame(turn);
})()"""

COUNT_ANIMATION_FRAMES = """() => {
  window.turns = 0;
  const turn = () => { window.turns += 1; requestAnimationFrame(turn); };
  requestAnimationFrame(turn);
}"""

# Bodies as they are sent; `all` has the answers of the API and the browser's flat 300 bytes for each head in it.
WEIGHT = """() => {
  const all = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const files = all.filter(({ name, entryType }) => entryType === "navigation" || name.includes("/static/"));
  const sum = (list, name) => list.reduce((total, entry) => total + entry[name], 0);
  const unpacked = sum(files, "decodedBodySize");
  return { files: files.length, sent: sum(files, "encodedBodySize"), unpacked, all: sum(all, "transferSize") };
}"""

FIRST_PAINT = """() => new Promise(done => {
  const told = list => {
    for (const { name, startTime } of list.getEntries()) if (name === "first-contentful-paint") done(startTime);
  };
  new PerformanceObserver(told).observe({ type: "paint", buffered: true });
})"""


@attrs.frozen
class Span:
    """What a page did in `seconds`: animation frames it drew, and seconds of its main thread, of them of scripts, of
    layout and style."""

    seconds: float
    frames: int
    main_s: float
    script_s: float
    layout_s: float

    @property
    def per_s(self) -> float:
        return self.frames / self.seconds

    @property
    def frame_ms(self) -> float:
        return self.main_s * 1000 / max(1, self.frames)


@attrs.frozen
class Heap:
    """MB of JavaScript after a forced collection, typed arrays and strings included; nodes of the document."""

    used_mb: float
    nodes: int


@attrs.define(eq=False)
class Tab:
    """A page and the debugger's line to it."""

    page: Any
    debugger: Any

    def metrics(self) -> dict[str, float]:
        return {one["name"]: one["value"] for one in self.debugger.send("Performance.getMetrics")["metrics"]}

    def span(self, counted: str, seconds: float) -> Span:
        """`counted`: an expression for the animation frames so far."""
        before, frames = self.metrics(), self.page.evaluate(counted)
        time.sleep(seconds)
        after, more = self.metrics(), self.page.evaluate(counted)
        took = {name: after[name] - before[name] for name in after}
        layout_s = took["LayoutDuration"] + took["RecalcStyleDuration"]
        return Span(took["Timestamp"], more - frames, took["TaskDuration"], took["ScriptDuration"], layout_s)

    def heap(self) -> Heap:
        for _ in range(2):  # what only finalizers held is gone after the second
            self.debugger.send("HeapProfiler.collectGarbage")
        used = self.debugger.send("Runtime.getHeapUsage")
        return Heap(
            (used["usedSize"] + used["backingStorageSize"]) / 1e6,
            self.page.evaluate("document.querySelectorAll('*').length"),
        )

    def until(self, condition: str) -> None:
        """Playwright's own wait needs eval, which the page forbids."""
        limit = time.monotonic() + WATCHDOG_MS / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < limit, f"never: {condition}"
            time.sleep(STEP_S)

    def close(self) -> None:
        self.page.context.close()


@attrs.define(eq=False)
class Chromium:
    browser: Any

    def tab(self, url: str, *, probe: bool = False) -> Tab:
        """A page in a context of its own: nothing is cached."""
        context = self.browser.new_context(viewport=VIEWPORT, color_scheme="dark")
        context.set_default_timeout(WATCHDOG_MS)
        page = context.new_page()
        if probe:
            page.add_init_script(PROBE)
        debugger = context.new_cdp_session(page)
        debugger.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(url)
        return Tab(page, debugger)


@contextmanager
def chromium() -> Iterator[Chromium]:
    """Raises SystemExit with what to install where Playwright or Chromium is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SystemExit(MISSING_PLAYWRIGHT) from None
    if not CHROMIUM.is_file():
        raise SystemExit(MISSING_CHROMIUM)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        try:
            yield Chromium(browser)
        finally:
            browser.close()
