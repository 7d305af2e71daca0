"""Row by row, what a measured signal looks like: the function is the documented one, also in pixels."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.acts import until
from tests.browser.scripted import (
    FIRST_FRAME,
    council,
    energy,
    frame,
    peer,
    reading,
    spoken,
    started,
    stream_id,
    together,
    token,
)
from tests.browser.test_council import pixels, plot, shown

pytestmark = pytest.mark.browser

INK = "a > 80 && Math.max(r, g, b) > 120"


def held(level: float, frames: int = 120, *first: dict[str, Any]) -> list[dict[str, Any]]:
    """Two streams, the first at E = `level` in each frame, the second at 0."""
    readings = [reading(0, energy=level, tokens=1), reading(1, energy=0.0, tokens=1)]
    messages = [frame(FIRST_FRAME, *started(2), *first, energy(*readings, ensemble=together()))]
    for n in range(1, frames):
        messages.append(frame(FIRST_FRAME + n, energy(*readings, ensemble=together())))
    return messages


@pytest.mark.parametrize("level", [0.1, 0.4, 0.75, 1.0])
def test_the_line_stands_at_e(blank: Page, level: float) -> None:
    shown(blank, held(level))
    place = plot(blank, 2)
    lane = place["lanes"][0]
    y = lane["y1"] - level * (lane["y1"] - lane["y0"])
    line = (place["x1"] - 60, y - 1.5, 40, 3)
    above = (place["x1"] - 60, lane["y0"] - 8, 40, max(1, y - 5 - lane["y0"] + 8))
    assert pixels(blank, line, INK) >= 40
    assert pixels(blank, above, INK) == 0


@pytest.mark.parametrize("base", [0.25, 0.6, 0.95])
def test_a_strike_is_as_high_as_its_e_base(blank: Page, base: float) -> None:
    struck = spoken(0, token(0, "x", energy_base=base, logprob=-0.01))
    messages = held(0.02, 40, struck)
    messages[0]["events"][-1]["payload"]["streams"][0]["entropy_bits"] = None  # unknown: it is straight
    shown(blank, messages)
    place = plot(blank, 2)
    lane = place["lanes"][0]
    tall = lane["y1"] - lane["y0"]
    x = place["x1"] - 39
    lit = "a > 40 && Math.max(r, g, b) > 60"
    middle = (x - 2, lane["y1"] - base * tall + 2, 4, max(1, base * tall * 0.5))
    over = (x + 3, lane["y0"], 8, 6)  # beside the dotted mark of the first token
    assert pixels(blank, middle, lit) > 0
    assert pixels(blank, over, lit) == 0


def test_the_first_token_has_its_dotted_mark(blank: Page) -> None:
    shown(blank, held(0.02, 60, spoken(0, token(0, "x", energy_base=0.1))))
    place = plot(blank, 2)
    marks = [
        pixels(blank, (place["x1"] - 59 - 2, lane["y0"] - 2, 4, (lane["y1"] - lane["y0"]) * 0.6), INK)
        for lane in place["lanes"]
    ]
    assert marks[0] > 4
    assert marks[1] == 0


def test_the_pure_functions_of_the_table(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { contrast, phase, diY } = await import("/static/fringe.js");
          const { share } = await import("/static/core.js");
          const { height } = await import("/static/field.js");
          const band = { y0: 10, y1: 110 };
          return {
            phase: [0, 50, 25].map(phase),
            contrast: [0, 0.5, 1].map(contrast),
            height: [0, 0.5, 1].map(part => height(band, part)),
            di: [0, 1].map(di => diY(band, di)),
            share: [share({ weights: { a: 0.25, b: 0.75 } }, "b"), share({ weights: {} }, "a"), share(null, "a")],
          };
        }"""
    )
    assert found["phase"] == pytest.approx([0, 1.5 * math.pi, 0.75 * math.pi])
    assert found["contrast"] == pytest.approx([1, 0.4 / 0.82, 0])
    assert found["height"] == [110, 60, 10]
    assert found["di"] == [108, 12]
    assert found["share"] == [0.75, 0, 0]


def test_surprise_is_the_heat_behind_a_word(blank: Page) -> None:
    words = [token(0, "sure", logprob=-0.01), token(1, " odd", logprob=-4.3), token(2, " half", logprob=-2.15)]
    peer(blank, held(0.5, 3, spoken(0, *words, token(3, " last", logprob=-0.01))))
    blank.goto("/#/stream?evidence=1")
    name = "r => r.startContainer.data.slice(r.startOffset, r.endOffset)"
    for step, word in [(0, "sure"), (7, " odd"), (4, " half")]:
        marked = f"[...(CSS.highlights.get('heat-{step}') ?? [])].map({name})"
        until(blank, f"{marked}.includes('{word}')")
    blank.locator("body").press("e")
    until(blank, "[...CSS.highlights.get('heat-7')].length === 0")


def test_the_formula_has_the_live_constants_and_numbers(blank: Page) -> None:
    arrived = token(0, "x", energy_base=0.7, energy=0.245)
    measured = reading(0, tokens=1, tps=10.0, certainty=0.5, delta_ms=None, energy=0.245, energy_base=0.6)
    events = [*started(2), spoken(0, arrived), energy(measured, reading(1), ensemble=together())]
    peer(blank, [frame(FIRST_FRAME, *events)])
    blank.goto("/#/stream?evidence=1")
    formula = blank.locator("#evidence-formula")
    expect(formula).to_contain_text(".5·0.500 + .3·0.500·1.000 + .2·1.000")
    expect(formula).to_contain_text("= 0.6000   engine 0.7000 differs by 0.1000")  # what does not fit is said


def test_a_token_that_shared_its_frame_is_not_worked_out(blank: Page) -> None:
    both = spoken(0, token(0, "one"), token(1, " two"))
    peer(blank, held(0.5, 2, both))
    blank.goto("/#/stream?evidence=1&tok=1:0")
    expect(blank.locator("#evidence-token")).to_contain_text("Token 0:")
    expect(blank.locator("#evidence-formula")).to_contain_text("A later token came in the same frame")


def test_memory_is_bounded(blank: Page) -> None:
    """More than every ring holds, and then as much again."""
    messages = council(6, 50)
    links = peer(blank, messages)
    blank.goto("/")
    until(blank, "window.__wf.columns >= 3000")
    session = blank.context.new_cdp_session(blank)

    def used() -> float:
        session.send("HeapProfiler.collectGarbage")
        return session.send("Runtime.getHeapUsage")["usedSize"] / 1e6

    before = used()
    positions: dict[str, int] = {}
    for message in messages:
        message["frame"] += 3_000
        for one in message["events"]:
            if one["type"] == "experience.token":
                for arrived in one["payload"]["tokens"]:
                    name = one["payload"]["stream_id"]
                    positions.setdefault(name, 2_500)
                    arrived["position"] = positions[name]
                    positions[name] += 1
        links[0].send(json.dumps(message))
    until(blank, "window.__wf.columns >= 6000")
    assert positions.keys() == {stream_id(slot) for slot in range(6)}
    assert used() - before < 5
    assert blank.evaluate("document.querySelectorAll('*').length") < 8_000
