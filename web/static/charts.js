/** Charts with axes: uPlot in the page's colours. Each says in words what it shows, and draws only what is new. */

import { uPlot } from "./vendor/vendor.js";

const HEIGHT_PX = 132;
const AXIS_PX = 24;
const LABEL_PX = 64; // beside the upright axis
const TICKS_PX = { time: 76, named: 56, y: 26 }; // between ticks at least
const SPAN_S = 60; // of an axis of time, at least
const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900];
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6];

/**
 * @typedef {import("./theme.js").Palette} Palette
 * @typedef {"line"|"points"|"bars"} Kind
 * @typedef {{kind: Kind, colour: (palette: Palette) => string, dash?: number[]}} Look of a series
 * @typedef {{x: "time"|((at: number) => string), y: (value: number) => string, yWhole?: boolean, series: Look[]}} Plan
 *   `x`: time of day, or the words of a position; `yWhole`: only whole numbers have a tick
 */

/** From the first sample to the last, and a minute at least. @param {uPlot} plot @returns {[number, number]} */
function span({ data: [times] }) {
  const last = times[times.length - 1] ?? 0;
  return [Math.min(times[0] ?? 0, last - SPAN_S), last];
}

/** @param {number} at Unix seconds */
const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour12: false });

export class Chart {
  /** @param {HTMLElement} box @param {Plan} plan @param {(at: number|null) => void} [pointed] the sample under the pointer */
  constructor(box, plan, pointed) {
    this.box = box;
    this.plan = plan;
    this.pointed = pointed;
    /** @type {uPlot|null} made when there is room for it and something to draw */
    this._plot = null;
    /** @type {Palette|null} */
    this._palette = null;
    this._of = "";
    new ResizeObserver(() => this._resized()).observe(box);
  }

  /**
   * @param {[number[], ...(number|null)[][]]} columns @param {Palette} palette @param {string} label what it shows, in words
   * @param {string} of what the data are of: drawn again when this is another
   */
  show(columns, palette, label, of) {
    if (this.box.getAttribute("aria-label") !== label) this.box.setAttribute("aria-label", label);
    this.box.setAttribute("role", "img"); // only with its words
    if (this.box.clientWidth === 0 || columns[0].length === 0) return;
    const data = /** @type {uPlot.AlignedData} */ (columns);
    if (this._plot === null) {
      this._palette = palette;
      this._plot = new uPlot(this._options(palette), data, this.box);
    } else if (palette !== this._palette) {
      this._palette = palette;
      this._plot.setData(data);
    } else if (of !== this._of) this._plot.setData(data);
    this._of = of;
  }

  _resized() {
    const width = this.box.clientWidth;
    if (this._plot && width > 0 && width !== this._plot.width) this._plot.setSize({ width, height: HEIGHT_PX });
  }

  /** @param {Palette} first @returns {uPlot.Options} */
  _options(first) {
    const { x, y, yWhole = false, series } = this.plan;
    const ink = (/** @type {keyof Palette} */ name) => () => String((this._palette ?? first)[name]);
    const axis = { font: `11px ${first.mono}`, stroke: ink("muted"), grid: { stroke: ink("line"), width: 1 }, ticks: { show: false } };
    const named = typeof x === "function";
    return {
      width: this.box.clientWidth,
      height: HEIGHT_PX,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { show: series[0].kind !== "bars" }, y: false },
      hooks: { setCursor: [(plot) => this.pointed?.(plot.cursor.idx ?? null)] },
      scales: {
        x: { time: !named, range: named ? (_, low, high) => [low - 0.5, high + 0.5] : span },
        y: { range: (_, low, high) => [0, Math.max(high ?? 0, yWhole ? 1 : 0.001) * 1.05] },
      },
      axes: [
        { ...axis, size: AXIS_PX, space: named ? TICKS_PX.named : TICKS_PX.time, incrs: named ? STEPS : STEPS_S, grid: { show: false }, values: (_, at) => at.map(named ? (one) => (Number.isInteger(one) ? x(one) : "") : clock) },
        { ...axis, size: LABEL_PX, space: TICKS_PX.y, incrs: yWhole ? STEPS : undefined, values: (_, at) => at.map(y) },
      ],
      series: [{}, ...series.map((look) => this._look(look, first))],
    };
  }

  /** @param {Look} look @param {Palette} first @returns {uPlot.Series} */
  _look({ kind, colour, dash }, first) {
    const stroke = () => colour(this._palette ?? first);
    if (kind === "bars") return { stroke, fill: stroke, width: 0, points: { show: false }, paths: uPlot.paths.bars?.({ size: [0.82, 64], radius: [0.18, 0] }) };
    if (kind === "points") return { stroke, width: 0, paths: () => null, points: { show: true, size: 6, stroke, fill: stroke } };
    return { stroke, width: 1.5, dash, points: { show: false } };
  }
}
