"""May a run's figures be believed? One word, and the doubts that it rests on, for report, terminal and other pages.

The rule: a doubt of weight "refuse" gives "do not believe"; any other doubt "believe with care"; none "believe".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dermkit.runs import doubts
from dermkit.runs.answer_doubts import counterfactual_doubts, foreign_doubts
from dermkit.runs.doubts import Doubt, DoubtWeight
from dermkit.runs.folder import SEEN_SPLIT, RunFolder
from dermkit.runs.layout import UNSTABLE_TRAINING
from dermkit.runs.rule_verdict import RuleComparison, compare_with_rules
from dermkit.runs.sentences import Fragments

if TYPE_CHECKING:
    from dermkit.runs.verdict import RunVerdict

BeliefWord = Literal["believe", "believe with care", "do not believe"]

MAX_REASONS = 3
"""Reasons on a first screen; the others follow below."""


@dataclass(frozen=True)
class Belief:
    """The word on a run's figures. doubts: those of weight "refuse" first. split: the one that is judged."""

    word: BeliefWord
    split: str
    doubts: tuple[Doubt, ...]

    @property
    def reasons(self) -> tuple[Doubt, ...]:
        """The doubts of a first screen: at most three, of different kinds where there are so many."""
        first_of_kind: dict[str, Doubt] = {}
        for doubt in self.doubts:
            first_of_kind.setdefault(doubt.code, doubt)
        others = [doubt for doubt in self.doubts if doubt is not first_of_kind[doubt.code]]
        chosen = [*first_of_kind.values(), *others][:MAX_REASONS]
        return tuple(doubt for doubt in self.doubts if any(doubt is one for one in chosen))

    @property
    def remedies(self) -> tuple[str, ...]:
        """What to do about the reasons, each once."""
        return tuple(dict.fromkeys(doubt.remedy for doubt in self.reasons))

    def as_dict(self) -> dict[str, Any]:
        """Return what verdict.json holds."""
        rows = [
            {"code": doubt.code, "weight": doubt.weight, "sentence": doubt.text, "evidence": doubt.evidence,
             "remedy": doubt.remedy}
            for doubt in self.doubts
        ]  # fmt: skip
        return {"split": self.split, "verdict": self.word, "doubts": rows}


def judge_belief(run: RunFolder, verdict: "RunVerdict", lint_rows: Sequence[Mapping[str, Any]] | None) -> Belief:
    """Return the word on the split of an evaluated run that `verdict` is on. lint_rows: of its lint.json."""
    found = list(_find_doubts(run, lint_rows, verdict))
    refusals = [doubt for doubt in found if doubt.weight == "refuse"]
    cares = [doubt for doubt in found if doubt.weight == "care"]
    word: BeliefWord = "do not believe" if refusals else "believe with care" if cares else "believe"
    return Belief(word, verdict.split, (*refusals, *cares))


def _find_doubts(
    run: RunFolder, lint_rows: Sequence[Mapping[str, Any]] | None, verdict: "RunVerdict"
) -> Iterator[Doubt]:
    split = verdict.split
    split_metrics = run.metrics["splits"][split]
    is_test_kept = run.leaves_test_to_ensemble or run.scores_test_by_ensemble
    yield from doubts.independence_doubts(split, run.seal, seen_split=SEEN_SPLIT, is_test_kept=is_test_kept)
    yield from doubts.leak_doubts(run.leaks, split)
    yield from _rule_doubts(split_metrics, verdict, split)
    yield from doubts.audit_doubts(run.run_json, split_metrics["n"])
    yield from doubts.lint_doubts(lint_rows)
    yield from doubts.group_doubts(split_metrics, split)
    yield from doubts.calibration_doubts(split_metrics, split)
    yield from _guarantee_doubts(verdict)
    yield from counterfactual_doubts(run.path, split)
    yield from foreign_doubts(run.path, split)
    yield from doubts.size_doubts(run.metrics, split)
    yield from _weakness_doubts(verdict, split)
    yield from _training_doubts(run)


# Rules that see no lesion -----------------------------------------------------------------------------------------

_RULE_REMEDY = (
    "Find what tells the classes apart beside the lesion (`dermkit audit DATASET`), then train without it."
)


