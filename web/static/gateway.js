/** The Gateway screen: who asked how much, how long it took, what it cost, and where something else had to do. */

import * as api from "./api.js";
import { element, fill } from "./elements.js";
import { byId, fixed, known, NONE, put } from "./format.js";
import { visible } from "./text.js";

const POLL_MS = 2_000;

/** @param {unknown} ms */
const time = (ms) => (known(ms) ? (ms < 1_000 ? `${ms} ms` : `${ms / 1_000} s`) : NONE);

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
    put(byId("g-requests"), String(totals.requests));
    put(byId("g-in"), totals.tokens_in.toLocaleString("en"));
    put(byId("g-out"), totals.tokens_out.toLocaleString("en"));
    put(byId("g-cost"), `$${totals.cost_usd.toFixed(totals.cost_usd > 0 && totals.cost_usd < 0.01 ? 6 : 2)}`);
    const parts = [`${totals.local_tokens.toLocaleString("en")} tokens here`, `${totals.remote_tokens.toLocaleString("en")} elsewhere`];
    if (totals.synthetic_tokens > 0) parts.push(`${totals.synthetic_tokens.toLocaleString("en")} SYNTHETIC`);
    if (totals.uncounted + totals.unpriced > 0) parts.push(`lower bounds: ${totals.uncounted} uncounted, ${totals.unpriced} unpriced`);
    put(byId("gateway-since"), since ? `since ${visible(String(since))} · ${parts.join(" · ")}` : "Nothing was asked yet.");
    fill(byId("gateway-rows"), rows.map((/** @type {any} */ row) => [visible(row.key), String(row.requests), String(row.tokens_in), String(row.tokens_out), String(row.remote_tokens), `$${row.cost_usd.toFixed(4)}`]));
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
  _latency(name, { edges_ms: edges, counts, p50, p95, p99 }) {
    put(byId(`g-${name}`), `p50 ${time(p50)} · p95 ${time(p95)} · p99 ${time(p99)}`);
    const most = Math.max(1, ...counts);
    const list = byId(`g-${name}-bars`);
    while (list.childElementCount < counts.length) list.append(element("li", "", element("i"), element("span", "hidden")));
    counts.forEach((count, i) => {
      const item = /** @type {HTMLElement} */ (list.children[i]);
      const words = `${i < edges.length ? `up to ${time(edges[i])}` : `longer than ${time(edges[i - 1])}`}: ${count}`;
      /** @type {HTMLElement} */ (item.firstElementChild).style.height = `${(count / most) * 100}%`;
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
