/** Which screen is shown, and the address of the page that says so. */

import { byId } from "./format.js";
import { parse, SCREENS, written } from "./route.js";

/** @typedef {import("./route.js").Screen} Screen */
/** @typedef {import("./session.js").Session} Session */

/**
 * @typedef {{store: import("./store.js").Store, sessions: HTMLSelectElement, shown: Session|null, theme: import("./theme.js").Theme,
 *   picture: import("./picture.js").Picture, picking: import("./picking.js").Picking, inspector: import("./inspector.js").Inspector,
 *   evidence: (open: boolean) => void}} Page
 */

export class Screens {
  /** @param {Page} page */
  constructor(page) {
    this.page = page;
    /** @type {Screen} */
    this.screen = "stream";
    this._wanted = parse(location.hash);
    /** @type {Set<Screen>} */
    this._offered = new Set(["stream", "pool", "events"]);
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
    if (!session || (id && !session.id.startsWith(id))) return;
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
    const session = this._wanted.session || (page.sessions.value && page.shown ? page.shown.id : "");
    const token = page.inspector.open && position !== null ? { slot, position } : null;
    if (!this._offered.has(this._wanted.screen)) return; // it may come yet
    const address = written({ screen: this.screen, session, evidence: page.inspector.open, solo, zoom: page.picture.zoom, theme, still, token });
    const plain = address === "#/stream" && location.hash === "";
    if (!plain && location.hash !== address) history.replaceState(null, "", address);
  }

  /** A session that the address names by the beginning of its id is picked when it is there. */
  _select() {
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
    for (const name of SCREENS) {
      byId(`screen-${name}`).hidden = name !== this.screen;
      const link = byId(`nav-${name}`);
      if (name === this.screen) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.body.dataset.screen = this.screen;
    if (this.screen === "stream") this.page.picture.touch();
  }
}
