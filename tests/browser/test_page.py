"""The dashboard in a real browser against a real engine: what it shows is what was measured, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.browser.acts import ask, ended, post, report, run, until
from tests.browser.conftest import Address, Watch
from tests.browser.scripted import FIRST_FRAME, PARAMS, frame, peer

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="window.pwned=1"></script>\x1b[31m\u202eevil\u2066 \ud83d\udc69 \x00\x85 end'


def in_module(page: Page, module: str, expression: str, argument: Any = None) -> Any:
    """The value of `expression` with the module's exports as `m` and the argument as `a`."""
    script = f"async a => {{ const m = await import('/static/{module}'); return {expression}; }}"
    return page.evaluate(script, argument)


# ── the shell ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_shell_lists_models_and_says_which_are_demonstrations(page: Page) -> None:
    expect(page).to_have_title("WF Engine")
    assert page.locator("h1").count() == 1
    group = page.locator("#model optgroup[label='built-in demonstration models'] option")
    assert group.all_text_contents() == ["embedded/lexicon", "embedded/hacker", "embedded/mixed"]
    page.select_option("#model", "embedded/lexicon")
    expect(page.locator("#about")).to_contain_text("they cannot help you")
    expect(page.locator("#version")).not_to_have_text("—")
    expect(page.locator("#local-status")).to_have_text("Local only")


def test_idle_shows_no_number_that_was_not_measured(blank: Page) -> None:
    scripted(blank)
    expect(blank.locator(".lane .state")).to_have_text("IDLE")
    expect(blank.locator(".lane .waiting")).to_contain_text("Nothing is running")
    assert set(blank.locator("#numbers dd > span:first-child").all_text_contents()) == {"—"}
    assert report(blank)["lastEnergy"] is None


# ── a session ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_token_is_one_strike_and_the_numbers_are_the_last_frames(page: Page, watch: Watch) -> None:
    session = run(page, "synthetic/steady", max_tokens=40)
    expect(page.locator(".lane .text")).to_contain_text("SYNTHETIC")
    page.set_viewport_size({"width": 1300, "height": 800})  # painting all again must not count twice, nor miss one
    page.click("#theme")
    page.click("#evidence-toggle")
    ended(page)
    until(page, "window.__wf.strikes === window.__wf.tokens")
    assert report(page)["tokens"] == 40
    stream = watch.told("energy.update", session)[-1]["streams"][0]
    expect(page.locator("#n-energy")).to_have_text(f"{stream['energy']:.3f}")
    expect(page.locator("#n-tokens")).to_have_text("40")
    expect(page.locator("#n-certainty")).to_have_text(f"{stream['certainty']:.3f}")
    expect(page.locator("#n-entropy")).to_have_text(f"{stream['entropy_bits']:.2f}")
    assert abs(report(page)["lastEnergy"] - stream["energy"]) < 1e-12
    expect(page.locator("#evidence-formula")).to_contain_text("✓")
    formula = page.locator("#evidence-formula")
    expect(formula).to_have_text(re.compile("^[^✓]*✓[^✓]*✓[^✓]*$"))  # E_base and E, both recomputed from the raw values
    expect(formula).not_to_contain_text("differs")


def test_the_built_in_model_streams_text_with_log_probabilities(page: Page, watch: Watch) -> None:
    session = run(page, "embedded/lexicon", max_tokens=30)
    ended(page)
    texts = [token["text"] for told in watch.told("experience.token", session) for token in told["tokens"]]
    assert page.locator(".lane .text").text_content() == in_module(page, "text.js", "m.visible(a)", "".join(texts))
    expect(page.locator("#n-certainty")).not_to_have_text("—")
    expect(page.locator("#n-ttft")).not_to_have_text("—")


