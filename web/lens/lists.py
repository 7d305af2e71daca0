"""What is kept for programs that ask for a list often: its text, and what only an Ollama knows of its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs
import trio

from actors.catalog import LISTED_S
from engine.domain.runtime import OllamaServer, Residence

Told = Mapping[str, Residence]
_NOTHING: Final[Told] = {}


@attrs.define(eq=False)
class _Asked:
    """What one runtime said, to a question that went out at `asked_s`, when `ready` were its models in memory."""

    asking: trio.Lock = attrs.field(factory=trio.Lock)
    asked_s: float = 0.0
    ready: frozenset[str] | None = None  # None: it was never asked
    told: Told = _NOTHING


@attrs.define(eq=False)
class Residences:
    """One question to a runtime for all who ask meanwhile. Its answer is kept for LISTED_S, and not beyond a move of
    one of its models by the engine. Bounded by the runtimes that are configured."""

    _asked: dict[str, _Asked] = attrs.field(factory=dict, init=False)

    async def of(self, name: str, runtime: OllamaServer, ready: frozenset[str]) -> Told:
        """What the runtime called `name` says; `ready` are the models that the engine holds to be in its memory now.
        Raises as Runtime does; a failure is not kept."""
        kept, since_s = self._asked.setdefault(name, _Asked()), trio.current_time() - LISTED_S
        async with kept.asking:
            if kept.ready != ready or kept.asked_s <= since_s:
                asked_s = trio.current_time()
                told = await runtime.running()
                kept.told, kept.ready, kept.asked_s = told, ready, asked_s
            return kept.told

    def forget(self, name: str) -> None:
        """Something was moved there that does not show in what is in memory, such as when it is to leave again."""
        self._asked.pop(name, None)


@attrs.define(eq=False)
class WrittenLists:
    """The text of each list that is made of the catalog alone, until the runtimes were asked again."""

    _written: dict[str, tuple[int, bytes]] = attrs.field(factory=dict, init=False)

    def body(self, path: str, round_: int, write: Callable[[], bytes]) -> bytes:
        """The list of `path`, as of the round of questions with this number."""
        kept = self._written.get(path)
        if kept is None or kept[0] != round_:
            kept = self._written[path] = round_, write()
        return kept[1]
