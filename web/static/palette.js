/** Every action, screen, model and session in one list that is typed into (Ctrl K). */

import { element } from "./elements.js";
import { byId, put } from "./format.js";
import { visible } from "./text.js";

const SHOWN = 60;

/** @typedef {{kind: "action"|"screen"|"model"|"session", name: string, keys?: string, act: () => void}} Command */

/**
 * Those that have every word of what was typed, the ones that begin with it first.
 * @param {Command[]} commands @param {string} typed @returns {Command[]}
 */
export function matching(commands, typed) {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  const found = commands.filter(({ kind, name }) => words.every((word) => `${kind} ${name}`.toLowerCase().includes(word)));
  const first = (/** @type {Command} */ { name }) => Number(words.length > 0 && !name.toLowerCase().startsWith(words[0]));
  return found.sort((a, b) => first(a) - first(b));
}

export class CommandPalette {
  /** @param {() => Command[]} commands what can be done now */
  constructor(commands) {
    this.commands = commands;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("palette"));
    this.input = /** @type {HTMLInputElement} */ (byId("palette-input"));
    this.list = byId("palette-list");
    /** @type {Command[]} */
    this._all = [];
    /** @type {Command[]} */
    this._found = [];
    this._at = 0;
    this.input.addEventListener("input", () => this._filter());
    this.input.addEventListener("keydown", (event) => this._pressed(event));
    this.list.addEventListener("click", (event) => {
      const option = event.target instanceof Element ? event.target.closest("li") : null;
      if (option) this._run(Number(option.dataset.at));
    });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close()); // beside the list
    byId("palette-open").addEventListener("click", () => this.toggle());
  }

  toggle() {
    if (this.dialog.open) {
      this.dialog.close();
      return;
    }
    this._all = this.commands();
    this.input.value = "";
    this._filter();
    this.dialog.showModal();
    this.input.focus();
  }

  _filter() {
    this._found = matching(this._all, this.input.value);
    const rows = this._found.slice(0, SHOWN).map(({ kind, name, keys }, i) => {
      const label = element("span", "name", visible(name));
      const how = keys ? [element("kbd", "", keys)] : [];
      return element("li", { role: "option", id: `command-${i}`, "data-at": String(i), "aria-selected": "false" }, label, ...how, element("span", "quiet small", kind));
    });
    this.list.replaceChildren(...rows);
    const rest = this._found.length - rows.length;
    put(byId("palette-count"), rows.length === 0 ? "Nothing of that name." : rest > 0 ? `${rows.length} of ${this._found.length}: type more to see the others.` : `${rows.length} found`);
    this._select(0);
  }

  /** @param {KeyboardEvent} event */
  _pressed(event) {
    const last = this.list.childElementCount - 1;
    const to = { ArrowDown: this._at >= last ? 0 : this._at + 1, ArrowUp: this._at <= 0 ? last : this._at - 1, PageDown: Math.min(last, this._at + 8), PageUp: Math.max(0, this._at - 8) }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this._select(to);
    } else if (event.key === "Enter" && !event.isComposing) {
      event.preventDefault();
      this._run(this._at);
    }
  }

  /** @param {number} at */
  _select(at) {
    this.list.children[this._at]?.setAttribute("aria-selected", "false");
    this._at = at;
    const option = this.list.children[at];
    if (!option) {
      this.input.removeAttribute("aria-activedescendant");
      return;
    }
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", option.id);
  }

  /** @param {number} at */
  _run(at) {
    const command = this._found[at];
    if (!command) return;
    this.dialog.close();
    command.act();
  }
}
