"""Is the net clearly better than the best image-blind rule? The sentence that a report begins with where it is not.

Figures come from metrics.json. The best rule is the best of several on these very images, so the comparison favours it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dermkit.runs.image_blind import RULE_TITLES
from dermkit.runs.sentences import Figure, Fragments, Position, plain_text, position_of

_LABELS: Mapping[str, tuple[str, Literal["percent", "number"]]] = {
    "balanced_accuracy": ("a balanced accuracy of ", "percent"),
    "auroc": ("an AUROC, malignant, of ", "number"),
}
"""Metric -> how a sentence says it, and the form of its numbers."""


@dataclass(frozen=True)
class RuleComparison:
    """The net and the best image-blind rule in one metric. position: of the difference, net less rule, around 0."""

    metric: str
    rule: str
    position: Position
    is_ahead: bool
    split: str
    split_metrics: Mapping[str, Any]

    @property
    def is_beaten(self) -> bool:
        """Whether the net is clearly better; an interval that is unreliable shows neither that nor the opposite."""
        return self.position == "above"

    @property
    def is_not_better(self) -> bool:
        """Whether the net is not shown to be better, by a reliable interval, or does not even have the higher value."""
        return self.position in ("below", "unclear") or not self.is_ahead

    @property
    def title(self) -> str:
        """The rule as a sentence names it."""
        title = RULE_TITLES.get(self.rule, self.rule)
        return f"the rule “{title}”" if self.rule == "majority" else f"a rule that sees only {title}"

    @property
    def objection(self) -> str:
        """The clause of a verdict, without figures: the headline has them."""
        metric = "AUROC" if self.metric == "auroc" else self.metric.replace("_", " ")
        return f"its {metric} is not shown to be above that of {self.title}"

    @property
    def fragments(self) -> Fragments:
        """What rule and net reach, as a clause."""
        label, form = _LABELS[self.metric]
        rule_key = f"{self.split}.image_blind.rules.{self.rule}"
        rule = self.split_metrics["image_blind"]["rules"][self.rule]
        net_value = self.split_metrics["metrics"][self.metric]["value"]
        return (
            f"{self.title} has {label}",
            Figure(rule["metrics"][self.metric]["value"], f"{rule_key}.metrics.{self.metric}.value", form),
            ", the net ", Figure(net_value, f"{self.split}.{self.metric}.value", form),
            *_difference(rule["difference"][self.metric], f"{rule_key}.difference.{self.metric}", form),
        )  # fmt: skip


def _difference(estimate: Mapping[str, Any], key: str, form: Literal["percent", "number"]) -> Fragments:
    """Return the difference in brackets, with its interval where there is one."""
    interval: Fragments = ()
    if estimate.get("ci95"):
        low, high = (Figure(bound, f"{key}.ci95.{side}", form) for side, bound in enumerate(estimate["ci95"]))
        interval = (", 95 % interval ", low, " to ", high)
    return (" (net minus rule ", Figure(estimate["value"], f"{key}.value", form), *interval, ")")


def compare_with_rules(split_metrics: Mapping[str, Any], split: str) -> list[RuleComparison]:
    """Return the comparison with the best rule in each metric in which there is one; [] for runs without rules."""
    body = split_metrics.get("image_blind") or {}
    comparisons = []
    for metric, rule in (body.get("best") or {}).items():
        estimate = body["rules"][rule]["difference"][metric]
        if estimate["value"] is None or (split_metrics["metrics"].get(metric) or {}).get("value") is None:
            continue
        position = position_of(estimate, 0.0)
        comparisons.append(RuleComparison(metric, rule, position, estimate["value"] > 0, split, split_metrics))
    return comparisons


def headline_fragments(split_metrics: Mapping[str, Any], split: str) -> Fragments:
    """Return the sentence that a report begins with: the net is not clearly better than a rule; () where it is."""
    comparisons = compare_with_rules(split_metrics, split)
    failed = [comparison for comparison in comparisons if comparison.is_not_better]
    if not failed:
        return ()
    beaten = [comparison for comparison in comparisons if comparison.is_beaten]
    clauses = [comparison.fragments for comparison in failed]
    clauses += [("better, however, in that ", *comparison.fragments) for comparison in beaten]
    return (
        f"Not shown to be better than a rule that never looks at the lesion: on these {split} images ",
        *(fragment for number, clause in enumerate(clauses) for fragment in (*("; ",)[: number > 0], *clause)),
        ".",
    )


def beaten_rules_text(split_metrics: Mapping[str, Any], split: str) -> str:
    """Return the sentence for a terminal where the net is clearly better than the best rule in each figure, or ""."""
    comparisons = compare_with_rules(split_metrics, split)
    if not comparisons or not all(comparison.is_beaten for comparison in comparisons):
        return ""
    clauses = "; ".join(plain_text(comparison.fragments) for comparison in comparisons)
    return f"clearly better than the best rule that never looks at the lesion: {clauses}"
