/** What keeps the engine from helping, what was tried and what to do next; and who can reach what. */

import { leaving } from "./broker.js";
import { byId, NONE, put } from "./format.js";
import { visible } from "./text.js";

/** @typedef {import("./readiness.js").Readiness} Readiness */
/** @typedef {import("./downloads.js").Downloads} Downloads */

const TITLES = new Map([
  ["starting", "Looking for a model runtime"],
  ["no_runtime", "No model runtime answers"],
  ["no_models", "No model to ask yet"],
]);
const WAIT = "Nothing to do: this page goes on by itself.";
const DEMONSTRATIONS = "Meanwhile the built-in demonstration models answer: they show the engine, they cannot help you.";

/** The sentence for screen readers when the state changes. @param {string} before @param {string} after */
export function spoken(before, after) {
  if (after === "ready") return before ? "The engine is ready" : "";
  return TITLES.get(after) ?? after;
}

/**
 * 10 Hz. Hidden while there is nothing to say.
 * @param {Readiness} readiness @param {Downloads} downloads @param {boolean} demonstrations whether built-in models can be asked @param {number} now
 */
export function showGuide(readiness, downloads, demonstrations, now) {
  const { state, health } = readiness;
  const box = byId("guide");
  box.hidden = !TITLES.has(state);
  if (box.hidden || !health) return;
  const seconds = state === "starting" ? ` · ${((now - readiness.since) / 1000).toFixed(1)} s` : "";
  put(byId("guide-title"), `${TITLES.get(state)}${seconds}`);
  prose(byId("guide-next"), health.next ?? WAIT);
  put(byId("guide-demonstrations"), demonstrations ? DEMONSTRATIONS : "");
  tried(readiness);
  const name = health.suggested_model ?? "";
  const button = byId("guide-download");
  button.hidden = state !== "no_models" || !name || downloads.busy(name);
  put(button, `Download ${name}`);
  const again = /** @type {HTMLButtonElement} */ (byId("guide-again"));
  again.hidden = state === "starting";
  again.disabled = readiness.asking;
}

/** @param {Readiness} readiness */
function tried({ wanted }) {
  const list = byId("guide-tried");
  const lines = wanted.map(({ name, up, reason, url }) => {
    if (up === false && reason?.startsWith(name)) return reason; // it speaks for itself
    const found = up === null ? "is being asked" : up ? "answers" : "does not answer";
    return `${name} ${found}${reason && up !== null ? `: ${reason}` : url ? ` at ${url}` : ""}`;
  });
  while (list.childElementCount > lines.length) list.lastElementChild?.remove();
  lines.forEach((line, i) => prose(list.children[i] ?? list.appendChild(document.createElement("li")), line));
}

/** Who may connect, and where prompts go. 10 Hz. @param {Readiness} readiness @param {number|null} bytesOut what left this machine since the start */
export function showReach({ health, away }, bytesOut) {
  const remote = health?.remote === true;
  byId("remote").hidden = !remote;
  byId("away").hidden = away.length === 0;
  put(byId("away-text"), `Prompts for ${away.map(visible).join(", ")} leave this machine.`);
  const words = health === null ? NONE : away.length > 0 ? `Not only local: ${away.map(visible).join(", ")}` : remote ? "Open to other machines" : "Local only";
  put(byId("local"), bytesOut === null ? words : `${words} · ${leaving(bytesOut)} out`);
  byId("local-pill").classList.toggle("remote", remote || away.length > 0);
  put(byId("local-status"), words);
}

/** Text with its `commands` set as code. @param {Element} box @param {string} text */
function prose(box, text) {
  const shown = visible(text);
  if (box.getAttribute("data-text") === shown) return;
  box.setAttribute("data-text", shown);
  const parts = shown.split("`");
  const paired = parts.length % 2 === 1;
  box.replaceChildren(...parts.map((part, i) => (paired && i % 2 === 1 ? code(part) : document.createTextNode(part))));
}

/** @param {string} text */
function code(text) {
  const element = document.createElement("code");
  element.textContent = text;
  return element;
}
