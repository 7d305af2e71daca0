"""Several streams side by side: each visible property is one measured signal, and what is missing has no ink."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, Route, WebSocketRoute, expect

from tests.browser.acts import turns, until
from tests.browser.conftest import Watch
from tests.browser.scripted import (
    FIRST_FRAME,
    NAMES,
    SESSION,
    council,
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


def shown(page: Page, messages: list[Message], where: str = "") -> list[WebSocketRoute]:
    """Opens the page on a peer that has said all this, and waits until it is painted. Returns the page's links."""
    links = peer(page, messages)
    page.goto(f"/{where}")
    expect(page.locator("#meta")).to_contain_text(SESSION[:8])
    updates = sum(one["type"] == "energy.update" for message in messages for one in message["events"])
    until(page, f"window.__wf.columns >= {updates}")
    return links


def measured(page: Page, name: str) -> Any:
    return page.evaluate("name => window.__wf[name]", name)


def pixels(page: Page, box: tuple[float, float, float, float], test: str) -> int:
    """How many device pixels of the field, in CSS px x, y, width and height, satisfy `test` of r, g, b, a."""
    return page.evaluate(
        f"""([x, y, w, h]) => {{
          const canvas = document.querySelector("#field");
          const k = canvas.width / canvas.clientWidth;
          const aside = new OffscreenCanvas(canvas.width, canvas.height);
          const copy = aside.getContext("2d", {{ willReadFrequently: true }});
          copy.drawImage(canvas, 0, 0);
          const {{ data }} = copy.getImageData(x * k, y * k, Math.max(1, w * k), Math.max(1, h * k));
          let found = 0;
          for (let i = 0; i < data.length; i += 4) {{
            const [r, g, b, a] = data.slice(i, i + 4);
            if ({test}) found += 1;
          }}
          return found;
        }}""",
        list(box),
    )


def plot(page: Page, streams: int) -> dict[str, Any]:
    return page.evaluate(
        """async streams => {
          const { layout } = await import("/static/layout.js");
          const { clientWidth, clientHeight } = document.querySelector("#field");
          return layout(clientWidth, clientHeight, streams);
        }""",
        streams,
    )


# ── one row of the table of signals each ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_every_stream_has_its_lane_and_every_token_its_strike(blank: Page, count: int) -> None:
    messages = council(count, 4)
    shown(blank, messages)
    spoken_tokens = [0] * count
    for message in messages:
        for one in message["events"]:
            if one["type"] == "experience.token":
                spoken_tokens[int(one["payload"]["stream_id"][-1])] += len(one["payload"]["tokens"])
    assert measured(blank, "strikesByStream") == spoken_tokens
    assert measured(blank, "tokens") == sum(spoken_tokens)
    expect(blank.locator(".lane")).to_have_count(count)
    expect(blank.locator(".lane .model-name")).to_have_text(list(NAMES[:count]))


def test_the_numbers_of_the_ensemble_are_the_last_frames(blank: Page) -> None:
    messages = council(4, 5)
    shown(blank, messages)
    payload = messages[-1]["events"][-1]["payload"]
    ensemble = payload["ensemble"]
    expect(blank.locator("#n-ensemble")).to_have_text(f"{ensemble['energy']:.2f}")
    expect(blank.locator("#n-di")).to_have_text(f"{ensemble['di']:.2f}")
    expect(blank.locator("#n-lag")).to_have_text(f"{ensemble['sync_latency_ms']:.0f}")
    gain = f"{ensemble['gain']:+.3f}".replace("-", "−")
    expect(blank.locator("#n-gain")).to_have_text(gain)
    for slot, stream in enumerate(payload["streams"]):
        row = blank.locator("#members-rows tr").nth(slot)
        expect(row.locator("td").nth(1)).to_have_text(f"{stream['energy']:.2f}")
        expect(row.locator("td").nth(2)).to_have_text(str(stream["tokens"]))
        expect(row.locator("td").nth(3)).to_have_text(f"{ensemble['weights'][stream_id(slot)]:.2f}")
    parts = blank.eval_on_selector_all("#stack i", "bars => bars.map(bar => parseFloat(bar.style.width))")
    assert sum(parts) / 100 == pytest.approx(ensemble["energy"], abs=0.005)  # the parts are the whole


