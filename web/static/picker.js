/** Mode and models of the prompt form: one model, or the members of a council, as many as the tier lets work at once. */

import { element } from "./elements.js";
import { allowance } from "./features.js";
import { byId, put } from "./format.js";
import { LANES } from "./session.js";
import { recall, remember } from "./theme.js";
import { visible } from "./text.js";

/** @typedef {import("./api.js").Model} Model */
/** @typedef {"single"|"council"|"turbo"} Mode */

const MEMBERS_MIN = 2;
const OWN = "embedded"; // the built-in demonstration models' runtime

export class Picker {
  /** @param {() => void} onChange */
  constructor(onChange) {
    this.onChange = onChange;
    this.model = /** @type {HTMLSelectElement} */ (byId("model"));
    this.modes = byId("modes");
    this.box = /** @type {HTMLDetailsElement} */ (byId("picker"));
    this.list = byId("picker-list");
    /** @type {Set<string>} */
    this.members = new Set((recall("members") ?? "").split("\n").filter(Boolean));
    /** @type {Mode} */
    this.mode = "single";
    this._own = false; // somebody chose here: an empty choice is one too
    this._listed = "";
    this._cap = LANES;
    this.model.addEventListener("change", () => {
      remember("model", this.model.value);
      onChange();
    });
    this.modes.addEventListener("change", (event) => this._turn(/** @type {Mode} */ (/** @type {HTMLInputElement} */ (event.target).value)));
    this.list.addEventListener("change", (event) => this._check(/** @type {HTMLInputElement} */ (event.target)));
    this.box.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.box.open) return;
      event.stopPropagation(); // closes the list, and stops nothing
      this.box.open = false;
      this.box.querySelector("summary")?.focus();
    });
    document.addEventListener("pointerdown", (event) => {
      if (this.box.open && !this.box.contains(/** @type {Node} */ (event.target))) this.box.open = false;
    });
  }

  /** What the engine can do is known. @param {import("./features.js").Features} features @param {import("./api.js").Bootstrap|null} engine */
  allow(features, engine) {
    const { tier, models, turbo } = allowance(engine);
    this._cap = Math.min(LANES, models ?? LANES);
    this.modes.hidden = !features.modes.has("council");
    const input = /** @type {HTMLInputElement} */ (byId("mode-turbo"));
    input.disabled = !features.modes.has("turbo") || turbo === false;
    const why = turbo === false ? `Tier ${tier} has no turbo: it needs a larger machine.` : "A council that may use every place the tier has.";
    /** @type {HTMLElement} */ (input.parentElement).title = why;
    const cap = models === null ? "" : `Tier ${tier} lets at most ${models} models work at once.`;
    put(byId("picker-cap"), cap);
    const wanted = recall("mode");
    if (!this.modes.hidden && (wanted === "council" || (wanted === "turbo" && !input.disabled))) this._turn(wanted);
    this._show();
  }

  /** @param {Map<string, Model>} models @param {string} wanted */
  listed(models, wanted) {
    const names = JSON.stringify([...models.values()].map(({ name, runtime }) => [runtime, name]));
    if (names !== this._listed) this._make(models);
    this._listed = names; // what did not change stays, with the focus in it
    const usual = [...models.values()].find((model) => model.runtime !== OWN) ?? [...models.values()][0];
    const chosen = wanted && models.has(wanted) ? wanted : (usual?.name ?? "");
    if (this.model.value !== chosen) this.model.value = chosen;
    this.model.disabled = models.size === 0;
    if (this.members.size > 0) this._own &&= [...this.members].some((name) => models.has(name));
    for (const name of this.members) if (!models.has(name)) this.members.delete(name);
    if (this.members.size === 0 && !this._own) for (const { name, runtime } of models.values()) if (runtime === usual?.runtime && this.members.size < 3) this.members.add(name);
    this._show();
  }

  /** @param {Map<string, Model>} models */
  _make(models) {
    const groups = new Map();
    for (const { name, runtime } of models.values()) {
      if (!groups.has(runtime)) groups.set(runtime, []);
      groups.get(runtime).push(new Option(visible(name), name));
    }
    this.model.replaceChildren(...[...groups].map(([runtime, options]) => group(runtime, options)));
    this.list.replaceChildren(...[...models.values()].map(({ name, runtime }) => row(name, runtime)));
  }

  /** One model is to be asked. @param {string} name */
  choose(name) {
    this._turn("single");
    this.model.value = name;
    remember("model", name);
  }

  /** @returns {{mode: Mode, model?: string, models?: string[]}} */
  get request() {
    return this.mode === "single" ? { mode: this.mode, model: this.model.value } : { mode: this.mode, models: [...this.members] };
  }

  /** What keeps this choice from being run; empty when nothing does. */
  get trouble() {
    return this.mode !== "single" && this.members.size < MEMBERS_MIN ? `A council needs at least ${MEMBERS_MIN} models: pick them under Models.` : "";
  }

  /** @param {Mode} mode */
  _turn(mode) {
    this.mode = mode;
    remember("mode", mode);
    /** @type {HTMLInputElement} */ (byId(`mode-${mode}`)).checked = true;
    this._show();
    this.onChange();
  }

  /** @param {HTMLInputElement} input */
  _check(input) {
    this._own = true;
    if (input.checked) this.members.add(input.value);
    else this.members.delete(input.value);
    remember("members", [...this.members].join("\n"));
    this._show();
    this.onChange();
  }

  _show() {
    const many = this.mode !== "single";
    byId("model-label").hidden = many;
    this.box.hidden = !many;
    const full = this.members.size >= this._cap;
    for (const input of this.list.querySelectorAll("input")) {
      input.checked = this.members.has(input.value);
      input.disabled = full && !input.checked;
    }
    put(byId("picker-count"), `${this.members.size} of ${this._cap}`);
    put(byId("picker-full"), full ? "All places are taken: uncheck one to pick another." : "");
  }
}

/** @param {string} runtime @param {HTMLOptionElement[]} options */
function group(runtime, options) {
  const box = document.createElement("optgroup");
  box.label = runtime === OWN ? "built-in demonstration models" : runtime;
  box.append(...options);
  return box;
}

/** @param {string} name @param {string} runtime */
function row(name, runtime) {
  const input = element("input", { type: "checkbox", value: name });
  return element("li", "", element("label", "", input, element("span", "name", visible(name)), element("span", "quiet", runtime)));
}
