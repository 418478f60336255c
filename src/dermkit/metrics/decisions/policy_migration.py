"""Older JSON forms of a decision policy and of its metrics, brought to the keys of today; no number changes.

The first form (of model.json up to format 2, metrics.json up to format 2, run.json format 1) named operating points by
`wish`, `wish_rate`, `kept` and `asked`, referral by `refer` and `share`, and groups by `units`.
"""

from collections.abc import Mapping
from typing import Any

_POINT_KEYS = {
    "wish": "name", "wish_rate": "target", "kept": "guaranteed", "value": "threshold", "asked": "requested",
}  # fmt: skip
_RULE_KEYS = {"least": "min_probability", "n": "n_images", "units": "n_groups"}
_REFERRAL_KEYS = {"share": "target_coverage", "least_confidence": "min_confidence", "answered": "coverage"}
_POLICY_KEYS = {
    "asked_points": "requested_points",
    "refer": "referral",
    "validation_images": "n_validation_images",
}
_PREVALENCE_KEYS = {
    "found": "true_positives", "missed": "false_negatives", "false_alarms": "false_positives",
    "biopsies_per_found": "number_needed_to_biopsy",
}  # fmt: skip
_COVERAGE_KEYS = {
    "units": "n_groups", "calibration_images": "n_calibration_images", "calibration_units": "n_calibration_groups",
}  # fmt: skip


def rename_keys(fields: Mapping[str, Any], new_names: Mapping[str, str]) -> dict[str, Any]:
    """Return a JSON object with some of its own keys renamed, in the same order; nested objects stay as they are."""
    return {new_names.get(key, key): value for key, value in fields.items()}


def migrate_policy(policy_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy in today's keys (what `policy_from_dict` reads); one that has them already stays as it is.

    Keys that are no part of a policy are kept, so that it serves model.json as well, whose top level holds one.
    """
    policy = rename_keys(policy_json, _POLICY_KEYS)
    for name in ("operating_points", "requested_points"):
        if name in policy:
            policy[name] = [rename_keys(point, _POINT_KEYS) for point in policy[name]]
    if policy.get("conformal"):
        policy["conformal"] = rename_keys(policy["conformal"], _RULE_KEYS)
    if policy.get("referral"):
        policy["referral"] = [rename_keys(referral, _REFERRAL_KEYS) for referral in policy["referral"]]
    return policy


def migrate_policy_metrics(policy_metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a split's metrics of a policy (what `evaluate_policy` returns) in today's keys."""
    metrics = rename_keys(policy_metrics, {"no_operating_points": "why_no_operating_points", "refer": "referral"})
    metrics["operating_points"] = [_migrate_point_metrics(point) for point in metrics["operating_points"]]
    if metrics.get("conformal"):
        conformal = rename_keys(metrics["conformal"], {"promised": "coverage_target", "sizes": "set_sizes"})
        per_class = {name: rename_keys(row, _COVERAGE_KEYS) for name, row in conformal["per_class"].items()}
        metrics["conformal"] = {**conformal, "per_class": per_class}
    if metrics.get("referral"):
        metrics["referral"] = _migrate_referral_metrics(metrics["referral"])
    return metrics


def _migrate_point_metrics(point: Mapping[str, Any]) -> dict[str, Any]:
    rows = [rename_keys(row, _PREVALENCE_KEYS) for row in point["per_prevalence"]]
    return {**rename_keys(point, _POINT_KEYS), "per_prevalence": rows}


def _migrate_referral_metrics(referral: Mapping[str, Any]) -> dict[str, Any]:
    names = {"area": "aurc", "error_when_answering": "error_by_coverage", "settled": "at_validation_thresholds"}
    metrics = rename_keys(referral, names)
    error_by_coverage = {
        key: rename_keys(row, _REFERRAL_KEYS) for key, row in metrics["error_by_coverage"].items()
    }
    metrics["error_by_coverage"] = error_by_coverage
    if "at_validation_thresholds" in metrics:  # absent before thresholds for referral were kept
        rows = metrics["at_validation_thresholds"]
        metrics["at_validation_thresholds"] = [rename_keys(row, _REFERRAL_KEYS) for row in rows]
    return metrics
