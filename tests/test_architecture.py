"""The house rules that a reader would otherwise have to trust: direction, size, what is imported when, what is said.

Every checker takes a folder, so that a test below can plant a fault in another one and see it refused.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"

# A room is a module, or a package whose modules belong together. Imports point to a lower layer only.
LAYERS = {
    "": 0, "data": 0, "errors": 0, "files": 0, "recipe": 0, "data.headers": 0, "data.images": 0, "data.manifest": 0,
    "results": 0, "data.rows": 0, "data.values": 0, "augmentation": 0, "ahead": 0, "places": 0, "machines": 0,
    "metrics": 0, "watch": 0, "asked": 0, "sums": 0,
    "recipes": 1, "colour": 1,
    "cnn": 1, "weights": 1, "model": 1, "checkpoint": 1, "pictures": 1, "pages": 1, "canvas": 1, "charts": 1,
    "curves": 1, "findings": 1,
    "cautions": 1, "claims": 1, "trainings": 1, "labels": 1, "modelcard": 1, "decided": 1, "targets": 1,
    "data.diagnoses": 1, "data.known": 1,
    "predictions": 1, "data.sources": 1, "data.walk": 1, "data.layouts": 1, "data.dividing": 1, "data.overlap": 1,
    "data.splitfile": 1, "data.split": 1, "data.seal": 1, "data.cache": 1, "data.augment": 1, "data.synthetic": 1,
    "data.lesions": 1, "data.planting": 1, "data.drawing": 1,
    "data.tables": 1, "data.matching": 1, "data.tabular": 1, "data.reading": 1, "data.isic": 1, "data.archives": 1,
    "data.medmnist": 1, "data.opening": 1,
    "data.draws": 1, "data.onto": 1, "data.geometry": 1, "data.texture": 1, "data.tone": 1, "data.mixing": 1,
    "data.segments": 1, "data.store": 1, "compute": 1, "guides": 1, "listing": 1, "ranks": 1, "syncnorm": 1,
    "run": 2, "samples": 2, "features": 2, "optim": 2, "step": 2, "inference": 2, "predictor": 2, "scoring": 2,
    "parts": 2, "illustrations": 2, "mistaken": 2, "runfiles": 2, "settled": 2, "board": 2, "inprint": 2,
    "data.overview": 2, "data.importing": 2, "data.joining": 2,
    "sealed": 3, "runscores": 3,
    "train": 3, "evaluate": 3, "compare": 3, "audit": 3, "lint": 1, "explain": 3, "predict": 3,
    "launch": 4, "report": 4, "versus": 4, "plan": 4, "facts": 4, "runner": 4, "repeats": 4, "external": 4,
    "brought": 4, "unseal": 4, "judging": 4, "workflow": 4, "demo": 4,
    "terminal": 5, "cli_data": 5, "cli_results": 5, "cli": 5,
}  # fmt: skip
# Inside a layer nothing imports its neighbour, but for these: a room that was divided, and the order of layers 0 and 4.
FOUNDATION = {"", "errors", "files"}
NEIGHBOURS: dict[str, frozenset[str] | set[str]] = {
    "files": {"errors"},
    **dict.fromkeys(("data.headers", "data.manifest", "metrics", "augmentation", "places", "results"), FOUNDATION),
    "asked": FOUNDATION,
    "sums": FOUNDATION,
    "recipe": {*FOUNDATION, "augmentation"},
    "data.images": {*FOUNDATION, "data.headers"},
    "charts": {"canvas"},
    "curves": {"canvas"},
    "cautions": {"findings"},
    "labels": {"pages"},
    "weights": {"cnn"},
    "data.sources": {"data.diagnoses", "data.known"},
    "model": {"cnn", "weights"},
    "data.walk": {"data.tables"},
    "data.tabular": {"data.tables", "data.matching"},
    "data.reading": {"data.walk", "data.tables", "data.tabular"},
    "data.layouts": {"data.walk", "data.tables", "data.tabular", "data.reading"},
    "data.isic": {"data.walk", "data.tables", "data.tabular", "data.reading", "data.matching"},
    "data.archives": {"data.walk", "data.tables"},
    "data.medmnist": {"data.archives", "data.reading"},
    "data.split": {"data.dividing", "data.overlap", "data.splitfile"},
    "data.lesions": {"data.drawing"},
    **dict.fromkeys(
        ("data.geometry", "data.texture", "data.tone", "data.mixing"), frozenset({"data.draws", "data.onto"})
    ),
    "data.augment": {"data.draws", "data.geometry", "data.texture", "data.tone"},
    "data.store": {"data.segments"},
    "data.cache": {"data.store"},
    "features": {"samples", "inference"},
    "step": {"samples"},
    "predictor": {"inference", "scoring"},
    "parts": {"scoring"},
    "predict": {"parts"},
    "data.synthetic": {"data.lesions", "data.drawing"},
    "data.importing": {"data.overview", "data.joining"},
    "facts": {"plan"},
    "runner": {"report", "plan", "facts"},
    "repeats": {"report"},
    "external": {"report"},
    "brought": {"report"},
    "judging": {"facts", "unseal", "repeats", "report", "runner", "external", "versus", "brought"},
    "workflow": {"plan", "runner", "repeats", "external", "judging"},
    "demo": {"plan", "runner", "workflow"},
    "cli_data": {"terminal"},
    "cli_results": {"terminal"},
    "cli": {"cli_data", "cli_results", "terminal"},
}
# Rooms that may import torch and its friends; the lazy ones only inside a function.
HEAVY = {"torch", "torchvision", "timm", "safetensors", "lightning_fabric", "lightning"}
TORCH_ROOMS = {
    "cnn", "weights", "model", "checkpoint", "compute", "ranks", "syncnorm", "samples", "features", "optim", "step",
    "data.augment", "data.onto", "data.geometry", "data.texture", "data.tone", "data.mixing", "inference", "predictor",
    "run", "train",
}  # fmt: skip
LAZY_ROOMS = {"facts", "runner", "judging", "workflow", "cli", "cli_data", "cli_results"}
PACKAGES = {"metrics", "audit", "lint"}
"""A package that is one room: its modules belong together."""

LONGEST_CHAIN = 7
LONGEST_FILE = 400
LONGEST_FUNCTION = 50
LONGEST_TRAINING_LOOP = 100


@dataclass(frozen=True)
class Import:
    """One import of a module by another; `lazy` when it does not happen as the module is imported."""

    target: str
    line: int
    lazy: bool


def modules(src: Path) -> dict[str, Path]:
    """Return dotted name -> file of every module of the package under `src`."""
    found = {}
    for path in sorted((src / "dermkit").rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """Return the room of a module: its name without `dermkit.`, or the package that is one room."""
    name = module.removeprefix("dermkit").removeprefix(".")
    return name.split(".")[0] if name.split(".")[0] in PACKAGES else name


def walk(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node below `node`, and whether it stands inside a function or under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        yield child, lazy
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        yield from walk(child, lazy or inside or typing)


def targets(node: ast.AST, module: str, path: Path, known: set[str]) -> list[str]:
    """Return the modules that a node imports, if it is an import, written or called."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        first = node.args[0] if node.args else None
        return [first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else "?"]
    return []


