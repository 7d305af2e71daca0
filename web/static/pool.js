/** The Pool screen: how full memory is, every model with its state, and what can be done about it. */

import * as api from "./api.js";
import { Chart } from "./charts.js";
import { byId, fixed, known, NONE } from "./format.js";
import { LANES } from "./session.js";
import * as slow from "./slow.js";
import { glyph, row, styled } from "./templates.js";
import { bytes } from "./transfers.js";
import { visible } from "./text.js";
import { html, nothing, render, repeat, signal } from "./vendor/vendor.js";

const ROWS_MAX = 200;
const INSIDE = new Set(["ready", "evicted"]); // states that say by themselves whether it is in memory

/** @typedef {import("./api.js").Model} Model */
/** @typedef {import("./api.js").Memory} Memory */
/** @typedef {{model: Model, state: string, reason: string, progress: number|null, speaks: boolean, place: number}} Told what is known of a model now */

/** Each model with its state now, those in memory first. @param {import("./api.js").Listing} listing @returns {Told[]} */
export function told({ models }) {
  const [heard, streaming, slots] = [slow.heard.value, slow.streaming.value, slow.slots.value];
  const resident = models.filter((model) => (model.resident_bytes ?? 0) > 0).map(({ name }) => name);
  const all = models.map((model) => {
    const news = heard.get(model.name);
    const place = slots.size > 0 ? -1 : resident.indexOf(model.name);
    return {
      model,
      state: news?.state ?? model.state ?? "unknown",
      reason: news?.reason ? visible(news.reason) : "",
      progress: news?.progress ?? null,
      speaks: streaming.includes(model.name),
      place: slots.get(model.name) ?? (place < 0 ? -1 : place % LANES), // as its lane, or as its part of the bar
    };
  });
  return all.sort((a, b) => Number(b.speaks) - Number(a.speaks) || Number(a.state === "absent") - Number(b.state === "absent"));
}

/** @param {Model} model its bytes in memory of the GPU, and in main memory */
const inGpu = (model) => model.vram_bytes ?? 0;
/** @param {Model} model */
const inRam = (model) => Math.max(0, (model.resident_bytes ?? 0) - inGpu(model));

/**
 * How much of a memory is taken, by whom, and where the budget ends.
 * @param {Memory} memory @param {Told[]} all @param {string} id @param {boolean} [gpu] of the GPU's, whose size nobody tells
 */
export function memoryBar({ ram_budget_bytes, ram_total_bytes, vram_budget_bytes }, all, id, gpu = false) {
  const [budget, total, taken] = gpu ? [vram_budget_bytes ?? 0, 0, inGpu] : [ram_budget_bytes, ram_total_bytes, inRam];
  const whole = Math.max(total, budget, 1);
  const parts = all.filter(({ model }) => taken(model) > 0);
  return html`<div class="stack" aria-hidden="true"><div id="${id}-bar">${parts.map(
    ({ model, place }) => html`<i data-slot=${place} title="${visible(model.name)}: ${bytes(taken(model))}" ${styled({ width: `${(taken(model) / whole) * 100}%` })}></i>`,
  )}</div><span id="${id}-cap" class="cap" ${styled({ left: `${(Math.min(budget, whole) / whole) * 100}%` })}></span></div>`;
}

/** A name that may break where it has a slash. @param {string} name */
const breakable = (name) => visible(name).split("/").map((part, i) => (i > 0 ? html`/<wbr>${part}` : part));

/** @param {unknown} value @param {string} key */
const figure = (value, key) => (key.endsWith("_bytes") && known(value) ? `${key.slice(0, -6).replaceAll("_", " ")} ${bytes(value)}` : `${key.replaceAll("_", " ")} ${known(value) ? Number(value.toFixed(1)) : String(value)}`);

/** @param {unknown} value */
const ms = (value) => (known(value) ? `${Math.round(value)} ms` : NONE);

/** A figure, marked where it misses what the tier aims at. @param {string} words @param {import("./api.js").Held|undefined} held @param {string} unit */
const aimed = (words, held, unit) =>
  held?.missed ? html`<span class="missed" title="The tier aims at ${held.aim} ${unit}">${words}<span class="hidden">, slower than the tier aims at</span></span>` : words;

/** The time to the first token with the load in it, below the one without. @param {Model} model */
const cold = (model) => (known(model.ttft_cold_ms) ? html`<span class="cold">cold ${aimed(ms(model.ttft_cold_ms), model.against_tier?.ttft_cold_ms, "ms or less")}</span>` : nothing);