def _rule_doubts(split_metrics: Mapping[str, Any], verdict: "RunVerdict", split: str) -> Iterator[Doubt]:
    """Yield that a rule without a look at the lesion does as well as the net, or nearly as well."""
    if verdict.majority_position in ("below", "unclear"):
        yield Doubt(
            "majority", "refuse", verdict.fragments, "blind", "Train longer, on more images, or another net."
        )
    comparisons = compare_with_rules(split_metrics, split)
    if not comparisons and (clauses := verdict.objections.get("colour")):
        sentence: Fragments = ("Not better than a rule that sees only the mean colour: ", *clauses[0], ".")
        yield Doubt("image_blind", "refuse", sentence, "results", _RULE_REMEDY)
    failed = [comparison for comparison in comparisons if comparison.is_not_better]
    if failed and failed[0].rule != "majority":
        is_refused = len(failed) == len(comparisons) and any(
            one.position in ("below", "unclear") for one in failed
        )
        weight: DoubtWeight = "refuse" if is_refused else "care"
        yield Doubt("image_blind", weight, verdict.rule_headline, "blind", _RULE_REMEDY)
    else:
        yield from _strong_rules(comparisons)


def _strong_rules(comparisons: Sequence[RuleComparison]) -> Iterator[Doubt]:
    """Yield the best rule where the net beats it, but where much of what the net gains can be had by it."""
    for comparison in comparisons:
        share = _share_of_gain(comparison)
        if share >= doubts.STRONG_SHARE.get(comparison.rule, 2.0):
            fragments: Fragments = (
                "Much of it can be told without a look at the lesion: ",
                *comparison.fragments, ".",
            )  # fmt: skip
            yield Doubt("strong_rule", "care", fragments, "blind", _RULE_REMEDY)
            return


def _share_of_gain(comparison: RuleComparison) -> float:
    """Return what a rule gains over chance as a share of what the net gains; 0 where its own gain is not certain."""
    net = comparison.split_metrics["metrics"][comparison.metric]["value"]
    estimate = comparison.split_metrics["image_blind"]["rules"][comparison.rule]["metrics"][comparison.metric]
    n_classes = len(comparison.split_metrics["confusion_matrix"])
    chance = 0.5 if comparison.metric == "auroc" else 1 / n_classes
    if not doubts.has_reliable_interval(estimate) or estimate["ci95"][0] <= chance or net <= chance:
        return 0.0
    return float((estimate["value"] - chance) / (net - chance))


# What is weak, broken or was said while training --------------------------------------------------------------------


def _guarantee_doubts(verdict: "RunVerdict") -> Iterator[Doubt]:
    remedy = "Set thresholds anew on images like those it will see."
    for sentence in verdict.broken_sentences:
        yield Doubt("guarantee", "care", sentence, "decisions", remedy)


def _weakness_doubts(verdict: "RunVerdict", split: str) -> Iterator[Doubt]:
    """Yield that a rate is no better than a coin, that probabilities say nothing, or that nothing can be told."""
    for kind in ("coin", "prior", "accuracy"):
        for clause in verdict.objections.get(kind, ()):
            first, *rest = clause
            sentence: Fragments = (f"{str(first)[:1].upper()}{str(first)[1:]}", *rest, ".")
            yield Doubt(
                kind, "care", sentence, "results", "Train a stronger net (`dermkit train auto`) or on more images."
            )
    if verdict.outcome == "unknown" and split != SEEN_SPLIT:
        yield Doubt(
            "unknown", "care", verdict.fragments, "results",
            "Test it on more images: `dermkit evaluate MODEL --on DATASET`.",
        )  # fmt: skip


def _training_doubts(run: RunFolder) -> Iterator[Doubt]:
    for text in dict.fromkeys([*run.metrics.get("warnings", ()), *run.run_json.get("warnings", ())]):
        if str(text).startswith(UNSTABLE_TRAINING):
            yield Doubt("unstable", "care", (str(text),), "training", "Train again with a lower learning rate.")
    over = run.metrics.get("overfitting") or {}
    if over.get("overfitting") and run.run_json.get("keep") == "last":
        yield Doubt(
            "overfitting", "care", (str(over["sentence"]),), "training", "Keep the best epoch (keep=best)."
        )
