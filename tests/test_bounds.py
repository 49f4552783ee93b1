"""Everything that can grow has a bound in ``docs/bounds.md`` (B100).

The tests search the package for containers, queues, pools and locks that outlive a call: those on
``self``, in a class or in a module. A new one needs a row in the table, with its bound and the
effect of reaching it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from regmirror.metadata import schema

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "regmirror"
TABLE = ROOT / "docs" / "bounds.md"

GROWABLE = {
    "Lru", "ListCache", "SingleFlight", "Flight", "NegativeCache", "ResponseCache", "TokenCache",
    "dict", "list", "set", "deque", "defaultdict", "OrderedDict", "Counter", "ChainMap",
    "bytearray", "BytesIO",
    "WeakKeyDictionary", "WeakValueDictionary", "WeakSet", "ContextVar",
    "Queue", "LifoQueue", "PriorityQueue", "SimpleQueue",
}  # fmt: skip
POOLS = {
    "ThreadPoolExecutor", "ProcessPoolExecutor", "Semaphore", "BoundedSemaphore", "ConnectionLimiter",
    "create_async_engine", "TCPConnector",
}  # fmt: skip
CACHES = {"cache", "lru_cache", "cached_property"}
#: Modules whose containers end with a command or are the configuration itself.
OF_ONE_COMMAND = {"cli", "schema.py", "loader.py", "migrations", "__main__.py"}


def called(node: ast.AST) -> str:
    """Return the last name of a call, such as ``ThreadPoolExecutor`` of ``futures.ThreadPoolExecutor(2)``."""
    function = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(function).partition("[")[0].rpartition(".")[2]


def is_growable(value: ast.expr | None) -> bool:
    """Return whether the expression creates a container that can grow, or a pool."""
    if isinstance(value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp):
        return True
    if isinstance(value, ast.IfExp):
        return is_growable(value.body) or is_growable(value.orelse)
    if isinstance(value, ast.BoolOp):
        return any(map(is_growable, value.values))
    if not isinstance(value, ast.Call):
        return False
    if called(value) == "field":  # of a dataclass
        factory = next((item.value for item in value.keywords if item.arg == "default_factory"), None)
        factory = factory.body if isinstance(factory, ast.Lambda) else factory
        return factory is not None and called(factory) in GROWABLE | POOLS
    return called(value) in GROWABLE | POOLS


def assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield the names and values of an assignment; tuples are unpacked."""
    if isinstance(node, ast.AnnAssign):
        yield ast.unparse(node.target), node.value
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for one, value in zip(target.elts, node.value.elts, strict=False):
                    yield ast.unparse(one), value
            else:
                yield ast.unparse(target), node.value


def find_in(path: Path) -> Iterator[str]:
    """Yield ``name`` of a module, ``Class.name`` of a class, ``function()`` that creates a pool."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for statement in tree.body:
        for name, value in assigned(statement):
            if is_growable(value) and not is_constant(value):
                yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from find_in_class(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {called(item) for item in node.decorator_list}
            if decorators & CACHES:
                yield node.name
            if makes_pool(node):
                yield f"{node.name}()"


def makes_pool(function: ast.AST) -> bool:
    """Return whether the function creates a pool that it does not assign to ``self``."""
    own = [
        value
        for node in ast.walk(function)
        for name, value in assigned(node)
        if value is not None and name.startswith("self.") and is_growable(value)
    ]
    mine = {item for value in own for item in ast.walk(value)}
    return any(
        isinstance(item, ast.Call) and called(item) in POOLS and item not in mine
        for item in ast.walk(function)
    )


def find_in_class(node: ast.ClassDef) -> Iterator[str]:
    for child in ast.walk(node):
        for name, value in assigned(child):
            is_field = child in node.body and "." not in name
            if is_growable(value) and (is_field or name.startswith("self.")):
                yield f"{node.name}.{name.removeprefix('self.')}"


def is_constant(value: ast.expr | None) -> bool:
    """Return whether a value of a module is written out in full; containers that grow start empty."""
    is_literal = isinstance(value, ast.Dict | ast.List | ast.Set) and any(ast.iter_child_nodes(value))
    return is_literal or isinstance(value, ast.DictComp | ast.ListComp | ast.SetComp)


def found() -> set[str]:
    """Return file and name of everything in the package that can grow, and of every table."""
    names = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if not OF_ONE_COMMAND & set(parts):
            names |= {f"{path.relative_to(PACKAGE)} {name}" for name in find_in(path)}
    return names | {f"metadata/schema.py {table}" for table in schema.metadata.tables}


def listed() -> list[tuple[str, str, str]]:
    """Return file and name, bound, and effect of each row of the table."""
    lines = re.findall(
        r"^\| `([^`]+)` \| `([^`]+)` \| (.+?) \| (.+?) \|$", TABLE.read_text("utf-8"), re.MULTILINE
    )
    return [(f"{file} {name}", bound, end) for file, name, bound, end in lines]


def test_the_table_lists_exactly_what_can_grow() -> None:
    """B100."""
    names = {name for name, _, _ in listed()}
    assert sorted(found() - names) == [], "add a row with the bound to docs/bounds.md"
    assert sorted(names - found()) == [], "these no longer exist: remove their rows from docs/bounds.md"


def test_the_rows_are_sorted_and_state_a_bound() -> None:
    """Sorting avoids conflicts between changes."""
    lines = [name for name, _, _ in listed()]
    assert lines == sorted(lines)
    assert len(lines) == len(set(lines))
    assert [name for name, bound, _ in listed() if not re.search(r"\d|config|request|one ", bound)] == []


def test_every_lru_is_bounded_in_bytes() -> None:
    """B100: a number of entries is no bound when clients or upstreams determine their size."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).partition("[")[0].endswith("Lru"):
                assert len(node.args) == 2, f"{path.name}:{node.lineno}"


def test_the_search_finds_every_kind_of_container(tmp_path: Path) -> None:
    """Otherwise a new kind of container would not be noticed."""
    path = tmp_path / "sample.py"
    path.write_text(
        "seen = {}\nqueue: deque[int] = deque()\nLIMIT = 5\nNAMES = {'a': 1}\n"
        "class A:\n    tags: list[str] = field(default_factory=list)\n    pool = ThreadPoolExecutor(2)\n"
        "    def __init__(self):\n        self.x, self._y = {}, asyncio.Queue()\n"
        "        self._z: Lru[str, int] = Lru(5, weigh) if lru is None else lru\n        local = []\n"
        "@functools.cache\ndef parse(): pass\ndef work():\n    threads = futures.ThreadPoolExecutor(2)\n",
        encoding="utf-8",
    )
    names = ["seen", "queue", "A.tags", "A.pool", "A.x", "A._y", "A._z", "parse", "work()"]
    assert sorted(find_in(path)) == sorted(names)
