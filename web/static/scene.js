/** What is drawn around the history every animation frame: axes, names, labels, needles and the cross of Evidence. No DOM. */

import { COLUMNS } from "./columns.js";
import { core } from "./core.js";
import { height } from "./field.js";
import { diY } from "./fringe.js";
import { FRAME_HZ } from "./layout.js";
import { glyph, veil } from "./shapes.js";

const NAME_CHARS = 18;
const DIMMED = 0.18;
const FADED = 0.7; // of the span, from the left
const FADE_STEPS = 32;
const FADE_MOST = 0.6;

/**
 * @typedef {import("./theme.js").Palette} Palette
 * @typedef {import("./session.js").Session} Session
 * @typedef {import("./stream.js").Stream} Stream
 * @typedef {import("./field.js").Field} Field
 * @typedef {{session: Session|null, palette: Palette, bolts: import("./core.js").Bolts, now: number, solo: number,
 *   picked: {slot: number, heard: import("./stream.js").Heard}|null, still: boolean}} View `solo`: a slot, or −1
 */

/** @param {CanvasRenderingContext2D} ctx @param {Field} field @param {View} view */
export function draw(ctx, field, view) {
  const { session, palette } = view;
  const { plot } = field;
  ctx.setTransform(field.scale, 0, 0, field.scale, 0, 0);
  ctx.clearRect(0, 0, plot.width, plot.height);
  axes(ctx, field, palette, session);
  past(ctx, field);
  if (session && view.solo >= 0) alone(ctx, field, view);
  fade(ctx, field, palette);
  const bottom = (plot.fringe ?? plot.lanes[plot.lanes.length - 1]).y1;
  ctx.fillStyle = palette.text;
  ctx.globalAlpha = 0.6;
  ctx.fillRect(plot.x1, plot.lanes[0].y0 - 8, 1, bottom - plot.lanes[0].y0 + 8);
  ctx.globalAlpha = 1;
  for (const stream of session?.streams ?? []) if (plot.lanes[stream.slot]) lane(ctx, field, stream, view);
  if (session && plot.fringe) fringe(ctx, field, session, palette);
  if (plot.gauge) core(ctx, field, view);
  for (const stream of session?.streams ?? []) needle(ctx, field, stream, view);
  if (view.picked) cross(ctx, field, view.picked, palette);
}

/** The history, pixel by pixel: with nothing to resample it is several times cheaper. @param {CanvasRenderingContext2D} ctx @param {Field} field */
function past(ctx, { history, scale, span, plot }) {
  const width = Math.round(span * scale);
  ctx.setTransform(1, 0, 0, 1, 0, 0);
  ctx.imageSmoothingEnabled = false;
  ctx.drawImage(history, 0, 0, width, history.height, Math.round(plot.x0 * scale), 0, width, history.height);
  ctx.setTransform(scale, 0, 0, scale, 0, 0);
}

/** @param {CanvasRenderingContext2D} ctx @param {Field} field @param {Palette} palette @param {Session|null} session */
function axes(ctx, field, palette, session) {
  const { x0, x1, lanes, height: tall } = field.plot;
  ctx.font = `10.5px ${palette.mono}`;
  ctx.textBaseline = "middle";
  if (lanes.length === 1) scaleOf(ctx, field, palette);
  ctx.textAlign = "center";
  const second = FRAME_HZ * field.pitch;
  const every = second < 90 ? 2 : 1;
  const bottom = (field.plot.fringe ?? lanes[lanes.length - 1]).y1;
  for (let s = every; x1 - s * second > x0 + 12; s += every) {
    const x = x1 - s * second;
    ctx.fillStyle = palette.line;
    ctx.globalAlpha = 0.35;
    ctx.fillRect(x, lanes[0].y0, 1, bottom - lanes[0].y0);
    ctx.globalAlpha = 1;
    ctx.fillStyle = palette.muted;
    ctx.fillText(`−${s} s`, x, tall - 11);
  }
  ctx.fillText(session && !session.active ? "end" : session?.recorded ? "replay" : "now", x1, tall - 11);
}

