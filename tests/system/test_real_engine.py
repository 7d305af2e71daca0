"""Every number of a stream against a model whose probabilities are known beforehand, run by an engine that is not ours.

The way is the whole way: llama.cpp computes, our engine reads it over HTTP, and a client reads our engine. What is
expected follows from the table in the model file, the arrival times published with each token, and the formulas in
policies/energy.yaml and the README, written out here once more.
"""

from __future__ import annotations

import json
import math
import signal
from bisect import bisect_left
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import pytest

from tests.fakes import gguf
from tests.fakes.llama_server import engine_over, llama_server
from tests.system.frames import FrameReader, frames_of
from transport.runtimes.embedded.bpe import Tokenizer
from transport.runtimes.embedded.forward import Transformer
from transport.runtimes.embedded.gguf import read as read_gguf
from transport.runtimes.embedded.sampler import log_softmax

TOLERANCE = 1e-4
TOP_K = 10
TOKENS = 60
STALL_MS = 350  # of the tier; shorter under FINE
HALTED_TOKENS = 900  # half a second of them
HALTS_MAX = 10
MODEL = gguf.bigram()
# Constants under which even a fast stream is sometimes slow, so that every term of the energy moves.
FINE = "policies: {energy: {tps_max: {high: 3000}, stall_ms: {high: 0.7}, ceil_ms: {high: 5}, half_life_ms: 10}}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = MODEL.save(tmp_path_factory.mktemp("model") / "bigram.gguf", feed_forward=4096)
    with llama_server(path, "bigram") as server:
        yield server


@pytest.fixture(scope="module", params=["tier: high", "tier: high\n" + FINE], ids=["usual", "fine"])
def engine(request, server, tmp_path_factory):
    with engine_over(server, tmp_path_factory.mktemp("engine"), request.param) as engine:
        yield engine


@attrs.frozen
class Answer:
    """One answer as a frame client and a reader of `/generate` got it. `updates` are (mono_ms, stream) pairs."""

    start: dict[str, Any]
    tokens: list[dict[str, Any]]
    updates: list[tuple[float, dict[str, Any]]]
    end: dict[str, Any]
    lines: list[dict[str, Any]]
    prompt: str

    @classmethod
    def of(cls, frames: FrameReader, session_id: str, prompt: str, lines: list[dict[str, Any]]) -> Answer:
        mine = [(m["mono_ms"], e) for m in frames.messages for e in m["events"] if e["session_id"] == session_id]
        payloads = {e["type"]: e["payload"] for _, e in mine}
        return cls(
            start=payloads["experience.session_start"],
            tokens=[t for _, e in mine if e["type"] == "experience.token" for t in e["payload"]["tokens"]],
            updates=[(at, e["payload"]["streams"][0]) for at, e in mine if e["type"] == "energy.update"],
            end=payloads["experience.session_end"],
            lines=lines,
            prompt=prompt,
        )

    @property
    def ids(self) -> list[int]:
        """The last token of the prompt, and all that followed. The server leaves out the blank the answer begins
        with."""
        texts = [f" {self.prompt.split()[-1]}", *(token["text"] for token in self.tokens)]
        texts[1] = f" {texts[1].strip()}"
        return [MODEL.id_of(text) for text in texts]


async def answer_to(engine, prompt: str, **parameters: Any) -> Answer:
    body = {
        "model": "openai/bigram",
        "prompt": prompt,
        "stream": True,
        "parameters": {"max_tokens": TOKENS} | parameters,
    }
    async with frames_of(engine, top=True) as frames, engine.async_client() as http:
        lines = [json.loads(line) for line in (await http.post("/generate", json=body)).text.splitlines()]
        await frames.event("experience.session_end")
    return Answer.of(frames, lines[0]["session_id"], prompt, lines)


def longest_silence(frames: FrameReader, session_id: str) -> float:
    updates = [e["payload"]["streams"] for e in frames.events("energy.update") if e["session_id"] == session_id]
    return max((stream["silence_ms"] for streams in updates for stream in streams if stream["tokens"]), default=0)


# ── what is expected, in closed form ──


@attrs.frozen
class Uncertainty:
    certainty: float
    entropy_bits: float
    tail_mass: float


