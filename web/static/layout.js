/** Where things stand in the field, in CSS px. Pure. */

export const FRAME_HZ = 60;
const AXIS_PX = 24;
const ALONE = { left: 38, top: 26 };
const NAMES_PX = 148;
const NARROW_NAMES_PX = 22;
const TOP_PX = 10;
const UNDER_LANE_PX = 4;
const OVER_LANE_PX = 9;
const BRACKET_PX = 15; // above the interferogram, for the length of a resonance
const FRINGE_PX = [34, 62];
const GAUGE_PX = 236;
const NARROW_RIGHT_PX = 16;
const GAUGE_FROM_PX = 640; // a narrower field keeps its width for the lines

/**
 * @typedef {{y0: number, y1: number}} Band top and bottom
 * @typedef {{x0: number, x1: number, width: number, height: number, lanes: Band[], fringe: Band|null, gauge: boolean, names: boolean}} Plot
 */

/**
 * @param {number} width @param {number} height @param {number} count streams; 1 when there is none yet
 * @returns {Plot}
 */
export function layout(width, height, count) {
  const gauge = width >= GAUGE_FROM_PX;
  const right = gauge ? GAUGE_PX : NARROW_RIGHT_PX;
  const end = (/** @type {number} */ left) => Math.max(left + 2, Math.floor(width - right));
  if (count <= 1) {
    const band = { y0: ALONE.top, y1: Math.max(ALONE.top + 8, height - AXIS_PX) };
    return { x0: ALONE.left, x1: end(ALONE.left), width, height, lanes: [band], fringe: null, gauge, names: false };
  }
  const left = gauge ? NAMES_PX : NARROW_NAMES_PX;
  const fringePx = Math.round(Math.min(FRINGE_PX[1], Math.max(FRINGE_PX[0], height * 0.16)));
  const pitch = (height - TOP_PX - BRACKET_PX - fringePx - AXIS_PX) / count;
  const lanes = Array.from({ length: count }, (_, i) => {
    const y1 = Math.round(TOP_PX + pitch * (i + 1) - UNDER_LANE_PX);
    return { y0: Math.round(y1 - Math.max(6, pitch - UNDER_LANE_PX - OVER_LANE_PX)), y1 };
  });
  const y1 = height - AXIS_PX;
  return { x0: left, x1: end(left), width, height, lanes, fringe: { y0: y1 - fringePx, y1 }, gauge, names: gauge };
}
