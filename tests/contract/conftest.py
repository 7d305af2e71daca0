from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.contract.recording import record
from tests.contract.sessions import Recorded, record_sessions


@pytest.fixture(scope="package")
def recorded() -> Recorded:
    return record_sessions()


@pytest.fixture(scope="package")
def recording() -> dict[str, Any]:
    logging.disable()  # one of the samples is a failure inside the engine
    try:
        return record()
    finally:
        logging.disable(logging.NOTSET)
