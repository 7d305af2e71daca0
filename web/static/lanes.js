/** One card per stream: who speaks, in which state, the words, and how it went. Numbers at 10 Hz, text every animation frame. */

import { ending } from "./council.js";
import { element, sign } from "./elements.js";
import { fixed, known, put } from "./format.js";
import { LANES } from "./session.js";
import { TextView, visible } from "./text.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./stream.js").Stream} Stream */

const NO_TOKEN = "No token has come yet. Stop (Esc) gives up.";
const STATISTIC_TOKENS = 256; // newest tokens that Δt and H̄ are taken from
const HINTS = new Map([
  ["pulling", "It is being downloaded first. Stop (Esc) gives up."],
  ["queued", "It waits for its turn. Stop (Esc) gives up its place."],
  ["loading", "It is being brought into memory. Stop (Esc) gives up; the load goes on."],
]);

/** What a stream waits for before its first token. @param {Session} session @param {Stream|null} stream @param {number} now */
export function waiting(session, stream, now) {
  if (!session.active || (stream?.tokens ?? 0) > 0 || stream?.error) return "";
  const since = stream?.reading?.silence_ms ?? now - session.seenAt;
  const model = stream?.modelState ?? (session.plural ? null : session.modelState);
  const name = stream?.model || session.awaited;
  const step = model && HINTS.has(model.state) ? `${model.state} ${name}` : "prompt sent";
  const place = model?.state === "queued" && known(model.position) ? `, place ${model.position}` : "";
  const why = model && HINTS.has(model.state) && model.reason ? ` · ${visible(model.reason)}` : "";
  return `${step}${place} · ${(since / 1000).toFixed(2)} s${why}${session.recorded ? "" : `\n${HINTS.get(model?.state ?? "") ?? NO_TOKEN}`}`;
}

/** The value below which `part` of the sorted values lie. @param {number[]} sorted @param {number} part */
function percentile(sorted, part) {
  return sorted.length > 0 ? sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] : null;
}

/** Figures of the newest tokens, from what the engine measured of each. @param {Stream} stream */
export function figures(stream) {
  const newest = stream.heard.slice(-STATISTIC_TOKENS);
  const deltas = newest.map(({ token }) => token.delta_ms).filter(known).sort((a, b) => a - b);
  const bits = newest.map(({ reading }) => reading?.entropy_bits).filter(known);
  return {
    p50: percentile(deltas, 0.5),
    p95: percentile(deltas, 0.95),
    entropy: bits.length > 0 ? bits.reduce((sum, value) => sum + value, 0) / bits.length : null,
  };
}

