"""What goes wrong before and within an answer, in the words of each dialect; in virtual time."""

from __future__ import annotations

import pytest
import trio

from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    ModelLoadFailed,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from engine.domain.generation import EndReason
from engine.settings import LensSettings, LimitSettings, Settings
from tests.fakes.api import running_api
from tests.fakes.runtime import Cut, End, Fail, Say, ScriptedRuntime, words
from tests.web.lens.ways import OLLAMA_CHAT, OPENAI_CHAT, Way

FULL = Settings(limits=LimitSettings(streams_max=1, queued_max=1))
LONG = words(2000)
FAULTS = [
    (UpstreamProtocolError("it is broken"), 502),
    (UpstreamTimeout("it is slow"), 504),
    (RuntimeUnavailable("it is gone"), 503),
    (InvalidRequest("it cannot do that"), 400),
    (Overloaded("it is busy", retry_after_s=7), 503),
]


def scripted(*steps, **more):
    return lambda clock: ScriptedRuntime(clock, steps or words(5), **more)


class Refusing(ScriptedRuntime):
    """Says no before its answer begins."""

    def generate(self, request):
        (step,) = self.script
        raise step.error


# ── before an answer ──


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status"), FAULTS, ids=lambda value: getattr(value, "code", ""))
async def test_a_refusal_has_its_status_and_the_dialects_shape(error, status, stream, dialect: Way, autojump_clock):
    async with running_api(lambda clock: Refusing(clock, (Fail(error),))) as api:
        answer = await api.post(dialect.path, dialect.body(stream=stream))
        assert answer.status == status
        assert answer.headers["content-type"] == "application/json"
        assert dialect.failed(answer.json) == error.message
        after = error.details.get("retry_after_s")
        assert answer.headers.get("retry-after") == (None if after is None else str(after))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_is_not_there_is_named(stream, way: Way, autojump_clock):
    async with running_api() as api:
        answer = await api.post(way.path, way.body(model="zzz", stream=stream))
        assert answer.status == 404
        assert "zzz" in (way.failed(answer.json) or "")
        assert api.slice.core.sessions.live == 0


async def test_programs_find_ollamas_own_words_for_it(autojump_clock):
    async with running_api() as api:
        answer = await api.post("/api/chat", OLLAMA_CHAT.body(model="zzz"))
        assert answer.json["error"].startswith("model 'zzz' not found")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_load_that_fails_is_told_with_a_status(stream, dialect: Way, autojump_clock):
    async with running_api(scripted(load_s=1.0, load_error=ModelLoadFailed("no room for it"))) as api:
        answer = await api.post(dialect.path, dialect.body(stream=stream))
        assert answer.status == 502
        assert "no room for it" in (dialect.failed(answer.json) or "")


@pytest.mark.parametrize("stream", [False, True])
async def test_too_many_are_told_when_to_come_back(stream, dialect: Way, autojump_clock):
    async with running_api(scripted(*LONG), FULL) as api:
        await api.generate()
        await api.generate()
        answer = await api.post(dialect.path, dialect.body(stream=stream))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "2 sessions" in (dialect.failed(answer.json) or "")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_stops_says_when_to_come_back(stream, dialect: Way, autojump_clock):
    async with running_api() as api:
        api.slice.core.close()
        await api.slice.core.drained.wait()
        answer = await api.post(dialect.path, dialect.body(stream=stream))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "stopping" in (dialect.failed(answer.json) or "")


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"model":1}', b"[" * 1000, b'{"model":"a","prompt":"\\ud800"}']
)
async def test_what_is_no_request_is_400_in_every_dialect(body, way: Way, autojump_clock):
    async with running_api() as api:
        answer = await api.post(way.path, body)
        assert answer.status == 400
        assert way.failed(answer.json)
        assert api.slice.core.sessions.live == 0


@pytest.mark.parametrize(
    ("header", "value", "told"),
    [
        ("x_wf_lens", "both", "active or passive"),
        ("x_wf_lens", "", "active or passive"),
        ("x_wf_on_disconnect", "stay", "continue_for=30s"),
        ("x_wf_on_disconnect", "continue_for=3601s", "3600"),
        ("x_wf_on_disconnect", "continue_for=-1s", "continue_for=30s"),
        ("x_wf_on_disconnect", "cancel, continue", "continue_for=30s"),
    ],
)
async def test_a_header_of_ours_that_means_nothing_is_400(header, value, told, dialect: Way, autojump_clock):
    async with running_api() as api:
        answer = await api.post(dialect.path, dialect.body(), **{header: value})
        assert answer.status == 400
        said = dialect.failed(answer.json) or ""
        assert told in said
        assert header.replace("_", "-") in said
        assert api.slice.runtime.opened == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by_config", [False, True])
