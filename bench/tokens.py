"""Tokens a second through the whole engine: POST /generate to the last line, against bare forward passes."""

from __future__ import annotations

import json

from bench.embedded import raw_steps_per_s
from bench.engine import serving
from bench.table import Row, at_least
from transport.runtimes.embedded import gguf
from transport.runtimes.embedded.forward import Transformer
from transport.runtimes.embedded.runtime import WEIGHTS_DIR

MODEL = "mixed"
TOKENS = 1000
REPEATS = 3
GOAL_TPS = 200


def measure() -> list[Row]:
    transformer = Transformer.from_gguf(gguf.read(WEIGHTS_DIR / f"{MODEL}.gguf")[0])
    raw_steps_per_s(transformer, 200)  # warm the caches
    limit = max(raw_steps_per_s(transformer, TOKENS) for _ in range(REPEATS))
    with serving(WF_EMBEDDED__PACE_TPS="0") as engine, engine.client() as http:
        best = max(tokens_per_s(http) for _ in range(REPEATS))
    return [at_least(f"embedded/{MODEL} over HTTP", best, "tok/s", GOAL_TPS, limit=limit, limit_is="forward passes")]


def tokens_per_s(http) -> float:
    parameters = {"max_tokens": TOKENS, "seed": 1}
    body = {"model": f"embedded/{MODEL}", "prompt": "what is a glacier?", "parameters": parameters, "stream": True}
    end = json.loads(http.post("/generate", json=body).content.splitlines()[-1])["payload"]
    assert end["totals"]["tokens"] == TOKENS
    return TOKENS / (end["duration_ms"] / 1000)
