"""Every field of a recipe is explained, in one place: the schema; `recipes explain` and docs/ show its text."""

import re
from dataclasses import fields as fields_of
from pathlib import Path

import pytest

from conftest import Invoke
from dermkit.errors import UsageError
from dermkit.recipes.experiments import RECIPE_GROUPS, RECIPES
from dermkit.recipes.fields import fields_table, find_field, recipe_fields, recipe_values
from dermkit.recipes.schema import Recipe, recipe_to_dict

DOCS = Path(__file__).parents[1] / "docs"


def paths_in(value: object, prefix: str = "") -> set[str]:
    """Return the paths of a recipe's JSON values, N in the place of a phase's number."""
    if isinstance(value, dict) and not prefix.endswith("backbone_args."):
        return {
            path
            for name, item in value.items()
            for path in {f"{prefix}{name}", *paths_in(item, f"{prefix}{name}.")}
        }
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {path for item in value for path in paths_in(item, f"{prefix}N.")}
    return set()


def test_every_field_has_a_description() -> None:
    fields = recipe_fields()
    assert [path for path, field in fields.items() if len(field.description) < 10 or not field.kind] == []
    assert {field.name for field in fields_of(Recipe)} <= fields.keys()


def test_every_field_of_every_named_recipe_is_among_them() -> None:
    paths = set[str]().union(*(paths_in(recipe_to_dict(recipe)) for recipe in RECIPES.values()))
    assert len(paths) > 80
    assert paths - recipe_fields().keys() == set()


def test_the_page_has_the_text_of_the_schema() -> None:
    assert fields_table() in (DOCS / "recipe-fields.md").read_text(encoding="utf-8"), (
        "write the output of `dermkit recipes explain --markdown` into docs/recipe-fields.md"
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("optim.batch_size", "optim.batch_size"), ("batch_size", "optim.batch_size"), ("seed", "seed"),
        ("phases.0.epochs", "phases.N.epochs"), ("epochs", "phases.N.epochs"), ("hsv", "augment.hsv"),
        ("grow.augment.hsv.p", "grow.augment.hsv.p"),
    ],
)  # fmt: skip
def test_a_field_is_found_by_its_path_or_its_last_word(name: str, path: str) -> None:
    assert find_field(name).path == path


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("dropuot", "`model.dropout`"), ("optim.bach_size", "`optim.batch_size`"), ("p", "`mix.p`"), ("zzz", "")],
)
def test_an_unknown_field_gives_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_field(name)
    assert nearest in caught.value.message and ("did you mean" in caught.value.message) == bool(nearest)


def test_the_values_of_the_named_recipes_are_shown() -> None:
    assert set(recipe_values("optim.batch_size").split(", ")) == {
        str(recipe.optim.batch_size) for recipe in RECIPES.values()
    }
    assert recipe_values("phases.N.train_backbone").startswith('"none", "all"')


def test_the_command_explains(invoke: Invoke) -> None:
    code, out, _ = invoke("recipes", "explain", "batch_size")
    assert code == 0
    assert out.startswith("optim.batch_size  (whole number, 1 to 1,000,000)\n  Images per step, over all devices")
    assert "In the named recipes: 32, 64" in out and "--set optim.batch_size=VALUE" in out
    code, out, _ = invoke("recipes", "explain", "optim")
    assert code == 0 and "optim.schedule" in out and "model.backbone" not in out
    code, out, _ = invoke("recipes", "explain")
    assert all(f"{path}  (" in out for path in recipe_fields() if not path.startswith("grow.augment."))
    code, _, err = invoke("recipes", "explain", "dropuot")
    assert code == 2 and "did you mean `model.dropout`?" in err


def test_every_recipe_is_listed_once_under_what_it_is_for(invoke: Invoke) -> None:
    names = [name for group in RECIPE_GROUPS.values() for name in group]
    assert sorted(names) == sorted(RECIPES)
    code, out, _ = invoke("recipes", "list")
    assert code == 0
    assert re.findall(r"^  (\S+)", out, re.MULTILINE)[:3] == ["quick", "strong", "scratch"]
    assert max(map(len, out.splitlines())) <= 100
    assert all(f"{title}:\n" in out for title in RECIPE_GROUPS)


def test_the_recipes_for_any_images_need_no_published_split() -> None:
    assert {RECIPES[name].split.scheme for name in ("quick", "strong", "scratch")} == {"holdout"}
    assert RECIPES["scratch"].model.weights == "none"
