"""What a GGUF file says of vectors, and what its process is told of them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.domain.errors import InvalidRequest, ModelLoadFailed, ModelNotFound, RuntimeUnavailable
from engine.domain.generation import Dialect, GenerationRequest
from engine.domain.models import Capability
from engine.domain.runtime import Embedder, Embeddings, EmbedRequest, ForwardRequest
from tests.fakes.ollama import virtual_clock
from tests.system.llama_encoder import WIDTH, save_encoder
from tests.transport.embedded.gguf_writer import tiny_model, write
from transport.runtimes.embeddings import shortened
from transport.runtimes.llama_cpp.header import LAST, Pooling, read_header
from transport.runtimes.llama_cpp.process import ModelProcess, ServerSettings
from transport.runtimes.llama_cpp.runtime import LlamaCppRuntime
from transport.runtimes.llama_cpp.server import configure, parse
from transport.runtimes.llama_cpp.source import GgufSource, parse_source

OPTIONS = ["--model=m.gguf", "--alias=m", "--socket=/run/1.sock", "--context=384", "--parallel=2", "--threads=0"]


def decoder(path: Path, **said: tuple[str, Any]) -> Path:
    path.write_bytes(tiny_model(**{f"llama.{name}": value for name, value in said.items()}))
    return path


def runtime_of(folder: Path, *files: Path) -> LlamaCppRuntime:
    models = tuple(parse_source(str(file), folder) for file in files)
    return LlamaCppRuntime(virtual_clock, models, folder / "models", folder / "run")


@pytest.mark.parametrize(
    ("number", "named", "pools"),
    [
        (None, None, LAST),
        (0, None, LAST),
        (1, "mean", Pooling("mean", True)),
        (2, "cls", Pooling("cls", True)),
        (3, "last", LAST),
        (99, None, LAST),
    ],
)
def test_how_a_decoder_makes_vectors(tmp_path: Path, number: int | None, named: str | None, pools: Pooling):
    said = {} if number is None else {"pooling_type": ("u32", number)}
    header = read_header(decoder(tmp_path / "m.gguf", **said))
    assert (header.pooling, header.pools, header.causal) == (named, pools, True)
    assert header.answers == (named is None)
    assert header.embedding_length == 16


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", None])
def test_how_an_encoder_makes_vectors(tmp_path: Path, pooling: str | None):
    """Its tokens see one another: half a text has no vectors yet, and nothing follows from them."""
    header = read_header(save_encoder(tmp_path / "m.gguf", pooling))
    assert header.pools == Pooling(pooling or "mean", True)
    assert (header.causal, header.answers, header.embedding_length) == (False, False, WIDTH)


def test_a_model_that_only_ranks_is_none_for_us(tmp_path: Path):
    with pytest.raises(ModelLoadFailed, match="ranks texts: it gives neither answers nor vectors"):
        read_header(save_encoder(tmp_path / "m.gguf", "rank"))


@pytest.mark.parametrize("value", [("str", "mean"), ("f32", 1.0), ("bool", True)])
def test_a_pooling_that_is_no_number_is_none(tmp_path: Path, value: tuple[str, Any]):
    path = tmp_path / "m.gguf"
    path.write_bytes(write({"general.architecture": ("str", "llama"), "llama.pooling_type": value}, {}))
    assert read_header(path).pooling is None


def told(*options: str) -> Namespace:
    known = Namespace(model=SimpleNamespace(path=""), n_batch=2048, n_ubatch=512, embedding=False, pooling_type=-1)
    return configure(known, parse([*OPTIONS, *options]))


def test_every_process_is_told_to_make_vectors():
    params = told()
    assert (params.embedding, params.pooling_type, params.n_batch, params.n_ubatch) == (True, 3, 2048, 512)
    params = told("--pooling=mean", "--at-once")
    assert (params.embedding, params.pooling_type, params.n_batch, params.n_ubatch) == (True, 1, 384, 384)
    assert params.n_ctx == 768


@pytest.mark.parametrize("pooling", [LAST, Pooling("cls", True)])
def test_the_words_for_a_process_are_those_it_understands(tmp_path: Path, pooling: Pooling):
    source = GgufSource("m", tmp_path / "m.gguf")
    process = ModelProcess(
        source, ServerSettings(), 384, tmp_path / "1.sock", virtual_clock, program="server.py", pooling=pooling
    )
    argv = process._command().argv
    options = parse(list(argv[argv.index("server.py") + 1 :]))
    assert (options.pooling, options.at_once) == (pooling.name, pooling.at_once)


async def test_what_a_model_is_for_is_listed(tmp_path: Path):
    files = save_encoder(tmp_path / "vectors.gguf"), decoder(tmp_path / "words.gguf")
    words, vectors = await runtime_of(tmp_path, *files).list_models()
    assert words.capabilities == (Capability.COMPLETION, Capability.CHAT, Capability.LOGPROBS)
    assert (words.details["pooling"], words.details["embedding_length"]) == ("last", 16)
    assert "capabilities" not in words.details
    assert (vectors.capabilities, vectors.details["capabilities"]) == ((), ["embedding"])
    assert (vectors.details["pooling"], vectors.details["embedding_length"]) == ("mean", WIDTH)


async def test_a_model_for_vectors_is_not_loaded_for_words(tmp_path: Path):
    runtime = runtime_of(tmp_path, save_encoder(tmp_path / "vectors.gguf"))
    with pytest.raises(InvalidRequest, match="vectors makes vectors and no text, as its file says; ask /api/embed"):
        async with runtime.generate(GenerationRequest("vectors", prompt="x")):
            raise AssertionError("it began")
    for path in ("/v1/chat/completions", "/v1/completions"):
        with pytest.raises(InvalidRequest, match="makes vectors and no text"):
            async with runtime.forward(ForwardRequest(Dialect.OPENAI, path, b"{}", "vectors")):
                raise AssertionError("it began")
    assert runtime.counters.starts == 0


async def test_vectors_of_what_is_not_there(tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    runtime = runtime_of(tmp_path, broken, save_encoder(tmp_path / "vectors.gguf"))
    assert isinstance(runtime, Embedder)
    for model, kind in (("none", ModelNotFound), ("broken", ModelLoadFailed), ("vectors", RuntimeUnavailable)):
        with pytest.raises(kind):
            await runtime.embed(EmbedRequest(model, ("x",)))


async def test_dimensions_are_the_first_numbers_at_length_1():
    made = Embeddings(((3.0, 4.0, 12.0), (0.0, 0.0, 5.0)), 7)
    assert await shortened(made, None) is await shortened(made, 3) is made
    assert await shortened(made, 2) == Embeddings(((0.6, 0.8), (0.0, 0.0)), 7)
    for dimensions in (0, 4):
        with pytest.raises(InvalidRequest, match="the vectors of this model have 3"):
            await shortened(made, dimensions)
