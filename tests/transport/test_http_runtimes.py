"""What every runtime over HTTP owes its reader, in virtual time: it lets go, it waits no longer than it says, and an
answer that did not end is not one that did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from engine.domain.errors import UpstreamTimeout, UpstreamTruncated
from tests.fakes.ollama import Break, Reply, ScriptedOllama, Send, Silence, done, record, virtual_clock
from tests.fakes.openai import DONE, delta, finish
from tests.fakes.streams import ASKED, chunks_of, failure_of, read_texts
from transport.runtimes import ollama, openai
from transport.runtimes.forwarding import HEAR_OUT_S
from transport.runtimes.ollama import OllamaRuntime
from transport.runtimes.openai import OpenAIRuntime
from transport.wire.openai_requests import CHAT_PATH


@attrs.frozen
class Dialect:
    runtime: Any  # its class
    path: str
    word: Callable[[str], bytes]
    end: tuple[bytes, ...]
    flood: bytes
    head_s: float

    def asking(self, reply: Reply) -> Any:
        """A runtime whose only request gets `reply`."""
        return self.runtime(
            virtual_clock, "http://127.0.0.1:8080", transport=ScriptedOllama({self.path: [reply]}).transport
        )


@pytest.fixture(params=["ollama", "openai"])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    if request.param == "ollama":
        flood = b"x" * 50_000 + b"\n"
        return Dialect(OllamaRuntime, "/api/generate", record, (done(),), flood, ollama.HEAD_S)
    flood = b"data: " + b"x" * 50_000 + b"\n\n"
    return Dialect(OpenAIRuntime, CHAT_PATH, delta, (finish(), DONE), flood, openai.HEAD_S)


@pytest.mark.parametrize("leave_at_end", [True, False])
@pytest.mark.parametrize("after_s", [None, 0.01])
async def test_what_follows_the_end_is_counted(
    autojump_clock: trio.testing.MockClock, dialect: Dialect, leave_at_end: bool, after_s: float | None
):
    first, late = dialect.word("a") + b"".join(dialect.end), dialect.word("late") + dialect.end[-1]
    runtime = dialect.asking(
        Reply([Send(first + late)] if after_s is None else [Send(first), Send(late, after_s)]),
    )
    seen: list[str] = []
    await read_texts(runtime, seen, leave_at_end=leave_at_end)
    assert seen == ["a"] + [""] * len(dialect.end)
    assert runtime.counters.late_records == 2


async def test_a_server_that_never_ends_its_body_is_left(autojump_clock: trio.testing.MockClock, dialect: Dialect):
    flood = [Send(dialect.flood) for _ in range(9)]
    for late, waited_s, counted in (([Silence()], HEAR_OUT_S, 0), (flood, 0, 2)):
        reply = Reply([Send(b"".join(dialect.end)), *late])
        runtime = dialect.asking(reply)
        begin_s = trio.current_time()
        await chunks_of(runtime)
        assert trio.current_time() - begin_s == pytest.approx(waited_s)
        assert runtime.counters.late_records == counted
        assert reply.body.closed


async def test_a_connection_that_breaks_before_the_end_is_truncated_after_the_text_before_it(
    autojump_clock: trio.testing.MockClock, dialect: Dialect
):
    reply = Reply([Send(dialect.word("a")), Break(after_s=0.1)])
    seen: list[str] = []
    with pytest.raises(UpstreamTruncated, match="broke the connection"):
        await read_texts(dialect.asking(reply), seen)
    assert seen == ["a"]
    assert reply.body.closed


async def test_a_stall_is_for_the_caller_to_end(autojump_clock: trio.testing.MockClock, dialect: Dialect):
    reply = Reply([Send(dialect.word("a"), 0.1), Silence()])
    seen: list[str] = []
    with trio.move_on_after(100) as scope:
        await read_texts(dialect.asking(reply), seen)
    assert (scope.cancelled_caught, seen, reply.body.closed) == (True, ["a"], True)
    assert trio.current_time() == pytest.approx(100)


async def test_leaving_early_closes_the_stream(autojump_clock: trio.testing.MockClock, dialect: Dialect):
    reply = Reply([Send(data, 0.04) for data in (dialect.word("a"), dialect.word("b"), *dialect.end)])
    async with dialect.asking(reply).generate(ASKED) as chunks:
        await anext(chunks)
    assert reply.body.closed
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


async def test_no_head_is_a_timeout(autojump_clock: trio.testing.MockClock, dialect: Dialect):
    error = await failure_of(dialect.asking(Reply(after_s=dialect.head_s + 1)))
    assert isinstance(error, UpstreamTimeout)
