"""The named recipes, their fields, augmentation presets and backbones, as commands."""

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import echo
from dermkit.cli.examples import examples_text

if TYPE_CHECKING:
    from dermkit.models.backbones import ListedBackbone
    from dermkit.recipes.fields import RecipeField

recipes_app = typer.Typer(no_args_is_help=True, help="List and explain recipes, their fields and backbones.")


@recipes_app.command(
    "list",
    help="List the named recipes by what they are for, and the grids of `dermkit tune`.",
    epilog=examples_text("recipes list"),
)
def list_recipes() -> None:
    from dermkit.recipes.experiments import GRIDS, RECIPE_GROUPS, RECIPES

    for title, names in RECIPE_GROUPS.items():
        echo(f"{title}:")
        for name in names:
            head = f"  {name:30} "
            echo(textwrap.fill(RECIPES[name].about, 100, initial_indent=head, subsequent_indent=" " * len(head)))
        echo()
    echo("Grids for `dermkit tune`:")
    for name, members in GRIDS.items():
        echo(f"  {name:30} {len(members)} recipes of {members[0].system}")
    echo("\nChange any of them: dermkit train NAME DATASET --set FIELD=VALUE (`dermkit recipes explain`).")


@recipes_app.command(
    "show",
    help="Print a recipe as JSON, to edit and train.",
    epilog=examples_text("recipes show"),
)
def show_recipe(name: str) -> None:
    from dermkit.recipes.experiments import find_recipe
    from dermkit.recipes.formats import RECIPE_FORMAT
    from dermkit.recipes.schema import recipe_to_dict

    echo(json.dumps({"format": RECIPE_FORMAT, **recipe_to_dict(find_recipe(name))}, indent=1))


@recipes_app.command(
    "presets",
    help='List the augmentation presets: in a recipe, `"augment": "NAME"` stands for the whole spec.',
    epilog=examples_text("recipes presets"),
)
def list_presets() -> None:
    from dermkit.recipes.augmentation import PRESET_NOTES

    for name, note in PRESET_NOTES.items():
        echo(f"{name:14} {note}")


@recipes_app.command(
    "explain",
    help="Explain a field of a recipe, a group of fields, or all.",
    epilog=examples_text("recipes explain"),
)
def explain_field(
    field: Annotated[
        str | None, typer.Argument(help="A field, such as optim.batch_size or batch_size (default: all).")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print all fields as the table of docs/recipe-fields.md.")
    ] = False,
) -> None:
    from dermkit.recipes.fields import distinct_fields, fields_table, find_field, recipe_fields

    if markdown:
        echo(fields_table())
        return
    if field is not None:
        explained = find_field(field)
        _print_field(explained, with_values=True)
        if explained.is_group:
            prefix = f"{explained.path}."
            for path, inner_field in recipe_fields().items():
                if path.startswith(prefix):
                    _print_field(inner_field)
        return
    for listed_field in distinct_fields():
        _print_field(listed_field)


def _print_field(field: "RecipeField", *, with_values: bool = False) -> None:
    echo(f"{field.path}  ({field.kind})")
    echo(textwrap.fill(field.description, 100, initial_indent="  ", subsequent_indent="  "))
    if with_values and not field.is_group and not field.path.startswith("derived_from"):
        from dermkit.recipes.fields import recipe_values

        if values := recipe_values(field.path):
            echo(
                textwrap.fill(f"In the named recipes: {values}", 100, initial_indent="  ", subsequent_indent="  ")
            )
        example = field.path.replace(".N.", ".0.")
        echo(f"  To change it: dermkit train RECIPE DATASET --set {example}=VALUE")


@recipes_app.command(
    "backbones",
    help="List backbones with their size and cost, and whether their weights are at hand.",
    epilog=examples_text("recipes backbones"),
)
def show_backbones(
    pattern: Annotated[
        str, typer.Argument(help="Part of a name: all of timm that hold it are listed too.", metavar="TEXT")
    ] = "",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="A folder with weights files, to list them too.")
    ] = None,
) -> None:
    from dermkit.models import backbones

    rows = backbones.list_backbones(pattern, weights)
    width = max([len(row.name) for row in rows] + [len("backbone")])
    echo(f"{'backbone':{width}}  {'px':>4}  {'parameters':>10}  {'multiply-adds':>13}  weights")
    for row in rows:
        echo(f"{row.name:{width}}  {_figures_text(row)}  {row.weights}{': ' if row.source else ''}{row.source}")
    n_names = len(backbones.backbone_names())
    echo(
        "\nparameters: millions, without a classifier. multiply-adds: thousand millions for an image of px x px; they\n"
        "grow with its area, those of transformers faster. Both are computed, nothing is timed. local: at hand.\n"
        "cached: fetched from the hub before. known: fetched when first used. Any of timm's names can be given\n"
        f"({n_names:,}): dermkit recipes backbones TEXT."
    )


def _figures_text(row: "ListedBackbone") -> str:
    if row.figures is None:
        return f"{'':4}  {'':10}  {'':13}"
    size, parameters, multiply_adds = row.figures[1:4]
    return f"{size:4}  {parameters:10.2f}  {multiply_adds:13.2f}"
