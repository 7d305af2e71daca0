/** Plays a recorded session again: at any moment of it, the same frames are read in the same way as when they came. No DOM. */

import { Store } from "./store.js";

export const SPEEDS = [0.25, 0.5, 1, 2, 4];
const SLICE_MS = 8; // of one animation frame, for catching up after a jump

/** @typedef {import("./recorded.js").Track} Track */

export class Player {
  /** @param {Track} track */
  constructor(track) {
    this.track = track;
    this.fromMs = track.atMs[0];
    this.toMs = track.atMs[track.atMs.length - 1];
    this.atMs = this.fromMs; // where the picture is to be
    this.speed = 1;
    this.playing = false;
    this.store = new Store();
    this._last = NaN;
    this._next = 0; // line to read
  }

  /** The session as it was at that moment; null before its first frame. */
  get session() {
    return this.store.sessions.get(this.track.id) ?? null;
  }

  /** The engine's clock at the picture. */
  get monoMs() {
    return this.track.baseMs + this.atMs;
  }

  /** Whether the picture is where it is to be. */
  get settled() {
    const { atMs } = this.track;
    return this._next >= atMs.length || atMs[this._next] > this.atMs;
  }

  get over() {
    return this.atMs >= this.toMs;
  }

  /** @param {number} ms since the session began */
  seek(ms) {
    this.atMs = Math.min(this.toMs, Math.max(this.fromMs, Number.isFinite(ms) ? ms : this.fromMs));
    if (this._next > 0 && this.track.atMs[this._next - 1] > this.atMs) this._rewind();
  }

  /** Plays on or pauses; at the end, from the beginning. */
  toggle() {
    this.playing = !this.playing;
    if (this.playing && this.over) this.seek(this.fromMs);
  }

  /** Once per animation frame. @param {number} now */
  tick(now) {
    if (this.playing && this.settled) this.seek(this.atMs + Math.max(0, now - this._last || 0) * this.speed);
    if (this.over) this.playing = false;
    this._last = now;
    const { lines, atMs } = this.track;
    const until = performance.now() + SLICE_MS;
    while (!this.settled && performance.now() < until) {
      this.store.ingest(JSON.parse(lines[this._next]), this.track.baseMs + atMs[this._next]);
      this._next += 1;
      const { session } = this;
      if (session) session.recorded = true;
    }
  }

  _rewind() {
    this.store = new Store();
    this._next = 0;
  }
}
