"""What holds for every test."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.held_clock import threads_hold_the_clock

# How long an example takes, or its making, says nothing of the code.
settings.register_profile("untimed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _threads_hold_the_clock() -> Iterator[None]:
    with threads_hold_the_clock():
        yield
