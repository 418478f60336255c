"""How long a recipe takes on this machine, estimated from the speed of its own steps (`measure_speed`)."""

from dataclasses import dataclass

from dermkit.models.views import VIEW_SETS
from dermkit.recipes.schema import Recipe

_RUN_SECONDS = 4.0
"""Of a run whatever its size: building the net, charts, the model folder. 2 to 5 s on two cores (measured)."""
_FEATURE_EPOCH_SPEED = 20_000.0
"""Images a second of a head on cached features, a lower bound: an epoch of 8,000 took 0.3 s on two cores (measured)."""


@dataclass(frozen=True)
class NetSpeed:
    """Images a second of one net on this machine. train: a whole training step. validate: the net alone, as an epoch is
    validated. forward: the net alone, as features are computed and images scored; float32 both.

    precision: of `train`, the faster one where the machine has both.
    """

    train: float
    validate: float
    forward: float
    precision: str

    @property
    def frozen(self) -> "NetSpeed":
        """The speed of the same net frozen: a head learns from its features."""
        return NetSpeed(_FEATURE_EPOCH_SPEED, self.forward, self.forward, "float32")


def estimate_seconds(
    recipe: Recipe, speed: NetSpeed, *, n_images: int, n_folds: int, n_trained_folds: int | None = None
) -> float:
    """Return the seconds of training a recipe on each of `n_folds` folds of `n_images`, without decoding.

    n_trained_folds: how many of them are trained (None = all). Each fold trains on all other folds, is validated after
    each epoch, and is scored with the recipe's test views. Features of a frozen backbone are computed once for
    all folds.
    """
    n_validation = n_images / n_folds
    n_train = n_images - n_validation
    n_views = len(VIEW_SETS.get(recipe.test_views, VIEW_SETS["dihedral_crops"]))
    scoring = n_validation * n_views / speed.forward
    features = 0.0
    epochs = 0.0
    for phase in recipe.phases:
        if phase.train_backbone == "none":
            features = max(features, n_images * (max(phase.views, 1) + 1) / speed.forward)
            epochs += phase.epochs * n_train / _FEATURE_EPOCH_SPEED
        else:
            n_forward = n_validation + min(recipe.optim.batch_norm_images, n_train)
            epochs += phase.epochs * (n_train / speed.train + n_forward / speed.validate)
    return features + (n_trained_folds or n_folds) * (_RUN_SECONDS + epochs + scoring)