/** @param {CanvasRenderingContext2D} ctx @param {Field} field @param {Palette} palette */
function scaleOf(ctx, field, palette) {
  const { x0, x1, lanes: [band] } = field.plot;
  ctx.textAlign = "right";
  for (const [energy, label] of /** @type {[number, string][]} */ ([[0, "0"], [0.5, ".5"], [1, "1"]])) {
    const y = Math.round(height(band, energy));
    ctx.fillStyle = palette.line;
    ctx.globalAlpha = energy === 0 ? 0.9 : 0.4;
    ctx.fillRect(x0, y, x1 - x0, 1);
    ctx.globalAlpha = 1;
    ctx.fillStyle = palette.muted;
    ctx.fillText(label, x0 - 8, y);
  }
}

/** Age dims: the older part fades towards the panel, in steps, which are cheaper than a gradient. @param {CanvasRenderingContext2D} ctx @param {Field} field @param {Palette} palette */
function fade(ctx, field, palette) {
  const { x0, lanes, fringe: band } = field.plot;
  const bottom = (band ?? lanes[lanes.length - 1]).y1 - 1;
  const edge = (/** @type {number} */ step) => Math.round(x0 + (field.span * FADED * step) / FADE_STEPS);
  ctx.fillStyle = palette.panel;
  for (let step = 0; step < FADE_STEPS; step += 1) {
    ctx.globalAlpha = FADE_MOST * (1 - (step + 0.5) / FADE_STEPS);
    ctx.fillRect(edge(step), 0, edge(step + 1) - edge(step), bottom);
  }
  ctx.globalAlpha = 1;
}

/** All but one lane step back. @param {CanvasRenderingContext2D} ctx @param {Field} field @param {View} view */
function alone(ctx, field, { palette, solo }) {
  const { x0, lanes } = field.plot;
  ctx.fillStyle = veil(palette.panel, 0.8);
  lanes.forEach((band, slot) => {
    if (slot !== solo) ctx.fillRect(x0, band.y0 - 8, field.span, band.y1 - band.y0 + 12);
  });
}

/** Name and rate at the left; where the first token landed, and how long each stall was. @param {CanvasRenderingContext2D} ctx @param {Field} field @param {Stream} stream @param {View} view */
function lane(ctx, field, stream, { palette, solo }) {
  const { x0, x1, lanes, names } = field.plot;
  const band = lanes[stream.slot];
  const { columns } = stream;
  const colour = palette.models[stream.slot];
  ctx.globalAlpha = solo >= 0 && solo !== stream.slot ? DIMMED : 1;
  if (lanes.length > 1) {
    const middle = (band.y0 + band.y1) / 2;
    glyph(ctx, stream.slot, names ? 12 : 6, middle - (names ? 12 : 5), stream.error ? palette.muted : colour);
    if (names) name(ctx, stream, middle, palette);
  }
  ctx.font = `500 11px ${palette.mono}`;
  for (const stall of columns.stalls) {
    if (stall.from < columns.count - COLUMNS || field.x(stall.to) < x0) continue;
    tag(ctx, field, `stall ${Math.round(stall.ms)} ms`, (Math.max(x0, field.x(stall.from)) + field.x(stall.to)) / 2, band, palette.danger, palette);
  }
  const x = field.x(columns.firstToken);
  if (columns.firstToken >= 0 && x >= x0 && x <= x1) {
    ctx.fillStyle = colour;
    for (let y = band.y0 - 4; y < band.y1; y += 6) ctx.fillRect(x - 1, y, 1.5, 3);
    if (stream.ttftMs !== null && lanes.length === 1) tag(ctx, field, `first token ${(stream.ttftMs / 1000).toFixed(2)} s`, x, band, palette.muted, palette);
  }
  ctx.globalAlpha = 1;
}

