"""Where the models of `llama_cpp` come from: files the user names, and repositories of Hugging Face.

A model has a name of its own and is found by it in a table: a name never becomes a path, but for downloaded files,
whose place is made of parts that the grammar of names allows (none of them can leave the folder).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import attrs

from engine.domain.errors import ConfigError
from engine.domain.models import is_model_name

SUFFIX: Final = ".gguf"
NAME_CHARS_MAX: Final = 80
DOWNLOADED_MAX: Final = 256  # files looked at in the folder of downloads


@attrs.frozen
class GgufSource:
    """One model: `path` is where its file is, or will be. `repo` (`org/name`) and `quant` say where it can be
    downloaded; `repo` is None for a file of the user's."""

    name: str
    path: Path
    repo: str | None = None
    quant: str | None = None


def parse_source(text: str, downloads: Path) -> GgufSource:
    """A path that ends with `.gguf`, or `org/name` or `org/name:QUANT` on Hugging Face. Raises ConfigError."""
    if text.lower().endswith(SUFFIX):
        path = Path(text).expanduser().absolute()
        return GgufSource(_name_of(path.stem), path)
    source = repo_source(text, downloads)
    if source is None:
        raise ConfigError(
            f"{text[:200]!r} is neither a file that ends with .gguf nor a repository of Hugging Face (org/name or "
            "org/name:Q4_K_M)"
        )
    return source


def repo_source(name: str, downloads: Path) -> GgufSource | None:
    """The model of this name in a repository; None when the name cannot be one."""
    repo, _, quant = name.partition(":")
    if not is_model_name(name) or repo.count("/") != 1:
        return None
    organisation = repo.partition("/")[0]
    return GgufSource(name, downloads / organisation / f"{name[len(organisation) + 1 :]}{SUFFIX}", repo, quant or None)


def downloaded_sources(downloads: Path) -> list[GgufSource]:
    """What has been downloaded, now or earlier. Blocks."""
    found = sorted(downloads.glob(f"*/*{SUFFIX}"))[:DOWNLOADED_MAX]
    named = (repo_source(f"{path.parent.name}/{path.stem}", downloads) for path in found)
    return [source for source in named if source is not None]


def distinct(sources: tuple[GgufSource, ...]) -> tuple[GgufSource, ...]:
    """The sources in their order, each path once; files of one name get -2, -3 and so on behind theirs."""
    taken: dict[str, GgufSource] = {}
    for source in {source.path: source for source in sources}.values():
        name, count = source.name, 1
        while name in taken:
            count += 1
            name = f"{source.name[: NAME_CHARS_MAX - 5]}-{count}"
        taken[name] = attrs.evolve(source, name=name)
    return tuple(taken.values())


def _name_of(stem: str) -> str:
    """The stem of a file's name in the grammar of model names."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip(".-")[:NAME_CHARS_MAX] or "model"
