/** The cards beside the stream of a wide window: the pool, the gateway and the classifier in short, from what their screens show. */

import { allowance } from "./features.js";
import { byId, fixed, known, NONE } from "./format.js";
import { atMost, bucket, count, tokensIn, wholeCost } from "./gateway.js";
import { memoryBar, told } from "./pool.js";
import * as slow from "./slow.js";
import { glyph, styled } from "./templates.js";
import { visible } from "./text.js";
import { bytes } from "./transfers.js";
import { html, nothing, render } from "./vendor/vendor.js";

const MODELS = 9; // rows of the card; the screen has all
/** @type {import("./api.js").Part[]} */
const PARTS = ["domain", "task", "method"];

/** Draws them now, and whenever what they show is another. */
export function showBeside() {
  slow.whileBeside(() => render(poolCard(), byId("pool-card")));
  slow.whileBeside(() => {
    byId("gateway-card").hidden = !slow.ledger.value;
    render(gatewayCard(), byId("gateway-card"));
  });
  slow.whileBeside(() => {
    byId("classifier-card").hidden = slow.classifier.value === null;
    render(classifierCard(), byId("classifier-card"));
  });
}

function poolCard() {
  const listing = slow.listing.value;
  const { models: places } = allowance(slow.engine.value);
  const running = slow.streaming.value.length;
  const head = html`<div class="line"><h3 id="pool-card-title"><a href="#/pool">Model pool</a></h3><span class="quiet small">${listing?.tier ? html`tier <b>${listing.tier}</b>` : ""}${known(places) ? ` · ${running}/${places} parallel` : ""}</span></div>`;
  if (!listing) return html`${head}<p class="quiet small">${NONE} the engine has not told of its models yet</p>`;
  const all = told(listing);
  return html`${head}${memoryLine(listing.memory, all)}
    <table class="brief" aria-labelledby="pool-card-title"><tbody>${all.slice(0, MODELS).map(modelRow)}</tbody></table>
    ${all.length > MODELS ? html`<p class="quiet small"><a href="#/pool">and ${all.length - MODELS} more</a></p>` : nothing}`;
}

/** @param {import("./api.js").Memory|undefined} memory @param {import("./pool.js").Told[]} all */
function memoryLine(memory, all) {
  if (!memory) return nothing;
  const { used_ram_bytes: used, used_vram_bytes: usedVram, ram_budget_bytes: budget, ram_total_bytes: total, vram_budget_bytes: vram } = memory;
  const untold = all.some((one) => isIn(one) && !known(resident(one.model)));
  return html`<div class="line small"><span class="quiet">RAM</span><span class="mono" title="Taken by models, of this machine's memory; the tier's budget ends at the line${untold ? ". Of some in memory nobody has told the size" : ""}">${untold ? "≥ " : ""}${bytes(used)} / ${bytes(total)} · cap ${bytes(budget)}</span></div>${memoryBar(memory, all, "card")}
    ${vram ? html`<div class="line small"><span class="quiet">GPU</span><span class="mono" title="Taken by models, of the tier's budget">${bytes(usedVram)} / ${bytes(vram)}</span></div>${memoryBar(memory, all, "card-vram", true)}` : nothing}`;
}

/** Bytes in memory; null where nobody has told them. @param {import("./pool.js").Told["model"]} model */
const resident = (model) => (model.resident_bytes ? model.resident_bytes : null);

/** By what is heard of it, which may be newer than the list. @param {import("./pool.js").Told} one */
const isIn = ({ state, speaks }) => speaks || state === "ready";

/** @param {import("./pool.js").Told} one */
function modelRow(one) {
  const { model, state, reason, progress, speaks, place } = one;
  const part = known(progress) ? ` ${Math.floor(progress * 100)} %` : "";
  const inside = resident(model);
  const size = known(inside) ? bytes(inside) : NONE;
  const title = known(inside) ? "In memory" : isIn(one) ? "In memory; nobody has told how much" : `Not in memory${model.size_bytes ? `; ${bytes(model.size_bytes)} on disk` : ""}`;
  return html`<tr><th scope="row" title=${visible(model.name)}>${glyph(place)}${visible(model.name)}</th><td class="state" data-state=${speaks ? "ready" : state} title=${reason}>${speaks ? "streaming" : state}${part}</td><td class="mono" title=${title}>${size}</td></tr>`;
}

