"""What the engine says to the outside, recorded from the real code: one sample of every message, event, body and error.

Everything runs in virtual time with fixed session ids and energy constants, so a recording is the same on every
machine. What cannot be (wall clock, process ids, memory) or may change freely (the wording of messages) is replaced by
`<name: type>`, which still tells null from not null and an integer from a float.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

import attrs
import msgspec
import trio
from trio.testing import MockClock

from actors.clock import EngineClock
from engine import cli
from engine.domain import errors
from engine.domain.errors import AddressInUse, ConfigError, EngineError, ModelLoadFailed, UpstreamProtocolError
from engine.domain.generation import Chunk, EndReason, GenerationEnd, TokenKind, TokenLogprob, TopEntry
from engine.settings import LensSettings, LimitSettings, ResumeSettings, Settings
from engine.state import EngineAddress, write_address
from tests.actors.test_resume import Breaking
from tests.contract.services import record_services
from tests.domain.strategies import PARAMS
from tests.fakes.api import TOKEN, Answer, Api, running_api
from tests.fakes.held_clock import threads_hold_the_clock
from tests.fakes.runtime import End, Fail, Say, ScriptedRuntime, Step, words
from tests.fakes.slice import RecordingSink

Samples = dict[str, Any]

VOLATILE: Final = frozenset(
    "at at_s boot connection_id found frame last_seen_at last_used message pid policy_hash ram_total_bytes "
    "ram_budget_bytes registered_at since tier_reason ts_ms uptime_seconds version vram_budget_bytes".split()
)
NEVER_ANSWERED: Final = (AddressInUse, ConfigError)  # they end the process before anybody could ask
REQUEST_ID: Final = "request-1"
OFF_GRID_S: Final = 0.0041  # no event of the script falls onto a tick, where its order would be open


@attrs.define(eq=False)
class ChunkRuntime(ScriptedRuntime):
    """Says whole chunks: (seconds after the one before, chunk)."""

    chunks: Sequence[tuple[float, Chunk]] = ()

    async def _chunks(self):
        for after_s, chunk in self.chunks:
            await trio.sleep(after_s)
            yield msgspec.structs.replace(chunk, t_us=self.clock())


def _entry(token: str, *logprobs: float) -> TokenLogprob:
    tokens = (token, *(f"other {n}" for n in range(1, len(logprobs))))
    return TokenLogprob(token, logprobs[0], tuple(map(TopEntry, tokens, logprobs)))


ANSWER: Final = (
    (0.3, Chunk("hm", 0, TokenKind.THINKING, (_entry("hm", -0.1, -2.5),))),
    (0.05, Chunk("Grüße", 0, logprobs=(_entry("Grü", -0.25, -1.5, -math.inf), _entry("ße", -0.5, -1.0)))),
    (0.05, Chunk(" \U0001f642", 0)),
    (0.9, Chunk("!\n", 0, logprobs=(_entry("!\n", -0.75, -1.25),))),
    (0.0, Chunk("", 0, end=GenerationEnd(EndReason.FINISHED, prompt_tokens=3, eval_count=5))),
)


def record() -> Samples:
    """Every sample by name; names are the paths under golden/<version>/, without `.json`."""
    with threads_hold_the_clock():
        samples = trio.run(_record_engine, clock=MockClock(autojump_threshold=0))
    return {name: steady(sample) for name, sample in sorted((samples | _record_cli() | _record_errors()).items())}


def steady(sample: Any, key: str = "") -> Any:
    """The sample with `<key: type>` in the place of what differs from run to run."""
    if key in VOLATILE and sample is not None:
        return f"<{key}: {type(sample).__name__}>"
    if isinstance(sample, dict):
        return {name: steady(value, name) for name, value in sample.items()}
    if isinstance(sample, list):
        return [steady(value) for value in sample]
    return sample


def shape(sample: Any) -> Any:
    """The sample with its numbers as `<int>` and `<float>`: what a body of counters promises."""
    if isinstance(sample, dict):
        return {name: shape(value) for name, value in sample.items()}
    if isinstance(sample, list):
        return [shape(value) for value in sample]
    if isinstance(sample, int | float) and not isinstance(sample, bool):
        return f"<{type(sample).__name__}>"
    return sample


async def _record_engine() -> Samples:
    samples: Samples = {}
    for part in (_websocket, _council, _degraded, _streams, _bodies, _refusals, record_services):
        samples |= await part()
    return samples


def _fixed(api: Api) -> None:
    """Session ids 1, 2, …; energy constants that no policy change moves."""
    numbers = itertools.count(1)
    api.slice.core.sessions.new_id = lambda: f"{next(numbers):032x}"
    sessions = api.slice.core.sessions
    sessions.constants = attrs.evolve(sessions.constants, energy=PARAMS)


# ── frames ──


async def _websocket() -> Samples:
    async with running_api(lambda clock: ChunkRuntime(clock, chunks=ANSWER, load_s=0.25)) as api:
        _fixed(api)
        plain, with_top = api.slice.client(), RecordingSink()
        commands = api.slice.core.hub.connect(with_top)
        samples = {f"ws/{message['events'][0]['type']}": message for message in plain.messages[:2]}
        for name, command in (
            ("subscribed", b'{"type":"subscribe","patterns":["experience.*"],"top":true,"rate_hz":30,"id":"1"}'),
            ("pong", b'{"type":"ping","id":"2"}'),
            ("acknowledged", b'{"type":"ack_rendered","frame":7,"fps":59.5,"lag_ms":8.5,"id":"5"}'),
            ("error", b'{"type":"subscribe","patterns":["no such pattern"]}'),
        ):
            commands.receive(command)
            samples[f"ws/system.{name}"] = with_top.messages[-1]
            if name != "error":
                samples |= _sent(command)
        await trio.sleep(OFF_GRID_S)
        session = api.slice.start(max_tokens=20, temperature=0.5)
        await trio.sleep(0.62)
        commands.receive(b'{"type":"resync","id":"3"}')
        samples |= _sent(b'{"type":"resync","id":"3"}')
        samples["ws/system.state_snapshot.active"] = with_top.messages[-1]
        await session.closed.wait()
        await trio.sleep(0.1)
        commands.receive(b'{"type":"resync"}')
        samples["ws/system.state_snapshot.ended"] = with_top.messages[-1]
        commands.receive(b'{"type":"unsubscribe","patterns":["experience.*"],"id":"4"}')
        assert with_top.messages[-1]["events"][0]["type"] == "system.subscribed"
        samples |= _sent(b'{"type":"unsubscribe","patterns":["experience.*"],"id":"4"}')
        await trio.sleep(1)
        return samples | _frames(plain) | {"events/experience.token.top": with_top.events("experience.token")[0]}


def _sent(command: bytes) -> Samples:
    """A client message that was understood, by its type."""
    message = msgspec.json.decode(command)
    return {f"requests/{message['type']}": message}


def _frames(client: RecordingSink) -> Samples:
    """A whole frame, the last one of a session, and every event."""

    def first(holds: Callable[[list[str]], bool]) -> Any:
        return next(m for m in client.frames if holds([e["type"] for e in m["events"]]))

    def energy(state: str) -> Any:
        return next(e for e in client.events("energy.update") if e["payload"]["streams"][0]["state"] == state)

    return {
        "ws/frame": first(lambda types: types == ["experience.token", "energy.update"]),
        "ws/frame.last": first(lambda types: "experience.session_end" in types),
        "events/system.heartbeat": client.events("system.heartbeat")[0],
        "events/experience.session_start": client.events("experience.session_start")[0],
        "events/experience.model": client.events("experience.model")[0],
        "events/experience.model.ready": client.events("experience.model")[-1],
        "events/experience.token.thinking": client.events("experience.token")[0],
        "events/experience.token": client.events("experience.token")[1],
        "events/experience.token.unmeasured": client.events("experience.token")[2],
        "events/energy.update.charging": energy("CHARGING"),
        "events/energy.update": energy("FLOWING"),
        "events/energy.update.stalling": energy("STALLING"),
        "events/energy.update.drained": energy("DRAINED"),
        "events/experience.session_end": client.events("experience.session_end")[0],
    }


async def _degraded() -> Samples:
    """An engine that was held up five frames in a row."""
    script = (Say("one "), Say("two", 60))  # nothing arrives meanwhile
    async with running_api(lambda clock: ScriptedRuntime(clock, script)) as api:
        _fixed(api)
        client, clock = api.slice.client(), trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        api.slice.start()
        await trio.sleep(0.1)
        for _ in range(10):
            clock.jump(0.1)
            for _ in range(20):  # not blocked: the clock stands still meanwhile
                await trio.lowlevel.checkpoint()
        return {"events/system.degrade": client.events("system.degrade")[0]}


def _together(words: int, other: bool) -> tuple[Step, ...]:
    """Quick words in an uneven rhythm; `other` turns to words of its own after most of them."""
    own = range(words * 3 // 4, words) if other else ()
    return tuple(
        Say(f"{'own' if n in own else 'word'}{n} ", 0.008 + 0.004 * (n * n % 7), logprob=-0.05) for n in range(words)
    )


async def _council() -> Samples:
    """Two members speak as one until one of them does not; the third fails at once."""
    scripts = {
        "a": (*_together(160, False), End()),
        "b": (*_together(160, True), End()),
        "c": (Say("no ", 0.02), Fail(UpstreamProtocolError("line 2 is not JSON"))),
    }
    async with running_api(lambda clock: ScriptedRuntime(clock, by_model=scripts)) as api:
        _fixed(api)
        client = api.slice.client()
        await trio.sleep(OFF_GRID_S)
        asked = {"mode": "council", "models": ["a", "b", "c"], "prompt": "hello"}
        assert (await _asked(api, "POST", "/generate", asked)).status == 202
        await trio.sleep(10)
        types = {event["type"] for event in client.events() if event["type"].startswith("council.")}
        samples = {f"events/{type_}": client.events(type_)[0] for type_ in types - {"council.model_end"}}
        ends = client.events("council.model_end")  # of two that end at once, in any order
        samples["events/council.model_end"] = min(ends, key=lambda event: event["payload"]["stream_id"])
        samples["events/council.resonance.end"] = client.events("council.resonance")[1]
        measured = [e for e in client.events("energy.update") if (e["payload"]["ensemble"] or {}).get("di") is not None]
        return samples | {"events/energy.update.council": measured[-1]}


async def _streams() -> Samples:
    """One line of each event stream, and how a stream tells what it could not."""
    samples: Samples = {}
    scripts = {
        "aborted": words(1000),
        "error": (Say("half "), Fail(UpstreamProtocolError("line 2 is not JSON"))),
        "truncated": (Say("half "),),
    }
    async with running_api() as api:
        _fixed(api)
        for reason, script in scripts.items():
            api.slice.runtime.script = script
            await trio.sleep(OFF_GRID_S)
            session_id = await api.generate()
            await trio.sleep(0.2)
            if reason == "aborted":
                samples |= await _posted(api, "stop", {"session_id": session_id})
            answer = await api.get(f"/stream/{session_id}")
            end = _lines(answer)[-1]["data"]
            samples[f"events/{end['type']}.{reason}"] = {k: end[k] for k in ("type", "session_id", "payload")}
        text = answer.body.decode().split("\n\n")[0]
        samples["stream/sse.head"] = {"status": answer.status, "headers": _headers(answer)}
        samples["stream/sse"] = _sse_event(text)
        api.slice.runtime.script = words(1)
        answer = await api.post("/generate", {"model": "a", "prompt": "hello", "stream": True})
        samples["stream/ndjson.head"] = {"status": answer.status, "headers": _headers(answer)}
        samples["stream/ndjson"] = msgspec.json.decode(answer.body.split(b"\n")[0])
    return samples | await _resumed() | await _cut_streams()


async def _resumed() -> Samples:
    scripts = [(Say("half ", 0.02),), (Say("whole", 0.02), End())]
    rules = LensSettings(resume=ResumeSettings(enabled=True, pause_s=0))

    def breaking(clock: EngineClock) -> Breaking:
        return Breaking(clock, scripts=scripts)

    async with running_api(breaking, Settings(lens=rules)) as api:
        _fixed(api)
        client = api.slice.client()
        await api.post("/api/generate", {"model": "a", "prompt": "hello"})
        await trio.sleep(0.1)
        return {"events/experience.seam": client.events("experience.seam")[0]}


async def _cut_streams() -> Samples:
    """A backlog that lost its beginning, and a reader that was too slow."""
    long = (*(Say("x" * 60_000, 0.01) for _ in range(60)),)
    async with running_api(lambda clock: ScriptedRuntime(clock, long)) as api:
        _fixed(api)
        session_id = await api.generate()
        async with api.open("GET", f"/stream/{session_id}") as slow:
            await trio.sleep(5)
            late = await api.get(f"/stream/{session_id}")
            cut = await slow.read_all()
        return {
            "stream/truncated_before": _sse_event(late.body.decode().split("\n\n")[0]),
            "stream/too_slow": _sse_event(cut.decode().rstrip("\n").split("\n\n")[-1]),
        }


def _sse_event(text: str) -> Samples:
    fields = dict(line.split(": ", 1) for line in text.split("\n"))
    return fields | {"data": msgspec.json.decode(fields["data"])}


def _lines(answer: Answer) -> list[Samples]:
    return [_sse_event(text) for text in answer.body.decode().rstrip("\n").split("\n\n")]


# ── HTTP bodies ──


async def _bodies() -> Samples:
    async with running_api(lambda clock: ScriptedRuntime(clock, words(5), load_s=0.25)) as api:
        _fixed(api)
        samples = {"http/models.absent": _told(await _asked(api, "GET", "/models"))}
        samples["http/health"] = _told(await _asked(api, "GET", "/health"))
        samples["http/bootstrap"] = _told(await _asked(api, "GET", "/api/bootstrap"))
        assert samples["http/bootstrap"]["body"]["token"] == TOKEN
        await trio.sleep(OFF_GRID_S)
        samples |= await _posted(api, "models.load", {"name": "b"})
        samples |= await _posted(api, "generate", {"model": "a", "prompt": "hello", "parameters": {"seed": 1}})
        await trio.sleep(0.33)
        samples["http/stats.active"] = await _stats(api)
        await trio.sleep(2)
        samples["http/stats"] = await _stats(api)
        samples["http/models"] = _told(await _asked(api, "GET", "/models"))
        samples["http/models.why"] = _told(await _asked(api, "GET", "/models/b/why"))
        samples |= await _posted(api, "models.unload", {"name": "a"})
        samples |= await _posted(api, "broker", {"mode": "disabled"}, x_wf_token=TOKEN)
        samples["http/index"] = {"headers": _headers(await _asked(api, "GET", "/"))}
        api.slice.runtime.up = False
        await _asked(api, "GET", "/models")
        samples["http/health.degraded"] = _told(await _asked(api, "GET", "/health"))
        samples["http/usage"] = _told(await _asked(api, "GET", "/usage"))  # last: a thread looks it up, and time flies
        return samples


async def _asked(api: Api, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    return await api.ask(method, path, body, x_request_id=REQUEST_ID, **headers)


async def _posted(api: Api, name: str, body: Samples, **headers: str) -> Samples:
    """A request that was taken, and its answer."""
    answer = await _asked(api, "POST", f"/{name.replace('.', '/')}", body, **headers)
    assert answer.status in (200, 202), answer.body
    return {f"requests/{name}": body, f"http/{name}": _told(answer)}


async def _stats(api: Api) -> Samples:
    """The shape of `/stats`, without the listeners' own counters, which nothing promises."""
    told = _told(await _asked(api, "GET", "/stats"))
    del told["body"]["system"]["edges"]
    return {**told, "body": shape(told["body"])}


