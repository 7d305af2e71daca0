"""`llama_cpp` on the real llama.cpp: answers with log-probabilities, and processes that stop, crash and are gone."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import trio

from engine.domain.errors import InvalidRequest, ModelLoadFailed, ModelNotFound, RuntimeFault, UpstreamTruncated
from engine.domain.generation import Chunk, EndReason, GenerationRequest, Message, Parameters
from engine.domain.models import Capability
from tests.fakes.ollama import virtual_clock
from tests.system.process import children_of
from transport.runtimes.embedded.runtime import WEIGHTS_DIR
from transport.runtimes.llama_cpp.process import ServerSettings, socket_path
from transport.runtimes.llama_cpp.runtime import LlamaCppRuntime
from transport.runtimes.llama_cpp.source import parse_source
from transport.runtimes.upstream import Upstream, unix_socket

WATCHDOG_S = 120.0  # generous: only something stuck runs into it
STEP_S = 0.02
PROMPT = "my darkest secret"
SHORT = Parameters(max_tokens=8, seed=1)
NO_PID = 1 << 30  # more than any process can have
ENDLESS_TOKENS = 30_000  # half a minute of work
LEXICON = WEIGHTS_DIR / "lexicon.gguf"


def asked(model: str = "lexicon", max_tokens: int = 8, **values: Any) -> GenerationRequest:
    parameters = Parameters(**{"max_tokens": max_tokens, "seed": 1} | values)
    return GenerationRequest(model, prompt=PROMPT, parameters=parameters)


@asynccontextmanager
async def running(folder: Path, *files: Path, **options: Any) -> AsyncIterator[LlamaCppRuntime]:
    """The runtime and its processes, all gone afterwards."""
    models = tuple(parse_source(str(file), folder / "models") for file in files or (LEXICON,))
    settings = options.pop("settings", ServerSettings(context_length=512, threads=1))
    sockets = options.pop("sockets", folder / "run")
    runtime = LlamaCppRuntime(virtual_clock, models, folder / "models", sockets, settings, **options)
    with trio.fail_after(WATCHDOG_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: runtime.run(task_status=task_status))
            yield runtime
            nursery.cancel_scope.cancel()
    assert children() == []


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A model that never ends its answer: its end-of-text is a token like any other, its context is long."""
    data = LEXICON.read_bytes().replace(b"<|end|>", b"<|enx|>")
    for key, value in ((b"tokenizer.ggml.eos_token_id", 5), (b"llama.context_length", 1 << 15)):
        at = data.index(key) + len(key) + 4
        data = data[:at] + value.to_bytes(4, "little") + data[at + 4 :]
    path = tmp_path / "endless.gguf"
    path.write_bytes(data)
    return path


SERVER = b"llama_cpp/server.py"


