/** Reads frames into sessions. Called from onmessage: it only writes memory, the animation frame reads it. No DOM. */

import { COLUMNS } from "./columns.js";
import { EventLog } from "./eventlog.js";
import { Session } from "./session.js";

const SESSIONS = 80; // 64 can run at once
const DETAILED = 8; // newest sessions whose single tokens are kept after their end
const NOTICES = 32;
const MODEL_EVENTS = 256;
const RATE_SAMPLES = 256;

/** Events per second over the last second, from at most RATE_SAMPLES stamps. */
export class Rate {
  constructor() {
    /** @type {number[]} */
    this._stamps = [];
  }

  /** @param {number} now */
  mark(now) {
    this._stamps.push(now);
    if (this._stamps.length > RATE_SAMPLES) this._stamps.shift();
  }

  /** @param {number} now */
  perSecond(now) {
    while (this._stamps.length > 0 && this._stamps[0] <= now - 1000) this._stamps.shift();
    return this._stamps.length;
  }
}

/** @typedef {{kind: "started"|"stalled"|"ended"|"lost"|"resonance"|"left", session: Session, model: string}} Notice */

export class Store {
  constructor() {
    /** @type {Map<string, Session>} */
    this.sessions = new Map();
    this.boot = "";
    this.framesReceived = 0;
    this.gaps = 0;
    this.frame = -1;
    this.receivedAt = 0; // when that frame came, on the page's clock
    /** @type {Record<string, number>|null} */
    this.perf = null;
    this.rate = new Rate();
    /** @type {Notice[]} boundaries, for whoever drains them once per animation frame */
    this.notices = [];
    /** @type {{event: any, atMs: number}[]} `experience.model` in order, drained likewise */
    this.modelEvents = [];
    this.unknownEvents = 0;
    this.log = new EventLog();
    this.away = false; // the page asked for fewer frames: what is skipped then is not missed
    this.skipped = 0;
    this._order = 0;
  }

  /** @param {any} message one decoded WebSocket message @param {number} now @returns {boolean} whether it is new */
  ingest(message, now) {
    if (typeof message.frame === "number") {
      if (message.frame <= this.frame) return false; // come again after a reconnect
      this._count(message, now);
    }
    for (const event of message.events ?? []) {
      this.log.add(event, message);
      if (event.type === "experience.model") this._model(event.payload, message.ts_ms);
      this._event(event, message.mono_ms, now);
    }
    return true;
  }

  /** Where to go on after a break: `<boot>.<frame>`, empty before the first frame. */
  seen() {
    return this.boot && this.frame >= 0 ? `${this.boot}.${this.frame}` : "";
  }

  /** The session that began last. It stays the newest after its end, so an answer is not taken from under the reader. */
  newest() {
    /** @type {Session|null} */
    let best = null;
    for (const session of this.sessions.values()) if (!best || session.order > best.order) best = session;
    return best;
  }

  /** @param {any} message @param {number} now */
  _count(message, now) {
    this.framesReceived += 1;
    this.receivedAt = now;
    this.rate.mark(now);
    this.perf = message.perf ?? this.perf;
    const missed = this.frame < 0 ? 0 : message.frame - this.frame - 1;
    this.frame = message.frame;
    if (missed <= 0) return;
    if (this.away) this.skipped += missed;
    else this.gaps += missed;
    for (const session of this.sessions.values()) if (session.active) session.gap(Math.min(missed, COLUMNS));
  }

