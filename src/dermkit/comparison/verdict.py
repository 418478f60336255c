"""A difference between two models or two recipes in one metric, and the sentence that states it."""

from collections.abc import Sequence
from dataclasses import dataclass

from dermkit.comparison.variance import VarianceComponents
from dermkit.metrics.classification.difference import Difference
from dermkit.metrics.stats.estimate import Estimate, reliability

VERDICT_LABELS = {"auroc": "AUROC, malignant", "average_precision": "average precision, malignant"}
LOWER_IS_BETTER = ("loss", "brier")


@dataclass(frozen=True)
class RepeatedDifference(Difference):
    """Mean of the first recipe's runs minus that of the second's, over the same images or the same folds.

    n_trainings: runs of each. first, second: variance components of each; over folds, `values` are fold means, `sd`
    their standard deviation and `sd_seed` that of runs within a fold. error_seeds, error_images: components of the
    standard error, None over folds. is_spread_borrowed: one recipe was trained once. n_folds: 0 for the same images.
    needs_trainings: whether more images alone cannot make a difference of this size significant.
    """

    n_trainings: tuple[int, int] = (1, 1)
    first: VarianceComponents | None = None
    second: VarianceComponents | None = None
    error_seeds: float | None = None
    error_images: float | None = None
    is_spread_borrowed: bool = False
    n_folds: int = 0
    needs_trainings: bool = False


# Sentences --------------------------------------------------------------------------------------------------------


def verdict(difference: Difference, first: str, second: str) -> str:
    """Return one sentence: which is better, or that they are not distinguishable and what would be needed."""
    metric_label, n_images = _metric_label(difference.metric), _images_text(difference)
    if difference.estimate.value is None:
        return f"{metric_label}: not defined for both on these {n_images}."
    lead = _lead_text(difference, first, second)
    if difference.p is None:
        reason = f" ({difference.estimate.reason})" if difference.estimate.reason else ""
        return (
            f"{metric_label}: not tested on {n_images}: {lead}, {difference.estimate.value:+.3f}, no test{reason}."
        )
    gap_text = (
        f"{difference.estimate.value:+.3f}{_interval_text(difference.estimate)}, "
        f"{difference.test}, {_p_text(difference)}"
    )
    if isinstance(difference, RepeatedDifference):
        return _repeated_verdict(difference, first, second, gap_text)
    if difference.is_significant:
        return f"{metric_label}: {lead} on {n_images} ({gap_text}){_conflict_text(difference)}."
    return (
        f"{metric_label}: not distinguishable on {n_images}; {lead} "
        f"({gap_text}){_needs_text(difference)}{_conflict_text(difference)}."
    )


_IMAGES_OF_METRIC = {"sensitivity": "malignant images", "specificity": "non-malignant images"}


def images_noun(metric: str) -> str:
    """Return which images a metric is computed from, in plural: numbers of images are of these."""
    return _IMAGES_OF_METRIC.get(metric, "images")


def _images_text(difference: Difference) -> str:
    return f"{difference.estimate.n} {images_noun(difference.metric)}"


def _lead_text(difference: Difference, first: str, second: str) -> str:
    """Return who is better, if the difference is significant, or only ahead."""
    if not difference.estimate.value:
        return "neither is ahead"
    return f"{_better_name(difference, first, second)} is {'better' if difference.is_significant else 'ahead'}"


def _conflict_text(difference: Difference) -> str:
    """Return why p and the printed interval seem to disagree, "" if they agree."""
    estimate = difference.estimate
    is_printed = estimate.ci95 is not None and reliability(estimate.as_dict()) != "none"
    low, high = estimate.ci95 or (-1.0, 1.0)
    excludes_zero = is_printed and (low > 0 or high < 0)
    if difference.is_lost_to_correction:
        alone = f", the interval is of this one alone ({_plain_p_text(difference.p)})" if excludes_zero else ""
        return f"; p is corrected for all comparisons{alone}"
    if is_printed and excludes_zero != difference.is_significant:
        what = "excludes" if excludes_zero else "includes"
        return f"; the interval {what} 0: test and interval are different methods, which can differ near the limit"
    return ""


