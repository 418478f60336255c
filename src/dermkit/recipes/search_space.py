"""The space that a search tries: fields of a recipe, each with the values that it may take.

A space is of one recipe: every value has passed the recipe's own checks, and every field can have an effect with it.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermkit.errors import UsageError, first_of
from dermkit.files import fingerprint, read_regular
from dermkit.recipes.derive import Assignment, derive_recipe
from dermkit.recipes.effects import why_without_effect
from dermkit.recipes.fields import generic_path, nearest_fields, recipe_fields
from dermkit.recipes.schema import Recipe

RANGE_KEYS = ("low", "high", "log", "step")
_EXAMPLE = '{"optim.batch_size": [16, 32], "phases.0.head_lr": {"low": 1e-4, "high": 1e-2, "log": true}}'
_DIGITS = 3
"""Significant digits of a drawn number: more would only make names long."""

_FIXED_FIELDS: Mapping[str, str] = {
    "name": "it names the recipe", "system": "it has no effect", "about": "it has no effect",
    "derived_from": "dermkit writes it", "seed": "all trials have one seed (--seed)",
    "repeats": "a trial is one training a fold",
    "split": "all trials are compared on the same images (--split, --folds)",
    "monitor": "all trials are compared by the same figure (--set monitor=...)",
}  # fmt: skip
"""Field, or group of fields, that is the same in all trials -> why."""


@dataclass(frozen=True)
class Choice:
    """Some values, as JSON values; augmentation presets by their names."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included. log: drawn by their logarithm. step: between whole numbers or others.

    is_whole: whether the field takes whole numbers only.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    is_whole: bool = False

    def rounded(self, value: float) -> float | int:
        """Return a drawn number as a recipe gets it: with few digits, inside the range."""
        if self.is_whole:
            return round(value)
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


Dimension = Choice | Range


