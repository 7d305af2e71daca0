/** Keys, the theme button and the help dialog. Single letters are dead while somebody types, and can be switched off. */

import { byId } from "./format.js";
import { recall, remember } from "./theme.js";

const TWICE_MS = 1_000;
const GOTO_MS = 1_500;
const GOTO = new Map([["s", "stream"], ["p", "pool"], ["g", "gateway"], ["e", "events"]]);

/**
 * @typedef {{stop: () => void, stopAll: () => void, freeze: () => void, evidence: () => void, solo: (slot: number) => void,
 *   step: (by: number) => void, zoom: (by: number) => void, whole: () => void, copy: () => void, table: () => void,
 *   goTo: (screen: string) => void, prompt: () => void, theme: import("./theme.js").Theme}} Actions
 */

export class Keys {
  /** @param {Actions} actions */
  constructor(actions) {
    this.actions = actions;
    this.help = /** @type {HTMLDialogElement} */ (byId("help"));
    this.letters = /** @type {HTMLInputElement} */ (byId("letters"));
    this.letters.checked = recall("letters") !== "off";
    this.letters.addEventListener("change", () => remember("letters", this.letters.checked ? "on" : "off"));
    this._escapedAt = -TWICE_MS;
    this._goingAt = -GOTO_MS;
    byId("help-open").addEventListener("click", () => this.help.showModal());
    byId("theme").addEventListener("click", () => actions.theme.toggle());
    byId("evidence-toggle").addEventListener("click", () => actions.evidence());
    byId("stop").addEventListener("click", () => actions.stop());
    addEventListener("keydown", (event) => this._pressed(event));
  }

  /** @param {KeyboardEvent} event */
  _pressed(event) {
    if (event.defaultPrevented || this.help.open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      const again = event.timeStamp - this._escapedAt < TWICE_MS;
      this._escapedAt = event.timeStamp;
      (again ? this.actions.stopAll : this.actions.stop)();
      return;
    }
    const target = event.target instanceof HTMLElement ? event.target : null;
    if (target?.closest("input, textarea, select") || !this.letters.checked) return;
    if (event.key === " " && target?.closest("button, summary, a, .scroll, pre")) return; // it has a meaning of its own there
    const key = event.key.toLowerCase();
    const going = event.timeStamp - this._goingAt < GOTO_MS ? GOTO.get(key) : undefined;
    this._goingAt = key === "g" && !going ? event.timeStamp : -GOTO_MS;
    const act = going ? () => this.actions.goTo(going) : this._letter(key);
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** @param {string} key @returns {(() => void)|undefined} */
  _letter(key) {
    const { actions } = this;
    if (/^[1-6]$/.test(key)) return () => actions.solo(Number(key) - 1);
    return {
      "/": actions.prompt,
      "?": () => this.help.showModal(),
      "0": () => actions.solo(-1),
      " ": actions.freeze,
      "[": () => actions.zoom(1),
      "]": () => actions.zoom(-1),
      a: actions.table,
      arrowleft: () => actions.step(-1),
      arrowright: () => actions.step(1),
      c: actions.copy,
      e: actions.evidence,
      f: actions.whole,
      r: () => actions.theme.toggleMotion(),
      t: () => actions.theme.toggle(),
    }[key];
  }
}