def test_stop_is_green_only_after_the_session_ended(page: Page, watch: Watch) -> None:
    session = run(page, "synthetic/steady", max_tokens=2000)
    until(page, "window.__wf.tokens >= 3")
    expect(page.locator("#outcome")).not_to_have_class("mono good")
    page.keyboard.press("Escape")
    expect(page.locator("#outcome")).to_contain_text("Stopped in")
    expect(page.locator("#outcome")).to_have_class("mono good")
    (end,) = watch.told("experience.session_end", session)
    assert end["reason"] == "aborted"
    latency = end["stop_latency_ms"]
    wording = f"{latency:.1f}" if latency < 10 else str(int(latency + 0.5))
    tokens = end["totals"]["tokens"]
    expect(page.locator("#outcome")).to_contain_text(f"Stopped in {wording} ms · {tokens} token")
    assert (page.locator(".lane .text").text_content() or "").startswith("SYNTHETIC")  # what came stays
    expect(page.locator("#stop")).to_be_disabled()


def test_synthetic_is_said_as_long_as_it_is_shown(page: Page) -> None:
    run(page, "synthetic/steady", max_tokens=5)
    expect(page.locator("#synthetic")).to_be_visible()
    ended(page)
    expect(page.locator("#synthetic")).to_be_visible()
    run(page, "embedded/lexicon", max_tokens=5)
    expect(page.locator(".lane .model-name")).to_have_text("embedded/lexicon")
    expect(page.locator("#synthetic")).to_be_hidden()


def test_a_stall_is_seen_as_a_stall(page: Page) -> None:
    run(page, "synthetic/stalling", max_tokens=22)
    state, note = (f"document.querySelector('.lane .{name}').textContent" for name in ("state", "stall-note"))
    seen = f"{state} === 'STALLING' && {note}.includes('silence')"
    until(page, f"{seen} && window.__wf.hatchedByStream[0] > 0")  # in the page: it is over in a second
    ended(page)
    expect(page.locator(".lane .stall-note")).to_have_text("")
    assert _reddish_pixels(page) > 200  # the hatch stays


def _reddish_pixels(page: Page) -> int:
    return page.evaluate(
        """() => {
          const canvas = document.querySelector("#field");
          const top = 60, bottom = 40; // leaves the labels out
          const { data } = canvas.getContext("2d").getImageData(0, top, canvas.width, canvas.height - top - bottom);
          let found = 0;
          for (let i = 0; i < data.length; i += 4)
            if (data[i + 3] > 60 && data[i] > 120 && data[i] > data[i + 2] * 1.3) found += 1;
          return found;
        }"""
    )


def test_without_log_probabilities_it_says_so(page: Page) -> None:
    run(page, "synthetic/nologprobs", max_tokens=10)
    ended(page)
    expect(page.locator("#n-certainty")).to_have_text("—")
    expect(page.locator("#n-entropy")).to_have_text("—")
    expect(page.locator("#numbers")).to_contain_text("no log-probabilities from this runtime")
    assert page.evaluate("(box => box.scrollWidth <= box.clientWidth)(document.querySelector('#numbers'))")
    unknown = "Probability of the tokens: unknown"
    expect(page.locator("#field")).to_have_attribute("title", re.compile(unknown))
    expect(page.locator("#field")).to_have_attribute("aria-label", re.compile(unknown))
    page.click("#evidence-toggle")
    expect(page.locator("#evidence-formula")).to_contain_text(".7·v + .3·f")
    expect(page.locator("#evidence-formula")).not_to_contain_text("differs")


def test_another_programs_session_appears_by_itself(page: Page, engine: Address) -> None:
    body = {"mode": "single", "model": "synthetic/steady", "prompt": "from outside", "parameters": {"max_tokens": 30}}
    session_id = post(engine, "/generate", body)["session_id"]
    expect(page.locator("#meta")).to_contain_text(session_id[:8])
    expect(page.locator("#title")).to_contain_text("synthetic/steady via api")
    expect(page.locator(f"#sessions option[value='{session_id}']")).to_be_attached()
    ended(page)
    until(page, "window.__wf.strikes === 30")


# ── trouble ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_engine_means_a_visible_wait(blank: Page) -> None:
    def refuse(link: WebSocketRoute) -> None:
        link.close(code=1011)

    blank.route_web_socket("**/ws", refuse)
    blank.goto("/")
    expect(blank.locator("#trouble")).to_contain_text("Connecting to the engine…")
    expect(blank.locator("#trouble")).to_contain_text("internal error")
    expect(blank.locator("#run")).to_be_disabled()


