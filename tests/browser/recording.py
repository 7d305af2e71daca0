"""The drawing functions of the page on canvases that write down what they are asked to draw.

They run in the real browser, on a document that loads nothing of the dashboard. A call comes back with the colours,
alpha, width and dashes in force: `{"on": "scene", "kind": "stroke", "path": [["M", x, y], …], "alpha": …}`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from playwright.sync_api import Browser, Page

from tests.browser.conftest import Address

Call = dict[str, Any]

WIDTH: Final = 1000
HEIGHT: Final = 420
ARC_FROM: Final = 0.75 * math.pi  # where the ring begins, and how far round it goes
ARC_SPAN: Final = 1.5 * math.pi

RECORDED: Final = """async ({ messages, width, height, scale, columnPx, stepwise, still, solo, dark }) => {
  const calls = [];
  let made = 0;
  const canvas = name => {
    const state = { globalAlpha: 1, lineWidth: 1, strokeStyle: "", fillStyle: "" };
    state.globalCompositeOperation = "source-over";
    let path = [];
    let dash = [];
    const note = (kind, more) => calls.push({
      on: name, kind, ...more, alpha: state.globalAlpha, width: state.lineWidth, stroke: state.strokeStyle,
      fill: state.fillStyle, dash: [...dash], mode: state.globalCompositeOperation,
    });
    const verbs = {
      beginPath: () => { path = []; },
      moveTo: (x, y) => path.push(["M", x, y]),
      lineTo: (x, y) => path.push(["L", x, y]),
      bezierCurveTo: (...at) => path.push(["C", ...at]),
      arc: (...at) => path.push(["A", ...at]),
      rect: (...at) => path.push(["R", ...at]),
      roundRect: (...at) => path.push(["R", ...at]),
      closePath: () => {},
      stroke: () => note("stroke", { path: [...path] }),
      fill: one => note("fill", { path: one ? "sign" : [...path] }),
      fillRect: (...at) => note("rect", { at }),
      clearRect: () => {},
      fillText: (text, x, y) => note("text", { text, at: [x, y] }),
      drawImage: (image, ...at) => note("image", { image: image.name, at }),
      setLineDash: to => { dash = to; },
      setTransform: () => {}, translate: () => {}, save: () => {}, restore: () => { dash = []; },
      measureText: text => ({ width: 6 * text.length }),
      createLinearGradient: () => ({ addColorStop: () => {} }),
      createImageData: (w, h) => ({ data: new Uint8ClampedArray(w * h * 4) }),
      putImageData: ({ data }) => note("pixels", { data: [...data] }),
    };
    const own = { name, width: 0, height: 0 };
    const ctx = new Proxy(state, { get: (to, key) => (key === "canvas" ? own : verbs[key] ?? to[key]) });
    return Object.assign(own, { getContext: () => ctx, cloneNode: () => canvas(name) });
  };
  const create = document.createElement;
  document.createElement = function (tag) {
    return tag === "canvas" ? canvas(`made-${(made += 1)}`) : create.call(this, tag);
  };
  try {
    const [{ Store }, { Field }, { draw }, { Bolts }] = await Promise.all(
      ["store", "field", "scene", "core"].map(name => import(`/static/${name}.js`)));
    const store = new Store();
    const [opened, ...rest] = stepwise ? messages.map(message => [message]) : [messages];
    opened?.forEach(message => store.ingest(message, 0));
    const session = store.newest();
    const models = ["m1", "m2", "m3", "m4", "m5", "m6"];
    const words = Object.fromEntries(["raised", "line", "text", "muted", "danger"].map(name => [name, name]));
    words.panel = "rgb(1, 2, 3)";
    const hues = { ens: "ens", gold: "gold", violet: "violet", goldRgb: [255, 210, 120], violetRgb: [180, 160, 255] };
    const palette = { ...words, ...hues, models, dark, sans: "sans", mono: "mono" };
    const field = new Field(canvas("history"));
    field.columnPx = columnPx;
    field.resize(width, height, scale, Math.max(1, session?.streams.length ?? 0));
    const bolts = new Bolts();
    const now = 1_000;
    const fresh = session ? field.advance(session, palette, still) : [];
    for (const step of rest) {
      step.forEach(message => store.ingest(message, 0));
      fresh.push(...field.advance(session, palette, still));
    }
    if (!still) bolts.add(fresh, now);
    const view = { session, palette, bolts, now, solo, still, picked: null };
    draw(canvas("scene").getContext("2d"), field, view);
    const { plot, strikes, hatched } = field;
    const first = session?.streams.map(({ columns }) => field.x(columns.firstToken)) ?? [];
    return { calls, plot, strikes, hatched, first, thrown: bolts.thrown, painted: field.painted };
  } finally {
    document.createElement = create;
  }
}"""


@contextmanager
def bare_page(browser: Browser, engine: Address) -> Iterator[Page]:
    """A document of the engine's own that runs none of the dashboard."""
    context = browser.new_context(base_url=engine.http)
    page = context.new_page()
    page.goto("/docs")
    yield page
    context.close()


def drawn(page: Page, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """What is drawn of a session: its history, all at once or message by message (`stepwise`), and one animation frame
    around it at the end. `first`: where each stream's first token stands then, CSS px. Options: width, height, scale
    (device px per CSS px), columnPx, still, solo, dark."""
    usual = {"width": WIDTH, "height": HEIGHT, "scale": 1, "columnPx": 1, "stepwise": False, "still": False}
    rest = {"solo": -1, "dark": True, "messages": messages}
    found: dict[str, Any] = page.evaluate(RECORDED, usual | rest | options)
    return found


def on(found: dict[str, Any], where: str, kind: str, **values: Any) -> list[Call]:
    """The calls of a kind on one canvas (`scene`, `history`, `made`: any that was made on the way), with values."""
    return [
        call
        for call in found["calls"]
        if call["on"].startswith(where)
        and call["kind"] == kind
        and all(call.get(name) == value for name, value in values.items())
    ]


def points(call: Call) -> list[tuple[float, float]]:
    """The corners of a line."""
    return [(step[1], step[2]) for step in call["path"]]


def arcs(found: dict[str, Any], radius: float | None = None) -> list[tuple[str, float, float]]:
    """Strokes of the ring: colour, radius and how much of it (0 to 1) they cover."""
    return [
        (call["stroke"], step[3], (step[5] - step[4]) / ARC_SPAN)
        for call in on(found, "scene", "stroke")
        for step in call["path"]
        if step[0] == "A" and step[4] == ARC_FROM and (radius is None or step[3] == radius)
    ]
