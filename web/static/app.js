/** Puts the page together: messages go into the store, one animation frame draws, numbers follow at 10 Hz. */

import { idle, showAnswer } from "./answer.js";
import { showBeside } from "./beside.js";
import { Broker } from "./broker.js";
import { Classifier } from "./classifier.js";
import { commands } from "./commands.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { Downloads } from "./downloads.js";
import { EnsembleCard } from "./ensemble.js";
import { Events } from "./events.js";
import { Features } from "./features.js";
import { Figures } from "./figures.js";
import { byId } from "./format.js";
import { Gateway } from "./gateway.js";
import { showGuide, showReach, spoken } from "./guide.js";
import { Heat } from "./heat.js";
import { Hybrid } from "./hybrid.js";
import { Inspector, short } from "./inspector.js";
import { Keys } from "./keys.js";
import { Lanes } from "./lanes.js";
import { Library } from "./library.js";
import { Load, Pace } from "./load.js";
import { CommandPalette } from "./palette.js";
import { Picking } from "./picking.js";
import { Picture } from "./picture.js";
import { Pool } from "./pool.js";
import { Reader } from "./reader.js";
import { Readiness } from "./readiness.js";
import { Readout } from "./readout.js";
import { Recordings } from "./recordings.js";
import { RenderReport } from "./rendered.js";
import { Replay } from "./replay_view.js";
import { Saving } from "./saving.js";
import { Screens } from "./screens.js";
import * as slow from "./slow.js";
import { Announcer, showBanners, showSessions, showStatus } from "./status.js";
import { Rate, Store } from "./store.js";
import { Theme } from "./theme.js";
import { Transfers } from "./transfers.js";
import { Cursor, Twin } from "./twin.js";

const NUMBERS_MS = 100;
const SLOW_MS = 1_000;
const ERRORS = 20;
const NOTHING_REPLAYED = "Choose a recorded session above, or open the file of one.";
const CROWD = 3; // more lanes than this get their words every second animation frame while Evidence marks them

/** @typedef {import("./session.js").Session} Session */

class Page {
  constructor() {
    /** @type {string[]} */
    this.errors = [];
    this.store = new Store();
    this.link = new Connection((message, text) => this._received(message, text), () => this.store.seen());
    this.pace = new Pace((message) => this.link.send(message), (away) => this._paced(away));
    this.rendered = new RenderReport((message) => this.link.send(message));
    this.load = new Load();
    this.theme = new Theme(() => this.picture?.repaint());
    this.picking = new Picking();
    this.picture = new Picture(this.theme, this.picking);
    this.lanes = new Lanes(byId("lanes"), (slot) => this.solo(slot));
    this.ensemble = new EnsembleCard();
    this.readout = new Readout();
    this.inspector = new Inspector((words) => this.announcer.say(words));
    this.heat = new Heat();
    this.composer = new Composer();
    this.announcer = new Announcer();
    this.readiness = new Readiness((before, after) => this._became(before, after));
    this.downloads = new Downloads((name, here, mine) => this._downloaded(name, here, mine));
    this.transfers = new Transfers(this.downloads);
    this.library = new Library({ download: (name) => this.downloads.start(name) });
    this.features = new Features(() => this._described());
    this.pool = new Pool({ refresh: () => this.composer.refreshModels(), reasons: () => this.features.has("/models/{name}/why"), say: (words) => this.announcer.say(words) });
    this.figures = new Figures();
    this.gateway = new Gateway((by) => this.figures.wanted(by));
    this.broker = new Broker(() => this.link.engine?.token ?? "", (words) => this.announcer.say(words));
    this.events = new Events((entry) => this._showEvent(entry));
    this.sessions = /** @type {HTMLSelectElement} */ (byId("sessions"));
    this.recordings = new Recordings();
    this.replay = new Replay(this.recordings, { say: (words) => this.announcer.say(words), changed: () => this.picture.touch(), leave: () => this.screens.show("stream", "") });
    this.saving = new Saving({ session: () => this.shown, framesOf: (id) => this.replay.framesOf(id), canvas: this.picture.canvas, palette: () => this.theme.palette, replayed: () => this.replay.active, say: (words) => this.announcer.say(words) });
    const outside = (/** @type {import("./composer.js").Question} */ { model = "", models = [model] }) =>
      models.flatMap((name) => this.composer.models.get(name) ?? []).flatMap(({ runtime, details }) => (details?.satellite ? [`${runtime} (${details.host})`] : []));
    this.hybrid = new Hybrid(() => this.broker.state, { question: () => this.composer.question, outside, goTo: (screen) => this.screens.goTo(screen) });
    this.composer.hybrid = this.hybrid;
    this.palette = new CommandPalette(() => commands(this));
    this.reader = new Reader();
    this.twin = new Twin();
    this.cursor = new Cursor();
    this.screens = new Screens(this);
    this.classifier = new Classifier((offered) => this.screens.allow("classifier", offered), (words) => this.announcer.say(words));
    this.drawRate = new Rate();
    /** @type {Session|null} */
    this.shown = null;
    this.keys = new Keys(this._actions());
    this.composer.onNote = (words) => this.announcer.say(words);
    this.composer.onAccepted = () => this._accepted();
    this.composer.onListed = (listing) => this._listed(listing);
    showBeside();
    this._lives = 0;
    this._numbersAt = 0;
    this._slowAt = 0;
  }

