"""A preset is a name for a whole spec, in a recipe's JSON and on the command line; it changes no number by itself."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dermkit.cli import app
from dermkit.errors import UsageError
from dermkit.recipes.augmentation import PRESET_NOTES, PRESETS, AugmentSpec, active_fields, find_preset
from dermkit.recipes.experiments import GRIDS, RECIPES
from dermkit.recipes.formats import RECIPE_FORMAT
from dermkit.recipes.schema import load_recipe, parse_recipe, recipe_to_dict, save_recipe


def value(**changes: Any) -> dict[str, Any]:
    return {**recipe_to_dict(RECIPES["s4-cnn"]), **changes}


@pytest.mark.parametrize("name", PRESETS)
def test_a_name_in_a_recipe_is_the_whole_spec(name: str, tmp_path: Path) -> None:
    grow = {**value()["grow"], "augment": name}
    recipe = parse_recipe(value(augment=name, grow=grow), "mine.json")
    assert recipe.augment == PRESETS[name]
    assert recipe.grow is not None
    assert recipe.grow.augment == PRESETS[name]
    save_recipe(recipe, tmp_path / "recipe.json")
    saved = json.loads((tmp_path / "recipe.json").read_text())
    assert saved["augment"] == json.loads(json.dumps(asdict(PRESETS[name])))
    assert load_recipe(tmp_path / "recipe.json") == recipe


def test_a_name_is_read_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"format": RECIPE_FORMAT, **value(augment="dermoscopy")}))
    assert load_recipe(tmp_path / "mine.json").augment == PRESETS["dermoscopy"]


@pytest.mark.parametrize("place", ["augment", "grow.augment"])
def test_an_unknown_name_is_refused_with_the_closest_and_the_list(place: str) -> None:
    grow = {**value()["grow"], "augment": "dermoscpy" if place == "grow.augment" else "none"}
    with pytest.raises(UsageError) as caught:
        parse_recipe(value(augment="dermoscpy" if place == "augment" else "none", grow=grow), "mine.json")
    assert caught.value.message == (
        f"mine.json: {place}: unknown augmentation preset `dermoscpy`; did you mean `dermoscopy`?"
    )
    assert all(name in caught.value.remedy for name in PRESETS)


def test_a_name_close_to_nothing_gets_no_guess() -> None:
    with pytest.raises(UsageError) as caught:
        find_preset("qqq")
    assert caught.value.message == "unknown augmentation preset `qqq`"


def test_the_command_lists_every_preset_with_what_it_does() -> None:
    result = CliRunner().invoke(app, ["recipes", "presets"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == [*PRESETS] == [*PRESET_NOTES]
    assert all(len(line.split()) > 3 and len(line) <= 115 for line in lines)


def test_the_named_recipes_use_the_presets_that_they_mean() -> None:
    used = {
        name: RECIPES[name].augment for name in ("s0-resnet50", "s1-cnn", "s2-resnet50", "s2-augmented", "s4-cnn")
    }
    assert used == {
        "s0-resnet50": PRESETS["s0"], "s1-cnn": PRESETS["s1"], "s2-resnet50": PRESETS["none"],
        "s2-augmented": PRESETS["s2"], "s4-cnn": PRESETS["s4"],
    }  # fmt: skip


def test_the_seed_systems_numbers_are_those_that_were_published_with() -> None:
    off = {
        "transpose": False, "p_geometric": 1.0, "p_colour": 1.0, "contrast": 0.0, "saturation": 0.0, "fill": "reflect",
        "distort": None, "hsv": None, "blur_noise": None, "clahe": None, "cutout": None,
    }  # fmt: skip
    flips = {"horizontal_flip": True, "vertical_flip": True}
    moves = {"rotate": 30.0, "shift": 0.1}
    assert asdict(PRESETS["s2"]) == {**off, **flips, **moves, "zoom": 0.0, "brightness": 0.0}
    assert asdict(PRESETS["s1"]) == {**off, **flips, **moves, "zoom": 0.1, "brightness": 0.0}
    assert asdict(PRESETS["s0"]) == {**off, **flips, **moves, "zoom": 0.1, "brightness": 0.1}
    assert asdict(PRESETS["s4"]) == {
        **off, **flips, "rotate": 25.0, "shift": 0.0, "zoom": 0.2, "brightness": 0.0
    }  # fmt: skip


def test_the_winners_list_is_whole() -> None:
    winner = PRESETS["winner-2020"]
    assert winner.horizontal_flip and winner.vertical_flip and winner.transpose
    assert (winner.p_geometric, winner.shift, winner.zoom, winner.rotate) == (0.85, 0.1, 0.1, 15.0)
    assert (winner.p_colour, winner.brightness, winner.contrast) == (0.75, 0.2, 0.2)
    parts = (winner.distort, winner.hsv, winner.blur_noise, winner.clahe, winner.cutout)
    assert [part and part.p for part in parts] == [0.7, 0.5, 0.7, 0.7, 0.7]
    assert winner.hsv
    assert (winner.hsv.hue / 2, winner.hsv.saturation * 255, winner.hsv.value * 255) == (
        10,
        20,
        10,
    )  # OpenCV's units
    assert winner.blur_noise
    assert winner.blur_noise.noise == (5.0, 30.0)
    assert winner.cutout
    assert winner.cutout.side == 0.375


def test_every_named_recipe_holds_a_whole_spec() -> None:
    everything = [*RECIPES.values(), *(member for members in GRIDS.values() for member in members)]
    assert all(isinstance(recipe.augment, AugmentSpec) for recipe in everything)


def test_a_report_says_of_a_spec_what_is_on() -> None:
    none, winner = PRESETS["none"], PRESETS["winner-2020"]
    assert active_fields(none) == active_fields(replace(none, rotate=30.0, p_geometric=0.0)) == {}
    assert active_fields(replace(none, brightness=0.1, p_colour=0.0)) == {}
    flips = {"horizontal_flip": True, "vertical_flip": True}
    assert active_fields(PRESETS["s2"]) == {**flips, "rotate": 30.0, "shift": 0.1, "fill": "reflect"}
    assert active_fields(PRESETS["light"]) == {
        **flips, "transpose": True, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1
    }  # fmt: skip
    whole = json.loads(json.dumps(asdict(winner)))
    assert active_fields(winner) == {name: item for name, item in whole.items() if name != "saturation"}


DOCS = (Path(__file__).parents[1] / "docs" / "augmentation.md").read_text(encoding="utf-8")


def test_the_documented_spec_is_a_valid_one_and_every_preset_is_documented() -> None:
    example = DOCS.split("```json\n")[1].split("```")[0]
    recipe = parse_recipe(value(**json.loads("{" + example + "}")), "docs/augmentation.md")
    assert recipe.augment.distort and recipe.augment.cutout
    rows = [line.split("`")[1] for line in DOCS.split("## Your own")[0].splitlines() if line.startswith("| `")]
    assert rows == [*PRESETS]
