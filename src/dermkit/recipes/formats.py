"""The formats of recipe.json: how older ones are read, and the field names that fingerprints are computed with."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

RECIPE_FORMAT = 7

_FORMAT_2_NAMES = {
    "p": "share",
    "p_geometric": "moved",
    "p_colour": "toned",
    "target_fraction": "to",
    "max_copies": "most_copies",
}
"""Fields of `augment`, `grow` and `mix` -> their names in format 2. No other field was renamed."""

_RENAMED_SPECS = ("augment", "grow", "mix")

_ADDED_FIELDS: Mapping[int, Mapping[str, Mapping[str, Any]]] = {
    5: {
        "": {"smote": None, "distil": None, "test_views": "identity"},
        "model": {"drop_path": 0.0, "classifier": None},
        "phases": {"layer_decay": 1.0, "image_size": 0},
        "optim": {"focal_gamma": 0.0, "logit_adjustment": 0.0, "warmup_epochs": 0.0, "ema_decay": 0.0},
    },
    6: {"": {}, "model": {"metadata": None}},
    7: {"": {}, "optim": {"batch_norm_images": 0}},
}
"""Format -> group of fields ("" = the recipe itself) -> what the format added to it, with the values that older formats
implied."""

ADDED_MODEL_FIELDS: Mapping[str, Any] = {
    name: value for added in _ADDED_FIELDS.values() for name, value in added.get("model", {}).items()
}
"""Fields of `model` that formats 5 and later added -> the value that older formats implied."""


def with_format_2_names(value: Any) -> Any:
    """Return a spec of `augment`, `grow` or `mix`, as JSON values, with the field names of format 2.

    Run folders and cached features are found by hashes that include field names. Hashing the names of format 2 keeps
    runs and caches of older versions valid.
    """
    if not isinstance(value, Mapping):
        return value
    return {_FORMAT_2_NAMES.get(name, name): with_format_2_names(field) for name, field in value.items()}


def recipe_with_format_2_names(recipe_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's JSON values with the field names of format 2, which its fingerprint is a hash of."""
    return {
        name: with_format_2_names(field) if name in _RENAMED_SPECS else field
        for name, field in recipe_json.items()
    }


def format_of_recipe(recipe_json: Mapping[str, Any]) -> int:
    """Return the format of a recipe that is stored without a format number, as in model.json, by its fields."""
    if "compute" not in recipe_json:
        return 1
    optim, model = recipe_json.get("optim"), recipe_json.get("model")
    if isinstance(optim, Mapping) and "batch_norm_images" in optim:
        return 7
    if isinstance(model, Mapping) and "metadata" in model:
        return 6
    if "test_views" in recipe_json:
        return 5
    if "derived_from" in recipe_json:
        return 4
    augment = recipe_json.get("augment")
    return 2 if isinstance(augment, Mapping) and "moved" in augment else 3


def migrate_recipe(recipe_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's JSON values in the current format; those of an unknown format are returned unchanged."""
    migrated = dict(recipe_json)
    while isinstance(migrated.get("format"), int) and migrated["format"] in MIGRATIONS:
        migrated = MIGRATIONS[migrated["format"]](migrated)
    return migrated


def _migrate_1_to_2(recipe_json: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had no sampling, mixing or precision settings: fill in the values that it implied."""
    optim, grow = recipe_json.get("optim"), recipe_json.get("grow")
    return {
        **recipe_json,
        "format": 2,
        "augment": _migrate_augment_1_to_2(recipe_json.get("augment")),
        "grow": {**grow, "augment": _migrate_augment_1_to_2(grow.get("augment"))}
        if isinstance(grow, dict)
        else grow,
        "mix": None,
        "compute": {"precision": "float32", "compile": False},
        "optim": {**optim, "sampling": "shuffled"} if isinstance(optim, dict) else optim,
    }


def _migrate_augment_1_to_2(augment_json: Any) -> Any:
    if not isinstance(augment_json, dict):
        return augment_json
    new_fields = dict.fromkeys(("distort", "hsv", "blur_noise", "clahe", "cutout"))
    return {**augment_json, "transpose": False, "moved": 1.0, "toned": 1.0, **new_fields}


def _migrate_2_to_3(recipe_json: dict[str, Any]) -> dict[str, Any]:
    """Format 2 had other names for probabilities and for the limits of `grow`: rename them."""
    grow = _rename(recipe_json.get("grow"), "to", "most_copies")
    return {
        **recipe_json,
        "format": 3,
        "augment": _migrate_augment_2_to_3(recipe_json.get("augment")),
        "grow": {**grow, "augment": _migrate_augment_2_to_3(grow.get("augment"))}
        if isinstance(grow, dict)
        else grow,
        "mix": _rename(recipe_json.get("mix"), "share"),
    }


def _migrate_augment_2_to_3(augment_json: Any) -> Any:
    augment = _rename(augment_json, "moved", "toned")
    if not isinstance(augment, dict):
        return augment  # a preset's name, or an error that the validation reports
    return {name: _rename(field, "share") for name, field in augment.items()}


def _rename(spec_json: Any, *format_2_names: str) -> Any:
    """Return a spec with the current names of these fields. One that has both names is left for the validation."""
    new_names = {old: new for new, old in _FORMAT_2_NAMES.items() if old in format_2_names}
    if not isinstance(spec_json, dict) or spec_json.keys() & set(new_names.values()):
        return spec_json
    return {new_names.get(name, name): field for name, field in spec_json.items()}


def _migrate_3_to_4(recipe_json: dict[str, Any]) -> dict[str, Any]:
    """Format 3 did not record what a recipe was derived from."""
    return {**recipe_json, "format": 4, "derived_from": None}


def _add_fields(format: int, recipe_json: dict[str, Any]) -> dict[str, Any]:
    """The format before had none of the `_ADDED_FIELDS` of this one: fill in the values that it implied."""
    groups = {
        name: _map_group(recipe_json[name], partial(_fill_in, added))
        for name, added in _ADDED_FIELDS[format].items()
        if name in recipe_json
    }
    return {**_ADDED_FIELDS[format][""], **recipe_json, **groups, "format": format}


def _fill_in(added: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    return {**added, **group}


def _leave_out(added: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in added or value != added[name]}


def _map_group(group: Any, change: Callable[[Any], Any]) -> Any:
    """Return a group of fields, or each of a list of groups, changed; anything else is left for the validation."""
    if isinstance(group, list):
        return [_map_group(item, change) for item in group]
    return change(group) if isinstance(group, dict) else group


def without_additions(recipe_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's JSON values without later formats' fields that have the values which older formats implied.

    Run folders are found by hashes: those of recipes that older versions could have written stay valid.
    """
    remaining = dict(recipe_json)
    for added in _ADDED_FIELDS.values():
        groups = {name: _map_group(remaining[name], partial(_leave_out, added[name])) for name in added if name}
        remaining = _leave_out(added[""], {**remaining, **groups})
    return remaining


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _migrate_1_to_2,
    2: _migrate_2_to_3,
    3: _migrate_3_to_4,
    4: partial(_add_fields, 5),
    5: partial(_add_fields, 6),
    6: partial(_add_fields, 7),
}
"""Format number -> function that converts a recipe of that format to the next. Results do not change."""
