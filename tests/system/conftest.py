from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.process import EngineProcess

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., EngineProcess]]:
    """`start(*flags, folder=…, env=…)`: a ready engine of this test's own. It is gone after the test, whatever
    happened."""
    started: list[EngineProcess] = []

    def start_engine(*flags: str, folder: Path = tmp_path, ready: bool = True, **options) -> EngineProcess:
        started.append(EngineProcess.spawn(folder, *flags, **options))
        return started[-1].wait_ready() if ready else started[-1]

    yield start_engine
    for engine in started:
        engine.kill()


@pytest.fixture(scope="package")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """One engine for all tests that only ask. Its last word is checked: they must not have hurt it."""
    engine = EngineProcess.spawn(tmp_path_factory.mktemp("shared"), "--log-level", "debug")
    try:
        yield engine.wait_ready()
        assert engine.process.poll() is None, engine.stderr()
    finally:
        engine.kill()


@pytest.fixture
def engine(shared_engine: EngineProcess) -> Iterator[EngineProcess]:
    """The shared engine; it must be well after every test."""
    yield shared_engine
    with shared_engine.client() as http:
        assert http.get("/health").json()["status"] == "ok"
