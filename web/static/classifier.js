/** The Classifier screen: what a query is about, what it wants and how to find it, in the words of the vocabularies. */

import * as api from "./api.js";
import { byId, fixed, put } from "./format.js";
import * as slow from "./slow.js";
import { row } from "./templates.js";
import { visible } from "./text.js";
import { html, nothing, render, signal } from "./vendor/vendor.js";

const DOCUMENTS_MAX = 64; // more of them are refused by the service
/** @type {api.Part[]} */
const PARTS = ["domain", "task", "method"];

export class Classifier {
  /** @param {(offered: boolean) => void} onKnown @param {(words: string) => void} say */
  constructor(onKnown, say) {
    this.onKnown = onKnown;
    this.say = say;
    this._busy = signal(false);
    this._refusal = signal({ code: "", message: "" });
    /** @type {AbortController|null} while a question is out */
    this._asking = null;
    this._askedAt = 0;
    this._draw();
    this.query = /** @type {HTMLTextAreaElement} */ (byId("c-query"));
    this.documents = /** @type {HTMLTextAreaElement} */ (byId("c-docs"));
    slow.whileShown("classifier", () => this._draw());
  }

  /** The line came up: there may be a classifier now, or none any more. @param {api.Bootstrap|null} engine */
  async look(engine) {
    if (!api.classifies(engine)) {
      slow.classifier.value = null;
      this.onKnown(false);
      return;
    }
    try {
      const [info, taxonomy] = await Promise.all([api.classifier(), api.taxonomy()]);
      slow.classifier.value = { info, taxonomy };
      this.onKnown(true);
    } catch {
      slow.classifier.value = null;
      this.onKnown(false); // asked again when the line comes up the next time
    }
  }

  /** 10 Hz while the screen is shown. @param {number} now */
  show(now) {
    if (this._asking) put(byId("c-state"), `asking the model, one label at a time · ${((now - this._askedAt) / 1000).toFixed(1)} s`);
  }

  async ask() {
    if (this._asking || !/** @type {HTMLFormElement} */ (byId("classify")).reportValidity()) return;
    const documents = this.documents.value.split("\n").filter((line) => line.trim());
    if (!this.query.value.trim()) return this.query.focus();
    if (documents.length > DOCUMENTS_MAX) return this._refuse("TOO_MANY", `${documents.length} documents; at most ${DOCUMENTS_MAX} go along.`);
    const asking = (this._asking = new AbortController());
    this._askedAt = performance.now();
    slow.classified.value = null; // it was the answer to another question
    this._refuse("", "");
    this._busy.value = true;
    try {
      const answer = await api.classify(this.query.value, documents, asking.signal);
      slow.classified.value = { answer, ms: performance.now() - this._askedAt, sent: documents.length };
      put(byId("c-state"), "");
      this.say(PARTS.map((part) => visible(answer.tmd[part])).join(", "));
    } catch (error) {
      if (asking.signal.aborted) put(byId("c-state"), "Cancelled.");
      else this._refuse(error instanceof api.ApiError ? error.code : "PAGE_ERROR", error instanceof Error ? error.message : String(error));
    } finally {
      this._asking = null;
      this._busy.value = false;
    }
  }

  /** @param {string} code @param {string} message */
  _refuse(code, message) {
    put(byId("c-state"), "");
    this._refusal.value = { code, message };
  }

  /** @param {KeyboardEvent} event */
  _pressed(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.ask();
  }

  _draw() {
    render(this._view(), byId("screen-classifier"));
  }

  _view() {
    const known = slow.classifier.value;
    const about = known ? (known.info.fallback_reason ? `${visible(known.info.model.name)} stands in for ${visible(known.info.requested_model)}` : visible(known.info.model.name)) : "";
    const busy = this._busy.value;
    const { code, message } = this._refusal.value;
    const pressed = (/** @type {KeyboardEvent} */ event) => this._pressed(event);
    const submitted = (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      this.ask();
    };
    return html`
      <div class="title"><h2 id="classifier-title">Classifier</h2><span class="mono quiet" id="c-about">${about}</span></div>
      <form class="card latency classify" id="classify" autocomplete="off" @submit=${submitted}>
        <label><span>Query</span><textarea id="c-query" rows="2" maxlength="8192" required @keydown=${pressed}></textarea></label>
        <label><span>Context documents <span class="quiet">optional, one a line</span></span><textarea id="c-docs" rows="3" @keydown=${pressed}></textarea></label>
        <div class="line"><span class="mono quiet small grow" id="c-state"></span><button class="button" id="c-cancel" type="button" ?hidden=${!busy} @click=${() => this._asking?.abort()}>Cancel</button><button class="button run" id="c-run" type="submit" ?disabled=${busy}>Classify <kbd>Ctrl ↵</kbd></button></div>
        <div class="error" id="c-trouble" role="alert" ?hidden=${code === ""}><b id="c-trouble-code">${code}</b><span id="c-trouble-message">${message}</span> <button class="button small" id="c-again" type="button" @click=${() => this.ask()}>Try again</button></div>
      </form>
      ${answered(slow.classified.value)}
      ${known ? domains(known.taxonomy, slow.classified.value?.answer) : nothing}`;
  }
}

/** @param {{answer: api.Classified, ms: number, sent: number}|null} last */
function answered(last) {
  if (last === null) return html`<div class="card latency" id="c-answer" hidden></div>`;
  const { answer, ms, sent } = last;
  const { tmd, confidence, validated, confidence_reason: reasons, context_docs_used: used, context_chars_dropped: cut, model, fallback_reason: why } = answer;
  const rows = PARTS.map((part) => row([part, visible(tmd[part]), fixed(confidence[part], 2), [validated[part] ? "" : "stands in", visible(reasons[part] ?? "")].filter(Boolean).join(": ")]));
  return html`<div class="card latency" id="c-answer">
    <div class="line"><h3>Answer</h3><span class="mono quiet" id="c-latency" title="From asking to the whole answer, as this page measured it: one question to the model for each of the three">${ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(2)} s`}</span></div>
    <table class="decisions labelled"><thead><tr><th scope="col"><span class="hidden">Part</span></th><th scope="col">label</th><th scope="col" title="The model's own probability of beginning its answer so, from its log-probabilities; not a share of 1">confidence</th><th scope="col">why</th></tr></thead><tbody id="c-rows">${rows}</tbody></table>
    <p id="c-model">${why ? `${visible(model)} answered and stands in: ${visible(why)}.` : `${visible(model)} answered, the model this service is for.`}</p>
    <p class="quiet small" id="c-context">${sent > 0 ? `${used} of ${sent} context documents were read${cut > 0 ? `, ${cut} characters of them cut` : ""}.` : ""}</p>
  </div>`;
}

/** @param {api.Taxonomy} taxonomy @param {api.Classified|undefined} answer marks the model's own word */
function domains(taxonomy, answer) {
  const { version, fallback, labels } = taxonomy.domain;
  const marked = answer?.validated.domain ? answer.tmd.domain : null;
  return html`<div class="card latency"><div class="line"><h3>Domains</h3><span class="mono quiet small" id="c-version">${`${labels.length} domains · taxonomy ${version} · tasks ${taxonomy.task.version} · methods ${taxonomy.method.version}`}</span></div>
    <ul class="labels mono" id="c-domains">${labels.map((label) => html`<li aria-current=${label === marked ? "true" : nothing}>${visible(label)}</li>`)}</ul>
    <p class="quiet small" id="c-fallback">${fallback} stands where the model named none of them.</p></div>`;
}
