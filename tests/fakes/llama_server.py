"""A real engine that is not ours: llama.cpp's own server (from the wheel `xllamacpp`) with a model file, on loopback.

It runs in a process of its own, because a crash in native code must not take the tests down.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import pytest

from tests.system.process import EngineProcess

WATCHDOG_S: Final = 120.0  # generous: only something stuck runs into it
START_S: Final = 60.0  # hundreds of times what a start takes, once its library has been read from the disk
STARTS_MAX: Final = 3
STEP_S: Final = 0.02
SLOTS: Final = 2  # answers at a time; each has a context of its own
CONTEXT: Final = 1024  # tokens of each

# Says its address once it listens, and serves until its standard input ends: it never outlives the tests.
PROGRAM: Final = """
import sys, xllamacpp
path, name, slots, context, exact = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = path
params.model_alias = {name}
params.n_parallel, params.n_ctx = int(slots), int(slots) * int(context)
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_ram_mib = 0
if exact == "exact":
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
print("\\nready:", server.listening_address, flush=True)
sys.stdin.read()
"""
_READY: Final = re.compile(r"^ready: (http://127\.0\.0\.1:\d+)$", re.MULTILINE)


def require_xllamacpp() -> None:
    """Skips on a desk where it is not installed; fails under CI."""
    if importlib.util.find_spec("xllamacpp") is None:
        reason = "xllamacpp is not installed: `make test` does that, or pip install -e '.[test]'"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@attrs.define(eq=False)
class LlamaServer:
    """A server that answers. What is asked here goes to it directly."""

    model: Path
    process: subprocess.Popen[bytes]
    log: Path
    http: httpx.Client = attrs.field(init=False)

    @classmethod
    def spawn(cls, model: Path, log: Path, arguments: list[str]) -> LlamaServer:
        """A process that will listen."""
        command = [sys.executable, "-c", PROGRAM, str(model), *arguments]
        with log.open("wb") as out:
            return cls(model, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out), log)

    @property
    def url(self) -> str:
        return str(self.http.base_url)

    def connect(self) -> bool:
        """Wait until it says where it listens. False when it does not within START_S."""
        for _ in range(round(START_S / STEP_S)):
            if found := _READY.search(self.log.read_text(errors="replace")):
                self.http = httpx.Client(base_url=found[1], trust_env=False, verify=False, timeout=WATCHDOG_S)
                return True
            self._step()
        return False

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def tokenize(self, text: str) -> list[int]:
        """The token ids of `text` alone: nothing is put before it, and no control token is recognised in it."""
        return self.ask("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]

    def busy_slots(self) -> int:
        """How many answers it is working on."""
        return sum(slot["is_processing"] for slot in self.http.get("/slots").json())

    def wait_idle(self) -> None:
        """Until it works on nothing. Fails when it goes on."""
        for _ in range(round(WATCHDOG_S / STEP_S)):
            if not self.busy_slots():
                return
            self._step()
        raise AssertionError("the server goes on with an answer that nobody reads")

    def _step(self) -> None:
        """Let a moment pass. Fails when the process ends in it."""
        try:
            code = self.process.wait(timeout=STEP_S)
        except subprocess.TimeoutExpired:
            return
        raise AssertionError(f"the server ended with {code}:\n{self.log.read_text(errors='replace')}")

    def kill(self) -> None:
        assert self.process.stdin is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


@contextmanager
def llama_server(model: Path, name: str, *, context: int = CONTEXT, exact: bool = False) -> Iterator[LlamaServer]:
    """A server for one file that is ready when this is entered and gone after it. Its log lies beside the file. With
    `exact` it computes in float32 where it would use float16: keys, values and attention."""
    require_xllamacpp()
    server = _started(model, [name, str(SLOTS), str(context), "exact" if exact else "fast"])
    try:
        with server.http:
            yield server
    finally:
        server.kill()


def _started(model: Path, arguments: list[str]) -> LlamaServer:
    """A server that listens. About once in a thousand starts `xllamacpp.Server` loads everything and does not return;
    another process then does."""
    for count in range(STARTS_MAX):
        server = LlamaServer.spawn(model, model.with_suffix(f".{count}.log"), arguments)
        listens = False
        try:
            listens = server.connect()
        finally:
            if not listens:
                server.kill()
        if listens:
            return server
    raise AssertionError(f"no server came up:\n{server.log.read_text(errors='replace')}")


@contextmanager
def engine_over(server: LlamaServer, folder: Path, config: str = "") -> Iterator[EngineProcess]:
    """Our engine as a process, with `server` as its runtime `openai` and `config` as its wf.yaml."""
    folder.mkdir(exist_ok=True)
    (folder / "wf.yaml").write_text(config)
    engine = EngineProcess.spawn(folder, env={"WF_OPENAI__BASE_URL": server.url})
    try:
        yield engine.wait_ready()
    finally:
        engine.kill()
