/** Saves the shown session as a file, when somebody asks for it. Files are made of what came; nothing is fetched. */

import { element } from "./elements.js";
import { beganMs, csv, decoded, fileName, trace } from "./export.js";
import { byId, put } from "./format.js";

const NO_FRAMES = "This page has no frames of it: it ended before the page was opened, or there was no room for it any more.";
const CAPTION_PX = 26;

/** @typedef {import("./session.js").Session} Session */
/** @typedef {"jsonl"|"csv"|"trace"|"png"} Kind */

/** @type {{kind: Kind, name: string, words: string}[]} */
export const FILES = [
  { kind: "jsonl", name: "Session, JSONL", words: "every frame as it came, with the text of the answer; Replay opens it" },
  { kind: "csv", name: "Raw signals, CSV", words: "a token a line: position, time, Δt, log p, p, entropy, stall, E; no text" },
  { kind: "trace", name: "Trace, JSON", words: "for Perfetto and chrome://tracing: tokens, E, DI, stalls; no text" },
  { kind: "png", name: "Field, PNG", words: "the picture as it stands now" },
];

/** @param {Blob} blob @param {string} name */
function download(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser has taken it by then
}

/** @param {HTMLCanvasElement} canvas @param {import("./theme.js").Palette} palette @param {string} caption @param {string} marks @returns {Promise<Blob|null>} */
export function picture(canvas, palette, caption, marks) {
  const made = element("canvas");
  const scale = canvas.width / Math.max(1, canvas.clientWidth);
  made.width = canvas.width;
  made.height = canvas.height + Math.round(CAPTION_PX * scale);
  const ctx = /** @type {CanvasRenderingContext2D} */ (made.getContext("2d"));
  ctx.fillStyle = palette.panel;
  ctx.fillRect(0, 0, made.width, made.height);
  ctx.drawImage(canvas, 0, 0);
  ctx.setTransform(scale, 0, 0, scale, 0, canvas.height);
  ctx.textBaseline = "middle";
  ctx.font = `700 11px ${palette.sans}`;
  ctx.fillStyle = palette.gold;
  ctx.fillText(marks, 12, CAPTION_PX / 2);
  const left = marks ? 24 + ctx.measureText(marks).width : 12;
  ctx.font = `11px ${palette.mono}`;
  ctx.fillStyle = palette.muted;
  ctx.fillText(caption, left, CAPTION_PX / 2);
  return new Promise((done) => made.toBlob(done, "image/png"));
}

export class Saving {
  /**
   * @param {{session: () => Session|null, framesOf: (id: string) => Promise<string>|null, canvas: HTMLCanvasElement,
   *   palette: () => import("./theme.js").Palette, replayed: () => boolean, say: (words: string) => void}} page
   */
  constructor(page) {
    this.page = page;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("saving"));
    const rows = FILES.map(({ kind, name, words }) => {
      const button = element("button", { class: "button", type: "button", "data-kind": kind, "aria-describedby": `save-${kind}` }, name);
      button.addEventListener("click", () => void this.save(kind));
      return element("li", "", button, element("span", { class: "quiet", id: `save-${kind}` }, words));
    });
    byId("saving-files").replaceChildren(...rows);
    byId("saving-open").addEventListener("click", () => this.ask());
  }

  /** 10 Hz. */
  show() {
    /** @type {HTMLButtonElement} */ (byId("saving-open")).disabled = this.page.session() === null;
  }

  ask() {
    const session = this.page.session();
    if (!session || this.dialog.open) return;
    const frames = this.page.framesOf(session.id) !== null;
    for (const button of this.dialog.querySelectorAll("button")) if (button.dataset.kind && button.dataset.kind !== "png") button.disabled = !frames;
    put(byId("saving-of"), `Session ${session.id.slice(0, 8)}${session.active && !session.recorded ? ", as far as it has come" : ""}.`);
    this._note(frames ? "" : NO_FRAMES);
    this.dialog.showModal();
  }

  /** @param {Kind} kind */
  async save(kind) {
    const session = this.page.session();
    if (!session) return;
    try {
      const name = await this._save(session, kind);
      this._note(name ? `Saved as ${name}` : NO_FRAMES);
    } catch (fault) {
      this._note(`It could not be made: ${fault instanceof Error ? fault.message : fault}`);
    }
  }

  /** @param {Session} session @param {Kind} kind @returns {Promise<string>} the file's name, empty where there is nothing to save */
  async _save(session, kind) {
    const text = await this.page.framesOf(session.id);
    const frames = text ? decoded(text, session.id) : null;
    const atMs = frames ? beganMs(frames) : Date.now();
    if (kind === "png") {
      const name = fileName(session.id, atMs, "-field.png");
      const marks = [this.page.replayed() ? "REPLAY" : "", session.synthetic ? "SYNTHETIC" : ""].filter(Boolean).join("  ");
      const image = await picture(this.page.canvas, this.page.palette(), name.replace("-field.png", ""), marks);
      if (!image) throw new Error("the browser gave no picture");
      download(image, name);
      return name;
    }
    if (!text || !frames) return "";
    const [rest, type, body] = kind === "jsonl" ? [".jsonl", "application/x-ndjson", text] : kind === "csv" ? [".csv", "text/csv;charset=utf-8", csv(frames)] : ["-trace.json", "application/json", trace(frames)];
    const name = fileName(session.id, atMs, rest);
    download(new Blob([body], { type }), name);
    return name;
  }

  /** @param {string} words */
  _note(words) {
    put(byId("saving-note"), words);
    if (words) this.page.say(words);
  }
}
