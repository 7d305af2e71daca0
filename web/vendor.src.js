// All that the dashboard has from others, in one file: build_vendor.mjs makes static/vendor/vendor.js of this.

export { html, nothing, render, svg } from "lit/html.js"; // templates whose text is text; without LitElement, nobody here needs it
export { noChange } from "lit/html.js";
export { Directive, directive } from "lit/directive.js";
export { live } from "lit/directives/live.js";
export { repeat } from "lit/directives/repeat.js";
export { batch, computed, effect, signal } from "@preact/signals-core"; // slow state
export { default as uPlot } from "uplot"; // charts with axes
