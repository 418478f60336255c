"""The verdict on a run: is it better than rules that see no lesion? Report, terminal, comparison and model card say it.

A rule that always gives the commonest class, one that sees only the mean colour of an image, one that states how
common each class is, and a coin: a net must beat each, with its whole interval, and with one that is reliable.
Nothing is computed again: figures come from metrics.json.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dermkit.metrics.classification.confusion import accuracy, balanced_accuracy
from dermkit.metrics.decisions.guarantees import BrokenGuarantee, find_broken_guarantees
from dermkit.metrics.stats.estimate import caveats, humanise, reliability
from dermkit.runs.folder import SEEN_SPLIT, RunFolder
from dermkit.runs.image_blind import MEAN_COLOUR
from dermkit.runs.rule_verdict import compare_with_rules, headline_fragments
from dermkit.runs.sentences import Figure, Fragments, Position, Reason, plain_text, position_of

VerdictOutcome = Literal["above", "below", "unclear", "unknown"]

COIN = 0.5
"""Of the malignant images, and of the others, a coin calls half rightly: what finds no more is not called useful."""

SUMMARY_METRICS = ("balanced_accuracy", "accuracy", "sensitivity", "specificity", "auroc")
"""What a terminal and a model card show of a split."""

SUBGROUP_SUMMARY = ("sensitivity", "specificity", "auroc", "accuracy")
"""What a model card shows of a group of the test images."""

_RATES = (("sensitivity", "finds", "malignant"), ("specificity", "clears", "other"))


@dataclass(frozen=True)
class RunVerdict:
    """The verdict on one split.

    outcome: above = better than every rule that sees no lesion; below = worse than the majority rule; unclear = not
    shown to be better than one of them; unknown = an interval that this rests on is absent or unreliable. metric: the
    one compared with the majority rule ("" = none has an interval). majority_class, majority_metrics: what that rule
    predicts, and its accuracy and balanced accuracy. majority_position: where the interval of metric lies around that
    rule's value. objections: kind (accuracy, colour, rule, coin, prior) -> clauses, found where the majority rule is
    beaten. metrics_key: their place in metrics.json ("" = from the
    confusion matrix). broken: guarantees that this split breaks. rule_headline: that the net is not clearly better than
    an image-blind rule, () where it is or where none was fitted.
    """

    split: str
    outcome: VerdictOutcome
    fragments: Fragments
    metric: str
    majority_class: str
    majority_metrics: dict[str, float | None]
    metrics_key: str
    broken: tuple[BrokenGuarantee, ...]
    rule_headline: Fragments
    majority_position: Position
    objections: Mapping[str, tuple[Fragments, ...]]

    @property
    def text(self) -> str:
        """The verdict as plain text."""
        return plain_text(self.fragments)

    @property
    def broken_sentences(self) -> tuple[Fragments, ...]:
        """A sentence for each broken guarantee."""
        return tuple(guarantee_fragments(broken, self.split) for broken in self.broken)


def judge_run(run: RunFolder, split: str = "") -> RunVerdict:
    """Return the verdict on a split of an evaluated run, by default on the headline's."""
    return judge_metrics(run.metrics, split or run.headline_split)


def judge_metrics(metrics: Mapping[str, Any], split: str) -> RunVerdict:
    """Return the verdict on a split of metrics.json."""
    judge = _Judge(metrics, split)
    outcome, fragments = judge.judge()
    return RunVerdict(
        split, outcome, fragments, judge.metric, judge.majority_class, judge.majority_metrics, judge.majority_key,
        find_broken_guarantees(metrics["splits"][split]), headline_fragments(metrics["splits"][split], split),
        judge.majority_position, judge.objections,
    )  # fmt: skip


def guarantee_fragments(broken: BrokenGuarantee, split: str = "test") -> Fragments:
    """Return the sentence about a broken guarantee."""
    key = f"{split}.{broken.key}" if broken.key else ""
    estimate_key = key if broken.rate == "coverage" else f"{key}.{broken.rate}"
    target_key = f"{split}.policy.conformal.coverage_target" if broken.rate == "coverage" else f"{key}.target"
    subject = (
        f"prediction sets that hold the true class of {broken.class_name} in "
        if broken.rate == "coverage"
        else f"a {broken.rate} of "
    )
    return (
        f"Broken guarantee: {subject}", Figure(broken.target, target_key, "stated"),
        f" was guaranteed on validation images, and the {split} images show ",
        Figure(broken.value, f"{estimate_key}.value"), " (95 % interval ",
        Figure(broken.ci95[0], f"{estimate_key}.ci95.0"), " to ", Figure(broken.ci95[1], f"{estimate_key}.ci95.1"),
        ", n = ", Figure(broken.n, f"{estimate_key}.n", "count"), "). Do not rely on it.",
    )  # fmt: skip


