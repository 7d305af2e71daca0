"""The shape of the tree is part of the product: sizes, names, and docs that keep up with the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from engine.domain import errors

ROOT = Path(__file__).parent.parent
PACKAGES = ("engine", "actors", "policies", "transport", "web")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULE_LINES_MAX = 500
FUNCTION_LINES_P95 = 50
FUNCTION_LINES_MAX = 80
KERNEL_LINES_MAX = 170
JS_LINES_MAX = 400
GRAVITY_WELLS = {"utils", "util", "helpers", "common", "base", "manager", "misc", "shared"}


def functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_is_small_named_for_what_it_is_and_says_so(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    assert path.stem not in GRAVITY_WELLS
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), "a module begins by saying what it is"


def test_the_kernel_stays_small():
    assert len((ROOT / "actors/kernel.py").read_text().splitlines()) <= KERNEL_LINES_MAX


def test_functions_are_short():
    sizes = sorted((size, name) for path in MODULES for name, size in functions(path))
    assert sizes[-1][0] <= FUNCTION_LINES_MAX, sizes[-5:]
    assert sizes[int(len(sizes) * 0.95)][0] <= FUNCTION_LINES_P95


def test_scripts_of_the_page_are_small_too():
    for path in (ROOT / "web/static").glob("*.js"):
        assert len(path.read_text().splitlines()) <= JS_LINES_MAX, path.name


def test_every_error_code_is_documented():
    readme = (ROOT / "README.md").read_text()
    codes = {cls.code for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.EngineError)}
    missing = {code for code in codes if f"`{code}`" not in readme}
    assert not missing


def test_every_event_type_is_documented():
    source = "".join(path.read_text() for path in MODULES)
    types = set(re.findall(r'"((?:energy|experience|system)\.[a-z_]+)"', source))
    readme = (ROOT / "README.md").read_text()
    missing = {type_ for type_ in types if f"`{type_}`" not in readme}
    assert types
    assert not missing


def test_every_link_in_the_docs_leads_somewhere():
    for page in (*ROOT.glob("*.md"), ROOT / "actors/design.md"):
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_container_is_needed_or_shipped():
    for name in ("Dockerfile", "docker-compose.yml", "compose.yaml", ".dockerignore"):
        assert not (ROOT / name).exists()


def test_the_layout_of_the_top_level():
    allowed = {
        "engine", "actors", "transport", "web", "policies", "tests", "bench",
        "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "requirements.lock",
    }  # fmt: skip
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and not p.name.endswith(".egg-info")}
    found -= {"build", "dist", "wf.yaml"}
    assert found <= allowed
