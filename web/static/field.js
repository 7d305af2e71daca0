/**
 * The history of the field: E(t) of each stream as a line, one strike per token, a hatch for a stall, the interferogram
 * of all together, nothing for a missed frame.
 *
 * One engine frame is one column. A column is painted once onto a history picture, which then moves left: each step copies
 * it into a second one, for a canvas that is copied into itself is copied twice. Nothing older is drawn again. No DOM: a
 * canvas, a session's columns and a palette come in.
 *
 *   line height      E of the frame                      linear, 0–1
 *   strike height    E_base of the token                 linear, 0–1
 *   strike jag       entropy H in bits                   1 + 2.1·H px; straight when unknown
 *   strike light     probability p                       alpha .12 + .46·p; dashed when unknown
 *   hatch            frames past the stall line          width = time
 *   blank            frames that never arrived           width = time
 */

import { COLUMNS } from "./columns.js";
import { Fringe } from "./fringe.js";
import { layout } from "./layout.js";
import { jagged, trace } from "./shapes.js";

const PAD_PX = 16; // a strike's jag may reach past its column
const HATCH_PX = 8;

/** @typedef {import("./theme.js").Palette} Palette */
/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./stream.js").Stream} Stream */
/** @typedef {import("./columns.js").Strike} Strike */
/** @typedef {import("./layout.js").Band} Band */
/** @typedef {{slot: number, strike: Strike}} Fresh */

export class Field {
  /** @param {HTMLCanvasElement} history an off-screen canvas for this field alone */
  constructor(history) {
    this.history = history;
    this.ctx = /** @type {CanvasRenderingContext2D} */ (history.getContext("2d"));
    this._other = /** @type {CanvasRenderingContext2D} */ (/** @type {HTMLCanvasElement} */ (history.cloneNode()).getContext("2d"));
    this.fringe = new Fringe();
    this.plot = layout(0, 0, 1);
    this.scale = 1;
    this.columnPx = 2;
    this.painted = 0; // columns of the session that are in the history
    /** @type {number[]} strikes painted for the session shown, by slot */
    this.strikes = [];
    /** @type {number[]} columns hatched, by slot */
    this.hatched = [];
  }

  /** @param {number} width @param {number} height CSS px @param {number} scale device px per CSS px @param {number} streams */
  resize(width, height, scale, streams) {
    this.plot = layout(width, height, streams);
    this.scale = scale;
    for (const { canvas } of [this.ctx, this._other]) {
      canvas.width = Math.ceil((this.span + PAD_PX) * scale);
      canvas.height = Math.ceil(Math.max(1, height) * scale);
    }
  }

  get span() {
    return this.plot.x1 - this.plot.x0;
  }

  /** CSS px between two columns. A whole number of device px, so that no step of the picture is rounded and time stays true. */
  get pitch() {
    return Math.max(1, Math.round(this.columnPx * this.scale)) / this.scale;
  }

  /** Another session is shown; `repaint` comes next. */
  begin() {
    this.painted = 0;
    this.strikes = [];
    this.hatched = [];
  }

  /** Where a column stands now; it may be left of the plot. @param {number} column */
  x(column) {
    return this.plot.x1 - (this.painted - 1 - column) * this.pitch;
  }

  /** The column at an x of the plot. @param {number} x */
  column(x) {
    return this.painted - 1 - Math.round((this.plot.x1 - x) / this.pitch);
  }

  /** Paints everything again from the ring: after a resize, a change of theme or of session. @param {Session|null} session @param {Palette} palette @param {boolean} still */
  repaint(session, palette, still) {
    this.ctx.setTransform(1, 0, 0, 1, 0, 0);
    this.ctx.clearRect(0, 0, this.history.width, this.history.height);
    if (!session) return;
    this._fresh(session, still);
    this._paint(session, palette, still, 0);
  }

  /** Paints the columns that came since. @param {Session} session @param {Palette} palette @param {boolean} still @returns {Fresh[]} the strikes among them */
  advance(session, palette, still) {
    const from = this.painted;
    if (session.count === from) return [];
    const shift = Math.min((session.count - from) * this.pitch, this.span + PAD_PX) * this.scale;
    const ctx = this._other;
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.globalAlpha = 1;
    ctx.clearRect(0, 0, this.history.width, this.history.height);
    ctx.drawImage(this.history, -Math.round(shift), 0);
    this._other = this.ctx;
    this.ctx = ctx;
    this.history = ctx.canvas;
    const fresh = this._fresh(session, still);
    this._paint(session, palette, still, from);
    return fresh;
  }