export class Pool {
  /** @param {{refresh: () => void, reasons: () => boolean, say: (words: string) => void}} page what it asks of the page */
  constructor(page) {
    this.page = page;
    this._busy = signal(/** @type {ReadonlyMap<string, string>} what this page is doing with a model */ (new Map()));
    this._news = signal({ words: "", bad: false });
    this._why = signal(/** @type {{name: string, answer: any}|null} */ (null));
    this._wanted = ""; // asked about last
    this._draw();
    slow.whileShown("pool", () => this._draw());
    this._chart = new Chart(byId("memory-chart"), {
      x: "time",
      y: (value) => bytes(value),
      series: [{ kind: "line", colour: (palette) => palette.models[0] }, { kind: "line", colour: (palette) => palette.muted, dash: [4, 4] }],
    });
  }

  /** The chart, while the screen is shown. @param {import("./history.js").Ring} memory @param {import("./theme.js").Palette} palette */
  show(memory, palette) {
    byId("memory-none").hidden = memory.length > 1;
    byId("memory-chart").hidden = memory.length <= 1;
    const used = memory.last(0);
    this._chart.show(memory.columns, palette, `Memory of models over time. Now ${known(used) ? bytes(used) : "unknown"}.`, String(memory.count));
  }

  _draw() {
    render(this._view(), byId("screen-pool"));
  }

  _view() {
    const listing = slow.listing.value;
    const all = listing ? told(listing) : [];
    const news = this._news.value;
    const inside = all.filter(({ state }) => state === "ready").length;
    return html`
      <div class="title"><h2 id="pool-title">Model pool</h2><span class="mono quiet" id="pool-count">${listing ? `${all.length} models · ${inside} in memory` : ""}</span><span class="grow"></span><span class="quiet">tier <b id="pool-tier">${listing?.tier || NONE}</b></span></div>
      <div class="card memory">${this._memory(listing?.memory, all)}
        <div class="line"><h3>Memory over time</h3><span class="quiet small">models, and the budget, as this page heard of them</span></div>
        <p class="quiet small" id="memory-none">A line comes with the second measurement.</p>
        <div class="chart" id="memory-chart" hidden></div>
      </div>
      <p id="pool-news" class=${news.bad ? "error" : "quiet"} ?hidden=${news.words === ""}>${visible(news.words)}</p>
      <div class="card scrolls" tabindex="0" role="region" aria-label="Models">
        <table class="pool">
          <thead><tr><th scope="col">Model</th><th scope="col">State</th><th scope="col">On disk</th><th scope="col">In memory</th><th scope="col">Last used</th><th scope="col" title="Tokens per second, mean of its sessions">tok/s</th><th scope="col" title="Time to first token, with the model in memory; cold: with its load. What misses the tier's aim is marked">TTFT</th><th scope="col"><span class="hidden">What can be done</span></th></tr></thead>
          <tbody id="pool-rows">${repeat(all.slice(0, ROWS_MAX), ({ model }) => `${model.runtime} ${model.name}`, (one) => this._row(one))}</tbody>
        </table>
      </div>
      ${this._reasons()}`;
  }

  /** @param {Memory|undefined} memory @param {Told[]} all */
  _memory(memory, all) {
    if (!memory) return html`<div class="line"><b>RAM</b><span class="mono quiet" id="ram-words">${NONE}</span></div>`;
    const { used_ram_bytes: used, used_vram_bytes: usedVram, ram_budget_bytes: budget, ram_total_bytes: total, vram_budget_bytes: vram } = memory;
    return html`<div class="line"><b>RAM</b><span class="mono quiet" id="ram-words">${bytes(used)} used · budget ${bytes(budget)} · machine ${bytes(total)}</span></div>
      ${memoryBar(memory, all, "ram")}
      ${vram ? html`<div class="line"><b>GPU</b><span class="mono quiet" id="vram-words">${bytes(usedVram)} used · budget ${bytes(vram)}</span></div>${memoryBar(memory, all, "vram", true)}` : html`<p class="quiet" id="vram-words">The tier has no budget of GPU memory.</p>`}`;
  }

