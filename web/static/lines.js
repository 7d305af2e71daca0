/** A stream of bytes as lines of text. No DOM. */

const LINE_CHARS_MAX = 65_536;

/**
 * The lines of `body`, without their ends; a last one without an end counts as well. Throws RangeError for an endless one.
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} body
 */
export async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const parts = (rest + (value ?? "")).split("\n");
      rest = done ? "" : (parts.pop() ?? "");
      for (const line of parts) if (line) yield line;
      if (done) return;
      if (rest.length > LINE_CHARS_MAX) throw new RangeError("a line without an end");
    }
  } finally {
    reader.cancel().catch(() => {}); // it may be over already
  }
}
