/**
 * The ring at the right. Of one stream: its E. Of several: the energy of the ensemble, with DI inside and each member
 * outside. Conduits join it to the lines, and each token sends one bolt through its own (bolts.js).
 *
 *   ring arc         E of the ensemble, or of the only stream   270°, linear, printed at 0, .5 and 1
 *   ticks            E of each member                           linear
 *   inner arc        DI                                         linear; none when it was not measured
 *   conduit width    weight γ                                   1 + 16·γ px
 *   gold             the engine's cue of a resonance
 */

import { discharge } from "./bolts.js";
import { height } from "./field.js";

const ARC_FROM = Math.PI * 0.75;
const ARC_SPAN = Math.PI * 1.5;
const DIMMED = 0.15;

export { Bolts } from "./bolts.js";

/** @typedef {import("./scene.js").View} View */
/** @typedef {import("./field.js").Field} Field */
/** @typedef {{x: number, y: number, radius: number}} Circle */

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
  if (session && !view.still) discharge(ctx, field, view, circle.x, (slot) => ends(field, session.streams[slot], circle));
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

/** From where to where a stream's conduit leads; null without a lane. @param {Field} field @param {import("./stream.js").Stream|undefined} stream @param {Circle} circle @returns {import("./bolts.js").Ends|null} */
function ends({ plot: { x1, lanes } }, stream, circle) {
  const band = stream && lanes[stream.slot];
  if (!band) return null;
  const off = lanes.length > 1 ? (stream.slot - (lanes.length - 1) / 2) * Math.min(19, (circle.radius * 1.5) / lanes.length) : 0;
  const to = { x: circle.x - Math.sqrt(Math.max(0, (circle.radius + 8) ** 2 - off ** 2)), y: circle.y + off };
  return { from: { x: x1 + 4, y: height(band, stream.reading?.energy ?? 0) }, to };
}

/** @param {CanvasRenderingContext2D} ctx @param {Field} field @param {import("./stream.js").Stream} stream @param {Circle} circle @param {View} view */
function conduit(ctx, field, stream, circle, { session, palette, solo }) {
  const found = ends(field, stream, circle);
  if (!found) return;
  const { from, to } = found;
  ctx.strokeStyle = palette.models[stream.slot];
  ctx.globalAlpha = solo >= 0 && solo !== stream.slot ? 0.17 * DIMMED : 0.17;
  ctx.lineWidth = field.plot.lanes.length > 1 ? 1 + 16 * share(session?.ensemble ?? null, stream.id) : 5;
  ctx.lineCap = "round";
  ctx.beginPath();
  ctx.moveTo(from.x, from.y);
  ctx.bezierCurveTo(from.x + 30, from.y, to.x - 34, to.y, to.x, to.y);
  ctx.stroke();
  ctx.globalAlpha = 1;
}
