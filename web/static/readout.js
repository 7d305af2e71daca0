/** The numbers beside the field, written at 10 Hz from the last frame. Each is the engine's own; none is averaged here. */

import { byId, fixed, known, NONE, put, seconds } from "./format.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {{session: Session, stream: import("./stream.js").Stream|null, reading: Record<string, any>|null, tokens: number}} Shown a stream in its session */
/** @typedef {{value: string, unit?: string, why?: string, spoken?: boolean}} Cell `spoken`: the reason stands beside it already, say it to readers only */

const NO_LOGPROBS = "no log-probabilities from this runtime";
const WAITING = "no token yet";

/** @param {Shown} shown @returns {string} why a logprob-based number is missing */
function whyNoLogprobs(shown) {
  return shown.tokens > 0 ? NO_LOGPROBS : WAITING;
}

/** @param {Shown} shown @returns {Cell} */
function entropy(shown) {
  const { entropy_bits: bits, tail_mass: tail, certainty } = shown.reading ?? {};
  if (!known(bits)) return known(certainty) ? { value: NONE, why: "no list" } : { value: NONE, why: whyNoLogprobs(shown), spoken: shown.tokens > 0 };
  return { value: bits.toFixed(2), unit: "bit", why: known(tail) ? `tail ${tail.toFixed(3)}` : "" };
}

/** @param {Shown} shown @returns {Cell} */
function delta(shown) {
  const ms = shown.reading?.delta_ms;
  if (known(ms)) return { value: fixed(ms, 1), unit: "ms", why: shown.reading?.throttled ? "throttled" : "" };
  return { value: NONE, why: shown.tokens > 0 ? "one token" : WAITING };
}

/** @param {Shown} shown @returns {Cell} */
function ttft(shown) {
  if (known(shown.stream?.ttftMs)) return { value: (Number(shown.stream?.ttftMs) / 1000).toFixed(3), unit: "s" };
  return { value: NONE, why: shown.session.active && shown.tokens === 0 ? WAITING : shown.tokens > 0 ? "known at the end" : "no token came" };
}

/** @param {Shown} shown @returns {Cell} */
function base(shown) {
  const value = shown.reading?.energy_base;
  if (known(value)) return { value: value.toFixed(3), why: "last token" };
  return { value: NONE, why: shown.tokens > 0 ? "not measured" : WAITING };
}

/** @type {[key: string, label: string, definition: string, read: (shown: Shown) => Cell][]} */
const CELLS = [
  ["energy", "E(t)", "Energy of the last frame, 0 to 1", (s) => ({ value: fixed(s.reading?.energy, 3) })],
  ["base", "E base", "Energy of the last token before averaging", base],
  ["ttft", "TTFT", "Time to first token", ttft],
  ["tps", "tok/s", "Tokens per second over the last second of arrivals", (s) => ({ value: fixed(s.reading?.tps, 1) })],
  ["delta", "Δt", "Time between the last two tokens", delta],
  ["silence", "silence", "Time since the last token, or since the prompt", (s) => ({ value: fixed(s.reading?.silence_ms, 0), unit: "ms", why: stallLine(s.session) })],
  ["certainty", "certainty", "From the most likely next tokens, 0 to 1", certainty],
  ["entropy", "entropy, at least", "Of the most likely next tokens. A lower bound: the tail beside it is probability outside the list", entropy],
  ["tokens", "tokens", "Tokens of this session", (s) => ({ value: String(s.tokens) })],
  ["eu", "EU total", "Energy units earned by measured tokens", (s) => ({ value: fixed(s.session.euTotal, 2) })],
  ["eu-rate", "EU/s", "The engine's per-frame average", (s) => ({ value: fixed(s.session.euRate, 2) })],
  ["elapsed", "elapsed", "Since the prompt was accepted", (s) => ({ value: elapsed(s.session).replace(" s", ""), unit: "s" })],
];

/** @param {Shown} shown @returns {Cell} */
function certainty(shown) {
  const value = shown.reading?.certainty;
  return known(value) ? { value: value.toFixed(3) } : { value: NONE, why: whyNoLogprobs(shown) };
}

/** @param {Session} session */
const stallLine = (session) => (session.energyParams ? `stall at ${session.energyParams.stall_ms} ms` : "");

/** @param {Session} session */
export function elapsed(session) {
  if (session.end) return seconds(session.end.duration_ms);
  return session.startUs === null ? NONE : seconds(session.nowMs - session.startUs / 1000);
}

export class Readout {
  constructor() {
    const list = byId("numbers");
    /** @type {Map<string, {value: Text, unit: HTMLElement, why: HTMLElement}>} */
    this._cells = new Map();
    for (const [key, label, definition] of CELLS) {
      const group = document.createElement("div");
      group.title = definition;
      const term = document.createElement("dt");
      term.textContent = label;
      const detail = document.createElement("dd");
      const number = document.createElement("span");
      number.id = `n-${key}`;
      const value = document.createTextNode(NONE);
      number.append(value);
      const unit = document.createElement("small");
      const why = document.createElement("span");
      why.className = "why";
      detail.append(number, unit, why);
      group.append(term, detail);
      list.append(group);
      this._cells.set(key, { value, unit, why });
    }
  }

  /** @param {Session|null} session @param {import("./stream.js").Stream|null} stream the one whose numbers are asked for */
  show(session, stream) {
    const shown = session ? { session, stream, reading: stream?.reading ?? null, tokens: stream?.tokens ?? 0 } : null;
    for (const [key, , , read] of CELLS) {
      const cell = this._cells.get(key);
      if (!cell) continue;
      const { value, unit = "", why = "", spoken = false } = shown ? read(shown) : { value: NONE };
      if (cell.value.data !== value) cell.value.data = value;
      put(cell.unit, unit && value !== NONE ? ` ${unit}` : "");
      put(cell.why, why);
      cell.why.classList.toggle("hidden", spoken);
    }
  }
}
