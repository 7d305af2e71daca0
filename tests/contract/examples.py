"""Which schema each golden sample is of, and the examples in the published schemas: golden samples with a plausible
value in the place of what differs from run to run."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from engine import schemas
from tests.contract.compare import as_text, samples_of
from transport.wire.frames import SCHEMA_VERSION

FILE: Final = Path(schemas.__file__).parent / schemas.EXAMPLES_FILE
EXAMPLES_MAX: Final = 4  # of one schema
VALUES: Final[Mapping[str, Any]] = {
    "<at: str>": "2026-11-20T09:15:02.125Z",
    "<at_s: int>": 1_795_169_702,
    "<boot: str>": "9f2c41d7",
    "<connection_id: str>": "5e0d7a3b9c1f2846",
    "<float>": 0.0,
    "<frame: int>": 90210,
    "<int>": 0,
    "<last_seen_at: str>": "2026-11-20T09:15:32.125Z",
    "<last_used: str>": "2026-11-20T09:15:04.250Z",
    "<message: str>": "what is wrong, and what to do about it",
    "<policy_hash: str>": "0b7e61c2d9a4",
    "<ram_budget_bytes: int>": 16_000_000_000,
    "<ram_total_bytes: int>": 33_557_630_976,
    "<registered_at: str>": "2026-11-20T09:15:02.125Z",
    "<since: str>": "2026-11-01",
    "<tier_reason: str>": "chosen by the configuration",
    "<ts_ms: int>": 1_795_169_209_123,
    "<uptime_seconds: int>": 3600,
    "<version: str>": "0.1.0",
    "<vram_budget_bytes: int>": 12_000_000_000,
}
WITHOUT_SCHEMA: Final = re.compile(r"cli/.*|http/index|stream/\w+\.head")
BODIES: Final = {name: f"{name}.response" for name in ("generate", "stop", "models.load", "models.unload", "broker")}
REQUESTS: Final = {name: f"{name}.request" for name in BODIES}
VARIANTS: Final = {"models.absent": "models", "health.degraded": "health", "stats.active": "stats"}


def filled(sample: Any) -> Any:
    """The sample with values for its placeholders. Raises KeyError for one without."""
    if isinstance(sample, dict):
        return {name: filled(value) for name, value in sample.items()}
    if isinstance(sample, list):
        return [filled(value) for value in sample]
    if isinstance(sample, str) and re.fullmatch(r"<(\w+: )?(str|int|float)>", sample):
        return VALUES[sample]
    return sample


def instances(name: str, golden: Any) -> Iterator[tuple[str, Any]]:
    """(schema, instance of it) for all that is in a golden sample. Raises LookupError for one that is of none."""
    sample = filled(golden)
    match name.split("/"):
        case ["events", _]:
            yield sample["type"], sample
        case ["ws", _]:
            yield "frame", sample
            if sample["frame"] is None:
                yield sample["events"][0]["type"], sample["events"][0]
        case ["stream", "ndjson"]:
            yield "line", sample
        case ["stream", _]:
            line = sample["data"]
            yield "line", line
            yield line["type"], {key: line[key] for key in ("type", "session_id", "payload")}
        case ["http", body]:
            yield BODIES.get(body, VARIANTS.get(body, body)), sample["body"]
        case ["requests", asked]:
            yield REQUESTS.get(asked, asked), sample
        case ["services", schema]:  # each sample has the name of its schema
            yield schema, sample
        case ["errors", "codes"]:
            yield from (("error", entry["body"]) for entry in sample.values())
        case ["errors", _]:
            yield "error", sample["body"]
        case _:
            raise LookupError(f"{name}: say in tests/contract/examples.py which schema this sample is of")


def all_instances() -> list[tuple[str, str, Any]]:
    """(golden, schema, instance) of every golden sample that has a schema; those with plain names first."""
    golden = samples_of(SCHEMA_VERSION)
    names = [name for name in sorted(golden, key=lambda name: (len(name), name)) if not WITHOUT_SCHEMA.fullmatch(name)]
    return [(name, schema, instance) for name in names for schema, instance in instances(name, golden[name])]


def examples() -> dict[str, list[Any]]:
    """What the package ships: the first few instances of each schema."""
    found = defaultdict[str, list[Any]](list)
    for _, schema, instance in all_instances():
        if len(found[schema]) < EXAMPLES_MAX and instance not in found[schema]:
            found[schema].append(instance)
    return dict(found)


def write_examples() -> bool:
    """Write them into the package; False when they were there already."""
    text = as_text(examples())
    if FILE.exists() and FILE.read_text("utf-8") == text:
        return False
    FILE.write_text(text, "utf-8")
    return True