def children() -> list[int]:
    """The model processes of this one. Other tests may have left children that serve the whole run."""
    return [pid for pid in children_of(os.getpid()) if SERVER in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def lives(pid: int) -> bool:
    """A process that has ended and was not reaped has no command line any more."""
    try:
        return LEXICON.name in Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(met: Callable[[], Any]) -> None:
    with trio.fail_after(WATCHDOG_S):
        while not met():  # noqa: ASYNC110  # of another process: it sets no event
            await trio.sleep(STEP_S)


async def slots(folder: Path) -> list[dict[str, Any]]:
    """What llama.cpp says about the answers it works on."""
    (path,) = (folder / "run").glob("*.sock")
    answer = await Upstream("llama.cpp", "http://x", unix_socket(str(path))).ask("GET", "/slots", timeout_s=10)
    found: list[dict[str, Any]] = msgspec.json.decode(answer.body)
    return found


async def answer_of(runtime: LlamaCppRuntime, request: GenerationRequest) -> list[Chunk]:
    async with runtime.generate(request) as chunks:
        return [chunk async for chunk in chunks]


def long() -> ServerSettings:
    return ServerSettings(context_length=ENDLESS_TOKENS + 100, parallel=1, threads=1)


async def test_with_a_keep_alive_of_0_the_process_ends_with_the_answer(tmp_path: Path):
    async with running(tmp_path) as runtime:
        passing = attrs.evolve(asked(), keep_alive=0)
        for _ in range(3):  # also when the one before is still about to end
            assert (await answer_of(runtime, passing))[-1].end is not None
        await until(lambda: children() == [])
        assert await runtime.resident() == {}
        assert runtime.counters.starts == 3
        assert runtime.counters.crashes == 0
        async with runtime.generate(asked()) as chunks:
            await anext(chunks)
            await answer_of(runtime, passing)
            assert list(await runtime.resident() or ()) == ["lexicon"]  # somebody else reads on


# ── answers ──


async def test_it_is_found_listed_loaded_and_unloaded(tmp_path: Path):
    async with running(tmp_path) as runtime:
        probe = await runtime.probe()
        assert probe.up
        assert probe.version
        (model,) = await runtime.list_models()
        assert model.name == "lexicon"
        assert model.size_bytes == LEXICON.stat().st_size
        assert Capability.LOGPROBS in model.capabilities
        assert model.details["parameters"] == 1_568_160
        assert model.details["quantization"] == "F16"
        assert model.details["context_length"] == 512
        assert await runtime.resident() == {}
        loaded = await runtime.load("lexicon")
        assert loaded.resident_bytes is not None
        assert loaded.resident_bytes > 10_000_000
        assert list(await runtime.resident() or ()) == ["lexicon"]
        pids = children()
        assert len(pids) == 1
        await runtime.load("lexicon")
        assert children() == pids
        process = runtime._processes["lexicon"]
        assert await runtime.unload("lexicon") > 10_000_000
        assert process.exit_status == -signal.SIGTERM  # it did not have to be killed
        assert await runtime.resident() == {}
        assert children() == []
        assert await runtime.unload("lexicon") == 0
        assert list((tmp_path / "run").iterdir()) == []


async def test_an_answer_has_log_probabilities_and_a_terminal_record(tmp_path: Path):
    async with running(tmp_path) as runtime:
        chunks = await answer_of(runtime, asked(max_tokens=5))
        entries = [entry for chunk in chunks for entry in chunk.logprobs]
        assert len(entries) == 5
        assert "".join(entry.token for entry in entries) == "".join(chunk.text for chunk in chunks)
        for entry in entries:
            assert len(entry.top) == 10
            assert 0 < sum(math.exp(top.logprob) for top in entry.top) <= 1 + 1e-5
        end = chunks[-1].end
        assert end is not None
        assert end.reason is EndReason.LENGTH
        assert end.eval_count == 5
        assert end.prompt_tokens
        records = [chunk.raw for chunk in chunks if b'"model":' in chunk.raw]
        assert len(records) >= 5
        assert all(b'"model":"lexicon"' in record for record in records)  # its name, not its path


async def test_a_prompt_is_the_message_of_a_user(tmp_path: Path):
    greedy = {"temperature": 0.0}
    async with running(tmp_path) as runtime:
        prompted = await answer_of(runtime, asked(**greedy))
        talked = await answer_of(
            runtime,
            GenerationRequest(
                "lexicon",
                messages=(Message("user", PROMPT),),
                parameters=Parameters(max_tokens=8, seed=1, **greedy),
            ),
        )
    assert [chunk.text for chunk in prompted] == [chunk.text for chunk in talked]


async def test_a_prompt_longer_than_the_context_is_refused(tmp_path: Path):
    async with running(tmp_path) as runtime:
        request = GenerationRequest("lexicon", prompt="word " * 2000)
        with pytest.raises(InvalidRequest, match="context size"):
            await answer_of(runtime, request)
        assert await answer_of(runtime, asked())


async def test_no_prompt_and_no_answer_gets_into_the_log_of_a_process(tmp_path: Path):
    async with running(tmp_path) as runtime:
        for prompt in (PROMPT, f"{PROMPT} " * 2000):
            with suppress(InvalidRequest):
                chunks = await answer_of(runtime, GenerationRequest("lexicon", prompt=prompt, parameters=SHORT))
        answered = "".join(chunk.text for chunk in chunks)
        child = runtime._processes["lexicon"]._child
        assert child is not None
        await until(lambda: "try increasing it" in "".join(child.last_lines()))  # it does log
        logged = "\n".join(child.last_lines())
        assert "secret" not in logged
        assert answered not in logged


# ── stopping ──


async def test_leaving_an_answer_stops_it(tmp_path: Path, endless: Path):
    async with running(tmp_path, endless, settings=long()) as runtime:
        async with runtime.generate(asked("endless", ENDLESS_TOKENS)) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    break
            assert [slot["is_processing"] for slot in await slots(tmp_path)] == [True]
        while (now := await slots(tmp_path))[0]["is_processing"]:  # noqa: ASYNC110
            await trio.sleep(STEP_S)
        counted = now[0]["next_token"]
        decoded = (counted[0] if isinstance(counted, list) else counted)["n_decoded"]
        assert decoded < ENDLESS_TOKENS / 2
        assert await answer_of(runtime, asked("endless"))


async def test_unloading_breaks_off_what_runs_and_says_so(tmp_path: Path, endless: Path):
    async with running(tmp_path, endless, settings=long()) as runtime:
        with pytest.raises(UpstreamTruncated, match="endless was stopped inside its answer"):
            async with runtime.generate(asked("endless", ENDLESS_TOKENS)) as chunks:
                assert await anext(chunks)
                assert await runtime.unload("endless") > 0
                async for _ in chunks:
                    pass
        assert runtime.counters.crashes == 0


async def test_a_process_that_is_killed_ends_its_answers_and_is_started_again(tmp_path: Path, endless: Path):
    async with running(tmp_path, endless, settings=long()) as runtime:
        with pytest.raises(UpstreamTruncated, match="ended by SIGKILL inside its answer"):
            async with runtime.generate(asked("endless", ENDLESS_TOKENS)) as chunks:
                assert await anext(chunks)
                (pid,) = children()
                os.kill(pid, signal.SIGKILL)
                async for _ in chunks:
                    pass
        assert await runtime.resident() == {}
        assert runtime.counters.crashes == 1
        assert (await answer_of(runtime, asked("endless")))[-1].end is not None
        assert runtime.counters.starts == 2


async def test_a_process_killed_before_the_answer_is_no_fault_of_the_request(tmp_path: Path):
    """A stopped process takes the connection and says nothing."""
    async with running(tmp_path) as runtime:
        await runtime.load("lexicon")
        (pid,) = children()
        os.kill(pid, signal.SIGSTOP)

        async def kill_when_asked() -> None:
            (path,) = (tmp_path / "run").glob("*.sock")
            await until(lambda: Path("/proc/net/unix").read_text().count(str(path)) > 1)
            os.kill(pid, signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_when_asked)
            with pytest.raises(RuntimeFault, match="ended by SIGKILL before it answered") as caught:
                await answer_of(runtime, asked())
        assert caught.value.retryable
        assert PROMPT not in str(caught.value)
        assert (await answer_of(runtime, asked()))[-1].end is not None


async def test_a_load_that_is_given_up_leaves_no_process(tmp_path: Path):
    async with running(tmp_path) as runtime:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.load, "lexicon")
            await until(children)
            nursery.cancel_scope.cancel()
        await until(lambda: not children())
        assert await runtime.resident() == {}
        assert await answer_of(runtime, asked())


