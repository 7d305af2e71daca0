/**
 * Downloads of models: those this page started, and those of others as far as the engine tells of them. No DOM.
 *
 * This page waits on the stream of its download: however long it takes, bytes keep coming, and no browser gives it up
 * for lack of an answer. Leaving that stream stops the download unless somebody else waits for it too; so names of
 * this tab's downloads are kept, and a reloaded page takes them up where they stood.
 */

import * as api from "./api.js";

const ROWS_MAX = 8;
const KEPT = "wf.downloads";

/**
 * `progress` 0–1, null while nobody knows; `message`: why it failed. A row of others has no `abort`.
 * @typedef {{name: string, state: "pulling"|"loading"|"stopped"|"failed", status: string, progress: number|null,
 *   doneBytes: number|null, totalBytes: number|null, message: string, mine: boolean, abort: AbortController|null}} Download
 */

export class Downloads {
  /** @param {(name: string, ok: boolean, mine: boolean) => void} onEnd a download is over; `ok`: the model is here */
  constructor(onEnd) {
    this.onEnd = onEnd;
    /** @type {Map<string, Download>} */
    this.rows = new Map();
    this._leaving = false; // the page goes: what ends now was not given up
    addEventListener("pagehide", () => (this._leaving = true));
    addEventListener("pageshow", () => (this._leaving = false));
  }

  /** @param {string} name whether it is on its way, or waits for somebody's decision here */
  busy(name) {
    return this.rows.has(name);
  }

  /** Goes on with what this tab was downloading before it was reloaded. */
  resume() {
    for (const name of kept()) this.start(name);
  }

  /** @param {string} name */
  async start(name) {
    const before = this.rows.get(name);
    if (before?.abort || (!before && this.rows.size >= ROWS_MAX)) return;
    const abort = new AbortController();
    const row = this._row(name, abort);
    this._keep();
    try {
      await api.pull(name, abort.signal, (step) => this._step(row, step));
      Object.assign(row, { state: "loading", status: "loading it", progress: null });
      await api.load(name, abort.signal);
      this._drop(row);
    } catch (error) {
      row.abort = null;
      if (abort.signal.aborted) Object.assign(row, { state: "stopped", progress: null });
      else Object.assign(row, { state: "failed", progress: null, message: error instanceof Error ? error.message : String(error) });
    }
    this._keep();
    this.onEnd(name, !this.rows.has(name), true);
  }

  /** Stops waiting for it. @param {string} name */
  cancel(name) {
    this.rows.get(name)?.abort?.abort();
  }

  /** Takes a row that is over off the list. @param {string} name */
  dismiss(name) {
    const row = this.rows.get(name);
    if (row && !row.abort) this.rows.delete(name);
  }

  /** An `experience.model` event. @param {{model: string, state: string, progress: number|null, reason: string|null}} event */
  heard({ model, state, progress, reason }) {
    const row = this.rows.get(model);
    if (row?.abort) return; // its own stream tells more, and sooner
    if (state === "pulling") {
      if (row || this.rows.size < ROWS_MAX) Object.assign(this._row(model, null), { progress, status: reason ?? "" });
    } else if (row?.state === "pulling") {
      const failed = state === "failed";
      if (failed) Object.assign(row, { state: "failed", progress: null, message: reason ?? "the download failed" });
      else if (row.mine && reason === "stopped") Object.assign(row, { state: "stopped", progress: null }); // our own news, overtaken by the click
      else this.rows.delete(model);
      this.onEnd(model, !failed && reason !== "stopped", false);
    }
  }

  /** What GET /models says is under way: the truth about the downloads of others. @param {{name: string, status: string, progress: number|null}[]} pulls */
  listed(pulls) {
    const names = new Set(pulls.map((pull) => pull.name));
    for (const row of this.rows.values()) {
      if (row.abort || row.state !== "pulling" || names.has(row.name)) continue;
      if (row.mine) Object.assign(row, { state: "stopped", progress: null }); // a listing made before the click brought it back
      else this.rows.delete(row.name);
    }
    for (const { name, status, progress } of pulls) this.heard({ model: name, state: "pulling", progress, reason: status });
  }

  /** @param {Download} row @param {{status: string, completed?: number, total?: number}} step */
  _step(row, { status, completed, total }) {
    row.status = status;
    row.doneBytes = completed ?? null;
    row.totalBytes = total ?? null;
    row.progress = total && completed !== undefined ? Math.min(1, completed / total) : null;
  }

  /** @param {string} name @param {AbortController|null} abort @returns {Download} */
  _row(name, abort) {
    const fresh = { name, state: /** @type {const} */ ("pulling"), status: "asking for it", progress: null, doneBytes: null, totalBytes: null, message: "", abort };
    const before = this.rows.get(name);
    const row = Object.assign(before ?? {}, fresh, { mine: abort !== null || before?.mine === true });
    this.rows.set(name, row);
    return row;
  }

  /** @param {Download} row */
  _drop(row) {
    row.abort = null;
    this.rows.delete(row.name);
  }

  _keep() {
    if (this._leaving) return;
    try {
      sessionStorage.setItem(KEPT, JSON.stringify([...this.rows.values()].filter((row) => row.abort).map((row) => row.name)));
    } catch {
      // storage can be switched off: then a reload stops them
    }
  }
}

/** @returns {string[]} */
function kept() {
  try {
    const names = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
    return Array.isArray(names) ? names.filter((name) => typeof name === "string").slice(0, ROWS_MAX) : [];
  } catch {
    return [];
  }
}
