/**
 * The interferogram: how far the members agree, as the contrast of fringes, the way optics measures coherence.
 *
 *   fringe contrast  V = clamp((A − .1) / .82), A = 1 − DI
 *   fringe phase     sync lag / 50 ms · 1.5 π; none when unknown
 *   white line       DI                                  linear, 0–1
 *   gold             the engine's cue of a resonance
 *   grey hatch       DI was not measured in that frame
 */

import { COLUMNS } from "./columns.js";
import { trace } from "./shapes.js";

const PERIOD_PX = 15;

/** @typedef {import("./theme.js").Palette} Palette */
/** @typedef {import("./columns.js").EnsembleColumns} EnsembleColumns */
/** @typedef {{x: number, width: number, y0: number, y1: number}} Slot where the column stands */

/** @param {number} di */
export const contrast = (di) => Math.min(1, Math.max(0, (1 - di - 0.1) / 0.82));

/** @param {number} lagMs in radians */
export const phase = (lagMs) => (lagMs / 50) * 1.5 * Math.PI;

export class Fringe {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.canvas.width = 1;
    this._ctx = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    /** @type {ImageData|null} */
    this._pixels = null;
  }

  /** @param {CanvasRenderingContext2D} ctx @param {EnsembleColumns} together @param {number} i @param {Slot} slot @param {Palette} palette */
  column(ctx, together, i, slot, palette) {
    const di = together.di[i % COLUMNS];
    if (i < together.born) return;
    if (Number.isNaN(di)) {
      if (!Number.isNaN(together.energy[i % COLUMNS])) unmeasured(ctx, i, slot, palette);
      return;
    }
    const gold = together.cue[i % COLUMNS] > 0;
    const lag = together.lagMs[i % COLUMNS];
    this._paint(contrast(di), Number.isNaN(lag) ? 0 : phase(lag), gold, slot, palette);
    ctx.drawImage(this.canvas, slot.x - slot.width, slot.y0, slot.width, slot.y1 - slot.y0);
    const before = i > together.born && i > together.count - COLUMNS ? together.di[(i - 1) % COLUMNS] : NaN;
    const from = diY(slot, Number.isNaN(before) ? di : before);
    ctx.lineCap = "butt"; // round ends of the halo would cover the line before
    ctx.globalAlpha = 0.75;
    ctx.strokeStyle = palette.panel;
    ctx.lineWidth = 3.6;
    trace(ctx, [slot.x - slot.width, from, slot.x, diY(slot, di)]);
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.strokeStyle = palette.text;
    ctx.lineWidth = 1.5;
    trace(ctx, [slot.x - slot.width - 1, from, slot.x, diY(slot, di)]);
    ctx.stroke();
    if (!gold) return;
    ctx.fillStyle = palette.gold;
    ctx.fillRect(slot.x - slot.width, slot.y0 - 6, slot.width, 1.5);
  }

  /** One pixel wide. @param {number} visibility @param {number} shift @param {boolean} gold @param {Slot} slot @param {Palette} palette */
  _paint(visibility, shift, gold, { y0, y1 }, palette) {
    const rows = y1 - y0;
    if (this.canvas.height !== rows || !this._pixels) {
      this.canvas.height = rows;
      this._pixels = this._ctx.createImageData(1, rows);
    }
    const [r, g, b] = gold ? palette.goldRgb : palette.violetRgb;
    const { data } = this._pixels;
    for (let y = 0; y < rows; y += 1) {
      const light = 0.5 * (1 + visibility * Math.cos((2 * Math.PI * (y - rows / 2)) / PERIOD_PX + shift));
      const edge = Math.sqrt(Math.sin((Math.PI * (y + 0.5)) / rows));
      const at = y * 4;
      data[at] = r;
      data[at + 1] = g;
      data[at + 2] = b;
      data[at + 3] = 255 * (0.06 + 0.86 * light * edge) * (0.25 + 0.75 * edge) * (palette.dark ? (gold ? 0.92 : 0.74) : 0.8);
    }
    this._ctx.putImageData(this._pixels, 0, 0);
  }
}

/** @param {CanvasRenderingContext2D} ctx @param {number} i @param {Slot} slot @param {Palette} palette */
function unmeasured(ctx, i, { x, width, y0, y1 }, palette) {
  ctx.fillStyle = palette.muted;
  ctx.globalAlpha = 0.28;
  for (let q = (i * width) % 10; q < y1 - y0; q += 10) ctx.fillRect(x - width, y1 - q - 2, width, 1);
  ctx.globalAlpha = 1;
}

/** @param {{y0: number, y1: number}} band @param {number} di */
export function diY({ y0, y1 }, di) {
  return y1 - 2 - di * (y1 - y0 - 4);
}
