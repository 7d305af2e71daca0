"""The keys of providers outside this machine: from the environment, or from a file that nobody else can read.

A key is bound to the host it is for: it goes to that host or nowhere. One of the environment (OPENAI_API_KEY,
ANTHROPIC_API_KEY, OPENROUTER_API_KEY) is for the provider's own address; a configuration that puts the provider
elsewhere does not get it. In the file every line names its host:

    # provider  host              key
    openai      api.openai.com    sk-…

No message shows any part of a line. Plain blocking code on a small file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from engine.settings import Secret
from policies.providers import ProviderSpec, provider_specs

FILE_NAME: Final = "keys"
FILE_BYTES_MAX: Final = 64 * 1024
_WELL_KNOWN: Final = ("openai", "anthropic", "openrouter")
_OTHERS: Final = 0o077


@attrs.frozen
class KeyFound:
    """`problem` says why there is no key, for people; exactly one of both is null."""

    key: Secret | None
    problem: str | None = None


def find_keys(specs: Mapping[str, ProviderSpec], environ: Mapping[str, str], file: Path) -> dict[str, KeyFound]:
    """The key of each satellite among `specs`. Never raises for a file that is missing or cannot be used."""
    lines, trouble = _read(file)
    own_hosts = {name: spec.host for name, spec in provider_specs({name: {} for name in _WELL_KNOWN}).items()}
    return {
        name: _key_of(spec, environ, lines, trouble, own_hosts.get(name), file)
        for name, spec in specs.items()
        if spec.satellite
    }


def _key_of(
    spec: ProviderSpec,
    environ: Mapping[str, str],
    lines: Mapping[tuple[str, str], str],
    trouble: str | None,
    own_host: str | None,
    file: Path,
) -> KeyFound:
    variable = f"{spec.name.upper().replace('-', '_')}_API_KEY"
    found = environ.get(variable, "").strip() if spec.host == own_host else ""
    key = Secret(found or lines.get((spec.name, spec.host), ""))
    if key.fits_a_header:
        return KeyFound(key)
    if key.reveal():
        return KeyFound(None, f"the key for {spec.host} holds characters that cannot stand in a header")
    named = f"set {variable}, or add" if own_host == spec.host else "add"
    return KeyFound(None, f"{trouble or 'there is none'}; {named} a line `{spec.name} {spec.host} KEY` to {file}")


def _read(file: Path) -> tuple[dict[tuple[str, str], str], str | None]:
    """Keys by provider and host, or why the file is not used; a file that is not there is no trouble."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a possible path"
        return {}, f"{file} cannot be read ({reason})"
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            return {}, f"{file} is no file"
        if about.st_uid != os.geteuid() or about.st_mode & _OTHERS:
            return {}, f"{file} is not used, since others can read it (chmod 600)"
        data = os.read(descriptor, FILE_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(data) > FILE_BYTES_MAX:
        return {}, f"{file} is larger than {FILE_BYTES_MAX} bytes"
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) == 3 and not words[0].startswith("#"):
            found[words[0], words[1].lower()] = words[2]
    return found, None
