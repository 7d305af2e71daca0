/** The engine's HTTP API, as far as the page needs it. Own origin only. */

import { lines } from "./lines.js";

const TIMEOUT_MS = 10_000;
const STOP_TIMEOUT_MS = 30_000; // /stop answers when the runtime's connection is closed
const CLASSIFIER = "tlc_domain_classifier";

/**
 * @typedef {{ws_url: string, version: string, schema_version: string, boot: string, tier: string, token: string, limits?: Record<string, any>, services?: string[]}} Bootstrap
 * @typedef {{name: string, runtime: string, state?: string, capabilities?: string[], details?: Record<string, any>,
 *   size_bytes?: number, resident_bytes?: number, vram_bytes?: number|null, last_used?: string|null, tps?: number|null, ttft_ms?: number|null, ttft_cold_ms?: number|null,
 *   against_tier?: Record<"tps"|"ttft_warm_ms"|"ttft_cold_ms", Held>, pinned?: boolean}} Model
 * @typedef {{measured: number|null, aim: number, missed: boolean|null, reason: string|null}} Held a figure, and what the tier aims at
 * @typedef {{ram_total_bytes: number, ram_budget_bytes: number, vram_budget_bytes: number|null, used_bytes: number, used_ram_bytes: number, used_vram_bytes: number}} Memory
 * @typedef {{session_id: string, dropped_models?: string[]}} Accepted
 * @typedef {{success: boolean, tokens_generated: number, stop_latency_ms: number|null}} Stopped
 * @typedef {{name: string, kind: string, url: string|null, local: boolean, up: boolean|null, reason: string|null}} RuntimeState
 * @typedef {{runtimes: RuntimeState[], state?: string, next?: string|null, suggested_model?: string|null, remote?: boolean}} Health
 * @typedef {{models: Model[], memory?: Memory, tier?: string, virtual?: {name: string, members: string[]}[], pulls?: {name: string, status: string, progress: number|null}[]}} Listing
 * @typedef {{mode: string, available: boolean, bytes_out: number, calls: number, failed: number, calls_last_hour: number,
 *   context: string, spent: {tokens: number, usd: number}, limits: {calls_per_hour: number, daily_tokens: number, daily_usd: number},
 *   providers: {name: string, host: string, key: boolean, reason: string|null, models: string[]}[]}} BrokerState
 * @typedef {{status: string, completed?: number, total?: number}} PullStep
 * @typedef {"domain"|"task"|"method"} Part
 * @typedef {{model: {name: string}, requested_model: string, fallback_reason: string|null}} ServiceInfo
 * @typedef {Record<Part, {version: string, fallback: string, labels: string[]}>} Taxonomy
 * @typedef {{tmd: Record<Part, string>, confidence: Record<Part, number|null>, validated: Record<Part, boolean>,
 *   confidence_reason: Record<Part, string|null>, context_docs_used: number, context_chars_dropped: number,
 *   model: string, fallback_reason: string|null}} Classified
 */

/** A refusal of the engine, or the lack of any answer (code UNREACHABLE, made here). */
export class ApiError extends Error {
  /** @param {string} code @param {string} message @param {boolean} [retryable] @param {Record<string, any>} [details] */
  constructor(code, message, retryable = false, details = {}) {
    super(message);
    this.code = code;
    this.retryable = retryable;
    this.details = details;
  }
}

/**
 * @param {string} path
 * @param {{body?: object, timeoutMs?: number, signal?: AbortSignal, token?: string}} [options] a body makes it a POST; a signal replaces the time-out
 * @returns {Promise<Response>} with a good status; throws ApiError
 */
