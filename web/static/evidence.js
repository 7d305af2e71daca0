/** The last token's raw values and the formula with the constants in force, so that E_base can be checked by hand. */

import { visible } from "./text.js";
import { byId, fixed, known, NONE, put } from "./format.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {{v: number, f: number, c: number|null, base: number}} Terms */

const TOKEN_CHARS = 60;

/** @param {string} text */
function short(text) {
  const line = visible(text.slice(0, TOKEN_CHARS)).replaceAll("\n", "⏎");
  return text.length > TOKEN_CHARS ? `${line}… ${text.length} characters` : line;
}

/** @param {number} value */
const clamp = (value) => Math.min(1, Math.max(0, value));

/**
 * E_base from its measured inputs, as the engine defines it.
 * @param {{tps: number, delta_ms: number|null, certainty: number|null}} signal
 * @param {Record<string, any>} params energy_params of the session
 * @returns {Terms}
 */
export function terms(signal, params) {
  const v = clamp(signal.tps / params.tps_max);
  const f = signal.delta_ms === null ? 1 : 1 - clamp((signal.delta_ms - params.stall_ms) / (params.ceil_ms - params.stall_ms));
  const c = signal.certainty;
  const base =
    c === null
      ? params.weight_velocity_no_logprobs * v + params.weight_flow_no_logprobs * f
      : params.weight_velocity * v + params.weight_certainty * c * f + params.weight_flow * f;
  return { v, f, c, base: clamp(base) };
}

/**
 * The average over tokens: what was there before, decayed by the silence, and the new E_base.
 * @param {number} base @param {number} before @param {number|null} deltaMs @param {Record<string, any>} params
 */
export function averaged(base, before, deltaMs, params) {
  const held = before * 0.5 ** (Math.max(0, (deltaMs ?? 0) - params.stall_ms) / params.half_life_ms);
  return clamp(params.alpha * base + (1 - params.alpha) * held);
}

/** @param {number} ours @param {unknown} theirs */
function verdict(ours, theirs) {
  if (!known(theirs)) return `engine ${NONE}`;
  const apart = Math.abs(ours - theirs);
  return `engine ${theirs.toFixed(4)} ${apart < 5e-4 ? "✓" : `differs by ${apart.toFixed(4)}`}`;
}

/** @param {NonNullable<Session["evidence"]>} evidence @param {Record<string, any>} params @returns {string} */
export function formula({ token, previous, reading }, params) {
  if (token.throttled) return "Our own queue was full before this token:\nits timing says nothing about the model,\nE is held and it earns no EU.";
  const signal = { tps: reading.tps, delta_ms: token.delta_ms, certainty: reading.certainty };
  const { v, f, c, base } = terms(signal, params);
  const n = (/** @type {number} */ x) => x.toFixed(3);
  const w = (/** @type {string} */ name) => String(params[`weight_${name}`]).replace(/^0/, "");
  const lines =
    c === null
      ? [
          `E_base = ${w("velocity_no_logprobs")}·v + ${w("flow_no_logprobs")}·f`,
          `  = ${w("velocity_no_logprobs")}·${n(v)} + ${w("flow_no_logprobs")}·${n(f)}   no logprobs`,
        ]
      : [
          `E_base = ${w("velocity")}·v + ${w("certainty")}·c·f + ${w("flow")}·f`,
          `  = ${w("velocity")}·${n(v)} + ${w("certainty")}·${n(c)}·${n(f)} + ${w("flow")}·${n(f)}`,
        ];
  lines.push(`  = ${base.toFixed(4)}   ${verdict(base, token.energy_base)}`);
  lines.push(`v = TPS / ${params.tps_max}, at most 1 = ${n(v)}`);
  lines.push(token.delta_ms === null ? "f = 1.000, first token: there is no Δt" : `f = 1 − (Δt − ${params.stall_ms}) / ${params.ceil_ms - params.stall_ms}, 0…1 = ${n(f)}`);
  const before = token.position === 0 ? 0 : previous?.position === token.position - 1 ? previous.energy : null;
  if (known(before) && known(token.energy)) {
    const energy = averaged(base, before, token.delta_ms, params);
    lines.push(`E = α·E_base + (1 − α)·E_before, α = ${params.alpha}`, `  = ${energy.toFixed(4)}   ${verdict(energy, token.energy)}`);
  }
  return lines.join("\n");
}

export class Evidence {
  constructor() {
    this.box = /** @type {HTMLDetailsElement} */ (byId("evidence"));
    this._rows = byId("evidence-values");
  }

  toggle() {
    this.box.open = !this.box.open;
  }

  /** @param {Session|null} session */
  show(session) {
    if (!this.box.open) return;
    const evidence = session?.evidence;
    if (!session || !evidence || !session.energyParams) {
      put(byId("evidence-token"), "No token yet.");
      this._rows.replaceChildren();
      put(byId("evidence-formula"), "E_base = w_v·v + w_c·c·f + w_f·f\nE      = α·E_base + (1 − α)·E_before");
      return;
    }
    const { token, reading } = evidence;
    put(byId("evidence-token"), `Token ${token.position}: “${short(token.text)}”`);
    this._table([
      ["arrived t", `${(token.t_us / 1e6).toFixed(6)} s`],
      ["Δt", known(token.delta_ms) ? `${token.delta_ms.toFixed(3)} ms${token.coalesced ? " (same chunk)" : ""}` : NONE],
      ["TPS", fixed(reading.tps, 3)],
      ["log p · p", known(token.logprob) ? `${token.logprob.toFixed(4)} · ${Math.exp(token.logprob).toFixed(4)}` : NONE],
      ["certainty c", fixed(reading.certainty, 4)],
      ["entropy, tail", `${fixed(reading.entropy_bits, 4)} bit, ${fixed(reading.tail_mass, 4)}`],
      ["constants of tier", String(session.energyParams.tier)],
    ]);
    put(byId("evidence-formula"), formula(evidence, session.energyParams));
  }

  /** @param {[string, string][]} rows */
  _table(rows) {
    while (this._rows.childElementCount < rows.length) {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      row.append(head, document.createElement("td"));
      this._rows.append(row);
    }
    rows.forEach(([name, value], i) => {
      put(this._rows.children[i].children[0], name);
      put(this._rows.children[i].children[1], value);
    });
  }
}
