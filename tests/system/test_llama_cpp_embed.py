"""Vectors by the real llama.cpp: of a model made for them, and of one that answers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trio

from engine.domain.errors import InvalidRequest, RuntimeFault
from engine.domain.generation import GenerationRequest, Parameters
from engine.domain.runtime import EmbedRequest
from tests.fakes import gguf
from tests.fakes.llama_server import llama_server
from tests.system.llama_encoder import CONTEXT, WIDTH, known_vector, save_encoder
from tests.system.process import WATCHDOG_S, EngineProcess
from tests.system.test_llama_cpp import LEXICON, PROMPT, answer_of, children, running, until
from transport.runtimes.llama_cpp.process import ServerSettings
from transport.runtimes.llama_cpp.runtime import LlamaCppRuntime

TEXTS = ("the engine streams tokens", "energy", "the screen")
CLOSE = 1e-6  # of numbers in float32, of length 1
ROUNDED = 1e-4  # nats: how much of a prompt is computed at once, and by how many threads, shows in the last digits
LONG = 600  # words: more than llama.cpp computes in one go by itself


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return save_encoder(tmp_path / "encoder.gguf")


async def vectors_of(runtime: LlamaCppRuntime, model: str, *texts: str, **more: Any) -> np.ndarray:
    return np.array((await runtime.embed(EmbedRequest(model, texts, **more))).vectors)


# ── a model made for vectors ──


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", None])
async def test_the_vectors_of_an_encoder_are_those_of_its_table(tmp_path: Path, pooling: str | None):
    path = save_encoder(tmp_path / "encoder.gguf", pooling)
    async with running(tmp_path, path) as runtime:
        made = await runtime.embed(EmbedRequest("encoder", TEXTS))
        expected = [known_vector(text, pooling or "mean") for text in TEXTS]
        assert np.abs(np.array(made.vectors) - expected).max() < CLOSE
        assert made.prompt_tokens == sum(len(text.split()) + 2 for text in TEXTS)
        again = await runtime.embed(EmbedRequest("encoder", TEXTS))
        assert again == made
        assert runtime.counters.starts == 1


async def test_dimensions_cut_a_vector_and_it_has_length_1_again(tmp_path: Path, encoder: Path):
    async with running(tmp_path, encoder) as runtime:
        whole = await vectors_of(runtime, "encoder", *TEXTS)
        cut = await vectors_of(runtime, "encoder", *TEXTS, dimensions=5)
        expected = whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True)
        assert np.abs(cut - expected).max() < CLOSE
        with pytest.raises(InvalidRequest, match=f"the vectors of this model have {WIDTH}"):
            await vectors_of(runtime, "encoder", "energy", dimensions=WIDTH + 1)


async def test_a_text_may_be_as_long_as_the_models_context(tmp_path: Path, encoder: Path):
    settings = ServerSettings(context_length=CONTEXT, parallel=2, threads=1)
    async with running(tmp_path, encoder, settings=settings) as runtime:
        whole = " ".join(["the engine"] * (CONTEXT // 2 - 1))
        (vector,) = await vectors_of(runtime, "encoder", whole)
        assert np.abs(vector - known_vector(whole)).max() < CLOSE
        for words in (CONTEXT, 3 * CONTEXT):
            with pytest.raises(InvalidRequest, match=f"longer than the {CONTEXT} tokens that encoder takes here"):
                await vectors_of(runtime, "encoder", "energy", "the " * words)
        assert len(await vectors_of(runtime, "encoder", "energy")) == 1


async def test_a_model_made_for_vectors_gives_no_text(tmp_path: Path, encoder: Path):
    async with running(tmp_path, encoder) as runtime:
        await runtime.load("encoder")
        with pytest.raises(InvalidRequest, match="encoder makes vectors and no text, as its file says"):
            await answer_of(runtime, GenerationRequest("encoder", prompt=PROMPT))
        assert len(await vectors_of(runtime, "encoder", "energy")) == 1


# ── a model that answers ──


async def test_the_vector_of_a_model_that_answers_is_that_of_its_last_token(tmp_path: Path):
    """The embedding of the known model is one-hot and nothing is added to it."""
    model = gguf.bigram()
    path = model.save(tmp_path / "bigram.gguf", context=2048)
    async with running(tmp_path, path, settings=ServerSettings(context_length=2048, threads=1)) as runtime:
        texts = ("the engine streams tokens", "the screen", "the engine " * (LONG // 2) + "stops")
        vectors = await vectors_of(runtime, "bigram", *texts)
        for text, vector in zip(texts, vectors, strict=True):
            expected = np.zeros(vectors.shape[1])
            expected[model.id_of(f" {text.split()[-1]}")] = 1.0
            assert np.abs(vector - expected).max() < CLOSE, text[:40]


async def test_answers_are_the_same_before_beside_and_without_vectors(tmp_path: Path):
    asked = GenerationRequest("lexicon", prompt=PROMPT, parameters=Parameters(max_tokens=60, seed=7))

    def said(chunks: list[Any]) -> list[tuple[str, float]]:
        return [(entry.token, entry.logprob) for chunk in chunks for entry in chunk.logprobs]

    def same(one: list[tuple[str, float]], other: list[tuple[str, float]]) -> bool:
        return [token for token, _ in one] == [token for token, _ in other] and np.allclose(
            [logprob for _, logprob in one], [logprob for _, logprob in other], atol=ROUNDED
        )

    with llama_server(copied(tmp_path / "bare.gguf"), "lexicon", context=512) as bare:
        body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 60, "seed": 7, "logprobs": True}
        own = bare.ask("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    async with running(tmp_path) as runtime:
        before = said(await answer_of(runtime, asked))
        beside: list[tuple[str, float]] = []
        vectors: list[np.ndarray] = []

        async def answer() -> None:
            beside.extend(said(await answer_of(runtime, asked)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            for _ in range(3):
                vectors.append(await vectors_of(runtime, "lexicon", *TEXTS))
        alone = await vectors_of(runtime, "lexicon", *TEXTS)
    assert len(before) > 10
    assert same(before, [(entry["token"], entry["logprob"]) for entry in own][: len(before)])
    assert same(before, beside)
    assert all(np.abs(one - alone).max() < CLOSE for one in vectors)
    assert all(abs(math.sqrt((vector**2).sum()) - 1) < CLOSE for vector in alone)


def copied(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(LEXICON.read_bytes())
    return path


async def test_a_text_longer_than_the_context_has_no_vector(tmp_path: Path):
    async with running(tmp_path) as runtime:
        with pytest.raises(InvalidRequest, match="context size") as caught:
            await vectors_of(runtime, "lexicon", f"{PROMPT} " * LONG)
        assert PROMPT not in caught.value.message
        assert len(await vectors_of(runtime, "lexicon", "energy")) == 1


# ── processes ──


async def test_with_a_keep_alive_of_0_the_process_ends_with_the_vectors(tmp_path: Path, encoder: Path):
    async with running(tmp_path, encoder) as runtime:
        assert len(await vectors_of(runtime, "encoder", "energy", keep_alive=0)) == 1
        await until(lambda: children() == [])
        assert runtime.counters.crashes == 0


async def test_a_process_that_is_killed_makes_no_vectors_and_is_started_again(tmp_path: Path, encoder: Path):
    async with running(tmp_path, encoder) as runtime:
        await runtime.load("encoder")
        (pid,) = children()
        os.kill(pid, signal.SIGSTOP)

        async def kill_when_asked() -> None:
            (path,) = (tmp_path / "run").glob("*.sock")
            await until(lambda: Path("/proc/net/unix").read_text().count(str(path)) > 1)
            os.kill(pid, signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_when_asked)
            with pytest.raises(RuntimeFault, match="ended by SIGKILL before it answered"):
                await vectors_of(runtime, "encoder", "energy")
        assert len(await vectors_of(runtime, "encoder", "energy")) == 1
        assert runtime.counters.starts == 2


# ── through the engine, in the dialects ──


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    folder = tmp_path_factory.mktemp("engine")
    copied(folder / "state" / "models" / "org" / "lexicon.gguf")
    encoder = save_encoder(folder / "encoder.gguf")
    env = {"WF_LLAMA_CPP__ENABLED": "true", "WF_LLAMA_CPP__MODEL": str(encoder), "WF_LLAMA_CPP__CONTEXT_LENGTH": "512"}
    engine = EngineProcess.spawn(folder, env=env)
    try:
        yield engine.wait_ready()
    finally:
        engine.kill()


BARE = """
import json, os, sys, xllamacpp
path, pooling, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.cpuparams.n_threads = path, 512, 1
params.embedding = True
if pooling:
    params.pooling_type = getattr(xllamacpp.llama_pooling_type, pooling)
