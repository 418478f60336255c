"""DA070 to DA072: a known set is told by its content, whatever its folders, order and name say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermkit.audit.checks.finding import AuditInput, Finding, Outcome, Severity, read_check_card
from dermkit.audit.checks.identity import da070_known_set, da071_name_and_content, da072_contains_known_set
from dermkit.data.diagnoses import classify_label
from dermkit.data.known_datasets import KNOWN_DATASETS, KnownDataset
from dermkit.data.manifest import MANIFEST_COLUMNS, Dataset

HAM = next(item for item in KNOWN_DATASETS if item.key == "ham10000")


def rows_of(known: KnownDataset, first: int = 24306) -> pd.DataFrame:
    """Return manifest rows with the counts of a known set and ISIC ids from `first` on."""
    labels = [label for classes in known.counts.values() for label, n in classes.items() for _ in range(n)]
    ids = [f"ISIC_{first + i:07d}" for i in range(len(labels))]
    return manifest(labels, ids)


def manifest(labels: list[str], ids: list[str], folder: str = "any") -> pd.DataFrame:
    frame = pd.DataFrame("", index=range(len(labels)), columns=list(MANIFEST_COLUMNS))
    paths = [f"{folder}/{i % 5}/{name}.jpg" for i, name in enumerate(ids)]
    return frame.assign(label=labels, path=paths, image_id=[path[:-4] for path in paths], isic_id=ids)


def audit_input(frame: pd.DataFrame, name: str = "mine", folder: str = "mine") -> AuditInput:
    frame = frame.reset_index(drop=True)
    classes = tuple(map(classify_label, sorted(frame["label"].unique())))
    dataset = Dataset(Path("/nowhere") / folder, Path("/nowhere/images"), name, classes, frame, "folder")
    return AuditInput(
        dataset=dataset, frame=frame.assign(split=frame["given_split"]), measures=pd.DataFrame(index=frame.index),
        pairs=pd.DataFrame(), group_ids=np.arange(len(frame)),
    )  # fmt: skip


def found(outcome: Outcome) -> Finding:
    assert isinstance(outcome, Finding)
    return outcome


@pytest.fixture(scope="module")
def ham() -> pd.DataFrame:
    return rows_of(HAM)


def test_shuffled_in_other_folders_with_rows_missing_it_is_still_ham10000(ham: pd.DataFrame) -> None:
    frame = ham.sample(frac=1, random_state=1).iloc[:-12]
    finding = found(da070_known_set(audit_input(frame)))
    assert finding.severity is Severity.NOTE
    assert finding.sentence.startswith("This is HAM10000 with 12 images missing.")
    assert finding.n == finding.figures["n_images"] == 10003
    assert finding.figures["n_missing"] == 12
    texts = finding.rows.groupby("fact")["text"].agg(list)
    assert texts["known defect"] == list(HAM.defects)
    assert texts["licence"] == [HAM.licence]


def test_a_thousand_of_its_images_are_a_part(ham: pd.DataFrame) -> None:
    finding = found(da070_known_set(audit_input(ham.sample(1000, random_state=2))))
    assert "a part of HAM10000: 1,000 of its 10,015 images" in finding.sentence


def test_a_set_of_ones_own_is_nobody_s(ham: pd.DataFrame) -> None:
    mine = audit_input(manifest(["nevus", "melanoma"] * 20, [f"clinic_{i}" for i in range(40)]), name="my ward")
    assert da070_known_set(mine) is None
    assert da071_name_and_content(mine) is None
    assert da072_contains_known_set(mine) is None


def test_a_wrong_set_under_a_right_name_is_told(ham: pd.DataFrame) -> None:
    isic9 = next(item for item in KNOWN_DATASETS if item.key == "isic9")
    finding = found(da071_name_and_content(audit_input(rows_of(isic9, first=5_000_000), name="HAM10000")))
    assert finding.severity is Severity.WARNING
    assert "recognised as Skin cancer, nine classes" in finding.sentence
    assert set(finding.rows.columns) == {"set", "class", "images_here", "images_published"}
    row = finding.rows.set_index("class").loc["nevus"]
    assert (row["images_here"], row["images_published"]) == (373, 6705)
    assert da071_name_and_content(audit_input(ham, name="HAM-10000")) is None
    assert da071_name_and_content(audit_input(ham, name="isic2018 training")) is None  # whose images these are
    assert da071_name_and_content(audit_input(ham.head(500), name="ham10000")) is None


def test_a_set_of_ones_own_under_a_known_name_is_told() -> None:
    frame = manifest(["nevus", "lichen"] * 20, [f"clinic_{i}" for i in range(40)])
    finding = found(da071_name_and_content(audit_input(frame, name="data", folder="ham10000")))
    assert finding.severity is Severity.WARNING
    assert "no class lichen" in finding.sentence
    assert "only 0 % of the files are named as there" in finding.sentence


def test_a_name_that_the_content_cannot_confirm_is_a_note() -> None:
    frame = manifest(["benign", "malignant"] * 20, [f"ISIC_{7_000_000 + i}" for i in range(40)])
    finding = found(da071_name_and_content(audit_input(frame, name="isic2020 sample")))
    assert finding.severity is Severity.NOTE
    assert "cannot confirm" in finding.sentence


def test_images_of_another_known_set_are_counted(ham: pd.DataFrame) -> None:
    own = manifest(["nv", "mel"] * 100, [f"ISIC_{7_000_000 + i}" for i in range(200)])
    guests = ham[ham["label"].isin(["nv", "mel"])].groupby("label").head(50)
    finding = found(da072_contains_known_set(audit_input(pd.concat([own, guests]))))
    assert finding.severity is Severity.NOTE
    assert finding.n == 100
    assert finding.per_class == {"mel": 50, "nv": 50}
    assert finding.rows["isic_id"].tolist() == guests["isic_id"].tolist()
    assert "100 of 300 images (33.3 %" in finding.sentence
    assert da072_contains_known_set(audit_input(own)) is None
    assert da072_contains_known_set(audit_input(ham)) is None  # itself


def test_a_class_from_another_archive_than_its_opposite_is_a_warning(ham: pd.DataFrame) -> None:
    own = manifest(["mel"] * 60, [f"ISIC_{7_000_000 + i}" for i in range(60)])
    finding = found(da072_contains_known_set(audit_input(pd.concat([own, ham[ham["label"] == "nv"].head(60)]))))
    assert finding.severity is Severity.WARNING
    assert "They separate the classes: 0 of 60 mel, but 60 of 60 nv." in finding.sentence
    assert finding.figures["contained_sets"][0]["class_gap"] > 0.8


@pytest.mark.parametrize("check", [da070_known_set, da071_name_and_content, da072_contains_known_set])
def test_every_check_has_a_card(check: object) -> None:
    read = read_check_card(check)  # type: ignore[arg-type]
    assert read.code in ("DA070", "DA071", "DA072")
    assert all((read.title, read.threshold, read.severity, read.effect))


def test_a_set_that_was_recognised_and_cleaned_here_is_not_accused() -> None:
    frame = manifest(["nevus", "lichen"] * 20, [f"clinic_{i}" for i in range(40)])
    subject = audit_input(frame, name="HAM10000")
    assert da071_name_and_content(subject) is not None
    sha256 = subject.dataset.manifest_sha256
    for notes, is_accused in (
        ({"known": "ham10000", "cleanings": [{"to_manifest_sha256": sha256}]}, False),
        ({"known": "ham10000", "imported_manifest_sha256": sha256}, False),  # with --merge, --rename or --drop
        ({"known": "ham10000", "cleanings": [{"to_manifest_sha256": "0" * 64}]}, True),  # changed by hand since
        ({"known": "isic9", "cleanings": [{"to_manifest_sha256": sha256}]}, True),
    ):
        dataset = replace(subject.dataset, notes=notes)
        finding = da071_name_and_content(replace(subject, dataset=dataset))
        assert (finding is not None) == is_accused, notes
