/** The Pool screen: how full memory is, every model with its state, and what can be done about it. */

import * as api from "./api.js";
import { element, fill, sign } from "./elements.js";
import { byId, fixed, known, NONE, put } from "./format.js";
import { LANES } from "./session.js";
import { bytes } from "./transfers.js";
import { visible } from "./text.js";

const POLL_MS = 2_000;
const ROWS_MAX = 200;

/** @typedef {import("./api.js").Model} Model */
/** @typedef {{box: HTMLTableRowElement, cells: HTMLElement[], load: HTMLButtonElement, unload: HTMLButtonElement, pin: HTMLButtonElement, why: HTMLButtonElement}} Row */

export class Pool {
  /** @param {{refresh: () => void, reasons: () => boolean, say: (words: string) => void}} page what it asks of the page */
  constructor(page) {
    this.page = page;
    this.rows = byId("pool-rows");
    /** @type {Map<string, Row>} */
    this._rows = new Map();
    /** @type {Map<string, number>} colours of the models in memory */
    this._places = new Map();
    /** @type {Map<string, string>} what this page is doing with a model */
    this._busy = new Map();
    /** @type {import("./api.js").Listing|null} */
    this.listing = null;
    this._askedAt = -POLL_MS;
  }

  /** @param {import("./api.js").Listing} listing */
  listed(listing) {
    this.listing = listing;
  }

  /** 10 Hz while the screen is shown. @param {string[]} streaming models of running sessions @param {import("./library.js").Library} library @param {number} now */
  show(streaming, library, now) {
    if (now - this._askedAt >= POLL_MS) {
      this._askedAt = now;
      this.page.refresh();
    }
    if (!this.listing) return;
    const { models, memory, tier = "" } = this.listing;
    this._memory(memory, models);
    put(byId("pool-tier"), tier);
    put(byId("pool-count"), `${models.length} models · ${models.filter(({ state }) => state === "ready").length} in memory`);
    const shown = [...models].sort((a, b) => Number(a.state === "absent") - Number(b.state === "absent")).slice(0, ROWS_MAX);
    for (const [name, row] of this._rows) {
      if (shown.some((model) => model.name === name)) continue;
      row.box.remove();
      this._rows.delete(name);
    }
    shown.forEach((model, i) => this._show(model, i, streaming, library.heardOf(model.name)));
  }

  /** @param {import("./api.js").Memory|undefined} memory @param {Model[]} models */
  _memory(memory, models) {
    if (!memory) return;
    const { used_bytes: used, ram_budget_bytes: budget, ram_total_bytes: total, vram_budget_bytes: vram } = memory;
    put(byId("ram-words"), `${bytes(used)} used · budget ${bytes(budget)} · machine ${bytes(total)}`);
    const whole = Math.max(total, budget, 1);
    byId("ram-cap").style.left = `${(Math.min(budget, whole) / whole) * 100}%`;
    this._places.clear();
    const resident = models.filter((model) => (model.resident_bytes ?? 0) > 0);
    const bar = byId("ram-bar");
    while (bar.childElementCount > resident.length) bar.lastElementChild?.remove();
    resident.forEach((model, i) => {
      const part = /** @type {HTMLElement} */ (bar.children[i] ?? bar.appendChild(element("i")));
      part.dataset.slot = String(i % LANES);
      this._places.set(model.name, i % LANES);
      part.style.width = `${((model.resident_bytes ?? 0) / whole) * 100}%`;
      part.title = `${model.name}: ${bytes(model.resident_bytes ?? 0)}`;
    });
    put(byId("vram-words"), vram ? `The tier's budget of GPU memory is ${bytes(vram)}.` : "The tier has no budget of GPU memory.");
  }

  /** @param {Model} model @param {number} at @param {string[]} streaming @param {{state: string, reason: string|null}|undefined} heard */
  _show(model, at, streaming, heard) {
    const row = this._rows.get(model.name) ?? this._add(model.name);
    if (this.rows.children[at] !== row.box) this.rows.insertBefore(row.box, this.rows.children[at] ?? null);
    const state = this._busy.get(model.name) ?? heard?.state ?? model.state ?? "unknown";
    const speaks = streaming.includes(model.name);
    const place = this._places.get(model.name) ?? -1; // as its part of the bar
    const glyph = /** @type {SVGElement} */ (row.box.querySelector(".glyph"));
    if (glyph.dataset.slot !== String(place)) glyph.replaceWith(sign(place));
    const reason = heard?.reason ? visible(heard.reason) : "";
    const [kind, size, resident, used, tps, ttft] = row.cells;
    put(kind, speaks ? "streaming" : state);
    kind.dataset.state = speaks ? "ready" : state;
    if (kind.title !== reason) kind.title = reason;
    put(size, model.size_bytes ? bytes(model.size_bytes) : NONE);
    put(resident, model.resident_bytes ? bytes(model.resident_bytes) : NONE);
    put(used, model.last_used ? new Date(model.last_used).toLocaleTimeString([], { hour12: false }) : NONE);
    put(tps, fixed(model.tps, 1));
    put(ttft, known(model.ttft_ms) ? `${Math.round(model.ttft_ms)} ms` : NONE);
    const inside = ["ready", "evicted"].includes(state) ? state === "ready" : (model.resident_bytes ?? 0) > 0;
    const busy = this._busy.has(model.name);
    row.load.disabled = busy || inside;
    row.unload.disabled = busy || !inside || speaks;
    row.unload.title = speaks ? "It is streaming: stop that first" : "";
    row.pin.disabled = busy || model.pinned === true;
    put(row.pin, model.pinned ? "Pinned" : "Pin");
    row.why.hidden = !this.page.reasons();
  }

