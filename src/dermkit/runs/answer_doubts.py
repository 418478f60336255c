"""Doubts from what was tried beside a run's test: images unlike the training's, artefacts on images, the lesion hidden.

A rule over out_of_distribution.json and counterfactuals.json of the run folder; nothing is computed from images here.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dermkit.files import json_text, sha256_bytes, sha256_file
from dermkit.runs.doubts import Doubt, has_reliable_interval
from dermkit.runs.layout import (
    COUNTERFACTUALS,
    COUNTERFACTUALS_FOLDER,
    MODEL_FOLDER,
    OUT_OF_DISTRIBUTION,
)
from dermkit.runs.model_key import folder_model_key, model_cards

ARTEFACT_CHANGE = 0.1
"""An artefact is doubted where the whole interval of the mean change of the probability lies beyond this."""

HIDDEN_SHARE = 0.8
"""The share of the net's gain over chance that is left with the lesion hidden from which this is doubted. The outline
of the hidden lesion is left and tells something, so that less is no sign of a shortcut."""

_CHANCE = {"AUROC": 0.5}


def foreign_doubts(run: Path, split: str) -> Iterator[Doubt]:
    """Yield that clearly more images of the split are unlike the training images than the stated false-alarm rate."""
    content = OUT_OF_DISTRIBUTION.read_optional(run)
    body = (content.get("splits") or {}).get(split) or {}
    estimate = body.get("false_alarm_rate") or {}
    if has_reliable_interval(estimate) and estimate["ci95"][0] > content["max_false_alarm_rate"]:
        yield Doubt(
            "foreign", "care",
            (f"{body['n_outside']} of {body['n']} {split} images are unlike the images that the net was trained on, "
             f"where at most {content['max_false_alarm_rate']:.0%} should be.",), "foreign",
            "Look at these images (out_of_distribution.csv): leave out what the model is not for, or train on such "
            "images too.",
        )  # fmt: skip


def why_counterfactuals_unused(run: Path, content: Mapping[str, Any], split: str) -> str:
    """Return why a run's counterfactuals say nothing of a split's figures, "" where they do.

    content: of counterfactuals.json. Validation images count for the test split too, since the net is the same; test
    images do not count for validation, nor do those of another data set.
    """
    if not _is_of_model(run / MODEL_FOLDER, content):
        return "they are of an earlier state of the model, which has been written anew since"
    images = (content.get("images") or {}).get("split") or "unknown"
    is_of_run = images in (split, "validation")
    return "" if is_of_run else f"they are of {images} images, and the verdict is on {split} images"


def _is_of_model(model: Path, content: Mapping[str, Any]) -> bool:
    """Return whether counterfactuals are of the model in a folder; True where it is gone, and nothing can differ.

    Those of an earlier version hold the hash of model.json alone, which notes of a second evaluation change.
    """
    cards = model_cards(model)
    if not cards:
        return True
    if key := content.get("model_key"):
        # The key of a card of an older format is known only to who loads it; an untouched folder has the same bytes.
        return bool(key == folder_model_key(model) or _is_untouched(model, content.get("files_sha256")))
    return any(content.get("model_sha256") in _card_hashes(card) for card in cards)


def _is_untouched(model: Path, files_sha256: object) -> bool:
    """Return whether a model's list of checksums, its file without an ending, is of the files that had been loaded."""
    lists = [path for path in model.iterdir() if not path.suffix and path.is_file()]
    return any(sha256_file(path) == files_sha256 for path in lists)


def _card_hashes(card: Path) -> list[str]:
    """Return the hash of a model's card, as `Predictor.sha256`, and that from before its test images were scored.

    What the test images showed is noted in the card, and changes no answer.
    """
    data = card.read_bytes()
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not document.get("evaluation"):
        return [sha256_bytes(data)]
    before = json_text({**document, "evaluation": None}, format=document["format"])
    return [sha256_bytes(data), sha256_bytes(before.encode())]


def counterfactual_doubts(run: Path, split: str) -> Iterator[Doubt]:
    """Yield the artefacts that clearly move the answers, and that the net hardly needs the lesion.

    Nothing of counterfactuals that `why_counterfactuals_unused` for the split.
    """
    content = COUNTERFACTUALS.read_optional(run / COUNTERFACTUALS_FOLDER)
    if not content.get("is_complete") or why_counterfactuals_unused(run, content, split):
        return
    images = content["images"]["split"]
    source = "" if images == split else f" (Measured on {images} images.)"
    for artefact in content["artefacts"]:
        estimate = artefact["by_strength"][-1]["change"]
        if artefact["is_shown"] and _is_large(estimate):
            yield Doubt(
                "artefact", "care", (f"{artefact['text']}{source}",), "counterfactuals",
                f"Do not use it for images with {str(artefact['title']).lower()}, or train on such images too.",
            )  # fmt: skip
    for hidden in content["hidden"]:
        if hidden["name"] == "lesion_hidden" and _share_left(hidden) >= HIDDEN_SHARE:
            yield Doubt(
                "lesion_hidden", "care", (f"{hidden['text']}{source}",), "counterfactuals",
                "Find what tells the classes apart beside the lesion (`dermkit audit DATASET`).",
            )  # fmt: skip


def _is_large(estimate: Mapping[str, Any]) -> bool:
    if not has_reliable_interval(estimate):
        return False
    low, high = estimate["ci95"]
    return bool(low > ARTEFACT_CHANGE or high < -ARTEFACT_CHANGE)


def _share_left(hidden: Mapping[str, Any]) -> float:
    """Return the gain over chance with the lesion hidden as a share of that of the whole image; 0 where uncertain."""
    chance, original, remaining = _CHANCE.get(hidden["measure"]), hidden["original"], hidden["remaining"]
    if chance is None or not has_reliable_interval(remaining) or remaining["ci95"][0] <= chance:
        return 0.0
    gain = (original["value"] or 0.0) - chance
    return float((remaining["value"] - chance) / gain) if gain > 0 else 0.0
