"""`python -m bench [NAME …]`: every benchmark, or the named ones. Each holds what it measures against a limit taken in
the same run, so that a ratio means the same on any machine."""

from __future__ import annotations

import argparse
import importlib
import sys

from bench.table import show

NAMES = ("startup", "frames", "tokens", "stop", "sigterm", "energy", "idle", "fanout", "embedded")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the engine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all when none is given")
    names = parser.parse_args().names
    if unknown := set(names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in names or NAMES:
        module = importlib.import_module(f"bench.{name}")
        print(f"\n{name}: {module.__doc__.splitlines()[0]}")
        if name == "embedded":
            sys.argv = [name]  # it has options of its own, and a table
            module.main()
        else:
            show(module.measure())


if __name__ == "__main__":
    main()