async function send(path, { body, timeoutMs = TIMEOUT_MS, signal, token } = {}) {
  /** @type {RequestInit} */
  const request = { signal: signal ?? AbortSignal.timeout(timeoutMs), cache: "no-store" };
  if (body !== undefined) {
    request.method = "POST";
    request.headers = token ? { "content-type": "application/json", "x-wf-token": token } : { "content-type": "application/json" };
    request.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (failure) {
    const late = failure instanceof DOMException && failure.name === "TimeoutError";
    throw new ApiError("UNREACHABLE", late ? `No answer within ${timeoutMs / 1000} s.` : "The engine does not answer.", true);
  }
  if (response.ok) return response;
  const error = (await response.json().catch(() => null))?.error;
  const message = typeof error === "string" ? error : error?.message; // a path of Ollama's gives only words
  throw new ApiError(error?.code ?? `HTTP_${response.status}`, message ?? "The answer was not readable.", error?.retryable, error?.details);
}

/** @param {string} path @param {Parameters<typeof send>[1]} [options] @returns {Promise<any>} the decoded answer; throws ApiError */
async function call(path, options) {
  const response = await send(path, options);
  const answer = await response.json().catch(() => null);
  if (answer === null) throw new ApiError(`HTTP_${response.status}`, "The answer was not readable.");
  return answer;
}

/** @returns {Promise<Bootstrap>} */
export const bootstrap = () => call("/api/bootstrap");

/** @returns {Promise<Health>} */
export const health = () => call("/health");

/** @returns {Promise<Listing>} */
export const models = () => call("/models");

/**
 * Downloads a model, and tells each step. As long as it takes; leaving stops it unless somebody else waits for it too.
 * @param {string} name @param {AbortSignal} signal @param {(step: PullStep) => void} onStep
 */
export async function pull(name, signal, onStep) {
  const response = await send("/api/pull", { body: { model: name, stream: true }, signal });
  let status = "";
  try {
    for await (const line of lines(/** @type {ReadableStream<Uint8Array<ArrayBuffer>>} */ (response.body))) {
      const step = JSON.parse(line);
      if (typeof step.error === "string") throw new ApiError("DOWNLOAD_FAILED", step.error);
      status = String(step.status);
      onStep({ ...step, status });
    }
  } catch (failure) {
    if (failure instanceof ApiError) throw failure;
    throw new ApiError("UNREACHABLE", "The engine broke off the download.", true);
  }
  if (status !== "success") throw new ApiError("UNREACHABLE", "The engine broke off the download.", true);
}

/** Brings a model into memory. @param {string} name @param {AbortSignal} signal @param {boolean} [pin] keep it there @returns {Promise<{load_time_ms: number|null, evicted: string[]}>} */
export const load = (name, signal, pin = false) => call("/models/load", { body: { name, warm_up: false, pin }, signal });

/** Takes a model out of memory. @param {string} name @returns {Promise<{freed_bytes: number}>} */
export const unload = (name) => call("/models/unload", { body: { name } });

/** Why a model is where it is. @param {string} name @returns {Promise<any>} */
export const why = (name) => call(`/models/${name.split("/").map(encodeURIComponent).join("/")}/why`);

/** @param {string} by model, agent or day @returns {Promise<any>} */
export const usage = (by) => call(`/usage?by=${by}`);

/** @returns {Promise<BrokerState>} */
export const broker = () => call("/broker");

/** @param {string} mode @param {string} token of this start @returns {Promise<BrokerState>} */
export const switchBroker = (mode, token) => call("/broker", { body: { mode }, token });

/** @returns {Promise<any>} */
export const stats = () => call("/stats");

/** Whether this start of the engine offers the classifier on its own port. @param {Bootstrap|null} engine */
export const classifies = (engine) => engine?.services?.includes(CLASSIFIER) === true;

/** @returns {Promise<ServiceInfo>} */
export const classifier = () => call(`/services/${CLASSIFIER}/info`);

/** @returns {Promise<Taxonomy>} */
export const taxonomy = () => call(`/services/${CLASSIFIER}/taxonomy`);

/**
 * As long as it takes; leaving stops the model.
 * @param {string} query @param {string[]} documents @param {AbortSignal} signal @returns {Promise<Classified>}
 */
export const classify = (query, documents, signal) => call(`/services/${CLASSIFIER}/extract_tmd`, { body: { query, context_docs: documents }, signal });

/** The engine's own description of its calls. @returns {Promise<import("./features.js").Description>} */
export const description = () => call("/openapi.json");

/**
 * Starts a session; its events arrive on the WebSocket.
 * @param {{mode: string, model?: string, models?: string[], prompt: string, parameters: Record<string, number>, broker?: "allow"}} request
 * @returns {Promise<Accepted>}
 */
export const generate = (request) => call("/generate", { body: request });

/** @param {string} sessionId @returns {Promise<Stopped>} */
export const stop = (sessionId) => call("/stop", { body: { session_id: sessionId }, timeoutMs: STOP_TIMEOUT_MS });
