"""Golden samples on disk, and what differs from them. Types and null count; the order of keys does not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

FOLDER: Final = Path(__file__).parent / "golden"
ENERGY_TOLERANCE: Final = 1e-9  # what the contract promises of energies; libm differs in the last digit


@attrs.frozen
class Difference:
    """`kind`: added, removed or changed, seen from the golden."""

    path: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path or 'the whole'}: {self.kind} {self.detail}"


def differences(golden: Any, said: Any, path: str = "") -> Iterator[Difference]:
    """Everything in which `said` is not `golden`."""
    if type(golden) is not type(said):
        yield Difference(path, "changed", f"{_kind(golden)} → {_kind(said)}")
    elif isinstance(golden, dict):
        for key in sorted(golden.keys() | said.keys()):
            place = f"{path}.{key}" if path else key
            if key not in golden:
                yield Difference(place, "added", _kind(said[key]))
            elif key not in said:
                yield Difference(place, "removed", _kind(golden[key]))
            else:
                yield from differences(golden[key], said[key], place)
    elif isinstance(golden, list):
        if len(golden) != len(said):
            yield Difference(path, "changed", f"{len(golden)} items → {len(said)}")
        for index, (was, now) in enumerate(zip(golden, said, strict=False)):
            yield from differences(was, now, f"{path}[{index}]")
    elif not _same(golden, said):
        yield Difference(path, "changed", f"{golden!r} → {said!r}")


def needed_version(found: list[Difference]) -> str:
    """Which part of the schema version has to rise."""
    return "minor" if all(difference.kind == "added" for difference in found) else "major"


def samples_of(version: str) -> dict[str, Any]:
    """The golden samples of a schema version by name."""
    folder = FOLDER / version
    files = sorted(folder.rglob("*.json"))
    names = [file.relative_to(folder).as_posix().removesuffix(".json") for file in files]
    return {name: json.loads(file.read_text("utf-8")) for name, file in zip(names, files, strict=True)}


def path_of(version: str, name: str) -> Path:
    return FOLDER / version / f"{name}.json"


def as_text(sample: Any) -> str:
    return json.dumps(sample, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _same(was: Any, now: Any) -> bool:
    if isinstance(was, float):
        return math.isclose(was, now, rel_tol=ENERGY_TOLERANCE, abs_tol=ENERGY_TOLERANCE)
    return bool(was == now)


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r:.60}"
