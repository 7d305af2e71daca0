/** The card of a council: its energy, how far its members agree, what each adds, and what the engine heard between them. 10 Hz. */

import { share } from "./core.js";
import { byId, fixed, known, NONE } from "./format.js";
import { glyph, styled } from "./templates.js";
import { visible } from "./text.js";
import { html, nothing, render } from "./vendor/vendor.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./stream.js").Stream} Stream */

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

const MATRIX_FROM = 4; // members: with fewer, a list of pairs is shorter

export class EnsembleCard {
  constructor() {
    this.box = byId("ensemble");
  }

  /** @param {Session|null} session */
  show(session) {
    const hidden = !session?.plural;
    if (this.box.hidden !== hidden) this.box.hidden = hidden;
    if (session && !hidden) render(view(session), this.box);
  }
}

/** @param {Session} session */
function view(session) {
  const { ensemble, streams } = session;
  const { kind, text } = cue(session);
  const notes = outcome(session);
  return html`<div class="line"><h3 id="ensemble-title">Ensemble</h3><span class="chip" id="cue" data-cue=${kind} ?hidden=${text === ""}>${text}</span></div>
    <dl class="numbers four">
      <div title="Mean of the members' E, weighted by γ"><dt>E ensemble</dt><dd id="n-ensemble">${fixed(ensemble?.energy, 2)}</dd></div>
      <div title="Diversity: how far the members' next-token distributions differ, 0 to 1"><dt>DI</dt><dd id="n-di" class="violet">${fixed(ensemble?.di, 2)}</dd></div>
      <div title="What the agreement adds to E, or takes from it"><dt>gain</dt><dd id="n-gain">${signed(ensemble?.gain)}</dd></div>
      <div title="Time between the fastest and the slowest member"><dt>sync lag</dt><dd><span id="n-lag">${fixed(ensemble?.sync_latency_ms, 0)}</span><small> ms</small></dd></div>
    </dl>
    <p class="quiet small" id="di-why">${whyDi(session)}</p>
    <p class="quiet small mono" id="modulated">${`modulated ${fixed(ensemble?.modulated, 2)} · mixture uncertainty ${fixed(ensemble?.mixture_uncertainty, 2)}`}</p>
    <div class="line small"><span class="quiet">γ·E of each member</span><span class="mono" id="stack-sum">${ensemble ? `Σ ${fixed(ensemble.energy, 2)}` : NONE}</span></div>
    <div class="stack" id="stack" aria-hidden="true">${streams.map((stream) => part(session, stream))}</div>
    <table class="members" id="members" tabindex="-1" aria-label="Members now" data-count=${streams.length}>
      <thead><tr><th scope="col">member</th><th scope="col">state</th><th scope="col">E</th><th scope="col">tok</th><th scope="col" title="Weight in the ensemble">γ</th></tr></thead>
      <tbody id="members-rows">${streams.map((stream) => member(session, stream))}</tbody>
    </table>
    ${pairs(session)}
    <p class="small" id="council-notes" ?hidden=${notes === ""}>${notes}</p>`;
}

/** Each member's part: γ·E; together they are E of the ensemble. @param {Session} session @param {Stream} stream */
function part({ ensemble }, { id, slot, reading, model }) {
  const size = ensemble ? share(ensemble, id) * (reading?.energy ?? 0) : 0;
  return html`<i data-slot=${slot} title="${visible(model)}: γ·E ${size.toFixed(3)}" ${styled({ width: `${size * 100}%` })}></i>`;
}

/** The same as the field, as a row of a table. @param {Session} session @param {Stream} stream */
function member({ ensemble, end }, { id, slot, model, reading, tokens, error, done }) {
  const state = error ? "left" : end || done ? "drained" : (reading?.state ?? "charging").toLowerCase();
  return html`<tr><th scope="row" title=${visible(model)}>${glyph(slot)}<span>${visible(model)}</span></th><td>${state}</td><td>${fixed(reading?.energy, 2)}</td><td>${tokens}</td><td>${fixed(ensemble?.weights?.[id], 2)}</td></tr>`;
}

/** Agreement of each two, as the engine last told it. @param {Session} session */
function pairs({ council, streams }) {
  const slots = new Map(streams.map(({ id, slot }) => [id, slot]));
  /** @type {Map<string, number>} by the slots of both, the lower one first */
  const agreements = new Map();
  for (const { a, b, agreement } of council.pairs) {
    const [one, two] = [slots.get(a), slots.get(b)].sort();
    if (one !== undefined && two !== undefined) agreements.set(`${one}:${two}`, agreement);
  }
  if (agreements.size === 0) return nothing;
  const title = html`<p class="quiet small" id="pairs-title">Pairwise agreement, 1 − JSD</p>`;
  return streams.length < MATRIX_FROM ? html`${title}<div class="pairs" id="pairs">${[...agreements].map(([both, agreement]) => pair(streams, both, agreement))}</div>` : html`${title}${matrix(streams, agreements)}`;
}

/** @param {readonly Stream[]} streams @param {string} both @param {number} agreement */
function pair(streams, both, agreement) {
  const [one, two] = both.split(":").map(Number);
  return html`<span class="pair" title="${visible(streams[one].model)} and ${visible(streams[two].model)}: ${agreement.toFixed(3)}" ${styled({ "--agreement": agreement.toFixed(3) })}>${glyph(one)}${glyph(two)}<span class="mono">${agreement.toFixed(2)}</span></span>`;
}

/** The lower triangle: a row for each member but the first, a column for each but the last. @param {readonly Stream[]} streams @param {ReadonlyMap<string, number>} agreements */
function matrix(streams, agreements) {
  const named = (/** @type {Stream} */ { slot, model }) => html`${glyph(slot)}<span class="hidden">${visible(model)}</span>`;
  return html`<table class="matrix" id="pairs" aria-labelledby="pairs-title">
    <thead><tr><td></td>${streams.slice(0, -1).map((stream) => html`<th scope="col" title=${visible(stream.model)}>${named(stream)}</th>`)}</tr></thead>
    <tbody>${streams.slice(1).map((stream, i) => html`<tr><th scope="row" title=${visible(stream.model)}>${named(stream)}</th>${streams.slice(0, i + 1).map((other) => cell(stream, other, agreements.get(`${other.slot}:${stream.slot}`)))}</tr>`)}</tbody>
  </table>`;
}

/** @param {Stream} one @param {Stream} two @param {number|undefined} agreement undefined: not measured */
function cell(one, two, agreement) {
  const title = `${visible(two.model)} and ${visible(one.model)}: ${agreement === undefined ? "not measured" : agreement.toFixed(3)}`;
  return html`<td class="mono" title=${title} ${styled({ "--agreement": (agreement ?? 0).toFixed(3) })}>${fixed(agreement, 2)}</td>`;
}

/** What came of it, and who was not taken. @param {Session} session */
function outcome({ council, dropped, unshown }) {
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
  return lines.join(" ");
}
