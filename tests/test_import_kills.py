"""An import that is killed, or whose disk is full, between its files: the same command ends with the same bytes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it forks")


def campaign(folder: Path, *, every: int, n_random: int) -> dict[str, Any]:
    script = Path(__file__).with_name("import_kills.py")
    command = [sys.executable, str(script), str(folder), str(every), str(n_random)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def test_a_few_stopped_imports_repeat(tmp_path: Path) -> None:
    outcome = campaign(tmp_path, every=23, n_random=0)
    assert outcome["problems"] == []
    assert outcome["counts"]["kill"] >= 5 and outcome["counts"]["full"] >= 5


@pytest.mark.slow
def test_imports_stopped_at_every_operation_and_at_random_repeat_with_the_same_bytes(tmp_path: Path) -> None:
    outcome = campaign(tmp_path, every=1, n_random=12)
    assert outcome["problems"] == []
    assert outcome["counts"]["kill"] >= 100 and outcome["counts"]["random"] == 60
