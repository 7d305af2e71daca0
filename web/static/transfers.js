/** The rows of downloads: a bar, what is going on in words, and what can be done about it. 10 Hz. */

import { byId, known } from "./format.js";
import { visible } from "./text.js";
import { html, nothing, render, repeat } from "./vendor/vendor.js";

/** @typedef {import("./downloads.js").Download} Download */
/** @typedef {import("./downloads.js").Downloads} Downloads */

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
    this._empty = true;
  }

  show() {
    const { rows } = this.downloads;
    if (rows.size === 0 && this._empty) return;
    this._empty = rows.size === 0;
    this.list.hidden = this._empty;
    render(repeat(rows.values(), ({ name }) => name, (download) => this._row(download)), this.list);
  }

  /** @param {Download} download */
  _row({ name, state, progress, abort, ...rest }) {
    const { downloads } = this;
    const over = state === "failed" || state === "stopped";
    const label = visible(name);
    const act = abort ? "Cancel" : state === "failed" ? "Try again" : "Go on";
    return html`<div class="transfer" data-state=${state}>
      <b>${label}</b>
      <progress max="1" aria-label="Download of ${label}" value=${progress ?? nothing} ?hidden=${over}></progress>
      <span class="mono quiet">${words({ name, state, progress, abort, ...rest })}</span>
      <button type="button" class="button act" aria-label="${act}: download of ${label}" ?hidden=${!abort && !over} @click=${() => (downloads.rows.get(name)?.abort ? downloads.cancel(name) : downloads.start(name))}>${act}</button>
      <button type="button" class="button away" aria-label="Dismiss the download of ${label}" ?hidden=${!over} @click=${() => downloads.dismiss(name)}>Dismiss</button>
    </div>`;
  }
}
