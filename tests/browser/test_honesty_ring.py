"""The table of signals and visuals in the drawing calls, part two: the ring, its conduits and bolts, the interferogram,
and what only the engine may say. Where a row is a colour of the page's style it is looked up in the page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.acts import until
from tests.browser.conftest import Address
from tests.browser.recording import ARC_FROM, ARC_SPAN, arcs, bare_page, drawn, on, points
from tests.browser.scripted import (
    FIRST_FRAME,
    energy,
    event,
    frame,
    peer,
    reading,
    spoken,
    started,
    stream_id,
    together,
    token,
)

pytestmark = pytest.mark.browser

Message = dict[str, Any]
PERIOD_PX = 15  # of the fringes


@pytest.fixture(scope="module")
def modules(browser: Browser, engine: Address) -> Iterator[Page]:
    with bare_page(browser, engine) as page:
        yield page


def one_frame(*readings: dict[str, Any], ensemble: dict[str, Any] | None = None, before: Any = ()) -> list[Message]:
    return [frame(FIRST_FRAME, *started(len(readings)), *before, energy(*readings, ensemble=ensemble))]


def two(ensemble: dict[str, Any] | None, *before: dict[str, Any]) -> list[Message]:
    return one_frame(reading(0), reading(1), ensemble=ensemble, before=before)


# ── the ring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 1.0])
def test_the_arc_is_the_energy_of_the_ensemble(modules: Page, value: float) -> None:
    found = drawn(modules, two(together(value, di=None)))
    lit = [part for colour, _, part in arcs(found) if colour == "ens"]
    assert lit == pytest.approx([value] * 2 if value else [])  # its glow and itself; no energy has no ink
    assert on(found, "scene", "text", text=f"{value:.2f}")
    for label in ("0", ".5", "1"):
        assert on(found, "scene", "text", text=label)


def test_an_energy_that_was_not_measured_is_a_dash_and_no_arc(modules: Page) -> None:
    found = drawn(modules, two(None))
    assert {colour for colour, _, _ in arcs(found)} == {"raised"}
    assert on(found, "scene", "text", text="—")


@pytest.mark.parametrize("value", [0.1, 0.8])
def test_of_one_stream_the_arc_is_its_own_energy(modules: Page, value: float) -> None:
    found = drawn(modules, one_frame(reading(0, energy=value)))
    assert [part for colour, _, part in arcs(found) if colour == "m1"] == pytest.approx([value] * 2)


def test_each_member_has_its_tick_at_its_energy(modules: Page) -> None:
    levels = [0.0, 0.3, 0.77, 1.0]
    readings = [reading(slot, energy=level) for slot, level in enumerate(levels)]
    found = drawn(modules, one_frame(*readings, reading(4, energy=None), ensemble=together()))
    ring = next(call["path"][0] for call in on(found, "scene", "stroke", stroke="raised"))
    ticks = on(found, "scene", "stroke", width=2.6)
    assert [tick["stroke"] for tick in ticks] == ["m1", "m2", "m3", "m4"]  # the fifth was not measured
    for tick, level in zip(ticks, levels, strict=True):
        for x, y in points(tick):
            angle = math.atan2(y - ring[2], x - ring[1]) % (2 * math.pi)
            assert angle == pytest.approx((ARC_FROM + ARC_SPAN * level) % (2 * math.pi))
            assert math.hypot(x - ring[1], y - ring[2]) > ring[3]


@pytest.mark.parametrize("di", [0.0, 0.4, 1.0, None])
def test_the_inner_arc_is_the_disagreement(modules: Page, di: float | None) -> None:
    found = drawn(modules, two(together(0.5, di=di)))
    violet = [(radius, part) for colour, radius, part in arcs(found) if colour == "violet"]
    outer = max(radius for _, radius, _ in arcs(found))
    assert [part for _, part in violet] == pytest.approx([] if di is None else [di])
    assert all(radius < outer for radius, _ in violet)
    assert on(found, "scene", "text", text=f"DI {'—' if di is None else f'{di:.2f}'}")


@pytest.mark.parametrize(("weights", "shares"), [((1, 1), (0.5, 0.5)), ((3, 1), (0.75, 0.25)), ((0, 2), (0, 1))])
def test_the_width_of_a_conduit_is_the_weight(modules: Page, weights: Any, shares: Any) -> None:
    told = {stream_id(slot): weight for slot, weight in enumerate(weights)}
    found = drawn(modules, two(together(weights=told)))
    conduits = [call for call in on(found, "scene", "stroke") if [step[0] for step in call["path"]] == ["M", "C"]]
    assert [call["stroke"] for call in conduits] == ["m1", "m2"]
    assert [call["width"] for call in conduits] == pytest.approx([1 + 16 * share for share in shares])


def bolts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines on the bolts' own layers, without their halos."""
    return [call for call in on(found, "made", "stroke") if call["width"] != 6]


