/** The field as the page shows it: its canvas, what was painted of which session, and how a click finds a token. */

import { Bolts } from "./core.js";
import { Field } from "./field.js";
import { byId } from "./format.js";
import { draw } from "./scene.js";

const STILL_MS = 250; // with reduced motion the field moves four times a second
const HALF_RATE_MS = 30;
const SCALE_MAX = 2;

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./theme.js").Theme} Theme */

export class Picture {
  /** @param {Theme} theme @param {import("./picking.js").Picking} picking */
  constructor(theme, picking) {
    this.theme = theme;
    this.picking = picking;
    this.canvas = /** @type {HTMLCanvasElement} */ (byId("field"));
    this.ctx = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    this.field = new Field(document.createElement("canvas"));
    this.bolts = new Bolts();
    this.framesDrawn = 0;
    this.frozen = false;
    this.zoom = 0; // px a frame; 0: two for one stream, one for several
    /** @type {Session|null} */
    this._session = null;
    this._lanes = 1;
    this._dirty = true;
    this._steppedAt = 0;
    new ResizeObserver(() => this._resize()).observe(/** @type {Element} */ (this.canvas.parentElement));
  }

  /** Paints everything again: another theme, zoom or size. */
  repaint() {
    this.field.repaint(this._session, this.theme.palette, this.theme.reducedMotion);
    this._dirty = true;
  }

  /** Something beside the history is to be drawn anew. */
  touch() {
    this._dirty = true;
  }

  /** @param {Session|null} session */
  show(session) {
    this._session = session;
    this.bolts.live = [];
    this.field.begin();
    this._fit(true);
  }

  /** @param {number} px */
  setZoom(px) {
    this.zoom = px;
    this._fit(true);
  }

  /** @param {number} now @param {number} load level of the page's load @returns {boolean} whether something was drawn that is new */
  tick(now, load) {
    const still = this.theme.reducedMotion || load >= 3;
    const { _session: session, field } = this;
    this._fit(false);
    const waits = still ? STILL_MS : load >= 2 ? HALF_RATE_MS : 0;
    if (this.frozen && !this._dirty) return false;
    if (now - this._steppedAt < waits && !this._dirty) return false;
    const moved = session !== null && !this.frozen && session.count !== field.painted;
    const hadBolts = this.bolts.live.length > 0;
    if (moved) {
      const fresh = field.advance(session, this.theme.palette, this.theme.reducedMotion);
      if (!still && load === 0 && field.plot.gauge) this.bolts.add(fresh, now);
    }
    this.bolts.expire(now);
    if (!moved && !hadBolts && !this._dirty) return false;
    this._steppedAt = now;
    const picked = this.picking.position === null ? null : this.picking.picked;
    const view = { session, palette: this.theme.palette, bolts: this.bolts, now, solo: this.picking.solo, still };
    draw(this.ctx, field, { ...view, picked: picked && { slot: picked.stream.slot, heard: picked.heard } });
    this._dirty = false;
    this.framesDrawn += 1;
    return moved;
  }

  /** @param {MouseEvent} event */
  pick(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.picking.pickInField(this.field, event.clientX - box.left, event.clientY - box.top);
  }

  /** As many lanes as streams. @param {boolean} anyway */
  _fit(anyway) {
    const lanes = Math.max(1, this._session?.streams.length ?? 0);
    if (!anyway && lanes === this._lanes) return;
    this._lanes = lanes;
    const card = /** @type {HTMLElement} */ (this.canvas.parentElement);
    card.dataset.lanes = String(lanes);
    this._resize();
  }

  _resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (width === 0) return; // another screen is shown
    const scale = Math.min(SCALE_MAX, devicePixelRatio || 1);
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.field.columnPx = this.zoom || (this._lanes > 1 ? 1 : 2);
    this.field.resize(width, height, scale, this._lanes);
    this.repaint();
  }
}
