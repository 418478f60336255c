"""Age, sex and site as columns: known answers, unknown as unknown, and saved encoders that cannot be."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermkit.errors import DataError, UsageError
from dermkit.models.metadata import (
    MAX_FIELD_CATEGORIES,
    MetadataEncoder,
    fit_metadata,
    known_counts,
    partly_known_text,
    read_encoder,
    unseen_text,
)
from dermkit.recipes.experiments import find_recipe
from dermkit.recipes.schema import parse_recipe, recipe_to_dict

FIELDS = ("age", "sex", "site")


def table(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(FIELDS), dtype="str")


TRAINING = table(
    ("40", "male", "back"), ("60", "female", "lower extremity"), ("", "female", "back"), ("80.5", "", "Face"),
    ("unknown", "male", ""),
)  # fmt: skip


def made(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(n)
    ages = [str(age) if age < 90 else "" for age in rng.integers(0, 100, n)]
    sexes = rng.choice(["male", "female", ""], n).tolist()
    return table(*zip(ages, sexes, rng.choice(["back", "face", "palm", "scalp", ""], n).tolist(), strict=True))


def reference(training: pd.DataFrame, images: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return what pandas makes of the same: to_numeric, std and get_dummies."""
    known = pd.to_numeric(training["age"], errors="coerce")
    age = (pd.to_numeric(images["age"], errors="coerce") - known.mean()) / known.std(ddof=0)
    parts = [age.fillna(0.0).to_frame(), age.notna().astype(float).to_frame()]
    for name in ("sex", "site"):
        categories = sorted(set(training[name]) - {""})
        parts.append(pd.get_dummies(images[name]).reindex(columns=categories, fill_value=0).astype(float))
    return np.asarray(pd.concat(parts, axis=1), dtype=np.float64)


def test_columns_are_those_that_pandas_makes_of_training_rows() -> None:
    training, images = made(200), made(70)
    images.loc[:4, "site"] = "ear"  # no training image has it
    encoder = fit_metadata(FIELDS, training)
    encoded = encoder.encode(images)
    assert encoded.dtype == np.float32 and encoded.shape == (70, encoder.width) == (70, 2 + 2 + 4)
    np.testing.assert_allclose(encoded, reference(training, images), atol=1e-6)
    assert encoder.unseen_categories(images) == {"site": {"ear": 5}}
    assert unseen_text(encoder.unseen_categories(images)) == (
        "5 values that no training image has count as unknown: site ear (5)."
    )
    assert unseen_text({}) == "" and (encoder.used_values(images)["site"][:5] == "").all()


def test_a_known_answer_and_unknown_is_zero_in_every_column() -> None:
    encoder = fit_metadata(FIELDS, TRAINING)
    years = np.array([40, 60, 80.5])
    assert encoder.categories == {"sex": ("female", "male"), "site": ("back", "face", "lower extremity")}
    assert encoder.age_mean == pytest.approx(years.mean()) and encoder.age_sd == pytest.approx(years.std())
    images = table(("60.1666666", "M", " BACK"), ("", "", "n/a"), ("unknown", "other", "elbow"))
    assert encoder.encode(images).round(4).tolist() == [[0, 1, 0, 1, 1, 0, 0], [0] * 7, [0] * 7]
    assert encoder.n_known == known_counts(TRAINING, FIELDS) == {"age": 3, "sex": 4, "site": 4}
    assert partly_known_text(encoder) == "age 60.0% (3 of 5), sex 80.0% (4 of 5), site 80.0% (4 of 5)"
    assert "age (known of 3), sex (known of 4), site (known of 4) of 5 training images" in encoder.sentence()
    site_alone = fit_metadata(["site"], TRAINING)
    assert site_alone.width == 3 and np.array_equal(site_alone.encode(images), encoder.encode(images)[:, 4:])


def test_cells_of_other_tables_are_read_too_and_an_age_that_is_none_is_refused() -> None:
    encoder = fit_metadata(["age", "sex"], TRAINING)
    frame = pd.DataFrame({"age": [40.0, np.nan, None], "sex": ["F", None, np.nan]})
    assert np.array_equal(encoder.encode(frame)[1:], np.zeros((2, 4), np.float32))
    assert encoder.encode(frame)[0, 1:].tolist() == [1, 1, 0]
    with pytest.raises(DataError, match=r"age 'old' is no number of years from 0 to 120"):
        encoder.encode(pd.DataFrame({"age": ["old"], "sex": [""]}))


