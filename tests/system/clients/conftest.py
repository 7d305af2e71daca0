from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.clients.lens import Lens, running_lens

ELSEWHERE = ("OLLAMA_HOST", "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(scope="package")
def lens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lens]:
    """One engine for all clients. Nothing of this machine's environment tells a client where to go, or has it send
    what it does to anybody."""
    with pytest.MonkeyPatch.context() as patch, running_lens(tmp_path_factory.mktemp("lens")) as lens:
        for name in ELSEWHERE:
            patch.delenv(name, raising=False)
            patch.delenv(name.lower(), raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("LANGSMITH_TRACING", "false")
        yield lens


@pytest.fixture(autouse=True)
def well_afterwards(lens: Lens) -> Iterator[None]:
    """After every test the engine is well and idle."""
    yield
    with lens.engine.client() as http:
        lens.engine.wait_for(lambda: http.get("/stats").json()["sessions"]["active"] == 0)
        assert http.get("/health").json()["status"] == "ok"
