"""`python -m tests.contract.regenerate`: write the golden samples of the schema version in the code, and with them the
examples in the published schemas.

What a version once promised is not rewritten: raise SCHEMA_VERSION in transport/wire/frames.py first, then its samples
are new ones. Before a version is published, `--amend` rewrites its samples.
"""

from __future__ import annotations

import argparse
import logging
import sys

from tests.contract.compare import as_text, differences, path_of, samples_of
from tests.contract.examples import FILE, write_examples
from tests.contract.recording import record
from transport.wire.frames import SCHEMA_VERSION


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.contract.regenerate", description=__doc__)
    parser.add_argument("--amend", action="store_true", help="rewrite samples of a version nobody uses yet")
    amend = parser.parse_args().amend
    logging.disable()  # one of the samples is a failure inside the engine
    golden, said = samples_of(SCHEMA_VERSION), record()
    broken = {name: list(differences(golden[name], said[name])) for name in golden.keys() & said.keys()}
    changed = sorted(name for name, found in broken.items() if found)
    gone = sorted(golden.keys() - said.keys())
    report = [line for name in changed for line in (name, *(f"  {difference}" for difference in broken[name]))]
    report += [f"{name}: not said any more" for name in gone]
    if (changed or gone) and not amend:
        _say(*report, f"Version {SCHEMA_VERSION} promised this: raise SCHEMA_VERSION, or --amend before it is out.")
        return 1
    written = [*changed, *sorted(said.keys() - golden.keys())]
    for name in gone:
        path_of(SCHEMA_VERSION, name).unlink()
    for name in written:
        file = path_of(SCHEMA_VERSION, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(as_text(said[name]), "utf-8")
    if write_examples():
        report.append(f"{FILE.name}: examples written")
    _say(*report, f"{len(written)} written, {len(gone)} removed, {len(said) - len(written)} unchanged")
    return 0


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
