"""comparison.html, comparison.json and the tables beside them, written from a `Comparison`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment

from dermkit.comparison.against_published import PublishedComparison, compare_with_published
from dermkit.comparison.claims import CheckedClaim
from dermkit.comparison.compare import Comparison, EntryPair
from dermkit.comparison.disagreements import TIE_SEED
from dermkit.comparison.variance import VarianceComponents
from dermkit.comparison.verdict import (
    LOWER_IS_BETTER,
    RepeatedDifference,
    images_noun,
    two_digits,
    verdict,
)
from dermkit.files import make_folder, write_json, write_rows, write_text
from dermkit.metrics.classification.difference import Difference
from dermkit.reporting.comparison_charts import (
    difference_forest,
    metric_forest,
    roc_picture,
    unfolded_metrics,
)
from dermkit.reporting.labels import page_templates
from dermkit.reporting.mistakes import image_opener, mistake_uri
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import LEADERBOARD_TABLE
from dermkit.runs.sentences import plain_text
from dermkit.runs.verdict import guarantee_fragments, judge_run

COMPARISON_FORMAT = 2
LEADERBOARD_METRICS = ("balanced_accuracy", "accuracy", "sensitivity", "specificity", "auroc", "f1_macro", "loss")
"""Columns of the leaderboard, which is sorted by the first one."""

HEADLINE_METRICS = ("accuracy", "balanced_accuracy", "auroc")
MAX_DISAGREEMENTS = 24
"""Images on a sheet of disagreements."""

VARIANCE_METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc", "loss")
"""Rows of the table of variance components."""

PAIR_TABLE_COLUMNS = (
    "first", "second", "split", "metric", "difference", "low", "high", "n", "test", "p", "p_holm", "first_only_correct",
    "second_only_correct", "images_needed", "method", "verdict", "design", "n_trainings_first", "n_trainings_second",
    "n_folds",
    "first_mean", "second_mean", "first_sd", "second_sd", "first_sd_seed", "second_sd_seed", "first_sd_images",
    "second_sd_images", "error_seeds", "error_images",
)  # fmt: skip


def write_comparison_page(
    comparison: Comparison,
    claims: Sequence[CheckedClaim],
    folder: Path,
    *,
    verdicts: Sequence[tuple[str, list[str]]],
    images: Path | None,
) -> Path:
    """Write comparison.json and comparison.html; returns the page's path.

    verdicts: as `run_verdicts` returns. images: the root that paths of images are relative to, None where the images
    are not on this machine.
    """
    make_folder(folder)
    comparison_json = comparison_dict(comparison)
    comparison_json["published"] = _claim_dicts(comparison, claims)
    write_json(folder / "comparison.json", comparison_json, format=COMPARISON_FORMAT)
    splits = list(comparison_json["same_images"])
    boards = _leaderboards(comparison_json)
    template = _templates().get_template("comparison.html.j2")
    html = template.render(
        runs=comparison_json["runs"],
        groups=comparison_json["groups"],
        notes=comparison_json["notes"],
        variance_metrics=VARIANCE_METRICS,
        lower_is_better=LOWER_IS_BETTER,
        tie_seed=TIE_SEED,
        singles=len(comparison_json["runs"])
        - sum(len(group["runs"]) for group in comparison_json["groups"].values()),
        splits=[split for split in ("test", "validation", "train") if split in splits],
        boards=boards,
        charts={
            split: _charts(comparison, comparison_json, split, [name for name, _ in board])
            for split, board in boards.items()
        },
        figures=LEADERBOARD_METRICS,
        same_images=comparison_json["same_images"],
        image_texts=comparison_json["image_texts"],
        pairs=comparison_json["pairs"],
        claims=comparison_json["published"],
        leads=_lead_sentences(comparison, claims),
        verdicts=verdicts,
        sheets=_disagreement_sheets(comparison, images),
        disagreements={split_name: len(table) for split_name, table in comparison.disagreements.items()},
    )
    write_text(folder / "comparison.html", html)
    return folder / "comparison.html"


def _templates() -> Environment:
    environment = page_templates()
    environment.filters["signed"] = lambda value: f"{value:+.3f}"
    environment.filters["about"] = two_digits
    environment.filters["images_noun"] = images_noun
    return environment


def _leaderboards(comparison_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return split -> the rows of its leaderboard, the best first."""
    runs, groups = comparison_json["runs"], comparison_json["groups"]
    return {split: _leaderboard_order(runs, groups, split) for split in comparison_json["same_images"]}


