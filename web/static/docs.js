/** The HTTP API to read and to try, made from /openapi.json. Own origin only. */

import { element, example, paragraphs, Schemas, table, words } from "./docs_schema.js";
import { byId } from "./format.js";
import { Theme } from "./theme.js";

/** @typedef {Record<string, any>} Json */

const SHOWN_CHARS_MAX = 100_000; // of an answer that was tried; the rest is not read

/** @type {Record<string, string>} */
const NAMES = { openai: "OpenAI" };

class Trial {
  /** A form that sends one GET. @param {string} path @param {Json[]} parameters */
  constructor(path, parameters) {
    this.path = path;
    this.parameters = parameters;
    this.inputs = parameters.map((parameter) => this._input(parameter));
    this.send = /** @type {HTMLButtonElement} */ (element("button", { class: "button run", type: "submit" }, "Send"));
    this.stop = /** @type {HTMLButtonElement} */ (element("button", { class: "button", type: "button", disabled: "" }, "Stop"));
    this.out = element("output", { "aria-label": "Answer" });
    const labels = parameters.map((parameter, index) => element("label", {}, parameter.name, this.inputs[index]));
    this.form = element("form", { class: "try", autocomplete: "off" }, ...labels, this.send, this.stop, this.out);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this._run();
    });
    this.stop.addEventListener("click", () => this.leave?.abort());
  }

  /** @param {Json} parameter @returns {HTMLInputElement} */
  _input(parameter) {
    const input = /** @type {HTMLInputElement} */ (element("input", { spellcheck: "false", autocapitalize: "off" }));
    input.required = parameter.required;
    input.placeholder = parameter.example ?? "";
    return input;
  }

  get url() {
    let path = this.path;
    const query = new URLSearchParams();
    this.parameters.forEach((parameter, index) => {
      const value = this.inputs[index].value;
      if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(value));
      else if (value) query.set(parameter.name, value);
    });
    return query.size ? `${path}?${query}` : path;
  }

  async _run() {
    this.leave = new AbortController();
    this.send.disabled = true;
    this.stop.disabled = false;
    const status = element("p", { class: "mono" }, `GET ${this.url}`);
    const body = element("pre", { tabindex: "0", "aria-label": "Body of the answer" });
    this.out.replaceChildren(status);
    try {
      const response = await fetch(this.url, { signal: this.leave.signal, cache: "no-store" });
      const type = response.headers.get("content-type") ?? "";
      status.textContent = `${response.status} ${response.statusText} · ${type} · request ${response.headers.get("x-request-id") ?? "—"}`;
      this.out.append(body);
      await this._read(response, body);
      if (type.includes("json") && !type.includes("ndjson")) body.textContent = pretty(body.textContent ?? "");
    } catch (failure) {
      const left = this.leave.signal.aborted;
      this.out.append(element("p", { class: left ? "quiet" : "error" }, left ? "Stopped." : `No answer: ${failure}`));
    } finally {
      this.leave.abort(); // also when there was more than is shown
      this.send.disabled = false;
      this.stop.disabled = true;
    }
  }

  /** @param {Response} response @param {HTMLElement} body */
  async _read(response, body) {
    const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
    let shown = 0;
    for (let step = await reader?.read(); step && !step.done; step = await reader?.read()) {
      body.append(step.value.slice(0, SHOWN_CHARS_MAX - shown));
      shown += step.value.length;
      if (shown > SHOWN_CHARS_MAX) {
        this.out.append(element("p", { class: "quiet" }, `Only the first ${SHOWN_CHARS_MAX} characters are shown.`));
        return;
      }
    }
  }
}

/** @param {string} text @returns {string} */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // cut off where it became too long
  }
}

class Docs {
  /** @param {Json} api the OpenAPI document */
  constructor(api) {
    this.api = api;
    this.schemas = new Schemas(api.components.schemas);
    this.responses = /** @type {Record<string, Json>} */ (api.components.responses);
    /** @type {{text: string, box: HTMLElement}[]} */
    this.calls = [];
  }

  show() {
    byId("version").textContent = this.api.info.version;
    byId("about").replaceChildren(...paragraphs(this.api.info.description));
    byId("calls").replaceChildren(...this.api.tags.map((/** @type {Json} */ tag) => this._group(tag)));
    addEventListener("hashchange", () => this._jump());
    this._jump();
  }

  /** @param {string} wanted */
  filter(wanted) {
    const text = wanted.trim().toLowerCase();
    for (const call of this.calls) call.box.hidden = !call.text.includes(text);
    for (const group of byId("calls").children) {
      /** @type {HTMLElement} */ (group).hidden = !group.querySelector(".call:not([hidden])");
    }
    byId("none").hidden = this.calls.some((call) => !call.box.hidden);
  }

