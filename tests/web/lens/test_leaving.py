"""Clients that leave, that do not read, and answers that somebody else stops; in virtual time."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.reply_line import ITEMS_MAX
from engine.domain.generation import EndReason
from engine.settings import LensSettings, LimitSettings, Settings, TimeoutSettings
from tests.fakes.api import PIECES_MAX, Api, Connection, running_api
from tests.fakes.runtime import Say, ScriptedRuntime, words
from tests.web.lens.ways import OLLAMA_CHAT, Way

SECONDS = 3.0
GAP_S = 0.1
LONG = words(30, GAP_S)
FLOOD = words(4 * ITEMS_MAX, after_s=0.0)
HASTY = Settings(timeouts=TimeoutSettings(first_token_s=2.0, progress_s=2.0))


def scripted(*steps, **more):
    return lambda clock: ScriptedRuntime(clock, steps or LONG, **more)


def only_session(api: Api):
    (session,) = api.slice.core.sessions.known()
    return session


async def left_after(api: Api, way: Way, seconds: float, *, stream: bool = True, **headers: str):
    """The session of a client that left after so long."""
    async with api.open("POST", way.path, way.body(stream=stream), **headers):
        await trio.sleep(seconds)
        session = only_session(api)
    return session


# ── the client leaves ──


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_its_answer_at_once(stream, way: Way, autojump_clock):
    async with running_api(scripted()) as api:
        session = await left_after(api, way, 1.02, stream=stream)  # between two words
        left = trio.current_time()
        await session.closed.wait()
        assert trio.current_time() == left
        assert session.reason is EndReason.ABORTED
        assert session.report().tokens_generated == 10
        assert (api.slice.runtime.opened, api.slice.runtime.closed) == (1, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_stops_it(stream, dialect: Way, autojump_clock):
    async with running_api(scripted(Say("late", 3.0))) as api:
        session = await left_after(api, dialect, 1.0, stream=stream)
        await session.closed.wait()
        assert (session.reason, api.slice.runtime.closed) == (EndReason.ABORTED, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_while_it_waits_gives_its_place_up(stream, dialect: Way, autojump_clock):
    async with running_api(scripted(), Settings(limits=LimitSettings(streams_max=1))) as api:
        await api.generate()
        first = only_session(api)
        async with api.open("POST", dialect.path, dialect.body(stream=stream)):
            await trio.sleep(1.0)
            (second,) = [s for s in api.slice.core.sessions.running() if s is not first]
            assert second.state == "queued"
        await second.closed.wait()
        assert (second.reason, first.state) == (EndReason.ABORTED, "streaming")
        assert api.slice.runtime.opened == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_during_the_load_never_asks_the_runtime(stream, dialect: Way, autojump_clock):
    async with running_api(scripted(load_s=2.0)) as api:
        async with api.open("POST", dialect.path, dialect.body(stream=stream)):
            await trio.sleep(1)
            session = only_session(api)
            assert session.report().state == "loading"
        await session.closed.wait()
        assert session.reason is EndReason.ABORTED
        await trio.sleep(3)  # the load itself goes on, and is over
        assert api.slice.runtime.opened == 0


# ── policies ──


POLICIES = [
    ("cancel", 1.0, EndReason.ABORTED),
    ("continue", SECONDS, EndReason.FINISHED),
    ("continue_for=1s", 2.0, EndReason.ABORTED),
    ("continue_for=3600s", SECONDS, EndReason.FINISHED),
]


@pytest.mark.parametrize("by_config", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("policy", "ends_s", "reason"), POLICIES, ids=[policy for policy, _, _ in POLICIES])
async def test_what_becomes_of_an_answer_is_for_its_client_to_say(
    policy, ends_s, reason, stream, by_config, dialect: Way, autojump_clock
):
    settings = Settings(lens=LensSettings(on_disconnect=policy)) if by_config else Settings()
    headers = {} if by_config else {"x_wf_on_disconnect": policy}
    async with running_api(scripted(), settings) as api:
        began = trio.current_time()
        session = await left_after(api, dialect, 1.0, stream=stream, **headers)
        await session.closed.wait()
        assert session.reason is reason
        assert trio.current_time() - began == pytest.approx(ends_s, abs=2 * GAP_S)
        assert api.slice.runtime.closed == 1


async def test_the_header_is_stronger_than_the_configuration(dialect: Way, autojump_clock):
    async with running_api(scripted(), Settings(lens=LensSettings(on_disconnect="continue"))) as api:
        session = await left_after(api, dialect, 1.0, x_wf_on_disconnect="cancel")
        await session.closed.wait()
        assert session.reason is EndReason.ABORTED


async def test_an_answer_that_goes_on_alone_is_still_seen_and_can_be_stopped(dialect: Way, autojump_clock):
    async with running_api(scripted()) as api:
        session = await left_after(api, dialect, 1.0, x_wf_on_disconnect="continue")
        client = api.slice.client()
        await trio.sleep(1)
        assert len(client.text().split()) >= 8
        answer = await api.post("/stop", {"session_id": session.id})
        assert (answer.status, session.reason) == (200, EndReason.ABORTED)


async def test_an_answer_that_goes_on_alone_is_not_held_by_what_nobody_takes(dialect: Way, autojump_clock):
    async with running_api(scripted(*FLOOD)) as api:
        async with api.open("POST", dialect.path, dialect.streamed(), x_wf_on_disconnect="continue"):
            await trio.sleep(1)
            session = only_session(api)
            assert session.state == "streaming"
        await session.closed.wait()
        assert (session.reason, session.report().tokens_generated) == (EndReason.FINISHED, len(FLOOD) - 1)


async def test_every_policy_that_the_configuration_takes_can_be_carried_out(dialect: Way, autojump_clock):
    try:
        settings = Settings(lens=LensSettings(on_disconnect="continue_for=9999s"))
    except ValueError:
        return
    async with running_api(settings=settings) as api:
        answer = await api.post(dialect.path, dialect.body())
        assert answer.status == 200, answer.body


async def test_a_client_that_took_all_of_it_leaves_nothing_behind(dialect: Way, autojump_clock):
    async with running_api(scripted(*words(5))) as api:
        before = trio.lowlevel.current_statistics().tasks_living
        for policy in ("cancel", "continue", "continue_for=30s"):
            answer = await api.post(dialect.path, dialect.streamed(), x_wf_on_disconnect=policy)
            assert api.slice.core.sessions.get(answer.headers["x-wf-session"]).reason is EndReason.FINISHED
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living <= before


async def test_waiting_for_a_client_that_left_ends_with_the_answer(dialect: Way, autojump_clock):
    """`continue_for` of an hour must not keep a task for an hour."""
    async with running_api(scripted()) as api:
        before = trio.lowlevel.current_statistics().tasks_living
        session = await left_after(api, dialect, 1.0, x_wf_on_disconnect="continue_for=3600s")
        await session.closed.wait()
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living <= before


# ── somebody else stops it ──


async def test_a_stop_from_outside_ends_the_clients_stream_well(way: Way, autojump_clock):
    async with running_api(scripted()) as api, api.open("POST", way.path, way.streamed()) as client:
        await trio.sleep(1.02)
        answer = await api.post("/stop", {"session_id": only_session(api).id})
        assert answer.json["success"]
        values = way.values(await client.read_all())
        assert "".join(way.texts(values)) == "".join(f"w{i} " for i in range(10))
        assert way.over(values[-1])
        assert [way.failed(value) for value in values] == [None] * len(values)
        assert api.slice.runtime.closed == 1


async def test_a_stop_from_outside_gives_a_whole_answer_as_far_as_it_came(way: Way, autojump_clock):
    async with running_api(scripted()) as api, api.open("POST", way.path, way.body()) as client:
        await trio.sleep(1.02)
        await api.post("/stop", {"session_id": only_session(api).id})
        body = json.loads(await client.read_all())
        assert client.status == 200
        assert way.text(body) == "".join(f"w{i} " for i in range(10))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_before_the_answer_begins_is_told(stream, dialect: Way, autojump_clock):
    async with (
        running_api(scripted(load_s=2.0)) as api,
        api.open("POST", dialect.path, dialect.body(stream=stream)) as client,
    ):
        await trio.sleep(1)
        await api.post("/stop", {"session_id": only_session(api).id})
        body = json.loads(await client.read_all())
        assert client.status == 502
        assert "stopped" in (dialect.failed(body) or "")


# ── the client does not read ──


async def test_a_client_that_does_not_read_holds_its_runtime_and_loses_nothing(way: Way, autojump_clock):
    async with running_api(scripted(*FLOOD), HASTY) as api, api.open("POST", way.path, way.streamed()) as client:
        await trio.sleep(5)  # longer than a runtime may be silent
        session = only_session(api)
        assert session.state == "streaming"
        assert session.report().tokens_generated <= ITEMS_MAX + PIECES_MAX + 4
        values = way.values(await client.read_all())
        assert "".join(way.texts(values)) == "".join(step.text for step in FLOOD[:-1])
        assert way.over(values[-1])
        await session.closed.wait()
        assert session.reason is EndReason.FINISHED


async def test_a_client_that_does_not_read_is_no_reason_to_hold_the_others(autojump_clock):
    way = OLLAMA_CHAT
    async with running_api(scripted(*FLOOD)) as api, api.open("POST", way.path, way.streamed()):
        await trio.sleep(1)
        began = trio.current_time()
        answer = await api.post(way.path, way.streamed(model="b"))
        assert way.over(way.values(answer.body)[-1])
        assert trio.current_time() - began < 0.1  # such a flood may wait for the frames to take it in; not for a client


async def test_a_client_that_does_not_read_can_still_leave(dialect: Way, autojump_clock):
    async with running_api(scripted(*FLOOD)) as api:
        async with api.open("POST", dialect.path, dialect.streamed()):
            await trio.sleep(1)
            session = only_session(api)
        await session.closed.wait()
        assert (session.reason, api.slice.runtime.closed) == (EndReason.ABORTED, 1)


class LeavesAtTheHead(Connection):
    """A client that is gone when its answer begins; the server finds that out while it sends the head."""

    async def send(self, message):
        self.leave()
        await trio.sleep_forever()


async def test_a_client_that_leaves_at_the_head_stops_its_answer(dialect: Way, autojump_clock):
    async with running_api(scripted()) as api:
        connection = LeavesAtTheHead()
        async with api.open("POST", dialect.path, dialect.streamed(), connection=connection):
            await trio.sleep(1)
            session = only_session(api)
        await session.closed.wait()
        assert (session.reason, api.slice.runtime.closed) == (EndReason.ABORTED, 1)


async def test_a_runtime_that_falls_silent_is_given_up_though_the_client_reads(dialect: Way, autojump_clock):
    async with running_api(scripted(Say("one "), Say("two ", 60.0)), HASTY) as api:
        values = dialect.values((await api.post(dialect.path, dialect.streamed())).body)
        assert "no token for 2 s" in (dialect.failed(values[-1]) or "")
