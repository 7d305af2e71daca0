"""The published tables of events, fields and error codes, held against the code and the golden samples."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.compare import samples_of
from transport.wire.frames import SCHEMA_VERSION

# Every type there is, with the fields its payload has at least. More optional fields are a new minor version.
EVENTS = {
    "system.hello": "version schema_versions boot tier level limits tick_hz connection_id",
    "system.state_snapshot": "sessions",
    "system.heartbeat": "fps uptime_ms connections degrade",
    "system.degrade": "level before reason queue_depth frame_ms",
    "system.error": "code message retryable details",
    "system.subscribed": "id patterns session_id rate_hz top",
    "system.pong": "id",
    "system.acknowledged": "id frame",
    "energy.update": "tokens eu_frame eu_total eu_rate streams ensemble",
    "experience.session_start": "mode models dropped_models parameters energy_params origin synthetic",
    "experience.token": "stream_id model tokens",
    "experience.model": "model state progress position reason",
    "experience.seam": "stream_id model position offset reason attempt origin",
    "council.formed": "council_id models dropped_models plan weights",
    "council.model_start": "council_id stream_id model",
    "council.model_end": "council_id stream_id model reason tokens",
    "council.model_error": "council_id stream_id model reason tokens error",
    "council.ensemble": "council_id positions energy di di_method sync_latency_ms agreement",
    "council.interference": "council_id pattern intensity coherence correlation",
    "council.resonance": "council_id phase strength coherence duration_ms energy correlation",
    "council.synthesis": "council_id method stream_id model confidence report",
    "experience.session_end": "reason error totals ttft_ms duration_ms stop_latency_ms summary",
}
STREAM_NOTICES = {"system.truncated_before"}  # only on event streams, never in frames
STREAM_READING = (
    "stream_id model state energy energy_base tps delta_ms silence_ms certainty entropy_bits tail_mass stall burst "
    "throttled tokens queue_depth"
)
TOKEN = "text kind position offset t_us delta_ms logprob energy energy_base coalesced throttled"
PERF = "lateness_ms frame_ms queue_depth degrade merged dropped_visual"
BODIES = {
    "health": "status version uptime_s runtimes tier level policy_hash sessions_active",
    "models": "models virtual memory tier",
    "models.load": "success model load_time_ms resident_bytes evicted",
    "models.unload": "success freed_bytes",
    "generate": "session_id stream_url ws_url models dropped_models",
    "stop": "success state tokens_generated duration_ms stop_latency_ms",
}
RUNTIME = "name kind url local up reason"
MODEL = "name runtime size_bytes modified_at digest state last_used resident_bytes capabilities details tps ttft_ms"
MODEL_FIGURES = "tps_current tps_average ttft_ms eu_rate active_sessions total_tokens"
CODES = {
    "VALIDATION_ERROR": 400,
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "FORBIDDEN_ORIGIN": 403,
    "LEVEL_LOCKED": 403,
    "TURBO_NOT_AVAILABLE": 403,
    "BROKER_DISABLED": 403,
    "NOT_FOUND": 404,
    "MODEL_NOT_FOUND": 404,
    "SESSION_NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TIMEOUT": 408,
    "SESSION_CONFLICT": 409,
    "PAYLOAD_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "TIER_LIMIT_EXCEEDED": 429,
    "INTERNAL": 500,
    "MODEL_LOAD_FAILED": 502,
    "UPSTREAM_PROTOCOL_ERROR": 502,
    "UPSTREAM_TRUNCATED": 502,
    "OVERLOADED": 503,
    "RUNTIME_UNAVAILABLE": 503,
    "FALLBACK_FAILED": 503,
    "UPSTREAM_TIMEOUT": 504,
    "MODEL_LOAD_TIMEOUT": 504,
    "INSUFFICIENT_MEMORY": 507,
}

ROOT = Path(__file__).parents[2]
EVENT_TYPE = re.compile(r"(?:system|energy|experience|council)\.[a-z_]+")
GOLDEN = samples_of(SCHEMA_VERSION)


def events_in(sample: Any) -> Iterator[dict[str, Any]]:
    """Every event somewhere in a sample."""
    if isinstance(sample, dict):
        if {"type", "payload"} <= sample.keys():
            yield sample
        for value in sample.values():
            yield from events_in(value)
    elif isinstance(sample, list):
        for value in sample:
            yield from events_in(value)


ALL_EVENTS = [event for sample in GOLDEN.values() for event in events_in(sample)]


def test_every_event_type_in_the_code_is_published():
    used: dict[str, str] = {}
    for package in ("engine", "actors", "policies", "transport", "web"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and EVENT_TYPE.fullmatch(node.value):
                    used[node.value] = f"{file.relative_to(ROOT)}:{node.lineno}"
    assert {type_: place for type_, place in used.items() if type_ not in EVENTS.keys() | STREAM_NOTICES} == {}
    assert used.keys() >= EVENTS.keys(), "published, but nothing says it"


@pytest.mark.parametrize("type_", EVENTS)
def test_an_event_has_its_published_fields(type_):
    samples = [event["payload"] for event in ALL_EVENTS if event["type"] == type_]
    assert samples
    for payload in samples:
        assert payload.keys() >= set(EVENTS[type_].split())


def test_streams_and_tokens_have_their_published_fields():
    readings = [stream for e in ALL_EVENTS if e["type"] == "energy.update" for stream in e["payload"]["streams"]]
    tokens = [token for e in ALL_EVENTS if e["type"] == "experience.token" for token in e["payload"]["tokens"]]
    for found, published in ((readings, STREAM_READING), (tokens, TOKEN)):
        assert found
        assert all(item.keys() - {"top"} == set(published.split()) for item in found)


def test_top_is_there_only_for_who_subscribed_with_it():
    for name, sample in GOLDEN.items():
        tokens = [t for e in events_in(sample) if e["type"] == "experience.token" for t in e["payload"]["tokens"]]
        assert {"top" in token for token in tokens} <= {name == "events/experience.token.top"}, name


def test_a_frame_has_its_published_stamps():
    for name in ("ws/frame", "ws/frame.last"):
        assert GOLDEN[name].keys() == {"v", "frame", "ts_ms", "mono_ms", "perf", "events"}
        assert GOLDEN[name]["perf"].keys() == set(PERF.split())
    replies = [sample for name, sample in GOLDEN.items() if name.startswith("ws/system.")]
    assert all(sample["frame"] is None and len(sample["events"]) == 1 for sample in replies)


@pytest.mark.parametrize("name", ["stream/ndjson", "stream/sse"])
def test_a_line_has_its_published_stamps(name):
    line = GOLDEN[name].get("data", GOLDEN[name])
    assert line.keys() == {"v", "ts_ms", "mono_ms", "type", "session_id", "payload"}
    assert name == "stream/ndjson" or GOLDEN[name]["event"] == line["type"]


def test_only_tokens_carry_text():
    """What was generated stands in `experience.token` and in the text of snapshots, nowhere else."""
    said = [token["text"] for e in ALL_EVENTS if e["type"] == "experience.token" for token in e["payload"]["tokens"]]
    long_enough = [text for text in said if len(text.strip()) > 2]
    assert long_enough
    for event in ALL_EVENTS:
        if event["type"] not in ("experience.token", "system.state_snapshot"):
            assert not [text for text in long_enough if text in str(event["payload"])], event["type"]


@pytest.mark.parametrize("name", BODIES)
def test_a_body_has_its_published_fields(name):
    assert GOLDEN[f"http/{name}"]["body"].keys() >= set(BODIES[name].split())


def test_parts_of_bodies_have_their_published_fields():
    runtime, model = GOLDEN["http/health"]["body"]["runtimes"][0], GOLDEN["http/models"]["body"]["models"][0]
    assert runtime.keys() == set(RUNTIME.split())
    assert model.keys() >= set(MODEL.split())
    figures = GOLDEN["http/stats"]["body"]["models"]["a"]
    assert figures.keys() >= set(MODEL_FIGURES.split())
    assert figures["ttft_ms"].keys() == {"cold", "warm", "p50", "p95"}


def test_codes_have_their_published_status():
    codes = GOLDEN["errors/codes"]
    assert {code: entry["status"] for code, entry in codes.items()}.items() <= CODES.items()


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("errors/") and name != "errors/codes"])
def test_an_error_on_the_wire_is_the_error_of_its_code(name):
    sample, code = GOLDEN[name], name.removeprefix("errors/")
    entry = GOLDEN["errors/codes"][code]
    error = sample["body"]["error"]
    assert error.keys() == {"code", "message", "retryable", "details"}
    assert (sample["status"], error["code"], error["retryable"]) == (entry["status"], code, entry["retryable"])
    assert ("retry-after" in sample["headers"]) == (sample["status"] == 503)


@pytest.mark.parametrize("name", ["stream/ndjson.head", "stream/sse.head"])
def test_streams_are_neither_cached_nor_buffered(name):
    headers = GOLDEN[name]["headers"]
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
