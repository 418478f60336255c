"""`import dermkit` is small, quick and typed, works under `python -OO`, and is all that the notebooks need."""

import ast
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dermkit as dk

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dermkit"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PUBLIC_PACKAGES = ("dermkit.metrics", "dermkit.errors", "dermkit.data.synthetic")
HEAVY = ("torch", "numpy", "pandas", "scipy", "PIL", "matplotlib", "pydantic", "rich", "typer", "jinja2")
MAX_MODULES = 40
"""Modules that `import dermkit` may load beside those of bare Python: 29 today, all of the standard library. Seconds
are not asserted, since they depend on the machine: docs/decisions/0009-one-house.md has them."""


def python(*args: str, folder: Path = ROOT) -> str:
    """Run Python on these arguments in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, check=False, timeout=300, cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Return name -> module of every `from MODULE import NAME` under `if TYPE_CHECKING`."""
    return {
        alias.name: node.module or ""
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("name", dk.__all__)
def test_every_public_name_resolves_and_is_described(name: str) -> None:
    value = getattr(dk, name)
    assert name in dir(dk)
    if name != "RECIPES":
        assert inspect.getdoc(value), f"{name} has no docstring"
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Parameter.empty
        untyped = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
        assert untyped == []


def test_type_checkers_see_what_is_imported() -> None:
    names = imported_names(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
    assert names == {name: f"dermkit.{module}" for name, module in dk._MODULE_OF.items()}
    assert sorted(names) == sorted(dk.__all__)


def test_a_public_name_is_defined_where_the_table_says() -> None:
    elsewhere = {
        name: value.__module__
        for name, module in dk._MODULE_OF.items()
        if getattr(value := getattr(dk, name), "__module__", f"dermkit.{module}") != f"dermkit.{module}"
    }
    assert elsewhere == {}


def test_no_public_name_is_a_sub_package() -> None:
    """An import of the sub-package would put it in the function's place."""
    inside = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert inside & set(dk.__all__) == set()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'dermkit' has no attribute 'trian'"):
        dk.trian  # noqa: B018


def test_the_import_loads_nothing_heavy() -> None:
    script = "import sys; before = set(sys.modules); import dermkit; dir(dermkit)\n"
    loaded = python("-c", script + "print(*(set(sys.modules) - before))").split()
    assert set(loaded) & set(HEAVY) == set()
    assert len(loaded) <= MAX_MODULES, sorted(loaded)
    assert [name for name in loaded if name.startswith("dermkit.")] == []


def test_a_public_name_is_loaded_when_it_is_used() -> None:
    script = (
        "import sys, dermkit as dk; dk.Progress; print('dermkit.progress' in sys.modules, 'numpy' in sys.modules)"
    )
    assert python("-c", script).split() == ["True", "False"]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--help"], "Train a recipe on a data set"),
        (["recipes", "--help"], "Print a recipe as JSON"),
        (["recipes", "list"], "s2-finetuned"),
        (["audit", "--codes"], "| DA012 |"),
    ],
)
def test_the_command_line_says_the_same_without_docstrings(args: list[str], text: str) -> None:
    optimised = python("-OO", "-m", "dermkit.cli", *args)
    assert text in optimised
    assert optimised == python("-m", "dermkit.cli", *args)


def test_data_work_runs_without_docstrings_and_asserts(tmp_path: Path) -> None:
    script = """
from pathlib import Path
import dermkit as dk
from dermkit.data.synthetic.dataset import make_dataset_folder

assert False, "-OO drops this line"
lesions = {"benign": 12, "malignant": 12}
make_dataset_folder(
    Path("images"), lesions_per_class=lesions, photos_per_lesion=(1, 1), size=48, seed=1, given_test=0.3
)
dataset = dk.import_dataset("folder", Path("images"), out=Path("data")).dataset
split = dk.split(dataset, dk.find_recipe("s4-cnn").split, name="given")
outcome = dk.audit_dataset(dataset)
print(len(dataset.manifest), sorted(set(split.frame["split"])), Path(dataset.folder / "audit" / "audit.html").exists())
"""
    assert (
        python("-OO", "-c", script, folder=tmp_path).splitlines()[-1] == "24 ['test', 'train', 'validation'] True"
    )


def notebook_imports(path: Path) -> Iterator[str]:
    """Yield every module of dermkit that a notebook imports."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "dermkit")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dermkit":
                yield from (
                    node.module or "" if node.module != "dermkit" else f"dermkit.{alias.name}"
                    for alias in node.names
                )


def is_public(module: str) -> bool:
    """Say whether a notebook may import this."""
    public = any(module == package or module.startswith(f"{package}.") for package in PUBLIC_PACKAGES)
    return public or module == "dermkit" or module.removeprefix("dermkit.") in dk.__all__


def private_imports(path: Path) -> list[str]:
    """Return the modules that a notebook imports though they are not public."""
    return sorted({module for module in notebook_imports(path) if not is_public(module)})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_only_the_public_interface(path: Path) -> None:
    assert "dermkit" in set(notebook_imports(path))
    assert private_imports(path) == []


def test_a_planted_private_import_is_refused(tmp_path: Path) -> None:
    source = [
        "import dermkit as dk\n",
        "from dermkit import train, recipes\n",
        "from dermkit.metrics.classification import roc\n",
        "import dermkit.training.loop\n",
        "def look():\n    from dermkit.render.sheets import Tile\n",
    ]
    cells = [
        {"cell_type": "markdown", "source": ["from dermkit.runs import folder"]},
        {"cell_type": "code", "source": source},
    ]
    path = tmp_path / "planted.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert private_imports(path) == ["dermkit.recipes", "dermkit.render.sheets", "dermkit.training.loop"]
