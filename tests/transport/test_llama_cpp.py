"""`llama_cpp` without llama.cpp: what it reads of files, what it calls them, what it tells its processes, downloads."""

from __future__ import annotations

import struct
import sys
from argparse import Namespace
from contextlib import aclosing, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import ConfigError, ModelLoadFailed, ModelNotFound, UpstreamTruncated
from engine.domain.models import Capability, is_model_name
from engine.domain.pull import PullProgress
from tests.fakes.hub import REPO, FakeHub, listed
from tests.fakes.ollama import Break, Send, virtual_clock
from tests.transport.embedded.gguf_writer import string, tiny_model, tiny_parts, write
from transport.runtimes.embedded.runtime import WEIGHTS_DIR
from transport.runtimes.llama_cpp.header import read_header
from transport.runtimes.llama_cpp.process import ServerSettings
from transport.runtimes.llama_cpp.runtime import PULLS_MAX, LlamaCppRuntime
from transport.runtimes.llama_cpp.server import configure, parse
from transport.runtimes.llama_cpp.source import GgufSource, distinct, downloaded_sources, parse_source, repo_source

TINY = tiny_model()
WATCHDOG_S = 10.0  # generous: only something stuck runs into it


def runtime_of(folder: Path, *models: GgufSource, fake: FakeHub | None = None, **options) -> LlamaCppRuntime:
    hub = (fake or FakeHub([])).hub
    return LlamaCppRuntime(virtual_clock, models, folder / "models", folder / "run", hub=hub, **options)


async def reports_of(runtime: LlamaCppRuntime, model: str) -> list[PullProgress]:
    async with aclosing(runtime.pull(model)) as reports:
        return [report async for report in reports]


