"""A second import into the same folder undoes nothing that a person made, and nothing while somebody reads it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import dermkit as dk
from dermkit.audit.run import AuditOutcome
from dermkit.data.importers.run import ImportOutcome, import_dataset
from dermkit.data.importers.table_rows import ImportOptions
from dermkit.data.manifest import load_dataset
from dermkit.data.readers import reading
from dermkit.data.split import division_bytes, load_split, tables_by_fold
from dermkit.data.staging import STAGING_FOLDER, finish_changes
from dermkit.errors import DataError, OutputError, UsageError
from dermkit.files import sha256_file
from dermkit.recipes.schema import parse_split_spec
from made_images import speckled

NAMES = [f"{label}/{number}.png" for label in ("nevus", "melanoma") for number in range(6)]


def draw_noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    speckled(seed=seed).save(path)


def make_source(root: Path) -> Path:
    """Draw 12 images, and a copy of one of them under the same label and of one under the other."""
    for seed, name in enumerate(NAMES):
        draw_noise(root / name, seed=seed)
    draw_noise(root / "nevus" / "copy.png", seed=0)
    draw_noise(root / "melanoma" / "contradiction.png", seed=1)
    return root


def again(source: Path, **options: object) -> ImportOutcome:
    return import_dataset("folder", source, out=source.parent / "ds", **options)  # type: ignore[arg-type]


def clean(source: Path, *codes: str) -> AuditOutcome:
    return dk.audit_dataset(load_dataset(source.parent / "ds"), clean=True, accept=codes)


def make_split(folder: Path, name: str, *, seal: bool = False) -> Path:
    spec = parse_split_spec(scheme="holdout", seed=0, validation=0.2, test=0.3, folds=0, per_class=0, draw_from="")
    dk.split(load_dataset(folder), spec, name=name, seal=seal)
    return folder / "splits" / f"{name}.csv"


def contents(folder: Path) -> dict[str, str]:
    """Return relative path -> hash of every visible file."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part[0] == "." for part in path.relative_to(folder).parts)
    }


def test_a_cleaned_manifest_stays_where_the_source_is_the_same(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    assert len(again(source).dataset.manifest) == 14
    # By hand: the copy goes, and both images that share pixels under two labels.
    cleaned = clean(source).dataset
    assert len(cleaned.manifest) == 11
    before = contents(tmp_path / "ds")
    outcome = again(source)
    assert contents(tmp_path / "ds") == before
    assert len(outcome.dataset.manifest) == 11
    assert outcome.retained[0].startswith("the cleaning of ") and "3 rows dropped" in outcome.retained[0]


def test_an_import_that_would_undo_something_is_refused_and_says_what(tmp_path: Path) -> None:
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source)
    clean(source, "DA002")
    make_split(folder, "mine")
    make_split(folder, "locked", seal=True)
    make_split(folder, "holdout-0123abcd")  # as `train` names the split of a recipe: it is made again by itself
    before = contents(folder)
    draw_noise(source / "nevus" / "new.png", seed=99)
    with pytest.raises(UsageError) as caught:
        again(source)
    assert contents(folder) == before
    for text in ("the cleaning of", "the split mine", "the sealed split locked", "15 images", "11 images"):
        assert text in caught.value.message
    assert "holdout-0123abcd" not in caught.value.message
    assert "--replace" in caught.value.remedy


def test_replace_keeps_what_it_undoes(tmp_path: Path) -> None:
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source)
    clean(source)
    old = {name: sha256_file(folder / name) for name in ("manifest.csv", "dataset.json", "audit/dropped.csv")}
    outcome = again(source, replace_earlier=True)
    assert len(outcome.dataset.manifest) == 14
    assert "cleanings" not in load_dataset(folder).notes
    backup = folder / "audit" / "before-import"
    assert {name: sha256_file(backup / Path(name).name) for name in old} == old
    assert not (folder / "audit" / "dropped.csv").exists()
    before = contents(folder)
    again(source, replace_earlier=True)  # nothing is left to undo, so no second backup
    assert contents(folder) == before


def test_acceptances_stay_valid_where_the_manifest_is_the_same(tmp_path: Path) -> None:
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source)
    findings = dk.audit_dataset(load_dataset(folder)).findings
    code = next(found.card.code for found in findings if found.is_open_error)
    dk.audit_dataset(load_dataset(folder), accept=[code])
    again(source)
    accepted = [found for found in dk.audit_dataset(load_dataset(folder)).findings if found.acceptance]
    assert [found.card.code for found in accepted] == [code]