function gatewayCard() {
  const usage = slow.usage.value;
  const others = usage ? usage.fallbacks.reduce((/** @type {number} */ sum, /** @type {any} */ one) => sum + one.requests, 0) : null;
  const head = html`<div class="line"><h3 id="gateway-card-title"><a href="#/gateway">Gateway</a></h3><span class="quiet small">${usage?.since ? `since ${visible(String(usage.since))} · ` : ""}fallbacks ${others ?? NONE}</span></div>`;
  if (!usage) return html`${head}<p class="quiet small">${NONE} ${slow.trouble.value || "the engine has not told of its figures yet"}</p>`;
  const { totals, latency } = usage;
  const { ttft_ms: ttft } = latency;
  const most = Math.max(1, ...ttft.counts);
  return html`${head}
    <dl class="numbers four">
      <div><dt>cost</dt><dd class=${totals.cost_usd === 0 && totals.unpriced === 0 ? "ok" : ""}>${wholeCost(totals)}</dd></div>
      <div title="In ${tokensIn(totals)}, out ${count(totals.tokens_out)}"><dt>tokens</dt><dd>${totals.uncounted > 0 ? "≥ " : ""}${brief(totals.tokens_in + totals.tokens_out)}</dd></div>
      <div title="Edge of the bar below: half of the answers took no longer than this to begin"><dt>TTFT p50</dt><dd>${atMost(ttft.p50, ttft)}</dd></div>
      <div title="The same for 95 of 100 answers"><dt>p95</dt><dd>${atMost(ttft.p95, ttft)}</dd></div>
    </dl>
    ${
      totals.requests === 0
        ? html`<p class="quiet small">No answer has ended yet.</p>`
        : html`<div class="bars" role="img" aria-label="Answers by time to first token: p50 ${atMost(ttft.p50, ttft)}, p95 ${atMost(ttft.p95, ttft)}">${ttft.counts.map((/** @type {number} */ n, /** @type {number} */ i) => html`<i title="${bucket(ttft, i)}: ${n}" data-mid=${ttft.edges_ms[i] === ttft.p50 ? "true" : nothing} ${styled({ height: `${(n / most) * 100}%` })}></i>`)}</div>
          <div class="line mono quiet small"><span>${bucket(ttft, 0)}</span><span>${bucket(ttft, ttft.counts.length - 1)}</span></div>`
    }`;
}

/** @param {number} n */
const brief = (n) => (n < 10_000 ? count(n) : n < 1e6 ? `${(n / 1e3).toFixed(1)}k` : `${(n / 1e6).toFixed(2)}M`);

function classifierCard() {
  const [offered, last] = [slow.classifier.value, slow.classified.value];
  const ms = last ? (last.ms < 1_000 ? `${Math.round(last.ms)} ms` : `${(last.ms / 1_000).toFixed(2)} s`) : "";
  const about = last ? `${ms} · ${visible(last.answer.model)}` : visible(offered?.info.model.name ?? "");
  const head = html`<div class="line"><h3 id="classifier-card-title"><a href="#/classifier">Domain classifier</a></h3><span class="mono quiet small" title=${about}>${about}</span></div>`;
  if (!last) return html`${head}<p class="quiet small">${NONE} this page has classified nothing yet</p>`;
  const { tmd, confidence, confidence_reason: reasons } = last.answer;
  const unsure = new Set(PARTS.filter((part) => confidence[part] === null).map((part) => visible(reasons[part] ?? "")));
  return html`${head}<table class="brief sure" aria-labelledby="classifier-card-title"><tbody>${PARTS.map((part) => labelRow(part, visible(tmd[part]), confidence[part]))}</tbody></table>
    ${unsure.size > 0 ? html`<p class="quiet small">${NONE} ${[...unsure].join("; ")}</p>` : nothing}`;
}

/** @param {string} part @param {string} label @param {number|null} confidence */
function labelRow(part, label, confidence) {
  const bar = confidence === null ? nothing : html`<span class="bar"><i ${styled({ width: `${confidence * 100}%` })}></i></span>`;
  return html`<tr><th scope="row"><span class="quiet">${part}</span> <b class="mono">${label}</b></th><td>${bar}</td><td class="mono">${fixed(confidence, 2)}</td></tr>`;
}
