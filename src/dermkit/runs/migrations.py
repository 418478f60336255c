"""How run.json, metrics.json and seal.json of older formats are read: keys get the names of today, no value changes.

metrics.json 1 lacks the figures that format 2 added (npv, mcc, kappa, partial areas, parts of the Brier score,
calibration, net benefit). They are not made up: readers show what is there, and `dermkit evaluate RUN` writes it anew.
"""

from collections.abc import Mapping
from typing import Any

from dermkit.data.notes import migrate_notes
from dermkit.metrics.decisions.policy_migration import migrate_policy, migrate_policy_metrics, rename_keys


def run_1_to_2(run_json: dict[str, Any]) -> dict[str, Any]:
    """Return run.json with `policy`, `keep` and `training_dataset`; another tool's predictions are of split foreign."""
    names = {"decision": "policy", "kept": "keep", "trained_on": "training_dataset"}
    run = {**rename_keys(run_json, names), "format": 2}
    # A broken policy is left as it is: `policy_of` says which file holds it.
    if isinstance(run.get("policy"), Mapping) and "operating_points" in run["policy"]:
        run["policy"] = migrate_policy(run["policy"])
    if isinstance(notes := run.get("dataset", {}).get("notes"), Mapping):
        run["dataset"] = {**run["dataset"], "notes": migrate_notes(notes)}
    if run.get("split", {}).get("scheme") == "brought":
        run["split"] = {**run["split"], "name": "foreign", "scheme": "foreign"}
    return run


def run_seal_1_to_2(seal_json: dict[str, Any]) -> dict[str, Any]:
    """Return the run's copy of a seal with `opening_number` (which opening is this run's, None for none)."""
    openings = [rename_keys(opening, {"how": "opened_by"}) for opening in seal_json.get("openings", [])]
    return {**rename_keys(seal_json, {"opening": "opening_number"}), "openings": openings, "format": 2}


def summary_1_to_2(summary: dict[str, Any]) -> dict[str, Any]:
    """Return summary.json without pooled folds, as it had none; its final model is one run."""
    return {**summary, "pooled": None, "format": 2}


def summary_2_to_3(summary: dict[str, Any]) -> dict[str, Any]:
    """Return summary.json whose pooled folds, if there are any, are of all images: each tested in its fold."""
    pooled = summary.get("pooled")
    return {**summary, "pooled": pooled and {**pooled, "scores_test_by_ensemble": False}, "format": 3}


def auto_1_to_2(auto: dict[str, Any]) -> dict[str, Any]:
    """Return auto.json whose race trained every fold."""
    plan = auto["plan"]
    return {**auto, "plan": {**plan, "n_trained_folds": plan["n_folds"]}, "format": 2}


def metrics_1_to_2(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics.json as it is: format 2 added figures and renamed none."""
    return {**metrics, "format": 2}


def metrics_2_to_3(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics.json with `options`, `policy` and the metrics of the policy by the names of today."""
    migrated = {**rename_keys(metrics, {"asked": "options", "decision": "policy"}), "format": 3}
    if migrated.get("options"):
        options = rename_keys(migrated["options"], {"wishes": "targets"})
        targets = [rename_keys(target, {"wish_rate": "target"}) for target in options["targets"]]
        migrated["options"] = {**options, "targets": targets}
    if migrated.get("policy"):
        migrated["policy"] = migrate_policy(migrated["policy"])
    if migrated.get("seal"):
        migrated["seal"] = rename_keys(migrated["seal"], {"openings": "n_openings", "opening": "opening_number"})
    migrated["splits"] = {name: _migrate_split(split) for name, split in metrics.get("splits", {}).items()}
    return migrated


def metrics_3_to_4(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics.json as it is: format 4 added `image_blind` to the splits, and `dermkit evaluate` writes it."""
    return {**metrics, "format": 4}


def counterfactuals_1_to_2(content: dict[str, Any]) -> dict[str, Any]:
    """Return counterfactuals.json without a `model_key`, "": it has the hash of model.json alone, `model_sha256`."""
    return {**content, "model_key": "", "format": 2}


def counterfactuals_2_to_3(content: dict[str, Any]) -> dict[str, Any]:
    """Return counterfactuals.json with the share of decisions that change undefined: its interval was not measured.

    Its artefacts stay in the order of their mean change, and its texts as they are.
    """

    def with_decisions(change: dict[str, Any]) -> dict[str, Any]:
        n, reason = change.get("label_changes", {}).get("n", 0), "not measured by this version"
        return {
            **change,
            "decision_changes": {"value": None, "ci95": None, "n": n, "method": "none", "reason": reason},
        }

    artefacts = [
        {**one, "by_strength": [with_decisions(change) for change in one["by_strength"]]}
        for one in content["artefacts"]
    ]
    hidden = [with_decisions(one) for one in content.get("hidden", [])]
    return {**content, "artefacts": artefacts, **({"hidden": hidden} if "hidden" in content else {}), "format": 3}


def _migrate_split(split_metrics: Mapping[str, Any]) -> dict[str, Any]:
    migrated = rename_keys(split_metrics, {"decided": "policy"})
    if "policy" in migrated:
        migrated["policy"] = migrate_policy_metrics(migrated["policy"])
    if "subgroups" in migrated:
        migrated["subgroups"] = {
            attribute: _migrate_subgroups(breakdown) for attribute, breakdown in migrated["subgroups"].items()
        }
    return migrated


def _migrate_subgroups(breakdown: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **breakdown,
        "groups": [rename_keys(group, {"malignant": "n_malignant"}) for group in breakdown["groups"]],
        "gaps": [rename_keys(gap, {"figure": "metric"}) for gap in breakdown["gaps"]],
    }