def imports(src: Path) -> dict[str, list[Import]]:
    """Return every import of every module, those inside functions and under TYPE_CHECKING too."""
    files = modules(src)
    found: dict[str, list[Import]] = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[module] = [
            Import(target, getattr(node, "lineno", 0), lazy)
            for node, lazy in walk(tree)
            for target in targets(node, module, path, set(files))
        ]
    return found


def direction_problems(src: Path) -> list[str]:
    """Return every import that points up or sideways, and every module without a room."""
    problems = []
    for module, found in imports(src).items():
        room = room_of(module)
        if room not in LAYERS:
            problems.append(f"{module}: unknown room; give it a layer in LAYERS of tests/test_architecture.py")
            continue
        for item in found:
            if item.target == "?":
                problems.append(f"{module}:{item.line} imports by a computed name")
            other = room_of(item.target)
            if item.target.split(".")[0] != "dermkit" or other == room or other == "":
                continue
            if other not in LAYERS:
                problems.append(f"{module}:{item.line} imports {item.target}, an unknown room")
            elif LAYERS[other] >= LAYERS[room] and other not in NEIGHBOURS.get(room, ()):
                problems.append(
                    f"{module}:{item.line} (layer {LAYERS[room]}) imports {item.target} (layer {LAYERS[other]})"
                )
    return problems


def graph(src: Path, *, lazy: bool) -> dict[str, set[str]]:
    """Return module -> imported modules of the package, with or without the imports inside functions."""
    known = set(modules(src))
    return {
        module: {item.target for item in found if item.target in known and (lazy or not item.lazy)}
        for module, found in imports(src).items()
    }


