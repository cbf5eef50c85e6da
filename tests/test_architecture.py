"""The rules of ARCHITECTURE.md on who may import whom, held over the sources themselves."""

import ast
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "spaces": set(),
    "ssm_models": {"spaces"},
    "results": {"spaces"},
    "search": {"spaces", "ssm_models", "results"},
}


def sources(package: str) -> dict[str, ast.Module]:
    """Return the syntax tree of each module of a package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import: those inside functions too, and those for types alone.

    `from a import b` yields a.b, which may be a module or a name in one.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imports_of(package: str) -> list[tuple[str, str]]:
    """Return (module:line, imported top-level package) over a package's sources."""
    return [
        (f"{module}:{line}", name.partition(".")[0])
        for module, tree in sources(package).items()
        for line, name in imported(tree)
    ]


def module_graph(package: str) -> dict[str, set[str]]:
    """Return which modules of a package each of its modules imports."""
    trees = sources(package)
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        targets = {name if name in trees else name.rpartition(".")[0] for _, name in imported(tree)}
        graph[module] = (targets & trees.keys()) - {module}
    return graph


def room_graph(graph: Mapping[str, Set[str]]) -> dict[str, set[str]]:
    """Return which rooms, the folders and files directly below a package, each of them imports."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    rooms: dict[str, set[str]] = {}
    for module, targets in graph.items():
        rooms.setdefault(room(module), set()).update(room(target) for target in targets)
    return {name: targets - {name} for name, targets in rooms.items()}


def circles(graph: Mapping[str, Set[str]]) -> list[list[str]]:
    """Return the import circles: the strongly connected components of more than one node, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_stands_below_it(package: str) -> None:
    imports = imports_of(package)
    assert imports, f"{package} has no sources"
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    assert [(where, name) for where, name in imports if name in forbidden] == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    assert circles(module_graph(package)) == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_rooms_import_each_other_in_a_circle(package: str) -> None:
    rooms = room_graph(module_graph(package))
    rooms.pop(package)  # a package's own __init__ re-exports what its rooms hold
    assert circles({name: targets & rooms.keys() for name, targets in rooms.items()}) == []


def test_spaces_is_pure_python() -> None:
    outside = [
        (where, name) for where, name in imports_of("spaces") if name not in {*sys.stdlib_module_names, "spaces"}
    ]
    assert outside == []


def test_an_import_inside_a_function_is_seen() -> None:
    tree = ast.parse("def f():\n    from search.cli import main\n    import torch.nn as nn\n")
    assert list(imported(tree)) == [(2, "search.cli.main"), (3, "torch.nn")]


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": {"f"}, "f": {"g"}, "g": {"e"}}
    assert circles(graph) == [["b", "c"], ["e", "f", "g"]]
