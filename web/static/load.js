/** What this page costs, and what it gives up when that is too much: said on the page, never silently. No DOM. */

const SAMPLES = 60;
const LIMIT_MS = 8; // of the main thread for one animation frame
const STRAINED_FRAMES = 30; // in a row before something is given up
const EASY_FRAMES = 300; // in a row before it is taken back
const EASY_MS = 4;
const AWAY_MS = 250; // frames arrive and nothing is drawn for this long: nobody looks
const AWAY_HZ = 4;
const FULL_HZ = 60;

/** Levels: 0 all, 1 no bolts, 2 the field at 30 Hz, 3 the field at 4 Hz. */
const WORDS = ["", "page under load: no bolts", "page under load: field at 30 Hz", "page under load: numbers only"];

export class Load {
  constructor() {
    this.level = 0;
    this._costs = new Float32Array(SAMPLES);
    this._count = 0;
    this._strained = 0;
    this._easy = 0;
  }

  /** @param {number} ms what one animation frame took */
  mark(ms) {
    this._costs[this._count % SAMPLES] = ms;
    this._count += 1;
    this._strained = ms >= LIMIT_MS ? this._strained + 1 : 0;
    this._easy = ms <= EASY_MS ? this._easy + 1 : 0;
    if (this._strained >= STRAINED_FRAMES && this.level < WORDS.length - 1) this._turn(this.level + 1);
    else if (this._easy >= EASY_FRAMES && this.level > 0) this._turn(this.level - 1);
  }

  /** Mean of the last second; null before the first frame. */
  get meanMs() {
    const known = Math.min(SAMPLES, this._count);
    if (known === 0) return null;
    return this._costs.subarray(0, known).reduce((sum, ms) => sum + ms, 0) / known;
  }

  get words() {
    return WORDS[this.level];
  }

  /** @param {number} level */
  _turn(level) {
    this.level = level;
    this._strained = 0;
    this._easy = 0;
  }
}

/** Asks the engine for fewer frames while nobody looks at this page: what is drawn once is enough then. */
export class Pace {
  /** @param {(message: object) => void} send @param {(away: boolean) => void} onChange */
  constructor(send, onChange) {
    this.send = send;
    this.onChange = onChange;
    this.away = false;
    this._drawnAt = performance.now();
  }

  /** The line came up: everything is asked for, with the alternatives of each token. */
  begin() {
    this.send({ type: "subscribe", patterns: ["*"], top: true, rate_hz: this.away ? AWAY_HZ : FULL_HZ });
  }

  /** A frame arrived. @param {number} now */
  heard(now) {
    if (!this.away && now - this._drawnAt > AWAY_MS) this._turn(true);
  }

  /** An animation frame came. @param {number} now */
  drawn(now) {
    this._drawnAt = now;
    if (this.away && !document.hidden) this._turn(false);
  }

  /** @param {boolean} away */
  _turn(away) {
    this.away = away;
    this.begin();
    this.onChange(away);
  }
}
