/** The consent of one request to be answered outside this machine: asked with what would leave, gone when it was sent. */

import * as api from "./api.js";
import { element, fill } from "./elements.js";
import { byId, known, put } from "./format.js";
import { visible } from "./text.js";

const RULES = new Map([
  ["question", "The question and its parameters, nothing else."],
  ["whole", "Everything that is said in the request."],
]);
const OCCASIONS = new Map([
  ["advisory", "only if a model outside this machine is asked"],
  ["fallback", "if such a model is asked, or no model here can answer"],
  ["hybrid", "if such a model is asked, no model here can answer, or those here are busy"],
]);
const OFF = "disabled";

/** @typedef {import("./composer.js").Question} Question */
/** @typedef {{provider?: string, host?: string, model?: string, messages?: number, text_bytes?: number, images?: number, tools?: number, tokens_max?: number, usd_max?: number|null}} Leaving */

/** What is agreed to is exactly this. @param {Question} question */
const exactly = ({ mode, model, models, prompt, parameters }) => JSON.stringify([mode, model, models, prompt, parameters]);

export class Hybrid {
  /**
   * @param {() => import("./api.js").BrokerState|null} state what the engine says of its broker
   * @param {{question: () => Question, outside: (question: Question) => string[], goTo: (screen: string) => void}} page
   *   `outside`: who would get it, of the models that are asked
   */
  constructor(state, page) {
    this.state = state;
    this.page = page;
    this.button = /** @type {HTMLButtonElement} */ (byId("hybrid"));
    this.dialog = /** @type {HTMLDialogElement} */ (byId("leave"));
    this.yes = /** @type {HTMLButtonElement} */ (byId("leave-yes"));
    this._agreed = ""; // to which request
    /** @type {(yes: boolean) => void} */
    this._answer = () => {};
    this.button.addEventListener("click", () => void this._turned());
    this.dialog.addEventListener("close", () => this._answer(this.dialog.returnValue === "yes"));
    byId("leave-gateway").addEventListener("click", () => {
      this.dialog.close();
      page.goTo("gateway");
    });
  }

  /** Whether this engine can ask anybody outside. */
  get offered() {
    return this.state()?.available === true;
  }

  get on() {
    return this._agreed !== "";
  }

  /** 10 Hz. */
  show() {
    this.button.hidden = !this.offered;
    if (this.button.hidden && this.on) this._agreed = "";
    if (this.button.getAttribute("aria-checked") !== String(this.on)) this.button.setAttribute("aria-checked", String(this.on));
    put(byId("hybrid-state"), this.on ? "On, next request" : "Off");
  }

  /** Whether this very request may leave: what changed since it was agreed to is asked again. @param {Question} question */
  async allows(question) {
    if (!this.on) return false;
    return this._agreed === exactly(question) || this.ask(question);
  }

  /** The request went out, or was refused: the consent was for it alone. */
  spent() {
    this._agreed = "";
  }

  /** Shows what would leave and waits for the answer. @param {Question} question @param {Leaving|null} [leaving] as the engine told it */
  async ask(question, leaving = null) {
    if (this.dialog.open) return false;
    this._describe(question, leaving);
    this.dialog.returnValue = "";
    const answer = new Promise((/** @type {(yes: boolean) => void} */ done) => (this._answer = done));
    this.dialog.showModal();
    const yes = await answer;
    this._agreed = yes ? exactly(question) : "";
    return yes;
  }

  async _turned() {
    if (this.on) {
      this._agreed = "";
      return;
    }
    const question = this.page.question();
    await this.ask(question, await this._preview(question));
  }

  /** The engine tells what would leave when it refuses: a model outside never answers without consent. @param {Question} question @returns {Promise<Leaving|null>} */
  async _preview(question) {
    if (!question.prompt.trim() || this.page.outside(question).length === 0) return null;
    try {
      await api.generate(question);
    } catch (refusal) {
      return refusal instanceof api.ApiError ? (refusal.details.would_leave ?? null) : null;
    }
    return null;
  }

  /** @param {Question} question @param {Leaving|null} leaving */
  _describe(question, leaving) {
    const state = this.state();
    const hosts = (state?.providers ?? []).filter(({ key }) => key).map(({ name, host }) => `${name} (${host})`);
    const asked = this.page.outside(question);
    const told = leaving?.host ? [`${leaving.provider} (${leaving.host})`] : [];
    const who = [...new Set([...asked, ...told, ...(state?.mode === "advisory" ? [] : hosts)])]; // all that may get it
    const off = !state || state.mode === OFF;
    const trouble = off ? "The engine's broker is switched off: nothing leaves, whatever is agreed to here. It is switched on under Gateway." : who.length === 0 ? (state.mode === "advisory" && hosts.length > 0 ? "No model outside this machine is asked: in mode advisory nothing would leave." : "No provider has a key: there is nobody to send it to.") : "";
    put(byId("leave-trouble"), trouble);
    byId("leave-trouble").hidden = trouble === "";
    byId("leave-gateway").hidden = !off;
    this.yes.disabled = trouble !== "";
    const set = Object.entries(question.parameters).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`);
    const price = leaving && known(leaving.tokens_max) ? [`at most ${leaving.tokens_max} tokens, in and out, ${known(leaving.usd_max) ? `$${leaving.usd_max.toFixed(4)}` : "at a price nobody knows"}`] : [];
    const limits = state ? [`${state.limits.calls_per_hour} calls an hour, ${state.limits.daily_tokens} tokens and $${state.limits.daily_usd.toFixed(2)} a day; today ${state.spent.tokens} tokens, $${state.spent.usd.toFixed(2)}`] : [];
    const counts = leaving && known(leaving.text_bytes) ? ` As the engine counts it: ${leaving.messages} message, ${leaving.text_bytes} bytes of text, ${leaving.images} images, ${leaving.tools} tools.` : "";
    fill(byId("leave-rows"), [
      ["to", visible(who.join(", ")) || "nobody"],
      ["when", asked.length > 0 ? "now: a model outside this machine is asked" : (OCCASIONS.get(state?.mode ?? "") ?? "never")],
      ["what", `${RULES.get(state?.context ?? "") ?? "As the engine's policy says."}${counts}`],
      ["parameters", set.join(", ") || "none"],
      ["price", price.join("") || "by the provider's prices"],
      ["limits", limits.join("") || "unknown"],
    ]);
    byId("leave-text").replaceChildren(question.prompt.trim() ? visible(question.prompt) : element("span", "quiet", "Nothing is written yet. What you write is shown here again before it is sent."));
  }
}
