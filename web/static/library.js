/** The card of models: what each is doing, what lately happened to them, and a field to download another. */

import { byId, known, put } from "./format.js";
import { visible } from "./text.js";

/** @typedef {import("./api.js").Model} Model */
/** @typedef {{model: string, state: string, progress: number|null, position: number|null, reason: string|null}} ModelEvent */

const LISTED = 200;
const NEWS = 6;
const WIDE_PX = 1180; // from here on there is room for the list
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
    this.box = /** @type {HTMLDetailsElement} */ (byId("models"));
    this.box.open = innerWidth > WIDE_PX;
    this.list = byId("model-list");
    this.news = byId("model-news");
    /** @type {Map<string, {state: string, reason: string|null}>} what events said after the last listing */
    this._heard = new Map();
    this._stale = true;
    this._reach = ""; // runtimes on other machines, as last drawn
    const form = /** @type {HTMLFormElement} */ (byId("download"));
    const name = /** @type {HTMLInputElement} */ (byId("download-name"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!name.value.trim()) return;
      download(name.value.trim());
      form.reset();
    });
  }

  /** A new listing is there; it is newer than what was heard. */
  listed() {
    this._heard.clear();
    this._stale = true;
  }

  /** @param {ModelEvent} event @param {number} atMs Unix time */
  heard(event, atMs) {
    const { model, state, reason } = event;
    this._heard.set(model, { state, reason });
    if (this._heard.size > LISTED) this._heard.delete(this._heard.keys().next().value ?? "");
    this._stale = true;
    if (reason && state !== "pulling") this._note(`${visible(model)}: ${state}, ${visible(reason)}`, atMs);
  }

  /** What an event said of a model after the last listing. @param {string} name */
  heardOf(name) {
    return this._heard.get(name);
  }

  /** 1 Hz. @param {Map<string, Model>} models @param {string[]} away runtimes on other machines */
  show(models, away) {
    const reach = away.join();
    if (!this._stale && reach === this._reach) return;
    this._stale = false;
    this._reach = reach;
    const told = [...models.values()].map((model) => ({ model, state: this._heard.get(model.name)?.state ?? model.state ?? "" }));
    put(byId("models-count"), `${models.size} · ${told.filter(({ state }) => state === "ready").length} in memory`);
    told.sort((a, b) => Number(a.state === "absent") - Number(b.state === "absent")); // what something happens to comes first
    this.list.replaceChildren(...told.slice(0, LISTED).map(({ model, state }) => this._row(model, state, away.includes(model.runtime))));
    byId("model-list-rest").hidden = models.size <= LISTED;
    put(byId("model-list-rest"), `and ${models.size - LISTED} more`);
  }

  /** @param {Model} model @param {string} state @param {boolean} away @returns {HTMLElement} */
  _row(model, state, away) {
    const item = document.createElement("li");
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = visible(model.name);
    item.append(name);
    if (away) item.append(mark("leaves this machine", "away", "prompts for this model leave this machine"));
    const reason = this._heard.get(model.name)?.reason;
    const meaning = MEANINGS.get(state) ?? "";
    item.append(mark(state || "unknown", "state", reason ? `${meaning}: ${visible(reason)}` : meaning, state));
    return item;
  }

  /** @param {string} words @param {number} atMs */
  _note(words, atMs) {
    const item = document.createElement("li");
    const time = document.createElement("time");
    const at = new Date(known(atMs) ? atMs : Date.now());
    time.dateTime = at.toISOString();
    time.textContent = at.toLocaleTimeString([], { hour12: false });
    item.append(time, ` ${words}`);
    this.news.prepend(item);
    while (this.news.childElementCount > NEWS) this.news.lastElementChild?.remove();
    this.news.hidden = false;
  }
}

/** @param {string} text @param {string} kind @param {string} title @param {string} [state] */
function mark(text, kind, title, state) {
  const chip = document.createElement("span");
  chip.className = `mark-chip ${kind}`;
  chip.textContent = text;
  chip.title = title;
  if (state) chip.dataset.state = state;
  return chip;
}