def alone_then(count: int, *, stalled: int) -> list[Message]:
    """Two streams with one token each; then the first is past its stall line for `stalled` frames."""
    both = [spoken(slot, token(0, "a")) for slot in (0, 1)]
    readings = [reading(slot, tokens=1) for slot in (0, 1)]
    frames = [frame(FIRST_FRAME, *started(2), *both, energy(*readings, ensemble=together()))]
    for n in range(1, count):
        first = reading(0, tokens=1, stall=n > count - 1 - stalled, silence_ms=n * 1000 / 60)
        frames.append(frame(FIRST_FRAME + n, energy(first, readings[1], ensemble=together())))
    return frames


@pytest.mark.parametrize("stalled", [0, 20, 75])
def test_the_hatch_is_as_wide_as_the_stall(blank: Page, stalled: int) -> None:
    shown(blank, alone_then(200, stalled=stalled))
    assert measured(blank, "hatchedByStream") == [stalled, 0]
    place = plot(blank, 2)
    lane = place["lanes"][0]
    reddish = "a > 60 && r > 110 && r > b * 1.25 && r > g * 1.4"
    tall = lane["y1"] - lane["y0"] - 16  # below the label
    hatch = (place["x1"] - stalled + 2, lane["y0"] + 12, max(1, stalled - 8), tall)
    before = (place["x1"] - stalled - 60, lane["y0"] + 12, 50, tall)
    assert (pixels(blank, hatch, reddish) > 0) is (stalled > 0)
    assert pixels(blank, before, reddish) == 0
    expect(blank.locator(".lane .stall-note").first).to_have_text(re.compile(r"silence \d+ ms") if stalled else "")


def test_without_di_there_are_no_fringes_and_a_dash(blank: Page) -> None:
    unknown = together(di=None, di_method="none", mixture_uncertainty=None, sync_latency_ms=None)
    frames = [frame(FIRST_FRAME, *started(2), energy(reading(0, tokens=1), reading(1, tokens=1), ensemble=unknown))]
    for n in range(1, 120):
        readings = (reading(0, tokens=1), reading(1, tokens=1))
        frames.append(frame(FIRST_FRAME + n, energy(*readings, ensemble=unknown)))
    shown(blank, frames)
    expect(blank.locator("#n-di")).to_have_text("—")
    expect(blank.locator("#n-lag")).to_have_text("—")
    expect(blank.locator("#di-why")).to_contain_text("needs log-probabilities")
    place = plot(blank, 2)
    band = (place["x1"] - 60, place["fringe"]["y0"], 50, place["fringe"]["y1"] - place["fringe"]["y0"])
    assert pixels(blank, band, "a > 30 && b > r + 30 && b > g + 30") == 0  # no violet
    expect(blank.locator("#cue")).to_be_hidden()


def fringes(di: float, *cues: dict[str, Any]) -> list[Message]:
    readings = (reading(0, tokens=1), reading(1, tokens=1))
    first = frame(FIRST_FRAME, *started(2), *cues, energy(*readings, ensemble=together(di=di, sync_latency_ms=0.0)))
    rest = (frame(FIRST_FRAME + n, energy(*readings, ensemble=together(di=di))) for n in range(1, 100))
    return [first, *rest]


def test_fringe_contrast_is_the_agreement(blank: Page) -> None:
    contrasts = blank_contrast(blank, [0.0, 0.08, 0.3, 0.5, 0.9, 1.0])
    assert contrasts == pytest.approx([1, 1, 0.6 / 0.82, 0.4 / 0.82, 0, 0], abs=1e-9)


