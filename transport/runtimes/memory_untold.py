"""Runtimes whose API has no word for memory: the server loads by itself, and nobody can tell what it holds."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from engine.domain.models import MemoryUse


class MemoryUntold:
    """The part of `Runtime` that such a runtime has nothing to say to. It asks nobody."""

    __slots__ = ()

    async def resident(self) -> Mapping[str, MemoryUse] | None:
        """None: nobody can tell."""
        await trio.lowlevel.checkpoint()
        return None

    async def unload(self, model: str) -> int:
        """Unloads nothing: 0."""
        await trio.lowlevel.checkpoint()
        return 0
