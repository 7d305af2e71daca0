from __future__ import annotations

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.domain.generation import EndReason, Message
from engine.settings import LimitSettings, SessionSettings, Settings
from tests.fakes.api import HOST, Api, Connection, ndjson, running_api, sse
from tests.fakes.network import http_head, receive
from tests.fakes.runtime import Say, ScriptedRuntime, words
from tests.web.test_guard import serving
from transport.wire.frames import SCHEMA_VERSION
from web.generate import KEEP_ALIVE_S

ASK = {"model": "a", "prompt": "hello"}
STREAM = {**ASK, "stream": True}
FULL = Settings(limits=LimitSettings(streams_max=1, queued_max=1))
LONG = words(2000)


def scripted(*steps, **more):
    return lambda clock: ScriptedRuntime(clock, steps, **more)


def text_of(lines) -> str:
    return "".join(t["text"] for line in lines if line["type"] == "experience.token" for t in line["payload"]["tokens"])


def types_of(lines) -> list[str]:
    return [line["type"] for line in lines]


async def ended(api: Api, session_id: str) -> EndReason | None:
    session = api.slice.core.sessions.get(session_id)
    await session.closed.wait()
    return session.reason


class LeavesAtTheHead(Connection):
    """A client that is gone when its answer begins; the server finds that out while it sends the head."""

    async def send(self, message):
        self.leave()
        await trio.sleep_forever()


# ── starting ──


async def test_generate_answers_at_once_and_the_session_runs_on(autojump_clock):
    async with running_api() as api:
        began = trio.current_time()
        answer = await api.post("/generate", ASK)
        assert trio.current_time() == began
        body = answer.json
        assert answer.status == 202
        assert body["stream_url"] == f"/stream/{body['session_id']}"
        assert (body["models"], body["dropped_models"]) == (["a"], [])
        assert await ended(api, body["session_id"]) is EndReason.FINISHED


async def test_what_was_asked_reaches_the_runtime(autojump_clock):
    async with running_api() as api:
        await api.generate(parameters={"temperature": 0.5, "max_tokens": 9, "stop": ["END"]})
        await api.generate(prompt=None, messages=[{"role": "user", "content": "hi"}])
        await trio.sleep(1)
        first, second = api.slice.runtime.requests
        assert (first.model, first.prompt) == ("a", "hello")
        assert (first.parameters.temperature, first.parameters.max_tokens, first.parameters.stop) == (0.5, 9, ("END",))
        assert (second.prompt, second.messages) == (None, (Message("user", "hi"),))


@pytest.mark.parametrize("name", ["a", "scripted/a"])
async def test_a_model_can_be_named_with_its_runtime(name, autojump_clock):
    async with running_api() as api:
        assert (await api.post("/generate", {**ASK, "model": name})).json["models"] == ["a"]


async def test_a_page_is_told_from_a_program(autojump_clock):
    async with running_api() as api:
        client = api.slice.client()
        await api.generate()
        await api.post("/generate", ASK, sec_fetch_site="same-origin")
        await trio.sleep(1)
        starts = client.events("experience.session_start")
        assert [e["payload"]["origin"] for e in starts] == ["api", "dashboard"]


@pytest.mark.parametrize(
    ("body", "status", "code", "told"),
    [
        ({"model": "a"}, 400, "VALIDATION_ERROR", "exactly one"),
        ({**ASK, "messages": [{"role": "user", "content": "x"}]}, 400, "VALIDATION_ERROR", "exactly one"),
        ({"prompt": "x"}, 400, "VALIDATION_ERROR", "model"),
        (
            {**ASK, "parameters": {"temperature": 3}},
            400,
            "VALIDATION_ERROR",
            "parameters.temperature: must be a number <= 2.0",
        ),
        ({**ASK, "model": "../a"}, 400, "VALIDATION_ERROR", "model"),
        ({**ASK, "model": "aa"}, 404, "MODEL_NOT_FOUND", "did you mean a?"),
        ({**STREAM, "model": "zzzzz"}, 404, "MODEL_NOT_FOUND", "zzzzz"),
    ],
)
async def test_what_cannot_be_asked_is_refused(body, status, code, told, autojump_clock):
    async with running_api() as api:
        answer = await api.post("/generate", body)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert told in answer.error["message"]
        assert api.slice.core.sessions.live == 0


async def test_a_model_that_came_up_since_is_found(autojump_clock):
    async with running_api() as api:
        api.slice.runtime.models = ("a", "new")
        assert (await api.post("/generate", {**ASK, "model": "new"})).status == 202


