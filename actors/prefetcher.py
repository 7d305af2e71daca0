"""Prefetcher: brings models into free memory before they are asked for. What and when is decided by policies/prefetch.

It acts only while nobody uses a model or waits for one, so that nobody waits behind a load that nobody asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import attrs
import trio

from actors.catalog import Catalog, ModelRef
from actors.lease import Lease, PoolHandle, Ticket
from engine.domain.errors import EngineError
from policies.prefetch import OFTEN_WITHIN_S, Candidate, Purpose, choose

PAUSE_S: Final = 5.0  # between two looks

logger = logging.getLogger("wf.prefetch")


@attrs.define(eq=False)
class Prefetcher:
    """`warm` are names from the configuration; `councils` the members of each configured council; `often`: also models
    that are used often. Names that no runtime has are passed over."""

    catalog: Catalog
    pool: PoolHandle
    warm: Sequence[str] = ()
    councils: Sequence[Sequence[str]] = ()
    often: bool = True

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled; ends by itself when it has nothing to look for. Cancelled during a load: that goes on, it is
        the pool's."""
        task_status.started()
        if not (self.warm or self.councils or self.often):
            return
        await self.catalog.settled.wait()
        while True:
            model = None if self.pool.pool.busy else self._next()
            if model is None or not await self._bring(model):
                await trio.sleep(PAUSE_S)

    async def _bring(self, model: ModelRef) -> bool:
        try:
            await self.pool.prefetch(model)
        except EngineError as error:
            logger.info("%s was not brought into memory: %s", model.name, error.message)
            return False
        return True

    def _next(self) -> ModelRef | None:
        pool = self.pool.pool
        memory, now_us = pool.memory, pool.clock()
        uses = memory.uses_since(now_us - round(OFTEN_WITHIN_S * 1e6))
        candidates = []
        for name, purpose in self._names(uses):
            ref = self.catalog.listed(name)
            if ref is None:
                continue
            (wanted,) = memory.wanted([Lease(ref, False, Ticket())])
            trace = memory.known(name)
            candidates.append(
                Candidate(
                    wanted,
                    purpose,
                    uses.get(name, 0),
                    let_go=trace.idle,
                    failed=name in memory.failures,
                    evicted_us=trace.evicted_us,
                )
            )
        chosen = choose(candidates, memory.slots(), pool.caps, now_us)
        return None if chosen is None else self.catalog.listed(chosen)

    def _names(self, uses: Iterable[str]) -> Iterator[tuple[str, Purpose]]:
        yield from ((self._public(name), Purpose.WARM) for name in self.warm)
        yield from ((self._public(name), Purpose.COUNCIL) for members in self.councils for name in members)
        if self.often:
            yield from ((name, Purpose.OFTEN) for name in uses)

    def _public(self, name: str) -> str:
        """The name as the catalog has it; people leave `:latest` out."""
        try:
            return self.catalog.find(name).name
        except EngineError:
            return name
