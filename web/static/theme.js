/** Dark or light, motion or less of it, and the palette as the canvas needs it. Preferences are kept; text never is. */

/**
 * @typedef {{panel: string, raised: string, line: string, text: string, muted: string, m1: string, danger: string,
 *   dark: boolean, sans: string, mono: string}} Palette
 */

const COLOURS = /** @type {const} */ (["panel", "raised", "line2", "text", "muted", "m1", "danger"]);

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
    this._root.dataset.theme = this.dark ? "light" : "dark";
    remember("theme", this._root.dataset.theme);
    this._reread();
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
  const [panel, raised, line, text, muted, m1, danger] = COLOURS.map(read);
  probe.remove();
  const styles = getComputedStyle(document.documentElement);
  const sans = styles.getPropertyValue("--sans");
  const mono = styles.getPropertyValue("--mono");
  return { panel, raised, line, text, muted, m1, danger, dark, sans, mono };
}
