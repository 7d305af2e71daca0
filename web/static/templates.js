/** What templates of all cards and screens use. A value in a template is text or an attribute, never markup. */

import { Directive, directive, html, noChange } from "./vendor/vendor.js";
import { GLYPHS } from "./shapes.js";

const RING = "M5 1.4a3.6 3.6 0 1 0 .001 0z"; // of a model without a slot

/** The sign of a slot, in its colour; an empty ring without one. @param {number} slot or −1 */
export const glyph = (slot) => html`<svg class="glyph" viewBox="0 0 10 10" aria-hidden="true" data-slot=${slot}><path d=${GLYPHS[slot] ?? RING}></path></svg>`;

/** A row of a table: its head, then its cells. @param {string[]} cells */
export const row = ([head, ...rest]) => html`<tr><th scope="row">${head}</th>${rest.map((text) => html`<td>${text}</td>`)}</tr>`;

class Styled extends Directive {
  /** @param {Record<string, string>} _properties */
  render(_properties) {
    return noChange;
  }

  /** @override @param {import("lit/directive.js").ElementPart} part @param {[Record<string, string>]} values */
  update(part, [properties]) {
    const { style } = /** @type {HTMLElement} */ (part.element);
    for (const [name, value] of Object.entries(properties)) if (style.getPropertyValue(name) !== value) style.setProperty(name, value);
    return noChange;
  }
}

/** Style by property: the policy of this page lets no style attribute through. Use: `<i ${styled({ width: "3px" })}>` */
export const styled = directive(Styled);
