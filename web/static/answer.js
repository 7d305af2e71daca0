/** The words around a session: its title, how it goes and how it ended, and what its model is. 10 Hz. */

import { byId, counted, fixed, known, put, seconds } from "./format.js";
import { elapsed } from "./readout.js";
import { visible } from "./text.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./composer.js").Composer} Composer */

const ENDINGS = new Map([
  ["finished", "Finished"],
  ["length", "Finished at max tokens"],
  ["stop", "Finished at a stop string"],
  ["aborted", "Stopped"],
  ["error", "Failed"],
  ["truncated", "Cut off: the runtime broke off without saying that it was done"],
  ["shutdown", "Ended by the engine's shutdown"],
]);
const GOOD = new Set(["finished", "length", "stop", "aborted"]);

/**
 * How a session ended, in one line, with the engine's own figures.
 * @param {Session} session @param {number|null} answeredMs stop latency as /stop told it
 */
export function outcome(session, answeredMs) {
  const { end } = session;
  if (!end) return session.lost ? "Lost: the engine no longer knows this session" : "";
  const parts = [ENDINGS.get(end.reason) ?? end.reason];
  if (end.reason === "aborted") {
    const latency = end.stop_latency_ms ?? answeredMs;
    if (known(latency)) parts[0] = `Stopped in ${latency < 10 ? latency.toFixed(1) : Math.round(latency)} ms`;
  }
  parts.push(counted(end.totals?.tokens ?? session.tokens, "token"));
  if (end.reason !== "aborted") parts.push(seconds(end.duration_ms));
  if (known(end.summary?.tps_average)) parts.push(`${fixed(end.summary.tps_average, 1)} tok/s`);
  if (known(end.summary?.energy_mean)) parts.push(`mean E ${fixed(end.summary.energy_mean, 2)}`);
  if (end.summary?.stalls) parts.push(counted(end.summary.stalls, "stall"));
  if (end.totals?.prompt_tokens_dropped) parts.push(`prompt cut by ${counted(end.totals.prompt_tokens_dropped, "token")}`);
  if (session.modelState?.state === "ready" && session.modelState.reason) parts.push(visible(session.modelState.reason));
  return parts.join(" · ");
}

/** What a session that fell silent does, in words. @param {Session} session */
function stalled({ active, recorded, streams, energyParams }) {
  const silent = active ? streams.filter(({ reading, tokens }) => reading?.stall && tokens > 0) : [];
  if (silent.length === 0) return "";
  const line = known(energyParams?.stall_ms) ? `, past the stall line of ${energyParams.stall_ms} ms` : "";
  const who = streams.length > 1 ? `${silent.map(({ model }) => visible(model)).join(", ")} silent for ` : "Silent for ";
  return `${who}${(Math.max(...silent.map(({ reading }) => reading?.silence_ms ?? 0)) / 1000).toFixed(1)} s${line}.${recorded ? "" : " It may go on; Stop (Esc) ends it and keeps what came."}`;
}

/** @param {Session|null} session @param {Composer} composer @param {number} now */
export function showAnswer(session, composer, now) {
  title(session, composer);
  const box = byId("outcome");
  const ending = session ? outcome(session, composer.stops.get(session.id)?.answer?.stop_latency_ms ?? null) : "";
  const cancelling = session !== null && session.active && !session.recorded && composer.stops.has(session.id);
  const silent = session ? stalled(session) : "";
  const text = session ? (cancelling ? "Cancelling…" : ending || silent || parameters(session)) : "";
  put(box, text);
  box.hidden = text === "";
  box.className = `mono ${colour(session, silent)}`;
  failure(session && session.streams.length > 1 ? (session.end?.error ?? null) : null);
  about(session, composer, now);
}

/** @param {Session|null} session @param {string} silent */
function colour(session, silent) {
  if (!session?.end) return silent ? "bad" : "quiet";
  if (!GOOD.has(session.end.reason)) return "bad";
  return session.end.reason === "aborted" ? "good" : "quiet";
}

/** What to say while there is no session. @param {Composer} composer */
export function idle(composer) {
  if (!composer.modelsKnown) return "";
  if (composer.models.size === 0) return "No model found. Start a model server such as Ollama and download a model: it appears here by itself.";
  return "Nothing is running. Ask something below, or start a session from any other program: it appears here by itself.";
}

/** @param {Session|null} session @param {Composer} composer */
function title(session, composer) {
  const prompt = session && composer.questions.get(session.id)?.prompt;
  put(byId("title"), session ? (prompt ? visible(prompt).split("\n")[0] : `${session.streams.length > 1 ? `Council of ${session.streams.length}` : visible(session.awaited) || "Session"} via ${session.origin || "another program"}`) : "Ready");
  const meta = session ? [`session ${session.id.slice(0, 8)}`, elapsed(session), ...(session.streams.length > 1 ? [counted(session.streams.length, "stream")] : []), counted(session.tokens, "token")] : [];
  put(byId("meta"), meta.join(" · "));
}

/** @param {{code?: string, message?: string}|null} error */
function failure(error) {
  const box = byId("session-error");
  if (box.hidden !== (error === null)) box.hidden = error === null;
  put(byId("session-error-code"), error?.code ?? "");
  put(byId("session-error-message"), error?.message ?? "");
}

/** What the runtime states about a model. @param {import("./api.js").Model} model @returns {string[]} */
function facts({ runtime, details = {}, capabilities = [] }) {
  const lines = typeof details.about === "string" ? [visible(details.about)] : [];
  if (details.style) lines.push(`Style: ${visible(String(details.style))}.`);
  const pace = details.pace_tps > 0 ? `, at a declared pace of ${details.pace_tps} tok/s` : "";
  lines.push(`Runs in ${runtime}${pace}.`);
  if (capabilities.length > 0 && !capabilities.includes("logprobs")) lines.push("Reports no log-probabilities.");
  return lines;
}

/** The sampling parameters in force. @param {Session} session */
function parameters(session) {
  const set = Object.entries(session.parameters).filter(([, value]) => known(value));
  return set.length > 0 ? set.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(" · ") : "";
}

/** Model card: the one that speaks, else the one that is picked. @param {Session|null} session @param {Composer} composer @param {number} now */
function about(session, composer, now) {
  const many = session?.active ? session.plural : composer.picker.mode !== "single";
  byId("about").hidden = many;
  put(byId("about-title"), many ? "Models" : "Model");
  const model = composer.models.get(session?.active ? session.awaited : composer.model.value || (session?.awaited ?? ""));
  const box = byId("about");
  const name = model?.name ?? (session?.active ? session.awaited : "");
  const text = model ? facts(model).join("\n") : "";
  if (box.dataset.shown !== name + text) {
    box.dataset.shown = name + text;
    const strong = document.createElement("b");
    strong.textContent = name || "—";
    box.replaceChildren(strong, text);
  }
  const step = session?.active ? session.modelState : null;
  const busy = step !== null && ["pulling", "queued", "loading"].includes(step.state) && session?.tokens === 0;
  byId("loading").hidden = !busy;
  if (!busy || !step) return;
  const progress = known(step.progress) ? `${Math.round(step.progress * 100)} %` : `${((now - step.since) / 1000).toFixed(1)} s`;
  put(byId("loading-text"), `${step.state} · ${progress}${step.reason ? ` · ${step.reason}` : ""}`);
  byId("loading-bar").style.width = known(step.progress) ? `${step.progress * 100}%` : "0";
}
