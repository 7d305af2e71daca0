/** The Events screen: the last events as they came, filtered. Only the rows in sight exist as elements. */

import { EVENTS_KEPT, said } from "./eventlog.js";
import { element } from "./elements.js";
import { byId, put } from "./format.js";
import { visible } from "./text.js";

const ROW_PX = 26;
const SPARE_ROWS = 4;
const EVERY_MS = 250;

/** @typedef {import("./eventlog.js").Entry} Entry */

export class Events {
  /** @param {(entry: Entry) => void} onShow asks to see it in the field */
  constructor(onShow) {
    this.scroller = byId("events-scroll");
    this.space = byId("events-space");
    this.text = /** @type {HTMLInputElement} */ (byId("events-text"));
    this.kind = /** @type {HTMLSelectElement} */ (byId("events-kind"));
    this.model = /** @type {HTMLSelectElement} */ (byId("events-model"));
    this.detail = byId("events-detail");
    this.following = true;
    this.paused = false;
    /** @type {Entry[]} */
    this._entries = [];
    /** @type {Entry|null} */
    this._open = null;
    this._at = -EVERY_MS;
    this._of = "";
    for (const input of [this.text, this.kind, this.model]) input.addEventListener("input", () => (this._at = -EVERY_MS));
    this.scroller.addEventListener("scroll", () => this._scrolled(), { passive: true });
    this.space.addEventListener("click", (event) => this._clicked(/** @type {HTMLElement} */ (event.target)));
    byId("events-show").addEventListener("click", () => this._open && onShow(this._open));
    byId("events-follow").addEventListener("click", () => {
      this.following = true;
      this._at = -EVERY_MS;
    });
  }

  /** @param {import("./eventlog.js").EventLog} log @param {number} now */
  show(log, now) {
    if (now - this._at < EVERY_MS) return;
    this._at = now;
    this._models(log);
    const filter = { text: this.text.value, kind: this.kind.value, model: this.model.value };
    const of = `${log.total}${JSON.stringify(filter)}`;
    if (of !== this._of && (this.following || JSON.stringify(filter) !== this._of.replace(/^\d+/, ""))) {
      this._of = of;
      this._entries = log.select(filter);
      this.space.style.height = `${this._entries.length * ROW_PX}px`;
      if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    }
    put(byId("events-count"), `${this._entries.length} shown of ${log.total} received · the newest ${EVENTS_KEPT} are kept`);
    byId("events-follow").hidden = this.following;
    this._rows();
  }

  _rows() {
    const { scrollTop, clientHeight } = this.scroller;
    const first = Math.max(0, Math.floor(scrollTop / ROW_PX) - SPARE_ROWS);
    const count = Math.max(0, Math.min(this._entries.length - first, Math.ceil(clientHeight / ROW_PX) + 2 * SPARE_ROWS));
    while (this.space.childElementCount > count) this.space.lastElementChild?.remove();
    while (this.space.childElementCount < count) this.space.append(line());
    for (let i = 0; i < count; i += 1) this._row(/** @type {HTMLElement} */ (this.space.children[i]), this._entries[first + i], first + i);
  }

  /** @param {HTMLElement} row @param {Entry} entry @param {number} at */
  _row(row, entry, at) {
    const top = `${at * ROW_PX}px`;
    if (row.style.top !== top) row.style.top = top;
    row.setAttribute("aria-pressed", String(entry === this._open));
    if (row.dataset.n === String(entry.n)) return;
    row.dataset.n = String(entry.n);
    row.dataset.channel = entry.bad ? "error" : entry.type.split(".")[0];
    const [time, frame, type, session, words] = row.children;
    time.textContent = Number.isFinite(entry.monoMs) ? `${(entry.monoMs / 1000).toFixed(3)} s` : "—";
    frame.textContent = entry.frame === null ? "reply" : String(entry.frame);
    type.textContent = entry.type;
    session.textContent = entry.session.slice(0, 6);
    words.textContent = visible(said(entry));
  }

  /** @param {HTMLElement} target */
  _clicked(target) {
    const n = Number(target.closest("button")?.dataset.n);
    this._open = this._entries.find((entry) => entry.n === n) ?? null;
    this.detail.hidden = this._open === null;
    if (!this._open) return;
    put(byId("events-detail-name"), `${this._open.type} · event ${this._open.n}`);
    put(byId("events-detail-text"), visible(JSON.stringify(this._open.payload, null, 2)));
    /** @type {HTMLButtonElement} */ (byId("events-show")).disabled = this._open.session === "";
    this._rows();
  }

  _scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.following = scrollHeight - clientHeight - scrollTop <= ROW_PX;
    this._rows();
  }

  /** @param {import("./eventlog.js").EventLog} log */
  _models(log) {
    const known = new Set([...this.model.options].map((option) => option.value));
    for (const name of log.models) if (!known.has(name)) this.model.append(new Option(visible(name), name));
  }
}

function line() {
  const cells = ["time", "frame", "type", "session", "words"].map((name) => element("span", name));
  return element("button", { type: "button", class: "event mono", "aria-pressed": "false" }, ...cells);
}