def test_corrections_by_hand_stay_or_the_import_is_refused(tmp_path: Path) -> None:
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source)
    manifest = folder / "manifest.csv"
    manifest.write_text(
        manifest.read_text().replace("nevus/3,nevus/3.png,nevus,,", "nevus/3,nevus/3.png,nevus,L7,")
    )
    corrected = sha256_file(manifest)
    assert again(source).retained == ("changes of manifest.csv by hand",)
    assert sha256_file(manifest) == corrected
    (source / "nevus" / "5.png").unlink()
    with pytest.raises(UsageError, match=r"changes of manifest\.csv by hand"):
        again(source)
    assert sha256_file(manifest) == corrected


def test_malignancies_and_a_name_given_once_stay(tmp_path: Path) -> None:
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source, malignancy={"nevus": "malignant"})
    again(source)
    classes = {lesion_class.name: lesion_class.malignancy for lesion_class in load_dataset(folder).classes}
    assert classes == {"nevus": "malignant", "melanoma": "malignant"}
    again(source, malignancy={"nevus": "indeterminate"})
    classes = {lesion_class.name: lesion_class.malignancy for lesion_class in load_dataset(folder).classes}
    assert classes["nevus"] == "indeterminate"
    again(source, replace_earlier=True)
    classes = {lesion_class.name: lesion_class.malignancy for lesion_class in load_dataset(folder).classes}
    assert classes["nevus"] == "benign"


def test_new_images_are_imported_where_nothing_was_made(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    again(source)
    draw_noise(source / "nevus" / "new.png", seed=99)
    outcome = again(source)
    assert len(outcome.dataset.manifest) == 15
    notes = {note["code"]: note["text"] for note in outcome.dataset.notes["warnings"]}
    assert notes["manifest_replaced"] == "This import replaced an earlier manifest of 14 images by one of 15."


def test_a_merge_is_not_undone_unasked(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    options = ImportOptions(rename={"nevus": "mole"}, drop=("melanoma",))
    assert again(source, options=options).dataset.class_names == ("mole",)
    assert again(source, options=options).retained == ()
    with pytest.raises(UsageError, match="would undo --rename nevus=mole --drop melanoma of the earlier import"):
        again(source)
    assert again(source, replace_earlier=True).dataset.class_names == ("melanoma", "nevus")


def test_a_split_stays_usable(tmp_path: Path) -> None:
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source)
    path = make_split(folder, "mine")
    before = path.read_bytes()
    assert again(source).retained == ("the split mine",)
    assert path.read_bytes() == before
    assert isinstance(load_split(path, load_dataset(folder).manifest).frame, pd.DataFrame)


def test_another_split_of_the_same_name_keeps_the_earlier_one(tmp_path: Path) -> None:
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source)
    path = make_split(folder, "mine")
    before = path.read_bytes()
    make_split(folder, "mine")  # the same one
    assert not (folder / "splits" / "earlier").exists()
    spec = parse_split_spec(scheme="holdout", seed=1, validation=0.2, test=0.3, folds=0, per_class=0, draw_from="")
    note = dk.split(load_dataset(folder), spec, name="mine").notes[-1]
    kept = next((folder / "splits" / "earlier").glob("mine-????????.csv"))
    assert kept.read_bytes() == before != path.read_bytes()
    assert note == f"the other split that was called mine is kept as {kept}; its runs go on with --split {kept}"


def test_folds_that_differ_in_their_validation_parts_alone_are_kept(tmp_path: Path) -> None:
    """The rows of NAME.csv are the same: which part of a fold validates is drawn from NAME.json."""
    again(make_source(tmp_path / "src"))
    dataset = load_dataset(tmp_path / "ds")
    spec = parse_split_spec(scheme="kfold", seed=1, validation=0.1, test=0.0, folds=3, per_class=0, draw_from="")
    first = dk.split(dataset, spec, name="mine")
    identity = division_bytes(first, tables_by_fold(first, dataset.manifest))
    path = dataset.folder / "splits" / "mine.csv"
    before = path.read_bytes()
    for fraction in (0.15, 0.2):  # each a third of the images in a fold, and another part of it
        dk.split(dataset, replace(spec, validation=fraction), name="mine")
    assert path.read_bytes() == before
    kept = sorted((dataset.folder / "splits" / "earlier").glob("mine-????????.csv"))
    loaded = [load_split(copy, dataset.manifest) for copy in kept]
    assert sorted(split.spec.validation for split in loaded if split.spec) == [0.1, 0.15]
    earlier = next(split for split in loaded if split.spec == spec)
    assert division_bytes(earlier, tables_by_fold(earlier, dataset.manifest)) == identity


