"""Sessions and councils over the whole engine without sockets, against any sequence of what people, runtimes and time
do to them, beside a plain account of what was said.

The reference is small. A model always says the same words, so what any stream may have told is known; the runtime keeps
its own account of what it gave and of what it holds, and notices what must never be done to it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager

import attrs
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.session import SessionRequest
from engine.domain.errors import EngineError
from engine.domain.generation import Chunk, EndReason, GenerationEnd, GenerationRequest, Origin, TokenLogprob, TopEntry
from engine.domain.synthesis import CouncilMethod
from engine.settings import PoolSettings, Settings
from policies.admission import PoolCaps
from policies.council import LISTED, CouncilSpec
from tests.actors.pool_rig import SizedRuntime
from tests.actors.trio_world import World
from tests.fakes.slice import running_slice

SIZES = {"a": 3, "b": 3, "c": 5, "d": 2}
WORDS = {"a": 4, "b": 7, "c": 12, "d": 1}  # of its answer, one every STEP_S
MODELS = sorted(SIZES)
STEP_S, LOAD_S, GRACE_S = 0.25, 0.5, 1.0
CAPS = PoolCaps(4, 3, 3, 3, 10, None, 1.0, 3_000_000)
QUIET_S = 120  # within which everything that was asked must have ended
models = st.sampled_from(MODELS)


def answer(model: str) -> list[str]:
    return [f"{model}{number} ö " for number in range(WORDS[model])]


@attrs.define(eq=False)
class LedgerRuntime(SizedRuntime):
    """Notes what it gave. When it dies its streams just stop, and its memory is empty."""

    given: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(MODELS, 0))  # tokens, by model
    speaking: list[str] = attrs.field(factory=list)
    lives: int = 0

    def dies(self):
        super().dies()
        self.lives += 1

    async def unload(self, model):
        if model in self.speaking:
            self.faults.append(f"{model} was unloaded while it spoke")
        return await super().unload(model)

    @asynccontextmanager
    async def generate(self, request):
        model, life = request.model, self.lives
        if self.up and model not in self.in_memory:
            self.faults.append(f"{model} was asked, and is not in memory")
        self.opened += 1
        self.speaking.append(model)
        chunks = self._speak(model, life)
        try:
            yield chunks
        finally:
            self.closed += 1
            self.speaking.remove(model)
            await chunks.aclose()

    async def _speak(self, model, life):
        said = answer(model)
        for text in said:
            await trio.sleep(STEP_S)
            if life != self.lives:
                return
            self.given[model] += 1
            top = (TopEntry(text, -0.4), TopEntry("other", -1.5))
            yield Chunk(text, self.clock(), logprobs=(TokenLogprob(text, -0.4, top),))
        yield Chunk("", self.clock(), end=GenerationEnd(EndReason.FINISHED, prompt_tokens=3, eval_count=len(said)))


@asynccontextmanager
async def engine():
    def make(clock):
        return LedgerRuntime(clock, load_s=LOAD_S, sizes=dict(SIZES))

    async with running_slice(make, Settings(pool=PoolSettings(prefetch="none"))) as s:
        pool = s.core.pool.pool
        pool.caps = pool.memory.caps = CAPS
        yield s, s.client()


class CouncilMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.world = World(engine)
        self.s, self.watcher = self.world.it
        self.runtime = self.s.runtime
        self.asked = {}  # sessions by id
        self.calm = set()  # ids of those that nothing happened to but time
        self.stopped = set()

    def teardown(self):
        try:
            if self.world.error is None:
                self.quiesce()
        finally:
            self.world.close()

    # ── what people do ──

    def start(self, find, **more):
        async def starting():
            try:
                model = find()
                request = GenerationRequest(model.info.name, prompt="on", **more)
                return self.s.core.sessions.start(SessionRequest(model, request, Origin.API))
            except EngineError:
                return None  # refused before it began

        session = self.world.do(starting)
        if session is not None:
            self.asked[session.id] = session
            if self.runtime.up and not self.runtime.broken:
                self.calm.add(session.id)

    @rule(model=models)
    def generate(self, model):
        self.start(lambda: self.s.core.catalog.find(model))

    @rule(
        members=st.lists(models, min_size=2, max_size=4, unique=True),
        method=st.sampled_from([CouncilMethod.CONSENSUS, CouncilMethod.BEST_CERTAINTY, CouncilMethod.FIRST]),
        quorum=st.sampled_from([None, 1, 2]),
        early=st.booleans(),
    )
    def ask_a_council(self, members, method, quorum, early):
        spec = CouncilSpec(LISTED + "+".join(members), tuple(members), method, quorum, GRACE_S, early)
        self.start(lambda: self.s.core.catalog.councils.seat(spec, "council", "truncate"))

    @rule(model=models, context=st.sampled_from([2048, 4096]))
    def generate_with_options(self, model, context):
        self.start(lambda: self.s.core.catalog.find(model), runner_options={"num_ctx": context})

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def stop(self, data):
        session_id = data.draw(st.sampled_from(sorted(self.asked)))
        if self.asked[session_id].state != "ended":
            self.calm.discard(session_id)
            self.stopped.add(session_id)
        report = self.world.do(self.s.core.sessions.stop, session_id)
        assert report.state == "ended"

    @rule(model=models)
    def unload(self, model):
        async def unloading():
            try:
                await self.s.core.pool.unload(self.s.core.catalog.find(model))
            except EngineError:
                pass  # in use, or its runtime is away

        self.world.do(unloading)

    # ── what runtimes and time do ──

    @rule(seconds=st.sampled_from([0.25, 1, 4]))
    def time_passes(self, seconds):
        self.world.pass_time(seconds, STEP_S, self.watch)

    @rule()
    def runtime_dies(self):
        self.calm.clear()
        self.runtime.dies()
        self.look()

    @rule()
    def runtime_comes_back(self):
        self.runtime.comes_back()
        self.look()

    @rule(model=models)
    def breaks(self, model):
        self.calm.clear()
        self.runtime.broken ^= {model}

    def look(self):
        self.world.pass_time(STEP_S, STEP_S, self.watch)
        self.world.do(self.s.core.catalog.refresh)

    # ── what must hold ──

    @invariant()
    def watch(self):
        runtime, pool = self.runtime, self.s.core.pool.pool
        assert not runtime.faults
        inside = {*runtime.in_memory, *runtime.on_its_way}
        assert sum(SIZES[name] for name in inside) <= CAPS.ram_budget_bytes
        assert len(inside) <= CAPS.loaded_models_max
        assert len(runtime.speaking) <= pool.streams <= CAPS.streams_max
        assert len(set(runtime.speaking)) <= CAPS.parallel_models_max
        assert pool.queued <= CAPS.queued_max
        assert runtime.opened - runtime.closed == len(runtime.speaking)

    def quiesce(self):
        """Nobody asks any more: everything ends by itself, once, and nothing is left."""
        self.runtime.broken.clear()
        self.runtime_comes_back()
        for _ in range(QUIET_S):
            if all(session.closed.is_set() for session in self.asked.values()):
                break
            self.world.pass_time(1, STEP_S, self.watch)
        assert all(session.closed.is_set() for session in self.asked.values())
        self.world.pass_time(4, 1, self.watch)
        self.nothing_is_left()
        self.every_session_is_told_whole()

    def nothing_is_left(self):
        core, pool = self.s.core, self.s.core.pool.pool
        assert (pool.streams, pool.queued, core.sessions.live) == (0, 0, 0)
        assert self.runtime.speaking == []
        assert core.telemetry._runs == {}
        assert not any(figures.active_sessions for figures in core.telemetry.models.values())
        assert (core.telemetry.councils, core.mapper_counters.orphans) == ({}, 0)
        assert self.world.count_tasks() <= self.world.tasks + 1  # an alarm of the pool may still be set

    def every_session_is_told_whole(self):
        told = {session_id: [] for session_id in self.asked}
        for message in self.watcher.messages:
            for event in message["events"]:
                if event["session_id"] in told:
                    told[event["session_id"]].append(event)
        accepted = dict.fromkeys(MODELS, 0)
        for session_id, events in told.items():
            types = [event["type"] for event in events]
            assert types.count("experience.session_start") == types.count("experience.session_end") == 1
            assert (types[0], types[-1]) == ("experience.session_start", "experience.session_end")
            self.council_is_told_in_order(session_id, types, events)
            self.numbers_are_in_range(events)
            for model, count in self.tokens_are_kept(session_id, events).items():
                accepted[model] += count
        for model, count in accepted.items():  # what was given and not told, was given to who had just been stopped
            assert 0 <= self.runtime.given[model] - count <= len(self.asked)
            assert self.s.core.telemetry.models.get(model) is None or (
                self.s.core.telemetry.models[model].total_tokens == count
            )

    def council_is_told_in_order(self, session_id, types, events):
        council = [kind for kind in types if kind.startswith("council.")]
        if not council:
            return
        assert (types[1], council.count("council.formed")) == ("council.formed", 1)
        end = events[-1]["payload"]
        if session_id in self.stopped and end["reason"] == "aborted":
            assert "council.synthesis" not in council
        else:
            assert (types[-2], council.count("council.synthesis")) == ("council.synthesis", 1)
        formed = next(event["payload"] for event in events if event["type"] == "council.formed")
        ends = [e["payload"] for e in events if e["type"] in ("council.model_end", "council.model_error")]
        assert sorted(each["stream_id"] for each in ends) == sorted(each["stream_id"] for each in formed["members"])
        ended = {each["stream_id"]: each["tokens"] for each in ends}
        assert {each["stream_id"]: each["tokens"] for each in end["summary"]["members"]} == ended
        assert sum(ended.values()) == end["totals"]["tokens"]

    def numbers_are_in_range(self, events):
        eu = 0.0
        for event in events:
            if event["type"] != "energy.update":
                continue
            payload = event["payload"]
            eu += payload["eu_frame"]
            ensemble = payload["ensemble"]
            if ensemble is not None:
                energies = [s["energy"] for s in payload["streams"] if s["stream_id"] in ensemble["weights"]]
                assert min(energies) - 1e-9 <= ensemble["energy"] <= max(energies) + 1e-9
                assert ensemble["di"] is None or 0 <= ensemble["di"] <= 1
                assert (ensemble["di"] is None) == (ensemble["reason"] is not None)
        frames = sum(event["type"] == "energy.update" for event in events)
        assert abs(eu - events[-1]["payload"]["totals"]["eu"]) <= 0.0006 * frames  # each is told with three decimals

    def tokens_are_kept(self, session_id, events):
        """Every stream has told the first words of its model, in order and once; by model, how many."""
        texts, counts = {}, {}
        for event in events:
            if event["type"] == "experience.token":
                payload = event["payload"]
                said = texts.setdefault((payload["stream_id"], payload["model"]), [])
                assert [token["position"] for token in payload["tokens"]] == [
                    len(said) + number for number in range(len(payload["tokens"]))
                ]
                said += [token["text"] for token in payload["tokens"]]
        for (_, model), said in texts.items():
            assert said == answer(model)[: len(said)]
            counts[model] = counts.get(model, 0) + len(said)
        end = events[-1]["payload"]
        assert sum(counts.values()) == end["totals"]["tokens"]
        assert self.asked[session_id].report().tokens_generated == end["totals"]["tokens"]
        if session_id in self.calm:
            refused = end["error"] is not None and end["error"]["code"] in ("OVERLOADED", "FALLBACK_FAILED")
            assert refused or end["reason"] == "finished", end
        if end["reason"] == "finished" and len(texts) == 1 and "council" not in self.asked[session_id].asked.mode:
            ((_, model),) = texts
            assert counts[model] == WORDS[model]
        return counts


CouncilMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCouncils = CouncilMachine.TestCase