def uncertainty_after(id_: int) -> Uncertainty:
    """Of the ten most probable tokens: covered mass × (1 − their entropy / ln 10); and the entropy in bits with all
    that is not among them as one more symbol."""
    probabilities = [math.exp(logprob) for _, logprob in MODEL.best(id_, TOP_K)]
    mass = sum(probabilities)
    entropy_nats = -sum(p / mass * math.log(p / mass) for p in probabilities)
    tail = 1 - mass
    bits = -sum(p * math.log2(p) for p in [*probabilities, tail])
    return Uncertainty(mass * (1 - entropy_nats / math.log(TOP_K)), bits, tail)


def speed(stamps_us: list[int], n: int, since: int, window_ms: float) -> float:
    """Tokens per second at token `n`, over the window that ends with it and begins with token `since` at the
    earliest; 0 at the first."""
    first = bisect_left(stamps_us, stamps_us[n] - window_ms * 1000, lo=since, hi=n + 1)
    if first == n:
        return 1e6 / max(1000, stamps_us[n] - stamps_us[n - 1]) if n > since else 0.0
    return (n - first) * 1e6 / max(1000, stamps_us[n] - stamps_us[first])


def faded(energy: float, silence_ms: float, params: dict[str, float]) -> float:
    return energy * 0.5 ** (max(0.0, silence_ms - params["stall_ms"]) / params["half_life_ms"])


def energies(answer: Answer, params: dict[str, float]) -> list[tuple[float | None, float]]:
    """(E_base, E) of every token. One that waited for our own reader (`throttled`) tells nothing about the model: E is
    held, and the speed is measured anew from there."""
    found: list[tuple[float | None, float]] = []
    energy, since = 0.0, 0
    stamps = [token["t_us"] for token in answer.tokens]
    for n, (token, before) in enumerate(zip(answer.tokens, answer.ids, strict=False)):
        if token["throttled"]:
            since = n
            found.append((None, energy))
            continue
        v = min(1.0, speed(stamps, n, since, params["window_ms"]) / params["tps_max"])
        late = ((token["delta_ms"] or 0.0) - params["stall_ms"]) / (params["ceil_ms"] - params["stall_ms"])
        f = 1 - min(1.0, max(0.0, late))
        base = 0.5 * v + 0.3 * uncertainty_after(before).certainty * f + 0.2 * f
        waited_ms = (stamps[n] - stamps[n - 1]) / 1000 if n else 0.0
        energy = params["alpha"] * base + (1 - params["alpha"]) * faded(energy, waited_ms, params)
        found.append((base, energy))
    return found


def about(value: Any) -> Any:
    return pytest.approx(value, abs=TOLERANCE)


def assert_readings(answer: Answer) -> None:
    """The energy of every frame follows from the last token before it and the time since; of the last, at the end."""
    params, expected = answer.start["energy_params"], energies(answer, answer.start["energy_params"])
    end_us = answer.end["summary"]["end_us"]
    for mono_ms, stream in answer.updates:
        if not stream["tokens"]:
            assert stream["energy"] == 0
            continue
        last_us = answer.tokens[stream["tokens"] - 1]["t_us"]
        energy = expected[stream["tokens"] - 1][1]
        if stream["state"] == "DRAINED":
            energy = faded(energy, (end_us - last_us) / 1000, params)  # as it was at the end, whenever that was told
        else:
            energy = faded(energy, mono_ms - last_us / 1000, params)
        assert stream["energy"] == about(energy)


# ── and what came ──


PROMPTS = ["the engine", "a model is not"]


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_log_probabilities_are_the_table(engine, prompt):
    answer = await answer_to(engine, prompt, seed=11)
    assert len(answer.tokens) > 5
    for token, (before, id_) in zip(answer.tokens, pairwise(answer.ids), strict=True):
        assert token["logprob"] == about(MODEL.logprobs[before, id_])
        assert [entry["logprob"] for entry in token["top"]] == about([lp for _, lp in MODEL.best(before, TOP_K)])
        assert len({entry["token"] for entry in token["top"]}) > 1
        for entry in token["top"]:
            if "\ufffd" not in entry["token"]:  # else it is half a character, which the wire cannot tell
                assert entry["logprob"] == about(MODEL.logprobs[before, MODEL.id_of(entry["token"])])


def test_our_own_engine_computes_the_same_table_from_the_same_file(server):
    file, _ = read_gguf(server.model)
    transformer, tokenizer = Transformer.from_gguf(file), Tokenizer.from_gguf(file)
    text = " ".join(gguf.TEXT.split())
    ids = tokenizer.encode(text)
    assert ids == server.tokenize(text)
    assert [tokenizer.token_bytes[id_] for id_ in ids[-2:]] == [b" frame", b" ."]
    for id_ in {*ids, gguf.END_ID}:
        scores = transformer.feed([id_], transformer.new_cache())
        assert np.abs(log_softmax(scores) - MODEL.logprobs[id_]).max() < TOLERANCE