@pytest.mark.parametrize("body", [ASK, STREAM])
async def test_too_many_are_told_when_to_come_back(body, autojump_clock):
    async with running_api(scripted(*LONG), FULL) as api:
        await api.generate()
        await api.generate()
        answer = await api.post("/generate", body)
        assert (answer.status, answer.error["code"], answer.error["retryable"]) == (503, "OVERLOADED", True)
        assert answer.headers["retry-after"] == "1"
        assert answer.error["details"]["limit"] == 2


async def test_an_engine_that_stops_says_when_to_come_back_too(autojump_clock):
    async with running_api() as api:
        api.slice.core.close()
        await trio.sleep(0.1)
        answer = await api.post("/generate", ASK)
        assert (answer.status, answer.error["code"]) == (503, "OVERLOADED")
        assert "retry-after" in answer.headers


# ── following ──


async def test_ndjson_is_the_whole_session_line_by_line(autojump_clock):
    async with running_api(scripted(*words(20))) as api:
        answer = await api.post("/generate", STREAM)
        lines = ndjson(answer.body)
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert (types_of(lines)[0], types_of(lines)[-1]) == ("experience.session_start", "experience.session_end")
        assert text_of(lines) == "".join(f"w{i} " for i in range(20))
        assert {line["session_id"] for line in lines} == {answer.headers["x-wf-session"]}
        assert await ended(api, answer.headers["x-wf-session"]) is EndReason.FINISHED


async def test_sse_is_the_same_for_who_asks_for_it(autojump_clock):
    async with running_api() as api:
        answer = await api.post("/generate", STREAM, accept="text/event-stream")
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = sse(answer.body)
        assert [name for name, _, _ in events] == types_of(data for _, _, data in events)
        ids = [number for _, number, _ in events]
        assert ids == sorted(set(ids))
        assert events[-1][0] == "experience.session_end"


async def test_each_line_comes_as_it_happens(autojump_clock):
    async with running_api(scripted(*words(5, after_s=1.0))) as api, api.open("POST", "/generate", STREAM) as stream:
        arrived = []
        while data := await stream.receive():
            arrived += [round(trio.current_time(), 1) for t in types_of(ndjson(data)) if t == "experience.token"]
        assert arrived == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("query", "wanted"), [("", False), ("?energy=1", True), ("?energy=true", True), ("?energy=0", False)]
)
async def test_energy_comes_only_when_asked_for(query, wanted, autojump_clock):
    async with running_api() as api:
        followed = await api.get(f"/stream/{await api.generate()}{query}")
        assert ("energy.update" in [name for name, _, _ in sse(followed.body)]) is wanted
        owned = await api.post(f"/generate{query}", STREAM)
        assert ("energy.update" in types_of(ndjson(owned.body))) is wanted


async def test_a_late_reader_gets_the_session_from_its_start(autojump_clock):
    async with running_api() as api:
        session_id = await api.generate()
        early = await api.get(f"/stream/{session_id}")
        await trio.sleep(30)
        late = await api.get(f"/stream/{session_id}")
        assert late.body == early.body


async def test_a_record_is_kept_for_a_minute(autojump_clock):
    async with running_api() as api:
        session_id = await api.generate()
        await trio.sleep(59)
        assert (await api.get(f"/stream/{session_id}")).status == 200
        await trio.sleep(3)
        for answer in (await api.get(f"/stream/{session_id}"), await api.post("/stop", {"session_id": session_id})):
            assert (answer.status, answer.error["code"]) == (404, "SESSION_NOT_FOUND")


async def test_a_quiet_sse_stream_is_kept_alive_and_a_quiet_ndjson_stream_stays_clean(autojump_clock):
    quiet = (Say("a"), Say("b", after_s=4.5 * KEEP_ALIVE_S))
    async with running_api(scripted(*quiet)) as api:
        followed = await api.get(f"/stream/{await api.generate()}")
        assert followed.body.count(b": keep-alive\n\n") == 4
        assert sse(followed.body)[-1][0] == "experience.session_end"
        owned = await api.post("/generate", STREAM)
        assert text_of(ndjson(owned.body)) == "ab"


# ── leaving ──


async def test_leaving_a_stream_of_your_own_stops_the_session(autojump_clock):
    async with running_api(scripted(*LONG)) as api:
        async with api.open("POST", "/generate", STREAM) as stream:
            await stream.receive()
            await trio.sleep(0.5)
        session_id = stream.headers["x-wf-session"]
        assert await ended(api, session_id) is EndReason.ABORTED
        assert (api.slice.runtime.opened, api.slice.runtime.closed) == (1, 1)


async def test_leaving_a_stream_you_only_follow_stops_nothing(autojump_clock):
    async with running_api(scripted(*words(40))) as api:
        session_id = await api.generate()
        async with api.open("GET", f"/stream/{session_id}") as stream:
            await stream.receive()
        assert await ended(api, session_id) is EndReason.FINISHED
        assert api.slice.core.hub._logs[session_id].followers == []