def _told(answer: Answer) -> Samples:
    return {"status": answer.status, "headers": _headers(answer), "body": answer.json}


def _headers(answer: Answer) -> dict[str, str]:
    given = {"content-length", "x-request-id", "etag"}  # asked for by the recording, or following from the body
    return {name: value for name, value in sorted(answer.headers.items()) if name not in given}


# ── refusals ──


async def _refusals() -> Samples:
    """Every error that the app can be made to give, as it goes out."""
    settings = Settings(limits=LimitSettings(body_bytes_max=1024, streams_max=1, queued_max=1))
    refused: list[Answer] = []
    async with running_api(lambda clock: ScriptedRuntime(clock, words(1000)), settings) as api:
        _fixed(api)
        refused.append(
            await _asked(api, "POST", "/generate", {"model": "a", "prompt": "x", "parameters": {"top_k": 0}})
        )
        refused.append(await _asked(api, "GET", "/api/bootstrap", sec_fetch_site="cross-site"))
        refused.append(await _asked(api, "GET", "/nothing"))
        refused.append(await _asked(api, "POST", "/generate", {"model": "bb", "prompt": "x"}))
        refused.append(await _asked(api, "GET", "/stream/none"))
        refused.append(await _asked(api, "GET", "/generate"))
        refused.append(await _asked(api, "POST", "/generate", b"x" * 2000))
        await api.generate()
        await api.generate()
        refused.append(await _asked(api, "POST", "/generate", {"model": "a", "prompt": "x"}))
        refused.append(await _asked(api, "POST", "/models/unload", {"name": "a"}))
    broken = ModelLoadFailed("a: the file is not a model")
    async with running_api(lambda clock: ScriptedRuntime(clock, load_error=broken)) as api:
        refused.append(await _asked(api, "POST", "/models/load", {"name": "a"}))
    async with running_api(lambda clock: ScriptedRuntime(clock, (Fail(ZeroDivisionError()),))) as api:
        refused.append(await _asked(api, "POST", "/models/load", {"name": "a"}))
    return {f"errors/{answer.error['code']}": _told(answer) for answer in refused}


