"""An engine whose installation could not build the dashboard's libraries: it runs, and its page says what to do."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.system.process import EngineProcess

pytestmark = pytest.mark.system

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("engine", "actors", "policies", "transport", "web")
LEFT_OUT: Final = shutil.ignore_patterns("vendor", "node_modules", "__pycache__", "screenshots")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    """Of a copy without them: Python looks in the folder it runs in first."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=LEFT_OUT)
    engine = EngineProcess.spawn(tmp_path)
    try:
        yield engine.wait_ready()
        engine.signal(signal.SIGTERM)
        assert engine.wait_exit() == 0, engine.stderr()
    finally:
        engine.kill()


def test_it_runs_and_says_what_is_missing(engine: EngineProcess) -> None:
    with engine.client() as client:
        page = client.get("/", headers={"accept": "text/html"})
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "pip install -e ." in page.text
        assert "<script" not in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for link in ("/health", "/models", "/docs", "/static/style.css"):
            assert link in page.text
            assert client.get(link).status_code == 200
        assert client.get("/static/vendor/vendor.js").status_code == 404
        asked = {"model": "embedded/lexicon", "prompt": "a river", "parameters": {"max_tokens": 3}, "stream": True}
        assert "experience.session_end" in client.post("/generate", json=asked).text
    assert "libraries were not built" in engine.stderr()
