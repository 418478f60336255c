"""Metadata of an image (age, sex, body site) as numbers: a net's second input, joined to the features of its backbone.

A field is encoded by what the training images of its run hold, and nothing else: age as (years - mean) / standard
deviation and a column that says whether it is known, sex and site as a column for each category. What is not known is 0
in every column of its field, so a row of zeros says nothing of an image; a category that no training image has counts
as unknown. Without torch.

Shapes: N images, M columns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.importers.normalise import parse_sex, parse_site
from dermkit.data.manifest import MAX_AGE, is_age
from dermkit.data.unknown import or_unknown
from dermkit.errors import DataError, first_of
from dermkit.models.card import second_input_sentence
from dermkit.recipes.training_specs import METADATA_FIELDS

MAX_FIELD_CATEGORIES = 200
"""Most categories of a field: a column with more holds free text, and one image or two for each."""
MAX_CATEGORY_LENGTH = 200
MIN_AGE_SD = 1e-3
"""In years: ages that differ by less are equal but for rounding, and dividing by it would blow this up."""
_ENCODER_KEYS = {"fields", "age", "categories", "n_images", "n_known"}
_N_NAMED = 5


@dataclass(frozen=True)
class MetadataEncoder:
    """How metadata become columns. fields: some of age, sex, site, in this order.

    age_mean, age_sd: in years, of the known ages of training images; 0 and 1 without `age`. categories: of each other
    field, in lower case and sorted. n_images: training images; n_known: of each field, how many of them have it.
    """

    fields: tuple[str, ...]
    age_mean: float
    age_sd: float
    categories: Mapping[str, tuple[str, ...]]
    n_images: int
    n_known: Mapping[str, int]

    @property
    def columns_of_field(self) -> Mapping[str, slice]:
        """Return which columns of the encoded vectors each field has."""
        ends = np.cumsum([2 if name == "age" else len(self.categories[name]) for name in self.fields]).tolist()
        return {name: slice(start, end) for name, start, end in zip(self.fields, [0, *ends], ends, strict=False)}

    @property
    def width(self) -> int:
        """Return the number of columns, M."""
        return int(self.columns_of_field[self.fields[-1]].stop)

    def encode(self, table: pd.DataFrame) -> NDArray[np.float32]:
        """Return the encoded metadata of images, (N, M) float32. table: a text column for each field, "" = unknown."""
        encoded = np.zeros((len(table), self.width), dtype=np.float32)
        for name, columns in self.columns_of_field.items():
            values = known_metadata(table[name], name)
            encoded[:, columns] = (
                self._encoded_age(values) if name == "age" else self._encoded_category(name, values)
            )
        return encoded

    def _encoded_age(self, values: "pd.Series[str]") -> NDArray[np.float64]:
        years = _years(values)
        is_known = ~np.isnan(years)
        return np.stack([np.where(is_known, (years - self.age_mean) / self.age_sd, 0.0), is_known], axis=1)

    def _encoded_category(self, name: str, values: "pd.Series[str]") -> NDArray[np.float64]:
        categories = self.categories[name]
        positions = pd.Index(categories).get_indexer(pd.Index(values))
        return np.asarray(positions[:, None] == np.arange(len(categories)), dtype=np.float64)

    def used_values(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the values that are encoded, as text: "" where one is unknown or of no category of training images."""
        columns = {name: known_metadata(table[name], name) for name in self.fields}
        return pd.DataFrame(
            {
                name: values if name == "age" else values.where(values.isin(self.categories[name]), "")
                for name, values in columns.items()
            }
        )

    def unseen_categories(self, table: pd.DataFrame) -> dict[str, dict[str, int]]:
        """Return field -> category that no training image has -> number of images with it; without empty fields."""
        unseen: dict[str, dict[str, int]] = {}
        for name in self.fields:
            values = known_metadata(table[name], name)
            others = values[(values != "") & ~values.isin(self.categories.get(name, values))]
            if len(others):
                unseen[name] = {str(value): int(n) for value, n in others.value_counts().items()}
        return unseen

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values, for model.json."""
        return {
            "fields": list(self.fields),
            "age": {"mean": self.age_mean, "sd": self.age_sd} if "age" in self.fields else None,
            "categories": {name: list(values) for name, values in self.categories.items()},
            "n_images": self.n_images,
            "n_known": dict(self.n_known),
        }

    def sentence(self) -> str:
        """Return which fields are the second input, of how many training images they were known, and what follows."""
        return second_input_sentence(self.n_known, self.n_images)


def known_metadata(values: "pd.Series[Any]", field: str) -> "pd.Series[str]":
    """Return a column as text, "" for every spelling of unknown; categories in lower case.

    Raises `DataError` for an age that is no number of years.
    """
    normalise = _known_age if field == "age" else _CATEGORY_NORMALISERS[field]
    texts = [str(value) for value in values]
    normalised = {text: normalise(text) for text in dict.fromkeys(texts)}
    return pd.Series([normalised[text] for text in texts], index=values.index, dtype="object")


def _known_age(value: str) -> str:
    text = or_unknown(value).strip()
    if not is_age(text):
        raise DataError(
            f"age {value!r} is no number of years from 0 to {MAX_AGE}",
            outcome="nothing was scored",
            remedy='give years, or "" for unknown',
        )
    return text


def _known_sex(value: str) -> str:
    return (parse_sex(value.strip()) or "").strip()


def _known_site(value: str) -> str:
    return (parse_site(value.strip()) or "").casefold()


_CATEGORY_NORMALISERS: Mapping[str, Callable[[str], str]] = {"sex": _known_sex, "site": _known_site}


def _years(values: "pd.Series[str]") -> NDArray[np.float64]:
    """Return ages (N,), nan where unknown."""
    return np.array([float(value) if value else np.nan for value in values], dtype=np.float64)


def known_counts(table: pd.DataFrame, fields: Sequence[str]) -> dict[str, int]:
    """Return of each field how many images have it."""
    return {name: int((known_metadata(table[name], name) != "").sum()) for name in fields}


def fit_metadata(fields: Sequence[str], table: pd.DataFrame) -> MetadataEncoder:
    """Return the encoder of some training images' metadata. table: their rows of the manifest, and no others.

    Ages are standardised by mean and standard deviation (divided by n, as scikit-learn's StandardScaler does); equal
    ages have a standard deviation of 1. Raises `DataError` for a field that no image has, or with too many categories.
    """
    columns = {name: known_metadata(table[name], name) for name in fields}
    n_known = {name: int((values != "").sum()) for name, values in columns.items()}
    unknown = [name for name, n in n_known.items() if not n]
    if unknown:
        raise DataError(
            f"model.metadata: {' and '.join(unknown)} is unknown for all {len(table)} training images",
            outcome="nothing was trained",
            remedy=_remedy([name for name in fields if name not in unknown]),
        )
    categories = {name: tuple(sorted(set(columns[name]) - {""})) for name in fields if name != "age"}
    for name, values in categories.items():
        _check_categories(name, values)
    years = _years(columns["age"]) if "age" in fields else np.array([0.0])
    mean, sd = float(np.nanmean(years)), float(np.nanstd(years))
    return MetadataEncoder(tuple(fields), mean, sd if sd >= MIN_AGE_SD else 1.0, categories, len(table), n_known)


def _remedy(remaining: Sequence[str]) -> str:
    short_form = f"--metadata {','.join(remaining)}" if remaining else "--metadata none"
    return f"leave it out ({short_form}), or import the data set again with a table that has it (--join TABLE)"


def _check_categories(name: str, categories: Sequence[str]) -> None:
    longest = max(map(len, categories))
    if len(categories) > MAX_FIELD_CATEGORIES or longest > MAX_CATEGORY_LENGTH:
        raise DataError(
            f"model.metadata: {name} has {len(categories):,} different values of up to {longest} characters (such as "
            f"{first_of((value[:40] for value in categories), 3)}): that is free text; at most {MAX_FIELD_CATEGORIES} "
            "categories are taken",
            outcome="nothing was trained",
            remedy="give each a common name in the source and import it again, or leave the field out",
        )


def partly_known_text(encoder: MetadataEncoder) -> str:
    """Return of each field the part of training images that has it, as percentages."""
    return ", ".join(
        f"{name} {encoder.n_known[name] / encoder.n_images:.1%} ({encoder.n_known[name]:,} of {encoder.n_images:,})"
        for name in encoder.fields
    )


def unseen_text(unseen: Mapping[str, Mapping[str, int]]) -> str:
    """Return a sentence on categories that count as unknown, since no training image has them; "" for none."""
    if not unseen:
        return ""
    texts = [
        f"{name} {first_of((f'{value[:40]} ({n:,})' for value, n in counts.items()), _N_NAMED)}"
        for name, counts in unseen.items()
    ]
    n = sum(sum(counts.values()) for counts in unseen.values())
    return f"{n:,} values that no training image has count as unknown: {'; '.join(texts)}."


# Reading one back ---------------------------------------------------------------------------------------------------


def read_encoder(entry: Any) -> MetadataEncoder:
    """Return the encoder of a member of model.json; raises `ValueError` or `TypeError` for one that cannot be."""
    if not isinstance(entry, dict) or set(entry) != _ENCODER_KEYS:
        raise ValueError(f"the metadata of a member are not {', '.join(sorted(_ENCODER_KEYS))}")
    fields = entry["fields"]
    if (
        not isinstance(fields, list)
        or not fields
        or fields != [name for name in METADATA_FIELDS if name in fields]
    ):
        raise ValueError(f"the metadata fields of a member are not some of {', '.join(METADATA_FIELDS)} in order")
    names, categories = [name for name in fields if name != "age"], entry["categories"]
    if not isinstance(categories, dict) or list(categories) != names:
        raise ValueError(f"the metadata of a member have no categories for {', '.join(names) or 'age alone'}")
    mean, sd = _read_age(entry["age"], "age" in fields)
    n_images, n_known = entry["n_images"], entry["n_known"]
    if not isinstance(n_known, dict) or list(n_known) != fields:
        raise ValueError("the metadata of a member have no n_known of each field")
    if type(n_images) is not int or any(type(n) is not int or not 0 < n <= n_images for n in n_known.values()):
        raise ValueError("n_images and n_known of a member are no counts of images")
    checked = {name: _read_categories(name, categories[name]) for name in names}
    return MetadataEncoder(tuple(fields), mean, sd, checked, n_images, n_known)


def _read_age(entry: Any, has_age: bool) -> tuple[float, float]:
    if not has_age:
        if entry is not None:
            raise ValueError("a member without age has a mean of ages")
        return 0.0, 1.0
    if not isinstance(entry, dict) or set(entry) != {"mean", "sd"}:
        raise ValueError("the age of a member is not mean and sd")
    mean, sd = (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan
        for value in (entry["mean"], entry["sd"])
    )
    if not 0 <= mean <= MAX_AGE or not MIN_AGE_SD <= sd <= MAX_AGE:  # false for nan
        raise ValueError(f"mean and sd of the age of a member are not from 0 to {MAX_AGE}, sd above 0")
    return mean, sd


def _read_categories(name: str, values: Any) -> tuple[str, ...]:
    """Return the categories of a field: as `known_metadata` spells them, sorted, each once."""
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_FIELD_CATEGORIES:
        raise ValueError(f"the categories of {name} of a member are no list of 1 to {MAX_FIELD_CATEGORIES}")
    if any(not isinstance(value, str) or not 1 <= len(value) <= MAX_CATEGORY_LENGTH for value in values):
        raise ValueError(f"a category of {name} of a member is no text of 1 to {MAX_CATEGORY_LENGTH} characters")
    spelled = [_CATEGORY_NORMALISERS[name](value) for value in values]
    if values != sorted(set(values)) or values != spelled:
        raise ValueError(f"the categories of {name} of a member are not sorted, each once, in lower case")
    return tuple(values)
