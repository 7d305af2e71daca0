/** What the command palette offers: all that can be done on this page now. */

import { GOTO, KEYS } from "./keys.js";
import { FILES } from "./saving.js";
import { sessionLine } from "./status.js";

const SESSIONS = 40; // the newest

/** @typedef {import("./palette.js").Command} Command */
/**
 * @typedef {{keys: import("./keys.js").Keys, screens: import("./screens.js").Screens, composer: import("./composer.js").Composer,
 *   store: import("./store.js").Store, recordings: import("./recordings.js").Recordings, saving: import("./saving.js").Saving,
 *   shown: import("./session.js").Session|null, solo: (slot: number) => void}} Page
 */

/** @param {string} words */
const capital = (words) => words[0].toUpperCase() + words.slice(1);

/** @param {Page} page @returns {Command[]} */
export function commands(page) {
  return [...actions(page), ...screens(page), ...models(page), ...sessions(page)];
}

/** @param {Page} page @returns {Command[]} */
function actions(page) {
  const { keys, composer, saving, shown } = page;
  /** @type {Command[]} */
  const all = [{ kind: "action", name: "Run the prompt", keys: "Ctrl ↵", act: () => void composer.submit() }];
  if (shown?.active && !shown.recorded) all.push({ kind: "action", name: "Stop the session shown", keys: "Esc", act: () => keys.actions.stop() });
  all.push({ kind: "action", name: "Stop all sessions", keys: "Esc Esc", act: () => keys.actions.stopAll() });
  if (shown?.plural) shown.streams.forEach(({ model }, slot) => all.push({ kind: "action", name: `Solo ${model}`, keys: String(slot + 1), act: () => page.solo(slot) }));
  for (const { shown: caps, words, on, act } of KEYS) {
    if (act && on?.length === 1) all.push({ kind: "action", name: capital(words), keys: caps.join(" "), act: () => act(keys.actions, on[0]) });
  }
  if (shown) for (const { kind, name } of FILES) all.push({ kind: "action", name: `Save: ${name}`, act: () => void saving.save(kind) });
  return all;
}

/** @param {Page} page @returns {Command[]} */
function screens({ screens: place }) {
  const key = (/** @type {string} */ screen) => [...GOTO].find(([, name]) => name === screen)?.[0].toUpperCase();
  return place.offered.map((screen) => ({ kind: "screen", name: capital(screen), keys: key(screen) && `G ${key(screen)}`, act: () => place.goTo(screen) }));
}

/** @param {Page} page @returns {Command[]} */
function models({ composer, screens: place }) {
  return [...composer.models.keys()].map((name) => ({
    kind: "model",
    name: `Ask ${name}`,
    act: () => {
      place.goTo("stream");
      composer.picker.choose(name);
      composer.prompt.focus();
    },
  }));
}

/** @param {Page} page @returns {Command[]} */
function sessions({ store, recordings, screens: place }) {
  const newest = [...store.sessions.values()].sort((a, b) => b.order - a.order).slice(0, SESSIONS);
  return newest.flatMap((session) => {
    const line = sessionLine(session);
    /** @type {Command[]} */
    const found = [{ kind: "session", name: `Show ${line}`, act: () => place.show("stream", session.id) }];
    if (recordings.all.get(session.id)?.open === false) found.push({ kind: "session", name: `Replay ${line}`, act: () => place.show("replay", session.id) });
    return found;
  });
}