def _record_errors() -> Samples:
    """Every code a caller can meet, with its status."""
    found = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, EngineError)]
    return {
        "errors/codes": {
            error.code: {"status": error.status, "retryable": error.retryable, "body": error("why").body()}
            for error in found
            if error not in NEVER_ANSWERED
        }
    }


# ── command line and files ──


def _record_cli() -> Samples:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "wf.yaml")
        config.write_text("http: {port: 0}\nws: {port: 0}\ntier: low\n")
        environ = {name: value for name, value in os.environ.items() if not name.startswith("WF_")}
        environ["WF_DATA_DIR"] = folder + "/state"
        with mock.patch.dict(os.environ, environ, clear=True):
            check = _said("check", "--json", "--config", str(config))
            version = _said("version", "--json")
        port_file = Path(folder, "port.json")
        write_address(port_file, EngineAddress(4711, "http://127.0.0.1:8145", "ws://127.0.0.1:8146/ws"))
        address = msgspec.json.decode(port_file.read_bytes())
    return {
        "cli/check": check | {"settings": shape(check["settings"])},
        "cli/version": version,
        "cli/port-file": address,
    }


def _said(*words: str) -> Any:
    """What a command prints as JSON."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(out):
        code = cli.main(words)
    out.flush()
    assert code == 0, (words, code)
    return msgspec.json.decode(out.buffer.getvalue())  # type: ignore[attr-defined]
