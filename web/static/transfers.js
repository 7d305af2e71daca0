/** The rows of downloads: a bar, what is going on in words, and what can be done about it. 10 Hz. */

import { byId, known, put } from "./format.js";
import { visible } from "./text.js";

/** @typedef {import("./downloads.js").Download} Download */
/** @typedef {import("./downloads.js").Downloads} Downloads */
/** @typedef {{box: HTMLElement, bar: HTMLProgressElement, text: HTMLElement, act: HTMLButtonElement, away: HTMLButtonElement}} Row */

/** @param {number} count */
export function bytes(count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(2)} GB`;
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)} MB` : `${Math.round(count / 1e3)} kB`;
}

/** @param {Download} download */
function words({ state, status, progress, doneBytes, totalBytes, message, abort }) {
  if (state === "failed") return `failed: ${visible(message)}`;
  if (state === "stopped") return "stopped; what came is kept, and the next download goes on from it";
  const part = known(progress) ? `${Math.floor(progress * 100)} %` : "";
  const amount = known(doneBytes) && known(totalBytes) ? `${bytes(doneBytes)} of ${bytes(totalBytes)}` : "";
  return [part, amount, visible(status), abort ? "" : "started elsewhere"].filter(Boolean).join(" · ");
}

export class Transfers {
  /** @param {Downloads} downloads */
  constructor(downloads) {
    this.downloads = downloads;
    this.list = byId("downloads");
    /** @type {Map<string, Row>} */
    this._rows = new Map();
  }

  show() {
    const { rows } = this.downloads;
    this.list.hidden = rows.size === 0;
    for (const [name, row] of this._rows) {
      if (rows.has(name)) continue;
      row.box.remove();
      this._rows.delete(name);
    }
    for (const download of rows.values()) this._update(this._rows.get(download.name) ?? this._add(download.name), download);
  }

  /** @param {string} name @returns {Row} */
  _add(name) {
    const box = document.createElement("div");
    box.className = "transfer";
    const label = document.createElement("b");
    label.textContent = visible(name);
    const bar = document.createElement("progress");
    bar.max = 1;
    bar.setAttribute("aria-label", `Download of ${visible(name)}`);
    const text = document.createElement("span");
    text.className = "mono quiet";
    const [act, away] = ["act", "away"].map((kind) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = `button ${kind}`;
      return button;
    });
    act.addEventListener("click", () => (this.downloads.rows.get(name)?.abort ? this.downloads.cancel(name) : this.downloads.start(name)));
    away.textContent = "Dismiss";
    away.setAttribute("aria-label", `Dismiss the download of ${visible(name)}`);
    away.addEventListener("click", () => this.downloads.dismiss(name));
    box.append(label, bar, text, act, away);
    this.list.append(box);
    const row = { box, bar, text, act, away };
    this._rows.set(name, row);
    return row;
  }

  /** @param {Row} row @param {Download} download */
  _update({ box, bar, text, act, away }, download) {
    const { state, progress, abort } = download;
    const over = state === "failed" || state === "stopped";
    if (box.dataset.state !== state) box.dataset.state = state;
    bar.hidden = over;
    if (known(progress)) bar.value = progress;
    else bar.removeAttribute("value"); // indeterminate: nobody knows how far it is
    put(text, words(download));
    act.hidden = !abort && !over;
    put(act, abort ? "Cancel" : state === "failed" ? "Try again" : "Go on");
    if (act.dataset.for !== state) {
      act.dataset.for = state;
      act.setAttribute("aria-label", `${act.textContent}: download of ${visible(download.name)}`);
    }
    away.hidden = !over;
  }
}
