/** A recorded session: lines of JSON, a frame each. Read, checked and laid out in time. No DOM. */

import { Store } from "./store.js";

export const FILE_BYTES = 64 * 2 ** 20;
const SCHEMA_MAJOR = "1";
const SLICE_MS = 8;

/** Why a file is not a recorded session. */
export class BadRecording extends Error {}

/**
 * @typedef {{id: string, lines: string[], atMs: Float64Array, baseMs: number, startedMs: number, unseenMs: number, gaps: number, ended: boolean,
 *   synthetic: boolean, model: string}} Track `atMs`: when each line came, in ms since the session began, on the engine's
 *   clock; `baseMs`: that beginning; `startedMs`: Unix time of the first frame;
 *   `unseenMs`: what lies before the first frame; `gaps`: frames missed; `ended`: its end is in it
 */

const isNumber = (/** @type {any} */ value) => typeof value === "number";
const isNumberOrNull = (/** @type {any} */ value) => value === null || value === undefined || isNumber(value);
const isText = (/** @type {any} */ value) => typeof value === "string";
const isCount = (/** @type {any} */ value) => Number.isSafeInteger(value) && value >= 0;
const isObject = (/** @type {any} */ value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** @typedef {Record<string, (value: any) => boolean>} Shape */

/** @type {Shape} */
const FRAME = { v: isText, frame: (value) => value === null || isCount(value), ts_ms: isNumber, mono_ms: isNumber, events: Array.isArray };
/** @type {Shape} */
const EVENT = { type: isText, session_id: (value) => value === null || isText(value), payload: isObject };
/** @type {Shape} */
const READING = {
  stream_id: isText, model: isText, state: isText, energy: isNumberOrNull, energy_base: isNumberOrNull, tps: isNumberOrNull, delta_ms: isNumberOrNull,
  silence_ms: isNumberOrNull, certainty: isNumberOrNull, entropy_bits: isNumberOrNull, tail_mass: isNumberOrNull, tokens: isCount,
};
/** @type {Shape} */
const TOKEN = { text: isText, kind: isText, position: isCount, t_us: isNumber, delta_ms: isNumberOrNull, logprob: isNumberOrNull, energy: isNumberOrNull, energy_base: isNumberOrNull };
/** @type {Shape} */
const ENSEMBLE = { energy: isNumberOrNull, modulated: isNumberOrNull, gain: isNumberOrNull, di: isNumberOrNull, sync_latency_ms: isNumberOrNull };

/** @type {Shape} */
const ALTERNATIVE = { token: isText, logprob: isNumber };
const WORDS = new Set(["model", "stream_id", "reason", "code", "message", "method", "mode", "origin", "pattern", "phase", "state", "plan", "a", "b"]);

/** What the page shows as words is words, however deep it lies. @param {any} value @param {string} type */
function checkWords(value, type) {
  if (Array.isArray(value)) value.forEach((one) => checkWords(one, type));
  else if (isObject(value)) {
    for (const [name, inner] of Object.entries(value)) {
      if (WORDS.has(name) && inner !== null && !isText(inner)) throw new BadRecording(`${type}: ${name} is of another kind`);
      checkWords(inner, type);
    }
  }
}

/** @param {any} value @param {Shape} shape @param {string} what */
function check(value, shape, what) {
  if (!isObject(value)) throw new BadRecording(`${what} is not an object`);
  for (const [name, holds] of Object.entries(shape)) if (!holds(value[name])) throw new BadRecording(`${what}: ${name} is missing or of another kind`);
}

/** @param {string} line @returns {any} a frame */
function frameOf(line) {
  let frame;
  try {
    frame = JSON.parse(line);
  } catch {
    throw new BadRecording("this is not JSON");
  }
  if (isObject(frame) && isText(frame.type) && isObject(frame.payload)) throw new BadRecording("this is a single event, and a saved session has frames");
  check(frame, FRAME, "the frame");
  if (frame.v.split(".")[0] !== SCHEMA_MAJOR) throw new BadRecording(`it is of schema ${frame.v.slice(0, 12)}, and this page reads ${SCHEMA_MAJOR}.x`);
  for (const event of frame.events) {
    check(event, EVENT, "an event");
    const { type, payload } = event;
    if (type === "energy.update") {
      if (!Array.isArray(payload.streams)) throw new BadRecording("energy.update: streams is missing");
      for (const reading of payload.streams) check(reading, READING, "a stream of energy.update");
      if (payload.ensemble) check(payload.ensemble, ENSEMBLE, "the ensemble of energy.update");
    } else if (type === "experience.token") {
      if (!isText(payload.stream_id) || !Array.isArray(payload.tokens)) throw new BadRecording("experience.token: stream_id or tokens is missing");
      for (const token of payload.tokens) {
        check(token, TOKEN, "a token");
        for (const other of token.top ?? []) check(other, ALTERNATIVE, "an alternative of a token");
      }
    } else checkWords(payload, type);
  }
  return frame;
}

/** @param {any} frame @returns {string[]} the sessions it speaks of */
function sessionsOf(frame) {
  return frame.events.flatMap((/** @type {any} */ { type, session_id: id, payload }) => (id ? [id] : type === "system.state_snapshot" ? (payload.sessions ?? []).map((/** @type {any} */ state) => state.session_id) : []));
}

/**
 * In slices, so that what runs meanwhile goes on being drawn.
 * @param {string} text lines of JSON @param {(part: number) => void} [onPart] told how much is read, 0–1 @returns {Promise<Track>}
 * @throws {BadRecording} that names the line and what is wrong with it
 */
export async function read(text, onPart = () => {}) {
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  if (lines.length === 0) throw new BadRecording("There is nothing in it.");
  const mono = new Float64Array(lines.length);
  const store = new Store(); // what the field could not take is found here, and not in the middle of a replay
  const ids = new Set();
  let startedMs = NaN;
  let sawBeginning = false;
  let until = performance.now() + SLICE_MS;
  for (const [i, line] of lines.entries()) {
    if (performance.now() > until) {
      onPart(i / lines.length);
      await new Promise((done) => setTimeout(done));
      until = performance.now() + SLICE_MS;
    }
    try {
      const frame = frameOf(line);
      for (const id of sessionsOf(frame)) ids.add(id);
      sawBeginning ||= frame.events.some((/** @type {any} */ { type }) => type === "experience.session_start");
      if (ids.size > 1) throw new BadRecording("it is of another session than the lines before");
      if (frame.frame !== null && frame.frame <= store.frame) throw new BadRecording(`frame ${frame.frame} comes after frame ${store.frame}`);
      mono[i] = frame.frame === null ? NaN : frame.mono_ms;
      if (frame.frame !== null && Number.isNaN(startedMs)) startedMs = frame.ts_ms;
      if (i > 0 && mono[i] < mono[i - 1]) throw new BadRecording("its clock goes back");
      store.ingest(frame, frame.mono_ms);
    } catch (fault) {
      throw new BadRecording(`Line ${i + 1}: ${fault instanceof BadRecording ? fault.message : "its values do not go together"}.`);
    }
  }
  const [session] = store.sessions.values();
  if (!session || ids.size === 0) throw new BadRecording("No line is of a session.");
  const first = mono.find((value) => !Number.isNaN(value));
  if (first === undefined) throw new BadRecording("There is no frame in it.");
  for (let i = lines.length - 1, next = first; i >= 0; i -= 1) next = mono[i] = Number.isNaN(mono[i]) ? next : mono[i]; // a snapshot is of the frame after it
  const began = session.startUs === null ? NaN : session.startUs / 1000;
  const baseMs = began <= first ? began : first;
  const ended = session.end !== null;
  const unseenMs = sawBeginning ? 0 : first - baseMs;
  return { id: session.id, lines, atMs: mono.map((value) => value - baseMs), baseMs, startedMs, unseenMs, gaps: store.gaps, ended, synthetic: session.synthetic, model: session.model || session.awaited };
}