def blank_contrast(page: Page, values: list[float]) -> list[float]:
    page.goto("/")
    return page.evaluate(
        """async values => {
          const { contrast } = await import("/static/fringe.js");
          return values.map(contrast);
        }""",
        values,
    )


GOLD = "a > 40 && r > b * 1.5 && g > b * 1.2 && r > 90"


def test_gold_is_the_engines_cue_and_never_the_pages_conclusion(blank: Page) -> None:
    shown(blank, fringes(0.01))  # as much agreement as there can be, and no cue
    place = plot(blank, 2)
    band = (place["x1"] - 60, place["fringe"]["y0"] + 2, 50, place["fringe"]["y1"] - place["fringe"]["y0"] - 4)
    assert pixels(blank, band, GOLD) == 0
    assert pixels(blank, band, "a > 30 && b > g") > 100
    expect(blank.locator("#cue")).to_be_hidden()


def test_a_resonance_that_this_tier_does_not_show_is_not_shown(blank: Page) -> None:
    start = event("council.resonance", phase="start", strength=0.9, coherence=0.9, duration_ms=None, celebrate=False)
    shown(blank, fringes(0.01, start))
    expect(blank.locator("#cue")).to_be_hidden()


def test_a_resonance_is_gold_from_its_start_to_its_end(blank: Page) -> None:
    start = event("council.resonance", phase="start", strength=0.9, coherence=0.9, duration_ms=None)
    shown(blank, fringes(0.9, start))  # whatever DI is: the cue is the engine's
    place = plot(blank, 2)
    band = (place["x1"] - 60, place["fringe"]["y0"] + 2, 50, place["fringe"]["y1"] - place["fringe"]["y0"] - 4)
    assert pixels(blank, band, GOLD) > 100
    expect(blank.locator("#cue")).to_have_text(re.compile(r"RESONANCE \d+\.\d s"))


@pytest.mark.parametrize(
    ("pattern", "words"), [("destructive", "INTERFERENCE"), ("constructive", "CONSTRUCTIVE"), ("neutral", "NEUTRAL")]
)
def test_the_cue_is_the_engines_pattern(blank: Page, pattern: str, words: str) -> None:
    cue = event("council.interference", pattern=pattern, intensity=0.4, coherence=0.7, correlation=None)
    shown(blank, fringes(0.3, cue))
    expect(blank.locator("#cue")).to_have_text(words)


def test_agreement_of_each_two_is_what_the_engine_measured(blank: Page) -> None:
    pairs = [{"a": stream_id(0), "b": stream_id(1), "agreement": 0.874}]
    shown(blank, fringes(0.3, event("council.ensemble", energy=0.5, di=0.3, agreement=pairs)))
    expect(blank.locator(".pair")).to_have_text(["0.87"])


def test_missed_frames_are_blank_columns_in_every_lane(blank: Page) -> None:
    messages = council(2, 3)
    links = shown(blank, messages[:60])  # painted: else the page might believe itself in the background
    for message in messages[90:]:
        links[0].send(json.dumps(message))
    until(blank, "window.__wf.columns === 180")  # time is not closed up
    assert measured(blank, "gaps") == 30
    place = plot(blank, 2)
    for lane in place["lanes"]:
        missing = (place["x1"] - 118, lane["y0"], 26, lane["y1"] - lane["y0"] - 2)
        assert pixels(blank, missing, "a > 60 && Math.max(r, g, b) > 90") == 0


# ── a council's life ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_member_that_drops_out_says_why_and_the_others_go_on(blank: Page) -> None:
    broken = {"code": "UPSTREAM_TRUNCATED", "message": "the runtime broke off", "retryable": True, "details": {}}
    left = event("council.model_error", stream_id=stream_id(1), model=NAMES[1], reason="error", error=broken)
    readings = [reading(slot, tokens=1) for slot in range(3)]
    first = frame(FIRST_FRAME, *started(3), energy(*readings, ensemble=together()))
    shown(blank, [first, frame(FIRST_FRAME + 1, left, energy(readings[0], readings[2], ensemble=together()))])
    lane = blank.locator(".lane").nth(1)
    expect(lane.locator(".error")).to_contain_text("the runtime broke off · continuing with 2")
    expect(lane.locator(".state")).to_have_text("LEFT")
    expect(blank.locator("#members-rows tr").nth(1).locator("td").first).to_have_text("left")
    expect(blank.locator(".lane").first.locator(".error")).to_be_hidden()


