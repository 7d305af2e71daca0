/** Which lane is alone, and which token is looked at: by a click in the field or in the text, by keys, or by the page's address. */

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./stream.js").Stream} Stream */
/** @typedef {import("./inspector.js").Picked} Picked */

const REACH_PX = 14;

export class Picking {
  constructor() {
    this.solo = -1; // a slot, or −1 for all
    this.slot = 0; // of the token
    /** @type {number|null} null follows the newest */
    this.position = null;
    /** @type {Session|null} */
    this._session = null;
  }

  /** Another session is shown: what was picked was of the one before. @param {Session|null} session */
  of(session) {
    if (session === this._session) return;
    if (this._session !== null) this.clear();
    this._session = session;
  }

  clear() {
    this.solo = -1;
    this.slot = 0;
    this.position = null;
  }

  /** @param {number} slot */
  toggleSolo(slot) {
    this.solo = this.solo === slot ? -1 : slot;
    if (this.solo >= 0) this.slot = slot;
  }

  /** The stream whose numbers are shown. @returns {Stream|null} */
  get stream() {
    const streams = this._session?.streams ?? [];
    return streams[this.solo >= 0 ? this.solo : this.slot] ?? streams[0] ?? null;
  }

  /** @returns {Picked|null} */
  get picked() {
    const streams = this._session?.streams ?? [];
    const stream = streams[this.slot] ?? streams[0];
    const heard = stream ? (this.position === null ? stream.measured : stream.at(this.position)) : null;
    return stream && heard ? { stream, heard } : null;
  }

  /** The token before or after. @param {number} by */
  step(by) {
    const now = this.picked;
    if (!now) return;
    const position = now.heard.token.position + by;
    if (now.stream.at(position)) this.position = position;
    else if (by > 0) this.position = null;
  }

  /** @param {number} slot @param {number} position */
  pick(slot, position) {
    this.slot = slot;
    this.position = position;
  }

  /** The token nearest to a place in the field; false where there is none. @param {import("./field.js").Field} field @param {number} x @param {number} y */
  pickInField(field, x, y) {
    const slot = field.plot.lanes.findIndex((band) => y >= band.y0 - 9 && y <= band.y1 + 6);
    const stream = this._session?.streams[slot];
    if (!stream) return false;
    const column = field.column(x);
    const near = stream.heard.reduce((/** @type {import("./stream.js").Heard|null} */ best, heard) => (!best || Math.abs(heard.column - column) < Math.abs(best.column - column) ? heard : best), null);
    if (!near || Math.abs(near.column - column) * field.columnPx > REACH_PX) return false;
    this.pick(slot, near.token.position);
    return true;
  }

  /** The token at a place in the text. @param {number} slot @param {number|null} at */
  pickInText(slot, at) {
    const heard = at === null ? undefined : this._session?.streams[slot]?.heard.find(({ start, length }) => start <= at && at < start + length);
    if (!heard) return false;
    this.pick(slot, heard.token.position);
    return true;
  }
}
