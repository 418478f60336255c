"""`dermkit audit` as a person runs it: planted faults, exit codes, cleaning, acceptances, and what a report says."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermkit as dk
from conftest import Cli, Invoke
from dermkit.audit.checks.finding import AuditInput, Finding, Outcome, Severity, image_table
from dermkit.audit.run import AuditOutcome, run_audit
from dermkit.data.manifest import Dataset, load_dataset, save_dataset
from dermkit.data.synthetic.dataset import make_dataset_folder
from dermkit.data.synthetic.duplicates import plant_copy
from dermkit.errors import DataError
from dermkit.files import write_rows
from dermkit.recipes.schema import Recipe, save_recipe
from planted_audit import CHECKS, Near, looking, make

ROOT = Path(__file__).parents[1]
SIZE = 128


def paths_of(side: str, label: str, folder: Path) -> list[Path]:
    return sorted((folder / side / label).glob("*.jpg"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Return a folder of made images with planted copies, and the list of them: code, image, of."""
    folder = tmp_path_factory.mktemp("planted") / "images"
    wanted = {"nevus": 30, "melanoma": 30}
    make_dataset_folder(
        folder, lesions_per_class=wanted, photos_per_lesion=(1, 1), size=SIZE, seed=11, given_test=0.3
    )
    for beside in ("truth.csv", "planted.csv"):
        (folder / beside).unlink(missing_ok=True)
    rng = np.random.default_rng(5)
    train, test = paths_of("train", "nevus", folder), paths_of("test", "nevus", folder)
    plan = [
        ("DA012", test[0], "train/nevus", "exact"), ("DA011", train[1], "train/melanoma", "exact"),
        ("DA010", train[2], "train/nevus", "exact"), ("DA015", test[1], "train/nevus", "resized"),
        ("DA015", test[2], "train/nevus", "flipped"), ("DA014", train[3], "train/melanoma", "rotated90"),
        ("DA013", train[4], "train/nevus", "reencoded"),
    ]  # fmt: skip
    rows = []
    for number, (code, of, where, kind) in enumerate(plan):
        data, ending = plant_copy(np.asarray(Image.open(of).convert("RGB")), kind, rng)
        path = folder / where / f"planted_{number}{ending}"
        path.write_bytes(data)
        rows.append((code, f"{where}/{path.stem}", of.relative_to(folder).with_suffix("").as_posix()))
    return folder, pd.DataFrame(rows, columns=["code", "image", "of"])


@pytest.fixture
def imported(planted: tuple[Path, pd.DataFrame], tmp_path: Path) -> Path:
    return dk.import_dataset("folder", planted[0], out=tmp_path / "data").dataset.folder


