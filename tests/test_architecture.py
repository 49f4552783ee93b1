"""The rows of the program: imports point down, and nothing grows too large.

The table below is the architecture, and ``docs/architecture.md`` shows it. A package may import
what stands in a lower row; packages of one row do not know each other, except in the lowest row,
where imports point to the right. Inside a package the order is free, but no modules import each
other in a circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "regmirror"

ROWS: list[list[str]] = [
    ["__main__"],
    ["cli"],
    ["server"],
    ["v2", "web"],
    ["mirror", "hosted", "access"],
    ["downloads", "maintenance", "cluster", "upstream"],
    ["metadata", "blobs"],
    ["config", "telemetry", "oci", "errors", "files", "lru", "offload", "singleflight", "urls"],
]
LOWEST = set(ROWS[-1])
#: Rooms that are planned and not built yet.
PLANNED = {"web", "hosted", "access", "cluster"}
#: The version stands in the package itself, which imports nothing.
VERSION = "__init__"
SPEAK_HTTP_TO_CLIENTS = {"v2", "web", "server"}
SPEAK_HTTP = SPEAK_HTTP_TO_CLIENTS | {"upstream"}
HAVE_A_DATABASE = {"metadata", "maintenance", "server"}  # those after metadata only for its exceptions

LINES_MAX = 400
FUNCTION_MAX = 50

#: Modules that no unit test of the same name covers, and why.
TESTED_BY_OTHERS = {
    "__init__.py": "has no code but the version",
    "__main__.py": "every test that starts the program runs it",
    "migrations": "tests/unit/metadata/test_upgrade.py runs all of them",
    "source.py": "tests/contract/test_source_locator.py runs it",
    "base.py": "tests/contract runs every implementation of the ports",
}
#: Modules whose test file is still to be written. This list only shrinks.
WITHOUT_TESTS: set[str] = set()

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "versions" not in path.parts)
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def unit(path: Path) -> str:
    """The module or subpackage of ``regmirror`` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, those inside functions included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """The other units of ``regmirror`` that a file imports."""
    names = (name.split(".") for name in imports(path))
    found = {name[1] for name in names if name[0] == "regmirror" and len(name) > 1}
    return {VERSION if name == "__version__" else name for name in found} - {unit(path)}


def height() -> dict[str, tuple[int, int]]:
    """The place of each unit: what is imported must have a smaller one."""
    return {name: (-row, -column) for row, names in enumerate(ROWS) for column, name in enumerate(names)}


def test_every_module_has_its_place() -> None:
    """A new package is a decision: say where it belongs."""
    found = {unit(path) for path in FILES} - {VERSION}
    assert found - set(height()) == set()


def test_every_place_has_its_module() -> None:
    assert set(height()) - {unit(path) for path in FILES} == PLANNED


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Any) -> None:
    places = height() | {VERSION: (-len(ROWS), 0)}
    row, column = places[unit(path)]
    for name in own_imports(path):
        other_row, other_column = places[name]
        is_below = other_row < row
        is_right_in_lowest = unit(path) in LOWEST and name in LOWEST and other_column < column
        assert is_below or is_right_in_lowest, f"{path} imports {name}, which does not stand below it"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("aiohttp.web", SPEAK_HTTP_TO_CLIENTS),
        ("aiohttp", SPEAK_HTTP),
        ("sqlalchemy", HAVE_A_DATABASE),
        ("alembic", {"metadata"}),
        ("prometheus_client", {"telemetry", "server", "cli"}),
        ("structlog", {"telemetry"}),
        ("typer", {"cli"}),
        ("rich", {"cli"}),
        ("pydantic", {"config", "cli"}),
    ],
)
def test_a_library_stays_where_it_belongs(library: str, allowed: Any) -> None:
    """``aiohttp.web`` is the edge's alone: nothing below it knows of requests and responses."""
    users = {
        unit(path)
        for path in FILES
        for name in imports(path)
        if f"{name}.".startswith((f"{library}.", f"{library}_"))
    }
    assert users - allowed == set()


def test_no_concrete_store_is_named_outside_blobs_and_server() -> None:
    """Every other package takes the port ``blobs.base.BlobStore``."""
    users = {
        unit(path)
        for path in FILES
        for node in ast.walk(tree(path))
        if "LocalBlobStore" in (getattr(node, "id", ""), getattr(node, "name", ""), getattr(node, "attr", ""))
    }
    assert users == {"blobs", "server"}


def test_modules_do_not_import_each_other_in_circles() -> None:
    """Not even inside a package, where the table says nothing."""
    edges = {_dotted(path): {_module(name) for name in imports(path)} - {_dotted(path)} for path in FILES}
    done: set[str] = set()
    while ready := {name for name in edges.keys() - done if not edges[name] & (edges.keys() - done)}:
        done |= ready
    assert edges.keys() - done == set()


def _dotted(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _module(name: str) -> str:
    """The module of an imported name, which may be a member of one."""
    as_path = ROOT.joinpath(*name.split("."))
    is_module = as_path.with_suffix(".py").exists() or (as_path / "__init__.py").exists()
    return name if is_module else name.rpartition(".")[0]


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_too_long(path: Any) -> None:
    is_test = path in TESTS
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MAX * (2 if is_test else 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_is_too_long(path: Any) -> None:
    functions = [
        node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_MAX} == {}


def test_every_module_has_a_test_file_of_its_name() -> None:
    """``regmirror/mirror/freshness.py`` is tested by ``tests/unit/mirror/test_freshness.py``."""
    modules = {
        path.relative_to(PACKAGE)
        for path in FILES
        if not TESTED_BY_OTHERS.keys() & {*path.relative_to(PACKAGE).parts}
    }
    missing = {
        str(module)
        for module in modules
        if not (ROOT / "tests" / "unit" / module.parent / f"test_{module.name}").exists()
        and not (ROOT / "tests" / "contract" / f"test_{module.name}").exists()
    }
    assert missing - WITHOUT_TESTS == set(), "write the test file of a new module"
    assert WITHOUT_TESTS - missing == set(), "remove what has a test file, or is no module any more"


def test_nothing_happens_when_a_module_is_imported() -> None:
    """Start and stop belong to the composition root: no threads, files or loops at import."""
    forbidden = {"open", "create_task", "run", "start", "connect", "getenv"}
    for path in FILES:
        if path.name == "env.py":  # Alembic runs it on purpose
            continue
        for node in tree(path).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                called = ast.unparse(node.value.func).rpartition(".")[2]
                assert called not in forbidden, f"{path.name} calls {called} when it is imported"
