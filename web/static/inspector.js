/** Evidence: one token with everything that was measured of it, its alternatives, the formula and the four raw tracks. 10 Hz. */

import { element, fill, sign } from "./elements.js";
import { formula } from "./evidence.js";
import { byId, fixed, known, NONE, put } from "./format.js";
import { visible } from "./text.js";
import { drawTracks } from "./tracks.js";

const TOKEN_CHARS = 60;
const ALTERNATIVES = 6;
const FOLLOW_MS = 250; // nobody reads faster; a token that was picked is shown at once
const NO_LOGPROBS = "No log-probabilities from this runtime: the certainty term is off, E uses cadence and stalls.";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./stream.js").Stream} Stream */
/** @typedef {import("./stream.js").Heard} Heard */
/** @typedef {{stream: Stream, heard: Heard}} Picked */

/** @param {string} text */
export function short(text) {
  const line = visible(text.slice(0, TOKEN_CHARS)).replaceAll("\n", "⏎");
  return text.length > TOKEN_CHARS ? `${line}… ${text.length} characters` : line;
}

export class Inspector {
  /** @param {(words: string) => void} say */
  constructor(say) {
    this.say = say;
    this.box = byId("evidence");
    this.rows = byId("evidence-values");
    this.alternatives = byId("alternatives");
    this.tracks = /** @type {HTMLCanvasElement} */ (byId("tracks"));
    this.open = false;
    byId("evidence-copy").addEventListener("click", () => this.copy());
    /** @type {{picked: Picked, session: Session}|null} */
    this._shown = null;
    this._of = "";
    this._at = -FOLLOW_MS;
  }

  /** @param {boolean} open */
  turn(open) {
    this.open = open;
    this._at = -FOLLOW_MS;
    this.box.hidden = !open;
    byId("evidence-toggle").setAttribute("aria-pressed", String(open));
  }

  /** What is shown, as JSON into the clipboard. */
  async copy() {
    if (!this._shown) return;
    const { picked, session } = this._shown;
    const { token, reading, before, frame } = picked.heard;
    const all = { session_id: session.id, stream_id: picked.stream.id, model: picked.stream.model, frame, token, reading, energy_before: before, energy_params: session.energyParams };
    const said = await navigator.clipboard.writeText(JSON.stringify(all, null, 2)).then(() => "Copied", () => "The browser refused the clipboard");
    put(byId("evidence-copied"), said);
    this.say(said);
  }

  /** @param {Session|null} session @param {Picked|null} picked @param {import("./theme.js").Palette} palette */
  show(session, picked, palette) {
    if (!this.open) return;
    if (!session || !picked || !session.energyParams) {
      this._empty();
      return;
    }
    const { stream, heard } = picked;
    const now = performance.now();
    if (heard === stream.measured && now - this._at < FOLLOW_MS) return;
    this._at = now;
    this._shown = { session, picked };
    const of = `${stream.id}:${heard.token.position}:${heard.reading ? 1 : 0}`;
    if (of !== this._of) {
      this._of = of;
      this._token(session, stream, heard);
    }
    drawTracks(this.tracks, stream, heard, palette);
  }

  _empty() {
    if (this._of === "-") return;
    this._of = "-";
    this._shown = null;
    put(byId("evidence-token"), "No token yet. Ask something, then pick a token in the field or in the text.");
    this.rows.replaceChildren();
    this.alternatives.replaceChildren();
    put(byId("alternatives-why"), "");
    put(byId("evidence-formula"), "E_base = w_v·v + w_c·c·f + w_f·f\nE      = α·E_base + (1 − α)·E_before");
  }

  /** @param {Session} session @param {Stream} stream @param {Heard} heard */
  _token(session, stream, heard) {
    const { token, reading, frame } = heard;
    put(byId("evidence-copied"), "");
    byId("evidence-token").replaceChildren(sign(stream.slot), ` Token ${token.position}: “${short(token.text)}” `, element("span", "quiet", visible(stream.model)));
    fill(this.rows, [
      ["arrived t", `${(token.t_us / 1e6).toFixed(6)} s`],
      ["Δt", known(token.delta_ms) ? `${token.delta_ms.toFixed(3)} ms${token.coalesced ? " (same chunk)" : ""}` : NONE],
      ["TPS", fixed(reading?.tps, 3)],
      ["log p · p", known(token.logprob) ? `${token.logprob.toFixed(4)} · ${Math.exp(token.logprob).toFixed(4)}` : NONE],
      ["certainty c", fixed(reading?.certainty, 4)],
      ["entropy, tail", `${fixed(reading?.entropy_bits, 4)} bit, ${fixed(reading?.tail_mass, 4)}`],
      ["E_base · E", `${fixed(token.energy_base, 4)} · ${fixed(token.energy, 4)}`],
      ["source", `${session.synthetic ? "SYNTHETIC" : "measured"} · frame ${frame}`],
      ["constants of tier", String(session.energyParams?.tier)],
    ]);
    this._alternatives(token, stream);
    put(byId("evidence-formula"), formula(heard, session.energyParams ?? {}));
  }

  /** @param {any} token @param {Stream} stream */
  _alternatives(token, stream) {
    const top = Array.isArray(token.top) ? token.top.slice(0, ALTERNATIVES) : [];
    const rows = top.map((/** @type {{token: string, logprob: number}} */ { token: text, logprob }) => {
      const bar = element("i");
      bar.style.width = `${Math.exp(logprob) * 100}%`;
      if (text === token.text) bar.dataset.slot = String(stream.slot);
      return element("li", "", element("span", "mono word", `${visible(text).replaceAll("\n", "⏎")}`), element("span", "bar", bar), element("span", "mono", Math.exp(logprob).toFixed(3)));
    });
    this.alternatives.replaceChildren(...rows);
    const why = token.logprob === null ? NO_LOGPROBS : top.length === 0 ? "The list of alternatives was not part of this frame." : "";
    put(byId("alternatives-why"), why);
  }
}
