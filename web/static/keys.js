/** Keys, the theme button and the help dialog. Single letters are dead while somebody types, and can be switched off. */

import { element } from "./elements.js";
import { byId } from "./format.js";
import { recall, remember } from "./theme.js";

const TWICE_MS = 1_000;
const GOTO_MS = 1_500;
export const GOTO = new Map([["s", "stream"], ["r", "replay"], ["p", "pool"], ["g", "gateway"], ["c", "classifier"], ["e", "events"]]);

/**
 * @typedef {{stop: () => void, stopAll: () => void, freeze: () => void, evidence: () => void, solo: (slot: number) => void,
 *   step: (by: number) => void, zoom: (by: number) => void, whole: () => void, copy: () => void, table: () => void,
 *   palette: () => void, goTo: (screen: string) => void, prompt: () => void, help: () => void, theme: import("./theme.js").Theme}} Actions
 */

/** @typedef {{shown: string[], words: string, on?: string[], act?: (actions: Actions, key: string) => void}} Key `on`: what the keyboard calls it */

/** Every key, in the order of the list in the help, which is made of this. Those without `act` are seen to elsewhere. @type {Key[]} */
export const KEYS = [
  { shown: ["Ctrl", "↵"], words: "run the prompt" },
  { shown: ["Esc"], words: "stop the session shown; twice: all" },
  { shown: ["Ctrl", "K"], words: "every command, screen, model and session" },
  { shown: ["Space"], words: "freeze the field, and go on; in a replay: pause, and play", on: [" "], act: ({ freeze }) => freeze() },
  { shown: ["1", "…", "6"], words: "one lane alone", on: ["1", "2", "3", "4", "5", "6"], act: ({ solo }, key) => solo(Number(key) - 1) },
  { shown: ["0"], words: "all lanes", on: ["0"], act: ({ solo }) => solo(-1) },
  { shown: ["E"], words: "evidence: click a token in the field or in the text", on: ["e"], act: ({ evidence }) => evidence() },
  { shown: ["←"], words: "the token before", on: ["arrowleft"], act: ({ step }) => step(-1) },
  { shown: ["→"], words: "the token after", on: ["arrowright"], act: ({ step }) => step(1) },
  { shown: ["C"], words: "copy the evidence as JSON", on: ["c"], act: ({ copy }) => copy() },
  { shown: ["["], words: "less time in the field", on: ["["], act: ({ zoom }) => zoom(1) },
  { shown: ["]"], words: "more time in the field", on: ["]"], act: ({ zoom }) => zoom(-1) },
  { shown: ["A"], words: "the field as a table, and back", on: ["a"], act: ({ table }) => table() },
  { shown: ["F"], words: "the field on the whole screen", on: ["f"], act: ({ whole }) => whole() },
  { shown: ["G", ...[...GOTO.keys()].map((key) => key.toUpperCase())], words: `G, then: ${[...GOTO.values()].join(", ")}` },
  { shown: ["/"], words: "go to the prompt", on: ["/"], act: ({ prompt }) => prompt() },
  { shown: ["T"], words: "dark or light", on: ["t"], act: ({ theme }) => theme.toggle() },
  { shown: ["R"], words: "reduce motion", on: ["r"], act: ({ theme }) => theme.toggleMotion() },
  { shown: ["?"], words: "this page", on: ["?"], act: ({ help }) => help() },
];

/** @param {Key} key */
function listed({ shown, words }) {
  const caps = shown.flatMap((cap) => [cap === "…" ? cap : element("kbd", "", cap), " "]);
  return element("tr", "", element("th", { scope: "row" }, ...caps), element("td", "", words));
}

export class Keys {
  /** @param {Omit<Actions, "help">} actions */
  constructor(actions) {
    const help = /** @type {HTMLDialogElement} */ (byId("help"));
    this.actions = { ...actions, help: () => help.showModal() };
    byId("keys").replaceChildren(...KEYS.map(listed));
    this.letters = /** @type {HTMLInputElement} */ (byId("letters"));
    this.letters.checked = recall("letters") !== "off";
    this.letters.addEventListener("change", () => remember("letters", this.letters.checked ? "on" : "off"));
    this._escapedAt = -TWICE_MS;
    this._goingAt = -GOTO_MS;
    byId("help-open").addEventListener("click", () => this.actions.help());
    byId("theme").addEventListener("click", () => actions.theme.toggle());
    byId("evidence-toggle").addEventListener("click", () => actions.evidence());
    byId("stop").addEventListener("click", () => actions.stop());
    addEventListener("keydown", (event) => this._pressed(event));
  }

  /** @param {KeyboardEvent} event */
  _pressed(event) {
    if (event.defaultPrevented) return;
    if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey) {
      event.preventDefault(); // the browser has a meaning of its own for it
      if (!document.querySelector("dialog[open]:not(#palette)")) this.actions.palette();
      return;
    }
    if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      const again = event.timeStamp - this._escapedAt < TWICE_MS;
      this._escapedAt = event.timeStamp;
      (again ? this.actions.stopAll : this.actions.stop)();
      return;
    }
    const target = event.target instanceof HTMLElement ? event.target : null;
    const field = target?.closest("input, textarea, select");
    if (field?.checkVisibility() || !this.letters.checked) return; // that of a dialog just closed has the focus until the next paint
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
    const act = KEYS.find(({ on }) => on?.includes(key))?.act;
    return act && (() => act(this.actions, key));
  }
}
