"""`/broker` and the gates before it, over the whole slice: what is refused, what is consented to, what is told; and who
answers where the one that was asked cannot."""

from __future__ import annotations

import json

import msgspec
import pytest
import trio

from engine.domain.errors import ConfigError, InvalidRequest, RuntimeUnavailable
from engine.domain.models import Tier
from engine.settings import FallbackSettings, PoolSettings
from tests.fakes.api import TOKEN
from tests.fakes.cloud import anthropic_answer, openai_answer, openai_error
from tests.fakes.ollama import Reply, Silence
from tests.fakes.runtime import Fail, Say
from tests.fakes.satellites import PROVIDERS, QUESTION, satellite_rig
from web.bodies import BrokerAnswer, Stats

LOCAL = {"model": "a"}
FALLBACK = FallbackSettings(enabled=True, order=("ollama", "openai"))


def kinds(events):
    return [event["type"] for event in events]


def text_of(events):
    tokens = [t for e in events if e["type"] == "experience.token" for t in e["payload"]["tokens"]]
    return "".join(token["text"] for token in tokens)


# ── off, as it is shipped ──


async def test_nothing_leaves_unless_it_is_switched_on(autojump_clock):
    async with satellite_rig(mode="disabled") as rig:
        for name in ("openai/gpt-4o-mini", "anthropic/claude-haiku-4-5", "openrouter/meta/llama", "openai/anything"):
            refused = await rig.generate(model=name)
            assert (refused.status, refused.error["code"]) == (403, "BROKER_DISABLED")
        told = (await rig.api.get("/broker")).json
        assert (told["mode"], told["provider"], told["calls_last_hour"], told["spent"]["tokens"]) == (
            "disabled",
            "openai",
            0,
            0,
        )
        assert [model["name"] for model in (await rig.api.get("/models")).json["models"]] == ["a", "b", "c"]
        assert rig.cloud.permits == []


async def test_a_name_that_no_provider_has_is_just_not_found(autojump_clock):
    async with satellite_rig(mode="disabled") as rig:
        refused = await rig.generate(model="nobody/knows")
        assert refused.error["code"] == "MODEL_NOT_FOUND"


async def test_a_model_that_its_provider_is_not_said_to_have_is_nothing_to_download(autojump_clock):
    async with satellite_rig(mode="advisory", pull="auto") as rig:
        refused = await rig.generate(model="openai/unknown")
        assert (refused.status, refused.error["code"]) == (404, "MODEL_NOT_FOUND")
        assert "preferred_models of openai" in refused.error["message"]
        assert refused.error["details"]["available"] == ["openai/gpt-4o-mini"]


async def test_without_a_key_it_says_what_to_do(autojump_clock):
    async with satellite_rig(mode="advisory") as rig:
        rig.api.engine.providers.satellites[0].key_problem = "set OPENAI_API_KEY"
        await rig.api.engine.catalog.refresh()
        refused = await rig.generate()
        assert (refused.status, refused.error["code"]) == (503, "RUNTIME_UNAVAILABLE")
        assert "openai has no key: set OPENAI_API_KEY" in refused.error["message"]


# ── the switch ──


async def test_the_switch_needs_the_token(autojump_clock):
    async with satellite_rig(mode="disabled") as rig:
        for token in ("", "0" * 64, TOKEN[:-1]):
            assert (await rig.switch("advisory", token)).status == 401
        assert (await rig.api.post("/broker", {"mode": "advisory"})).status == 401
        switched = await rig.switch("advisory")
        assert switched.json["mode"] == "advisory"
        msgspec.convert(switched.json, BrokerAnswer)
        assert rig.log.lines[-1]["event"] == "mode"
        names = [model["name"] for model in (await rig.api.get("/models")).json["models"]]
        assert names[-2:] == ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"]
        await rig.switch("disabled")
        assert (await rig.generate()).error["code"] == "BROKER_DISABLED"


@pytest.mark.parametrize("body", [{"mode": "on"}, {}, {"mode": "hybrid", "x": 1}])
async def test_the_switch_knows_its_modes(body, autojump_clock):
    async with satellite_rig() as rig:
        assert (await rig.api.post("/broker", body, **{"x-wf-token": TOKEN})).status == 400