async def test_processes_end_with_an_engine_that_is_killed(tmp_path: Path):
    owner = await trio.lowlevel.open_process([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    pid = int(await owner.stdout.receive_some(100))
    assert lives(pid)
    owner.kill()
    await owner.wait()
    await until(lambda: not lives(pid))
    await owner.stdout.aclose()


OWNER = """
import sys, pathlib, trio
from tests.system.test_llama_cpp import children, running
async def main():
    async with running(pathlib.Path(sys.argv[1])) as runtime:
        await runtime.load("lexicon")
        print(*children(), flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_two_loads_at_once_start_one_process(tmp_path: Path):
    async with running(tmp_path) as runtime:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(runtime.load, "lexicon")
        assert runtime.counters.starts == 1
        assert len(children()) == 1


# ── files and sockets ──


async def test_a_damaged_file_is_refused_in_llama_cpps_words_and_others_go_on(tmp_path: Path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(LEXICON.read_bytes()[:200_000])
    async with running(tmp_path, cut, LEXICON) as runtime:
        with pytest.raises(ModelLoadFailed, match=r"cannot load cut: .*corrupted or incomplete") as caught:
            await runtime.load("cut")
        assert "Traceback" not in caught.value.message
        assert await answer_of(runtime, asked())
        assert list(await runtime.resident() or ()) == ["lexicon"]


async def test_files_that_are_no_models_are_told_by_the_probe(tmp_path: Path):
    text = tmp_path / "notes.gguf"
    text.write_text("not a model at all")
    async with running(tmp_path, tmp_path / "gone.gguf", text, LEXICON) as runtime:
        probe = await runtime.probe()
        assert probe.up
        assert "gone.gguf is not there" in (probe.reason or "")
        assert "notes.gguf is no GGUF file" in (probe.reason or "")
        assert [model.name for model in await runtime.list_models()] == ["lexicon"]
        for name in ("gone", "notes"):
            with pytest.raises(ModelLoadFailed):
                await runtime.load(name)
        with pytest.raises(ModelNotFound):
            await runtime.load("unheard")
        assert children() == []


async def test_a_socket_that_was_left_behind_is_in_nobodys_way(tmp_path: Path):
    (tmp_path / "run").mkdir()
    ours, theirs, nobodys = (socket_path(tmp_path / "run", 1, pid) for pid in (os.getpid(), os.getppid(), NO_PID))
    for path in (ours, theirs, nobodys):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    async with running(tmp_path) as runtime:
        assert set((tmp_path / "run").iterdir()) == {ours, theirs}
        assert await answer_of(runtime, asked())
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


async def test_a_folder_too_deep_for_sockets_gets_a_temporary_one(tmp_path: Path):
    deep = tmp_path / ("d" * 100) / "run"
    async with running(tmp_path, sockets=deep) as runtime:
        assert await answer_of(runtime, asked())
        assert list(deep.iterdir()) == []
        folder = runtime._folder
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


async def test_nothing_is_loaded_without_its_owner(tmp_path: Path):
    runtime = LlamaCppRuntime(virtual_clock, (parse_source(str(LEXICON), tmp_path),), tmp_path, tmp_path / "run")
    with pytest.raises(RuntimeFault, match="not running"):
        await runtime.load("lexicon")
    async with aclosing(runtime.pull("lexicon")) as reports:
        with pytest.raises(InvalidRequest, match="org/name"):
            await anext(reports)
