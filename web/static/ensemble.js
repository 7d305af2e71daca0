/** The card of a council: its energy, how far its members agree, what each adds, and what the engine heard between them. 10 Hz. */

import { share } from "./core.js";
import { element, sign } from "./elements.js";
import { byId, fixed, known, NONE, put } from "./format.js";
import { visible } from "./text.js";

/** @typedef {import("./session.js").Session} Session */

const WHY_NO_DI = "needs log-probabilities, or the timing, of two members at the same time";
const CUES = new Map([
  ["destructive", "INTERFERENCE"],
  ["constructive", "CONSTRUCTIVE"],
  ["neutral", "NEUTRAL"],
]);

/** The engine's own cue, in a word. Nothing is concluded here. @param {Session} session @returns {{kind: string, text: string}} */
export function cue(session) {
  if (!session.active) return { kind: "", text: "" }; // nobody is heard any more
  const { resonance, resonanceSinceMs, interference } = session.council;
  if (resonance) {
    const ms = Math.max(resonance.duration_ms ?? 0, session.nowMs - resonanceSinceMs);
    return { kind: "resonance", text: `RESONANCE ${(ms / 1000).toFixed(1)} s` };
  }
  return { kind: interference?.pattern ?? "", text: CUES.get(interference?.pattern) ?? "" };
}

/** @param {Session} session */
function whyDi({ ensemble, active, tokens }) {
  if (!ensemble) return active || tokens === 0 ? "Nothing yet: no member has an energy" : "Nothing now: nobody speaks any more";
  if (ensemble.di === null) return `No DI: ${ensemble.reason ? visible(String(ensemble.reason)) : WHY_NO_DI}`;
  return `DI by ${ensemble.di_method}${ensemble.di_stale ? ", held: nothing aligned just now" : ""}`;
}

/** @param {unknown} value */
const signed = (value) => (known(value) ? `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}` : NONE);

export class EnsembleCard {
  constructor() {
    this.box = byId("ensemble");
    this.stack = byId("stack");
    this.members = byId("members-rows");
    this.pairs = byId("pairs");
    this._pairsOf = "";
  }

  /** @param {Session|null} session */
  show(session) {
    const hidden = !session?.plural;
    if (this.box.hidden !== hidden) this.box.hidden = hidden;
    if (!session || hidden) return;
    const { ensemble } = session;
    const { kind, text } = cue(session);
    const chip = byId("cue");
    chip.hidden = text === "";
    chip.dataset.cue = kind;
    put(chip, text);
    put(byId("n-ensemble"), fixed(ensemble?.energy, 2));
    put(byId("n-di"), fixed(ensemble?.di, 2));
    put(byId("n-gain"), signed(ensemble?.gain));
    put(byId("n-lag"), fixed(ensemble?.sync_latency_ms, 0));
    put(byId("di-why"), whyDi(session));
    put(byId("modulated"), `modulated ${fixed(ensemble?.modulated, 2)} · mixture uncertainty ${fixed(ensemble?.mixture_uncertainty, 2)}`);
    this._stack(session);
    this._members(session);
    this._pairs(session);
    this._outcome(session);
  }

  /** Each member's part: γ·E; together they are E of the ensemble. @param {Session} session */
  _stack({ streams, ensemble }) {
    while (this.stack.childElementCount < streams.length) this.stack.append(element("i", { "data-slot": String(this.stack.childElementCount) }));
    while (this.stack.childElementCount > streams.length) this.stack.lastElementChild?.remove();
    streams.forEach(({ id, reading, model }, i) => {
      const part = ensemble ? share(ensemble, id) * (reading?.energy ?? 0) : 0;
      const bar = /** @type {HTMLElement} */ (this.stack.children[i]);
      bar.style.width = `${part * 100}%`;
      const title = `${model}: γ·E ${part.toFixed(3)}`;
      if (bar.title !== title) bar.title = title;
    });
    put(byId("stack-sum"), ensemble ? `Σ ${fixed(ensemble.energy, 2)}` : NONE);
  }

  /** The same as the field, as a table. @param {Session} session */
  _members({ streams, ensemble, end }) {
    while (this.members.childElementCount > streams.length) this.members.lastElementChild?.remove();
    streams.forEach(({ id, slot, model, reading, tokens, error, done }, i) => {
      let row = this.members.children[i];
      if (!row) {
        const head = element("th", { scope: "row" }, sign(slot), element("span"));
        row = this.members.appendChild(element("tr", "", head, element("td"), element("td"), element("td"), element("td")));
      }
      const cells = row.children;
      put(cells[0].lastElementChild, visible(model));
      cells[0].setAttribute("title", visible(model));
      put(cells[1], error ? "left" : end || done ? "drained" : (reading?.state ?? "charging").toLowerCase());
      put(cells[2], fixed(reading?.energy, 2));
      put(cells[3], String(tokens));
      put(cells[4], known(ensemble?.weights?.[id]) ? ensemble.weights[id].toFixed(2) : NONE);
    });
  }

  /** Agreement of each two. @param {Session} session */
  _pairs(session) {
    const { pairs } = session.council;
    const wanted = pairs.length > 0 ? JSON.stringify(pairs) : "";
    if (wanted === this._pairsOf) return;
    this._pairsOf = wanted;
    byId("pairs-title").hidden = pairs.length === 0;
    const slots = new Map(session.streams.map((stream) => [stream.id, stream.slot]));
    const cells = pairs.flatMap(({ a, b, agreement }) => {
      const [one, two] = [slots.get(a), slots.get(b)];
      if (one === undefined || two === undefined) return [];
      const value = element("span", "mono", agreement.toFixed(2));
      const cell = element("span", "pair", sign(one), sign(two), value);
      cell.style.setProperty("--agreement", agreement.toFixed(3));
      cell.title = `${session.streams[one].model} and ${session.streams[two].model}: ${agreement.toFixed(3)}`;
      return [cell];
    });
    this.pairs.replaceChildren(...cells);
  }

  /** What came of it, and who was not taken. @param {Session} session */
  _outcome({ council, dropped, unshown }) {
    const { synthesis, formed } = council;
    const lines = [];
    if (formed?.plan === "waves") lines.push(`In ${formed.waves?.length ?? "several"} waves.`);
    if (formed?.reason) lines.push(`${visible(String(formed.reason))}.`);
    if (dropped.length > 0) lines.push(`Left out by the tier: ${dropped.map(visible).join(", ")}.`);
    if (unshown > 0) lines.push("More streams than this page shows.");
    if (synthesis) {
      const { model, method, confidence, reason } = synthesis;
      const sure = known(confidence) ? `, confidence ${confidence.toFixed(2)}` : "";
      const why = reason ? `: ${visible(String(reason))}` : "";
      lines.push(model ? `Chosen: ${visible(model)}, by ${visible(String(method))}${sure}${why}.` : `No answer was chosen${why}.`);
    }
    put(byId("council-notes"), lines.join(" "));
    byId("council-notes").hidden = lines.length === 0;
  }
}
