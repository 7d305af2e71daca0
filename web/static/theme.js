/** Dark or light, motion or less of it, and the palette as the canvas needs it. Preferences are kept; text never is. */

/**
 * @typedef {{panel: string, raised: string, line: string, text: string, muted: string, danger: string, ens: string,
 *   gold: string, violet: string, models: string[], goldRgb: number[], violetRgb: number[], dark: boolean, sans: string,
 *   mono: string}} Palette `models`: one colour per slot
 */

const COLOURS = /** @type {const} */ (["panel", "raised", "line2", "text", "muted", "danger", "ens", "gold", "violet"]);
const MODELS = ["m1", "m2", "m3", "m4", "m5", "m6"];

/** @param {string} name @returns {string|null} */
export function recall(name) {
  try {
    return localStorage.getItem(`wf.${name}`);
  } catch {
    return null; // storage can be switched off
  }
}

/** @param {string} name @param {string} value */
export function remember(name, value) {
  try {
    localStorage.setItem(`wf.${name}`, value);
  } catch {
    // then it lasts as long as the page
  }
}

export class Theme {
  /** @param {() => void} changed called after every change of colour */
  constructor(changed) {
    this._light = matchMedia("(prefers-color-scheme: light)");
    this._still = matchMedia("(prefers-reduced-motion: reduce)");
    this._forced = matchMedia("(forced-colors: active)");
    this._chosenStill = recall("motion") === "reduce";
    this._root = document.documentElement;
    const chosen = recall("theme");
    if (chosen === "dark" || chosen === "light") this._root.dataset.theme = chosen;
    this._changed = changed;
    for (const query of [this._light, this._forced]) query.addEventListener("change", () => this._reread());
    this.palette = readPalette(this.dark);
  }

  get dark() {
    return (this._root.dataset.theme ?? (this._light.matches ? "light" : "dark")) === "dark";
  }

  get reducedMotion() {
    return this._still.matches || this._chosenStill;
  }

  toggle() {
    this.choose(this.dark ? "light" : "dark");
  }

  /** @param {"dark"|"light"} theme */
  choose(theme) {
    this._root.dataset.theme = theme;
    remember("theme", theme);
    this._reread();
  }

  /** What was chosen here, for the address of the page; empty where the system decides. */
  get chosen() {
    return { theme: this._root.dataset.theme ?? "", still: this._chosenStill };
  }

  /** The person's own switch; what the system asks for still holds. */
  toggleMotion() {
    this._chosenStill = !this._chosenStill;
    remember("motion", this._chosenStill ? "reduce" : "");
    this._changed();
  }

  _reread() {
    this.palette = readPalette(this.dark);
    this._changed();
  }
}

/** Resolves the CSS variables to plain colours. @param {boolean} dark @returns {Palette} */
function readPalette(dark) {
  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);
  const read = (/** @type {string} */ name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const [panel, raised, line, text, muted, danger, ens, gold, violet] = COLOURS.map(read);
  const models = MODELS.map(read);
  probe.remove();
  const styles = getComputedStyle(document.documentElement);
  const sans = styles.getPropertyValue("--sans");
  const mono = styles.getPropertyValue("--mono");
  const [goldRgb, violetRgb] = [gold, violet].map((colour) => (colour.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number));
  return { panel, raised, line, text, muted, danger, ens, gold, violet, models, goldRgb, violetRgb, dark, sans, mono };
}
