"""`audit --clean`: nothing goes without a reason, no picture stands under two labels, no copy is parted by a split."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermkit.audit.checks.finding import AuditInput
from dermkit.audit.cleaning import plan_cleaning
from dermkit.audit.run import AuditOutcome, run_audit
from dermkit.data.groups import connect_rows, id_codes, id_groups
from dermkit.data.manifest import MANIFEST_COLUMNS, Dataset, LesionClass, check_manifest, load_dataset
from dermkit.data.split import make_split, save_split
from dermkit.errors import DataError
from dermkit.files import sha256_file
from dermkit.progress import Progress
from dermkit.recipes.schema import SplitSpec
from planted_audit import CHECKS, Near, looking, make

GIVEN = SplitSpec(scheme="given", seed=0, validation=0.3, test=0.0, folds=0, per_class=0, draw_from="")
CLASSES = tuple(LesionClass(name, "", "benign") for name in ("a", "b", "c"))

# --- the plan, on tables alone ---


def audit_input(rows: list[dict[str, str]], pairs: list[tuple[int, int, str]]) -> AuditInput:
    """Return an audit input of rows with any of the manifest's columns; `picture` becomes the hash of the pixels."""
    frame = pd.DataFrame([dict.fromkeys(MANIFEST_COLUMNS, "") | row for row in rows])
    numbers = [f"{int(row['picture']):064x}" for row in rows]
    ids = frame["image_id"].where(frame["image_id"] != "", [f"i{n:03}" for n in range(len(frame))])
    frame = frame.assign(
        image_id=ids, path=ids + ".png", pixel_sha256=numbers, file_sha256=numbers, width=9, height=9
    )
    frame = frame.assign(split=frame["given_split"])
    exact = [
        (a, b, 0.0, "exact")
        for a in range(len(frame))
        for b in range(a + 1, len(frame))
        if numbers[a] == numbers[b]
    ]
    table = pd.DataFrame(
        [*exact, *((a, b, 0.01, kind) for a, b, kind in pairs)], columns=["a", "b", "distance", "kind"]
    )
    dataset = Dataset(Path("data"), Path("images"), "made", CLASSES, frame[list(MANIFEST_COLUMNS)], "folder")
    return AuditInput(
        dataset=dataset, frame=frame, measures=pd.DataFrame(index=frame.index), pairs=table,
        group_ids=np.arange(len(frame), dtype=np.int64),
    )  # fmt: skip


def row(picture: int, label: str = "a", **more: str) -> dict[str, str]:
    return {"picture": str(picture), "label": label, **more}


def test_of_exact_copies_the_one_on_the_test_side_is_kept() -> None:
    rows = [row(1), row(1, given_split="train"), row(1, given_split="validation"), row(1, given_split="test")]
    plan = plan_cleaning(audit_input(rows, []), set())
    assert plan.keep_mask.tolist() == [False, False, False, True]
    assert plan.dropped_rows["code"].tolist() == ["DA012"] * 3
    assert plan.dropped_rows["reason"].tolist() == ["same pixels as i003, which is kept"] * 3
    assert plan_cleaning(audit_input(rows[:3], []), set()).keep_mask.tolist() == [False, False, True]
    same_side = plan_cleaning(
        audit_input([row(1, image_id="z"), row(1, image_id="b"), row(2, image_id="c")], []), set()
    )
    assert same_side.dropped_rows[["image_id", "code"]].to_numpy().tolist() == [["z", "DA010"]]


@pytest.mark.parametrize(
    ("rows", "pairs", "code", "dropped"),
    [
        ([row(1, "a"), row(1, "b"), row(1, "a"), row(2)], [], "DA011", [0, 1, 2]),
        ([row(1, "a"), row(2, "b"), row(3)], [(0, 1, "flipped")], "DA014", [0, 1]),
        # An exact copy of a near copy is as doubtful as that one, whether or not the search paired it.
        ([row(1, "a"), row(2, "b"), row(2, "b"), row(3)], [(0, 1, "resized")], "DA014", [0, 1, 2]),
        ([row(1, "a", lesion_id="L"), row(2, "b", lesion_id="L"), row(3, lesion_id="M")], [], "DA022", [0, 1]),
        ([row(1, "a", isic_id="I"), row(2, "b", isic_id="I"), row(3, isic_id="K")], [], "DA024", [0, 1]),
    ],
)
def test_contradictions_go_whole_unless_accepted(
    rows: list[dict[str, str]], pairs: list[tuple[int, int, str]], code: str, dropped: list[int]
) -> None:
    plan = plan_cleaning(audit_input(rows, pairs), set())
    assert np.flatnonzero(~plan.keep_mask).tolist() == dropped
    assert set(plan.dropped_rows["code"]) == {code}
    accepted = plan_cleaning(audit_input(rows, pairs), {code})
    # Accepted, each label keeps one of its exact copies, and what is a copy stays together.
    assert set(accepted.dropped_rows["code"]) <= {"DA010"}
    assert {rows[number]["label"] for number in np.flatnonzero(accepted.keep_mask)} == {
        item["label"] for item in rows
    }
    if code != "DA022":
        assert len(set(accepted.copy_group[np.flatnonzero(accepted.keep_mask)[:2]])) == 1
        assert accepted.copy_group[0] != ""


