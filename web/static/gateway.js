/** The Gateway screen: who asked how much, how long it took, what it cost, and where something else had to do. */

import { Chart } from "./charts.js";
import { byId, fixed, known, NONE, put } from "./format.js";
import * as slow from "./slow.js";
import { row } from "./templates.js";
import { visible } from "./text.js";
import { html, nothing, render } from "./vendor/vendor.js";

/** @typedef {import("./theme.js").Palette} Palette */
/** @typedef {{edges_ms: number[], counts: number[], p50: number|null, p95: number|null, p99: number|null}} Latency */
/** @typedef {"ttft"|"duration"} Which */

/** @param {unknown} ms */
const time = (ms) => (known(ms) ? (ms < 1_000 ? `${ms} ms` : `${ms / 1_000} s`) : NONE);

/** @param {number} n */
export const count = (n) => n.toLocaleString("en");

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

/** @param {{cost_usd: number, unpriced: number}} totals */
export const wholeCost = (totals) => cost(totals, totals.cost_usd > 0 && totals.cost_usd < 0.01 ? 6 : 2);

/** What a bar of a histogram stands for. @param {Latency} latency @param {number} i */
export const bucket = ({ edges_ms: edges }, i) => (i < edges.length ? `up to ${time(edges[i])}` : `longer than ${time(edges[i - 1])}`);

export class Gateway {
  /** @param {(by: string) => void} onBy the table is wanted by something else */
  constructor(onBy) {
    this.onBy = onBy;
    this._draw();
    slow.whileShown("gateway", () => this._draw());
    this._bars = { ttft: this._histogram("ttft"), duration: this._histogram("duration") };
    this._speed = new Chart(byId("speed-chart"), { x: "time", y: String, series: [{ kind: "line", colour: (palette) => palette.models[0] }] });
    this._first = new Chart(byId("first-chart"), { x: "time", y: (ms) => time(ms), series: [{ kind: "points", colour: (palette) => palette.models[1] }] });
  }

  /** The charts, at 10 Hz while the screen is shown; each draws only what is new. @param {import("./history.js").History} history @param {Palette} palette */
  show({ speed, ttft }, palette) {
    const usage = slow.usage.peek();
    if (usage) for (const which of /** @type {Which[]} */ (["ttft", "duration"])) this._show(which, usage.latency[`${which}_ms`], palette);
    const now = speed.last(0);
    this._line(this._speed, "speed", speed, `Tokens per second of all that streams, over time. ${known(now) ? `Now ${now.toFixed(1)}.` : "Nothing streams now."}`, palette);
    const last = ttft.last(0);
    this._line(this._first, "first", ttft, `Time to first token of each answer, over time. ${known(last) ? `The last one: ${Math.round(last)} ms.` : ""}`, palette);
  }

  /** @param {Chart} chart @param {string} name @param {import("./history.js").Ring} ring @param {string} label @param {Palette} palette */
  _line(chart, name, ring, label, palette) {
    byId(`${name}-none`).hidden = ring.length > 0;
    byId(`${name}-chart`).hidden = ring.length === 0;
    chart.show(ring.columns, palette, label, String(ring.count));
  }

  /** @param {Which} which @param {Latency} latency @param {Palette} palette */
  _show(which, latency, palette) {
    const { counts } = latency;
    const words = `${which === "ttft" ? "Answers by time to first token" : "Answers by their length in time"}: p50 ${atMost(latency.p50, latency)}, p95 ${atMost(latency.p95, latency)}.`;
    this._bars[which].show([counts.map((_, i) => i), counts], palette, words, counts.join());
  }

  /** Counts by the engine's own edges. @param {Which} which */
  _histogram(which) {
    const latency = () => /** @type {Latency|undefined} */ (slow.usage.peek()?.latency[`${which}_ms`]);
    const edge = (/** @type {number} */ i) => {
      const edges = latency()?.edges_ms ?? [];
      return i < edges.length ? time(edges[i]) : "more";
    };
    const pointed = (/** @type {number|null} */ i) => {
      const now = latency();
      put(byId(`g-${which}-at`), now && i !== null && i < now.counts.length ? `${bucket(now, i)}: ${count(now.counts[i])}` : "");
    };
    return new Chart(byId(`g-${which}-chart`), { x: edge, y: count, yWhole: true, series: [{ kind: "bars", colour: (palette) => palette.models[0] }] }, pointed);
  }

  _draw() {
    render(this._view(), byId("gateway"));
  }

