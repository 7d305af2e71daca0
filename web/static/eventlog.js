/** The last events as they came, for the Events screen. `energy.update` has a ring of its own: it would push out all else. No DOM. */

export const EVENTS_KEPT = 2_048;
export const ENERGY_KEPT = 600; // ten seconds of one session
const WORDS_CHARS = 200;
const MODELS_MAX = 64;

/**
 * @typedef {{n: number, frame: number|null, atMs: number, monoMs: number, type: string, session: string, model: string,
 *   words: string, bad: boolean, payload: any}} Entry `n` numbers events in the order of their arrival
 */

export class EventLog {
  constructor() {
    this.total = 0;
    this.dropped = 0; // too old to be kept
    /** @type {Set<string>} names of models heard of, for the filter */
    this.models = new Set();
    /** @type {Entry[]} */
    this._events = [];
    /** @type {Entry[]} */
    this._energies = [];
  }

  /** @param {any} event @param {any} message the frame that carried it */
  add({ type = "", session_id: session, payload }, message) {
    const energy = type === "energy.update";
    const ring = energy ? this._energies : this._events;
    const { frame = null, ts_ms: atMs = NaN, mono_ms: monoMs = NaN } = message;
    const model = modelOf(payload);
    if (model && !energy && this.models.size < MODELS_MAX) for (const name of model.split(" + ")) this.models.add(name);
    const bad = type === "system.error" || type.endsWith("error") || payload?.reason === "error" || payload?.state === "failed";
    ring.push({ n: (this.total += 1), frame, atMs, monoMs, type, session: session ?? "", model, words: "", bad, payload });
    if (ring.length > (energy ? ENERGY_KEPT : EVENTS_KEPT)) {
      ring.shift();
      this.dropped += 1;
    }
  }

  /**
   * Newest last. @param {{text: string, kind: string, model: string}} filter `kind`: "", a channel, "error" or "energy"
   * @returns {Entry[]}
   */
  select({ text, kind, model }) {
    const source = kind === "energy" ? this._energies : kind === "all" ? merged(this._events, this._energies) : this._events;
    const wanted = text.toLowerCase();
    return source.filter((entry) => {
      if (kind === "error" ? !entry.bad : kind && kind !== "all" && !entry.type.startsWith(`${kind}.`)) return false;
      if (model && !entry.model.split(" + ").includes(model)) return false;
      return !wanted || `${entry.type} ${entry.session} ${entry.model} ${said(entry)}`.toLowerCase().includes(wanted);
    });
  }
}

/** What it says in one line, made when it is first looked at. @param {Entry} entry */
export function said(entry) {
  entry.words ||= summary(entry.type, entry.payload).slice(0, WORDS_CHARS) || " ";
  return entry.words;
}

/** @param {any} payload */
function modelOf(payload) {
  if (typeof payload?.model === "string") return payload.model;
  const many = payload?.models ?? payload?.streams?.map((/** @type {any} */ stream) => stream.model) ?? [];
  return many.join(" + ");
}

/** @param {Entry[]} a @param {Entry[]} b */
function merged(a, b) {
  return [...a, ...b].sort((left, right) => left.n - right.n);
}

/** @param {string} type @param {any} payload */
function summary(type, payload) {
  if (!payload) return "";
  if (type === "experience.token") return `${payload.tokens.length} × ${JSON.stringify(payload.tokens.map((/** @type {any} */ t) => t.text).join(""))}`;
  if (type === "energy.update") return payload.streams.map((/** @type {any} */ s) => `E ${s.energy?.toFixed(3)} ${s.state}`).join(" · ");
  const parts = [];
  for (const [name, value] of Object.entries(payload)) {
    if (value === null || value === "" || (Array.isArray(value) && value.length === 0) || name === "energy_params") continue;
    if (typeof value === "object" && !Array.isArray(value)) parts.push(value.code ? `${value.code}: ${value.message ?? ""}` : name);
    else parts.push(`${name} ${Array.isArray(value) ? (typeof value[0] === "object" ? value.length : value.join(", ")) : typeof value === "number" ? Number(value.toFixed(3)) : value}`);
  }
  return parts.join(" · ");
}