@dataclass(frozen=True)
class SearchSpace:
    """Field -> the values that it may take, for one recipe."""

    dimensions: Mapping[str, Dimension]

    @property
    def size(self) -> int | None:
        """The number of combinations, None where a number is drawn from a range without a step."""
        sizes = [_size_of(dimension) for dimension in self.dimensions.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield every combination, field -> value; raises `ValueError` for a space that has no end."""
        if self.size is None:
            raise ValueError("numbers without a step have no list")
        for values in itertools.product(*(_values_of(dimension) for dimension in self.dimensions.values())):
            yield dict(zip(self.dimensions, values, strict=True))

    def recipe_for(self, base: Recipe, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe that these values make of `base`; raises `UsageError` where they do not go together."""
        assignments = [
            Assignment(path, value, f"{path} = {json.dumps(value)}") for path, value in sorted(values.items())
        ]
        return derive_recipe(base, assignments)

    def as_dict(self) -> dict[str, Any]:
        """Return the space as a space file has it."""
        return {path: _dimension_dict(dimension) for path, dimension in self.dimensions.items()}

    def fingerprint(self) -> str:
        """Return a hash of the fields and their values."""
        return fingerprint(self.as_dict())


def values_key(values: Mapping[str, Any]) -> str:
    """Return values as one text, whatever the order of the fields."""
    return json.dumps(dict(sorted(values.items())), ensure_ascii=False)


def _size_of(dimension: Dimension) -> int | None:
    if isinstance(dimension, Range) and not dimension.is_whole and dimension.step is None:
        return None
    return len(_values_of(dimension))


def _values_of(dimension: Dimension) -> Sequence[Any]:
    if isinstance(dimension, Choice):
        return dimension.values
    step = dimension.step or 1
    count = math.floor((dimension.high - dimension.low) / step + 1e-9) + 1
    return [dimension.rounded(dimension.low + index * step) for index in range(count)]


def _dimension_dict(dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        return list(dimension.values)
    number = int if dimension.is_whole else float
    entries: dict[str, Any] = {"low": number(dimension.low), "high": number(dimension.high)}
    if dimension.log:
        entries["log"] = True
    if dimension.step is not None:
        entries["step"] = number(dimension.step)
    return entries


# A user's own space -------------------------------------------------------------------------------------------------


def load_space(path: Path, recipe: Recipe, *, set_fields: Sequence[str] = ()) -> SearchSpace:
    """Read a space file for a recipe; raises `UsageError` that names every problem.

    set_fields: fields that the command line sets to one value, which no trial may change.
    """
    try:
        content = json.loads(read_regular(path).decode("utf-8"), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise _space_error(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _space_error(f"{path}: is not a JSON object of fields: {error}") from error
    return parse_space(content, recipe, str(path), set_fields=set_fields)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if repeated := first_of([name for name in dict.fromkeys(names) if names.count(name) > 1], 3):
        raise ValueError(f"{repeated} stands there twice")
    return dict(pairs)


def parse_space(content: Any, recipe: Recipe, source: str, *, set_fields: Sequence[str] = ()) -> SearchSpace:
    """Return the space of a recipe that some JSON values are; raises `UsageError` that names every problem."""
    if not isinstance(content, dict) or not content:
        raise _space_error(f"{source}: is empty: no field to try")
    dimensions, problems = {}, []
    for path, value in content.items():
        try:
            dimensions[path] = _parse_dimension(path, value)
        except ValueError as error:
            problems.append(f"{path}: {error}")
    for path, dimension in dimensions.items():
        if problem := _problem(path, dimension, dimensions, recipe, set_fields):
            problems.append(f"{path}: {problem}")
    if problems:
        raise _space_error(f"{source}: not a search space of {recipe.name}:\n  " + "\n  ".join(problems))
    return SearchSpace(dimensions)


def _space_error(message: str) -> UsageError:
    return UsageError(message, outcome="nothing was trained", remedy=f"correct it; a space is such as {_EXAMPLE}")


def _parse_dimension(path: str, value: Any) -> Dimension:
    if isinstance(value, list):
        return _parse_choice(value)
    if not isinstance(value, dict):
        raise ValueError("is neither a list of values nor a range with low and high")
    if unknown := [key for key in value if key not in RANGE_KEYS]:
        raise ValueError(f"a range has {', '.join(RANGE_KEYS)}, not {unknown[0]}")
    low, high, step = value.get("low"), value.get("high"), value.get("step")
    for key, bound in (("low", low), ("high", high), ("step", step)):
        if not (_is_number(bound) or (key == "step" and bound is None)):
            raise ValueError(f"{key} is {json.dumps(bound)}, not a number")
    assert low is not None and high is not None  # noqa: S101  for the type checker: told above
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"log is {json.dumps(log)}, not true or false")
    field = recipe_fields().get(generic_path(path))
    is_whole = field is not None and "whole number" in field.kind
    _check_range(low, high, step, log=log, is_whole=is_whole)
    return Range(low, high, log, step, is_whole)


def _parse_choice(values: list[Any]) -> Choice:
    texts = [json.dumps(value) for value in values]
    if len(set(texts)) < len(texts):
        raise ValueError("has a value twice")
    if len(values) < 2:
        raise ValueError(f"has {len(values)} value{'s' * (len(values) != 1)}; to fix a field, use --set")
    return Choice(tuple(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_range(low: float, high: float, step: float | None, *, log: bool, is_whole: bool) -> None:
    if low >= high:
        raise ValueError(f"low {low:g} is not below high {high:g}; to fix a field, use --set")
    if log and low <= 0:
        raise ValueError("a range with log true begins above 0")
    if step is not None and (log or step <= 0 or step > high - low):
        raise ValueError("step is above 0, at most high - low, and not beside log")
    if is_whole and any(number is not None and float(number) != int(number) for number in (low, high, step)):
        raise ValueError("takes whole numbers")


def _problem(
    path: str, dimension: Dimension, dimensions: Mapping[str, Dimension], recipe: Recipe, set_fields: Sequence[str]
) -> str:
    """Return what is wrong with a field of a space, "" if nothing is."""
    if generic_path(path) not in recipe_fields() and not path.startswith("model.backbone_args."):
        return f"a recipe has no such field{nearest_fields(path)}"
    for fixed, reason in _FIXED_FIELDS.items():
        if f"{path}.".startswith(f"{fixed}."):
            return f"is fixed: {reason}"
    if clash := next((name for name in set_fields if _overlaps(name, path)), None):
        return f"--set {clash} sets it to one value"
    if clash := next((other for other in dimensions if other != path and _overlaps(other, path)), None):
        return f"{clash} is in the space too, and one holds the other"
    if problem := _value_problem(path, dimension, recipe):
        return problem
    reason = why_without_effect(path, recipe, searched=[name for name in dimensions if name != path])
    return f"has no effect with {recipe.name}: {reason}" if reason else ""


def _overlaps(first: str, second: str) -> bool:
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _value_problem(path: str, dimension: Dimension, recipe: Recipe) -> str:
    """Return what the recipe's own checks say of the values, "" if they take all of them."""
    values = dimension.values if isinstance(dimension, Choice) else _ends(dimension)
    for value in values:
        try:
            derive_recipe(recipe, [Assignment(path, value, f"{path} = {json.dumps(value)}")])
        except UsageError as error:
            lines = [line.strip() for line in error.message.splitlines()]
            return f"{json.dumps(value)}: {lines[1] if len(lines) > 1 else lines[0]}"
    return ""


def _ends(dimension: Range) -> tuple[float | int, ...]:
    return (dimension.rounded(dimension.low), dimension.rounded(dimension.high))
