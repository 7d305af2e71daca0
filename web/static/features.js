/** What this engine can do, read from its own description: a screen or a mode without a source is left out. No DOM. */

import * as api from "./api.js";

/** @typedef {{paths?: Record<string, object>, components?: {schemas?: Record<string, any>}}} Description */

export class Features {
  /** @param {() => void} onKnown */
  constructor(onKnown) {
    this.onKnown = onKnown;
    this.boot = ""; // of the start that was asked
    /** @type {Set<string>} */
    this.modes = new Set(["single"]);
    /** @type {Set<string>} */
    this.paths = new Set();
  }

  /** Asks once per start of the engine. @param {string} boot */
  async ask(boot) {
    if (this.boot === boot) return;
    this.boot = boot;
    try {
      this.take(await api.description());
    } catch {
      this.boot = ""; // again when the line comes up the next time
      return;
    }
    this.onKnown();
  }

  /** @param {Description} description */
  take({ paths = {}, components = {} }) {
    this.paths = new Set(Object.keys(paths));
    const mode = components.schemas?.["generate.request"]?.properties?.mode ?? {};
    this.modes = new Set(mode.enum ?? ["single"]);
  }

  /** @param {string} path as the description writes it */
  has(path) {
    return this.paths.has(path);
  }
}

/**
 * How many models the tier lets work side by side, and whether it has turbo. Null while the engine does not say.
 * @param {import("./api.js").Bootstrap|null} engine
 */
export function allowance(engine) {
  const limits = engine?.limits ?? {};
  return { tier: engine?.tier ?? "", models: limits.council_models_max ?? null, turbo: limits.turbo_models_max === undefined ? null : limits.turbo_models_max > 0 };
}
