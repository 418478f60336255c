"""Columns that give the label away, and licences against the planned use."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit_inputs import make_subject
from dermkit.audit.checks.finding import Finding, NotApplicable, PlannedUse, Severity, read_check_card
from dermkit.audit.checks.licences import read_licences, strictest
from dermkit.audit.checks.provenance import da060_label_leaking_columns, da061_licence_forbids
from dermkit.data.importers.run import import_dataset
from dermkit.data.importers.table_rows import ImportOptions

HAM = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]


def test_a_leaking_column_in_the_source_is_a_note() -> None:
    notes = {"columns": HAM, "columns_used": ["lesion_id", "image_id", "dx", "age", "sex", "localization"]}
    found = da060_label_leaking_columns(make_subject(["nv", "mel"], notes=notes))
    assert isinstance(found, Finding)
    assert (found.severity, found.n, found.kind) == (Severity.NOTE, 2, "table")
    assert found.rows["column"].tolist() == ["dx_type"]
    assert "dx_type (how the diagnosis was confirmed); the manifest left that out" in found.sentence


def test_a_leaking_column_in_the_manifest_is_a_warning() -> None:
    notes = {"columns": HAM, "columns_used": ["dx", "dx_type"]}
    found = da060_label_leaking_columns(make_subject(["nv"], notes=notes))
    assert isinstance(found, Finding)
    assert found.severity == Severity.WARNING
    assert found.rows.to_dict("records") == [
        {"column": "dx_type", "reveals": "how the diagnosis was confirmed", "in_manifest": True}
    ]


def test_names_are_read_in_any_spelling() -> None:
    notes = {"columns": ["isic_id", "Diagnosis Confirm-Type", "benign_malignant", "age"]}
    found = da060_label_leaking_columns(make_subject(["nv"], notes=notes))
    assert isinstance(found, Finding)
    assert found.severity == Severity.NOTE
    assert found.rows["column"].tolist() == ["Diagnosis Confirm-Type", "benign_malignant"]


@pytest.mark.parametrize("is_given", [False, True])
def test_an_import_says_which_columns_its_manifest_holds(tmp_path: Path, is_given: bool) -> None:
    """The check reads what the importer writes: the label is no leak, the way of confirming it is one if it is used."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    (tmp_path / "table.csv").write_text("image,dx,dx_type\na.png,nv,histo\n")
    columns = {"source": "dx_type"} if is_given else {}
    options = ImportOptions(columns={"image": "image", "label": "dx", **columns})
    notes_of_import = import_dataset("csv", tmp_path, out=tmp_path / "out", options=options).dataset.notes
    notes = {key: notes_of_import[key] for key in ("columns", "columns_used")}
    found = da060_label_leaking_columns(make_subject(["nv"], notes=notes))
    assert isinstance(found, Finding)
    assert found.rows["column"].tolist() == ["dx_type"]
    assert found.severity == (Severity.WARNING if is_given else Severity.NOTE)


def test_harmless_columns_and_no_columns() -> None:
    notes = {"columns": ["image", "label", "age", "sex", "patient_id", "dx"], "columns_used": ["dx", "age"]}
    assert da060_label_leaking_columns(make_subject(["nv"], notes=notes)) is None
    assert isinstance(da060_label_leaking_columns(make_subject(["nv"])), NotApplicable)
    assert isinstance(da060_label_leaking_columns(make_subject(["nv"], notes={"columns": []})), NotApplicable)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("CC0", ["CC0"]), ("CC-0", ["CC0"]), ("Public Domain", ["CC0"]),
        ("https://creativecommons.org/publicdomain/zero/1.0/", ["CC0"]),
        ("CC-BY", ["CC BY"]), ("Attribution 4.0 International", ["CC BY"]), ("CC BY-SA 4.0", ["CC BY-SA"]),
        ("CC-BY-NC", ["CC BY-NC"]), ("cc by nc sa 4.0", ["CC BY-NC-SA"]), ("CC BY-ND", ["CC BY-ND"]),
        ("Creative Commons Attribution-NonCommercial 4.0 International", ["CC BY-NC"]),
        ("Creative Commons Attribution Non Commercial No Derivatives", ["CC BY-NC-ND"]),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", ["CC BY-NC-ND"]),
        ("CC0, CC BY or CC BY-NC, image by image (see the archive)", ["CC0", "CC BY", "CC BY-NC"]),
        ("CC BY-NC 4.0 or CC BY-NC-SA 4.0 (sources differ)", ["CC BY-NC", "CC BY-NC-SA"]),
        ("for non-commercial use only", ["non-commercial"]), ("All rights reserved.", ["all rights reserved"]),
        ("", ["unknown"]), ("provided by the clinic", ["unknown"]), ("attribution required", ["unknown"]),
    ],
)  # fmt: skip
def test_licences_are_read_as_data_sets_write_them(text: str, names: list[str]) -> None:
    assert [item.name for item in read_licences(text)] == names


@pytest.mark.parametrize(
    ("text", "research", "commercial", "redistribution"),
    [
        ("CC0", "allowed", "allowed", "allowed"),
        ("CC BY-NC", "allowed", "forbidden", "allowed"),
        ("CC BY-NC-ND", "allowed", "forbidden", "forbidden"),
        ("CC BY or CC BY-NC", "allowed", "forbidden", "allowed"),
        ("all rights reserved", "unknown", "forbidden", "forbidden"),
        ("mine", "unknown", "unknown", "unknown"),
    ],
)
def test_the_strictest_licence_counts(text: str, research: str, commercial: str, redistribution: str) -> None:
    found = read_licences(text)
    assert strictest(found, "research") == research
    assert strictest(found, "commercial") == commercial
    assert strictest(found, "redistribution") == redistribution


LICENCES = ["CC0", "CC BY-NC", "CC BY or CC BY-NC", ""]


@pytest.mark.parametrize(
    ("use", "licences", "severity", "n"),
    [
        ("commercial", LICENCES, Severity.WARNING, 3),
        ("research", LICENCES, Severity.NOTE, 1),
        ("commercial", ["CC0"] * 4, None, 0),
        ("research", ["CC BY-NC"] * 4, None, 0),
        ("redistribution", ["CC BY-NC-ND", *["CC0"] * 3], Severity.WARNING, 1),
    ],
)
def test_the_planned_use_decides(use: PlannedUse, licences: list[str], severity: Severity | None, n: int) -> None:
    found = da061_licence_forbids(make_subject(["nv"] * 4, manifest={"licence": licences}, use=use))
    if severity is None:
        assert found is None
        return
    assert isinstance(found, Finding)
    assert (found.severity, found.n, len(found.rows)) == (severity, n, n)


def test_the_sentence_counts_each_licence() -> None:
    audit_input = make_subject(["nv"] * 4, manifest={"licence": LICENCES}, use="commercial")
    found = da061_licence_forbids(audit_input)
    assert isinstance(found, Finding)
    assert found.sentence == (
        "Planned use, commercial: CC BY-NC on 1 image (forbids it), CC BY or CC BY-NC on 1 image (may forbid it), "
        "no known licence on 1 image (none is recorded) and CC0 on 1 image (allows it)."
    )
    assert found.rows["verdict"].tolist() == ["forbidden", "forbidden", "unknown"]


def test_cards_can_be_read() -> None:
    assert [read_check_card(check).code for check in (da060_label_leaking_columns, da061_licence_forbids)] == [
        "DA060",
        "DA061",
    ]
