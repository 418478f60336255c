"""What a run's files say that a paper needs, as short texts: nothing is computed, nothing made up.

A fact that the files do not hold is missing from the result, and whoever shows it says that it is open.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dermkit.data.unknown import known_ids
from dermkit.metrics.stats.estimate import humanise, reliability
from dermkit.reporting.facts import exclusion_counts, recorded_train_counts
from dermkit.reporting.recipe_rows import recipe_rows
from dermkit.runs.folder import SEEN_SPLIT, RunFolder
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
    dataset = run.run_json.get("dataset", {})
    if dataset.get("name"):
        yield "data_source", f"{dataset['name']}, {dataset.get('n', '?')} images"
    if run.is_foreign:
        yield "foreign", "Predictions are those of another tool, whose training no file of this run describes"
    yield "licences", str(dataset.get("licences") or "")
    yield (
        "classes",
        "; ".join(
            f"{row['name']} ({row['diagnosis'] or 'diagnosis not known'}, {row['malignancy'] or 'not known'})"
            for row in run.class_rows
        ),
    )
    yield "split_sizes", _sizes_text(run)
    yield "partition", _partition_text(run)
    if run.is_external:
        yield "training_source", str((run.run_json.get("training_dataset") or {}).get("name") or "")
    train = recorded_train_counts(run)
    yield (
        "class_counts",
        "training images: " + ", ".join(f"{name} {n}" for name, n in train.items()) if train else "",
    )
    exclusions = exclusion_counts(run)
    yield "exclusions", "; ".join(f"{n} images: {reason}" for reason, n in exclusions)
    yield "audit", _audit_text(dataset.get("audit"))
    yield "attributes", _attributes_text(run)


def _sizes_text(run: RunFolder) -> str:
    """Return how many images each split has; of pooled folds, in which an image is on several sides, how."""
    counts: Mapping[str, Any] = run.split_json.get("counts") or {}
    n_folds = 0 if run.pooled is None else run.pooled["n_folds"]
    if not counts:
        return ""
    if n_folds < 2:
        names = {SEEN_SPLIT: "seen in training"}
        return listed([f"{n} {names.get(name, name)}" for name, n in counts.items()]) + " images"
    per_net = f"in {n_folds} folds, of which each net learned from about {counts.get('train', '?')}"
    if run.scores_test_by_ensemble:
        return f"{counts['validation']} training images {per_net}, and {counts['test']} test images beside them"
    n_validation, n_test = counts.get("validation", "?"), counts.get("test", "?")
    if n_validation == n_test:
        return f"{n_test} images {per_net}; each is a validation and a test image of one net"
    return f"{n_test} images {per_net}; each is a test image of one net, {n_validation} also a validation image of one"


def _partition_text(run: RunFolder) -> str:
    """Return the split and its leaks, as far as ids of lesions and patients could show any."""
    split, leaks = run.split_json, run.leaks
    if split.get("scheme", "") in ("", "foreign", "external"):
        return ""
    text = f"split {split.get('name', '')} (scheme {split['scheme']})"
    if leaks.get("total") is None:
        return text
    has_ids = not any(str(one).startswith("No lesion or patient ids") for one in run.run_json.get("warnings", ()))
    shared = "a lesion, patient or pixels" if has_ids else "pixels (lesions and patients are not known)"
    n = f"{leaks['total']} of {leaks.get('n', '?')} test images"
    return f"{text}; {n} share {shared} with training or validation images"


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
    yield from _net_and_training(run).items()
    yield "optimizer", rows.get("Loss and optimizer", "")
    yield "augmentation", rows.get("Augmentation", "").replace("none", "no augmentation")
    for fact, row in _OPTIONAL_ROWS.items():
        yield fact, "" if rows.get(row) == "none" else rows.get(row, "")
    teacher = run.run_json.get("teacher") or {}
    yield "distillation", " ".join(filter(None, (rows.get("Distillation", ""), _in_brackets(teacher.get("note")))))
    yield "imbalance", _imbalance_text(run, rows)
    yield "weights", _weights_text(run.run_json)
    yield "nets", _nets_text(run)


def _net_and_training(run: RunFolder) -> dict[str, str]:
    """Return the facts of `member_facts`: of an ensemble those of each of its models."""
    if not run.ensemble:
        return member_facts(run)
    sources = run.ensemble.get("sources", ())
    of_each = {
        fact: "; ".join(dict.fromkeys(f"{one['recipe']}: {one[fact]}" for one in sources if one.get(fact)))
        for fact in ("model_type", "training")
    }
    return of_each | {
        "seed": _common_text(sources, "seed"),
        "software": _common_text(sources, "software") or _versions_text(run),
    }


def _common_text(sources: Sequence[Mapping[str, Any]], fact: str) -> str:
    """Return a fact once where all models share it, else that of each model; "" where no model has it."""
    texts = [str(one.get(fact) or "") for one in sources]
    if len(set(texts)) < 2:
        return "".join(texts[:1])
    return "; ".join(
        f"{one['recipe']}: {text or 'not recorded'}" for one, text in zip(sources, texts, strict=True)
    )


def member_facts(run: RunFolder) -> dict[str, str]:
    """Return the facts that each model of an ensemble has of its own: `model_type`, `training`, `software`, `seed`.

    "" where the run's files do not say one.
    """
    seeds = [run.run_json.get("seed")] if run.pooled is None else [one["seed"] for one in run.pooled["seeds"]]
    known = [str(seed) for seed in seeds if seed is not None]
    return {
        **_recipe_facts(run),
        "software": _versions_text(run),
        "seed": f"seed{'s' * (len(known) > 1)} {listed(known)}" if known else "",
    }


def _versions_text(run: RunFolder) -> str:
    versions = run.environment.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _recipe_facts(run: RunFolder) -> dict[str, str]:
    rows = dict(recipe_rows(run.recipe))
    backbone = rows.get("Backbone", "")
    if run.run_json.get("continued_from"):
        backbone = backbone.partition(", ")[0]  # its recipe does not say what the training began with
    phases = [text for name, text in rows.items() if name.startswith("Phase")]
    return {
        "model_type": "; ".join(filter(None, (backbone, rows.get("Head", "")))),
        "training": "; then ".join(phases),
    }


_OPTIONAL_ROWS = {
    "second_input": "Second input", "growth": "Growth of small classes", "smote": "SMOTE",
    "mixing": "Mixing of images", "test_views": "Views of an image", "model_choice": "Weights kept",
}  # fmt: skip
"""Fact -> the row of a recipe that says it; recipes without it have no such fact."""


def _in_brackets(text: object) -> str:
    return f"({str(text).rstrip('.')})" if text else ""


def _imbalance_text(run: RunFolder, rows: Mapping[str, str]) -> str:
    if run.recipe is None:
        return ""
    optim = run.recipe.optim
    texts = [
        "" if optim.class_weights == "none" else f"class weights {optim.class_weights}",
        "" if optim.sampling == "shuffled" else f"sampling {optim.sampling}",
        f"logit adjustment {optim.logit_adjustment:g}" if optim.logit_adjustment else "",
        "augmented copies of smaller classes" if run.recipe.grow else "",
        f"SMOTE: {rows['SMOTE']}" if "SMOTE" in rows else "",
    ]
    return "; ".join(filter(None, texts)).replace("square_root", "by the square root")


def _weights_text(run_json: Mapping[str, Any]) -> str:
    """Return which weights a training began with; one that went on from another run began with that run's."""
    first = _first_weights_text(run_json.get("weights") or {})
    record = run_json.get("continued_from") or {}
    if not record:
        return first
    n, note = record["epochs"], _in_brackets(record.get("note"))
    started = f"; that run started from {first}" if first else ""
    return (
        " ".join(filter(None, (f"the weights of run {record['run']} after {n} epoch{'s' * (n != 1)}", note)))
        + started
    )


