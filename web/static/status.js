/** The status bar, the banners, the list of sessions and the one voice for screen readers. */

import { byId, fixed, NONE, put, seconds } from "./format.js";
import { outcome } from "./answer.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./connection.js").Connection} Connection */

const BANNER_AFTER_MS = 400;
const ANNOUNCE_EVERY_MS = 3_000;
const SAID_TOGETHER = 4; // sentences
const LISTED = 20;

/**
 * 10 Hz. @param {Store} store @param {Connection} link
 * @param {{drawnPerSecond: number, mainMs: number|null, lagMs: number|null, load: string, frozen: boolean}} own what this page measured of itself @param {number} now
 */
export function showStatus(store, link, own, now) {
  const received = link.state === "live" ? store.rate.perSecond(now) : null;
  put(byId("received"), received === null ? NONE : String(received));
  put(byId("drawn"), String(own.drawnPerSecond));
  put(byId("main-ms"), fixed(own.mainMs, 1));
  put(byId("lag"), fixed(own.lagMs, 0));
  put(byId("lateness"), fixed(store.perf?.lateness_ms, 1));
  put(byId("missed"), String(store.gaps));
  put(byId("merged"), fixed(store.perf?.merged, 0));
  put(byId("version"), link.engine?.version ?? NONE);
  put(byId("connection"), link.state === "live" ? "connected" : link.state);
  const degraded = (store.perf?.degrade ?? 0) > 0 ? `engine degraded, level ${store.perf?.degrade}` : own.load;
  put(byId("degraded"), own.frozen ? "frozen: Space goes on" : degraded);
  const running = [...store.sessions.values()].some((session) => session.active);
  put(byId("link"), link.state !== "live" ? capital(link.state) : running ? `Live ${received} Hz` : "Ready");
  const state = link.state !== "live" ? (link.state === "connecting" ? "" : "lost") : degraded ? "strained" : "live";
  byId("link-dot").className = `dot ${state}`;
}

/** @param {string} word */
const capital = (word) => word[0].toUpperCase() + word.slice(1);

/** @param {Session|null} session a replayed one says nothing of the line @param {Connection} link @param {boolean} syntheticModel @param {number} now */
export function showBanners(session, link, syntheticModel, now) {
  byId("synthetic").hidden = !(session ? session.synthetic : syntheticModel);
  const box = byId("trouble");
  const text = trouble(session?.recorded ? null : session, link, now);
  box.hidden = text === "";
  put(box, text);
}

/** @param {Session|null} session @param {Connection} link @param {number} now */
function trouble(session, link, now) {
  if (link.state === "incompatible") return "The engine speaks another schema than this page. Reload the page.";
  if (link.state === "live") {
    const renewed = link.engine && link.firstVersion !== link.engine.version;
    return renewed ? `The engine was updated to ${link.engine?.version}. Reload the page to match it.` : "";
  }
  if (now - link.since < BANNER_AFTER_MS) return "";
  const wait = link.nextTryAt > now ? `next try in ${((link.nextTryAt - now) / 1000).toFixed(1)} s` : "trying now";
  const why = link.reason ? ` (${link.reason.replace(/\.$/, "")})` : "";
  if (link.state === "connecting") return `Connecting to the engine… ${((now - link.since) / 1000).toFixed(1)} s${why}`;
  const upTo = session?.startUs != null && Number.isFinite(session.nowMs) ? `, showing data up to ${seconds(session.nowMs - session.startUs / 1000)}` : "";
  return `Reconnecting${why}${upTo}: ${wait}, attempt ${link.attempt}`;
}

/** The list of sessions; the empty value follows the newest. 1 Hz, and not while it is open. @param {Store} store */
export function showSessions(store) {
  const select = /** @type {HTMLSelectElement} */ (byId("sessions"));
  if (document.activeElement === select) return;
  const listed = [...store.sessions.values()].sort((a, b) => Number(b.active) - Number(a.active) || b.order - a.order).slice(0, LISTED);
  const running = listed.filter((session) => session.active).length;
  const wanted = [["", `Newest (${running} running)`], ...listed.map((session) => [session.id, sessionLine(session)])];
  const chosen = select.value;
  wanted.forEach(([value, label], i) => {
    const option = select.options[i] ?? select.appendChild(new Option());
    if (option.value !== value) option.value = value;
    put(option, label);
  });
  while (select.options.length > wanted.length) select.remove(select.options.length - 1);
  select.value = store.sessions.has(chosen) ? chosen : "";
}

/** A session in one line. @param {Session} session */
export function sessionLine(session) {
  const state = session.end ? session.end.reason : session.lost ? "lost" : (session.streams[0]?.reading?.state ?? "CHARGING").toLowerCase();
  return `${session.id.slice(0, 6)} · ${session.streams.length > 1 ? `council of ${session.streams.length}` : session.awaited || "?"} · ${session.origin || "?"} · ${state}`;
}

/** Speaks at boundaries only, at most every three seconds; stalls may be left out, endings are kept for later. */
export class Announcer {
  constructor() {
    this._spokeAt = -ANNOUNCE_EVERY_MS;
    /** @type {string[]} said together, the oldest given up first */
    this._pending = [];
  }

  /** A sentence about the page as a whole. @param {string} words */
  say(words) {
    if (!words || words === this._pending.at(-1)) return;
    this._pending.push(words);
    if (this._pending.length > SAID_TOGETHER) this._pending.shift();
  }

  /** @param {import("./store.js").Notice[]} notices drained here @param {Session|null} shown @param {number} now */
  speak(notices, shown, now) {
    for (const { kind, session, model } of notices.splice(0)) {
      if (session !== shown) continue;
      if ((kind === "stalled" || kind === "resonance") && (this._pending.length || now - this._spokeAt < ANNOUNCE_EVERY_MS)) continue;
      this.say(sentence(kind, session, model));
    }
    if (!this._pending.length || now - this._spokeAt < ANNOUNCE_EVERY_MS) return;
    byId("announcer").textContent = this._pending.splice(0).join(". ");
    this._spokeAt = now;
  }
}

/** @param {import("./store.js").Notice["kind"]} kind @param {Session} session @param {string} model */
function sentence(kind, session, model) {
  if (kind === "started") return `${session.awaited} started`;
  if (kind === "stalled") return `${model} stalled`;
  if (kind === "resonance") return "resonance";
  if (kind === "left") return `${model} left the council`;
  if (kind === "lost") return "The engine restarted, the session is lost";
  return `${session.awaited}: ${outcome(session, null)}`;
}
