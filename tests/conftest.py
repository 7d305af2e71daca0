"""What holds for every test."""

from hypothesis import settings

settings.register_profile(
    "untimed", settings.default, deadline=None
)  # how long an example takes says nothing of the code
settings.load_profile("untimed")
