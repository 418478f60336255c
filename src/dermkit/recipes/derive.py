"""A recipe changed by assignments such as optim.batch_size=16: validated, named, and with a record of what changed."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

from dermkit.errors import UsageError
from dermkit.files import fingerprint, windows_name_problem
from dermkit.recipes.augmentation import find_preset
from dermkit.recipes.experiments import RECIPES
from dermkit.recipes.fields import INDEX, generic_path, nearest_fields, recipe_fields
from dermkit.recipes.frozen import CLASSIFIERS
from dermkit.recipes.head_checks import DENSE_FIELDS
from dermkit.recipes.schema import Derivation, FieldChange, Recipe, parse_recipe, recipe_to_dict

_LONGEST_NAME = 80
"""Characters of a derived recipe's name before its changes are replaced by a hash: it becomes a folder."""

_BACKBONE_FIELDS: Mapping[str, Any] = {"model.backbone_args": {}, "model.skip_blocks": []}
"""Fields that mean something for one backbone alone, and their values for another one."""

_IMPLIED_FIELDS: Mapping[str, Sequence[str]] = {
    "model.backbone": ("model.backbone_args", "model.skip_blocks"),
    "split.folds": ("split.scheme", "split.test"),
    "model.classifier": ("phases", *DENSE_FIELDS),
}
"""Field -> fields that change with it, which a derived recipe's name leaves out."""

_RUN_FIELDS = ("seed", "repeats", "split", "compute")
"""Fields of a run's recipe.json that say what was used in place of what was written, such as a split file's."""


@dataclass(frozen=True)
class Assignment:
    """A field of a recipe and its new value, as JSON.

    option: what the user wrote, for messages, such as --set optim.batch_size=16.
    """

    path: str
    value: Any
    option: str


def parse_assignment(text: str) -> Assignment:
    """Return the assignment that `--set PATH=VALUE` means; raises `UsageError` for another form or an unknown field.

    A value is read as JSON, and as text where it is none or the field holds text.
    """
    path, equals, value_text = text.partition("=")
    path, option = path.strip(), f"--set {text}"
    if not equals or not path:
        raise recipe_change_error(f"{option}: not of the form FIELD=VALUE", "e.g. --set optim.batch_size=16")
    if generic_path(path) not in recipe_fields() and not path.startswith("model.backbone_args."):
        raise recipe_change_error(
            f"{option}: a recipe has no field {path}{nearest_fields(path)}",
            "`dermkit recipes explain` lists every field",
        )
    if path.split(".")[0] == "derived_from":
        raise recipe_change_error(f"{option}: derived_from is written by dermkit", "leave it out")
    return Assignment(path, _parse_value(path, value_text.strip()), option)


def recipe_change_error(message: str, remedy: str) -> UsageError:
    """Return the error for a change of a recipe that cannot be made."""
    return UsageError(message, outcome="nothing was trained", remedy=remedy)


def _parse_value(path: str, text: str) -> Any:
    field = recipe_fields().get(generic_path(path))
    kind = field.kind if field else ""
    if path.rpartition(".")[2] == "augment" and not text.startswith("{"):
        return json.loads(json.dumps(asdict(find_preset(text, f"--set {path}={text}"))))
    if kind == "text" or (f"`{text}`" in kind):
        return text
    if text.lower() in ("none", "null") and kind.endswith("null"):
        return None
    if kind.startswith("list of") and not text.startswith("["):
        return [_parse_plain(item.strip()) for item in text.split(",") if item.strip()]
    return _parse_plain(text)


def _parse_plain(text: str) -> Any:
    if re.fullmatch(r"[+-]?\.\d+(e[+-]?\d+)?|[+-]?\d+\.(e[+-]?\d+)?", text, re.I):  # .5 and 1. are no JSON
        return float(text)
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def derive_recipe(recipe: Recipe, assignments: Sequence[Assignment]) -> Recipe:
    """Return the recipe with these fields changed, under a name that says them; the same recipe if none changes.

    `derived_from` records the recipe and each change. Another `model.backbone` empties `model.backbone_args` and
    `model.skip_blocks`, unless they are set too. Raises `UsageError` for a field set to two values, for a place that
    this recipe lacks and for a value that the field does not take.
    """
    _check_contradictions(assignments)
    after = recipe_to_dict(recipe)
    if any(one.path == "model.backbone" and one.value != after["model"]["backbone"] for one in assignments):
        for (
            path,
            value,
        ) in _BACKBONE_FIELDS.items():  # first, so that parts of them can be set for the new backbone
            _assign(after, Assignment(path, deepcopy(value), ""))
    for assignment in sorted(assignments, key=lambda assignment: assignment.path.count(".")):
        _assign(after, assignment)
    options = ", ".join(dict.fromkeys(assignment.option for assignment in assignments))
    derived = parse_recipe(after, f"{recipe.name} with {options}")
    return _with_record(recipe, derived)