def pairs_in(path: Path) -> set[frozenset[str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {frozenset((row["image_a"], row["image_b"])) for row in csv.DictReader(stream)}


def listed(text: str) -> dict[str, tuple[str, int]]:
    """Return code -> severity and images, from what the command printed."""
    found = re.findall(r"^(DA\d{3})  (error|warning|note) +(\d+)  \S", text, re.M)
    return {code: (severity, int(n)) for code, severity, n in found}


def test_planted_copies_are_found_cleaned_and_parted_by_no_split(
    cli: Cli, planted: tuple[Path, pd.DataFrame], imported: Path
) -> None:
    _, plan = planted
    done = cli("audit", imported)
    assert done.returncode == 3, done.stderr
    codes = listed(done.stdout)
    assert {code for code, (severity, _) in codes.items() if severity == "error"} == {
        "DA011", "DA012", "DA014", "DA015",
    }  # fmt: skip
    for code, part in plan.groupby("code"):
        wanted = {frozenset((row.image, row.of)) for row in part.itertuples()}
        assert pairs_in(imported / "audit" / f"{code}.csv") == wanted
        assert codes[str(code)][1] >= len(part)
    assert done.stdout.rstrip().endswith(str(imported / "audit" / "audit.html"))
    assert "4 errors not accepted" in done.stderr and "Kept:" in done.stderr and "To do:" in done.stderr
    assert "Traceback" not in done.stderr

    before = {path: path.stat().st_mtime_ns for path in planted[0].rglob("*") if path.is_file()}
    cleaned = cli("audit", imported, "--clean")
    assert cleaned.returncode == 3 and set(listed(cleaned.stdout)) & {"DA011", "DA012", "DA014"} == set()
    assert "DA015" in cleaned.stderr and "audit/dropped.csv" in cleaned.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before, "no image is touched"

    assert cli("split", imported, "--scheme", "given").returncode == 0
    again = cli("audit", imported, "--split", "given")
    assert again.returncode == 0, again.stderr + again.stdout
    split = pd.read_csv(imported / "splits" / "given.csv", dtype=str)
    sides = dict(zip(split["image_id"], split["split"], strict=True))
    for _, image, of in plan.itertuples(index=False):
        assert len({sides[name] for name in (image, of) if name in sides}) <= 1, image


def test_accepting_lets_it_pass_and_is_told_in_the_report(
    invoke: Invoke, imported: Path, tiny: Recipe, tmp_path: Path
) -> None:
    wrong = invoke("audit", imported, "--accept", "DA12")
    assert wrong[0] == 2 and "did you mean DA012?" in wrong[2]
    assert not (imported / "audit").exists()
    codes = ("DA011", "DA012", "DA014", "DA015")
    some, out, messages = invoke("audit", imported, *(word for code in codes[:3] for word in ("--accept", code)))
    assert some == 3 and "DA015" in messages and "DA012" not in messages
    assert "accepted, not repaired" in out
    assert invoke("audit", imported, "--accept", "da015")[0] == 0
    assert set(json.loads((imported / "dataset.json").read_text())["accepted"]) == set(codes)
    save_recipe(tiny, tmp_path / "tiny.json")
    assert invoke("split", imported, "--scheme", "given-as-published", "--validation", "0.2")[0] == 0
    # On another split more images can be concerned than were accepted.
    accepting = [word for code in codes for word in ("--accept", code)]
    assert invoke("audit", imported, "--split", "given-as-published", *accepting)[0] == 0
    trained = invoke(
        "train", tmp_path / "tiny.json", imported, "--split", "given-as-published", "--out", tmp_path / "runs"
    )
    assert trained[0] == 0, trained
    (path,) = (tmp_path / "runs").rglob("run.json")
    audit = json.loads(path.read_text())["dataset"]["audit"]
    assert audit["state"] == "done" and {item["code"] for item in audit["accepted"]} == set(codes)
    report = (path.parent / "report.html").read_text()
    for code in codes:
        assert re.search(rf'<li class="serious"><b>serious</b>{code} [^<]*was accepted, not repaired', report), (
            code
        )
    # The same model on the same images as other data: the stamps of both travel along.
    assert invoke("evaluate", path.parent, "--on", imported, "--out", tmp_path / "external")[0] == 0
    external = (tmp_path / "external" / "report.html").read_text()
    assert external.count("was accepted, not repaired") == 2 * len(codes)


def test_a_run_on_data_that_nobody_audited_says_so(trained: Path) -> None:
    assert json.loads((trained / "run.json").read_text())["dataset"]["audit"]["state"] == "never"
    assert "no audit was run" in (trained / "report.html").read_text()


def test_usage_errors_end_with_2_and_a_foreign_folder_with_3(
    invoke: Invoke, imported: Path, tmp_path: Path
) -> None:
    for arguments, said in (
        (("--split", "nowhere"), "there is no such split"), (("--against", imported), "held against itself"),
        (("--against", imported, "--clean"), "--against goes without"), (("--use", "war"), "--use"),
        (("--workers", "-1"), "--workers"),
    ):  # fmt: skip
        code, _, messages = invoke("audit", imported, *arguments)
        assert code == 2 and said in messages, arguments
    (tmp_path / "empty").mkdir()
    code, _, messages = invoke("audit", tmp_path / "empty")
    assert code == 3 and "is not a data set folder" in messages


def test_a_set_held_against_one_that_shares_images_is_not_external(
    invoke: Invoke, planted: tuple[Path, pd.DataFrame], imported: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other-images"
    for label, source in (("nevus", paths_of("test", "nevus", planted[0])[0]), ("melanoma", None)):
        make_dataset_folder(other, lesions_per_class={label: 4}, photos_per_lesion=(1, 1), size=SIZE, seed=77)
        if source:
            (other / label / "seen.jpg").write_bytes(source.read_bytes())
    for beside in ("truth.csv", "planted.csv"):
        (other / beside).unlink(missing_ok=True)
    dk.import_dataset("folder", other, out=tmp_path / "other")
    code, out, messages = invoke("audit", imported, "--against", tmp_path / "other")
    assert code == 3 and "DA080" in out and "not external" in messages
    assert (imported / "audit" / "external-other" / "external.html").is_file()


def test_the_table_of_codes_in_the_documentation_is_that_of_the_checks(invoke: Invoke) -> None:
    code, table, _ = invoke("audit", "--codes")
    assert code == 0
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    written = text.split("<!-- codes -->\n")[1].split("<!-- end of codes -->")[0]
    assert written.strip() == table.strip(), "write it again with `dermkit audit --codes`"
    codes = re.findall(r"^\| (DA\d{3}) \|", table, re.M)
    assert codes == sorted(set(codes)) and len(codes) > 30


def test_a_stopped_audit_goes_on(imported: Path, tmp_path: Path) -> None:
    """Killed while it looks at the images, it leaves no half files, and the next one ends as if nothing had been."""
    environment = {**os.environ, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "dermkit.cli", "audit", str(imported), "--workers", "1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((imported / "audit" / "scan").glob("*.npy")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert load_dataset(imported).manifest.shape[0] == 67
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "DA012" in done.stdout
    assert not list(imported.rglob(".dermkit-tmp-*"))


# --- what an acceptance covers, and what a cleaning says ---

FILES = {
    f"{side}/{label}/{side}{label}{i}": start + i
    for side, label, start in (
        ("train", "nevus", 0), ("train", "melanoma", 10), ("test", "nevus", 20), ("test", "melanoma", 30)
    )
    for i in range(4)
}  # fmt: skip
COPIES = {"test/nevus/copy": 0, "train/nevus/again": 1}


def run(dataset: Dataset, near: tuple[Near, ...] = (), **options: Any) -> AuditOutcome:
    known: dict[str, Any] = {"image_scanner": looking(near), "checks": CHECKS, "alpha": 0.05, **options}
    return run_audit(dataset, **known)


def voids(outcome: AuditOutcome) -> dict[str, str]:
    return {item.card.code: item.invalid_reason for item in outcome.findings if not item.acceptance}


def save_sides(dataset: Dataset, name: str, tested: str) -> None:
    ids = dataset.manifest["image_id"].tolist()
    known = {tested: "test", "train/melanoma/trainmelanoma0": "validation"}
    sides = [[item, known.get(item, "train")] for item in ids]
    write_rows(dataset.folder / "splits" / f"{name}.csv", ["image_id", "split"], sides)


def test_a_leak_accepted_for_one_split_does_not_hide_that_of_another(tmp_path: Path) -> None:
    dataset = make(tmp_path, FILES | COPIES)
    assert [item.card.code for item in run(dataset, accept=["DA012"]).open_errors] == []
    save_sides(dataset, "mine", "train/nevus/again")
    mine = run(load_dataset(dataset.folder), split="mine")
    assert [item.card.code for item in mine.open_errors] == ["DA012"], "as many images, but not the same ones"
    assert voids(mine)["DA012"] == "accepted for the published split"
    assert run(load_dataset(dataset.folder), split="mine", accept=["DA012"]).open_errors == []
    # The same name is not the same division.
    save_sides(dataset, "mine", "test/nevus/copy")
    again = run(load_dataset(dataset.folder), split="mine")
    assert voids(again)["DA012"] == "accepted for the split mine as it was then"
    # A finding that no split changes stays accepted on all of them.
    run(load_dataset(dataset.folder), accept=["DA004"])
    assert "DA004" not in voids(run(load_dataset(dataset.folder), split="mine"))


def test_a_warning_that_was_accepted_does_not_cover_an_error(tmp_path: Path) -> None:
    severity = Severity.WARNING

    def finds(audit_input: AuditInput) -> Outcome:
        """Something

        Threshold: none.

        Severity: any.

        Effect: none.
        """
        rows = image_table(audit_input, np.arange(3))
        return Finding(severity=severity, n=3, sentence="Three.", rows=rows)

    finds.__name__ = "da003_finds"
    dataset = make(tmp_path, FILES)
    accepted = run(dataset, checks=[finds], accept=["DA003"])
    assert accepted.audit.verdict.endswith("no warning is open. 1 warning was accepted and not repaired.")
    severity = Severity.ERROR
    worse = run(load_dataset(dataset.folder), checks=[finds])
    assert voids(worse) == {"DA003": "was a warning then, is an error now"} and worse.open_errors
    severity = Severity.NOTE
    assert voids(run(load_dataset(dataset.folder), checks=[finds])) == {}, "less is covered"


def test_after_a_cleaning_an_acceptance_covers_what_is_left_and_no_more(tmp_path: Path) -> None:
    dataset = make(tmp_path, FILES | COPIES)
    near = (
        Near("test/nevus/testnevus0", "train/nevus/trainnevus2"),
        Near("test/nevus/copy", "train/nevus/trainnevus3"),
    )
    run(dataset, near, accept=["DA012", "DA015"])
    outcome = run(load_dataset(dataset.folder), near[:1], clean=True)
    record = json.loads((dataset.folder / "dataset.json").read_text())["accepted"]
    assert set(record) == {"DA015"}, "DA012 was repaired: its acceptance must not hide a later one"
    assert record["DA015"]["n"] == 2, "4 before the cleaning"
    assert outcome.open_errors == [] and outcome.was_cleaned
    # The division is that of the images left, so that it holds in the next audit.
    later = run(load_dataset(dataset.folder), near[:1])
    assert later.open_errors == [] and {it.card.code for it in later.findings if it.acceptance} == {"DA015"}
    assert "DA015" in voids(run(load_dataset(dataset.folder), near))


def test_a_cleaning_that_only_groups_copies_says_so(tmp_path: Path) -> None:
    dataset = make(tmp_path, FILES)
    near = (Near("test/nevus/testnevus0", "train/nevus/trainnevus2"),)
    with pytest.raises(DataError) as before:
        run(dataset, near).raise_for_errors()
    assert "no image and no row was changed" in before.value.outcome and "--clean" in before.value.remedy
    outcome = run(dataset, near, clean=True)
    assert outcome.was_cleaned and outcome.n_dropped == 0
    for once in (outcome, run(load_dataset(dataset.folder), near, clean=True)):
        with pytest.raises(DataError) as after:
            once.raise_for_errors()
        assert "--clean" not in after.value.remedy and "dermkit split" in after.value.remedy
    with pytest.raises(DataError) as after:
        outcome.raise_for_errors()
    assert "copies were grouped; the manifest before is audit/manifest.before-clean.csv" in after.value.outcome


def test_a_data_set_that_changed_before_the_lock_is_read_again(tmp_path: Path) -> None:
    read = make(tmp_path, FILES | COPIES)
    run(load_dataset(read.folder), clean=True)
    now = load_dataset(read.folder)
    assert len(now.manifest) < len(read.manifest)
    outcome = run(read, clean=True)
    assert (
        outcome.dataset.manifest_sha256 == now.manifest_sha256
        and not outcome.was_cleaned
        and outcome.n_dropped == 0
    )
    # An acceptance of somebody else in the meantime is not written over.
    run(now, accept=["DA030"])
    run(now, accept=["DA004"])
    assert {"DA004", "DA030"} <= set(load_dataset(read.folder).notes["accepted"])
    save_dataset(replace(now, notes={}))
    assert run(now).findings