  /** @param {Told} one */
  _row({ model, state: heard, reason, speaks, place }) {
    const { name } = model;
    const doing = this._busy.value.get(name);
    const state = doing ?? heard;
    const inside = INSIDE.has(state) ? state === "ready" : (model.resident_bytes ?? 0) > 0;
    const busy = doing !== undefined;
    const label = visible(name);
    const button = (/** @type {string} */ words, /** @type {string} */ title, /** @type {boolean} */ disabled, /** @type {() => void} */ act, text = words) =>
      html`<button type="button" class="button small" aria-label="${words} ${label}" title=${title} ?disabled=${disabled} @click=${act}>${text}</button>`;
    return html`<tr>
      <th scope="row" title=${label}>${glyph(place)}<span class="name">${breakable(name)}</span></th>
      <td class="state" data-state=${speaks ? "ready" : state} title=${reason}>${speaks ? "streaming" : state}</td>
      <td class="mono">${model.size_bytes ? bytes(model.size_bytes) : NONE}</td>
      <td class="mono">${model.resident_bytes ? bytes(model.resident_bytes) : NONE}</td>
      <td class="mono">${model.last_used ? new Date(model.last_used).toLocaleTimeString([], { hour12: false }) : NONE}</td>
      <td class="mono">${aimed(fixed(model.tps, 1), model.against_tier?.tps, "tok/s or more")}</td>
      <td class="mono">${aimed(ms(model.ttft_ms), model.against_tier?.ttft_warm_ms, "ms or less")}${cold(model)}</td>
      <td class="acts">
        ${button("Load", "", busy || inside, () => this._load(name, false))}
        ${button("Unload", speaks ? "It is streaming: stop that first" : "", busy || !inside || speaks, () => this._unload(name))}
        ${button("Pin", "Load it and keep it in memory", busy || model.pinned === true, () => this._load(name, true), model.pinned ? "Pinned" : "Pin")}
        ${this.page.reasons() ? button("Why?", "", false, () => this._ask(name)) : nothing}
      </td></tr>`;
  }

  /** What GET /models/{name}/why answered. */
  _reasons() {
    const why = this._why.value;
    if (why === null) return nothing;
    const { state, now, expected_bytes: expected, leases, pinned, cools_for_ms: cools, waiting, decisions } = why.answer;
    const parts = [`${state}`, `${leases} in use`];
    if (known(expected)) parts.push(`needs ${bytes(expected)}`);
    if (pinned) parts.push("pinned");
    if (cools > 0) parts.push(`stays for ${(cools / 1000).toFixed(1)} s more`);
    for (const one of waiting) parts.push(`waits at place ${one.position}${one.reason ? `: ${one.reason}` : ""}`);
    const next = now ? ` Asked now: ${now.outcome}${now.reason ? `, ${now.reason}` : ""}${now.evict?.length ? `, instead of ${now.evict.join(", ")}` : ""}.` : "";
    const rows = decisions.map((/** @type {any} */ one) =>
      row([new Date(one.at).toLocaleTimeString([], { hour12: false }), `${one.decision}${one.times > 1 ? ` × ${one.times}` : ""}`, visible(one.reason ?? ""), Object.entries(one.numbers ?? {}).map(([key, value]) => figure(value, key)).join(", ")]),
    );
    return html`<div class="card reasons" id="pool-why" tabindex="-1"><h3>Why: <span id="pool-why-name">${visible(why.name)}</span></h3>
      <p id="pool-why-now">${visible(`${parts.join(" · ")}.${next}`)}</p>
      <p class="quiet" id="pool-why-none" ?hidden=${rows.length > 0}>No decision about it yet.</p>
      <table class="decisions"><tbody id="pool-why-rows">${rows}</tbody></table></div>`;
  }

  /** @param {string} name @param {boolean} pin */
  _load(name, pin) {
    const words = (/** @type {Awaited<ReturnType<typeof api.load>>} */ { load_time_ms: ms, evicted }) =>
      pin ? `${name}: in memory, pinned` : `${name}: in memory${known(ms) ? ` after ${Math.round(ms)} ms` : ""}${evicted?.length ? `, ${evicted.join(", ")} had to go` : ""}`;
    this._do(name, "loading", async () => words(await api.load(name, new AbortController().signal, pin)));
  }

  /** @param {string} name */
  _unload(name) {
    const words = (/** @type {number|null|undefined} */ freed) => (known(freed) ? `${bytes(freed)} freed` : "out of memory");
    this._do(name, "unloading", async () => `${name}: ${words((await api.unload(name)).freed_bytes)}`);
  }

  /** @param {string} name @param {string} busy @param {() => Promise<string>} act what was done, in words */
  async _do(name, busy, act) {
    this._busy.value = new Map([...this._busy.value, [name, busy]]);
    try {
      this._say(await act(), false);
    } catch (error) {
      this._say(`${name}: ${error instanceof api.ApiError ? `${error.code}: ` : ""}${error instanceof Error ? error.message : String(error)}`, true);
    }
    this._busy.value = new Map([...this._busy.value].filter(([one]) => one !== name));
    this.page.refresh();
  }

  /** @param {string} name */
  async _ask(name) {
    this._wanted = name;
    try {
      const answer = await api.why(name);
      if (name === this._wanted) this._why.value = { name, answer };
    } catch (error) {
      this._say(error instanceof Error ? error.message : String(error), true);
    }
  }

  /** @param {string} words @param {boolean} bad */
  _say(words, bad) {
    this._news.value = { words, bad };
    this.page.say(words);
  }
}
