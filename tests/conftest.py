"""What holds for every test."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.fakes.held_clock import threads_hold_the_clock

settings.register_profile(
    "untimed", settings.default, deadline=None
)  # how long an example takes says nothing of the code
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _threads_hold_the_clock() -> Iterator[None]:
    with threads_hold_the_clock():
        yield
