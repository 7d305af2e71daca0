/** What changes slowly, as signals: a card that shows some of it draws itself again when it is another. What the field shows never comes here. */

import { effect, signal } from "./vendor/vendor.js";

/** @typedef {import("./api.js").Listing} Listing */
/** @typedef {import("./session.js").Session} Session */

/** The screen that is shown. */
export const screen = signal("stream");

const wide = matchMedia("(min-width: 1181px)");
/** There is room for the cards beside the stream. */
export const roomy = signal(wide.matches);
wide.addEventListener("change", () => (roomy.value = wide.matches));

/** What /api/bootstrap told of this start. */
export const engine = signal(/** @type {import("./api.js").Bootstrap|null} */ (null));
export const health = signal(/** @type {import("./api.js").Health|null} */ (null));
export const listing = signal(/** @type {Listing|null} */ (null));
/** What events said of models after the last listing; replaced, never changed. */
export const heard = signal(/** @type {ReadonlyMap<string, {state: string, reason: string|null, progress: number|null}>} */ (new Map()));
/** Models of running sessions, and the slot that each has in the session shown. */
export const streaming = signal(/** @type {readonly string[]} */ ([]));
export const slots = signal(/** @type {ReadonlyMap<string, number>} */ (new Map()));
/** What GET /usage and GET /stats told; `trouble`: why they last did not. */
export const usage = signal(/** @type {any} */ (null));
export const stats = signal(/** @type {any} */ (null));
export const trouble = signal("");
/** Whether this engine keeps a ledger. */
export const ledger = signal(false);
export const broker = signal(/** @type {import("./api.js").BrokerState|null} */ (null));
/** The classifier of this engine, and what it last answered to this page. */
export const classifier = signal(/** @type {{info: import("./api.js").ServiceInfo, taxonomy: import("./api.js").Taxonomy}|null} */ (null));
export const classified = signal(/** @type {{answer: import("./api.js").Classified, ms: number, sent: number}|null} */ (null));

/**
 * What the page knows by itself. 10 Hz: a signal is set only when it is another.
 * @param {string} name of the screen @param {import("./api.js").Bootstrap|null} start @param {Iterable<Session>} sessions @param {Session|null} shown
 */
export function tell(name, start, sessions, shown) {
  screen.value = name;
  engine.value = start;
  const speaking = [...sessions].filter(({ active }) => active).flatMap(({ streams }) => streams.filter(({ done, error }) => !done && !error).map(({ model }) => model));
  if (speaking.join("\n") !== streaming.peek().join("\n")) streaming.value = speaking;
  const seats = new Map(shown?.plural && shown.active ? shown.streams.map(({ model, slot }) => [model, slot]) : []);
  const before = slots.peek();
  if (seats.size !== before.size || [...seats].some(([model, slot]) => before.get(model) !== slot)) slots.value = seats;
}

/**
 * Draws while a screen is shown, and again when something it read is another.
 * @param {string} name @param {() => void} draw
 */
export function whileShown(name, draw) {
  effect(() => {
    if (screen.value === name) draw();
  });
}

/** The same for a card beside the stream. @param {() => void} draw */
export function whileBeside(draw) {
  effect(() => {
    if (screen.value === "stream" && roomy.value) draw();
  });
}