@pytest.mark.parametrize("tier", [Tier.LOW, Tier.MID, Tier.HIGH])
async def test_only_the_tier_hybrid_has_a_broker(tier, autojump_clock):
    async with satellite_rig(mode="disabled", tier=tier) as rig:
        refused = await rig.switch("hybrid")
        assert (refused.status, refused.error["code"]) == (403, "BROKER_DISABLED")
        assert "hybrid" in refused.error["message"]
        assert (await rig.switch("disabled")).json["available"] is False
    with pytest.raises(ConfigError, match="tier hybrid"):
        async with satellite_rig(mode="advisory", tier=tier):
            pass


async def test_the_core_lock_and_the_broker_exclude_each_other(autojump_clock):
    with pytest.raises(ConfigError, match="core_lock"):
        async with satellite_rig(mode="advisory", core_lock=True):
            pass
    async with satellite_rig(mode="disabled", core_lock=True) as rig:
        pulled = await rig.api.post("/api/pull", {"model": "x", "stream": False})  # no other program is sent out either
        assert (pulled.status, "core lock" in pulled.json["error"]) == (403, True)
        assert (await rig.switch("advisory")).status == 403


# ── consent ──


async def test_without_consent_it_is_shown_what_would_leave_and_nothing_does(autojump_clock):
    async with satellite_rig() as rig:
        refused = await rig.generate(broker=None)
        assert (refused.status, refused.error["code"]) == (403, "BROKER_DISABLED")
        shown = refused.error["details"]["would_leave"]
        assert (shown["host"], shown["model"], shown["text_bytes"]) == ("api.openai.com", "gpt-4o-mini", len(QUESTION))
        assert shown["usd_max"] > 0
        assert QUESTION not in refused.body.decode()
        assert (rig.cloud.permits, list(rig.log.lines)) == ([], [])


async def test_the_body_consents_for_one_request(autojump_clock):
    async with satellite_rig(openai_answer(["it ", "is"])) as rig:
        events = await rig.events()
        start, end = events[0], events[-1]
        assert (start["type"], start["payload"]["origin"]) == ("experience.session_start", "satellite")
        assert (end["payload"]["reason"], text_of(events)) == ("finished", "it is")
        assert rig.log.lines[-1]["outcome"] == "finished"
        assert QUESTION not in json.dumps(list(rig.log.lines))
        assert (await rig.generate(broker=None)).status == 403  # the next one is asked anew


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_on_the_lens_a_header_consents(path, autojump_clock):
    body = {
        "model": "openai/gpt-4o-mini",
        "messages": [{"role": "user", "content": "x"}],
        "stream": False,
        "max_tokens": 9,
    }
    async with satellite_rig(openai_answer(["hello"])) as rig:
        refused = await rig.api.post(path, body)
        assert refused.status == 403
        answered = await rig.api.post(path, body, **{"x-wf-broker": "allow"})
        assert (answered.status, answered.headers["x-wf-runtime"]) == (200, "openai")
        assert b"hello" in answered.body
        assert (await rig.api.post(path, body, **{"x-wf-broker": "yes"})).status == 400


async def test_headers_of_ours_and_of_a_trace_do_not_leave(autojump_clock):
    async with satellite_rig(openai_answer(["x"])) as rig:
        body = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "x"}], "stream": False}
        headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "x-request-id": "mine", "x-wf-agent": "me"}
        answered = await rig.api.post("/v1/chat/completions", body, **headers, **{"x-wf-broker": "allow"})
        assert (answered.status, answered.headers["traceparent"][:35]) == (200, f"00-{'a' * 32}")
        sent = set(rig.cloud.headers[0])
        assert "authorization" in sent
        assert not {"traceparent", "x-request-id", "x-wf-agent", "x-wf-broker", "referer"} & sent


async def test_a_satellite_holds_up_nobody_here(autojump_clock):
    async with satellite_rig(*(Reply([Silence()]) for _ in range(9))) as rig:
        waiting = [(await rig.generate(stream=False)).json["session_id"] for _ in range(3)]
        began_us = rig.api.slice.clock()
        assert text_of(await rig.events(**LOCAL)) == "w0 w1 "
        assert rig.api.slice.clock() - began_us < 1_000_000
        pool = rig.api.engine.pool.pool
        assert (pool.queued, rig.local.loads) == (0, ["a"])
        for session in waiting:
            assert (await rig.api.post("/stop", {"session_id": session})).json["success"]