  /** Opens the call that the address names. */
  _jump() {
    const box = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!(box instanceof HTMLDetailsElement)) return;
    box.open = true;
    box.scrollIntoView();
  }

  /** @param {Json} tag */
  _group(tag) {
    const group = element("section", {}, element("h2", {}, NAMES[tag.name] ?? tag.name), element("p", { class: "quiet" }, ...words(tag.description)));
    for (const [path, item] of Object.entries(/** @type {Record<string, Json>} */ (this.api.paths))) {
      for (const [method, call] of Object.entries(item)) {
        if (call.tags?.includes(tag.name)) group.append(this._call(path, method, call));
      }
    }
    return group;
  }

  /** @param {string} path @param {string} method @param {Json} call */
  _call(path, method, call) {
    const box = element(
      "details",
      { class: "call card", id: call.operationId },
      element(
        "summary",
        {},
        element("span", { class: "method", "data-method": method }, method.toUpperCase()),
        element("span", { class: "path" }, path),
        element("span", { class: "quiet" }, call.summary),
      ),
    );
    box.addEventListener("toggle", () => box.childElementCount > 1 || box.append(this._inside(path, method, call)));
    this.calls.push({ text: `${method} ${path} ${call.summary}`.toLowerCase(), box });
    return box;
  }

  /** @param {string} path @param {string} method @param {Json} call */
  _inside(path, method, call) {
    const box = element("div", { class: "inside" });
    if (call.description) box.append(...paragraphs(call.description));
    const parameters = /** @type {Json[]} */ (call.parameters ?? []);
    if (parameters.length) {
      const rows = parameters.map((one) => [[one.name], [one.in], words(one.description), [element("code", {}, one.example)]]);
      box.append(element("h4", {}, "Parameters"), table(["Name", "In", "About", "For example"], rows));
    }
    if (call.requestBody) box.append(element("h4", {}, "Body"), ...this._bodies(call.requestBody.content));
    const answers = Object.entries(/** @type {Record<string, Json>} */ (call.responses));
    box.append(element("h4", {}, "Answers"));
    for (const [status, answer] of answers.filter(([, one]) => !one.$ref)) {
      box.append(element("h5", {}, element("code", {}, status), " ", ...words(answer.description)), ...this._bodies(answer.content ?? {}));
    }
    const refused = answers.filter(([, one]) => one.$ref).map(([status, one]) => [[status], words(this._response(one).description)]);
    box.append(element("h4", {}, "Errors"), table(["Status", "Code"], refused), this._errorExample());
    if (method === "get" && !call.tags.includes("page")) box.append(element("h4", {}, "Try it"), new Trial(path, parameters).form);
    return box;
  }

  /** @param {Json} reference @returns {Json} */
  _response(reference) {
    return this.responses[reference.$ref.slice(reference.$ref.lastIndexOf("/") + 1)];
  }

  /** @param {Record<string, Json>} content @returns {HTMLElement[]} */
  _bodies(content) {
    return Object.entries(content).flatMap(([type, media]) => {
      const each = { line: ", each line", event: ", the data of each event" }[/** @type {string} */ (media["x-each"])] ?? "";
      const parts = [element("p", { class: "mono quiet" }, type + each)];
      const data = media.schema.properties?.data;
      const shown = media["x-each"] === "event" ? data.contentSchema ?? data.anyOf[1].contentSchema : media.schema;
      const { schema } = this.schemas.resolve(shown);
      if (schema.type !== "string") parts.push(this.schemas.view(shown));
      const first = (schema.examples ?? schema.oneOf?.find((/** @type {Json} */ one) => one.examples)?.examples)?.[0];
      if (first !== undefined) parts.push(example(first, `Example of ${type}`));
      return parts;
    });
  }

  _errorExample() {
    const box = element("details", { class: "inner" }, element("summary", {}, "What an error looks like"));
    const { schema } = this.schemas.resolve({ $ref: "#/components/schemas/error" });
    box.append(element("div", {}, ...(schema.examples ? [example(schema.examples[0], "Example of an error")] : []), this.schemas.view(schema)));
    return box;
  }
}

const theme = new Theme(() => {});
byId("theme").addEventListener("click", () => theme.toggle());
try {
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(`the engine answered ${response.status}`);
  const docs = new Docs(await response.json());
  docs.show();
  byId("filter").addEventListener("input", (event) => docs.filter(/** @type {HTMLInputElement} */ (event.target).value));
} catch (failure) {
  const trouble = byId("trouble");
  trouble.textContent = `The API's description could not be read (${failure instanceof Error ? failure.message : failure}). Is the engine running? Reload to try again.`;
  trouble.hidden = false;
}
