/** Numbers as people read them. An unknown value is always the dash; why it is unknown is said beside it. */

export const NONE = "—";

/** @param {unknown} value @returns {value is number} */
export const known = (value) => typeof value === "number" && Number.isFinite(value);

/** @param {unknown} value @param {number} digits */
export const fixed = (value, digits) => (known(value) ? value.toFixed(digits) : NONE);

/** @param {unknown} ms */
export const seconds = (ms) => (known(ms) ? `${(ms / 1000).toFixed(2)} s` : NONE);

/** @param {number} count @param {string} noun */
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** Sets text only when it differs. @param {Element|null} element @param {string} text */
export function put(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

/**
 * An element by its id; a missing one is a fault of the page.
 * @template {HTMLElement} T
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no #${id} in the page`);
  return /** @type {T} */ (element);
}