  start() {
    addEventListener("error", (event) => this._fault(event.message));
    addEventListener("unhandledrejection", (event) => this._fault(String(event.reason)));
    document.addEventListener("securitypolicyviolation", (event) => this._fault(`CSP: ${event.violatedDirective}`));
    byId("replay-this").addEventListener("click", () => this.shown && this.screens.show("replay", this.shown.id));
    byId("guide-download").addEventListener("click", () => this.downloads.start(this.readiness.health?.suggested_model ?? ""));
    byId("guide-again").addEventListener("click", () => this._lookAgain());
    byId("lanes").addEventListener("click", (event) => this._clickedText(event));
    this.picture.canvas.addEventListener("click", (event) => this.picture.pick(event) && this._picked());
    const notices = /** @type {HTMLElement} */ (document.querySelector(".banners"));
    new ResizeObserver(() => document.body.style.setProperty("--banners", `${notices.offsetHeight}px`)).observe(notices);
    this.screens.start();
    this.link.start();
    requestAnimationFrame((now) => this._tick(now));
  }

  /** @returns {Omit<import("./keys.js").Actions, "help">} */
  _actions() {
    return {
      stop: () => void this.composer.stop(this.shown),
      stopAll: () => this.store.sessions.forEach((session) => this.composer.stop(session)),
      freeze: () => this.freeze(),
      evidence: () => this.evidence(!this.inspector.open),
      solo: (slot) => (slot < 0 ? this.solo(this.picking.solo) : this.solo(slot)),
      step: (by) => this._step(by),
      zoom: (by) => this.picture.setZoom(by > 0 ? Math.min(4, this.picture.field.columnPx * 2) : Math.max(1, this.picture.field.columnPx / 2)),
      whole: () => void (document.fullscreenElement ? document.exitFullscreen() : this.picture.canvas.parentElement?.requestFullscreen()),
      copy: () => void this.inspector.copy(),
      table: () => this.screens.streaming && this.twin.toggle(),
      palette: () => this.palette.toggle(),
      goTo: (screen) => this.screens.goTo(screen),
      prompt: () => {
        if (this.screens.screen !== "stream") this.screens.goTo("stream");
        this.composer.prompt.focus();
      },
      theme: this.theme,
    };
  }

  /** @param {number} slot the one that is alone already gives room to all again */
  solo(slot) {
    if (slot >= 0 && slot < (this.shown?.streams.length ?? 0) && this.shown?.plural) this.picking.toggleSolo(slot);
    this.picture.touch();
  }

  /** @param {boolean} open */
  evidence(open) {
    this.inspector.turn(open);
    if (!open) this.picking.position = null;
    document.body.classList.toggle("with-evidence", open);
    this.picture.touch();
  }

  freeze() {
    if (this.replay.active) {
      this.replay.toggle();
      return;
    }
    this.picture.frozen = !this.picture.frozen;
    this.picture.touch();
  }

  /** @param {any} message @param {string} text */
  _received(message, text) {
    const now = performance.now();
    if (this.store.ingest(message, now)) this.recordings.take(message, text);
    this.pace.heard(now);
  }

  /** @param {boolean} away */
  _paced(away) {
    if (away) this.store.skipped = 0;
    else if (this.store.skipped > 0) this.announcer.say("paused in the background, resumed");
    this.store.away = away;
  }

