/** The field as a table: the same streams with the same values, for whoever does not see a picture. 1 Hz. */

import { element, fill } from "./elements.js";
import { byId, fixed, put } from "./format.js";
import { short } from "./inspector.js";
import { visible } from "./text.js";

/** @typedef {import("./session.js").Session} Session */

/** The token looked at in the field, for keys and readers: arrows go from one to the next (keys.js). */
export class Cursor {
  constructor() {
    this.box = byId("cursor");
  }

  get focused() {
    return document.activeElement === this.box;
  }

  /** @param {import("./inspector.js").Picked|null} picked @param {number} tokens of its stream */
  show(picked, tokens) {
    const { position = 0, text = "", energy = null } = picked?.heard.token ?? {};
    const words = picked ? `${visible(picked.stream.model)}, token ${position}, “${short(text)}”, E ${fixed(energy, 2)}` : "no token yet";
    const values = { "aria-valuemin": "0", "aria-valuemax": String(Math.max(0, tokens - 1, position)), "aria-valuenow": String(position), "aria-valuetext": words };
    for (const [name, value] of Object.entries(values)) if (this.box.getAttribute(name) !== value) this.box.setAttribute(name, value);
  }
}

export class Twin {
  constructor() {
    this.box = byId("twin");
    this.rows = byId("twin-rows");
    this.shown = false; // over the picture; otherwise only readers meet it
  }

  toggle() {
    this.shown = !this.shown;
    this.box.classList.toggle("hidden", !this.shown);
    this.box.tabIndex = this.shown ? 0 : -1;
    if (this.shown) this.box.focus();
  }

  /** @param {Session|null} session */
  show(session) {
    const streams = session?.streams ?? [];
    const rows = streams.map((stream) => {
      const reading = stream.reading ?? {};
      const last = stream.heard.at(-1)?.token;
      const state = stream.error ? "LEFT" : session?.end || stream.done ? "DRAINED" : (reading.state ?? "CHARGING");
      const values = [fixed(reading.energy, 3), fixed(reading.tps, 1), fixed(reading.delta_ms, 1), fixed(reading.silence_ms, 0)];
      return [visible(stream.model), state, ...values, fixed(reading.certainty, 3), fixed(reading.entropy_bits, 2), String(stream.tokens), last ? `${last.position} “${short(last.text)}”` : "—"];
    });
    if (rows.length === 0) this.rows.replaceChildren(element("tr", "", element("td", { colspan: "10" }, "Nothing has been measured yet.")));
    else {
      if (this.rows.querySelector("[colspan]")) this.rows.replaceChildren();
      fill(this.rows, rows);
    }
    const { energy, di, gain, sync_latency_ms: lag } = session?.ensemble ?? {};
    put(byId("twin-ensemble"), session?.plural && session.ensemble ? `Together: E ${fixed(energy, 3)}, DI ${fixed(di, 3)}, gain ${fixed(gain, 3)}, sync lag ${fixed(lag, 0)} ms.` : "");
  }
}
