"""What the page promises whatever an engine says: Evidence equals the wire, hostile text stays text, less motion means
fewer pictures, colours can be told apart. tests/browser/README.md says which test is for what."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, Final

import pytest
from playwright.sync_api import Error, Page, expect

from tests.browser.acts import ended, run, turns, until
from tests.browser.conftest import Watch
from tests.browser.scripted import (
    FIRST_FRAME,
    FRAME_MS,
    SESSION,
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

pytestmark = pytest.mark.browser

Message = dict[str, Any]


# ── evidence ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_picked_token_is_the_one_that_came_over_the_wire(page: Page, watch: Watch) -> None:
    session = run(page, "synthetic/steady", max_tokens=25)
    ended(page)
    wire = {
        one["position"]: (one, message["frame"])
        for message in watch.frames
        for event in message["events"]
        if event["type"] == "experience.token" and event["session_id"] == session
        for one in event["payload"]["tokens"]
    }
    page.click("#evidence-toggle")
    formula, shown = page.locator("#evidence-formula"), page.locator("#evidence-token")
    expect(shown).to_contain_text("Token 24:")
    checked = 0
    for position in range(23, 13, -1):
        page.keyboard.press("ArrowLeft")
        expect(shown).to_contain_text(f"Token {position}:")
        told, number = wire[position]
        values = page.locator("#evidence-values")
        expect(values).to_contain_text(f"{told['t_us'] / 1e6:.6f} s")
        if told["delta_ms"] is not None:
            expect(values).to_contain_text(f"{told['delta_ms']:.3f} ms")
        expect(values).to_contain_text(f"{told['logprob']:.4f} · {math.exp(told['logprob']):.4f}")
        expect(values).to_contain_text(f"frame {number}")
        expect(page.locator("#alternatives .word").first).to_have_text(told["top"][0]["token"])
        words = formula.text_content() or ""
        if "later token came in the same frame" not in words:
            assert f"engine {told['energy_base']:.4f} ✓" in words
            assert "differs" not in words
            checked += 1
    assert checked > 0


# ── hostile words ───────────────────────────────────────────────────────────────────────────────────────────────────

PAYLOADS: Final = {
    "an image": '<img src=x onerror="window.pwned=1">',
    "an end of script": "</script><script>window.pwned=1</script>",
    "an escape sequence": "\x1b]0;pwned\x07\x1b[2J",
    "an override": "\u202egnp.exe\u202c",
    "half a character": "\ud83d and \udca9",
    "ten thousand letters": "y" * 10_000,
    "a template": "${window.pwned=1} {{constructor.constructor('window.pwned=1')()}}",
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_hostile_words_are_shown_as_they_are(blank: Page, payload: str) -> None:
    """In the text, in the model's name, in the alternatives, in a reason."""
    top = [{"token": payload, "logprob": -0.1}]
    name = payload[:200]
    streams = [{"stream_id": stream_id(slot), "model": name, "session_id": SESSION} for slot in range(2)]
    said = spoken(0, token(0, payload, top=top)) | {}
    said["payload"]["model"] = name
    readings = [reading(slot, model=name, tokens=1 - slot) for slot in range(2)]
    opened = started(2, streams=streams)[1:]
    peer(blank, [frame(FIRST_FRAME, *opened, said, energy(*readings, ensemble=together(reason=payload)))])
    blank.goto("/#/stream?evidence=1")
    visible = "async text => (await import('/static/text.js')).visible(JSON.parse(text))"
    shown = blank.evaluate(visible, json.dumps(payload))
    expect(blank.locator(".lane .model-name").first).not_to_have_text("No session")
    until(blank, f"document.querySelector('.lane .text').textContent === {json.dumps(shown)}")
    assert blank.locator("main img, main script, aside img, aside script").count() == 0
    assert blank.evaluate("window.pwned") is None
    codes = blank.evaluate("[...document.querySelector('.lane .text').textContent].map(c => c.codePointAt(0))")
    acting = {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0xD800, 0xE000)} - {9, 10}
    assert acting.isdisjoint(codes)


def test_markup_cannot_be_put_in_from_a_string(blank: Page, watch: Watch) -> None:
    """Trusted Types: not even a mistake of ours would do it."""
    peer(blank)
    blank.goto("/")
    for attempt in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
    ):
        with pytest.raises(Error, match="TrustedHTML"):
            blank.evaluate(attempt)
    blank.goto("about:blank")  # the page counts the attempts as faults of its own, as it should
    watch.faults = [fault for fault in watch.faults if "TrustedHTML" not in fault]


# ── states ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_backpressure_is_told(blank: Page) -> None:
    last = frame(FIRST_FRAME + 1, energy(reading(0, tokens=1), reading(1), ensemble=together()))
    last["perf"] |= {"merged": 7, "degrade": 2}
    peer(blank, [frame(FIRST_FRAME, *started(2), energy(reading(0), reading(1), ensemble=together())), last])
    blank.goto("/")
    expect(blank.locator("#merged")).to_have_text("7")
    expect(blank.locator("#degraded")).to_contain_text("engine degraded, level 2")
    expect(blank.locator("#link-dot")).to_have_class("dot strained")


def test_what_does_not_change_is_not_drawn(blank: Page) -> None:
    """No animation without data: sixty animation frames later nothing was painted."""
    links = peer(blank, council(2, 1))
    blank.goto("/")
    until(blank, "window.__wf.columns === 60")
    expect(blank.locator("#gateway-card dd")).to_have_count(4)  # all cards are there: no size changes any more
    expect(blank.locator("#pool-card tbody tr").first).to_be_visible()
    turns(blank, 60)  # the last bolts are gone
    before = blank.evaluate("window.__wf.framesDrawn")
    turns(blank, 60)
    assert blank.evaluate("window.__wf.framesDrawn") == before
    assert len(links) == 1


