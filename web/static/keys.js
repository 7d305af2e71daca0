/** Keys, the theme button and the help dialog. Single letters are dead while somebody types, and can be switched off. */

import { byId } from "./format.js";
import { recall, remember } from "./theme.js";

/** @typedef {{stop: () => void, theme: import("./theme.js").Theme, evidence: import("./evidence.js").Evidence, composer: import("./composer.js").Composer}} Actions */

export class Keys {
  /** @param {Actions} actions */
  constructor(actions) {
    this.actions = actions;
    this.help = /** @type {HTMLDialogElement} */ (byId("help"));
    this.letters = /** @type {HTMLInputElement} */ (byId("letters"));
    this.letters.checked = recall("letters") !== "off";
    this.letters.addEventListener("change", () => remember("letters", this.letters.checked ? "on" : "off"));
    byId("help-open").addEventListener("click", () => this.help.showModal());
    byId("theme").addEventListener("click", () => actions.theme.toggle());
    byId("stop").addEventListener("click", () => actions.stop());
    addEventListener("keydown", (event) => this._pressed(event));
  }

  /** @param {KeyboardEvent} event */
  _pressed(event) {
    if (event.defaultPrevented || this.help.open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      this.actions.stop();
      return;
    }
    const typing = event.target instanceof HTMLElement && event.target.closest("input, textarea, select");
    if (typing || !this.letters.checked) return;
    const act = this._letter(event.key.toLowerCase());
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** @param {string} key @returns {(() => void)|undefined} */
  _letter(key) {
    const { theme, evidence, composer } = this.actions;
    return {
      "/": () => composer.prompt.focus(),
      "?": () => this.help.showModal(),
      e: () => evidence.toggle(),
      t: () => theme.toggle(),
      r: () => theme.toggleMotion(),
    }[key];
  }
}
