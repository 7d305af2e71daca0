"""`/generate` where a model cannot begin to answer: who stands in for it within the session, what is told of that, and
that nobody who has begun to speak is ever replaced."""

from __future__ import annotations

import pytest
import trio

from engine.domain.errors import InvalidRequest, RuntimeUnavailable
from engine.settings import FallbackSettings, PolicyOverrides
from tests.fakes.api import ndjson
from tests.fakes.cloud import anthropic_answer, openai_answer, openai_error
from tests.fakes.runtime import End, Fail, Say
from tests.fakes.satellites import satellite_rig

FALLBACK = FallbackSettings(enabled=True, order=("ollama", "openai"))
LOCAL = {"model": "a", "prompt": "x"}
FAR = "openai/gpt-4o-mini"
ONE_TRY = PolicyOverrides(broker={"retry": {"attempts_max": 1}})


def text_of(events):
    tokens = [token for event in events if event["type"] == "experience.token" for token in event["payload"]["tokens"]]
    return "".join(token["text"] for token in tokens)


def payloads(events, kind):
    return [event["payload"] for event in events if event["type"] == kind]


GONE = (Fail(RuntimeUnavailable("gone")),)


def rig_of(*replies, script=GONE, **more):
    return satellite_rig(*replies, **{"mode": "fallback", "fallback": FALLBACK} | more, script=list(script))


async def test_who_stands_in_is_told_before_its_first_word_and_named_with_every_one(autojump_clock):
    async with rig_of(openai_answer(["so", " far"])) as rig:
        events = await rig.events(**LOCAL)
        kinds = [event["type"] for event in events]
        assert (kinds.count("experience.session_start"), kinds[0]) == (1, "experience.session_start")
        assert (kinds.count("experience.session_end"), kinds[-1]) == (1, "experience.session_end")
        assert kinds.index("experience.seam") < kinds.index("experience.token")
        (seam,) = payloads(events, "experience.seam")
        assert (seam["model"], seam["origin"], seam["reason"]) == (FAR, "satellite", "RUNTIME_UNAVAILABLE")
        assert (seam["position"], seam["offset"], seam["attempt"]) == (0, 0, 1)
        failed = [told for told in payloads(events, "experience.model") if told["state"] == "failed"]
        assert [(told["model"], told["reason"]) for told in failed] == [
            ("a", f"RUNTIME_UNAVAILABLE: {FAR} answers in its place")
        ]
        assert {told["model"] for told in payloads(events, "experience.token")} == {FAR}
        assert text_of(events) == "so far"
        end = events[-1]["payload"]
        assert (end["reason"], end["error"], end["totals"]["resumed"]) == ("finished", None, 0)
        assert rig.api.engine.providers.fallbacks == {("a", FAR): 1}


async def test_without_a_listener_it_is_the_same(autojump_clock):
    async with rig_of(openai_answer(["far"])) as rig:
        started = await rig.generate(**LOCAL, stream=False)
        assert (started.status, started.json["models"]) == (202, ["a"])
        sent = (await rig.api.get(started.json["stream_url"])).body.splitlines(keepends=True)
        events = ndjson(b"".join(line.removeprefix(b"data: ") for line in sent if line.startswith(b"data: ")))
        assert text_of(events) == "far"


async def test_each_provider_answers_for_what_it_did(autojump_clock):
    async with rig_of(openai_answer(["far"])) as rig:
        await rig.events(**LOCAL)
        await trio.sleep(1)
        figures = {one["name"]: one for one in (await rig.api.get("/stats")).json["providers"]}
        assert (figures["ollama"]["requests"], figures["ollama"]["success_rate"]) == (1, 0.0)
        assert figures["ollama"]["models"][0]["last_error"] == "RUNTIME_UNAVAILABLE"
        assert (figures["openai"]["requests"], figures["openai"]["success_rate"]) == (1, 1.0)
        models = (await rig.api.get("/stats")).json["models"]
        assert (models[FAR]["total_tokens"], models[FAR]["active_sessions"]) == (1, 0)
        assert (models["a"]["total_tokens"], models["a"]["active_sessions"]) == (0, 0)
        usage = (await rig.api.get("/usage?by=model")).json
        assert [(row["key"], row["requests"], row["local_tokens"]) for row in usage["rows"]] == [(FAR, 1, 0)]
        assert usage["totals"]["remote_tokens"] > 0
        assert [(one["reason"], one["requests"]) for one in usage["fallbacks"]] == [("no_local", 1)]


async def test_a_local_model_comes_first_and_needs_nobodys_consent(autojump_clock):
    async with rig_of(mode="disabled", fallback=FallbackSettings(enabled=True, order=("openai", "ollama"))) as rig:
        events = await rig.events(**LOCAL, broker=None)
        # The only local provider is the one that failed, so nobody is left.
        assert events[-1]["payload"]["error"]["code"] == "FALLBACK_FAILED"
        assert rig.cloud.permits == []


async def test_all_reasons_are_told_where_nobody_is_left(autojump_clock):
    async with rig_of(openai_error(401, "bad key")) as rig:
        end = (await rig.events(**LOCAL))[-1]["payload"]
        assert (end["reason"], end["error"]["code"]) == ("error", "FALLBACK_FAILED")
        assert [one["model"] for one in end["error"]["details"]["passed"]][:2] == ["a", FAR]
        assert len(rig.cloud.permits) == 1


async def test_without_consent_nothing_leaves_and_the_reason_says_so(autojump_clock):
    async with rig_of(openai_answer(["far"])) as rig:
        end = (await rig.events(**LOCAL, broker=None))[-1]["payload"]
        assert end["error"]["code"] == "FALLBACK_FAILED"
        assert "consent" in str(end["error"]["details"]["passed"])
        assert rig.cloud.permits == []