# ── motion and colours ──────────────────────────────────────────────────────────────────────────────────────────────

STEPPED: Final = """async ([messages, reducedMotion]) => {
  const { Store } = await import("/static/store.js");
  const { Picture } = await import("/static/picture.js");
  const { Theme } = await import("/static/theme.js");
  const theme = { palette: new Theme(() => {}).palette, reducedMotion };
  const picture = new Picture(theme, { position: null, solo: -1, picked: null });
  const store = new Store();
  messages.slice(0, 2).forEach(message => store.ingest(message, 0));
  picture.show(store.newest());
  picture.tick(0, 0);
  const before = picture.framesDrawn;
  messages.slice(2).forEach((message, n) => { store.ingest(message, 0); picture.tick((n + 1) * 1000 / 60, 0); });
  return { drawn: picture.framesDrawn - before, thrown: picture.bolts.thrown, strikes: picture.field.strikes };
}"""


def test_with_reduced_motion_the_field_steps_four_times_a_second(blank: Page) -> None:
    """In the page's own time: 240 frames of the engine, 240 animation frames."""
    peer(blank)
    blank.goto("/")
    expect(blank.locator("#field")).to_be_visible()
    messages = council(2, 4)
    still = blank.evaluate(STEPPED, [messages, True])
    assert still["drawn"] <= 4 * len(messages) * FRAME_MS / 1000 + 1
    assert still["thrown"] == sum(still["strikes"]) == 0
    moving = blank.evaluate(STEPPED, [messages, False])
    assert moving["drawn"] == len(messages) - 2
    assert moving["thrown"] == sum(moving["strikes"]) > 0


def test_with_forced_colours_the_field_is_in_the_systems_colours(blank: Page) -> None:
    blank.emulate_media(forced_colors="active", reduced_motion="reduce")
    peer(blank, council(3, 2))
    blank.goto("/")
    until(blank, "window.__wf.columns === 120")
    colours = blank.evaluate(
        """async () => {
          const { Theme } = await import("/static/theme.js");
          const { text, panel, muted, models } = new Theme(() => {}).palette;
          const probe = document.body.appendChild(document.createElement("i"));
          const system = name => { probe.style.color = name; return getComputedStyle(probe).color; };
          return { found: [text, muted, panel], wanted: ["CanvasText", "CanvasText", "Canvas"].map(system), models };
        }"""
    )
    assert colours["found"] == colours["wanted"]
    assert blank.evaluate("window.__wf.bolts") == 0
    assert sum(blank.evaluate("window.__wf.strikesByStream")) == 0
    assert (
        blank.locator(".lane .glyph, .lane svg").count() >= 3
    )  # six colours have become two: the signs tell them apart


# Machado, Oliveira, Fernandes 2009: what the three kinds of dichromats see, on linear RGB.
VISIONS: Final = {
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": (
        (0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998),
    ),
    "deutan": (
        (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881),
    ),
    "tritan": (
        (1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900),
    ),
}  # fmt: skip
XYZ: Final = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
WHITE: Final = (0.95047, 1.0, 1.08883)
DELTA_E_MIN: Final = 15.0


def times(matrix: Any, vector: Any) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def lab(rgb: list[float], vision: str) -> list[float]:
    """CIE L*a*b* (D65) of an sRGB colour, 0 to 255, as somebody with that vision sees it."""
    linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
    seen = [min(1.0, max(0.0, v)) for v in times(VISIONS[vision], linear)]
    x, y, z = (
        t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116
        for t in (v / w for v, w in zip(times(XYZ, seen), WHITE, strict=True))
    )
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_six_models_can_be_told_apart_by_every_eye(blank: Page, theme: str) -> None:
    peer(blank)
    blank.goto("/")
    colours = blank.evaluate(
        """theme => {
          document.documentElement.dataset.theme = theme;
          const probe = document.body.appendChild(document.createElement("i"));
          return ["m1", "m2", "m3", "m4", "m5", "m6"].map(name => {
            probe.style.color = `var(--${name})`;
            return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
          });
        }""",
        theme,
    )
    apart = {
        (vision, a + 1, b + 1): math.dist(lab(colours[a], vision), lab(colours[b], vision))
        for vision in VISIONS
        for a, b in itertools.combinations(range(6), 2)
    }
    assert {pair: distance for pair, distance in apart.items() if distance < DELTA_E_MIN} == {}


# ── what a screen reader finds ──────────────────────────────────────────────────────────────────────────────────────


def test_the_page_has_its_landmarks_and_each_answer_is_an_article(blank: Page) -> None:
    peer(blank, council(2, 2))
    blank.goto("/")
    expect(blank.locator(".lane")).to_have_count(2)
    expect(blank.locator("body")).to_match_aria_snapshot(
        """
        - banner:
          - heading "WF Engine" [level=1]
        - navigation:
          - link "Stream"
          - link "Pool"
        - main:
          - region "Stream":
            - heading [level=2]
            - article "llama3.1:8b":
              - heading "llama3.1:8b" [level=3]
              - region "Answer 1":
                - log "Streamed text"
            - article "mistral:7b":
              - heading "mistral:7b" [level=3]
            - textbox "Prompt"
            - button /Stop/
            - button /Run/
        - contentinfo "Status"
        """
    )
    for answer in blank.locator(".lane .text").all():
        expect(answer).to_have_attribute("role", "log")
        expect(answer).to_have_attribute("aria-live", "off")
