"""The way from images to predictions needs nothing that Windows lacks: run where all of that is hidden or refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

SITECUSTOMIZE = f"import sys; sys.path.append({str(TESTS)!r}); import without_posix; without_posix.take_away()\n"

# `dermkit demo` at small size, then every other verb on what it made; one process, since starting one costs the most.
DEMO = """
import json, sys
from dataclasses import replace
from pathlib import Path

import dermkit.files

dermkit.files.ON_WINDOWS = True
from dermkit import cli
from dermkit.pipeline import demo
from dermkit.recipes.experiments import full_phase

demo.LESIONS_PER_CLASS, demo.NEW_LESIONS_PER_CLASS = 8, 2
demo.DEMO = replace(demo.DEMO, phases=(full_phase(2, lr=1e-3),), image=replace(demo.DEMO.image, size=32))


def call(*words):
    try:
        code = cli.run_command(lambda: cli.app([str(word) for word in words]), debug=True)
    except SystemExit as end:
        code = end.code or 0
    print(words[0], "exit", code, flush=True)


call("demo", "--out", "demo")
(run,) = Path("demo/runs/demo").iterdir()
call("audit", "demo/dataset")
call("split", "demo/dataset", "--name", "mine", "--scheme", "holdout")
call("demo", "--out", "demo")
call("evaluate", run)
call("report", run)
call("train", run / "recipe.json", "demo/dataset", "--seed", "1", "--out", "second")
call("compare", run, *Path("second/demo").iterdir(), "--out", "comparison")
call("predict", run / "model", "demo/new-images", "--out", "predictions", "--cache", "cache")
call("predict", run / "model", "demo/new-images", "--out", "predictions", "--cache", "cache")
"""

REFUSED = {
    "import fcntl": "ModuleNotFoundError",
    "from resource import getrlimit": "ModuleNotFoundError",
    "import os; os.fork()": "AttributeError",
    "import os; os.link('a', 'b')": "AttributeError",
    "import os; os.pread(0, 1, 0)": "AttributeError",
    "import os; os.sched_getaffinity(0)": "AttributeError",
    "import os; os.open('.', os.O_RDONLY)": "PermissionError",
    "import os; stream = open('file'); os.fsync(stream.fileno())": "OSError",
    "import os; stream = open('file'); os.utime(stream.fileno())": "NotImplementedError",
    "import os; stream = open('file'); os.replace('file', 'other')": "PermissionError",
    "from pathlib import Path; stream = open('file'); Path('file').unlink()": "PermissionError",
    "import mmap; stream = open('file', 'r+b'); m = mmap.mmap(stream.fileno(), 0); m.madvise(3)": "AttributeError",
    "import mmap, os; s = open('file', 'r+b'); m = mmap.mmap(s.fileno(), 0); s.close(); os.remove('file')": (
        "PermissionError"
    ),
    "import signal; signal.SIGHUP": "AttributeError",
    "import signal; signal.SIGKILL": "AttributeError",
    "import numpy as np; a = np.memmap('file', mode='r'); import os; os.replace('file', 'other')": "PermissionError",
    "import os; os.replace('free', 'file')": "nothing",
    "import os; stream = open('file', 'r+b'); os.fsync(stream.fileno())": "nothing",
    "import multiprocessing; assert multiprocessing.get_start_method() == 'spawn'": "nothing",
}


def windows_like(folder: Path, script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a script in `folder` in a process that has lost what Windows lacks."""
    hook = folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", script, *args], cwd=folder, capture_output=True, text=True, check=False, timeout=500,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="what is open is read from /proc")
def test_what_windows_lacks_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "free").write_text("text")
    script = "import json, sys, without_posix; print(json.dumps(without_posix.refusals(json.loads(sys.argv[1]))))"
    done = windows_like(tmp_path, script, json.dumps(list(REFUSED)))
    assert done.returncode == 0, done.stderr
    assert dict(zip(REFUSED, json.loads(done.stdout), strict=True)) == REFUSED


@pytest.mark.skipif(sys.platform != "linux", reason="what is open is read from /proc")
def test_the_demo_and_every_verb_run_without_what_windows_lacks(tmp_path: Path) -> None:
    done = windows_like(tmp_path, DEMO)
    codes = [line for line in done.stdout.splitlines() if " exit " in line]
    verbs = ["demo", "audit", "split", "demo", "evaluate", "report", "train", "compare", "predict", "predict"]
    assert codes == [f"{verb} exit 0" for verb in verbs], done.stdout + done.stderr
    (run,) = (tmp_path / "demo" / "runs" / "demo").iterdir()
    for name in ("report.html", "metrics.json", "model/model.json", "progress.png"):
        assert (run / name).is_file()
    assert (tmp_path / "predictions" / "predictions.csv").is_file()
    assert (tmp_path / "demo" / "dataset" / "audit" / "audit.html").is_file()
    assert (tmp_path / "comparison" / "comparison.html").is_file()
