/** Rings of field columns: one engine frame, one column. A missed frame is a column too, with nothing in it. No DOM. */

export const COLUMNS = 2_048; // engine frames kept for the field: 34 s at 60 Hz
const STALLS = 64;
const BRACKETS = 32;

/**
 * One token as the field draws it. `bits` is known only for the last token of a frame: `energy.update` carries the
 * entropy of that one. Null means not measured.
 * @typedef {{base: number|null, p: number|null, bits: number|null, position: number}} Strike
 * @typedef {{from: number, to: number, ms: number}} Stall columns from the stall line on, and the whole silence
 * @typedef {{from: number, to: number|null, ms: number|null}} Bracket a resonance; `to` and `ms` are null while it lasts
 */

/** What one stream did. */
export class Columns {
  /** @param {number} [count] columns of the session before this stream was heard of; they stay blank */
  constructor(count = 0) {
    this.count = count; // ever written; column i is at i % COLUMNS
    this.born = count;
    this.energy = new Float32Array(COLUMNS).fill(NaN);
    this.stalled = new Uint8Array(COLUMNS);
    /** @type {(Strike[]|null)[]} */
    this.strikes = new Array(COLUMNS).fill(null);
    /** @type {Stall[]} */
    this.stalls = [];
    this.firstToken = -1;
  }

  /** @param {number} energy @param {boolean} stall @param {number} silenceMs @param {Strike[]|null} strikes */
  push(energy, stall, silenceMs, strikes) {
    const slot = this.count % COLUMNS;
    this.energy[slot] = energy;
    this.stalled[slot] = stall ? 1 : 0;
    this.strikes[slot] = strikes;
    if (strikes?.[0].position === 0) this.firstToken = this.count;
    if (stall) this._stall(silenceMs);
    this.count += 1;
  }

  /** A frame that said nothing of this stream. */
  blank() {
    this.push(NaN, false, 0, null);
  }

  /** @param {number} silenceMs */
  _stall(silenceMs) {
    const last = this.stalls.at(-1);
    if (last && last.to === this.count - 1 && silenceMs > last.ms) {
      last.to = this.count;
      last.ms = silenceMs;
      return;
    }
    this.stalls.push({ from: this.count, to: this.count, ms: silenceMs });
    if (this.stalls.length > STALLS) this.stalls.shift();
  }
}

export const NO_CUE = 0;
export const RESONANCE = 1;

/** What the ensemble did: its energy, DI and lag of each frame, and the engine's own cue. NaN: not measured. */
export class EnsembleColumns {
  /** @param {number} count columns of the session so far */
  constructor(count) {
    this.count = count;
    this.born = count;
    this.energy = new Float32Array(COLUMNS).fill(NaN);
    this.di = new Float32Array(COLUMNS).fill(NaN);
    this.lagMs = new Float32Array(COLUMNS).fill(NaN);
    this.cue = new Uint8Array(COLUMNS);
    /** @type {Bracket[]} */
    this.brackets = [];
  }

  /** @param {Record<string, any>|null} ensemble of an energy.update */
  push(ensemble) {
    const slot = this.count % COLUMNS;
    const open = this.brackets.at(-1);
    this.energy[slot] = ensemble?.energy ?? NaN;
    this.di[slot] = ensemble?.di ?? NaN;
    this.lagMs[slot] = ensemble?.sync_latency_ms ?? NaN;
    this.cue[slot] = open && open.to === null ? RESONANCE : NO_CUE;
    this.count += 1;
  }

  /** The engine says that a resonance began, or ended. @param {string} phase @param {number|null} durationMs */
  resonance(phase, durationMs) {
    const open = this.brackets.at(-1);
    if (phase === "end") {
      if (open && open.to === null) Object.assign(open, { to: this.count, ms: durationMs });
    } else if (!open || open.to !== null) {
      this.brackets.push({ from: this.count, to: null, ms: null });
      if (this.brackets.length > BRACKETS) this.brackets.shift();
    }
  }
}
