/** What the page keeps of one session. Everything is bounded; nothing here is smoothed or guessed. No DOM. */

export const COLUMNS = 2_048; // engine frames kept for the field: 34 s at 60 Hz
const STALLS = 64;
const SEGMENT_CHARS = 4_096;
const TEXT_CHARS = 65_536;

/**
 * One token as the field draws it. `bits` is known only for the last token of a frame: `energy.update` carries the
 * entropy of that one. Null means not measured.
 * @typedef {{base: number|null, p: number|null, bits: number|null, position: number}} Strike
 * @typedef {{from: number, to: number, ms: number}} Stall columns from the stall line on, and the whole silence
 * @typedef {{kind: string, text: string, start: number}} Segment `start` counts UTF-16 units from the session's start
 */

/** A ring of field columns: one engine frame, one column. A missed frame is a column too, with nothing in it. */
export class Columns {
  constructor() {
    this.count = 0; // ever written; column i is at i % COLUMNS
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

  /** @param {number} missed frames that never arrived */
  gap(missed) {
    for (let n = Math.min(missed, COLUMNS); n > 0; n -= 1) this.push(NaN, false, 0, null);
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

export class Session {
  /** @param {string} id @param {number} now */
  constructor(id, now) {
    this.id = id;
    this.seenAt = now;
    this.order = 0; // set by the store; a newer session has a greater one
    this.streamId = "";
    this.model = "";
    this.origin = "";
    this.synthetic = false;
    /** @type {Record<string, any>|null} */
    this.energyParams = null;
    /** @type {Record<string, any>} sampling parameters in force; null where the runtime's own default holds */
    this.parameters = {};
    /** @type {number|null} */
    this.startUs = null;
    /** @type {number|null} */
    this.ttftMs = null;
    this.nowMs = NaN; // engine clock of the last frame that spoke of it
    this.tokens = 0;
    this.nextPosition = 0; // of the token that is expected; what comes before it is here already
    /** @type {number|null|undefined} of the last token; null: it has none, undefined: no token yet */
    this.probability = undefined;
    this.euTotal = NaN;
    this.euRate = NaN;
    /** @type {Record<string, any>|null} the stream in the last energy.update */
    this.reading = null;
    /** @type {{state: string, progress: number|null, position: number|null, reason: string|null, since: number}|null} */
    this.modelState = null;
    /** @type {Record<string, any>|null} payload of session_end */
    this.end = null;
    this.lost = false; // the engine forgot it (it restarted)
    /** @type {{token: any, previous: any, reading: any}|null} the last token measured alone at the end of its frame */
    this.evidence = null;
    this.columns = new Columns();
    /** @type {Strike[]} */
    this.arrivals = []; // tokens of the frame being read
    this._lastToken = null;
    this._arrived = null;
    /** @type {Segment[]} */
    this.segments = [];
    this.chars = 0; // ever received; the kept text ends here
    this.epoch = 0; // rises when the text was replaced
  }

  get active() {
    return this.end === null && !this.lost;
  }

  /** Takes what is not here yet: after a reconnect some may come again. @param {any[]} arrived tokens of one frame */
  take(arrived) {
    const tokens = arrived.filter(({ position }) => !(position < this.nextPosition));
    for (const token of tokens) {
      this.nextPosition = token.position + 1;
      if (this.ttftMs === null && token.position === 0 && this.startUs !== null) this.ttftMs = (token.t_us - this.startUs) / 1000;
      const p = typeof token.logprob === "number" ? Math.exp(token.logprob) : null;
      this.arrivals.push({ base: token.energy_base, p, bits: null, position: token.position });
      this.probability = p;
      this.append(token.kind, token.text);
      this._lastToken = this._arrived;
      this._arrived = token;
    }
    this.tokens += tokens.length;
  }

  /** One energy.update: closes the column of its frame. @param {any} payload @param {number} monoMs */
  update(payload, monoMs) {
    const reading = payload.streams.find((/** @type {any} */ s) => s.stream_id === this.streamId) ?? payload.streams[0];
    this.euTotal = payload.eu_total;
    this.euRate = payload.eu_rate;
    if (!reading) return;
    this.streamId ||= reading.stream_id;
    this.reading = reading;
    this.nowMs = monoMs;
    this.tokens = reading.tokens;
    const strikes = this.arrivals.length > 0 ? this.arrivals : null;
    if (strikes) {
      strikes[strikes.length - 1].bits = reading.entropy_bits;
      this.evidence = { token: this._arrived, previous: this._lastToken, reading };
      this.arrivals = [];
    }
    this.columns.push(reading.energy ?? NaN, reading.stall, reading.silence_ms, strikes);
  }

  /** @param {string} kind @param {string} text */
  append(kind, text) {
    if (!text) return;
    const last = this.segments.at(-1);
    if (last && last.kind === kind && last.text.length + text.length <= SEGMENT_CHARS) last.text += text;
    else this.segments.push({ kind, text, start: this.chars });
    this.chars += text.length;
    while (this.segments.length > 1 && this.chars - this.segments[1].start >= TEXT_CHARS) this.segments.shift();
  }

  /** Replaces the text by a snapshot's. @param {Record<string, string>} byKind */
  restoreText(byKind) {
    this.segments = [];
    this.chars = 0;
    this.epoch += 1;
    for (const kind of ["thinking", "tool", "answer"]) this.append(kind, byKind[kind] ?? "");
  }
}
