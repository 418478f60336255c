"""The demo ends with the command that opens the page on its model, and that command works."""

import shlex
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from browser_pages import serve_page
from conftest import Invoke
from dermkit.pipeline import demo
from dermkit.pipeline.demo import DemoOutcome
from dermkit.prediction.output import PredictOutcome
from dermkit.recipes.schema import Recipe


def last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("program", "command"),
    [(".venv/bin/dermkit", ".venv/bin/dermkit"), ("/somewhere/__main__.py", "dermkit")],
)
def test_the_demo_ends_with_a_command_as_it_is_typed(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, program: str, command: str
) -> None:
    run = Path("my demo") / "run"
    predictions = PredictOutcome(run, 0, 0, 0, 0)
    outcome = DemoOutcome(run, run, run, run, run, predictions)
    monkeypatch.setattr("dermkit.pipeline.demo.run_demo", lambda *_, **__: outcome)
    monkeypatch.setattr(sys.modules["dermkit.cli.app"], "print_result", lambda _: None)
    monkeypatch.setattr(sys, "argv", [program])
    code, output, _ = invoke("demo")
    assert code == 0
    assert last_line(output).startswith(f"page         {command} serve 'my demo/run' ")


@pytest.mark.slow
def test_the_page_of_the_demo_opens(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Recipe
) -> None:
    pytest.importorskip("uvicorn", reason="the packages of the server are not installed")
    changes: dict[str, Any] = {"DEMO": tiny, "LESIONS_PER_CLASS": 12, "NEW_LESIONS_PER_CLASS": 1}
    for name, value in changes.items():
        monkeypatch.setattr(demo, name, value)
    code, output, errors = invoke("demo", "--out", tmp_path / "demo")
    assert code == 0, errors
    words = shlex.split(last_line(output).removeprefix("page"))
    assert words[:2] == ["dermkit", "serve"]
    with serve_page(Path(words[2])) as server, urllib.request.urlopen(server.url) as answer:  # noqa: S310
        assert b"Research use only" in answer.read()
