"""What import, audit and predict say of refusals, of names, and of classes that a cleaning left too small."""

from pathlib import Path

import pandas as pd
import pytest
import typer

from conftest import Invoke
from dermkit.audit.cleaning import SMALL_CLASS
from dermkit.cli.console import exit_with_refused
from dermkit.data import known_datasets
from dermkit.data.importers.run import import_dataset
from dermkit.data.manifest import MANIFEST_COLUMNS, load_dataset
from dermkit.data.rejection_texts import REASON_TEXTS, count_reasons, rejection_lines
from dermkit.data.small_classes import shrunken_class_texts
from dermkit.errors import RejectionReason
from made_images import speckled


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    speckled(seed=seed).save(path)
    return path


def test_refusals_are_counted_once_per_reason_and_rows_without_a_file_come_first() -> None:
    reasons = ["broken", "broken", "truncated", "no_metadata", "missing", "missing", "missing"]
    assert count_reasons(reasons) == [("missing", 3), ("no_metadata", 1), ("broken", 2), ("truncated", 1)]
    assert rejection_lines(["missing"]) == [
        "  1 missing: no file is there; to do: check the paths, or download it again"
    ]


def test_every_reason_has_a_meaning_and_an_advice() -> None:
    named = [
        line.split('"')[1]
        for path in (Path(known_datasets.__file__).parent / "importers").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("REASON_")
    ]
    assert len(named) >= 7
    assert {*named, *map(str, RejectionReason)} == set(map(str, REASON_TEXTS))


def test_one_refused_image_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    for reasons, expected in (
        (["empty"], "1 image was refused and is"),
        (["empty"] * 2, "2 images were refused and are"),
    ):
        with pytest.raises(typer.Exit):
            exit_with_refused(reasons, Path("refused.csv"))
        assert capsys.readouterr().err.startswith(f"{expected} listed in refused.csv")


def test_import_and_predict_tell_what_was_refused_and_what_to_do(
    tmp_path: Path, trained: Path, invoke: Invoke
) -> None:
    for seed in range(3):
        draw(tmp_path / "src" / "nevus" / f"{seed}.png", seed)
    whole = (tmp_path / "src" / "nevus" / "0.png").read_bytes()
    (tmp_path / "src" / "nevus" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "src" / "nevus" / "empty.png").write_bytes(b"")
    code, _, said = invoke("import", "folder", tmp_path / "src", "--out", tmp_path / "ds")
    assert code == 7
    assert "2 images were refused" in said
    assert "1 truncated: cut short; to do: download or copy it again" in said
    code, _, said = invoke("predict", trained, tmp_path / "src", tmp_path / "gone.png", "--out", tmp_path / "p")
    assert code == 7
    assert "1 missing: no file is there; to do: check the paths" in said
    assert "1 empty: it has no bytes; to do: download or copy it again" in said


# Names ---------------------------------------------------------------------------------------------------------------


def test_a_data_set_is_called_as_its_folder_and_what_it_looks_like_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "src"
    for seed in range(4):
        draw(source / ("nevus" if seed % 2 else "melanoma") / f"{seed}.png", seed)
    known = next(known for known in known_datasets.KNOWN_DATASETS if known.key == "melanoma10k")
    monkeypatch.setattr("dermkit.data.importers.run.recognise", lambda _frame: known)
    dataset = import_dataset("folder", source, out=tmp_path / "my moles").dataset
    assert dataset.name == "my moles"
    notes = {note["code"]: note["text"] for note in dataset.notes["warnings"]}
    assert notes["known_set"].startswith("Looks like ") and "melanoma10k" in notes["known_set"]


# Classes that are too small ------------------------------------------------------------------------------------------


def rows(counts: dict[str, int]) -> pd.DataFrame:
    labels = [label for label, n in counts.items() for _ in range(n)]
    ids = [f"{label}{number}" for number, label in enumerate(labels)]
    frame = pd.DataFrame("", index=range(len(labels)), columns=list(MANIFEST_COLUMNS))
    return frame.assign(image_id=ids, path=ids, label=labels, pixel_sha256=[f"{n:064x}" for n in range(len(ids))])


def test_a_class_that_a_cleaning_left_too_small_is_named_with_the_flags() -> None:
    before = rows({"df": 9, "mel": 40, "nv": 50, "vasc": 2})
    after = pd.concat([rows({"df": 2}), before[before["label"].isin(["nv", "vasc"])], rows({"mel": 9})])
    after = after.reset_index(drop=True).assign(pixel_sha256=[f"{n:064x}" for n in range(63)])
    texts = dict(zip(("df", "mel"), shrunken_class_texts(before, after), strict=True))
    assert texts["df"] == (
        "Class df has 2 images of 2 lesions left, of 9 images before the cleaning: too few to be divided into "
        'training, validation and test; import it again, into a new folder, with --drop "df", or with '
        '--merge "df=OTHER".',
        2,
    )
    assert "too few to be learnt or judged" in texts["mel"][0]  # vasc was as small before, and nv lost nothing


def test_audit_says_so_and_the_data_set_keeps_it(tmp_path: Path, invoke: Invoke) -> None:
    source = tmp_path / "src"
    for seed in range(12):
        draw(source / "nevus" / f"{seed}.png", seed)
    for seed in (20, 21, 22, 0, 1):  # two of them are nevi under another name
        draw(source / "melanoma" / f"{seed}.png", seed)
    invoke("import", "folder", source, "--out", tmp_path / "ds")
    _, out, said = invoke("audit", tmp_path / "ds", "--clean")
    assert "Class melanoma has 3 images of 3 lesions left, of 5" in " ".join((out + said).split())
    assert '--drop "melanoma"' in " ".join((out + said).split())
    assert SMALL_CLASS in [warning["code"] for warning in load_dataset(tmp_path / "ds").notes["warnings"]]
