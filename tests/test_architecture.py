"""The house rules that a reader would otherwise have to trust: direction, size, what is imported when, what is said.

Every checker takes a folder, so that a test below can plant a fault in another one and see it refused.
"""

import ast
import functools
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

# The whole rule: a package imports packages of lower levels only, never its neighbours, and no files import in a ring.
LEVELS = {
    "cli": 11,
    "serving": 10, "integrations": 10,
    "pipeline": 9,
    "reporting": 8,
    "evaluation": 7, "comparison": 7, "explanation": 7, "perturbation": 7, "export": 7, "monitoring": 7,
    "training": 6, "prediction": 6,
    "audit": 5, "lint": 5, "models": 5, "runs": 5,
    "data": 4, "prediction_log": 4,
    "render": 3,
    "recipes": 2, "metrics": 2, "images": 2,
    "files": 1, "progress": 1, "threads": 1,
    "errors": 0,
}  # fmt: skip
# Inside a package the same: its folders from the bottom up; "" is what lies at its top.
FOLDERS = {
    "metrics": ("stats", "classification", "decisions"),
    "data": ("", "importers cache synthetic"),
    "models": ("", "engines"),
    "audit": ("scan", "near_duplicates checks", ""),
    "training": ("augment distributed", ""),
}
# Pages are written from files: no net is at hand when they are read. Comparing runs needs no net either.
NEVER = {
    "reporting": {"models", "training", "prediction", "evaluation", "explanation", "perturbation"},
    "comparison": {"models", "training", "prediction", "lint", "audit"},
    "monitoring": {"training", "prediction", "images"},
    "metrics": {"files", "errors", "progress", "threads"},
}
# torch and its friends, and where they may be imported; inside functions also where a job is started.
HEAVY = {"torch", "torchvision", "timm", "safetensors", "lightning_fabric", "lightning", "captum"}
TORCH_ROOMS = (
    "models.cnn", "models.weights", "models.net", "models.net_fit", "models.precision", "models.inference",
    "models.fork", "models.heads", "models.size_limit", "models.view_pixels", "models.training_features_file",
    "training", "prediction.torch_model", "prediction.model_folder",
    "explanation.layers", "explanation.attention_rollout", "explanation.heat_maps", "explanation.random_nets",
    "explanation.model_maps", "models.engines.graph",
)  # fmt: skip
TORCH_INSIDE_FUNCTIONS = ("pipeline", "cli")

EVERYTHING = "dermkit (all)"
"""`import dermkit`: its names come from every level, so only the command line may use them."""

