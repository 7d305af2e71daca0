/** Puts the page together: messages go into the store, one animation frame draws, numbers follow at 10 Hz. */

import { showAnswer } from "./answer.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { Downloads } from "./downloads.js";
import { Evidence } from "./evidence.js";
import { Field } from "./field.js";
import { byId } from "./format.js";
import { showGuide, showReach, spoken } from "./guide.js";
import { Keys } from "./keys.js";
import { Library } from "./library.js";
import { Readiness } from "./readiness.js";
import { Readout } from "./readout.js";
import { RenderReport } from "./rendered.js";
import { Bolts, draw, GAUGE_PX } from "./scene.js";
import { Announcer, showBanners, showSessions, showStatus } from "./status.js";
import { Rate, Store } from "./store.js";
import { TextView } from "./text.js";
import { Theme } from "./theme.js";
import { Transfers } from "./transfers.js";

const NUMBERS_MS = 100;
const SLOW_MS = 1_000;
const STILL_MS = 250; // with reduced motion the field moves four times a second
const GAUGE_FROM_PX = 640; // a narrower field keeps its width for the line
const NARROW_RIGHT_PX = 16;
const ERRORS = 20;

/** @typedef {import("./session.js").Session} Session */

class Page {
  constructor() {
    /** @type {string[]} */
    this.errors = [];
    this.store = new Store();
    this.link = new Connection((message) => this.store.ingest(message, performance.now()), () => this.store.seen());
    this.rendered = new RenderReport((message) => this.link.send(message));
    this.theme = new Theme(() => this.repaint());
    this.canvas = /** @type {HTMLCanvasElement} */ (byId("field"));
    this.ctx = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    this.field = new Field(document.createElement("canvas"));
    this.bolts = new Bolts();
    this.text = new TextView(byId("text"), byId("scroll"), /** @type {HTMLButtonElement} */ (byId("follow")));
    this.readout = new Readout();
    this.evidence = new Evidence();
    this.composer = new Composer();
    this.announcer = new Announcer();
    this.readiness = new Readiness((before, after) => this._became(before, after));
    this.downloads = new Downloads((name, here, mine) => this._downloaded(name, here, mine));
    this.transfers = new Transfers(this.downloads);
    this.library = new Library({ download: (name) => this.downloads.start(name) });
    this.drawRate = new Rate();
    this.framesDrawn = 0;
    /** @type {Session|null} */
    this.shown = null;
    this.sessions = /** @type {HTMLSelectElement} */ (byId("sessions"));
    this.composer.onAccepted = () => (this.sessions.value = "");
    this.composer.onListed = (listing) => this._listed(listing);
    this._lives = 0;
    this._gauge = true;
    this._dirty = true;
    this._steppedAt = 0;
    this._numbersAt = 0;
    this._slowAt = 0;
  }

  start() {
    addEventListener("error", (event) => this._fault(event.message));
    addEventListener("unhandledrejection", (event) => this._fault(String(event.reason)));
    document.addEventListener("securitypolicyviolation", (event) => this._fault(`CSP: ${event.violatedDirective}`));
    this.evidence.box.open = innerWidth > 980;
    new Keys(this);
    byId("guide-download").addEventListener("click", () => this.downloads.start(this.readiness.health?.suggested_model ?? ""));
    byId("guide-again").addEventListener("click", () => this._lookAgain());
    new ResizeObserver(() => this._resize()).observe(/** @type {Element} */ (this.canvas.parentElement));
    this.link.start();
    requestAnimationFrame((now) => this._tick(now));
  }

  stop() {
    this.composer.stop(this.shown);
  }

  repaint() {
    this.field.repaint(this.shown, this.theme.palette, this.theme.reducedMotion);
    this._dirty = true;
  }

  /** @param {number} now */
  _tick(now) {
    requestAnimationFrame((next) => this._tick(next));
    const session = this.store.sessions.get(this.sessions.value) ?? this.store.newest();
    if (session !== this.shown) this._switch(session);
    if (session) this.text.sync(session);
    this._drawField(session, now);
    for (const { event, atMs } of this.store.modelEvents.splice(0)) {
      this.downloads.heard(event);
      this.library.heard(event, atMs);
    }
    this.announcer.speak(this.store.notices, session, now);
    if (now - this._numbersAt >= NUMBERS_MS) {
      this._numbersAt = now;
      this._numbers(session, now);
    }
    if (now - this._slowAt >= SLOW_MS) {
      this._slowAt = now;
      this._slow(session);
    }
  }

