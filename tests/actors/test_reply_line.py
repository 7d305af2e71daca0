"""The line between a session and the caller it answers: nothing overtakes, nothing is lost, nothing comes twice."""

from __future__ import annotations

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from actors.reply_line import ITEMS_MAX, Begun, Ended, Item, ReplyLine, Spoken
from engine.domain.generation import Chunk, EndReason

WORDS = [Chunk(f"w{number}", number) for number in range(ITEMS_MAX)]
STEPS = st.lists(st.sampled_from(["put", "turn", "refuse", "take"]), max_size=30)


@given(STEPS, st.booleans())
@settings(deadline=None)
def test_all_that_was_put_is_told_once_and_in_order_whichever_way(steps: list[str], slow: bool):
    told: list[str] = []
    takes = True

    def at_once(item: Item) -> Spoken | None:
        assert isinstance(item, Chunk)
        if not takes:
            return Spoken(item.text.encode())
        told.append(item.text)
        return None

    async def listen(line: ReplyLine) -> None:
        while not isinstance(item := await line.next(at_once), Ended):
            if slow:
                await trio.lowlevel.checkpoint()
            told.append(item.data.decode() if isinstance(item, Spoken) else item.text)

    async def main() -> None:
        nonlocal takes
        line, count = ReplyLine(), 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, line)
            for step in steps:
                match step:
                    case "put":
                        assert line.try_put(WORDS[count])
                        count += 1
                    case "turn":
                        await trio.lowlevel.checkpoint()
                    case _:
                        takes = step == "take"
            line.end(EndReason.FINISHED, None, None)
        assert told == [word.text for word in WORDS[:count]]

    trio.run(main)


async def test_who_does_not_wait_is_given_nothing_at_once():
    line, told = ReplyLine(), []
    line.try_put(Begun(1.0))
    assert isinstance(await line.next(told.append), Begun)
    line.try_put(WORDS[0])  # between two calls
    assert (await line.next(told.append), told) == (WORDS[0], [])


async def test_a_caller_who_stopped_waiting_is_given_nothing_more(autojump_clock):
    line, told = ReplyLine(), []
    with trio.move_on_after(1):
        await line.next(told.append)
    line.try_put(WORDS[0])
    assert told == []
    line.leave()
    line.try_put(WORDS[1])
    assert told == []


async def test_what_fails_at_once_wakes_the_caller():
    line = ReplyLine()
    broken = Spoken(b"half")

    async def listen() -> None:
        assert await line.next(lambda _: broken) is broken

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        assert line.try_put(WORDS[0])
