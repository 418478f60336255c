"""What is settled on validation images and then only applied: calibration, operating points, sets, answers withheld.

Settled from the validation side alone, as plain numbers; `judged` says how they do on images that had no part in it.
The validation images also chose the epoch, so that what is promised of new images can be a little too good: the test
side shows it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dermkit.metrics.classification.probabilistic import log_loss
from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.decisions import conformal, recalibration, thresholds
from dermkit.metrics.decisions.operating_points import PREVALENCES, AtThreshold, at_threshold
from dermkit.metrics.decisions.recalibration import Calibration
from dermkit.metrics.decisions.thresholds import Threshold
from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.arrays import Bools, Floats, Ints
from dermkit.metrics.stats.estimate import Estimate, undefined

FOLDS = 5
WISHES = (("sensitivity", 0.95), ("sensitivity", 0.9), ("specificity", 0.9))
CONFIDENCE = 0.95
ALPHA = 0.1
SHARES = tuple(number / 20 for number in range(19, 9, -1))
"""Of the images, the surest: how many may be answered and the others referred, from 95 % down to 50 %."""

FIGURES = (
    "loss", "brier", "ece", "ece_classwise", "calibration_slope", "calibration_intercept", "brier_malignant",
)  # fmt: skip
"""What calibration is for; the order of images of two classes, and so AUROC, it leaves alone."""

FITS: Mapping[str, Callable[[Ints, Floats], Calibration]] = {
    "temperature": recalibration.fit_temperature,
    "bias": recalibration.fit_bias,
}


@dataclass(frozen=True)
class Answering:
    """Answer an image whose calibrated confidence is at least `least`, refer the others.

    share: of the images, wished. answered: of the validation images; more than `share` where confidences are equal.
    error: share of wrong answers among these; they chose the epoch and the calibration, so it is hopeful.
    """

    share: float
    least: float
    answered: float
    error: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, as model.json holds them."""
        return {
            "share": self.share, "least_confidence": self.least, "answered": self.answered,
            "error": self.error.as_dict(),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Decision:
    """calibration, and for each kind its validation loss out of fold; points: wish -> threshold; rule: of the sets.

    answering: one for each of `SHARES`; none in what was settled before these were kept.
    """

    calibration: Calibration
    losses: dict[str, float]
    points: tuple[tuple[str, Threshold], ...]
    rule: conformal.ConformalRule
    n: int
    answering: tuple[Answering, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, as model.json holds them."""
        return {
            "calibration": {
                **asdict(self.calibration), "bias": list(self.calibration.bias), "out_of_fold_loss": self.losses,
            },
            "operating_points": [point_dict(rate, point) for rate, point in self.points],
            "conformal": _rule_dict(self.rule),
            "refer": [item.as_dict() for item in self.answering],
            "validation_images": self.n,
        }  # fmt: skip


def from_dict(body: Mapping[str, Any]) -> Decision:
    """Return the decision that `as_dict` wrote; raises `KeyError`, `TypeError` or `ValueError` for another object."""
    own = body["calibration"]
    calibration = Calibration(
        str(own["kind"]), float(own["temperature"]), tuple(float(value) for value in own["bias"])
    )
    points = tuple(
        (
            str(item["rate"]),
            Threshold(
                float(item["value"]), float(item["wish_rate"]), float(item["confidence"]), bool(item["kept"]),
                int(item["n"]),
            ),
        )
        for item in body["operating_points"]
    )  # fmt: skip
    return Decision(
        calibration,
        {str(name): float(value) for name, value in own["out_of_fold_loss"].items()},
        points,
        _rule_from(body["conformal"]),
        int(body["validation_images"]),
        tuple(_answering_from(item) for item in body.get("refer", ())),
    )


def _rule_dict(rule: conformal.ConformalRule) -> dict[str, Any]:
    body = {"alpha": rule.alpha, "least": rule.least.tolist(), "n": rule.n.tolist()}
    return body if rule.units is None else {**body, "units": rule.units.tolist()}


def _rule_from(body: Mapping[str, Any]) -> conformal.ConformalRule:
    """Return the rule; what was settled before units were kept has none, and its images are taken as independent."""
    n, units = np.array(body["n"], dtype=np.int64), body.get("units")
    made = None if units is None else np.array(units, dtype=np.int64)
    if made is not None and made.shape != n.shape:
        raise ValueError(f"{len(made)} classes have units, {len(n)} have images")
    return conformal.ConformalRule(float(body["alpha"]), np.array(body["least"], dtype=np.float64), n, made)


def _answering_from(item: Mapping[str, Any]) -> Answering:
    return Answering(
        float(item["share"]), float(item["least_confidence"]), float(item["answered"]),
        Estimate.from_dict(item["error"]),
    )  # fmt: skip


def decide(validation: Scored, *, wishes: Sequence[tuple[str, float]] = WISHES, alpha: float = ALPHA) -> Decision:
    """Settle everything on validation images. A wish has no threshold where its side has no image there."""
    losses = _losses(validation)
    kind = min(losses, key=lambda name: (losses[name], list(losses).index(name)))
    calibration = (
        recalibration.none_for(len(validation.classes))
        if kind == "none"
        else FITS[kind](validation.true, validation.probabilities)
    )
    settled = calibrated(validation, calibration)
    return Decision(
        calibration, losses, points_for(settled, wishes),
        conformal.calibrate(settled.true, settled.probabilities, alpha=alpha, groups=settled.groups),
        len(validation.true),
        tuple(_answering(settled, _curve(settled), SHARES)),
    )  # fmt: skip


def points_for(settled: Scored, wishes: Sequence[tuple[str, float]]) -> tuple[tuple[str, Threshold], ...]:
    """Return the threshold of each wish on calibrated validation images; none where its side has no image."""
    return tuple((rate, point) for rate, wish in wishes if (point := _point(settled, rate, wish)) is not None)


def point_dict(rate: str, point: Threshold) -> dict[str, Any]:
    """Return an operating point as decision.json holds it."""
    return {**_told(rate, point), "value": point.value}


def _losses(validation: Scored) -> dict[str, float]:
    """Return the log loss of each kind on images that its numbers were not fitted to, groups kept together.

    A kind must earn its numbers: with few images a shift per class is noise.
    """
    true, p = validation.true, validation.probabilities
    found = {"none": log_loss(true, p)}
    units = validation.units
    if units < 2 * FOLDS:
        return found
    fold = np.random.default_rng(0).permutation(units)[validation.groups] % FOLDS
    for kind, fit in FITS.items():
        made = np.empty_like(p)
        for number in range(FOLDS):
            inside = fold == number
            made[inside] = fit(true[~inside], p[~inside]).apply(p[inside])
        found[kind] = log_loss(true, made)
    return found


def _point(settled: Scored, rate: str, wish: float) -> Threshold | None:
    side = settled.is_malignant if rate == "sensitivity" else ~settled.is_malignant
    if not settled.has_binary_view or not side.any():
        return None
    find = thresholds.for_sensitivity if rate == "sensitivity" else thresholds.for_specificity
    return find(settled.p_malignant, settled.is_malignant, settled.groups, wish=wish, confidence=CONFIDENCE)


def calibrated(scored: Scored, calibration: Calibration) -> Scored:
    """Return the same images with calibrated probabilities, and the predictions that these make."""
    p = calibration.apply(scored.probabilities)
    return Scored(scored.classes, scored.malignant, scored.true, p.argmax(axis=1), p, scored.groups)


# How it does on images that had no part in it ---------------------------------------------------------------------


def judged(
    decision: Decision,
    scored: Scored,
    *,
    summarise: Callable[..., Mapping[str, Any]],
    seed: int,
    prevalences: tuple[float, ...] = PREVALENCES,
    asked: Sequence[tuple[str, Threshold]] = (),
) -> dict[str, Any]:
    """Return what a split's body of metrics.json holds of a decision. summarise: `summary.summarise`.

    asked: operating points beside the decision's own, marked as such.
    """
    settled = calibrated(scored, decision.calibration)
    figures = summarise(settled, seed=seed, ranked=False)["metrics"]
    missing = "" if (decision.points or asked) else "none was settled"
    missing = missing or _one_sided(settled)
    every = [*((at, False) for at in decision.points), *((at, True) for at in asked)]
    points = [
        {
            **_told(rate, point), "asked": is_asked, "threshold": point.value,
            **_as_dict(at_threshold(settled, point.value, prevalences=prevalences)),
        }
        for (rate, point), is_asked in ([] if missing else every)
    ]  # fmt: skip
    return {
        "calibrated": {
            "kind": decision.calibration.kind,
            "metrics": {name: figures[name] for name in FIGURES if name in figures},
        },
        "operating_points": points,
        "no_operating_points": missing,
        "conformal": _conformal(decision.rule, settled),
        "refer": _refer(decision, settled),
    }


def _one_sided(scored: Scored) -> str:
    """Return why no operating point can be judged on these images, "" where it can."""
    if not scored.has_binary_view:
        return "the class table has not two sides, malignant and other"
    positives = int(scored.is_malignant.sum())
    if 0 < positives < len(scored.true):
        return ""
    return f"{'no' if positives == 0 else 'every'} image here is malignant"


def _told(rate: str, point: Threshold) -> dict[str, Any]:
    return {
        "wish": f"{rate} {point.wish:g}", "rate": rate, "wish_rate": point.wish, "confidence": point.confidence,
        "kept": point.kept, "n": point.n,
    }  # fmt: skip


def _as_dict(found: AtThreshold) -> dict[str, Any]:
    names = ("ppv", "npv", "found", "missed", "false_alarms", "biopsies_per_found")
    return {
        "sensitivity": found.sensitivity.as_dict(),
        "specificity": found.specificity.as_dict(),
        "per_prevalence": [
            {"prevalence": item.prevalence, **{name: getattr(item, name).as_dict() for name in names}}
            for item in found.at
        ],
    }


def covered(rule: conformal.ConformalRule, settled: Scored) -> Bools:
    """Return which sets hold the true class, (N,)."""
    return np.asarray(rule.sets(settled.probabilities)[np.arange(len(settled.true)), settled.true], dtype=bool)


def _conformal(rule: conformal.ConformalRule, settled: Scored) -> dict[str, Any]:
    """Return coverage per class with its interval, and what a sound rule would cover with a chance of 95 %.

    That range is of independent images: more of the same lesions, here or in calibration, do not make it narrower.
    """
    sets, held = rule.sets(settled.probabilities), covered(rule, settled)
    classes = {}
    for k, name in enumerate(settled.classes):
        rows = settled.true == k
        if rows.any():
            units, learned = settled.units_in(rows), int(rule.independent[k])
            low, high = conformal.expected_range(learned, units, alpha=rule.alpha)
            share = intervals.proportion_estimate(held[rows], settled.groups[rows]).as_dict()
            classes[name] = {**share, "expected": [low / units, high / units], "units": units,
                             "calibration_images": int(rule.n[k]), "calibration_units": learned}  # fmt: skip
    sizes = np.bincount(sets.sum(axis=1), minlength=len(settled.classes) + 1)
    return {"promised": 1 - rule.alpha, "per_class": classes, "sizes": sizes.tolist()}


def _curve(settled: Scored) -> conformal.RiskCoverage:
    return conformal.risk_coverage(settled.confidence, settled.true == settled.predicted)


def _answering(settled: Scored, curve: conformal.RiskCoverage, shares: Sequence[float]) -> Iterator[Answering]:
    """Yield for each share what the surest images of that share are and how often they are answered wrongly."""
    right = settled.true == settled.predicted
    for share in shares:
        at = int(np.searchsorted(curve.coverage, share - 1e-12))
        answered = settled.confidence >= curve.confidence[at]
        wrong = intervals.proportion_estimate(~right[answered], settled.groups[answered])
        yield Answering(share, float(curve.confidence[at]), float(curve.coverage[at]), wrong)


def _refer(decision: Decision, settled: Scored) -> dict[str, Any]:
    """Return the error rate when only the surest images are answered, at a few shares, and the area under it.

    `settled`: the same from the confidences on that validation settled, which `dermkit predict --refer` goes by.
    """
    right, curve = settled.true == settled.predicted, _curve(settled)
    shares = {
        f"{item.share:g}": {
            **item.error.as_dict(), "answered": item.answered, "least_confidence": item.least
        }
        for item in _answering(settled, curve, (1.0, 0.9, 0.8, 0.7, 0.5))
    }  # fmt: skip
    return {
        "area": curve.area(),
        "error_when_answering": shares,
        "settled": [_at_confidence(item, settled, right) for item in decision.answering],
    }


def _at_confidence(item: Answering, settled: Scored, right: Bools) -> dict[str, Any]:
    """Return how many images a confidence of validation answers here, and how often wrongly."""
    answered = settled.confidence >= item.least
    error = (
        intervals.proportion_estimate(~right[answered], settled.groups[answered])
        if answered.any()
        else undefined(0, "no image is that sure")
    )
    share = intervals.proportion_estimate(answered, settled.groups)
    return {
        "share": item.share, "least_confidence": item.least, "answered": share.as_dict(), "error": error.as_dict()
    }  # fmt: skip
