/** The card of models: what each is doing, what lately happened to them, and a field to download another. */

import { byId, known } from "./format.js";
import * as slow from "./slow.js";
import { visible } from "./text.js";
import { effect, html, nothing, render, signal } from "./vendor/vendor.js";

/** @typedef {import("./api.js").Model} Model */
/** @typedef {{model: string, state: string, progress: number|null, position: number|null, reason: string|null}} ModelEvent */
/** @typedef {{at: Date, words: string}} News */

const LISTED = 200;
const NEWS = 6;
const MEANINGS = new Map([
  ["absent", "not in memory; asking it loads it"],
  ["pulling", "being downloaded"],
  ["queued", "waits for room"],
  ["loading", "being brought into memory"],
  ["ready", "in memory"],
  ["unloading", "being taken out of memory"],
  ["evicted", "taken out of memory to make room; asking it loads it again"],
  ["failed", "did not load"],
]);

export class Library {
  /** @param {{download: (name: string) => void}} actions */
  constructor({ download }) {
    this._news = signal(/** @type {readonly News[]} */ ([]));
    const form = /** @type {HTMLFormElement} */ (byId("download"));
    const name = /** @type {HTMLInputElement} */ (byId("download-name"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!name.value.trim()) return;
      download(name.value.trim());
      form.reset();
    });
    effect(() => this._list(slow.listing.value?.models ?? []));
    effect(() => this._told(this._news.value));
  }

  /** A new listing is there; it is newer than what was heard. */
  listed() {
    slow.heard.value = new Map();
  }

  /** @param {ModelEvent} event @param {number} atMs Unix time */
  heard({ model, state, reason, progress }, atMs) {
    const news = new Map(slow.heard.peek()).set(model, { state, reason, progress });
    if (news.size > LISTED) news.delete(news.keys().next().value ?? "");
    slow.heard.value = news;
    if (!reason || state === "pulling") return;
    const note = { at: new Date(known(atMs) ? atMs : Date.now()), words: `${visible(model)}: ${state}, ${visible(reason)}` };
    this._news.value = [note, ...this._news.peek()].slice(0, NEWS);
  }

  /** @param {Model[]} models */
  _list(models) {
    const heard = slow.heard.value;
    const away = new Set((slow.health.value?.runtimes ?? []).filter(({ local }) => !local).map(({ name }) => name));
    const told = models.map((model) => ({ model, news: heard.get(model.name), state: heard.get(model.name)?.state ?? model.state ?? "" }));
    const inside = told.filter(({ state }) => state === "ready").length;
    told.sort((a, b) => Number(a.state === "absent") - Number(b.state === "absent")); // what something happens to comes first
    render(`${models.length} · ${inside} in memory`, byId("models-count"));
    render(told.slice(0, LISTED).map(({ model, news, state }) => item(model, state, news?.reason ?? null, away.has(model.runtime))), byId("model-list"));
    byId("model-list-rest").hidden = models.length <= LISTED;
    render(`and ${models.length - LISTED} more`, byId("model-list-rest"));
  }

  /** @param {readonly News[]} news */
  _told(news) {
    byId("model-news").hidden = news.length === 0;
    render(news.map(({ at, words }) => html`<li><time datetime=${at.toISOString()}>${at.toLocaleTimeString([], { hour12: false })}</time> ${words}</li>`), byId("model-news"));
  }
}

/** @param {Model} model @param {string} state @param {string|null} reason @param {boolean} away */
function item(model, state, reason, away) {
  const meaning = MEANINGS.get(state) ?? "";
  return html`<li><span class="name">${visible(model.name)}</span>${away ? html`<span class="mark-chip away" title="prompts for this model leave this machine">leaves this machine</span>` : nothing}<span class="mark-chip state" data-state=${state || nothing} title=${reason ? `${meaning}: ${visible(reason)}` : meaning}>${state || "unknown"}</span></li>`;
}