class Lane {
  /** @param {number} slot @param {(slot: number) => void} onSolo */
  constructor(slot, onSolo) {
    this.slot = slot;
    this.name = element("h3", { class: "model-name", id: `lane-${slot}` });
    this.state = element("span", "chip state");
    this.stall = element("span", "mono stall-note");
    this.chosen = element("span", { class: "chip chosen", title: "The council's answer" }, "CHOSEN");
    this.rate = element("span", "rate");
    this.solo = element("button", { type: "button", class: "solo", "aria-pressed": "false" }, "solo");
    this.solo.addEventListener("click", () => onSolo(slot));
    this.bar = element("i");
    this.text = element("div", { class: "text", role: "log", "aria-live": "off", "aria-label": "Streamed text" });
    this.waiting = element("p", "waiting");
    this.code = element("b");
    this.message = element("span");
    this.error = element("div", { class: "error", role: "alert" }, this.code, this.message);
    this.ending = element("p", "ending-note");
    this.scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Answer ${slot + 1}` }, this.text, this.waiting, this.error);
    this.follow = element("button", { type: "button", class: "pill follow" });
    this.foot = element("footer", "mono quiet");
    this.foot.title = `Time to first token; Δt: median and 95th percentile of the newest ${STATISTIC_TOKENS} tokens; H̄: their mean entropy, a lower bound`;
    const head = element("header", "", sign(slot), this.name, this.state, this.chosen, this.stall, element("span", "grow"), element("span", "mono", this.rate, element("span", "quiet", " tok/s")), this.solo);
    const bar = element("div", { class: "bar", "aria-hidden": "true" }, this.bar);
    this.box = element("article", { class: "card lane", "data-slot": String(slot), "aria-labelledby": `lane-${slot}` }, head, bar, this.scroll, this.follow, this.ending, this.foot);
    this.error.hidden = true;
    this.follow.hidden = true;
    this.view = new TextView(this.text, this.scroll, this.follow);
  }

  /** @param {Session|null} session @param {Stream|null} stream @param {string} idle @param {number} now */
  show(session, stream, idle, now) {
    const reading = stream?.reading ?? null;
    const over = session?.end || stream?.done;
    const state = session ? (stream?.error ? "LEFT" : over ? "DRAINED" : (reading?.state ?? "CHARGING")) : "IDLE";
    put(this.state, state);
    this.state.dataset.state = state;
    const name = session ? visible(stream?.model || session.awaited) || "unknown model" : "No session";
    put(this.name, name);
    if (this.name.title !== name) this.name.title = name;
    put(this.stall, session?.active && reading?.stall ? `silence ${Math.round(reading.silence_ms)} ms` : "");
    put(this.rate, fixed(reading?.tps, 1));
    put(this.waiting, session ? waiting(session, stream, now) : idle);
    const synthesis = session?.council.synthesis;
    this.chosen.hidden = !synthesis || !stream || synthesis.stream_id !== stream.id;
    const { words, why } = session && stream ? ending(session.council, stream) : { words: "", why: "" };
    put(this.ending, visible(words));
    if (this.ending.title !== visible(why)) this.ending.title = visible(why);
    this.ending.hidden = words === "";
    this.ending.dataset.chosen = String(!this.chosen.hidden);
    this.bar.style.width = `${(reading?.energy ?? 0) * 100}%`;
    this.box.classList.toggle("left", Boolean(stream?.error));
    this._failure(stream?.error ?? (session && session.streams.length <= 1 ? session.end?.error : null) ?? null, session, stream);
    put(this.foot, session && stream && session.plural ? this._figures(stream) : "");
  }

  /** @param {{code?: string, message?: string}|null} error @param {Session|null} session @param {Stream|null} stream */
  _failure(error, session, stream) {
    if (this.error.hidden !== (error === null)) this.error.hidden = error === null;
    const others = session && stream?.error ? session.streams.filter((one) => !one.error).length : 0;
    put(this.code, error?.code ?? "");
    put(this.message, error ? `${visible(error.message ?? "")}${others > 0 && session?.active ? ` · continuing with ${others}` : ""}` : "");
  }

  /** @param {Stream} stream */
  _figures(stream) {
    const { p50, p95, entropy } = figures(stream);
    const ttft = known(stream.ttftMs) ? `${(stream.ttftMs / 1000).toFixed(2)} s` : "—";
    return `TTFT ${ttft}  Δt ${fixed(p50, 0)}/${fixed(p95, 0)} ms  H̄ ${fixed(entropy, 2)} bit  ${stream.tokens} tok`;
  }
}

export class Lanes {
  /** @param {HTMLElement} box @param {(slot: number) => void} onSolo */
  constructor(box, onSolo) {
    this.box = box;
    this.lanes = Array.from({ length: LANES }, (_, slot) => new Lane(slot, onSolo));
    this._count = 0;
  }

  /** Once per animation frame. @param {Session|null} session */
  sync(session) {
    const count = Math.max(1, session?.streams.length ?? 0);
    if (count !== this._count) {
      this._count = count;
      this.box.replaceChildren(...this.lanes.slice(0, count).map((lane) => lane.box));
      this.box.dataset.lanes = String(count);
    }
    for (let slot = 0; slot < count; slot += 1) {
      const stream = session?.streams[slot];
      if (stream) this.lanes[slot].view.sync(stream, session?.active === true && !stream.done && !stream.error);
      else this.lanes[slot].view.clear();
    }
    for (let slot = 0; slot < count; slot += 1) this.lanes[slot].view.follow();
  }

  /** 10 Hz. @param {Session|null} session @param {number} solo a slot or −1 @param {string} idle what to say without a session @param {number} now */
  show(session, solo, idle, now) {
    for (let slot = 0; slot < this._count; slot += 1) this.lanes[slot].view.settle(); // before anything is written: each would make a layout
    for (let slot = 0; slot < this._count; slot += 1) {
      const lane = this.lanes[slot];
      lane.show(session, session?.streams[slot] ?? null, idle, now);
      lane.solo.hidden = this._count < 2;
      lane.solo.setAttribute("aria-pressed", String(solo === slot));
      lane.solo.setAttribute("aria-label", `Solo ${session?.streams[slot]?.model ?? ""}`);
      lane.box.classList.toggle("dim", solo >= 0 && solo !== slot);
    }
    const shown = solo >= 0 && solo < this._count ? solo : -1;
    if (this.box.dataset.solo !== String(shown)) this.box.dataset.solo = String(shown);
  }
}
