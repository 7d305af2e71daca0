from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.footprint import SPILL_SHARE, Budget, Footprint, left_out


@attrs.frozen
class Model:
    footprint: Footprint


parts = st.integers(0, 9)
models = st.builds(Model, st.builds(Footprint, parts, parts, parts))
several = st.lists(models, max_size=6)
budgets = st.builds(Budget, st.integers(0, 40), st.just(0) | st.integers(1, 30))


@given(several, several, budgets)
def test_what_is_placed_is_all_there_and_on_gpus_no_more_than_was_said_or_there_is_room_for(some, more, budget):
    taken = Footprint.of(*some, *more)
    assert taken.without(Footprint.of(*more)) == Footprint.of(*some)
    placed = budget.placed(taken)
    assert (placed.size_bytes, placed.open_bytes) == (sum(model.footprint.size_bytes for model in (*some, *more)), 0)
    if budget.vram_bytes:
        assert taken.vram_bytes <= placed.vram_bytes <= max(taken.vram_bytes, budget.vram_bytes)
    else:
        assert placed.vram_bytes == 0


@given(several, several, budgets)
def test_what_fits_does_so_whichever_of_them_comes_first(there, coming, budget):
    """Placed one after the other, each as far as there is room on GPUs, as their runtimes do."""
    taken, new = Footprint.of(*there, *coming), Footprint.of(*coming)
    if not budget.fits(taken, new) or Footprint.of(*there).vram_bytes > budget.vram_bytes:
        return
    if any(model.footprint.vram_bytes for model in coming):
        return
    for order in (coming, coming[::-1]):
        placed = budget.placed(Footprint.of(*there))
        for model in order:
            on_gpu = min(model.footprint.open_bytes, max(0, budget.vram_bytes - placed.vram_bytes))
            rest = model.footprint.size_bytes - on_gpu
            placed = Footprint(placed.ram_bytes + rest, placed.vram_bytes + on_gpu)
        assert placed.ram_bytes <= (budget.ram_bytes or 0)
        assert placed.vram_bytes <= budget.vram_bytes


@given(several, several, models, budgets)
def test_who_goes_never_makes_room_less(there, coming, gone, budget):
    new = Footprint.of(*coming)
    if budget.fits(Footprint.of(*there, gone, *coming), new):
        assert budget.fits(Footprint.of(*there, *coming), new)


@given(several, several)
def test_without_a_limit_everything_fits(there, coming):
    assert Budget().fits(Footprint.of(*there, *coming), Footprint.of(*coming))


def test_a_runtime_that_says_more_than_all_of_it_is_on_a_gpu_is_not_believed():
    assert Footprint.split(5, 9) == Footprint(0, 5)


@given(parts, parts, parts)
def test_a_model_is_split_into_all_of_it(size, vram, unsaid):
    found = Footprint.split(size, vram, unsaid)
    assert found.size_bytes == size
    assert (found.vram_bytes, found.open_bytes <= unsaid, found.ram_bytes >= 0) == (min(size, vram), True, True)


@pytest.mark.parametrize(
    ("vram", "beside", "expected"),
    [
        (100, 0, False),
        (100 - round(SPILL_SHARE * 100), 0, False),
        (0, 0, True),
        (60, 0, True),  # 40 were left out, and 120 would have had room
        (60, 70, None),  # it was left out because the others are there
        (0, 21, None),
        (0, 20, True),
    ],
)
def test_a_model_left_out_of_gpu_memory_that_had_room_says_that_its_runtime_does_not_use_it(vram, beside, expected):
    assert left_out(100, vram, beside, 120) is expected


def test_without_a_gpu_nothing_is_left_out_of_one():
    assert left_out(100, 0, 0, 0) is None
