"""Where the settings come from: one file, then the environment over it, then flags over both.

Each source is checked by itself, so that a bad value is told even where another source hides it, and all problems are
told together, a line each: `wf.yaml:12: limits.streams_max must be 1–4096, not 0`. Nothing here starts or opens
anything but the one file. Call it before the event loop runs, or in a thread: it reads the disk.
"""

from __future__ import annotations

import difflib
import functools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import cattrs

from engine.domain.errors import ConfigError
from engine.settings import Secret, Settings
from policies.egress import stays_here
from policies.load import TABLES, Policies, load_policies
from policies.schema import Misfit, quoted, rejected, rows, strict_converter, structure
from policies.services import ServiceTable, load_services
from policies.source import NESTING_MAX, SIZE_MAX_BYTES, Document, parse, parse_value, printable, single
from policies.taxonomy import Taxonomy, load_taxonomy

FILE_NAME: Final = "wf.yaml"
ENV_PREFIX: Final = "WF_"
ENV_RESERVED: Final = frozenset({"WF_CONFIG", "WF_DATA_DIR", "WF_CHROMIUM"})
FLAGS: Final[dict[str, tuple[str, ...]]] = {  # argparse destination -> the setting that the flag sets
    "host": ("http", "host"),
    "port": ("http", "port"),
    "ws_port": ("ws", "port"),
    "tier": ("tier",),
    "level": ("level",),
    "runtime": ("runtime",),
    "synthetic": ("synthetic",),
    "gguf": ("llama_cpp", "model"),
    "services": ("services", "enabled"),
    "core_lock": ("core_lock",),
    "log_level": ("log", "level"),
    "log_format": ("log", "format"),
}
_FREE_FORM: Final = (  # checked once merged, by policies/load.py and policies/services.py
    *(("policies", name) for name in TABLES),
    ("services", "table"),
    ("services", "taxonomy"),
)


def load_settings(
    *, argv_config: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str], cwd: Path
) -> Settings:
    """The settings in force. `flags` holds values by the names of FLAGS (None: not given).

    Raises ConfigError with every problem found, one line each; policy changes are checked too.
    """
    converter = _converter()
    merged, problems = Document("defaults"), list[str]()
    for read in _sources(argv_config, flags, environ, cwd):
        try:
            document = read()
            structure(document, Settings, converter)
            merged = merged.overlay(document)
        except ConfigError as error:
            problems.extend(error.details.get("problems", [error.message]))
    if problems:
        raise rejected(problems)
    settings = structure(merged, Settings, converter)
    problems += _contradictions(settings, merged)
    try:
        _policies(merged)
    except ConfigError as error:
        problems.extend(error.details["problems"])
    if problems:
        raise rejected(problems)
    return settings


def services_of(settings: Settings) -> tuple[ServiceTable, Taxonomy]:
    """The shipped table of services, and what their classifier may say, with the changes that `settings` ask for.
    Raises ConfigError; reads package files."""
    services = settings.services
    return load_services(Document("settings", services.table)), load_taxonomy(Document("settings", services.taxonomy))


def policies_of(settings: Settings) -> Policies:
    """The shipped policy data with the changes that `settings` ask for, those of the local services among them. Raises
    ConfigError; reads package files."""
    own = {"table": settings.services.table, "taxonomy": settings.services.taxonomy}
    return _policies(Document("settings", {"policies": attrs.asdict(settings.policies), "services": own}))


def _policies(changes: Document) -> Policies:
    return load_policies(
        services=changes.at("services", "table"),
        taxonomy=changes.at("services", "taxonomy"),
        **{name: changes.at("policies", name) for name in TABLES},
    )


def settings_dict(settings: Settings) -> dict[str, Any]:
    """The settings as plain JSON values, every secret as `***`."""

    def plain(_instance: object, _field: object, value: Any) -> Any:
        if isinstance(value, Secret):
            return str(value)
        if isinstance(value, tuple):
            return [str(item) if isinstance(item, Secret) else item for item in value]
        return value

    return attrs.asdict(settings, recurse=True, value_serializer=plain)


