"""What stands beside the exported nets: export.json, README.md, and the same in short inside each net's file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermkit.files import sha256_file
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.card import MODEL_JSON, RESEARCH_ONLY, TRAINING_IMAGES_FILE, markdown
from dermkit.models.engines.sessions import (
    FEATURES_OUTPUT,
    LOGITS_OUTPUT,
    METADATA_INPUT,
    PIXELS_INPUT,
    PROBABILITIES_OUTPUT,
)
from dermkit.models.exported_folder import (
    EXPORT,
    described_card,
    described_member,
    exported_features_file,
    net_files,
)
from dermkit.models.members import MemberFields

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor

_PIXELS_TEXT = (
    "sRGB pixels (N, S, S, 3), uint8, 0 to 255, of images turned as their EXIF orientation says and resized as "
    "`preprocessing` says; the division, mean and standard deviation there are inside the net"
)
_OUTPUT_TEXTS = {
    PROBABILITIES_OUTPUT: "(N, K) float32: the mean over the views of the softmax of their logits",
    LOGITS_OUTPUT: "(N, V, K) float32: of each test-time view",
    FEATURES_OUTPUT: "(N, C) float32: the backbone's pooled features of the first view",
}
_STEPS = (
    "an image turned as its EXIF orientation says, in sRGB, resized as `preprocessing` of the net says: its `pixels`",
    "each net's `probabilities`; better: softmax of its `logits` in float64, and the mean over views",
    "where the net has a `calibration`: softmax(log p / temperature + bias)",
    "its columns in the order of `class_order`: column k of the model is column class_order[k] of the net",
    "the mean over the nets, weighted by `weight`: the probabilities, in the order of `classes`",
    'for decisions: softmax(log p / temperature + bias) with the `calibration` of `policy` (kind "none": p as it is)',
    "the sum over the malignant classes is at least the `threshold` of an operating point: positive",
)


def export_json(
    predictor: "Predictor", exported: str, folder: Path, *, parity: Mapping[str, Any], versions: Mapping[str, str],
    test_pictures: Sequence[Floats], precision: str,
) -> dict[str, Any]:  # fmt: skip
    """Return the content of export.json.

    folder: where the nets' files are. parity: the comparison with torch. test_pictures: probabilities (N, K) of the
    test pictures for each net, torch's or in int8 those of the exported net. precision: float32 or int8.
    """
    card = predictor.card
    return {
        "notice": RESEARCH_ONLY,
        "exported_to": exported,
        "precision": precision,
        **described_card(card, predictor.classes),
        "nets": [
            _net_json(member, number, exported, folder) | {"test_pictures": probabilities.tolist()}
            for number, (member, probabilities) in enumerate(zip(predictor.members, test_pictures, strict=True))
        ],
        "steps": list(_STEPS),
        "model_sha256": predictor.sha256,
        "model_key": predictor.model_key,
        "versions": {**versions, "trained_with": card.get("versions")},
        "parity": dict(parity),
    }


def _net_json(member: MemberFields, number: int, exported: str, folder: Path) -> dict[str, Any]:
    files = [folder / name for name in net_files(number, exported)]
    inputs = {PIXELS_INPUT: _PIXELS_TEXT}
    if member.metadata is not None:
        inputs[METADATA_INPUT] = (
            f"(N, {member.metadata.width}) float32: encoded age, sex and site; a row of zeros says that all are unknown"
        )
    features = folder / exported_features_file(number)
    return {
        "file": files[0].name,
        "files": {path.name: {"sha256": sha256_file(path), "n_bytes": path.stat().st_size} for path in files},
        "inputs": inputs,
        "outputs": dict(_OUTPUT_TEXTS),
        **described_member(member),
        "training_features": features.name if features.is_file() else None,
    }


def net_properties(predictor: "Predictor", number: int) -> dict[str, str]:
    """Return what a net's file says of itself: name -> text, JSON where it is more than a word."""
    member = predictor.members[number]
    names = predictor.class_names
    columns = {column: names[place] for place, column in enumerate(member.class_order)}
    malignant = [entry.name for entry in predictor.classes if entry.malignancy == "malignant"]
    return {
        "notice": RESEARCH_ONLY,
        "classes": json.dumps([columns[column] for column in range(len(names))], ensure_ascii=False),
        "malignant_classes": json.dumps(malignant, ensure_ascii=False),
        "preprocessing": json.dumps(asdict(member.preprocessing)),
        "views": json.dumps(list(member.views)),
        "pixels": _PIXELS_TEXT,
        **_OUTPUT_TEXTS,
        "backbone": str(member.spec["backbone"]),
        "model_sha256": predictor.sha256,
        "see": f"{EXPORT.name}: calibration, operating points, decision policy, the other nets",
    }


def net_description(predictor: "Predictor") -> str:
    """Return one sentence for the reader of a net's file."""
    return (
        f"A skin-lesion image classifier of {len(predictor.classes)} classes, exported by dermkit: resized RGB pixels "
        f"in, class probabilities out. {RESEARCH_ONLY}"
    )


def readme_text(
    predictor: "Predictor", content: Mapping[str, Any], comparison: Sequence[str], warnings: Sequence[str] = ()
) -> str:
    """Return README.md of an exported folder. content: of export.json. comparison: how far it is from torch."""
    classes = "\n".join(
        f"| {number} | {markdown(entry.name)} | {markdown(entry.malignancy)} |"
        for number, entry in enumerate(predictor.classes)
    )
    nets = "\n".join(f"- `{net['file']}`: {markdown(net['backbone'])}" for net in content["nets"])
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(content["steps"], start=1))
    warning_lines = "".join(f"{markdown(warning)}\n" for warning in warnings)
    comparison_lines = "\n".join(f"- {markdown(line)}" for line in comparison)
    return f"""# {markdown(content["recipe"]["name"] or "A model")}, exported to {content["exported_to"]}

**{RESEARCH_ONLY}**
{warning_lines}
{nets}
- `{EXPORT.name}`: preprocessing, classes, calibration, operating points, decision policy, versions, checksums
- `{MODEL_JSON.name}`, `{TRAINING_IMAGES_FILE}`, `training_features-*.npz`: what `dermkit predict` needs to
  run this folder too, without torch
- `MODEL_CARD.md`: what the model is, what it was trained on, how it did

| column | class | counted as |
|---|---|---|
{classes}

From an image to a decision (`{EXPORT.name}` has the numbers):

{steps}

Compared with the torch model:

{comparison_lines}
"""
