/** What was measured while this page is open, second by second: a line that is not drawn was not measured. No DOM. */

const SAMPLES = 900; // a quarter of an hour at 1 Hz

/** Rows of numbers by time; the oldest go. */
export class Ring {
  /** @param {number} series how many numbers a sample has */
  constructor(series) {
    /** @type {number[]} Unix seconds */
    this._times = [];
    /** @type {(number|null)[][]} */
    this._values = Array.from({ length: series }, () => []);
    this.count = 0; // of all that ever came: what was drawn at this count is up to date
  }

  /** @param {number} atMs Unix time, not before the last one @param {(number|null)[]} values */
  add(atMs, values) {
    this._times.push(atMs / 1000);
    this._values.forEach((column, i) => column.push(values[i] ?? null));
    this.count += 1;
    if (this._times.length <= SAMPLES) return;
    this._times.shift();
    for (const column of this._values) column.shift();
  }

  get length() {
    return this._times.length;
  }

  /** The newest sample of a series; null before there is any. @param {number} series */
  last(series) {
    return this._values[series].at(-1) ?? null;
  }

  /** As uPlot takes it. @returns {[number[], ...(number|null)[][]]} */
  get columns() {
    return [this._times, ...this._values];
  }
}

/** @typedef {import("./session.js").Session} Session */

export class History {
  constructor() {
    this.speed = new Ring(1); // tok/s of all that streams
    this.ttft = new Ring(1); // ms, one point for each answer
    this.memory = new Ring(2); // bytes: in use of main memory, and the budget
    /** @type {WeakSet<import("./stream.js").Stream>} whose first token is among the points */
    this._told = new WeakSet();
  }

  /** 1 Hz. What is SYNTHETIC is left out. @param {Iterable<Session>} sessions @param {number} atMs Unix time */
  sample(sessions, atMs) {
    let speed = null;
    for (const { active, streams, synthetic } of sessions) {
      for (const stream of synthetic ? [] : streams) {
        const { reading, done, error } = stream;
        if (active && !done && !error && reading && Number.isFinite(reading.tps)) speed = (speed ?? 0) + reading.tps;
        this._firstToken(stream, atMs);
      }
    }
    if (speed !== null || this.speed.last(0) !== null) this.speed.add(atMs, [speed]); // one gap, however long the silence
  }

  /** Only of streams whose first token this page heard: when others began, it cannot tell. @param {import("./stream.js").Stream} stream @param {number} atMs */
  _firstToken(stream, atMs) {
    if (stream.ttftMs === null || this._told.has(stream)) return;
    this._told.add(stream);
    if (stream.heard[0]?.token.position === 0) this.ttft.add(atMs, [stream.ttftMs]);
  }

  /** @param {import("./api.js").Memory|undefined} memory @param {number} atMs Unix time */
  listed(memory, atMs) {
    if (memory) this.memory.add(atMs, [memory.used_ram_bytes, memory.ram_budget_bytes]);
  }
}
