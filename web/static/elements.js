/** Making elements without markup: text stays text, whatever it says. */

import { GLYPHS } from "./shapes.js";

const SVG = "http://www.w3.org/2000/svg";

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag @param {string | Record<string, string>} [attributes] a class, or attributes by name @param {...(Node|string)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function element(tag, attributes = "", ...children) {
  const made = document.createElement(tag);
  if (typeof attributes === "string") {
    if (attributes) made.className = attributes;
  } else for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** The sign of a slot, in its colour; an empty ring without one. @param {number} slot or −1 */
export function sign(slot) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "glyph");
  svg.setAttribute("viewBox", "0 0 10 10");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", GLYPHS[slot] ?? "M5 1.4a3.6 3.6 0 1 0 .001 0z");
  svg.dataset.slot = String(slot);
  svg.append(path);
  return svg;
}

/**
 * A table whose cells are put in place: rows and cells stay the same elements.
 * @param {HTMLElement} body @param {string[][]} rows the first cell of each is its head
 */
export function fill(body, rows) {
  while (body.childElementCount > rows.length) body.lastElementChild?.remove();
  while (body.childElementCount < rows.length) {
    const cells = rows[body.childElementCount].slice(1).map(() => element("td"));
    body.append(element("tr", "", element("th", { scope: "row" }), ...cells));
  }
  rows.forEach((cells, i) => {
    cells.forEach((text, k) => {
      const cell = body.children[i].children[k];
      if (cell && cell.textContent !== text) cell.textContent = text;
    });
  });
}
