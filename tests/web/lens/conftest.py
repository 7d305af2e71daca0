from __future__ import annotations

import pytest

from tests.web.lens.ways import ONE_OF_EACH, WAYS, Way


@pytest.fixture(params=WAYS, ids=lambda way: way.name)
def way(request: pytest.FixtureRequest) -> Way:
    """Every path that answers."""
    return request.param


@pytest.fixture(params=ONE_OF_EACH, ids=lambda way: way.name)
def dialect(request: pytest.FixtureRequest) -> Way:
    """One path of each dialect, for what does not depend on the path."""
    return request.param