made = xllamacpp.Server(params).handle_embeddings({"input": texts})
print("\\n" + json.dumps([one["embedding"] for one in made["data"]]), flush=True)
os._exit(0)
"""
STARTS_MAX = 3  # about one in a thousand hangs


def made_bare(path: Path, pooling: str = "") -> np.ndarray:
    """What the library says of TEXTS by itself; without `pooling` as the file says."""
    command = [sys.executable, "-c", BARE, str(path), pooling, json.dumps(TEXTS)]
    for _ in range(STARTS_MAX):
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_S, check=True)
            return np.array(json.loads(done.stdout.splitlines()[-1]))
    raise AssertionError("llama.cpp hangs")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """By the names of the models here."""
    encoder = save_encoder(tmp_path_factory.mktemp("bare") / "encoder.gguf")
    return {"encoder": made_bare(encoder), "org/lexicon": made_bare(LEXICON, "LLAMA_POOLING_TYPE_LAST")}


def post(engine: EngineProcess, path: str, **body: Any) -> httpx.Response:
    with engine.client() as http:
        return http.post(path, json=body)


@pytest.mark.parametrize("model", ["encoder", "org/lexicon"])
def test_every_dialect_gets_the_vectors_of_a_bare_llama_cpp(
    engine: EngineProcess, bare: dict[str, np.ndarray], model: str
):
    expected, name = bare[model], f"llama_cpp/{model}"
    many = post(engine, "/api/embed", model=name, input=TEXTS)
    assert many.status_code == 200, many.text
    assert np.abs(np.array(many.json()["embeddings"]) - expected).max() < CLOSE
    assert many.json()["prompt_eval_count"] > 0
    assert many.headers["x-wf-runtime"] == "llama_cpp"
    one = post(engine, "/api/embeddings", model=name, prompt=TEXTS[0])
    assert np.abs(np.array(one.json()["embedding"]) - expected[0]).max() < CLOSE
    listed = post(engine, "/v1/embeddings", model=name, input=TEXTS).json()
    assert [item["index"] for item in listed["data"]] == [0, 1, 2]
    assert np.abs(np.array([item["embedding"] for item in listed["data"]]) - expected).max() < CLOSE
    assert listed["usage"]["prompt_tokens"] == many.json()["prompt_eval_count"]


def test_a_model_made_for_vectors_says_so_in_every_dialect(engine: EngineProcess):
    name = "llama_cpp/encoder"
    with engine.client() as http:
        (told,) = [one for one in http.get("/api/tags").json()["models"] if one["name"].endswith("encoder")]
    assert told["capabilities"] == ["embedding"]
    shown = post(engine, "/api/show", model=name).json()
    assert (shown["capabilities"], shown["model_info"]["bert.embedding_length"]) == (["embedding"], WIDTH)
    message = [{"role": "user", "content": PROMPT}]
    for path, body in (
        ("/api/chat", {"messages": message}),
        ("/api/generate", {"prompt": PROMPT}),
        ("/v1/chat/completions", {"messages": message}),
        ("/v1/completions", {"prompt": PROMPT}),
        ("/v1/messages", {"messages": message, "max_tokens": 4}),
    ):
        answer = post(engine, path, model=name, stream=False, **body)
        assert answer.status_code == 400, (path, answer.text)
        assert "makes vectors and no text" in answer.text, path
        assert PROMPT not in answer.text


def test_a_text_that_is_too_long_is_the_clients_fault(engine: EngineProcess):
    for model in ("llama_cpp/encoder", "llama_cpp/org/lexicon"):
        for path in ("/api/embed", "/v1/embeddings"):
            answer = post(engine, path, model=model, input=[TEXTS[0], "the " * LONG])
            assert answer.status_code == 400, answer.text


# ── beside them ──


@pytest.mark.parametrize("tools", [[], [{"type": "function", "function": {"name": "get_time", "parameters": {}}}]])
def test_log_probabilities_of_a_whole_answer_are_those_of_all_of_its_tokens(engine: EngineProcess, tools: list[Any]):
    """Its end too, which is in no stream; and beside tools, where a stream has none."""
    asked = {"messages": [{"role": "user", "content": "entropy"}], "seed": 1, "logprobs": True, "top_logprobs": 2}
    answer = post(engine, "/v1/chat/completions", model="llama_cpp/org/lexicon", max_tokens=300, **asked, tools=tools)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    entries = choice["logprobs"]["content"]
    assert choice["finish_reason"] == "stop"
    assert len(entries) == answer.json()["usage"]["completion_tokens"]
    assert "".join(entry["token"] for entry in entries).strip() == choice["message"]["content"].strip()
    assert {len(entry["top_logprobs"]) for entry in entries} == {2}
    assert answer.headers["x-wf-route"] == "native"