@pytest.mark.parametrize(("p", "bits"), [(1.0, 0.0), (0.5, 1.3), (0.02, 3.2)])
def test_a_bolt_is_as_wide_as_its_token_is_likely_and_as_jagged_as_it_is_uncertain(
    modules: Page, p: float, bits: float
) -> None:
    said = spoken(0, token(0, "x", logprob=math.log(p)))
    found = drawn(modules, one_frame(reading(0, entropy_bits=bits), reading(1), ensemble=together(), before=[said]))
    (bolt,) = bolts(found)
    assert bolt["stroke"] == "m1"
    assert bolt["width"] == pytest.approx(0.7 + 1.6 * p)
    corners = points(bolt)
    (ax, ay), (bx, by) = corners[0], corners[-1]
    middle = corners[len(corners) // 2]
    off = math.hypot(middle[0] - (ax + bx) / 2, middle[1] - (ay + by) / 2)
    bend = modules.evaluate("async () => (await import('/static/shapes.js')).bend(0, 1) - 0.5")
    assert off == pytest.approx(abs(bend) * (5 + 11 * bits))
    lane = found["plot"]["lanes"][0]
    assert ay == pytest.approx(lane["y1"] - 0.5 * (lane["y1"] - lane["y0"]))  # it begins at E of its lane


def test_a_bolt_of_unknown_probability_is_hollow_and_of_unknown_entropy_straight(modules: Page) -> None:
    said = spoken(0, token(0, "x", logprob=None))
    found = drawn(modules, one_frame(reading(0, entropy_bits=None), reading(1), ensemble=together(), before=[said]))
    outside, inside = bolts(found)
    assert (outside["stroke"], outside["dash"], outside["width"]) == ("m1", [7, 4], 5)
    assert (inside["stroke"], inside["width"]) == ("rgb(1, 2, 3)", 3)  # the ground: there is nothing in it
    assert len(points(outside)) == 2


def test_a_bolt_is_gone_after_200_ms_and_fades_until_then(modules: Page) -> None:
    light = modules.evaluate(
        """async () => {
          const { Bolts } = await import("/static/core.js");
          const { discharge } = await import("/static/bolts.js");
          const ends = () => ({ from: { x: 10, y: 10 }, to: { x: 60, y: 60 } });
          const lanes = [{ y0: 0, y1: 90 }];
          const field = { plot: { x1: 10, lanes }, scale: 1 };
          const palette = { models: ["red"], dark: false, panel: "black" };
          const bolts = new Bolts();
          bolts.add([{ slot: 0, strike: { base: 1, p: 1, bits: null, position: 0 } }], 0);
          const told = [];
          for (const now of [0, 60, 120, 199, 200]) {
            const ctx = document.createElement("canvas").getContext("2d");
            bolts.expire(now);
            discharge(ctx, field, { bolts, now, palette, solo: -1 }, 70, ends);
            told.push(ctx.getImageData(35, 35, 1, 1).data[3] / 255);
          }
          return told;
        }"""
    )
    full = light[0]
    assert full > 0.8
    assert [one / full for one in light] == pytest.approx(
        [1, *(math.exp(-ms / 120) for ms in (60, 120, 199)), 0], abs=0.03
    )


# ── the interferogram ───────────────────────────────────────────────────────────────────────────────────────────────


def fringe(found: dict[str, Any]) -> list[float]:
    """The brightness of one column from top to bottom, 0 to 1, with the dimming towards its edges taken out."""
    (column,) = on(found, "made", "pixels")
    alphas = column["data"][3::4]
    rows = len(alphas)
    lights = []
    for y, alpha in enumerate(alphas):
        edge = math.sqrt(math.sin(math.pi * (y + 0.5) / rows))
        lights.append((alpha / 255 / (0.25 + 0.75 * edge) / 0.74 - 0.06) / 0.86 / edge)
    return lights[PERIOD_PX // 2 : -PERIOD_PX // 2]  # nothing can be told of the very edge


@pytest.mark.parametrize("di", [0.0, 0.08, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_the_visibility_of_the_fringes_is_the_agreement(modules: Page, di: float) -> None:
    """As optics defines it: (most − least) / (most + least)."""
    lights = fringe(drawn(modules, two(together(di=di, sync_latency_ms=0.0))))
    visibility = (max(lights) - min(lights)) / (max(lights) + min(lights))
    assert visibility == pytest.approx(min(1, max(0, (1 - di - 0.1) / 0.82)), abs=0.05)


@pytest.mark.parametrize("lag_ms", [0.0, 10.0, 25.0, 40.0])
def test_the_shift_of_the_fringes_is_the_lag(modules: Page, lag_ms: float) -> None:
    phase = lag_ms / 50 * 1.5 * math.pi
    found = drawn(modules, two(together(di=0.1, sync_latency_ms=lag_ms)))
    lights = fringe(found)
    band = found["plot"]["fringe"]
    rows = band["y1"] - band["y0"]
    expected = [
        0.5 * (1 + (0.8 / 0.82) * math.cos(2 * math.pi * (y + PERIOD_PX // 2 - rows / 2) / PERIOD_PX + phase))
        for y in range(len(lights))
    ]
    assert max(abs(a - b) for a, b in zip(lights, expected, strict=True)) < 0.06


def test_the_white_line_is_the_disagreement(modules: Page) -> None:
    values = [0.0, 0.25, 1.0, 0.6]
    frames = [energy(reading(0), reading(1), ensemble=together(di=di)) for di in values]
    opened = [frame(FIRST_FRAME, *started(2), frames[0])]
    found = drawn(modules, opened + [frame(FIRST_FRAME + n, one) for n, one in enumerate(frames[1:], start=1)])
    band = found["plot"]["fringe"]
    lines = [points(call)[1][1] for call in on(found, "history", "stroke", stroke="text", width=1.5)]
    inner = band["y1"] - band["y0"] - 4
    assert [(band["y1"] - 2 - y) / inner for y in lines] == pytest.approx(values)


def test_a_disagreement_that_was_not_measured_is_a_hatch_and_says_so(modules: Page) -> None:
    found = drawn(modules, two(together(di=None, sync_latency_ms=None)))
    assert on(found, "made", "pixels") == []  # no fringes, of whatever contrast
    assert on(found, "history", "stroke", stroke="text") == []
    assert on(found, "history", "rect", fill="muted")
    assert on(found, "scene", "text", text="DI unavailable")
    assert len(on(found, "scene", "text", text="—")) == 2  # agreement and lag


# ── what only the engine may say ────────────────────────────────────────────────────────────────────────────────────

AGREED = together(0.9, di=0.0, gain=0.4)  # as resonant as numbers can be
RESONANCE = {"strength": 0.9, "coherence": 0.9, "duration_ms": None}


def golden(found: dict[str, Any]) -> list[Any]:
    """Gold anywhere: in the ring, in the fringes, above them."""
    pixels = [call["data"][:3] for call in on(found, "made", "pixels") if call["data"][:3] == [255, 210, 120]]
    return pixels + [call for call in found["calls"] if "gold" in (call["stroke"], call["fill"])]


def test_without_the_engines_word_nothing_is_gold(modules: Page) -> None:
    seen = golden(drawn(modules, two(AGREED)))
    assert [call for call in seen if call["kind"] != "text"] == []


def test_a_resonance_lasts_from_the_engines_start_to_its_end(modules: Page) -> None:
    """Whatever the numbers are meanwhile."""
    start = event("council.resonance", phase="start", **RESONANCE)
    end = event("council.resonance", phase="end", **RESONANCE | {"duration_ms": 1_300})
    quiet = energy(reading(0), reading(1), ensemble=together(0.1, di=0.9))
    frames = [[quiet]] * 5 + [[start, quiet]] + [[quiet]] * 7 + [[end, quiet]] + [[quiet]] * 6
    frames[0] = [*started(2), *frames[0]]
    messages = [frame(FIRST_FRAME + n, *events) for n, events in enumerate(frames)]
    found = drawn(modules, messages)
    bars = [call["at"][0] for call in on(found, "history", "rect", fill="gold")]
    assert len(bars) == 8  # frames from the start to the one before the end
    assert on(found, "scene", "text", text="resonance 1.3 s", fill="gold")
    assert [colour for colour, _, _ in arcs(found) if colour == "gold"] == []  # it is over
    during = drawn(modules, messages[:10])
    assert [colour for colour, _, _ in arcs(during) if colour == "gold"]


def test_an_interference_is_the_engines_cue_alone(page: Page) -> None:
    told = page.evaluate(
        """async messages => {
          const { Store } = await import("/static/store.js");
          const { cue } = await import("/static/ensemble.js");
          const store = new Store();
          return messages.map(message => { store.ingest(message, 0); return cue(store.newest()).text; });
        }""",
        [
            *two(together(0.1, di=0.95)),  # further apart than any threshold
            frame(FIRST_FRAME + 1, event("council.interference", pattern="destructive", intensity=0.1, coherence=0.9)),
            frame(FIRST_FRAME + 2, energy(reading(0), reading(1), ensemble=AGREED)),  # numbers do not take it back
            frame(FIRST_FRAME + 3, event("council.interference", pattern="constructive", intensity=0, coherence=0)),
        ],
    )
    assert told == ["", "INTERFERENCE", "INTERFERENCE", "CONSTRUCTIVE"]


# ── colours of the style ────────────────────────────────────────────────────────────────────────────────────────────


def channels(colour: str) -> list[float]:
    """r, g, b, alpha in 0 to 1, however the browser writes a mixed colour."""
    numbers = [float(number) for number in re.findall(r"[\d.]+(?:e-?\d+)?", colour)]
    full = 1.0 if colour.startswith("color(") else 255.0
    return [value / full for value in numbers[:3]] + numbers[3:4]


def test_the_tint_of_a_pair_is_linear_in_its_agreement(blank: Page) -> None:
    values = [0.0, 0.5, 1.0]
    pairs = [
        {"a": stream_id(a), "b": stream_id(b), "agreement": value}
        for (a, b), value in zip([(0, 1), (0, 2), (1, 2)], values, strict=True)
    ]
    readings = [reading(slot, tokens=1) for slot in range(3)]
    window = event("council.ensemble", energy=0.5, di=0.5, agreement=pairs)
    peer(blank, [frame(FIRST_FRAME, *started(3), window, energy(*readings, ensemble=together()))])
    blank.goto("/")
    cells = blank.locator('#ensemble [style*="--agreement"]')
    expect(cells.first).to_be_visible()
    seen: dict[float, list[float]] = {}
    for cell in cells.all():
        told = float(cell.evaluate("cell => cell.style.getPropertyValue('--agreement')"))
        seen[told] = channels(cell.evaluate("cell => getComputedStyle(cell).backgroundColor"))
    assert sorted(seen) == values
    halves = [(low + high) / 2 for low, high in zip(seen[0.0], seen[1.0], strict=True)]
    assert seen[0.5] == pytest.approx(halves, abs=0.02)
    assert seen[0.0] != seen[1.0]


def test_the_heat_behind_a_word_is_linear_up_to_4_2_nat(blank: Page) -> None:
    """Eight steps of the same width, each stronger than the one before; the last takes all that is beyond."""
    surprises = [4.2 * (step + part) / 8 for step in range(8) for part in (0.05, 0.95)] + [9.0]
    words = [token(n, f"w{n:02d} ", logprob=-nat) for n, nat in enumerate(surprises)]
    messages = one_frame(reading(0, tokens=len(words)), reading(1), ensemble=together(), before=[spoken(0, *words)])
    peer(blank, messages)
    blank.goto("/#/stream?evidence=1&tok=2:0")  # else the newest word of this lane would carry the mark of the picked
    word = "range => range.startContainer.data.slice(range.startOffset, range.endOffset).trim()"
    expected = [f"w{2 * step:02d} w{2 * step + 1:02d}" for step in range(8)]
    expected[7] += " w16"
    steps = f"[...Array(8).keys()].map(n => [...(CSS.highlights.get(`heat-${{n}}`) ?? [])].map({word}).join(' '))"
    until(blank, f"JSON.stringify({steps}) === {json.dumps(json.dumps(expected, separators=(',', ':')))}")
    style = "n => getComputedStyle(document.querySelector('.lane .text'), `::highlight(heat-${n})`).backgroundColor"
    alphas = [(channels(blank.evaluate(style, step))[3:] or [0.0])[0] for step in range(8)]
    assert alphas == sorted(alphas)
    assert len(set(alphas)) == 8