def summarise_test(run: RunFolder, point_names: Collection[str]) -> dict[str, Any] | None:
    """Return what a model says of its test images: verdict, figures as text, broken guarantees; None without any.

    point_names: the model's operating points; those of one evaluation alone are no guarantee of the model.
    """
    split = "test"
    if split not in run.split_names:
        return None
    verdict, metrics = judge_run(run, split), run.metrics["splits"][split]
    return {
        "split": split,
        "n": metrics["n"],
        **({"is_of_single_nets": False} if run.scores_test_by_ensemble else {}),
        "outcome": verdict.outcome,
        "verdict": " ".join(filter(None, (plain_text(verdict.rule_headline), verdict.text))),
        "figures": {
            name: estimate_text(metrics["metrics"][name])
            for name in SUMMARY_METRICS
            if (metrics["metrics"].get(name) or {}).get("value") is not None
        },
        "subgroups": _subgroups(metrics.get("subgroups") or {}),
        "operating_points": {
            point["name"]: {rate: _rate_facts(point[rate]) for rate, _, _ in _RATES}
            for point in (metrics.get("policy") or {}).get("operating_points", ())
            if point["name"] in point_names
        },
        "broken_guarantees": [
            {**broken.as_dict(), "sentence": plain_text(guarantee_fragments(broken, split))}
            for broken in verdict.broken
            if broken.rate == "coverage" or broken.name in point_names
        ],
    }


