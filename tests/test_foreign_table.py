"""Predictions as people have them: what is read, with what was assumed said, and what is refused with its cure."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from dermkit.errors import DataError, UsageError
from dermkit.evaluation.foreign_files import LABEL_ALIASES
from dermkit.evaluation.foreign_predictions import evaluate_foreign
from dermkit.evaluation.foreign_table import ForeignTable, read_foreign_table
from dermkit.progress import Progress
from dermkit.runs.folder import RunFolder

N = 40
NINE = [f"class {letter}" for letter in "abcdefghi"]


def written(folder: Path, table: pd.DataFrame | str, name: str = "table.csv") -> Path:
    file = folder / name
    file.write_text(table if isinstance(table, str) else table.to_csv(index=False))
    return file


def read(folder: Path, table: pd.DataFrame | str, scale: str | None = None) -> ForeignTable:
    return read_foreign_table(written(folder, table), None, scale)


def make_logits(names: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a table of logits, and its probabilities by the definition of softmax."""
    z = np.random.default_rng(4).normal(0, 2, (N, len(names)))
    p = np.array([[np.exp(value) / sum(np.exp(row)) for value in row] for row in z])
    labels = [names[int(row.argmax())] for row in p]
    head = pd.DataFrame({"image": [f"i{i}" for i in range(N)], "label": labels})
    return head.join(pd.DataFrame(z, columns=names)), head.join(pd.DataFrame(p, columns=names))


def test_logits_percent_and_independent_scores_are_read_where_they_are_named(tmp_path: Path) -> None:
    names = ["mel", "nv", "bcc"]
    logits, expected = make_logits(names)
    table = read(tmp_path, logits, "logits")
    np.testing.assert_allclose(table.probabilities[names], expected[names], rtol=1e-12)
    assert any("softmax" in note for note in table.notes)
    percent = expected.assign(**{name: 100 * expected[name] for name in names})
    np.testing.assert_allclose(read(tmp_path, percent, "percent").probabilities[names], expected[names])
    sigmoids = expected.assign(mel=0.2, nv=0.6, bcc=0.4)
    table = read(tmp_path, sigmoids, "independent")
    np.testing.assert_allclose(table.probabilities[names], np.tile([1 / 6, 1 / 2, 1 / 3], (N, 1)))
    assert any("divided by its sum (1.2 to 1.2)" in note for note in table.notes)


@pytest.mark.parametrize(
    ("kind", "cure"), [("logits", "--probabilities logits"), ("percent", "--probabilities percent"),
                       ("sigmoids", "--probabilities independent")],
)  # fmt: skip
def test_another_scale_is_refused_with_the_option_that_reads_it(tmp_path: Path, kind: str, cure: str) -> None:
    names = ["mel", "nv", "bcc"]
    logits, p = make_logits(names)
    tables = {
        "logits": logits,
        "percent": p.assign(**{name: 100 * p[name] for name in names}),
        "sigmoids": p.assign(mel=0.2, nv=0.6, bcc=0.4),
    }
    with pytest.raises(DataError) as refused:
        read(tmp_path, tables[kind])
    assert cure in str(refused.value.remedy)


def test_a_scale_that_the_numbers_do_not_have_is_refused(tmp_path: Path) -> None:
    logits, p = make_logits(["mel", "nv", "bcc"])
    for table, scale, problem in (
        (p, "logits", "probabilities already"),
        (p, "percent", "not percent"),
        (logits, "independent", "between 0 and 1"),
    ):
        with pytest.raises(DataError, match=problem):
            read(tmp_path, table, scale)
    with pytest.raises(UsageError, match="logits, percent, independent"):
        read(tmp_path, p, "softmax")


def test_three_decimals_of_nine_classes_are_read_and_said(tmp_path: Path) -> None:
    _, p = make_logits(NINE)
    rounded = p.assign(**{name: p[name].round(3) for name in NINE})
    sums = rounded[NINE].sum(axis=1)
    n_off = int((np.abs(sums - 1) > 1e-3).sum())
    assert n_off, "rows that were refused before"
    table = read(tmp_path, rounded)
    np.testing.assert_allclose(table.probabilities[NINE], rounded[NINE].div(sums, axis=0), rtol=1e-12)
    assert any(f"{n_off} of {N} rows were rounded to 3 decimals" in note for note in table.notes)
    wrong = rounded.assign(**{NINE[0]: rounded[NINE[0]] + 0.006})
    with pytest.raises(DataError, match="do not sum to 1"):
        read(tmp_path, wrong)