def scripted(page: Page, *events: dict[str, Any]) -> None:
    """Opens the page on a peer that says hello, an empty snapshot, and then one frame with `events`."""
    peer(page, [frame(FIRST_FRAME, *events)])
    page.goto("/")


def event(type_: str, **payload: Any) -> dict[str, Any]:
    return {"type": type_, "session_id": "s1", "payload": payload}


def started(model: str) -> dict[str, Any]:
    return event(
        "experience.session_start", models=[model], energy_params=PARAMS, origin="api", synthetic=False, start_us=0
    )


def spoken(*texts: str) -> dict[str, Any]:
    plain = {"kind": "answer", "offset": 0, "t_us": 1000, "delta_ms": None, "logprob": None, "energy": 0.1}
    tokens = [plain | {"text": text, "position": i, "energy_base": 0.3} for i, text in enumerate(texts)]
    return event("experience.token", stream_id="t", model="m", tokens=tokens)


def test_hostile_text_is_only_text(blank: Page) -> None:
    scripted(blank, started("<b>m</b>"), spoken(HOSTILE, "y" * 5000))
    expect(blank.locator(".lane .text")).to_contain_text("<img src=x onerror=")
    text = blank.locator(".lane .text").text_content() or ""
    assert "␛[31m‹U+202E›evil‹U+2066›" in text
    assert "␀‹U+0085› end" in text
    assert text.endswith("y" * 5000)
    assert blank.evaluate("window.pwned") is None
    assert blank.locator(".lane .text img, .lane .text script").count() == 0
    expect(blank.locator(".lane .model-name")).to_have_text("<b>m</b>")
    sizes = blank.evaluate("[...document.querySelectorAll('.lane .page > div')].map(block => block.textContent.length)")
    assert max(sizes) <= 1_200
    assert len(sizes) > 2


def test_a_failed_session_shows_code_and_message(blank: Page) -> None:
    error = {"code": "UPSTREAM_TRUNCATED", "message": "the runtime broke off", "retryable": True, "details": {}}
    end = event("experience.session_end", reason="error", error=error, totals={"tokens": 1}, duration_ms=10)
    scripted(blank, started("m"), spoken("half"), end | {"payload": end["payload"] | {"ttft_ms": 1.0}})
    expect(blank.locator(".lane .error")).to_contain_text("UPSTREAM_TRUNCATED")
    expect(blank.locator(".lane .error")).to_contain_text("the runtime broke off")
    expect(blank.locator(".lane .text")).to_have_text("half")
    expect(blank.locator("#outcome")).to_have_class("mono bad")


def test_loading_and_waiting_are_told_apart(blank: Page) -> None:
    loading = event("experience.model", model="m", state="loading", progress=0.62, position=None, reason=None)
    scripted(blank, started("m"), loading)
    expect(blank.locator("#loading-text")).to_contain_text("loading · 62 %")
    expect(blank.locator(".lane .waiting")).to_contain_text("loading m · ")


def test_a_refused_prompt_says_why_and_keeps_the_prompt(page: Page, watch: Watch) -> None:
    body = {"error": {"code": "OVERLOADED", "message": "all 256 places are taken", "retryable": True, "details": {}}}
    page.route("**/generate", lambda route: route.fulfill(status=503, json=body))
    ask(page, "embedded/lexicon", prompt="keep me")
    expect(page.locator("#refusal")).to_contain_text("OVERLOADED")
    expect(page.locator("#refusal")).to_contain_text("all 256 places are taken")
    expect(page.locator("#prompt")).to_have_value("keep me")
    watch.faults = [fault for fault in watch.faults if "503" not in fault]  # the browser's own note of the refusal


def test_no_models_is_a_sentence_not_a_blank(blank: Page) -> None:
    blank.route("**/models", lambda route: route.fulfill(json={"models": []}))
    scripted(blank)
    expect(blank.locator(".lane .waiting")).to_contain_text("No model found")
    expect(blank.locator("#run")).to_be_disabled()


