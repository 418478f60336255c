"""Docstrings speak of names that exist: a renamed parameter, field, error or constant is renamed in words too."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "dermkit"

QUOTED = re.compile(r"`([A-Za-z_][\w.]*)`")
LEGEND = re.compile(r"(?:(?<=[.;] )|(?<=\n)|^)\s*([a-z][a-z0-9_]*(?:(?:, | and )[a-z][a-z0-9_]*)*): ")
"""The names that a docstring explains: `rows, columns: (N,) int64, ...` at the begin of a line or a sentence."""

OTHER_LIBRARIES = frozenset({"pydantic", "F"})
"""Their names need not occur in the code; `F` is torch.nn.functional."""

LONGEST_TEXT = 60
"""Longer strings are sentences; shorter ones may be JSON keys, CSV columns and file names."""

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def test_docstrings_name_what_exists() -> None:
    trees = {
        path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")
    }
    known_names = _known_names(trees)
    problems = [f"{name}: {problem}" for name, tree in trees.items() for problem in _problems(tree, known_names)]
    assert not problems, "\n".join(problems)


def test_stale_names_are_refused() -> None:
    source = '''
def fit(rows, weights):
    """Fit a model; raises `LostError`, reads `rows.file`.

    rows: (N,) row numbers. wishes: what was asked. Note: no legend.
    """
    return weights.file
'''
    tree = ast.parse(source)
    assert list(_problems(tree, _known_names({"fit.py": tree}))) == [
        "fit: `LostError` does not exist",
        "fit: explains `wishes`, which it does not have",
    ]


def _problems(tree: ast.Module, known_names: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, Documented):
            continue
        name = getattr(node, "name", "module")
        local_names = _names(node)
        for text in _docstrings(node):
            for match in QUOTED.finditer(text):
                parts = match[1].split(".")
                if parts[0] not in OTHER_LIBRARIES and set(parts) - known_names:
                    yield f"{name}: `{match[1]}` does not exist"
            explained = [] if isinstance(node, ast.Module) else LEGEND.findall(text)
            for word in (word for legend in explained for word in re.split(r", | and ", legend)):
                if word not in local_names:
                    yield f"{name}: explains `{word}`, which it does not have"


def _docstrings(node: Documented) -> list[str]:
    """Return the docstring of a module, class or function, and those below its constants and fields."""
    texts = [ast.get_docstring(node) or ""]
    for statement, follower in zip(node.body, node.body[1:], strict=False):
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(follower, ast.Expr):
            value = follower.value
            texts += [value.value] if isinstance(value, ast.Constant) and isinstance(value.value, str) else []
    return texts


def _known_names(trees: dict[str, ast.Module]) -> set[str]:
    files = {part for name in trees for part in Path(name).with_suffix("").parts}
    return files.union(*(_names(tree) for tree in trees.values()))


def _names(tree: ast.AST) -> set[str]:
    """Return the identifiers of a piece of code, and the words of its short strings."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.arg | ast.keyword):
            names.add(node.arg or "")
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.update((node.asname or node.name).split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < LONGEST_TEXT:
            names.update(re.findall(r"\w+", node.value))
    return names