def test_one_column_of_probabilities_is_that_of_the_malignant_class(tmp_path: Path) -> None:
    p = np.linspace(0.05, 0.95, N)
    labels = np.where(np.arange(N) % 3 == 0, "malignant", "benign")
    for name in ("malignant", "p_malignant", "y_score", "score"):
        table = read(tmp_path, pd.DataFrame({"image": range(N), "label": labels, name: p}))
        np.testing.assert_allclose(table.probabilities["malignant"], p)
        np.testing.assert_allclose(table.probabilities["benign"], 1 - p)
        assert any("was read as that of malignant" in note for note in table.notes)
    y_true = (labels == "malignant").astype(int)
    table = read(tmp_path, pd.DataFrame({"y_true": y_true, "y_score": p}))
    assert table.labels is not None and table.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(table.probabilities["malignant"], p)
    assert any("0 = benign, 1 = malignant" in note for note in table.notes)
    assert any("named by its row" in note for note in table.notes)
    with pytest.raises(DataError, match="not clear"):
        read(tmp_path, pd.DataFrame({"image": range(N), "label": np.where(y_true, "A", "B"), "y_score": p}))
    diagnoses = np.array(["mel", "nv", "bcc"])[np.arange(N) % 3]
    with pytest.raises(DataError, match="3 labels"):
        read(tmp_path, pd.DataFrame({"image": range(N), "label": diagnoses, "mel": p}))


def test_semicolons_and_decimal_commas_are_read(tmp_path: Path) -> None:
    text = "image;label;benign;malignant\na;benign;0,75;0,25\nb;malignant;0,125;0,875\n"
    table = read(tmp_path, text)
    assert table.probabilities["malignant"].tolist() == [0.25, 0.875]
    assert any("Decimal commas" in note for note in table.notes)
    percent = "image;label;benign;malignant\na;benign;75 %;25 %\nb;malignant;12,5 %;87,5 %\n"
    assert read(tmp_path, percent).probabilities["malignant"].tolist() == [0.25, 0.875]


def test_submissions_of_challenges_are_read_on_a_data_set(binary: Path, nine: Path, tmp_path: Path) -> None:
    dataset = dk.load_dataset(binary)
    p = np.linspace(0.05, 0.95, len(dataset.manifest))
    kaggle = written(
        tmp_path, pd.DataFrame({"image_name": dataset.manifest["image_id"], "target": p}), "kaggle.csv"
    )
    table = read_foreign_table(kaggle, dataset)
    np.testing.assert_allclose(table.probabilities["malignant"], p)
    np.testing.assert_allclose(table.probabilities["benign"], 1 - p)
    run = RunFolder(evaluate_foreign(kaggle, dataset=dataset, out=tmp_path / "out", progress=Progress()))
    assert any("was read as that of malignant" in text for text in run.run_json["warnings"])
    dataset = dk.load_dataset(nine)
    isic = pd.DataFrame({"image": dataset.manifest["image_id"]})
    for number, name in enumerate(dataset.class_names):
        isic[name.upper()] = (number + 1) / 45
    table = read_foreign_table(written(tmp_path, isic.assign(UNK=0.0)), dataset)
    assert table.probabilities.columns.tolist() == list(dataset.class_names)
    np.testing.assert_allclose(table.probabilities.iloc[0], [(number + 1) / 45 for number in range(9)])
    with pytest.raises(DataError, match="no column of probabilities for class"):
        read_foreign_table(kaggle, dataset)


