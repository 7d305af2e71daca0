"""The broker's books: what is reserved, what was used up, what is written down, and what a restart remembers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from actors.broker import Broker, Satellite
from engine.domain.errors import BrokerDisabled, Overloaded, RuntimeUnavailable
from engine.domain.generation import EndReason, GenerationEnd, GenerationRequest, Message, Parameters
from engine.domain.usage import Price
from policies.broker import CONSENT, BrokerMode, Occasion
from policies.load import load_policies

POLICY = load_policies().broker
SECRET = "my darkest secret"
ASKED = GenerationRequest(
    "gpt", messages=(Message("system", "x"), Message("user", SECRET)), parameters=Parameters(max_tokens=100)
)
GPT = Satellite("openai", "api.openai.com", 443, "gpt")
PRICE = Price(1000, 2000)
BEGAN_S = 1_795_168_800.0  # 2026-11-20T10:00:00Z


@attrs.define(eq=False)
class Wall:
    """A wall clock that a test moves."""

    now_s: float = BEGAN_S

    def __call__(self) -> float:
        return self.now_s


@attrs.define(eq=False)
class Lines:
    """A log that may fail."""

    lines: list[Mapping[str, Any]] = attrs.field(factory=list)
    failing: bool = False

    async def write(self, line: Mapping[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if self.failing:
            raise OSError(28, "No space left on device")
        json.dumps(line)
        self.lines.append(dict(line))


def broker_of(wall: Wall, log: Lines, **policy: Any) -> Broker:
    prices = {"gpt": PRICE}
    return Broker(attrs.evolve(POLICY, **policy), True, BrokerMode.ADVISORY, prices.get, log, wall)


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture(autouse=True)
def consent():
    token = CONSENT.set(True)
    yield
    CONSENT.reset(token)


async def call_of(broker: Broker, *, bytes_out: int = 500, asked: GenerationRequest = ASKED):
    call = await broker.admit(GPT, asked, Occasion.NAMED)
    broker.attempt(call)
    call.permit.meter.bytes_out += bytes_out
    return call


def end(tokens_in: int | None = 10, tokens_out: int | None = 20) -> GenerationEnd:
    return GenerationEnd(EndReason.FINISHED, tokens_in, tokens_out)


async def test_a_call_is_written_down_before_it_leaves_and_when_it_is_over(wall, log):
    CONSENT.set(True)
    broker = broker_of(wall, log)
    call = await call_of(broker)
    assert [line["event"] for line in log.lines] == ["asked"]
    assert log.lines[0]["would_leave"] == {
        "messages": 1, "text_bytes": len(SECRET), "images": 0, "tools": 0,
        "kept_here": {"messages": 1, "text_bytes": 1},
    }  # fmt: skip
    wall.now_s += 1.5
    await broker.settle(call, end(), "finished")
    last = log.lines[-1]
    assert (last["at"], last["outcome"], last["bytes_out"], last["duration_ms"]) == (
        "2026-11-20T10:00:01Z", "finished", 500, 1500,
    )  # fmt: skip
    assert (last["tokens"], last["nusd"], last["counted"]) == (30, 10 * 1000 + 20 * 2000, True)
    assert (last["provider"], last["host"], last["model"]) == ("openai", "api.openai.com", "gpt")
    assert SECRET not in json.dumps(log.lines)


async def test_the_permit_is_for_its_host_alone(wall, log):
    call = await call_of(broker_of(wall, log))
    assert call.permit.covers("api.openai.com", 443, tls=True)
    assert not call.permit.covers("api.openai.com", 443, tls=False)
    assert not call.permit.covers("api.anthropic.com", 443, tls=True)


async def test_what_is_refused_says_what_would_have_left(wall, log):
    CONSENT.set(False)
    broker = broker_of(wall, log)
    with pytest.raises(BrokerDisabled) as caught:
        await broker.admit(GPT, ASKED, Occasion.NAMED)
    told = caught.value.details["would_leave"]
    assert (told["host"], told["model"], told["text_bytes"]) == ("api.openai.com", "gpt", len(SECRET))
    assert told["usd_max"] == pytest.approx((told["tokens_max"] - 100) * 1e-6 + 100 * 2e-6)
    assert SECRET not in json.dumps(caught.value.as_dict())
    assert (log.lines, broker.counters.refused) == ([], {"BROKER_DISABLED": 1})


async def test_running_calls_count_with_their_bounds(wall, log):
    broker = broker_of(wall, log)
    call = await call_of(broker)
    assert broker.spent().tokens_today == call.tokens_max > 100
    await broker.settle(call, end(), "finished")
    assert broker.spent().tokens_today == 30


@pytest.mark.parametrize(
    ("ending", "bytes_out", "bound"), [(None, 500, True), (None, 0, False), (end(None, 20), 500, True)]
)
async def test_what_nobody_counted_counts_with_its_bound_unless_nothing_left(ending, bytes_out, bound, wall, log):
    broker = broker_of(wall, log)
    call = await call_of(broker, bytes_out=bytes_out)
    await broker.settle(call, ending, "UPSTREAM_TRUNCATED")
    assert broker.spent().tokens_today == (call.tokens_max if bound else 0)
    assert log.lines[-1]["counted"] is False


async def test_so_many_calls_in_any_hour(wall, log):
    broker = broker_of(wall, log, requests_per_hour=3)
    for _ in range(3):
        await broker.settle(await call_of(broker), end(), "finished")
        wall.now_s += 60
    with pytest.raises(Overloaded) as caught:
        await broker.admit(GPT, ASKED, Occasion.NAMED)
    assert caught.value.details["retry_after_s"] == 3600 - 180
    wall.now_s += 3600 - 180
    await broker.settle(await call_of(broker), end(), "finished")


async def test_further_attempts_of_one_call_are_calls_too(wall, log):
    broker = broker_of(wall, log, requests_per_hour=2)
    call = await call_of(broker)
    broker.attempt(call)
    with pytest.raises(Overloaded):
        broker.attempt(call)
    assert (call.attempts, broker.spent().calls_last_hour) == (2, 2)


async def test_once_it_is_off_no_further_attempt_is_made(wall, log):
    broker = broker_of(wall, log)
    call = await call_of(broker)
    broker.switch(BrokerMode.DISABLED)
    with pytest.raises(BrokerDisabled):
        broker.attempt(call)


async def test_two_at_once_cannot_overdraw_the_day(wall, log):
    broker = broker_of(wall, log, daily_tokens=350)
    granted = []

    async def ask() -> None:
        try:
            granted.append(await broker.admit(GPT, ASKED, Occasion.NAMED))
        except Overloaded:
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert sum(call.tokens_max for call in granted) <= 350
    assert len(granted) == 350 // granted[0].tokens_max


async def test_a_new_day_begins_at_midnight_utc(wall, log):
    broker = broker_of(wall, log, daily_tokens=200)
    await broker.settle(await call_of(broker), end(80, 80), "finished")
    with pytest.raises(Overloaded):
        await broker.admit(GPT, ASKED, Occasion.NAMED)
    wall.now_s += 14 * 3600
    await broker.settle(await call_of(broker), end(), "finished")
    assert broker.spent().tokens_today == 30


async def test_where_it_cannot_be_written_down_nothing_leaves(wall, log):
    broker = broker_of(wall, log)
    log.failing = True
    with pytest.raises(RuntimeUnavailable, match="nothing leaves"):
        await broker.admit(GPT, ASKED, Occasion.NAMED)
    assert broker.spent() == broker_of(wall, log).spent()
    log.failing = False
    call = await call_of(broker)
    log.failing = True
    await broker.settle(call, end(), "finished")
    assert broker.mode is BrokerMode.DISABLED


async def test_the_end_of_a_cancelled_call_is_written_down_too(wall, log):
    broker = broker_of(wall, log)
    call = await call_of(broker)
    with trio.CancelScope() as scope:
        scope.cancel()
        await broker.settle(call, None, "cancelled")
    assert log.lines[-1]["outcome"] == "cancelled"
    assert broker.counters.failed == 0


async def test_the_switch(wall, log):
    broker = broker_of(wall, log)
    broker.tier_allows = False
    with pytest.raises(BrokerDisabled, match="tier hybrid"):
        broker.switch(BrokerMode.HYBRID)
    broker.switch(BrokerMode.DISABLED)
    await broker.note_mode()
    assert log.lines == [{"at": "2026-11-20T10:00:00Z", "event": "mode", "mode": "disabled"}]
    broker.tier_allows, broker.locked = True, True
    with pytest.raises(BrokerDisabled, match="core lock"):
        broker.switch(BrokerMode.ADVISORY)
    broker.locked, log.failing = False, True
    broker.switch(BrokerMode.ADVISORY)
    with pytest.raises(RuntimeUnavailable):
        await broker.note_mode()
    assert broker.mode is BrokerMode.DISABLED


async def test_a_restart_remembers_the_hour_and_the_day(wall, log):
    broker = broker_of(wall, log)
    await broker.settle(await call_of(broker), end(), "finished")
    wall.now_s += 10
    lost = await call_of(broker)  # the engine was killed in it
    again = broker_of(wall, log)
    again.remember(log.lines)
    assert again.spent().calls_last_hour == 2
    assert again.spent().tokens_today == 30 + lost.tokens_max
    assert again.spent().nusd_today == 50_000 + lost.nusd_max
    wall.now_s += 86_400
    later = broker_of(wall, log)
    later.remember(log.lines)
    assert later.spent() == attrs.evolve(broker_of(wall, log).spent())


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3)
STRANGE = st.dictionaries(
    st.sampled_from(["event", "call", "at_s", "tokens", "nusd", "tokens_max", "nusd_max", "attempts"]),
    JSON | st.sampled_from(["asked", "ended", "mode"]),
)


@given(st.lists(STRANGE, max_size=10))
def test_strange_lines_are_survived(lines):
    wall = Wall()
    broker = broker_of(wall, Lines())
    broker.remember(lines)
    spent = broker.spent()
    assert spent.tokens_today >= 0
    assert spent.calls_last_hour >= 0
