"""A client's own request through a runtime, in virtual time: its bytes, what they say, and when the connection goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import EngineError, InvalidRequest, ModelNotFound, UpstreamProtocolError, UpstreamTruncated
from engine.domain.generation import Chunk, Dialect
from engine.domain.runtime import Embedder, Forwarder, ForwardRequest, Read
from tests.fakes.ollama import (
    Break,
    Reply,
    ScriptedOllama,
    Send,
    Silence,
    capture,
    done,
    record,
    refused,
    virtual_clock,
    whole,
)
from tests.fakes.openai import DONE, delta, event, finish, usage
from tests.fakes.streams import KEY, places, split_at
from transport.runtimes.embedded import EmbeddedRuntime
from transport.runtimes.forwarding import DONE_S, HEAR_OUT_BYTES_MAX, HEAR_OUT_S
from transport.runtimes.llama_cpp.runtime import LlamaCppRuntime
from transport.runtimes.ollama import OllamaRuntime
from transport.runtimes.openai import OpenAIRuntime
from transport.runtimes.synthetic import SyntheticRuntime

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODY = b'{"model":"m", "odd" : [1.50]}'


@attrs.define
class Way:
    """A runtime asked in a dialect; `open` are the reads so far, `error` what ended them."""

    runtime: Any  # its class
    dialect: Dialect
    path: str
    reads: list[Read] = attrs.field(factory=list)
    status: int = 0
    content_type: str = ""

    async def take(
        self, reply: Reply, *, leave_after: int | None = None, body: bytes = BODY, as_it_comes: bool = False
    ) -> Any:
        """Read the answer, or its first reads; the runtime that did it."""
        server = ScriptedOllama({self.path: [reply]})
        key = {"api_key": KEY} if self.runtime is OpenAIRuntime else {}
        runtime = self.runtime(virtual_clock, "http://127.0.0.1:8080", transport=server.transport, **key)
        request = ForwardRequest(self.dialect, self.path, body, "m", as_it_comes=as_it_comes)
        async with runtime.forward(request) as answer:
            self.status, self.content_type = answer.status, answer.content_type
            async for read in answer.reads:
                self.reads.append(read)
                if len(self.reads) == leave_after:
                    break
        assert reply.body.closed
        return runtime

    @property
    def data(self) -> bytes:
        return b"".join(read.data for read in self.reads)

    @property
    def chunks(self) -> list[Chunk]:
        return [chunk for read in self.reads for chunk in read.chunks]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)


NATIVE = Way(OllamaRuntime, Dialect.OLLAMA, "/api/generate")
COMPATIBLE = Way(OllamaRuntime, Dialect.OPENAI, CHAT)
OPENAI = Way(OpenAIRuntime, Dialect.OPENAI, CHAT)


@pytest.fixture(params=[NATIVE, COMPATIBLE, OPENAI], ids=["ollama", "ollama as openai", "openai"])
def way(request: pytest.FixtureRequest) -> Way:
    return attrs.evolve(request.param, reads=[])


def word(way: Way, text: str) -> bytes:
    return record(text) if way.dialect is Dialect.OLLAMA else delta(text)


def end(way: Way) -> bytes:
    return done() if way.dialect is Dialect.OLLAMA else finish() + usage() + DONE


def streaming(*steps: Any) -> Reply:
    return Reply([step if not isinstance(step, bytes) else Send(step, 0.04) for step in steps])


# ── streams ──


@pytest.mark.parametrize(
    ("name", "dialect", "path", "text"),
    [
        ("generate-logprobs", Dialect.OLLAMA, "/api/generate", " streams tokens ."),
        ("chat-logprobs", Dialect.OLLAMA, "/api/chat", " the model is"),
        ("openai-chat-logprobs", Dialect.OPENAI, CHAT, " the model is"),
    ],
)
async def test_a_recorded_answer_keeps_its_bytes_and_says_what_they_mean(
    autojump_clock: trio.testing.MockClock, name: str, dialect: Dialect, path: str, text: str
):
    body = capture(name)[1]
    for size in (1, 7, 1000, 10**6):
        way = Way(OllamaRuntime, dialect, path)
        pieces = [Send(body[at : at + size], 0.001) for at in range(0, len(body), size)]
        runtime = await way.take(Reply(pieces, headers={"content-type": "text/plain"}))
        assert (way.data, way.text, way.status, way.content_type) == (body, text, 200, "text/plain")
        assert [chunk.end is not None for chunk in way.chunks].count(True) == 1
        assert len([read for read in way.reads if read.data]) == len(pieces)
        assert (runtime.counters.late_records, runtime.counters.cut_streams) == (0, 0)
        assert sum(len(chunk.logprobs) for chunk in way.chunks) == 3


async def test_chunks_come_with_the_read_that_completes_them(autojump_clock: trio.testing.MockClock, way: Way):
    begin_us = virtual_clock()
    first = word(way, "a")
    await way.take(streaming(Send(first[:9], 0.5), Send(first[9:] + word(way, "b"), 0.5), end(way)))
    assert [[(chunk.text, chunk.t_us - begin_us) for chunk in read.chunks if chunk.text] for read in way.reads[:2]] == [
        [],
        [("a", 1_000_000), ("b", 1_000_000)],
    ]
    assert way.chunks[-1].end is not None


async def test_the_request_goes_out_as_it_is(autojump_clock: trio.testing.MockClock):
    server = ScriptedOllama({COMPLETIONS: [streaming(DONE)]})
    runtime = OpenAIRuntime(virtual_clock, "http://127.0.0.1:8080", transport=server.transport)
    async with runtime.forward(ForwardRequest(Dialect.OPENAI, COMPLETIONS, BODY, "m")) as answer:
        assert [read.data async for read in answer.reads] == [DONE]
    assert server.bodies(COMPLETIONS) == [json.loads(BODY)]


async def test_what_follows_the_end_is_handed_on(autojump_clock: trio.testing.MockClock, way: Way):
    late = word(way, "late")
    runtime = await way.take(streaming(word(way, "a"), end(way), Send(late, 0.01), Send(b"\n", 0.01)))
    assert way.data == word(way, "a") + end(way) + late + b"\n"
    assert way.text == "a"
    assert runtime.counters.late_records == 1


async def test_a_server_that_never_ends_its_body_is_left(autojump_clock: trio.testing.MockClock, way: Way):
    begin_s = trio.current_time()
    await way.take(streaming(end(way), Send(b"\n", HEAR_OUT_S / 2), Silence()))
    assert trio.current_time() - begin_s == pytest.approx(0.04 + HEAR_OUT_S)
    assert way.data == end(way) + b"\n"
    flooded = attrs.evolve(way, reads=[])
    await flooded.take(streaming(end(way), *[Send(b"\n" * 40_000)] * 9))
    assert len(flooded.data) <= len(end(way)) + HEAR_OUT_BYTES_MAX + 40_000


async def test_a_stream_that_just_stops_has_no_end(autojump_clock: trio.testing.MockClock, way: Way):
    runtime = await way.take(streaming(word(way, "a"), word(way, "b")[:-9]))
    assert (way.text, way.data) == ("a", word(way, "a") + word(way, "b")[:-9])
    assert all(chunk.end is None for chunk in way.chunks)
    assert runtime.counters.cut_streams == 1


async def test_with_its_finish_reason_an_answer_is_whole(autojump_clock: trio.testing.MockClock):
    for last in (Silence(), Break(DONE_S / 2)):
        way = attrs.evolve(OPENAI, reads=[])
        await way.take(streaming(delta("a") + finish(), last))
        assert way.data == delta("a") + finish()
        assert way.chunks[-1].end is not None


async def test_a_connection_that_breaks_is_truncated_after_the_bytes_before_it(
    autojump_clock: trio.testing.MockClock, way: Way
):
    reply = streaming(word(way, "a"), Break(0.1))
    with pytest.raises(UpstreamTruncated):
        await way.take(reply)
    assert (way.data, way.text) == (word(way, "a"), "a")
    assert reply.body.closed


async def test_leaving_closes_the_connection(autojump_clock: trio.testing.MockClock, way: Way):
    reply = streaming(word(way, "a"), Silence())
    await way.take(reply, leave_after=1)
    cancelled = streaming(word(way, "a"), Silence())
    with trio.move_on_after(5) as scope:
        await way.take(cancelled)
    assert (scope.cancelled_caught, cancelled.body.closed) == (True, True)


async def test_garbage_is_not_handed_on(autojump_clock: trio.testing.MockClock, way: Way):
    reply = streaming(word(way, "a"), word(way, "b") + b"secret\n")
    with pytest.raises(UpstreamProtocolError) as caught:
        await way.take(reply)
    assert (way.data, way.text) == (word(way, "a"), "ab")
    assert "secret" not in caught.value.message
    assert reply.body.closed


async def test_an_error_that_the_runtime_reports_is_handed_on_and_raised(
    autojump_clock: trio.testing.MockClock, way: Way
):
    fault = b'{"error":"broken"}\n' if way.dialect is Dialect.OLLAMA else event({"error": {"message": f"bad {KEY}"}})
    with pytest.raises(UpstreamProtocolError) as caught:
        await way.take(streaming(word(way, "a") + fault))
    assert (way.data, way.text) == (word(way, "a") + fault, "a")
    assert way.runtime is OllamaRuntime or KEY not in caught.value.message


# ── as it comes ──


async def test_bytes_come_before_what_they_mean(autojump_clock: trio.testing.MockClock, way: Way):
    first, last = word(way, "a"), end(way)
    await way.take(streaming(first, last), as_it_comes=True)
    assert (way.data, way.text) == (first + last, "a")
    assert all(not (read.data and read.chunks) for read in way.reads)
    assert [read.data for read in way.reads[:2]] == [first, b""]


async def test_what_cannot_be_read_is_handed_on_to_its_end_and_then_told(
    autojump_clock: trio.testing.MockClock, way: Way
):
    sent = word(way, "a"), word(way, "b") + b"secret\n", word(way, "c"), end(way)
    with pytest.raises(UpstreamProtocolError) as caught:
        await way.take(streaming(*sent), as_it_comes=True)
    assert (way.data, way.text) == (b"".join(sent), "ab")
    assert [read.ends_body for read in way.reads] == [False] * (len(way.reads) - 1) + [True]
    assert "secret" not in caught.value.message


async def test_what_cannot_be_read_and_breaks_off_too_is_truncated(autojump_clock: trio.testing.MockClock, way: Way):
    with pytest.raises(UpstreamTruncated):
        await way.take(streaming(b"secret\n\n", word(way, "c"), Break()), as_it_comes=True)
    assert way.data == b"secret\n\n" + word(way, "c")
    assert not any(read.ends_body for read in way.reads)


async def test_after_an_error_that_the_runtime_reports_the_rest_is_waited_for(
    autojump_clock: trio.testing.MockClock, way: Way
):
    fault = b'{"error":"broken"}\n' if way.dialect is Dialect.OLLAMA else event({"error": {"message": "broken"}})
    began = trio.current_time()
    with pytest.raises(UpstreamProtocolError, match="broken"):
        await way.take(streaming(word(way, "a"), fault, b"\n", Silence()), as_it_comes=True)
    assert (way.data, way.text) == (word(way, "a") + fault + b"\n", "a")
    assert way.reads[-1].ends_body
    assert trio.current_time() - began == pytest.approx(2 * 0.04 + HEAR_OUT_S)


async def test_a_whole_answer_that_cannot_be_read_is_handed_on_as_it_comes(
    autojump_clock: trio.testing.MockClock, way: Way
):
    with pytest.raises(UpstreamProtocolError):
        await way.take(Reply([Send(b"{")], headers=JSON), as_it_comes=True)
    assert way.reads == [Read(b"{", ()), Read(b"", (), ends_body=True)]


@given(st.lists(st.sampled_from(["a", "é✅", "", "\u2028"]), max_size=5), places, st.booleans())
def test_any_chunking_keeps_bytes_and_text(words: list[str], at: Sequence[int], as_it_comes: bool):
    async def main() -> None:
        for original in (NATIVE, OPENAI):
            way = attrs.evolve(original, reads=[])
            body = b"".join(word(way, text) for text in words) + end(way)
            await way.take(Reply([Send(piece) for piece in split_at(body, at)]), as_it_comes=as_it_comes)
            assert (way.data, way.text) == (body, "".join(words))
            assert way.chunks[-1].end is not None

    trio.run(main)


# ── whole answers and refusals ──

JSON = {"content-type": "application/json; charset=utf-8"}


async def test_a_whole_answer(autojump_clock: trio.testing.MockClock):
    body = capture("chat-nostream")[1]
    way = Way(OllamaRuntime, Dialect.OLLAMA, "/api/chat")
    await way.take(Reply([Send(body[:40]), Send(body[40:], 0.1)], headers=JSON))
    assert (way.data, way.text, way.content_type) == (body, " the model is", JSON["content-type"])
    assert way.chunks[-1].end is not None
    answer = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    whole_way = attrs.evolve(OPENAI, reads=[])
    await whole_way.take(whole(answer, **{"content_type": "application/json"}))
    assert (json.loads(whole_way.data), whole_way.text) == (answer, "hi")


async def test_the_head_of_a_whole_answer_comes_when_it_comes(autojump_clock: trio.testing.MockClock, way: Way):
    await way.take(Reply([Send(b"{}")], headers=JSON, after_s=3600))
    assert way.data == b"{}"


async def test_a_whole_answer_that_cannot_be_read_is_not_handed_on(autojump_clock: trio.testing.MockClock, way: Way):
    for steps, kind in (([Send(b"{")], UpstreamProtocolError), ([Send(b"{}"), Break()], UpstreamTruncated)):
        with pytest.raises(kind):
            await way.take(Reply(steps, headers=JSON))
    assert way.reads == []


async def test_a_refusal_is_an_answer(autojump_clock: trio.testing.MockClock, way: Way):
    await way.take(refused(400, "top_logprobs must be between 0 and 20", content_type="application/json"))
    assert (way.status, way.content_type, way.chunks) == (400, "application/json", [])
    assert json.loads(way.data) == {"error": "top_logprobs must be between 0 and 20"}
    assert way.status == 400


@pytest.mark.parametrize("refused_twice", [False, True])
async def test_refused_log_probabilities_are_done_without(
    autojump_clock: trio.testing.MockClock, way: Way, refused_twice: bool
):
    no = refused(400, "logprobs is not supported with tools + stream")
    server = ScriptedOllama({way.path: [no, refused(400, "logprobs") if refused_twice else streaming(end(way))]})
    runtime = way.runtime(virtual_clock, "http://127.0.0.1:8080", transport=server.transport)
    asked = ForwardRequest(way.dialect, way.path, b'{"model":"m","logprobs":true}', "m")
    async with runtime.forward(attrs.evolve(asked, without_logprobs=BODY)) as answer:
        assert no.body.closed
        reads = [read async for read in answer.reads]
    assert server.bodies(way.path) == [json.loads(asked.body), json.loads(BODY)]
    assert (answer.status, runtime.counters.without_logprobs) == (400 if refused_twice else 200, 1)
    assert b"".join(read.data for read in reads) == (b'{"error": "logprobs"}' if refused_twice else end(way))


async def test_other_refusals_are_handed_on(autojump_clock: trio.testing.MockClock, way: Way):
    server = ScriptedOllama({way.path: [refused(400, "no such thing")]})
    runtime = way.runtime(virtual_clock, "http://127.0.0.1:8080", transport=server.transport)
    async with runtime.forward(ForwardRequest(way.dialect, way.path, BODY, "m", BODY)) as answer:
        assert [read.data async for read in answer.reads] == [b'{"error": "no such thing"}']
    assert answer.status == 400


# ── what is not forwarded ──


async def refusal_of(runtime: Forwarder, request: ForwardRequest) -> EngineError:
    with pytest.raises(EngineError) as caught:
        async with runtime.forward(request):
            raise AssertionError("it was sent")
    return caught.value


@pytest.mark.parametrize(
    "path", ["/api/delete", "/api/generate/../delete", "/v1/models", "http://elsewhere/api/chat", "/api/chat?x"]
)
async def test_only_known_paths(path: str):
    server = ScriptedOllama({})
    for runtime in (
        OllamaRuntime(virtual_clock, transport=server.transport),
        OpenAIRuntime(virtual_clock, "http://127.0.0.1:8080", transport=server.transport),
    ):
        for dialect in Dialect:
            assert isinstance(await refusal_of(runtime, ForwardRequest(dialect, path, BODY, "m")), InvalidRequest)
    crossed = ForwardRequest(Dialect.OLLAMA, CHAT, BODY, "m")
    assert isinstance(await refusal_of(runtime, crossed), InvalidRequest)
    assert server.requests == []


async def test_models_that_run_elsewhere_are_refused_unasked():
    server = ScriptedOllama({})
    runtime = OllamaRuntime(virtual_clock, transport=server.transport)
    for dialect, path in ((Dialect.OLLAMA, "/api/chat"), (Dialect.OPENAI, CHAT)):
        cloud = ForwardRequest(dialect, path, b'{"model":"big:1t-cloud"}', "big:1t-cloud")
        assert isinstance(await refusal_of(runtime, cloud), ModelNotFound)
        for body in (b'{"model":"big:1t-cloud"}', b'{"model":"m","Model":"big:1t-cloud"}', b"{"):
            assert isinstance(await refusal_of(runtime, ForwardRequest(dialect, path, body, "m")), InvalidRequest)
        with pytest.raises(InvalidRequest):
            async with runtime.forward(ForwardRequest(dialect, path, BODY, "m", b'{"model":"big:1t-cloud"}')):
                raise AssertionError("it was sent")
    assert server.requests == []


def test_who_speaks_what(tmp_path: Any):
    ollama, openai = OllamaRuntime(virtual_clock), OpenAIRuntime(virtual_clock, "http://127.0.0.1:1")
    llama_cpp = LlamaCppRuntime(virtual_clock, (), tmp_path, tmp_path)
    assert [runtime.dialects for runtime in (ollama, openai, llama_cpp)] == [
        {Dialect.OLLAMA, Dialect.OPENAI},
        {Dialect.OPENAI},
        {Dialect.OPENAI},
    ]
    for runtime in (ollama, openai, llama_cpp):
        assert isinstance(runtime, Forwarder)
    assert [isinstance(runtime, Embedder) for runtime in (ollama, openai, llama_cpp)] == [True, True, True]
    for silent in (EmbeddedRuntime(virtual_clock), SyntheticRuntime(virtual_clock, 1)):
        assert silent.dialects == frozenset()
        assert not isinstance(silent, Forwarder)
        assert not isinstance(silent, Embedder)
