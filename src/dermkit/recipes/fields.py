"""Every field of a recipe with its kind and its description, read from the schema: `dermkit recipes explain`."""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from dermkit.errors import UsageError
from dermkit.recipes.experiments import RECIPES
from dermkit.recipes.schema import Recipe, recipe_to_dict

INDEX = "N"
"""Stands in a path for the number of a phase, from 0: phases.N.epochs."""


@dataclass(frozen=True)
class RecipeField:
    """One field of a recipe: its path, what it may hold, in words, and what it does.

    is_group: whether it holds fields of its own.
    """

    path: str
    kind: str
    description: str
    is_group: bool


@cache
def recipe_fields() -> Mapping[str, RecipeField]:
    """Return path -> field, in the order of a recipe file."""
    schema = TypeAdapter(Recipe).json_schema()
    return {field.path: field for field in _walk(schema, schema["$defs"], "")}


def _walk(node: Mapping[str, Any], specs: Mapping[str, Any], prefix: str) -> Iterator[RecipeField]:
    for name, field_schema in node["properties"].items():
        path = f"{prefix}{name}"
        spec = _spec_of(field_schema, specs)
        # pydantic leaves a description out that is also that of the group
        description = " ".join(field_schema.get("description", (spec or {}).get("description", "")).split())
        yield RecipeField(path, _kind(field_schema), description, spec is not None)
        if spec is not None:
            is_list = field_schema.get("type") == "array"
            yield from _walk(spec, specs, f"{path}.{INDEX}." if is_list else f"{path}.")


def _spec_of(field_schema: Mapping[str, Any], specs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the group of fields that a field holds, or a list of, None = a value."""
    candidates = [field_schema, *field_schema.get("anyOf", ()), field_schema.get("items", {})]
    for candidate in candidates:
        if "$ref" in candidate:
            spec: Mapping[str, Any] = specs[candidate["$ref"].rpartition("/")[2]]
            return spec
    return None


def _kind(node: Mapping[str, Any]) -> str:
    if "anyOf" in node:
        return " or ".join(_kind(option) for option in node["anyOf"])
    if "$ref" in node:
        return "a group of fields"
    if "enum" in node:
        return " or ".join(f"`{value}`" for value in node["enum"])
    texts = {
        "null": "null", "boolean": "true or false", "string": "text", "object": "names with values",
        "integer": f"whole number{_range_text(node)}", "number": f"number{_range_text(node)}",
    }  # fmt: skip
    return texts.get(node["type"]) or f"list of: {_kind(node.get('items') or node['prefixItems'][0])}"


def _range_text(node: Mapping[str, Any]) -> str:
    low = node.get("minimum", node.get("exclusiveMinimum"))
    high = node.get("maximum", node.get("exclusiveMaximum"))
    if low is None or high is None:
        return ""
    bounds = [f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in (low, high)]
    exclusive = [
        text for key, text in (("exclusiveMinimum", "above {0}"), ("exclusiveMaximum", "below {1}")) if key in node
    ]
    return f", {bounds[0]} to {bounds[1]}" + "".join(f" ({text.format(*bounds)})" for text in exclusive)


def find_field(name: str) -> RecipeField:
    """Return a field by its path, or by its last part where only one has it; raises `UsageError` with the nearest.

    A number stands for any: phases.0.epochs is phases.N.epochs.
    """
    fields = recipe_fields()
    path = generic_path(name)
    if path in fields:
        return fields[path]
    same_ending = [known for known in _distinct_paths() if known.endswith(f".{path}")]
    if len(same_ending) == 1:
        return fields[same_ending[0]]
    raise UsageError(
        f"{name}: no field of a recipe is called so{nearest_fields(name)}",
        outcome="nothing was done",
        remedy="`dermkit recipes explain` lists every field",
    )


def generic_path(path: str) -> str:
    """Return a path with N in the place of every number."""
    return ".".join(INDEX if component.isdigit() else component for component in path.strip().split("."))


def nearest_fields(name: str) -> str:
    """Return "; did you mean ...?" with the fields that end like `name` or are most similar, or "" if none is."""
    fields = _distinct_paths()
    path = generic_path(name)
    ending = path.rpartition(".")[2]
    matches = [known for known in fields if known.rpartition(".")[2] == ending]
    matches = matches or difflib.get_close_matches(path, fields, n=3, cutoff=0.6)
    endings = {known.rpartition(".")[2]: known for known in reversed(fields)}
    similar_endings = difflib.get_close_matches(ending, list(endings), n=3, cutoff=0.6)
    matches = matches or [endings[match] for match in similar_endings]
    matches = matches or [known for known in fields if ending in known.rpartition(".")[2].split("_")]
    if not matches:
        return ""
    legend = (
        f" ({INDEX}: the number of a phase, from 0)" if any(f".{INDEX}." in match for match in matches) else ""
    )
    return f"; did you mean {' or '.join(f'`{match}`' for match in matches[:6])}?{legend}"


def distinct_fields() -> list[RecipeField]:
    """Return the fields without those of `grow.augment`, which are those of `augment`."""
    return [field for path, field in recipe_fields().items() if not path.startswith("grow.augment.")]


def _distinct_paths() -> list[str]:
    return [field.path for field in distinct_fields()]


def fields_table() -> str:
    """Return every field as a table in Markdown, which is that of `docs/recipe-fields.md`."""
    rows = [f"| `{field.path}` | {field.kind} | {field.description} |" for field in distinct_fields()]
    return "\n".join(["| field | what it holds | what it does |", "|---|---|---|", *rows])


def recipe_values(path: str) -> str:
    """Return the values that the named recipes have in a field, each once, as JSON; long ones left out."""
    nodes: list[Any] = [recipe_to_dict(recipe) for recipe in RECIPES.values()]
    for component in path.split("."):
        if component == INDEX:
            nodes = [item for node in nodes for item in node]
        else:
            nodes = [node[component] for node in nodes if node is not None]
    values = dict.fromkeys(json.dumps(node, ensure_ascii=False) for node in nodes if node is not None)
    return ", ".join(value for value in values if len(value) <= 40)
