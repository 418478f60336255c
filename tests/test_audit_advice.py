"""One story per cause, and what to do next: the audit's findings joined, and the commands for them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from audit_inputs import make_subject
from dermkit.audit.advice import next_steps
from dermkit.audit.causes import CAUSES, join_by_cause
from dermkit.audit.checks.catalogue import CHECKS
from dermkit.audit.checks.finding import AuditInput, CheckFunction, read_check_card
from dermkit.audit.output import Audit
from dermkit.audit.page import first_sentence
from dermkit.audit.run import run_checks
from dermkit.audit.split_view import AuditedSplit

COPIES = ("DA010", "DA011", "DA012", "DA013", "DA014", "DA015", "DA024", "DA033")


def audit_of(subject: AuditInput, codes: Sequence[str] = COPIES, split: str = "given_split") -> Audit:
    checks: list[CheckFunction] = [check for check in CHECKS if read_check_card(check).code in codes]
    frame = subject.frame[["image_id", "split"]].assign(fold=np.int64(-1))
    return Audit(
        audit_input=subject, split=AuditedSplit(split, pd.DataFrame(frame)), check_results=run_checks(subject, checks),
        acceptance_records={}, alpha=0.05, date="2026-01-01", seconds=1.0,
    )  # fmt: skip


def contradictory() -> AuditInput:
    """Three photographs of one id each stand in mel (test) and nv (train); 4 and 5 are copies of one label."""
    return make_subject(
        ["mel", "mel", "mel", "nv", "nv", "nv", "nv", "nv"],
        manifest={"isic_id": ["A", "B", "C", "A", "B", "C", "", ""], "given_split": ["test"] * 3 + ["train"] * 5},
        split=["test"] * 3 + ["train"] * 5,
        pairs=[(0, 3, 0.0), (1, 4, 0.0), (2, 5, 0.0), (6, 7, 0.0)],
    )


def test_contradictory_pairs_are_told_once() -> None:
    audit = audit_of(contradictory())
    assert [reported.card.code for reported in audit.findings][:4] == ["DA011", "DA012", "DA024", "DA033"]
    causes = join_by_cause(audit.findings)
    assert [(cause.name, cause.n) for cause in causes] == [("contradiction", 6), ("copies", 2)]
    assert {reported.card.code for reported in causes[0].findings} == {"DA011", "DA012", "DA024", "DA033"}
    assert causes[0].lead.card.code == "DA011"


def test_a_leak_of_other_images_stays_a_cause_of_its_own() -> None:
    subject = make_subject(
        ["mel", "nv", "nv", "nv"], split=["train", "train", "test", "train"], pairs=[(0, 1, 0.0), (2, 3, 0.0)]
    )
    causes = join_by_cause(audit_of(subject, ["DA011", "DA012"]).findings)
    assert [(cause.name, cause.n) for cause in causes] == [("contradiction", 2), ("leak", 2)]


def test_every_check_has_one_cause() -> None:
    codes = [code for _, _, codes in CAUSES for code in codes]
    assert sorted(codes) == sorted(read_check_card(check).code for check in CHECKS)


def test_what_to_do_is_to_clean_then_split_then_check_then_train() -> None:
    steps = next_steps(audit_of(contradictory()))
    assert [step.command for step in steps] == [
        "dermkit audit data --clean", "dermkit split data --scheme given", "dermkit audit data --split given",
        "dermkit train quick data --split given",
    ]  # fmt: skip
    assert "leaves out 7 of 8 images" in steps[0].reason, "six under two labels, one of two copies"


def test_without_a_fault_no_cleaning_is_asked_for() -> None:
    subject = make_subject(["mel", "nv", "nv"])
    steps = next_steps(audit_of(subject, split=""))
    assert [step.command for step in steps] == [
        "dermkit split data --scheme holdout", "dermkit audit data --split holdout",
        "dermkit train quick data --split holdout",
    ]  # fmt: skip


def test_a_split_of_ones_own_without_a_leak_is_not_made_again() -> None:
    subject = make_subject(["mel", "nv", "nv"], split=["train", "train", "test"])
    assert [step.command for step in next_steps(audit_of(subject, split="mine"))] == [
        "dermkit train quick data --split mine"
    ]


def test_few_test_images_ask_for_folds_and_missing_lesions_for_ids() -> None:
    subject = make_subject(
        ["mel", "nv", "nv"], split=["train", "train", "test"], manifest={"given_split": ["train", "train", "test"]}
    )
    steps = next_steps(audit_of(subject, ["DA023", "DA032"]))
    assert [step.command for step in steps][:2] == [
        "dermkit import ... --join METADATA.csv", "dermkit split data --scheme given --folds 5",
    ]  # fmt: skip
    assert "1 test image" in steps[1].reason


def test_the_first_sentence_ends_at_a_capital() -> None:
    assert first_sentence("AUROC 0.85 (n 2,357, grouped). melanoma: 142 against 154. Lesions are not known.") == (
        "AUROC 0.85 (n 2,357, grouped). melanoma: 142 against 154."
    )
    assert first_sentence("No end") == "No end"
