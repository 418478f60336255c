"""Every command's help ends with two worked examples, and the command line takes each of them."""

import shlex
from typing import Any

import pytest
import typer

from conftest import Invoke
from dermkit.cli.app import app
from dermkit.cli.auto import AUTO_RECIPE, auto_options
from dermkit.cli.examples import EXAMPLES
from dermkit.recipes.derive import derive_grid, derive_recipe, parse_assignment
from dermkit.recipes.experiments import GRIDS, find_grid, find_recipe
from dermkit.recipes.short_forms import ShortForms, short_form_assignments

ROOT: Any = typer.main.get_command(app)


def commands_of(group: Any, words: str = "") -> dict[str, Any]:
    """Return every command by its words, those of groups too."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= (
            commands_of(command, f"{words}{name} ")
            if hasattr(command, "commands")
            else {f"{words}{name}": command}
        )
    return found


COMMANDS = commands_of(ROOT)
LINES = [(name, line) for name, examples in EXAMPLES.items() for line, _ in examples]


def parse(line: str) -> tuple[str, dict[str, Any]]:
    """Return the command of a line and its parameters, as the command line reads them."""
    program, *words = shlex.split(line.split(" > ")[0])
    assert program == "dermkit"
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    context = COMMANDS[name].make_context(name, words[len(name.split()) :])
    return name, context.params


def test_every_command_has_two_examples_of_its_own() -> None:
    assert EXAMPLES.keys() == COMMANDS.keys()
    for name, examples in EXAMPLES.items():
        assert len(examples) >= 2 and any(parse(line)[0] == name for line, _ in examples), name


@pytest.mark.parametrize("line", [line for _, line in LINES])
def test_an_example_is_taken_by_the_command_line(line: str) -> None:
    name, params = parse(line)
    if params.get("recipe") == AUTO_RECIPE:
        assert auto_options(params["time"], params["weights"], params["seed"]).seconds == 1800.0
    elif name in ("train", "tune"):
        forms = ShortForms(
            epochs=params["epochs"], batch_size=params["batch_size"], learning_rate=params["lr"],
            image_size=params["image_size"], backbone=params["backbone"], class_weights=params["class_weights"],
            folds=params.get("folds"), classifier=params["classifier"], smote=params["smote"],
        )  # fmt: skip
        members = find_grid(params["recipe"]) if params["recipe"] in GRIDS else (find_recipe(params["recipe"]),)
        changes = [*map(parse_assignment, params["set_fields"] or []), *short_form_assignments(members[0], forms)]
        assert derive_grid("g", members, changes) if len(members) > 1 else derive_recipe(members[0], changes)


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_help_shows_them(invoke: Invoke, name: str) -> None:
    code, out, _ = invoke(*name.split(), "--help")
    shown = " ".join(out.split())
    assert code == 0 and all(" ".join(line.split()) in shown for line, _ in EXAMPLES[name]), out
