/** Streamed text: made safe to look at, appended in small blocks, followed only while the reader is at the end. */

export const BLOCK_CHARS = 1_200; // a block ends at a newline long before; only an endless line is cut
const ENOUGH_CHARS = 400;
const PAGE_BLOCKS = 8; // a page out of sight is skipped whole, a block would cost its part in every animation frame
const DOM_CHARS = 65_536;
const NEAR_END_PX = 24;
const BEYOND_PX = 1e7; // further than any text reaches: the browser stops at the end
const TOUCH_MS = 1_000; // a scroll that long after a touch is the reader's; others come from text that grew

// Everything that would act instead of show: C0 except tab and newline, DEL, C1, bidi marks, embeddings and isolates,
// line and paragraph separators.
const ACTING = /[\u0000-\u0008\u000B-\u001F\u007F-\u009F\u061C\u200E\u200F\u2028-\u202E\u2066-\u2069]/g;

/**
 * Model text with every acting character replaced by a visible symbol, and half surrogate pairs by U+FFFD.
 * @param {string} text
 */
export function visible(text) {
  return text.toWellFormed().replace(ACTING, (character) => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code); // ␛ and its kin
    if (code === 0x7f) return "\u2421";
    return `‹U+${code.toString(16).toUpperCase().padStart(4, "0")}›`;
  });
}

/**
 * Where to cut `text` so that the first part has at most `room` units: after a newline or a space if there is one in
 * the second half, and never inside a surrogate pair.
 * @param {string} text longer than `room`
 * @param {number} room at least 2
 */
export function cutAt(text, room) {
  for (const mark of ["\n", " "]) {
    const at = text.lastIndexOf(mark, room - 1) + 1;
    if (at > room / 2) return at;
  }
  const code = text.charCodeAt(room - 1);
  return code >= 0xd800 && code <= 0xdbff ? room - 1 : room;
}

/** @typedef {import("./stream.js").Stream} Stream */

