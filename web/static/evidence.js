/** The formula of energy with the constants in force, so that E_base of a token can be checked by hand. Pure. */

import { known, NONE } from "./format.js";

/** @typedef {{v: number, f: number, c: number|null, base: number}} Terms */

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

/** @param {import("./stream.js").Heard} heard @param {Record<string, any>} params @returns {string} */
export function formula({ token, before, reading }, params) {
  if (token.throttled) return "Our own queue was full before this token:\nits timing says nothing about the model,\nE is held and it earns no EU.";
  if (!reading) {
    return `E_base = ${known(token.energy_base) ? token.energy_base.toFixed(4) : NONE}, E = ${known(token.energy) ? token.energy.toFixed(4) : NONE}, as the engine told it.\nA later token came in the same frame, and a frame\ncarries rate and certainty of its last token only:\nthis one cannot be worked out again here.`;
  }
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
  if (known(before) && known(token.energy)) {
    const energy = averaged(base, before, token.delta_ms, params);
    lines.push(`E = α·E_base + (1 − α)·E_before, α = ${params.alpha}`, `  = ${energy.toFixed(4)}   ${verdict(energy, token.energy)}`);
  }
  return lines.join("\n");
}
