"""What is said where a file that dermkit wrote was changed by hand: the file and the field, never a traceback."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dermkit.errors import DataError, DermkitError

_METRICS_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "classes": list, "positive": list, "splits": dict, "policy": (dict, type(None)), "warnings": list, "leaks": dict,
    "overfitting": dict, "options": dict, "bootstrap": dict,
}  # fmt: skip
_RUN_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "recipe": str, "about": str, "dataset": dict, "split": dict, "weights": dict, "warnings": list, "lint": list,
}  # fmt: skip
_ESTIMATE_KEYS = {"value", "ci95", "n", "method"}


def check_metrics_json(metrics: Mapping[str, Any], path: Path) -> None:
    """Raise `DataError` naming the first field of metrics.json that is of another kind, or no estimate."""
    _check_types(metrics, _METRICS_TYPES, path)
    for name in ("classes", "positive"):
        if not all(isinstance(entry, str) for entry in metrics.get(name, [])):
            raise _field_error(path, name, "a list of names")
    _check_estimates(metrics, (), path)


def check_run_json(run_json: Mapping[str, Any], path: Path) -> None:
    """Raise `DataError` naming the first field of run.json that is of another kind."""
    _check_types(run_json, _RUN_TYPES, path)


def _check_types(fields: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]], path: Path) -> None:
    for name, kind in types.items():
        if name in fields and not isinstance(fields[name], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = {"dict": "an object", "list": "a list", "str": "a text", "NoneType": "null"}
            raise _field_error(path, name, " or ".join(expected[entry.__name__] for entry in kinds))


def _check_estimates(value: Any, keys: tuple[str, ...], path: Path) -> None:
    """Check every estimate below a value: it has just the fields of one, and these are numbers."""
    if isinstance(value, list):
        for number, entry in enumerate(value):
            _check_estimates(entry, (*keys, str(number)), path)
    elif isinstance(value, dict):
        if "ci95" in value and not _is_estimate(value):
            raise _field_error(path, ".".join(keys), "a figure with value, ci95, n and method")
        for name, entry in value.items():
            _check_estimates(entry, (*keys, name), path)


def _is_estimate(fields: Mapping[str, Any]) -> bool:
    bounds = fields["ci95"]
    return (
        fields.keys() >= _ESTIMATE_KEYS
        and (fields["value"] is None or _is_number(fields["value"]))
        and (bounds is None or (isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, bounds))))
        and _is_number(fields["n"])
        and isinstance(fields["method"], str)
        and isinstance(fields.get("reason", ""), str)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _field_error(path: Path, name: str, expected: str) -> DataError:
    return DataError(
        f"{path}: `{name}` is not {expected}, so the file was changed or is another tool's",
        outcome="the files as they are",
        remedy="restore it, or let `dermkit evaluate` write the evaluation again",
    )


@contextmanager
def saved_content(*folders: Path) -> Iterator[None]:
    """Turn what goes wrong with the content of saved files into a `DataError` that names their folder.

    Around the reading of what dermkit wrote itself: a table or JSON that was changed by hand may lack anything.
    """
    try:
        yield
    except (DermkitError, OSError, MemoryError):
        raise
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            f"{', '.join(map(str, folders))}: a saved file does not hold what it should ({cause})",
            outcome="the files as they are",
            remedy="restore what was changed, or train or evaluate again; where nobody did, report what the "
            "same command prints with `dermkit --debug ...`",
        ) from error
