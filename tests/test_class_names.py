"""Names of one class are joined, and said; names of two classes never are: in imports and in tables of predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import Cli
from dermkit.data.class_names import class_key, group_names
from dermkit.data.diagnoses import classify_label
from dermkit.data.importers.class_changes import _renames
from dermkit.data.importers.run import ImportOutcome, import_dataset
from dermkit.data.importers.table_rows import ImportOptions
from dermkit.errors import DataError, UsageError
from dermkit.evaluation.class_mapping import default_mapping
from dermkit.evaluation.foreign_predictions import evaluate_foreign
from dermkit.evaluation.foreign_table import read_foreign_table
from dermkit.progress import Progress
from dermkit.runs.folder import RunFolder
from made_images import save_noise

ONE_CLASS = [
    ["0", "0.0", "00", "-0", "0.", "0e0"],
    ["1", "1.0", "01", "+1", "1.000000000000000000e+00", "\N{FULLWIDTH DIGIT ONE}"],
    ["True", "TRUE", "1"],
    [
        "basal cell carcinoma", "basal_cell_carcinoma", "Basal-Cell Carcinoma", "BCC", "bcc ", "Basal cell carcinomas",
        "basal.cell.carcinoma", "BasalCellCarcinoma", "basal cell carcinoma (BCC)", "BCC (Basal cell carcinoma)",
        "basal\N{NO-BREAK SPACE}cell\N{IDEOGRAPHIC SPACE}carcinoma",
        "basal\N{HYPHEN}cell\N{NON-BREAKING HYPHEN}carcinoma",
        "\N{ZERO WIDTH NO-BREAK SPACE}basal ce\N{SOFT HYPHEN}ll carcinoma\N{ZERO WIDTH SPACE}",
        "basal  cell - carcinoma",
    ],
    ["nevus", "Naevus", "NEVI", "naevi", "nv", "Melanocytic Naevi", "melanocytic_nevus", "NEV"],
    ["melanoma", "Melanoma", "MEL", "malignant melanoma", "Melanomas"],
    ["Melanoma, NOS", "melanoma NOS", "melanoma_nos"],
    ["Melanoma in situ", "melanoma in-situ", "melanoma (in situ)"],
    ["Bowen's disease", "Bowen\N{RIGHT SINGLE QUOTATION MARK}s Disease", "bowens disease"],
    ["stra\N{LATIN SMALL LETTER SHARP S}e", "STRASSE"],
    ["caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"],
    ["class_a", "Class A", "class-a"],
]  # fmt: skip

NOT_ONE_CLASS = [
    ["0", "1", "-1", "2", "10"],
    ["173.1", "173.10", "173", "173.0"],
    ["0.5", "0.50", "5"],
    [
        "melanoma", "Melanoma, NOS", "Melanoma Invasive", "Melanoma in situ", "nodular melanoma", "lentigo maligna",
        "lentigo maligna melanoma", "superficial spreading melanoma", "acral melanoma", "melanoma metastasis",
        "melanoma (less than 0.76 mm)", "melanoma (more than 1.5 mm)", "not melanoma", "non-melanoma",
    ],
    ["melanoma <1mm", "melanoma >1mm"],
    ["nevus", "dysplastic nevus", "atypical nevus", "blue nevus", "congenital nevus", "epidermal nevus", "Nevus, NOS"],
    ["akiec", "ak", "Bowen's disease", "squamous cell carcinoma", "squamous cell carcinoma in situ"],
    ["bkl", "seborrheic keratosis", "solar lentigo", "lplk", "pigmented benign keratosis", "lentigo"],
    ["grade 1", "grade -1", "grade 2", "HER2+", "HER2-", "HER2"],
    ["benign", "malignant", "indeterminate", "negative", "positive", "0", "1", "True", "False"],
    ["vascular lesion", "angioma", "hemangioma", "pyogenic granuloma"],
    ["class 1", "class 10", "class 11", "class 1 1"],
]  # fmt: skip


@pytest.mark.parametrize("names", ONE_CLASS, ids=lambda names: names[0])
def test_names_of_one_class_are_joined(names: list[str]) -> None:
    assert group_names(names) == [names]


@pytest.mark.parametrize("names", NOT_ONE_CLASS, ids=lambda names: names[0])
def test_names_of_two_classes_are_never_joined(names: list[str]) -> None:
    assert group_names(names) == [[name] for name in names]


def test_joined_names_never_differ_in_malignancy() -> None:
    for names in ONE_CLASS:
        known = {classify_label(name).malignancy for name in names if classify_label(name).diagnosis}
        assert len(known) <= 1, names
        assert len({class_key(name) for name in names if name not in ("True", "TRUE")}) == 1


# Imports ----------------------------------------------------------------------------------------------------------


def make_table(root: Path, labels: list[str], *, split: str = "") -> Path:
    """Write a picture per label and a table of them, in the order of the labels."""
    header = f"image,label{',given_split' * bool(split)}\n"
    rows = [f'{i}.png,"{label}"{f",{split}" * bool(split)}\n' for i, label in enumerate(labels)]
    for i in range(len(labels)):
        save_noise(root / f"{i}.png", i)
    (root / "t.csv").write_text(header + "".join(rows), encoding="utf-8")
    return root


def bring(
    root: Path, layout: str = "csv", malignancy: dict[str, str] | None = None, **options: Any
) -> ImportOutcome:
    given = malignancy or {}
    return import_dataset(
        layout, root, out=root.parent / "out", malignancy=given, options=ImportOptions(**options)
    )


def notes(outcome: ImportOutcome, code: str) -> list[str]:
    return [note["text"] for note in outcome.dataset.notes["warnings"] if note["code"] == code]


def malignancy_of(outcome: ImportOutcome) -> dict[str, str]:
    return {item.name: item.malignancy for item in outcome.dataset.classes}


def test_numbers_written_in_two_ways_are_two_classes_not_four(tmp_path: Path) -> None:
    outcome = bring(make_table(tmp_path / "src", ["0", "1", "0.0", "1.0"] * 3), malignancy={"1.0": "malignant"})
    assert outcome.dataset.manifest["label"].value_counts().to_dict() == {"0": 6, "1": 6}
    assert malignancy_of(outcome) == {"0": "benign", "1": "malignant"}
    assert notes(outcome, "spellings") == [
        "Taken for one class, called '0': '0' (3) and '0.0' (3); --as-written keeps them apart.",
        "Taken for one class, called '1': '1' (3) and '1.0' (3); --as-written keeps them apart.",
    ]
    assert outcome.dataset.notes["class_labels"] == {"0": ["0", "0.0"], "1": ["1", "1.0"]}


def test_the_most_frequent_spelling_names_the_class(tmp_path: Path) -> None:
    labels = ["Naevus", "nevus", "nevus", "nv", "basal_cell_carcinoma", "Basal cell carcinoma", "melanoma in situ"]
    outcome = bring(make_table(tmp_path / "src", [*labels, "basal_cell_carcinoma", "Melanoma"]))
    assert outcome.dataset.class_names == ("basal_cell_carcinoma", "Melanoma", "melanoma in situ", "nevus")
    [text] = notes(outcome, "subtypes")
    assert text == (
        "Classes of one diagnosis stay apart: 'Melanoma' and 'melanoma in situ'; if they are one to you, merge them, "
        'such as --merge "melanoma in situ=Melanoma".'
    )


def test_folders_of_one_class_are_joined_also_beside_each_other(tmp_path: Path) -> None:
    for i, name in enumerate(("basal_cell_carcinoma", "Basal cell carcinoma", "nevus", "naevus ", "1", "1.0")):
        for split in ("train", "test")[i % 2 :]:
            save_noise(tmp_path / "src" / split / name / f"{i}.png", i)
    outcome = bring(tmp_path / "src", "folder")
    assert outcome.dataset.class_names == ("1", "basal_cell_carcinoma", "nevus")  # as training spells it
    assert outcome.dataset.manifest["label"].value_counts().to_dict() == dict.fromkeys(
        outcome.dataset.class_names, 3
    )
    assert len(notes(outcome, "spellings")) == 3


def test_as_written_keeps_every_spelling(tmp_path: Path) -> None:
    outcome = bring(make_table(tmp_path / "src", ["nevus", "Naevus", "0", "0.0"]), as_written=True)
    assert outcome.dataset.class_names == ("0", "0.0", "Naevus", "nevus")
    assert not notes(outcome, "spellings")


def test_classes_are_merged_renamed_and_dropped_as_asked(tmp_path: Path) -> None:
    labels = ["mel", "bcc", "scc", "nv", "NV", "df", "unsure", "vasc"]
    outcome = bring(
        make_table(tmp_path / "src", labels),
        merge={"mel": "cancer", "bcc": "cancer", "scc": "cancer", "df": "Naevus"},
        rename={"nv": "benign mole"},
        drop=["UNSURE", "vasc"],
    )
    counts = outcome.dataset.manifest["label"].value_counts().to_dict()
    assert counts == {"cancer": 3, "benign mole": 3}
    assert malignancy_of(outcome) == {"benign mole": "benign", "cancer": "malignant"}  # as all of their labels are
    assert not notes(outcome, "unknown_class")
    assert notes(outcome, "dropped_class") == [
        "Left out, as asked: class 'unsure'.", "Left out, as asked: class 'vasc'."
    ]  # fmt: skip
    assert "Merged into one class, 'cancer', as asked: 'bcc' (1) and 'mel' (1) and 'scc' (1)." in notes(
        outcome, "merged_classes"
    )
    assert not outcome.rejected


def test_benign_and_malignant_images_in_one_class_are_a_warning(tmp_path: Path) -> None:
    outcome = bring(make_table(tmp_path / "src", ["mel", "nv", "df"]), merge={"mel": "nv"})
    [text] = notes(outcome, "opposite_classes")
    assert text.startswith("'nv' now holds malignant images (mel) and benign ones (nv)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge": {"nevi2": "mel"}}, "--merge nevi2: there is no class 'nevi2'"),
        ({"merge": {"nv": "nevus-like"}}, "there is no class 'nevus-like' to merge with"),
        ({"merge": {"nv": "df", "df": "mel"}}, "df is merged itself"),
        ({"rename": {"nv": "Melanoma"}}, "a class is called 'mel'"),
        ({"rename": {"nv": "x", "df": "x"}}, "needs a name of its own"),
        ({"drop": ["bcc"]}, "--drop bcc: there is no class 'bcc'"),
        ({"drop": ["nv"], "merge": {"nv": "mel"}}, "is merged or renamed too"),
    ],
)
def test_a_class_that_is_not_there_ends_the_import(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    root = make_table(tmp_path / "src", ["mel", "nv", "df"])
    with pytest.raises(UsageError, match=message):
        bring(root, **options)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_all_classes_dropped_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every class was dropped"):
        bring(make_table(tmp_path / "src", ["mel"]), drop=["mel"])


def test_the_command_takes_classes_by_any_of_their_names(tmp_path: Path, cli: Cli) -> None:
    root = make_table(tmp_path / "src", ["Naevus", "nevus", "mel", "df", "x"])
    done = cli(
        "import", "csv", root, "--out", tmp_path / "ds", "--merge", "df=nevus", "--rename", "mel=MM", "--drop", "x"
    )
    assert done.returncode == 0, done.stderr
    assert "Taken for one class, called 'Naevus': 'Naevus' (1) and 'nevus' (1)" in done.stdout
    assert "Class 'mel' is called 'MM', as asked." in done.stdout
    assert "Left out, as asked: class 'x'." in done.stdout
    wrong = cli("import", "csv", root, "--out", tmp_path / "ds2", "--merge", "nevus")
    assert wrong.returncode == 2
    assert "not of the form A=B" in wrong.stderr


@pytest.mark.parametrize(("codes", "expected"), [("1212", "indeterminate"), ("0101", "benign")])
def test_scores_are_no_malignancy(tmp_path: Path, codes: str, expected: str) -> None:
    """A column `malignancy` of 1 and 2 is a score or a code; only one of nothing but 0 and 1 says what is malignant."""
    root = make_table(tmp_path / "src", ["x", "y"] * 2)
    rows = [f"{i}.png,{'xy'[i % 2]},{code}\n" for i, code in enumerate(codes)]
    (root / "t.csv").write_text("image,label,malignancy\n" + "".join(rows))
    assert malignancy_of(bring(root))["x"] == expected


# Tables of predictions --------------------------------------------------------------------------------------------

N = 40


def made_predictions(labels: list[str], columns: list[str]) -> pd.DataFrame:
    """Return a table whose most probable column is right in three of four rows."""
    p = np.full((N, len(columns)), 0.1 / (len(columns) - 1))
    answers = [(i % len(columns) + (i % 4 == 0)) % len(columns) for i in range(N)]
    p[np.arange(N), answers] = 0.9
    table = pd.DataFrame(
        {"image": [f"i{i}" for i in range(N)], "label": [labels[i % len(labels)] for i in range(N)]}
    )
    return table.join(pd.DataFrame(p, columns=columns))


def test_float_labels_mean_the_columns_of_integers(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    made_predictions(["0.0", "1.0"], ["p_0", "p_1"]).to_csv(file, index=False)
    folder = evaluate_foreign(
        file, dataset=None, out=tmp_path / "o", progress=Progress(), malignancy={"1": "malignant"}
    )
    figures = RunFolder(folder).metrics["splits"]["test"]["metrics"]
    assert figures["accuracy"]["value"] == 0.75
    assert figures["sensitivity"]["n"] == 20


def test_labels_of_one_class_are_joined_and_its_columns_summed(tmp_path: Path) -> None:
    table = made_predictions(["Naevus", "melanoma", "nevus", "Melanoma"], ["nevus", "melanoma"])
    table["p_nevus"], table["p_Naevus"], table["p_mel"] = (
        table["nevus"] / 4,
        table["nevus"] * 0.75,
        table["melanoma"],
    )
    file = tmp_path / "t.csv"
    table.drop(columns=["nevus", "melanoma"]).to_csv(file, index=False)
    read = read_foreign_table(file, None)
    assert list(read.probabilities) == ["nevus", "mel"]
    np.testing.assert_allclose(read.probabilities["nevus"], table["nevus"])
    assert read.labels is not None
    assert set(read.labels) == {"nevus", "mel"}
    assert "Columns of one class were summed: nevus + Naevus." in read.notes
    assert any("Labels taken for one class" in note for note in read.notes)


def test_a_data_set_takes_labels_and_columns_in_other_spellings(tmp_path: Path) -> None:
    dataset = bring(make_table(tmp_path / "src", ["basal_cell_carcinoma", "Nevus"] * (N // 2))).dataset
    table = made_predictions(["BCC", "naevus"], ["p_Basal Cell Carcinoma", "p_nevi"])
    table["image"] = [f"{i}.png" for i in range(N)]
    table.to_csv(tmp_path / "t.csv", index=False)
    folder = evaluate_foreign(tmp_path / "t.csv", dataset=dataset, out=tmp_path / "o", progress=Progress())
    metrics = RunFolder(folder).metrics
    assert metrics["classes"] == ["basal_cell_carcinoma", "Nevus"]
    assert metrics["splits"]["test"]["metrics"]["accuracy"]["value"] == 0.75


def test_labels_of_subtypes_never_become_one_class(tmp_path: Path) -> None:
    table = made_predictions(["melanoma", "nevus", "melanoma in situ", "nevus"], ["p_melanoma", "p_nevus"])
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="label 'melanoma in situ' is not a class"):
        evaluate_foreign(tmp_path / "t.csv", dataset=None, out=tmp_path / "o", progress=Progress())


def test_a_model_of_subtypes_maps_by_name_and_is_not_called_after_one_of_them() -> None:
    model = [classify_label(name) for name in ("nodular melanoma", "acral melanoma", "nevus")]
    same = default_mapping(model, [classify_label(name) for name in ("Acral_Melanoma", "naevus")])
    assert same.data == {"Acral_Melanoma": "acral melanoma", "naevus": "nevus"}
    assert [target.name for target in same.targets] == ["nodular melanoma", "acral melanoma", "nevus"]
    coarse = default_mapping(model, [classify_label(name) for name in ("mel", "nv")])
    assert coarse.model == {"nodular melanoma": "melanoma", "acral melanoma": "melanoma", "nevus": "nevus"}
    assert coarse.data == {"mel": "melanoma", "nv": "nevus"}
    numbers = default_mapping(
        [classify_label("0"), classify_label("1")], [classify_label("0.0"), classify_label("1.0")]
    )
    assert numbers.data == {"0.0": "0", "1.0": "1"}


@pytest.mark.parametrize("names", [("X", "X "), ("X", "x"), ("melanoma", "MEL")])
def test_two_classes_do_not_become_one_by_two_new_names(names: tuple[str, str]) -> None:
    options = ImportOptions(rename=dict(zip(("a", "b"), names, strict=True)))
    with pytest.raises(UsageError, match="needs a name of its own") as refused:
        _renames(["a", "b", "c"], options)
    assert "--merge" in refused.value.remedy
    swapped = _renames(["a", "b", "c"], ImportOptions(rename={"a": "b", "b": "a"}))
    assert swapped == {"a": "b", "b": "a"}
