"""`python -m bench [NAME …]`: every benchmark, or the named ones. Each holds what it measures against a limit taken in
the same run, so that a ratio means the same on any machine."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path

from bench.table import Row, show

BASELINE = Path(__file__).parent / "baseline.json"

NAMES = (
    "startup",
    "frames",
    "tokens",
    "stop",
    "sigterm",
    "energy",
    "idle",
    "fanout",
    "ingest",
    "load",
    "lens",
    "council",
    "pool",
    "embedded",
    "dashboard",  # last: it ends the run where there is no Playwright or no Chromium
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the engine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all when none is given")
    parser.add_argument("--save", action="store_true", help=f"keep the figures in {BASELINE.name}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in options.names or NAMES:
        module = importlib.import_module(f"bench.{name}")
        print(f"\n{name}: {module.__doc__.splitlines()[0]}", flush=True)
        if name == "embedded":
            sys.argv = [name]  # it has options of its own, and a table
            module.main()
        else:
            rows = module.measure()
            show(rows)
            if options.save:
                save(name, rows)


def save(name: str, rows: list[Row]) -> None:
    """Put the figures of one benchmark in the place of its last ones."""
    kept = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    load = os.getloadavg()[0]
    kept[name] = {"machine": machine, "load_average": load, "rows": [row.as_json() for row in rows]}
    BASELINE.write_text(json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
