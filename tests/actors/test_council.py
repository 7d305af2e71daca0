"""Councils in virtual time: who speaks, who leaves, and whose words are the answer."""

from __future__ import annotations

import itertools
from functools import partial

import attrs
import pytest
import trio

from actors.reply_line import Begun, Ended, ReplyLine
from actors.session import SessionRequest
from engine.domain.errors import InvalidRequest, ModelNotFound, UpstreamTimeout
from engine.domain.generation import Chunk, EndReason, GenerationRequest, Origin
from engine.settings import PoolSettings, Settings
from tests.fakes.runtime import Cut, End, Fail, Say, ScriptedRuntime, words
from tests.fakes.slice import running_slice

AGREE = "The river flows into the sea, and the sea gives its water back to the clouds again."


def said(text, after_s=0.05, logprob=-0.5):
    return tuple(Say(f"{word} ", after_s, logprob) for word in text.split())


def scripted(clock, default=None, **scripts):
    return ScriptedRuntime(clock, default or words(5), models=("a", "b", "c", "d", "e", "f"), by_model=scripts)


def runtime(default=None, **scripts):
    return partial(scripted, default=default, **scripts)


def council(**asked):
    wise = {"members": ["a", "b", "c"], **asked}
    return Settings(councils={"wise": wise}, pool=PoolSettings(prefetch="none"))  # nobody speaks but who is asked


def start(s, name="council/wise", reply=None):
    model = s.core.catalog.find(name)
    request = GenerationRequest(model.info.name, prompt="what is a river?")
    return s.core.sessions.start(SessionRequest(model, request, Origin.API, reply=reply))


async def finished(s, session):
    """Its events, in order, once all are told."""
    await session.closed.wait()
    await trio.sleep(0.1)


def payloads(client, type_):
    return [event["payload"] for event in client.events(type_)]


async def test_three_speak_and_everything_is_told_in_order(autojump_clock):
    async with running_slice(runtime(b=words(9), c=words(3)), council()) as s:
        client = s.client()
        session = start(s)
        await finished(s, session)
        events = [event for event in client.events() if event["session_id"] == session.id]
        types = [event["type"] for event in events]
        assert types[0] == "experience.session_start"
        assert types[1] == "council.formed"
        assert types[-2:] == ["council.synthesis", "experience.session_end"]
        assert not {"council.synthesis", "council.formed"} & set(types[2:-2])
        formed, end = payloads(client, "council.formed")[0], payloads(client, "experience.session_end")[0]
        assert (formed["models"], formed["plan"], formed["method"]) == (["a", "b", "c"], "together", "consensus")
        assert (end["reason"], end["totals"]["tokens"]) == ("finished", 17)
        starts = {each["model"]: each["cold"] for each in payloads(client, "council.model_start")}
        assert starts == {"a": True, "b": True, "c": True}
        ends = {each["model"]: (each["reason"], each["tokens"]) for each in payloads(client, "council.model_end")}
        assert ends == {"a": ("finished", 5), "b": ("finished", 9), "c": ("finished", 3)}
        assert session.asked.mode == "council"
        assert (s.core.pool.pool.streams, s.runtime.closed) == (0, 3)


async def test_each_members_text_is_complete_and_its_own(autojump_clock):
    scripts = {name: (*said(f"{name} says something of its own"), End()) for name in "abc"}
    async with running_slice(runtime(**scripts), council()) as s:
        client = s.client()
        session = start(s)
        await finished(s, session)
        texts = {}
        for event in client.events("experience.token"):
            payload = event["payload"]
            texts[payload["model"]] = texts.get(payload["model"], "") + "".join(t["text"] for t in payload["tokens"])
        assert texts == {name: f"{name} says something of its own " for name in "abc"}


async def test_a_member_that_fails_leaves_and_the_rest_goes_on(autojump_clock):
    broken = (*words(2)[:-1], Fail(UpstreamTimeout("gone")))
    async with running_slice(runtime(b=broken), council()) as s:
        client = s.client()
        await finished(s, start(s))
        (error,) = payloads(client, "council.model_error")
        assert (error["model"], error["reason"], error["error"]["code"]) == ("b", "error", "UPSTREAM_TIMEOUT")
        (end,) = payloads(client, "experience.session_end")
        assert (end["reason"], end["error"]) == ("finished", None)
        (synthesis,) = payloads(client, "council.synthesis")
        assert synthesis["model"] in ("a", "c")
        after = payloads(client, "energy.update")[-3]["ensemble"]
        assert after is None or not any(stream_id.endswith(":1") for stream_id in after["weights"])