def _check_contradictions(assignments: Sequence[Assignment]) -> None:
    first_by_path: dict[str, Assignment] = {}
    for assignment in assignments:
        first = first_by_path.setdefault(assignment.path, assignment)
        if first.value != assignment.value or type(first.value) is not type(assignment.value):
            raise recipe_change_error(
                f"{first.option} and {assignment.option} give {assignment.path} two values", "give one of them"
            )


def _assign(recipe_json: dict[str, Any], assignment: Assignment) -> None:
    """Put a value into a recipe's JSON values; raises `UsageError` where the recipe has no such place."""
    node: Any = recipe_json
    *parents, last = assignment.path.split(".")
    for depth, component in enumerate(parents):
        node = _child(node, component, assignment, ".".join(parents[:depth]))
        if node is None:
            group = ".".join(parents[: depth + 1])
            raise recipe_change_error(
                f"{assignment.option}: this recipe has no {group} (it is null)",
                f"set the whole group first: {_group_example(group)}",
            )
    if isinstance(node, list):
        _child(node, last, assignment, ".".join(parents))
        node[int(last)] = assignment.value
    elif isinstance(node, dict):
        node[last] = assignment.value
    else:
        raise recipe_change_error(f"{assignment.option}: {'.'.join(parents)} holds no fields", "set it as a whole")


def _child(node: Any, component: str, assignment: Assignment, parent: str) -> Any:
    if isinstance(node, list):
        if not component.isdigit() or int(component) >= len(node):
            places = ", ".join(f"{parent}.{index}" for index in range(len(node)))
            raise recipe_change_error(f"{assignment.option}: this recipe has {places}", "give one of these")
        return node[int(component)]
    if not isinstance(node, dict) or component not in node:
        raise recipe_change_error(f"{assignment.option}: {parent} holds no fields", "set it as a whole")
    return node[component]


def _group_example(group: str) -> str:
    if group.endswith("augment"):
        return f"--set {group}=light"
    names = [
        path.removeprefix(f"{group}.")
        for path in recipe_fields()
        if path.startswith(f"{group}.") and "." not in path.removeprefix(f"{group}.")
    ]
    values = ", ".join(f'"{name}": ...' for name in names)
    return f"--set '{group}={{{values}}}'"


def _with_record(base: Recipe, derived: Recipe) -> Recipe:
    """Return the derived recipe with its name and its record, or the base where nothing changed."""
    is_named = derived.name != base.name
    if is_named and derived.name in RECIPES:
        raise recipe_change_error(f"--set name={derived.name}: a named recipe has this name", "give another name")
    earlier = base.derived_from.changes if base.derived_from else ()
    origin = base.derived_from.recipe if base.derived_from else base.name
    new_changes = _changes(replace(base, derived_from=None), replace(derived, name=base.name, derived_from=None))
    if not new_changes and not is_named:
        return base
    changes = _merge(earlier, new_changes)
    name = derived.name if is_named else _derived_name(origin, changes, len(derived.phases))
    return replace(
        derived, name=name, derived_from=Derivation(recipe=origin, changes=changes) if changes else None
    )


def _merge(earlier: Sequence[FieldChange], later: Sequence[FieldChange]) -> tuple[FieldChange, ...]:
    """Return the changes from the first recipe to the last; what was changed back is none."""
    merged = {change.field: change for change in earlier}
    for change in later:
        first = merged.get(change.field)
        merged[change.field] = replace(change, before=first.before) if first else change
    order = {path: number for number, path in enumerate(recipe_fields())}
    changes = [change for change in merged.values() if change.before != change.after]
    return tuple(sorted(changes, key=lambda change: order.get(generic_path(change.field), len(order))))


def _changes(before: Recipe, after: Recipe) -> list[FieldChange]:
    differences = _differences(recipe_to_dict(before), recipe_to_dict(after), "")
    return [FieldChange(field=path, before=_text(old), after=_text(new)) for path, old, new in differences]