@pytest.mark.parametrize("error", [RuntimeUnavailable("gone"), InvalidRequest("no such thing")])
async def test_after_the_first_token_nobody_stands_in(autojump_clock, error):
    async with rig_of(openai_answer(["far"]), script=(Say("near"), Fail(error))) as rig:
        events = await rig.events(**LOCAL)
        assert (text_of(events), events[-1]["payload"]["error"]["code"]) == ("near", error.code)
        assert payloads(events, "experience.seam") == []
        assert rig.cloud.permits == []


async def test_a_request_at_fault_is_nobody_elses(autojump_clock):
    async with rig_of(openai_answer(["far"]), script=(Fail(InvalidRequest("no such thing")),)) as rig:
        assert (await rig.events(**LOCAL))[-1]["payload"]["error"]["code"] == "VALIDATION_ERROR"
        assert rig.cloud.permits == []


async def test_unless_it_is_configured_nobody_stands_in(autojump_clock):
    async with rig_of(openai_answer(["far"]), fallback=FallbackSettings()) as rig:
        assert (await rig.events(**LOCAL))[-1]["payload"]["error"]["code"] == "RUNTIME_UNAVAILABLE"


async def test_stopped_while_somebody_stands_in_it_is_stopped(autojump_clock):
    async with rig_of(openai_answer(["far"] * 10, after_s=0.5)) as rig:
        started = await rig.generate(**LOCAL, stream=False)
        await trio.sleep(1.2)
        stopped = (await rig.api.post("/stop", {"session_id": started.json["session_id"]})).json
        assert (stopped["success"], stopped["reason"]) == (True, "aborted")
        assert stopped["tokens_generated"] >= 1


async def test_a_page_that_connects_later_is_told_who_answers(autojump_clock):
    async with rig_of(openai_answer(["far"] * 10, after_s=0.5)) as rig:
        started = await rig.generate(**LOCAL, stream=False)
        await trio.sleep(1.2)
        (session,) = rig.api.slice.core.hub.snapshot()["sessions"]
        (stream,) = session["streams"]
        assert (stream["model"], stream["stream_id"]) == (FAR, f"{started.json['session_id']}:0")
        await rig.api.post("/stop", {"session_id": started.json["session_id"]})


AGAIN = FallbackSettings(attempts_max=3)


async def test_a_model_of_this_machine_is_asked_again_where_that_is_configured_and_it_is_told(autojump_clock):
    async with rig_of(fallback=AGAIN) as rig:
        rig.api.engine.providers.draw = lambda: 0.5
        began_s = trio.current_time()
        events = await rig.events(**LOCAL)
        assert (events[-1]["payload"]["error"]["code"], rig.local.opened) == ("RUNTIME_UNAVAILABLE", 3)
        assert trio.current_time() - began_s == pytest.approx(0.125 + 0.25, abs=0.3)  # half of each bound
        told = [one["reason"] for one in payloads(events, "experience.model") if "asked again" in (one["reason"] or "")]
        assert told == [f"RUNTIME_UNAVAILABLE: it is asked again in {pause} s" for pause in ("0.12", "0.25")]


async def test_one_that_has_begun_is_not_asked_again(autojump_clock):
    async with rig_of(fallback=AGAIN, script=(Say("near"), Fail(RuntimeUnavailable("gone")))) as rig:
        assert text_of(await rig.events(**LOCAL)) == "near"
        assert rig.local.opened == 1


async def test_a_request_at_fault_is_not_asked_again(autojump_clock):
    async with rig_of(fallback=AGAIN, script=(Fail(InvalidRequest("no such thing")),)) as rig:
        await rig.events(**LOCAL)
        assert rig.local.opened == 1


async def test_by_default_nothing_is_asked_again(autojump_clock):
    async with rig_of(fallback=FallbackSettings()) as rig:
        await rig.events(**LOCAL)
        assert rig.local.opened == 1


@pytest.mark.parametrize(("logprobs", "answers"), [(False, "anthropic/claude-haiku-4-5"), (True, FAR)])
async def test_who_stands_in_can_do_what_was_asked_for(autojump_clock, logprobs, answers):
    order = FallbackSettings(enabled=True, order=("anthropic", "openai"))
    reply = openai_answer(["far"]) if logprobs else anthropic_answer(["far"])
    body = {"model": "gone", "messages": [{"role": "user", "content": "x"}], "logprobs": logprobs}
    async with rig_of(reply, fallback=order) as rig:
        await rig.api.post("/v1/chat/completions", body, **{"x-wf-broker": "allow"})
        assert rig.api.engine.providers.fallbacks == {("gone", answers): 1}


async def test_how_many_failures_are_too_many_is_configured_for_every_provider(autojump_clock):
    policies = PolicyOverrides(broker={"breaker": {"failures": 1}})
    async with rig_of(fallback=FallbackSettings(), policies=policies) as rig:
        await rig.events(**LOCAL)
        await trio.sleep(0.1)
        figures = {one["name"]: one["breaker"] for one in (await rig.api.get("/stats")).json["providers"]}
        assert (figures["ollama"], figures["openai"]) == ("open", "closed")


async def test_a_satellite_that_cannot_begin_is_stood_in_for_by_a_local_model(autojump_clock):
    order = FallbackSettings(enabled=True, order=("ollama", "openai"))
    async with rig_of(openai_error(500, "down"), fallback=order, script=(Say("near"), End()), policies=ONE_TRY) as rig:
        events = await rig.events()
        (seam,) = payloads(events, "experience.seam")
        assert (seam["model"], seam["origin"], text_of(events)) == ("a", None, "near")
