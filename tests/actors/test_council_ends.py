"""What is left of a council when it is over: the figures of each member, however it ended, and a picture for those who
come late."""

from __future__ import annotations

from functools import partial

import attrs
import pytest
import trio

from actors.session import SessionRequest
from engine.domain.errors import InsufficientMemory, UpstreamTimeout
from engine.domain.generation import GenerationRequest, Origin
from tests.actors.test_council import council, finished, payloads, runtime, start
from tests.fakes.runtime import Fail, ScriptedRuntime, words
from tests.fakes.slice import running_slice

SILENT = (Fail(UpstreamTimeout("never"), 600.0),)  # asked, and says nothing


def at_once(s, models):
    pool = s.core.pool.pool
    pool.caps = pool.memory.caps = attrs.evolve(pool.caps, parallel_models_max=models, cooldown_us=0)


def ended(client):
    return {each["model"]: each for each in payloads(client, "council.model_end")}


async def test_the_end_of_a_council_has_the_figures_of_each_member(autojump_clock):
    async with running_slice(runtime(b=words(9), c=words(3)), council()) as s:
        client = s.client()
        await finished(s, start(s))
        (end,) = payloads(client, "experience.session_end")
        told, members = ended(client), {each["model"]: each for each in end["summary"]["members"]}
        assert list(members) == ["a", "b", "c"]
        for model, member in members.items():
            same = ("stream_id", "reason", "tokens", "ttft_ms")
            assert [member[key] for key in same] == [told[model][key] for key in same]
            assert member["ttft_ms"] == pytest.approx(50, abs=1)
            assert 0 < member["energy"] <= 1
            assert 0 < member["energy_mean"] <= 1


async def test_a_stopped_council_leaves_the_figures_of_all_its_members(autojump_clock):
    async with running_slice(runtime(words(100), b=words(2), c=SILENT), council()) as s:
        client = s.client()
        session = start(s)
        await trio.sleep(1)
        last = payloads(client, "energy.update")[-1]
        await s.core.sessions.stop(session.id)
        await trio.sleep(0.1)
        (end,) = payloads(client, "experience.session_end")
        a, b, c = end["summary"]["members"]
        assert [each["reason"] for each in (a, b, c)] == ["aborted", "finished", "aborted"]
        assert a["tokens"] + b["tokens"] == end["totals"]["tokens"]
        assert (b["tokens"], c["tokens"]) == (2, 0)
        assert a["energy"] == pytest.approx(last["streams"][0]["energy"], abs=0.05)
        assert (c["ttft_ms"], c["energy"], c["energy_mean"]) == (None, None, None)
        told = ended(client)
        assert told.keys() == {"a", "b", "c"}
        assert (told["a"]["cut"], told["a"]["tokens"]) == ("its council was stopped before it had ended", a["tokens"])
        assert payloads(client, "council.synthesis") == []
        types = [event["type"] for event in client.events() if event["session_id"] == session.id]
        assert types[-1] == "experience.session_end"
        figures = s.core.telemetry.models
        assert list(figures["a"].ttft_ms) == [pytest.approx(a["ttft_ms"])]
        assert figures["a"].tps_average == pytest.approx(20, rel=0.2)
        assert (list(figures["c"].ttft_ms), figures["c"].tps_average) == ([], None)
        assert s.core.telemetry._runs == {}


async def test_a_council_without_members_that_began_has_none_to_tell_of(autojump_clock):
    async with running_slice(partial(ScriptedRuntime, load_s=50.0), council()) as s:
        client = s.client()
        session = start(s)
        await trio.sleep(1)
        await s.core.sessions.stop(session.id)
        await trio.sleep(0.1)
        (end,) = payloads(client, "experience.session_end")
        assert [each["tokens"] for each in end["summary"]["members"]] == [0, 0, 0]
        single = s.start()
        await s.core.sessions.stop(single.id)
        await trio.sleep(0.1)
        assert payloads(client, "experience.session_end")[-1]["summary"]["members"] is None


