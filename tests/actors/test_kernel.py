"""Mailboxes and replies: nothing lost, everything bounded, every refusal counted."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from actors.kernel import Reply, drain, mailbox
from engine.domain.errors import Overloaded


def test_an_unbounded_mailbox_cannot_be_asked_for():
    with pytest.raises(TypeError):
        mailbox[int]("x", None)


async def test_put_waits_when_full_and_says_for_how_long(autojump_clock):
    outlet, inlet = mailbox[int]("box", 1)
    assert await outlet.put(1) == 0.0
    async with inlet.open() as channel, trio.open_nursery() as nursery:

        async def reader():
            await trio.sleep(2.5)
            assert await channel.receive() == 1

        nursery.start_soon(reader)
        assert await outlet.put(2) == 2.5
        assert await channel.receive() == 2
    flow = outlet.flow()
    assert (flow.sent, flow.refused, flow.blocked_s, flow.peak) == (2, 0, 2.5, 1)


async def test_a_cancelled_put_sends_nothing(autojump_clock):
    outlet, inlet = mailbox[int]("box", 1)
    await outlet.put(1)
    with trio.move_on_after(1):
        await outlet.put(2)
    outlet.close()
    async with inlet.open() as channel:
        assert [item async for item in channel] == [1]
    assert outlet._counters.sent == 1


async def test_offer_never_waits_and_counts_refusals():
    outlet, inlet = mailbox[int]("box", 2)
    assert [outlet.offer(i) for i in range(4)] == [True, True, False, False]
    assert (outlet.flow().refused, inlet.depth) == (2, 2)
    inlet.close()
    assert outlet.offer(9) is False


async def test_forks_share_the_counters_and_the_last_close_ends_the_stream():
    outlet, inlet = mailbox[int]("box", 4)
    other = outlet.fork()
    outlet.offer(1)
    other.offer(2)
    assert outlet.flow().sent == other.flow().sent == 2
    outlet.close()
    other.close()
    async with inlet.open() as channel:
        assert [item async for item in channel] == [1, 2]


async def test_messages_outlive_a_reader_that_crashed():
    outlet, inlet = mailbox[int]("box", 10)
    for i in range(10):
        outlet.offer(i)
    outlet.close()
    seen = []
    with pytest.raises(ZeroDivisionError):
        async with inlet.open() as channel:
            async for item in channel:
                if item == 3:
                    raise ZeroDivisionError
                seen.append(item)
    async with inlet.open() as channel:
        seen += [item async for item in channel]
    assert seen == [0, 1, 2, 4, 5, 6, 7, 8, 9]  # only the poisonous one is gone


async def test_producers_learn_that_nobody_will_read_again():
    outlet, inlet = mailbox[int]("box", 1)
    inlet.close()
    with pytest.raises(trio.BrokenResourceError):
        await outlet.put(1)


@given(st.lists(st.integers(), min_size=1, max_size=30), st.integers(1, 12))
async def test_drain_keeps_order_and_its_bound(items, limit):
    outlet, inlet = mailbox[int]("box", 64)
    for item in items:
        outlet.offer(item)
    outlet.close()
    got = []
    async with inlet.open() as channel:
        async for first in channel:
            batch = drain(channel, first, limit)
            assert len(batch) <= limit
            got += batch
    assert got == items


async def test_a_reply_to_someone_who_left_is_not_a_grant():
    reply: Reply[int] = Reply()
    with trio.move_on_after(0):
        await reply.wait()
    assert reply.abandoned
    assert reply.set(1) is False


async def test_a_reply_gives_its_value_or_its_error():
    given_, failed = Reply[int](), Reply[int]()
    assert given_.set(7)
    failed.fail(Overloaded("full"))
    assert await given_.wait() == 7
    with pytest.raises(Overloaded):
        await failed.wait()


async def test_a_value_given_before_the_cancel_is_still_delivered():
    reply: Reply[int] = Reply()
    got = []

    async def asker(scope):
        with scope:
            got.append(await reply.wait())

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asker, scope)
        await wait_all_tasks_blocked()
        assert reply.set(5)
        scope.cancel()
    assert got == [5]