async def test_one_left_goes_on_alone_with_its_own_energy(autojump_clock):
    async with running_slice(runtime(words(1), a=words(40)), council()) as s:
        client = s.client()
        await finished(s, start(s))
        update = payloads(client, "energy.update")[-10]
        ensemble = update["ensemble"]
        assert (ensemble["di"], ensemble["di_method"], ensemble["reason"]) == (None, "none", "one_member")
        assert ensemble["energy"] == pytest.approx(update["streams"][0]["energy"])


async def test_all_failed_is_an_error_with_the_reasons(autojump_clock):
    async with running_slice(runtime((Fail(UpstreamTimeout("gone")),), c=(Cut(),)), council()) as s:
        client = s.client()
        await finished(s, start(s))
        (end,) = payloads(client, "experience.session_end")
        assert (end["reason"], end["error"]["code"]) == ("error", "FALLBACK_FAILED")
        assert end["error"]["details"]["members"] == {
            "a": "UPSTREAM_TIMEOUT",
            "b": "UPSTREAM_TIMEOUT",
            "c": "UPSTREAM_TRUNCATED",
        }
        assert payloads(client, "council.synthesis")[0]["model"] is None


async def test_stop_stops_all_members_at_once(autojump_clock):
    async with running_slice(runtime(words(1000)), council()) as s:
        client = s.client()
        session = start(s)
        await trio.sleep(1)
        report = await s.core.sessions.stop(session.id)
        assert (report.reason, report.stop_latency_ms) == (EndReason.ABORTED, 0.0)
        assert (s.runtime.opened, s.runtime.closed) == (3, 3)
        await trio.sleep(0.1)
        assert s.core.pool.pool.streams == 0
        assert payloads(client, "experience.session_end")[0]["reason"] == "aborted"
        assert payloads(client, "council.synthesis") == []


async def test_stragglers_get_their_grace_once_a_quorum_has_ended(autojump_clock):
    async with running_slice(runtime(words(4), c=words(1000)), council(quorum=2, grace_s=3)) as s:
        client = s.client()
        began = trio.current_time()
        session = start(s)
        await session.closed.wait()
        assert trio.current_time() - began == pytest.approx(0.2 + 3, abs=0.01)
        await trio.sleep(0.1)
        cut = [each for each in payloads(client, "council.model_end") if each["cut"]]
        assert [(each["model"], each["reason"]) for each in cut] == [("c", "aborted")]
        assert payloads(client, "council.synthesis")[0]["model"] in ("a", "b")


async def test_a_straggler_that_ends_in_its_grace_counts(autojump_clock):
    async with running_slice(runtime(words(4), c=words(10)), council(quorum=2, grace_s=3)) as s:
        client = s.client()
        await finished(s, start(s))
        ends = payloads(client, "council.model_end")
        assert sorted((each["model"], each["cut"]) for each in ends) == [("a", None), ("b", None), ("c", None)]


@pytest.mark.parametrize(("method", "chosen"), [("best_certainty", "c"), ("consensus", "b"), ("first", "a")])
async def test_each_method_chooses_in_its_way(autojump_clock, method, chosen):
    scripts = {
        "a": (*said("Some water runs into the wide sea", 0.01, -1.0), End()),
        "b": (*said("The river flows into the wide sea", 0.05, -1.0), End()),
        "c": (*said("The river flows into the wide lake", 0.06, -0.001), End()),
    }
    async with running_slice(runtime(**scripts), council(method=method)) as s:
        client = s.client()
        line = ReplyLine()
        session = start(s, reply=line)
        text = ""
        assert isinstance(await line.next(), Begun)
        while not isinstance(item := await line.next(), Ended):
            text += item.text
        await finished(s, session)
        (synthesis,) = payloads(client, "council.synthesis")
        assert (synthesis["model"], synthesis["method"]) == (chosen, method)
        assert text == "".join(step.text for step in scripts[chosen] if isinstance(step, Say))
        assert item.end.report.chosen == chosen
        assert {each.model for each in item.end.report.members} == {"a", "b", "c"}