  /** @param {string} name @returns {Row} */
  _add(name) {
    const cells = Array.from({ length: 6 }, () => element("td", "mono"));
    cells[0].className = "state";
    const [load, unload, pin, why] = ["Load", "Unload", "Pin", "Why?"].map((words) => element("button", { type: "button", class: "button small", "aria-label": `${words} ${visible(name)}` }, words));
    pin.title = "Load it and keep it in memory";
    load.addEventListener("click", () => this._do(name, "loading", () => api.load(name, new AbortController().signal), (answer) => `${name}: in memory${known(answer.load_time_ms) ? ` after ${Math.round(answer.load_time_ms)} ms` : ""}${answer.evicted?.length ? `, ${answer.evicted.join(", ")} had to go` : ""}`));
    pin.addEventListener("click", () => this._do(name, "loading", () => api.load(name, new AbortController().signal, true), () => `${name}: in memory, pinned`));
    unload.addEventListener("click", () => this._do(name, "unloading", () => api.unload(name), (answer) => `${name}: ${bytes(answer.freed_bytes ?? 0)} freed`));
    why.addEventListener("click", () => this._why(name));
    const label = element("span", "name", ...visible(name).split("/").flatMap((part, i) => (i > 0 ? ["/", element("wbr"), part] : [part])));
    const head = element("th", { scope: "row", title: visible(name) }, sign(-1), label);
    const box = element("tr", "", head, ...cells, element("td", "acts", load, unload, pin, why));
    this.rows.append(box);
    const row = { box, cells, load, unload, pin, why };
    this._rows.set(name, row);
    return row;
  }

  /** @param {string} name @param {string} busy @param {() => Promise<any>} act @param {(answer: any) => string} words */
  async _do(name, busy, act, words) {
    this._busy.set(name, busy);
    try {
      this._say(words(await act()), false);
    } catch (error) {
      this._say(`${name}: ${error instanceof api.ApiError ? `${error.code}: ` : ""}${error instanceof Error ? error.message : String(error)}`, true);
    }
    this._busy.delete(name);
    this.page.refresh();
  }

  /** @param {string} name */
  async _why(name) {
    const box = byId("pool-why");
    try {
      const answer = await api.why(name);
      this._reasons(name, answer);
      box.hidden = false;
    } catch (error) {
      this._say(error instanceof Error ? error.message : String(error), true);
    }
  }

  /** @param {string} name @param {any} answer of GET /models/{name}/why */
  _reasons(name, { state, now, expected_bytes: expected, leases, pinned, cools_for_ms: cools, waiting, decisions }) {
    put(byId("pool-why-name"), visible(name));
    const parts = [`${state}`, `${leases} in use`];
    if (known(expected)) parts.push(`needs ${bytes(expected)}`);
    if (pinned) parts.push("pinned");
    if (cools > 0) parts.push(`stays for ${(cools / 1000).toFixed(1)} s more`);
    for (const one of waiting) parts.push(`waits at place ${one.position}${one.reason ? `: ${one.reason}` : ""}`);
    const next = now ? ` Asked now: ${now.outcome}${now.reason ? `, ${now.reason}` : ""}${now.evict?.length ? `, instead of ${now.evict.join(", ")}` : ""}.` : "";
    put(byId("pool-why-now"), visible(`${parts.join(" · ")}.${next}`));
    const rows = decisions.map((/** @type {any} */ one) => {
      const numbers = Object.entries(one.numbers ?? {}).map(([key, value]) => (key.endsWith("_bytes") && known(value) ? `${key.slice(0, -6).replaceAll("_", " ")} ${bytes(value)}` : `${key.replaceAll("_", " ")} ${known(value) ? Number(value.toFixed(1)) : value}`));
      return [new Date(one.at).toLocaleTimeString([], { hour12: false }), `${one.decision}${one.times > 1 ? ` × ${one.times}` : ""}`, visible(one.reason ?? ""), numbers.join(", ")];
    });
    fill(byId("pool-why-rows"), rows);
    byId("pool-why-none").hidden = rows.length > 0;
  }

  /** @param {string} words @param {boolean} bad */
  _say(words, bad) {
    const box = byId("pool-news");
    put(box, visible(words));
    box.className = bad ? "error" : "quiet";
    box.hidden = false;
    this.page.say(words);
  }
}
