"""The image-blind rules of repeats: they see neither net nor seed, so those of a split are fitted once in a process."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dermkit.data.manifest import Dataset
from dermkit.evaluation.blind_rules import BlindRules, predict_by_rules
from dermkit.files import fingerprint

if TYPE_CHECKING:
    from dermkit.data.cache.pixels import PixelCache

_LATEST: dict[str, BlindRules] = {}
"""The rules that were fitted last, by what they depend on: repeats ask for them one after the other."""


def rules_of_repeats(
    dataset: Dataset,
    pixels: "PixelCache",
    *,
    train_ids: Sequence[str],
    score_ids: Sequence[str],
    class_names: Sequence[str],
) -> BlindRules:
    """Return what `predict_by_rules` does; asked for the same images again, without fitting anew."""
    key = fingerprint(
        dataset.manifest_sha256, str(dataset.image_root), pixels.key, list(train_ids), list(score_ids),
        list(class_names),
    )  # fmt: skip
    if key not in _LATEST:
        rules = predict_by_rules(
            dataset, pixels, train_ids=train_ids, score_ids=score_ids, class_names=class_names
        )
        _LATEST.clear()
        _LATEST[key] = rules
    return _LATEST[key]