/** @param {CanvasRenderingContext2D} ctx @param {Stream} stream @param {number} middle @param {Palette} palette */
function name(ctx, stream, middle, palette) {
  ctx.textAlign = "left";
  ctx.fillStyle = palette.text;
  ctx.font = `600 11.5px ${palette.sans}`;
  const { model } = stream;
  ctx.fillText(model.length > NAME_CHARS ? `…${model.slice(1 - NAME_CHARS)}` : model, 28, middle - 7);
  ctx.fillStyle = palette.muted;
  ctx.font = `10.5px ${palette.mono}`;
  ctx.fillText(stream.error ? "left" : stream.reading && stream.tokens > 0 ? `${stream.reading.tps.toFixed(0)} tok/s` : "waiting", 28, middle + 8);
}

/** @param {CanvasRenderingContext2D} ctx @param {Field} field @param {string} text @param {number} x its middle @param {import("./layout.js").Band} band @param {string} colour @param {Palette} palette */
function tag(ctx, field, text, x, band, colour, palette) {
  const { x0, x1, lanes } = field.plot;
  const half = ctx.measureText(text).width / 2 + 6;
  const middle = Math.min(Math.max(x, x0 + half), x1 - half);
  const y = lanes.length === 1 ? band.y0 - 20 : band.y0 - 6;
  ctx.fillStyle = palette.panel;
  ctx.beginPath();
  ctx.roundRect(middle - half, y, half * 2, 15, 4);
  ctx.fill();
  ctx.fillStyle = colour;
  ctx.textAlign = "center";
  ctx.fillText(text, middle, y + 8);
}

/** The names beside the interferogram, the brackets above it and what it shows now. @param {CanvasRenderingContext2D} ctx @param {Field} field @param {Session} session @param {Palette} palette */
function fringe(ctx, field, session, palette) {
  const { x0, x1, fringe: band, names, gauge, width } = field.plot;
  const { together, ensemble } = session;
  if (!band) return;
  ctx.textAlign = "left";
  if (names) {
    ctx.fillStyle = palette.text;
    ctx.font = `600 11.5px ${palette.sans}`;
    ctx.fillText("Interference", 12, band.y0 + 12);
    ctx.fillStyle = palette.muted;
    ctx.font = `10.5px ${palette.mono}`;
    ctx.fillText("contrast 1−DI", 12, band.y0 + 28);
    if (band.y1 - band.y0 > 44) ctx.fillText("shift lag", 12, band.y0 + 43);
  }
  for (const bracket of together?.brackets ?? []) {
    const end = field.x(bracket.to ?? session.count);
    if (end < x0) continue;
    const ms = bracket.ms ?? (((bracket.to ?? session.count) - bracket.from) / FRAME_HZ) * 1000;
    const middle = (Math.max(x0, field.x(bracket.from)) + Math.min(x1, end)) / 2;
    ctx.font = `600 10px ${palette.sans}`;
    const text = `resonance ${(ms / 1000).toFixed(1)} s`;
    const half = ctx.measureText(text).width / 2 + 5;
    const at = Math.min(x1 - half, Math.max(x0 + half, middle));
    ctx.fillStyle = palette.panel;
    ctx.fillRect(at - half, band.y0 - 13, half * 2, 12);
    ctx.fillStyle = palette.gold;
    ctx.textAlign = "center";
    ctx.fillText(text, at, band.y0 - 6);
  }
  const di = ensemble?.di ?? null;
  if (di === null && ensemble) {
    ctx.font = `500 11px ${palette.sans}`;
    ctx.textAlign = "center";
    const text = "DI unavailable";
    const half = ctx.measureText(text).width / 2 + 8;
    const middle = (x0 + x1) / 2;
    ctx.fillStyle = palette.panel;
    ctx.fillRect(middle - half, (band.y0 + band.y1) / 2 - 9, half * 2, 18);
    ctx.fillStyle = palette.muted;
    ctx.fillText(text, middle, (band.y0 + band.y1) / 2);
  } else if (di !== null) {
    ctx.fillStyle = palette.text;
    ctx.beginPath();
    ctx.arc(x1, diY(band, di), 2.8, 0, 7);
    ctx.fill();
  }
  if (gauge) beside(ctx, { left: x1 + 18, right: width - 16, top: band.y0 }, ensemble, palette);
}

