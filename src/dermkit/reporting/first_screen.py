"""The figures of a report's first screen: each with its interval, and what simple rules reach, on one scale."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dermkit.metrics.stats.estimate import reliability
from dermkit.reporting.labels import FALLBACKS, METRIC_TITLES
from dermkit.runs.folder import RunFolder
from dermkit.runs.image_blind import RULE_TITLES
from dermkit.runs.rule_verdict import compare_with_rules
from dermkit.runs.sentences import Figure

if TYPE_CHECKING:
    from dermkit.runs.belief import Belief
    from dermkit.runs.verdict import RunVerdict

KEY_METRICS = ("balanced_accuracy", "accuracy", "sensitivity", "specificity", "auroc")
WITHOUT_MALIGNANT = ("balanced_accuracy", "accuracy", "auroc_macro")


@dataclass(frozen=True)
class RuleMark:
    """What a rule reaches. kind: majority or best. key: its place in metrics.json, "" = counted."""

    kind: str
    title: str
    key: str
    value: float


@dataclass(frozen=True)
class KeyFigure:
    """A row: an estimate of metrics.json at `key`; rules: marks on its scale. interval: None where it misleads."""

    metric: str
    title: str
    key: str
    estimate: Mapping[str, Any]
    interval: tuple[float, float] | None
    rules: tuple[RuleMark, ...]

    @property
    def words(self) -> str:
        """The picture in words."""
        bounds = "" if self.interval is None else f", 95 % interval {Figure(self.interval[0], '')} to "
        bounds += "" if self.interval is None else str(Figure(self.interval[1], ""))
        rules = "".join(f"; {rule.title}: {Figure(rule.value, '')}" for rule in self.rules)
        return f"{self.title} {Figure(self.estimate['value'], '')}{bounds}{rules}"


@dataclass(frozen=True)
class LegendEntry:
    """What a mark stands for. figures: (name of the metric, metric, mark), a rule may be marked on several scales."""

    kind: str
    title: str
    figures: tuple[tuple[str, str, RuleMark], ...]


def rule_legend(rows: Sequence[KeyFigure]) -> list[LegendEntry]:
    """Return every rule that is marked on a scale, with what it reaches there: the best rule differs by metric."""
    figures_of_rule: dict[tuple[str, str], list[tuple[str, str, RuleMark]]] = {}
    for row in rows:
        name = "AUROC" if row.metric == "auroc" else row.metric.replace("_", " ")
        for rule in row.rules:
            figures_of_rule.setdefault((rule.kind, rule.title), []).append((name, row.metric, rule))
    return [LegendEntry(kind, title, tuple(figures)) for (kind, title), figures in figures_of_rule.items()]


def key_figures(run: RunFolder, verdict: "RunVerdict") -> list[KeyFigure]:
    """Return the rows of the split that the verdict is on, the figure that it rests on first."""
    metrics = run.metrics["splits"][verdict.split]["metrics"]
    has_malignant = (metrics.get("sensitivity") or {}).get("value") is not None
    names = [_defined_name(name, metrics) for name in (KEY_METRICS if has_malignant else WITHOUT_MALIGNANT)]
    names = sorted(
        dict.fromkeys(name for name in names if name in metrics), key=lambda name: name != verdict.metric
    )
    return [_key_figure(run, verdict, name, metrics[name]) for name in names]


def _defined_name(name: str, metrics: Mapping[str, Any]) -> str:
    """Return the metric, or the one over the classes present where it is not defined."""
    fallback = FALLBACKS.get(name, "")
    is_undefined = (metrics.get(name) or {"value": None})["value"] is None
    return fallback if is_undefined and (metrics.get(fallback) or {}).get("value") is not None else name


def _key_figure(run: RunFolder, verdict: "RunVerdict", name: str, estimate: Mapping[str, Any]) -> KeyFigure:
    bounds = estimate.get("ci95")
    interval = (bounds[0], bounds[1]) if bounds and reliability(estimate) != "none" else None
    return KeyFigure(
        name, METRIC_TITLES.get(name, name.replace("_", " ")), f"{verdict.split}.{name}", estimate, interval,
        tuple(_rule_marks(run, verdict, name)),
    )  # fmt: skip


def _rule_marks(run: RunFolder, verdict: "RunVerdict", name: str) -> Iterator[RuleMark]:
    value = verdict.majority_metrics.get(name)
    if value is not None:
        key = f"{verdict.metrics_key}.{name}.value" if verdict.metrics_key else ""
        yield RuleMark("majority", f"always answering “{verdict.majority_class}”", key, value)
    for comparison in compare_with_rules(run.metrics["splits"][verdict.split], verdict.split):
        rule = comparison.split_metrics["image_blind"]["rules"][comparison.rule]
        if comparison.metric == name and comparison.rule != "majority":
            key = f"{verdict.split}.image_blind.rules.{comparison.rule}.metrics.{name}.value"
            title = f"the best rule that never looks at the lesion: {RULE_TITLES.get(comparison.rule, comparison.rule)}"
            yield RuleMark("best", title, key, rule["metrics"][name]["value"])


def evidence_anchors(belief: "Belief", sections: Collection[str]) -> dict[str, str]:
    """Return evidence -> id of a section that the page has, for every doubt and for the next steps."""
    wanted = [doubt.evidence for doubt in belief.doubts] + ["next"]
    return {name: name if name in sections else "performance" for name in wanted}
