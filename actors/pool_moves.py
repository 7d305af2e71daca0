"""Bringing one model into memory or out of it: what the pool's own tasks do, and what they tell it when it is done.

They raise nothing: an error is part of what is told, without the text of a bug.
"""

from __future__ import annotations

import logging

import attrs
import trio

from actors.catalog import ModelRef
from engine.domain.errors import (
    EngineError,
    InternalError,
    ModelLoadFailed,
    ModelLoadTimeout,
    UpstreamTimeout,
)
from engine.domain.models import Loaded

logger = logging.getLogger("wf.pool")


@attrs.frozen
class LoadDone:
    """`cold`: the load found it out of memory (null: its runtime does not tell)."""

    model: str
    loaded: Loaded | None
    cold: bool | None
    error: EngineError | None


@attrs.frozen
class UnloadDone:
    model: str
    freed_bytes: int
    error: EngineError | None


async def load(model: ModelRef, timeout_s: float) -> LoadDone:
    """Cancelled here: the runtime gives the load up."""
    loaded: Loaded | None = None
    cold: bool | None = None
    error: EngineError | None = None
    try:
        with trio.fail_after(timeout_s):
            resident = await model.runtime.resident()
            cold = None if resident is None else model.info.name not in resident
            loaded = await model.runtime.load(model.info.name)
    except trio.TooSlowError:
        error = ModelLoadTimeout(f"{model.name} was not loaded within {timeout_s:g} s")
    except EngineError as caught:
        error = caught
    except Exception as caught:
        logger.error("loading %s failed: %s", model.name, type(caught).__name__, exc_info=caught)
        error = ModelLoadFailed(f"{model.name} could not be loaded")
    return LoadDone(model.name, loaded, cold, error)


async def unload(model: ModelRef, timeout_s: float) -> UnloadDone:
    """Cancelled here: whether it went is not known."""
    freed_bytes = 0
    error: EngineError | None = None
    try:
        with trio.fail_after(timeout_s):
            freed_bytes = await model.runtime.unload(model.info.name)
    except trio.TooSlowError:
        error = UpstreamTimeout(f"{model.name} was not unloaded within {timeout_s:g} s")
    except EngineError as caught:
        error = caught
    except Exception as caught:
        logger.error("unloading %s failed: %s", model.name, type(caught).__name__, exc_info=caught)
        error = InternalError(f"{model.name} could not be unloaded")
    return UnloadDone(model.name, freed_bytes if model.runtime.local else 0, error)  # else freed on another machine