async def test_leaving_before_the_first_line_stops_the_session_too(autojump_clock):
    async with running_api(scripted(*LONG)) as api:
        async with api.open("POST", "/generate", STREAM, connection=LeavesAtTheHead()):
            await trio.sleep(1)
        assert api.slice.core.sessions.live == 0


async def test_closing_the_connection_stops_the_session(autojump_clock):
    """The same through the server, with a client that just goes."""
    async with running_api(scripted(*LONG)) as api, serving(api.app) as server:
        client = await server.listener.connect()
        body = b'{"model":"a","prompt":"x","stream":true}'
        head = http_head("POST", "/generate", HOST, (f"Content-Length: {len(body)}",))
        await client.send_all(head + body)
        while b"session_start" not in await receive(client):
            pass
        await client.aclose()
        await wait_all_tasks_blocked()
        await trio.sleep(0.1)
        assert api.slice.core.sessions.live == 0
        assert (api.slice.runtime.opened, api.slice.runtime.closed) == (1, 1)


# ── bounds ──


async def test_a_backlog_that_lost_its_beginning_says_so(autojump_clock):
    long = [Say("x" * 1000, 0.02) for _ in range(100)]
    small = Settings(session=SessionSettings(backlog_bytes_max=65_536))
    async with running_api(scripted(*long), small) as api:
        session_id = await api.generate()
        await ended(api, session_id)
        await trio.sleep(0.1)
        events = sse((await api.get(f"/stream/{session_id}")).body)
        name, _, notice = events[0]
        assert (name, notice["v"], notice["session_id"]) == ("system.truncated_before", SCHEMA_VERSION, session_id)
        assert notice["payload"]["events_gone"] > 30
        assert [number for _, number, _ in events] == list(range(1, len(events) + 1))
        assert events[-1][0] == "experience.session_end"
        assert sum(len(str(data)) for _, _, data in events) < 2 * 65_536


async def test_a_reader_who_is_too_slow_is_told_and_cut_off_and_nobody_else_is(autojump_clock):
    long = [Say("x" * 60_000, 0.02) for _ in range(80)]
    async with running_api(scripted(*long)) as api:
        session_id = await api.generate()
        async with api.open("GET", f"/stream/{session_id}") as slow, api.open("GET", f"/stream/{session_id}") as quick:
            whole = await quick.read_all()
            await trio.sleep(1)
            part = await slow.read_all()
        assert sse(whole)[-1][0] == "experience.session_end"
        name, _, line = sse(part)[-1]
        assert (name, line["payload"]["code"], line["payload"]["retryable"]) == ("system.error", "OVERLOADED", True)
        assert line["session_id"] == session_id
        assert len(part) < len(whole)


async def test_a_notice_is_a_line_like_any_other(autojump_clock):
    long = [Say("x" * 60_000, 0.02) for _ in range(80)]
    async with running_api(scripted(*long)) as api:
        session_id = await api.generate()
        async with api.open("GET", f"/stream/{session_id}") as slow:
            await trio.sleep(5)
            late = sse((await api.get(f"/stream/{session_id}")).body)
            slow_lines = sse(await slow.read_all())
        for line in (late[0][2], slow_lines[-1][2]):
            assert line.keys() == {"v", "ts_ms", "mono_ms", "type", "session_id", "payload"}


async def test_a_backlog_of_any_size_that_can_be_set_can_be_read(autojump_clock):
    long = [Say("x" * 60_000, 0.02) for _ in range(60)]
    large = Settings(session=SessionSettings(backlog_bytes_max=8 * 1024 * 1024))
    async with running_api(scripted(*long), large) as api:
        session_id = await api.generate()
        await ended(api, session_id)
        await trio.sleep(0.1)
        events = sse((await api.get(f"/stream/{session_id}")).body)
        assert text_of(data for _, _, data in events) == "x" * 60_000 * 60


# ── stopping ──


async def test_stop_returns_when_the_runtime_is_closed_and_can_be_said_again(autojump_clock):
    async with running_api(scripted(*LONG)) as api:
        session_id = await api.generate()
        await trio.sleep(1.01)
        answer = await api.post("/stop", {"session_id": session_id})
        assert (api.slice.runtime.opened, api.slice.runtime.closed) == (1, 1)
        body = answer.json
        assert (body["success"], body["state"], body["reason"]) == (True, "ended", "aborted")
        assert (body["tokens_generated"], body["duration_ms"], body["stop_latency_ms"]) == (20, 1010.0, 0.0)
        assert (await api.post("/stop", {"session_id": session_id})).json == body


async def test_stopping_what_has_ended_changes_nothing(autojump_clock):
    async with running_api() as api:
        session_id = await api.generate()
        await ended(api, session_id)
        body = (await api.post("/stop", {"session_id": session_id})).json
        assert (body["success"], body["reason"], body["stop_latency_ms"]) == (True, "finished", None)