def test_a_reason_names_the_other_image_and_its_label() -> None:
    rows = [
        row(1, "a"),
        row(1, "b"),
        row(2, "a"),
        row(3, "c"),
        row(4, "a", lesion_id="L"),
        row(5, "b", lesion_id="L"),
    ]
    plan = plan_cleaning(audit_input(rows, [(2, 3, "rotated")]), set())
    assert plan.dropped_rows["reason"].tolist() == [
        "same pixels as i001, which is labelled b", "same pixels as i000, which is labelled a",
        "near copy (rotated) of i003, which is labelled c", "near copy (rotated) of i002, which is labelled a",
        "lesion L carries several labels: a, b", "lesion L carries several labels: a, b",
    ]  # fmt: skip


def test_near_copies_stay_in_one_copy_group_and_old_groups_are_joined() -> None:
    rows = [
        row(1, copy_group="x", isic_id="I"),
        row(2),
        row(3),
        row(4, copy_group="w"),
        row(5, copy_group="v"),
        row(6),
        row(7),
        row(8, isic_id="I"),
    ]
    plan = plan_cleaning(audit_input(rows, [(0, 1, "flipped"), (1, 3, "resized"), (5, 6, "resized")]), set())
    assert plan.keep_mask.all()
    assert plan.copy_group.tolist() == ["w", "w", "", "w", "v", "copies of i005", "copies of i005", "w"]


def test_a_new_group_takes_no_name_that_is_taken() -> None:
    rows = [row(1, image_id="k"), row(2, image_id="l"), row(3, image_id="m", copy_group="copies of k")]
    plan = plan_cleaning(audit_input(rows, [(0, 1, "flipped")]), set())
    assert plan.copy_group.tolist() == ["copies of k'", "copies of k'", "copies of k"]


def test_what_a_dropped_copy_tied_together_stays_tied() -> None:
    # The dropped copy alone knows the lesion; the kept one must not be parted from it, nor given its id.
    rows = [
        row(1, given_split="test"),
        row(1, lesion_id="L"),
        row(2, lesion_id="L"),
        row(3, lesion_id="L"),
        row(9),
    ]
    seen = audit_input(rows, [])
    plan = plan_cleaning(seen, set())
    assert plan.dropped_rows["image_id"].tolist() == ["i001"]
    left = seen.frame.assign(copy_group=plan.copy_group)[plan.keep_mask]
    assert len(set(id_groups(left)[:3])) == 1
    assert left["lesion_id"].tolist() == ["", "L", "L", ""]
    assert plan.copy_group[4] == ""


@st.composite
def planted(draw: st.DrawFn) -> AuditInput:
    """Return any small data set: pictures shared, lesions, patients and copy groups overlapping, some near copies."""
    n = draw(st.integers(1, 12))
    few, sides = st.sampled_from(["", "", "p", "q", "r"]), st.sampled_from(["", "train", "validation", "test"])
    rows = []
    for _ in range(n):
        lesion = draw(few)
        # A lesion is one patient's, so a known lesion says who that is.
        patient = f"of {lesion}" if lesion and draw(st.booleans()) else "" if lesion else draw(few)
        rows.append(
            row(draw(st.integers(1, 7)), draw(st.sampled_from("abc")), lesion_id=lesion, patient_id=patient,
                copy_group=draw(few), isic_id=draw(few), given_split=draw(sides))
        )  # fmt: skip
    ends = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), st.sampled_from(["flipped", "resized"]))
    pairs = [(min(a, b), max(a, b), kind) for a, b, kind in draw(st.lists(ends, max_size=6)) if a != b]
    pairs = [item for item in pairs if rows[item[0]]["picture"] != rows[item[1]]["picture"]]
    return audit_input(rows, pairs)