async def test_certainty_entropy_and_tail_are_the_closed_form(engine):
    answer = await answer_to(engine, "a stream has", seed=5)
    seen = {}
    for _, stream in answer.updates:
        if stream["tokens"]:
            expected = uncertainty_after(answer.ids[stream["tokens"] - 1])
            measured = [stream[name] for name in ("certainty", "entropy_bits", "tail_mass")]
            assert measured == about(list(attrs.astuple(expected)))
            seen[stream["tokens"]] = expected
    assert len(answer.tokens) in seen


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_energy_of_every_token_is_the_closed_form(engine, prompt):
    answer = await answer_to(engine, prompt, seed=3)
    params = answer.start["energy_params"]
    for token, (base, energy) in zip(answer.tokens, energies(answer, params), strict=True):
        assert (token["energy_base"], token["energy"]) == (about(base), about(energy))
    assert [token["delta_ms"] for token in answer.tokens[1:]] == [
        about((after["t_us"] - before["t_us"]) / 1000) for before, after in pairwise(answer.tokens)
    ]
    assert answer.tokens[0]["delta_ms"] is None


async def test_energy_between_tokens_and_after_the_last_is_the_closed_form(engine):
    answer = await answer_to(engine, "the user can stop a stream and the engine", seed=1)
    assert_readings(answer)
    assert answer.updates[-1][1]["state"] == "DRAINED"


async def test_a_real_stall_is_seen_and_energy_falls_by_the_closed_form(engine, server):
    """The server's process is halted in the middle of an answer, and let go on. On a busy machine an answer may be
    over before we come to halt it; then it is asked for again."""
    for _ in range(HALTS_MAX):
        if (answer := await halted_answer(engine, server)) is not None:
            break
    assert answer is not None
    assert (answer.end["reason"], len(answer.tokens)) == ("length", HALTED_TOKENS)
    assert_readings(answer)
    halted = max((stream for _, stream in answer.updates), key=lambda stream: stream["silence_ms"])
    assert (halted["state"], halted["stall"]) == ("STALLING", True)
    assert halted["energy"] < 0.9 * answer.tokens[halted["tokens"] - 1]["energy"]
    assert halted["tokens"] < answer.updates[-1][1]["tokens"]


async def halted_answer(engine, server) -> Answer | None:
    """None when it came to its end before the server was halted."""
    body = {"model": "openai/bigram", "prompt": "the engine", "parameters": {"max_tokens": HALTED_TOKENS}}
    async with frames_of(engine, top=True) as frames, engine.async_client() as http:
        session_id = (await http.post("/generate", json=body)).json()["session_id"]
        await frames.event("experience.token")
        server.process.send_signal(signal.SIGSTOP)

        def silent() -> bool:
            return longest_silence(frames, session_id) > 2.5 * STALL_MS

        try:
            await frames.until(lambda: silent() or frames.events("experience.session_end"))
        finally:
            server.process.send_signal(signal.SIGCONT)
        if not silent():
            return None
        await frames.event("experience.session_end")
        return Answer.of(frames, session_id, "the engine", [])


async def test_certain_and_uncertain_tokens_differ(engine):
    """Else the comparisons above would hold for a constant."""
    answer = await answer_to(engine, "the", seed=2)
    certainties = {round(uncertainty_after(id_).certainty, 3) for id_ in answer.ids[:-1]}
    assert min(certainties) < 0.3 < 0.9 < max(certainties)
    assert len({token["energy_base"] for token in answer.tokens}) > 5


async def test_lines_and_frames_tell_the_same(engine):
    answer = await answer_to(engine, "no token", seed=4)
    told = [t for line in answer.lines if line["type"] == "experience.token" for t in line["payload"]["tokens"]]
    assert told == [{name: value for name, value in token.items() if name != "top"} for token in answer.tokens]
    assert answer.lines[0]["payload"]["synthetic"] is False


async def test_the_engines_counts_are_the_servers(engine):
    answer = await answer_to(engine, "the engine", seed=9, max_tokens=12, temperature=0)
    assert (answer.end["reason"], answer.end["error"]) == ("length", None)
    assert [answer.end["totals"][name] for name in ("tokens", "eval_count", "prompt_tokens")] == [
        12,
        12,
        1 + len("the") + 1,
    ]
