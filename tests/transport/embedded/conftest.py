"""The shipped models and what an independent computation said about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from transport.runtimes.embedded import gguf
from transport.runtimes.embedded.answer import Model
from transport.runtimes.embedded.bpe import Tokenizer
from transport.runtimes.embedded.forward import Transformer
from transport.runtimes.embedded.runtime import MODELS, WEIGHTS_DIR

GOLDEN: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent / "golden.json").read_bytes())


@pytest.fixture(scope="session")
def models() -> dict[str, Model]:
    files = {name: gguf.read(WEIGHTS_DIR / f"{name}.gguf")[0] for name in MODELS}
    return {name: Model(Transformer.from_gguf(file), Tokenizer.from_gguf(file)) for name, file in files.items()}


@pytest.fixture(params=[(name, n) for name, cases in GOLDEN.items() for n in range(len(cases))], ids=str)
def golden(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """One prompt with its token ids, the ten most probable next tokens and the entropy: (model, case)."""
    name, n = request.param
    return name, GOLDEN[name][n]