async def test_the_times_of_a_later_wave_count_from_when_it_was_its_turn(autojump_clock):
    async with running_slice(runtime(words(40)), council()) as s:
        at_once(s, 1)
        client = s.client()
        await finished(s, start(s))
        told = ended(client)
        assert [told[model]["ttft_ms"] for model in "abc"] == [pytest.approx(50, abs=1)] * 3
        assert told["c"]["duration_ms"] == pytest.approx(2000, abs=5)
        starts = {each["model"]: each["asked_us"] for each in payloads(client, "council.model_start")}
        assert starts["c"] - starts["b"] == pytest.approx(2_000_000, abs=20_000)
        assert [list(s.core.telemetry.models[model].ttft_ms) for model in "abc"] == [[pytest.approx(50, abs=1)]] * 3


async def test_a_judge_is_no_member_and_its_wait_no_time_of_its_model(autojump_clock):
    scripts = {"a": words(9), "b": words(9), "c": words(3), "d": words(100)}
    async with running_slice(runtime(**scripts), council(method="judge", judge="d")) as s:
        client = s.client()
        session = start(s)
        await trio.sleep(1.5)
        assert "d" in [use.model.name for use in session._work._uses if use.state == "streaming"]
        await s.core.sessions.stop(session.id)
        await trio.sleep(0.1)
        (end,) = payloads(client, "experience.session_end")
        assert [each["model"] for each in end["summary"]["members"]] == ["a", "b", "c"]
        assert list(s.core.telemetry.models["d"].ttft_ms) == []


async def test_who_comes_late_sees_how_a_council_stands(autojump_clock):
    async with running_slice(runtime(b=words(60), c=SILENT), council(quorum=2)) as s:
        session = start(s)
        await trio.sleep(1)
        (entry,) = s.client().events("system.state_snapshot")[0]["payload"]["sessions"]
        assert entry["council"]["formed"]["models"] == ["a", "b", "c"]
        assert entry["council"]["synthesis"] is None
        a, b, c = entry["streams"]
        assert (a["end"]["reason"], a["tokens"]) == ("finished", 5)
        assert (b["end"], b["ttft_ms"]) == (None, pytest.approx(50, abs=1))
        assert (c["end"], c["ttft_ms"], c["tokens"]) == (None, None, 0)
        await finished(s, session)
        (entry,) = s.client().events("system.state_snapshot")[0]["payload"]["sessions"]
        assert entry["council"]["synthesis"]["model"] == "a"
        assert [each["end"]["reason"] for each in entry["streams"]] == ["finished", "finished", "aborted"]
        single = s.start()
        await single.closed.wait()
        await trio.sleep(0.1)
        entry = s.client().events("system.state_snapshot")[0]["payload"]["sessions"][-1]
        assert (entry["council"], entry["streams"][0]["tokens"]) == (None, 5)


async def test_members_load_for_the_options_that_the_request_has(autojump_clock):
    make = partial(ScriptedRuntime, script=words(3), kind="ollama", load_ms=260.0)

    def ask(s, options):
        model = s.core.catalog.find("council/wise")
        request = GenerationRequest(model.info.name, prompt="on", runner_options=options)
        return s.core.sessions.start(SessionRequest(model, request, Origin.API))

    async with running_slice(make, council()) as s:
        client = s.client()
        for options in ({"num_ctx": 2048}, {"num_ctx": 4096}):
            await finished(s, ask(s, options))
        reasons = [each["reason"] for each in payloads(client, "experience.model") if each["reason"]]
        assert reasons == ["loaded again in 260 ms (changed: num_ctx 2048 → 4096)"] * 3
        assert s.core.pool.pool.counters.reloads == 3


async def test_a_council_with_a_member_that_can_never_be_had_is_refused_before_it_begins(autojump_clock):
    async with running_slice(runtime(), council()) as s:
        pool = s.core.pool.pool
        pool.caps = pool.memory.caps = attrs.evolve(pool.caps, ram_budget_bytes=1_300)
        await finished(s, start(s))  # one after the other they fit
        pool.caps = pool.memory.caps = attrs.evolve(pool.caps, ram_budget_bytes=900)
        with pytest.raises(
            InsufficientMemory, match=r"would take 0.0 MB of memory, and the budget is 0.0 MB"
        ) as caught:
            start(s)
        assert (caught.value.details["needed_bytes"], caught.value.details["budget_bytes"]) == (
            1_000,
            900,
        )  # as it was measured
        assert s.core.catalog.councils.listed() == ()
