"""The rule of ARCHITECTURE.md on who may import whom, held over the sources themselves."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "spaces": set(),
    "ssm_models": {"spaces"},
    "results": {"spaces"},
    "search": {"spaces", "ssm_models", "results"},
}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, top-level package) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]


def imports_of(package: str) -> list[tuple[str, str]]:
    """Return (file:line, imported package) over a package's sources."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(f"{path.relative_to(ROOT)}:{line}", name) for line, name in imported(tree)]
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_stands_below_it(package: str) -> None:
    imports = imports_of(package)
    assert imports, f"{package} has no sources"
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    assert [(where, name) for where, name in imports if name in forbidden] == []


def test_spaces_is_pure_python() -> None:
    outside = [
        (where, name) for where, name in imports_of("spaces") if name not in {*sys.stdlib_module_names, "spaces"}
    ]
    assert outside == []


def test_an_import_inside_a_function_is_seen() -> None:
    tree = ast.parse("def f():\n    from search.cli import main\n    import torch.nn as nn\n")
    assert list(imported(tree)) == [(2, "search"), (3, "torch")]