  /** @param {Session|null} session */
  _switch(session) {
    this.shown = session;
    this.bolts.live = [];
    this.field.begin();
    this.repaint();
    if (!session) this.text.clear();
  }

  /** @param {Session|null} session @param {number} now */
  _drawField(session, now) {
    const still = this.theme.reducedMotion;
    if (still && now - this._steppedAt < STILL_MS && !this._dirty) return;
    this._steppedAt = now;
    const columns = session?.columns.count ?? 0;
    const moved = session !== null && columns !== this.field.painted;
    const hadBolts = this.bolts.live.length > 0;
    if (moved) {
      const strikes = this.field.advance(session, this.theme.palette, still);
      if (!still) this.bolts.add(strikes, now);
    }
    this.bolts.expire(now);
    if (!moved && !hadBolts && !this._dirty) return;
    draw(this.ctx, this.field, { session, palette: this.theme.palette, bolts: this.bolts, now, gauge: this._gauge });
    this._dirty = false;
    this.framesDrawn += 1;
    this.drawRate.mark(now);
    if (moved) this.rendered.painted(this.store.frame, this.store.receivedAt, this.drawRate.perSecond(now), now);
  }

  /** @param {Session|null} session @param {number} now */
  _numbers(session, now) {
    this.readout.show(session);
    this.evidence.show(session);
    this.composer.show(session, this.link.state === "live");
    showAnswer(session, this.composer, now);
    showStatus(this.store, this.link, this.drawRate.perSecond(now), now);
    const picked = this.composer.models.get(this.composer.model.value);
    showBanners(session, this.link, picked?.details?.synthetic === true, now);
    byId("energy-bar").style.width = `${(session?.reading?.energy ?? 0) * 100}%`;
    showGuide(this.readiness, this.downloads, this.composer.demonstrations, now);
    showReach(this.readiness);
    this.transfers.show();
    if (this.link.lives === this._lives) return;
    if (this._lives === 0) this.downloads.resume();
    this._lives = this.link.lives;
    this._lookAgain();
  }

  /** Asks the engine how it is and what it has. */
  _lookAgain() {
    this.composer.refreshModels();
    this.readiness.ask();
  }

  /** @param {import("./api.js").Listing} listing */
  _listed(listing) {
    this.downloads.listed(listing.pulls ?? []);
    this.library.listed();
    this.readiness.listed(listing.models);
  }

  /** The engine is in another state than before. @param {string} before @param {string} after */
  _became(before, after) {
    this.announcer.say(spoken(before, after));
    if (before) this.composer.refreshModels();
  }

  /** @param {string} name @param {boolean} here the model can be asked now @param {boolean} mine this page asked for it */
  _downloaded(name, here, mine) {
    this.announcer.say(here ? `${name} is downloaded` : `The download of ${name} ended`);
    this.composer.refreshModels(here && mine ? name : "");
    this.readiness.ask();
  }

  /** @param {Session|null} session */
  _slow(session) {
    showSessions(this.store);
    this.library.show(this.composer.models, this.readiness.away);
    const reading = session?.reading;
    const words = reading
      ? `Energy over time of ${session?.model}: now ${reading.energy.toFixed(2)}, ${reading.state.toLowerCase()}, ${reading.tps.toFixed(0)} tokens per second.`
      : "Energy over time. Nothing has been measured yet.";
    const unknown = session?.probability === null ? "Probability of the tokens: unknown, this runtime gives none" : "";
    const label = unknown ? `${words} ${unknown}.` : words;
    if (this.canvas.getAttribute("aria-label") !== label) this.canvas.setAttribute("aria-label", label);
    if (this.canvas.title !== unknown) this.canvas.title = unknown;
  }

  _resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = Math.min(2, devicePixelRatio || 1);
    this._gauge = width >= GAUGE_FROM_PX;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.field.resize(width, height, scale, this._gauge ? GAUGE_PX : NARROW_RIGHT_PX);
    this.repaint();
  }

  /** @param {string} words */
  _fault(words) {
    this.errors.push(words);
    if (this.errors.length > ERRORS) this.errors.shift();
  }
}

const page = new Page();
// What the status bar shows, for tests and for the curious. Read-only.
const report = Object.freeze({
  get framesReceived() { return page.store.framesReceived; },
  get framesDrawn() { return page.framesDrawn; },
  get gaps() { return page.store.gaps; },
  get strikes() { return page.field.strikes; },
  get tokens() { return page.shown?.tokens ?? 0; },
  get lastEnergy() { return page.shown?.reading?.energy ?? null; },
  get errors() { return [...page.errors]; },
});
Object.defineProperty(window, "__wf", { value: report });
page.start();
