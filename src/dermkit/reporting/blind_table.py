"""The table of image-blind rules of a report: the net, then the rules, best first, each with its place on a scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dermkit.runs.folder import Json
from dermkit.runs.image_blind import RULE_TITLES


@dataclass(frozen=True)
class RuleRow:
    """A row: the net, or a rule. key: its place in metrics.json, before the name of a figure; difference_key: the same
    of the differences, "" for the net. metrics, differences: the estimates by metric.
    """

    title: str
    key: str
    difference_key: str
    metrics: Mapping[str, Json]
    differences: Mapping[str, Json]


@dataclass(frozen=True)
class BlindTable:
    """rows: the net first, then rules. reasons: title of a rule and why it does not apply, each reason once."""

    rows: list[RuleRow]
    reasons: list[tuple[str, str]]


def blind_table(split_metrics: Mapping[str, Any], split: str) -> BlindTable | None:
    """Return the table of a split, None for a run that was evaluated before there were rules."""
    body = split_metrics.get("image_blind")
    if not body:
        return None
    prefix = f"{split}.image_blind.rules"
    rows = [
        RuleRow(
            RULE_TITLES.get(name, name), f"{prefix}.{name}.metrics", f"{prefix}.{name}.difference", rule["metrics"],
            rule["difference"],
        )
        for name, rule in body["rules"].items()
    ]  # fmt: skip
    rows.sort(key=lambda row: -(row.metrics["balanced_accuracy"]["value"] or 0.0))
    net = RuleRow("This net", split, "", split_metrics["metrics"], {})
    titles_by_reason: dict[str, list[str]] = {}
    for name, reason in body["not_applicable"].items():
        titles_by_reason.setdefault(reason, []).append(RULE_TITLES.get(name, name))
    reasons = [("; ".join(titles), reason) for reason, titles in titles_by_reason.items()]
    return BlindTable([net, *rows] if rows else [], reasons)
