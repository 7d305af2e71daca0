/**
 * What came of recent sessions, frame by frame as it came: for Replay and for saving. It is packed, it is in this page's
 * memory only, and it is gone with the page. No DOM.
 */

export const RECORDED_BYTES = 16 * 2 ** 20; // packed, of all sessions together
export const RECORDED_SESSIONS = 64;
const BLOCK_CHARS = 65_536; // so much is packed at once

/** @param {string} text @returns {Promise<ArrayBuffer>} */
const pack = (text) => new Response(new Blob([text]).stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer();

/** @param {ArrayBuffer} packed @returns {Promise<string>} */
const unpack = (packed) => new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();

/** One session: the frames that came while it ran, each with the events of this session. */
export class Recording {
  /** @param {string} id */
  constructor(id) {
    this.id = id;
    this.open = true; // its end has not come
    this.cut = false; // what came later had no room
    this.lines = 0;
    this.bytes = 0; // of what is packed, and the characters of what is not yet
    /** @type {Promise<ArrayBuffer>[]} */
    this._blocks = [];
    /** @type {string[]} */
    this._tail = [];
    this._tailChars = 0;
  }

  /** @param {string} line a frame as JSON @param {(bytes: number) => void} grown told what the packing saved */
  add(line, grown) {
    this._tail.push(line);
    this._tailChars += line.length;
    this.lines += 1;
    this.bytes += line.length;
    grown(line.length);
    if (this._tailChars < BLOCK_CHARS) return;
    const chars = this._tailChars;
    const block = pack(`${this._tail.splice(0).join("\n")}\n`);
    this._tailChars = 0;
    this._blocks.push(block);
    void block.then(({ byteLength }) => {
      this.bytes += byteLength - chars;
      grown(byteLength - chars);
    });
  }

  /** All of it so far, a frame a line. @returns {Promise<string>} */
  async text() {
    const tail = this._tail.join("\n");
    const parts = await Promise.all(this._blocks.map(async (block) => unpack(await block)));
    return parts.join("") + (tail && `${tail}\n`);
  }
}

export class Recordings {
  constructor() {
    /** @type {Map<string, Recording>} the oldest first */
    this.all = new Map();
    this.forgotten = 0; // recordings given up for newer ones
    this.bytes = 0;
  }

  /** Of a session, by its id or the beginning of it. @param {string} id @returns {Recording|null} */
  find(id) {
    if (!id) return null;
    return this.all.get(id) ?? [...this.all.values()].reverse().find((one) => one.id.startsWith(id)) ?? null;
  }

  /** Those that can be replayed, the newest first. */
  get ended() {
    return [...this.all.values()].filter(({ open }) => !open).reverse();
  }

  /** @param {any} message decoded, and new @param {string} text the same as it came */
  take(message, text) {
    if (typeof message.frame === "number") this._frame(message, text);
    else for (const event of message.events ?? []) if (event.type === "system.state_snapshot") this._snapshot(message, event);
  }

  /** @param {any} message @param {string} text */
  _frame(message, text) {
    const events = message.events ?? [];
    const ids = new Set(events.map((/** @type {any} */ event) => event.session_id).filter(Boolean));
    for (const { id, open } of this.all.values()) if (open) ids.add(id); // a frame that says nothing of it was not missed
    const alone = ids.size === 1 && events.every((/** @type {any} */ event) => event.session_id);
    for (const id of ids) {
      const own = alone ? events : events.filter((/** @type {any} */ event) => event.session_id === id);
      const found = this.all.get(id);
      if (found && !found.open && !own.some((/** @type {any} */ event) => event.type.startsWith("council."))) continue; // a council's last word may follow its end, nothing else
      this._add(id, alone ? text : JSON.stringify({ ...message, events: own }));
      if (own.some((/** @type {any} */ event) => event.type === "experience.session_end")) this._close(id);
    }
  }

  /** Of a session that runs, a snapshot stands for what came before it. @param {any} message @param {any} event */
  _snapshot(message, event) {
    const states = event.payload.sessions ?? [];
    const known = new Set(states.map((/** @type {any} */ state) => state.session_id));
    for (const { id, open } of this.all.values()) if (open && !known.has(id)) this._close(id);
    for (const state of states) {
      const found = this.all.get(state.session_id);
      if (found ? !found.open : state.end !== null) continue; // what was never seen cannot be replayed
      const payload = { ...event.payload, sessions: [state] };
      this._add(state.session_id, JSON.stringify({ ...message, events: [{ ...event, payload }] }));
      if (state.end !== null) this._close(state.session_id);
    }
  }

  /** @param {string} id @param {string} line */
  _add(id, line) {
    const recording = this.all.get(id) ?? this._begin(id);
    if (recording.cut) return;
    recording.add(line, (bytes) => (this.bytes += bytes));
    while (this.bytes > RECORDED_BYTES && this._forget(recording));
    if (this.bytes > RECORDED_BYTES) recording.cut = true;
  }

  /** @param {string} id */
  _begin(id) {
    const made = new Recording(id);
    this.all.set(id, made);
    if (this.all.size > RECORDED_SESSIONS) this._forget(made);
    return made;
  }

  /** @param {string} id */
  _close(id) {
    const found = this.all.get(id);
    if (found) found.open = false;
  }

  /** Gives up the oldest that has ended; false when there is none. @param {Recording} kept */
  _forget(kept) {
    const oldest = [...this.all.values()].find((one) => one !== kept && !one.open);
    if (!oldest) return false;
    this.all.delete(oldest.id);
    this.bytes -= oldest.bytes;
    this.forgotten += 1;
    return true;
  }
}
