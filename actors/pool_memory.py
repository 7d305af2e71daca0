"""What is in memory: the models the pool moves, and what the runtimes say, which counts in the end.

A model that somebody else loaded takes its bytes and its place like any other, and may be asked to go like any other.
One of a runtime on another machine takes nothing here, whatever that says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from actors.catalog import ModelRef, Residency
from actors.kernel import Reply
from actors.lease import Lease, RunnerOptions, Ticket
from actors.pool_splits import UNSAID, Splits
from actors.warm_up import WarmUp
from engine.domain.generation import Clock
from engine.domain.models import Loaded, MemoryUse, ModelState
from policies.admission import Decided, PoolCaps, Wanted, admit
from policies.eviction import Slot
from policies.footprint import Footprint

ELSEWHERE: Final = "it is on another machine, and takes no memory of this one"
REMEMBERED_MAX: Final = 256  # models whose size, uses and moves are remembered; the longest untouched goes first
USES_MAX: Final = 64  # times of use remembered of one model


@attrs.frozen
class ModelStatus:
    """A model as the pool sees it. `last_used_us` is null before its first use."""

    state: ModelState
    resident_bytes: int | None
    leases: int
    last_used_us: int | None
    vram_bytes: int | None = None  # of these, on GPUs


@attrs.frozen
class Standing:
    """A model as the policies see it: its bytes (null: nobody tells, or not of this machine), and what would be decided
    about it now. `reason` is why it takes no memory here, null for one that may."""

    expected_bytes: int | None
    pinned: bool
    cools_for_ms: float
    now: Decided
    reason: str | None = None


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
    lost: bool = False  # its runtime has it in memory no more, while it is held
    pinned: bool = False
    prefetched: bool = False
    warm_up: WarmUp | None = None  # while it runs
    beside_vram_bytes: int | None = None  # what others had of GPUs when its load began; null before
    waiting: list[Lease] = attrs.field(factory=list)  # for the load to end
    unloads: list[Reply[int]] = attrs.field(factory=list)

    @property
    def leases(self) -> int:
        """Streams that hold it, or will when it is loaded."""
        return len(self.holders) + sum(lease.stream and not lease.ticket.abandoned for lease in self.waiting)

    def see_lost(self, lost: bool) -> None:
        """Told to those who hold it. Who comes later goes on at once: a runtime loads what it is asked."""
        if lost != self.lost:
            self.lost = lost
            for ticket in self.holders:
                ticket.lost = lost

    def warm(self, limit_s: float, begin: Callable[[WarmUp], None]) -> WarmUp:
        """The warm-up under way, or a new one."""
        if self.warm_up is None:
            self.warm_up = WarmUp(self.ref)
            begin(self.warm_up)
        self.warm_up.allow(limit_s)
        return self.warm_up

    def stop_warm_up(self) -> None:
        """Unless somebody waits for it: a request does as much for the model, and to unload it nothing is needed."""
        if self.warm_up is not None and not any(ticket.warm_up is self.warm_up for ticket in self.holders):
            self.warm_up.stop()
            self.warm_up = None


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
    splits: Splits = attrs.field(init=False)
    entries: dict[str, Entry] = attrs.field(factory=dict)
    failures: dict[str, str] = attrs.field(factory=dict)
    _said: dict[str, Residency] = attrs.field(factory=dict)  # by the runtimes, the newest of each
    _silent: set[str] = attrs.field(factory=set)  # runtimes that do not answer: what they said last still counts
    _seen_us: dict[str, int] = attrs.field(factory=dict)  # models of others: when they appeared
    _moved_us: dict[str, int] = attrs.field(factory=dict)  # by runtime: when we last moved a model of it
    _traces: dict[str, Trace] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.splits = Splits(self.caps)

    def status(self, model: str) -> ModelStatus:
        entry = self.entries.get(model)
        if entry is None:
            for said in self._said.values():
                if model in said.models:  # somebody else loaded it
                    use = said.models[model] if said.local else UNSAID
                    return ModelStatus(ModelState.READY, use.size_bytes, 0, None, use.vram_bytes)
            state = ModelState.FAILED if model in self.failures else ModelState.ABSENT
            return ModelStatus(state, 0, 0, None, 0)
        used_us = entry.last_used_us if entry.used else None
        if entry.loaded is None:
            return ModelStatus(entry.state, 0, entry.leases, used_us, 0)
        return ModelStatus(entry.state, entry.loaded.resident_bytes, entry.leases, used_us, entry.loaded.vram_bytes)

    @property
    def resident_bytes(self) -> int:
        """Of the models whose runtime says their size, ours and those that others loaded."""
        return sum(status.resident_bytes or 0 for status in self._statuses())

    @property
    def vram_bytes(self) -> int:
        """The part of `resident_bytes` that is on GPUs, as far as their runtimes say so; 0 where no GPU tells what it
        has, since all counts as main memory there."""
        if not self.caps.vram_budget_bytes:
            return 0
        return sum(status.vram_bytes or 0 for status in self._statuses())

    def _statuses(self) -> Iterable[ModelStatus]:
        names = {*self.entries, *(name for said in self._said.values() for name in said.models)}
        return (self.status(name) for name in names)

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
            reason=None if model.runtime.local else ELSEWHERE,
        )

    def slots(self) -> list[Slot]:
        """Ours and those of others, as the policies judge them."""
        return [*(self._slot(name, entry) for name, entry in self.entries.items()), *self._others()]

    def _slot(self, name: str, entry: Entry) -> Slot:
        use = self._use(entry)
        size_bytes = self.expected_bytes(entry.ref) if use.size_bytes is None else use.size_bytes
        vram_bytes, open_bytes = self.splits.of(entry.ref, size_bytes, use, entry.beside_vram_bytes)
        return Slot(
            name,
            entry.leases,
            entry.last_used_us,
            loading=entry.state is ModelState.LOADING,
            leaving=entry.state is ModelState.UNLOADING,
            pinned=entry.pinned,
            size_bytes=size_bytes,
            cool_until_us=self._cool_until_us(entry.loaded_us),
            stuck=entry.ref.runtime.name in self._silent,
            vram_bytes=vram_bytes,
            open_bytes=open_bytes,
        )

    def _others(self) -> Iterable[Slot]:
        for said in self._said.values():
            stuck = said.runtime in self._silent
            for name, use in said.models.items():
                ref, seen_us = self.listed(name), self._seen_us.get(name)
                if name in self.entries or (ref is None and not stuck):
                    continue
                known = self.expected_bytes(ref) if use.size_bytes is None and ref is not None else use.size_bytes
                vram_bytes, open_bytes = self.splits.of(ref, known, use)
                yield Slot(
                    name,
                    0,
                    seen_us or 0,
                    size_bytes=known if said.local else None,
                    cool_until_us=self._cool_until_us(seen_us),
                    stuck=stuck,
                    vram_bytes=vram_bytes,
                    open_bytes=open_bytes,
                )

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
        found = []
        for name, ref in refs.items():
            size_bytes = self.expected_bytes(ref)
            _, open_bytes = self.splits.of(ref, size_bytes)
            disk_bytes = ref.info.size_bytes if ref.runtime.local else None
            found.append(Wanted(name, size_bytes, disk_bytes, streams[name], open_bytes))
        return found

    def expected_bytes(self, ref: ModelRef) -> int | None:
        """What a model will take: what its runtime said the last time, else an estimate by its size on disk. Null: its
        runtime tells neither, or is on another machine."""
        if not ref.runtime.local:
            return None
        trace = self._traces.get(ref.name)
        if trace is not None and trace.reported is not None and trace.reported[0] == ref.info.size_bytes:
            return trace.reported[1]
        return self.caps.estimate_bytes(ref.info.size_bytes)

    def _use(self, entry: Entry) -> MemoryUse:
        """What its runtime said of it, as long as it is there."""
        if entry.loaded is not None:
            return MemoryUse(entry.loaded.resident_bytes, entry.loaded.vram_bytes)
        said = self._said.get(entry.ref.runtime.name)
        if said is None or not said.local or entry.state is not ModelState.UNLOADING:
            return UNSAID
        return said.models.get(entry.ref.name, UNSAID)  # somebody else had loaded it

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

    def loaded(self, entry: Entry, loaded: Loaded) -> Loaded:
        """A load has ended well: what the model takes of this machine's memory."""
        if not entry.ref.runtime.local:
            loaded = attrs.evolve(loaded, resident_bytes=None, vram_bytes=None)
        entry.loaded, entry.state = loaded, ModelState.READY
        self.told_size(entry)
        if entry.cold is not False:
            beside_bytes = max(entry.beside_vram_bytes or 0, self._vram_beside(entry))
            self.splits.learn(entry.ref, loaded, beside_bytes)
        return loaded

    def load_begins(self, entry: Entry) -> None:
        """Its runtime looks for room now."""
        entry.beside_vram_bytes = self._vram_beside(entry)

    def told_size(self, entry: Entry) -> None:
        """Its runtime said what it takes."""
        if entry.loaded is not None and entry.loaded.resident_bytes is not None:
            self.trace(entry.ref.name).reported = (entry.ref.info.size_bytes, entry.loaded.resident_bytes)

    def _vram_beside(self, entry: Entry) -> int:
        """Bytes on GPUs that others have, or will."""
        others = (slot for slot in self.slots() if slot.model != entry.ref.name)
        return self.caps.budget.placed(Footprint.of(*others)).vram_bytes

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
        if residency.gone:
            self.splits.forget(residency.runtime)
        for name in residency.models:
            if held is not None and name not in held.models and name not in self.entries:
                self._seen_us[name] = residency.asked_us
        for name in () if held is None else held.models.keys() - residency.models.keys():
            self._seen_us.pop(name, None)
        return True

    def lost(self) -> list[Entry]:
        """Idle models of ours that are not in memory any more, by what their runtimes said since we moved one; the
        sizes of the others are what they are now. One that is held is `lost`, until it is let go or is there again."""
        gone = []
        for name, entry in self.entries.items():
            said = self._said.get(entry.ref.runtime.name)
            if said is None or entry.state is not ModelState.READY or entry.loaded is None:
                continue
            if said.asked_us <= self._moved_us.get(said.runtime, -1):
                continue
            entry.see_lost(name not in said.models)
            if not entry.lost:
                use = said.models[name] if said.local else UNSAID
                entry.loaded = attrs.evolve(entry.loaded, resident_bytes=use.size_bytes, vram_bytes=use.vram_bytes)
                self.told_size(entry)
            elif entry.leases == 0:
                entry.stop_warm_up()
                gone.append(entry)
        return gone

    def warmed_up(self, over: WarmUp) -> Entry | None:
        """Whose warm-up this was; None for one that had given way."""
        entry = self.entries.get(over.model.name)
        if entry is None or entry.warm_up is not over:
            return None
        entry.warm_up = None
        return entry

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