async def test_the_first_to_speak_is_sent_on_as_it_comes(autojump_clock):
    async with running_slice(runtime(words(20), b=words(20, 0.04)), council(method="first", grace_s=0)) as s:
        line = ReplyLine()
        began = trio.current_time()
        session = start(s, reply=line)
        assert isinstance(await line.next(), Begun)
        first = await line.next()
        assert isinstance(first, Chunk)
        assert trio.current_time() - began == pytest.approx(0.04)
        while not isinstance(item := await line.next(), Ended):
            pass
        assert trio.current_time() - began == pytest.approx(0.8, abs=0.02)
        await session.closed.wait()
        assert item.reason is EndReason.FINISHED


async def test_members_that_say_the_same_are_one(autojump_clock):
    longer = (*said(AGREE), *words(100))
    settings = council(stop_on_consensus=True)
    async with running_slice(runtime(longer), settings) as s:
        client = s.client()
        await finished(s, start(s))
        ends = payloads(client, "council.model_end")
        assert sorted(bool(each["cut"]) for each in ends) == [False, True, True]
        (end,) = payloads(client, "experience.session_end")
        assert end["reason"] == "finished"


async def test_a_judge_chooses_and_is_no_member(autojump_clock):
    judge = (*said("2"), End())
    scripts = {"a": (*said("one answer"), End()), "b": (*said("another answer"), End()), "d": judge}
    settings = Settings(councils={"wise": {"members": ["a", "b"], "method": "judge", "judge": "d"}})
    async with running_slice(runtime(**scripts), settings) as s:
        client = s.client()
        await finished(s, start(s))
        (synthesis,) = payloads(client, "council.synthesis")
        assert (synthesis["model"], synthesis["method"], synthesis["confidence"]) == ("b", "judge", None)
        assert payloads(client, "council.formed")[0]["models"] == ["a", "b"]
        assert [r.model for r in s.runtime.requests][-1] == "d"
        assert "one answer" in s.runtime.requests[-1].prompt


async def test_a_judge_that_fails_is_told_and_the_wording_decides(autojump_clock):
    settings = Settings(councils={"wise": {"members": ["a", "b"], "method": "judge", "judge": "d"}})
    async with running_slice(runtime(d=(Fail(UpstreamTimeout("gone")),)), settings) as s:
        client = s.client()
        await finished(s, start(s))
        (synthesis,) = payloads(client, "council.synthesis")
        assert synthesis["method"] != "judge"
        assert synthesis["model"] == "a"


async def test_more_than_the_tier_allows_are_dropped_and_named(autojump_clock):
    async with running_slice(runtime()) as s:  # mid: four at once
        client = s.client()
        session = start(s, "council:a+b+c+d+e+f")
        assert session.asked.models == ("a", "b", "c", "d")
        await finished(s, session)
        (begun,) = payloads(client, "experience.session_start")
        assert (begun["mode"], begun["models"], begun["dropped_models"]) == ("council", list("abcd"), ["e", "f"])
        (formed,) = payloads(client, "council.formed")
        assert formed["dropped_models"] == ["e", "f"]
        assert "mid" in formed["reason"]


async def test_without_configuration_there_is_a_council_of_the_first_models(autojump_clock):
    async with running_slice(runtime()) as s:
        (default,) = s.core.catalog.councils.listed()
        assert (default.name, [model.name for model in default.seats.members]) == ("council/default", list("abcd"))


async def test_a_council_as_a_runtime_gives_the_chosen_answer(autojump_clock):
    async with running_slice(runtime(words(4)), council()) as s:
        model = s.core.catalog.find("council/wise")
        assert (await model.runtime.probe()).up
        asked = GenerationRequest(model.info.name, prompt="hello")
        async with model.runtime.generate(asked) as chunks:
            text, end = "", None
            async for chunk in chunks:
                text, end = text + chunk.text, chunk.end
        assert (text, end.reason) == ("w0 w1 w2 w3 ", EndReason.FINISHED)
        for move in (model.runtime.load, model.runtime.unload):
            with pytest.raises(InvalidRequest, match="members"):
                await move(model.info.name)


