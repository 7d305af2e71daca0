/** What `council.*` events say of a session: who takes part, what the engine heard between them, and what came of it. No DOM. */

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

/** @param {any} payload @returns {{code: string, message: string}} */
function failure({ error, reason }) {
  return { code: error?.code ?? "LEFT", message: error?.message ?? `It left the council: ${reason}.` };
}
