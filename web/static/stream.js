/** What the page keeps of one stream of a session. Everything is bounded; nothing is smoothed or guessed. No DOM. */

import { Columns } from "./columns.js";
import { visible } from "./text.js";

export const TOKENS_KEPT = 1_024; // with their measurements, for Evidence
const SEGMENT_CHARS = 4_096;
const TEXT_CHARS = 65_536;

/**
 * @typedef {import("./columns.js").Strike} Strike
 * @typedef {{kind: string, text: string, start: number}} Segment `start` counts UTF-16 units from the stream's start
 * @typedef {{token: any, reading: any, before: number|null, start: number, length: number, frame: number, column: number}} Heard
 *   a token, the stream's reading of its frame if it was the last token in it, E before it, where its text stands among
 *   what is shown, the number of its frame and its column in the field
 */

export class Stream {
  /** @param {string} id @param {string} model @param {number} slot from 0: colour and glyph @param {number} columns of the session so far */
  constructor(id, model, slot, columns) {
    this.id = id;
    this.model = model;
    this.slot = slot;
    this.columns = new Columns(columns);
    this.tokens = 0;
    this.nextPosition = 0; // of the token that is expected; what comes before it is here already
    /** @type {number|null} */
    this.ttftMs = null;
    /** @type {number|null|undefined} of the last token; null: it has none, undefined: no token yet */
    this.probability = undefined;
    /** @type {Record<string, any>|null} in the last energy.update */
    this.reading = null;
    /** @type {{state: string, progress: number|null, position: number|null, reason: string|null, since: number}|null} */
    this.modelState = null;
    /** @type {{code: string, message: string}|null} it left its council */
    this.error = null;
    /** @type {Record<string, any>|null} payload of council.model_end */
    this.done = null;
    /** @type {Heard[]} oldest first */
    this.heard = [];
    /** @type {Segment[]} */
    this.segments = [];
    this.chars = 0; // ever received; the kept text ends here
    this.shownChars = 0; // the same, as it is shown
    this.epoch = 0; // rises when the text was replaced
    /** @type {Strike[]} */
    this._arrivals = []; // of the frame being read
    this._energy = /** @type {number|null} */ (0); // of the last token
  }

  /** The newest token whose frame measured it. @returns {Heard|null} */
  get measured() {
    for (let i = this.heard.length - 1; i >= 0; i -= 1) if (this.heard[i].reading) return this.heard[i];
    return null;
  }

  /** @param {number} position @returns {Heard|null} */
  at(position) {
    const first = this.heard[0]?.token.position ?? 0;
    const guess = this.heard[position - first];
    if (guess?.token.position === position) return guess;
    return this.heard.find(({ token }) => token.position === position) ?? null;
  }

  /** Takes what is not here yet: after a reconnect some may come again. @param {any[]} arrived tokens of one frame @param {number|null} startUs @param {number} frame */
  take(arrived, startUs, frame) {
    for (const token of arrived) {
      if (token.position < this.nextPosition) continue;
      const before = token.position === this.nextPosition ? this._energy : null;
      this.nextPosition = token.position + 1;
      this.tokens += 1;
      if (this.ttftMs === null && token.position === 0 && startUs !== null) this.ttftMs = (token.t_us - startUs) / 1000;
      const p = typeof token.logprob === "number" ? Math.exp(token.logprob) : null;
      this._arrivals.push({ base: token.energy_base, p, bits: null, position: token.position });
      this.probability = p;
      const length = visible(token.text ?? "").length;
      this.heard.push({ token, reading: null, before, start: this.shownChars, length, frame, column: this.columns.count });
      if (this.heard.length > TOKENS_KEPT) this.heard.shift();
      this._energy = token.energy ?? null;
      this.append(token.kind, token.text);
    }
  }

  /** Closes the column of a frame. @param {Record<string, any>|null} reading null: the frame said nothing of this stream */
  update(reading) {
    if (!reading) {
      this.columns.blank();
      return;
    }
    this.reading = reading;
    this.tokens = reading.tokens;
    const strikes = this._arrivals.length > 0 ? this._arrivals : null;
    if (strikes) {
      strikes[strikes.length - 1].bits = reading.entropy_bits;
      const last = this.heard.at(-1);
      if (last) last.reading = reading;
      this._arrivals = [];
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
    this.shownChars += visible(text).length;
    while (this.segments.length > 1 && this.chars - this.segments[1].start >= TEXT_CHARS) this.segments.shift();
  }

  /** Takes over what a snapshot says. @param {Record<string, any>} state its stream @param {Record<string, any>|null} reading @param {number} tokens */
  restore(state, reading, tokens) {
    this.model = state.model ?? this.model;
    this.reading = reading ?? this.reading;
    this.tokens = tokens;
    this.nextPosition = tokens;
    this._arrivals = [];
    this._energy = null;
    this.segments = [];
    this.chars = 0;
    this.shownChars = 0;
    this.heard = [];
    this.epoch += 1;
    for (const kind of ["thinking", "tool", "answer"]) this.append(kind, state.text?.[kind] ?? "");
  }

  /** Lets go of the single tokens; text and numbers stay. */
  fold() {
    this.heard = [];
  }
}
