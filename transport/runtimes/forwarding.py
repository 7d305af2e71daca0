"""A request of a client that the runtime's own path answers: the bytes as they come, and what they say.

A stream is read record by record beside the bytes. What follows its terminal record is still handed on, until the body
ends or keeps on for too long. An answer that is one JSON value is handed on when it is whole. The first 64 KiB of a
refusal are handed on, unread.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Final, Protocol

import attrs
import trio

from engine.domain.errors import InvalidRequest, RuntimeFault, UpstreamProtocolError, UpstreamTimeout, UpstreamTruncated
from engine.domain.generation import Chunk, Clock
from engine.domain.runtime import Forwarded, ForwardRequest, Read
from transport.runtimes.upstream import Upstream, UpstreamResponse

HEAD_S: Final = 86_400.0  # the head of a whole answer comes at its end; how long that may take, the session decides
DONE_S: Final = 2.0  # of silence when an answer is whole and only its counts are missing
HEAR_OUT_S: Final = 0.1  # from the terminal record to the end of the body; a server that keeps on is left
HEAR_OUT_BYTES_MAX: Final = 64 * 1024
WHOLE_BYTES_MAX: Final = 64 * 1024 * 1024  # of an answer that is no stream
_JSON: Final = "application/json"


class RecordReader(Protocol):
    """The bytes of one streamed answer to its chunks. `ended`: the terminal record was seen. `finishing`: the answer is
    whole, but its terminal record is still to come. `reported`: the error raised was a record of the runtime."""

    ended: bool
    reported: bool

    @property
    def finishing(self) -> bool: ...

    def feed(self, data: bytes, t_us: int) -> Iterator[Chunk]: ...

    def finish(self, t_us: int) -> Iterator[Chunk]: ...


def refuse_path(paths: frozenset[str], request: ForwardRequest, runtime: str) -> None:
    """Raises InvalidRequest unless `request` goes to one of `paths`."""
    if request.path not in paths:
        raise InvalidRequest(f"{runtime} forwards nothing to {request.path[:100]}", paths=sorted(paths))


@attrs.frozen
class Instead:
    """When a request's other body is sent: when `takes` is True of the refusal of the first (its status and its body),
    and from then on at once; `known` tells for which model, path, and whether with tools."""

    takes: Callable[[int, bytes], bool]
    known: set[tuple[str, str, bool]]


@asynccontextmanager
async def forwarding(
    upstream: Upstream,
    request: ForwardRequest,
    clock: Clock,
    reader: RecordReader,
    whole_answer: Callable[[bytes, int], tuple[Chunk, ...]],
    *,
    instead: Instead,
) -> AsyncIterator[Forwarded]:
    """Send `request` and hand on the answer. Leaving closes the connection.

    A record that cannot be read raises UpstreamProtocolError, and the bytes of its read are not handed on; an error
    that the runtime reports raises the same after its bytes. With `as_it_comes` all bytes are handed on, to the end of
    the body, and what was wrong with them is raised then. A connection that breaks raises UpstreamTruncated."""
    ask = partial(upstream.open_stream, "POST", request.path, head_timeout_s=HEAD_S)
    async with AsyncExitStack() as stack:
        key, other = (request.model, request.path, request.tools), request.without_logprobs
        first = other if other is not None and key in instead.known else request.body
        response = await stack.enter_async_context(ask(first))
        refusal = await _refusal(response)
        if refusal is not None and other not in (None, first) and instead.takes(response.status, refusal):
            await stack.aclose()
            response = await stack.enter_async_context(ask(other))
            refusal = await _refusal(response)
            if refusal is None:
                instead.known.add(key)
        content_type = response.header("content-type") or ""
        if refusal is not None:
            reads = _refused(refusal)
        elif content_type.partition(";")[0].strip().lower() == _JSON:
            reads = _whole(response, clock, whole_answer, request.as_it_comes)
        else:
            reads = (_as_it_comes if request.as_it_comes else _stream)(response, clock, reader)
        async with aclosing(reads):
            yield Forwarded(response.status, content_type, reads, response.header("retry-after"))


async def _refusal(response: UpstreamResponse) -> bytes | None:
    return None if response.status == 200 else await response.read_error()


async def _refused(body: bytes) -> AsyncGenerator[Read, None]:
    yield Read(body, ())


async def _whole(
    response: UpstreamResponse, clock: Clock, whole_answer: Callable[[bytes, int], tuple[Chunk, ...]], as_it_comes: bool
) -> AsyncGenerator[Read, None]:
    body = await response.read(WHOLE_BYTES_MAX)
    t_us = clock()
    if not as_it_comes:
        yield Read(body, whole_answer(body, t_us))
        return
    yield Read(body, ())
    try:
        chunks = whole_answer(body, t_us)
    except UpstreamProtocolError:
        yield Read(b"", (), ends_body=True)
        raise
    yield Read(b"", chunks)


async def _stream(response: UpstreamResponse, clock: Clock, reader: RecordReader) -> AsyncGenerator[Read, None]:
    leave_s, heard_bytes = None, 0
    while heard_bytes <= HEAR_OUT_BYTES_MAX:
        data = await next_read(response, reader, leave_s)
        if data is None:
            break
        chunks, fault = _understood(reader, data, clock())
        if fault is not None:
            yield Read(data if reader.reported else b"", chunks, ends_body=reader.reported)
            raise fault
        yield Read(data, chunks)
        if leave_s is not None:
            heard_bytes += len(data)
        elif reader.ended:
            leave_s = trio.current_time() + HEAR_OUT_S
    last = tuple(reader.finish(clock()))
    if last:
        yield Read(b"", last)


async def _as_it_comes(response: UpstreamResponse, clock: Clock, reader: RecordReader) -> AsyncGenerator[Read, None]:
    """Every read goes out before it is looked at. From the first record on that cannot be read, none is looked at any
    more; after one that reports an error, the end of the body is waited for as after a terminal one."""
    leave_s, heard_bytes, fault = None, 0, None
    while heard_bytes <= HEAR_OUT_BYTES_MAX:
        data = await next_read(response, reader, leave_s)
        if data is None:
            break
        t_us = clock()
        yield Read(data, ())
        if leave_s is not None:
            heard_bytes += len(data)
        if fault is None:
            chunks, fault = _understood(reader, data, t_us)
            if chunks:
                yield Read(b"", chunks)
            if leave_s is None and (reader.ended or (fault is not None and reader.reported)):
                leave_s = trio.current_time() + HEAR_OUT_S
    if fault is not None:
        yield Read(b"", (), ends_body=True)
        raise fault
    last = tuple(reader.finish(clock()))
    if last:
        yield Read(b"", last)


def _understood(reader: RecordReader, data: bytes, t_us: int) -> tuple[tuple[Chunk, ...], UpstreamProtocolError | None]:
    """The chunks of one read, and what is wrong with the record after them."""
    chunks: list[Chunk] = []
    try:
        for chunk in reader.feed(data, t_us):
            chunks.append(chunk)  # noqa: PERF402
    except UpstreamProtocolError as error:
        return tuple(chunks), error
    return tuple(chunks), None


async def next_read(response: UpstreamResponse, reader: RecordReader, leave_s: float | None = None) -> bytes | None:
    """The next read, None at the end of the body. When the answer is whole, also None when no more of it comes; after
    its terminal record that is at `leave_s` on the clock of trio."""
    if leave_s is not None:
        with suppress(RuntimeFault):
            return await response.next_within(leave_s - trio.current_time())
        return None
    if not reader.finishing:
        return await response.next()
    try:
        return await response.next_within(DONE_S)
    except (UpstreamTimeout, UpstreamTruncated):
        return None


async def hear_out(response: UpstreamResponse, reader: RecordReader) -> None:
    """Read on to the end of the body after the terminal record, to count what should not be there."""
    size_bytes = 0
    with trio.move_on_after(HEAR_OUT_S), suppress(RuntimeFault):
        async for data in response:
            for _ in reader.feed(data, 0):
                raise AssertionError("an ended stream has no more chunks")
            size_bytes += len(data)
            if size_bytes > HEAR_OUT_BYTES_MAX:
                return
