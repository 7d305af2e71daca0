"""Warming models up in virtual time: one at a time of each, whoever waits for it, whoever leaves."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.lease import Grant
from actors.warm_up import UNASKED_S
from engine.domain.errors import (
    EngineError,
    InternalError,
    ModelLoadFailed,
    Overloaded,
    RuntimeUnavailable,
    SessionConflict,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.models import ModelInfo, ModelState
from tests.actors.pool_rig import GB, SizedRuntime, rig
from tests.fakes.runtime import Cut, End, Fail, Say, words

SIZES = {"a": 2 * GB, "b": 2 * GB, "c": 2 * GB}
TOKEN_S = 0.7
TALK = words(3, TOKEN_S)
SLOW = (Say("late", 30.0), End())
HUNG = (Say("never", 9999.0), End())


@attrs.define(eq=False)
class Watched(SizedRuntime):
    """`warmed` has (model, began, ended) of each warm-up, `answered` of each other request."""

    warmed: list[tuple[str, float, float]] = attrs.field(factory=list)

    @asynccontextmanager
    async def generate(self, request):
        began_s = trio.current_time()
        async with SizedRuntime.generate(self, request) as chunks:
            try:
                yield chunks
            finally:
                self.warmed.append((request.model, began_s, trio.current_time()))


@asynccontextmanager
async def pool(script=TALK, **more):
    async with rig(SIZES, make=Watched, **{"load_s": 1.0, **more}) as p:
        p.runtime.script = script
        yield p


def warm(p, model="a", **more):
    return p.handle.load(p.ref(model), p.teller(model), warm_up=True, **more)


def told(p):
    """What the pool itself told of models, so far."""
    with p.news.open() as news:
        changes = [news.receive_nowait() for _ in range(p.news.depth)]
    return [(change.model, change.state, change.reason) for change in changes]


def at_rest(p):
    entries = p.pool.memory.entries.values()
    return p.pool.streams == 0 and not any(entry.holders or entry.waiting or entry.warm_up for entry in entries)


async def test_a_load_may_wait_for_the_first_token(autojump_clock):
    async with pool() as p:
        grant = await warm(p)
        assert (grant.cold, grant.load_ms, grant.resident_bytes) == (True, 1000.0, 2 * GB)
        assert trio.current_time() == pytest.approx(1.0 + TOKEN_S)
        (asked,) = p.runtime.requests
        assert (asked.model, asked.parameters.max_tokens) == ("a", 1)
        assert (p.runtime.opened, p.runtime.closed) == (1, 1)
        await wait_all_tasks_blocked()
        assert at_rest(p)
        assert [state for _, state, _, _ in p.told] == [ModelState.LOADING, ModelState.READY]


async def test_two_callers_share_one_load_and_one_warm_up(autojump_clock):
    async with pool() as p:
        one = p.start(warm, p)
        await trio.sleep(0.5)
        two = p.start(warm, p)
        await trio.sleep(0.7)  # loaded, and warming up
        three = p.start(warm, p)
        await trio.sleep(TOKEN_S)
        assert [got[0].model for got in (one, two, three)] == ["a"] * 3
        assert (p.runtime.loads, p.runtime.warmed) == (["a"], [("a", 1.0, pytest.approx(1.0 + TOKEN_S))])


async def test_models_warm_up_side_by_side(autojump_clock):
    async with pool() as p:
        got = [p.start(warm, p, model) for model in "ab"]
        await trio.sleep(1.01 + TOKEN_S)
        assert all(got)
        assert sorted(model for model, _, _ in p.runtime.warmed) == ["a", "b"]


# ── callers who leave ──


@pytest.mark.parametrize("leave_s", [0.5, 1.0 + TOKEN_S / 2])
async def test_a_caller_who_leaves_ends_nothing_for_one_who_stays(autojump_clock, leave_s):
    async with pool() as p:
        stays = p.start(warm, p)
        with trio.move_on_after(leave_s):
            await warm(p)
        assert not stays
        await trio.sleep(2)
        assert stays[0].model == "a"
        assert len(p.runtime.warmed) == 1


@pytest.mark.parametrize("leave_s", [0.5, 1.0 + TOKEN_S / 2])
async def test_the_load_and_the_warm_up_go_on_without_anybody(autojump_clock, leave_s):
    async with pool() as p:
        with trio.move_on_after(leave_s) as left:
            await warm(p)
        assert left.cancelled_caught
        await wait_all_tasks_blocked()
        assert p.pool.streams == 0  # nobody is kept waiting by it
        await trio.sleep(2)
        assert p.runtime.warmed == [("a", 1.0, pytest.approx(1.0 + TOKEN_S))]
        assert (p.state("a"), at_rest(p)) == (ModelState.READY, True)


async def test_one_that_nobody_waits_for_any_more_ends_too(autojump_clock):
    async with pool(HUNG) as p:
        with trio.move_on_after(0.5):
            await warm(p)
        await trio.sleep(1 + UNASKED_S)
        assert (p.runtime.opened, p.runtime.closed) == (1, 1)
        assert at_rest(p)


async def test_one_that_nobody_waits_for_gives_way_to_an_unload(autojump_clock):
    async with pool(HUNG) as p:
        with trio.move_on_after(2):
            await warm(p)
        await wait_all_tasks_blocked()
        assert p.runtime.closed == 0
        assert await p.handle.unload(p.ref("a")) == 2 * GB
        assert p.runtime.closed == 1
        assert told(p) == []


async def test_one_that_somebody_waits_for_holds_its_model(autojump_clock):
    async with pool(SLOW, loaded=1) as p:
        waits = p.start(warm, p)
        await trio.sleep(2)
        with pytest.raises(SessionConflict):
            await p.handle.unload(p.ref("a"))
        other = p.start(p.use, "b")  # a would have to go for it
        await trio.sleep(20)
        assert (waits, other, p.runtime.unloads) == ([], [], [])
        await trio.sleep(20)
        assert (waits[0].model, other[0].model, p.runtime.unloads) == ("a", "b", ["a"])


async def test_one_that_was_given_up_does_not_keep_others_out(autojump_clock):
    async with pool(HUNG, loaded=1) as p:
        with trio.move_on_after(2):
            await warm(p)
        grant = await p.use("b")
        assert grant.evicted == ("a",)
        assert p.runtime.closed == 1


# ── requests of the same model ──


async def test_a_request_joins_the_load_and_leaves_the_warm_up_to_who_waits_for_it(autojump_clock):
    async with pool(SLOW) as p:
        waits = p.start(warm, p)
        await trio.sleep(0.5)
        grant = await p.use("a")
        assert (trio.current_time(), grant.cold, p.runtime.loads) == (1.0, True, ["a"])
        await trio.sleep(1)
        assert (await p.use("a")).cold is False
        assert (p.runtime.opened, p.runtime.closed) == (1, 0)
        await trio.sleep(30)
        assert waits[0].model == "a"


async def test_a_request_does_as_much_as_a_warm_up_that_nobody_waits_for(autojump_clock):
    async with pool(SLOW) as p:
        with trio.move_on_after(2):
            await warm(p)
        await p.use("a")
        await wait_all_tasks_blocked()
        assert (trio.current_time(), p.runtime.closed) == (2.0, 1)
        assert (told(p), p.kinds("a")) == ([], ["loaded"])


async def test_who_asked_and_left_wants_none_where_a_request_does_as_much(autojump_clock):
    async with pool() as p:
        p.start(p.use, "a", 5.0)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0.5):
            await warm(p)
        await trio.sleep(2)
        assert (p.state("a"), p.runtime.loads, p.runtime.requests) == (ModelState.READY, ["a"], [])


async def test_whoever_comes_when_one_has_given_way_gets_a_new_one(autojump_clock):
    async with pool(SLOW) as p:
        with trio.move_on_after(2):
            await warm(p)
        p.runtime.script = TALK
        uses = p.start(p.use, "a")
        await wait_all_tasks_blocked()
        waits = p.start(warm, p)
        await trio.sleep(2)
        assert [got[0].model for got in (uses, waits)] == ["a", "a"]
        assert (p.runtime.opened, p.runtime.closed) == (2, 2)


async def test_a_warm_up_takes_a_stream(autojump_clock):
    async with pool(streams=1) as p:
        waits = p.start(warm, p)
        await wait_all_tasks_blocked()
        await p.use("b")
        assert waits
        assert trio.current_time() == pytest.approx(1.0 + TOKEN_S + 1.0)


async def test_a_model_in_memory_is_warmed_up_as_often_as_is_asked(autojump_clock):
    """It may have been let go of without a word; then this brings it back."""
    async with pool() as p:
        await warm(p)
        assert (await warm(p)).load_ms == 0.0
        assert (len(p.runtime.loads), len(p.runtime.warmed)) == (1, 2)


async def test_who_does_not_ask_for_it_does_not_wait_for_it(autojump_clock):
    async with pool(SLOW) as p:
        p.start(warm, p)
        await p.handle.load(p.ref("a"), p.teller("a"), pin=True)
        assert trio.current_time() == 1.0
        assert p.pool.standing(p.ref("a")).pinned


async def test_a_model_that_does_not_answer_has_no_first_token(autojump_clock):
    async with pool() as p:
        ref = attrs.evolve(p.ref("a"), info=ModelInfo("a", "scripted", 2 * GB, capabilities=()))
        assert (await p.handle.load(ref, p.teller("a"), warm_up=True)).model == "a"
        assert (trio.current_time(), p.runtime.requests) == (1.0, [])


# ── what goes wrong ──


@pytest.mark.parametrize(
    ("script", "error", "words_"),
    [
        ((Fail(RuntimeUnavailable("it went away")),), RuntimeUnavailable, "it went away"),
        ((Fail(ZeroDivisionError("a secret")),), InternalError, "a was loaded, but could not be warmed up"),
        ((Cut(),), UpstreamTruncated, "a was loaded, but its first answer broke off"),
        (HUNG, UpstreamTimeout, "a was loaded, but gave no token within 20 s"),
    ],
)
async def test_a_failure_is_told_to_all_who_wait_and_to_those_who_watch(autojump_clock, script, error, words_, caplog):
    async with pool(script) as p:
        p.pool.first_token_s = 20.0
        one, two = p.start(warm, p), p.start(warm, p)
        await trio.sleep(30)
        assert [(type(got[0]), got[0].message) for got in (one, two)] == [(error, words_)] * 2
        assert one[0] is not two[0]  # each adds to it what is his own
        assert told(p) == [("a", ModelState.READY, words_)]  # it is in memory all the same
        assert p.kinds("a") == ["loaded", "not_warmed_up"]
        assert (p.runtime.opened, p.runtime.closed, at_rest(p)) == (1, 1, True)
        assert "secret" not in "".join(record.getMessage() for record in caplog.records)
        p.runtime.script = TALK
        assert (await warm(p)).cold is False


async def test_a_load_that_fails_is_told_to_all_and_nothing_is_warmed_up(autojump_clock):
    async with pool() as p:
        p.runtime.broken.add("a")
        one, two = p.start(warm, p), p.start(warm, p)
        await trio.sleep(2)
        assert [type(got[0]) for got in (one, two)] == [ModelLoadFailed] * 2
        assert (p.runtime.requests, p.state("a")) == ([], ModelState.FAILED)


async def test_those_who_join_do_not_prolong_it(autojump_clock):
    async with pool(HUNG) as p:
        p.pool.first_token_s = 20.0
        got = [p.start(warm, p)]
        await trio.sleep(16)
        got.append(p.start(warm, p))
        await trio.sleep(4.9)
        assert got == [[], []]
        await trio.sleep(0.2)
        assert [type(errors[0]) for errors in got] == [UpstreamTimeout] * 2


async def test_one_that_nobody_had_asked_for_lasts_longer_when_somebody_waits_for_it(autojump_clock):
    async with pool(SLOW) as p:
        await p.handle.prefetch(p.ref("a"))
        await trio.sleep(5)
        assert (await warm(p)).cold is False
        assert p.runtime.warmed == [("a", 1.0, 31.0)]


async def test_whoever_waits_for_one_when_the_pool_stops_is_told(autojump_clock):
    async with pool(HUNG) as p:
        waits = p.start(warm, p)
        await trio.sleep(2)
        p.pool._nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert isinstance(waits[0], Overloaded)
        assert waits[0].message == "the engine is stopping"
        assert (p.runtime.opened, p.runtime.closed) == (1, 1)


# ── any order ──

moments = st.integers(0, 40).map(lambda tenths: tenths / 10)
comers = st.lists(
    st.tuples(
        moments,
        st.sampled_from(["warm", "warm", "load", "use", "prefetch", "unload"]),
        st.sampled_from("ab"),
        st.none() | moments,  # so long they stay; none: until they are answered
    ),
    min_size=1,
    max_size=12,
)


async def _come(p, kind, model, stay_s, asked):
    """Notes (model, when it asked, when it was answered, with what) of each warm-up that was answered."""
    calls = {
        "warm": lambda: warm(p, model),
        "load": lambda: p.handle.load(p.ref(model), p.teller(model)),
        "use": lambda: p.use(model, 0.3),
        "prefetch": lambda: p.handle.prefetch(p.ref(model)),
        "unload": lambda: p.handle.unload(p.ref(model)),
    }
    began_s, answered = trio.current_time(), False
    with trio.move_on_after(float("inf") if stay_s is None else stay_s):
        try:
            got = await calls[kind]()
        except EngineError as error:
            got = error
        if kind == "warm":
            asked.append((model, began_s, trio.current_time(), got))
        answered = True
    assert answered or stay_s is not None


@given(comers, st.integers(1, 3), st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_whoever_comes_and_goes_there_is_one_at_a_time_and_nobody_is_told_of_a_token_that_was_not(
    comers_, streams, loaded
):
    async def main():
        async with pool(streams=streams, loaded=loaded, queued=16) as p:
            answers = []

            async def later(at_s, *rest):
                await trio.sleep(at_s)
                await _come(p, *rest, answers)

            async with trio.open_nursery() as nursery:
                for comer in comers_:
                    nursery.start_soon(later, *comer)
            await trio.sleep(UNASKED_S + 5)
            assert at_rest(p)
            assert (p.runtime.opened, p.pool.queued) == (p.runtime.closed, 0)
            assert not p.runtime.faults
            by_model = {model: sorted(w[1:] for w in p.runtime.warmed if w[0] == model) for model in "ab"}
            for spans in by_model.values():
                assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
            for model, asked_s, answered_s, got in answers:
                if isinstance(got, Overloaded):
                    continue  # more than the queue holds
                assert isinstance(got, Grant)
                tokens = [end for begin, end in by_model[model] if end - begin >= TOKEN_S - 1e-9]
                assert any(asked_s - 1e-9 <= end <= answered_s + 1e-9 for end in tokens)

    trio.run(main, clock=MockClock(autojump_threshold=0))
