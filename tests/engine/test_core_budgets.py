"""The budgets that the pool of an engine works with, by its tier and what the machine has."""

from __future__ import annotations

import attrs
import pytest

from actors.clock import EngineClock
from engine.config import policies_of
from engine.core import Core
from engine.domain.models import Tier
from engine.settings import Settings
from policies.tiers import TierChoice
from tests.actors.pool_rig import GB, SizedRuntime
from tests.fakes.api import running_api

SPLIT = {"a": 8 * GB, "b": 8 * GB}


@pytest.mark.parametrize(
    ("ram", "vram", "expected"),
    [
        (64 * GB, 24 * GB, (16 * GB, 12 * GB)),  # no more than the tier's
        (10 * GB, 8 * GB, (10 * GB, 8 * GB)),  # no more than there is
        (64 * GB, None, (16 * GB, 0)),
        (None, None, (16 * GB, 0)),
    ],
)
async def test_each_memory_has_its_own_budget(ram, vram, expected):
    settings = Settings()
    tier = TierChoice(Tier.MID, "chosen by the test", None, ram, vram)
    core = Core.build({}, EngineClock.start(), settings, policies_of(settings), tier)
    caps = core.pool.pool.caps
    assert (caps.ram_budget_bytes, caps.vram_budget_bytes) == expected
    assert (caps.parallel_models_max, caps.loaded_models_max, caps.model_bytes_max) == (4, 6, 8 * GB)


async def test_models_tells_what_is_used_of_each(autojump_clock):
    def on_gpu(clock):
        return SizedRuntime(clock, sizes=dict(SPLIT), gpu_bytes=12 * GB)

    async with running_api(on_gpu) as api:
        memory = api.engine.pool.pool.memory
        caps = attrs.evolve(memory.caps, vram_budget_bytes=12 * GB)
        api.engine.pool.pool.caps = memory.caps = memory.splits.caps = caps
        for name in SPLIT:
            assert (await api.post("/models/load", {"name": name, "warm_up": False})).status == 200
        body = (await api.get("/models")).json
        found = body["memory"]
        assert (found["used_bytes"], found["used_ram_bytes"], found["used_vram_bytes"]) == (16 * GB, 4 * GB, 12 * GB)
        assert [(model["resident_bytes"], model["vram_bytes"]) for model in body["models"]] == [
            (8 * GB, 8 * GB), (8 * GB, 4 * GB)
        ]  # fmt: skip
        why = (await api.get("/models/a/why")).json
        assert why["memory"] == found


async def test_a_model_of_another_machine_says_why_it_takes_nothing(autojump_clock):
    def far_away(clock):
        return SizedRuntime(clock, sizes={"a": 100 * GB}, local=False)

    async with running_api(far_away) as api:
        assert (await api.post("/models/load", {"name": "a", "warm_up": False})).json["resident_bytes"] is None
        body = (await api.get("/models")).json
        assert (body["models"][0]["resident_bytes"], body["memory"]["used_bytes"]) == (None, 0)
        now = (await api.get("/models/a/why")).json["now"]
        assert (now["outcome"], now["reason"]) == ("ready", "it is on another machine, and takes no memory of this one")