/** Shows one stream's text in `box`, a child of the scrolling `scroller`. */
export class TextView {
  /** @param {HTMLElement} box @param {HTMLElement} scroller @param {HTMLButtonElement} pill */
  constructor(box, scroller, pill) {
    this.box = box;
    this.scroller = scroller;
    this.pill = pill;
    this.following = true;
    this._touchedAt = -TOUCH_MS; // the reader's hand was on it
    this._top = 0;
    this._grown = false;
    /** @type {Stream|null} */
    this._stream = null;
    this._epoch = -1;
    this._shown = 0; // UTF-16 units of the stream's text that are in the DOM, or were
    this._at = 0; // the same, as it is shown
    this._domChars = 0;
    this._unread = 0;
    this._tokens = 0;
    this._blockKind = "";
    /** @type {Text|null} */
    this._tail = null;
    /** @type {WeakMap<Node, number>} where the text of a block begins */
    this._starts = new WeakMap();
    scroller.addEventListener("scroll", () => this._scrolled(), { passive: true });
    for (const touch of ["wheel", "touchmove", "keydown", "pointerdown"]) scroller.addEventListener(touch, () => (this._touchedAt = performance.now()), { passive: true });
    pill.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.following && this.toEnd()).observe(scroller);
  }

  /** Appends what is new. Once per animation frame. @param {Stream} stream @param {boolean} active */
  sync(stream, active) {
    if (stream !== this._stream || stream.epoch !== this._epoch) this._reset(stream);
    const live = active && stream.tokens > 0;
    if (this.box.classList.contains("live") !== live) this.box.classList.toggle("live", live);
    if (stream.chars === this._shown) return;
    for (const { kind, text, start } of stream.segments) {
      const end = start + text.length;
      if (end > this._shown) this._append(kind, visible(text.slice(Math.max(0, this._shown - start))));
    }
    this._shown = stream.chars;
    this._unread = this.following ? 0 : this._unread + stream.tokens - this._tokens;
    this._tokens = stream.tokens;
    this._trim();
    this._grown = true;
    this._label();
  }

  /** Scrolls to the end of what was appended. After all lanes have appended: the first one to ask makes the layout. */
  follow() {
    if (!this._grown) return;
    this._grown = false;
    if (this.following) this.scroller.scrollTop = BEYOND_PX;
  }

  clear() {
    if (this._stream === null && this.box.childElementCount === 0) return;
    this.box.replaceChildren();
    this._stream = null;
    this._label();
  }

  /** Heights of blocks out of sight are estimates; once they are known the end is elsewhere. 10 Hz. */
  settle() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    if (this.following && scrollHeight - clientHeight - scrollTop > 1) this.toEnd();
  }

  toEnd() {
    this.following = true;
    this._unread = 0;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this._label();
  }

  /** The shown position of a place in this text; null elsewhere. @param {Node} node @param {number} offset @returns {number|null} */
  positionOf(node, offset) {
    const block = node.parentNode;
    const start = block ? this._starts.get(block) : undefined;
    return start === undefined || !this.box.contains(block) ? null : start + offset;
  }

  /** Places of the text, for highlights; what is no longer there is left out. @param {{start: number, length: number}[]} spans in order @returns {(StaticRange|null)[]} */
  ranges(spans) {
    const blocks = [...this.box.querySelectorAll(".page > div")];
    let at = 0;
    return spans.map(({ start, length }) => {
      const end = start + length;
      while (at < blocks.length - 1 && /** @type {number} */ (this._starts.get(blocks[at + 1])) <= start) at += 1;
      const from = blocks[at] && this._starts.get(blocks[at]);
      const text = blocks[at]?.firstChild;
      if (from === undefined || !(text instanceof Text) || start < from || start - from > text.length) return null;
      return new StaticRange({ startContainer: text, startOffset: start - from, endContainer: text, endOffset: Math.min(text.length, end - from) });
    });
  }

  /** @param {Stream} stream */
  _reset(stream) {
    this.box.replaceChildren();
    this._stream = stream;
    this._epoch = stream.epoch;
    this._shown = stream.segments[0]?.start ?? 0;
    this._at = stream.shownChars - stream.segments.reduce((sum, { text }) => sum + visible(text).length, 0);
    this._domChars = 0;
    this._tokens = stream.tokens;
    this._tail = null;
    this._blockKind = "";
    this.toEnd();
    if (this._shown > 0) this._note();
  }

  /** @param {string} kind @param {string} text */
  _append(kind, text) {
    if (kind !== this._blockKind) this._tail = null;
    this._blockKind = kind;
    while (text) {
      const tail = this._tail ?? this._open(kind);
      const room = BLOCK_CHARS - tail.length;
      const length = text.length <= room ? text.length : room < 2 ? 0 : cutAt(text, room);
      tail.appendData(text.slice(0, length));
      this._domChars += length;
      this._at += length;
      text = text.slice(length);
      if (text || (tail.length > ENOUGH_CHARS && tail.data.endsWith("\n"))) this._tail = null;
    }
  }

  /** @param {string} kind @returns {Text} */
  _open(kind) {
    const block = document.createElement("div");
    if (kind !== "answer") block.className = kind === "thinking" ? "thinking" : "tool";
    this._tail = document.createTextNode("");
    this._starts.set(block, this._at);
    block.append(this._tail);
    this._page().append(block);
    return this._tail;
  }

  /** The last page with room for a block: a new one, if the last is full. @returns {Element} */
  _page() {
    const last = this.box.lastElementChild;
    if (last?.className === "page" && last.childElementCount < PAGE_BLOCKS) return last;
    const page = document.createElement("div");
    page.className = "page";
    this.box.append(page);
    return page;
  }

  _trim() {
    let dropped = false;
    while (this._domChars > DOM_CHARS) {
      const first = /** @type {Element} */ (this.box.querySelector(".page > div"));
      this._domChars -= first.textContent?.length ?? 0;
      (first.nextSibling ? first : first.parentElement)?.remove(); // a page goes with its last block
      dropped = true;
    }
    if (dropped) this._note();
  }

  /** Says at the top that the beginning is no longer here. */
  _note() {
    if (this.box.firstElementChild?.className === "note") return;
    const note = document.createElement("div");
    note.className = "note";
    note.textContent = "… earlier text is no longer shown here";
    this.box.prepend(note);
  }

  _scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const near = scrollHeight - clientHeight - scrollTop <= NEAR_END_PX;
    const back = scrollTop < this._top && performance.now() - this._touchedAt < TOUCH_MS;
    this._top = scrollTop;
    if (near) this.following = true;
    else if (back) this.following = false;
    if (this.following) this._unread = 0;
    this._label();
  }

  _label() {
    const hidden = this.following || this._unread === 0;
    if (this.pill.hidden !== hidden) this.pill.hidden = hidden;
    if (!hidden) this.pill.textContent = `↓ ${this._unread} new tokens`;
  }
}
