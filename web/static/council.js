/** What `council.*` events say of a session: who takes part, what the engine heard between them, and what came of it. No DOM. */

import { known } from "./format.js";

const CUES = new Set(["constructive", "destructive", "neutral"]);

/**
 * @typedef {import("./session.js").Session} Session
 * @typedef {{a: string, b: string, agreement: number}} Pair of stream ids
 */

export class Council {
  constructor() {
    /** @type {Record<string, any>|null} payload of council.formed */
    this.formed = null;
    /** @type {Record<string, any>|null} payload of the last council.interference */
    this.interference = null;
    /** @type {Record<string, any>|null} payload of council.resonance while it lasts */
    this.resonance = null;
    this.resonanceSinceMs = 0; // engine clock
    /** @type {Record<string, any>|null} payload of the last council.ensemble */
    this.window = null;
    /** @type {Record<string, any>|null} payload of council.synthesis */
    this.synthesis = null;
  }

  /** @param {Session} session @param {string} type without its channel @param {any} payload @param {number} monoMs */
  take(session, type, payload, monoMs) {
    switch (type) {
      case "formed":
        this.formed = payload;
        session.dropped = payload.dropped_models ?? session.dropped;
        for (const { stream_id: id, model } of payload.members ?? []) session.stream(id, model);
        break;
      case "model_start":
        session.stream(payload.stream_id, payload.model);
        break;
      case "model_end":
        this._member(session, payload, (stream) => (stream.done = payload));
        break;
      case "model_error":
        this._member(session, payload, (stream) => (stream.error = failure(payload)));
        break;
      case "ensemble":
        this.window = payload;
        break;
      case "interference":
        if (CUES.has(payload.pattern)) this.interference = payload;
        break;
      case "resonance":
        if (payload.celebrate === false) break; // this tier or level does not show it
        this.resonance = payload.phase === "end" ? null : payload;
        this.resonanceSinceMs = monoMs;
        session.together?.resonance(payload.phase, payload.duration_ms ?? null);
        break;
      case "synthesis":
        this.synthesis = payload;
        dropOut(session, payload);
    }
  }

  /** @param {Session} session @param {any} payload @param {(stream: import("./stream.js").Stream) => void} act */
  _member(session, payload, act) {
    const stream = session.streams.find(({ id }) => id === payload.stream_id);
    if (stream) act(stream);
  }

  /** Agreement of each two members as the engine measured it last. @returns {Pair[]} */
  get pairs() {
    return this.window?.agreement ?? [];
  }
}

/** What `confidence` of a synthesis is, by its method; the other methods measure none. */
const MEASURES = new Map([["consensus", "agreement"], ["best_certainty", "certainty"]]);

/**
 * What the council's end means for one stream, and why; empty before it.
 * @param {Council} council @param {import("./stream.js").Stream} stream @returns {{words: string, why: string}}
 */
export function ending({ synthesis }, stream) {
  const none = { words: "", why: "" };
  if (!synthesis) return none;
  const told = (synthesis.report?.members ?? []).find((/** @type {any} */ one) => one.stream_id === stream.id);
  if (synthesis.stream_id === stream.id) {
    const measure = MEASURES.get(synthesis.method);
    const sure = measure && known(synthesis.confidence) ? `, ${measure} ${synthesis.confidence.toFixed(2)}` : "";
    return { words: `chosen: ${synthesis.method}${sure}`, why: synthesis.reason ?? "" };
  }
  if (stream.error) return none; // it says why itself
  const agreement = known(told?.agreement) ? `, agreement ${told.agreement.toFixed(2)}` : "";
  if (synthesis.stream_id === null) return { words: "no answer was chosen", why: synthesis.reason ?? "" };
  return { words: `not chosen${agreement}`, why: agreement && "Mean agreement of its text with the other members'" };
}

/**
 * Why a stream is no longer part of its council, where only the last word of the council tells it.
 * @param {Session} session @param {any} synthesis
 */
function dropOut(session, synthesis) {
  const { dropped = [], members = [] } = synthesis.report ?? {};
  for (const { model, state, reason } of dropped) {
    const ids = members.filter((/** @type {any} */ one) => one.model === model && one.state === state).map((/** @type {any} */ one) => one.stream_id);
    const stream = session.streams.find(({ id, error }) => ids.includes(id) && !error);
    if (stream) stream.error = { code: "LEFT", message: `It left the council: ${reason}` };
  }
}

/** @param {any} payload @returns {{code: string, message: string}} */
function failure({ error, reason }) {
  return { code: error?.code ?? "LEFT", message: error?.message ?? `It left the council: ${reason}.` };
}
