"""A model outside this machine beside those of this machine: it speaks with them, under its own name, and nobody ever
waits for it. Virtual time: a local word takes 50 ms, so that any wait for the satellite would show."""

from __future__ import annotations

from typing import Any

import pytest

from engine.domain.errors import RuntimeUnavailable
from tests.fakes.cloud import openai_answer, openai_error
from tests.fakes.ollama import Reply, Silence
from tests.fakes.runtime import End, Fail, Say
from tests.fakes.satellites import QUESTION, satellite_rig

FAR = "openai/gpt-4o-mini"
COUNCIL: dict[str, Any] = {"model": None, "models": ["a", "b", FAR], "mode": "council"}
LOCAL_S = 0.1  # two words
LOCAL = (Say("near", 0.05), Say(" by", 0.05), End())


def payloads(events, kind):
    return [event["payload"] for event in events if event["type"] == kind]


def by_model(events, kind):
    return {told["model"]: told for told in payloads(events, kind)}


def rig_of(*replies, script=LOCAL, **more):
    return satellite_rig(*replies, script=list(script), **more)


async def test_it_speaks_with_the_others_under_its_own_name(autojump_clock):
    async with rig_of(openai_answer(["so"], after_s=0.01)) as rig:
        events = await rig.events(**COUNCIL)
        (formed,) = payloads(events, "council.formed")
        assert formed["models"] == ["a", "b", FAR]
        stream_ids = {member["model"]: member["stream_id"] for member in formed["members"]}
        assert [set(wave) for wave in formed["waves"]] == [{stream_ids["a"], stream_ids["b"]}]  # it is in none
        starts = by_model(events, "council.model_start")
        assert {model: told["origin"] for model, told in starts.items()} == {"a": None, "b": None, FAR: "satellite"}
        said = {model: told["tokens"][0]["text"] for model, told in by_model(events, "experience.token").items()}
        assert said[FAR] == "so"
        assert by_model(events, "council.model_end")[FAR]["cut"] is None
        assert [line["event"] for line in rig.log.lines] == ["asked", "ended"]
        assert QUESTION in str(rig.cloud.asked[0])
        usage = (await rig.api.get("/usage?by=model")).json
        assert {row["key"]: row["remote_tokens"] > 0 for row in usage["rows"]} == {"a": False, "b": False, FAR: True}


@pytest.mark.parametrize("reply", [Reply([Silence()]), openai_answer(["slow"] * 20, after_s=0.4)])
async def test_nobody_waits_for_it(autojump_clock, reply):
    async with rig_of(reply) as rig:
        events = await rig.events(**COUNCIL)
        ends = by_model(events, "council.model_end")
        assert (ends[FAR]["reason"], "outside" in ends[FAR]["cut"]) == ("aborted", True)
        assert {ends[model]["reason"] for model in ("a", "b")} == {"finished"}
        assert payloads(events, "council.synthesis")[0]["model"] in ("a", "b")
        end = events[-1]["payload"]
        assert (end["reason"], end["duration_ms"]) == ("finished", pytest.approx(1000 * LOCAL_S, abs=20))


async def test_its_end_is_no_part_of_the_quorum(autojump_clock):
    """It has ended long before the others; the slower one of them gets its time all the same."""
    async with rig_of(openai_answer(["quick"], after_s=0.001)) as rig:
        rig.local.by_model = {"a": [Say("soon", 0.5), End()], "b": [Say("late", 0.5), Say(" very", 60.0), End()]}
        events = await rig.events(**COUNCIL)
        ends = by_model(events, "council.model_end")
        assert [ends[model]["cut"] for model in ("a", "b", FAR)] == [None] * 3
        assert (ends["a"]["tokens"], ends["b"]["tokens"]) == (1, 2)


async def test_what_it_gives_is_not_measured_against_the_others(autojump_clock):
    async with rig_of(openai_answer(["x"] * 30, after_s=0.02), script=(*[Say("n", 0.05)] * 10, End())) as rig:
        events = await rig.events(**COUNCIL)
        stream_id = next(m["stream_id"] for m in payloads(events, "council.formed")[0]["members"] if m["model"] == FAR)
        windows = payloads(events, "council.ensemble")
        assert windows
        assert all(stream_id not in window["positions"] for window in windows)


async def test_one_that_fails_is_absent_with_its_code(autojump_clock):
    async with rig_of(openai_error(401, "bad key")) as rig:
        events = await rig.events(**COUNCIL)
        assert by_model(events, "council.model_error")[FAR]["error"]["code"] == "RUNTIME_UNAVAILABLE"
        assert events[-1]["payload"]["reason"] == "finished"


async def test_where_no_local_one_has_an_answer_its_own_is_waited_for(autojump_clock):
    async with rig_of(openai_answer(["far"], after_s=2.0), script=(Fail(RuntimeUnavailable("gone")),)) as rig:
        events = await rig.events(**COUNCIL)
        assert payloads(events, "council.synthesis")[0]["model"] == FAR
        assert events[-1]["payload"]["reason"] == "finished"


@pytest.mark.parametrize("stream", [False, True])
async def test_on_the_lens_too(autojump_clock, stream):
    body = {"model": f"council:a+b+{FAR}", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    async with rig_of(openai_answer(["far"], after_s=2.0), script=(Fail(RuntimeUnavailable("gone")),)) as rig:
        answer = await rig.api.post("/v1/chat/completions", body, **{"x-wf-broker": "allow"})
        assert (answer.status, b"far" in answer.body) == (200, True)
    async with rig_of(Reply([Silence()])) as rig:
        answer = await rig.api.post("/v1/chat/completions", body, **{"x-wf-broker": "allow"})
        assert (answer.status, b"near" in answer.body) == (200, True)


async def test_with_method_first_its_words_are_never_those_that_are_sent_as_they_come(autojump_clock):
    async with rig_of(openai_answer(["far"] * 3, after_s=0.001)) as rig:
        events = await rig.events(**COUNCIL, method="first")
        assert payloads(events, "council.synthesis")[0]["model"] in ("a", "b")


# ── whether it may ──


async def test_without_consent_the_council_is_refused_with_what_would_leave(autojump_clock):
    async with rig_of(openai_answer(["far"])) as rig:
        answer = await rig.generate(**COUNCIL, broker=None)
        assert (answer.status, answer.error["code"]) == (403, "BROKER_DISABLED")
        assert answer.error["details"]["would_leave"]["model"] == "gpt-4o-mini"
        assert rig.cloud.permits == rig.local.requests == []


async def test_while_the_broker_is_disabled_it_is_refused_as_such(autojump_clock):
    async with rig_of(mode="disabled") as rig:
        answer = await rig.generate(**COUNCIL)
        assert (answer.status, answer.error["code"]) == (403, "BROKER_DISABLED")


@pytest.mark.parametrize(
    "asked",
    [{"models": [FAR, "anthropic/claude-haiku-4-5"]}, {"models": ["a", "b"], "method": "judge", "judge": FAR}],
)
async def test_a_council_that_would_wait_for_it_is_refused(autojump_clock, asked):
    async with rig_of(openai_answer(["far"])) as rig:
        answer = await rig.generate(**{**COUNCIL, **asked})
        assert (answer.status, answer.error["code"]) == (400, "VALIDATION_ERROR")
        assert rig.cloud.permits == []
