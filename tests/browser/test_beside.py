"""The cards beside the stream of a wide window, charts with axes, and what the page has from others."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.acts import ended, run, stands, until
from tests.browser.conftest import Watch
from tests.browser.scripted import NAMES, council, peer, stream_id

pytestmark = pytest.mark.browser

CARDS: Final = ("#pool-card", "#gateway-card")


def test_the_pool_in_short_is_the_engines_listing(page: Page) -> None:
    stands(page, "**/models")
    with page.expect_response("**/models") as heard:  # asked again by itself
        pass
    listing = heard.value.json()
    card = page.locator("#pool-card")
    expect(card.locator("tbody tr")).to_have_count(min(9, len(listing["models"])))
    expect(card.locator("b").first).to_have_text(listing["tier"])
    places = page.request.get("/api/bootstrap").json()["limits"]["council_models_max"]
    expect(card).to_contain_text(f"0/{places} parallel")
    expect(card).to_contain_text(f"cap {listing['memory']['ram_budget_bytes'] / 1e9:.2f} GB")
    for model in listing["models"]:
        row = card.locator("tr", has=page.get_by_role("rowheader", name=model["name"], exact=True))
        if not model["resident_bytes"]:
            expect(row.locator("td").last).to_have_text("—")
            expect(row.locator("td").last).to_have_attribute("title", re.compile("Not in memory"))
    expect(card.locator("#card-cap")).to_be_visible()


def test_the_memory_of_a_gpu_has_a_line_of_its_own(blank: Page) -> None:
    def on_gpu(route: Route) -> None:
        listing = route.fetch().json()
        listing["memory"] |= {"vram_budget_bytes": 8_000_000_000, "used_vram_bytes": 2_000_000_000}
        listing["memory"] |= {"used_ram_bytes": 1_000_000_000, "used_bytes": 3_000_000_000}
        listing["models"][0] |= {"resident_bytes": 3_000_000_000, "vram_bytes": 2_000_000_000, "state": "ready"}
        route.fulfill(json=listing)

    blank.route("**/models", on_gpu)
    blank.goto("/")
    card = blank.locator("#pool-card")
    expect(card).to_contain_text("2.00 GB / 8.00 GB")
    expect(blank.locator("#card-vram-bar i")).to_have_attribute("style", re.compile("width: 25%"))
    expect(blank.locator("#card-bar i")).to_have_attribute("title", re.compile("1.00 GB"))
    card.get_by_role("link", name="Model pool").click()
    expect(blank.locator("#vram-words")).to_have_text("2.00 GB used · budget 8.00 GB")
    expect(blank.locator("#ram-words")).to_contain_text("1.00 GB used")
    expect(blank.locator("#vram-bar i")).to_have_attribute("style", re.compile("width: 25%"))


def usage(**totals: Any) -> dict[str, Any]:
    sums = {"requests": 4, "tokens_in": 120, "tokens_out": 80, "local_tokens": 200, "remote_tokens": 0}
    sums |= {"synthetic_tokens": 0, "cost_usd": 0.0, "uncounted": 0, "unpriced": 0} | totals
    latency = {"edges_ms": [10, 500, 5000], "counts": [1, 2, 0, 1], "p50": 500, "p95": None, "p99": None}
    fallbacks = [{"place": "session", "reason": "not here", "requests": 3}]
    rest = {"by": "model", "since": "2026-01-01", "rows": [], "ended": {"finished": 4}}
    rest |= {"prices": {"currency": "USD", "as_of": "2026-01-01"}, "ledger": {"persistent": True, "lost": 0}}
    rest |= {"avoided": {"estimate_usd": None, "reason": "no prices", "name": None, "as_of": None}}
    return rest | {
        "totals": sums,
        "latency": {"ttft_ms": latency, "duration_ms": latency},
        "fallbacks": fallbacks,
    }


def told(page: Page, body: dict[str, Any]) -> None:
    page.route("**/usage?by=*", lambda route: route.fulfill(json=body))


def test_the_gateway_in_short_says_what_its_screen_says(blank: Page) -> None:
    told(blank, usage())
    blank.goto("/")
    card = blank.locator("#gateway-card")
    expect(card.locator("dd")).to_have_text(["$0.00", "200", "≤ 500 ms", "> 5 s"])
    expect(card).to_contain_text("fallbacks 3")
    assert card.locator(".bars i").evaluate_all("bars => bars.map(bar => bar.style.height)") == [
        "50%",
        "100%",
        "0%",
        "50%",
    ]
    expect(card.locator(".bars i[data-mid]")).to_have_attribute("title", "up to 500 ms: 2")
    card.get_by_role("link").click()
    expect(blank.locator("#g-ttft")).to_have_text("p50 ≤ 500 ms · p95 > 5 s · p99 > 5 s")


def test_what_was_not_counted_is_no_sum(blank: Page) -> None:
    told(blank, usage(uncounted=2, unpriced=1))
    blank.goto("/")
    expect(blank.locator("#gateway-card dd")).to_have_text(["≥ $0.00", "≥ 200", "≤ 500 ms", "> 5 s"])


def test_where_nothing_was_asked_nothing_is_drawn(blank: Page) -> None:
    none = {"edges_ms": [10, 500], "counts": [0, 0, 0], "p50": None, "p95": None, "p99": None}
    nothing = {"since": None, "latency": {"ttft_ms": none, "duration_ms": none}, "fallbacks": []}
    told(blank, usage(requests=0, tokens_in=0, tokens_out=0) | nothing)
    blank.goto("/")
    card = blank.locator("#gateway-card")
    expect(card).to_contain_text("No answer has ended yet.")
    expect(card.locator("dd")).to_have_text(["$0.00", "0", "—", "—"])
    expect(card.locator(".bars")).to_have_count(0)


def test_they_are_there_where_there_is_room(blank: Page) -> None:
    peer(blank, council(3, 2))
    blank.goto("/")
    for card in CARDS:
        expect(blank.locator(card)).to_be_visible()
    expect(blank.locator("#classifier-card")).to_be_hidden()  # no services here
    blank.locator("body").press("e")
    expect(blank.locator("#evidence")).to_be_visible()
    for card in CARDS:
        expect(blank.locator(card)).to_be_hidden()  # Evidence stands in their place
    blank.locator("body").press("e")
    blank.set_viewport_size({"width": 1024, "height": 768})
    for card in CARDS:
        expect(blank.locator(card)).to_be_hidden()


def test_without_a_ledger_there_is_no_card_of_it(blank: Page) -> None:
    def description(route: Route) -> None:
        body = route.fetch().json()
        del body["paths"]["/usage"]
        route.fulfill(json=body)

    asked: list[str] = []
    blank.on("request", lambda request: asked.append(request.url))
    blank.route("**/openapi.json", description)
    with blank.expect_response("**/openapi.json"):
        blank.goto("/")
    expect(blank.locator("#pool-card tbody tr").first).to_be_visible()
    expect(blank.locator("#gateway-card")).to_be_hidden()
    assert [url for url in asked if "/usage" in url] == []


# ── how far each two agree ──────────────────────────────────────────────────────────────────────────────────────────


def test_from_four_members_on_agreements_are_a_triangle(blank: Page) -> None:
    messages = council(4, 2)
    peer(blank, messages)
    blank.goto("/")
    last = [e for message in messages for e in message["events"] if e["type"] == "council.ensemble"][-1]
    wanted = {(pair["b"], pair["a"]): f"{pair['agreement']:.2f}" for pair in last["payload"]["agreement"]}
    rows = blank.locator(".matrix tbody tr")
    expect(rows).to_have_count(3)
    for slot in range(1, 4):
        cells = rows.nth(slot - 1)
        expect(cells.get_by_role("rowheader")).to_have_text(NAMES[slot])
        expect(cells.locator("td")).to_have_text([wanted[stream_id(other), stream_id(slot)] for other in range(slot)])
    expect(blank.locator(".pair")).to_have_count(0)


def test_what_was_not_measured_of_two_is_a_dash(blank: Page) -> None:
    messages = council(4, 2)
    for message in messages:
        for event in message["events"]:
            if event["type"] == "council.ensemble":
                del event["payload"]["agreement"][0]  # of the first two
    peer(blank, messages)
    blank.goto("/")
    cell = blank.locator(".matrix tbody td").first
    expect(cell).to_have_text("—")
    expect(cell).to_have_attribute("title", f"{NAMES[0]} and {NAMES[1]}: not measured")
    expect(blank.locator(".matrix tbody td", has_text=re.compile(r"\d"))).to_have_count(5)


# ── charts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


INKED: Final = """(canvas => {
  if (!canvas?.width) return false;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.some(value => value > 0);
})"""


def test_charts_show_what_this_page_heard(page: Page) -> None:
    page.click("#nav-gateway")
    expect(page.locator("#speed-none")).to_be_visible()
    expect(page.locator("#speed-chart")).to_be_hidden()
    page.click("#nav-stream")
    run(page, "embedded/lexicon", max_tokens=600)  # longer than it takes to look
    page.click("#nav-gateway")
    expect(page.locator("#speed-chart canvas")).to_be_visible()
    expect(page.locator("#first-chart")).to_have_attribute("aria-label", re.compile(r"The last one: \d+ ms\."))
    for chart in ("#g-ttft-chart", "#g-duration-chart", "#speed-chart", "#first-chart"):
        until(page, f"{INKED}(document.querySelector('{chart} canvas'))")
    page.click("#nav-pool")
    expect(page.locator("#memory-chart")).to_have_attribute("aria-label", re.compile(r"Now [\d.]+ [kMG]B\."))
    expect(page.locator("#memory-chart canvas")).to_be_visible()
    page.click("#nav-stream")
    page.locator("body").press("Escape")  # stops it, if it goes on
    ended(page)


def test_a_history_is_bounded_and_leaves_out_what_was_made_up(page: Page) -> None:
    kept = page.evaluate(
        """async () => {
          const { History, Ring } = await import("/static/history.js");
          const ring = new Ring(1);
          for (let n = 0; n < 1_000; n += 1) ring.add(n * 1_000, [n]);
          const heard = [{ token: { position: 0 } }];
          const usual = { reading: { tps: 20 }, done: null, error: null, ttftMs: 40, heard };
          const stream = more => ({ ...usual, ...more });
          const session = more => ({ active: true, synthetic: false, streams: [stream()], ...more });
          const speed = (...sessions) => {
            const one = new History();
            one.sample(sessions, 1_000);
            return [one.speed.last(0), one.ttft.length];
          };
          const history = new History();
          const streams = [stream()];
          for (const active of [true, true, false, false]) history.sample([session({ active, streams })], 1_000);
          return {
            ring: [ring.length, ring.columns[0][0], ring.last(0), ring.count],
            two: speed(session(), session()),
            synthetic: speed(session({ synthetic: true })),
            restored: speed(session({ active: false, streams: [stream({ heard: [] })] })),
            silent: speed(),
            gaps: history.speed.columns[1],
            first: history.ttft.columns[1],
          };
        }"""
    )
    assert kept["ring"] == [900, 100, 999, 1000]
    assert (kept["two"], kept["synthetic"], kept["restored"], kept["silent"]) == (
        [40, 2],
        [None, 0],
        [None, 0],
        [None, 0],
    )
    assert kept["gaps"] == [20, 20, None]  # one, however long the silence
    assert kept["first"] == [40]


# ── what the page has from others ───────────────────────────────────────────────────────────────────────────────────


def test_letters_come_from_this_engine(page: Page) -> None:
    loaded = page.evaluate(
        """async () => {
          await document.fonts.ready;
          const loaded = [...document.fonts].filter(font => font.status === "loaded");
          return loaded.map(font => font.family.replaceAll('"', ""));
        }"""
    )
    assert set(loaded) == {"Inter", "JetBrains Mono"}
    asked = page.evaluate(
        "performance.getEntriesByType('resource').map(one => one.name).filter(name => name.includes('/vendor/'))"
    )
    assert len(asked) == 4
    assert all(re.search(r"/static/vendor/[\w.-]+\?v=[0-9a-f]{8}$", url) for url in asked)


def test_only_templates_may_make_markup(page: Page, watch: Watch) -> None:
    refused = page.evaluate(
        """() => {
          const tried = [
            () => (document.createElement("div").innerHTML = "<b>x</b>"),
            () => trustedTypes.createPolicy("mine", { createHTML: text => text }),
            () => trustedTypes.createPolicy("lit-html", { createHTML: text => text }),
          ];
          return tried.map(attempt => { try { attempt(); return "done"; } catch (error) { return error.name; } });
        }"""
    )
    assert refused == ["TypeError"] * 3
    page.goto("about:blank")  # the page saw it too, and says so
    watch.faults = [fault for fault in watch.faults if "policy" not in fault.lower() and "TrustedHTML" not in fault]