# ── who answers instead ──


async def test_nobody_stands_in_unless_it_is_configured(autojump_clock):
    async with satellite_rig(mode="fallback") as rig:
        assert (await rig.generate(model="gone")).error["code"] == "MODEL_NOT_FOUND"


async def test_a_local_model_stands_in_first(autojump_clock):
    async with satellite_rig(mode="fallback", fallback=FALLBACK) as rig:
        events = await rig.events(model="gone")
        assert events[0]["payload"]["models"] == ["a"]
        assert rig.api.engine.providers.fallbacks == {("gone", "a"): 1}
        assert rig.cloud.permits == []


async def test_a_satellite_stands_in_where_no_local_one_can_if_it_may(autojump_clock):
    only = FallbackSettings(enabled=True, order=("openai",))
    async with satellite_rig(openai_answer(["far"]), mode="fallback", fallback=only) as rig:
        assert text_of(await rig.events(model="gone")) == "far"
        assert rig.log.lines[0]["occasion"] == "no_local"
        failed = await rig.generate(model="gone", broker=None)
        assert (failed.status, failed.error["code"]) == (503, "FALLBACK_FAILED")
        assert "consent" in failed.error["details"]["passed"][0]["reason"]
        await rig.switch("advisory")
        failed = await rig.generate(model="gone")
        assert "advisory" in failed.error["details"]["passed"][0]["reason"]


async def test_a_runtime_that_keeps_failing_is_passed_over(autojump_clock):
    script, replies = [Fail(RuntimeUnavailable("gone"))], [openai_answer(["far"]) for _ in range(4)]
    async with satellite_rig(*replies, mode="fallback", fallback=FALLBACK, script=script) as rig:
        for _ in range(3):
            events = await rig.events(**LOCAL)
            assert (events[0]["payload"]["models"], text_of(events)) == (["a"], "far")
        events = await rig.events(**LOCAL)
        assert events[0]["payload"]["models"] == ["openai/gpt-4o-mini"]
        assert text_of(events) == "far"
        assert rig.local.opened == 3


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_on_the_lens_the_next_provider_answers_at_once(path, autojump_clock):
    body = {"model": "a", "messages": [{"role": "user", "content": "x"}], "stream": False}
    async with satellite_rig(openai_answer(["far"]), mode="fallback", fallback=FALLBACK) as rig:
        rig.local.load_error = RuntimeUnavailable("gone")
        answered = await rig.api.post(path, body, **{"x-wf-broker": "allow"})
        assert (answered.status, answered.headers["x-wf-model"]) == (200, "openai/gpt-4o-mini")
        assert b"far" in answered.body
        assert rig.api.engine.providers.fallbacks == {("a", "openai/gpt-4o-mini"): 1}
        refused = await rig.api.post(path, body)  # nobody may be asked without consent
        assert (refused.status, len(rig.cloud.permits)) == (503, 1)


async def test_all_reasons_are_told_when_nobody_is_left(autojump_clock):
    body = {"model": "a", "prompt": "x", "stream": False}
    async with satellite_rig(openai_error(401, "bad key"), mode="fallback", fallback=FALLBACK) as rig:
        rig.local.load_error = RuntimeUnavailable("gone")
        failed = await rig.api.post("/api/generate", body, **{"x-wf-broker": "allow"})
        assert failed.status == 503
        assert "nobody can stand in" in failed.json["error"]
        assert len(rig.cloud.permits) == 1  # each was asked once


async def test_a_request_at_fault_is_nobody_elses(autojump_clock):
    async with satellite_rig(mode="fallback", fallback=FALLBACK) as rig:
        rig.local.load_error = InvalidRequest("no such thing")
        body = {"model": "a", "prompt": "x", "stream": False}
        assert (await rig.api.post("/api/generate", body, **{"x-wf-broker": "allow"})).status == 400
        assert rig.cloud.permits == []


async def test_without_fallback_the_error_is_the_runtimes_own(autojump_clock):
    async with satellite_rig(mode="fallback") as rig:
        rig.local.load_error = RuntimeUnavailable("gone")
        failed = await rig.api.post("/api/generate", {"model": "a", "prompt": "x"}, **{"x-wf-broker": "allow"})
        assert failed.json["error"] == "gone"