def test_columns_that_are_no_class_are_left_out_and_said(tmp_path: Path) -> None:
    _, p = make_logits(["mel", "nv", "bcc"])
    extra = p.assign(age=55, weight=80.5, seconds=0.25)
    extra.insert(0, "Unnamed: 0", range(N))
    table = read(tmp_path, extra)
    assert table.probabilities.columns.tolist() == ["mel", "nv", "bcc"]
    assert any("weight, seconds" in note for note in table.notes)
    absent = p.assign(rare=0.0)
    assert read(tmp_path, absent).probabilities.columns.tolist() == ["mel", "nv", "bcc", "rare"]
    with pytest.raises(DataError, match="whether other are classes"):
        read(tmp_path, p.assign(mel=p["mel"] / 2, other=0.4))


def test_an_image_with_two_labels_and_an_empty_id_are_refused_with_their_rows(tmp_path: Path) -> None:
    _, p = make_logits(["mel", "nv", "bcc"])
    twice = pd.concat(
        [p.assign(fold="0"), p[:1].assign(fold="1", label="bcc" if p["label"][0] != "bcc" else "nv")]
    )
    with pytest.raises(DataError, match=rf"1 images have two labels: i0 \(row 2, row {N + 2}"):
        evaluate_foreign(written(tmp_path, twice), dataset=None, out=tmp_path / "out", progress=Progress())
    assert not (tmp_path / "out").exists()
    p.loc[3, "image"] = ""
    with pytest.raises(DataError, match=r"1 rows have no image \(row 5"):
        read(tmp_path, p)


def test_other_formats_are_refused_with_the_way_to_csv(tmp_path: Path) -> None:
    for name in ("p.npy", "p.xlsx", "p.pkl"):
        with pytest.raises(DataError) as refused:
            read_foreign_table(written(tmp_path, "x", name), None)
        assert ("savez" if name == "p.npy" else "to_csv") in str(refused.value.remedy)


def three_classes() -> pd.DataFrame:
    return make_logits(["mel", "nv", "bcc"])[1]


def write_json(frame: pd.DataFrame, file: Path, orient: str) -> None:
    if orient == "lines":
        frame.to_json(file, orient="records", lines=True, double_precision=15)
    elif orient == "by image":
        file.write_text(json.dumps({row["image"]: row.drop("image").to_dict() for _, row in frame.iterrows()}))
    elif orient == "list":
        file.write_text(json.dumps(frame.to_dict(orient="list")))
    else:
        frame.to_json(file, orient=orient, double_precision=15)  # type: ignore[call-overload]


@pytest.mark.parametrize("orient", ["records", "split", "columns", "list", "by image", "lines"])
def test_json_in_each_form_of_pandas_is_the_table_that_was_written(tmp_path: Path, orient: str) -> None:
    frame = three_classes()
    file = tmp_path / ("p.jsonl" if orient == "lines" else "p.json")
    write_json(frame, file, orient)
    table = read_foreign_table(file, None)
    assert table.ids.tolist() == frame["image"].tolist()
    assert table.labels is not None
    assert table.labels.tolist() == frame["label"].tolist()
    np.testing.assert_allclose(table.probabilities[["mel", "nv", "bcc"]], frame[["mel", "nv", "bcc"]], atol=1e-14)


@pytest.mark.parametrize("is_numbered", [False, True])
def test_arrays_are_read_with_the_names_of_their_classes(tmp_path: Path, is_numbered: bool) -> None:
    frame, names = three_classes(), ["mel", "nv", "bcc"]
    labels = [names.index(name) for name in frame["label"]] if is_numbered else frame["label"].tolist()
    arrays: dict[str, Any] = {
        "image_ids": frame["image"].tolist(),
        "labels": labels,
        "probabilities": frame[names].to_numpy(),
    }
    np.savez(tmp_path / "p.npz", classes=names, **arrays)
    table = read_foreign_table(tmp_path / "p.npz", None)
    assert table.labels is not None
    assert table.labels.tolist() == frame["label"].tolist()
    assert (table.probabilities[names].to_numpy() == frame[names].to_numpy()).all()
    assert table.ids.tolist() == frame["image"].tolist()