LONGEST_CHAIN = 9  # from a verb of pipeline down to the array types of metrics
LONGEST_FILE = 450  # 400 until names said what they hold; six files that tell one story each lie between the two
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
    paths = {}
    for path in sorted((src / "dermkit").rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def room_of(module: str) -> tuple[str, str]:
    """Return a module's package, or its file at the top, and its folder inside it ("" for none)."""
    parts = [*module.removeprefix("dermkit.").split("."), ""]
    return parts[0], parts[1] if any(parts[1] in names.split() for names in FOLDERS.get(parts[0], ())) else ""


def folder_level(package: str, folder: str) -> int:
    """Return how high a folder lies inside its package."""
    return next(
        (level for level, names in enumerate(FOLDERS.get(package, ())) if folder in (names.split() or [""])), 0
    )


def may_import(module: str, target: str) -> bool:
    """Say whether a module may import another of ours."""
    (package, folder), (other, below) = room_of(module), room_of(target)
    if package == other:
        return folder == below or folder_level(package, folder) > folder_level(package, below)
    return LEVELS[other] < LEVELS[package] and other not in NEVER.get(package, ())


def walk(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node below `node`, and whether it stands inside a function or under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        yield child, lazy
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        yield from walk(child, lazy or inside or typing)


def targets(node: ast.AST, module: str, path: Path, known: frozenset[str]) -> list[str]:
    """Return the modules that a node imports, if it is an import, written or called."""
    if isinstance(node, ast.Import):
        return [EVERYTHING if alias.name == "dermkit" else alias.name for alias in node.names]
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
    return {
        module: statements_of(module, path, path.read_text(encoding="utf-8"), frozenset(files))
        for module, path in files.items()
    }


@functools.lru_cache(maxsize=1024)
def statements_of(module: str, path: Path, text: str, known: frozenset[str]) -> list[Import]:
    """Return the imports of one module; four rules read the same text, and reading it once is enough."""
    return [
        Import(target, getattr(node, "lineno", 0), lazy)
        for node, lazy in walk(ast.parse(text))
        for target in targets(node, module, path, known)
    ]


def direction_problems(src: Path) -> list[str]:
    """Return every import that points up or sideways, and every module without a level."""
    problems = []
    for module, statements in imports(src).items():
        if module != "dermkit" and room_of(module)[0] not in LEVELS:
            problems.append(f"{module}: no level; give its package one in LEVELS of tests/test_architecture.py")
            continue
        for statement in statements:
            if module == "dermkit":  # the public names, each imported when it is first used
                continue
            if statement.target == "?":
                problems.append(f"{module}:{statement.line} imports by a computed name")
            if statement.target == EVERYTHING and room_of(module)[0] != "cli":
                problems.append(f"{module}:{statement.line} imports the whole package")
            if not statement.target.startswith("dermkit."):
                continue
            if room_of(statement.target)[0] not in LEVELS:
                problems.append(f"{module}:{statement.line} imports {statement.target}, which has no level")
            elif not may_import(module, statement.target):
                problems.append(f"{module}:{statement.line} may not import {statement.target}")
    return problems


def graph(src: Path, *, lazy: bool) -> dict[str, set[str]]:
    """Return module -> imported modules of the package, with or without the imports inside functions.

    `dermkit` itself points nowhere: it imports each public name when that is first used.
    """
    files = set(modules(src))
    return {
        module: {
            statement.target
            for statement in statements
            if module != "dermkit" and statement.target in files and (lazy or not statement.lazy)
        }
        for module, statements in imports(src).items()
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


def may_load_torch(module: str, *, inside_function: bool) -> bool:
    """Say whether a module may import torch."""
    name = module.removeprefix("dermkit.")
    rooms = TORCH_ROOMS + (TORCH_INSIDE_FUNCTIONS if inside_function else ())
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def heavy_problems(src: Path) -> list[str]:
    """Return every import of torch or its friends outside the rooms that may."""
    return [
        f"{module}:{statement.line} imports {statement.target}"
        for module, statements in imports(src).items()
        for statement in statements
        if statement.target.split(".")[0] in HEAVY and not may_load_torch(module, inside_function=statement.lazy)
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
    if module == "dermkit.training.loop" and len(long) == 1 and long[0][1] <= LONGEST_TRAINING_LOOP:
        return []
    return long


def statement_problems(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """Yield prints outside the CLI, `**kwargs` passed through, and statements that work at import."""
    for statement in tree.body:
        # The CLI hangs its commands together at import; that is what its framework is.
        work = (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Call)
            and not module.startswith("dermkit.cli")
        )
        if work or isinstance(statement, ast.For | ast.While | ast.With):
            yield statement.lineno, "works at import"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "print"
            and not module.startswith("dermkit.cli")
        ):
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
        (
            {"files.py": "from dermkit.recipes import a", "recipes/a.py": ""},
            "dermkit.files:1 may not import dermkit.recipes",
        ),
        ({"errors.py": "import dermkit.files"}, "dermkit.errors:1 may not import dermkit.files"),
        (
            {"recipes/a.py": "from dermkit.metrics import b", "metrics/b.py": ""},
            "may not import dermkit.metrics.b",
        ),
        (
            {"models/net.py": "from dermkit.training import loop", "training/loop.py": ""},
            "may not import dermkit.training",
        ),
        (
            {"data/split.py": "from ..training.loop import fit", "training/loop.py": ""},
            "may not import dermkit.training",
        ),
        ({"data/a.py": "from .cache import b", "data/cache/b.py": ""}, "may not import dermkit.data.cache"),
        (
            {"data/cache/a.py": "import dermkit.data.importers.b", "data/importers/b.py": ""},
            "may not import dermkit.data.importers.b",
        ),
        (
            {
                "metrics/stats/a.py": "from dermkit.metrics.classification import b",
                "metrics/classification/b.py": "",
            },
            "may not import dermkit.metrics.classification.b",
        ),
        (
            {"training/loop.py": "def fit():\n    import dermkit.cli", "cli/app.py": ""},
            "dermkit.training.loop:2 may not import",
        ),
        (
            {
                "models/net.py": "if TYPE_CHECKING:\n    from dermkit.training.loop import fit",
                "training/loop.py": "",
            },
            "dermkit.models.net:2 may not import dermkit.training.loop",
        ),
        (
            {"models/net.py": "x = importlib.import_module('dermkit.training.loop')", "training/loop.py": ""},
            "dermkit.models.net:1 may not import dermkit.training.loop",
        ),
        (
            {"reporting/page.py": "from dermkit.models import net", "models/net.py": ""},
            "may not import dermkit.models",
        ),
        ({"models/net.py": "import dermkit as dk"}, "dermkit.models.net:1 imports the whole package"),
        ({"models/net.py": "x = import_module(name)"}, "dermkit.models.net:1 imports by a computed name"),
        ({"models/net.py": "from dermkit.nowhere import x"}, "imports dermkit.nowhere, which has no level"),
        ({"annex.py": ""}, "dermkit.annex: no level"),
        ({"annex/rooms.py": ""}, "dermkit.annex.rooms: no level"),
    ],
)
def test_a_planted_wrong_import_is_refused(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    problems = direction_problems(plant(tmp_path, files))
    assert len(problems) == 1
    assert problem in problems[0]


def test_right_imports_are_let_through(tmp_path: Path) -> None:
    files = {
        "files.py": "from dermkit.errors import OutputError",
        "metrics/stats/arrays.py": "import numpy",
        "metrics/stats/intervals.py": "from dermkit.metrics.stats.arrays import ratio\nfrom .arrays import ratio",
        "metrics/decisions/policy.py": "from dermkit.metrics.stats import arrays",
        "training/loop.py": "from dermkit import __version__\nfrom dermkit.metrics.stats import arrays",
        "cli/app.py": "def main():\n    from dermkit.training import loop",
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
    names = [f"metrics/m{number}.py" for number in range(11)]
    links = {name: f"import dermkit.metrics.{Path(other).stem}" for name, other in pairwise(names)}
    assert len(longest_chain(plant(tmp_path, {names[-1]: "", **links}))) - 1 == 10 > LONGEST_CHAIN


def test_torch_stays_in_its_rooms(tmp_path: Path) -> None:
    assert heavy_problems(SRC) == []
    wrong = {
        "render/charts.py": "import torch",
        "evaluation/evaluate.py": "def f():\n    from timm import create_model",
        "pipeline/train.py": "import torch.nn",
        "cli/app.py": "def f():\n    import torch",
        "models/net.py": "import torch",
    }
    assert heavy_problems(plant(tmp_path, wrong)) == [
        "dermkit.evaluation.evaluate:2 imports timm",
        "dermkit.pipeline.train:1 imports torch.nn",
        "dermkit.render.charts:1 imports torch",
    ]


def test_the_other_rooms_do_not_load_torch() -> None:
    light = [module for module in modules(SRC) if not may_load_torch(module, inside_function=False)]
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
        ("models/net.py", "x = 1\n" * 451, "dermkit.models.net: 451 lines"),
        ("models/net.py", "def f():\n" + "    x = 1\n" * 50, "dermkit.models.net: f has 51 lines"),
        ("training/loop.py", "def fit():\n" + "    x = 1\n" * 100, "dermkit.training.loop: fit has 101 lines"),
        ("utils.py", "", "dermkit.utils: a file for everything is a file for nothing"),
        ("models/net.py", "def f():\n    print(1)", "dermkit.models.net:2 prints"),
        ("models/net.py", "print(1)", "dermkit.models.net:1 works at import"),
        ("models/net.py", "for x in y:\n    z = 1", "dermkit.models.net:1 works at import"),
        ("models/net.py", "def f(**kwargs):\n    g(**kwargs)", "dermkit.models.net:1 passes **kwargs through"),
    ],
)
def test_a_planted_wrong_shape_is_refused(tmp_path: Path, name: str, text: str, problem: str) -> None:
    assert problem in shape_problems(plant(tmp_path, {name: text}))


def test_the_training_loop_may_be_longer(tmp_path: Path) -> None:
    assert shape_problems(plant(tmp_path, {"training/loop.py": "def fit():\n" + "    x = 1\n" * 99})) == []
