"""Synthetic lesions with known truth, and photographs of them.

Classes differ in how strongly each dermoscopic structure is drawn (`CLASSES`). Every lesion is moved towards a
look-alike class by its `atypia` (0..1; above 0.5 it looks more like the other class), so no classifier can be perfect.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dermkit.data.synthetic import drawing
from dermkit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """How strongly each dermoscopic structure is drawn, 0..1; below `MIN_STRENGTH` it is not drawn.

    sharpness: of the border. The tone of the skin depends on the patient, not on the class.
    """

    asymmetry: float
    irregularity: float
    sharpness: float
    pigment: float
    variegation: float
    network: float
    globules: float
    streaks: float
    veil: float
    regression: float
    redness: float
    vessels: float
    cysts: float
    scale: float
    lacunae: float
    white_centre: float


MIN_STRENGTH = 0.10
"""Smaller values in `CLASSES`, such as .02, stand for structures that a class hardly ever has."""
STRENGTH_STD = 0.09
"""Standard deviation of every strength within a class."""


@dataclass(frozen=True)
class SyntheticClass:
    """A class: its code in a HAM10000 table, its look-alike class, and its mean appearance."""

    dx: str
    lookalike: str
    mean: Appearance


def _to_appearance(*values: float) -> Appearance:
    return Appearance(**dict(zip((field.name for field in fields(Appearance)), values, strict=True)))


# Chosen by hand after textbook criteria (asymmetry, border, colour, dermoscopic structures), not measured.
# Columns: asymmetry irregularity sharpness pigment variegation network globules streaks veil regression redness
#          vessels cysts scale lacunae white_centre
CLASSES: Mapping[str, SyntheticClass] = {
    "melanoma": SyntheticClass("mel", "nevus", _to_appearance(
        .68, .62, .55, .80, .80, .42, .45, .45, .58, .30, .26, .05, .02, .00, .00, .00)),
    "nevus": SyntheticClass("nv", "melanoma", _to_appearance(
        .16, .16, .38, .38, .15, .55, .34, .02, .02, .02, .14, .00, .02, .00, .00, .00)),
    "seborrheic keratosis": SyntheticClass("bkl", "melanoma", _to_appearance(
        .30, .36, .88, .50, .36, .04, .10, .00, .04, .00, .12, .00, .80, .36, .00, .00)),
    "pigmented benign keratosis": SyntheticClass("bkl", "nevus", _to_appearance(
        .34, .36, .80, .36, .30, .36, .08, .00, .02, .04, .16, .00, .38, .14, .00, .00)),
    "basal cell carcinoma": SyntheticClass("bcc", "actinic keratosis", _to_appearance(
        .48, .45, .40, .12, .34, .00, .18, .00, .34, .06, .52, .75, .00, .08, .00, .00)),
    "actinic keratosis": SyntheticClass("akiec", "basal cell carcinoma", _to_appearance(
        .40, .42, .12, .16, .26, .04, .03, .00, .00, .06, .62, .10, .00, .58, .00, .00)),
    "squamous cell carcinoma": SyntheticClass("akiec", "actinic keratosis", _to_appearance(
        .48, .50, .36, .14, .34, .00, .02, .00, .02, .06, .76, .36, .00, .82, .00, .40)),
    "dermatofibroma": SyntheticClass("df", "nevus", _to_appearance(
        .14, .14, .14, .32, .12, .46, .04, .00, .00, .00, .26, .02, .00, .00, .00, .80)),
    "vascular lesion": SyntheticClass("vasc", "basal cell carcinoma", _to_appearance(
        .30, .28, .72, .04, .34, .00, .00, .00, .16, .00, .70, .00, .00, .00, .88, .00)),
}  # fmt: skip

MIXTURES: Mapping[str, tuple[str, ...]] = {
    "benign": ("nevus", "nevus", "seborrheic keratosis"),
    "malignant": ("melanoma", "melanoma", "basal cell carcinoma"),
}
"""Labels for several classes, each drawn in proportion to how often it is listed."""

ARTEFACT_RATES = {"hair": 0.35, "ruler": 0.12, "bubbles": 0.15, "ink": 0.06, "dark_corners": 0.20}
"""Fraction of photographs with each artefact; the same in every class, so no artefact reveals the class."""


@dataclass(frozen=True, kw_only=True)
class LesionTruth:
    """Everything that defines a synthetic lesion; equal values draw equal pixels.

    label: the class it is labelled with; kind: the class it is drawn as. tone: of the skin, 0 (pale) to 1 (dark).
    radius: as a fraction of the image width. atypia: 0..1, how far its appearance is moved to the look-alike class.
    """

    lesion_id: str
    patient_id: str
    label: str
    kind: str
    seed: int
    tone: float
    radius: float
    atypia: float
    appearance: Appearance


def make_lesion(
    label: str, *, seed: int, lesion_id: str = "", patient_id: str = "", tone: float = 0.1
) -> LesionTruth:
    """Return a random lesion of a class of `CLASSES` or `MIXTURES`; raises `UsageError` for another label.

    tone: of the skin, 0 (pale) to 1 (dark brown).
    """
    if label not in CLASSES and label not in MIXTURES:
        choices = ", ".join([*CLASSES, *MIXTURES])
        raise UsageError(f"no made class is called {label!r}", remedy=f"choose from: {choices}")
    rng = np.random.default_rng([seed, 0])
    kind = str(rng.choice(MIXTURES.get(label, (label,))))
    atypia = float(rng.beta(1.3, 4.2))
    class_mean, lookalike_mean = (
        np.array(list(asdict(c.mean).values())) for c in (CLASSES[kind], CLASSES[CLASSES[kind].lookalike])
    )
    strengths = np.clip(
        class_mean + atypia * (lookalike_mean - class_mean) + STRENGTH_STD * rng.normal(size=len(class_mean)), 0, 1
    )
    # Noise alone must not draw a structure that neither class has.
    strengths[np.maximum(class_mean, lookalike_mean) < MIN_STRENGTH] = 0.0
    return LesionTruth(
        lesion_id=lesion_id,
        patient_id=patient_id,
        label=label,
        kind=kind,
        seed=seed,
        tone=tone,
        radius=float(rng.uniform(0.21, 0.36)),
        atypia=atypia,
        appearance=_to_appearance(*(float(value) for value in strengths)),
    )


def draw_photograph(
    truth: LesionTruth, *, photo_seed: int, size: int, artefacts: frozenset[str] = frozenset()
) -> NDArray[np.uint8]:
    """Return a photograph of a lesion, (size, size, 3) uint8 RGB.

    photo_seed: determines rotation, distance, light and artefacts. artefacts: names of `ARTEFACT_RATES` that are always
    drawn, beside random ones.
    """
    rng = np.random.default_rng([truth.seed, 1, photo_seed])
    view = drawing.make_view(
        size,
        turn=rng.uniform(0, 2 * np.pi),
        radius=truth.radius * rng.uniform(0.85, 1.15),
        shift=(rng.uniform(-0.07, 0.07), rng.uniform(-0.07, 0.07)),
    )
    image = _draw_lesion(truth, view)
    has_artefact = {
        name: by_chance or name in artefacts for name, by_chance in random_artefacts(truth, photo_seed).items()
    }
    artefact_rng = np.random.default_rng([truth.seed, 3, photo_seed])
    if has_artefact["bubbles"]:
        image = drawing.draw_bubbles(artefact_rng, image, int(artefact_rng.integers(2, 8)))
    if has_artefact["ink"]:
        image = (
            _draw_visible_ink(artefact_rng, image) if "ink" in artefacts else drawing.draw_ink(artefact_rng, image)
        )
    if has_artefact["hair"]:
        image = drawing.draw_hair(artefact_rng, image, int(artefact_rng.integers(2, 13)))
    if has_artefact["ruler"]:
        image = drawing.draw_ruler(artefact_rng, image)
    if has_artefact["dark_corners"]:
        image = drawing.draw_dark_corners(artefact_rng, image)
    return drawing.expose(rng, image)


def _draw_visible_ink(rng: np.random.Generator, image: drawing.Field) -> drawing.Field:
    """Draw ink until it covers 1 % of the image, because a random stroke may lie outside of it."""
    for _ in range(50):
        inked_image = drawing.draw_ink(rng, image)
        if (np.abs(inked_image - image).max(axis=2) > 0.1).mean() > 0.01:
            break
    return inked_image


def random_artefacts(truth: LesionTruth, photo_seed: int) -> dict[str, bool]:
    """Return artefact -> whether a photograph shows it at random, by `ARTEFACT_RATES`."""
    rng = np.random.default_rng([truth.seed, 2, photo_seed])
    return {name: bool(rng.random() < rate) for name, rate in ARTEFACT_RATES.items()}


def _draw_lesion(truth: LesionTruth, view: drawing.View) -> drawing.Field:
    appearance = truth.appearance

    def structure_rng(structure: drawing.Structure) -> np.random.Generator:
        return np.random.default_rng([truth.seed, 4, *structure.encode()])

    image = drawing.draw_skin(structure_rng, view, truth.tone)
    streaked_depth, border_depth = drawing.lesion_border(
        structure_rng,
        view,
        asymmetry=appearance.asymmetry,
        irregularity=appearance.irregularity,
        streaks=_visible_strength(appearance.streaks),
    )
    lesion_mask = drawing.soft_step(streaked_depth, 0.16 - 0.13 * appearance.sharpness)
    pigment = drawing.melanin_density(
        structure_rng,
        view,
        border_depth,
        pigment=appearance.pigment,
        variegation=appearance.variegation,
        asymmetry=appearance.asymmetry,
    )
    if _visible_strength(appearance.network):
        network = drawing.network_density(
            structure_rng, view, border_depth, strength=appearance.network, atypia=appearance.asymmetry
        )
        pigment = drawing.add_network(pigment, network)
    if _visible_strength(appearance.globules):
        pigment = pigment + 0.9 * drawing.globule_density(
            structure_rng, view, border_depth, strength=appearance.globules, atypia=appearance.asymmetry
        )
    if _visible_strength(appearance.white_centre):
        scar = drawing.soft_step(border_depth - 0.52, 0.10) * appearance.white_centre
        pigment = pigment * (1 - 0.8 * scar)
        image = drawing.blend(image, drawing.SCAR, 0.75 * scar * lesion_mask)
    image = drawing.absorb(image, lesion_mask * pigment, drawing.MELANIN)
    image = drawing.absorb(
        image, 0.85 * appearance.redness * drawing.soft_step(streaked_depth + 0.10, 0.12), drawing.HAEMOGLOBIN
    )
    return _draw_structures(appearance, structure_rng, view, image, border_depth, lesion_mask)


def _draw_structures(
    appearance: Appearance,
    structure_rng: drawing.StructureRng,
    view: drawing.View,
    image: drawing.Field,
    border_depth: drawing.Field,
    lesion_mask: drawing.Field,
) -> drawing.Field:
    """Draw the structures above pigment and redness: veil, regression, lacunae, vessels, cysts, scale."""
    if _visible_strength(appearance.veil):
        veil = drawing.patch_mask(structure_rng, "veil", view, 0.10 + 0.30 * appearance.veil, 1.1)
        image = drawing.blend(
            image,
            drawing.BLUE_GREY,
            _opacity(appearance.veil) * veil * lesion_mask * drawing.soft_step(border_depth - 0.12, 0.06),
        )
    if _visible_strength(appearance.regression):
        white_mask = drawing.patch_mask(structure_rng, "white", view, 0.08 + 0.30 * appearance.regression)
        image = drawing.blend(
            image, drawing.SCAR, 0.85 * _opacity(appearance.regression) * white_mask * lesion_mask
        )
    if _visible_strength(appearance.lacunae):
        lake_mask, dark_mask = drawing.lacunae_masks(structure_rng, view, border_depth)
        image = drawing.absorb(image, 1.9 * appearance.lacunae * lake_mask, drawing.HAEMOGLOBIN)
        image = drawing.absorb(image, 0.8 * appearance.lacunae * dark_mask, drawing.OLD_BLOOD)
    if _visible_strength(appearance.vessels):
        vessel_mask = drawing.vessel_mask(structure_rng, view, appearance.vessels) * drawing.soft_step(
            border_depth + 0.05, 0.06
        )
        image = drawing.absorb(image, 1.6 * _opacity(appearance.vessels) * vessel_mask, drawing.VESSEL)
    if _visible_strength(appearance.cysts):
        pale_mask, dark_mask = drawing.spot_masks(
            structure_rng, "cysts", view, border_depth, fraction=0.5 * appearance.cysts, frequency=4.5
        )
        image = drawing.blend(image, drawing.KERATIN, 0.75 * pale_mask)
        image = drawing.absorb(image, 1.3 * dark_mask, drawing.MELANIN)
    if _visible_strength(appearance.scale):
        scale_mask = drawing.scale_mask(structure_rng, view, appearance.scale)
        image = drawing.blend(
            image,
            drawing.KERATIN,
            0.85 * _opacity(appearance.scale) * scale_mask * drawing.soft_step(border_depth, 0.06),
        )
    return image


def _opacity(strength: float) -> float:
    """Return the opacity of a structure: proportional to its strength, at most 0.72, reached near half strength."""
    return min(0.72, 1.5 * strength)


def _visible_strength(strength: float) -> float:
    return strength if strength >= MIN_STRENGTH else 0.0
