/** What the page keeps of one session: its streams side by side, and what the engine says of them together. No DOM. */

import { EnsembleColumns } from "./columns.js";
import { Council } from "./council.js";
import { Stream } from "./stream.js";

export const LANES = 6; // a council has at most six members

export class Session {
  /** @param {string} id @param {number} now */
  constructor(id, now) {
    this.id = id;
    this.seenAt = now;
    this.order = 0; // set by the store; a newer session has a greater one
    /** @type {Stream[]} in the order of their slots */
    this.streams = [];
    this.unshown = 0; // streams beyond LANES
    this.mode = "single";
    this.origin = "";
    this.synthetic = false;
    /** @type {string[]} */
    this.dropped = [];
    /** @type {Record<string, any>|null} */
    this.energyParams = null;
    /** @type {Record<string, any>} sampling parameters in force; null where the runtime's own default holds */
    this.parameters = {};
    /** @type {number|null} */
    this.startUs = null;
    /** @type {number|null} */
    this.endTtftMs = null;
    this.nowMs = NaN; // engine clock of the last frame that spoke of it
    this.euTotal = NaN;
    this.euRate = NaN;
    this.count = 0; // columns; each stream has as many
    /** @type {Record<string, any>|null} payload of session_end */
    this.end = null;
    this.lost = false; // the engine forgot it (it restarted)
    this.recorded = false; // it is being replayed
    this.council = new Council();
    /** @type {EnsembleColumns|null} there from the second stream on */
    this.together = null;
    /** @type {Record<string, any>|null} of the last energy.update */
    this.ensemble = null;
    /** @type {import("./stream.js").Stream["modelState"]} of the model heard of last */
    this.modelState = null;
    this._expected = ""; // a model that was named before its stream
  }

  get active() {
    return this.end === null && !this.lost;
  }

  get tokens() {
    return this.streams.reduce((sum, stream) => sum + stream.tokens, 0);
  }

  /** Whether it has, or is about to have, more than one stream. */
  get plural() {
    return this.streams.length > 1 || this.mode !== "single" || this.council.formed !== null;
  }

  /** What it is called in one line. */
  get model() {
    return this.streams.map((stream) => stream.model).join(" + ");
  }

  /** The stream of that id; made when it is new. Null beyond LANES. @param {string} id @param {string} [model] @returns {Stream|null} */
  stream(id, model = "") {
    const found = this.streams.find((stream) => stream.id === id);
    if (found) {
      found.model ||= model;
      return found;
    }
    if (this.streams.length >= LANES) {
      this.unshown += 1;
      return null;
    }
    const made = new Stream(id, model, this.streams.length, this.count);
    this.streams.push(made);
    if (this.streams.length === 2) this.together ??= new EnsembleColumns(this.count);
    return made;
  }

  /** @param {any} payload of experience.session_start */
  start(payload) {
    this.mode = payload.mode ?? "single";
    this.origin = payload.origin;
    this.synthetic = payload.synthetic === true;
    this.dropped = payload.dropped_models ?? [];
    this.energyParams = payload.energy_params;
    this.parameters = payload.parameters ?? {};
    this.startUs = payload.start_us ?? null;
    for (const { stream_id: id, model } of payload.streams ?? []) this.stream(id, model);
    if (this.streams.length === 0 && payload.models?.[0]) this._expected = payload.models[0];
  }

  /** The stream that speaks; a model that was named without a stream takes the first. @param {string} id @param {string} model */
  heard(id, model) {
    return this.stream(id, (this.streams.length === 0 && this._expected) || model);
  }

  /** The model whose words are waited for, before any stream has an id. */
  get awaited() {
    return this.model || this._expected;
  }

  /** One energy.update: closes the column of its frame. @param {any} payload @param {number} monoMs */
  update(payload, monoMs) {
    this.euTotal = payload.eu_total;
    this.euRate = payload.eu_rate;
    this.nowMs = monoMs;
    for (const reading of payload.streams) this.heard(reading.stream_id, reading.model);
    for (const stream of this.streams) {
      stream.update(payload.streams.find((/** @type {any} */ reading) => reading.stream_id === stream.id) ?? null);
    }
    this.ensemble = payload.ensemble ?? null;
    this.together?.push(this.ensemble);
    this.count += 1;
  }

  /** @param {number} missed frames that never arrived */
  gap(missed) {
    if (this.count === 0) return;
    for (let n = missed; n > 0; n -= 1) {
      for (const stream of this.streams) stream.columns.blank();
      this.together?.push(null);
      this.count += 1;
    }
  }

  /** Takes over what a snapshot says of it. @param {any} state */
  restore(state) {
    this.mode = state.mode ?? this.mode;
    this.origin = state.origin ?? this.origin;
    this.synthetic = state.synthetic === true;
    this.energyParams = state.energy_params ?? this.energyParams;
    if (typeof state.started_ms === "number") this.startUs = state.started_ms * 1000;
    this.endTtftMs = state.ttft_ms ?? this.endTtftMs;
    this.euTotal = state.eu_total ?? NaN;
    this.end = state.end;
    this.lost = false;
    const readings = state.last_energy?.streams ?? [];
    const alone = (state.streams?.length ?? 0) === 1;
    for (const part of state.streams ?? []) {
      const reading = readings.find((/** @type {any} */ r) => r.stream_id === part.stream_id) ?? null;
      this.stream(part.stream_id, part.model)?.restore(part, reading, part.tokens ?? (alone ? state.tokens : reading?.tokens ?? 0));
    }
    const first = this.streams[0];
    if (first && alone) first.ttftMs = this.endTtftMs ?? first.ttftMs;
    if (this.streams.length === 0) this._expected = state.models?.[0] ?? "";
    this.ensemble = state.last_energy?.ensemble ?? this.ensemble;
  }

  /** Lets go of single tokens. */
  fold() {
    for (const stream of this.streams) stream.fold();
  }
}
