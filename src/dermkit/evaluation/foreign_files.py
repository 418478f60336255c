"""Tables of predictions that are no CSV: JSON, JSON lines, NumPy's .npz and Parquet, read as tables of text.

Arrays of an .npz with a value per image become columns under their names. An array of n rows and k columns is one of
probabilities; its columns are named by an array `classes` of k names, and labels may be positions in it: not where the
names are numbers themselves. A two-dimensional array of labels is one-hot. Nothing is read that could be two things.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.importers.csv_tables import TextTable
from dermkit.evaluation.foreign_probabilities import table_error
from dermkit.files import open_regular
from dermkit.runs.predictions import PROBABILITY_PREFIX

MAX_FOREIGN_FILE_BYTES = 512 * 1024**2
"""A CSV of a million rows and nine classes takes 200 MB."""
CLASS_NAME_ARRAYS = ("classes", "class_names", "label_names")
_NAME_OF_ARRAY = MappingProxyType(
    {
        "labels": "label", "targets": "label", "y": "label", "ids": "image_id", "image_ids": "image_id",
        "images": "image_id", "names": "image_id", "filenames": "image_id", "paths": "path", "splits": "split",
    }
)  # fmt: skip
"""Arrays are often called by the plural of what a column is called."""
_CLASS_LABELS = ("label", "y_true", "true_label", "ground_truth", "truth")
LABEL_ALIASES = (*_CLASS_LABELS, "benign_malignant")
"""Columns and arrays that hold the true label, the first that is there. A 1 of `benign_malignant` says malignant: it is
no position in an array's `classes`."""
OTHER_FORMATS = frozenset({".npy", ".xlsx", ".xls", ".pkl", ".pickle", ".pt", ".pth", ".feather", ".mat", ".h5"})
_SAVE_AS_CSV = (
    "save it as CSV (pandas: frame.to_csv('predictions.csv', index=False)), with a row per image "
    "and a column per class"
)
_CURES = MappingProxyType(
    {
        ".npy": "an array alone says neither images nor labels; numpy.savez('predictions.npz', image_id=ids, "
        "label=labels, probabilities=p, classes=names) is read",
    }
)

Columns = Mapping[str, Iterable[Any]]


def has_reader(file: Path) -> bool:
    """Return whether a file's ending is one that this module reads or refuses; all others are read as CSV."""
    return file.suffix.lower() in {*_READERS, *OTHER_FORMATS}


def read_other_table(file: Path) -> TextTable:
    """Return a table of text, "" for what is missing; raises `DataError` with the cure for what cannot be read."""
    suffix = file.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise table_error(
            file, f"{suffix} files are not read as tables of predictions", _CURES.get(suffix, _SAVE_AS_CSV)
        )
    try:
        columns = _READERS[suffix](_read_bytes(file))
        frame = pd.DataFrame({_text(name): _texts(values) for name, values in columns.items()}, dtype="str")
    except ImportError:
        raise table_error(
            file, "Parquet needs pyarrow, which is not installed", "pip install pyarrow, or " + _SAVE_AS_CSV
        ) from None
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OSError,
        EOFError,
        RecursionError,
        zipfile.BadZipFile,
    ) as error:
        raise table_error(file, " ".join(str(error).split())[:200] or type(error).__name__, _SAVE_AS_CSV) from None
    return TextTable(file, frame, np.arange(1, len(frame) + 1), tuple(frame.columns))


def _read_bytes(file: Path) -> bytes:
    with open_regular(file) as stream:
        data = stream.read(MAX_FOREIGN_FILE_BYTES + 1)
    if len(data) > MAX_FOREIGN_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FOREIGN_FILE_BYTES // 1024**2} MB")
    return data


def _texts(values: Iterable[Any]) -> list[str]:
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    """Return a value as a CSV would hold it; a float keeps all its digits."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | dict | np.ndarray):
        raise TypeError(f"a cell holds {type(value).__name__} in place of a number or text")
    text = "" if isinstance(value, float) and np.isnan(value) else str(value).strip()
    text.encode()  # JSON can hold half a character, which no file takes: a ValueError
    return text


# JSON -------------------------------------------------------------------------------------------------------------


def _json_columns(data: bytes) -> Columns:
    """Return the columns of a list of objects, of an object of lists, or of what pandas writes."""
    return _columns_of(_parse_json(data.decode("utf-8-sig")))


def _json_lines_columns(data: bytes) -> Columns:
    return _columns_of([_parse_json(line) for line in data.decode("utf-8-sig").split("\n") if line.strip()])


def _parse_json(text: str) -> Any:
    """Return the content of a JSON text; raises `ValueError` for a name that an object has twice."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return pairs of names and values as a dictionary; raises `ValueError` where one would hide another."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name!r} is there twice; which of the two counts is not clear")
        values[name] = value
    return values


