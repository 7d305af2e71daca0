/** Reads an answer aloud as it comes, for those who ask for it: whole sentences of one lane, at most one piece a second. */

import { byId } from "./format.js";
import { recall, remember } from "./theme.js";
import { visible } from "./text.js";

const EVERY_MS = 1_000;
const PIECE_CHARS = 2_000; // of one piece; what a reader cannot say in time is left out at its beginning
const SENTENCE_END = /[.!?…。！？]["'”’)\]]*\s|\n/g;

/** Where the last finished sentence ends; 0 without one. @param {string} text */
export function sentencesEnd(text) {
  let end = 0;
  for (const found of text.matchAll(SENTENCE_END)) end = found.index + found[0].length;
  return end;
}

/** @typedef {import("./stream.js").Stream} Stream */

export class Reader {
  constructor() {
    this.box = byId("reader");
    this.wanted = /** @type {HTMLInputElement} */ (byId("aloud"));
    this.wanted.checked = recall("aloud") === "on";
    this.wanted.addEventListener("change", () => {
      remember("aloud", this.wanted.checked ? "on" : "off");
      this._stream = null;
    });
    /** @type {Stream|null} */
    this._stream = null;
    this._read = 0; // UTF-16 units of the stream's text
    this._spokeAt = -EVERY_MS;
  }

  /** 10 Hz. @param {Stream|null} stream the lane that is alone, or the only one @param {boolean} over it says no more @param {number} now */
  follow(stream, over, now) {
    if (!this.wanted.checked) return;
    if (stream !== this._stream) {
      const late = stream !== null && (over || stream.id === this._stream?.id || stream.chars > PIECE_CHARS);
      this._stream = stream;
      this._read = late ? stream.chars : 0; // what was said before is not said again
    }
    if (!stream || stream.chars <= this._read || now - this._spokeAt < EVERY_MS) return;
    const fresh = stream.segments.filter(({ start, text }) => start + text.length > this._read);
    const spoken = (/** @type {import("./stream.js").Segment} */ { kind, text: all }) => (kind === "answer" ? all : " ".repeat(all.length)); // thinking is not read out
    const text = fresh.map((segment) => spoken(segment).slice(Math.max(0, this._read - segment.start))).join("");
    const end = over ? text.length : sentencesEnd(text);
    if (end === 0) return;
    this._read = Math.max(this._read, fresh[0].start) + end;
    this._spokeAt = now;
    const said = visible(text.slice(0, end)).trim();
    if (said) this.box.textContent = said.slice(-PIECE_CHARS);
  }
}
