"""The engine that other people's clients speak to: over its built-in models, over a scripted Ollama with faults, and
over llama.cpp with a model that says what it is told to."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from tests.fakes import gguf
from tests.fakes.llama_server import LlamaServer, llama_server
from tests.system.process import EngineProcess, environment
from tests.transport.embedded import gguf_writer
from transport.runtimes.embedded.gguf import read

EMBEDDED: Final = "embedded/lexicon"
STEADY: Final = "mock:steady"
SCRIPTED: Final = "scripted"
MODELS: Final = (EMBEDDED, STEADY, SCRIPTED)  # one of each runtime
BROKEN: Final = ("mock:cut", "mock:rst", "mock:error-line", "mock:silent-end", "mock:garbage")
SAID_BEFORE: Final = 1  # texts at least that the client gets of one that breaks off
ANSWER_TOKENS: Final = 16  # of the mock
CONTEXT: Final = 65_536  # of llama.cpp: an endless answer takes a minute to fill it, and is left long before
PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
SCHEMA: Final = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
}
PARAMETERS: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
THOUGHT: Final = "a deep thought: ½ of 84"
TEXTS: Final = {  # of llama.cpp's model, by the last character of the prompt
    "A": "héllo wörld: 🙂 👩🏽\u200d🚀 👍🏿 北京 x²y — שלום e\u0301 fin.",
    "B": f"<think>{THOUGHT}</think>the answer is forty-two",
    "C": '{"city": "Oslo", "degrees": 7}',
    "D": '<tool_call>{"name": "get_weather", "arguments": {"city": "Tromsø"}}</tool_call>',
    "F": "one two three halt four five six seven",
    "G": "round and round it goes, ",  # for ever
}
ANSWER: Final = TEXTS["B"].partition("</think>")[2]
# Tools first, then the messages and nothing around them: the last character of the last one says what comes next. How a
# call is written here is how llama.cpp learns to read one.
TEMPLATE: Final = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% for call in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}"
    "{{ m.content }}{% endfor %}"
)
_ADDRESS: Final = re.compile(r" at (http://127\.0\.0\.1:\d+)")


@attrs.frozen
class Lens:
    """A ready engine, and the llama.cpp and the scripted Ollama below it."""

    engine: EngineProcess
    server: LlamaServer
    mock_url: str

    @property
    def url(self) -> str:
        return self.engine.http

    def sessions(self) -> dict[str, Any]:
        with self.engine.client() as http:
            return http.get("/stats").json()["sessions"]

    def ended(self, reason: str) -> int:
        """How many sessions have ended so."""
        return self.sessions()["ended"].get(reason, 0)

    @contextmanager
    def expect_abort(self, model: str) -> Iterator[None]:
        """What happens inside begins an answer of `model` and leaves it: its session has to end as aborted, and what
        computed it has to stop."""
        before = self.ended("aborted")
        yield
        self.engine.wait_for(lambda: self.ended("aborted") == before + 1)
        assert [s for s in self.sessions()["running"] if s["model"].endswith(model)] == []
        self.server.wait_idle()

    def assert_running(self, model: str, origin: str) -> None:
        """One answer of `model` is under way, and known to come from a client of this dialect."""
        (session,) = self.sessions()["running"]
        assert (session["model"], session["origin"], session["state"]) == (model, origin, "streaming")
        if model == SCRIPTED:
            assert self.server.busy_slots() == 1


@contextmanager
def running_lens(folder: Path) -> Iterator[Lens]:
    with mock_ollama(folder) as mock_url, llama_server(scripted(folder), SCRIPTED, context=CONTEXT) as server:
        env = {
            "WF_OLLAMA__ENABLED": "true",
            "WF_OLLAMA__SPAWN": "false",
            "OLLAMA_HOST": mock_url,
            "WF_OPENAI__BASE_URL": server.url,
            "WF_EMBEDDED__PACE_TPS": "0",
        }
        engine = EngineProcess.spawn(folder / "engine", env=env)
        try:
            yield Lens(engine.wait_ready(), server, mock_url)
            assert engine.process.poll() is None, engine.stderr()
        finally:
            engine.kill()


@contextmanager
def mock_ollama(folder: Path) -> Iterator[str]:
    """`wf mock` as a process, quick; its URL."""
    command = [sys.executable, "-m", "engine", "mock", "--port", "0"]
    command += ["--tps", "400", "--ttft-ms", "5", "--tokens", str(ANSWER_TOKENS)]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        found = _ADDRESS.search(process.stdout.readline())
        assert found is not None
        yield found[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def scripted(folder: Path) -> Path:
    """The file of the model that says TEXTS."""
    whole = gguf.pieces_of(TEXTS["B"], whole=["<think>", "</think>"])
    keys = [key for key in TEXTS if key != "B"]
    others = gguf.pieces_of(*(TEXTS[key] for key in keys), taken=whole[0])
    cut = dict(zip(keys, others, strict=True)) | {"B": whole[0]}
    model = gguf.scripted({key: gguf.Script(pieces, endless=key == "G") for key, pieces in cut.items()})
    path = model.save(folder / "scripted.gguf", context=CONTEXT, feed_forward=4096)
    file, _ = read(path)
    metadata = {key: (_kind_of(value), value) for key, value in file.metadata.items()}
    metadata["tokenizer.chat_template"] = ("str", TEMPLATE)
    path.write_bytes(gguf_writer.write(metadata, dict(file.tensors.items())))
    return path


def _kind_of(value: Any) -> str:
    if isinstance(value, list):
        return "[i32]" if value and isinstance(value[0], int) else "[str]"
    return {str: "str", bool: "bool", int: "u32", float: "f32"}[type(value)]
