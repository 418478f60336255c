"""What a model is, as /v1/model gives it: its card as data. Without torch, and without a path."""

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dermkit import __version__
from dermkit.files import canonical_json, sha256_bytes
from dermkit.metrics.decisions.apply import ActivePolicy, find_broken
from dermkit.models.card import EVALUATION_FIELD, is_ensemble, is_tested_ensemble
from dermkit.models.card_fields import known_performance
from dermkit.models.exported_folder import FLOAT32
from dermkit.prediction.decisions import (
    GUARANTEE_SCOPE,
    NO_POLICY_TEXT,
    broken_sentences,
    guarantee_text,
    no_call_reason,
    policy_warnings,
)

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor

_MAP_PACKAGES = ("torch", "captum")


def model_facts(
    predictor: "Predictor", policy: ActivePolicy | None, *, coverage: float | None, card_text: str
) -> dict[str, Any]:
    """Return the fields of `ModelAnswer` but for `limits`. policy: in use, None where the model has none."""
    card = predictor.card
    why_no_explain, test = why_no_maps(predictor), predictor.outlier_test
    why_no_figures = why_no_test_figures(predictor)
    return {
        "model": {
            "name": str(card["recipe"].get("name", "unnamed")), "model_key": predictor.model_key,
            "sha256": predictor.sha256, "files_sha256": predictor.files_sha256, "version": __version__,
            "precision": predictor.precision,
            "preprocessing_sha256": sha256_bytes(
                canonical_json([member["preprocessing"] for member in card["members"]]).encode()
            ),
        },
        "classes": [
            {"name": entry.name, "diagnosis": entry.diagnosis or "", "malignancy": entry.malignancy}
            for entry in predictor.classes
        ],
        "training": _training(card),
        "performance": (
            f"Test performance of this model: not known: {why_no_figures}." if why_no_figures
            else known_performance(card)
        ),
        "evaluation": None if why_no_figures else _evaluation(card),
        "why_no_test_figures": why_no_figures,
        "operating_points": _operating_points(predictor, policy),
        "operating_point": _point_name(policy),
        "decision_threshold": _threshold(policy),
        "coverage": coverage,
        "why_no_decision": NO_POLICY_TEXT if policy is None else no_call_reason(policy),
        "prediction_sets": None if policy is None else _prediction_sets(predictor, policy),
        "warnings": _warnings(predictor, policy),
        "metadata_fields": list(predictor.metadata_fields),
        "explain": not why_no_explain,
        "why_no_explain": why_no_explain,
        "out_of_distribution": not test.reason,
        "why_no_out_of_distribution": test.reason,
        "card": card_text,
    }  # fmt: skip


def why_no_maps(predictor: "Predictor") -> str:
    """Return why no heat maps can be made of a model here, "" where they can."""
    missing = [name for name in _MAP_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"the server lacks the packages {' and '.join(missing)} (pip install 'dermkit[train]')"
    return "" if predictor.runtime.nets else "an exported folder holds no nets that gradients can be taken of"


def why_no_test_figures(predictor: "Predictor") -> str:
    """Return why the test figures of the card are not those of the model that answers, "" where they are."""
    if predictor.precision == FLOAT32:
        return ""
    return (
        f"its nets are in {predictor.precision}, and thresholds, guarantees and test figures of its card are those of "
        f"{FLOAT32}"
    )


def _training(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the model learned from, in the words of model.json; a folder's path is never among it."""
    dataset, weights = card["dataset"], card["weights"]
    return {
        "recipe": card["recipe"].get("name"), "about": card["recipe"].get("about"), "dataset": dataset.get("name"),
        "n_images": dataset.get("n"), "licences": dataset.get("licences"), "weights_origin": weights.get("origin"),
        "weights_licence": weights.get("licence"), "n_nets": len(card["members"]),
    }  # fmt: skip


def _evaluation(card: Mapping[str, Any]) -> dict[str, Any] | None:
    evaluation = card.get(EVALUATION_FIELD)
    if not evaluation:
        return None
    return {
        "split": str(evaluation["split"]), "n": evaluation["n"],
        "figures": {name: str(text) for name, text in evaluation["figures"].items()},
        "verdict": str(evaluation["verdict"]),
        "broken_guarantees": [str(broken["sentence"]) for broken in evaluation.get("broken_guarantees", ())],
        "of_single_nets": is_ensemble(card) and not is_tested_ensemble(card),
        "subgroups": evaluation.get("subgroups", {}),
    }  # fmt: skip


def _operating_points(predictor: "Predictor", policy: ActivePolicy | None) -> list[dict[str, Any]]:
    if policy is None:
        return []
    reason = why_no_test_figures(predictor)
    evaluation = {} if reason else predictor.card.get(EVALUATION_FIELD) or {}
    rows, test_rates = [], evaluation.get("operating_points", {})
    for point in policy.policy.operating_points:
        broken = find_broken(predictor.broken_guarantees, point.name)
        rows.append(
            {
                "name": point.name, "rate": point.rate, "target": point.target, "threshold": point.threshold,
                "n": point.n, "guaranteed": point.guaranteed, "broken": broken is not None,
                "guarantee": f"in {FLOAT32}: " * bool(reason) + guarantee_text(point, broken),
                **{f"test_{rate}": estimate for rate, estimate in test_rates.get(point.name, {}).items()},
            }
        )  # fmt: skip
    return rows


def _prediction_sets(predictor: "Predictor", policy: ActivePolicy) -> dict[str, Any]:
    rule = policy.policy.conformal_rule
    minima = zip(predictor.class_names, rule.min_probability.tolist(), strict=True)
    return {
        "coverage": 1 - rule.alpha, "always_included": [name for name, minimum in minima if minimum <= 0],
        "broken": [broken.class_name for broken in policy.broken if broken.rate == "coverage"],
    }  # fmt: skip


def _point_name(policy: ActivePolicy | None) -> str:
    index = None if policy is None else policy.point_index
    return "" if policy is None or index is None else policy.policy.operating_points[index].name


def _threshold(policy: ActivePolicy | None) -> float | None:
    index = None if policy is None else policy.point_index
    return None if policy is None or index is None else policy.policy.operating_points[index].threshold


def _warnings(predictor: "Predictor", policy: ActivePolicy | None) -> list[str]:
    """Return what has to be read before any answer, the first first."""
    warnings = [] if policy is None else [*broken_sentences(policy), *policy_warnings(policy)]
    if reason := why_no_test_figures(predictor):
        warnings.insert(0, f"{reason}: how often it is right in {predictor.precision} is not known")
    if policy is None:
        warnings.append("the model has no decision policy, so probabilities are not calibrated")
    elif not no_call_reason(policy):
        warnings.append(GUARANTEE_SCOPE)
    if predictor.outlier_test.reason:
        warnings.append(f"out-of-distribution test: not applicable: {predictor.outlier_test.reason}")
    return warnings
