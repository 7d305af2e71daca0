"""The synthetic source in virtual time: marked, repeatable, and true to its schedule."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import ModelNotFound
from engine.domain.generation import TOP_K, Chunk, EndReason, GenerationRequest, Parameters
from engine.domain.models import Capability
from engine.domain.runtime import Runtime
from transport.runtimes.synthetic import MODELS, STALL_EVERY, STALL_MS, SyntheticRuntime, tokens


def clock() -> int:
    return round(trio.current_time() * 1e6)


def request(model: str = "steady", **values: object) -> GenerationRequest:
    return GenerationRequest(model, prompt="anything", parameters=Parameters(**values))  # type: ignore[arg-type]


async def chunks_of(runtime: Runtime, asked: GenerationRequest) -> list[Chunk]:
    async with runtime.generate(asked) as chunks:
        return [chunk async for chunk in chunks]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def gaps_ms(chunks: list[Chunk]) -> list[float]:
    return [(later.t_us - earlier.t_us) / 1000 for earlier, later in pairwise(chunks)]


@given(st.text(max_size=5))
def test_every_token_has_a_distribution_that_leaves_a_tail(seed: str):
    for position, token in enumerate(islice(tokens(seed), 50)):
        masses = [math.exp(entry.logprob) for entry in token.top]
        assert len(masses) == TOP_K
        assert masses == sorted(masses, reverse=True)
        assert sum(masses) < 1
        assert {entry.token: entry.logprob for entry in token.top}[token.token] == token.logprob
        assert (token.token == "SYNTHETIC") == (position == 0)


async def test_every_model_is_marked(autojump_clock: trio.testing.MockClock):
    runtime = SyntheticRuntime(clock, seed=1)
    listed = await runtime.list_models()
    assert [info.name for info in listed] == ["steady", "stalling", "bursty", "nologprobs"]
    for info in listed:
        assert info.details["synthetic"] is True
        assert info.runtime == runtime.kind == "synthetic"
        assert text_of(await chunks_of(runtime, request(info.name))).startswith("SYNTHETIC ")
        assert (Capability.LOGPROBS in info.capabilities) == (info.name != "nologprobs")
    assert "SYNTHETIC" in ((await runtime.probe()).reason or "")


@pytest.mark.parametrize("model", MODELS)
async def test_the_same_seed_gives_the_same_stream(autojump_clock: trio.testing.MockClock, model: str):
    asked = request(model, max_tokens=50)
    one, again, other = [await chunks_of(SyntheticRuntime(clock, seed), asked) for seed in (1, 1, 2)]
    assert [(c.text, c.logprobs) for c in one] == [(c.text, c.logprobs) for c in again]
    assert gaps_ms(one) == gaps_ms(again) == gaps_ms(other)
    assert text_of(one) != text_of(other)
    assert text_of(one) != text_of(await chunks_of(SyntheticRuntime(clock, 1), request(model, max_tokens=50, seed=9)))


async def test_schedules(autojump_clock: trio.testing.MockClock):
    runtime = SyntheticRuntime(clock, seed=1)
    assert gaps_ms(await chunks_of(runtime, request("steady", max_tokens=5))) == [40] * 4
    stalling = gaps_ms(await chunks_of(runtime, request("stalling", max_tokens=2 * STALL_EVERY + 1)))
    assert stalling == ([40] * (STALL_EVERY - 1) + [STALL_MS]) * 2
    bursty = gaps_ms(await chunks_of(runtime, request("bursty", max_tokens=25)))
    assert bursty == [10] * 9 + [150] * 10 + [10] * 5


async def test_what_is_overdue_comes_at_once(autojump_clock: trio.testing.MockClock):
    stamps_ms = []
    async with SyntheticRuntime(clock, seed=1).generate(request(max_tokens=6)) as chunks:
        begin_ms = trio.current_time() * 1000
        async for chunk in chunks:
            stamps_ms.append(round(chunk.t_us / 1000 - begin_ms))
            await trio.sleep(0.1 if len(stamps_ms) == 1 else 0)
    assert stamps_ms == [40, 140, 140, 160, 200, 240]


async def test_log_probabilities_as_asked(autojump_clock: trio.testing.MockClock):
    runtime = SyntheticRuntime(clock, seed=1)
    asked = GenerationRequest("steady", prompt="x", top_logprobs=3)
    assert {len(chunk.logprobs[0].top) for chunk in await chunks_of(runtime, asked)} == {3}
    assert {chunk.logprobs for chunk in await chunks_of(runtime, request("nologprobs"))} == {()}


async def test_ends(autojump_clock: trio.testing.MockClock):
    runtime = SyntheticRuntime(clock, seed=1)
    whole = await chunks_of(runtime, request())
    assert whole[-1].end is not None
    assert (whole[-1].end.reason, whole[-1].end.eval_count, len(whole)) == (EndReason.FINISHED, 120, 120)
    cut = await chunks_of(runtime, request(max_tokens=7))
    assert cut[-1].end is not None
    assert (cut[-1].end.reason, cut[-1].end.eval_count, len(cut)) == (EndReason.LENGTH, 7, 7)
    stop = text_of(whole)[30:41]
    stopped = await chunks_of(runtime, request(stop=(stop,)))
    assert stopped[-1].end is not None
    assert stopped[-1].end.reason is EndReason.STOP
    assert text_of(stopped) == text_of(whole)[: text_of(whole).index(stop)]


async def test_leaving_early_and_being_cancelled(autojump_clock: trio.testing.MockClock):
    runtime = SyntheticRuntime(clock, seed=1)
    async with runtime.generate(request()) as chunks:
        await anext(chunks)
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    seen = 0
    with trio.move_on_after(0.5) as scope:
        async with runtime.generate(request("stalling")) as chunks:
            async for _ in chunks:
                seen += 1
    assert scope.cancelled_caught
    assert seen == 12


async def test_unknown_models_are_refused():
    runtime = SyntheticRuntime(clock, seed=1)
    assert (await runtime.load("steady")).resident_bytes == await runtime.unload("steady") == 0
    for call in (runtime.load("x"), runtime.unload("x"), chunks_of(runtime, request("x"))):
        with pytest.raises(ModelNotFound, match="steady, stalling, bursty, nologprobs"):
            await call
