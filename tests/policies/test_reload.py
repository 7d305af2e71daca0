"""A reload is measured by the runtime and explained by what changed."""

from __future__ import annotations

import pytest

from policies.reload import RELOAD_MIN_MS, reload_reason


@pytest.mark.parametrize(
    ("load_ms", "cold"),
    [(None, False), (RELOAD_MIN_MS - 1, False), (5000.0, True), (5000.0, None)],
)
def test_no_reload_without_a_measured_and_unexpected_load(load_ms, cold):
    assert reload_reason(load_ms, cold, {}, {"num_ctx": 1}) is None


def test_what_changed_is_named_with_both_values():
    reason = reload_reason(262.4, False, {"num_ctx": 2048, "use_mmap": True}, {"num_ctx": 4096})
    assert reason == "loaded again in 262 ms (changed: num_ctx 2048 → 4096, use_mmap true → default)"


@pytest.mark.parametrize("before", [None, {"num_ctx": 2048}])
def test_unchanged_options_leave_other_programs(before):
    assert reload_reason(RELOAD_MIN_MS, False, before, {"num_ctx": 2048}) == (
        "loaded again in 150 ms (its runtime had dropped it, or another program changed it)"
    )
