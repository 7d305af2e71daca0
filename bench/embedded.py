"""Speed of the built-in models: `python -m bench embedded`, or `python -m bench.embedded [--tokens N] [--model NAME]`.

The limit is measured in the same run: forward passes of one token with nothing around them. Each stream adds sampling,
log-probabilities, a thread hop and a Chunk per token; its ratio says what share of the limit is left. Aggregates of
several streams are compared with the same limit, because small matrices spend most of their time holding the GIL.

BLAS threads: with OPENBLAS_NUM_THREADS=1 a long prompt takes about half as long again, and single tokens come at the
same rate within the noise; so the engine leaves the setting alone.
"""

from __future__ import annotations

import argparse
import time

import trio

from engine.domain.generation import GenerationRequest, Parameters
from transport.runtimes.embedded import EmbeddedRuntime, gguf
from transport.runtimes.embedded.forward import Transformer
from transport.runtimes.embedded.runtime import MODELS, WEIGHTS_DIR

GOAL_TPS = 200
FED = 100  # positions from the context that the raw steps fill, about what a definition and its question take
PROMPT_TOKENS = 256


def clock() -> int:
    return time.perf_counter_ns() // 1000


def raw_steps_per_s(transformer: Transformer, count: int) -> float:
    begin = time.perf_counter()
    cache = transformer.new_cache()
    for n in range(count):
        if n % FED == 0:
            cache.rewind(0)
        transformer.feed([n % 2000], cache)
    return count / (time.perf_counter() - begin)


def prefill_ms(transformer: Transformer) -> float:
    begin = time.perf_counter()
    transformer.feed(range(PROMPT_TOKENS), transformer.new_cache())
    return (time.perf_counter() - begin) * 1000


async def streamed_tps(model: str, streams: int, tokens: int) -> float:
    """Tokens a second of all streams together, at full speed."""
    runtime = EmbeddedRuntime(clock, pace_tps=0)
    await runtime.load(model)

    async def stream(seed: int) -> None:
        parameters = Parameters(max_tokens=tokens, seed=seed)
        async with runtime.generate(GenerationRequest(model, prompt="what is a glacier?", parameters=parameters)) as it:
            async for _ in it:
                pass

    begin = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for seed in range(streams):
            nursery.start_soon(stream, seed)
    return streams * tokens / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), default="mixed")
    parser.add_argument("--tokens", type=int, default=1000)
    options = parser.parse_args()
    transformer = Transformer.from_gguf(gguf.read(WEIGHTS_DIR / f"{options.model}.gguf")[0])
    raw_steps_per_s(transformer, 200)  # warm the caches
    limit = max(raw_steps_per_s(transformer, options.tokens) for _ in range(3))
    print(f"raw forward steps      {limit:7.0f} /s   1.00  (the limit)")
    print(f"prompt of {PROMPT_TOKENS} tokens    {min(prefill_ms(transformer) for _ in range(3)):7.1f} ms")
    for streams in (1, 2, 3, 6):
        best = max(trio.run(streamed_tps, options.model, streams, options.tokens // streams) for _ in range(3))
        verdict = f"  goal {GOAL_TPS}: {'met' if best >= GOAL_TPS else 'MISSED'}" if streams == 1 else ""
        print(
            f"{streams} stream{'s' if streams > 1 else ' '} together   {best:9.0f} tok/s {best / limit:4.2f}{verdict}"
        )


if __name__ == "__main__":
    main()
