/** Which screen is shown, and the address of the page that says so. */

import { byId, put } from "./format.js";
import { parse, SCREENS, written } from "./route.js";

/** @typedef {import("./route.js").Screen} Screen */
/** @typedef {import("./session.js").Session} Session */

/**
 * @typedef {{store: import("./store.js").Store, sessions: HTMLSelectElement, shown: Session|null, theme: import("./theme.js").Theme,
 *   picture: import("./picture.js").Picture, picking: import("./picking.js").Picking, inspector: import("./inspector.js").Inspector,
 *   replay: import("./replay_view.js").Replay, recordings: import("./recordings.js").Recordings, evidence: (open: boolean) => void}} Page
 */

export class Screens {
  /** @param {Page} page */
  constructor(page) {
    this.page = page;
    /** @type {Screen} */
    this.screen = "stream";
    this._wanted = parse(location.hash);
    this._heard = location.hash; // the address as it was last read or written here
    /** @type {Set<Screen>} */
    this._offered = new Set(["stream", "replay", "pool", "events"]);
  }

  /** Whether the field and the lanes are shown. */
  get streaming() {
    return this.screen === "stream" || this.screen === "replay";
  }

  /** @returns {Screen[]} those that have their place */
  get offered() {
    return SCREENS.filter((screen) => this._offered.has(screen));
  }

  start() {
    addEventListener("hashchange", () => this._changed());
    const { theme, still, evidence, zoom } = this._wanted;
    if (theme === "dark" || theme === "light") this.page.theme.choose(theme);
    if (still && !this.page.theme.chosen.still) this.page.theme.toggleMotion();
    this.page.evidence(evidence);
    if (zoom > 0) this.page.picture.setZoom(zoom);
    this._turn(this._wanted.screen);
    this.page.sessions.addEventListener("change", () => {
      this._wanted.session = this.page.sessions.value;
      if (this.screen === "replay") this.show("stream", this._wanted.session);
      this.write();
    });
  }

  /** A screen has its place where the engine has its source. @param {Screen} screen @param {boolean} offered */
  allow(screen, offered) {
    if (offered) this._offered.add(screen);
    else this._offered.delete(screen);
    byId(`nav-${screen}`).hidden = !offered;
    if (this._wanted.screen === screen) this._turn(screen);
  }

  /** @param {string} name */
  goTo(name) {
    const screen = SCREENS.find((known) => known === name);
    if (screen && this._offered.has(screen)) this.show(screen, "");
  }

  /** @param {Screen} screen @param {string} session */
  show(screen, session) {
    this._wanted.session = session;
    this._wanted.screen = screen;
    this._wanted.atS = null;
    this._select();
    this._turn(screen);
    this.write();
  }

  /** A new session of this page is followed. */
  follow() {
    this._wanted.session = "";
    this._wanted.token = null;
    this._wanted.screen = "stream";
    this._turn("stream");
  }

  /** Another session is shown: what the address said of it holds. @param {Session|null} session */
  opened(session) {
    const { solo, token, session: id } = this._wanted;
    if (!session || (id && !session.id.startsWith(id)) || (solo < 0 && !token)) return;
    Object.assign(this._wanted, { solo: -1, token: null }); // once: from here on the person decides
    if (solo >= 0 && session.streams[solo]) this.page.picking.toggleSolo(solo);
    if (token) this.page.picking.pick(token.slot, token.position);
  }

  /** Keeps the address true. 1 Hz. */
  write() {
    this._select();
    const { page } = this;
    const { theme, still } = page.theme.chosen;
    const { solo, slot, position } = page.picking;
    const replayed = this.screen === "replay" ? page.replay.player?.track.id : "";
    if (replayed) this._wanted.session = replayed;
    const session = replayed || this._wanted.session || (page.sessions.value && page.shown ? page.shown.id : "");
    const atS = replayed ? page.replay.atS : null;
    const token = page.inspector.open && position !== null ? { slot, position } : null;
    if (!this._offered.has(this._wanted.screen)) return; // it may come yet
    const address = written({ screen: this.screen, session, evidence: page.inspector.open, solo, zoom: page.picture.zoom, theme, still, token, atS });
    gone(this._wanted.screen === "stream" ? this._wanted.session : "", page);
    const plain = address === "#/stream" && location.hash === "";
    if (location.hash !== this._heard) return; // somebody went elsewhere just now: that is heard next
    if (!plain && location.hash !== address) history.replaceState(null, "", address);
    this._heard = location.hash;
  }

  /** A session that the address names by the beginning of its id is picked when it is there. */
  _select() {
    if (this._wanted.screen === "replay") return;
    const { sessions, store } = this.page;
    const id = this._wanted.session;
    if (!id || sessions.value.startsWith(id)) return;
    const found = [...store.sessions.keys()].find((key) => key.startsWith(id));
    if (!found) return;
    if (![...sessions.options].some((option) => option.value === found)) sessions.append(new Option(found.slice(0, 8), found));
    sessions.value = found;
  }

  _changed() {
    this._wanted = parse(location.hash);
    this._heard = location.hash;
    const { recordings, store } = this.page;
    const found = this._wanted.screen === "stream" ? recordings.find(this._wanted.session) : null;
    if (found && !found.open && !store.sessions.get(found.id)?.active) this._wanted.screen = "replay"; // it is over
    const { theme, evidence } = this._wanted;
    if (theme === "dark" || theme === "light") this.page.theme.choose(theme);
    if (evidence && !this.page.inspector.open) this.page.evidence(true);
    this._select();
    this._turn(this._wanted.screen);
    this.write();
  }

  /** @param {Screen} screen */
  _turn(screen) {
    this.screen = this._offered.has(screen) ? screen : "stream";
    const section = this.streaming ? "stream" : this.screen; // a replay is looked at where the stream is
    for (const name of SCREENS) {
      if (name !== "replay") byId(`screen-${name}`).hidden = name !== section;
      const link = byId(`nav-${name}`);
      if (name === this.screen) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.body.dataset.screen = section;
    if (this.streaming) this.page.picture.touch();
    const { replay, recordings, shown } = this.page;
    const again = !replay.active;
    replay.turn(this.screen === "replay");
    if (!replay.active) return;
    this.page.picture.frozen = false;
    const { session, atS } = this._wanted;
    const last = again && !replay.player && shown && recordings.all.get(shown.id)?.open === false ? shown.id : "";
    void replay.open(session || last, atS);
  }
}

/** Why the session that the address names is not what is seen. @param {string} id or the beginning of it @param {Page} page */
function gone(id, { store, recordings }) {
  const session = id ? [...store.sessions.values()].find((one) => one.id.startsWith(id)) : null;
  const name = id.slice(0, 8);
  let words = "";
  if (id && store.boot && !session) words = `Session ${name} is over: the engine keeps a session for a minute after its end, and this page has not seen it. Shown is the newest one, if there is any.`;
  else if (session && !session.active && session.count === 0 && !recordings.find(session.id)) words = `Session ${name} was over before this page was opened: what it said and its totals are known, its field is not, and there is nothing to replay.`;
  byId("gone").hidden = words === "";
  put(byId("gone-why"), words);
}
