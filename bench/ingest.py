"""What a token costs from the socket to the mapper's mailbox, against reading and splitting the same bytes.

Paced streams, as models are: every token is a wake-up of its own. The same flood feeds both.
"""

from __future__ import annotations

import selectors
import socket
import time
from urllib.parse import urlsplit

import trio

from actors.clock import EngineClock
from actors.kernel import Inlet, mailbox
from actors.mapper import MAILBOX_BATCHES
from actors.stream import ModelStream, Timeouts
from bench.flood import MODEL, flooding
from bench.table import Row, median
from engine.domain.events import SessionSignal
from engine.domain.generation import GenerationRequest, StreamRef
from transport.runtimes.ollama import OllamaRuntime

STREAMS = 50
TPS = 100
SECONDS = 4
REPEATS = 3
ASK = b'{"model":"flood","prompt":"on"}'
REQUEST = b"POST /api/generate HTTP/1.1\r\nHost: flood\r\nContent-Length: %d\r\n\r\n%b" % (len(ASK), ASK)


def measure() -> list[Row]:
    with flooding(TPS) as url:
        pairs = [(trio.run(streamed_us, url), split_us(url)) for _ in range(REPEATS)]
    ours, bare = (median(costs) for costs in zip(*pairs, strict=True))
    return [Row(f"CPU per token, {STREAMS} streams of {TPS} tok/s", ours, "µs", bare, "recv and split")]


async def streamed_us(url: str) -> float:
    """CPU per token of the real way in, with nothing behind the mailbox."""
    clock = EngineClock.start()
    runtime = OllamaRuntime(clock, url)
    outlet, inlet = mailbox[SessionSignal]("signals", MAILBOX_BATCHES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(swallow, inlet)
        streams = [
            ModelStream(StreamRef("s", f"s:{n}", MODEL), runtime, GenerationRequest(MODEL, "on"), outlet, Timeouts())
            for n in range(STREAMS)
        ]
        for stream in streams:
            nursery.start_soon(stream.run)
        while not all(stream.tokens for stream in streams):  # noqa: ASYNC110  # a plain counter
            await trio.sleep(0.01)
        used, tokens = time.process_time(), sum(stream.tokens for stream in streams)
        await trio.sleep(SECONDS)
        used, tokens = time.process_time() - used, sum(stream.tokens for stream in streams) - tokens
        nursery.cancel_scope.cancel()
    return used / tokens * 1e6


async def swallow(inlet: Inlet[SessionSignal]) -> None:
    async with inlet.open() as signals:
        async for _ in signals:
            pass


def split_us(url: str) -> float:
    """CPU per token of a selector loop that receives and splits into lines, and looks at nothing."""
    place = urlsplit(url)
    socks = [socket.create_connection((place.hostname, place.port)) for _ in range(STREAMS)]
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.sendall(REQUEST)
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        counted(selector, 1)
        used = time.process_time()
        lines = counted(selector, SECONDS)
        used = time.process_time() - used
    for sock in socks:
        sock.close()
    return used / (lines / 3) * 1e6  # a chunk is a size, a record and an empty line


def counted(selector: selectors.BaseSelector, seconds: float) -> int:
    """Line ends that came in so many seconds."""
    end, lines = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            lines += len(key.fileobj.recv(65_536).split(b"\n")) - 1
    return lines