/** @param {CanvasRenderingContext2D} ctx @param {{left: number, right: number, top: number}} box @param {Record<string, any>|null} ensemble @param {Palette} palette */
function beside(ctx, { left, right, top }, ensemble, palette) {
  const value = (/** @type {any} */ number, /** @type {number} */ digits, unit = "") => (typeof number === "number" ? `${number.toFixed(digits)}${unit}` : "—");
  const di = ensemble?.di ?? null;
  const rows = [
    ["agreement 1−DI", value(di === null ? null : 1 - di, 2)],
    ["sync lag", value(ensemble?.sync_latency_ms, 0, " ms")],
    ["gain", value(ensemble?.gain, 3)],
  ];
  rows.forEach(([label, text], i) => {
    ctx.textAlign = "left";
    ctx.font = `500 11px ${palette.sans}`;
    ctx.fillStyle = palette.muted;
    ctx.fillText(label, left, top + 10 + i * 19);
    ctx.textAlign = "right";
    ctx.font = `500 11.5px ${palette.mono}`;
    ctx.fillStyle = palette.text;
    ctx.fillText(text, right, top + 10 + i * 19);
  });
}

/** The dot at "now", at the height of E. @param {CanvasRenderingContext2D} ctx @param {Field} field @param {Stream} stream @param {View} view */
function needle(ctx, field, stream, { palette, solo }) {
  const band = field.plot.lanes[stream.slot];
  if (!stream.reading || !band) return;
  ctx.globalAlpha = solo >= 0 && solo !== stream.slot ? DIMMED : 1;
  ctx.fillStyle = stream.reading.stall ? palette.danger : palette.models[stream.slot];
  ctx.beginPath();
  ctx.arc(field.plot.x1, height(band, stream.reading.energy ?? 0), 3.3, 0, 7);
  ctx.fill();
  ctx.globalAlpha = 1;
}

/** @param {CanvasRenderingContext2D} ctx @param {Field} field @param {NonNullable<View["picked"]>} picked @param {Palette} palette */
function cross(ctx, field, { slot, heard }, palette) {
  const { x0, x1, lanes, fringe: low, height: tall } = field.plot;
  const x = field.x(heard.column);
  if (x < x0 || x > x1 || !lanes[slot]) return;
  ctx.strokeStyle = palette.gold;
  ctx.lineWidth = 1;
  ctx.setLineDash([3, 3]);
  ctx.beginPath();
  ctx.moveTo(x + 0.5, lanes[0].y0);
  ctx.lineTo(x + 0.5, (low ?? lanes[lanes.length - 1]).y1);
  ctx.stroke();
  ctx.setLineDash([]);
  ctx.lineWidth = 1.6;
  ctx.beginPath();
  ctx.arc(x, height(lanes[slot], heard.token.energy_base ?? 0), 4.2, 0, 7);
  ctx.stroke();
  const text = `t ${(heard.token.t_us / 1e6).toFixed(3)} s`;
  ctx.font = `500 10.5px ${palette.mono}`;
  const half = ctx.measureText(text).width / 2 + 5;
  const at = Math.min(x1 - half, Math.max(x0 + half, x));
  ctx.fillStyle = palette.gold;
  ctx.beginPath();
  ctx.roundRect(at - half, tall - 19, half * 2, 16, 4);
  ctx.fill();
  ctx.fillStyle = palette.panel;
  ctx.textAlign = "center";
  ctx.fillText(text, at, tall - 11);
}
