"""Names and order of metrics on pages, and the templates' environment."""

import functools
import json
import re

from jinja2 import Environment

from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.estimate import humanise, reliability
from dermkit.render.html import template_environment

METRIC_TITLES = {
    "balanced_accuracy": "Balanced accuracy (mean recall)",
    "accuracy": "Accuracy",
    "precision_macro": "Precision, mean over classes",
    "recall_macro": "Recall, mean over classes",
    "recall_macro_present": "Recall, mean over the classes present",
    "precision_macro_present": "Precision, mean over classes where defined",
    "f1_macro": "F1, mean over classes",
    "f1_macro_present": "F1, mean over classes where defined",
    "sensitivity_macro": "Sensitivity, mean over classes",
    "specificity_macro": "Specificity, mean over classes",
    "specificity_macro_present": "Specificity, mean over classes where defined",
    "auroc_macro": "AUROC, mean over classes",
    "auroc_macro_present": "AUROC, mean over the classes present",
    "average_precision_macro": "Average precision, mean over classes",
    "average_precision_macro_present": "Average precision, mean over the classes present",
    "sensitivity": "Sensitivity (recall), malignant",
    "recall": "Recall, malignant",
    "specificity": "Specificity, malignant",
    "precision": "Precision, malignant",
    "ppv": "Positive predictive value, malignant",
    "f1": "F1, malignant",
    "auroc": "AUROC, malignant",
    "average_precision": "Average precision, malignant",
    "loss": "Loss (cross-entropy; lower is better)",
    "brier": "Brier score (lower is better)",
    "ece": "Calibration error, ECE (lower is better)",
    "top_2_accuracy": "True class among the two most probable",
    "top_3_accuracy": "True class among the three most probable",
    "mcc_multiclass": "Matthews correlation, all classes",
    "kappa": "Cohen's kappa, all classes",
    "npv_macro": "Negative predictive value, mean over classes",
    "npv_macro_present": "Negative predictive value, mean over classes where defined",
    "mcc_macro": "Matthews correlation, mean over classes",
    "mcc_macro_present": "Matthews correlation, mean over classes where defined",
    "npv": "Negative predictive value, malignant",
    "mcc": "Matthews correlation, malignant",
    "sensitivity_at_specificity_90": "Sensitivity at a specificity of 0.90, malignant",
    "sensitivity_at_specificity_95": "Sensitivity at a specificity of 0.95, malignant",
    "specificity_at_sensitivity_90": "Specificity at a sensitivity of 0.90, malignant",
    "specificity_at_sensitivity_95": "Specificity at a sensitivity of 0.95, malignant",
    "pauc_above_tpr80": "Partial AUROC above a sensitivity of 0.8 (ISIC 2024: chance 0.02, perfect 0.2), malignant",
    "auc_sens_80": "Area right of a sensitivity of 0.8 (official scorer: chance 0.18, perfect 1), malignant",
    "ece_classwise": "Calibration error, mean over classes (lower is better)",
    "calibration_slope": "Calibration slope, malignant (1 is right; below 1 the model is too sure)",
    "calibration_intercept": "Calibration intercept, malignant (0 is right; below 0 it states malignant too often)",
    "brier_malignant": "Brier score, malignant against the rest (0 to 1; lower is better)",
    "brier_reliability": "Brier score, part: reliability (lower is better)",
    "brier_resolution": "Brier score, part: resolution (higher is better)",
    "brier_uncertainty": "Brier score, part: uncertainty, of the labels alone",
    "net_benefit_5": "Net benefit at a threshold of 5\N{NO-BREAK SPACE}%, malignant",
    "net_benefit_10": "Net benefit at a threshold of 10\N{NO-BREAK SPACE}%, malignant",
    "net_benefit_20": "Net benefit at a threshold of 20\N{NO-BREAK SPACE}%, malignant",
}
"""Metric -> label, in the order of the tables; other metrics follow under their own name."""

ALIASES = {"recall_macro": "balanced_accuracy", "recall": "sensitivity", "ppv": "precision"}
"""Metrics that are in the table under another name; they are printed once."""

FALLBACKS = {"balanced_accuracy": "recall_macro_present", "auroc_macro": "auroc_macro_present"}
"""The metric that a tile shows if classes without images make the first one undefined."""

FIRST_TABLE_END = list(METRIC_TITLES).index("ece")
"""The last metric of the table at the top; the others are in a folded table below."""

METHOD_LABELS = {
    intervals.WILSON: "Wilson score interval",
    intervals.CLOPPER_PEARSON: "Clopper and Pearson's exact interval (fewer than 30 images)",
    intervals.GROUPED_WILSON: "Wilson score interval, for the effective number of independent images",
    intervals.GROUPED_CLOPPER_PEARSON: "Clopper and Pearson's exact interval, for the effective number of "
    "independent images (fewer than 30)",
}
BAR_METRICS = frozenset(list(METRIC_TITLES)[:FIRST_TABLE_END]) - {"loss", "brier"}
"""The metrics in the chart: those of the first table within 0 to 1 where higher is better."""

CLASS_METRIC_LABELS = {
    "recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "specificity": "specificity",
    "auroc": "AUROC",
    "average_precision": "average precision",
}

_SHARES = frozenset(
    {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "sensitivity", "specificity", "ppv", "npv",
     "coverage", "top_2_accuracy", "top_3_accuracy", "error_by_coverage"}
)  # fmt: skip


def is_share(key: str) -> bool:
    """Tell whether the figure at a place of metrics.json is a share of images, printed as a percentage."""
    return any(re.sub(r"(_macro)?(_present)?(_at_\w+)?$", "", part) in _SHARES for part in key.split("."))


@functools.cache
def page_templates() -> Environment:
    """Return the template environment with the filters for metrics: number, percent, label, words, ..."""
    environment = template_environment()
    environment.filters["number"] = lambda value: f"{value:.3f}"
    environment.filters["percent"] = lambda value: f"{value:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
    environment.filters["is_share"] = is_share
    environment.filters["people"] = lambda value: f"{value:.1f}" if value < 100 else f"{value:.0f}"
    environment.filters["stated"] = lambda value: f"{100 * value:.6g}\N{NO-BREAK SPACE}%"
    environment.filters["place"] = lambda value: f"{100 * min(1.0, max(0.0, value)):.1f}"
    environment.filters["exact"] = json.dumps
    environment.filters["label"] = lambda name: METRIC_TITLES.get(name, str(name).replace("_", " "))
    environment.filters["words"] = humanise
    environment.filters["trust"] = reliability
    environment.filters["method"] = lambda name: METHOD_LABELS.get(name, name)
    environment.filters["upper_first"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["label_of_class"] = lambda name: CLASS_METRIC_LABELS[name]
    environment.globals |= {"per_class_names": CLASS_METRIC_LABELS, "instead": FALLBACKS}
    return environment