async def test_leaving_a_council_as_a_runtime_stops_it(autojump_clock):
    async with running_slice(runtime(words(1000)), council()) as s:
        model = s.core.catalog.find("council/wise")
        async with model.runtime.generate(GenerationRequest(model.info.name, prompt="hello")):
            await trio.sleep(1)
            assert s.core.pool.pool.streams == 3
        await trio.sleep(0.1)
        assert (s.core.pool.pool.streams, s.runtime.closed, s.core.sessions.running()) == (0, 3, [])


@pytest.mark.parametrize("name", ["council/none", "council:a+zzz"])
async def test_what_is_not_there_is_said(autojump_clock, name):
    async with running_slice(runtime()) as s:
        with pytest.raises(ModelNotFound):
            s.core.catalog.find(name)


async def test_nothing_said_is_kept_after_the_end(autojump_clock):
    async with running_slice(runtime(), council()) as s:
        session = start(s)
        await finished(s, session)
        work = session._work
        assert (work.question, work.reply) == ("", None)
        assert [use.request.prompt for use in work._uses] == [None] * 3
        assert [(member.transcript.text, member.transcript.chunks) for member in work.members] == [("", [])] * 3


async def test_energy_of_the_ensemble_is_the_weighted_mean_of_its_members(autojump_clock):
    async with running_slice(runtime(words(20)), council()) as s:
        client = s.client()
        await finished(s, start(s))
        measured = [update for update in payloads(client, "energy.update") if update["ensemble"]]
        assert len(measured) > 30
        for update in measured:
            ensemble, energies = update["ensemble"], {e["stream_id"]: e["energy"] for e in update["streams"]}
            weights = {k: w for k, w in ensemble["weights"].items() if k in energies}
            mean = sum(w * energies[k] for k, w in weights.items()) / sum(weights.values())
            assert ensemble["energy"] == pytest.approx(mean, abs=1e-9)
            assert ensemble["gain"] == pytest.approx(ensemble["modulated"] - ensemble["energy"], abs=1e-12)


async def test_frames_go_on_rising_and_each_session_ends_once(autojump_clock):
    async with running_slice(runtime(words(6)), council()) as s:
        client = s.client()
        sessions = [start(s) for _ in range(3)]
        for session in sessions:
            await session.closed.wait()
        await trio.sleep(0.2)
        numbers = [message["frame"] for message in client.frames]
        assert all(before < after for before, after in itertools.pairwise(numbers))
        ended = [event["session_id"] for event in client.events("experience.session_end")]
        assert sorted(ended) == sorted(session.id for session in sessions)


async def test_each_members_figures_are_its_own(autojump_clock):
    async with running_slice(runtime(words(20, 0.02), b=words(6, 0.5)), council()) as s:
        session = start(s)
        await trio.sleep(0.3)
        assert list(s.core.telemetry.councils) == [session.id]
        assert s.core.telemetry.councils[session.id].di is not None
        await finished(s, session)
        figures = s.core.telemetry.models
        assert {name: f.ttft_cold_ms for name, f in figures.items()} == {"a": 20.0, "b": 500.0, "c": 20.0}
        assert figures["a"].tps_average == pytest.approx(50)
        assert figures["b"].tps_average == pytest.approx(2)
        assert [f.active_sessions for f in figures.values()] == [0, 0, 0]
        assert s.core.telemetry.councils == {}


async def test_short_memory_makes_new_councils_smaller_and_says_so(autojump_clock):
    async with running_slice(runtime(), council()) as s:
        councils = s.core.catalog.councils
        councils.gates = attrs.evolve(councils.gates, memory_is_short=lambda: True)
        client = s.client()
        await finished(s, start(s))
        (formed,) = payloads(client, "council.formed")
        assert (formed["models"], formed["dropped_models"]) == (["a", "b"], ["c"])
        assert "memory is short" in formed["reason"]


async def test_each_member_counts_for_the_ledger_and_for_its_provider(autojump_clock):
    broken = (*words(2)[:-1], Fail(UpstreamTimeout("gone")))
    async with running_slice(runtime(b=broken), council()) as s:
        await finished(s, start(s))
        (provider,) = s.core.providers.report()
        assert (provider["requests"], provider["success_rate"]) == (3, pytest.approx(2 / 3))
        usage = await s.core.ledger.report("model", None)
        rows = {group.key: (group.sums.tokens_in, group.sums.tokens_out) for group in usage.groups}
        assert rows["a"] == (3, 5)
        assert rows["b"][1] == 2
