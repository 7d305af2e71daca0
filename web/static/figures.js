/** Asks the engine for its figures while somebody shows them: usage, providers, and how full memory is. No DOM. */

import * as api from "./api.js";
import { History } from "./history.js";
import * as slow from "./slow.js";
import { batch } from "./vendor/vendor.js";

const SHOWN_MS = 2_000; // on their own screen
const BESIDE_MS = 5_000; // in a card beside the stream

export class Figures {
  constructor() {
    this.history = new History();
    this.by = "model";
    this._asking = false;
    this._askedAt = -Infinity;
    this._listedAt = -Infinity;
    this._screen = "";
  }

  /** The table of usage by something else: at once. @param {string} by */
  wanted(by) {
    this.by = by;
    this._askedAt = -Infinity;
  }

  /** A new listing of models is there. @param {import("./api.js").Listing} listing */
  listed(listing) {
    this.history.listed(listing.memory, Date.now());
    slow.listing.value = listing;
  }

  /** 10 Hz while the line is up. @param {number} now @param {() => void} refresh asks for the models */
  tick(now, refresh) {
    if (document.hidden) return;
    const screen = slow.screen.peek();
    if (screen !== this._screen) this._askedAt = this._listedAt = -Infinity; // who comes sees what is
    this._screen = screen;
    const beside = screen === "stream" && slow.roomy.peek();
    const usageMs = screen === "gateway" ? SHOWN_MS : beside && slow.ledger.peek() ? BESIDE_MS : null;
    const listingMs = screen === "pool" ? SHOWN_MS : beside ? BESIDE_MS : null; // null: nobody shows it
    if (usageMs !== null && !this._asking && now - this._askedAt >= usageMs) this._ask(now);
    if (listingMs === null || now - this._listedAt < listingMs) return;
    this._listedAt = now;
    refresh();
  }

  /** @param {number} now */
  async _ask(now) {
    this._asking = true;
    this._askedAt = now;
    const by = this.by;
    try {
      const [usage, stats] = await Promise.all([api.usage(by), slow.screen.peek() === "gateway" ? api.stats() : slow.stats.peek()]);
      if (by !== this.by) return; // another table is wanted by now
      batch(() => {
        slow.usage.value = usage;
        slow.stats.value = stats;
        slow.trouble.value = "";
      });
    } catch (error) {
      slow.trouble.value = error instanceof Error ? error.message : String(error);
    } finally {
      this._asking = false;
    }
  }
}