  /** @param {number} now */
  _tick(now) {
    requestAnimationFrame((next) => this._tick(next));
    const began = performance.now();
    this.pace.drawn(began);
    const replaying = this.replay.active;
    if (replaying) this.replay.tick(now);
    const session = replaying ? this.replay.session : (this.store.sessions.get(this.sessions.value) ?? this.store.newest());
    if (session !== this.shown) this._switch(session);
    if (this.screens.streaming) {
      this._turns += 1;
      const crowded = this.inspector.open && (session?.streams.length ?? 0) > CROWD;
      if (!crowded || this._turns % 2 === 0) this.lanes.sync(session); // marked words are slow to paint
      const moved = this.picture.tick(now, this.load.level);
      if (this.picture.framesDrawn !== this._drawn) this.drawRate.mark(now);
      this._drawn = this.picture.framesDrawn;
      if (moved && !replaying) this.rendered.painted(this.store.frame, this.store.receivedAt, this.drawRate.perSecond(now), now);
    }
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
    this.load.mark(performance.now() - began);
  }

  _drawn = 0;
  _turns = 0;

  /** @param {Session|null} session */
  _switch(session) {
    const same = session !== null && this.shown?.id === session.id; // a replay went back
    const { solo, slot, position } = this.picking;
    this.shown = session;
    this.picking.of(session);
    if (same) Object.assign(this.picking, { solo, slot, position });
    this.screens.opened(session);
    this.picture.show(session);
  }

  /** @param {Session|null} session @param {number} now */
  _numbers(session, now) {
    const live = this.link.state === "live";
    const own = { drawnPerSecond: this.drawRate.perSecond(now), mainMs: this.load.meanMs, lagMs: this.rendered.lagMs, load: this.load.words, frozen: this.picture.frozen };
    showStatus(this.store, this.link, own, now);
    const picked = this.composer.models.get(this.composer.model.value);
    showBanners(session, this.link, !this.replay.active && this.screens.screen === "stream" && this.composer.picker.mode === "single" && picked?.details?.synthetic === true, now);
    showGuide(this.readiness, this.downloads, this.composer.demonstrations, now);
    slow.tell(this.screens.screen, this.link.engine, this.store.sessions.values(), session);
    if (live) this.figures.tick(now, () => this.composer.refreshModels());
    if (this.features.has("/broker")) this.broker.show(now, this._leaving());
    showReach(this.readiness, this.broker.state?.bytes_out ?? null);
    this.transfers.show();
    this.composer.show(this.replay.active ? null : session, live);
    this.hybrid.show();
    this.inspector.show(session, this.picking.picked, this.theme.palette);
    if (this.screens.streaming) {
      this._stream(session, now);
      this.heat.show(this.lanes, session, this.inspector.open, this.picking.picked, now);
    } else if (this.screens.screen === "pool") this.pool.show(this.figures.history.memory, this.theme.palette);
    else if (this.screens.screen === "events") this.events.show(this.store.log, now);
    else if (this.screens.screen === "classifier") this.classifier.show(now);
    else if (this.screens.screen === "gateway") this.gateway.show(this.figures.history, this.theme.palette);
    if (this.link.lives === this._lives) return;
    if (this._lives === 0) this.downloads.resume();
    this._lives = this.link.lives;
    this.pace.begin();
    this.features.ask(this.link.engine?.boot ?? "");
    this.classifier.look(this.link.engine);
    this._lookAgain();
  }

  /** The numbers and words around the field. @param {Session|null} session @param {number} now */
  _stream(session, now) {
    const { replay, picking } = this;
    const at = replay.active ? (replay.player?.monoMs ?? now) : now;
    if (replay.active) replay.show();
    this.lanes.show(session, picking.solo, replay.active ? NOTHING_REPLAYED : idle(this.composer), at);
    this.ensemble.show(session);
    this.readout.show(session, picking.stream);
    byId("measured").hidden = session?.plural === true && picking.solo < 0;
    showAnswer(session, this.composer, at);
    this.saving.show();
    byId("replay-this").hidden = session === null || session.recorded || this.recordings.all.get(session.id)?.open !== false;
    this.cursor.show(picking.picked, picking.stream?.tokens ?? 0);
    const read = session?.streams.length === 1 || picking.solo >= 0 ? picking.stream : null;
    this.reader.follow(read, session?.active === false || read?.done != null, now);
  }

