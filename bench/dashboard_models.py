"""Six models that speak at a fixed pace: `bench.flood` with as many names as a council has members.

`python -m bench.dashboard_models TPS` prints its port and serves until its stdin closes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bench import flood

MODELS = tuple(f"flood:{n}b" for n in range(1, 7))


@contextmanager
def six_models(tps: float) -> Iterator[str]:
    """Their URL, while they run as a child process."""
    command = [sys.executable, "-m", "bench.dashboard_models", str(tps)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def main() -> None:
    listed = [{"name": name, "size": 1, "capabilities": ["completion"], "details": {}} for name in MODELS]
    flood.ANSWERS[b"GET /api/tags"] = flood.ANSWERS[b"GET /api/ps"] = {"models": listed}
    flood.main()


if __name__ == "__main__":
    main()
