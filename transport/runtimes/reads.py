"""The chunks of an answer, as they come out of each read of the socket.

Not a generator: it can be left anywhere with nothing to close, and whoever takes the chunks one by one can also have
what came together together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import attrs

from engine.domain.errors import UpstreamProtocolError
from engine.domain.generation import Chunk, Clock
from transport.runtimes.forwarding import RecordReader

NextRead = Callable[[], Awaitable[bytes | None]]


@attrs.define(eq=False)
class ChunkReads:
    """Implements `ChunksTogether`. Stamped per read, which is what one read of the socket brought. `next_read` gives
    None at the end of the body; `told` makes each chunk what it is to be for whoever asked.

    Raises what `next_read` raises, and the UpstreamProtocolError of a record after the chunks before it."""

    next_read: NextRead
    reader: RecordReader
    clock: Clock
    told: Callable[[Chunk], Chunk] | None = None
    _left: deque[Chunk] = attrs.field(factory=deque, init=False)  # bounded by one read
    _fault: UpstreamProtocolError | None = attrs.field(default=None, init=False)
    _over: bool = attrs.field(default=False, init=False)

    def __aiter__(self) -> ChunkReads:
        return self

    async def __anext__(self) -> Chunk:
        while not self._left:
            if self._fault is not None:
                raise self._fault
            if self._over:
                raise StopAsyncIteration
            data = await self.next_read()
            if data is None:
                self._over = True
                self._take(self.reader.finish(self.clock()))
            else:
                self._take(self.reader.feed(data, self.clock()))
                self._over = self.reader.ended
        return self._left.popleft()

    def rest(self) -> tuple[Chunk, ...]:
        if not self._left:
            return ()
        rest = tuple(self._left)
        self._left.clear()
        return rest

    def _take(self, chunks: Iterable[Chunk]) -> None:
        try:
            self._left.extend(chunks if self.told is None else map(self.told, chunks))
        except UpstreamProtocolError as fault:  # those before it stay
            self._fault = fault
