/** What state the engine is in, as /health tells it: asked at the start, and again while there is something to wait for. No DOM. */

import * as api from "./api.js";
import * as slow from "./slow.js";

const POLL_MS = 2_000;
const POLLS_MAX = 900; // half an hour in a row; then a reconnect, a look at the page or its button starts anew
const DEMONSTRATION = new Set(["embedded", "synthetic"]); // kinds of runtimes that show the engine and help nobody

/** @typedef {import("./api.js").Health} Health */

export class Readiness {
  /** @param {(before: string, after: string) => void} onChange called when the engine's state is another than before; before is "" at first */
  constructor(onChange) {
    this.onChange = onChange;
    this.state = ""; // starting, no_runtime, no_models or ready; empty before the first answer
    this.since = 0; // of this state, as far as this page saw it
    this.asking = false;
    this._again = false; // asked for while an answer was on its way
    /** @type {{runtime: string}[]|null} the newest, until it was compared */
    this._listing = null;
    this._polls = 0;
    this._timer = 0;
    document.addEventListener("visibilitychange", () => this._looked());
  }

  /** Asks now, and goes on asking until the engine is ready. */
  async ask() {
    this._polls = 0;
    await this._ask();
  }

  get health() {
    return slow.health.peek();
  }

  /** The runtimes that could help, and were asked. */
  get wanted() {
    return (this.health?.runtimes ?? []).filter((runtime) => !DEMONSTRATION.has(runtime.kind));
  }

  /** Those that get prompts although they are not on this machine. @returns {string[]} */
  get away() {
    return (this.health?.runtimes ?? []).filter((runtime) => !runtime.local).map((runtime) => runtime.name);
  }

  /** There is a listing of models. If it tells of another state than this one, it is time to ask. @param {{runtime: string}[]} models */
  listed(models) {
    this._listing = models;
    if (!this.asking) this._compare();
  }

  /** Each listing leads to one question at most. */
  _compare() {
    const models = this._listing;
    const names = new Set(this.wanted.map((runtime) => runtime.name));
    if (models === null || this.health === null) return;
    this._listing = null;
    if (names.size > 0 && models.some(({ runtime }) => names.has(runtime)) !== (this.state === "ready")) this._ask();
  }

  async _ask() {
    if (this.asking) {
      this._again = true;
      return;
    }
    this._again = false;
    clearTimeout(this._timer);
    this._timer = 0;
    this.asking = true;
    try {
      slow.health.value = await api.health();
    } catch {
      return; // the link says that the engine is gone, and asks again when it is back
    } finally {
      this.asking = false;
    }
    this._enter(this.health?.state ?? "ready");
    if (this._again) this._ask();
    else this._compare();
    if (!this.asking) this._next();
  }

  /** @param {string} state */
  _enter(state) {
    if (state === this.state) return;
    const before = this.state;
    this.state = state;
    this.since = performance.now();
    this.onChange(before, state);
  }

  _next() {
    if (this.state === "ready" || document.hidden || this._polls >= POLLS_MAX) return;
    this._polls += 1;
    this._timer = setTimeout(() => this._ask(), POLL_MS);
  }

  _looked() {
    if (document.hidden) {
      clearTimeout(this._timer);
      this._timer = 0;
    } else if (this.state && this.state !== "ready" && !this._timer) this.ask();
  }
}
