/**
 * The ring at the right. Of one stream: its E. Of several: the energy of the ensemble, with DI inside and each member
 * outside. Conduits join it to the lines, and each token sends one bolt through its own.
 *
 *   ring arc         E of the ensemble, or of the only stream   270°, linear, printed at 0, .5 and 1
 *   ticks            E of each member                           linear
 *   inner arc        DI                                         linear; none when it was not measured
 *   conduit width    weight γ                                   1 + 16·γ px
 *   bolt             one token, for 200 ms                      jag 5 + 11·H px, width .7 + 1.6·p px; hollow when p is unknown
 *   gold             the engine's cue of a resonance
 */

import { height } from "./field.js";
import { jagged, trace } from "./shapes.js";

const BOLT_MS = 200;
const BOLTS = 96; // six streams of 60 tokens a second fill three quarters of it
const ARC_FROM = Math.PI * 0.75;
const ARC_SPAN = Math.PI * 1.5;
const DIMMED = 0.15;

/** @typedef {import("./scene.js").View} View */
/** @typedef {import("./field.js").Field} Field */
/** @typedef {{x: number, y: number, radius: number}} Circle */

/** Bolts from the lines to the ring: one per token, gone after BOLT_MS. */
export class Bolts {
  constructor() {
    /** @type {{slot: number, strike: import("./columns.js").Strike, born: number}[]} */
    this.live = [];
    this.thrown = 0;
  }

  /** @param {import("./field.js").Fresh[]} fresh @param {number} now */
  add(fresh, now) {
    for (const { slot, strike } of fresh) this.live.push({ slot, strike, born: now });
    this.thrown += fresh.length;
    if (this.live.length > BOLTS) this.live.splice(0, this.live.length - BOLTS);
  }

  /** @param {number} now */
  expire(now) {
    if (this.live.length > 0) this.live = this.live.filter((bolt) => now - bolt.born < BOLT_MS);
  }
}

/** γ as a part of one: the engine's weights of the members add up to anything. @param {Record<string, any>|null} ensemble @param {string} streamId */
export function share(ensemble, streamId) {
  const weights = ensemble?.weights ?? {};
  const sum = Object.values(weights).reduce((/** @type {number} */ total, weight) => total + Number(weight), 0);
  return sum > 0 ? (weights[streamId] ?? 0) / sum : 0;
}

/** @param {CanvasRenderingContext2D} ctx @param {Field} field @param {View} view */
export function core(ctx, field, view) {
  const { session, palette } = view;
  const { lanes, width } = field.plot;
  const top = lanes[0].y0;
  const bottom = lanes[lanes.length - 1].y1;
  const plural = lanes.length > 1;
  const radius = Math.min(plural ? 66 : 74, (bottom - top) / 2 + 4);
  const circle = { x: width - radius - 34, y: (top + bottom) / 2 + 4, radius };
  const resonant = session?.active === true && session.council.resonance != null; // after the end nobody is heard
  const only = session?.streams[0]?.reading ?? null;
  const energy = plural ? (session?.ensemble?.energy ?? null) : (only?.energy ?? null);
  for (const stream of session?.streams ?? []) if (stream.reading) conduit(ctx, field, stream, circle, view);
  ring(ctx, circle, energy, resonant ? palette.gold : plural ? palette.ens : palette.models[0], resonant, palette);
  if (plural && session) members(ctx, circle, session, view);
  words(ctx, circle, energy, view, plural);
}

/** @param {CanvasRenderingContext2D} ctx @param {Circle} circle @param {number|null} energy @param {string} colour @param {boolean} glows @param {import("./theme.js").Palette} palette */
function ring(ctx, circle, energy, colour, glows, palette) {
  ctx.lineCap = "round";
  ctx.lineWidth = 8;
  ctx.strokeStyle = palette.raised;
  arc(ctx, circle, circle.radius, 1);
  if (energy === null || energy <= 0.001) return;
  ctx.strokeStyle = colour;
  ctx.globalAlpha = glows ? 0.3 : 0.18;
  ctx.lineWidth = 15;
  arc(ctx, circle, circle.radius, energy);
  ctx.globalAlpha = 1;
  ctx.lineWidth = 8;
  arc(ctx, circle, circle.radius, energy);
}

/** DI inside, members outside. @param {CanvasRenderingContext2D} ctx @param {Circle} circle @param {import("./session.js").Session} session @param {View} view */
function members(ctx, circle, session, { palette }) {
  const { x, y, radius } = circle;
  for (const { slot, reading } of session.streams) {
    if (typeof reading?.energy !== "number") continue;
    const angle = ARC_FROM + ARC_SPAN * reading.energy;
    ctx.strokeStyle = palette.models[slot];
    ctx.lineWidth = 2.6;
    ctx.lineCap = "butt";
    ctx.beginPath();
    ctx.moveTo(x + Math.cos(angle) * (radius + 9), y + Math.sin(angle) * (radius + 9));
    ctx.lineTo(x + Math.cos(angle) * (radius + 16), y + Math.sin(angle) * (radius + 16));
    ctx.stroke();
  }
  ctx.lineCap = "round";
  ctx.lineWidth = 3;
  ctx.strokeStyle = palette.raised;
  arc(ctx, circle, radius - 11, 1);
  const di = session.ensemble?.di ?? null;
  if (di === null) return;
  ctx.strokeStyle = palette.violet;
  arc(ctx, circle, radius - 11, di);
}

