"""What a heat map is evidence of: one class against all others, or against one; and by which method. Without torch.

Shapes: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dermkit.errors import UsageError, did_you_mean
from dermkit.metrics.stats.arrays import Floats

MapMethod = Literal["auto", "gradient", "gradient-rollout", "rollout", "occlusion"]
"""`auto` chooses; the others are the options of `--method` (docs/explain.md)."""


ROLLOUT_NAME = "attention roll-out"
"""The one method whose maps are of no class."""


@dataclass(frozen=True)
class EvidenceTarget:
    """A class by its position, and the class that it is set against; None = all others."""

    class_index: int
    against_index: int | None = None

    def for_columns(self, class_order: Sequence[int]) -> "EvidenceTarget":
        """Return the same for a net whose columns lie in another order. class_order: class -> column."""
        against = None if self.against_index is None else class_order[self.against_index]
        return EvidenceTarget(class_order[self.class_index], against)

    def probability(self, probabilities: Floats) -> Floats:
        """Return p(class), or p(class) / (p(class) + p(against)), (N,), of probabilities (N, K)."""
        p = probabilities[:, self.class_index]
        if self.against_index is None:
            return p
        total = p + probabilities[:, self.against_index]
        return np.divide(p, total, out=np.full_like(p, 0.5), where=total > 0)


@dataclass(frozen=True)
class TargetChoice:
    """Which class a user wants explained: None = the predicted one of each image."""

    class_index: int | None = None
    against_index: int | None = None

    def for_image(self, probabilities: Floats) -> EvidenceTarget:
        """Return the target of one image with probabilities (K,)."""
        predicted = int(np.argmax(probabilities))
        class_index = predicted if self.class_index is None else self.class_index
        if class_index != self.against_index:
            return EvidenceTarget(class_index, self.against_index)
        # The predicted class is the one to set it against: the most probable other class stands in its place.
        other_indices = np.delete(np.arange(len(probabilities)), predicted)
        return EvidenceTarget(int(other_indices[np.argmax(probabilities[other_indices])]), self.against_index)


def choose_target(class_names: Sequence[str], class_name: str | None, against: str | None) -> TargetChoice:
    """Return the choice of `--class` and `--against`; raises `UsageError` for a name that the model does not have."""
    if class_name is not None and class_name == against:
        raise UsageError(
            f"--class {class_name} --against {against}: a class cannot be set against itself",
            outcome="nothing was explained",
            remedy="name two different classes",
        )
    return TargetChoice(
        _class_index(class_names, class_name, "--class"), _class_index(class_names, against, "--against")
    )


def _class_index(class_names: Sequence[str], name: str | None, flag: str) -> int | None:
    if name is None:
        return None
    if name not in class_names:
        raise UsageError(
            f"{flag} {name}: the model has no such class{did_you_mean(name, class_names)}",
            outcome="nothing was explained",
            remedy=f"one of {', '.join(class_names)}",
        )
    return list(class_names).index(name)
