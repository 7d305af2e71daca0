"""Councils where things meet: cuts and live words, waves and the pool, stops at any moment, what is kept."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio
import trio.lowlevel

from actors import council as council_actor
from actors.reply_line import ITEMS_MAX, Begun, Ended, ReplyLine
from actors.session import SessionRequest
from actors.transcript import CANDIDATES_MAX, Transcript
from engine.domain.errors import ModelLoadFailed, Overloaded, TierLimitExceeded, UpstreamTruncated
from engine.domain.generation import (
    Chunk,
    EndReason,
    GenerationEnd,
    GenerationRequest,
    Origin,
    ResumeRules,
    TokenLogprob,
    TopEntry,
)
from engine.domain.synthesis import choose
from engine.settings import PoolSettings, Settings
from tests.actors.test_council import AGREE, council, finished, payloads, runtime, said, start
from tests.fakes.runtime import Cut, End, Fail, Say, ScriptedRuntime, words
from tests.fakes.slice import running_slice

NO_PREFETCH = PoolSettings(prefetch="none")


async def taken(line):
    """The text a caller gets, the first error or end, and when it came."""
    text = ""
    while not isinstance(item := await line.next(), Ended):
        text += item.text if isinstance(item, Chunk) else ""
    return text, item


def judged(**more):
    wise = {"members": ["a", "b"], "method": "judge", "judge": "d", **more}
    return Settings(councils={"wise": wise}, pool=NO_PREFETCH)


def in_memory_at_once(s, models_max):
    pool = s.core.pool.pool
    pool.caps = pool.memory.caps = attrs.evolve(pool.caps, loaded_models_max=models_max)


# ── words that go out as they come ──


async def test_whose_words_are_sent_on_is_not_cut_by_a_quorum(autojump_clock):
    scripts = {"a": words(40), "b": (Say("short", 0.06), End())}
    settings = council(members=["a", "b"], method="first", quorum=1, grace_s=0.5)
    async with running_slice(runtime(**scripts), settings) as s:
        client, line = s.client(), ReplyLine()
        session = start(s, reply=line)
        text, ended = await taken(line)
        await finished(s, session)
        assert (len(text.split()), ended.reason) == (40, EndReason.FINISHED)
        ends = {each["model"]: (each["reason"], each["cut"]) for each in payloads(client, "council.model_end")}
        assert ends == {"a": ("finished", None), "b": ("finished", None)}


async def test_who_begins_to_speak_within_its_grace_goes_on_to_its_end(autojump_clock):
    scripts = {"a": (Say("late ", 1.0), *words(39, 0.1)), "b": (End(after_s=0.1),)}
    settings = council(members=["a", "b"], method="first", quorum=1, grace_s=2)
    async with running_slice(runtime(**scripts), settings) as s:
        line = ReplyLine()
        start(s, reply=line)
        text, ended = await taken(line)
        assert (len(text.split()), ended.reason) == (40, EndReason.FINISHED)


async def test_a_slow_caller_holds_up_only_the_one_it_listens_to(autojump_clock):
    scripts = {"a": words(2 * ITEMS_MAX, 0.001), "b": words(50, 0.1), "c": words(50, 0.1)}
    settings = council(method="first", grace_s=100)
    async with running_slice(runtime(**scripts), settings) as s:
        client, line = s.client(), ReplyLine()
        session = start(s, reply=line)
        await trio.sleep(20)
        ends = {each["model"]: each["duration_ms"] for each in payloads(client, "council.model_end")}
        assert ends == {"b": pytest.approx(5000, abs=1), "c": pytest.approx(5000, abs=1)}
        text, _ = await taken(line)
        await finished(s, session)
        assert text == "".join(f"w{i} " for i in range(2 * ITEMS_MAX))


async def test_a_last_token_that_comes_with_the_end_is_the_callers_too(autojump_clock):
    end = GenerationEnd(EndReason.LENGTH)
    for live in (True, False):
        line = ReplyLine()
        transcript = Transcript(claim=lambda line=line, live=live: line if live else None)
        for chunk in (Chunk("all ", 1), Chunk("of it", 2, end=end, raw=b"{}")):
            assert transcript.try_put(chunk)
        if not live:
            await transcript.hand_on(line)
        line.end(EndReason.LENGTH, end, None)
        text, _ = await taken(line)
        assert text == transcript.text == "all of it"


# ── the pool ──


async def test_the_next_wave_need_not_wait_until_the_last_one_has_cooled(autojump_clock):
    settings = attrs.evolve(council(), pool=NO_PREFETCH)
    async with running_slice(runtime(words(4)), settings) as s:
        in_memory_at_once(s, 2)
        client = s.client()
        began_s = trio.current_time()
        session = start(s)
        await session.closed.wait()
        assert trio.current_time() - began_s < 1
        await trio.sleep(0.1)
        (formed,) = payloads(client, "council.formed")
        assert (formed["plan"], len(formed["waves"])) == ("waves", 2)
        assert "at once" in formed["reason"]
        assert {each["model"] for each in payloads(client, "council.model_end")} == set("abc")


async def test_a_judge_need_not_wait_until_the_members_have_cooled(autojump_clock):
    async with running_slice(runtime(words(4), d=(*said("1"), End())), judged()) as s:
        in_memory_at_once(s, 2)
        client = s.client()
        began_s = trio.current_time()
        session = start(s)
        await session.closed.wait()
        assert trio.current_time() - began_s < 1
        await trio.sleep(0.1)
        assert payloads(client, "council.synthesis")[0]["method"] == "judge"


async def test_a_wave_that_the_pool_refuses_leaves_the_answers_there_are(autojump_clock):
    settings = attrs.evolve(council(), pool=NO_PREFETCH)
    async with running_slice(runtime(words(4)), settings) as s:
        in_memory_at_once(s, 2)
        client, line = s.client(), ReplyLine()
        session = start(s, reply=line)
        await trio.sleep(0.1)
        pool = s.core.pool.pool
        pool.caps = attrs.evolve(pool.caps, queued_max=0)
        text, ended = await taken(line)
        await finished(s, session)
        assert (text, ended.reason) == ("w0 w1 w2 w3 ", EndReason.FINISHED)
        (refused,) = payloads(client, "council.model_error")
        assert (refused["model"], refused["error"]["code"]) == ("c", "OVERLOADED")


async def test_a_reply_does_not_begin_when_nobody_can_be_asked(autojump_clock):
    failing = partial(ScriptedRuntime, load_error=ModelLoadFailed("no"))
    async with running_slice(failing, council()) as s:
        line = ReplyLine()
        start(s, reply=line)
        first = await line.next()
        assert isinstance(first, Ended)
        assert first.error.code == "MODEL_LOAD_FAILED"


async def test_a_whole_council_refused_by_the_pool_says_so_with_the_pools_error(autojump_clock):
    async with running_slice(runtime(), council()) as s:
        pool = s.core.pool.pool
        pool.caps = attrs.evolve(pool.caps, queued_max=0)
        client, line = s.client(), ReplyLine()
        session = start(s, reply=line)
        _, ended = await taken(line)
        assert isinstance(ended.error, Overloaded)
        await finished(s, session)
        assert payloads(client, "council.synthesis")[0]["model"] is None


# ── ended early ──


async def test_who_ended_with_other_words_is_heard_before_all_are_said_to_agree(autojump_clock):
    longer = (*said(AGREE), *words(10))
    other = (*said("Nothing at all is known about this", 0.001), End())
    async with running_slice(runtime(longer, a=other), council(stop_on_consensus=True)) as s:
        client = s.client()
        await finished(s, start(s))
        assert [each["cut"] for each in payloads(client, "council.model_end")] == [None] * 3


async def test_what_is_settled_ends_a_grace(autojump_clock):
    same = said("the same", 0.05)
    scripts = {name: (*same, End(after_s=wait_s)) for name, wait_s in zip("abc", (0, 0.1, 0.2), strict=True)}
    settings = council(members=list("abcd"), quorum=1, grace_s=100, stop_on_consensus=True)
    async with running_slice(runtime(words(1000), **scripts), settings) as s:
        client = s.client()
        await finished(s, start(s))
        ends = {each["model"]: each for each in payloads(client, "council.model_end")}
        assert "most" in ends["d"]["cut"]
        assert ends["d"]["duration_ms"] == pytest.approx(300, abs=1)  # with the third of four, not with the second


async def test_what_goes_wrong_while_a_member_is_cut_is_not_its_failure(autojump_clock):
    class Grumbling(ScriptedRuntime):
        @asynccontextmanager
        async def generate(self, request):
            async with super().generate(request) as chunks:
                try:
                    yield chunks
                except trio.Cancelled as cancelled:
                    raise UpstreamTruncated("closed early") from cancelled

    settings = council(quorum=1, grace_s=0.1)
    async with running_slice(partial(Grumbling, script=words(1000), by_model={"a": words(2)}), settings) as s:
        client = s.client()
        await finished(s, start(s))
        assert payloads(client, "council.model_error") == []
        ends = {each["model"]: (each["reason"], bool(each["cut"])) for each in payloads(client, "council.model_end")}
        assert ends == {"a": ("finished", False), "b": ("aborted", True), "c": ("aborted", True)}


# ── the judge ──


async def test_a_judge_that_breaks_costs_nobody_the_answer(autojump_clock, caplog):
    async with running_slice(runtime(d=(Fail(ValueError("broken")),)), judged()) as s:
        client = s.client()
        await finished(s, start(s))
        (end,) = payloads(client, "experience.session_end")
        assert (end["reason"], end["error"]) == ("finished", None)
        assert payloads(client, "council.synthesis")[0]["method"] == "consensus"


async def test_a_member_may_be_the_judge(autojump_clock):
    async with running_slice(runtime(a=(*said("2"), End())), judged(judge="a")) as s:
        client = s.client()
        await finished(s, start(s))
        (begun,) = payloads(client, "experience.session_start")
        assert begun["models"] == ["a", "b"]
        assert len({ref["stream_id"] for ref in begun["streams"]}) == 3
        assert payloads(client, "council.synthesis")[0]["model"] == "b"


# ── stops ──


@pytest.mark.parametrize("load_s", [0, 0.3])
async def test_a_stop_at_any_moment_leaves_nothing_behind(autojump_clock, load_s):
    make = partial(runtime(words(4), d=words(6)), load_s=0) if not load_s else None
    make = make or (lambda clock: ScriptedRuntime(clock, words(4), models=tuple("abcd"), load_s=load_s))
    async with running_slice(make, judged()) as s:
        in_memory_at_once(s, 2)
        client, sessions = s.client(), []
        for step in range(60):
            session = start(s)
            sessions.append(session.id)
            if step % 2:
                await trio.sleep(step * 0.02)
            else:
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
            report = await s.core.sessions.stop(session.id)
            assert report.state == "ended"
        await trio.sleep(1)
        assert (s.core.pool.pool.streams, s.core.pool.pool.queued) == (0, 0)
        assert s.runtime.opened == s.runtime.closed
        ends = [event["session_id"] for event in client.events("experience.session_end")]
        assert ends == sessions
        for session_id in sessions:
            told = [event["type"] for event in client.events() if event["session_id"] == session_id]
            assert (told[0], told[-1]) == ("experience.session_start", "experience.session_end")


async def test_a_stop_does_not_wait_for_the_comparing_of_answers(autojump_clock, monkeypatch):
    lines = {name: (Say(" ".join(f"{name}{i}" for i in range(400)), 0.1), End()) for name in "abcd"}
    begun, go_on = trio.Event(), threading.Event()

    def slow(*args, **kwargs):
        trio.from_thread.run_sync(begun.set)
        assert go_on.wait(20)
        return choose(*args, **kwargs)

    monkeypatch.setattr(council_actor, "choose", slow)
    async with running_slice(runtime(**lines), council(members=list("abcd"))) as s:
        session = start(s)
        try:
            await begun.wait()
            await s.core.sessions.stop(session.id)
            assert session.reason is EndReason.ABORTED
        finally:
            go_on.set()


# ── what is kept ──


async def test_nothing_of_the_judge_and_of_broken_answers_is_kept(autojump_clock):
    rules = ResumeRules(pause_s=0)
    async with running_slice(runtime(b=(*words(2)[:-1], Cut())), judged(judge="c")) as s:
        model = s.core.catalog.find("council/wise")
        request = GenerationRequest(model.info.name, prompt="what is a river?", resume=rules)
        session = s.core.sessions.start(SessionRequest(model, request, Origin.API))
        await finished(s, session)
        alone = s.core.sessions.start(SessionRequest(s.model("a"), attrs.evolve(request, model="a"), Origin.API))
        await finished(s, alone)
        _, transcript = session._work.judge
        assert (transcript.text, transcript.chunks) == ("", [])
        for use in (*session._work._uses, alone._work):
            assert use.stream._resumption is None


async def test_only_what_may_be_handed_on_is_kept_in_chunks(autojump_clock):
    async with running_slice(runtime(words(50)), council()) as s:
        kept = start(s, reply=ReplyLine())
        unheard = start(s)
        await trio.sleep(1)
        chunks = [len(member.transcript.chunks) for member in (*kept._work.members, *unheard._work.members)]
        assert min(chunks[:3]) > 0
        assert chunks[3:] == [0, 0, 0]
        assert all(member.transcript.text for member in unheard._work.members)


def test_log_probabilities_are_kept_up_to_a_bound_and_text_beyond_it():
    top = tuple(TopEntry("x", -1.0) for _ in range(1023))
    chunk = Chunk("x", 1, logprobs=(TokenLogprob("x", -1.0, top),), raw=b"a record")
    transcript, count = Transcript(), CANDIDATES_MAX // 1024 + 10
    for _ in range(count):
        transcript.try_put(chunk)
    assert transcript.text == "x" * count
    assert [bool(kept.logprobs) for kept in transcript.chunks] == [True] * (count - 10) + [False] * 10
    assert transcript.unlisted == 10
    assert not any(kept.raw for kept in transcript.chunks)


# ── who may sit in one ──


async def test_refuse_refuses_also_when_only_memory_is_short(autojump_clock):
    async with running_slice(runtime()) as s:
        councils = s.core.catalog.councils
        councils.gates = attrs.evolve(councils.gates, smaller=2, memory_is_short=lambda: True)
        with pytest.raises(TierLimitExceeded):
            await s.core.pulls.council(["a", "b", "c"], "council", "refuse", None, None)
        fewer = await s.core.pulls.council(["a", "b", "c"], "council", "truncate", None, None)
        assert ([member.name for member in fewer.seats.members], fewer.seats.dropped) == (["a", "b"], ("c",))
        assert "memory" in fewer.seats.reason


async def test_models_outside_this_machine_make_no_default_council(autojump_clock):
    async with running_slice(partial(ScriptedRuntime, kind="satellite")) as s:
        assert s.core.catalog.councils.listed() == ()


async def test_a_quorum_is_never_larger_than_the_council(autojump_clock):
    settings = council(members=list("abcdef"), quorum=6, grace_s=0)
    async with running_slice(runtime(words(3)), settings) as s:  # mid: four of them
        client = s.client()
        await finished(s, start(s))
        assert [each["cut"] for each in payloads(client, "council.model_end")] == [None] * 4


async def test_the_pace_of_a_council_is_that_of_all_its_members(autojump_clock):
    scripts = {"a": words(100, 0.01), "b": (Say("late", 1.0, -0.0001), End())}
    async with running_slice(runtime(**scripts), council(members=["a", "b"], method="best_certainty")) as s:
        client = s.client()
        await finished(s, start(s))
        (end,) = payloads(client, "experience.session_end")
        assert payloads(client, "council.synthesis")[0]["model"] == "b"
        assert (end["totals"]["tokens"], end["totals"]["eval_count"]) == (101, None)
        assert end["summary"]["tps_average"] == pytest.approx(100 / 0.99, rel=0.01)


async def test_who_broke_off_while_it_was_sent_on_is_an_error(autojump_clock):
    async with running_slice(runtime(words(20), a=(Say("half ", 0.01), Cut())), council(method="first")) as s:
        line = ReplyLine()
        start(s, reply=line)
        assert isinstance(await line.next(), Begun)
        text, ended = await taken(line)
        assert text == "half "
        assert isinstance(ended.error, UpstreamTruncated)


async def test_what_a_reply_is_told_to_have_waited_is_the_load(autojump_clock):
    async with running_slice(partial(ScriptedRuntime, load_s=2.0), attrs.evolve(council(), pool=NO_PREFETCH)) as s:
        line = ReplyLine()
        session = start(s, reply=line)
        assert isinstance(await line.next(), Begun)
        assert session.waited_ms == pytest.approx(2000)


async def test_the_default_council_has_no_more_than_are_allowed_and_none_too_large(autojump_clock):
    async with running_slice(runtime()) as s:
        catalog = s.core.catalog
        (default,) = catalog.councils.listed()
        assert (len(default.seats.members), default.seats.dropped, default.seats.reason) == (4, (), None)
        first, *rest = catalog.models
        huge = attrs.evolve(first.info, size_bytes=catalog.councils.gates.limits.max_model_size_bytes + 1)
        catalog.models = (attrs.evolve(first, info=huge), *rest)
        (default,) = catalog.councils.listed()
        assert [member.name for member in default.seats.members] == ["b", "c", "d", "e"]


@pytest.mark.parametrize("grace_s", [0, 0.01, 0.0333])
async def test_every_token_of_who_is_cut_is_told_once_and_none_after_its_end(autojump_clock, grace_s):
    flood = words(3000, 0.0001)
    settings = council(quorum=1, grace_s=grace_s)
    async with running_slice(runtime(flood, a=words(2, 0.05)), settings) as s:
        client = s.client()
        session = start(s)
        await finished(s, session)
        told, ends = dict.fromkeys("abc", 0), {}
        for event in client.events():
            payload = event["payload"]
            if event["type"] == "experience.token":
                assert payload["model"] not in ends
                positions = [token["position"] for token in payload["tokens"]]
                assert positions == list(range(told[payload["model"]], told[payload["model"]] + len(positions)))
                told[payload["model"]] += len(positions)
            elif event["type"] == "council.model_end":
                ends[payload["model"]] = payload["tokens"]
        assert ends == told
        assert 0 < told["b"] < 3000
        assert payloads(client, "experience.session_end")[0]["totals"]["tokens"] == sum(told.values())