async def test_passive_needs_a_runtime_of_the_same_dialect(by_config, stream, way: Way, autojump_clock):
    settings = Settings(lens=LensSettings(mode="passive")) if by_config else Settings()
    headers = {} if by_config else {"x_wf_lens": "passive"}
    async with running_api(settings=settings) as api:
        answer = await api.post(way.path, way.body(stream=stream), **headers)
        assert answer.status == 400
        said = way.failed(answer.json) or ""
        assert "passive" in said
        assert "scripted" in said
        assert api.slice.runtime.opened == 0


async def test_a_request_may_be_active_where_the_rule_is_passive(dialect: Way, autojump_clock):
    async with running_api(settings=Settings(lens=LensSettings(mode="passive"))) as api:
        answer = await api.post(dialect.path, dialect.body(), x_wf_lens="active")
        assert (answer.status, answer.headers["x-wf-lens"]) == (200, "active")


async def test_what_only_the_other_dialect_can_do_is_named(autojump_clock):
    async with running_api() as api:
        answer = await api.post("/api/generate", {"model": "a", "prompt": "x", "options": {"typical_p": 0.5}})
        assert answer.status == 400
        assert "typical_p" in answer.json["error"]
        answer = await api.post(OPENAI_CHAT.path, OPENAI_CHAT.body(logit_bias={"50256": -100}))
        assert answer.status == 400
        assert "logit_bias" in answer.json["error"]["message"]
        assert api.slice.runtime.opened == 0


# ── within an answer ──


@pytest.mark.parametrize(("error", "status"), FAULTS, ids=lambda value: getattr(value, "code", ""))
async def test_a_fault_within_a_whole_answer_still_has_its_status(error, status, dialect: Way, autojump_clock):
    async with running_api(scripted(Say("half "), Fail(error))) as api:
        answer = await api.post(dialect.path, dialect.body())
        assert answer.status == status
        assert dialect.failed(answer.json) == error.message


@pytest.mark.parametrize("error", [error for error, _ in FAULTS], ids=lambda error: error.code)
async def test_a_fault_within_a_stream_is_its_last_value(error: EngineError, way: Way, autojump_clock):
    async with running_api(scripted(Say("half "), Fail(error))) as api:
        answer = await api.post(way.path, way.streamed())
        assert answer.status == 200
        values = way.values(answer.body)
        assert "".join(way.texts(values)) == "half "
        failures = [way.failed(value) for value in values]
        assert failures[:-1] == [None] * (len(values) - 1)
        assert error.message in (failures[-1] or "")
        assert not any(way.over(value) for value in values[:-1])


async def test_a_runtime_that_just_stops_is_no_silent_end(way: Way, autojump_clock):
    async with running_api(scripted(Say("half "), Cut())) as api:
        values = way.values((await api.post(way.path, way.streamed())).body)
        assert "broke off" in (way.failed(values[-1]) or "")
        whole = await api.post(way.path, way.body())
        assert whole.status == 502
        assert "broke off" in (way.failed(whole.json) or "")


async def test_a_fault_of_our_own_is_told_without_its_words(dialect: Way, autojump_clock, caplog):
    async with running_api(scripted(Say("half "), Fail(RuntimeError("secret answer")))) as api:
        values = dialect.values((await api.post(dialect.path, dialect.streamed())).body)
        assert dialect.failed(values[-1]) == "the session failed inside the engine"
        whole = await api.post(dialect.path, dialect.body())
        assert whole.status == 500
        assert dialect.failed(whole.json) == "the session failed inside the engine"


@pytest.mark.parametrize("reason", [EndReason.FINISHED, EndReason.LENGTH, EndReason.STOP])
async def test_a_good_end_is_told_as_what_it_was(reason, dialect: Way, autojump_clock):
    async with running_api(scripted(Say("all"), End(reason))) as api:
        body = (await api.post(dialect.path, dialect.body())).json
        told = {
            "ollama chat": lambda: body["done_reason"],
            "openai chat": lambda: body["choices"][0]["finish_reason"],
            "anthropic": lambda: body["stop_reason"],
        }[dialect.name]()
        cut = {"ollama chat": "length", "openai chat": "length", "anthropic": "max_tokens"}[dialect.name]
        assert (told == cut) is (reason is EndReason.LENGTH)


# ── shutdown ──


@pytest.mark.parametrize("stream", [False, True])
async def test_shutdown_ends_an_answer_with_an_error(stream, way: Way, autojump_clock):
    async with running_api(scripted(*LONG)) as api, api.open("POST", way.path, way.body(stream=stream)) as client:
        first = b"" if not stream else await client.receive()
        await trio.sleep(1)
        api.slice.core.close()
        data = first + await client.read_all()
        assert api.slice.runtime.closed == 1
        if stream:
            last = way.values(data)[-1]
        else:
            import json

            assert (client.status, client.headers["retry-after"]) == (503, "1")
            last = json.loads(data)
        assert "stopping" in (way.failed(last) or "")
