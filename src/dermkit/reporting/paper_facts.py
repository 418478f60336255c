"""What a run's files say that a paper needs, as short texts: nothing is computed, nothing made up.

A fact that the files do not hold is missing from the result, and whoever shows it says that it is open.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dermkit.data.unknown import known_ids
from dermkit.metrics.stats.estimate import humanise, reliability
from dermkit.reporting.facts import exclusion_counts, recipe_rows, recorded_train_counts
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import ATTRIBUTES_FILE

PAPER_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc_macro": "AUROC, mean over the classes",
    "sensitivity": "sensitivity for malignant",
    "specificity": "specificity for malignant",
    "auroc": "AUROC for malignant",
    "brier_malignant": "Brier score for malignant",
}
"""Metric of metrics.json -> its name in a text, in this order."""

_GROUP_COLUMNS = ("age", "sex", "site", "skin_type", "source")


def paper_facts(run: RunFolder) -> dict[str, str]:
    """Return name -> text of what the run's files say; a name is missing where they say nothing."""
    facts = {
        **dict(_data_facts(run)),
        **dict(_training_facts(run)),
        **dict(_evaluation_facts(run)),
        "research_use": "Research use only. Not a medical device.",
    }
    return {name: text for name, text in facts.items() if text}


def figure_text(estimate: Mapping[str, Any]) -> str:
    """Return an estimate as "0.812 (95 % interval 0.681 to 0.898, n = 64)", or why it is left out."""
    if estimate.get("value") is None:
        return f"left out: {humanise(str(estimate.get('reason') or 'no reason recorded'))}"
    grade = reliability(estimate)
    interval = "no reliable interval"
    if grade != "none":
        low, high = estimate["ci95"]
        interval = f"95 % interval {low:.3f} to {high:.3f}{', which cannot be relied on' if grade else ''}"
    return f"{estimate['value']:.3f} ({interval}, n = {estimate['n']})"


def split_figures(run: RunFolder, split: str) -> list[tuple[str, str]]:
    """Return (name, text) of the figures of a split that metrics.json has, undefined ones with their reason."""
    metrics = run.metrics["splits"][split]["metrics"]
    return [
        (name, figure_text(metrics[key])) for key, name in PAPER_METRICS.items() if metrics.get(key) is not None
    ]


def listed(parts: Sequence[str]) -> str:
    """Return parts as "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _data_facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    dataset, split = run.run_json.get("dataset", {}), run.split_json
    if dataset.get("name"):
        yield "data_source", f"{dataset['name']}, {dataset.get('n', '?')} images"
    yield "licences", str(dataset.get("licences") or "")
    yield (
        "classes",
        "; ".join(
            f"{row['name']} ({row['diagnosis'] or 'diagnosis not known'}, {row['malignancy'] or 'not known'})"
            for row in run.class_rows
        ),
    )
    counts = split.get("counts") or {}
    yield "split_sizes", listed([f"{n} {name}" for name, n in counts.items()]) + " images" if counts else ""
    scheme, leaks = split.get("scheme", ""), run.leaks
    if scheme:
        leak_text = (
            f"; {leaks['total']} of {leaks.get('n', '?')} test images share a lesion, patient or pixels with "
            "training or validation images"
            if leaks.get("total") is not None
            else ""
        )
        yield "partition", f"split {split.get('name', '')} (scheme {scheme}){leak_text}"
    train = recorded_train_counts(run)
    yield (
        "class_counts",
        "training images: " + ", ".join(f"{name} {n}" for name, n in train.items()) if train else "",
    )
    exclusions = exclusion_counts(run)
    yield "exclusions", "; ".join(f"{n} images: {reason}" for reason, n in exclusions)
    yield "audit", _audit_text(dataset.get("audit"))
    yield "attributes", _attributes_text(run)


def _audit_text(audit: Any) -> str:
    if not isinstance(audit, Mapping) or not audit.get("state"):
        return ""
    findings = [*audit.get("errors", []), *audit.get("warnings", [])]
    texts = [
        f"{finding.get('code', '')} {finding.get('title', '')} ({finding.get('n', '?')} images)"
        if isinstance(finding, Mapping)
        else str(finding)
        for finding in findings
    ]
    return f"audit {audit['state']}; findings: {', '.join(texts) or 'none'}"


def _attributes_text(run: RunFolder) -> str:
    """Return of how many evaluated images the metadata are known, "" where none is."""
    table = run.table(ATTRIBUTES_FILE)
    columns = [name for name in _GROUP_COLUMNS if table is not None and name in table]
    if table is None or not columns:
        return ""
    counts = {name: int((known_ids(table[name]) != "").sum()) for name in columns}
    known = [f"{name.replace('_', ' ')} of {n}" for name, n in counts.items() if n]
    return f"known among {len(table)} evaluated images: {', '.join(known)}" if known else ""


def _training_facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    rows = dict(recipe_rows(run.recipe))
    yield "preprocessing", rows.get("Images", "")
    yield "model_type", "; ".join(filter(None, (rows.get("Backbone", ""), rows.get("Head", ""))))
    phases = [text for name, text in rows.items() if name.startswith("Phase")]
    yield "training", "; then ".join(phases)
    yield "optimizer", rows.get("Loss and optimizer", "")
    yield "augmentation", rows.get("Augmentation", "").replace("none", "no augmentation")
    yield "second_input", rows.get("Second input", "")
    yield "model_choice", rows.get("Weights kept", "")
    if run.recipe is not None and run.recipe.optim.class_weights != "none":
        yield "imbalance", f"class weights {run.recipe.optim.class_weights}"
    weights = run.run_json.get("weights", {})
    yield "weights", str(weights.get("origin") or "")
    versions = run.environment.get("versions") or {}
    yield "software", ", ".join(f"{name} {version}" for name, version in versions.items())
    yield "seed", f"seed {run.run_json['seed']}" if run.run_json.get("seed") is not None else ""


def _evaluation_facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    split = run.headline_split
    body = run.metrics["splits"][split]
    yield "evaluation_size", f"{body['n']} {split} images of {body.get('n_groups', '?')} lesions or patients"
    figures = [f"{name} {text}" for name, text in split_figures(run, split)]
    yield "figures", "; ".join(figures)
    yield (
        "measures",
        ", ".join(PAPER_METRICS[key] for key in PAPER_METRICS if body["metrics"].get(key) is not None),
    )
    methods = [
        estimate.get("method") for estimate in body["metrics"].values() if estimate and estimate.get("ci95")
    ]
    yield "interval_methods", "95 % intervals: " + "; ".join(sorted(set(map(str, methods)))) if methods else ""
    yield (
        "test_class_counts",
        f"{split} images: " + ", ".join(f"{name} {row['n']}" for name, row in body["per_class"].items()),
    )
    yield "confusion", "confusion matrix in metrics.json and report.html" if body.get("confusion_matrix") else ""
    groups = sorted(body.get("subgroups") or {})
    yield "subgroups", f"figures by {listed(groups)} in metrics.json" if groups else ""
    points = [
        point for point in (body.get("policy") or {}).get("operating_points", []) if isinstance(point, Mapping)
    ]
    yield "thresholds", f"{len(points)} operating points, fixed on validation images" if points else ""
    if run.is_external:
        yield "external_test", f"tested on {run.run_json.get('dataset', {}).get('name', 'another data set')}"