def _first_weights_text(weights: Mapping[str, Any]) -> str:
    if not weights.get("origin"):
        return ""
    if weights["origin"] == "none":
        return "random weights"
    note = f" ({weights['note']})" if weights.get("note") else ""
    return f"pretrained weights {'of a file' if weights['origin'] == 'file' else 'of the hub'}{note}"


def _nets_text(run: RunFolder) -> str:
    """Return which nets scored which images where there are several; "" of one net."""
    if run.ensemble:
        sources = [f"{one['recipe']} ({one['weight']:.3g})" for one in run.ensemble.get("sources", ())]
        return f"The model is the weighted mean of {listed(sources)}. {run.ensemble.get('note', '')}".strip()
    if run.pooled is None or run.pooled["n_folds"] < 2:
        return ""
    seeds = run.pooled["seeds"]
    shown = f" The figures of single nets are of seed {run.pooled['shown_seed']}." if len(seeds) > 1 else ""
    if run.scores_test_by_ensemble:
        return (
            "Each validation image was scored by the one net that had not been trained on it, each test image by the "
            f"mean of all nets.{shown}"
        )
    return f"Each image was scored by the one net that had not been trained on it.{shown}"


def _evaluation_facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    split = run.headline_split
    body = run.metrics["splits"][split]
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
