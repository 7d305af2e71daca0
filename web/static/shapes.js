/** Repeatable shapes on a canvas. No DOM. */

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

/** @param {string} colour as the browser resolves it, rgb(r, g, b) @param {number} alpha */
export function veil(colour, alpha) {
  return colour.replace("rgb(", "rgba(").replace(")", `, ${alpha})`);
}

/** One sign per slot, in a box of 10 × 10: ● ▲ ■ ◆ ✚ ★. Colour is never the only carrier. */
export const GLYPHS = [
  "M5 .8a4.2 4.2 0 1 0 .001 0z",
  "M5 .8 9.4 9H.6z",
  "M1 1h8v8H1z",
  "M5 .3 9.7 5 5 9.7.3 5z",
  "M3.7.8h2.6v2.9h2.9v2.6H6.3v2.9H3.7V6.3H.8V3.7h2.9z",
  "M5 .6l1.3 2.9 3.1.3-2.3 2.1.6 3.1L5 7.4 2.3 9l.6-3.1L.6 3.8l3.1-.3z",
];

/** @type {Path2D[]} */
const paths = [];

/** @param {CanvasRenderingContext2D} ctx @param {number} slot @param {number} x @param {number} y @param {string} colour */
export function glyph(ctx, slot, x, y, colour) {
  paths[slot] ??= new Path2D(GLYPHS[slot]);
  ctx.save();
  ctx.translate(x, y);
  ctx.fillStyle = colour;
  ctx.fill(paths[slot]);
  ctx.restore();
}