def test_equal_ages_are_not_blown_up() -> None:
    encoder = fit_metadata(["age"], table(*[("45.3", "", "")] * 7))
    assert encoder.age_sd == 1.0
    assert encoder.encode(table(("46.3", "", ""))).round(4).tolist() == [[1, 1]]


def test_a_field_that_no_training_image_has_is_refused_by_name_and_with_the_cure() -> None:
    with pytest.raises(DataError, match="site is unknown for all 5 training images") as error:
        fit_metadata(FIELDS, TRAINING.assign(site="unknown"))
    assert "--metadata age,sex" in error.value.remedy and "--join TABLE" in error.value.remedy
    with pytest.raises(DataError, match="age and sex and site is unknown") as all_unknown:
        fit_metadata(FIELDS, TRAINING.assign(age="", sex="", site=""))
    assert "--metadata none" in all_unknown.value.remedy
    texts = [("", "", f"text {n}") for n in range(MAX_FIELD_CATEGORIES + 1)]
    with pytest.raises(DataError, match="site has 201 different values"):
        fit_metadata(["site"], table(*texts))


def saved(**changes: Any) -> dict[str, Any]:
    return {**fit_metadata(FIELDS, TRAINING).as_dict(), **changes}


def test_an_encoder_is_read_back_as_it_was() -> None:
    for fields in (FIELDS, ("age",), ("sex", "site")):
        encoder = fit_metadata(fields, TRAINING)
        assert read_encoder(encoder.as_dict()) == encoder
    assert isinstance(read_encoder(saved()), MetadataEncoder)


CATEGORIES = saved()["categories"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ([], "metadata of a member are not"),
        (saved(more=1), "metadata of a member are not"),
        (saved(fields=["sex", "age", "site"]), "in order"),
        (saved(fields=["age", "age"]), "in order"),
        (saved(fields=["age", "skin"]), "in order"),
        (saved(fields=[]), "in order"),
        (saved(age=None), "age of a member"),
        (saved(age={"mean": 40.0, "sd": 0.0}), "sd above 0"),
        (saved(age={"mean": 40.0, "sd": -3.0}), "sd above 0"),
        (saved(age={"mean": float("nan"), "sd": 3.0}), "sd above 0"),
        (saved(age={"mean": 40.0, "sd": float("inf")}), "sd above 0"),
        (saved(age={"mean": True, "sd": 3.0}), "sd above 0"),
        (saved(age={"mean": "40", "sd": 3.0}), "sd above 0"),
        (saved(categories={}), "no categories"),
        (saved(categories=dict(reversed(CATEGORIES.items()))), "no categories"),
        (saved(categories={**CATEGORIES, "sex": []}), "no list of 1 to 200"),
        (saved(categories={**CATEGORIES, "sex": "male"}), "no list of 1 to 200"),
        (saved(categories={**CATEGORIES, "sex": [f"{n:03}x" for n in range(201)]}), "no list of 1 to 200"),
        (saved(categories={**CATEGORIES, "sex": ["male", "male"]}), "each once"),
        (saved(categories={**CATEGORIES, "sex": ["male", "female"]}), "sorted"),
        (saved(categories={**CATEGORIES, "site": ["Back"]}), "lower case"),
        (saved(categories={**CATEGORIES, "site": ["unknown"]}), "lower case"),
        (saved(categories={**CATEGORIES, "site": ["x" * 201]}), "no text of 1 to 200"),
        (saved(categories={**CATEGORIES, "site": [3]}), "no text of 1 to 200"),
        (saved(n_images=-1), "no counts"),
        (saved(n_images=2), "no counts"),
        (saved(n_known={"age": 1}), "no n_known"),
        (saved(n_known={"age": 1.5, "sex": 1, "site": 1}), "no counts"),
    ],
)  # fmt: skip
def test_a_saved_encoder_that_cannot_be_is_refused(entry: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        read_encoder(entry)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"fields": ["sex", "age"], "p_unknown": 0.1}, "each once, in this order"),
        ({"fields": ["age", "age"], "p_unknown": 0.1}, "each once, in this order"),
        ({"fields": [], "p_unknown": 0.1}, "model.metadata.fields"),
        ({"fields": ["skin_type"], "p_unknown": 0.1}, "model.metadata.fields"),
        ({"fields": ["age"], "p_unknown": 1.0}, "model.metadata.p_unknown"),
        ({"fields": ["age"]}, "model.metadata.p_unknown"),
    ],
)
def test_a_recipe_names_its_fields_once_and_in_one_order(metadata: Any, words: str) -> None:
    value = recipe_to_dict(find_recipe("demo"))
    value["model"]["metadata"] = metadata
    with pytest.raises(UsageError, match=words):
        parse_recipe(value, "mine.json")
