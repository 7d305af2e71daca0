"""The dashboard in a real Chromium without a GPU, on a real engine with a council of six: frames, main thread, latency,
weight, memory and first paint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import attrs

from bench.dashboard_models import MODELS
from bench.dashboard_page import COUNT_ANIMATION_FRAMES, FIRST_PAINT, WEIGHT, Chromium, Heap, Span, Tab, chromium
from bench.engine import serving
from bench.flood import flooding
from bench.table import Row, at_least, at_most, percentile
from tests.system.process import EngineProcess

SIX = len(MODELS)
TPS = 60
FULL_TPS = 100
WARM_UP_S = 4.0
SECONDS = 10.0
EMPTY_S = 4.0
LATENCY_S = 12.0
RINGS_FULL_S = 45.0  # 34 s of columns, 2,048 events, 65,536 characters in each lane
HEAP_S = 60.0
PAINTS = 7
FRAME_MS = 1000 / 60
DRAWN_PER_S = 55
MAIN_MS = 8
LATENCY_MS = 34
WEIGHT_KB = 250
GROWTH_MB = 5
NODES = 8_000
PAINT_MS = 300
DRAWN = "window.__wf.framesDrawn"
ONE_WORD = "data:text/html,<!doctype html><p>word"


@attrs.frozen
class Latency:
    """ms until a picture with it was drawn: `tokens` since the model server sent each, `frames` since the engine
    composed each; `skipped`: frames that came together with a newer one, so that no picture was theirs alone."""

    tokens: list[float]
    frames: list[float]
    skipped: int


def measure() -> list[Row]:
    with chromium() as browser:
        with council(TPS) as engine:
            empty = empty_page(browser)
            plain, evidence, level = costs(browser, engine)
            latency = latencies(browser, engine)
        with council(FULL_TPS) as engine:
            heaps = memory(browser, engine)
        with serving(WF_EMBEDDED__ENABLED="true") as engine:
            weight, paints = first_load(browser, engine)
        bare_paints = [paint_ms(browser, ONE_WORD) for _ in range(PAINTS)]
    return [
        *cost_rows(empty, plain, evidence, level),
        *latency_rows(latency),
        *memory_rows(*heaps),
        *load_rows(weight, paints, bare_paints),
    ]


@contextmanager
def council(tps: float) -> Iterator[EngineProcess]:
    """An engine on which six models speak together at `tps` each, and never end."""
    with flooding(tps, "bench.dashboard_models") as url:
        own = {
            "WF_OLLAMA__ENABLED": "true",
            "WF_OLLAMA__SPAWN": "false",
            "WF_OLLAMA__URL": url,
            "WF_EMBEDDED__ENABLED": "false",
            "WF_TIER": "high",
        }
        with serving(**own) as engine, engine.client() as http:
            body = {"mode": "council", "models": list(MODELS), "prompt": "on"}
            answer = http.post("/generate", json=body)
            assert answer.status_code == 202, answer.text
            assert not answer.json()["dropped_models"], answer.text
            yield engine


def dashboard(browser: Chromium, engine: EngineProcess, *, probe: bool = False) -> Tab:
    """With all six speaking, and the first seconds behind it."""
    tab = browser.tab(f"{engine.http}/", probe=probe)
    tab.until(f"window.__wf?.strikesByStream.length === {SIX} && window.__wf.strikesByStream.every(n => n > 0)")
    tab.page.wait_for_timeout(WARM_UP_S * 1000)
    return tab


# ── what it costs ──


def empty_page(browser: Chromium) -> Span:
    """A page that only counts animation frames, beside the council: what this machine can do at all just now."""
    tab = browser.tab("about:blank")
    tab.page.evaluate(COUNT_ANIMATION_FRAMES)
    span = tab.span("window.turns", EMPTY_S)
    tab.close()
    return span


def costs(browser: Chromium, engine: EngineProcess) -> tuple[Span, Span, int]:
    """Of the page as it opens, and with Evidence open; and which level of its load it came to: above 0 it leaves things
    out, and its figures are no longer those of the whole page."""
    tab = dashboard(browser, engine)
    plain = tab.span(DRAWN, SECONDS)
    tab.page.click("#evidence-toggle")
    tab.page.wait_for_timeout(WARM_UP_S * 500)
    evidence = tab.span(DRAWN, SECONDS)
    level = tab.page.evaluate("window.__wf.level")
    tab.close()
    return plain, evidence, level


def cost_rows(empty: Span, plain: Span, evidence: Span, level: int) -> list[Row]:
    what = f"council, {SIX} × {TPS} tok/s, no GPU"
    rate = {"limit": empty.per_s, "limit_is": "an empty page beside it"}
    main = {"limit": empty.frame_ms, "limit_is": "an empty page beside it"}
    return [
        at_least(f"{what}: frames drawn", plain.per_s, "/s", DRAWN_PER_S, **rate),
        at_most("… main thread for each", plain.frame_ms, "ms", MAIN_MS, **main),
        Row("… of them scripts", plain.script_s * 1000 / plain.frames, "ms"),
        Row("… of them layout and style", plain.layout_s * 1000 / plain.frames, "ms"),
        at_least("… with Evidence open: frames drawn", evidence.per_s, "/s", DRAWN_PER_S, **rate),
        at_most("… with Evidence open: main thread for each", evidence.frame_ms, "ms", MAIN_MS, **main),
        at_most("… what the page gave up to keep up: level", level, "", 0),
    ]


# ── how late it is ──


def latencies(browser: Chromium, engine: EngineProcess) -> Latency:
    tab = dashboard(browser, engine, probe=True)
    tab.page.evaluate("window.__noted.heard.length = window.__noted.drawn.length = 0")
    tab.page.wait_for_timeout(LATENCY_S * 1000)
    noted = tab.page.evaluate("window.__noted")
    # The page's clock is zero at NavigationStart, which the browser tells on the machine's monotonic clock.
    origin_ms = tab.metrics()["NavigationStart"] * 1000
    tab.close()
    return latency_of(noted, origin_ms)


def latency_of(noted: dict[str, Any], origin_ms: float) -> Latency:
    """`noted` as `dashboard_page.PROBE` leaves it; stamps of tokens are `time.monotonic_ns`, those of the engine's
    frames are made comparable by the least any took from its composing to the page: that one took no time."""
    heard = [(at_ms, json.loads(data)) for at_ms, data in noted["heard"]]
    frames = [(i, at_ms, message) for i, (at_ms, message) in enumerate(heard) if message["frame"] is not None]
    engine_ms = min(at_ms - message["mono_ms"] for _, at_ms, message in frames)
    tokens_ms, frames_ms, skipped, drawn = [], [], 0, iter(noted["drawn"])
    at_ms, seen = next(drawn)
    by_picture: dict[float, int] = {}
    for number, _, message in frames:
        while number >= seen:
            following = next(drawn, None)
            if following is None:
                return Latency(tokens_ms, frames_ms, skipped)
            at_ms, seen = following
        skipped += by_picture.get(at_ms, 0) > 0
        by_picture[at_ms] = 1
        frames_ms.append(at_ms - engine_ms - message["mono_ms"])
        tokens_ms += [at_ms + origin_ms - sent_ms for sent_ms in stamps_ms(message)]
    return Latency(tokens_ms, frames_ms, skipped)


def stamps_ms(message: dict[str, Any]) -> list[float]:
    """When the model server sent each token of a frame."""
    return [
        int(token["text"]) / 1e6
        for event in message["events"]
        if event["type"] == "experience.token"
        for token in event["payload"]["tokens"]
    ]


def latency_rows(latency: Latency) -> list[Row]:
    two = {"limit": 2 * FRAME_MS, "limit_is": "a tick of the engine and one of the screen"}
    one = {"limit": FRAME_MS, "limit_is": "a tick of the screen"}
    tokens, frames = latency.tokens, latency.frames
    return [
        Row("… from the model server's sending a token to its pixels p50", percentile(tokens, 50), "ms", **two),
        at_most("… p95", percentile(tokens, 95), "ms", LATENCY_MS, **two),
        Row("… p99", percentile(tokens, 99), "ms", **two),
        Row("… from composing a frame to its pixels p50", percentile(frames, 50), "ms", **one),
        Row("… p95", percentile(frames, 95), "ms", **one),
        Row("… frames without a picture of their own", 100 * latency.skipped / len(frames), "%"),
    ]


# ── what it keeps ──


def memory(browser: Chromium, engine: EngineProcess) -> tuple[Heap, Heap, Heap]:
    """At the start, when every ring is full, and HEAP_S later."""
    tab = dashboard(browser, engine)
    start = tab.heap()
    tab.page.wait_for_timeout(RINGS_FULL_S * 1000)
    full = tab.heap()
    tab.page.wait_for_timeout(HEAP_S * 1000)
    late = tab.heap()
    tab.close()
    return start, full, late


def memory_rows(start: Heap, full: Heap, late: Heap) -> list[Row]:
    what = f"{SIX} × {FULL_TPS} tok/s for {HEAP_S:.0f} s, every ring full: growth of the heap"
    before = {"limit": full.used_mb, "limit_is": f"after {RINGS_FULL_S:.0f} s, every ring full"}
    return [
        at_most(what, late.used_mb - full.used_mb, "MB", GROWTH_MB),
        Row("… the heap then", late.used_mb, "MB", **before),
        Row(f"… the heap after {WARM_UP_S:.0f} s", start.used_mb, "MB"),
        at_most("… elements of the document", late.nodes, "", NODES),
    ]


# ── how it opens ──


def first_load(browser: Chromium, engine: EngineProcess) -> tuple[dict[str, float], list[float]]:
    tab = browser.tab(f"{engine.http}/")
    tab.page.wait_for_selector("#run:not([disabled])")
    tab.page.wait_for_load_state("networkidle")
    weight = tab.page.evaluate(WEIGHT)
    tab.close()
    return weight, [paint_ms(browser, f"{engine.http}/") for _ in range(PAINTS)]


def paint_ms(browser: Chromium, url: str) -> float:
    """From the start of the navigation to the first picture with anything in it, nothing cached."""
    tab = browser.tab(url)
    took = tab.page.evaluate(FIRST_PAINT)
    tab.close()
    return took


def load_rows(weight: dict[str, float], paints: list[float], bare: list[float]) -> list[Row]:
    files = f"first load, {weight['files']:.0f} files: sent, with gzip"
    unpacked = {"limit": weight["unpacked"] / 1000, "limit_is": "unpacked"}
    return [
        at_most(files, weight["sent"] / 1000, "kB", WEIGHT_KB, **unpacked),
        Row("… everything, with the answers of the API and all heads", weight["all"] / 1000, "kB"),
        at_most(f"first contentful paint, nothing cached, of {PAINTS}: p50", median(paints), "ms", PAINT_MS,
                limit=median(bare), limit_is="a page of one word"),
        Row("… the worst", max(paints), "ms", max(bare), "a page of one word"),
    ]  # fmt: skip