def _differences(before: Any, after: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, before, after) of the smallest parts in which two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        pairs = [(name, before[name], after[name]) for name in before]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(index), old, new) for index, (old, new) in enumerate(zip(before, after, strict=True))]
    else:
        if before != after or type(before) is not type(after):
            yield path, before, after
        return
    for name, old, new in pairs:
        yield from _differences(old, new, f"{path}.{name}" if path else name)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _derived_name(base: str, changes: Sequence[FieldChange], n_phases: int) -> str:
    """Return a name that says the changes, or their hash where they are many: s1-cnn-batch_size_16-epochs_20."""
    implied = {path for change in changes for path in _IMPLIED_FIELDS.get(change.field, ())}
    named_changes = [
        change for change in changes if not any(f"{change.field}.".startswith(f"{path}.") for path in implied)
    ]
    parts = list(
        dict.fromkeys(
            _name_part(change, _is_same_in_phases(change, changes, n_phases)) for change in named_changes
        )
    )
    name = "-".join([base, *parts])
    if all(parts) and len(name) <= _LONGEST_NAME and not windows_name_problem(name):
        return name
    changes_hash = fingerprint([asdict(change) for change in changes])[:8]
    return f"{base[: _LONGEST_NAME - 17]}-changed-{changes_hash}"


def _is_same_in_phases(change: FieldChange, changes: Sequence[FieldChange], n_phases: int) -> bool:
    """Return whether every phase gets this new value of its field."""
    path = generic_path(change.field)
    return n_phases == sum(generic_path(other.field) == path and other.after == change.after for other in changes)


def _name_part(change: FieldChange, is_same_in_phases: bool) -> str:
    """Return a change as part of a name, "" if its value is too long for one."""
    *_, parent, field = ["", "", *change.field.split(".")]
    is_of_phase = generic_path(change.field).startswith(f"phases.{INDEX}.") and not is_same_in_phases
    # p and augment are fields of several groups
    label = f"phase{parent}_{field}" if is_of_phase else f"{parent}_{field}" if len(field) < 3 else field
    value = re.sub(r"[^A-Za-z0-9.]+", "-", _value_text(change.after))
    return f"{label}_{value.strip('-.')}" if value.strip("-.") and len(value) <= 30 else ""


def _value_text(after: str) -> str:
    """Return a value for a name: text without quotes, of a small group its values, of a usual classifier its kind."""
    if after.startswith("{"):
        values = json.loads(after)
        is_usual = any(values == asdict(classifier) for classifier in CLASSIFIERS.values())
        return str(values["kind"]) if is_usual else "-".join(map(str, values.values()))
    return str(json.loads(after)) if after.startswith('"') else after


def check_record(recipe: Recipe, source: str) -> None:
    """Raise `UsageError` unless the fields of a recipe file are what its record of changes says.

    Somebody may have edited the file and left the record, which would then be told as true. Fields in which a run
    writes what it used (seed, split, precision) are not compared.
    """
    recipe_json = recipe_to_dict(recipe)
    for change in recipe.derived_from.changes if recipe.derived_from else ():
        if change.field.split(".")[0] in _RUN_FIELDS:
            continue
        value = _value_at(recipe_json, change.field)
        if _text(value) != change.after:
            raise recipe_change_error(
                f"{source}: derived_from says that {change.field} is {change.after}, but it is {_text(value)}",
                "correct the record, or set derived_from to null and give the recipe another name",
            )


def _value_at(recipe_json: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path, None where there is no such place."""
    value: Any = recipe_json
    for component in path.split("."):
        if isinstance(value, list):
            value = value[int(component)] if component.isdigit() and int(component) < len(value) else None
        else:
            value = value.get(component) if isinstance(value, dict) else None
    return value


def derive_grid(
    grid: str, members: Sequence[Recipe], assignments: Sequence[Assignment]
) -> tuple[str, list[Recipe]]:
    """Return a grid's name and its recipes with these fields changed; its own names if nothing changes.

    Raises `UsageError` for a field in which its recipes differ: setting it would train one recipe several times.
    """
    member_jsons = [recipe_to_dict(member) for member in members]
    varied = {
        path: (old, new)
        for other in member_jsons[1:]
        for path, old, new in _differences(member_jsons[0], other, "")
        if path != "name"
    }
    for assignment in assignments:
        clashes = [path for path in varied if f"{path}.".startswith(f"{assignment.path}.")]
        if clashes:
            raise recipe_change_error(
                f"{assignment.option}: the grid {grid} tries several values of {clashes[0]}",
                "leave it out, or train one recipe with `dermkit train`",
            )
    derived = [derive_recipe(member, assignments) for member in members]
    changes = derived[0].derived_from.changes if derived[0].derived_from else ()
    return (_derived_name(grid, changes, len(derived[0].phases)) if changes else grid), derived