def test_the_chosen_answer_is_marked_when_the_engine_chose(blank: Page) -> None:
    readings = [reading(slot, tokens=1) for slot in range(2)]
    end = {"reason": "finished", "error": None, "totals": {"tokens": 2}, "ttft_ms": 9.0, "duration_ms": 2000.0}
    rest = event("experience.session_end", **end, stop_latency_ms=None, summary={})
    why = {"confidence": 0.82, "reason": "it agrees most with the others", "report": {}}
    chosen = event("council.synthesis", method="consensus", stream_id=stream_id(1), model=NAMES[1], **why)
    first = frame(FIRST_FRAME, *started(2), energy(*readings, ensemble=together()))
    shown(blank, [first, frame(FIRST_FRAME + 1, energy(*readings, ensemble=together()), rest, chosen)])
    expect(blank.locator("#council-notes")).to_contain_text(
        f"Chosen: {NAMES[1]}, by consensus, confidence 0.82: it agrees most"
    )
    expect(blank.locator(".lane .chosen")).to_have_count(2)
    expect(blank.locator(".lane .chosen").nth(1)).to_be_visible()
    expect(blank.locator(".lane .chosen").first).to_be_hidden()


def test_one_lane_alone_and_all_again(blank: Page) -> None:
    shown(blank, council(3, 2))
    blank.locator("body").press("2")
    expect(blank.locator(".lane").nth(1)).to_be_visible()
    expect(blank.locator(".lane").first).to_be_hidden()
    expect(blank.locator("#measured")).to_be_visible()
    blank.locator("body").press("0")
    expect(blank.locator(".lane").first).to_be_visible()
    blank.get_by_role("button", name=f"Solo {NAMES[2]}").click()
    expect(blank.locator(".lane").nth(1)).to_be_hidden()
    expect(blank.locator(".lane").nth(2)).to_be_visible()


def test_hostile_names_and_text_are_only_text_in_every_lane(blank: Page) -> None:
    evil = '<img src=x onerror="window.pwned=1">'
    streams = [{"stream_id": stream_id(slot), "model": f"{evil}{slot}", "session_id": SESSION} for slot in range(2)]
    readings = [reading(slot, model=f"{evil}{slot}", tokens=1) for slot in range(2)]
    words = [spoken(slot, token(0, evil)) for slot in range(2)]
    error = event("council.model_error", stream_id=stream_id(1), model=f"{evil}1", error={"code": "X", "message": evil})
    opened = started(2, streams=streams)[1:]
    shown(blank, [frame(FIRST_FRAME, *opened, *words, error, energy(*readings, ensemble=together()))])
    expect(blank.locator(".lane .text").first).to_have_text(evil)
    expect(blank.locator(".lane .error span").nth(1)).to_contain_text(evil)
    expect(blank.locator("#members-rows th").first).to_contain_text(evil)
    assert blank.locator("main img, aside img").count() == 0
    assert blank.evaluate("window.pwned") is None


# ── asking a council ────────────────────────────────────────────────────────────────────────────────────────────────


def limited(page: Page, tier: str, models: int, *, turbo: bool) -> None:
    """The engine's tier is another."""

    def bootstrap(route: Route) -> None:
        body = route.fetch().json()
        limits = body["limits"] | {"council_models_max": models, "turbo_models_max": models if turbo else 0}
        route.fulfill(json=body | {"tier": tier, "limits": limits})

    def description(route: Route) -> None:
        body = route.fetch().json()
        mode = body["components"]["schemas"]["generate.request"]["properties"]["mode"]
        mode["enum"] = ["single", "council", "turbo"]
        route.fulfill(json=body)

    page.route("**/api/bootstrap", bootstrap)
    page.route("**/openapi.json", description)


