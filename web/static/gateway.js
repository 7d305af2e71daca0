/** The Gateway screen: who asked how much, how long it took, what it cost, and where something else had to do. */

import * as api from "./api.js";
import { element, fill } from "./elements.js";
import { byId, fixed, known, NONE, put } from "./format.js";
import { visible } from "./text.js";

const POLL_MS = 2_000;

/** @param {unknown} ms */
const time = (ms) => (known(ms) ? (ms < 1_000 ? `${ms} ms` : `${ms / 1_000} s`) : NONE);

/** @param {number} n */
const count = (n) => n.toLocaleString("en");

/**
 * A percentile as it is known: it lies in a bucket, whose upper edge is told; beyond the last edge none is.
 * @param {number|null} edge @param {{edges_ms: number[], counts: number[]}} latency
 */
export function atMost(edge, { edges_ms: edges, counts }) {
  if (known(edge)) return `≤ ${time(edge)}`;
  return counts.some((n) => n > 0) ? `> ${time(edges[edges.length - 1])}` : NONE;
}

/** Tokens of prompts; those that nobody counted are missing from the sum. @param {{requests: number, tokens_in: number, uncounted: number}} sums */
export function tokensIn({ requests, tokens_in: tokens, uncounted }) {
  if (uncounted === 0) return count(tokens);
  return tokens > 0 || uncounted < requests ? `≥ ${count(tokens)}` : NONE;
}

/** @param {{cost_usd: number, unpriced: number}} sums @param {number} digits */
const cost = ({ cost_usd: usd, unpriced }, digits) => `${unpriced > 0 ? "≥ " : ""}$${usd.toFixed(digits)}`;

export class Gateway {
  constructor() {
    this._askedAt = -POLL_MS;
    this._asking = false;
    this.by = /** @type {HTMLSelectElement} */ (byId("gateway-by"));
    this.by.addEventListener("change", () => (this._askedAt = -POLL_MS));
  }

  /** 10 Hz while the screen is shown. @param {number} now */
  show(now) {
    if (this._asking || now - this._askedAt < POLL_MS) return;
    this._askedAt = now;
    this._ask();
  }

  async _ask() {
    this._asking = true;
    const trouble = byId("gateway-trouble");
    try {
      const [usage, stats] = await Promise.all([api.usage(this.by.value), api.stats()]);
      this._usage(usage);
      this._providers(stats);
      trouble.hidden = true;
    } catch (error) {
      put(trouble, error instanceof Error ? error.message : String(error));
      trouble.hidden = false;
    } finally {
      this._asking = false;
    }
  }

  /** @param {any} usage */
  _usage({ totals, rows, since, latency, fallbacks, ended, prices, avoided, ledger }) {
    put(byId("g-requests"), count(totals.requests));
    put(byId("g-in"), tokensIn(totals));
    put(byId("g-in-why"), totals.uncounted > 0 ? `${count(totals.uncounted)} of ${count(totals.requests)} prompts not counted by their runtime` : "");
    put(byId("g-out"), count(totals.tokens_out));
    put(byId("g-cost"), cost(totals, totals.cost_usd > 0 && totals.cost_usd < 0.01 ? 6 : 2));
    put(byId("g-cost-why"), totals.unpriced > 0 ? `${count(totals.unpriced)} answers without a known price` : "");
    const parts = [`${count(totals.local_tokens)} tokens here`, `${count(totals.remote_tokens)} elsewhere`];
    if (totals.synthetic_tokens > 0) parts.push(`${count(totals.synthetic_tokens)} SYNTHETIC`);
    put(byId("gateway-since"), since ? `since ${visible(String(since))} · ${parts.join(" · ")}` : "Nothing was asked yet.");
    fill(byId("gateway-rows"), rows.map((/** @type {any} */ row) => [visible(row.key), count(row.requests), tokensIn(row), count(row.tokens_out), count(row.remote_tokens), cost(row, 4)]));
    this._latency("ttft", latency.ttft_ms);
    this._latency("duration", latency.duration_ms);
    fill(byId("fallback-rows"), fallbacks.map((/** @type {any} */ row) => [visible(row.reason), row.place, String(row.requests)]));
    byId("fallbacks-none").hidden = fallbacks.length > 0;
    fill(byId("ended-rows"), Object.entries(ended).map(([reason, count]) => [reason, String(count)]));
    const saved = known(avoided.estimate_usd) ? `Estimate of what local answers would have cost at ${visible(avoided.name ?? "your own prices")}: $${avoided.estimate_usd.toFixed(2)}.` : "";
    const kept = ledger.persistent ? "" : " These figures end with the engine.";
    const lost = ledger.lost > 0 ? ` ${ledger.lost} answers were not written.` : "";
    put(byId("gateway-notes"), `Prices as of ${visible(prices.as_of)}; what is answered here costs nothing. ${saved}${kept}${lost}`);
  }

  /** Counts by the engine's own edges. @param {string} name @param {{edges_ms: number[], counts: number[], p50: number|null, p95: number|null, p99: number|null}} latency */
  _latency(name, latency) {
    const { edges_ms: edges, counts, p50, p95, p99 } = latency;
    put(byId(`g-${name}`), `p50 ${atMost(p50, latency)} · p95 ${atMost(p95, latency)} · p99 ${atMost(p99, latency)}`);
    const most = Math.max(1, ...counts);
    const list = byId(`g-${name}-bars`);
    while (list.childElementCount < counts.length) list.append(element("li", "", element("i"), element("span", "hidden")));
    counts.forEach((answers, i) => {
      const item = /** @type {HTMLElement} */ (list.children[i]);
      const words = `${i < edges.length ? `up to ${time(edges[i])}` : `longer than ${time(edges[i - 1])}`}: ${answers}`;
      /** @type {HTMLElement} */ (item.firstElementChild).style.height = `${(answers / most) * 100}%`;
      if (item.title !== words) item.title = words;
      put(item.lastElementChild, words);
    });
    put(byId(`g-${name}-first`), time(edges[0]));
    put(byId(`g-${name}-last`), time(edges[edges.length - 1]));
  }

  /** @param {any} stats */
  _providers({ providers }) {
    byId("providers").hidden = !Array.isArray(providers) || providers.length === 0;
    if (!Array.isArray(providers)) return;
    const rows = providers.map((one) => [visible(one.name), one.local ? "this machine" : "elsewhere", String(one.requests ?? NONE), known(one.success_rate) ? `${(one.success_rate * 100).toFixed(1)} %` : NONE, fixed(one.ttft_ms?.p50, 0), String(one.breaker ?? NONE)]);
    fill(byId("provider-rows"), rows);
  }
}