def cycle(src: Path) -> list[str]:
    """Return the modules of one import cycle, or nothing."""
    try:
        tuple(TopologicalSorter(graph(src, lazy=True)).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def longest_chain(src: Path) -> list[str]:
    """Return the longest chain of modules that one import sets off."""
    below = graph(src, lazy=False)
    chains: dict[str, list[str]] = {}
    for module in TopologicalSorter(below).static_order():
        chains[module] = [module, *max((chains[other] for other in below[module]), key=len, default=[])]
    return max(chains.values(), key=len)


def heavy_problems(src: Path) -> list[str]:
    """Return every import of torch or its friends outside the rooms that may."""
    return [
        f"{module}:{item.line} imports {item.target}"
        for module, found in imports(src).items()
        for item in found
        if item.target.split(".")[0] in HEAVY
        and not (room_of(module) in TORCH_ROOMS or (room_of(module) in LAZY_ROOMS and item.lazy))
    ]


def first_heavy_import(names: list[str], *path: Path) -> str:
    """Import modules one after another in a fresh process; return the first that loads torch or a friend."""
    script = (
        "import importlib, sys\n"
        f"sys.path[:0] = {[str(folder) for folder in path]!r}\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = sorted({HEAVY!r} & set(sys.modules))\n"
        "    if loaded:\n"
        "        sys.exit(f'{name} loads {loaded}')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    return done.stderr.strip()


def shape_problems(src: Path) -> list[str]:
    """Return files and functions that are too long, catch-all names, prints, and work done at import."""
    problems = []
    for module, path in modules(src).items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        if path.stem in ("utils", "util", "helpers", "misc", "common"):
            problems.append(f"{module}: a file for everything is a file for nothing")
        if len(text.splitlines()) > LONGEST_FILE:
            problems.append(f"{module}: {len(text.splitlines())} lines")
        problems += [f"{module}:{line} {what}" for line, what in statement_problems(tree, module)]
        problems += [f"{module}: {name} has {lines} lines" for name, lines in long_functions(tree, module)]
    return problems


def long_functions(tree: ast.Module, module: str) -> list[tuple[str, int]]:
    """Return the functions over the limit; train has one loop that may be longer."""
    sizes = [
        (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [(name, lines) for name, lines in sizes if lines > LONGEST_FUNCTION]
    if module == "dermkit.train" and len(long) == 1 and long[0][1] <= LONGEST_TRAINING_LOOP:
        return []
    return long


def statement_problems(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """Yield prints outside the CLI, `**kwargs` passed through, and statements that work at import."""
    for statement in tree.body:
        # The CLI hangs its commands together at import; that is what its framework is.
        work = (
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and module != "dermkit.cli"
        )
        if work or isinstance(statement, ast.For | ast.While | ast.With):
            yield statement.lineno, "works at import"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and module != "dermkit.cli":
            yield node.lineno, "prints"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg:
            name = node.args.kwarg.arg
            calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
            if any(ast.unparse(word.value) == name for call in calls for word in call.keywords if not word.arg):
                yield node.lineno, f"passes **{name} through"


def plant(folder: Path, files: dict[str, str]) -> Path:
    """Write a package `dermkit` with these modules and texts; return the folder that holds it."""
    for name, text in {"__init__.py": "", "errors.py": "", "files.py": "", **files}.items():
        path = folder / "dermkit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_imports_point_down() -> None:
    assert direction_problems(SRC) == []


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"files.py": "from dermkit.recipe import Recipe", "recipe.py": ""}, "dermkit.files:1 (layer 0) imports"),
        ({"errors.py": "import dermkit.files"}, "dermkit.errors:1 (layer 0) imports dermkit.files"),
        (
            {"recipe.py": "from dermkit.metrics import counts", "metrics/counts.py": ""},
            "dermkit.recipe:1 (layer 0)",
        ),
        ({"model.py": "from dermkit import train", "train.py": ""}, "(layer 1) imports dermkit.train (layer 3)"),
        (
            {"train.py": "from . import evaluate", "evaluate.py": ""},
            "(layer 3) imports dermkit.evaluate (layer 3)",
        ),
        (
            {"data/split.py": "from ..train import fit", "train.py": ""},
            "(layer 1) imports dermkit.train (layer 3)",
        ),
        ({"data/split.py": "from .cache import a", "data/cache.py": ""}, "(layer 1) imports dermkit.data.cache"),
        ({"train.py": "def fit():\n    import dermkit.cli", "cli.py": ""}, "dermkit.train:2 (layer 3)"),
        (
            {"model.py": "if TYPE_CHECKING:\n    from dermkit.train import Run", "train.py": ""},
            "dermkit.model:2 (layer 1) imports dermkit.train (layer 3)",
        ),
        (
            {"model.py": "x = importlib.import_module('dermkit.train')", "train.py": ""},
            "dermkit.model:1 (layer 1)",
        ),
        ({"model.py": "x = import_module(name)"}, "dermkit.model:1 imports by a computed name"),
        ({"model.py": "from dermkit.nowhere import x"}, "imports dermkit.nowhere, an unknown room"),
        ({"annex.py": ""}, "dermkit.annex: unknown room; give it a layer"),
        ({"data/annex.py": ""}, "dermkit.data.annex: unknown room; give it a layer"),
    ],
)
def test_a_planted_wrong_import_is_refused(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    problems = direction_problems(plant(tmp_path, files))
    assert len(problems) == 1
    assert problem in problems[0]


def test_right_imports_are_let_through(tmp_path: Path) -> None:
    files = {
        "files.py": "from dermkit.errors import OutputError",
        "metrics/counts.py": "import numpy",
        "metrics/ranking.py": "from dermkit.metrics.counts import ratio\nfrom .counts import ratio",
        "train.py": "from dermkit import __version__\nfrom dermkit.metrics import ranking",
        "cli.py": "def main():\n    from dermkit import train",
    }
    assert direction_problems(plant(tmp_path, files)) == []


def test_no_import_cycles(tmp_path: Path) -> None:
    assert cycle(SRC) == []
    ring = {
        "metrics/a.py": "import dermkit.metrics.b",
        "metrics/b.py": "def f():\n    from dermkit.metrics import a",
    }
    assert set(cycle(plant(tmp_path, ring))) == {"dermkit.metrics.a", "dermkit.metrics.b"}


def test_the_import_chain_is_short(tmp_path: Path) -> None:
    chain = longest_chain(SRC)
    assert 2 < len(chain) - 1 <= LONGEST_CHAIN, " -> ".join(chain)
    names = [f"metrics/m{number}.py" for number in range(9)]
    links = {name: f"import dermkit.metrics.{Path(other).stem}" for name, other in pairwise(names)}
    assert len(longest_chain(plant(tmp_path, {names[-1]: "", **links}))) - 1 == 8 > LONGEST_CHAIN


def test_torch_stays_in_its_rooms(tmp_path: Path) -> None:
    assert heavy_problems(SRC) == []
    wrong = {
        "charts.py": "import torch",
        "evaluate.py": "def f():\n    from timm import create_model",
        "workflow.py": "import torch.nn",
        "cli.py": "def f():\n    import torch",
        "model.py": "import torch",
    }
    assert heavy_problems(plant(tmp_path, wrong)) == [
        "dermkit.charts:1 imports torch",
        "dermkit.evaluate:2 imports timm",
        "dermkit.workflow:1 imports torch.nn",
    ]


def test_the_other_rooms_do_not_load_torch() -> None:
    light = [module for module in modules(SRC) if room_of(module) not in TORCH_ROOMS]
    assert "dermkit.files" in light
    assert first_heavy_import(light) == ""


def test_a_room_that_loads_torch_by_a_detour_is_named(tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    (tmp_path / "detour.py").write_text("import torch")
    (tmp_path / "innocent.py").write_text("import detour")
    assert first_heavy_import(["json", "innocent"], tmp_path) == "innocent loads ['torch']"


def test_files_and_functions_are_short_and_do_no_work_at_import() -> None:
    assert shape_problems(SRC) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("model.py", "x = 1\n" * 401, "dermkit.model: 401 lines"),
        ("model.py", "def f():\n" + "    x = 1\n" * 50, "dermkit.model: f has 51 lines"),
        ("train.py", "def fit():\n" + "    x = 1\n" * 100, "dermkit.train: fit has 101 lines"),
        ("utils.py", "", "dermkit.utils: a file for everything is a file for nothing"),
        ("model.py", "def f():\n    print(1)", "dermkit.model:2 prints"),
        ("model.py", "print(1)", "dermkit.model:1 works at import"),
        ("model.py", "for x in y:\n    z = 1", "dermkit.model:1 works at import"),
        ("model.py", "def f(**kwargs):\n    g(**kwargs)", "dermkit.model:1 passes **kwargs through"),
    ],
)
def test_a_planted_wrong_shape_is_refused(tmp_path: Path, name: str, text: str, problem: str) -> None:
    assert problem in shape_problems(plant(tmp_path, {name: text}))


def test_the_training_loop_may_be_longer(tmp_path: Path) -> None:
    assert shape_problems(plant(tmp_path, {"train.py": "def fit():\n" + "    x = 1\n" * 99})) == []
