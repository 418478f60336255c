"""Nets that were trained as if all classes were equally frequent: their ensemble still answers like that."""

from dataclasses import replace

import numpy as np
import pytest

from dermkit.errors import DataError
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.evaluation.requested_targets import fit_for_nets
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions.policy import apply_calibration
from dermkit.metrics.stats.arrays import Floats, Ints


def scored(y_true: Ints, p: Floats, nets: Ints | None) -> ScoredSet:
    return ScoredSet(
        classes=["common", "rare"], malignant_classes=np.array([False, True]), y_true=y_true, y_pred=p.argmax(axis=1),
        probabilities=p, groups=np.arange(len(y_true)), nets=nets,
    )  # fmt: skip


def test_a_target_names_the_nets_whose_validation_images_cannot_fit_it() -> None:
    y_true, nets = np.array([0, 1] * 20 + [0] * 20), np.repeat([0, 1, 2], 20)
    p_rare = np.linspace(0.05, 0.95, 60)
    p = np.column_stack([1 - p_rare, p_rare])
    by_net = {f"{k}/7": scored(y_true[nets == k], p[nets == k], None) for k in (0, 1, 2)}
    options = EvaluationOptions(targets=(("sensitivity", 0.97),))
    message = "for 1 of 3 nets, each of which has its own: fold 2, seed 7: no validation image is malignant"
    with pytest.raises(DataError, match=message) as error:
        fit_for_nets(scored(y_true, p, nets), by_net, options)
    assert "larger split.validation" in (error.value.remedy or "")
    fitted = fit_for_nets(scored(y_true, p, nets), by_net, replace(options, targets=(("specificity", 0.9),)))
    assert all(("specificity", 0.9) in policy.targets for policy in fitted.nets.values())


def test_the_mean_keeps_the_prior_of_training_and_its_policy_has_that_of_the_images() -> None:
    """One feature, unit variance around -1 and 1: with equal priors the Bayes net answers by its sign.

    On images at 1:19 its own calibration moves the border to (ln 19) / 2, where hardly a rare image is found.
    """
    rng = np.random.default_rng(0)
    y_true = (rng.random(8000) < 0.05).astype(np.int64)
    x = rng.normal(2.0 * y_true - 1.0)
    p_rare = 1 / (1 + np.exp(-2 * x))
    p, nets = np.column_stack([1 - p_rare, p_rare]), np.arange(8000) % 2
    fitted = fit_for_nets(
        scored(y_true, p, nets),
        {str(k): scored(y_true[nets == k], p[nets == k], None) for k in (0, 1)},
        DEFAULT_OPTIONS,
    )
    images = fitted.policy_images(scored(y_true, p, nets), ["0", "1"])
    assert [policy.calibration.kind for policy in fitted.nets.values()] == ["bias", "bias"]
    assert (images.y_pred == p.argmax(axis=1)).mean() > 0.999, "labels stay those of equally frequent classes"
    recall = (images.y_pred[y_true == 1] == 1).mean()
    assert recall == pytest.approx(0.841, abs=0.03)  # of a standard normal below 1
    calibrated = apply_calibration(images, fitted.policy.calibration)
    assert calibrated.probabilities[:, 1].mean() == pytest.approx(y_true.mean(), abs=0.005), "and P is calibrated"
    assert fitted.policy.calibration.bias[1] - fitted.policy.calibration.bias[0] == pytest.approx(
        np.log(0.05 / 0.95), abs=0.25
    )
