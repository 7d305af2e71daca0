"""A model outside this machine in virtual time: bounded, tried again before its first token, left alone if it fails."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
import trio

from actors.broker import Broker, MemoryLog
from actors.satellite import SatelliteRuntime
from engine.domain.errors import (
    BrokerDisabled,
    InvalidRequest,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.generation import GenerationRequest, Message
from engine.domain.usage import Price
from engine.keys import KeyFound
from engine.satellites import satellite_of
from engine.settings import Secret
from policies.breaker import BreakerState
from policies.broker import CONSENT, BrokerMode
from policies.load import load_policies
from policies.providers import provider_specs
from tests.fakes.cloud import (
    OPENROUTER_COMMENT,
    Cloud,
    anthropic_answer,
    anthropic_error,
    openai_answer,
    openai_chunk,
    openai_error,
    openrouter_error,
    openrouter_error_in_stream,
)
from tests.fakes.ollama import Break, Reply, Send, Silence, virtual_clock
from tests.fakes.streams import KEY, PROMPT, chunks_of, failure_of

POLICY = load_policies().broker
PROVIDERS = ["openai", "anthropic", "openrouter"]


@pytest.fixture(autouse=True)
def consent():
    token = CONSENT.set(True)
    yield
    CONSENT.reset(token)


@attrs.define(eq=False)
class Rig:
    cloud: Cloud
    satellite: SatelliteRuntime

    @property
    def broker(self) -> Broker:
        return self.satellite.broker

    @property
    def lines(self) -> list[Any]:
        return list(self.broker.log.lines)

    @property
    def state(self) -> BreakerState:
        return self.satellite.health.state(trio.current_time())


def rig(*replies: Any, provider: str = "openai", draw: float = 0.5, key: KeyFound | None = None, **policy: Any) -> Rig:
    CONSENT.set(True)
    cloud = Cloud(list(replies))
    broker = Broker(
        attrs.evolve(POLICY, **policy), True, BrokerMode.ADVISORY, lambda _: Price(1, 1), MemoryLog(),
        lambda: 1_795_168_800.0 + trio.current_time(),
    )  # fmt: skip
    spec = provider_specs({provider: {"preferred_models": ["m"]}})[provider]
    found = satellite_of(spec, virtual_clock, broker, key or KeyFound(Secret(KEY)), cloud.make)
    found.draw = lambda: draw
    return Rig(cloud, found)


def answer(provider: str, *words: str, **more: Any) -> Reply:
    return (anthropic_answer if provider == "anthropic" else openai_answer)(words or ("a", "b"), **more)


async def text_of(rig: Rig, request: GenerationRequest | None = None) -> str:
    found = await chunks_of(rig.satellite, request or GenerationRequest("m", prompt=PROMPT))
    assert found[-1].end is not None
    return "".join(chunk.text for chunk in found)


# ── one answer ──


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_an_answer_is_streamed_and_settled(provider, autojump_clock):
    found = rig(answer(provider), provider=provider)
    assert await text_of(found) == "ab"
    assert [line["event"] for line in found.lines] == ["asked", "ended"]
    assert (found.lines[1]["outcome"], found.lines[1]["tokens"], found.lines[1]["bytes_out"]) == ("finished", 11, 1000)
    assert found.broker.spent().tokens_today == 11
    (permit,) = found.cloud.permits
    assert (permit.host, permit.port, permit.tls) == (found.satellite.host, 443, True)
    assert PROMPT not in json.dumps(found.lines)


async def test_what_is_sent_is_what_was_shown(autojump_clock):
    found = rig(openai_answer(["a"]))
    messages = (Message("system", "of this house"), Message("user", "before"), Message("user", "now"))
    await text_of(found, GenerationRequest("m", messages=messages, keep_alive="5m"))
    (body,) = found.cloud.asked
    assert body["messages"] == [{"role": "user", "content": "now"}]
    assert body["max_completion_tokens"] == POLICY.answer_tokens_max
    assert set(body) == {
        "model", "messages", "stream", "stream_options", "logprobs", "top_logprobs", "max_completion_tokens",
    }  # fmt: skip


async def test_comments_of_openrouter_are_no_records(autojump_clock):
    reply = Reply([Send(OPENROUTER_COMMENT), *openai_answer(["a"]).steps])
    assert await text_of(rig(reply, provider="openrouter")) == "a"


async def test_without_consent_nothing_is_asked(autojump_clock):
    found = rig(openai_answer(["a"]))
    CONSENT.set(False)
    with pytest.raises(BrokerDisabled):
        await chunks_of(found.satellite)
    assert (found.cloud.asked, found.cloud.permits, found.lines) == ([], [], [])


async def test_without_a_key_nothing_is_asked(autojump_clock):
    found = rig(key=KeyFound(None, "set OPENAI_API_KEY"))
    error = await failure_of(found.satellite)
    assert isinstance(error, RuntimeUnavailable)
    assert "OPENAI_API_KEY" in error.message
    assert found.cloud.asked == []


# ── before the first token ──

FAILURES = {
    "openai": [openai_error(500, "x"), openai_error(429, "x", "rate_limit_exceeded"), openai_error(503, "x")],
    "anthropic": [anthropic_error(529, "overloaded_error", "x"), anthropic_error(500, "api_error", "x")],
    "openrouter": [openrouter_error(502, "x"), openrouter_error(408, "x")],
}


@pytest.mark.parametrize(("provider", "at"), [(name, at) for name in PROVIDERS for at in range(len(FAILURES[name]))])
async def test_what_may_pass_is_tried_again(provider, at, autojump_clock):
    failure = FAILURES[provider][at]
    found = rig(Reply(failure.steps, failure.status), answer(provider, "ok"), provider=provider)
    assert await text_of(found) == "ok"
    assert found.lines[-1]["attempts"] == 2
    assert found.state is BreakerState.CLOSED


async def test_pauses_are_jittered_and_attempts_bounded(autojump_clock):
    found = rig(*(openai_error(500, "x") for _ in range(3)), draw=1.0)
    began_s = trio.current_time()
    assert isinstance(await failure_of(found.satellite), UpstreamProtocolError)
    assert trio.current_time() - began_s == pytest.approx(0.25 + 0.5)
    assert len(found.cloud.asked) == 3


@pytest.mark.parametrize(
    "refusal",
    [openai_error(401, "bad key"), openrouter_error(402, "no credit"), openai_error(400, "bad request")],
    ids=["401", "402", "400"],
)
async def test_what_will_not_pass_is_not_tried_again(refusal, autojump_clock):
    found = rig(Reply(refusal.steps, refusal.status))
    await failure_of(found.satellite)
    assert len(found.cloud.asked) == 1


async def test_a_stream_that_ends_before_its_first_token_is_tried_again(autojump_clock):
    cut = Reply([Send(openai_chunk("")), Break()])
    found = rig(cut, Reply([Send(openai_chunk(""))]), openai_answer(["x"]))
    assert await text_of(found) == "x"


async def test_no_token_in_time(autojump_clock):
    found = rig(Reply([Silence()]), retry=attrs.evolve(POLICY.retry, attempts_max=1))
    began_s = trio.current_time()
    assert isinstance(await failure_of(found.satellite), UpstreamTimeout)
    assert trio.current_time() - began_s == pytest.approx(POLICY.first_token_s)


# ── after it ──


@pytest.mark.parametrize(
    ("last", "error"),
    [(Break(), UpstreamTruncated), (Send(openrouter_error_in_stream()), UpstreamProtocolError)],
)
async def test_nothing_is_tried_again_after_the_first_token(last, error, autojump_clock):
    found = rig(Reply([Send(openai_chunk("a")), last]), openai_answer(["never"]), provider="openrouter")
    assert isinstance(await failure_of(found.satellite), error)
    assert len(found.cloud.asked) == 1
    assert found.lines[-1]["outcome"] == error.code
    assert found.lines[-1]["tokens"] == found.lines[-1]["tokens_max"]  # who knows


async def test_a_call_ends_after_its_time_whatever_has_come(autojump_clock):
    found = rig(openai_answer(["word"] * 1000, after_s=0.5))
    began_s = trio.current_time()
    assert isinstance(await failure_of(found.satellite), UpstreamTimeout)
    assert trio.current_time() - began_s == pytest.approx(POLICY.call_max_s)
    assert found.state is BreakerState.CLOSED  # it was slow, and well


async def test_leaving_closes_the_connection_and_settles(autojump_clock):
    reply = Reply([Send(openai_chunk("a")), Silence()])
    found = rig(reply)
    with trio.move_on_after(1):
        await chunks_of(found.satellite)
    assert reply.body.closed
    assert found.lines[-1]["outcome"] == "cancelled"
    assert found.broker.counters.failed == 0


# ── the breaker ──


async def test_a_provider_that_keeps_failing_is_left_alone_and_tried_again_later(autojump_clock):
    failures = [openai_error(500, "x") for _ in range(4)]
    found = rig(*failures, openai_answer(["well"]), retry=attrs.evolve(POLICY.retry, attempts_max=1))
    for _ in range(3):
        await failure_of(found.satellite)
    assert found.state is BreakerState.OPEN
    error = await failure_of(found.satellite)
    assert isinstance(error, RuntimeUnavailable)
    assert error.details["retry_after_s"] == 10
    assert len(found.cloud.asked) == 3  # it was not asked
    await trio.sleep(10)
    assert found.state is BreakerState.HALF_OPEN
    await failure_of(found.satellite)  # the trial fails
    assert found.satellite.health.breaker.wait_s(trio.current_time()) == pytest.approx(20)
    await trio.sleep(20)
    assert await text_of(found) == "well"
    assert found.state is BreakerState.CLOSED


async def test_a_request_at_fault_or_a_cancelled_one_says_nothing_about_the_provider(autojump_clock):
    found = rig(*(openai_error(400, "x") for _ in range(5)), Reply([Silence()]))
    for _ in range(5):
        assert isinstance(await failure_of(found.satellite), InvalidRequest)
    with trio.move_on_after(1):
        await chunks_of(found.satellite)
    assert found.state is BreakerState.CLOSED
    assert found.satellite.health.breaker.failed == 0


async def test_a_cancelled_trial_makes_room_for_another(autojump_clock):
    one = attrs.evolve(POLICY.retry, attempts_max=1)
    found = rig(*(openai_error(500, "x") for _ in range(3)), Reply([Silence()]), openai_answer(["ok"]), retry=one)
    for _ in range(3):
        await failure_of(found.satellite)
    await trio.sleep(10)
    with trio.move_on_after(1):
        await chunks_of(found.satellite)
    assert await text_of(found) == "ok"


async def test_the_hour_bounds_attempts_too(autojump_clock):
    found = rig(openai_error(500, "x"), openai_answer(["x"]), requests_per_hour=1)
    assert isinstance(await failure_of(found.satellite), Overloaded)
    assert len(found.cloud.asked) == 1


# ── what it is to the engine ──


async def test_it_is_asked_for_nothing_but_answers(autojump_clock):
    found = rig()
    assert [(m.name, m.size_bytes) for m in await found.satellite.list_models()] == [("m", None)]
    assert (await found.satellite.probe()).up
    assert (await found.satellite.unload("m"), await found.satellite.resident()) == (0, None)
    with pytest.raises(InvalidRequest, match="nothing to load"):
        await found.satellite.load("m")
    found.broker.mode = BrokerMode.DISABLED
    probe = await found.satellite.probe()
    assert not probe.up
    assert "disabled" in probe.reason
    assert found.cloud.asked == []
    assert KEY not in repr(found.satellite)
