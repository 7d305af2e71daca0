"""Answers that break off and go on, as clients of every dialect see them; in virtual time."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
import trio

from actors.clock import EngineClock
from engine.settings import LensSettings, ResumeSettings, Settings
from tests.actors.test_resume import Breaking
from tests.fakes.api import Answer, running_api
from tests.fakes.forwarding import ListeningOllama
from tests.fakes.ollama import Break, Reply, Send, done, record, refused
from tests.fakes.openai import delta, entry
from tests.fakes.runtime import Cut, End, Say, Step
from tests.web.lens.test_forwarded import cut
from tests.web.lens.ways import ANTHROPIC, OLLAMA_CHAT, OPENAI_CHAT, Way

ON = Settings(lens=LensSettings(resume=ResumeSettings(enabled=True, pause_s=0)))
HALF: tuple[Step, ...] = (Say("Once "), Say("upön"), Cut())
REST: tuple[Step, ...] = (Say(" a"), Say(" time"), End())
NDJSON = {"content-type": "application/x-ndjson"}
SSE = {"content-type": "text/event-stream"}
SEAM = {"model": "a", "position": 2, "offset": 10, "reason": "UPSTREAM_TRUNCATED", "attempt": 1}
GENERATE, CHAT = "/api/generate", "/api/chat"
ASK = {"model": "m", "prompt": "hello"}


def breaking(*scripts: tuple[Step, ...], kind: str = "ollama"):
    def made(clock: EngineClock) -> Breaking:
        return Breaking(clock, scripts=list(scripts), kind=kind)

    return made


def told(value: Any) -> Any:
    """Its `wf`; a seam without the id of its stream."""
    found = value.get("wf") if isinstance(value, dict) else None
    if found is not None and "seam" in found:
        assert found["seam"].pop("stream_id").endswith(":0")
    return found


def lines(answer: Answer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.body.splitlines()]


def said(text: str, **more: Any) -> bytes:
    """A record of `/api/chat`."""
    return json.dumps({"message": {"role": "assistant", "content": text}, "done": False} | more).encode() + b"\n"


def streaming(*steps: Any) -> Reply:
    return Reply([Send(step, 0.04) if isinstance(step, bytes) else step for step in steps], headers=NDJSON)


# ── translated ──


async def test_a_stream_goes_on_and_marks_its_seam(way: Way, autojump_clock):
    async with running_api(breaking(HALF, REST), ON) as api:
        answer = await api.post(way.path, way.streamed())
        values = way.values(answer.body)
        assert "".join(way.texts(values)) == "Once upön a time"
        assert way.over(values[-1])
        wf = [found for value in values if (found := told(value)) is not None]
        uncounted = {"uncounted": ["prompt_tokens"]} if b'"usage":' in answer.body else {}
        assert wf == [{"seam": SEAM}, {"resumed": 1} | uncounted]
        marked = next(value for value in values if isinstance(value, dict) and "seam" in value.get("wf", {}))
        assert way.texts([marked]) == [" a"]


async def test_a_whole_answer_says_so_in_its_body(way: Way, autojump_clock):
    async with running_api(breaking(HALF, REST), ON) as api:
        answer = await api.post(way.path, way.body())
        assert answer.status == 200, answer.body
        assert way.text(answer.json) == "Once upön a time"
        wf = answer.json["wf"]
        assert (wf["resumed"], [seam["offset"] for seam in wf["seams"]]) == (1, [10])


@pytest.mark.parametrize(
    ("by_config", "header", "resumed"), [(False, "allow", True), (True, "off", False), (False, "", False)]
)
async def test_a_request_may_allow_it_or_not(by_config, header, resumed, dialect: Way, autojump_clock):
    settings = ON if by_config else Settings(lens=LensSettings(resume=ResumeSettings(pause_s=0)))
    headers = {"x_wf_resume": header} if header else {}
    async with running_api(breaking(HALF, REST), settings) as api:
        values = dialect.values((await api.post(dialect.path, dialect.streamed(), **headers)).body)
        assert ("".join(dialect.texts(values)) == "Once upön a time") is resumed
        assert len(api.slice.runtime.requests) == 1 + resumed


async def test_a_word_that_means_nothing_is_400(dialect: Way, autojump_clock):
    async with running_api() as api:
        answer = await api.post(dialect.path, dialect.body(), x_wf_resume="yes")
        assert answer.status == 400
        assert "allow or off" in (dialect.failed(answer.json) or "")


@pytest.mark.parametrize("stream", [False, True])
async def test_why_it_was_not_gone_on_with_is_told(stream, dialect: Way, autojump_clock):
    async with running_api(breaking(HALF, (Say(" a"), Cut())), ON) as api:
        answer = await api.post(dialect.path, dialect.body(stream=stream))
        last = dialect.values(answer.body)[-1] if stream else answer.json
        assert dialect.failed(last)
        assert last["wf"]["resumed"] == 1
        assert "attempts made: 1" in last["wf"]["not_resumed"]
        assert answer.status == (200 if stream else 502)


async def test_log_probabilities_go_on_across_the_seam(autojump_clock):
    async with running_api(breaking(HALF, REST, kind="llama_cpp"), ON) as api:
        body = OPENAI_CHAT.body(logprobs=True, top_logprobs=1)
        content = (await api.post(OPENAI_CHAT.path, body)).json["choices"][0]["logprobs"]["content"]
        assert "".join(entry["token"] for entry in content) == "Once upön a time"


async def test_another_model_of_the_configuration_goes_on(autojump_clock):
    rules = ResumeSettings(enabled=True, who="other", models=("gone", "b"), attempts_max=2, pause_s=0)
    async with running_api(breaking(HALF, REST), Settings(lens=LensSettings(resume=rules))) as api:
        values = OPENAI_CHAT.values((await api.post(OPENAI_CHAT.path, OPENAI_CHAT.streamed())).body)
        assert "".join(OPENAI_CHAT.texts(values)) == "Once upön a time"
        (seam,) = [found["seam"] for value in values if (found := told(value)) and "seam" in found]
        assert (seam["model"], seam["attempt"]) == ("b", 2)
        assert [request.model for request in api.slice.runtime.requests] == ["a", "b"]
        assert api.slice.runtime.loads == ["a", "b"]


# ── forwarded ──


def ollama_that_breaks(*rest: Any, path: str = CHAT) -> ListeningOllama:
    server = ListeningOllama().plays(GENERATE, streaming(record("Once ", context=[1]), record("upon"), Break()))
    return server.plays(path, *rest)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_in_the_runtimes_own_dialect_goes_on_in_our_words(stream, autojump_clock):
    server = ollama_that_breaks(streaming(said(" a"), said(" time"), said("", done=True, done_reason="stop")))
    async with running_api(server.runtime, ON) as api:
        answer = await api.post(GENERATE, ASK | {"stream": stream})
        assert answer.status == 200, answer.body
        values = lines(answer)
        assert "".join(value["response"] for value in values) == "Once upon a time"
        assert values[-1]["done"] is True
        assert values[-1]["wf"]["resumed"] == 1
        assert server.asked[-1][0] == CHAT
        assert server.body()["messages"] == [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Once upon"},
        ]
        assert {value["model"] for value in values} == {"m"}


async def test_what_only_the_runtimes_own_path_knows_is_not_gone_on_with(autojump_clock):
    server = ollama_that_breaks()
    async with running_api(server.runtime, ON) as api:
        values = lines(await api.post(GENERATE, ASK | {"options": {"typical_p": 0.5}}))
        assert "error" in values[-1]
        assert "options.typical_p" in values[-1]["wf"]["not_resumed"]
        assert len(server.asked) == 1


async def test_thinking_that_was_given_is_not_gone_on_with(autojump_clock):
    thought = json.dumps({"message": {"role": "assistant", "content": "", "thinking": "hm"}}).encode() + b"\n"
    server = ListeningOllama().plays(CHAT, streaming(thought, said("Once"), Break()))
    async with running_api(server.runtime, ON) as api:
        values = lines(await api.post(CHAT, OLLAMA_CHAT.streamed(model="m")))
        assert "thinking was given" in values[-1]["wf"]["not_resumed"]
        assert len(server.asked) == 1


async def test_a_runtime_that_refuses_to_go_on_leaves_the_answer_broken(autojump_clock):
    server = ollama_that_breaks(refused(400, "no prefill here"))
    async with running_api(server.runtime, ON) as api:
        values = lines(await api.post(GENERATE, ASK))
        assert [value.get("response") for value in values] == ["Once ", "upon", None]
        assert "no prefill here" in values[-1]["wf"]["not_resumed"]


async def test_a_raw_prompt_is_made_longer(autojump_clock):
    server = ollama_that_breaks()
    server.plays(GENERATE, streaming(record(" a"), done()))
    async with running_api(server.runtime, ON) as api:
        values = lines(await api.post(GENERATE, ASK | {"raw": True}))
        assert "".join(value["response"] for value in values) == "Once upon a"
        assert (server.body()["prompt"], server.body()["raw"]) == ("helloOnce upon", True)


async def test_openai_at_an_ollama_goes_on_and_its_tokens_add_up(autojump_clock):
    entries = [delta(text, entry(text, -0.5)) for text in ("Once ", "upon")]
    first = Reply([*(Send(data, 0.04) for data in entries), Break()], headers=SSE)
    server = ListeningOllama().plays(OPENAI_CHAT.path, first)
    server.plays(CHAT, streaming(said(" a"), said("", done=True, done_reason="stop", eval_count=1)))
    async with running_api(server.runtime, ON) as api:
        client = api.slice.client()
        body = OPENAI_CHAT.streamed(model="m", stream_options={"include_usage": True})
        values = OPENAI_CHAT.values((await api.post(OPENAI_CHAT.path, body)).body)
        assert "".join(OPENAI_CHAT.texts(values)) == "Once upon a"
        assert values[-2]["usage"]["completion_tokens"] == 3  # ours: nobody else counted all of them
        await trio.sleep(0.5)
        (seam,) = [event["payload"] for event in client.events("experience.seam")]
        assert (seam["position"], seam["offset"], seam["model"]) == (2, 9, "m:latest")
        assert seam["stream_id"].endswith(":0")
        (end,) = [event["payload"] for event in client.events("experience.session_end")]
        assert end["totals"]["resumed"] == 1
        tokens = [t for e in client.events("experience.token") for t in e["payload"]["tokens"]]
        assert [(t["position"], t["offset"], t["text"]) for t in tokens] == [
            (0, 0, "Once "),
            (1, 5, "upon"),
            (2, 9, " a"),
        ]


# ── passive ──


async def test_passive_never_goes_on(autojump_clock):
    server = ollama_that_breaks(streaming(said(" a")))
    async with running_api(server.runtime, ON) as api:
        got = await cut(api, GENERATE, ASK | {"model": "m:latest"}, x_wf_lens="passive")
        assert got == record("Once ", context=[1]) + record("upon")
        assert len(server.asked) == 1
        answer = await api.post(GENERATE, ASK, x_wf_lens="passive", x_wf_resume="allow")
        assert answer.status == 400
        assert "x-wf-resume" in answer.json["error"]


async def test_anthropic_blocks_stay_whole_across_the_seam(autojump_clock):
    async with running_api(breaking(HALF, REST), ON) as api:
        values = ANTHROPIC.values((await api.post(ANTHROPIC.path, ANTHROPIC.streamed())).body)
        assert [value["type"] for value in values].count("content_block_start") == 1
        assert values[-1] == {"type": "message_stop", "wf": {"resumed": 1, "uncounted": ["prompt_tokens"]}}


def test_the_rules_are_those_of_the_configuration():
    asked = attrs.evolve(ResumeSettings(), attempts_max=3, who="other", models=("b",), pause_s=2.5)
    rules = asked.rules
    assert (rules.attempts_max, rules.who, rules.models, rules.pause_s) == (3, "other", ("b",), 2.5)