def _columns_of(content: Any) -> Columns:
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        return {
            name: [row.get(name) for row in content]
            for name in dict.fromkeys(key for row in content for key in row)
        }
    if isinstance(content, dict) and {"columns", "data"} <= set(content):  # pandas, orient="split"
        return _unique(zip(content["columns"], zip(*content["data"], strict=True), strict=True))
    if isinstance(content, dict) and content and all(isinstance(values, list) for values in content.values()):
        return content
    if isinstance(content, dict) and content and all(isinstance(values, dict) for values in content.values()):
        return _columns_of_objects(content)
    raise ValueError("holds neither a list of rows nor columns of values")


def _columns_of_objects(content: Mapping[str, Mapping[str, Any]]) -> Columns:
    """Return the columns of image -> {class: p}, or of column -> {row number: value} as pandas writes it."""
    if all(set(values) == {str(i) for i in range(len(values))} for values in content.values()):
        return {name: [values[str(i)] for i in range(len(values))] for name, values in content.items()}
    return _columns_of([{"image_id": image_id, **values} for image_id, values in content.items()])


# NumPy and Parquet ------------------------------------------------------------------------------------------------


def _npz_columns(data: bytes) -> Columns:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_FOREIGN_FILE_BYTES:
            raise ValueError(f"its arrays take more than {MAX_FOREIGN_FILE_BYTES // 1024**2} MB")
    contents = _read_arrays(data)
    class_names = next((contents.pop(name) for name in CLASS_NAME_ARRAYS if name in contents), None)
    columns = _unique(
        pair for name, array in contents.items() for pair in _columns_of_array(name, array, class_names)
    )
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {array.shape}" for name, array in contents.items())
        raise ValueError(f"its arrays are not of one length: {lengths}")
    return columns


def _read_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz; raises `ValueError` for one that says to be larger than memory."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except MemoryError as error:
        raise ValueError(f"its arrays do not fit into memory: {error}") from None


def _columns_of_array(
    name: str, array: NDArray[Any], class_names: NDArray[Any] | None
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the columns that an array is: one of values, or one p_CLASS for each class."""
    column = _NAME_OF_ARRAY.get(name, name)
    if column in _CLASS_LABELS:
        yield column, _label_values(name, array, class_names)
    elif array.ndim == 2 and array.shape[1] > 1:
        yield from _class_columns(name, array, class_names)
    else:
        yield column, list(array.reshape(-1).tolist())


def _label_values(name: str, array: NDArray[Any], class_names: NDArray[Any] | None) -> list[Any]:
    """Return labels as they are; positions, and the places of the ones in one-hot rows, as the classes there."""
    values, is_one_hot = array.reshape(-1), array.ndim == 2 and array.shape[1] > 1
    if is_one_hot:
        if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()):
            raise ValueError(f"the array {name} {array.shape} holds neither a label per image nor one-hot rows")
        _check_class_names(name, array, class_names)
        values = array.argmax(axis=1)
    if class_names is None or not (is_one_hot or _are_positions(values, class_names)):
        return list(values.tolist())
    if values.size and not 0 <= values.min() <= values.max() < len(class_names):
        raise ValueError(
            f"the array {name} holds {values.min()} to {values.max()}, and `classes` has {len(class_names)} names"
        )
    return list(class_names[values.astype(np.int64)].tolist())


def _are_positions(values: NDArray[Any], class_names: NDArray[Any]) -> bool:
    """Return whether labels are whole numbers, while the names of the classes are not all numbers themselves."""
    is_whole = values.dtype.kind in "iu" or (
        values.dtype.kind == "f" and bool((np.isfinite(values) & (values == np.round(values))).all())
    )
    return is_whole and not all(map(_is_number, class_names.tolist()))


def _is_number(value: Any) -> bool:
    try:
        float(_text(value))
    except ValueError:
        return False
    return True


def _check_class_names(name: str, array: NDArray[Any], class_names: NDArray[Any] | None) -> None:
    if class_names is None or class_names.shape != (array.shape[1],):
        raise ValueError(
            f"the array {name} has {array.shape[1]} columns; which classes these are, an array `classes` of "
            f"{array.shape[1]} names must say"
        )


def _class_columns(
    name: str, array: NDArray[Any], class_names: NDArray[Any] | None
) -> Iterator[tuple[str, list[Any]]]:
    """Yield a column p_CLASS for each column of an array."""
    _check_class_names(name, array, class_names)
    for i, label in enumerate([] if class_names is None else class_names):
        yield f"{PROBABILITY_PREFIX}{_text(label)}", array[:, i].tolist()


def _parquet_columns(data: bytes) -> Columns:
    frame = pd.read_parquet(io.BytesIO(data), engine="pyarrow")
    return {str(name): frame[name].tolist() for name in frame.columns}


_READERS: Mapping[str, Callable[[bytes], Columns]] = MappingProxyType(
    {
        ".json": _json_columns,
        ".jsonl": _json_lines_columns,
        ".npz": _npz_columns,
        ".parquet": _parquet_columns,
    }
)
