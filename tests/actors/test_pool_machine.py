"""The pool against any sequence of what people, runtimes and time do to it, beside a plain model of what it must be.

The pool runs in a trio thread of its own with a clock that only moves when a step says so; after each step everything
has come to rest, and then both are compared. What a reference can say of it is small: who holds what, what may be in
memory, and whether the first in the queue really has to wait, found by trying every choice of who could go.
"""

from __future__ import annotations

import itertools

import attrs
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.lease import Grant
from engine.domain.errors import (
    EngineError,
    InsufficientMemory,
    RuntimeUnavailable,
    SessionConflict,
    TierLimitExceeded,
)
from engine.domain.models import ModelState
from tests.actors.pool_rig import rig
from tests.actors.trio_world import World

OURS = {"a": 3, "b": 3, "c": 5, "d": 2, "e": 11, "free": None}
OTHERS = {"r": 4, "s": 3}  # of a runtime that uses no GPU, and never fails
SIZES = OURS | OTHERS
RAM, MODELS_MAX, PARALLEL_MAX, STREAMS_MAX, COOL_S = 10, 3, 2, 4, 30
MODELS = sorted(SIZES)
models = st.sampled_from(MODELS)


@attrs.define(eq=False)
class Caller:
    """Somebody at the door of the pool. `got` is null until it is answered."""

    names: tuple[str, ...]
    stream: bool = True
    got: tuple | EngineError | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    gone: bool = False

    @property
    def holds(self):
        if not self.stream or self.gone or not isinstance(self.got, tuple):
            return []
        return [grant.model for grant in self.got if isinstance(grant, Grant)]