  _view() {
    const usage = slow.usage.value;
    const trouble = slow.trouble.value;
    return html`
      <div class="title"><h2 id="gateway-title">Gateway</h2><span class="mono quiet" id="gateway-since" title="here: by models on this machine; elsewhere: by models outside it; in and out together">${usage ? since(usage) : ""}</span></div>
      <p class="error" id="gateway-trouble" role="alert" ?hidden=${trouble === ""}>${trouble}</p>
      ${sums(usage?.totals)}
      <div class="pair-cards">${latencyCard("ttft", "Time to first token", usage?.latency.ttft_ms)}${latencyCard("duration", "Whole answers", usage?.latency.duration_ms)}</div>
      <div class="pair-cards">
        ${lineCard("speed", "Tokens per second", "of all that streams, as this page heard it; SYNTHETIC is left out", "Nothing has streamed since this page was opened.")}
        ${lineCard("first", "Time to first token, one by one", "of each answer this page heard; SYNTHETIC is left out", "No answer has begun since this page was opened.")}
      </div>
      <div class="card scrolls" tabindex="0" role="region" aria-label="Usage">
        <table class="pool usage">
          <thead><tr><th scope="col"><label>by <select id="gateway-by" @change=${(/** @type {Event} */ event) => this.onBy(/** @type {HTMLSelectElement} */ (event.target).value)}><option>model</option><option>agent</option><option>day</option></select></label></th><th scope="col">requests</th><th scope="col" title="Tokens of prompts. ≥: not all were counted, —: none was">in</th><th scope="col">out</th><th scope="col" title="Tokens, in and out, of models outside this machine">elsewhere</th><th scope="col" title="≥: of some answers it is not known">cost</th></tr></thead>
          <tbody id="gateway-rows">${(usage?.rows ?? []).map((/** @type {any} */ one) => row([visible(one.key), count(one.requests), tokensIn(one), count(one.tokens_out), count(one.remote_tokens), cost(one, 4)]))}</tbody>
        </table>
      </div>
      <div class="pair-cards">
        <div class="card latency"><h3>Something else had to do</h3><p class="quiet" id="fallbacks-none" ?hidden=${(usage?.fallbacks.length ?? 0) > 0}>Never: every request was answered by what was asked for.</p><table class="members"><tbody id="fallback-rows">${(usage?.fallbacks ?? []).map((/** @type {any} */ one) => row([visible(one.reason), one.place, String(one.requests)]))}</tbody></table></div>
        <div class="card latency"><h3>How answers ended</h3><table class="members"><tbody id="ended-rows">${Object.entries(usage?.ended ?? {}).map(([reason, n]) => row([reason, String(n)]))}</tbody></table></div>
      </div>
      ${providers(slow.stats.value?.providers)}
      <p class="quiet small" id="gateway-notes">${usage ? notes(usage) : ""}</p>`;
  }
}

/** @param {any} usage */
function since({ since: day, totals }) {
  const parts = [`${count(totals.local_tokens)} tokens here`, `${count(totals.remote_tokens)} elsewhere`];
  if (totals.synthetic_tokens > 0) parts.push(`${count(totals.synthetic_tokens)} SYNTHETIC`);
  return day ? `since ${visible(String(day))} · ${parts.join(" · ")}` : "Nothing was asked yet.";
}

/** @param {any} totals */
function sums(totals) {
  return html`<div class="card sums"><dl class="numbers four">
    <div title="Answers of models; a council counts for each of its models"><dt>requests</dt><dd id="g-requests">${totals ? count(totals.requests) : NONE}</dd></div>
    <div><dt>tokens in</dt><dd><span id="g-in">${totals ? tokensIn(totals) : NONE}</span> <small class="why" id="g-in-why">${totals?.uncounted > 0 ? `${count(totals.uncounted)} of ${count(totals.requests)} prompts not counted by their runtime` : ""}</small></dd></div>
    <div><dt>tokens out</dt><dd id="g-out">${totals ? count(totals.tokens_out) : NONE}</dd></div>
    <div><dt>cost</dt><dd><span id="g-cost">${totals ? wholeCost(totals) : NONE}</span> <small class="why" id="g-cost-why">${totals?.unpriced > 0 ? `${count(totals.unpriced)} answers without a known price` : ""}</small></dd></div>
  </dl></div>`;
}

/** A histogram, and the same as a list for those who do not see it. @param {Which} which @param {string} title @param {Latency|undefined} latency */
function latencyCard(which, title, latency) {
  const percentiles = latency ? `p50 ${atMost(latency.p50, latency)} · p95 ${atMost(latency.p95, latency)} · p99 ${atMost(latency.p99, latency)}` : NONE;
  return html`<div class="card latency"><div class="line"><h3>${title}</h3><span class="mono quiet" id="g-${which}" title="Edges of the bars below: so large a part of the answers took no longer than this">${percentiles}</span></div>
    <div class="chart" id="g-${which}-chart"></div>
    <p class="mono quiet small under" id="g-${which}-at"></p>
    <ol class="hidden" id="g-${which}-bars" aria-label="${title}: answers">${latency?.counts.map((n, i) => html`<li>${bucket(latency, i)}: ${n}</li>`)}</ol></div>`;
}

/** @param {string} name @param {string} title @param {string} what @param {string} none */
function lineCard(name, title, what, none) {
  return html`<div class="card latency"><div class="line"><h3>${title}</h3></div><p class="quiet small">${what}</p><p class="quiet" id="${name}-none">${none}</p><div class="chart" id="${name}-chart" hidden></div></div>`;
}

/** @param {any} told */
function providers(told) {
  if (!Array.isArray(told) || told.length === 0) return nothing;
  const rows = told.map((one) => row([visible(one.name), one.local ? "this machine" : "elsewhere", String(one.requests ?? NONE), known(one.success_rate) ? `${(one.success_rate * 100).toFixed(1)} %` : NONE, fixed(one.ttft_ms?.p50, 0), String(one.breaker ?? NONE)]));
  return html`<div class="card latency" id="providers"><h3>Providers</h3>
    <table class="members"><thead><tr><th scope="col">name</th><th scope="col" title="elsewhere: outside this machine, so that prompts leave it">where</th><th scope="col">requests</th><th scope="col">success</th><th scope="col">TTFT ms</th><th scope="col">breaker</th></tr></thead><tbody id="provider-rows">${rows}</tbody></table></div>`;
}

/** @param {any} usage */
function notes({ prices, avoided, ledger }) {
  const saved = known(avoided.estimate_usd) ? `Estimate of what local answers would have cost at ${visible(avoided.name ?? "your own prices")}: $${avoided.estimate_usd.toFixed(2)}.` : "";
  const kept = ledger.persistent ? "" : " These figures end with the engine.";
  const lost = ledger.lost > 0 ? ` ${ledger.lost} answers were not written.` : "";
  return `Prices as of ${visible(prices.as_of)}; what is answered here costs nothing. ${saved}${kept}${lost}`;
}