/** @param {CanvasRenderingContext2D} ctx @param {Circle} circle @param {number|null} energy @param {View} view @param {boolean} plural */
function words(ctx, { x, y, radius }, energy, { session, palette }, plural) {
  ctx.textAlign = "center";
  ctx.font = `9.5px ${palette.mono}`;
  ctx.fillStyle = palette.muted;
  const inset = plural ? 23 : 15;
  for (const [part, label] of /** @type {[number, string][]} */ ([[0, "0"], [0.5, ".5"], [1, "1"]])) {
    const angle = ARC_FROM + ARC_SPAN * part;
    ctx.fillText(label, x + Math.cos(angle) * (radius - inset), y + Math.sin(angle) * (radius - inset));
  }
  ctx.font = `500 11px ${palette.sans}`;
  ctx.fillText(plural ? "E ensemble" : "E(t)", x, y + (plural ? 18 : 24));
  if (plural) {
    const di = session?.ensemble?.di ?? null;
    ctx.font = `500 11px ${palette.mono}`;
    ctx.fillStyle = palette.violet;
    ctx.fillText(`DI ${di === null ? "—" : di.toFixed(2)}`, x, y + 34);
  } else if (session?.streams[0]?.probability === null) {
    ctx.font = `9.5px ${palette.mono}`;
    ctx.fillText("p unknown", x, y + radius * 0.86);
  }
  ctx.fillStyle = palette.text;
  ctx.font = `600 ${plural ? 28 : 32}px ${palette.mono}`;
  ctx.fillText(energy === null ? "—" : energy.toFixed(2), x, y - (plural ? 4 : 0));
}

/** @param {CanvasRenderingContext2D} ctx @param {Circle} circle @param {number} radius @param {number} part */
function arc(ctx, { x, y }, radius, part) {
  ctx.beginPath();
  ctx.arc(x, y, radius, ARC_FROM, ARC_FROM + ARC_SPAN * part);
  ctx.stroke();
}

/** @param {CanvasRenderingContext2D} ctx @param {Field} field @param {import("./stream.js").Stream} stream @param {Circle} circle @param {View} view */
function conduit(ctx, field, stream, circle, { session, palette, bolts, now, solo, still }) {
  const { x1, lanes } = field.plot;
  const band = lanes[stream.slot];
  if (!band) return;
  const plural = lanes.length > 1;
  const from = { x: x1 + 4, y: height(band, stream.reading?.energy ?? 0) };
  const off = plural ? (stream.slot - (lanes.length - 1) / 2) * Math.min(19, (circle.radius * 1.5) / lanes.length) : 0;
  const to = { x: circle.x - Math.sqrt(Math.max(0, (circle.radius + 8) ** 2 - off ** 2)), y: circle.y + off };
  const dim = solo >= 0 && solo !== stream.slot ? DIMMED : 1;
  ctx.strokeStyle = palette.models[stream.slot];
  ctx.globalAlpha = 0.17 * dim;
  ctx.lineWidth = plural ? 1 + 16 * share(session?.ensemble ?? null, stream.id) : 5;
  ctx.lineCap = "round";
  ctx.beginPath();
  ctx.moveTo(from.x, from.y);
  ctx.bezierCurveTo(from.x + 30, from.y, to.x - 34, to.y, to.x, to.y);
  ctx.stroke();
  ctx.globalCompositeOperation = palette.dark ? "lighter" : "source-over";
  const own = still ? [] : bolts.live.filter(({ slot }) => slot === stream.slot);
  for (const { strike, born } of own) {
    const light = Math.exp(-(now - born) / 120) * dim;
    const { p } = strike;
    trace(ctx, strike.bits === null ? [from.x, from.y, to.x, to.y] : jagged(from.x, from.y, to.x, to.y, 5 + 11 * strike.bits, strike.position, 4));
    if (p === null) {
      hollow(ctx, palette, light);
      continue;
    }
    if (strike === own[own.length - 1].strike) { // a halo for the newest only: wide strokes are what costs
      ctx.globalAlpha = light * 0.24;
      ctx.lineWidth = 6;
      ctx.stroke();
    }
    ctx.globalAlpha = light * (0.35 + 0.65 * p);
    ctx.lineWidth = 0.7 + 1.6 * p;
    ctx.stroke();
  }
  ctx.globalCompositeOperation = "source-over";
  ctx.globalAlpha = 1;
}

/** The path in place as an empty, broken tube: a token whose probability nobody told. @param {CanvasRenderingContext2D} ctx @param {import("./theme.js").Palette} palette @param {number} light */
function hollow(ctx, palette, light) {
  ctx.save();
  ctx.globalCompositeOperation = "source-over";
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