def saved(folder: Path, data: bytes, name: str = "tiny.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# ── headers ──


def test_the_header_of_a_shipped_model():
    path = WEIGHTS_DIR / "lexicon.gguf"
    header = read_header(path)
    assert header.size_bytes == path.stat().st_size
    assert (header.architecture, header.parameters) == ("llama", 1_568_160)
    assert (header.context_length, header.quantization, header.chat_template) == (512, "F16", True)
    assert header.modified_at.endswith("Z")


def test_what_a_file_does_not_say_is_null(tmp_path: Path):
    data = write({"general.architecture": ("str", "llama"), "general.file_type": ("u32", 9999)}, {})
    header = read_header(saved(tmp_path, data))
    assert (header.parameters, header.context_length, header.quantization) == (0, None, None)
    assert not header.chat_template


def test_weights_of_any_type_are_counted_and_need_not_be_there(tmp_path: Path):
    """Quantised weights are of types that only llama.cpp reads."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += string("general.architecture") + struct.pack("<I", 8) + string("llama")
    head += string("blk.0") + struct.pack("<IQQIQ", 2, 256, 3, 14, 0)
    assert read_header(saved(tmp_path, head)).parameters == 768


def test_lists_of_every_kind_are_stepped_over(tmp_path: Path):
    metadata, tensors = tiny_parts(
        **{"a.b": ("[[u32]]", [[1, 2], []]), "a.c": ("[[str]]", [["x", "yy"]]), "a.d": ("[bool]", [True, False])}
    )
    header = read_header(saved(tmp_path, write(metadata, tensors)))
    assert header.parameters == sum(tensor.size for tensor in tensors.values())


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "is damaged: it ends inside its header"),
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "of version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "it counts 1152921504606846976"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 40), "it counts"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<I", 99), "no value type 99"),
        (write({"general.architecture": ("u32", 1)}, {}), "which architecture"),
        (write({"general.architecture": ("str", "clip")}, {}), "an image encoder"),
        (write({"a": ("[[[u32]]]", [[[1]]])}, {}), "more than 2 deep"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, data: bytes, fault: str):
    with pytest.raises(ModelLoadFailed) as caught:
        read_header(saved(tmp_path, data))
    assert fault in caught.value.message
    assert caught.value.message.startswith("tiny.gguf ")


@given(at=st.integers(0, 1 << 30))
def test_a_header_that_is_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, at: int):
    head = TINY[: TINY.index(b"output_norm.weight")]
    with pytest.raises(ModelLoadFailed):
        read_header(saved(tmp_path_factory.getbasetemp(), head[: at % len(head)]))


@given(at=st.integers(0, 1 << 30), value=st.binary(min_size=1, max_size=8))
def test_a_damaged_header_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: bytes
):
    begin = at % len(TINY)
    path = saved(tmp_path_factory.getbasetemp(), TINY[:begin] + value + TINY[begin + len(value) :])
    with suppress(ModelLoadFailed):
        assert read_header(path).architecture


# ── names and places ──


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/models/Llama-3.2-1B-Q4_K_M.gguf", "Llama-3.2-1B-Q4_K_M"),
        ("my model (1).GGUF", "my-model--1-"),
        ("../.hidden.gguf", "hidden"),
        ("ümlaut.gguf", "mlaut"),
        ("...gguf", "model"),
        (f"{'x' * 200}.gguf", "x" * 80),
    ],
)
def test_a_file_is_called_by_its_stem(tmp_path: Path, text: str, name: str):
    source = parse_source(text, tmp_path)
    assert source.name == name
    assert is_model_name(source.name)
    assert source.path.is_absolute()
    assert source.repo is None


def test_a_repository_has_its_place_in_the_folder(tmp_path: Path):
    source = parse_source("org/name-1.5:Q8_0", tmp_path)
    assert source == GgufSource("org/name-1.5:Q8_0", tmp_path / "org" / "name-1.5:Q8_0.gguf", "org/name-1.5", "Q8_0")
    assert parse_source("org/name-1.5", tmp_path).path == tmp_path / "org" / "name-1.5.gguf"


@pytest.mark.parametrize(
    "text", ["", "name", "a/b/c", "../b", "a/..", "a/.b", "/a/b", "a/b:", "a/b:c/d", "a b/c", "a/b\n"]
)
def test_what_is_neither_file_nor_repository(tmp_path: Path, text: str):
    with pytest.raises(ConfigError, match="neither a file"):
        parse_source(text, tmp_path)


@given(name=st.from_regex(r"[A-Za-z0-9._:/-]{1,40}", fullmatch=True) | st.text(max_size=40))
def test_no_name_leads_out_of_the_folder(name: str):
    folder = Path("/models")
    source = repo_source(name, folder)
    if source is not None:
        assert source.path.resolve().is_relative_to(folder)
        assert len(source.path.relative_to(folder).parts) == 2


def test_what_was_downloaded_is_found_again(tmp_path: Path):
    for name in ("a/b.gguf", "a/c.d:Q8_0.gguf", "a/e.gguf.1234.part", "a/.x.gguf", "f/deeper/g.gguf"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = downloaded_sources(tmp_path)
    assert [source.name for source in found] == ["a/b", "a/c.d:Q8_0"]
    assert found == [parse_source(source.name, tmp_path) for source in found]
    assert downloaded_sources(tmp_path / "nowhere") == []


def test_files_of_one_name_are_told_apart(tmp_path: Path):
    files = [parse_source(f"/{folder}/m.gguf", tmp_path) for folder in ("one", "two", "one", "three")]
    assert [(source.name, source.path.parent.name) for source in distinct(tuple(files))] == [
        ("m", "one"),
        ("m-2", "two"),
        ("m-3", "three"),
    ]


# ── what a process is told ──


OPTIONS = ["--model=-m.gguf", "--alias=m", "--socket=/run/1.sock", "--context=512", "--parallel=3", "--threads=0"]


def test_what_a_process_is_told():
    known = Namespace(model=SimpleNamespace(path=""), hostnames=["127.0.0.1"], ui=True, cache_ram_mib=8192, verbosity=3)
    told = configure(known, parse(OPTIONS))
    assert (told.hostnames, told.ui, told.cache_ram_mib, told.verbosity) == (["/run/1.sock"], False, 0, 1)
    assert (told.n_ctx, told.n_parallel, told.model.path, told.model_alias) == (1536, 3, "-m.gguf", {"m"})


@pytest.mark.parametrize("values", [{"context_length": 64}, {"parallel": 0}, {"parallel": 33}, {"threads": -1}])
def test_settings_have_bounds(values: dict[str, int]):
    with pytest.raises(ValueError):
        ServerSettings(**values)


# ── what is there ──


async def test_without_llama_cpp_the_probe_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # as if it were not installed
    probe = await runtime_of(tmp_path, parse_source(str(saved(tmp_path, TINY)), tmp_path)).probe()
    assert not probe.up
    assert "pip install 'wf-engine[llama]'" in (probe.reason or "")


async def test_the_probe_names_three_faults_and_counts_the_others(tmp_path: Path):
    sources = [parse_source(str(tmp_path / f"{number}.gguf"), tmp_path) for number in range(5)]
    probe = await runtime_of(tmp_path, *sources).probe()
    assert not probe.up
    assert (probe.reason or "").endswith("2.gguf is not there, or cannot be reached; and 2 more")


async def test_without_any_model_the_probe_says_what_to_configure(tmp_path: Path):
    probe = await runtime_of(tmp_path).probe()
    assert not probe.up
    assert "no GGUF file is configured" in (probe.reason or "")


async def test_models_are_listed_with_what_their_files_say(tmp_path: Path):
    source = parse_source(str(saved(tmp_path, TINY)), tmp_path)
    (model,) = await runtime_of(tmp_path, source, settings=ServerSettings(context_length=128)).list_models()
    assert (model.name, model.runtime, model.size_bytes, model.digest) == ("tiny", "llama_cpp", len(TINY), None)
    assert model.capabilities == (Capability.COMPLETION, Capability.CHAT, Capability.LOGPROBS)
    assert model.details["context_length"] == 24
    assert model.details["context_length_used"] == 24
    assert "quantization" not in model.details


async def test_a_file_that_changes_is_read_again(tmp_path: Path):
    path = saved(tmp_path, b"no model")
    runtime = runtime_of(tmp_path, parse_source(str(path), tmp_path))
    assert await runtime.list_models() == ()
    saved(tmp_path, TINY)
    (model,) = await runtime.list_models()
    metadata, tensors = tiny_parts(context=48)
    saved(tmp_path, write(metadata, tensors | {"more": np.zeros(4, np.float32)}))
    assert (await runtime.list_models())[0].details["parameters"] == model.details["parameters"] + 4


# ── downloads ──


async def test_a_pulled_model_is_listed_then_and_after_a_restart(tmp_path: Path):
    fake = FakeHub([listed("a-Q4_K_M.gguf", TINY)], TINY)
    runtime = runtime_of(tmp_path, fake=fake)
    assert (await reports_of(runtime, REPO))[-1].status == "success"
    for again in (runtime, runtime_of(tmp_path)):
        assert [model.name for model in await again.list_models()] == [REPO]
    count = len(fake.requests)
    assert await reports_of(runtime, REPO) == [PullProgress("success")]
    assert len(fake.requests) == count


async def test_a_configured_repository_is_not_downloaded_before_somebody_asks(tmp_path: Path):
    fake = FakeHub([listed("a-Q4_K_M.gguf", TINY)], TINY)
    runtime = runtime_of(tmp_path, parse_source(REPO, tmp_path / "models"), fake=fake)
    probe = await runtime.probe()
    assert not probe.up
    assert probe.reason == f"{REPO} is not downloaded yet; pull it"
    assert await runtime.list_models() == ()
    with pytest.raises(ModelNotFound, match="pull it first"):
        await runtime.load(REPO)
    assert fake.requests == []


async def test_two_who_pull_the_same_model_download_it_once(tmp_path: Path):
    fake = FakeHub([listed("a-Q4_K_M.gguf", TINY)], TINY)
    runtime = runtime_of(tmp_path, fake=fake)
    seen: list[list[PullProgress]] = []

    async def pull() -> None:
        seen.append(await reports_of(runtime, REPO))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull)
        nursery.start_soon(pull)
    assert sorted(len(reports) > 1 for reports in seen) == [False, True]
    assert len(fake.requests) == 3


async def test_a_failed_pull_leaves_nothing_listed_and_nothing_held(tmp_path: Path):
    fake = FakeHub([listed("a-Q4_K_M.gguf", TINY)], TINY, steps=[[Send(TINY[:100]), Break()]])
    runtime = runtime_of(tmp_path, fake=fake)
    with pytest.raises(UpstreamTruncated):
        await reports_of(runtime, REPO)
    assert await runtime.list_models() == ()
    assert (await reports_of(runtime, REPO))[-1].status == "success"


async def test_downloads_beyond_the_limit_wait_and_say_so(tmp_path: Path):
    fake = FakeHub([listed("a-Q4_K_M.gguf", TINY)], TINY)
    runtime = runtime_of(tmp_path, fake=fake)
    async with trio.open_nursery() as nursery:
        for number in range(PULLS_MAX):
            await nursery.start(_hold_a_pull, runtime, f"org/other-{number}")
        async with aclosing(runtime.pull(REPO)) as reports:
            with trio.fail_after(WATCHDOG_S):
                assert await anext(reports) == PullProgress("waiting for other downloads")
            nursery.cancel_scope.cancel()
    assert (await reports_of(runtime, REPO))[-1].status == "success"


async def _hold_a_pull(runtime: LlamaCppRuntime, model: str, *, task_status: trio.TaskStatus[None]) -> None:
    async with aclosing(runtime.pull(model)) as reports:
        await anext(reports)
        task_status.started()
        await trio.sleep_forever()