async def test_in_mode_hybrid_a_busy_machine_is_relieved(autojump_clock):
    async with satellite_rig(openai_answer(["far"]), mode="hybrid", fallback=FALLBACK, script=[Say("x", 1000)]) as rig:
        providers = rig.api.engine.providers
        providers.busy_share = lambda: 0.95
        assert text_of(await rig.events(**LOCAL)) == "far"
        assert rig.log.lines[0]["occasion"] == "busy"
        started = await rig.generate(**LOCAL, broker=None, stream=False)  # without consent it is waited for
        assert started.json["models"] == ["a"]


# ── models that are there before anybody asks ──


async def test_preferred_models_of_this_machine_come_in_before_anybody_asks(autojump_clock):
    ollama = {"preferred_models": ["b", "gone", "a"], "preload": True}
    async with satellite_rig(providers={**PROVIDERS, "ollama": ollama}, pool=PoolSettings(prefetch="none")) as rig:
        await trio.sleep(1)
        assert rig.local.loads == ["b", "a"]
        assert rig.api.slice.core.pool.pool.counters.prefetches == 2
        assert rig.cloud.asked == []


async def test_they_do_not_unless_it_is_configured(autojump_clock):
    async with satellite_rig(providers={**PROVIDERS, "ollama": {"preferred_models": ["b"]}}) as rig:
        await trio.sleep(1)
        assert rig.local.loads == []


# ── figures ──


async def test_stats_show_local_and_remote_side_by_side(autojump_clock):
    replies = [
        openai_answer(["x"]),
        openai_error(400, "no"),
        *(openai_error(500, "no") for _ in range(3)),
        anthropic_answer(["y"]),
    ]
    async with satellite_rig(*replies) as rig:
        await rig.events(**LOCAL)
        for name in ("openai/gpt-4o-mini",) * 3 + ("anthropic/claude-haiku-4-5",):
            await rig.events(model=name)
        body = (await rig.api.get("/stats")).json
        msgspec.convert(body, Stats)
        found = {entry["name"]: entry for entry in body["providers"]}
        assert {name: (e["local"], e["requests"], e["success_rate"], e["breaker"]) for name, e in found.items()} == {
            "ollama": (True, 1, 1.0, "closed"),
            "openai": (False, 3, 0.5, "open"),
            "anthropic": (False, 1, 1.0, "closed"),
        }  # fmt: skip
        (model,) = found["openai"]["models"]
        assert model["name"] == "openai/gpt-4o-mini"
        assert model["last_error"] == "UPSTREAM_PROTOCOL_ERROR"
        assert model["last_answer_s"] > model["last_error_s"] >= 0
        assert found["ollama"]["models"][0]["last_load_s"] is not None
        assert (found["ollama"]["resident_bytes"], found["openai"]["resident_bytes"]) == (1000, None)
        assert 0 <= found["ollama"]["listed_age_s"] <= 30
        assert found["ollama"]["ttft_ms"]["p50"] == pytest.approx(50)
        assert found["ollama"]["latency_ms"]["p50"] == pytest.approx(100)  # two words
        assert found["anthropic"]["ttft_ms"]["p50"] == pytest.approx(400)  # its fourth event has the text
        assert found["anthropic"]["latency_ms"]["p50"] == pytest.approx(600)
        assert found["openai"]["latency_ms"]["p50"] == found["openai"]["latency_ms"]["p95"] == pytest.approx(300)
        assert found["anthropic"]["resident_bytes"] is None  # it takes nothing here
        assert body["system"]["bytes_out"] == (await rig.api.get("/broker")).json["bytes_out"]


async def test_health_does_not_take_a_satellite_for_a_runtime_that_is_well(autojump_clock):
    async with satellite_rig() as rig:
        rig.local.up = False
        await rig.api.engine.catalog.refresh()
        body = (await rig.api.get("/health")).json
        assert body["status"] == "degraded"
        told = {runtime["name"]: runtime for runtime in body["runtimes"]}
        assert (told["openai"]["up"], told["openai"]["local"], told["openai"]["kind"]) == (None, False, "satellite")