def _charts(
    comparison: Comparison, comparison_json: Mapping[str, Any], split: str, names: Sequence[str]
) -> dict[str, Any]:
    """Return what the page draws of a split: figures and differences as forest plots, and the ROC curves."""
    metrics = metric_forest(comparison_json, split, names)
    return {
        "metrics": metrics,
        "unfolded": unfolded_metrics(metrics, len(names)),
        "differences": difference_forest(comparison_json["pairs"], split),
        "roc": roc_picture(_runs_of(comparison, names), _values(comparison, "auroc", split), split),
    }


def _runs_of(comparison: Comparison, names: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Return entry -> the folders of its runs, in the order of `names`."""
    runs = {entry.name: entry.runs for entry in comparison.entries}
    return {name: runs[name] for name in names if name in runs}


def _values(comparison: Comparison, metric: str, split: str) -> dict[str, float | None]:
    """Return entry -> its value in a metric, None where that is not defined."""
    table = comparison.table
    rows = table[(table["metric"] == metric) & (table["split"] == split)]
    return {
        str(name): None if pd.isna(value) else float(value)
        for name, value in zip(rows["run"], rows["value"], strict=True)
    }


def _claim_dicts(comparison: Comparison, claims: Sequence[CheckedClaim]) -> list[dict[str, Any]]:
    """Return each claim as comparison.json holds it, with the comparisons of runs with its figures."""
    by_claim = _published_comparisons(comparison, claims)
    return [
        {**claim.as_dict(), "comparisons": [published.as_dict() for published in by_claim[claim.claim.name]]}
        for claim in claims
    ]


def headline_sentences(comparison: Comparison, claims: Sequence[CheckedClaim]) -> list[str]:
    """Return the sentences to read first: of the pairs on test (else validation), then of the published figures."""
    return [
        f"{subject}: {sentence}" if subject else sentence
        for subject, sentences in _lead_sentences(comparison, claims)
        for sentence in sentences
    ]


def run_verdicts(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return each run's name with its own verdict, as its report has it; broken guarantees come first."""
    verdicts = [
        (name, judge_run(RunFolder(run)))
        for entry in comparison.entries
        for name, run in zip(entry.run_names, entry.runs, strict=True)
    ]
    return [
        (
            name,
            [*(plain_text(guarantee_fragments(broken, verdict.split)) for broken in verdict.broken), verdict.text],
        )
        for name, verdict in verdicts
    ]


def _lead_sentences(comparison: Comparison, claims: Sequence[CheckedClaim]) -> list[tuple[str, list[str]]]:
    """Return (subject, sentences): subject is the pair or recipe that the sentences are about, "" if there is one."""
    split_name = "test" if any(pair.split == "test" for pair in comparison.pairs) else "validation"
    split_pairs = [pair for pair in comparison.pairs if pair.split == split_name]
    has_several = len(split_pairs) > 1
    leads = [
        (
            f"{pair.first} against {pair.second}" if has_several and not pair.reason else "",
            _headline_differences(pair),
        )
        for pair in split_pairs
    ]
    if not comparison.pairs:
        leads = [(name, _variance_sentences(splits)) for name, splits in comparison.components.items()]
    claim_sentences = [sentence for checked_claim in claims for sentence in checked_claim.sentences()]
    published_sentences = [
        published_comparison.sentence()
        for rows in _published_comparisons(comparison, claims).values()
        for published_comparison in rows
    ]
    return [*leads, ("", claim_sentences + published_sentences)]


def _published_comparisons(
    comparison: Comparison, claims: Sequence[CheckedClaim]
) -> dict[str, list[PublishedComparison]]:
    names = [entry.name for entry in comparison.entries]
    return compare_with_published(comparison.table, names, comparison.components, claims)


def _variance_sentences(splits: Mapping[str, Mapping[str, VarianceComponents]]) -> list[str]:
    """Return the sentences about a recipe that is compared with no other: its mean and standard deviations."""
    sentences = []
    for metric, components in splits.get("test", splits.get("validation", {})).items():
        if metric not in HEADLINE_METRICS or components.sd is None:
            continue
        mean_text = f"{metric.replace('_', ' ')}: {components.mean:.3f}, mean of {components.n_runs}"
        if components.sd_images is None:
            sentences.append(f"{mean_text} folds, which differ by {components.sd:.3f} (SD).")
        else:
            sentences.append(
                f"{mean_text} trainings; another training on these images lies {components.sd:.3f} away "
                f"(SD), one training "
                f"on other images {components.sd_images:.3f}."
            )
    return sentences


def _headline_differences(pair: EntryPair) -> list[str]:
    if pair.reason:
        return pair.sentences()
    return [
        sentence
        for difference, sentence in zip(pair.differences, pair.sentences(), strict=True)
        if difference.metric in HEADLINE_METRICS and difference.estimate.value is not None
    ]


def _leaderboard_order(runs: dict[str, Any], groups: dict[str, Any], split: str) -> list[tuple[str, list[str]]]:
    """Return groups and single runs of a split, best first, with a group's members; those without a value last."""
    members = {name for group in groups.values() for name in group["runs"]}
    metrics_by_name = {
        name: split_metrics.get(split) for name, split_metrics in runs.items() if name not in members
    }
    metrics_by_name |= {name: group["metrics"].get(split) for name, group in groups.items()}

    def sort_key(name: str) -> float:
        value = (metrics_by_name[name] or {}).get(LEADERBOARD_METRICS[0], {}).get("value")
        return float("inf") if value is None else -float(value)

    names = sorted(
        (name for name, split_metrics in metrics_by_name.items() if split_metrics),
        key=lambda name: (sort_key(name), name),
    )
    return [(name, groups[name]["runs"] if name in groups else []) for name in names]


def _scored_pixel_hashes(runs: Sequence[Path]) -> dict[str, str]:
    """Return image_id -> hash of the pixels that runs scored; "", which no image has, where two scored others."""
    hashes: dict[str, str] = {}
    for run in runs:
        for image_id, pixel_hash in RunFolder(run).pixel_hashes().items():
            hashes[image_id] = pixel_hash if hashes.get(image_id, pixel_hash) == pixel_hash else ""
    return hashes


def _disagreement_sheets(comparison: Comparison, images: Path | None) -> dict[str, list[dict[str, Any]]]:
    pixel_hashes = _scored_pixel_hashes(comparison.folders)
    return {
        split: _disagreement_tiles(table, images, pixel_hashes)
        for split, table in comparison.disagreements.items()
    }


def _disagreement_tiles(
    table: pd.DataFrame, images: Path | None, pixel_hashes: Mapping[str, str]
) -> list[dict[str, Any]]:
    shown_rows = table.head(MAX_DISAGREEMENTS)
    find_pixels = image_opener(shown_rows, images, pixel_hashes)
    answer_columns = [name for name in table.columns if name not in ("image_id", "path", "label", "n_wrong")]
    return [
        {
            "image_id": row["image_id"],
            "label": row["label"],
            "uri": mistake_uri(find_pixels(row["image_id"])),
            "answers": [(name, row[name]) for name in answer_columns],
        }
        for row in shown_rows.to_dict("records")
    ]


_RUN_FIELDS = ("value", "low", "high", "n", "method", "reason")
_GROUP_FIELDS = ("n_trainings", "sd", "min", "max")


# Tables and JSON --------------------------------------------------------------------------------------------------


def write_comparison_tables(comparison: Comparison, folder: Path) -> Path:
    """Write leaderboard.csv, pairs.csv and disagreements_<split>.csv; returns the first one's path."""
    make_folder(folder)
    write_text(folder / LEADERBOARD_TABLE, comparison.table.to_csv(index=False, lineterminator="\n"))
    write_rows(
        folder / "pairs.csv", PAIR_TABLE_COLUMNS, [row for pair in comparison.pairs for row in _pair_rows(pair)]
    )
    for split, table in comparison.disagreements.items():
        write_text(folder / f"disagreements_{split}.csv", table.to_csv(index=False, lineterminator="\n"))
    return folder / LEADERBOARD_TABLE


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Return what comparison.json holds: runs and groups with their metrics, pairs with differences and verdicts."""
    groups_by_name = {entry.name: entry for entry in comparison.entries if entry.is_group}
    runs: dict[str, Any] = {}
    group_metrics: dict[str, Any] = {name: {} for name in groups_by_name}
    for row in comparison.table.astype(object).where(comparison.table.notna(), None).to_dict("records"):
        fields = (*_RUN_FIELDS, *_GROUP_FIELDS) if row["run"] in groups_by_name else _RUN_FIELDS
        target_metrics = group_metrics if row["run"] in groups_by_name else runs
        target_metrics.setdefault(row["run"], {}).setdefault(row["split"], {})[row["metric"]] = {
            field: row[field] for field in fields
        }
    groups = {
        name: {
            "runs": list(entry.run_names), "note": entry.note, "metrics": group_metrics[name],
            "variance_components": {
                split: {metric: _components_dict(difference) for metric, difference in components_by_metric.items()}
                for split, components_by_metric in comparison.components.get(name, {}).items()
            },
        }
        for name, entry in groups_by_name.items()
    }  # fmt: skip
    pairs = [
        {
            "first": pair.first,
            "second": pair.second,
            "split": pair.split,
            "n": pair.n,
            "reason": pair.reason,
            "design": pair.design,
            "metrics": {difference.metric: _difference_dict(pair, difference) for difference in pair.differences},
        }
        for pair in comparison.pairs
    ]
    return {
        "runs": runs,
        "groups": groups,
        "same_images": comparison.same_images,
        "image_texts": comparison.image_texts,
        "pairs": pairs,
        "notes": comparison.notes,
    }


def _components_dict(components: VarianceComponents | None) -> dict[str, Any]:
    """Return the variance components of a metric as JSON, {} for None."""
    if components is None:
        return {}
    return {
        "mean": components.mean, "values": list(components.values), "sd": components.sd, "sd_seed": components.sd_seed,
        "sd_images": components.sd_images,
    }  # fmt: skip


def _difference_dict(pair: EntryPair, difference: Difference) -> dict[str, Any]:
    difference_json = {
        **difference.estimate.as_dict(),
        "test": difference.test,
        "p": difference.p,
        "p_holm": difference.p_holm,
        "discordant_counts": None if difference.discordant_counts is None else list(difference.discordant_counts),
        "images_needed": difference.further_images_needed,
        "is_significant": difference.is_significant,
        "verdict": verdict(difference, pair.first, pair.second),
    }
    if not isinstance(difference, RepeatedDifference):
        return difference_json
    return {
        **difference_json,
        "first": _components_dict(difference.first),
        "second": _components_dict(difference.second),
        "error_seeds": difference.error_seeds,
        "error_images": difference.error_images,
        "is_spread_borrowed": difference.is_spread_borrowed,
        "n_folds": difference.n_folds,
        "n_trainings": list(difference.n_trainings),
        "needs_trainings": difference.needs_trainings,
    }


def _pair_rows(pair: EntryPair) -> Iterator[list[object]]:
    """Yield a pair's rows of pairs.csv; what a row does not have is empty."""
    rows: list[dict[str, object]] = (
        [{"n": pair.n}] if pair.reason else [_difference_cells(difference) for difference in pair.differences]
    )
    for row, sentence in zip(rows, pair.sentences(), strict=True):
        row |= {"first": pair.first, "second": pair.second, "split": pair.split, "design": pair.design}
        row["verdict"] = sentence
        yield ["" if (cell := row.get(column)) is None else cell for column in PAIR_TABLE_COLUMNS]


def _difference_cells(difference: Difference) -> dict[str, object]:
    low, high = difference.estimate.ci95 or (None, None)
    first_only, second_only = difference.discordant_counts or (None, None)
    cells: dict[str, object] = {
        "metric": difference.metric, "difference": difference.estimate.value, "low": low, "high": high,
        "n": difference.estimate.n, "test": difference.test, "p": difference.p, "p_holm": difference.p_holm,
        "first_only_correct": first_only, "second_only_correct": second_only,
        "images_needed": difference.further_images_needed, "method": difference.estimate.method,
        "n_trainings_first": 1, "n_trainings_second": 1,
    }  # fmt: skip
    if not isinstance(difference, RepeatedDifference):
        return cells
    components = {"first": _components_dict(difference.first), "second": _components_dict(difference.second)}
    cells |= {
        f"{recipe}_{name}": fields.get(name)
        for name in ("mean", "sd", "sd_seed", "sd_images")
        for recipe, fields in components.items()
    }
    n_first, n_second = difference.n_trainings
    return cells | {
        "n_trainings_first": n_first, "n_trainings_second": n_second, "n_folds": difference.n_folds or None,
        "error_seeds": difference.error_seeds, "error_images": difference.error_images,
    }  # fmt: skip
