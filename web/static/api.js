/** The engine's HTTP API, as far as the page needs it. Own origin only. */

const TIMEOUT_MS = 10_000;
const STOP_TIMEOUT_MS = 30_000; // /stop answers when the runtime's connection is closed

/**
 * @typedef {{ws_url: string, version: string, schema_version: string, boot: string, tier: string}} Bootstrap
 * @typedef {{name: string, runtime: string, state?: string, capabilities?: string[], details?: Record<string, any>}} Model
 * @typedef {{session_id: string, dropped_models?: string[]}} Accepted
 * @typedef {{success: boolean, tokens_generated: number, stop_latency_ms: number|null}} Stopped
 * @typedef {{runtimes: {name: string, local: boolean, up: boolean, reason: string|null}[]}} Health
 */

/** A refusal of the engine, or the lack of any answer (code UNREACHABLE, made here). */
export class ApiError extends Error {
  /** @param {string} code @param {string} message @param {boolean} [retryable] */
  constructor(code, message, retryable = false) {
    super(message);
    this.code = code;
    this.retryable = retryable;
  }
}

/**
 * @param {string} path
 * @param {{body?: object, timeoutMs?: number}} [options] a body makes it a POST
 * @returns {Promise<any>} the decoded answer; throws ApiError
 */
async function call(path, { body, timeoutMs = TIMEOUT_MS } = {}) {
  /** @type {RequestInit} */
  const request = { signal: AbortSignal.timeout(timeoutMs), cache: "no-store" };
  if (body !== undefined) {
    request.method = "POST";
    request.headers = { "content-type": "application/json" };
    request.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (failure) {
    const late = failure instanceof DOMException && failure.name === "TimeoutError";
    throw new ApiError("UNREACHABLE", late ? `No answer within ${timeoutMs / 1000} s.` : "The engine does not answer.", true);
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  const error = answer?.error;
  throw new ApiError(error?.code ?? `HTTP_${response.status}`, error?.message ?? "The answer was not readable.", error?.retryable);
}

/** @returns {Promise<Bootstrap>} */
export const bootstrap = () => call("/api/bootstrap");

/** @returns {Promise<Health>} */
export const health = () => call("/health");

/** @returns {Promise<Model[]>} */
export const models = async () => (await call("/models")).models;

/**
 * Starts a session; its events arrive on the WebSocket.
 * @param {{model: string, prompt: string, parameters: Record<string, number>}} request
 * @returns {Promise<Accepted>}
 */
export const generate = (request) => call("/generate", { body: { mode: "single", ...request } });

/** @param {string} sessionId @returns {Promise<Stopped>} */
export const stop = (sessionId) => call("/stop", { body: { session_id: sessionId }, timeoutMs: STOP_TIMEOUT_MS });
