"""What SECURITY.md promises of the sources, held over the sources themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for package in ("spaces", "ssm_models", "results", "search") for path in (ROOT / package).rglob("*.py")
)
FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "joblib.load"),
    *("shelve.open", "marshal.loads", "dill.load", "dill.loads", "yaml.load", "yaml.unsafe_load", "torch.hub.load"),
    *("eval", "exec", "os.system", "os.popen", "pandas.read_pickle"),
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, what) of each call that runs what it reads, or builds SQL or a shell's line of pieces."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "cloudpickle", "marshal", "shelve", "dill"):
            yield node.lineno, f"from {node.module} import"
        if not isinstance(node, ast.Call):
            continue
        name, options = dotted(node.func), {k.arg: k.value for k in node.keywords}
        if name in FORBIDDEN:
            yield node.lineno, name
        if name == "torch.load" and not _is(options.get("weights_only"), True):
            yield node.lineno, "torch.load without weights_only=True"
        if name.endswith("load") and not _is(options.get("allow_pickle", ast.Constant(False)), False):
            yield node.lineno, "allow_pickle"
        if "shell" in options and not _is(options["shell"], False):
            yield node.lineno, "shell"
        if name.split(".")[-1] in ("text", "exec_driver_sql") and node.args and _of_pieces(node.args[0]):
            yield node.lineno, "SQL of pieces"


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _of_pieces(node: ast.expr) -> bool:
    """Whether a text is anything but constants and a choice of them."""
    if isinstance(node, ast.IfExp):
        return _of_pieces(node.body) or _of_pieces(node.orelse)
    return isinstance(node, ast.JoinedStr | ast.BinOp | ast.Call)


def test_nothing_is_unpickled_run_or_put_together() -> None:
    assert len(SOURCES) > 50
    found = [
        (str(path.relative_to(ROOT)), line, what)
        for path in SOURCES
        for line, what in dangers(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)",
        "from pickle import loads",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(f)",
        "subprocess.run(c, shell=True)",
        "connection.execute(text(f'DROP TABLE {name}'))",
        "connection.exec_driver_sql('SELECT ' + name)",
        "eval(x)",
    ],
)
def test_each_danger_is_seen(line: str) -> None:
    assert len(list(dangers(ast.parse(line)))) == 1


@pytest.mark.parametrize("line", ["torch.load(p, weights_only=True)", "json.load(f)", "np.load(p)", "model.eval()"])
def test_what_is_harmless_is_not(line: str) -> None:
    assert list(dangers(ast.parse(line))) == []
