/** The broker's card: what left this machine, and the switch for what may. Turning it on names who gets what, and asks. */

import * as api from "./api.js";
import { byId, NONE, put } from "./format.js";
import * as slow from "./slow.js";
import { row } from "./templates.js";
import { bytes } from "./transfers.js";
import { visible } from "./text.js";
import { html, live, render, signal } from "./vendor/vendor.js";

const POLL_MS = 5_000;
const BUSY_POLL_MS = 1_000;
const OFF = "disabled";
const MODES = [OFF, "advisory", "fallback", "hybrid"];
const CONTEXTS = new Map([
  ["question", "the last question of a request and its parameters"],
  ["whole", "everything that was said in a request"],
]);

/** @param {number} count */
export const leaving = (count) => (count === 0 ? "0 B" : bytes(count));

export class Broker {
  /** @param {() => string} token of this start of the engine @param {(words: string) => void} say */
  constructor(token, say) {
    this.token = token;
    this.say = say;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("consent"));
    this._offered = signal(false);
    this._trouble = signal("");
    this._asked = signal(/** @type {string|null} the mode that waits for a yes */ (null));
    this._askedAt = -POLL_MS;
    this._asking = false;
    this._turn = 0; // of the newest question: the answer to an older one says nothing any more
    this.dialog.addEventListener("close", () => this._answered());
    slow.whileShown("gateway", () => {
      byId("broker").hidden = !this._offered.value;
      render(this._view(), byId("broker"));
    });
  }

  get state() {
    return slow.broker.peek();
  }

  /** @param {boolean} offered this engine has one */
  offer(offered) {
    this._offered.value = offered;
  }

  /** 10 Hz, where the engine has a broker. @param {number} now @param {boolean} [busy] something may be leaving now */
  show(now, busy = false) {
    if (this._asking || document.hidden || now - this._askedAt < (busy ? BUSY_POLL_MS : POLL_MS)) return;
    this._askedAt = now;
    this._ask(() => api.broker());
  }

  /** @param {string} mode */
  _chosen(mode) {
    this._asked.value = mode;
    if (mode === OFF) {
      this._switch(OFF);
      return;
    }
    const { providers = [], context = "", limits } = this.state ?? {};
    const hosts = providers.filter(({ key }) => key).map(({ name, host }) => `${name} (${host})`);
    put(byId("consent-who"), hosts.length > 0 ? `Who: ${visible(hosts.join(", "))}.` : "Nobody yet: no provider has a key.");
    put(byId("consent-what"), `What leaves this machine: ${CONTEXTS.get(context) ?? context}, of requests that consent, each one by itself.`);
    put(byId("consent-price"), limits ? `At most ${limits.calls_per_hour} calls an hour, ${limits.daily_tokens} tokens and $${limits.daily_usd.toFixed(2)} a day.` : "");
    this.dialog.returnValue = "";
    this.dialog.showModal();
  }

  _answered() {
    const mode = this._asked.peek();
    if (this.dialog.returnValue === "yes" && mode !== null) this._switch(mode);
    else this._asked.value = null;
  }

  /** @param {string} mode */
  _switch(mode) {
    this._ask(() => api.switchBroker(mode, this.token()));
  }

  /** @param {() => Promise<import("./api.js").BrokerState>} question */
  async _ask(question) {
    const turn = (this._turn += 1);
    this._asking = true;
    try {
      const state = await question();
      if (turn !== this._turn) return;
      slow.broker.value = state;
      this._trouble.value = "";
    } catch (error) {
      if (turn !== this._turn) return;
      this._trouble.value = error instanceof Error ? error.message : String(error);
      this.say(this._trouble.peek());
    } finally {
      if (turn === this._turn) {
        this._asking = false;
        if (!this.dialog.open) this._asked.value = null;
      }
    }
  }

  _view() {
    const state = slow.broker.value;
    const mode = this._asked.value ?? state?.mode ?? OFF;
    const chosen = (/** @type {Event} */ event) => this._chosen(/** @type {HTMLSelectElement} */ (event.target).value);
    const calls = state ? `${state.calls} calls, ${state.failed} failed, ${state.calls_last_hour} in the last hour · today ${state.spent.tokens} tokens, $${state.spent.usd.toFixed(2)}` : "";
    const rows = (state?.providers ?? []).map(({ name, host, key, reason, models }) => row([visible(name), visible(host), key ? "has a key" : visible(reason ?? "no key"), `${models.length} models`]));
    return html`<div class="line"><h3>Broker</h3><label class="quiet">mode <select id="broker-mode" ?disabled=${!state?.available} .value=${live(mode)} @change=${chosen}>${MODES.map((name) => html`<option value=${name} ?selected=${name === mode}>${name}</option>`)}</select></label></div>
      <p>Left this machine since the start: <b class="mono" id="g-bytes-out">${state ? leaving(state.bytes_out) : NONE}</b></p>
      <p class="quiet small" id="broker-spent">${calls}</p>
      <p class="quiet small" id="broker-why">${!state || state.available ? "" : "This tier has no broker, or the core is locked: everything is answered here."}</p>
      <p class="error" id="broker-trouble" role="alert" ?hidden=${this._trouble.value === ""}>${this._trouble.value}</p>
      <table class="decisions"><tbody id="broker-rows">${rows}</tbody></table>`;
  }
}
