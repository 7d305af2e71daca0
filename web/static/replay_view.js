/** The bar of Replay: which recorded session, where in it, how fast; and the file of one that somebody saved. */

import { byId, counted, put } from "./format.js";
import { BadRecording, FILE_BYTES, read } from "./recorded.js";
import { Player, SPEEDS } from "./replay.js";
import { visible } from "./text.js";

const NOT_HERE = "It is gone with the page that saw it, and the engine keeps no recordings. Open the file of a saved session to replay that.";
const NONE_YET = "No session has ended while this page was open. Ask something first, or open the file of a saved session.";

/** @typedef {import("./recordings.js").Recordings} Recordings */
/** @typedef {{words: string, session: string}} Trouble */

/** @param {number} ms */
export const clock = (ms) => `${(ms / 1000).toFixed(2)} s`;

export class Replay {
  /** @param {Recordings} recordings @param {{say: (words: string) => void, changed: () => void, leave: () => void}} page */
  constructor(recordings, page) {
    this.recordings = recordings;
    this.page = page;
    this.active = false; // the screen is shown
    /** @type {Player|null} */
    this.player = null;
    /** @type {{id: string, text: string}|null} a session from a file, as it stood there */
    this.file = null;
    this.trouble = "";
    this.reading = -1; // how much of a recording is read, 0–1; below 0 when none is being read
    this._opening = 0; // the newest wish counts
    this._listed = "";
    this.pick = /** @type {HTMLSelectElement} */ (byId("replay-pick"));
    this.scrub = /** @type {HTMLInputElement} */ (byId("replay-at"));
    this.play = /** @type {HTMLButtonElement} */ (byId("replay-play"));
    this.speed = /** @type {HTMLSelectElement} */ (byId("replay-speed"));
    this.chooser = /** @type {HTMLInputElement} */ (byId("replay-file"));
    this.speed.replaceChildren(...SPEEDS.map((speed) => new Option(`${speed}×`, String(speed), speed === 1, speed === 1)));
    this.play.addEventListener("click", () => this.toggle());
    this.scrub.addEventListener("input", () => this.seek(this.scrub.valueAsNumber));
    this.speed.addEventListener("change", () => this.player && (this.player.speed = Number(this.speed.value)));
    this.pick.addEventListener("change", () => void this.open(this.pick.value, null));
    byId("replay-open").addEventListener("click", () => this.chooser.click());
    byId("replay-live").addEventListener("click", () => page.leave());
    this.chooser.addEventListener("change", () => this._chosen());
  }

  get session() {
    return this.player?.session ?? null;
  }

  /** Of what is replayed, in seconds since it began; null without it. */
  get atS() {
    return this.player ? this.player.atMs / 1000 : null;
  }

  /** The frames of a session as they came; null where there are none. @param {string} id @returns {Promise<string>|null} */
  framesOf(id) {
    if (this.active && this.file?.id === id) return Promise.resolve(this.file.text);
    return this.recordings.all.get(id)?.text() ?? null;
  }

  /** Opens a recorded session by its id or the beginning of it; without one, the newest. @param {string} id @param {number|null} atS where to stand; null plays from its beginning */
  async open(id, atS) {
    const now = this.player?.track.id;
    if (now && (id ? now.startsWith(id) : true)) {
      if (atS !== null) this.seek(atS * 1000);
      return;
    }
    const wish = (this._opening += 1);
    this.player = null;
    if (id && this.file?.id.startsWith(id)) {
      await this._begin(wish, this.file.text, atS);
      return;
    }
    const found = id ? this.recordings.find(id) : this.recordings.ended[0];
    if (!found || found.open) {
      this._fail(!id ? NONE_YET : found ? `Session ${id.slice(0, 8)} still runs: it can be replayed when it is over.` : `This page has no recording of session ${id.slice(0, 8)}. ${NOT_HERE}`);
      return;
    }
    this.reading = 0;
    await this._begin(wish, await found.text(), atS);
  }

  toggle() {
    this.player?.toggle();
  }

  /** @param {number} ms */
  seek(ms) {
    if (!this.player) return;
    this.player.playing = false;
    this.player.seek(ms);
  }

  /** @param {number} now */
  tick(now) {
    this.player?.tick(now);
  }

  /** @param {boolean} active the screen is shown */
  turn(active) {
    this.active = active;
    for (const id of ["replay", "replaying"]) byId(id).hidden = !active;
    document.body.toggleAttribute("data-replay", active);
    document.title = active ? "REPLAY · WF Engine" : "WF Engine";
    if (!active && this.player) this.player.playing = false;
  }