  /** @param {any} event @param {number} monoMs @param {number} now */
  _event({ type, session_id: id, payload }, monoMs, now) {
    switch (type) {
      case "energy.update":
        this._energy(this._session(id, now), payload, monoMs);
        break;
      case "experience.token": {
        const session = this._session(id, now);
        session.heard(payload.stream_id, payload.model)?.take(payload.tokens, session.startUs, this.frame);
        break;
      }
      case "experience.session_start": {
        const session = this._session(id, now);
        session.start(payload);
        this._notice("started", session);
        break;
      }
      case "experience.session_end":
        this._end(this._session(id, now), payload);
        break;
      case "experience.model":
        if (id) this._loading(this._session(id, now), payload, now);
        break;
      case "system.hello":
        this._hello(payload);
        break;
      case "system.state_snapshot":
        this._snapshot(payload, now);
        break;
      default:
        if (type?.startsWith("council.") && id) this._council(this._session(id, now), type.slice(8), payload, monoMs);
        else if (!type?.startsWith("system.")) this.unknownEvents += 1;
    }
  }

  /** @param {Session} session @param {any} payload @param {number} monoMs */
  _energy(session, payload, monoMs) {
    const before = session.streams.map((stream) => stream.reading?.state);
    session.update(payload, monoMs);
    session.streams.forEach((stream, i) => {
      if (stream.reading?.state === "STALLING" && before[i] !== "STALLING") this._notice("stalled", session, stream.model);
    });
  }

  /** @param {Session} session @param {string} kind @param {any} payload @param {number} monoMs */
  _council(session, kind, payload, monoMs) {
    session.council.take(session, kind, payload, monoMs);
    if (kind === "resonance" && payload.phase !== "end" && payload.celebrate !== false) this._notice("resonance", session);
    if (kind === "model_error") this._notice("left", session, payload.model ?? "a member");
  }

  /** @param {Session} session @param {any} payload @param {number} now */
  _loading(session, payload, now) {
    const state = { ...payload, since: now };
    session.modelState = state;
    for (const stream of session.streams) if (stream.model === payload.model) stream.modelState = state;
  }

  /** @param {any} event @param {number} atMs Unix time */
  _model(event, atMs) {
    this.modelEvents.push({ event, atMs });
    if (this.modelEvents.length > MODEL_EVENTS) this.modelEvents.shift();
  }

  /** @param {Session} session @param {any} payload */
  _end(session, payload) {
    session.end = payload;
    session.endTtftMs = payload.ttft_ms;
    if (session.streams.length === 1) session.streams[0].ttftMs = payload.ttft_ms;
    this._notice("ended", session);
  }

  /** @param {any} payload */
  _hello(payload) {
    if (this.boot && this.boot !== payload.boot) this.frame = -1; // another engine life counts from its own zero
    this.boot = payload.boot;
  }

  /** @param {any} payload @param {number} now */
  _snapshot(payload, now) {
    const known = new Set();
    const running = (/** @type {any} */ state) => Number(state.end === null);
    const byAge = (/** @type {any} */ a, /** @type {any} */ b) => running(a) - running(b) || a.started_ms - b.started_ms;
    for (const state of [...payload.sessions].sort(byAge)) {
      known.add(state.session_id);
      this._session(state.session_id, now).restore(state);
    }
    for (const session of this.sessions.values()) {
      if (!session.active || known.has(session.id)) continue;
      session.lost = true;
      this._notice("lost", session);
    }
  }

  /** @param {string} id @param {number} now @returns {Session} */
  _session(id, now) {
    let session = this.sessions.get(id);
    if (session) return session;
    session = new Session(id, now);
    session.order = this._order += 1;
    this.sessions.set(id, session);
    if (this.sessions.size > SESSIONS) this._forget();
    for (const old of this.sessions.values()) if (!old.active && old.order <= this._order - DETAILED) old.fold();
    return session;
  }

  /** Drops the oldest ended session, or the oldest of all. */
  _forget() {
    const byAge = [...this.sessions.values()];
    this.sessions.delete((byAge.find((session) => !session.active) ?? byAge[0]).id);
  }

  /** @param {Notice["kind"]} kind @param {Session} session @param {string} [model] */
  _notice(kind, session, model = session.model) {
    this.notices.push({ kind, session, model });
    if (this.notices.length > NOTICES) this.notices.shift();
  }
}