# ── hands, eyes and ears ────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_work_outside_of_fields_only(page: Page) -> None:
    body, root = page.locator("body"), page.locator("html")
    body.press("t")
    expect(root).to_have_attribute("data-theme", "light")
    page.focus("#prompt")
    page.keyboard.type("te?")
    expect(root).to_have_attribute("data-theme", "light")
    expect(page.locator("#prompt")).to_have_value("te?")
    page.locator("#prompt").blur()
    body.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.uncheck("#letters")
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    body.press("t")
    expect(root).to_have_attribute("data-theme", "light")


def test_streaming_text_is_not_a_live_region(page: Page) -> None:
    expect(page.locator(".lane .text")).to_have_attribute("aria-live", "off")
    assert page.locator("[role=status]").count() == 1
    run(page, "synthetic/steady", max_tokens=5)
    expect(page.locator("#announcer")).to_contain_text("synthetic/steady")
    expect(page.locator("#announcer")).not_to_contain_text("SYNTHETIC ")


def test_reduced_motion_draws_no_strikes(blank: Page) -> None:
    blank.emulate_media(reduced_motion="reduce")
    blank.goto("/")
    blank.wait_for_selector("#run:not([disabled])")
    run(blank, "synthetic/steady", max_tokens=20)
    ended(blank)
    shown = report(blank)
    assert (shown["strikes"], shown["tokens"]) == (0, 20)
    assert shown["framesDrawn"] < shown["framesReceived"]


def test_a_narrow_window_scrolls_in_one_direction_only(page: Page) -> None:
    page.set_viewport_size({"width": 380, "height": 780})
    run(page, "synthetic/steady", max_tokens=5)
    ended(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_every_text_colour_has_contrast_on_every_ground(page: Page, theme: str) -> None:
    ratios = page.evaluate(
        """theme => {
          document.documentElement.dataset.theme = theme;
          const probe = document.body.appendChild(document.createElement("i"));
          const light = name => {
            probe.style.color = `var(--${name})`;
            const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255);
            const [r, g, b] = parts.map(v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          const pairs = [["danger", "danger-bg"], ["text", "danger-bg"]];
          const inks = ["text", "muted", "m1", "m2", "m3", "m4", "m5", "m6", "ens", "gold", "violet", "danger", "ok"];
          for (const ink of inks)
            for (const ground of ["bg", "panel", "raised"]) pairs.push([ink, ground]);
          return Object.fromEntries(pairs.map(([a, b]) => [`${a} on ${b}`, ratio(light(a), light(b))]));
        }""",
        theme,
    )
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


# ── the modules ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("tps", "delta_ms", "certainty", "expected"),
    [
        (20, 50, 1, 1.0),
        (10, 100, 0.5, 0.6),
        (10, 100, None, 0.65),
        (10.4, 96, 0.64, 0.652),
        (1.25, 800, 0.8, 0.3113),
        (2, 500, None, 0.3427),
        (0, None, None, 0.3),
    ],
)
def test_the_formula_of_the_page_is_the_engines(
    page: Page, tps: float, delta_ms: float | None, certainty: float | None, expected: float
) -> None:
    signal = {"tps": tps, "delta_ms": delta_ms, "certainty": certainty}
    base = in_module(page, "evidence.js", "m.terms(a.signal, a.params).base", {"signal": signal, "params": PARAMS})
    assert base == pytest.approx(expected, abs=5e-5)


def test_backoff_doubles_to_a_cap_and_spreads(page: Page) -> None:
    middle = in_module(page, "connection.js", "[...Array(8).keys()].map(n => m.backoffMs(n, 0.5))")
    assert middle == [250, 500, 1000, 2000, 4000, 5000, 5000, 5000]
    assert in_module(page, "connection.js", "[m.backoffMs(0, 0), m.backoffMs(9, 0)]") == [200, 4000]


