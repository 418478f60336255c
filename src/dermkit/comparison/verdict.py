"""A difference between two models or two recipes in one figure, and the sentence that says it."""

from collections.abc import Sequence
from dataclasses import dataclass

from dermkit.comparison.variance import Sources
from dermkit.metrics.stats.estimate import Estimate, trust

ALPHA = 0.05
FIGURES = (
    "accuracy", "balanced_accuracy", "f1_macro", "mcc_multiclass", "sensitivity", "specificity", "auroc",
    "average_precision", "loss", "brier",
)  # fmt: skip
"""What two runs are compared in; all of it is one family for Holm's correction."""

CALLED = {"auroc": "AUROC, malignant", "average_precision": "average precision, malignant"}
LOWER_IS_BETTER = ("loss", "brier")


@dataclass(frozen=True)
class Difference:
    """First model less second in one figure, on the same n images.

    estimate: of the difference, its interval and how it was made; undefined where the figure is for one of the two.
    p: of `test`, None where there is none; p_holm: after correction for all figures and pairs compared. discordant:
    images that one model alone has right, for McNemar. needed: images that would show a difference of this size with
    a power of 0.8; None where the difference is 0 or beyond any test set.
    """

    figure: str
    estimate: Estimate
    test: str
    p: float | None
    p_holm: float | None = None
    discordant: tuple[int, int] | None = None
    needed: int | None = None

    @property
    def is_found(self) -> bool:
        """Whether the images show a difference, all comparisons taken together."""
        p = self.p if self.p_holm is None else self.p_holm
        return p is not None and p <= ALPHA

    @property
    def is_lost_to_others(self) -> bool:
        """Whether it would be shown, had nothing else been asked."""
        return not self.is_found and self.p is not None and self.p <= ALPHA

    @property
    def more_images(self) -> int | None:
        """Return `needed`, None where it is not found and yet that is no more than there are: it minds no other one."""
        too_few = self.needed is not None and self.needed <= self.estimate.n and not self.is_found
        return None if too_few else self.needed


@dataclass(frozen=True)
class Repeated(Difference):
    """Mean of the first recipe's trainings less that of the second's, over the same images or the same folds.

    first, second: what moves each recipe's figure; over folds, `values` are means of a fold, `between` is their
    deviation and `seed` that of trainings within a fold. seeds, images: parts of the difference's standard error, None
    over folds. trainings: how many of each. borrowed: one of the two was trained once. folds: 0 for the same images.
    needs_trainings: whether no number of images would show a difference of this size, with so few trainings.
    """

    trainings: tuple[int, int] = (1, 1)
    first: Sources | None = None
    second: Sources | None = None
    seeds: float | None = None
    images: float | None = None
    borrowed: bool = False
    folds: int = 0
    needs_trainings: bool = False


# In words ---------------------------------------------------------------------------------------------------------


def verdict(item: Difference, first: str, second: str) -> str:
    """Return one sentence: which is better, or that so much does not tell, and what would."""
    name, n = _called(item.figure), item.estimate.n
    if item.estimate.value is None:
        return f"{name}: not defined for both on these {n} images."
    if item.p is None:
        why = f" ({item.estimate.reason})" if item.estimate.reason else ""
        return f"{name}: not tested on {n} images: {item.estimate.value:+.3f}, no test{why}."
    apart = f"{item.estimate.value:+.3f}{_interval(item.estimate)}, {item.test}, {_p(item)}"
    if isinstance(item, Repeated):
        return _verdict_of_several(item, first, second, apart)
    if item.is_found:
        return f"{name}: {_ahead(item, first, second)} is better on {n} images ({apart})."
    return f"{name}: not distinguishable on {n} images ({apart}){_more(item)}."


def _interval(estimate: Estimate) -> str:
    """Return ` [low, high]`, marked where it is unreliable, or that there is none to be shown."""
    worth = trust(estimate.as_dict())
    if estimate.ci95 is None or worth == "none":
        return ", no interval"
    low, high = estimate.ci95
    return f" [{low:+.3f}, {high:+.3f}]{' (unreliable)' if worth else ''}"


def _called(figure: str) -> str:
    return CALLED.get(figure, figure.replace("_", " "))


def _ahead(item: Difference, first: str, second: str) -> str:
    return first if ((item.estimate.value or 0.0) > 0) != (item.figure in LOWER_IS_BETTER) else second


def _verdict_of_several(item: Repeated, first: str, second: str, apart: str) -> str:
    name, over = _called(item.figure), f"{_how_many(item)}, {item.estimate.n} images"
    if item.is_found:
        return (
            f"{name}: {_ahead(item, first, second)} is better: {over} ({apart}){_moved_by(item, first, second)}."
        )
    return f"{name}: not distinguishable: {over} ({apart}){_moved_by(item, first, second)}{_more(item)}."


def _how_many(item: Repeated) -> str:
    one, other = item.trainings
    counts = f"{one} trainings each" if one == other else f"{one} against {other} trainings"
    return f"{item.folds} folds, {counts}" if item.folds else counts


def _moved_by(item: Repeated, first: str, second: str) -> str:
    sides = [side for side in (item.first, item.second) if side is not None]
    seeds, data = _pooled([s.between for s in sides]), _pooled([s.data for s in sides])
    if item.folds:
        return "" if seeds is None else f"; a recipe's folds differ by {seeds:.3f} (SD)"
    alone = first if item.trainings[0] < 2 else second
    said = f"; {alone} was trained once: its spread is taken to be the other's" if item.borrowed else ""
    if seeds is None or data is None:
        return said
    return f"; another training moves it by {seeds:.3f} (SD), other images by {data:.3f}{said}"


def _pooled(deviations: Sequence[float | None]) -> float | None:
    known = [value for value in deviations if value is not None]
    return (sum(value**2 for value in known) / len(known)) ** 0.5 if known else None


def _more(item: Difference) -> str:
    """Return what would tell; a number of images that is there already is none."""
    several = isinstance(item, Repeated)
    if item.more_images:
        return f"; about {about(item.more_images)} {'images ' if several else ''}would be needed"
    if isinstance(item, Repeated) and item.needs_trainings:
        return "; more images alone would not tell: more trainings are needed"
    return "; p is corrected for all comparisons" if item.is_lost_to_others else ""


def _p(item: Difference) -> str:
    p = item.p if item.p_holm is None else item.p_holm
    return "no test" if p is None else f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def about(number: int) -> str:
    """Return a number of images in two significant digits: more would claim to know."""
    scale = 10 ** max(0, len(str(number)) - 2)
    return f"{round(number / scale) * scale:,}"
