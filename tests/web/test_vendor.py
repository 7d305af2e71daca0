"""What the dashboard has from others: built as the lock file says, whole, and with the licences of all of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fakes.npm import CALLERS, NODE, NPM, installed

WEB: Final = Path(str(files("web")))
SOURCES: Final = ("package.json", "package-lock.json", ".npmrc", "build_vendor.mjs", "vendor.src.js")
BUILD_S: Final = 300.0  # generous: only something stuck runs into it
FONTS: Final = ("@fontsource-variable/inter", "@fontsource/jetbrains-mono")


def sources(folder: Path) -> Path:
    folder.mkdir()
    for name in SOURCES:
        shutil.copyfile(WEB / name, folder / name)
    return folder


def ran(folder: Path, *words: str) -> str:
    env = CALLERS | {"PATH": f"{NODE.parent}{os.pathsep}{CALLERS.get('PATH', os.defpath)}"}
    done = subprocess.run([str(NODE), *words], cwd=folder, env=env, capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which npm did what the installation does. Skipped where its registry is out of reach."""
    folder = tmp_path_factory.mktemp("vendor")
    installed(request.config, sources(folder / "asked"))  # says so when it is; and fills npm's own cache
    fresh = sources(folder / "fresh")
    ran(fresh, str(NPM), "install", "--prefer-offline")
    ran(fresh, str(NPM), "run", "build")
    return fresh


def test_an_installation_leaves_the_lock_file_as_it_is(built: Path) -> None:
    assert (built / "package-lock.json").read_bytes() == (WEB / "package-lock.json").read_bytes()


def test_the_licences_name_every_package_in_the_bundle(built: Path) -> None:
    esbuild = str(built / "node_modules" / "esbuild" / "bin" / "esbuild")
    subprocess.run(
        [esbuild, "vendor.src.js", "--bundle", "--format=esm", "--metafile=inside.json", "--outfile=inside.js"],
        cwd=built, check=True, capture_output=True, timeout=BUILD_S,
    )  # fmt: skip
    paths = json.loads((built / "inside.json").read_text())["inputs"]
    inside = {found[1] for path in paths if (found := re.match(r"node_modules/((?:@[^/]+/)?[^/]+)/", path))}
    assert {"lit", "lit-html", "@preact/signals-core", "uplot"} <= inside
    text = (built / "static" / "vendor" / "THIRD_PARTY_LICENSES.txt").read_text()
    for name in (*inside, *FONTS):
        told: dict[str, Any] = json.loads((built / "node_modules" / name / "package.json").read_text())
        assert f"{name} {told['version']} ({told['license']})" in text
        assert (built / "node_modules" / name / "LICENSE").read_text().strip() in text


def test_a_build_has_all_that_the_page_asks_for(built: Path) -> None:
    made = {path.name for path in (built / "static" / "vendor").iterdir()}
    style = (built / "static" / "vendor" / "vendor.css").read_text()
    fonts = set(re.findall(r"url\(([^)]+)\)", style))
    assert made == {"vendor.js", "vendor.css", "vendor.d.ts", "THIRD_PARTY_LICENSES.txt"} | fonts
    assert len(fonts) == 2
    assert not re.search(r"https?:", style)


def test_what_is_served_here_is_that_build(built: Path) -> None:
    here = WEB / "static" / "vendor"
    if not here.is_dir():
        pytest.skip("the libraries were not built here")
    for path in (built / "static" / "vendor").iterdir():
        assert (here / path.name).read_bytes() == path.read_bytes(), (
            f"{path.name} is of another build: pip install -e ."
        )


def test_every_version_is_exact() -> None:
    package = json.loads((WEB / "package.json").read_text())
    versions = (package["dependencies"] | package["devDependencies"]).values()
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)
    assert "ignore-scripts=true" in (WEB / ".npmrc").read_text().splitlines()


def test_a_wheel_has_the_libraries_and_not_what_made_them() -> None:
    project = tomllib.loads((WEB.parent / "pyproject.toml").read_text())
    hatch = project["tool"]["hatch"]["build"]
    kinds = {name.removeprefix("/web/static/vendor/*") for name in hatch["targets"]["wheel"]["artifacts"]}
    assert kinds == {".js", ".css", ".woff2", ".txt"}
    hook = hatch["hooks"]["jupyter-builder"]
    assert {"web/static/vendor/vendor.js", "web/static/vendor/THIRD_PARTY_LICENSES.txt"} <= set(hook["ensured-targets"])
    assert hook["optional-editable-build"] == "true", "without a way to npm the engine is installed all the same"
    assert hook["build-kwargs"] == hook["editable-build-kwargs"]
