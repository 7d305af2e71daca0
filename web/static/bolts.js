/**
 * Bolts from the lines to the ring: one per token, gone after BOLT_MS.
 *
 *   jag      entropy H in bits   5 + 11·H px; straight when unknown
 *   width    probability p       .7 + 1.6·p px
 *   light    probability p, age  .35 + .65·p, times e^(−age / 120 ms)
 *   hollow   p is unknown
 *
 * A bolt is drawn once, onto a layer it shares with those of the same SHARED_MS; that layer is then laid over the picture
 * with fading light. Seventy-two jagged lines in each animation frame would cost more than all the rest of the field.
 */

import { jagged, trace } from "./shapes.js";

const BOLT_MS = 200;
const FADE_MS = 120;
const SHARED_MS = 33;
const BOLTS = 96; // six streams of 60 tokens a second fill three quarters of it
const DIMMED = 0.15;
const HALO_PX = 6;
const HALO_ALPHA = 0.1;
const BEYOND_PX = 24; // a jag may reach past both ends

/**
 * @typedef {import("./scene.js").View} View
 * @typedef {import("./field.js").Field} Field
 * @typedef {{x: number, y: number}} Point
 * @typedef {{from: Point, to: Point}} Ends
 * @typedef {{ctx: CanvasRenderingContext2D, x: number, born: number}} Layer `x`: its left edge, CSS px
 * @typedef {{slot: number, strike: import("./columns.js").Strike, born: number, layer: Layer|null}} Bolt `layer`: where it was drawn
 */

export class Bolts {
  constructor() {
    /** @type {Bolt[]} oldest first */
    this.live = [];
    this.thrown = 0;
    /** @type {Layer[]} in use or to be used again; as many as were ever lit at once */
    this.layers = [];
  }

  /** @param {import("./field.js").Fresh[]} fresh @param {number} now */
  add(fresh, now) {
    for (const { slot, strike } of fresh) this.live.push({ slot, strike, born: now, layer: null });
    this.thrown += fresh.length;
    if (this.live.length > BOLTS) this.live.splice(0, this.live.length - BOLTS);
  }

  /** @param {number} now */
  expire(now) {
    if (this.live.length > 0) this.live = this.live.filter((bolt) => now - bolt.born < BOLT_MS);
  }

  /** The layers with a bolt that is still there, oldest first. @returns {Layer[]} */
  get lit() {
    return [...new Set(this.live.map(({ layer }) => layer))].filter((layer) => layer !== null);
  }

  /** The layer for what is born now. @param {number} now @param {number} x @param {number} width @param {number} height CSS px @param {number} scale @returns {Layer} */
  layer(now, x, width, height, scale) {
    const { lit } = this;
    const last = lit.at(-1);
    if (last && now - last.born < SHARED_MS) return last;
    const layer = this.layers.find((one) => !lit.includes(one)) ?? this._grow();
    const { canvas } = layer.ctx;
    const [wide, tall] = [Math.ceil(width * scale), Math.ceil(height * scale)];
    if (canvas.width !== wide || canvas.height !== tall) Object.assign(canvas, { width: wide, height: tall });
    layer.ctx.setTransform(1, 0, 0, 1, 0, 0);
    layer.ctx.clearRect(0, 0, wide, tall);
    layer.ctx.setTransform(scale, 0, 0, scale, -Math.round(x * scale), 0);
    return Object.assign(layer, { x, born: now });
  }

  /** @returns {Layer} */
  _grow() {
    const ctx = /** @type {CanvasRenderingContext2D} */ (document.createElement("canvas").getContext("2d"));
    this.layers.push({ ctx, x: 0, born: 0 });
    return this.layers[this.layers.length - 1];
  }
}

/** Draws what was born since and lays all of it over the picture. @param {CanvasRenderingContext2D} ctx @param {Field} field @param {View} view @param {number} right where the last of them ends @param {(slot: number) => Ends|null} ends of a stream's conduit */
export function discharge(ctx, field, { bolts, now, palette, solo }, right, ends) {
  const { x1, lanes } = field.plot;
  const born = bolts.live.filter(({ layer }) => layer === null);
  if (born.length > 0) {
    const left = x1 - BEYOND_PX;
    const layer = bolts.layer(now, left, right + BEYOND_PX - left, lanes[lanes.length - 1].y1 + BEYOND_PX, field.scale);
    for (const bolt of born) {
      bolt.layer = layer;
      const found = ends(bolt.slot);
      if (found) strike(layer.ctx, bolt, found, palette, solo >= 0 && solo !== bolt.slot ? DIMMED : 1);
    }
  }
  const { lit } = bolts;
  if (lit.length === 0) return;
  ctx.setTransform(1, 0, 0, 1, 0, 0);
  ctx.globalCompositeOperation = palette.dark ? "lighter" : "source-over";
  for (const layer of lit) {
    ctx.globalAlpha = Math.exp(-(now - layer.born) / FADE_MS);
    ctx.drawImage(layer.ctx.canvas, Math.round(layer.x * field.scale), 0);
  }
  ctx.globalCompositeOperation = "source-over";
  ctx.globalAlpha = 1;
  ctx.setTransform(field.scale, 0, 0, field.scale, 0, 0);
}

/** @param {CanvasRenderingContext2D} ctx @param {Bolt} bolt @param {Ends} ends @param {import("./theme.js").Palette} palette @param {number} light */
function strike(ctx, { slot, strike: { p, bits, position } }, { from, to }, palette, light) {
  trace(ctx, bits === null ? [from.x, from.y, to.x, to.y] : jagged(from.x, from.y, to.x, to.y, 5 + 11 * bits, position, 4));
  ctx.strokeStyle = palette.models[slot];
  if (p === null) {
    hollow(ctx, palette, light);
    return;
  }
  ctx.lineCap = "round";
  ctx.globalAlpha = light * HALO_ALPHA;
  ctx.lineWidth = HALO_PX;
  ctx.stroke();
  ctx.globalAlpha = light * (0.35 + 0.65 * p);
  ctx.lineWidth = 0.7 + 1.6 * p;
  ctx.stroke();
}

/** The path in place as an empty, broken tube: a token whose probability nobody told. @param {CanvasRenderingContext2D} ctx @param {import("./theme.js").Palette} palette @param {number} light */
function hollow(ctx, palette, light) {
  ctx.save();
  ctx.globalAlpha = light;
  ctx.lineCap = "butt";
  ctx.setLineDash([7, 4]);
  ctx.lineWidth = 5;
  ctx.stroke();
  ctx.strokeStyle = palette.panel;
  ctx.lineWidth = 3;
  ctx.stroke();
  ctx.restore();
}