def _interval_text(estimate: Estimate) -> str:
    """Return ` [low, high]`, marked if unreliable, or `, no interval`."""
    reliability_grade = reliability(estimate.as_dict())
    if estimate.ci95 is None or reliability_grade == "none":
        return ", no interval"
    low, high = estimate.ci95
    return f" [{low:+.3f}, {high:+.3f}]{' (unreliable)' if reliability_grade else ''}"


def _metric_label(metric: str) -> str:
    return VERDICT_LABELS.get(metric, metric.replace("_", " "))


def _better_name(difference: Difference, first: str, second: str) -> str:
    return first if ((difference.estimate.value or 0.0) > 0) != (difference.metric in LOWER_IS_BETTER) else second


def _repeated_verdict(difference: RepeatedDifference, first: str, second: str, gap_text: str) -> str:
    metric_label, size_text = (
        _metric_label(difference.metric),
        f"{_counts_text(difference)}, {_images_text(difference)}",
    )
    lead = _lead_text(difference, first, second)
    if difference.is_significant:
        return (
            f"{metric_label}: {lead}: {size_text} "
            f"({gap_text}){_variance_text(difference, first, second)}{_conflict_text(difference)}."
        )
    return (
        f"{metric_label}: not distinguishable: {size_text}; {lead} "
        f"({gap_text}){_variance_text(difference, first, second)}{_needs_text(difference)}{_conflict_text(difference)}."
    )


def _counts_text(difference: RepeatedDifference) -> str:
    n_first, n_second = difference.n_trainings
    counts = f"{n_first} trainings each" if n_first == n_second else f"{n_first} against {n_second} trainings"
    return f"{difference.n_folds} folds, {counts}" if difference.n_folds else counts


def _variance_text(difference: RepeatedDifference, first: str, second: str) -> str:
    components = [
        recipe_components
        for recipe_components in (difference.first, difference.second)
        if recipe_components is not None
    ]
    pooled_sd, pooled_sd_images = (
        _pooled_deviation([recipe.sd for recipe in components]),
        _pooled_deviation([recipe.sd_images for recipe in components]),
    )
    if difference.n_folds:
        return "" if pooled_sd is None else f"; a recipe's folds differ by {pooled_sd:.3f} (SD)"
    single_name = first if difference.n_trainings[0] < 2 else second
    borrowed_text = (
        f"; {single_name} was trained once: its spread is taken to be the other's"
        if difference.is_spread_borrowed
        else ""
    )
    if pooled_sd is None or pooled_sd_images is None:
        return borrowed_text
    return f"; another training moves it by {pooled_sd:.3f} (SD), other images by {pooled_sd_images:.3f}{borrowed_text}"


def _pooled_deviation(deviations: Sequence[float | None]) -> float | None:
    known_deviations = [value for value in deviations if value is not None]
    return (
        (sum(value**2 for value in known_deviations) / len(known_deviations)) ** 0.5 if known_deviations else None
    )


def _needs_text(difference: Difference) -> str:
    """Return how many images or whether more trainings are needed; "" if neither is known."""
    if difference.further_images_needed:
        n_needed = two_digits(difference.further_images_needed)
        return f"; about {n_needed} {images_noun(difference.metric)} would be needed"
    if isinstance(difference, RepeatedDifference) and difference.needs_trainings:
        return "; more images alone would not tell: more trainings are needed"
    return ""


def _p_text(difference: Difference) -> str:
    return _plain_p_text(difference.p if difference.p_holm is None else difference.p_holm)


def _plain_p_text(p: float | None) -> str:
    return "no test" if p is None else f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def two_digits(number: int) -> str:
    """Return a number of images in two significant digits; more would claim a precision it does not have."""
    scale = 10 ** max(0, len(str(number)) - 2)
    return f"{round(number / scale) * scale:,}"