async def test_stopping_a_waiting_session_gives_its_place_up(autojump_clock):
    async with running_api(scripted(*LONG), FULL) as api:
        await api.generate()
        waiting = await api.generate()
        await trio.sleep(0.1)
        body = (await api.post("/stop", {"session_id": waiting})).json
        assert (body["reason"], body["tokens_generated"]) == ("aborted", 0)
        await api.generate()


@pytest.mark.parametrize("body", [{}, {"session_id": ""}, {"session_id": "x" * 65}, {"session_id": 1}])
async def test_stop_needs_a_session_id(body, autojump_clock):
    async with running_api() as api:
        answer = await api.post("/stop", body)
        assert (answer.status, answer.error["code"]) == (400, "VALIDATION_ERROR")
        assert "session_id" in answer.error["message"]


@pytest.mark.parametrize("path", ["/stream/none", "/stream/%2e%2e", "/stream/" + "x" * 500])
async def test_an_unknown_session_is_404(path, autojump_clock):
    async with running_api() as api:
        answer = await api.get(path)
        assert answer.status == 404
        assert answer.error["code"] == "SESSION_NOT_FOUND"


# ── councils and stand-ins ──


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"model": "a", "models": ["a", "b"]}, 400, "exactly one"),
        ({"model": "a", "mode": "council"}, 400, "mode"),
        ({"models": ["a", "b"]}, 400, "mode"),
        ({"models": ["a"], "mode": "council"}, 400, "models"),
        ({"models": ["a", "a"], "mode": "council"}, 400, "models"),
        ({"models": list("abcdefg"), "mode": "turbo"}, 400, "models"),
        ({"models": ["a", "zzz"], "mode": "council"}, 404, "zzz"),
        ({"models": ["a", "b", "c", "d", "e"], "mode": "council", "on_excess": "refuse"}, 429, "mid"),
        ({"models": ["a", "b"], "mode": "council", "method": "judge"}, 400, "judge"),
        ({"models": ["a", "b"], "mode": "council", "method": "luck"}, 400, "method"),
        ({"model": "council:a+b", "method": "first"}, 400, "method"),
        ({"model": "council:a+b", "judge": "c"}, 400, "judge"),
    ],
)
async def test_a_council_that_cannot_be_is_refused_with_the_field(body, status, word, autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, models=tuple("abcde"))) as api:
        answer = await api.post("/generate", {"prompt": "hello", **body})
        assert answer.status == status
        assert word in answer.json["error"]["message"]


async def test_a_level_without_councils_says_so(autojump_clock):
    async with running_api(settings=Settings(level=1)) as api:
        answer = await api.post("/generate", {"models": ["a", "b"], "mode": "council", "prompt": "x"})
        assert (answer.status, answer.json["error"]["code"]) == (403, "LEVEL_LOCKED")


async def test_a_council_names_who_answers_and_who_was_left_out(autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, models=tuple("abcde"))) as api:
        body = {"models": list("abcde"), "mode": "turbo", "prompt": "x"}
        answer = await api.post("/generate", body)
        assert (answer.json["models"], answer.json["dropped_models"]) == (list("abcd"), ["e"])
        lines = sse((await api.get(answer.json["stream_url"])).body)
        assert lines[0][2]["payload"]["mode"] == "turbo"


@attrs.define(eq=False)
class SizedRuntime(ScriptedRuntime):
    """`big` is larger than the tier takes."""

    async def list_models(self):
        return tuple(
            attrs.evolve(model, size_bytes=9_000_000_000) if model.name == "big" else model
            for model in await ScriptedRuntime.list_models(self)
        )


async def test_a_model_too_large_is_replaced_only_when_that_is_allowed_and_it_is_told(autojump_clock):
    async with running_api(lambda clock: SizedRuntime(clock, models=("big", "small"))) as api:
        body = {"model": "big", "prompt": "x"}
        answer = await api.post("/generate", body | {"substitute": True})
        assert (answer.status, answer.json["models"]) == (202, ["small"])
        assert answer.json["substituted"]["model"] == "big"
        assert answer.json["substituted"]["reason"].startswith("small stands in: ")
        events = sse((await api.get(answer.json["stream_url"])).body)
        told = [data["payload"] for type_, _, data in events if type_ == "experience.model"]
        assert ("big", "failed") in [(each["model"], each["state"]) for each in told]
        refused = await api.post("/generate", body | {"stream": True})
        assert "TIER_LIMIT_EXCEEDED" in str(refused.body)
        assert (await api.post("/generate", {"model": "small", "prompt": "x", "substitute": True})).json[
            "substituted"
        ] is None
