/** What is drawn around the history every animation frame: axes, labels, the needle, the gauge and its bolts. No DOM. */

import { COLUMN_PX, FRAME_HZ, jagged, trace } from "./field.js";
import { COLUMNS } from "./session.js";

export const GAUGE_PX = 236; // room for the gauge at the right
const BOLT_MS = 200;
const BOLTS = 24;
const ARC_FROM = Math.PI * 0.75;
const ARC_SPAN = Math.PI * 1.5;

/** @typedef {import("./theme.js").Palette} Palette */
/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./session.js").Strike} Strike */
/** @typedef {import("./field.js").Field} Field */

/** Bolts from the line to the gauge: one per token, gone after BOLT_MS. */
export class Bolts {
  constructor() {
    /** @type {{strike: Strike, born: number}[]} */
    this.live = [];
  }

  /** @param {Strike[]} strikes @param {number} now */
  add(strikes, now) {
    for (const strike of strikes) this.live.push({ strike, born: now });
    if (this.live.length > BOLTS) this.live.splice(0, this.live.length - BOLTS);
  }

  /** @param {number} now */
  expire(now) {
    this.live = this.live.filter((bolt) => now - bolt.born < BOLT_MS);
  }
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {Field} field
 * @param {{session: Session|null, palette: Palette, bolts: Bolts, now: number, gauge: boolean}} view
 */
export function draw(ctx, field, view) {
  const { session, palette } = view;
  const { x0, x1, y0, width, height } = field.plot;
  ctx.setTransform(field.scale, 0, 0, field.scale, 0, 0);
  ctx.clearRect(0, 0, width, height);
  axes(ctx, field, palette, session);
  const { history, scale } = field;
  ctx.drawImage(history, 0, 0, field.span * scale, height * scale, x0, 0, field.span, height);
  fade(ctx, field, palette);
  if (session) labels(ctx, field, session, palette);
  ctx.fillStyle = palette.text;
  ctx.globalAlpha = 0.6;
  ctx.fillRect(x1, y0 - 8, 1, field.plot.y1 - y0 + 8);
  ctx.globalAlpha = 1;
  if (view.gauge) gauge(ctx, field, view);
  if (session?.reading) needle(ctx, field, session, palette);
}

/** @param {CanvasRenderingContext2D} ctx @param {Field} field @param {Palette} palette @param {Session|null} session */
function axes(ctx, field, palette, session) {
  const { x0, x1, y0, y1, height } = field.plot;
  ctx.font = `10.5px ${palette.mono}`;
  ctx.textBaseline = "middle";
  ctx.textAlign = "right";
  for (const [energy, label] of /** @type {[number, string][]} */ ([[0, "0"], [0.5, ".5"], [1, "1"]])) {
    const y = Math.round(y1 - energy * (y1 - y0));
    ctx.fillStyle = palette.line;
    ctx.globalAlpha = energy === 0 ? 0.9 : 0.4;
    ctx.fillRect(x0, y, x1 - x0, 1);
    ctx.globalAlpha = 1;
    ctx.fillStyle = palette.muted;
    ctx.fillText(label, x0 - 8, y);
  }
  ctx.textAlign = "center";
  const second = FRAME_HZ * COLUMN_PX;
  for (let s = 1; x1 - s * second > x0 + 12; s += 1) {
    const x = x1 - s * second;
    ctx.fillStyle = palette.line;
    ctx.globalAlpha = 0.35;
    ctx.fillRect(x, y0, 1, y1 - y0);
    ctx.globalAlpha = 1;
    ctx.fillStyle = palette.muted;
    ctx.fillText(`−${s} s`, x, height - 11);
  }
  ctx.fillText(session && !session.active ? "end" : "now", x1, height - 11);
}

/** Age dims: the older part fades towards the panel. @param {CanvasRenderingContext2D} ctx @param {Field} field @param {Palette} palette */
function fade(ctx, field, palette) {
  const { x0, y0, y1 } = field.plot;
  const reach = field.span * 0.7;
  const shade = ctx.createLinearGradient(x0, 0, x0 + reach, 0);
  shade.addColorStop(0, veil(palette.panel, 0.6));
  shade.addColorStop(1, veil(palette.panel, 0));
  ctx.fillStyle = shade;
  ctx.fillRect(x0, y0 - 8, reach, y1 - y0 + 7);
}

/** @param {string} colour as the browser resolves it, rgb(r, g, b) @param {number} alpha */
function veil(colour, alpha) {
  return colour.replace("rgb(", "rgba(").replace(")", `, ${alpha})`);
}

/** Where the first token landed, and how long each stall was. @param {CanvasRenderingContext2D} ctx @param {Field} field @param {Session} session @param {Palette} palette */
function labels(ctx, field, session, palette) {
  const { x0, x1, y0, y1 } = field.plot;
  const { columns } = session;
  const at = (/** @type {number} */ i) => x1 - (columns.count - 1 - i) * COLUMN_PX;
  ctx.font = `500 11px ${palette.mono}`;
  for (const stall of columns.stalls) {
    if (stall.from < columns.count - COLUMNS || at(stall.to) < x0) continue;
    tag(ctx, field, `stall ${Math.round(stall.ms)} ms`, (Math.max(x0, at(stall.from)) + at(stall.to)) / 2, palette.danger, palette);
  }
  if (columns.firstToken < 0) return;
  const x = at(columns.firstToken);
  if (x < x0) return;
  ctx.fillStyle = palette.m1;
  for (let y = y0; y < y1; y += 6) ctx.fillRect(x - 1, y, 1.5, 3);
  if (session.ttftMs !== null) tag(ctx, field, `first token ${seconds(session.ttftMs)}`, x, palette.muted, palette);
}

/** @param {number} ms */
const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;

/** @param {CanvasRenderingContext2D} ctx @param {Field} field @param {string} text @param {number} x its middle @param {string} colour @param {Palette} palette */
function tag(ctx, field, text, x, colour, palette) {
  const { x0, x1, y0 } = field.plot;
  const half = ctx.measureText(text).width / 2 + 6;
  const middle = Math.min(Math.max(x, x0 + half), x1 - half);
  ctx.fillStyle = palette.panel;
  ctx.beginPath();
  ctx.roundRect(middle - half, y0 - 20, half * 2, 16, 4);
  ctx.fill();
  ctx.fillStyle = colour;
  ctx.textAlign = "center";
  ctx.fillText(text, middle, y0 - 12);
}

/** The dot at "now", at the height of E. @param {CanvasRenderingContext2D} ctx @param {Field} field @param {Session} session @param {Palette} palette */
function needle(ctx, field, session, palette) {
  const { x1 } = field.plot;
  ctx.fillStyle = session.reading?.stall ? palette.danger : palette.m1;
  ctx.beginPath();
  ctx.arc(x1, energyY(field, session), 3.4, 0, 7);
  ctx.fill();
}

/** @param {Field} field @param {Session|null} session */
function energyY(field, session) {
  const { y0, y1 } = field.plot;
  return y1 - (session?.reading?.energy ?? 0) * (y1 - y0);
}

/**
 * The ring shows E over 270°, printed at 0, .5 and 1; a conduit joins it to the line; each token sends one bolt.
 * @param {CanvasRenderingContext2D} ctx @param {Field} field
 * @param {{session: Session|null, palette: Palette, bolts: Bolts, now: number}} view
 */
function gauge(ctx, field, { session, palette, bolts, now }) {
  const { x1, y0, y1, width } = field.plot;
  const radius = Math.min(74, (y1 - y0) / 2 + 4);
  const x = width - radius - 34;
  const y = (y0 + y1) / 2 + 4;
  const reading = session?.reading ?? null;
  if (reading) conduit(ctx, { x1: x1 + 4, y1: energyY(field, session), x2: x - radius - 6, y2: y }, palette, bolts, now);
  ctx.lineCap = "round";
  ctx.lineWidth = 8;
  ctx.strokeStyle = palette.raised;
  arc(ctx, x, y, radius, 1);
  if (reading && reading.energy > 0.001) {
    ctx.strokeStyle = palette.m1;
    ctx.globalAlpha = 0.2;
    ctx.lineWidth = 15;
    arc(ctx, x, y, radius, reading.energy);
    ctx.globalAlpha = 1;
    ctx.lineWidth = 8;
    arc(ctx, x, y, radius, reading.energy);
  }
  ctx.textAlign = "center";
  ctx.font = `9.5px ${palette.mono}`;
  ctx.fillStyle = palette.muted;
  for (const [energy, label] of /** @type {[number, string][]} */ ([[0, "0"], [0.5, ".5"], [1, "1"]])) {
    const angle = ARC_FROM + ARC_SPAN * energy;
    ctx.fillText(label, x + Math.cos(angle) * (radius - 15), y + Math.sin(angle) * (radius - 15));
  }
  ctx.font = `500 11px ${palette.sans}`;
  ctx.fillText("E(t)", x, y + 24);
  if (session?.probability === null) {
    ctx.font = `9.5px ${palette.mono}`;
    ctx.fillText("p unknown", x, y + radius * 0.86);
  }
  ctx.fillStyle = palette.text;
  ctx.font = `600 32px ${palette.mono}`;
  ctx.fillText(reading ? reading.energy.toFixed(2) : "—", x, y);
}

/** @param {CanvasRenderingContext2D} ctx @param {number} x @param {number} y @param {number} radius @param {number} part */
function arc(ctx, x, y, radius, part) {
  ctx.beginPath();
  ctx.arc(x, y, radius, ARC_FROM, ARC_FROM + ARC_SPAN * part);
  ctx.stroke();
}

/** The path in place as an empty, broken tube: a token whose probability nobody told. @param {CanvasRenderingContext2D} ctx @param {Palette} palette @param {number} light */
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

/**
 * @param {CanvasRenderingContext2D} ctx @param {{x1: number, y1: number, x2: number, y2: number}} ends
 * @param {Palette} palette @param {Bolts} bolts @param {number} now
 */
function conduit(ctx, { x1, y1, x2, y2 }, palette, bolts, now) {
  ctx.strokeStyle = palette.m1;
  ctx.globalAlpha = 0.16;
  ctx.lineWidth = 5;
  ctx.lineCap = "round";
  ctx.beginPath();
  ctx.moveTo(x1, y1);
  ctx.bezierCurveTo(x1 + 24, y1, x2 - 30, y2, x2, y2);
  ctx.stroke();
  ctx.globalCompositeOperation = palette.dark ? "lighter" : "source-over";
  for (const { strike, born } of bolts.live) {
    const light = Math.exp(-(now - born) / 120);
    const { p } = strike;
    trace(ctx, strike.bits === null ? [x1, y1, x2, y2] : jagged(x1, y1, x2, y2, 5 + 11 * strike.bits, strike.position, 4));
    if (p === null) {
      hollow(ctx, palette, light);
      continue;
    }
    ctx.globalAlpha = light * 0.22;
    ctx.lineWidth = 6;
    ctx.stroke();
    ctx.globalAlpha = light * (0.35 + 0.65 * p);
    ctx.lineWidth = 0.7 + 1.6 * p;
    ctx.stroke();
  }
  ctx.globalCompositeOperation = "source-over";
  ctx.globalAlpha = 1;
}
