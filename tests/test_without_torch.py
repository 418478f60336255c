"""The verbs about results on a machine without torch: every import of it is refused, and they do their work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dermkit import cli as command_line
from test_evaluation_options import make_frame, make_run

REFUSED = ("torch", "torchvision", "timm", "lightning_fabric", "safetensors")

# Python imports a module of this name before anything else, in every process that finds it on its path.
HOOK = f"""
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {REFUSED!r}:
            raise ImportError(f"{{name}} is not installed here")
        return None


sys.meta_path.insert(0, Refuse())
"""

# All in one process: starting one costs more than what it does.
RUN = """
import json, sys
from dermkit import cli
for words in json.loads(sys.argv[1]):
    try:
        code = cli.run_command(lambda: cli.app(words), debug=True)
    except SystemExit as end:
        code = end.code or 0
    print("exit", code)
"""

Python = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that, on PYTHONPATH, keeps torch and its friends from being imported."""
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(HOOK)
    return folder


def python(hook: Path, *words: str | Path) -> Python:
    path = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *map(str, words)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_hook_refuses(hook: Path, name: str) -> None:
    done = python(hook, "-c", f"import {name}")
    assert done.returncode != 0
    assert f"ImportError: {name} is not installed here" in done.stderr
    inside = python(hook, "-c", "import dermkit.prediction.torch_model")
    assert "is not installed here" in inside.stderr, "also below one of ours"


@pytest.mark.parametrize(("package", "code"), [("torch", 2), ("timm.models", 2), ("nothing", 1)])
def test_a_command_that_needs_torch_says_what_to_install(
    package: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    assert command_line.run_command(command, debug=False) == code
    assert ("To do: pip install 'dermkit[train]'" in capsys.readouterr().err) == (code == 2)


def test_results_need_no_torch(hook: Path, tmp_path: Path) -> None:
    frame = make_frame(80)
    one = make_run(tmp_path / "one", frame)
    two = make_run(tmp_path / "two", make_frame(80, seed=1).assign(label=frame["label"]))
    table, out = tmp_path / "table.csv", tmp_path / "foreign"
    make_frame(60, splits=("test",)).drop(columns=["predicted", "fold", "seed"]).to_csv(table, index=False)
    commands = [
        ("evaluate", one, "--official", "--target", "sensitivity=.9", "--prevalence", ".03"),
        ("evaluate", two),
        ("report", one),
        ("compare", one, two, "--published", "S2: accuracy=.4661,n=118", "--out", tmp_path / "versus"),
        ("evaluate", "--predictions", table, "--out", out),
    ]
    done = python(hook, "-c", RUN, json.dumps([[str(word) for word in words] for words in commands]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("exit 0") == len(commands)
    for path in (one / "report.html", out / "report.html", tmp_path / "versus" / "comparison.html"):
        assert path.stat().st_size > 20_000
    assert json.loads((one / "metrics.json").read_text())["options"]["official"] is True