  /** The strikes not painted before; counted when strikes are drawn at all. @param {Session} session @param {boolean} still @returns {Fresh[]} */
  _fresh(session, still) {
    /** @type {Fresh[]} */
    const fresh = [];
    for (const { slot, columns } of session.streams) {
      let found = 0;
      let hatched = 0;
      for (let i = Math.max(this.painted, columns.born, columns.count - COLUMNS); i < columns.count; i += 1) {
        hatched += columns.stalled[i % COLUMNS];
        for (const strike of columns.strikes[i % COLUMNS] ?? []) {
          fresh.push({ slot, strike });
          found += 1;
        }
      }
      this.hatched[slot] = (this.hatched[slot] ?? 0) + hatched;
      this.strikes[slot] = (this.strikes[slot] ?? 0) + (still ? 0 : found);
    }
    return fresh;
  }

  /** @param {Session} session @param {Palette} palette @param {boolean} still @param {number} from */
  _paint(session, palette, still, from) {
    const { pitch, plot, scale } = this;
    const right = Math.round(this.span * scale) / scale;
    this.ctx.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    const first = Math.max(from, session.count - Math.ceil(this.span / pitch), session.count - COLUMNS, 0);
    for (let i = first; i < session.count; i += 1) {
      const x = right - (session.count - 1 - i) * pitch;
      for (const stream of session.streams) {
        const band = plot.lanes[stream.slot];
        if (!band || i < stream.columns.born) continue;
        this._column(stream, i, x, band, palette);
        if (still) continue;
        for (const strike of stream.columns.strikes[i % COLUMNS] ?? []) this._strike(strike, x, band, palette.models[stream.slot], palette.dark);
      }
      if (plot.fringe && session.together) this.fringe.column(this.ctx, session.together, i, { x, width: pitch, ...plot.fringe }, palette);
    }
    this.painted = session.count;
  }

  /** @param {Stream} stream @param {number} i @param {number} x @param {Band} band @param {Palette} palette */
  _column({ slot, columns }, i, x, band, palette) {
    const { ctx, pitch } = this;
    const colour = palette.models[slot];
    const energy = columns.energy[i % COLUMNS];
    if (Number.isNaN(energy)) return; // a missed frame: no ink
    const y = height(band, energy);
    ctx.fillStyle = colour;
    ctx.globalAlpha = 0.14;
    ctx.fillRect(x - pitch, y, pitch, band.y1 - y);
    ctx.globalAlpha = 0.3;
    ctx.fillRect(x - pitch, band.y1, pitch, 1);
    if (columns.stalled[i % COLUMNS]) {
      ctx.globalAlpha = 0.6;
      ctx.fillStyle = palette.danger;
      for (let q = (i * pitch) % HATCH_PX; q < band.y1 - band.y0; q += HATCH_PX) ctx.fillRect(x - pitch, band.y1 - q - 2, pitch, 2);
    }
    const before = i > columns.born && i > columns.count - COLUMNS ? columns.energy[(i - 1) % COLUMNS] : NaN;
    ctx.strokeStyle = colour;
    ctx.lineCap = "butt"; // round ends would overlap and bead
    trace(ctx, [x - pitch, Number.isNaN(before) ? y : height(band, before), x, y]);
    ctx.globalAlpha = 0.22;
    ctx.lineWidth = 5;
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.lineCap = "round";
    ctx.lineWidth = 1.8;
    ctx.stroke();
  }

  /** @param {Strike} strike @param {number} x @param {Band} band @param {string} colour @param {boolean} dark */
  _strike(strike, x, band, colour, dark) {
    const { ctx } = this;
    const { y1 } = band;
    const top = height(band, strike.base ?? 0); // a throttled token has no E_base: only its mark at the bottom
    ctx.globalCompositeOperation = dark ? "lighter" : "source-over";
    ctx.globalAlpha = strike.p === null ? 0.35 : 0.12 + 0.46 * strike.p;
    ctx.strokeStyle = colour;
    ctx.lineWidth = 1;
    if (strike.p === null) ctx.setLineDash([3, 3]);
    trace(ctx, strike.bits === null ? [x, y1, x, top] : jagged(x, y1, x, top, 1 + 2.1 * strike.bits, strike.position, 4));
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.globalCompositeOperation = "source-over";
    ctx.globalAlpha = 1;
    ctx.fillStyle = colour;
    ctx.fillRect(x - 0.5, y1 + 1, 1, 3);
  }
}

/** @param {Band} band @param {number} part 0–1 */
export function height({ y0, y1 }, part) {
  return y1 - part * (y1 - y0);
}
