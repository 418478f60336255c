"""Parts of a model.json as values, checked: its classes, its decision policy, and the guarantees that were broken."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dermkit.data.manifest import LesionClass
from dermkit.errors import UntrustedError
from dermkit.metrics.decisions.guarantees import BrokenGuarantee
from dermkit.metrics.decisions.policy import DecisionPolicy, policy_from_dict
from dermkit.models.card import EVALUATION_FIELD, MODEL_JSON, card_policy, is_ensemble, is_tested_ensemble

_CLASSES: TypeAdapter[tuple[LesionClass, ...]] = TypeAdapter(tuple[LesionClass, ...])


def read_card_classes(card: Mapping[str, Any]) -> tuple[LesionClass, ...]:
    """Return the class table; raises `ValueError` where it cannot be one of a classifier."""
    classes = _CLASSES.validate_json(json.dumps(card["classes"]))
    names = [lesion_class.name for lesion_class in classes]
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise ValueError(f"the classes {', '.join(map(repr, names[:5]))} are not two or more different names")
    return classes


def read_broken_guarantees(folder: Path, card: Mapping[str, Any]) -> tuple[BrokenGuarantee, ...]:
    """Return the guarantees that the test images broke; none in a model that was never evaluated on test images.

    Raises `UntrustedError` for a broken evaluation.
    """
    evaluation = card.get(EVALUATION_FIELD)
    try:
        broken = () if evaluation is None else evaluation["broken_guarantees"]
        return tuple(BrokenGuarantee.from_dict(fields) for fields in broken)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UntrustedError(
            f"{folder / MODEL_JSON.name}: its evaluation is broken: {error}", remedy="copy it anew"
        ) from error


SHEET_METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc")
"""Test figures in the head of a sheet of predictions, as far as the card has them."""


def known_performance(card: Mapping[str, Any]) -> str:
    """Return how the model did on test images, each figure with its n and interval; that it is not known without.

    Figures of single nets are not those of their mean, and are named so.
    """
    evaluation = card.get(EVALUATION_FIELD) or {}
    figures = evaluation.get("figures") or {}
    texts = [
        f"{name.replace('_', ' ').replace('auroc', 'AUROC')} {figures[name]}"
        for name in SHEET_METRICS
        if name in figures
    ]
    if not texts:
        return "Test performance of this model: not known (it has scored no test images)."
    single = (
        " (of its single nets, not of their mean)" if is_ensemble(card) and not is_tested_ensemble(card) else ""
    )
    return f"Test performance of this model{single}: {'; '.join(texts)}."


def read_card_policy(folder: Path, card: Mapping[str, Any]) -> DecisionPolicy | None:
    """Return the decision policy of model.json, None where there is none; raises `UntrustedError` for a broken one."""
    try:
        policy_fields, n_classes = card_policy(card), len(card["classes"])
        if policy_fields is None:
            return None
        policy = policy_from_dict(policy_fields)
        lengths = {
            len(policy.calibration.bias),
            len(policy.conformal_rule.min_probability),
            len(policy.conformal_rule.n_images),
        }
        if lengths != {n_classes}:
            raise ValueError(f"it is not for {n_classes} classes")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UntrustedError(
            f"{folder / MODEL_JSON.name}: the decision policy is broken: {error}", remedy="copy it anew"
        ) from error
    return policy
