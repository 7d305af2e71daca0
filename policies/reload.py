"""Did the runtime load a model again although it was in memory, and why? Pure.

Ollama does so when a runner option (its context length above all) differs from the one it was loaded with. It takes
seconds to minutes on a real model, and nothing says so but the load time in the final record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

RELOAD_MIN_MS: Final = 150.0  # getting a model ready that is in memory takes a few ms; a tiny one reloads in 250

Options = Mapping[str, int | bool]


def reload_reason(load_ms: float | None, cold: bool | None, before: Options | None, now: Options) -> str | None:
    """One line about it, or None when there was no reload. `load_ms` is what the runtime says it spent on getting the
    model ready, `cold` whether that was expected, `before` and `now` the runner options of the last two requests."""
    if load_ms is None or cold is not False or load_ms < RELOAD_MIN_MS:
        return None
    changes = [
        f"{name} {_shown(before.get(name))} → {_shown(now.get(name))}"
        for name in sorted({*(before or {}), *now})
        if before is not None and before.get(name) != now.get(name)
    ]
    why = "changed: " + ", ".join(changes) if changes else "its runtime had dropped it, or another program changed it"
    return f"loaded again in {load_ms:.0f} ms ({why})"


def _shown(value: int | bool | None) -> str:
    return "default" if value is None else str(value).lower()
