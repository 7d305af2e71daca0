/** Surprise −log p behind the words, linear to 4.2 nat in eight steps, and a mark on the picked token. No element is made for it. */

const STEPS = 8;
const FULL_NAT = 4.2;
const TOKENS = 240; // newest of a lane
const CHARACTER_PX2 = 100; // of a lane's area, at least: what is out of sight is not marked, for marks are slow to paint
const EVERY_MS = 250;

/** @typedef {import("./lanes.js").Lanes} Lanes */
/** @typedef {import("./session.js").Session} Session */

export class Heat {
  constructor() {
    this._at = -EVERY_MS;
    this._shown = false;
  }

  /** @param {Lanes} lanes @param {Session|null} session @param {boolean} on @param {import("./inspector.js").Picked|null} picked @param {number} now */
  show(lanes, session, on, picked, now) {
    if (!("highlights" in CSS) || now - this._at < EVERY_MS || (!on && !this._shown)) return;
    this._at = now;
    this._shown = on;
    /** @type {StaticRange[][]} */
    const steps = Array.from({ length: STEPS }, () => []);
    /** @type {StaticRange[]} */
    const mark = [];
    for (const stream of on ? (session?.streams ?? []) : []) {
      const { view, scroll } = lanes.lanes[stream.slot];
      const seen = view.following ? stream.shownChars - (scroll.clientWidth * scroll.clientHeight) / CHARACTER_PX2 : 0;
      const newest = stream.heard.slice(-TOKENS).filter(({ start, length }) => start + length > seen);
      const ranges = view.ranges(newest);
      newest.forEach(({ token }, i) => {
        const range = ranges[i];
        if (!range) return;
        if (picked?.stream === stream && picked.heard.token.position === token.position) mark.push(range);
        else if (typeof token.logprob === "number") steps[Math.min(STEPS - 1, Math.floor((-token.logprob / FULL_NAT) * STEPS))].push(range);
      });
    }
    steps.forEach((ranges, step) => CSS.highlights.set(`heat-${step}`, new Highlight(...ranges)));
    CSS.highlights.set("picked", new Highlight(...mark));
  }
}
