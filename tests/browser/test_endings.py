"""How a session ends is seen where it was read: in its lanes, in a line below them, and in what can be asked again."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.acts import ask, ended, run, turns, wait_for
from tests.browser.conftest import Watch
from tests.browser.scripted import (
    FIRST_FRAME,
    NAMES,
    SESSION,
    energy,
    event,
    frame,
    peer,
    reading,
    started,
    stream_id,
    together,
)

pytestmark = pytest.mark.browser

Event = dict[str, Any]


def member(slot: int, agreement: float | None, state: str = "finished") -> dict[str, Any]:
    about = {"model": NAMES[slot], "stream_id": stream_id(slot), "state": state, "tokens": 1, "certainty": None}
    return about | {"agreement": agreement}


def synthesis(slot: int | None, members: list[dict[str, Any]], **values: Any) -> Event:
    model = None if slot is None else NAMES[slot]
    chosen = {"stream_id": None if slot is None else stream_id(slot), "model": model, "method": "consensus"}
    usual = {"confidence": 0.41, "reason": "it agrees most with the others"}
    report = {"members": members, "dissent": [], "dropped": values.pop("dropped", [])}
    return event("council.synthesis", **chosen | usual | values, report=report)


def over(**values: Any) -> Event:
    usual = {"reason": "finished", "error": None, "totals": {"tokens": 3}, "ttft_ms": 9.0, "duration_ms": 2000.0}
    return event("experience.session_end", **usual | {"stop_latency_ms": None, "summary": {}} | values)


def told(page: Page, count: int, *events: Event) -> None:
    """A council of `count` with a token each, and then these events."""
    readings = [reading(slot, tokens=1) for slot in range(count)]
    first = frame(FIRST_FRAME, *started(count), energy(*readings, ensemble=together()))
    peer(page, [first, frame(FIRST_FRAME + 1, energy(*readings, ensemble=together()), *events)])
    page.goto("/")
    expect(page.locator(".lane")).to_have_count(count)


# ── a council ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "confidence", "words"),
    [
        ("consensus", 0.41, "chosen: consensus, agreement 0.41"),
        ("best_certainty", 0.873, "chosen: best_certainty, certainty 0.87"),
        ("first", None, "chosen: first"),
        ("judge", None, "chosen: judge"),
    ],
)
def test_the_chosen_lane_says_how_it_was_chosen(blank: Page, method: str, confidence: float | None, words: str) -> None:
    members = [member(0, 0.41), member(1, 0.33), member(2, None)]
    told(blank, 3, over(), synthesis(0, members, method=method, confidence=confidence, reason="because"))
    notes = blank.locator(".lane .ending-note")
    expect(notes.nth(0)).to_have_text(words)
    expect(notes.nth(0)).to_have_attribute("title", "because")
    expect(notes.nth(1)).to_have_text("not chosen, agreement 0.33")
    expect(notes.nth(2)).to_have_text("not chosen")  # not compared: no number


def test_before_the_last_word_no_lane_speaks_of_an_end(blank: Page) -> None:
    told(blank, 2)
    for note in blank.locator(".lane .ending-note").all():
        expect(note).to_be_hidden()


def test_when_nobody_answered_every_lane_says_so(blank: Page) -> None:
    members = [member(0, None), member(1, None)]
    told(blank, 2, over(), synthesis(None, members, confidence=None, reason="no member gave an answer"))
    for note in blank.locator(".lane .ending-note").all():
        expect(note).to_have_text("no answer was chosen")


def test_a_member_of_whose_leaving_only_the_last_word_tells(blank: Page) -> None:
    members = [member(0, 0.5), member(1, None, state="timeout"), member(2, 0.5)]
    dropped = [{"model": NAMES[1], "state": "timeout", "reason": "no token within 20 s"}]
    told(blank, 3, over(), synthesis(0, members, dropped=dropped))
    lane = blank.locator(".lane").nth(1)
    expect(lane.locator(".error")).to_contain_text("It left the council: no token within 20 s")
    expect(lane.locator(".state")).to_have_text("LEFT")
    expect(lane.locator(".ending-note")).to_be_hidden()
    expect(blank.locator(".lane").nth(2).locator(".error")).to_be_hidden()


def test_a_cue_ends_with_its_session(blank: Page) -> None:
    cue = event("council.interference", pattern="destructive", intensity=0.4, coherence=0.2, correlation=None)
    readings = [reading(slot, tokens=1) for slot in range(2)]
    links = peer(blank, [frame(FIRST_FRAME, *started(2), cue, energy(*readings, ensemble=together()))])
    blank.goto("/")
    expect(blank.locator("#cue")).to_have_text("INTERFERENCE")
    links[0].send(json.dumps(frame(FIRST_FRAME + 1, over())))
    expect(blank.locator("#cue")).to_be_hidden()


def test_a_resonance_that_is_not_shown_is_not_spoken_of_either(blank: Page) -> None:
    start = {"phase": "start", "strength": 0.9, "coherence": 0.9, "duration_ms": None}
    kinds = blank_notices(blank, [start | {"celebrate": False}, start | {"celebrate": True}])
    assert kinds == ["resonance"]


def blank_notices(page: Page, resonances: list[dict[str, Any]]) -> list[str]:
    page.goto("/")
    return page.evaluate(
        """async payloads => {
          const { Store } = await import("/static/store.js");
          const store = new Store();
          const events = payloads.map(payload => ({ type: "council.resonance", session_id: "s", payload }));
          store.ingest({ frame: 1, mono_ms: 0, events }, 0);
          return store.notices.map(({ kind }) => kind);
        }""",
        resonances,
    )


def test_a_hostile_reason_is_only_text(blank: Page) -> None:
    evil = '<img src=x onerror="window.pwned=1">'
    told(blank, 2, over(), synthesis(0, [member(0, 0.1), member(1, 0.1)], reason=evil, method=evil))
    expect(blank.locator(".lane .ending-note").first).to_contain_text("<img src=x")
    assert blank.locator("main img").count() == 0
    assert blank.evaluate("window.pwned") is None


# ── once more ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ask_again_asks_the_same_and_keeps_what_is_being_written(page: Page) -> None:
    expect(page.locator("#again")).to_be_hidden()
    run(page, "embedded/lexicon", max_tokens=3)
    ended(page)
    expect(page.locator("#prompt")).to_have_value("What is a river?")  # asking takes nothing away
    page.fill("#prompt", "the next question")
    page.select_option("#model", "embedded/hacker")
    with page.expect_response("**/generate") as asked:
        page.get_by_role("button", name="Ask again").click()
    body = asked.value.request.post_data_json
    assert (body["prompt"], body["model"], body["parameters"]["max_tokens"]) == (
        "What is a river?",
        "embedded/lexicon",
        3,
    )
    expect(page.locator("#meta")).to_contain_text(asked.value.json()["session_id"][:8])
    ended(page)
    expect(page.locator("#prompt")).to_have_value("the next question")


def test_ask_again_fills_an_empty_box(page: Page) -> None:
    run(page, "embedded/lexicon", max_tokens=3)
    ended(page)
    page.fill("#prompt", "")
    page.click("#again")
    expect(page.locator("#prompt")).to_have_value("What is a river?")


def test_another_programs_session_cannot_be_asked_again(blank: Page) -> None:
    told(blank, 2, over())
    expect(blank.locator("#outcome")).to_contain_text("Finished")
    expect(blank.locator("#again")).to_be_hidden()  # nobody here knows its prompt


def test_a_failed_session_of_this_page_can_be_tried_again(blank: Page) -> None:
    asked: list[Any] = []

    def accept(route: Route) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(status=202, json={"session_id": SESSION, "models": [], "dropped_models": []})

    blank.route("**/generate", accept)
    links = peer(blank, [frame(FIRST_FRAME)])
    blank.goto("/")
    ask(blank, "embedded/lexicon", prompt="keep me")
    error = {"code": "UPSTREAM_TRUNCATED", "message": "the runtime broke off", "retryable": True, "details": {}}
    opened = event(
        "experience.session_start",
        mode="single",
        models=["embedded/lexicon"],
        streams=[{"stream_id": "a", "model": "embedded/lexicon"}],
        parameters={},
        origin="dashboard",
        start_us=0,
    )
    links[0].send(json.dumps(frame(FIRST_FRAME + 1, opened, over(reason="error", error=error))))
    expect(blank.locator(".lane .error")).to_contain_text("the runtime broke off")
    with blank.expect_response("**/generate"):
        blank.get_by_role("button", name="Try again").click()
    expect(blank.locator("#prompt")).to_have_value("keep me")
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_a_refused_prompt_can_be_tried_again(page: Page, watch: Watch) -> None:
    body = {"error": {"code": "OVERLOADED", "message": "all places are taken", "retryable": True, "details": {}}}
    page.route("**/generate", lambda route: route.fulfill(status=503, json=body), times=1)
    ask(page, "embedded/lexicon", max_tokens=2, prompt="keep me")
    expect(page.locator("#refusal")).to_contain_text("OVERLOADED")
    with page.expect_response(re.compile("/generate$")) as accepted:
        page.click("#retry")
    assert accepted.value.status == 202
    assert accepted.value.request.post_data_json["prompt"] == "keep me"
    expect(page.locator("#refusal")).to_be_hidden()
    ended(page)
    watch.faults = [fault for fault in watch.faults if "503" not in fault]  # the browser's own note of the refusal


def test_a_list_of_models_that_comes_at_last_takes_its_refusal_back_and_no_other(blank: Page, watch: Watch) -> None:
    """The page asks for the list again and again, whatever else it shows meanwhile."""
    error = {"code": "OVERLOADED", "message": "all places are taken", "retryable": True, "details": {}}
    listing = {"status": 500}
    blank.route("**/generate", lambda route: route.fulfill(status=503, json={"error": error}))
    blank.route("**/models", lambda route: route.continue_() if listing["status"] == 200 else route.fulfill(status=500))
    blank.goto("/")
    refusal = blank.locator("#refusal")
    expect(refusal).to_contain_text("HTTP_500")
    listing["status"] = 200
    expect(refusal).to_be_hidden()  # it came by itself
    ask(blank, "embedded/lexicon", max_tokens=2)
    expect(refusal).to_contain_text("OVERLOADED")
    for status in (500, 200):
        listing["status"] = status
        with blank.expect_response(lambda answer, wanted=status: wanted == answer.status and "/models" in answer.url):
            pass
        turns(blank, 6)
        expect(refusal).to_contain_text("OVERLOADED")
    watch.faults = [fault for fault in watch.faults if "500" not in fault and "503" not in fault]


def test_a_list_of_models_that_did_not_come_is_asked_for_again_and_nothing_is_run(blank: Page, watch: Watch) -> None:
    held: list[Route] = []
    blank.route("**/models", lambda route: held.append(route))
    blank.route("**/models", lambda route: route.fulfill(status=500, json={}), times=1)
    blank.goto("/")
    expect(blank.locator("#refusal")).to_contain_text("HTTP_500")
    blank.fill("#prompt", "not to be sent")
    wait_for(blank, lambda: held)
    blank.click("#retry")
    expect(blank.locator("#refusal")).to_be_hidden()
    blank.route("**/models", lambda route: route.continue_())
    held[0].continue_()
    expect(blank.locator("#run")).to_be_enabled()
    expect(blank.locator("#title")).not_to_contain_text("not to be sent")
    watch.faults = [fault for fault in watch.faults if "500" not in fault]


# ── the keys ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_list_of_keys_is_the_keys(page: Page) -> None:
    """Every key that is listed does what it says, and every key that does something is listed."""
    done = page.evaluate(
        """async () => {
          const { KEYS } = await import("/static/keys.js");
          const calls = [];
          const note = name => (...words) => calls.push([name, ...words].join(" "));
          const theme = { toggle: note("theme"), toggleMotion: note("motion") };
          const names = "solo step zoom freeze evidence copy table whole prompt help".split(" ");
          const actions = { theme, ...Object.fromEntries(names.map(name => [name, note(name)])) };
          for (const { on, act } of KEYS) for (const key of on ?? []) act(actions, key);
          return { calls, shown: KEYS.map(({ shown }) => shown.filter(cap => cap !== "…").join(" ")) };
        }"""
    )
    solos = [f"solo {slot}" for slot in (0, 1, 2, 3, 4, 5, -1)]
    rest = ["evidence", "step -1", "step 1", "copy", "zoom 1", "zoom -1", "table", "whole", "prompt", "theme", "motion"]
    assert done["calls"] == ["freeze", *solos, *rest, "help"]
    page.keyboard.press("Escape")
    page.click("#help-open")
    rows = page.locator("#keys tr")
    listed = [" ".join(row.locator("kbd").all_text_contents()) for row in rows.all()]
    assert listed == done["shown"]
    assert listed[0] == "Ctrl ↵"
    assert "G S R P G C E" in listed
