"""Modules stand in an order: none reaches itself again by what it imports.

The reader here is its own: imports inside functions and under TYPE_CHECKING count, which import-linter can be told to
leave out, and so does a package that is asked for a name it only hands on.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("interp", "circuits", "probes")


def module_files(root, packages=PACKAGES):
    """Name of each module -> its file."""
    paths = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    parts = {path: path.relative_to(root).with_suffix("").parts for path in paths}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): path for path, p in parts.items()}


def imported_names(tree, package):
    """Dotted names that a module imports: `from a import b` is a.b, which may be a module or a name inside one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def import_graph(files):
    """Module -> the modules it imports. A package counts where a name of its own is imported, not as a folder."""

    def module_of(name):
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    graph = {}
    for name, path in files.items():
        parts = name.split(".")
        package = parts if path.name == "__init__.py" else parts[:-1]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[name] = {module_of(target) for target in imported_names(tree, package)} - {"", name}
    return graph


def circles(graph):
    """Strongly connected sets of two or more modules (Tarjan 1972)."""
    index, low, stack, sets = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                sets.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sets


def test_no_circle_of_imports():
    graph = import_graph(module_files(ROOT))
    assert len(graph) > 200
    assert sum(len(targets) for targets in graph.values()) > 1000
    assert circles(graph) == []


@pytest.mark.parametrize(
    "line",
    [
        "import p.b",
        "from p import b",
        "from p.b import x",
        "from . import b",
        "from .b import x",
        "def f():\n    from p.b import x",
        "if TYPE_CHECKING:\n    from p.b import x",
        'm = importlib.import_module("p.b")',
        "from p import x",  # x lives in b; the package hands it on
    ],
)
def test_every_kind_of_import_can_close_a_circle(line, tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "__init__.py").write_text("from p.b import x")
    (folder / "a.py").write_text(line)
    (folder / "b.py").write_text("import os, p.c")
    (folder / "c.py").write_text("from p.a import y")
    (folder / "d.py").write_text("from p.a import y")
    (members,) = circles(import_graph(module_files(tmp_path, ["p"])))
    assert {"p.a", "p.b", "p.c"} <= set(members) <= {"p", "p.a", "p.b", "p.c"}


def test_a_tree_without_circles_has_none():
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
