/** The Events screen: the last events as they came, filtered. Only the rows in sight exist as elements. */

import { EVENTS_KEPT, said } from "./eventlog.js";
import { byId } from "./format.js";
import { styled } from "./templates.js";
import { visible } from "./text.js";
import { html, render } from "./vendor/vendor.js";

const ROW_PX = 26;
const SPARE_ROWS = 4;
const EVERY_MS = 250;
const KINDS = [["", "all but energy.update"], ["all", "all"], ["experience", "experience"], ["council", "council"], ["system", "system"], ["error", "errors"], ["energy", "energy.update"]];

/** @typedef {import("./eventlog.js").Entry} Entry */

export class Events {
  /** @param {(entry: Entry) => void} onShow asks to see it in the field */
  constructor(onShow) {
    this.onShow = onShow;
    this.following = true;
    this.filter = { text: "", kind: "", model: "" };
    /** @type {Entry[]} */
    this._entries = [];
    /** @type {Entry|null} */
    this._open = null;
    this._at = -EVERY_MS;
    this._of = "";
    this._total = 0;
    /** @type {string[]} */
    this._models = [];
    this._draw();
    this.scroller = byId("events-scroll");
    this.scroller.addEventListener("scroll", () => this._scrolled(), { passive: true });
  }

  /** 4 Hz while the screen is shown. @param {import("./eventlog.js").EventLog} log @param {number} now */
  show(log, now) {
    if (now - this._at < EVERY_MS) return;
    this._at = now;
    this._total = log.total;
    this._models = [...log.models];
    const filter = JSON.stringify(this.filter);
    const of = `${log.total}${filter}`;
    const news = of !== this._of && (this.following || filter !== this._of.replace(/^\d+/, ""));
    if (news) {
      this._of = of;
      this._entries = log.select(this.filter);
    }
    this._draw();
    if (!news || !this.following) return;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this._draw(); // those that are in sight now
  }

  _scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.following = scrollHeight - clientHeight - scrollTop <= ROW_PX;
    this._draw();
  }

  /** @param {Partial<Events["filter"]>} wanted */
  _narrow(wanted) {
    Object.assign(this.filter, wanted);
    this._at = -EVERY_MS;
  }

  _follow() {
    this.following = true;
    this._at = -EVERY_MS;
  }

  /** @param {Entry} entry */
  _picked(entry) {
    this._open = entry;
    this._draw();
  }

  _draw() {
    render(this._view(), byId("screen-events"));
  }

  _view() {
    const value = (/** @type {Event} */ event) => /** @type {HTMLInputElement|HTMLSelectElement} */ (event.target).value;
    return html`
      <div class="title"><h2 id="events-title">Events</h2><span class="mono quiet" id="events-count">${`${this._entries.length} shown of ${this._total} received · the newest ${EVENTS_KEPT} are kept`}</span></div>
      <div class="filters">
        <label><span class="hidden">Text</span><input id="events-text" type="search" placeholder="Find in events…" spellcheck="false" @input=${(/** @type {Event} */ event) => this._narrow({ text: value(event) })}></label>
        <label><span>Kind</span><select id="events-kind" @input=${(/** @type {Event} */ event) => this._narrow({ kind: value(event) })}>${KINDS.map(([kind, words]) => html`<option value=${kind}>${words}</option>`)}</select></label>
        <label><span>Model</span><select id="events-model" @input=${(/** @type {Event} */ event) => this._narrow({ model: value(event) })}><option value="">any</option>${this._models.map((name) => html`<option value=${name}>${visible(name)}</option>`)}</select></label>
        <span class="grow"></span>
        <button class="button" id="events-follow" type="button" ?hidden=${this.following} @click=${() => this._follow()}>↓ Newest</button>
      </div>
      <div class="log">
        <div class="card scrolls" id="events-scroll" tabindex="0" role="region" aria-label="Events as they came"><div id="events-space" ${styled({ height: `${this._entries.length * ROW_PX}px` })}>${this._rows()}</div></div>
        ${this._detail()}
      </div>`;
  }

  _rows() {
    const { scrollTop, clientHeight } = this.scroller ?? { scrollTop: 0, clientHeight: 0 };
    const first = Math.max(0, Math.floor(scrollTop / ROW_PX) - SPARE_ROWS);
    const count = Math.max(0, Math.min(this._entries.length - first, Math.ceil(clientHeight / ROW_PX) + 2 * SPARE_ROWS));
    return this._entries.slice(first, first + count).map((entry, i) => this._row(entry, first + i));
  }

  /** @param {Entry} entry @param {number} at */
  _row(entry, at) {
    return html`<button type="button" class="event mono" aria-pressed=${entry === this._open ? "true" : "false"} data-n=${entry.n} data-channel=${entry.bad ? "error" : entry.type.split(".")[0]} ${styled({ top: `${at * ROW_PX}px` })} @click=${() => this._picked(entry)}><span class="time">${Number.isFinite(entry.monoMs) ? `${(entry.monoMs / 1000).toFixed(3)} s` : "—"}</span><span class="frame">${entry.frame ?? "reply"}</span><span class="type">${entry.type}</span><span class="session">${entry.session.slice(0, 6)}</span><span class="words">${visible(said(entry))}</span></button>`;
  }

  _detail() {
    const entry = this._open;
    if (entry === null) return html`<div class="card detail" id="events-detail" hidden></div>`;
    return html`<div class="card detail" id="events-detail"><div class="line"><h3 id="events-detail-name">${`${entry.type} · event ${entry.n}`}</h3><button class="button small" id="events-show" type="button" ?disabled=${entry.session === ""} @click=${() => this.onShow(entry)}>Show in field</button></div><pre class="mono" id="events-detail-text" tabindex="0">${visible(JSON.stringify(entry.payload, null, 2))}</pre></div>`;
  }
}
