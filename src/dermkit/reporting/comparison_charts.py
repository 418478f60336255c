"""Charts of a comparison: figures and differences as forest plots, and the ROC curves of all entries in one picture."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermkit.metrics.classification.roc import RocCurve, mean_roc_curve
from dermkit.render.curves import render_roc_overlay
from dermkit.render.forest import forest_rows, without_misleading_interval
from dermkit.runs.folder import RunFolder
from dermkit.runs.predictions import to_scored_set

MAX_CURVES = 8
"""Curves in one picture: as many as there are colours that every reader can tell apart."""

FOREST_METRICS = ("balanced_accuracy", "accuracy", "auroc", "sensitivity", "specificity")


def metric_forest(comparison_json: Mapping[str, Any], split: str, names: Sequence[str]) -> dict[str, Any]:
    """Return metric -> forest rows of every entry, 0 to 1; the bounds of a recipe are its lowest and highest run."""
    forests: dict[str, Any] = {}
    for metric in FOREST_METRICS:
        items = [(name, _own_figure(comparison_json, name, split, metric)) for name in names]
        rows = forest_rows([(name, item) for name, item in items if item], low=0.0, high=1.0)
        if rows:
            forests[metric] = rows
    return forests


def unfolded_metrics(forests: Mapping[str, Sequence[Any]], n_entries: int) -> list[str]:
    """Return the metrics to show at once: AUROC, and balanced accuracy, or accuracy where that is undefined for one."""
    first = next(
        (name for name in ("balanced_accuracy", "accuracy") if len(forests.get(name, ())) == n_entries), "accuracy"
    )
    return [name for name in (first, "auroc") if name in forests]


def _own_figure(comparison_json: Mapping[str, Any], name: str, split: str, metric: str) -> dict[str, Any] | None:
    groups, runs = comparison_json["groups"], comparison_json["runs"]
    if name in groups:
        item = groups[name]["metrics"].get(split, {}).get(metric)
        bounds = ("min", "max")
    else:
        item, bounds = runs[name].get(split, {}).get(metric), ("low", "high")
    if item is None or item["value"] is None:
        return None
    ends = [item[bound] for bound in bounds]
    reason = "" if name in groups else item["reason"]
    return {"value": item["value"], "ci95": None if None in ends else ends, "n": item["n"], "reason": reason}


def difference_forest(pairs: Sequence[Mapping[str, Any]], split: str) -> dict[str, Any]:
    """Return metric -> {rows, reach} of all pairs of a split; the scale goes from -reach to reach, 0 in the middle."""
    forests = {}
    for metric in FOREST_METRICS:
        items = [
            (f"{pair['first']} minus {pair['second']}", pair["metrics"][metric])
            for pair in pairs
            if pair["split"] == split
            and metric in pair["metrics"]
            and pair["metrics"][metric]["value"] is not None
        ]
        if not items:
            continue
        shown = [without_misleading_interval(item) for _, item in items]
        ends = [abs(end) for item in shown for end in (item["ci95"] or [item["value"]])]
        reach = _round_up(max(ends))
        forests[metric] = {"rows": forest_rows(items, low=-reach, high=reach), "reach": reach}
    return forests


def _round_up(value: float) -> float:
    """Return the end of a scale that holds a value: 0.05, 0.1, 0.2, 0.5 or 1."""
    return next((end for end in (0.05, 0.1, 0.2, 0.5) if value <= end), 1.0)


def roc_picture(
    runs: Mapping[str, Sequence[Path]], aurocs: Mapping[str, float | None], split: str
) -> dict[str, str] | None:
    """Return the overlaid ROC curves of malignant against the rest as uri, alt and note; None where none is defined.

    runs: entry -> the folders of its runs, the best entry first; the first `MAX_CURVES` are drawn. aurocs: entry ->
    the figure in the legend. Folds and trainings of one recipe are pooled: the mean of the nets' curves, weighted by
    their pairs of images.
    """
    pooled = {name: _pooled_curve(folders, split) for name, folders in runs.items()}
    curves = {name: curve for name, curve in pooled.items() if curve is not None}
    if not curves:
        return None
    shown = dict(list(curves.items())[:MAX_CURVES])
    png = render_roc_overlay({name: (curve.fpr, curve.tpr, aurocs.get(name)) for name, curve in shown.items()})
    hidden = len(curves) - len(shown)
    return {
        "uri": "data:image/png;base64," + base64.b64encode(png).decode("ascii"),
        "alt": f"ROC curves, malignant against the rest, {split} images: {', '.join(shown)}",
        "note": f"The best {len(shown)} of {len(curves)} are drawn." if hidden else "",
    }


def _pooled_curve(folders: Sequence[Path], split: str) -> RocCurve | None:
    """Return the curve of these runs, None without malignant and other images of the split, or without such classes."""
    scores, positives, nets, n_rows = [], [], [], 0
    for run in map(RunFolder, folders):
        rows = run.predictions[run.predictions["split"] == split]
        if rows.empty:
            continue
        scored = to_scored_set(rows, run.classes, None)
        if not scored.has_both_sides:
            return None
        scores.append(scored.p_malignant)
        positives.append(scored.is_malignant)
        nets += [net_rows + n_rows for net_rows in scored.rows_by_net]
        n_rows += len(rows)
    try:
        return mean_roc_curve(np.concatenate(scores), np.concatenate(positives), nets) if scores else None
    except ValueError:  # one class alone
        return None
