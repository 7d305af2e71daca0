"""The chunks of an answer, read by read."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.kernel import mailbox
from actors.stream import ModelStream, Timeouts
from engine.domain.errors import UpstreamProtocolError, UpstreamTruncated
from engine.domain.events import SessionSignal, TokenBatch
from engine.domain.generation import GenerationRequest, StreamRef
from engine.domain.runtime import ChunksTogether
from tests.fakes.runtime import ScriptedRuntime
from transport.runtimes.reads import ChunkReads
from transport.wire.ollama import RecordStream


def record(text: str, *, done: bool = False) -> bytes:
    return json.dumps({"response": text, "done": done}).encode() + b"\n"


def reads_of(*reads: bytes, told=None) -> ChunkReads:
    """One read after the other, each a millisecond later than the one before."""
    left, now = list(reads), [0]

    async def next_read() -> bytes | None:
        now[0] += 1000
        return left.pop(0) if left else None

    return ChunkReads(next_read, RecordStream(), lambda: now[0], told)


@attrs.define(eq=False)
class ReadingRuntime(ScriptedRuntime):
    """Answers with these reads."""

    reads: tuple[bytes, ...] = ()

    @asynccontextmanager
    async def generate(self, request: GenerationRequest):
        yield reads_of(*self.reads)


async def test_what_came_in_one_read_is_there_together_and_has_its_stamp():
    chunks = reads_of(record("a") + record("b") + record("c"), record("d"))
    assert isinstance(chunks, ChunksTogether)
    first = await anext(chunks)
    assert [(c.text, c.t_us) for c in (first, *chunks.rest())] == [("a", 1000), ("b", 1000), ("c", 1000)]
    assert chunks.rest() == ()
    assert ((await anext(chunks)).text, chunks.rest()) == ("d", ())


@given(st.lists(st.lists(st.text(), max_size=4), max_size=6), st.data())
async def test_one_by_one_or_together_it_is_the_same(texts, data):
    chunks = reads_of(*(b"".join(record(text) for text in read) for read in texts), record("", done=True))
    found = []
    async for chunk in chunks:
        found.append(chunk)
        if data.draw(st.booleans()):
            found += chunks.rest()
    assert [chunk.text for chunk in found[:-1]] == [text for read in texts for text in read]
    assert found[-1].end is not None


async def test_nothing_is_read_behind_the_end():
    chunks = reads_of(record("a", done=True), record("never"))
    assert [chunk.text async for chunk in chunks] == ["a"]


async def test_a_stream_that_stops_gives_its_last_record_without_a_line_end():
    chunks = reads_of(record("a"), record("b").rstrip())
    assert [chunk.text async for chunk in chunks] == ["a", "b"]


async def test_a_fault_comes_after_the_chunks_before_it():
    chunks = reads_of(record("a") + record("b") + b"{]\n")
    first = await anext(chunks)
    assert [c.text for c in (first, *chunks.rest())] == ["a", "b"]
    with pytest.raises(UpstreamProtocolError):
        await anext(chunks)


async def test_a_chunk_is_told_as_it_is_to_be():
    chunks = reads_of(record("a") + record("b"), told=lambda chunk: msgspec.structs.replace(chunk, text=chunk.text * 2))
    assert [chunk.text async for chunk in chunks] == ["aa", "bb"]


async def test_the_tokens_of_one_read_are_one_batch(autojump_clock):
    outlet, inlet = mailbox[SessionSignal]("signals", 8)
    runtime = ReadingRuntime(lambda: 0, reads=(record("a") + record("b"), record("c")))
    stream = ModelStream(StreamRef("s", "s:0", "a"), runtime, GenerationRequest("a", prompt="x"), outlet, Timeouts())
    with pytest.raises(UpstreamTruncated):
        await stream.run()
    outlet.close()
    async with inlet.open() as signals:
        batches = [signal async for signal in signals]
    assert all(isinstance(batch, TokenBatch) for batch in batches)
    assert [[token.text for token in batch.tokens] for batch in batches] == [["a", "b"], ["c"]]
    assert [[token.delta_us for token in batch.tokens] for batch in batches] == [[None, 0], [1000]]
    assert stream.arrivals == [(1000, 2), (2000, 1)]