def find_config(argv_config: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """The file that counts: `--config`, `$WF_CONFIG`, `./wf.yaml`, `wf-engine/wf.yaml` in the XDG config folder.

    The first two are returned whether or not they exist (asked for, so a missing one is an error); None: no file."""
    if argv_config is not None:
        return cwd / argv_config
    if named := environ.get("WF_CONFIG"):
        return cwd / named
    candidates = [cwd / FILE_NAME]
    xdg = environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(xdg):  # a relative one is to be ignored, says the specification
        candidates.append(Path(xdg, "wf-engine", FILE_NAME))
    elif home := environ.get("HOME"):
        candidates.append(Path(home, ".config", "wf-engine", FILE_NAME))
    return next((path for path in candidates if os.path.lexists(path)), None)


def _sources(
    argv_config: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str], cwd: Path
) -> Iterator[Callable[[], Document]]:
    """One reader for the file, each variable and each flag, weakest first. A section's variable precedes its keys'."""
    file = find_config(argv_config, environ, cwd)
    if file is not None:
        name = printable(str(file.relative_to(cwd) if file.is_relative_to(cwd) else file), 200)
        yield lambda: parse(_read(file, name), name)
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and variable not in ENV_RESERVED:
            yield functools.partial(_from_variable, variable, environ[variable])
    for flag, value in flags.items():
        if value is not None:
            yield functools.partial(single, "--" + flag.replace("_", "-"), FLAGS[flag], value)


def _read(file: Path, name: str) -> str:
    """The text of a regular file of at most 1 MiB. A link is followed; what it leads to must be such a file."""
    try:
        # Non-blocking: opening a FIFO must not wait for somebody to write.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{name}: not a regular file")
            with open(descriptor, "rb", closefd=False) as stream:
                data = stream.read(SIZE_MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not a possible path"
        raise ConfigError(f"{name}: cannot be read: {reason}") from None
    if len(data) > SIZE_MAX_BYTES:
        raise ConfigError(f"{name}: larger than {SIZE_MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}:{data.count(10, 0, error.start) + 1}: not UTF-8") from None


def _from_variable(variable: str, text: str) -> Document:
    """`WF_LIMITS__STREAMS_MAX=8` as a document of one value."""
    path = tuple(part.lower() for part in variable.removeprefix(ENV_PREFIX).split("__"))
    known = _variables()
    free_form = path[:2] in _FREE_FORM and len(path) <= NESTING_MAX and "" not in path and variable.isupper()
    if variable not in known and not free_form:
        near = difflib.get_close_matches(variable[:100].upper(), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{printable(variable)} is unknown{hint}")
    return single(printable(variable), path, parse_value(text, printable(variable)))


@functools.cache
def _variables() -> frozenset[str]:
    return frozenset(ENV_PREFIX + "__".join(str(part) for part in path).upper() for path, _ in rows(Settings))


def _contradictions(settings: Settings, merged: Document) -> Iterator[str]:
    """What no single value can be blamed for."""
    hosts = {("http", "host"): settings.http.host, ("ws", "host"): settings.ws_host}
    for path, host in hosts.items():
        if stays_here(host) or (settings.allow_remote and settings.api_keys):
            continue
        if path == ("ws", "host") and settings.ws.host is None:
            continue  # said once, of http.host
        yield (
            f"{merged.place(path)}: {'.'.join(path)} {quoted(host)} is not a loopback address; that needs "
            "allow_remote: true and at least one of api_keys"
        )
    if settings.http.port == settings.ws.port != 0:
        where = merged.place(("ws", "port")) if ("ws", "port") in merged.places else merged.place(("http", "port"))
        yield f"{where}: http.port and ws.port must differ, both are {settings.ws.port}"


@functools.cache
def _converter() -> cattrs.Converter:
    converter = strict_converter()
    converter.register_structure_hook_func(lambda kind: kind == tuple[Secret, ...], _secrets)
    converter.register_structure_hook_func(lambda kind: kind == Secret | None, _secret)
    return converter


def _secret(value: Any, _kind: Any) -> Secret | None:
    if value is not None and type(value) is not str:
        raise Misfit("text (put it in quotes)", None)
    return None if value is None else Secret(value)


def _secrets(value: Any, _kind: Any) -> tuple[Secret, ...]:
    """A list of texts; no message quotes any of it."""
    if type(value) is not list:
        raise Misfit("a list of texts", None)
    for index, item in enumerate(value):
        if type(item) is not str:
            raise Misfit("text (put it in quotes)", None, (index,))
    return tuple(Secret(item) for item in value)
