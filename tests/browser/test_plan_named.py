"""What README.md of this folder says is tested, is."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent


def test_every_test_the_readme_names_is_there() -> None:
    named = re.findall(r"`(?:(\w+|…)::)?(test_\w+)`", (FOLDER / "README.md").read_text())
    there = {
        path.stem: set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
        for path in FOLDER.glob("test_*.py")
    }
    everywhere = set().union(*there.values())
    missing = [
        f"{module}::{name}"
        for module, name in named
        if name not in (there.get(module, everywhere) if module else {*there, *everywhere})
    ]
    assert len(named) > 70
    assert missing == []