def test_arrays_of_one_score_are_read_like_y_true_and_y_score(tmp_path: Path) -> None:
    y_true, y_score = np.arange(N) % 2, np.linspace(0.01, 0.99, N)
    np.savez(tmp_path / "p.npz", y_true=y_true, y_score=y_score)
    table = read_foreign_table(tmp_path / "p.npz", None)
    assert (table.probabilities["malignant"].to_numpy() == y_score).all()
    assert table.labels is not None
    assert table.labels.tolist() == ["malignant" if value else "benign" for value in y_true]


def npz(file: Path, **arrays: object) -> Path:
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file


def read_arrays(tmp_path: Path, **arrays: object) -> tuple[list[str], list[list[float]]]:
    """Return the labels and the probabilities, by class in alphabetical order, of an .npz."""
    table = read_foreign_table(npz(tmp_path / "p.npz", image_id=["a", "b", "c"], **arrays), None)
    assert table.labels is not None
    return table.labels.tolist(), table.probabilities[sorted(map(str, table.probabilities))].to_numpy().tolist()


P_OF_TWO = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])


def test_labels_are_no_positions_where_the_classes_are_called_by_numbers(tmp_path: Path) -> None:
    # As scikit-learn has them: `classes_` sorted, or not, and y in the names of the classes.
    labels, p = read_arrays(tmp_path, y=[1, 2, 1], probabilities=P_OF_TWO, classes=[1, 2])
    assert (labels, p) == (["1", "2", "1"], P_OF_TWO.tolist())
    labels, p = read_arrays(tmp_path, y=[0, 1, 0], probabilities=P_OF_TWO, classes=["1", "0"])
    assert (labels, p) == (["0", "1", "0"], P_OF_TWO[:, ::-1].tolist())


@pytest.mark.parametrize("labels", [[0, 1, 1], [0.0, 1.0, 1.0], [[1, 0], [0, 1], [0, 1]]])
def test_positions_as_floats_and_one_hot_rows_are_the_classes_there(tmp_path: Path, labels: list[Any]) -> None:
    # The melanoma is the class of position 0, and never the one that a 1 would be called elsewhere.
    names, p = read_arrays(tmp_path, probabilities=P_OF_TWO, labels=labels, classes=["mel", "nv"])
    assert (names, p) == (["mel", "nv", "nv"], P_OF_TWO.tolist())


@pytest.mark.parametrize("name", LABEL_ALIASES)
def test_labels_have_the_same_names_in_arrays_as_in_tables(tmp_path: Path, name: str) -> None:
    # An array called `truth` was the label too, but a position 1 was read as malignant: every label was the other one.
    names, p = read_arrays(tmp_path, probabilities=P_OF_TWO, classes=["mel", "nv"], **{name: [1, 0, 1]})
    of_positions, of_malignancy = ["nv", "mel", "nv"], ["mel", "nv", "mel"]
    assert names == (of_malignancy if name == "benign_malignant" else of_positions)
    assert p == P_OF_TWO.tolist()


def test_rows_of_a_json_are_those_of_their_numbers_in_any_order(tmp_path: Path) -> None:
    text = (
        '{"image": {"0": "a", "1": "b"}, "label": {"1": "nv", "0": "mel"}, '
        '"p_mel": {"1": 0.2, "0": 0.9}, "p_nv": {"0": 0.1, "1": 0.8}}'
    )
    table = read_foreign_table(written(tmp_path, text, "p.json"), None)
    assert table.labels is not None and table.labels.tolist() == ["mel", "nv"]
    assert table.probabilities["mel"].tolist() == [0.9, 0.2]


