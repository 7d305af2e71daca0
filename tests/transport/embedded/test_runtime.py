"""The runtime with its real weights and real threads; no test measures how long anything takes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import ModelLoadFailed, ModelNotFound
from engine.domain.generation import Chunk, EndReason, GenerationRequest, Message, Parameters
from engine.domain.runtime import Runtime
from tests.transport.embedded import gguf_writer
from transport.runtimes.embedded import EmbeddedRuntime
from transport.runtimes.embedded.answer import Model
from transport.runtimes.embedded.runtime import MODELS, WEIGHTS_DIR, Pace
from transport.runtimes.embedded.sampler import log_softmax

QUESTION = "what is a glacier?"


def clock() -> int:
    return round(trio.current_time() * 1e6)


def request(model: str = "mixed", *, prompt: str = QUESTION, top_logprobs: int = 10, **values: object):
    parameters = Parameters(**{"seed": 11, **values})  # type: ignore[arg-type]
    return GenerationRequest(model, prompt=prompt, parameters=parameters, top_logprobs=top_logprobs)


async def chunks_of(runtime: Runtime, asked: GenerationRequest) -> list[Chunk]:
    async with runtime.generate(asked) as chunks:
        return [chunk async for chunk in chunks]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.fixture
def runtime() -> EmbeddedRuntime:
    return EmbeddedRuntime(clock, pace_tps=0)


def copied(tmp_path: Path, **changed: bytes) -> Path:
    for name in MODELS:
        (tmp_path / f"{name}.gguf").write_bytes(changed.get(name) or (WEIGHTS_DIR / f"{name}.gguf").read_bytes())
    return tmp_path


# --- the stream ---


@pytest.mark.parametrize("model", MODELS)
async def test_one_chunk_a_token_and_the_end_with_the_last(runtime: EmbeddedRuntime, model: str):
    chunks = await chunks_of(runtime, request(model, max_tokens=60))
    assert [len(chunk.logprobs) for chunk in chunks] == [1] * 60
    assert [chunk.end is None for chunk in chunks] == [True] * 59 + [False]
    end = chunks[-1].end
    assert end is not None
    assert (end.reason, end.eval_count, end.prompt_tokens_dropped) == (EndReason.LENGTH, 60, 0)
    assert end.prompt_tokens == 14  # begin-of-text and 13 golden ids
    assert [chunk.t_us for chunk in chunks] == sorted(chunk.t_us for chunk in chunks)
    for (entry,) in (chunk.logprobs for chunk in chunks):
        assert len(entry.top) == 10
        assert entry.logprob <= 0
        assert sum(math.exp(candidate.logprob) for candidate in entry.top) <= 1
    shown = "".join(chunk.logprobs[0].token for chunk in chunks).replace("<|end|>", "\n")
    assert text_of(chunks) == shown


@pytest.mark.parametrize("model", MODELS)
async def test_a_broken_answer_is_gone_on_with_as_if_it_had_not_broken(runtime: EmbeddedRuntime, model: str):
    whole = await chunks_of(runtime, request(model, temperature=0, max_tokens=40))
    tokenizer = (await runtime._loaded(model)).tokenizer
    gone_on = 0
    for count in range(1, 40, 3):
        said = text_of(whole[:count])
        line = said.rpartition("\n")[2]
        spelled = [entry.token for chunk in whole[:count] for entry in chunk.logprobs]
        behind = count - spelled[::-1].index("<|end|>") if "<|end|>" in spelled else 0
        if [tokenizer.display[id_] for id_ in tokenizer.encode(line)] != spelled[behind:]:
            continue  # read again it is other tokens, and the model is in another place
        asked = request(model, temperature=0, max_tokens=40 - count)
        turns = (Message("user", QUESTION), Message("assistant", said))
        rest = await chunks_of(runtime, attrs.evolve(asked, prompt=None, messages=turns, continues=True))
        assert said + text_of(rest) == text_of(whole)
        end = rest[-1].end
        assert end is not None
        assert end.prompt_tokens == 14 + count - behind
        gone_on += 1
    assert gone_on >= 5


async def test_the_text_is_definitions_on_lines_of_their_own(runtime: EmbeddedRuntime):
    chunks = await chunks_of(runtime, request(max_tokens=300))
    ends = [chunk for chunk in chunks if chunk.logprobs[0].token == "<|end|>"]
    assert len(ends) >= 3
    assert {chunk.text for chunk in ends} == {"\n"}
    assert all(line.startswith(" ") for line in text_of(chunks).splitlines())


async def test_every_logprob_is_the_models_own_whatever_the_parameters(
    runtime: EmbeddedRuntime, models: dict[str, Model]
):
    asked = request(max_tokens=80, temperature=1.3, top_k=40, top_p=0.9, top_logprobs=3)
    transformer, tokenizer = models["mixed"].transformer, models["mixed"].tokenizer
    question = [tokenizer.end_id, *tokenizer.encode(f"Q: {QUESTION}\nA:")]
    definition: list[int] = []
    for chunk in await chunks_of(runtime, asked):
        (entry,) = chunk.logprobs
        logprobs = log_softmax(transformer.feed(question + definition, transformer.new_cache()))
        id_ = tokenizer.display.index(entry.token)
        assert entry.logprob == pytest.approx(logprobs[id_], abs=1e-4)
        assert entry.top[0].logprob == pytest.approx(logprobs.max(), abs=1e-4)
        assert len(entry.top) == 3
        definition = [] if id_ == tokenizer.end_id else [*definition, id_]


async def test_max_tokens_defaults_to_120(runtime: EmbeddedRuntime):
    assert len(await chunks_of(runtime, request())) == 120
    assert len(await chunks_of(runtime, request(max_tokens=1))) == 1


async def test_the_seed_decides(runtime: EmbeddedRuntime):
    one, again, other = [text_of(await chunks_of(runtime, request(seed=seed))) for seed in (1, 1, 2)]
    assert one == again != other
    greedy = [text_of(await chunks_of(runtime, request(seed=seed, temperature=0))) for seed in (1, 2)]
    assert greedy[0] == greedy[1]


async def test_a_stop_string_ends_the_answer_and_is_never_shown(runtime: EmbeddedRuntime):
    whole = text_of(await chunks_of(runtime, request(max_tokens=60)))
    stop = whole[20:31]
    chunks = await chunks_of(runtime, request(max_tokens=60, stop=("\x00", stop)))
    assert text_of(chunks) == whole[: whole.index(stop)]
    end = chunks[-1].end
    assert end is not None
    assert (end.reason, end.eval_count) == (EndReason.STOP, len(chunks))
    assert len(chunks) < 60


async def test_a_newline_as_stop_string_gives_one_definition(runtime: EmbeddedRuntime):
    chunks = await chunks_of(runtime, request(stop=("\n",)))
    assert chunks[-1].end is not None
    assert chunks[-1].end.reason is EndReason.STOP
    assert chunks[-1].logprobs[0].token == "<|end|>"
    assert "\n" not in text_of(chunks)


async def test_held_back_text_comes_out_at_the_end(runtime: EmbeddedRuntime):
    whole = text_of(await chunks_of(runtime, request(max_tokens=20)))
    assert text_of(await chunks_of(runtime, request(max_tokens=20, stop=(whole[-3:] + "\x00",)))) == whole


async def test_a_long_prompt_keeps_its_tail_and_says_so(runtime: EmbeddedRuntime, models: dict[str, Model]):
    tokenizer = models["mixed"].tokenizer
    question = "glacier " * 1000 + "music"
    (chunk,) = await chunks_of(runtime, request(prompt=question, max_tokens=1))
    assert chunk.end is not None
    whole = 1 + len(tokenizer.encode(f"Q: {question}\nA:"))
    assert chunk.end.prompt_tokens == 256
    assert chunk.end.prompt_tokens_dropped == whole - 256


async def test_a_chat_is_asked_by_its_last_user_message(runtime: EmbeddedRuntime):
    messages = (Message("user", "define courage"), Message("assistant", "A state."), Message("user", QUESTION))
    asked = GenerationRequest("mixed", messages=messages, parameters=Parameters(seed=11, max_tokens=30))
    assert text_of(await chunks_of(runtime, asked)) == text_of(await chunks_of(runtime, request(max_tokens=30)))


async def test_generations_at_the_same_time_do_not_touch_each_other(runtime: EmbeddedRuntime):
    requests = [request(model, seed=seed, max_tokens=40) for model in MODELS for seed in (1, 2)]
    alone = [text_of(await chunks_of(runtime, asked)) for asked in requests]
    together = [""] * len(requests)

    async def run(n: int) -> None:
        together[n] = text_of(await chunks_of(runtime, requests[n]))

    async with trio.open_nursery() as nursery:
        for n in range(len(requests)):
            nursery.start_soon(run, n)
    assert together == alone


# --- keep_alive ---


async def test_with_a_keep_alive_of_0_the_model_goes_when_nobody_uses_it(runtime: EmbeddedRuntime):
    passing = attrs.evolve(request(max_tokens=2), keep_alive=0)
    await chunks_of(runtime, passing)
    assert await runtime.resident() == {}
    async with runtime.generate(request(max_tokens=2)) as chunks:
        await anext(chunks)
        await chunks_of(runtime, passing)
        assert list(await runtime.resident()) == ["mixed"]  # somebody else reads on
    assert await runtime.resident() == {}
    await chunks_of(runtime, request(max_tokens=2))
    assert list(await runtime.resident()) == ["mixed"]  # it held for that once


@pytest.mark.parametrize(("later", "stays"), [(-1, True), ("5m", True), (None, False), (0, False)])
async def test_a_later_keep_alive_takes_0_back(runtime: EmbeddedRuntime, later: str | int | None, stays: bool):
    async with runtime.generate(request(max_tokens=2)) as chunks:
        await anext(chunks)
        await chunks_of(runtime, attrs.evolve(request(max_tokens=1), keep_alive=0))
        await chunks_of(runtime, attrs.evolve(request(max_tokens=1), keep_alive=later))
    assert list(await runtime.resident()) == ["mixed"] * stays


# --- leaving ---


async def cancel(runtime: EmbeddedRuntime, chunks: AsyncIterator[Chunk], scope: trio.CancelScope) -> None:
    async for _ in chunks:
        scope.cancel()


async def leave(runtime: EmbeddedRuntime, chunks: AsyncIterator[Chunk], scope: trio.CancelScope) -> None:
    await anext(chunks)


async def cancel_while_a_thread_computes(
    runtime: EmbeddedRuntime, chunks: AsyncIterator[Chunk], scope: trio.CancelScope
) -> None:
    async def watch() -> None:
        while not runtime.threads.borrowed_tokens:
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async for _ in chunks:
            pass


@pytest.mark.parametrize("way", [cancel, leave, cancel_while_a_thread_computes])
@pytest.mark.parametrize("pace_tps", [0.0, 0.001])
async def test_no_thread_works_on_after_the_context_is_left(way: Callable[..., object], pace_tps: float):
    runtime = EmbeddedRuntime(clock, pace_tps)
    with trio.CancelScope() as scope:
        async with runtime.generate(request(max_tokens=100_000)) as chunks:
            await way(runtime, chunks, scope)  # type: ignore[misc]
    assert runtime.threads.borrowed_tokens == 0
    assert runtime.threads.statistics().tasks_waiting == 0
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


async def test_an_error_of_the_reader_passes_through(runtime: EmbeddedRuntime):
    async def read() -> None:
        async with runtime.generate(request()) as chunks:
            await anext(chunks)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read()
    assert runtime.threads.borrowed_tokens == 0


# --- pace. Virtual time does not see threads, so it could jump while one computes; but with a single generation nobody
# has a deadline then, and without a deadline there is nowhere to jump to.


async def test_tokens_come_at_the_declared_pace(autojump_clock: trio.testing.MockClock):
    chunks = await chunks_of(EmbeddedRuntime(clock, pace_tps=10), request(max_tokens=6))
    assert [later.t_us - earlier.t_us for earlier, later in pairwise(chunks)] == [100_000] * 5


async def test_a_slow_reader_slows_the_model_and_nothing_is_made_up(autojump_clock: trio.testing.MockClock):
    stamps = []
    async with EmbeddedRuntime(clock, pace_tps=10).generate(request(max_tokens=5)) as chunks:
        async for chunk in chunks:
            stamps.append(chunk.t_us)
            await trio.sleep(0.75 if len(stamps) == 2 else 0.01)
    assert [later - earlier for earlier, later in pairwise(stamps)] == [100_000, 750_000, 100_000, 100_000]


@given(st.floats(0.1, 1000), st.lists(st.floats(0, 5), min_size=1, max_size=50))
def test_pace_never_runs_ahead_and_never_catches_up(tps: float, waits: list[float]):
    pace, now, before = Pace(tps), 100.0, -math.inf
    for n, wait in enumerate(waits):
        due = pace.due(now)
        assert due >= now
        assert due >= 100 + n / tps - 1e-6
        assert due - before >= 1 / tps - 1e-6
        assert due <= max(now, before + 1 / tps)
        before, now = due, due + wait


# --- models ---


async def test_the_models_are_listed_with_their_label(runtime: EmbeddedRuntime):
    listed = await runtime.list_models()
    assert [info.name for info in listed] == ["lexicon", "hacker", "mixed"]
    for info in listed:
        data = (WEIGHTS_DIR / f"{info.name}.gguf").read_bytes()
        assert (info.size_bytes, info.digest) == (len(data), hashlib.sha256(data).hexdigest())
        assert info.details["about"].startswith("built-in demonstration models")
        assert (info.details["parameters"], info.details["context_length"]) == (1_568_160, 512)
    assert await runtime.list_models() == listed


async def test_probe(runtime: EmbeddedRuntime, tmp_path: Path):
    assert (await runtime.probe()).up
    (copied(tmp_path) / "hacker.gguf").unlink()
    probe = await EmbeddedRuntime(clock, weights_dir=tmp_path).probe()
    assert (probe.up, probe.reason) == (False, "model files are missing: hacker")


async def test_loading_reads_the_file_and_unloading_lets_go_of_it(tmp_path: Path):
    runtime = EmbeddedRuntime(clock, pace_tps=0, weights_dir=copied(tmp_path))
    assert await runtime.unload("mixed") == 0
    loaded = await runtime.load("mixed")
    assert loaded.resident_bytes > 4 * 1_568_160
    (tmp_path / "mixed.gguf").unlink()
    assert (await runtime.load("mixed")).resident_bytes == loaded.resident_bytes
    async with runtime.generate(request(max_tokens=10)) as chunks:
        await anext(chunks)
        assert await runtime.unload("mixed") == loaded.resident_bytes
        assert len([chunk async for chunk in chunks]) == 9  # a generation keeps its weights to the end
    with pytest.raises(ModelLoadFailed, match=r"mixed\.gguf: cannot be read"):
        await chunks_of(runtime, request())


async def test_a_damaged_file_is_listed_with_its_fault_and_refused(tmp_path: Path):
    runtime = EmbeddedRuntime(clock, weights_dir=copied(tmp_path, hacker=b"GGUF"))
    faults = {info.name: info.details.get("fault") for info in await runtime.list_models()}
    assert faults == {"lexicon": None, "hacker": "hacker.gguf: ends inside the version (at byte 4 of 4)", "mixed": None}
    with pytest.raises(ModelLoadFailed):
        await runtime.load("hacker")
    assert (await runtime.load("mixed")).resident_bytes > 0


async def test_any_bytes_a_model_writes_come_out_as_text(tmp_path: Path):
    """A model with random weights writes mostly broken UTF-8."""
    runtime = EmbeddedRuntime(clock, pace_tps=0, weights_dir=copied(tmp_path, mixed=gguf_writer.tiny_model(context=64)))
    chunks = await chunks_of(runtime, request(max_tokens=300, temperature=2))
    assert len(chunks) == 300
    assert "\ufffd" in text_of(chunks)
    assert any(chunk.text == "" for chunk in chunks)


async def test_an_unknown_model_is_refused_with_the_names(runtime: EmbeddedRuntime):
    for call in (runtime.load("../mixed"), runtime.unload("x"), chunks_of(runtime, request("embedded/mixed"))):
        with pytest.raises(ModelNotFound) as caught:
            await call
        assert caught.value.details == {"models": ["lexicon", "hacker", "mixed"]}