def _subgroups(breakdowns: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return attribute -> its groups with their figures as text. breakdowns: `subgroups` of metrics.json."""
    return {
        attribute: [
            {
                **{name: group[name] for name in ("name", "n", "n_groups", "n_malignant", "too_few")},
                "figures": {
                    name: estimate_text(group["metrics"][name])
                    for name in SUBGROUP_SUMMARY
                    if name in group["metrics"]
                },
            }
            for group in breakdown["groups"]
        ]
        for attribute, breakdown in breakdowns.items()
    }


def _rate_facts(estimate: Mapping[str, Any]) -> dict[str, Any]:
    """Return an estimate as a model keeps it: its numbers, and the text that says how far to rely on them."""
    return {**{name: estimate.get(name) for name in ("value", "ci95", "n")}, "text": estimate_text(estimate)}


def estimate_text(estimate: Mapping[str, Any]) -> str:
    """Return an estimate as text: "81.2 % (95 % interval 68.1 % to 89.8 %, n = 64)", marked where unreliable."""
    if estimate.get("value") is None:
        return f"not defined: {humanise(str(estimate.get('reason') or 'no reason recorded'))}"
    grade, n = reliability(estimate), estimate["n"]
    if grade == "none":
        interval = "interval unreliable" if estimate.get("ci95") else "no interval"
    else:
        low, high = (Figure(bound, "") for bound in estimate["ci95"])
        interval = f"95 % interval {low} to {high}{', unreliable' if grade else ''}"
    return f"{Figure(estimate['value'], '')} ({interval}, n = {n})"


class _Judge:
    """One split of metrics.json, and what the rules that see no lesion reach on it."""

    def __init__(self, metrics: Mapping[str, Any], split: str) -> None:
        self.split = split
        self.split_metrics = metrics["splits"][split]
        self.estimates: Mapping[str, Any] = self.split_metrics["metrics"]
        self.baselines: Mapping[str, Any] = self.split_metrics.get("baselines") or {}
        self.has_both_sides = 0 < len(metrics.get("positive") or ()) < len(metrics["classes"])
        self.colour: Mapping[str, Any] = self.baselines.get("mean_colour") or {}
        self.majority_class, self.majority_metrics, self.majority_key = self._majority_rule(metrics["classes"])
        self.metric, self.majority_position = self._against_majority()
        is_beaten = self.majority_position == "above"
        self.objections = (
            {kind: tuple(find()) for kind, find in self._objection_kinds().items()} if is_beaten else {}
        )

    def judge(self) -> tuple[VerdictOutcome, Fragments]:
        """Return the outcome and its sentence."""
        rule, name = f"always answering “{self.majority_class}” without looking", self.metric.replace("_", " ")
        if self.split in ("train", SEEN_SPLIT):
            return "unknown", (
                f"Whether this is better than {rule} cannot be told: training looked at these images.",
            )
        if self.majority_position == "unknown":
            reason = f"the interval of {name} is unreliable" if name else "there is no interval to compare with"
            return "unknown", (
                f"Whether this is better than {rule} cannot be told: {reason}",
                *self._why(name),
                ".",
            )
        figure = self._majority_figure(self.metric)
        if self.majority_position == "below":
            return "below", (
                f"Worse than {rule}: the whole interval of {name} lies below that rule's ",
                figure,
                ".",
            )
        if self.majority_position == "unclear":
            return "unclear", (
                f"Not distinguishable from {rule}: that rule's ", figure, f" lies inside the 95 % interval of {name}.",
            )  # fmt: skip
        if clauses := [clause for of_kind in self.objections.values() for clause in of_kind]:
            return "unclear", ("Not clearly better than rules that see no lesion: ", *_joined(clauses), ".")
        if doubts := list(self._doubts()):
            return "unknown", (f"Whether this is better than {rule} cannot be told: ", *_joined(doubts), ".")
        return "above", (
            f"Better than {rule}: the whole interval of {name} lies above that rule's ", figure,
            *self._passed_over(), ".", *self._malignant_sentence(),
        )  # fmt: skip

    # --- the majority rule ---

    def _majority_rule(self, classes: list[str]) -> tuple[str, dict[str, float | None], str]:
        """Return the majority class, the metrics of always predicting it, and their place in metrics.json.

        Without training counts: the commonest class of the split itself, which can only improve the baseline.
        """
        stored_rule = self.baselines.get("majority")
        if stored_rule:
            rule = {name: (stored_rule.get(name) or {}).get("value") for name in ("accuracy", "balanced_accuracy")}
            return str(stored_rule["class"]), rule, f"{self.split}.baselines.majority"
        totals = [sum(row) for row in self.split_metrics["confusion_matrix"]]
        predicted_class = totals.index(max(totals))
        constant_answer = np.zeros((len(totals), len(totals)))
        constant_answer[:, predicted_class] = totals
        values = {
            "accuracy": float(accuracy(constant_answer)),
            "balanced_accuracy": float(balanced_accuracy(constant_answer)),
        }
        rule = {metric: None if math.isnan(value) else value for metric, value in values.items()}
        return str(classes[predicted_class]), rule, ""

    def _against_majority(self) -> tuple[str, Position]:
        """Return the metric that is compared with the majority rule, and where its interval lies.

        It is balanced accuracy; accuracy where that has no interval, or where only accuracy can show an advantage.
        """
        positions = {
            metric: position_of(self._estimate(metric), self.majority_metrics[metric])
            for metric in ("balanced_accuracy", "accuracy")
            if self._estimate(metric).get("ci95") and self.majority_metrics[metric] is not None
        }
        if not positions:
            return "", "unknown"
        metric = next(iter(positions))
        if positions[metric] == "unknown" and positions.get("accuracy") == "above":
            metric = "accuracy"
        return metric, positions[metric]

    # --- what speaks against it ---

    def _objection_kinds(self) -> dict[str, Callable[[], Iterator[Fragments]]]:
        """Return what yields a clause for each rule that is not beaten where it matters, by kind."""
        return {
            "accuracy": self._accuracy_objections, "colour": self._colour_objections, "rule": self._rule_objections,
            "coin": self._coin_objections, "prior": self._prior_objections,
        }  # fmt: skip

    def _accuracy_objections(self) -> Iterator[Fragments]:
        if position_of(self._estimate("accuracy"), self.majority_metrics["accuracy"]) == "below":
            yield (
                "its accuracy, ", self._figure("accuracy"), f", lies wholly below that of always answering "
                f"“{self.majority_class}”, ", self._majority_figure("accuracy"),
            )  # fmt: skip

    def _rule_objections(self) -> Iterator[Fragments]:
        for comparison in compare_with_rules(self.split_metrics, self.split):
            if comparison.is_not_better and comparison.rule not in (
                "majority",
                MEAN_COLOUR,
            ):  # these have their own
                yield (comparison.objection,)

    def _coin_objections(self) -> Iterator[Fragments]:
        for rate, verb, kind in _RATES:
            if position_of(self._estimate(rate), COIN) in ("below", "unclear"):
                yield (
                    f"it {verb} ", self._figure(rate), *self._interval(rate), f" of the {kind} images, which is not "
                    "shown to be more than the half that a coin gets", *self._colour_aside(rate),
                )  # fmt: skip

    def _prior_objections(self) -> Iterator[Fragments]:
        prior_loss = (self.baselines.get("prior") or {}).get("loss") or {}
        if position_of(self._estimate("loss"), prior_loss.get("value")) == "above":
            yield (
                "its probabilities are worse than stating how common each class is: loss ",
                self._figure("loss", "number"), " against ",
                Figure(prior_loss["value"], f"{self.split}.baselines.prior.loss.value", "number"),
            )  # fmt: skip

    def _colour_objections(self) -> Iterator[Fragments]:
        """Yield where the rule that sees only the mean colour is not beaten, over all classes and in malignancy."""
        metrics = dict.fromkeys((self.metric, "accuracy"))
        for metric in metrics:
            position = position_of(self._estimate(metric), self._colour_value(metric))
            if position == "below" or (position == "unclear" and metric == self.metric):
                verb = "is not shown to be above" if position == "unclear" else "lies wholly below"
                yield (
                    f"its {metric.replace('_', ' ')}, ", self._figure(metric), f", {verb} that of mean colour alone, ",
                    self._colour_figure(metric),
                )  # fmt: skip
        rates = ("sensitivity", "specificity")
        if not self._is_beaten_by_colour():
            return
        yield (
            "in telling malignant images from others, mean colour alone does as well: sensitivity ",
            self._figure(rates[0]), " against ", self._colour_figure(rates[0]), ", specificity ",
            self._figure(rates[1]), " against ", self._colour_figure(rates[1]),
        )  # fmt: skip

    def _is_beaten_by_colour(self) -> bool:
        """Return whether mean colour alone calls malignancy as well: higher in neither rate, or one for the other.

        One rate for the other is no loss where the sum of both is surely higher, or the AUROC.
        """
        values = [self._colour_value("sensitivity"), self._colour_value("specificity")]
        estimates = [self._estimate("sensitivity"), self._estimate("specificity")]
        positions = [position_of(estimate, value) for estimate, value in zip(estimates, values, strict=True)]
        if "unknown" in positions or None in values:
            return False
        if "above" not in positions:
            return True
        if "below" not in positions:
            return False
        least_sum = sum(estimate["ci95"][0] for estimate in estimates)
        is_sum_above = least_sum > sum(value for value in values if value is not None)
        return not is_sum_above and position_of(self._estimate("auroc"), self._colour_value("auroc")) != "above"

    def _doubts(self) -> Iterator[Fragments]:
        """Yield why malignancy cannot be judged: no such image, or an interval that is unreliable."""
        for rate, _, kind in _RATES:
            estimate = self._estimate(rate)
            if not self.has_both_sides or not estimate:
                continue
            if estimate.get("value") is None:
                yield (f"there is no {kind} {self.split} image",)
            elif position_of(estimate, COIN) == "unknown":
                yield (f"the interval of malignant {rate} is unreliable", *self._why(rate))

    def _malignant_sentence(self) -> Fragments:
        if not self.has_both_sides or any(self._estimate(rate).get("value") is None for rate, _, _ in _RATES):
            return ()
        return (
            " It finds ", self._figure("sensitivity"), " of the malignant images", *self._colour_aside("sensitivity"),
            " and clears ", self._figure("specificity"), " of the others", *self._colour_aside("specificity"), ".",
        )  # fmt: skip

    # --- figures ---

    def _estimate(self, metric: str) -> Mapping[str, Any]:
        return self.estimates.get(metric) or {}

    def _figure(self, metric: str, form: Literal["percent", "number"] = "percent") -> Figure:
        return Figure(self._estimate(metric)["value"], f"{self.split}.{metric}.value", form)

    def _interval(self, metric: str) -> Fragments:
        low, high = self._estimate(metric)["ci95"]
        key = f"{self.split}.{metric}.ci95"
        return " (", Figure(low, f"{key}.0"), " to ", Figure(high, f"{key}.1"), ")"

    def _majority_figure(self, metric: str) -> Figure:
        value = self.majority_metrics.get(metric)
        key = f"{self.majority_key}.{metric}.value" if self.majority_key else ""
        return Figure(math.nan if value is None else value, key, metric=metric)

    def _colour_value(self, metric: str) -> float | None:
        value = (self.colour.get(metric) or {}).get("value")
        return None if value is None else float(value)

    def _colour_figure(self, metric: str) -> Figure:
        return Figure(self._colour_value(metric) or 0.0, f"{self.split}.baselines.mean_colour.{metric}.value")

    def _colour_aside(self, metric: str) -> Fragments:
        if self._colour_value(metric) is None:
            return ()
        return " (mean colour alone ", self._colour_figure(metric), ")"

    def _why(self, metric: str) -> Fragments:
        """Return why an interval is unreliable, in brackets; nothing where no reason is recorded."""
        metric = metric.replace(" ", "_")
        reason = str(self._estimate(metric).get("reason") or "")
        return (" (", Reason(reason, f"{self.split}.{metric}.reason"), ")") if caveats(reason) else ()

    def _passed_over(self) -> Fragments:
        """Say that balanced accuracy could not be compared, where accuracy was."""
        if self.metric == "balanced_accuracy" or not self._estimate("balanced_accuracy").get("ci95"):
            return ()
        return "; the interval of balanced accuracy is unreliable", *self._why("balanced_accuracy")


def _joined(clauses: list[Fragments]) -> Fragments:
    """Return clauses as one sentence, by semicolons."""
    return tuple(
        fragment for index, clause in enumerate(clauses) for fragment in (("; ", *clause) if index else clause)
    )
