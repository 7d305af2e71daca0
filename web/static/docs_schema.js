/** Schemas as tables: fields, what they hold, their limits. Text is set as text; nothing here is parsed as HTML. */

/** @typedef {Record<string, any>} Schema */

const DEPTH_MAX = 6; // of types inside types: enough for all we say, and an end for a type that holds itself
const NOT_SHOWN = new Set(["object", "null"]);

/**
 * @param {string} tag @param {Record<string, string>} attributes @param {(Node|string)[]} inside
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

/** Text with `code` in backticks. @param {string} text @returns {(Node|string)[]} */
export function words(text) {
  return text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

/** @param {string} text @returns {HTMLElement[]} a paragraph for each part between empty lines */
export const paragraphs = (text) => text.split("\n\n").map((part) => element("p", {}, ...words(part)));

/** @param {any} value @param {string} label */
export function example(value, label) {
  return element("pre", { tabindex: "0", "aria-label": label }, JSON.stringify(value, null, 2));
}

/** @param {string[]} heads @param {(Node|string)[][][]} rows cells of rows */
export function table(heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, ...cell))));
  return element("div", { class: "table" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

export class Schemas {
  /** @param {Record<string, Schema>} all the document's components */
  constructor(all) {
    this.all = all;
  }

  /** @param {Schema} schema @returns {{name: string, schema: Schema}} what it refers to; itself, without a name, else */
  resolve(schema) {
    if (typeof schema.$ref !== "string") return { name: "", schema };
    const name = schema.$ref.slice(schema.$ref.lastIndexOf("/") + 1);
    return { name, schema: this.all[name] ?? {} };
  }

  /** The schema with all it says, for reading. @param {Schema} given @param {number} depth @returns {HTMLElement} */
  view(given, depth = 0) {
    const { schema } = this.resolve(given);
    const box = element("div");
    if (depth && schema.description) box.append(...paragraphs(schema.description));
    if (schema.properties) box.append(this._fields(schema, depth));
    const choices = schema.oneOf ?? (schema.properties ? undefined : schema.anyOf ?? schema.allOf);
    if (choices && !schema.properties) {
      for (const choice of choices) box.append(this._inner(choice, depth));
    } else if (!schema.properties) {
      box.append(element("p", { class: "quiet" }, this.type(schema) || "anything"));
    }
    return box;
  }

  /** @param {Schema} schema @param {number} depth */
  _fields(schema, depth) {
    const needed = new Set(schema.required ?? []);
    const fields = Object.entries(/** @type {Record<string, Schema>} */ (schema.properties));
    const rows = fields.map(([name, field]) => {
      const mark = needed.has(name) ? [element("span", { class: "needed", title: "always there" }, " *")] : [];
      return [[name, ...mark], [this.type(field)], words(this.limits(field))];
    });
    const box = element("div", {}, table(["Field", "Holds", "About"], rows));
    for (const [, field] of fields) for (const inner of this._named(field)) box.append(this._inner(inner, depth));
    return box;
  }

  /** @param {Schema} field @returns {Schema[]} the types with fields of their own that it may hold */
  _named(field) {
    if (field.$ref) return this.resolve(field).schema.properties ? [field] : [];
    const parts = [field.items, field.additionalProperties, ...(field.anyOf ?? []), ...(field.oneOf ?? [])];
    return parts.flatMap((part) => (part && typeof part === "object" ? this._named(part) : []));
  }

  /** @param {Schema} schema @param {number} depth */
  _inner(schema, depth) {
    const title = this.type(schema) || "any object";
    if (depth >= DEPTH_MAX) return element("p", { class: "quiet" }, title);
    const box = element("details", { class: "inner" }, element("summary", {}, title));
    box.addEventListener("toggle", () => box.childElementCount > 1 || box.append(this.view(schema, depth + 1)));
    return box;
  }

  /** What it holds, in a few words. @param {Schema} given @returns {string} */
  type(given) {
    const { name, schema } = this.resolve(given);
    if (schema.const !== undefined) return JSON.stringify(schema.const);
    if (schema.enum) return schema.enum.map((/** @type {any} */ value) => JSON.stringify(value)).join(" | ");
    if (name) return name.slice(name.lastIndexOf(".") + 1);
    const choices = schema.anyOf ?? schema.oneOf;
    if (choices && !schema.properties) return choices.map((/** @type {Schema} */ choice) => this.type(choice)).join(" | ");
    if (schema.type === "array") return `list of ${this.type(schema.items ?? {}) || "anything"}`;
    if (schema.type === "object" && typeof schema.additionalProperties === "object") return `map of ${this.type(schema.additionalProperties)}`;
    return schema.type ?? "";
  }

  /** Unit, range, default and description. @param {Schema} given @returns {string} */
  limits(given) {
    const { schema } = this.resolve(given);
    const part = [schema, ...(schema.anyOf ?? [])].find((one) => !NOT_SHOWN.has(one.type) && (one.minimum ?? one.maximum ?? one.maxLength ?? one.maxItems) !== undefined) ?? {};
    const said = [];
    if (schema["x-unit"]) said.push(schema["x-unit"]);
    if (part.minimum !== undefined) said.push(part.maximum === undefined ? `from ${part.minimum}` : `${part.minimum} to ${part.maximum}`);
    else if (part.maximum !== undefined) said.push(`up to ${part.maximum}`);
    if (part.maxLength !== undefined) said.push(`at most ${part.maxLength} characters`);
    if (part.maxItems !== undefined) said.push(`at most ${part.maxItems}`);
    if (given.default !== undefined && typeof given.default !== "object") said.push(`default \`${JSON.stringify(given.default)}\``);
    if (schema.description && !schema.properties) said.push(schema.description);
    return said.join("; ");
  }
}
