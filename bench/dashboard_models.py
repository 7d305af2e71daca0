"""Six models that speak at a fixed pace: `bench.flood` with as many names as a council has members.

`python -m bench.dashboard_models TPS` prints its port and serves until its stdin closes.
"""

from __future__ import annotations

from bench import flood

MODELS = tuple(f"flood:{n}b" for n in range(1, 7))


def main() -> None:
    listed = [{"name": name, "size": 1, "capabilities": ["completion"], "details": {}} for name in MODELS]
    flood.ANSWERS[b"GET /api/tags"] = flood.ANSWERS[b"GET /api/ps"] = {"models": listed}
    flood.main()


if __name__ == "__main__":
    main()
