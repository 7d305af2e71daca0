"""EnergyMapper: same order, one meter per stream, and tokens of unknown streams are counted, not guessed at."""

from __future__ import annotations

import trio

from actors.kernel import mailbox
from actors.mapper import EnergyMapper, MapperCounters
from engine.domain.energy import EnergyMeter
from engine.domain.events import (
    MappedSignal,
    ModelChanged,
    SampleBatch,
    SessionClosed,
    SessionOpened,
    SessionSignal,
    TokenBatch,
)
from engine.domain.generation import EndReason, Origin, Parameters, StreamRef
from engine.domain.models import ModelState
from tests.domain.strategies import PARAMS, token

ONE, TWO = StreamRef("s1", "s1:0", "a"), StreamRef("s2", "s2:0", "b")


def opened(ref):
    return SessionOpened(ref.session_id, 0, "single", (ref,), (), Parameters(), PARAMS, Origin.API, False)


def closed(ref):
    return SessionClosed(ref.session_id, 9, EndReason.FINISHED, None, 0, None, 1.0, None, None)


async def mapped(*signals, counters=None):
    outlet, inlet = mailbox[SessionSignal]("signals", 64)
    samples, samples_in = mailbox[MappedSignal]("samples", 64)
    for signal in signals:
        outlet.offer(signal)
    outlet.close()
    mapper = EnergyMapper(inlet, samples, counters or MapperCounters())
    await mapper.run(task_status=trio.TASK_STATUS_IGNORED)
    samples.close()
    async with samples_in.open() as channel:
        return [item async for item in channel], mapper


async def test_order_is_kept_and_streams_do_not_mix():
    first, second = token(0, 0, None, [-0.5]), token(1, 50_000, 50_000, [-0.1])
    other = token(0, 10, None)
    out, _ = await mapped(
        opened(ONE), TokenBatch(ONE, (first,)), opened(TWO), TokenBatch(TWO, (other,)), TokenBatch(ONE, (second,))
    )
    assert [type(s) for s in out] == [SessionOpened, SampleBatch, SessionOpened, SampleBatch, SampleBatch]
    meter = EnergyMeter.started(PARAMS, 0)
    assert out[1].samples == (meter.token(first),)
    assert out[4].samples == (meter.token(second),)
    assert out[4].state == meter.state
    assert out[3].state.tokens == 1


async def test_tokens_of_an_unknown_stream_are_counted_and_its_end_still_passes():
    counters = MapperCounters()
    out, _ = await mapped(TokenBatch(ONE, (token(0, 0, None),)), closed(ONE), counters=counters)
    assert [type(s) for s in out] == [SessionClosed]
    assert counters.orphans == 1


async def test_a_session_that_ended_leaves_nothing_behind():
    _, mapper = await mapped(opened(ONE), TokenBatch(ONE, (token(0, 0, None),)), closed(ONE))
    assert (mapper._meters, mapper._streams) == ({}, {})


async def test_other_signals_pass_unchanged():
    news = ModelChanged(None, "a", ModelState.LOADING)
    out, _ = await mapped(news)
    assert out == [news]
