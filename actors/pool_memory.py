"""What is in memory: the models the pool moves, and what the runtimes say, which counts in the end.

A model that somebody else loaded takes its bytes and its place like any other, and may be asked to go like any other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import attrs
import trio

from actors.catalog import ModelRef, Residency
from actors.kernel import Reply
from actors.lease import Lease, RunnerOptions, Ticket
from engine.domain.generation import Clock
from engine.domain.models import Loaded, ModelState
from policies.admission import Decided, PoolCaps, Wanted, admit
from policies.eviction import Slot

REMEMBERED_MAX: Final = 256  # models whose size, uses and moves are remembered; the longest untouched goes first
USES_MAX: Final = 64  # times of use remembered of one model


@attrs.frozen
class ModelStatus:
    """A model as the pool sees it. `last_used_us` is null before its first use."""

    state: ModelState
    resident_bytes: int | None
    leases: int
    last_used_us: int | None


@attrs.frozen
class Standing:
    """A model as the policies see it: its bytes (null: nobody tells), and what would be decided about it now."""

    expected_bytes: int | None
    pinned: bool
    cools_for_ms: float
    now: Decided


@attrs.define(eq=False)
class Entry:
    """A model that the pool loads, holds or unloads."""

    ref: ModelRef
    state: ModelState = ModelState.LOADING
    loaded: Loaded | None = None
    loaded_us: int | None = None  # when we did; null: it was in memory already
    cold: bool | None = None  # its load found it out of memory
    options: RunnerOptions | None = None  # of the last request
    holders: set[Ticket] = attrs.field(factory=set)
    last_used_us: int = 0
    used: bool = False
    evicted: tuple[str, ...] = ()
    room_for: set[str] = attrs.field(factory=set)  # models that must be out before its load may begin
    pinned: bool = False
    prefetched: bool = False
    warming: trio.CancelScope = attrs.field(factory=trio.CancelScope)  # its first token, when nobody asked for it
    waiting: list[Lease] = attrs.field(factory=list)  # for the load to end
    unloads: list[Reply[int]] = attrs.field(factory=list)

    @property
    def leases(self) -> int:
        """Streams that hold it, or will when it is loaded."""
        return len(self.holders) + sum(lease.stream and not lease.ticket.abandoned for lease in self.waiting)


@attrs.define(eq=False)
class Trace:
    """What is remembered of a model beyond its stay in memory. `reported` is its size on disk with what its runtime
    then said it takes. `idle`: its runtime let go of it, or a person did, and nobody has used it since."""

    reported: tuple[int | None, int] | None = None
    evicted_us: int | None = None
    idle: bool = False
    uses_us: deque[int] = attrs.field(factory=lambda: deque(maxlen=USES_MAX))


@attrs.define(eq=False)
class Memory:
    """`listed` finds a model by its public name in the catalog, None when it is not there."""

    caps: PoolCaps
    clock: Clock
    listed: Callable[[str], ModelRef | None]
    entries: dict[str, Entry] = attrs.field(factory=dict)
    failures: dict[str, str] = attrs.field(factory=dict)
    _said: dict[str, Residency] = attrs.field(factory=dict)  # by the runtimes, the newest of each
    _silent: set[str] = attrs.field(factory=set)  # runtimes that do not answer: what they said last still counts
    _seen_us: dict[str, int] = attrs.field(factory=dict)  # models of others: when they appeared
    _moved_us: dict[str, int] = attrs.field(factory=dict)  # by runtime: when we last moved a model of it
    _traces: dict[str, Trace] = attrs.field(factory=dict)

    def status(self, model: str) -> ModelStatus:
        entry = self.entries.get(model)
        if entry is None:
            for said in self._said.values():
                if model in said.models:  # somebody else loaded it
                    return ModelStatus(ModelState.READY, said.models[model], 0, None)
            state = ModelState.FAILED if model in self.failures else ModelState.ABSENT
            return ModelStatus(state, 0, 0, None)
        resident = 0 if entry.loaded is None else entry.loaded.resident_bytes
        return ModelStatus(entry.state, resident, entry.leases, entry.last_used_us if entry.used else None)

    @property
    def resident_bytes(self) -> int:
        """Of the models whose runtime says their size, ours and those that others loaded."""
        names = {*self.entries, *(name for said in self._said.values() for name in said.models)}
        return sum(self.status(name).resident_bytes or 0 for name in names)

    @property
    def streams(self) -> int:
        """Streams that hold a model, or will as soon as it is loaded."""
        return sum(entry.leases for entry in self.entries.values())

    def standing(self, model: ModelRef) -> Standing:
        """What would happen if one stream asked for `model` now."""
        slots, now_us = self.slots(), self.clock()
        mine = next((slot for slot in slots if slot.model == model.name), None)
        wanted = self.wanted([Lease(model, True, Ticket())])
        return Standing(
            expected_bytes=self.expected_bytes(model) if mine is None else mine.size_bytes,
            pinned=mine is not None and mine.pinned,
            cools_for_ms=0.0 if mine is None else max(0, mine.cool_until_us - now_us) / 1000,
            now=admit(wanted, slots, self.streams, self.caps, now_us, self.hot([model.name])),
        )

    def slots(self) -> list[Slot]:
        """Ours and those of others, as the policies judge them."""
        return [*(self._slot(name, entry) for name, entry in self.entries.items()), *self._others()]

    def _slot(self, name: str, entry: Entry) -> Slot:
        return Slot(
            name,
            entry.leases,
            entry.last_used_us,
            loading=entry.state is ModelState.LOADING,
            leaving=entry.state is ModelState.UNLOADING,
            pinned=entry.pinned,
            size_bytes=self._size_bytes(entry),
            cool_until_us=self._cool_until_us(entry.loaded_us),
            stuck=entry.ref.runtime.name in self._silent,
        )

    def _others(self) -> Iterable[Slot]:
        for said in self._said.values():
            stuck = said.runtime in self._silent
            for name, size_bytes in said.models.items():
                ref, seen_us = self.listed(name), self._seen_us.get(name)
                if name in self.entries or (ref is None and not stuck):
                    continue
                known = self.expected_bytes(ref) if size_bytes is None and ref is not None else size_bytes
                cool_until_us = self._cool_until_us(seen_us)
                yield Slot(name, 0, seen_us or 0, size_bytes=known, cool_until_us=cool_until_us, stuck=stuck)

    def _cool_until_us(self, loaded_us: int | None) -> int:
        return 0 if loaded_us is None else loaded_us + self.caps.cooldown_us

    def hot(self, names: Iterable[str], asked: frozenset[str] = frozenset()) -> frozenset[str]:
        """The models that need not cool down for these: those of `asked`, and all of them where only a model that comes
        back too soon has to wait, and none of these does."""
        if self.caps.spares_all:
            return asked
        soon_us = self.clock() - self.caps.cooldown_us
        gone_us = (self.known(name).evicted_us for name in names)
        if any(evicted_us is not None and evicted_us > soon_us for evicted_us in gone_us):
            return asked
        return asked | frozenset(slot.model for slot in self.slots())

    def wanted(self, leases: Iterable[Lease]) -> list[Wanted]:
        """What these leases ask for, each model once."""
        refs: dict[str, ModelRef] = {}
        streams: dict[str, int] = {}
        for lease in leases:
            refs[lease.model.name] = lease.model
            streams[lease.model.name] = streams.get(lease.model.name, 0) + lease.stream
        return [
            Wanted(name, self.expected_bytes(ref), ref.info.size_bytes, streams[name]) for name, ref in refs.items()
        ]

    def expected_bytes(self, ref: ModelRef) -> int | None:
        """What a model will take: what its runtime said the last time, else an estimate by its size on disk. Null: its
        runtime tells neither."""
        trace = self._traces.get(ref.name)
        if trace is not None and trace.reported is not None and trace.reported[0] == ref.info.size_bytes:
            return trace.reported[1]
        return self.caps.estimate_bytes(ref.info.size_bytes)

    def _size_bytes(self, entry: Entry) -> int | None:
        if entry.loaded is not None and entry.loaded.resident_bytes is not None:
            return entry.loaded.resident_bytes
        return self.expected_bytes(entry.ref)

    # ── what is remembered ──

    def trace(self, model: str) -> Trace:
        trace = self._traces.pop(model, None) or Trace()
        self._traces[model] = trace  # the last touched is last
        if len(self._traces) > REMEMBERED_MAX:
            del self._traces[next(iter(self._traces))]
        return trace

    def known(self, model: str) -> Trace:
        """What is remembered, for reading."""
        return self._traces.get(model) or Trace()

    def uses_since(self, at_us: int) -> dict[str, int]:
        """How often models were granted since then; those that were let go of and not used since are left out."""
        counts = {
            name: sum(used_us >= at_us for used_us in trace.uses_us)
            for name, trace in self._traces.items()
            if not trace.idle
        }
        return {name: count for name, count in counts.items() if count}

    def told_size(self, entry: Entry) -> None:
        """Its runtime said what it takes."""
        if entry.loaded is not None and entry.loaded.resident_bytes is not None:
            self.trace(entry.ref.name).reported = (entry.ref.info.size_bytes, entry.loaded.resident_bytes)

    # ── what the runtimes say ──

    def moved(self, entry: Entry) -> None:
        """We moved a model of this runtime: what it said before does not count any more."""
        self._moved_us[entry.ref.runtime.name] = self.clock()

    def note(self, residency: Residency) -> bool:
        """Keep what a runtime said; False when it is out of date already. Of one that does not answer, what it said
        last is kept: wedged is not gone, and to give its memory away would overcommit the machine."""
        if residency.silent:
            self._silent.add(residency.runtime)
            return False
        self._silent.discard(residency.runtime)
        held = self._said.get(residency.runtime)
        if held is not None and residency.asked_us < held.asked_us:
            return False
        if residency.asked_us <= self._moved_us.get(residency.runtime, -1):
            return False  # we moved a model since: its memory has changed
        self._said[residency.runtime] = residency
        for name in residency.models:
            if held is not None and name not in held.models and name not in self.entries:
                self._seen_us[name] = residency.asked_us
        for name in () if held is None else held.models.keys() - residency.models.keys():
            self._seen_us.pop(name, None)
        return True

    def lost(self) -> list[Entry]:
        """Idle models of ours that are not in memory any more, by what their runtimes said since we moved one; the
        sizes of the others are what they are now."""
        gone = []
        for name, entry in self.entries.items():
            said = self._said.get(entry.ref.runtime.name)
            if said is None or entry.state is not ModelState.READY or entry.loaded is None:
                continue
            if said.asked_us <= self._moved_us.get(said.runtime, -1):
                continue
            if name in said.models:
                entry.loaded = attrs.evolve(entry.loaded, resident_bytes=said.models[name])
                self.told_size(entry)
            elif entry.leases == 0:
                gone.append(entry)
        return gone

    def is_gone(self, runtime: str) -> bool:
        """It has no process any more, as far as we know."""
        said = self._said.get(runtime)
        return said is not None and said.gone

    def forget_said(self, entry: Entry) -> None:
        """It was unloaded: it was there when its runtime was asked, and is not any more."""
        said = self._said.get(entry.ref.runtime.name)
        if said is not None and entry.ref.name in said.models:
            models = {name: size for name, size in said.models.items() if name != entry.ref.name}
            self._said[said.runtime] = attrs.evolve(said, models=models)
            self._seen_us.pop(entry.ref.name, None)
