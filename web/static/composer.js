/** The prompt form: what to ask, parameters, Run and Stop. Prompts stay in this page's memory and go to the engine only. */

import * as api from "./api.js";
import { byId, put } from "./format.js";
import { Picker } from "./picker.js";
import { visible } from "./text.js";
import { recall, remember } from "./theme.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./api.js").Model} Model */
/** @typedef {Parameters<typeof api.generate>[0]} Question without consent: that is of one request alone */

const PROMPTS = 80;
const PARAMETERS = [["temperature", "temperature"], ["max_tokens", "max-tokens"], ["seed", "seed"], ["top_p", "top-p"], ["top_k", "top-k"]];
const OWN = "embedded"; // the built-in demonstration models' runtime

export class Composer {
  constructor() {
    this.form = /** @type {HTMLFormElement} */ (byId("composer"));
    this.prompt = /** @type {HTMLTextAreaElement} */ (byId("prompt"));
    this.picker = new Picker(() => this._clear());
    this.model = this.picker.model;
    this.run = /** @type {HTMLButtonElement} */ (byId("run"));
    this.stopButton = /** @type {HTMLButtonElement} */ (byId("stop"));
    /** @type {Map<string, Model>} */
    this.models = new Map();
    this.modelsKnown = false;
    /** @type {Map<string, Question>} of this page's own sessions */
    this.questions = new Map();
    this.again = /** @type {HTMLButtonElement} */ (byId("again"));
    /** @type {Question|null} of the session shown, once it is over */
    this._over = null;
    this.retry = byId("retry");
    this._retry = () => {};
    /** @type {import("./hybrid.js").Hybrid|null} asks whether a request may leave this machine, where that can be */
    this.hybrid = null;
    /** @type {Map<string, {answer: api.Stopped|null, failed: string}>} */
    this.stops = new Map();
    this.sending = false;
    this.onAccepted = () => {};
    /** @type {(words: string) => void} */
    this.onNote = () => {};
    /** @type {(listing: api.Listing) => void} */
    this.onListed = () => {};
    /** @type {"no"|"asking"|"again"} */
    this._refreshing = "no";
    this._unlisted = false; // what is shown as refused is the list of models
    this._choice = "";
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.submit();
    });
    this.again.addEventListener("click", () => this._over && this._send(this._over));
    this.retry.addEventListener("click", () => this._retry());
    for (const example of document.querySelectorAll("#examples button")) {
      example.addEventListener("click", () => {
        this.prompt.value = example.textContent ?? "";
        this.prompt.focus();
      });
    }
  }

  /** Asks the engine which models there are, one question at a time. Own failures are shown, not thrown. @param {string} [choice] picked if it is there */
  async refreshModels(choice = "") {
    if (choice) this._choice = choice;
    if (this._refreshing !== "no") {
      this._refreshing = "again"; // what is being answered may be old by now
      return;
    }
    do {
      this._refreshing = "asking";
      try {
        this._list(await api.models());
        if (this._unlisted) byId("refusal").hidden = true; // it is there again
        this._unlisted = false;
      } catch (error) {
        if (!byId("refusal").hidden) continue; // what a person was refused stays
        this._refuse(error, () => this.refreshModels());
        this._unlisted = true;
      }
    } while (/** @type {string} */ (this._refreshing) === "again");
    this._refreshing = "no";
  }

  /** @param {api.Listing} listing */
  _list(listing) {
    this.models = new Map(listing.models.map((model) => [model.name, model]));
    this.modelsKnown = true;
    const picked = [this._choice, `${this._choice}:latest`].find((name) => this.models.has(name));
    if (picked) this._choice = "";
    const wanted = picked || this.model.value || recall("model");
    this.picker.listed(this.models, wanted ?? "");
    if (picked) remember("model", picked);
    this.onListed(listing);
  }

  /** Whether the built-in models can be asked. */
  get demonstrations() {
    return [...this.models.values()].some((model) => model.runtime === OWN);
  }

  async submit() {
    const prompt = this.prompt.value;
    if (this.run.disabled) {
      if (!this.sending) this._refuse(new api.ApiError("NOT_READY", "The page is not connected to the engine yet, or there is no model to ask; try again in a moment."), () => this.submit());
      return;
    }
    if (!prompt.trim()) {
      this.prompt.focus();
      return;
    }
    if (!this.form.reportValidity()) return;
    if (this.picker.trouble) {
      this._refuse(new api.ApiError("NOT_READY", this.picker.trouble), () => this.submit());
      return;
    }
    const { question, hybrid } = this;
    const wanted = hybrid?.on === true;
    const leaves = wanted && (await hybrid.allows(question));
    if (!wanted || leaves) await this._send(question, leaves);
  }

  /** What Run would ask now. @returns {Question} */
  get question() {
    return { ...this.picker.request, prompt: this.prompt.value, parameters: this._parameters() };
  }

  /**
   * Asks it, for the first time or again. What is in the prompt box stays; an empty one gets the question.
   * @param {Question} question @param {boolean} [leaves] the person agreed that this one may leave this machine
   */
  async _send(question, leaves = false) {
    if (this.sending) return;
    this.sending = true;
    this._clear();
    this.prompt.value ||= question.prompt;
    try {
      const { session_id, dropped_models: dropped = [] } = await api.generate(leaves ? { ...question, broker: "allow" } : question);
      this._note(dropped.length > 0 ? `The tier leaves out ${dropped.map(visible).join(", ")}.` : "");
      this.questions.set(session_id, question);
      if (this.questions.size > PROMPTS) this.questions.delete(this.questions.keys().next().value ?? "");
      this.onAccepted();
    } catch (error) {
      this._refuse(error, () => this._send(question));
      if (!leaves) void this._consent(question, error);
    } finally {
      this.sending = false;
      if (leaves) this.hybrid?.spent();
    }
  }

  /** A model outside this machine was asked without consent: the engine told what would leave. @param {Question} question @param {unknown} error */
  async _consent(question, error) {
    const leaving = error instanceof api.ApiError && error.code === "BROKER_DISABLED" ? error.details.would_leave : null;
    if (!leaving || !this.hybrid?.offered || !(await this.hybrid.ask(question, leaving))) return;
    await this._send(question, true);
  }

  /** Asks for a stop. Only session_end says that it happened. @param {Session|null} session */
  async stop(session) {
    if (!session?.active || session.recorded || this.stops.has(session.id)) return;
    /** @type {{answer: api.Stopped|null, failed: string}} */
    const state = { answer: null, failed: "" };
    this.stops.set(session.id, state);
    if (this.stops.size > PROMPTS) this.stops.delete(this.stops.keys().next().value ?? "");
    try {
      state.answer = await api.stop(session.id);
    } catch (error) {
      this.stops.delete(session.id); // so that it can be tried again
      this._refuse(error, () => this.stop(session));
    }
  }

  /** 10 Hz. @param {Session|null} session the one shown @param {boolean} live */
  show(session, live) {
    this.run.disabled = this.sending || !live || this.models.size === 0;
    const cancelling = session !== null && session.active && this.stops.has(session.id);
    this.stopButton.disabled = !session?.active || cancelling || !live;
    byId("examples").hidden = session !== null || this.models.size === 0;
    this._over = session && !session.active ? (this.questions.get(session.id) ?? null) : null;
    this.again.hidden = this._over === null;
    this.again.disabled = this.run.disabled;
    put(this.again, session && (session.lost || session.end?.error) ? "Try again" : "Ask again");
    const many = this.picker.mode !== "single";
    const hint = many ? "Ask the council…" : "Ask something…";
    if (this.prompt.placeholder !== hint) this.prompt.placeholder = hint;
    const label = /** @type {Text} */ (this.stopButton.firstChild);
    const wording = cancelling ? "Cancelling… " : "Stop ";
    if (label.data !== wording) label.data = wording;
  }

  /** @returns {Record<string, number>} */
  _parameters() {
    const parameters = /** @type {Record<string, number>} */ ({});
    for (const [name, id] of PARAMETERS) {
      const value = /** @type {HTMLInputElement} */ (byId(id)).valueAsNumber;
      if (Number.isFinite(value)) parameters[name] = value;
    }
    return parameters;
  }

  _clear() {
    this._unlisted = false;
    byId("refusal").hidden = true;
    this._note("");
  }

  /** @param {string} words */
  _note(words) {
    put(byId("note"), words);
    byId("note").hidden = words === "";
    if (words) this.onNote(words);
  }

  /** @param {unknown} error @param {() => void} again what the button does */
  _refuse(error, again) {
    this._unlisted = false;
    this._retry = () => {
      this._clear();
      again();
    };
    put(byId("refusal-code"), error instanceof api.ApiError ? error.code : "PAGE_ERROR");
    put(byId("refusal-message"), error instanceof Error ? error.message : String(error));
    byId("refusal").hidden = false;
  }
}
