/** The frames WebSocket: opens it, hands every message on, and comes back after a break. No DOM. */

import { bootstrap } from "./api.js";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5_000;
const SPREAD = 0.2;
const SILENCE_MS = 5_000; // the engine sends a heartbeat every second; this long without a word means a dead line
const SCHEMA_MAJOR = "1";
const UNSENT_BYTES_MAX = 65_536;

const CLOSE_REASONS = new Map([
  [1001, "the engine is shutting down"],
  [1006, "the connection broke"],
  [1011, "the engine had an internal error"],
  [4008, "this page was too slow to keep up"],
]);

/**
 * How long to wait before the next try.
 * @param {number} attempt from 0
 * @param {number} chance in [0, 1): spreads clients over ±20 %
 */
export function backoffMs(attempt, chance) {
  return Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** attempt) * (1 + SPREAD * (2 * chance - 1));
}

/** @typedef {"connecting"|"live"|"reconnecting"|"incompatible"} LinkState */

export class Connection {
  /**
   * @param {(message: any, text: string) => void} onMessage called for each message, decoded and as it came; must only store it
   * @param {() => string} seen `<boot>.<frame>` of the last frame seen, empty before the first
   */
  constructor(onMessage, seen) {
    this.onMessage = onMessage;
    this.seen = seen;
    /** @type {LinkState} */
    this.state = "connecting";
    this.since = performance.now(); // of this state
    this.reason = "";
    this.attempt = 0;
    this.nextTryAt = 0;
    this.undecodable = 0;
    /** @type {import("./api.js").Bootstrap|null} */
    this.engine = null;
    this.firstVersion = "";
    this.lives = 0; // how often the link came up
    this._lastHeard = 0;
    this._resumable = true; // false after an attempt to resume that was refused
    this._timer = 0;
    /** @type {WebSocket|null} */
    this._socket = null;
  }

  start() {
    addEventListener("online", () => this._hurry());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this._hurry());
    setInterval(() => this._watch(), 1_000);
    this._open();
  }

  async _open() {
    this._timer = 0;
    let engine;
    try {
      engine = await bootstrap(); // again each time: a restarted engine may have moved its port
    } catch (error) {
      this._lost(error instanceof Error ? error.message : "");
      return;
    }
    this.engine = engine;
    this.firstVersion ||= engine.version;
    if (engine.schema_version.split(".")[0] !== SCHEMA_MAJOR) {
      this._enter("incompatible");
      return;
    }
    const since = this._resumable ? this.seen() : "";
    // With api_keys a page must show that it was let in; a subprotocol is the only thing it can send along.
    const url = since ? `${engine.ws_url}?since=${encodeURIComponent(since)}` : engine.ws_url;
    const socket = new WebSocket(url, ["wf.frames", `wf.token.${engine.token}`]);
    let spoke = false;
    this._socket = socket;
    this._lastHeard = performance.now();
    socket.onmessage = (event) => {
      spoke = true;
      this._received(event.data);
    };
    socket.onclose = (event) => {
      if (this._socket !== socket) return; // already given up
      this._socket = null;
      this._resumable = spoke || !since;
      this._lost(CLOSE_REASONS.get(event.code) ?? `closed with code ${event.code}`);
    };
  }

  /** Sends a message if the line is up and not clogged; nothing the page says is worth waiting for. @param {object} message */
  send(message) {
    const socket = this._socket;
    if (socket?.readyState === WebSocket.OPEN && socket.bufferedAmount < UNSENT_BYTES_MAX) socket.send(JSON.stringify(message));
  }

  /** @param {string} data */
  _received(data) {
    this._lastHeard = performance.now();
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      this.undecodable += 1;
      return;
    }
    if (this.state !== "live") {
      this.attempt = 0;
      this.lives += 1;
      this._enter("live");
    }
    this.onMessage(message, data);
  }

  /** @param {string} reason */
  _lost(reason) {
    this.reason = reason;
    if (this.state === "live") this._enter("reconnecting");
    const wait = backoffMs(this.attempt, Math.random());
    this.attempt += 1;
    this.nextTryAt = performance.now() + wait;
    this._timer = setTimeout(() => this._open(), wait);
  }

  _hurry() {
    if (!this._timer) return;
    clearTimeout(this._timer);
    this._open();
  }

  _watch() {
    const socket = this._socket;
    if (!socket || performance.now() - this._lastHeard < SILENCE_MS) return;
    this._socket = null;
    socket.close();
    this._lost(`nothing heard for ${SILENCE_MS / 1000} s`);
  }

  /** @param {LinkState} state */
  _enter(state) {
    this.state = state;
    this.since = performance.now();
  }
}