class PoolMachine(RuleBasedStateMachine):
    ram, vram = RAM, 0

    def __init__(self):
        super().__init__()
        self.world = World(self.rig)
        self.p = self.world.it
        self.refs = {name: self.p.ref(name) for name in MODELS}  # also for while its runtime is away
        self.callers: list[Caller] = []
        self.pins = self.broke = False  # ever
        self.unloads: dict[str, int] = {}

    def rig(self):
        limits = {"model_bytes_max": 10, "cooldown_us": COOL_S * 1_000_000}
        budgets = {"ram_budget_bytes": self.ram, "vram_budget_bytes": self.vram, "gpu_bytes": self.vram or None}
        counts = {"parallel": PARALLEL_MAX, "loaded": MODELS_MAX, "streams": STREAMS_MAX}
        return rig(OURS, others=OTHERS, load_s=2, **counts, **limits, **budgets)

    def teardown(self):
        try:
            self.quiesce()
        finally:
            self.world.close()

    # ── what people do ──

    def come(self, caller, enter):
        async def stay():
            with caller.scope:
                try:
                    async with enter() as got:
                        caller.got = got if isinstance(got, tuple) else (got,)
                        await trio.sleep_forever()
                except EngineError as error:
                    caller.got = error
            caller.gone = True

        async def start():
            self.p.nursery.start_soon(stay)

        self.callers.append(caller)
        self.world.do(start)

    @rule(name=models)
    def ask(self, name):
        ref = self.refs[name]
        self.come(Caller((name,)), lambda: self.p.handle.lease(ref, self.p.teller(name)))

    @rule(names=st.lists(models, min_size=1, max_size=3))
    def ask_for_a_set(self, names):
        refs = [self.refs[name] for name in names]
        self.come(Caller(tuple(names)), lambda: self.p.handle.lease_set(refs, self.p.tell_of))

    @rule(name=models, pin=st.booleans())
    def load(self, name, pin):
        caller = Caller((name,), stream=False)
        self.pins |= pin

        async def loading():
            with caller.scope:
                try:
                    caller.got = (await self.p.handle.load(self.refs[name], self.p.teller(name), pin=pin),)
                except EngineError as error:
                    caller.got = error
            caller.gone = True

        async def start():
            self.p.nursery.start_soon(loading)

        self.callers.append(caller)
        self.world.do(start)

    @rule(name=models)
    def prefetch(self, name):
        before = self.went()

        async def start():
            self.p.start(self.p.handle.prefetch, self.refs[name])

        self.world.do(start)
        assert self.went() == before

    @precondition(lambda self: any(not c.gone for c in self.callers))
    @rule(data=st.data())
    def leave(self, data):
        caller = data.draw(st.sampled_from([c for c in self.callers if not c.gone]))
        self.world.do(self.cancel, caller)

    async def cancel(self, caller):
        caller.scope.cancel()

    @rule(name=models)
    def unload(self, name):
        held = name in self.held()

        async def unloading():
            try:
                return await self.p.handle.unload(self.refs[name])
            except (SessionConflict, RuntimeUnavailable) as error:
                return error

        answer = self.world.do(unloading)
        if held:
            assert isinstance(answer, SessionConflict)

    # ── what runtimes and time do ──

    @rule(seconds=st.sampled_from([0.5, 2, 10, 31]))
    def time_passes(self, seconds):
        self.pass_time(seconds)

    def pass_time(self, seconds):
        self.world.pass_time(seconds, 0.5, self.watch)

    @rule(name=models)
    def breaks(self, name):
        self.p.runtime.broken ^= {name}
        self.broke = True

    @rule()
    def runtime_crashes(self):
        """And is back before anybody looked."""
        self.p.runtime.in_memory.clear()
        self.runtimes_are_asked()

    @rule(dies=st.booleans())
    def runtime_leaves(self, dies):
        """Or hangs: then it keeps what it has in memory."""
        self.broke = True  # loads may fail
        self.p.runtime.dies() if dies else self.p.runtime.hangs()
        self.runtimes_are_asked()

    @rule()
    def runtime_comes_back(self):
        self.p.runtime.comes_back()
        self.runtimes_are_asked()

    @rule()
    def runtimes_are_asked(self):
        self.pass_time(0.5)
        self.world.do(self.p.catalog.refresh)

    # ── what must hold ──

    def held(self):
        return [model for caller in self.callers for model in caller.holds]

    def went(self):
        """The models that had to unload, so far."""
        return [*self.p.runtime.unloads, *self.p.other.unloads]

    def watch(self):
        """Between any two moments of rest: caps hold, and nothing goes that must stay."""
        runtimes, held = (self.p.runtime, self.p.other), self.held()
        assert not any(runtime.faults for runtime in runtimes)
        inside = {name for runtime in runtimes for name in (*runtime.in_memory, *runtime.on_its_way)}
        on_gpu = sum(self.p.runtime.on_gpu.get(name, 0) for name in inside)
        assert on_gpu <= self.vram
        assert sum(SIZES[name] or 0 for name in inside) - on_gpu <= self.ram
        assert sum(SIZES[name] is not None for name in inside) <= MODELS_MAX
        assert len(held) <= STREAMS_MAX
        assert len(set(held)) <= PARALLEL_MAX
        for runtime in runtimes:
            for name in runtime.unloads[self.unloads.get(runtime.name, 0) :]:
                assert name not in held, f"{name} was unloaded under its callers"
            self.unloads[runtime.name] = len(runtime.unloads)

    @invariant()
    def the_books_agree(self):
        if self.world.error is not None:
            raise self.world.error
        self.watch()
        pool, held = self.p.pool, self.held()
        admitted = [name for c in self.callers if len(c.names) > 1 and c.got is None and not c.gone for name in c.names]
        for name, entry in pool.memory.entries.items():  # of a set whose other models still load, some are held already
            assert held.count(name) <= len(entry.holders) <= held.count(name) + admitted.count(name)
        assert set(held) <= pool.memory.entries.keys()
        assert not any(lease.ticket.grant for asked in pool._queue for lease in asked.leases)  # who waits has nothing
        assert pool.streams <= STREAMS_MAX

    @invariant()
    def refusals_are_right(self):
        """Refused is what can never be; without pins that is a matter of sizes and caps alone."""
        for caller in self.callers:
            names = {name for name in caller.names if name != "e"}  # larger than the tier takes, by itself
            streams = sum(name != "e" for name in caller.names) if caller.stream else 0
            sizes = [SIZES[name] for name in names if SIZES[name] is not None]
            never = streams > STREAMS_MAX or (caller.stream and len(names) > PARALLEL_MAX)
            in_ram = sum(OTHERS.get(name, 0) for name in names)
            never = (
                never or in_ram > self.ram or sum(sizes) > self.ram + self.vram or len(sizes) > MODELS_MAX or not names
            )
            refused = isinstance(caller.got, TierLimitExceeded | InsufficientMemory)
            if isinstance(caller.got, tuple):
                assert all(isinstance(got, TierLimitExceeded) for got in caller.got if got.__class__ is not Grant) or (
                    self.pins or self.broke
                )
            if never and not caller.gone and not self.pins:  # pins may refuse members, and leave a smaller set
                assert caller.got is not None
            # one of a set that is in main memory already stays there, and may leave the others no room
            sits_badly = self.vram > 0 and len(sizes) > 1 and sum(sizes) > self.ram
            if refused and not self.pins:
                assert never or sits_badly

    @invariant()
    def the_first_in_the_queue_really_has_to_wait(self):
        pool = self.p.pool
        waiting = [asked for asked in pool._queue if not asked.abandoned]
        if waiting:
            asked = waiting[0]
            names = [lease.model.name for lease in asked.leases if not lease.ticket.settled]
            assert not self.could_be_had(names, stream=asked.wants_streams)

    def could_be_had(self, names, *, stream):
        """By trying every choice of idle models to go."""
        entries = self.p.pool.memory.entries
        now_us = self.p.pool.clock()
        leases = {name: entry.leases for name, entry in entries.items()}
        if stream and sum(leases.values()) + len(names) > STREAMS_MAX:
            return False
        in_use = {name for name, count in leases.items() if count}
        if stream and len(in_use | set(names)) > PARALLEL_MAX:
            return False
        if any(name in entries and entries[name].state is ModelState.UNLOADING for name in names):
            return False
        others = {slot.model: slot for slot in self.p.pool.memory.slots()}
        stays = {name for name, slot in others.items() if not slot.leaving} | set(names)
        sized = {name for name in stays if SIZES[name] is not None}
        missing = {name for name in set(names) - others.keys() if SIZES[name] is not None}
        if not missing:
            return True
        may_go = [
            name
            for name in sized - set(names)
            if not leases.get(name)
            and (name not in entries or (entries[name].state is ModelState.READY and not entries[name].pinned))
            and others[name].cool_until_us <= now_us
            and not others[name].stuck
        ]
        for count in range(len(may_go) + 1):
            for go in itertools.combinations(may_go, count):
                rest = sized - set(go)
                if len(rest) <= MODELS_MAX and self.fits([others.get(name) for name in rest], missing):
                    return True
        return False

    def fits(self, slots, missing):
        """By trying every split of those of which nobody has said yet where they are."""
        here = [slot for slot in slots if slot is not None]
        on_gpu = sum(slot.vram_bytes for slot in here)
        open_bytes = sum(OURS.get(name, 0) for name in missing) + sum(slot.open_bytes for slot in here)
        in_ram = sum(slot.size_bytes for slot in here) + sum(SIZES[name] for name in missing) - on_gpu - open_bytes
        if not self.vram:
            return in_ram + open_bytes <= self.ram
        return any(
            on_gpu + there <= self.vram and in_ram + open_bytes - there <= self.ram for there in range(open_bytes + 1)
        )

    def quiesce(self):
        """Everybody leaves: nothing is held, nobody waits, and no task is left."""
        if self.world.error is not None:
            return
        for caller in self.callers:
            self.world.do(self.cancel, caller)
        self.p.runtime.broken.clear()
        self.runtime_comes_back()
        self.pass_time(5)
        pool = self.p.pool
        assert (pool.streams, pool.queued) == (0, 0)
        assert not any(entry.holders or entry.waiting for entry in pool.memory.entries.values())
        assert not any(e.state in (ModelState.LOADING, ModelState.UNLOADING) for e in pool.memory.entries.values())
        self.pass_time(31)
        assert self.world.count_tasks() <= self.world.tasks + 1  # an alarm may still be set
        if not any(entry.pinned for entry in pool.memory.entries.values()):
            self.ask("a")
            self.pass_time(3)
            assert self.callers[-1].holds == ["a"]


PoolMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPool = PoolMachine.TestCase


class GpuPoolMachine(PoolMachine):
    """The same with two memories, and a runtime that puts a model on the GPU as far as there is room, beside one that
    uses none."""

    ram, vram = 6, 5


GpuPoolMachine.TestCase.settings = PoolMachine.TestCase.settings
TestPoolOnGpus = GpuPoolMachine.TestCase