  /** 10 Hz, while the screen is shown. */
  show() {
    this._list();
    const { player } = this;
    const box = byId("replay-trouble");
    box.hidden = this.trouble === "";
    put(box, this.trouble);
    byId("replay-controls").hidden = player === null;
    const reading = this.reading < 0 ? "Nothing is being replayed." : `The recording is being read, ${Math.floor(this.reading * 100)} %.`;
    put(byId("replaying-of"), player && this.reading < 0 ? this._about(player) : reading);
    if (!player) return;
    put(this.play, player.playing ? "Pause" : player.over ? "Again" : "Play");
    const { fromMs, toMs, atMs } = player;
    for (const [name, value] of [["min", fromMs], ["max", toMs]]) if (this.scrub.getAttribute(String(name)) !== String(value)) this.scrub.setAttribute(String(name), String(value));
    this.scrub.value = String(atMs);
    put(byId("replay-time"), `${clock(atMs)} of ${clock(toMs)}`);
    const words = `${clock(atMs)} of ${clock(toMs)}`;
    if (!player.playing && this.scrub.getAttribute("aria-valuetext") !== words) this.scrub.setAttribute("aria-valuetext", words);
  }

  /** @param {Player} player */
  _about({ track }) {
    const when = new Date(track.startedMs).toISOString().replace("T", " ").slice(0, 19);
    const parts = [`${visible(track.model)}, session ${visible(track.id).slice(0, 8)}, ${when} UTC`];
    if (this.file?.id === track.id) parts.push("from a file");
    if (track.unseenMs > 0) parts.push(`recorded from ${clock(track.unseenMs)} on`);
    if (track.gaps > 0) parts.push(`${counted(track.gaps, "frame")} missing`);
    if (!track.ended) parts.push("its end is not in the recording");
    return `${parts.join(" · ")}. These frames were recorded; nothing of it happens now.`;
  }

  _list() {
    const { ended } = this.recordings;
    const ids = [...(this.file ? [this.file.id] : []), ...ended.map(({ id }) => id).filter((id) => id !== this.file?.id)];
    const key = ids.join() + (this.player?.track.id ?? "");
    if (key === this._listed || document.activeElement === this.pick) return;
    this._listed = key;
    const options = ids.map((id) => new Option(`${visible(id).slice(0, 8)}${id === this.file?.id ? " · file" : ""}`, id));
    this.pick.replaceChildren(...(options.length > 0 ? options : [new Option("none yet", "")]));
    this.pick.disabled = options.length === 0;
    this.pick.value = this.player?.track.id ?? "";
  }

  async _chosen() {
    const [file] = this.chooser.files ?? [];
    this.chooser.value = ""; // so that the same file can be chosen again
    if (!file) return;
    const wish = (this._opening += 1);
    if (file.size > FILE_BYTES) {
      this._fail(`${visible(file.name)} is larger than ${FILE_BYTES / 2 ** 20} MB, the most that is opened here.`);
      return;
    }
    const text = await file.text().catch(() => "");
    if (wish !== this._opening) return;
    this.player = null;
    await this._begin(wish, text, null, file.name);
  }

  /** @param {number} wish given up for a newer one @param {string} text @param {number|null} atS @param {string} [name] of the file it comes from */
  async _begin(wish, text, atS, name = "") {
    try {
      const track = await read(text, (part) => wish === this._opening && (this.reading = part));
      if (wish !== this._opening) return;
      if (name) this.file = { id: track.id, text };
      this.player = new Player(track);
    } catch (fault) {
      if (!(fault instanceof BadRecording)) throw fault;
      if (wish !== this._opening) return;
      this._fail(`${name ? `${visible(name)} is not a recorded session.` : "The recording cannot be read."} ${visible(fault.message)}`);
      return;
    }
    this.trouble = "";
    this.reading = -1;
    this.player.speed = Number(this.speed.value);
    if (atS !== null) this.player.seek(atS * 1000);
    else this.player.playing = true;
    this.page.changed();
    this.page.say(`Replay of session ${this.player.track.id.slice(0, 8)}`);
  }

  /** What was replayed before is no longer: it is not what was asked for. @param {string} words */
  _fail(words) {
    this.player = null;
    this.reading = -1;
    this.trouble = words;
    this.page.changed();
    this.page.say(words);
  }
}
