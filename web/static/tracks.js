/** Four raw tracks of one stream, unsmoothed: a dot per token and signal, at the time of its arrival. No DOM. */

const LEFT_PX = 74;
const WINDOW_US = 10e6;
const DELTA_MS = [5, 1_000];
const SURPRISE_NAT = 4;
const ENTROPY_BITS = 3.4;

/** @typedef {import("./stream.js").Heard} Heard */

/** @param {number} value */
const clamp = (value) => Math.min(1, Math.max(0, value));

/** @type {[label: string, range: string, part: (heard: Heard) => number|null][]} */
const TRACKS = [
  ["Δt", "5 ms–1 s, log", ({ token }) => (token.delta_ms > 0 ? clamp(Math.log(token.delta_ms / DELTA_MS[0]) / Math.log(DELTA_MS[1] / DELTA_MS[0])) : null)],
  ["−log p", "0–4 nat", ({ token }) => (typeof token.logprob === "number" ? clamp(-token.logprob / SURPRISE_NAT) : null)],
  ["entropy", "0–3.4 bit", ({ reading }) => (typeof reading?.entropy_bits === "number" ? clamp(reading.entropy_bits / ENTROPY_BITS) : null)],
  ["E base", "0–1", ({ token }) => (typeof token.energy_base === "number" ? token.energy_base : null)],
];

/** @param {HTMLCanvasElement} canvas @param {import("./stream.js").Stream} stream @param {Heard} picked @param {import("./theme.js").Palette} palette */
export function drawTracks(canvas, stream, picked, palette) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = Math.min(2, devicePixelRatio || 1);
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const ctx = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  ctx.setTransform(scale, 0, 0, scale, 0, 0);
  ctx.clearRect(0, 0, width, height);
  ctx.textBaseline = "middle";
  const end = Math.max(picked.token.t_us, (stream.heard.at(-1)?.token.t_us ?? 0) > picked.token.t_us + WINDOW_US ? picked.token.t_us + WINDOW_US / 2 : (stream.heard.at(-1)?.token.t_us ?? 0));
  const x = (/** @type {number} */ tUs) => width - 4 - ((end - tUs) / WINDOW_US) * (width - 4 - LEFT_PX);
  const shown = stream.heard.filter(({ token }) => token.t_us <= end && x(token.t_us) >= LEFT_PX);
  TRACKS.forEach(([label, range, part], row) => {
    const base = ((row + 1) * height) / 4 - 4;
    const tall = height / 4 - 9;
    ctx.fillStyle = palette.line;
    ctx.fillRect(LEFT_PX, base, width - 4 - LEFT_PX, 1);
    ctx.textAlign = "left";
    ctx.fillStyle = palette.text;
    ctx.font = `500 11px ${palette.sans}`;
    ctx.fillText(label, 0, base - tall + 6);
    ctx.fillStyle = palette.muted;
    ctx.font = `9px ${palette.mono}`;
    ctx.fillText(range, 0, base - tall + 19);
    ctx.fillStyle = palette.models[stream.slot];
    for (const heard of shown) {
      const value = part(heard);
      if (value !== null) ctx.fillRect(x(heard.token.t_us) - 1, base - value * tall - 1, 2, 2);
    }
  });
  ctx.fillStyle = palette.gold;
  for (let y = 0; y < height; y += 6) ctx.fillRect(x(picked.token.t_us), y, 1, 3);
}