def test_cuts_fall_on_spaces_and_never_inside_a_character(page: Page) -> None:
    cut = "[m.cutAt(a, 8), m.cutAt('\\u{1F600}'.repeat(9), 7), m.cutAt('x'.repeat(20), 8)]"
    assert in_module(page, "text.js", cut, "12345 789") == [6, 6, 8]


def test_missed_frames_are_blank_columns_and_memory_is_bounded(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { Store } = await import("/static/store.js");
          const { COLUMNS } = await import("/static/columns.js");
          const store = new Store();
          const reading = { stream_id: "t", energy: 0.5, stall: false, silence_ms: 1, tokens: 0, state: "FLOWING" };
          const energy = { eu_total: 0, eu_rate: 0, streams: [reading] };
          const token = { text: "z".repeat(100), kind: "answer", t_us: 1, logprob: null, energy_base: 0.5 };
          const frame = (n, session_id = "s") => {
            const tokens = { stream_id: "t", model: "m", tokens: [{ ...token, position: n }] };
            const events = [
              { type: "experience.token", session_id, payload: tokens },
              { type: "energy.update", session_id, payload: energy },
            ];
            store.ingest({ frame: n, mono_ms: n, events }, n);
          };
          [1, 2, 6].forEach(n => frame(n));
          const session = store.sessions.get("s");
          const [stream] = session.streams;
          const { columns } = stream;
          const shape = [...columns.energy.slice(0, 6)].map(e => (Number.isNaN(e) ? null : e));
          const strikes = columns.strikes.slice(0, 6).map(s => s?.length ?? 0);
          for (let n = 7; n < 5000; n += 1) frame(n);
          for (let n = 5000; n < 5300; n += 1) frame(n, `other-${n}`);
          const kept = session.streams[0].segments.reduce((sum, s) => sum + s.text.length, 0);
          const ring = columns.energy.length === COLUMNS;
          const { chars } = stream;
          return { shape, strikes, gaps: store.gaps, sessions: store.sessions.size, ring, kept, chars };
        }"""
    )
    assert found["shape"] == [0.5, 0.5, None, None, None, 0.5]
    assert found["strikes"] == [1, 1, 0, 0, 0, 1]
    assert (found["gaps"], found["sessions"], found["ring"]) == (3, 80, True)
    assert found["chars"] == 100 * 4996
    assert 65_536 <= found["kept"] < 65_536 + 4_096


def test_the_session_followed_is_the_one_that_began_last(page: Page) -> None:
    followed = page.evaluate(
        """async () => {
          const { Store } = await import("/static/store.js");
          const store = new Store();
          const say = (...events) => store.ingest({ frame: null, mono_ms: 0, events }, 0);
          const state = (session_id, started_ms, end) => ({ session_id, started_ms, end, tokens: 0, streams: [] });
          const sessions = [state("long", 1, null), state("over", 2, { reason: "finished" })];
          say({ type: "system.state_snapshot", payload: { sessions } });
          const seen = [store.newest().id];
          const start = { models: ["m"], energy_params: {}, origin: "api" };
          say({ type: "experience.session_start", session_id: "new", payload: start });
          seen.push(store.newest().id);
          say({ type: "experience.session_end", session_id: "new", payload: { reason: "finished", ttft_ms: 1 } });
          seen.push(store.newest().id);
          say({ type: "system.state_snapshot", payload: { sessions: [] } });
          return { seen, lost: store.sessions.get("long").lost };
        }"""
    )
    assert followed == {"seen": ["long", "new", "new"], "lost": True}


def test_a_token_has_the_same_shape_whenever_it_is_drawn(page: Page) -> None:
    shape = "[m.jagged(0, 0, 0, 100, a, 7, 5), m.jagged(0, 0, 0, 100, a, 7, 5)]"
    once, again = in_module(page, "shapes.js", shape, 6)
    assert once == again
    assert len(once) == 2 * 33
    assert max(abs(x) for x in once[::2]) <= 6 / 2 / (1 - 0.56)
    assert in_module(page, "shapes.js", shape, 0)[0][::2] == [0] * 33