# Readers ------------------------------------------------------------------------------------------------------------

READER = """
import sys, time
from pathlib import Path
from dermkit.data.manifest import load_dataset
from dermkit.data.readers import reading
with reading(load_dataset(Path(sys.argv[1])), "tune"):
    print("reading", flush=True)
    time.sleep(60)
"""


def test_nothing_is_replaced_while_a_tune_reads_it_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(folder)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    ) as reader:
        try:
            assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
            before = contents(folder)
            again(source)  # the same images: nothing is written
            draw_noise(source / "nevus" / "new.png", seed=99)
            with pytest.raises(OutputError, match=f"is being read by dermkit tune .process {reader.pid} "):
                again(source)
            with pytest.raises(OutputError, match="the cleaning would replace its manifest"):
                clean(source)
            assert {
                name: value for name, value in contents(folder).items() if not name.startswith("audit/")
            } == before
        finally:
            reader.kill()
    assert len(again(source).dataset.manifest) == 15


def test_readers_do_not_exclude_each_other(tmp_path: Path) -> None:
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source)
    draw_noise(source / "nevus" / "new.png", seed=99)
    dataset = load_dataset(folder)
    with reading(dataset, "train"), reading(dataset, "evaluate"), pytest.raises(OutputError, match="dermkit "):
        again(source)
    assert [path.name for path in (folder / ".readers").iterdir() if path.is_dir()] == []
    assert json.loads((folder / "dataset.json").read_text())["counts"]["images"] == 14


def test_a_manifest_that_was_replaced_before_the_mark_was_there_is_noticed(tmp_path: Path) -> None:
    """A command loads the data set, looks for weights and a device, and only then marks that it reads."""
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source)
    loaded = load_dataset(folder)
    with reading(loaded, "train"):
        pass
    draw_noise(source / "nevus" / "new.png", seed=99)
    again(source)
    with pytest.raises(DataError, match="was imported or cleaned anew") as caught, reading(loaded, "train"):
        pytest.fail("the old manifest was read")
    assert caught.value.remedy == "run the same command again"
    assert [path for path in (folder / ".readers").iterdir() if path.is_dir()] == []
    with reading(load_dataset(folder), "train"):
        pass


def test_the_cache_of_a_running_training_is_left_alone(tmp_path: Path) -> None:
    source, folder = make_source(tmp_path / "src"), tmp_path / "ds"
    again(source)
    temporary = folder / "cache" / ".dermkit-tmp-x.seg"
    temporary.parent.mkdir()
    temporary.write_bytes(b"half")
    again(source)
    assert temporary.read_bytes() == b"half"


def test_a_malignancy_that_was_given_does_not_pass_to_another_class_of_that_name(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    (source / "melanoma").rename(source / "kind b")
    (source / "nevus").rename(source / "kind a")
    given = {"kind a": "benign", "kind b": "malignant"}

    def malignancies(**options: object) -> dict[str, str]:
        return {one.name: one.malignancy for one in again(source, **options).dataset.classes}

    assert malignancies(malignancy=given) == given
    assert malignancies() == given  # of the same images: nobody is asked again
    swapped = ImportOptions(rename={"kind a": "kind b", "kind b": "kind a"})
    assert malignancies(options=swapped) == {"kind a": "indeterminate", "kind b": "indeterminate"}


@pytest.mark.parametrize("name", ["a\0b", "\ud800", ".", "../beside.csv", "/beside.csv", "", 5, ["x"]])
@pytest.mark.parametrize("key", ["move", "remove"])
def test_a_list_of_changes_with_names_that_dermkit_never_writes_changes_nothing(
    tmp_path: Path, key: str, name: object
) -> None:
    staging = tmp_path / STAGING_FOLDER
    (staging / "files").mkdir(parents=True)
    content = {"format": 1, "move": [], "remove": [], key: ["manifest.csv", name]}
    (staging / "commit.json").write_text(json.dumps(content))
    (tmp_path / "manifest.csv").write_text("as it was")
    with pytest.raises(DataError, match="not a list of files as dermkit writes it"):
        finish_changes(tmp_path)
    assert (tmp_path / "manifest.csv").read_text() == "as it was"
