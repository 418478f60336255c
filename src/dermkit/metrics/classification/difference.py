"""A difference between two models in one metric, on the same images, with the test that was made of it."""

from dataclasses import dataclass

from dermkit.metrics.stats.estimate import Estimate

SIGNIFICANCE_LEVEL = 0.05
COMPARED_METRICS = (
    "accuracy", "balanced_accuracy", "f1_macro", "mcc_multiclass", "sensitivity", "specificity", "auroc",
    "average_precision", "loss", "brier",
)  # fmt: skip
"""The metrics that comparisons test; together they are one family for Holm's correction."""


@dataclass(frozen=True)
class Difference:
    """First model minus second in one metric, on the same n images.

    estimate: of the difference; undefined if the metric is for one of the two. p: of `test`, None without a test;
    p_holm: corrected for all metrics and pairs compared. discordant_counts: images that only the first, or only the
    second model has right, for McNemar. images_needed: to detect a difference of this size with a power of 0.8; None if
    the difference is 0 or no test set is large enough.
    """

    metric: str
    estimate: Estimate
    test: str
    p: float | None
    p_holm: float | None = None
    discordant_counts: tuple[int, int] | None = None
    images_needed: int | None = None

    @property
    def is_significant(self) -> bool:
        """Whether p, corrected if it was, is at most SIGNIFICANCE_LEVEL."""
        p = self.p if self.p_holm is None else self.p_holm
        return p is not None and p <= SIGNIFICANCE_LEVEL

    @property
    def is_lost_to_correction(self) -> bool:
        """Whether it is significant only without the correction for multiple tests."""
        return not self.is_significant and self.p is not None and self.p <= SIGNIFICANCE_LEVEL

    @property
    def further_images_needed(self) -> int | None:
        """Return `images_needed`; None if it is not above the images at hand, since it ignores the correction."""
        is_implausible = (
            self.images_needed is not None and self.images_needed <= self.estimate.n and not self.is_significant
        )
        return None if is_implausible else self.images_needed
