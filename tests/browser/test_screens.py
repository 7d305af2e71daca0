"""The other screens, the address of the page and its keys: every control does what it says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.acts import at_once, ended, post, run, stands, turns, until, wait_for
from tests.browser.conftest import Address, Watch
from tests.browser.scripted import SESSION, council, event, frame, hello, peer

pytestmark = pytest.mark.browser


# ── pool ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def row(page: Page, model: str) -> Any:
    return page.locator("#pool-rows tr", has=page.get_by_text(model, exact=True))


def test_a_model_is_loaded_pinned_and_unloaded(page: Page, engine: Address) -> None:
    post(engine, "/models/unload", {"name": "embedded/hacker"})  # wherever others left it
    page.click("#nav-pool")
    hacker = row(page, "embedded/hacker")
    expect(hacker.locator(".state")).to_have_text("absent")
    hacker.get_by_role("button", name="Load", exact=False).first.click()
    expect(hacker.locator(".state")).to_have_text("ready")
    expect(page.locator("#pool-news")).to_contain_text("embedded/hacker: in memory")
    expect(hacker.get_by_role("button", name="Load embedded/hacker", exact=True)).to_be_disabled()
    expect(page.locator("#ram-bar i").first).to_be_attached()
    expect(page.locator("#ram-words")).to_contain_text("budget")
    hacker.get_by_role("button", name="Why?").click()
    expect(page.locator("#pool-why-name")).to_have_text("embedded/hacker")
    expect(page.locator("#pool-why-rows")).to_contain_text("loaded")
    hacker.get_by_role("button", name="Unload").click()
    expect(page.locator("#pool-news")).to_contain_text("freed")
    expect(hacker.locator(".state")).to_have_text("absent")


def test_of_two_reasons_asked_for_the_last_is_shown(page: Page) -> None:
    def why(route: Route) -> None:
        if "lexicon" in route.request.url:
            held.append(route)
        else:
            route.continue_()

    held: list[Route] = []
    page.route("**/why", why)
    page.click("#nav-pool")
    row(page, "embedded/lexicon").get_by_role("button", name="Why?").click()
    row(page, "embedded/hacker").get_by_role("button", name="Why?").click()
    expect(page.locator("#pool-why-name")).to_have_text("embedded/hacker")
    with page.expect_response("**/lexicon/why"):
        held[0].continue_()
    turns(page, 6)
    expect(page.locator("#pool-why-name")).to_have_text("embedded/hacker")


def test_memory_and_models_are_the_engines_numbers(page: Page) -> None:
    stands(page, "**/models")
    with page.expect_response("**/models") as heard:
        page.click("#nav-pool")
    listing = heard.value.json()
    expect(page.locator("#pool-rows tr")).to_have_count(len(listing["models"]))
    expect(page.locator("#pool-tier")).to_have_text(listing["tier"])
    total = listing["memory"]["ram_total_bytes"]
    expect(page.locator("#ram-words")).to_contain_text(f"machine {total / 1e9:.2f} GB")


def test_a_figure_that_misses_what_the_tier_aims_at_is_marked(page: Page) -> None:
    aims = {"tps": (20.0, 15, False), "ttft_warm_ms": (50.0, 2000, False), "ttft_cold_ms": (12_345.0, 10_000, True)}

    def listing(route: Route) -> None:
        body = route.fetch().json()
        for model in body["models"]:
            if model["name"] == "embedded/mixed":
                model |= {"tps": 20.0, "ttft_ms": 50.0, "ttft_cold_ms": 12_345.0}
                model["against_tier"] = {
                    kind: {"measured": measured, "aim": aim, "missed": missed, "reason": None}
                    for kind, (measured, aim, missed) in aims.items()
                }
        route.fulfill(json=body)

    page.route("**/models", listing)
    page.click("#nav-pool")
    mixed = row(page, "embedded/mixed")
    expect(mixed.locator(".cold")).to_contain_text("cold 12345 ms")
    expect(mixed.locator(".missed")).to_have_count(1)
    expect(mixed.locator(".cold .missed")).to_have_attribute("title", "The tier aims at 10000 ms or less")


def test_a_refused_load_says_why(page: Page, watch: Watch) -> None:
    error = {"code": "INSUFFICIENT_MEMORY", "message": "it needs 9 GB", "retryable": False, "details": {}}
    page.route("**/models/load", lambda route: route.fulfill(status=507, json={"error": error}))
    page.click("#nav-pool")
    row(page, "embedded/mixed").get_by_role("button", name="Pin").click()
    expect(page.locator("#pool-news")).to_have_text("embedded/mixed: INSUFFICIENT_MEMORY: it needs 9 GB")
    watch.faults = [fault for fault in watch.faults if "507" not in fault]  # the browser's own note of the refusal


# ── gateway ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_gateway_shows_the_ledger(page: Page) -> None:
    run(page, "embedded/lexicon", max_tokens=3)
    ended(page)
    stands(page, "**/usage?by=*")
    with page.expect_response("**/usage?by=model") as heard:
        page.click("#nav-gateway")
    usage = heard.value.json()
    expect(page.locator("#g-requests")).to_have_text(str(usage["totals"]["requests"]))
    expect(page.locator("#gateway-rows")).to_contain_text("embedded/lexicon")
    expect(page.locator("#g-cost")).to_have_text("$0.00")
    bars = page.locator("#g-ttft-bars li")
    expect(bars).to_have_count(len(usage["latency"]["ttft_ms"]["counts"]))
    with page.expect_response("**/usage?by=agent"):
        page.select_option("#gateway-by", "agent")


def sums(**more: Any) -> dict[str, Any]:
    usual = {"requests": 4, "tokens_in": 0, "tokens_out": 80, "local_tokens": 80, "remote_tokens": 0}
    return usual | {"synthetic_tokens": 0, "cost_usd": 0.0, "uncounted": 0, "unpriced": 0} | more


@pytest.mark.parametrize(
    ("counted", "tokens", "why"),
    [
        ({"tokens_in": 1234}, "1,234", ""),
        ({"uncounted": 4}, "—", "4 of 4 prompts not counted by their runtime"),
        ({"uncounted": 1, "tokens_in": 30}, "≥ 30", "1 of 4 prompts not counted by their runtime"),
    ],
)
def test_prompts_that_nobody_counted_are_no_zero(page: Page, counted: Any, tokens: str, why: str) -> None:
    def usage(route: Route) -> None:
        body = route.fetch().json()
        route.fulfill(json=body | {"totals": sums(**counted), "rows": [sums(**counted, key="m")]})

    page.route("**/usage?by=*", usage)
    page.click("#nav-gateway")
    expect(page.locator("#g-in")).to_have_text(tokens)
    expect(page.locator("#g-in-why")).to_have_text(why)
    expect(page.locator("#gateway-rows td").nth(1)).to_have_text(tokens)
    expect(page.locator("#g-cost")).to_have_text("$0.00")


def test_a_cost_that_is_not_known_of_all_is_a_lower_bound(page: Page) -> None:
    def usage(route: Route) -> None:
        body = route.fetch().json()
        route.fulfill(json=body | {"totals": sums(cost_usd=0.5, unpriced=2), "rows": []})

    page.route("**/usage?by=*", usage)
    page.click("#nav-gateway")
    expect(page.locator("#g-cost")).to_have_text("≥ $0.50")
    expect(page.locator("#g-cost-why")).to_have_text("2 answers without a known price")


def test_a_percentile_is_told_as_the_edge_of_its_bar(page: Page) -> None:
    told = page.evaluate(
        """async () => {
          const { atMost } = await import("/static/gateway.js");
          const some = { edges_ms: [10, 500, 5000], counts: [1, 2, 0, 1] };
          const none = { edges_ms: [10, 500, 5000], counts: [0, 0, 0, 0] };
          return [atMost(500, some), atMost(5000, some), atMost(null, some), atMost(null, none)];
        }"""
    )
    assert told == ["≤ 500 ms", "≤ 5 s", "> 5 s", "—"]
    run(page, "embedded/lexicon", max_tokens=3)
    ended(page)
    page.click("#nav-gateway")
    expect(page.locator("#g-ttft")).to_have_text(re.compile(r"p50 ≤ [\d.]+ m?s · p95 ≤ [\d.]+ m?s · p99 ≤ [\d.]+ m?s"))
    expect(page.locator("#screen-gateway th", has_text="elsewhere")).to_have_attribute(
        "title", re.compile("outside this machine")
    )


def test_without_a_ledger_there_is_no_gateway(blank: Page) -> None:
    def description(route: Route) -> None:
        body = route.fetch().json()
        del body["paths"]["/usage"]
        route.fulfill(json=body)

    blank.route("**/openapi.json", description)
    with blank.expect_response("**/openapi.json"):
        blank.goto("/#/gateway")
    blank.wait_for_selector("#run:not([disabled])")
    expect(blank.locator("#nav-gateway")).to_be_hidden()
    expect(blank.locator("#screen-stream")).to_be_visible()


BROKER = {
    "mode": "disabled", "available": True, "provider": None, "bytes_out": 0, "calls": 0, "failed": 0, "refused": {},
    "calls_last_hour": 0, "context": "question", "spent": {"tokens": 0, "usd": 0.0},
    "limits": {"calls_per_hour": 100, "daily_tokens": 200_000, "daily_usd": 1.0, "first_token_s": 5, "call_max_s": 10},
    "providers": [{"name": "far", "host": "api.example.com", "models": ["x"], "key": True, "reason": None}],
}  # fmt: skip


def test_turning_the_broker_on_names_who_gets_what_and_asks(blank: Page) -> None:
    asked: list[tuple[Any, str | None]] = []

    state = dict(BROKER)

    def broker(route: Route) -> None:
        if route.request.method == "POST":
            asked.append((route.request.post_data_json, route.request.headers.get("x-wf-token")))
            state.update(mode=asked[-1][0]["mode"], bytes_out=2_000)  # also when it is asked the next time
        route.fulfill(json=state)

    blank.route("**/broker", broker)
    with blank.expect_response("**/api/bootstrap") as bootstrap:
        blank.goto("/#/gateway")
    expect(blank.locator("#local")).to_have_text("Local only · 0 B out")
    blank.select_option("#broker-mode", "fallback")
    expect(blank.locator("#consent-who")).to_contain_text("far (api.example.com)")
    expect(blank.locator("#consent-what")).to_contain_text("the last question")
    expect(blank.locator("#consent-price")).to_contain_text("$1.00 a day")
    blank.get_by_role("button", name="Keep everything here").click()
    expect(blank.locator("#broker-mode")).to_have_value("disabled")
    assert asked == []
    blank.select_option("#broker-mode", "fallback")
    blank.get_by_role("button", name="Switch it on").click()
    expect(blank.locator("#g-bytes-out")).to_have_text("2 kB")
    assert asked == [({"mode": "fallback"}, bootstrap.value.json()["token"])]


def test_an_older_answer_of_the_broker_takes_nothing_back(blank: Page) -> None:
    """The page asks every five seconds; a switch overtakes such a question."""
    asked: list[Route] = []

    def broker(route: Route) -> None:
        asked.append(route)
        if route.request.method == "POST":
            route.fulfill(json=BROKER | {"mode": "fallback", "bytes_out": 2_000})
        elif len(asked) == 1:
            route.fulfill(json=BROKER)

    blank.route("**/broker", broker)
    blank.goto("/#/gateway")
    expect(blank.locator("#g-bytes-out")).to_have_text("0 B")
    wait_for(blank, lambda: len(asked) > 1)  # this one waits for its answer
    blank.select_option("#broker-mode", "fallback")
    blank.get_by_role("button", name="Switch it on").click()
    expect(blank.locator("#g-bytes-out")).to_have_text("2 kB")
    with blank.expect_response("**/broker"):
        asked[1].fulfill(json=BROKER)
    turns(blank, 6)
    expect(blank.locator("#g-bytes-out")).to_have_text("2 kB")
    expect(blank.locator("#broker-mode")).to_have_value("fallback")


def test_a_tier_without_a_broker_cannot_switch_it(page: Page) -> None:
    page.click("#nav-gateway")
    expect(page.locator("#broker-mode")).to_be_disabled()
    expect(page.locator("#broker-why")).to_contain_text("everything is answered here")


# ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_event_is_in_the_log_and_few_are_elements(blank: Page) -> None:
    messages = council(3, 4)
    peer(blank, messages)
    blank.goto("/#/events")
    types = [one["type"] for message in [hello(), *messages] for one in message["events"]]
    expect(blank.locator("#events-count")).to_contain_text(f"of {len(types)} received")
    rest = sum(type_ != "energy.update" for type_ in types)
    expect(blank.locator("#events-count")).to_contain_text(f"{rest} shown")
    assert blank.locator(".event").count() < 60
    expect(blank.locator(".event").last).to_contain_text("experience.token")
    blank.select_option("#events-kind", "energy")
    expect(blank.locator("#events-count")).to_contain_text(f"{types.count('energy.update')} shown")
    blank.select_option("#events-kind", "council")
    expect(blank.locator("#events-count")).to_contain_text(f"{sum(t.startswith('council.') for t in types)} shown")
    blank.fill("#events-text", "resonance")
    expect(blank.locator("#events-count")).to_contain_text(f"{types.count('council.resonance')} shown")
    blank.locator(".event").first.click()
    expect(blank.locator("#events-detail-text")).to_contain_text('"phase": "start"')
    blank.click("#events-show")
    expect(blank.locator("#screen-stream")).to_be_visible()
    until(blank, f"location.hash.startsWith('#/stream/{SESSION}')")


def test_the_log_stays_where_the_reader_is(blank: Page) -> None:
    messages = council(2, 4)
    links = peer(blank, messages)
    blank.goto("/#/events")
    count = sum(len(message["events"]) for message in [hello(), *messages])
    expect(blank.locator("#events-count")).to_contain_text(f"of {count} received")
    blank.locator("#events-scroll").evaluate("box => { box.scrollTop = 0; }")
    expect(blank.locator("#events-follow")).to_be_visible()
    first = blank.locator(".event").first.text_content()
    links[0].send(json.dumps(frame(9000, event("experience.model", model="new", state="ready", reason=None))))
    expect(blank.locator("#events-count")).to_contain_text(f"of {count + 1} received")
    assert blank.locator(".event").first.text_content() == first
    blank.click("#events-follow")
    expect(blank.locator(".event").last).to_contain_text("experience.model")


def test_the_log_is_bounded(page: Page) -> None:
    kept = page.evaluate(
        """async () => {
          const { EventLog, EVENTS_KEPT, ENERGY_KEPT } = await import("/static/eventlog.js");
          const log = new EventLog();
          const say = type => log.add({ type, session_id: "s", payload: { streams: [] } }, { frame: 1 });
          for (let n = 0; n < EVENTS_KEPT + 500; n += 1) say("council.formed");
          for (let n = 0; n < ENERGY_KEPT + 70; n += 1) say("energy.update");
          const all = kind => log.select({ text: "", kind, model: "" });
          return [all("").length === EVENTS_KEPT, all("energy").length === ENERGY_KEPT, log.dropped, log.total];
        }"""
    )
    assert kept[:3] == [True, True, 570]


# ── the address and the keys ────────────────────────────────────────────────────────────────────────────────────────


def test_a_shared_link_opens_the_same_picture(blank: Page) -> None:
    peer(blank, council(3, 4))
    blank.goto(f"/#/stream/{SESSION[:8]}?evidence=1&solo=2&zoom=2&theme=light&motion=reduce&tok=2:40")
    expect(blank.locator(".lane").nth(1)).to_be_visible()
    expect(blank.locator(".lane").first).to_be_hidden()
    expect(blank.locator("#evidence-token")).to_contain_text("Token 40:")
    expect(blank.locator("html")).to_have_attribute("data-theme", "light")
    until(blank, "window.__wf.columns === 240")
    assert sum(blank.evaluate("window.__wf.strikesByStream")) == 0  # reduced motion
    wanted = "evidence=1&solo=2&zoom=2&theme=light&motion=reduce&tok=2:40"
    until(blank, f"location.hash === '#/stream/{SESSION[:8]}?{wanted}'")


@pytest.mark.parametrize(
    "address",
    ["#/stream/../../x?tok=9:1&solo=77&zoom=3&theme=<b>", "#/nowhere", "#/stream/%3Cscript%3E", "#///?=&=", "#%"],
)
def test_a_broken_address_is_the_plain_page(blank: Page, address: str) -> None:
    peer(blank, council(2, 1))
    blank.goto(f"/{address}")
    expect(blank.locator("#screen-stream")).to_be_visible()
    expect(blank.locator(".lane")).to_have_count(2)


def test_an_address_survives_being_written_and_read(page: Page) -> None:
    address = "#/stream/abc?evidence=1&solo=3&zoom=4&theme=dark&motion=reduce&tok=6:1234"
    script = "async a => { const m = await import('/static/route.js'); return m.written(m.parse(a)); }"
    assert page.evaluate(script, address) == address
    assert page.evaluate(script, "") == "#/stream"


def test_keys_lead_everywhere(blank: Page) -> None:
    peer(blank, council(3, 3))
    blank.goto("/")
    until(blank, "window.__wf.columns === 180")
    expect(blank.locator("#nav-gateway")).to_be_visible()
    body = blank.locator("body")
    for key, screen in [("p", "pool"), ("e", "events"), ("g", "gateway"), ("s", "stream")]:
        at_once(blank, "g", key)  # the second within a second and a half
        expect(blank.locator(f"#screen-{screen}")).to_be_visible()
    body.press("e")
    expect(blank.locator("#evidence")).to_be_visible()
    picked = blank.locator("#evidence-token")
    expect(picked).to_contain_text("Token")
    number = re.search(r"Token (\d+)", picked.text_content() or "")
    assert number is not None
    for key, position in [("ArrowLeft", -1), ("ArrowLeft", -2), ("ArrowRight", -1)]:
        body.press(key)
        expect(picked).to_contain_text(f"Token {int(number[1]) + position}:")
    body.press("]")
    body.press("[")
    until(blank, "location.hash.includes('zoom=2')")


def test_freezing_stops_the_picture_and_not_the_counting(blank: Page) -> None:
    links = peer(blank, council(2, 2))
    blank.goto("/")
    until(blank, "window.__wf.columns === 120")
    blank.locator("body").press(" ")
    expect(blank.locator("#degraded")).to_have_text("frozen: Space goes on")
    more = council(2, 3)[120:]
    for message in more:
        links[0].send(json.dumps(message))
    until(blank, f"window.__wf.framesReceived >= {120 + len(more)}")
    assert blank.evaluate("window.__wf.columns") == 120
    blank.locator("body").press(" ")
    until(blank, "window.__wf.columns === 180")


def test_a_token_is_picked_in_the_field_and_in_the_text(blank: Page) -> None:
    messages = council(2, 4)
    peer(blank, messages)
    blank.goto("/")
    until(blank, "window.__wf.columns === 240")
    blank.locator("#field").click(position={"x": 700, "y": 60})
    expect(blank.locator("#evidence")).to_be_visible()
    picked = blank.locator("#evidence-token")
    expect(picked).to_contain_text("llama3.1:8b")
    number = re.search(r"Token (\d+)", picked.text_content() or "")
    assert number is not None
    told = [
        token
        for message in messages
        for one in message["events"]
        if one["type"] == "experience.token" and one["payload"]["stream_id"].endswith(":0")
        for token in one["payload"]["tokens"]
    ][int(number[1])]
    values = blank.locator("#evidence-values")
    expect(values).to_contain_text(f"{told['t_us'] / 1e6:.6f} s")
    expect(values).to_contain_text(f"{told['delta_ms']:.3f} ms")
    expect(values).to_contain_text(f"{told['logprob']:.4f}")
    expect(blank.locator("#alternatives li")).to_have_count(len(told["top"]))
    text = blank.locator(".lane .text").nth(1)
    end = "(s => s.scrollHeight - s.clientHeight - s.scrollTop < 2)(document.querySelectorAll('.lane .scroll')[1])"
    until(blank, end)  # Evidence took of its room
    box = text.bounding_box()
    assert box is not None
    blank.mouse.click(box["x"] + 30, box["y"] + box["height"] - 12)
    expect(picked).to_contain_text("mistral:7b")
    marked = (
        "[...CSS.highlights.get('picked')].map(r => r.startContainer.data.slice(r.startOffset, r.endOffset)).join()"
    )
    told_of = "document.querySelector('#evidence-token').textContent"
    until(blank, f"{marked} && {told_of}.includes(`“${{{marked}}}”`)")


def test_escape_twice_stops_all(page: Page) -> None:
    run(page, "synthetic/steady", max_tokens=3000)
    until(page, "window.__wf.tokens >= 2")
    run(page, "synthetic/bursty", max_tokens=3000)
    at_once(page, "Escape", "Escape")  # within a second
    expect(page.locator("#outcome")).to_contain_text("Stopped in")
    expect(page.locator("#link")).to_have_text("Ready")  # none is running


def test_files_come_packed(blank: Page) -> None:
    with blank.expect_response("**/static/app.js") as script:
        blank.goto("/")
    assert script.value.headers["content-encoding"] == "gzip"


def test_nobody_looking_means_fewer_frames(page: Page) -> None:
    sent = page.evaluate(
        """async () => {
          const { Pace } = await import("/static/load.js");
          const sent = [];
          const pace = new Pace(message => sent.push(message.rate_hz), () => {});
          const now = performance.now();
          pace.drawn(now);
          pace.heard(now + 100);
          pace.heard(now + 300);
          pace.heard(now + 400);
          pace.drawn(now + 500);
          return sent;
        }"""
    )
    assert sent == [4, 60]


def test_what_is_given_up_under_load_is_said_and_taken_back(page: Page) -> None:
    told = page.evaluate(
        """async () => {
          const { Load } = await import("/static/load.js");
          const load = new Load();
          const told = [load.words];
          for (let n = 0; n < 90; n += 1) load.mark(9);
          told.push(load.level, load.words);
          for (let n = 0; n < 900; n += 1) load.mark(1);
          return [...told, load.level];
        }"""
    )
    assert told == ["", 3, "page under load: numbers only", 0]
