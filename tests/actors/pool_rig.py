"""The model pool over a runtime whose models have sizes, and which notices what must never happen to it."""

from __future__ import annotations

from contextlib import asynccontextmanager

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from actors.catalog import Catalog
from actors.clock import EngineClock
from actors.kernel import Inlet, mailbox
from actors.lease import PoolHandle
from actors.pool import Command, ModelPool, mailbox_capacity
from engine.domain.errors import EngineError, ModelLoadFailed, RuntimeUnavailable
from engine.domain.events import SessionSignal
from engine.domain.models import Capability, Loaded, MemoryUse, ModelInfo, ModelState, Probe
from policies.admission import PoolCaps
from tests.fakes.runtime import ScriptedRuntime

GB = 10**9


@attrs.define(eq=False)
class SizedRuntime(ScriptedRuntime):
    """`sizes` are on disk, null for a server that neither loads nor tells; in memory a model takes `grows` times that.
    With `gpu_bytes` a model is on the GPU as far as there is room when it comes (null: it uses none, and says nothing
    of one). `faults` lists what was done to it that must not be."""

    sizes: dict[str, int | None] = attrs.field(factory=dict)
    grows: float = 1.0
    broken: set[str] = attrs.field(factory=set)
    on_its_way: list[str] = attrs.field(factory=list)
    faults: list[str] = attrs.field(factory=list)
    unload_s: float = 0.0
    moves: list[str] = attrs.field(factory=list)  # when they began, and when a model was out
    gone: bool = False  # while it is not up: it has no process
    gpu_bytes: int | None = None
    on_gpu: dict[str, int] = attrs.field(factory=dict)  # bytes by model

    def dies(self):
        self.up, self.gone = False, True
        self.in_memory.clear()

    def hangs(self):
        self.up, self.gone = False, False

    def comes_back(self):
        self.up, self.gone = True, False

    async def probe(self):
        return Probe(self.up, None if self.up else "it does not answer", gone=self.gone and not self.up)

    async def list_models(self):
        return tuple(
            ModelInfo(
                name,
                self.name,
                size,
                capabilities=(Capability.COMPLETION,),
                may_use_gpu=self.gpu_bytes is not None,
            )
            for name, size in self.sizes.items()
        )

    def taken_bytes(self, model):
        size = self.sizes[model]
        return None if size is None else round(size * self.grows)

    async def resident(self):
        await trio.lowlevel.checkpoint()
        return {name: self.memory_of(name) for name in self.in_memory}

    def memory_of(self, model):
        return MemoryUse(self.taken_bytes(model), None if self.gpu_bytes is None else self.on_gpu.get(model, 0))

    def place(self, model):
        """Where it goes is decided when its load begins."""
        if self.gpu_bytes is not None:
            inside = {*self.in_memory, *self.on_its_way} - {model}
            free_bytes = max(0, self.gpu_bytes - sum(self.on_gpu[name] for name in inside))
            self.on_gpu[model] = min(self.taken_bytes(model) or 0, free_bytes)

    async def load(self, model):
        self.loads.append(model)
        self.moves.append(f"load {model}")
        if model in self.on_its_way:
            self.faults.append(f"{model} was loaded twice at once")
        self.on_its_way.append(model)
        if model not in self.in_memory:
            self.place(model)
        try:
            await trio.sleep(self.load_s)
            if not self.up:
                raise RuntimeUnavailable("it does not answer")
            if model in self.broken:
                raise ModelLoadFailed(f"{model} is broken")
        finally:
            self.on_its_way.remove(model)
        if self.sizes[model] is None:
            return Loaded(None, None)
        self.in_memory.add(model)
        use = self.memory_of(model)
        return Loaded(use.size_bytes, self.load_s * 1000, use.vram_bytes)

    async def unload(self, model):
        self.unloads.append(model)
        await trio.sleep(self.unload_s)
        if not self.up:
            raise RuntimeUnavailable("it does not answer")
        self.moves.append(f"out {model}")
        freed_bytes = self.taken_bytes(model) if model in self.in_memory else 0
        self.in_memory.discard(model)
        return freed_bytes or 0


@attrs.define(eq=False)
class Rig:
    handle: PoolHandle
    catalog: Catalog
    runtime: SizedRuntime
    other: SizedRuntime
    nursery: trio.Nursery
    news: Inlet[SessionSignal]  # what the pool itself tells of models
    told: list[tuple[str, ModelState, int | None, str | None]] = attrs.field(factory=list)

    @property
    def pool(self):
        return self.handle.pool

    def ref(self, name):
        return self.catalog.find(name)

    def refs(self, names):
        return [self.ref(name) for name in names]

    def teller(self, name):
        async def tell(state, position, reason):
            self.told.append((name, state, position, reason))

        return tell

    async def tell_of(self, model, state, position, reason):
        self.told.append((model.name, state, position, reason))

    async def use(self, model, for_s=0.0):
        async with self.handle.lease(self.ref(model), self.teller(model)) as grant:
            await trio.sleep(for_s)
            return grant

    async def use_set(self, models, for_s=0.0, hot=()):
        async with self.handle.lease_set(self.refs(models), self.tell_of, hot=self.refs(hot)) as got:
            await trio.sleep(for_s)
            return got

    async def hold(self, model):
        """Use it until the returned scope is cancelled."""
        scope = trio.CancelScope()

        async def holding():
            with scope:
                await self.use(model, float("inf"))

        self.nursery.start_soon(holding)
        await wait_all_tasks_blocked()
        return scope

    def start(self, call, *args):
        """Run `call` beside; the list gets its result or error."""
        done: list = []

        async def running():
            try:
                done.append(await call(*args))
            except EngineError as error:
                done.append(error)

        self.nursery.start_soon(running)
        return done

    def kinds(self, model):
        return [str(decision.kind) for decision in self.pool.decisions.of(model)]

    def state(self, model):
        return self.pool.status(model).state


@asynccontextmanager
async def rig(
    sizes,
    *,
    others=None,
    load_s=0.0,
    grows=1.0,
    streams=8,
    queued=8,
    parallel=8,
    loaded=8,
    make=SizedRuntime,
    gpu_bytes=None,
    **caps,
):
    """`others` are models of a second runtime, `other`, which uses no GPU."""
    clock = EngineClock.start()
    runtime = make(clock, load_s=load_s, sizes=dict(sizes), grows=grows, gpu_bytes=gpu_bytes)
    other = SizedRuntime(clock, load_s=load_s, sizes=dict(others or {}), name="other")
    runtimes = {"scripted": runtime} if others is None else {"scripted": runtime, "other": other}
    catalog = Catalog(runtimes, clock)
    limits = PoolCaps(streams, queued, parallel, loaded, **{"size_overhead": 1.0, **caps})
    commands, inlet = mailbox[Command]("pool", mailbox_capacity(limits, 64))
    news, news_in = mailbox[SessionSignal]("news", 64)
    handle = PoolHandle(ModelPool(inlet, commands, limits, clock, 60.0, news, catalog.listed), commands)
    catalog.seen = handle.see
    await catalog.refresh()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: handle.pool.run(task_status=task_status))
        yield Rig(handle, catalog, runtime, other, nursery, news_in)
        nursery.cancel_scope.cancel()
