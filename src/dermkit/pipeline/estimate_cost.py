"""How long a recipe takes on this machine, estimated from the speed of its own steps (`measure_speed`)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dermkit.models.views import VIEW_SETS
from dermkit.recipes.schema import Recipe

if TYPE_CHECKING:
    from dermkit.recipes.frozen import ClassifierKind

_RUN_SECONDS = 4.0
"""Of a run whatever its size: building the net, charts, the model folder. 2 to 5 s on two cores (measured)."""
_FEATURE_EPOCH_SPEED = 20_000.0
"""Images a second of a head on cached features, a lower bound: an epoch of 8,000 took 0.3 s on two cores (measured)."""

FIT_EXPONENTS: "Mapping[ClassifierKind, float]" = {"logistic": 1.5, "svm": 2.0, "k_nearest": 2.0}
"""Power of the training images that the seconds of a fit are taken to grow with. A step of logistic regression is
linear and needs more steps the more the images weigh against its penalty; an SVM, of whose
made rows each is a support vector already, and nearest neighbours compare pairs. Chosen; 1,600 real images of nine
classes (isic9, MobileNetV2) took 3 and 9 times as long as 400 made rows, and are counted with 16 and 32 times."""
FIT_SAFETY = 2.0
"""What an extrapolated fit is multiplied by: real features may need more steps than made ones. Chosen."""


@dataclass(frozen=True)
class NetSpeed:
    """Images a second of one net on this machine. train: a whole training step. validate: the net alone, as an epoch is
    validated. forward: the net alone, as images are scored and features of validation images computed; float32 both.

    precision: of `train`, the faster one where the machine has both. n_features: what its frozen backbone gives.
    has_batch_norm: whether statistics are computed after each epoch. bfloat16_forward: as `forward`, in bfloat16; None
    where the machine has none, or where float32 is faster.
    """

    train: float
    validate: float
    forward: float
    precision: str
    n_features: int = 0
    has_batch_norm: bool = True
    bfloat16_forward: float | None = None

    @property
    def frozen(self) -> "NetSpeed":
        """The speed of the same net frozen: a head learns from its features, in the faster precision."""
        precision = "float32" if self.bfloat16_forward is None else "bfloat16"
        return replace(self, train=_FEATURE_EPOCH_SPEED, validate=self.forward, precision=precision)

    @property
    def features(self) -> float:
        """Images a second of which features for training are computed."""
        return self.bfloat16_forward or self.forward


@dataclass(frozen=True)
class FitTime:
    """Seconds in which a classifier was fitted to some rows of made features on this machine, and scored them."""

    kind: "ClassifierKind"
    n_rows: int
    seconds: float

    def bound(self, n_rows: int) -> float:
        """Return the seconds that a fit to so many rows is counted with: extrapolated by `FIT_EXPONENTS`, times
        `FIT_SAFETY`; no fewer than those measured.
        """
        growth = max(1.0, n_rows / self.n_rows)
        return FIT_SAFETY * self.seconds * float(growth ** FIT_EXPONENTS[self.kind])


def estimate_seconds(
    recipe: Recipe,
    speed: NetSpeed,
    *,
    n_images: int,
    n_folds: int,
    n_trained_folds: int | None = None,
    has_features: bool = False,
) -> float:
    """Return the seconds of training a recipe on each of `n_folds` folds of `n_images`, without decoding.

    n_trained_folds: how many of them are trained (None = all). Each fold trains on all other folds, is validated after
    each epoch, and is scored with the recipe's test views. Features of a frozen backbone are computed once for
    all folds. has_features: they are cached already. The fit of a classifier is not in it (`FitTime.bound`).
    """
    n_validation = n_images / n_folds
    n_train = n_images - n_validation
    n_views = len(VIEW_SETS.get(recipe.test_views, VIEW_SETS["dihedral_crops"]))
    scoring = n_validation * n_views / speed.forward
    features = 0.0
    epochs = 0.0
    for phase in recipe.phases:
        if phase.train_backbone == "none":
            validation = n_images / speed.forward
            of_phase = n_images * max(phase.views, 1) / speed.features + validation
            features = max(features, 0.0 if has_features else of_phase)
            epochs += phase.epochs * n_train / _FEATURE_EPOCH_SPEED
        else:
            n_forward = n_validation + min(recipe.optim.batch_norm_images, n_train)
            epochs += phase.epochs * (n_train / speed.train + n_forward / speed.validate)
    return features + (n_trained_folds or n_folds) * (_RUN_SECONDS + epochs + scoring)