def again(seen: AuditInput, keep: Any, copy_group: Any) -> AuditInput:
    """Return the audit input after a cleaning, rows renumbered."""
    frame = seen.frame.assign(copy_group=copy_group)[keep].reset_index(drop=True)
    number = np.cumsum(keep) - 1
    pairs = seen.pairs[keep[seen.pairs["a"]] & keep[seen.pairs["b"]]]
    pairs = pairs.assign(a=number[pairs["a"]], b=number[pairs["b"]]).reset_index(drop=True)
    return AuditInput(
        dataset=seen.dataset, frame=frame, measures=pd.DataFrame(index=frame.index), pairs=pairs,
        group_ids=np.arange(len(frame), dtype=np.int64),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(planted(), st.sets(st.sampled_from(["DA011", "DA014", "DA022", "DA024"])))
def test_a_cleaning_keeps_its_promises(seen: AuditInput, accepted: set[str]) -> None:
    frame = seen.frame
    plan = plan_cleaning(seen, accepted)
    # Nothing is lost without a reason, and nothing else than rows and copy_group changes.
    assert Counter(frame["image_id"]) == Counter(frame["image_id"][plan.keep_mask]) + Counter(
        plan.dropped_rows["image_id"]
    )
    assert (plan.dropped_rows["reason"] != "").all() and (plan.dropped_rows["code"] != "").all()
    assert not set(plan.dropped_rows["code"]) & accepted
    if not plan.keep_mask.any():
        return
    after = again(seen, plan.keep_mask, plan.copy_group)
    check_manifest(after.frame, CLASSES)
    # No contradiction is left but an accepted one, and of one label no picture twice.
    assert not after.frame.duplicated(["pixel_sha256", "label"]).any()
    label, lesion = after.frame["label"].to_numpy(), after.frame["lesion_id"]
    ends = after.pairs[["a", "b"]].to_numpy(np.int64)
    exact = (after.pairs["kind"] == "exact").to_numpy()
    differ = label[ends[:, 0]] != label[ends[:, 1]]
    assert "DA011" in accepted or not (differ & exact).any()
    assert "DA014" in accepted or not (differ & ~exact).any()
    assert "DA022" in accepted or (after.frame[lesion != ""].groupby("lesion_id")["label"].nunique() == 1).all()
    ids = after.frame[after.frame["isic_id"] != ""].groupby("isic_id")["label"]
    assert "DA024" in accepted or (ids.nunique() == 1).all()
    # What hung together before, through whatever, hangs together after.
    linked = id_groups(after.frame)
    assert (linked[ends[:, 0]] == linked[ends[:, 1]]).all()
    keys = [id_codes(frame[name]) for name in ("lesion_id", "patient_id", "copy_group", "isic_id", "pixel_sha256")]
    whole = connect_rows(len(frame), *seen.pairs[["a", "b"]].to_numpy(np.int64).T, *keys)[plan.keep_mask]
    for number in set(whole.tolist()):
        assert len(set(linked[whole == number])) == 1
    # A second cleaning finds nothing to do.
    second = plan_cleaning(after, accepted)
    assert second.keep_mask.all()
    assert second.copy_group.tolist() == after.frame["copy_group"].tolist()


# --- on disk ---

FILES = {
    **{f"train/nevus/n{i}": i for i in range(12)},
    **{f"train/melanoma/m{i}": 20 + i for i in range(12)},
    **{f"test/nevus/tn{i}": 40 + i for i in range(4)},
    **{f"test/melanoma/tm{i}": 50 + i for i in range(4)},
    "train/nevus/twin": 40,  # of a test image: goes, the test image stays
    "train/nevus/again": 0,
    "train/melanoma/wrong": 1,  # contradicts train/nevus/n1
}
NEAR = (
    Near("test/nevus/tn1", "train/nevus/n5"),
    Near("train/nevus/n6", "train/nevus/n7", "flipped"),
    Near("train/melanoma/m3", "train/nevus/n8", "rotated"),
)
LESIONS = {"train/nevus/n9": "L1", "train/nevus/n10": "L1", "train/melanoma/m9": "L2", "train/nevus/n11": "L2",
           "train/nevus/twin": "L3", "train/nevus/n2": "L3"}  # fmt: skip
GONE = {
    "train/nevus/twin": "DA012", "train/nevus/n0": "DA010", "train/melanoma/wrong": "DA011", "train/nevus/n1": "DA011",
    "train/melanoma/m3": "DA014", "train/nevus/n8": "DA014", "train/melanoma/m9": "DA022", "train/nevus/n11": "DA022",
}  # fmt: skip


def run(dataset: Dataset, **options: Any) -> AuditOutcome:
    said: list[str] = []
    return run_audit(
        dataset,
        image_scanner=looking(NEAR),
        checks=CHECKS,
        alpha=0.05,
        progress=Progress(say=said.append),
        **options,
    )


@pytest.fixture
def faulty(tmp_path: Path) -> Dataset:
    return make(tmp_path, FILES, lesion_id=LESIONS)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_cleaning_writes_what_it_did(faulty: Dataset) -> None:
    folder, before = faulty.folder, (faulty.folder / "manifest.csv").read_bytes()
    images = {path: sha256_file(path) for path in faulty.image_root.rglob("*.png")}
    outcome = run(faulty, clean=True)
    assert outcome.n_dropped == len(GONE)
    dropped = {item["image_id"]: item for item in rows_of(folder / "audit" / "dropped.csv")}
    assert {name: item["code"] for name, item in dropped.items()} == GONE
    assert dropped["train/nevus/twin"]["reason"] == "same pixels as test/nevus/tn0, which is kept"
    assert list(dropped["train/nevus/twin"]) == ["image_id", "path", "label", "reason", "code"]
    assert (folder / "audit" / "manifest.before-clean.csv").read_bytes() == before
    cleaned = load_dataset(folder)
    assert set(cleaned.manifest["image_id"]) == set(FILES) - set(GONE)
    assert {path: sha256_file(path) for path in faulty.image_root.rglob("*.png")} == images
    lesions = dict(zip(cleaned.manifest["image_id"], cleaned.manifest["lesion_id"], strict=True))
    assert lesions == {name: LESIONS.get(name, "") for name in lesions}
    groups_of = cleaned.manifest[cleaned.manifest["copy_group"] != ""].groupby("copy_group")["image_id"].agg(set)
    # The twin alone knew that tn0 shows lesion L3, which n2 shows too.
    assert sorted(map(sorted, groups_of)) == [
        ["test/nevus/tn0", "train/nevus/n2"], ["test/nevus/tn1", "train/nevus/n5"],
        ["train/nevus/n6", "train/nevus/n7"],
    ]  # fmt: skip
    body = json.loads((folder / "dataset.json").read_text())
    assert body["counts"]["images"] == len(FILES) - len(GONE)
    (facts,) = body["cleanings"]
    assert facts["by_code"] == {"DA010": 1, "DA011": 2, "DA012": 1, "DA014": 2, "DA022": 2}
    assert facts["to_manifest_sha256"] == cleaned.manifest_sha256 == outcome.dataset.manifest_sha256


def test_a_cleaning_can_be_undone(faulty: Dataset) -> None:
    folder = faulty.folder
    run(faulty, clean=True)
    (folder / "audit" / "manifest.before-clean.csv").replace(folder / "manifest.csv")
    (folder / "audit" / "before-clean" / "dataset.json").replace(folder / "dataset.json")
    back = load_dataset(folder)
    assert back.manifest_sha256 == faulty.manifest_sha256
    assert (back.classes, back.notes) == (faulty.classes, faulty.notes)


def test_the_audit_describes_what_is_there_now_and_keeps_what_was(faulty: Dataset) -> None:
    outcome = run(faulty, clean=True)
    audit = faulty.folder / "audit"
    now, before = (json.loads((folder / "audit.json").read_text()) for folder in (audit, audit / "before-clean"))
    assert now["manifest_sha256"] == load_dataset(faulty.folder).manifest_sha256
    assert before["manifest_sha256"] == faulty.manifest_sha256
    assert {item["code"] for item in before["findings"] if item["severity"] == "error"} == {
        "DA011", "DA012", "DA014", "DA015", "DA022",
    }  # fmt: skip
    # A near copy across the published sides stays until a split leaves it out.
    assert [item.card.code for item in outcome.open_errors] == ["DA015"]
    assert sorted(path.name for path in audit.glob("DA*.csv")) == ["DA004.csv", "DA015.csv", "DA030.csv"]
    assert (audit / "before-clean" / "audit.html").is_file()


def test_after_a_cleaning_the_split_has_no_leak(faulty: Dataset) -> None:
    run(faulty, clean=True)
    cleaned = load_dataset(faulty.folder)
    made = make_split(cleaned.manifest, GIVEN, name="given")
    save_split(made, faulty.folder / "splits")
    assert set(made.excluded["image_id"]) == {"train/nevus/n5", "train/nevus/n2"}
    outcome = run(cleaned, split="given")
    assert outcome.open_errors == []
    outcome.raise_for_errors()


def test_a_second_cleaning_does_nothing_and_a_third_of_more_takes_another_name(faulty: Dataset) -> None:
    run(faulty, clean=True)
    files = {path: path.read_bytes() for path in faulty.folder.rglob("*.csv") if "audit" not in path.parts}
    kept = sorted(path.name for path in (faulty.folder / "audit").iterdir())
    run(load_dataset(faulty.folder), clean=True)
    assert {path: path.read_bytes() for path in files} == files
    assert sorted(path.name for path in (faulty.folder / "audit").iterdir()) == kept
    more = run_audit(
        load_dataset(faulty.folder),
        image_scanner=looking([Near("train/nevus/n2", "train/melanoma/m4")]),
        checks=CHECKS,
        alpha=0.05,
        clean=True,
    )
    assert more.n_dropped == 2
    audit = faulty.folder / "audit"
    assert (audit / "manifest.before-clean-2.csv").is_file() and (audit / "before-clean-2").is_dir()
    dropped = [item["image_id"] for item in rows_of(audit / "dropped.csv")]
    assert sorted(dropped) == sorted([*GONE, "train/nevus/n2", "train/melanoma/m4"])
    assert len(json.loads((faulty.folder / "dataset.json").read_text())["cleanings"]) == 2


def test_what_is_accepted_stays_and_its_acceptance_holds_after_the_cleaning(faulty: Dataset) -> None:
    outcome = run(faulty, clean=True, accept=["DA011", "DA014", "DA022"])
    assert outcome.n_dropped == 2
    assert [item.card.code for item in outcome.open_errors] == ["DA015"]
    assert {item.card.code for item in outcome.findings if item.acceptance} == {"DA011", "DA014", "DA022"}
    assert run(load_dataset(faulty.folder)).open_errors[0].card.code == "DA015"
    # What is copied stays together, whatever its labels.
    manifest = load_dataset(faulty.folder).manifest.set_index("image_id")["copy_group"]
    assert manifest["train/melanoma/m3"] == manifest["train/nevus/n8"] != ""


def test_an_acceptance_from_before_is_carried_over_a_cleaning(faulty: Dataset) -> None:
    run(faulty, accept=["DA011"])
    outcome = run(load_dataset(faulty.folder), clean=True)
    assert "DA011" in {item.card.code for item in outcome.findings if item.acceptance}


def test_a_class_that_vanishes_is_noted_and_nothing_at_all_is_refused(tmp_path: Path) -> None:
    some = make(tmp_path / "some", {"-/nevus/a": 1, "-/melanoma/b": 1, "-/melanoma/c": 3, "-/melanoma/d": 4})
    assert some.class_names == ("melanoma", "nevus")
    outcome = run_audit(some, image_scanner=looking(), checks=CHECKS, alpha=0.05, clean=True)
    assert load_dataset(some.folder).class_names == outcome.dataset.class_names == ("melanoma",)
    assert "nevus" in json.loads((some.folder / "dataset.json").read_text())["warnings"][-1]["text"]
    none = make(tmp_path / "none", {"-/nevus/a": 1, "-/melanoma/b": 1})
    before = (none.folder / "manifest.csv").read_bytes()
    with pytest.raises(DataError, match="would drop all 2 images"):
        run_audit(none, image_scanner=looking(), checks=CHECKS, alpha=0.05, clean=True)
    assert (none.folder / "manifest.csv").read_bytes() == before
    assert not (none.folder / "audit" / "dropped.csv").exists()
    found = json.loads((none.folder / "audit" / "audit.json").read_text())["findings"]
    assert "DA011" in {item["code"] for item in found} and (none.folder / "audit" / "audit.html").is_file()


def test_a_warning_of_the_import_that_a_cleaning_makes_untrue_goes(faulty: Dataset) -> None:
    body = json.loads((faulty.folder / "dataset.json").read_text())
    warnings = [{"code": code, "text": code, "n": 1} for code in ("copies", "contradictory_copies", "no_groups")]
    (faulty.folder / "dataset.json").write_text(json.dumps(body | {"warnings": warnings}))
    run(load_dataset(faulty.folder), clean=True)
    left = json.loads((faulty.folder / "dataset.json").read_text())["warnings"]
    assert [item["code"] for item in left] == ["no_groups"]
