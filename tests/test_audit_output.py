"""What an audit leaves behind: complete, escaped, small enough to mail, and honest about what was accepted."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermkit.audit import page
from dermkit.audit.checks.finding import (
    AuditInput,
    Finding,
    NotApplicable,
    Outcome,
    Severity,
    pair_table,
    read_check_card,
)
from dermkit.audit.run import AuditOutcome, run_audit, run_checks
from dermkit.audit.status import audit_state, split_sha256
from dermkit.data.manifest import Dataset, load_dataset, save_dataset
from dermkit.errors import DataError, OutputError, UsageError
from dermkit.files import lock, write_rows
from dermkit.progress import Progress
from dermkit.reporting import warnings
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import METRICS, RUN, SUMMARY
from planted_audit import CHECKS, HOSTILE, Near, looking, make

NAME = HOSTILE.replace("/", "")
FILES = {
    **{f"train/nevus/n{i}": i for i in range(8)},
    **{f"train/melanoma/m{i}": 20 + i for i in range(8)},
    **{f"test/nevus/tn{i}": 40 + i for i in range(4)},
    **{f"test/melanoma/tm{i}": 50 + i for i in range(4)},
    "test/nevus/copy": 0,
    f"train/melanoma/{NAME}": 1,
}
NEAR = (Near("test/nevus/tn1", "train/nevus/n5"), Near("train/nevus/n6", "train/nevus/n7", "flipped"))
PAIRS = ["image_a", "image_b", "label_a", "label_b", "split_a", "split_b", "distance", "kind"]


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make(tmp_path, FILES)


def run(dataset: Dataset, **options: Any) -> AuditOutcome:
    known: dict[str, Any] = {"image_scanner": looking(NEAR), "checks": CHECKS, "alpha": 0.05, **options}
    return run_audit(dataset, **known)


def body_of(dataset: Dataset) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((dataset.folder / "audit" / "audit.json").read_text())
    return body


# --- audit.json and the tables ---


def test_audit_json_says_all_and_worst_first(dataset: Dataset) -> None:
    outcome = run(dataset)
    body = body_of(dataset)
    assert next(iter(body)) == "format" and body["format"] == 2
    assert [item["code"] for item in body["findings"]] == ["DA011", "DA012", "DA015", "DA004", "DA030"]
    first = body["findings"][1]
    assert first == {
        "code": "DA012", "title": "Exact copies across splits", "severity": "error", "n": 2,
        "threshold": "identical decoded pixels in two splits.", "files": ["DA012.csv"],
        "sentence": "2 of 26 images are on two sides.",
        "effect": "the test figure counts pictures that were learned by heart.", "kind": "pairs",
        "per_class": {"nevus": 2}, "figures": {"pairs": 1, "share": 2 / 26, "odd": None}, "accepted": None,
        "why_acceptance_invalid": "",
    }  # fmt: skip
    assert [item["code"] for item in body["checks_passed"]] == ["DA014", "DA020", "DA022"]
    assert body["checks_not_applicable"] == [
        {"code": "DA040", "title": "File size predicts the class", "reason": "file sizes were not measured"}
    ]
    assert body["counts"] == {"errors": 3, "warnings": 1, "notes": 1, "accepted": 0}
    assert body["split"]["name"] == "given_split" and body["split"]["counts"] == {"test": 9, "train": 17}
    assert body["manifest_sha256"] == dataset.manifest_sha256 and body["images"] == 26
    assert body["family_wise_rate"]["rate"] == 0.05
    assert {"dermkit", "numpy", "pillow"} <= set(body["versions"])
    assert outcome.audit.verdict == body["verdict"]
    assert body["verdict"].startswith("3 errors: do not trust accuracies published on this data set")


def test_every_finding_has_its_table_and_an_earlier_one_is_removed(dataset: Dataset) -> None:
    folder = dataset.folder / "audit"
    write_rows(folder / "DA099.csv", ["image_id"], [["of an earlier audit"]])
    run(dataset)
    assert sorted(path.name for path in folder.glob("*.csv")) == [
        "DA004.csv", "DA011.csv", "DA012.csv", "DA015.csv", "DA030.csv",
    ]  # fmt: skip
    pairs = pd.read_csv(folder / "DA011.csv", keep_default_na=False)
    assert list(pairs.columns) == PAIRS
    assert pairs.to_numpy().tolist() == [
        [f"train/melanoma/{NAME}", "train/nevus/n1", "melanoma", "nevus", "train", "train", 0.0, "exact"]
    ]
    images = pd.read_csv(folder / "DA004.csv")
    assert list(images.columns) == ["image_id", "path", "label", "split", "brightness"]
    assert pd.read_csv(folder / "DA030.csv", keep_default_na=False)["width"].tolist() == ["", ""]


def test_the_same_audit_twice_gives_the_same_files(dataset: Dataset) -> None:
    run(dataset)
    folder = dataset.folder / "audit"
    first = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    body = body_of(dataset)
    run(load_dataset(dataset.folder))
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == first
    assert {**body_of(dataset), "seconds": 0} == {**body, "seconds": 0}


def test_without_a_split_sides_are_not_looked_for(tmp_path: Path) -> None:
    dataset = make(tmp_path, {"-/nevus/a": 1, "-/nevus/b": 2, "-/melanoma/c": 3})
    run(dataset)
    body = body_of(dataset)
    assert body["split"]["name"] == "" and body["split"]["counts"] == {}
    assert {"DA012", "DA015"} <= {item["code"] for item in body["checks_not_applicable"]}
    assert "No split" in Page(dataset.folder / "audit" / "audit.html").words


def test_a_split_of_the_data_set_is_audited_even_if_it_leaks(dataset: Dataset) -> None:
    ids = dataset.manifest["image_id"].tolist()
    sides = ["test" if "n6" in name else "validation" if "m1" in name else "train" for name in ids]
    write_rows(dataset.folder / "splits" / "mine.csv", ["image_id", "split"], zip(ids, sides, strict=True))
    outcome = run(dataset, split="mine")
    assert [item.card.code for item in outcome.open_errors] == ["DA011", "DA015"]
    assert body_of(dataset)["split"]["name"] == "mine"
    assert set(outcome.audit.audit_input.frame["split"]) == {"train", "validation", "test"}
    folds = [number % 3 for number in range(len(ids))]
    write_rows(
        dataset.folder / "splits" / "k.csv", ["image_id", "split", "fold"],
        [(name, "fold", fold) for name, fold in zip(ids, folds, strict=True)],
    )  # fmt: skip
    by_file = run(dataset, split=dataset.folder / "splits" / "k.csv")
    assert set(by_file.audit.audit_input.frame["split"]) == {"fold 0", "fold 1", "fold 2"}
    with pytest.raises(UsageError, match=r"splits there: k, mine"):
        run(dataset, split="other")


def test_the_units_join_pairs_pixels_and_ids(tmp_path: Path) -> None:
    dataset = make(tmp_path, FILES, lesion_id={"train/nevus/n5": "L", "train/nevus/n3": "L"})
    audit_input = run(dataset).audit.audit_input
    unit = dict(zip(audit_input.frame["image_id"], audit_input.group_ids.tolist(), strict=True))
    assert unit["test/nevus/tn1"] == unit["train/nevus/n5"] == unit["train/nevus/n3"]
    assert unit["test/nevus/copy"] == unit["train/nevus/n0"]
    assert len(set(unit.values())) == len(FILES) - 2 - 1 - 1 - 1


def test_a_folder_in_use_is_left_alone(dataset: Dataset) -> None:
    with lock(dataset.folder), pytest.raises(OutputError, match="in use"):
        run(dataset)
    assert not (dataset.folder / "audit").exists()


# --- the page ---


def test_the_page_shows_what_was_found_and_lets_nothing_in_or_out(dataset: Dataset) -> None:
    outcome = run(dataset)
    raw, seen = outcome.page.read_text(encoding="utf-8"), Page(outcome.page)
    assert "Research use only. Not a medical device." in seen.words
    assert seen.words.index("3 errors: do not trust accuracies") < seen.words.index("What was found, worst first")
    for item in outcome.findings:
        assert item.finding.sentence in seen.words and item.card.effect in seen.words
        assert item.card.threshold in seen.words and item.file_name in seen.words
    for said in ("File size predicts the class", "file sizes were not measured", "Labels inconsistent within a lesion",
                 "at most 5\N{NO-BREAK SPACE}%", "identical pixels"):  # fmt: skip
        assert said in seen.text, said
    # The hostile name is text, wherever it stands.
    assert NAME in seen.text
    assert not [tag for tag in seen.tags if "onerror" in tag[1] or tag[0] == "script"]
    for tag, attributes in seen.tags:
        source = attributes.get("src", "")
        assert not source or source.startswith("data:image/jpeg;base64,"), tag
        assert not attributes.get("href", "#").strip("#") or attributes["href"].startswith("#")
    assert "default-src 'none'" in raw and "://" not in raw


def test_pairs_stand_side_by_side_with_labels_and_sides(dataset: Dataset) -> None:
    html = run(dataset).page.read_text(encoding="utf-8")
    part = html.split('id="DA012"')[1].split("</article>")[0]
    assert part.count("data:image/jpeg") == 2
    assert part.count('<span class="side-tag test">test</span>') == 1 and part.count("side-tag train") == 1
    assert "distance 0" in part


def test_ten_thousand_pairs_make_a_page_that_can_be_mailed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(tmp_path, {f"-/nevus/{i:03}": i for i in range(150)})

    def many(audit_input: AuditInput) -> Outcome:
        """Many pairs

        Threshold: none.

        Severity: error.

        Effect: none.
        """
        a, b = (ends[:10_000] for ends in np.triu_indices(150, 1))
        kinds = np.where(np.arange(len(a)) % 100, "resized", "rotated")
        pairs = pd.DataFrame({"a": a, "b": b, "distance": np.linspace(0, 0.1, len(a)), "kind": kinds})
        rows = pair_table(audit_input, pairs)
        return Finding(severity=Severity.ERROR, n=150, sentence="Many.", rows=rows, kind="pairs")

    many.__name__ = "da014_many"
    checks = [many]
    outcome = run(dataset, image_scanner=looking(), checks=checks)
    assert len(pd.read_csv(dataset.folder / "audit" / "DA014.csv")) == 10_000
    html = outcome.page.read_text(encoding="utf-8")
    assert "24 of 10,000 pairs" in html and html.count('<li><p class="how">') == 24
    # The rare kind is shown as often as the common one, and the farthest pair of each is among them.
    assert html.count("<span>rotated</span>") == html.count("<span>resized</span>") == 12
    assert "distance 0.1000<" in html
    assert len(html.encode()) < 1_000_000
    whole = len(html.encode())
    monkeypatch.setattr(page, "MAX_PAGE_BYTES", whole // 2)
    smaller = run(dataset, image_scanner=looking(), checks=checks).page.read_text(encoding="utf-8")
    assert len(smaller.encode()) < whole // 2 and 0 < smaller.count('<li><p class="how">') < 24


def test_an_image_that_is_gone_is_said_to_be(dataset: Dataset) -> None:
    (dataset.image_root / "train" / "nevus" / "n1.png").unlink()
    part = run(dataset).page.read_text(encoding="utf-8").split('id="DA011"')[1].split("</article>")[0]
    assert part.count("not at hand") == 1 and part.count("data:image/jpeg") == 1


def test_known_facts_of_a_recognised_set_are_shown(dataset: Dataset) -> None:
    known = replace(
        dataset,
        notes={"known": "isic9", "title": "Nine classes", "licence": "CC0", "defects": ["<b>18</b> of 118 leak."]},
    )
    words = Page(run(known).page).words
    assert "Recognised by its content as Nine classes" in words and "<b>18</b> of 118 leak." in words


# --- acceptance ---


def test_what_is_accepted_is_recorded_kept_and_told(dataset: Dataset) -> None:
    outcome = run(dataset, accept=["da012", "DA011", "DA014"])
    assert [item.card.code for item in outcome.open_errors] == ["DA015"]
    record = json.loads((dataset.folder / "dataset.json").read_text())["accepted"]
    assert set(record) == {"DA011", "DA012"}, "DA014 found nothing, so there was nothing to accept"
    assert record["DA012"] == {
        "date": record["DA012"]["date"], "manifest_sha256": dataset.manifest_sha256, "n": 2, "severity": "error",
        "split": "given_split", "split_sha256": split_sha256(division(dataset)),
    }  # fmt: skip
    later = run(load_dataset(dataset.folder))
    assert [item.card.code for item in later.open_errors] == ["DA015"], "it holds in later audits"
    body = body_of(dataset)
    assert body["accepted"] == record and body["counts"]["accepted"] == 2
    assert [item["code"] for item in body["findings"] if item["accepted"]] == ["DA011", "DA012"]
    assert "not repaired" in Page(later.page).words
    everything = run(load_dataset(dataset.folder), accept=["DA015"])
    assert everything.open_errors == []
    everything.raise_for_errors()
    assert everything.audit.verdict.startswith("No open error, but errors were accepted and not repaired")


def test_an_acceptance_is_void_once_there_is_more_or_the_manifest_changes(dataset: Dataset) -> None:
    run(dataset, accept=["DA015"])
    same = load_dataset(dataset.folder)
    more = run(same, image_scanner=looking([*NEAR, Near("test/nevus/tn2", "train/nevus/n4")]))
    assert "DA015" in {item.card.code for item in more.open_errors}
    assert {item.card.code: item.invalid_reason for item in more.findings}["DA015"] == "2 images then, 4 now"
    assert "An earlier acceptance does not stand: 2 images then, 4 now" in Page(more.page).words
    # What is in the folder counts, not what was read before it was locked.
    save_dataset(replace(same, manifest=same.manifest.assign(site="back")))
    outcome = run(same)
    assert {item.card.code: item.invalid_reason for item in outcome.findings}[
        "DA015"
    ] == "the manifest has changed since"
    save_dataset(same)
    assert "DA015" not in {item.card.code for item in run(same).open_errors}, "void is not forgotten"


@pytest.mark.parametrize(("code", "meant"), [("DA12", "DA012"), ("DA0122", "DA012"), ("banana", "")])
def test_an_unknown_code_is_refused_before_any_work(dataset: Dataset, code: str, meant: str) -> None:
    def look(_dataset: Dataset, _watch: Progress) -> Any:
        raise AssertionError("must not look at a single image")

    with pytest.raises(UsageError, match=f"did you mean {meant}" if meant else "no check has this code") as caught:
        run(dataset, accept=[code], image_scanner=look)
    assert "--codes" in caught.value.remedy
    assert not (dataset.folder / "audit").exists()


def test_the_refusal_says_what_where_and_what_to_do(dataset: Dataset) -> None:
    with pytest.raises(DataError) as caught:
        run(dataset).raise_for_errors()
    text = str(caught.value)
    assert "3 errors not accepted" in text and "DA012 Exact copies across splits (2 images)" in text
    assert "audit.html" in caught.value.outcome and "--clean" in caught.value.remedy
    assert "--accept DA011 --accept DA012 --accept DA015" in caught.value.remedy
    assert "--scheme given" in caught.value.remedy
    with pytest.raises(DataError) as caught:
        run(load_dataset(dataset.folder), clean=True).raise_for_errors()
    assert "dropped.csv" in caught.value.outcome and "--clean" not in caught.value.remedy


# --- what later reports say ---


def division(dataset: Dataset) -> pd.DataFrame:
    frame = dataset.manifest[["image_id"]].assign(split=dataset.manifest["given_split"], fold=-1)
    return frame.sample(frac=1, random_state=1)


def test_the_state_is_never_then_done_then_outdated(dataset: Dataset) -> None:
    assert audit_state(dataset, division(dataset))["state"] == "never"
    run(dataset, accept=["DA012"])
    state = audit_state(dataset, division(dataset))
    assert state["state"] == "done", "the order of the rows does not matter"
    assert [item["code"] for item in state["errors"]] == ["DA011", "DA015"]
    assert [item["code"] for item in state["accepted"]] == ["DA012"]
    assert [item["code"] for item in state["warnings"]] == ["DA004"]
    other = division(dataset).replace({"split": {"test": "validation"}})
    assert audit_state(dataset, other)["reason"] == "split"
    assert audit_state(dataset, None)["state"] == "done", "where all images are on one side no split matters"
    changed = replace(dataset, manifest=dataset.manifest.assign(site="back"))
    assert audit_state(changed, division(dataset)) | {"state": "outdated", "reason": "manifest"} == audit_state(
        changed, division(dataset)
    )
    (dataset.folder / "audit" / "audit.json").write_text("{")
    assert audit_state(dataset, None)["state"] == "never"


def test_a_division_is_known_by_who_is_where_alone() -> None:
    one = pd.DataFrame({"image_id": ["a", "b"], "split": ["train", "test"], "fold": [-1, -1]})
    assert split_sha256(one) == split_sha256(one[::-1].assign(other=1))
    assert split_sha256(one) != split_sha256(one.assign(split=["test", "train"]))


def told(tmp_path: Path, state: dict[str, Any], **facts: Any) -> dict[str, str]:
    """Return text -> level of what a report says of the audit."""
    estimate = {"value": 0.5, "ci95": [0.4, 0.6], "n": 4, "method": "wilson"}
    split = {"n": 4, "metrics": {"accuracy": estimate}, "per_class": {"a": {"n": 4}}, "confusion_matrix": [[4]]}
    known = {"dataset": {"name": "moles", "classes": [], "audit": state, "notes": {}}, **facts}
    metrics = {"classes": ["a"], "positive": [], "splits": {"test": split}}
    folder = tmp_path / "run"
    METRICS.write(folder, metrics)
    RUN.write(folder, known)
    return {
        warn.text: warn.level
        for warn in warnings.report_warnings(RunFolder(folder))
        if "moles" in warn.text or "DA0" in warn.text
    }


def test_reports_say_what_the_audit_found(tmp_path: Path, dataset: Dataset) -> None:
    (text, level), *more = told(tmp_path, {}).items()
    assert "no audit was run" in text and level == "note" and not more
    run(dataset, accept=["DA012"])
    said = told(tmp_path, audit_state(dataset, division(dataset)))
    serious = [text for text, level in said.items() if level == "serious"]
    assert len(serious) == 3
    assert any(
        text.startswith("DA011 Exact copies with contradictory labels: 2 images of moles.") for text in serious
    )
    assert any(text.startswith("DA012") and "was accepted, not repaired" in text for text in serious)
    assert [text for text, level in said.items() if "DA004" in text and level == "note"]
    split = told(tmp_path, audit_state(dataset, division(dataset).head(3)))
    assert any("was of the published split, not of the one used here" in text for text in split)
    state = {"state": "outdated", "split": "", "date": "today", "warnings": audit_state(dataset, None)["warnings"]}
    no_split = " ".join(told(tmp_path, state))
    assert "was made without a split: in the one used here, near copies" in no_split and "no split" not in no_split
    assert "`dermkit audit DATASET --split NAME` does" in no_split
    (tmp_path / "run" / "split.csv").write_text("image_id,split\n")
    assert "`dermkit audit DATASET --split RUN/split.csv` does" in " ".join(told(tmp_path, state)), (
        "a fold's split has no name in the data set: its file is in the run"
    )
    (tmp_path / "run" / "split.csv").unlink()
    SUMMARY.write(tmp_path / "run", {})
    assert "`dermkit audit DATASET --split FOLD/split.csv` does, for each fold" in " ".join(told(tmp_path, state))
    (tmp_path / "run" / "summary.json").unlink()
    changed = replace(dataset, manifest=dataset.manifest.assign(site="back"))
    old = told(tmp_path, audit_state(changed, None))
    assert any("is outdated, the manifest has changed since" in text for text in old)


def test_a_test_on_other_data_says_how_both_sets_were_audited(tmp_path: Path, dataset: Dataset) -> None:
    run(dataset)
    state = audit_state(dataset, division(dataset))
    said = told(tmp_path, {}, training_dataset={"name": "old moles", "audit": state})
    assert any("no audit was run" in text and text.startswith("moles") for text in said)
    assert any("DA011" in text and "old moles (what the model was trained on)" in text for text in said)


# --- the checks' own words ---


def test_a_check_is_run_once_in_order_and_its_card_is_read(dataset: Dataset) -> None:
    steps: list[tuple[str, int, int]] = []
    audit_input = run(dataset).audit.audit_input
    done = run_checks(audit_input, CHECKS, Progress(step=lambda *step: steps.append(step)))
    assert [item.card for item in done] == [read_check_card(check) for check in CHECKS]
    assert steps == [("checks", number, len(CHECKS)) for number in range(1, len(CHECKS) + 1)]
    assert isinstance(done[-1].outcome, NotApplicable)
