"""Search spaces: of a recipe, and of a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from dermkit.errors import UsageError
from dermkit.recipes.default_space import default_space
from dermkit.recipes.experiments import RECIPES
from dermkit.recipes.search_space import Choice, Range, load_space, parse_space

QUICK = RECIPES["quick"]


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_has_a_space_whose_values_are_recipes(name: str) -> None:
    recipe = RECIPES[name]
    space = default_space(recipe)
    assert "optim.class_weights" in space.dimensions
    is_dense = recipe.model.classifier is None
    assert is_dense == ("optim.batch_size" in space.dimensions) == ("optim.focal_gamma" in space.dimensions)
    assert is_dense != any(path.startswith("model.classifier.") for path in space.dimensions)
    if is_dense:
        rate = space.dimensions["phases.0.head_lr"]
        assert isinstance(rate, Range) and rate.log and rate.low < recipe.phases[0].head_lr < rate.high
    is_trained = recipe.phases[0].train_backbone != "none"
    assert ("phases.0.backbone_lr" in space.dimensions) == (is_trained and recipe.phases[0].backbone_lr > 0)
    lows = {
        path: dimension.values[0] if isinstance(dimension, Choice) else dimension.rounded(dimension.low)
        for path, dimension in space.dimensions.items()
    }
    assert space.recipe_for(recipe, lows).derived_from is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "is empty: no field to try"),
        ([], "is empty"),
        ({"optim.batchsize": [1, 2]}, "a recipe has no such field; did you mean `optim.batch_size`"),
        (
            {"phases.0.backbone_lr": {"low": 1e-5, "high": 1e-3}},
            "has no effect with quick: the backbone is frozen",
        ),
        ({"optim.momentum": [0.8, 0.9]}, "has no effect with quick: the optimizer is adam"),
        ({"seed": [1, 2]}, "seed: is fixed: all trials have one seed"),
        ({"split.folds": [3, 5]}, "split.folds: is fixed: all trials are compared on the same images"),
        ({"optim.batch_size": [16]}, "has 1 value; to fix a field, use --set"),
        ({"optim.batch_size": [16, 16]}, "has a value twice"),
        ({"optim.batch_size": [16, 2.5]}, "2.5: optim.batch_size: Input should be a valid integer"),
        ({"optim.batch_size": {"low": 8, "high": 16.5}}, "takes whole numbers"),
        ({"model.dropout": {"low": 0, "high": 2}}, "2.0: model.dropout: Input should be less than 1"),
        ({"model.dropout": {"low": 0.5, "high": 0.1}}, "low 0.5 is not below high 0.1"),
        ({"model.dropout": {"low": 0, "high": 0.5, "log": True}}, "begins above 0"),
        ({"model.dropout": {"low": 0, "hihg": 0.5}}, "a range has low, high, log, step, not hihg"),
        ({"model.dropout": {"low": "a", "high": 0.5}}, 'low is "a", not a number'),
        ({"model.dropout": 0.5}, "is neither a list of values nor a range"),
        ({"phases.7.head_lr": [1e-3, 1e-4]}, "this recipe has phases.0"),
        ({"augment": ["none", "lihgt"]}, "did you mean `light`?"),
        ({"augment": ["none", "light"], "augment.rotate": [0.0, 9.0]}, "is in the space too"),
        ({"smote.neighbours": [3, 5]}, "this recipe has no smote (it is null)"),
    ],
)
def test_a_wrong_space_is_refused_with_its_field(content: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_space(content, QUICK, "mine.json")
    assert message in caught.value.message and caught.value.exit_code == 2


def test_a_field_that_the_command_sets_is_in_no_space(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"optim.batch_size": [16, 32], "model.dropout": {"low": 0, "high": 0.5}}')
    space = load_space(path, QUICK)
    assert space.size is None and space.dimensions["model.dropout"] == Range(0, 0.5)
    with pytest.raises(UsageError, match=r"--set optim\.batch_size sets it to one value"):
        load_space(path, QUICK, set_fields=["optim.batch_size"])
    assert "optim.batch_size" not in default_space(QUICK, set_fields=("optim.batch_size",)).dimensions
    path.write_text('{"optim.batch_size": [16, 32], "optim.batch_size": [8, 64]}')
    with pytest.raises(UsageError, match=r"optim\.batch_size stands there twice"):
        load_space(path, QUICK)
    with pytest.raises(UsageError, match="cannot be read"):
        load_space(tmp_path / "absent.json", QUICK)


def test_values_make_the_recipe_that_set_makes_and_combinations_are_counted() -> None:
    content = {"optim.batch_size": [16, 64], "phases.0.epochs": {"low": 2, "high": 6, "step": 2}}
    space = parse_space(content, QUICK, "mine.json")
    assert space.size == 6 == len(list(space.combinations()))
    recipe = space.recipe_for(QUICK, {"optim.batch_size": 64, "phases.0.epochs": 4})
    assert recipe.name == "quick-epochs_4-batch_size_64" and recipe.phases[0].epochs == 4
    assert json.loads(json.dumps(space.as_dict())) == content
    drawn = Range(1e-4, 1e-2, log=True).rounded(0.00123456)
    assert drawn == 0.00123
    assert Range(0.00012345, 1.0).rounded(0.00012345) == 0.00012345
