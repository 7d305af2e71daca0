/**
 * The field: E(t) as a line, one strike per token, a hatch for a stall, nothing for a missed frame.
 *
 * One engine frame is one column. A column is painted once onto a history picture, which then moves left by copying
 * itself: nothing older is drawn again. No DOM: a canvas, a session's columns and a palette come in.
 *
 *   line height      E of the frame                      linear, 0–1
 *   strike height    E_base of the token                 linear, 0–1
 *   strike jag       entropy H in bits                   1 + 2.1·H px; straight when unknown
 *   strike light     probability p                       alpha .12 + .46·p; dashed when unknown
 *   hatch            frames past the stall line          width = time
 *   blank            frames that never arrived           width = time
 */

import { COLUMNS } from "./session.js";

export const COLUMN_PX = 2;
export const FRAME_HZ = 60;
const TOP_PX = 26;
const AXIS_PX = 24;
const LEFT_PX = 38;
const PAD_PX = 16; // a strike's jag may reach past its column

/** @typedef {import("./theme.js").Palette} Palette */
/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./session.js").Strike} Strike */
/** @typedef {{x0: number, x1: number, y0: number, y1: number, width: number, height: number}} Plot in CSS px */

/**
 * A repeatable number in [0, 1) for the `n`-th bend of token `position`: the same token always has the same shape.
 * @param {number} position @param {number} n
 */
