/** The Classifier screen: what a query is about, what it wants and how to find it, in the words of the vocabularies. */

import * as api from "./api.js";
import { element, fill } from "./elements.js";
import { byId, fixed, put } from "./format.js";
import { visible } from "./text.js";

const DOCUMENTS_MAX = 64; // more of them are refused by the service
/** @type {api.Part[]} */
const PARTS = ["domain", "task", "method"];

export class Classifier {
  /** @param {(offered: boolean) => void} onKnown @param {(words: string) => void} say */
  constructor(onKnown, say) {
    this.onKnown = onKnown;
    this.say = say;
    this.query = /** @type {HTMLTextAreaElement} */ (byId("c-query"));
    this.documents = /** @type {HTMLTextAreaElement} */ (byId("c-docs"));
    this.run = /** @type {HTMLButtonElement} */ (byId("c-run"));
    this.cancel = byId("c-cancel");
    /** @type {AbortController|null} while a question is out */
    this._asking = null;
    this._askedAt = 0;
    byId("classify").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    for (const box of [this.query, this.documents]) {
      box.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.ask();
      });
    }
    this.cancel.addEventListener("click", () => this._asking?.abort());
    byId("c-again").addEventListener("click", () => this.ask());
  }

  /** The line came up: there may be a classifier now, or none any more. @param {api.Bootstrap|null} engine */
  async look(engine) {
    if (!api.classifies(engine)) {
      this.onKnown(false);
      return;
    }
    try {
      const [info, taxonomy] = await Promise.all([api.classifier(), api.taxonomy()]);
      this._about(info, taxonomy);
      this.onKnown(true);
    } catch {
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
    this._busy(true);
    try {
      this._answered(await api.classify(this.query.value, documents, asking.signal), performance.now() - this._askedAt, documents.length);
    } catch (error) {
      if (asking.signal.aborted) put(byId("c-state"), "Cancelled.");
      else this._refuse(error instanceof api.ApiError ? error.code : "PAGE_ERROR", error instanceof Error ? error.message : String(error));
    } finally {
      this._asking = null;
      this._busy(false);
    }
  }

  /** @param {boolean} busy */
  _busy(busy) {
    this.run.disabled = busy;
    this.cancel.hidden = !busy;
    if (!busy) return;
    byId("c-trouble").hidden = true;
    byId("c-answer").hidden = true; // it answered another question
    this._mark("");
  }

  /** @param {string} code @param {string} message */
  _refuse(code, message) {
    put(byId("c-state"), "");
    put(byId("c-trouble-code"), code);
    put(byId("c-trouble-message"), message);
    byId("c-trouble").hidden = false;
  }

  /** @param {api.ServiceInfo} info @param {api.Taxonomy} taxonomy */
  _about({ model, requested_model: wanted, fallback_reason: why }, taxonomy) {
    put(byId("c-about"), why ? `${visible(model.name)} stands in for ${visible(wanted)}` : visible(model.name));
    const { version, fallback, labels } = taxonomy.domain;
    put(byId("c-version"), `${labels.length} domains · taxonomy ${version} · tasks ${taxonomy.task.version} · methods ${taxonomy.method.version}`);
    put(byId("c-fallback"), `${fallback} stands where the model named none of them.`);
    byId("c-domains").replaceChildren(...labels.map((label) => element("li", { "data-label": label }, visible(label))));
  }

  /** @param {api.Classified} answer @param {number} ms @param {number} sent documents */
  _answered({ tmd, confidence, validated, confidence_reason: reasons, context_docs_used: used, context_chars_dropped: cut, model, fallback_reason: why }, ms, sent) {
    const rows = PARTS.map((part) => [part, visible(tmd[part]), fixed(confidence[part], 2), [validated[part] ? "" : "stands in", visible(reasons[part] ?? "")].filter(Boolean).join(": ")]);
    fill(byId("c-rows"), rows);
    put(byId("c-latency"), ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(2)} s`);
    put(byId("c-model"), why ? `${visible(model)} answered and stands in: ${visible(why)}.` : `${visible(model)} answered, the model this service is for.`);
    const dropped = cut > 0 ? `, ${cut} characters of them cut` : "";
    put(byId("c-context"), sent > 0 ? `${used} of ${sent} context documents were read${dropped}.` : "");
    put(byId("c-state"), "");
    byId("c-answer").hidden = false;
    this._mark(validated.domain ? tmd.domain : "");
    this.say(`${visible(tmd.domain)}, ${visible(tmd.task)}, ${visible(tmd.method)}`);
  }

  /** @param {string} domain the model's own word */
  _mark(domain) {
    for (const item of byId("c-domains").children) {
      if (item instanceof HTMLElement && item.dataset.label === domain) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    }
  }
}