def test_nothing_hides_another_of_the_same_name(tmp_path: Path) -> None:
    names, ids = ["mel", "nv"], {"image_id": ["a", "b", "c"]}
    files = {
        "'p_mel' is there twice": npz(
            tmp_path / "a.npz", **ids, logits=P_OF_TWO, probabilities=P_OF_TWO, classes=names
        ),
        "'label' is there twice": npz(
            tmp_path / "b.npz", **ids, y=[0, 1, 1], labels=[1, 1, 1], probabilities=P_OF_TWO, classes=names
        ),
        "'p_nv' is there twice": npz(
            tmp_path / "c.npz", **ids, y=[0, 1, 1], probabilities=P_OF_TWO, classes=["nv", "nv"]
        ),
        "nor one-hot rows": npz(tmp_path / "d.npz", **ids, labels=P_OF_TWO, probabilities=P_OF_TWO, classes=names),
        "'x.jpg' is there twice": written(
            tmp_path, '{"x.jpg": {"mel": 0.1, "nv": 0.9}, "x.jpg": {"mel": 0.8, "nv": 0.2}}', "e.json"
        ),
        "'p_mel' is there twice ": written(tmp_path, '[{"label": "mel", "p_mel": 0.1, "p_mel": 0.9}]', "f.json"),
        "'mel' is there twice": written(tmp_path, '{"columns": ["mel", "mel"], "data": [[0.1, 0.9]]}', "g.json"),
    }
    for problem, file in files.items():
        with pytest.raises(DataError, match=problem.strip()):
            read_foreign_table(file, None)


def test_an_array_that_says_to_be_larger_than_memory_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("label.npy", header.getvalue() + bytes(80))
    with pytest.raises(DataError, match="do not fit into memory"):
        read_foreign_table(tmp_path / "p.npz", None)


def test_files_that_hold_no_table_are_refused_and_nothing_is_run_from_them(tmp_path: Path) -> None:
    p = np.full((4, 3), 1 / 3)
    files = {
        "which classes these are": npz(tmp_path / "a.npz", label=["mel"] * 4, probabilities=p),
        "not of one length": npz(tmp_path / "b.npz", label=["mel"] * 3, probabilities=p, classes=["a", "b", "c"]),
        "holds 0 to 9": npz(tmp_path / "c.npz", labels=[0, 9, 1, 1], probabilities=p, classes=["a", "b", "c"]),
        "allow_pickle": npz(tmp_path / "d.npz", label=np.array([{}, 1], dtype=object)),
        "holds neither": written(tmp_path, "[1, 2]", "e.json"),
        "Expecting value": written(tmp_path, "nothing", "f.json"),
        "a cell holds dict": written(tmp_path, '[{"label": {}}]', "g.json"),
        "surrogates": written(tmp_path, '[{"image_id": "\\ud800", "label": "mel", "p_mel": 0.5}]', "k.json"),
        "surrogates not": written(tmp_path, '[{"label": "mel", "p_\\ud800": 0.5}]', "l.json"),
        "recursion": written(tmp_path, "[" * 100_000, "h.json"),
        "not a zip": written(tmp_path, "PK", "i.npz"),
        "it has no row": written(tmp_path, '{"label": []}', "j.json"),
    }
    for problem, file in files.items():
        with pytest.raises(DataError, match=problem):
            read_foreign_table(file, None)


def test_parquet_is_read_where_its_reader_is_installed_and_else_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "PAR1", "p.parquet")

    def missing(*_: object, **__: object) -> pd.DataFrame:
        raise ImportError("pyarrow")

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(DataError, match="needs pyarrow") as refused:
        read_foreign_table(file, None)
    assert "pip install pyarrow" in str(refused.value.remedy)
    monkeypatch.setattr(pd, "read_parquet", lambda *_, **__: three_classes())
    assert len(read_foreign_table(file, None).ids) == N


def test_ids_under_other_names_join_the_images_of_one_lesion(tmp_path: Path) -> None:
    _, table = make_logits(["mel", "nv"])
    table = table.assign(
        lesion=[f"L{i // 4}" for i in range(N)], Patient=[i // 8 for i in range(N)], subject="yes"
    )
    read_table = read(tmp_path, table)
    assert [*read_table.group_ids()] == ["lesion_id", "patient_id"]
    assert read_table.group_ids()["patient_id"].tolist() == [str(i // 8) for i in range(N)]
    assert "The column Patient was read as the patient_id." in read_table.notes
    kinds = read(tmp_path, table.drop(columns="Patient").assign(lesion="flat"))
    assert not len(kinds.group_ids().columns)
    assert any("lesion was not read" in note and "call it lesion_id" in note for note in kinds.notes)
    evaluate_foreign(written(tmp_path, table), dataset=None, out=tmp_path / "out", progress=Progress())
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())["splits"]["test"]
    assert figures["n_groups"] == 5  # of 40 images, eight a patient