export function bend(position, n) {
  let t = Math.imul(position + 1, 0x9e3779b1) ^ Math.imul(n + 1, 0x85ebca6b);
  t = Math.imul(t ^ (t >>> 15), t | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}

/**
 * A line from a to b, broken by midpoint displacement of at most `jag` px.
 * @param {number} ax @param {number} ay @param {number} bx @param {number} by
 * @param {number} jag @param {number} position @param {number} depth
 * @returns {number[]} x, y, x, y, …
 */
export function jagged(ax, ay, bx, by, jag, position, depth) {
  let points = [ax, ay, bx, by];
  let n = 0;
  for (let level = 0, reach = jag; level < depth; level += 1, reach *= 0.56) {
    const next = [points[0], points[1]];
    for (let i = 2; i < points.length; i += 2) {
      const dx = points[i] - points[i - 2];
      const dy = points[i + 1] - points[i - 1];
      const length = Math.hypot(dx, dy) || 1;
      const off = (bend(position, (n += 1)) - 0.5) * reach;
      next.push((points[i] + points[i - 2]) / 2 - (dy / length) * off, (points[i + 1] + points[i - 1]) / 2 + (dx / length) * off);
      next.push(points[i], points[i + 1]);
    }
    points = next;
  }
  return points;
}

/** @param {CanvasRenderingContext2D} ctx @param {number[]} points */
export function trace(ctx, points) {
  ctx.beginPath();
  ctx.moveTo(points[0], points[1]);
  for (let i = 2; i < points.length; i += 2) ctx.lineTo(points[i], points[i + 1]);
}

export class Field {
  /** @param {HTMLCanvasElement} history an off-screen canvas for this field alone */
  constructor(history) {
    this.history = history;
    this.ctx = /** @type {CanvasRenderingContext2D} */ (history.getContext("2d"));
    /** @type {Plot} */
    this.plot = { x0: LEFT_PX, x1: LEFT_PX, y0: TOP_PX, y1: TOP_PX, width: 0, height: 0 };
    this.scale = 1;
    this.painted = 0; // columns of the session that are in the history
    this.strikes = 0; // strikes painted for the session shown
  }

  /** @param {number} width @param {number} height @param {number} scale device px per CSS px @param {number} rightPx kept free */
  resize(width, height, scale, rightPx) {
    const x1 = Math.max(LEFT_PX + COLUMN_PX, Math.floor(width - rightPx));
    this.plot = { x0: LEFT_PX, x1, y0: TOP_PX, y1: height - AXIS_PX, width, height };
    this.scale = scale;
    this.history.width = Math.ceil((x1 - LEFT_PX + PAD_PX) * scale);
    this.history.height = Math.ceil(height * scale);
  }

  get span() {
    return this.plot.x1 - this.plot.x0;
  }

  /** Another session is shown; `repaint` comes next. */
  begin() {
    this.painted = 0;
    this.strikes = 0;
  }

  /** Paints everything again from the ring: after a resize, a change of theme or of session. @param {Session|null} session @param {Palette} palette @param {boolean} still */
  repaint(session, palette, still) {
    this.ctx.setTransform(1, 0, 0, 1, 0, 0);
    this.ctx.clearRect(0, 0, this.history.width, this.history.height);
    if (!session) return;
    this._fresh(session, still);
    this._paint(session, palette, still, 0);
  }

  /** Paints the columns that came since. @param {Session} session @param {Palette} palette @param {boolean} still @returns {Strike[]} the strikes among them */
  advance(session, palette, still) {
    const { count } = session.columns;
    const from = this.painted;
    if (count === from) return [];
    const shift = Math.min((count - from) * COLUMN_PX, this.span + PAD_PX) * this.scale;
    const { ctx } = this;
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.globalCompositeOperation = "copy";
    ctx.drawImage(this.history, -Math.round(shift), 0);
    ctx.globalCompositeOperation = "source-over";
    const fresh = this._fresh(session, still);
    this._paint(session, palette, still, from);
    return fresh;
  }

  /** The strikes not painted before; counted when strikes are drawn at all. @param {Session} session @param {boolean} still */
  _fresh(session, still) {
    const { count, strikes } = session.columns;
    const fresh = [];
    for (let i = Math.max(this.painted, count - COLUMNS); i < count; i += 1) fresh.push(...(strikes[i % COLUMNS] ?? []));
    if (!still) this.strikes += fresh.length;
    return fresh;
  }

  /** @param {Session} session @param {Palette} palette @param {boolean} still @param {number} from */
  _paint(session, palette, still, from) {
    const { columns } = session;
    this.ctx.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    const first = Math.max(from, columns.count - Math.ceil(this.span / COLUMN_PX), columns.count - COLUMNS);
    for (let i = first; i < columns.count; i += 1) {
      const x = this.span - (columns.count - 1 - i) * COLUMN_PX;
      this._column(columns, i, x, palette);
      if (still) continue;
      for (const strike of columns.strikes[i % COLUMNS] ?? []) this._strike(strike, x, palette);
    }
    this.painted = columns.count;
  }

  /** @param {import("./session.js").Columns} columns @param {number} i @param {number} x @param {Palette} palette */
  _column(columns, i, x, palette) {
    const { ctx } = this;
    const { y0, y1 } = this.plot;
    const energy = columns.energy[i % COLUMNS];
    if (Number.isNaN(energy)) return; // a missed frame: no ink
    const y = this._y(energy);
    ctx.fillStyle = palette.m1;
    ctx.globalAlpha = 0.13;
    ctx.fillRect(x - COLUMN_PX, y, COLUMN_PX, y1 - y);
    if (columns.stalled[i % COLUMNS]) {
      ctx.globalAlpha = 0.55;
      ctx.fillStyle = palette.danger;
      for (let q = (i * COLUMN_PX) % 8; q < y1 - y0; q += 8) ctx.fillRect(x - COLUMN_PX, y1 - q - 2, COLUMN_PX, 2);
    }
    ctx.globalAlpha = 1;
    const before = i > 0 && i > columns.count - COLUMNS ? columns.energy[(i - 1) % COLUMNS] : NaN;
    ctx.strokeStyle = palette.m1;
    ctx.lineCap = "butt"; // round ends would overlap and bead
    trace(ctx, [x - COLUMN_PX, Number.isNaN(before) ? y : this._y(before), x, y]);
    ctx.globalAlpha = 0.22;
    ctx.lineWidth = 6;
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.lineCap = "round";
    ctx.lineWidth = 2;
    ctx.stroke();
  }

  /** @param {Strike} strike @param {number} x @param {Palette} palette */
  _strike(strike, x, palette) {
    const { ctx } = this;
    const { y1 } = this.plot;
    const top = this._y(strike.base ?? 0); // a throttled token has no E_base: only its mark at the bottom
    ctx.globalCompositeOperation = palette.dark ? "lighter" : "source-over";
    ctx.globalAlpha = strike.p === null ? 0.35 : 0.12 + 0.46 * strike.p;
    ctx.strokeStyle = palette.m1;
    ctx.lineWidth = 1;
    if (strike.p === null) ctx.setLineDash([3, 3]);
    trace(ctx, strike.bits === null ? [x, y1, x, top] : jagged(x, y1, x, top, 1 + 2.1 * strike.bits, strike.position, 5));
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.globalCompositeOperation = "source-over";
    ctx.globalAlpha = 1;
    ctx.fillStyle = palette.m1;
    ctx.fillRect(x - 0.5, y1 + 1, 1, 3);
  }

  /** @param {number} energy */
  _y(energy) {
    const { y0, y1 } = this.plot;
    return y1 - energy * (y1 - y0);
  }
}
