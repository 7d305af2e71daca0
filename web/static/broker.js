/** The broker's card: what left this machine, and the switch for what may. Turning it on names who gets what, and asks. */

import * as api from "./api.js";
import { fill } from "./elements.js";
import { byId, put } from "./format.js";
import { bytes } from "./transfers.js";
import { visible } from "./text.js";

const POLL_MS = 5_000;
const OFF = "disabled";
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
    /** @type {import("./api.js").BrokerState|null} */
    this.state = null;
    this.mode = /** @type {HTMLSelectElement} */ (byId("broker-mode"));
    this.dialog = /** @type {HTMLDialogElement} */ (byId("consent"));
    this._askedAt = -POLL_MS;
    this._asking = false;
    this.mode.addEventListener("change", () => this._chosen());
    this.dialog.addEventListener("close", () => this._answered());
  }

  /** 10 Hz, where the engine has a broker. @param {number} now */
  show(now) {
    if (this._asking || document.hidden || now - this._askedAt < POLL_MS) return;
    this._askedAt = now;
    this._ask(() => api.broker());
  }

  _chosen() {
    if (this.mode.value === OFF) {
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
    if (this.dialog.returnValue === "yes") this._switch(this.mode.value);
    else this.mode.value = this.state?.mode ?? OFF;
  }

  /** @param {string} mode */
  _switch(mode) {
    this._ask(() => api.switchBroker(mode, this.token()));
  }

  /** @param {() => Promise<import("./api.js").BrokerState>} question */
  async _ask(question) {
    this._asking = true;
    const trouble = byId("broker-trouble");
    try {
      this._take(await question());
      trouble.hidden = true;
    } catch (error) {
      put(trouble, error instanceof Error ? error.message : String(error));
      trouble.hidden = false;
      this.mode.value = this.state?.mode ?? OFF;
      this.say(trouble.textContent ?? "");
    } finally {
      this._asking = false;
    }
  }

  /** @param {import("./api.js").BrokerState} state */
  _take(state) {
    this.state = state;
    if (!this.dialog.open) this.mode.value = state.mode;
    this.mode.disabled = !state.available;
    put(byId("broker-why"), state.available ? "" : "This tier has no broker, or the core is locked: everything is answered here.");
    put(byId("g-bytes-out"), leaving(state.bytes_out));
    put(byId("broker-spent"), `${state.calls} calls, ${state.failed} failed, ${state.calls_last_hour} in the last hour · today ${state.spent.tokens} tokens, $${state.spent.usd.toFixed(2)}`);
    fill(byId("broker-rows"), state.providers.map(({ name, host, key, reason, models }) => [visible(name), visible(host), key ? "has a key" : visible(reason ?? "no key"), `${models.length} models`]));
  }
}
