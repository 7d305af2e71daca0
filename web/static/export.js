/** The shown session as files of other programs read it, made of the frames that came. Pure. */

const STREAM_TID = 1;
const PID = 1;

/** @typedef {{stream: string, model: string, frame: number, token: any, bits: number|null, stall: boolean|null}} Row a token as it came */
/** @typedef {{id: string, lines: any[]}} Frames of one session, decoded */

/** @param {string} text lines of JSON @param {string} id @returns {Frames} */
export function decoded(text, id) {
  return { id, lines: text.split("\n").filter(Boolean).map((line) => JSON.parse(line)) };
}

/** When its first frame came, Unix ms. @param {Frames} frames */
export const beganMs = ({ lines }) => lines.find(({ frame }) => frame !== null)?.ts_ms ?? NaN;

/** A file name that says session and UTC time. @param {string} id @param {number} atMs @param {string} rest */
export function fileName(id, atMs, rest) {
  const at = new Date(Number.isFinite(atMs) ? atMs : Date.now()).toISOString().replace(/\.\d+Z$/, "Z").replaceAll(/[-:]/g, "");
  return `wf-${id.replaceAll(/[^\w-]/g, "_").slice(0, 32)}-${at}${rest}`;
}

/**
 * Every token that came, in order. `bits`: the entropy, which a frame has of its last token alone. `stall`: whether the
 * engine called the silence before it a stall; null where frames in between were missed.
 * @param {Frames} frames @returns {Row[]}
 */
export function rows({ lines }) {
  /** @type {Row[]} */
  const all = [];
  /** @type {Map<string, {stall: boolean|null, fresh: Row|null}>} */
  const streams = new Map();
  const of = (/** @type {string} */ id) => streams.get(id) ?? streams.set(id, { stall: false, fresh: null }).get(id) ?? { stall: false, fresh: null };
  let last = -1;
  for (const { frame, events } of lines) {
    if (frame !== null) {
      if (last >= 0 && frame > last + 1) for (const state of streams.values()) state.stall = state.stall || null;
      last = frame;
    }
    for (const { type, payload } of events) {
      if (type === "experience.token") {
        const state = of(payload.stream_id);
        for (const token of payload.tokens) {
          state.fresh = { stream: payload.stream_id, model: payload.model, frame, token, bits: null, stall: state.stall };
          all.push(state.fresh);
          state.stall = false;
        }
      } else if (type === "energy.update") {
        for (const reading of payload.streams) {
          const state = of(reading.stream_id);
          if (state.fresh) state.fresh.bits = reading.entropy_bits ?? null;
          state.fresh = null;
          if (reading.stall) state.stall = true;
        }
      }
    }
  }
  return all;
}

const COLUMNS = ["session", "stream", "model", "frame", "position", "kind", "t_us", "delta_ms", "logprob", "p", "entropy_bits", "stall", "E_base", "E"];

/** @param {unknown} value */
function cell(value) {
  if (value === null || value === undefined) return "";
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The raw signals, a token a line; empty where nothing was measured. No text of the answer is in it. @param {Frames} frames */
export function csv(frames) {
  const lines = rows(frames).map(({ stream, model, frame, token, bits, stall }) => {
    const p = typeof token.logprob === "number" ? Math.exp(token.logprob) : null;
    return [frames.id, stream, model, frame, token.position, token.kind, token.t_us, token.delta_ms, token.logprob, p, bits, stall, token.energy_base, token.energy];
  });
  return [COLUMNS, ...lines].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

/**
 * Chrome's trace format, for Perfetto: a slice per token as long as its Δt, counters of E, DI and tok/s, stalls, the
 * session's bounds, missed frames. Times are the engine's clock in µs. No text of the answer is in it.
 * @param {Frames} frames
 */
export function trace(frames) {
  /** @type {any[]} */
  const events = [{ ph: "M", pid: PID, tid: 0, name: "process_name", args: { name: `session ${frames.id}` } }];
  /** @type {Map<string, number>} */
  const tids = new Map();
  const tid = (/** @type {string} */ stream, /** @type {string} */ model) => {
    const known = tids.get(stream);
    if (known !== undefined) return known;
    tids.set(stream, tids.size + STREAM_TID);
    events.push({ ph: "M", pid: PID, tid: tids.size, name: "thread_name", args: { name: model } });
    return tids.size;
  };
  for (const { stream, model, token, bits, stall } of rows(frames)) {
    const { position, kind, t_us: ts, delta_ms: deltaMs, logprob, energy, energy_base: base } = token;
    const dur = Math.round((deltaMs ?? 0) * 1000);
    const args = { position, kind, t_us: ts, delta_ms: deltaMs ?? null, logprob: logprob ?? null, entropy_bits: bits, stall, E_base: base ?? null, E: energy ?? null };
    events.push({ ph: "X", pid: PID, tid: tid(stream, model), ts: ts - dur, dur, name: kind === "answer" ? "token" : kind, cat: "token", args });
  }
  events.push(...measured(frames, tid));
  return JSON.stringify({ traceEvents: events, displayTimeUnit: "ms", otherData: { session: frames.id, clock: "engine, µs" } });
}

/** What is told by frame instead of by token. @param {Frames} frames @param {(stream: string, model: string) => number} tid */
function measured({ lines }, tid) {
  /** @type {any[]} */
  const events = [];
  let last = -1;
  for (const { frame, mono_ms: monoMs, events: told } of lines) {
    const ts = Math.round(monoMs * 1000);
    if (frame !== null) {
      if (last >= 0 && frame > last + 1) events.push({ ph: "i", s: "p", pid: PID, tid: 0, ts, name: "missed frames", cat: "gap", args: { frames: frame - last - 1 } });
      last = frame;
    }
    for (const { type, payload } of told) {
      if (type === "energy.update") {
        for (const { stream_id: stream, model, energy, tps, stall } of payload.streams) {
          events.push({ ph: "C", pid: PID, tid: tid(stream, model), ts, name: `E ${stream}`, args: { E: energy ?? null } });
          events.push({ ph: "C", pid: PID, tid: tid(stream, model), ts, name: `tok/s ${stream}`, args: { "tok/s": tps ?? null } });
          if (stall) events.push({ ph: "i", s: "t", pid: PID, tid: tid(stream, model), ts, name: "stall", cat: "stall", args: {} });
        }
        const { energy, di } = payload.ensemble ?? {};
        if (typeof energy === "number") events.push({ ph: "C", pid: PID, tid: 0, ts, name: "E ensemble", args: { E: energy } });
        if (typeof di === "number") events.push({ ph: "C", pid: PID, tid: 0, ts, name: "DI", args: { DI: di } });
      } else if (type !== "experience.token" && !type.startsWith("system.")) {
        const { reason = null, phase = null, pattern = null } = payload;
        events.push({ ph: "i", s: "p", pid: PID, tid: 0, ts, name: type, cat: type.split(".")[0], args: { reason, phase, pattern } });
      }
    }
  }
  return events.filter(({ ph, args }) => ph !== "C" || Object.values(args).every((value) => typeof value === "number"));
}
