"""Which changes are put on every image, and in what strengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dermkit.errors import UsageError, did_you_mean
from dermkit.perturbation.artefacts import ARTEFACTS, Artefact

VariantKind = Literal["original", "control", "artefact", "hidden"]

MaskSource = Literal["mask", "automatic", "ellipse"]
MASK_SOURCE_TEXTS: dict[MaskSource, str] = {
    "mask": "the mask that was given",
    "automatic": "an automatic mask (darker or redder than the skin, Otsu's threshold)",
    "ellipse": "an ellipse in the middle of the image, half as wide and high",
}
STRENGTHS = (1 / 3, 2 / 3, 1.0)
"""Three points of a curve that begins at 0; hairs and bubbles become more in the same steps."""
PICTURES_FOLDER = "pictures"
CONTROL = "control"
LESION_HIDDEN, BACKGROUND_HIDDEN = "lesion_hidden", "background_hidden"
ORIGINAL_INDEX, CONTROL_INDEX = 0, 1
"""Places of the unchanged image and of the control among the variants: in one batch of the net."""


@dataclass(frozen=True)
class Variant:
    """An image as it is scored. kind: what is done with it. name: of the artefact, or what is hidden."""

    kind: VariantKind
    name: str
    strength: float


def plan_variants(artefacts: Sequence[Artefact]) -> tuple[Variant, ...]:
    """Return the variants of an image: as it is, the control, each artefact at each strength, and with parts hidden.

    The control is the unchanged image on the path of the changed ones, an artefact of strength 0.
    """
    return (
        Variant("original", "original", 0.0),
        Variant("control", CONTROL, 0.0),
        *(Variant("artefact", artefact.name, strength) for artefact in artefacts for strength in STRENGTHS),
        Variant("hidden", LESION_HIDDEN, 1.0),
        Variant("hidden", BACKGROUND_HIDDEN, 1.0),
    )


def find_artefacts(names: Sequence[str]) -> tuple[Artefact, ...]:
    """Return the artefacts of these names, all of them for none; raises `UsageError` for an unknown name."""
    known_names = [artefact.name for artefact in ARTEFACTS]
    for name in names:
        if name not in known_names:
            raise UsageError(
                f"--artefact {name}: there is no such artefact{did_you_mean(name, known_names)}",
                outcome="nothing was scored",
                remedy=f"one of {', '.join(known_names)}",
            )
    return tuple(artefact for artefact in ARTEFACTS if not names or artefact.name in names)