  /** Whether bytes may be leaving this machine now. */
  _leaving() {
    const able = this.broker.state?.available === true || this.readiness.away.length > 0;
    return able && [...this.store.sessions.values()].some(({ active }) => active);
  }

  /** Asks the engine how it is and what it has. */
  _lookAgain() {
    this.composer.refreshModels();
    this.readiness.ask();
  }

  /** The engine told what it can do. */
  _described() {
    this.composer.picker.allow(this.features, this.link.engine);
    this.screens.allow("gateway", this.features.has("/usage"));
    slow.ledger.value = this.features.has("/usage");
    this.broker.offer(this.features.has("/broker"));
  }

  _accepted() {
    this.sessions.value = "";
    this.screens.follow();
  }

  /** @param {import("./api.js").Listing} listing */
  _listed(listing) {
    this.downloads.listed(listing.pulls ?? []);
    this.library.listed();
    this.readiness.listed(listing.models);
    this.figures.listed(listing);
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

  /** @param {number} by */
  _step(by) {
    if (!this.inspector.open && !this.cursor.focused) return;
    this.picking.step(by);
    this._picked();
  }

  /** A token was picked. */
  _picked() {
    const { picked } = this.picking;
    this.evidence(true);
    this.inspector.show(this.shown, picked, this.theme.palette); // a key that follows means this token
    this.cursor.show(picked, this.picking.stream?.tokens ?? 0);
    if (picked && !this.cursor.focused) this.announcer.say(`token ${picked.heard.token.position}, ${short(picked.heard.token.text)}`);
  }

  /** @param {MouseEvent} event */
  _clickedText(event) {
    const box = event.target instanceof Element ? event.target.closest(".text") : null;
    const lane = this.lanes.lanes.find(({ text }) => text === box);
    if (!lane || !this.inspector.open || !document.caretPositionFromPoint) return;
    const place = document.caretPositionFromPoint(event.clientX, event.clientY);
    if (place && this.picking.pickInText(lane.slot, lane.view.positionOf(place.offsetNode, place.offset))) this._picked();
  }

  /** @param {import("./eventlog.js").Entry} entry */
  _showEvent(entry) {
    if (this.store.sessions.has(entry.session)) this.screens.show("stream", entry.session);
  }

  /** @param {Session|null} session */
  _slow(session) {
    showSessions(this.store);
    if (this.screens.streaming) this.twin.show(session);
    this.figures.history.sample(this.store.sessions.values(), Date.now());
    this.screens.write();
    const [first] = session?.streams ?? [];
    const told = session?.streams.filter(({ reading }) => reading) ?? [];
    const each = told.map(({ model, reading }) => `${model}: now ${reading?.energy?.toFixed(2) ?? "unknown"}, ${reading?.state.toLowerCase()}, ${reading?.tps.toFixed(0)} tokens per second.`);
    const words = told.length > 0 ? `Energy over time. ${each.join(" ")}` : "Energy over time. Nothing has been measured yet.";
    const unknown = first?.probability === null ? "Probability of the tokens: unknown, this runtime gives none" : "";
    const label = unknown ? `${words} ${unknown}.` : words;
    const { canvas } = this.picture;
    if (canvas.getAttribute("aria-label") !== label) canvas.setAttribute("aria-label", label);
    if (canvas.title !== unknown) canvas.title = unknown;
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
  get framesDrawn() { return page.picture.framesDrawn; },
  get gaps() { return page.store.gaps; },
  get strikes() { return page.picture.field.strikes.reduce((sum, count) => sum + count, 0); },
  get strikesByStream() { return [...page.picture.field.strikes]; },
  get hatchedByStream() { return [...page.picture.field.hatched]; },
  get columns() { return page.picture.field.painted; },
  get bolts() { return page.picture.bolts.thrown; },
  get tokens() { return page.shown?.tokens ?? 0; },
  get lastEnergy() { return page.shown?.streams[0]?.reading?.energy ?? null; },
  get mainMs() { return page.load.meanMs; },
  get lagMs() { return page.rendered.lagMs; },
  get level() { return page.load.level; },
  get errors() { return [...page.errors]; },
});
Object.defineProperty(window, "__wf", { value: report });
page.start();