def test_the_tier_cap_explains_itself(blank: Page) -> None:
    limited(blank, "low", 2, turbo=False)
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")  # it knows the models too
    blank.locator("#modes").get_by_text("Council").click()
    expect(blank.locator("#mode-turbo")).to_be_disabled()
    expect(blank.locator("#modes label", has_text="Turbo")).to_have_attribute("title", re.compile("low has no turbo"))
    blank.locator("#picker summary").click()
    expect(blank.locator("#picker-cap")).to_have_text("Tier low lets at most 2 models work at once.")
    boxes = blank.locator("#picker-list input")
    for box in boxes.all():
        if box.is_checked():
            box.uncheck()
    boxes.nth(0).check()
    boxes.nth(1).check()
    expect(boxes.nth(2)).to_be_disabled()
    expect(blank.locator("#picker-full")).to_contain_text("uncheck one")
    expect(blank.locator("#picker-count")).to_have_text("2 of 2")
    boxes.nth(0).uncheck()
    expect(boxes.nth(2)).to_be_enabled()


def test_a_council_is_asked_with_its_members(blank: Page, watch: Watch) -> None:
    asked: list[Any] = []

    def answer(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or ""))
        dropped = asked[-1]["models"][2:]
        route.fulfill(status=202, json={"session_id": "s", "models": [], "dropped_models": dropped})

    limited(blank, "mid", 4, turbo=True)
    blank.route("**/generate", answer)
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    blank.locator("#modes").get_by_text("Turbo").click()
    blank.locator("#picker summary").click()
    for box in blank.locator("#picker-list input").all():
        box.set_checked(box.get_attribute("value") in {"synthetic/steady", "embedded/lexicon", "embedded/hacker"})
    blank.fill("#prompt", "What is a river?")
    blank.press("#prompt", "Control+Enter")
    expect(blank.locator("#note")).to_contain_text("The tier leaves out ")
    assert asked[0]["mode"] == "turbo"
    assert set(asked[0]["models"]) == {"synthetic/steady", "embedded/lexicon", "embedded/hacker"}
    assert "model" not in asked[0]


def test_a_list_of_models_that_comes_again_leaves_the_choice_and_the_focus(blank: Page) -> None:
    """The page asks for it every few seconds, also while somebody picks."""
    limited(blank, "mid", 4, turbo=True)
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    blank.locator("#modes").get_by_text("Council").click()
    blank.locator("#picker summary").click()
    boxes = blank.locator("#picker-list input")
    for box in boxes.all():
        box.uncheck()
    boxes.nth(1).focus()
    with blank.expect_response("**/models"):
        pass
    turns(blank, 6)
    expect(blank.locator("#picker-list input:checked")).to_have_count(0)
    expect(boxes.nth(1)).to_be_focused()


def test_a_council_of_one_is_refused_here(blank: Page) -> None:
    limited(blank, "mid", 4, turbo=True)
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    blank.locator("#modes").get_by_text("Council").click()
    blank.locator("#picker summary").click()
    for box in blank.locator("#picker-list input").all():
        box.set_checked(box.get_attribute("value") == "embedded/lexicon")
    blank.fill("#prompt", "What is a river?")
    blank.press("#prompt", "Control+Enter")
    expect(blank.locator("#refusal")).to_contain_text("A council needs at least 2 models")


def test_an_engine_without_councils_shows_no_mode(blank: Page) -> None:
    def description(route: Route) -> None:
        body = route.fetch().json()
        mode = body["components"]["schemas"]["generate.request"]["properties"]["mode"]
        mode.pop("enum", None)
        route.fulfill(json=body)

    blank.route("**/openapi.json", description)
    with blank.expect_response("**/openapi.json"):
        blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    expect(blank.locator("#modes")).to_be_hidden()
