"""Made lesions with known truth, and photographs of them.

Classes differ by how strongly each structure of dermoscopy is drawn (`CLASSES`). Every lesion is pulled towards one
look-alike class by its `atypia` (0..1, above 0.5 it looks more like the other class), so no classifier can be perfect.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dermkit.data.synthetic import drawing
from dermkit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """How strongly each structure is drawn, 0..1; below `ABSENT` it is not drawn at all.

    sharpness: of the border. The tone of the skin around is the patient's, not the class's.
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


ABSENT = 0.10
SPREAD = 0.09
"""Standard deviation of every strength within a class."""


@dataclass(frozen=True)
class MadeClass:
    """A class: its code in a HAM10000 table, its look-alike among the classes, and its mean appearance."""

    dx: str
    lookalike: str
    mean: Appearance


def _means(*values: float) -> Appearance:
    return Appearance(**dict(zip((field.name for field in fields(Appearance)), values, strict=True)))


# Chosen by hand after the textbook criteria (asymmetry, border, colour and dermoscopic structure); no measurement.
# Columns: asymmetry irregularity sharpness pigment variegation network globules streaks veil regression redness
#          vessels cysts scale lacunae white_centre
CLASSES: Mapping[str, MadeClass] = {
    "melanoma": MadeClass("mel", "nevus", _means(
        .68, .62, .55, .80, .80, .42, .45, .45, .58, .30, .26, .05, .02, .00, .00, .00)),
    "nevus": MadeClass("nv", "melanoma", _means(
        .16, .16, .38, .38, .15, .55, .34, .02, .02, .02, .14, .00, .02, .00, .00, .00)),
    "seborrheic keratosis": MadeClass("bkl", "melanoma", _means(
        .30, .36, .88, .50, .36, .04, .10, .00, .04, .00, .12, .00, .80, .36, .00, .00)),
    "pigmented benign keratosis": MadeClass("bkl", "nevus", _means(
        .34, .36, .80, .36, .30, .36, .08, .00, .02, .04, .16, .00, .38, .14, .00, .00)),
    "basal cell carcinoma": MadeClass("bcc", "actinic keratosis", _means(
        .48, .45, .40, .12, .34, .00, .18, .00, .34, .06, .52, .75, .00, .08, .00, .00)),
    "actinic keratosis": MadeClass("akiec", "basal cell carcinoma", _means(
        .40, .42, .12, .16, .26, .04, .03, .00, .00, .06, .62, .10, .00, .58, .00, .00)),
    "squamous cell carcinoma": MadeClass("akiec", "actinic keratosis", _means(
        .48, .50, .36, .14, .34, .00, .02, .00, .02, .06, .76, .36, .00, .82, .00, .40)),
    "dermatofibroma": MadeClass("df", "nevus", _means(
        .14, .14, .14, .32, .12, .46, .04, .00, .00, .00, .26, .02, .00, .00, .00, .80)),
    "vascular lesion": MadeClass("vasc", "basal cell carcinoma", _means(
        .30, .28, .72, .04, .34, .00, .00, .00, .16, .00, .70, .00, .00, .00, .88, .00)),
}  # fmt: skip

MIXTURES: Mapping[str, tuple[str, ...]] = {
    "benign": ("nevus", "nevus", "seborrheic keratosis"),
    "malignant": ("melanoma", "melanoma", "basal cell carcinoma"),
}
"""Labels that stand for several classes, each drawn as often as it is named here."""

ARTEFACTS = {"hair": 0.35, "ruler": 0.12, "bubbles": 0.15, "ink": 0.06, "dark_corners": 0.20}
"""Share of photographs with each artefact, the same in every class: no artefact tells the class."""


@dataclass(frozen=True, kw_only=True)
class LesionTruth:
    """One lesion, whole: the same truth always draws the same lesion.

    label: the class it is filed under; kind: the class it is drawn as. tone: skin, 0 pale to 1 dark.
    radius: share of the photograph's side.
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
    """Draw a lesion of a class of `CLASSES` or `MIXTURES`; raises UsageError for another label."""
    if label not in CLASSES and label not in MIXTURES:
        known = ", ".join([*CLASSES, *MIXTURES])
        raise UsageError(f"no made class is called {label!r}", remedy=f"choose from: {known}")
    rng = np.random.default_rng([seed, 0])
    kind = str(rng.choice(MIXTURES.get(label, (label,))))
    atypia = float(rng.beta(1.3, 4.2))
    own, other = (
        np.array(list(asdict(c.mean).values())) for c in (CLASSES[kind], CLASSES[CLASSES[kind].lookalike])
    )
    drawn = np.clip(own + atypia * (other - own) + SPREAD * rng.normal(size=len(own)), 0, 1)
    # What neither class shows stays away; noise alone makes no structure.
    drawn[np.maximum(own, other) < ABSENT] = 0.0
    return LesionTruth(
        lesion_id=lesion_id,
        patient_id=patient_id,
        label=label,
        kind=kind,
        seed=seed,
        tone=tone,
        radius=float(rng.uniform(0.21, 0.36)),
        atypia=atypia,
        appearance=_means(*(float(value) for value in drawn)),
    )


def draw_photograph(
    truth: LesionTruth, *, photo_seed: int, size: int, artefacts: frozenset[str] = frozenset()
) -> NDArray[np.uint8]:
    """Photograph a lesion: uint8 (size, size, 3). Another seed is another turn, distance, light and other artefacts.

    artefacts: of `ARTEFACTS`, shown whether or not chance has them.
    """
    rng = np.random.default_rng([truth.seed, 1, photo_seed])
    view = drawing.make_view(
        size,
        turn=rng.uniform(0, 2 * np.pi),
        radius=truth.radius * rng.uniform(0.85, 1.15),
        shift=(rng.uniform(-0.07, 0.07), rng.uniform(-0.07, 0.07)),
    )
    image = _draw_lesion(truth, view)
    found = {name: shown or name in artefacts for name, shown in artefacts_of(truth, photo_seed).items()}
    art = np.random.default_rng([truth.seed, 3, photo_seed])
    if found["bubbles"]:
        image = drawing.bubbles(art, image, int(art.integers(2, 8)))
    if found["ink"]:
        image = _inked(art, image) if "ink" in artefacts else drawing.ink(art, image)
    if found["hair"]:
        image = drawing.hair(art, image, int(art.integers(2, 13)))
    if found["ruler"]:
        image = drawing.ruler(art, image)
    if found["dark_corners"]:
        image = drawing.dark_corners(art, image)
    return drawing.expose(rng, image)


def _inked(rng: np.random.Generator, image: drawing.Field) -> drawing.Field:
    """Draw ink until a hundredth of the picture shows it: by chance a stroke may lie outside the frame."""
    for _ in range(50):
        inked = drawing.ink(rng, image)
        if (np.abs(inked - image).max(axis=2) > 0.1).mean() > 0.01:
            break
    return inked


def artefacts_of(truth: LesionTruth, photo_seed: int) -> dict[str, bool]:
    """Return which artefacts a photograph shows."""
    rng = np.random.default_rng([truth.seed, 2, photo_seed])
    return {name: bool(rng.random() < share) for name, share in ARTEFACTS.items()}


def _draw_lesion(truth: LesionTruth, view: drawing.View) -> drawing.Field:
    look = truth.appearance

    def draws(structure: drawing.Structure) -> np.random.Generator:
        return np.random.default_rng([truth.seed, 4, *structure.encode()])

    image = drawing.skin(draws, view, truth.tone)
    inside, plain = drawing.outline(
        draws, view, asymmetry=look.asymmetry, irregularity=look.irregularity, streaks=_seen(look.streaks)
    )
    body = drawing.step(inside, 0.16 - 0.13 * look.sharpness)
    pigment = drawing.melanin(
        draws, view, plain, pigment=look.pigment, variegation=look.variegation, asymmetry=look.asymmetry
    )
    if _seen(look.network):
        net = drawing.network(draws, view, plain, strength=look.network, atypia=look.asymmetry)
        pigment = drawing.knit(pigment, net)
    if _seen(look.globules):
        pigment = pigment + 0.9 * drawing.globules(
            draws, view, plain, strength=look.globules, atypia=look.asymmetry
        )
    if _seen(look.white_centre):
        scar = drawing.step(plain - 0.52, 0.10) * look.white_centre
        pigment = pigment * (1 - 0.8 * scar)
        image = drawing.blend(image, drawing.SCAR, 0.75 * scar * body)
    image = drawing.absorb(image, body * pigment, drawing.MELANIN)
    image = drawing.absorb(image, 0.85 * look.redness * drawing.step(inside + 0.10, 0.12), drawing.HAEMOGLOBIN)
    return _draw_structures(look, draws, view, image, plain, body)


def _draw_structures(
    look: Appearance,
    draws: drawing.Draws,
    view: drawing.View,
    image: drawing.Field,
    plain: drawing.Field,
    body: drawing.Field,
) -> drawing.Field:
    """Lay over the lesion what is not pigment or blood in the skin itself."""
    if _seen(look.veil):
        veil = drawing.patch(draws, "veil", view, 0.10 + 0.30 * look.veil, 1.1)
        image = drawing.blend(
            image, drawing.BLUE_GREY, _cover(look.veil) * veil * body * drawing.step(plain - 0.12, 0.06)
        )
    if _seen(look.regression):
        white = drawing.patch(draws, "white", view, 0.08 + 0.30 * look.regression)
        image = drawing.blend(image, drawing.SCAR, 0.85 * _cover(look.regression) * white * body)
    if _seen(look.lacunae):
        lakes, dark = drawing.lacunae(draws, view, plain)
        image = drawing.absorb(image, 1.9 * look.lacunae * lakes, drawing.HAEMOGLOBIN)
        image = drawing.absorb(image, 0.8 * look.lacunae * dark, drawing.OLD_BLOOD)
    if _seen(look.vessels):
        tree = drawing.vessels(draws, view, look.vessels) * drawing.step(plain + 0.05, 0.06)
        image = drawing.absorb(image, 1.6 * _cover(look.vessels) * tree, drawing.VESSEL)
    if _seen(look.cysts):
        pale, dark = drawing.spots(draws, "cysts", view, plain, share=0.5 * look.cysts, frequency=4.5)
        image = drawing.blend(image, drawing.KERATIN, 0.75 * pale)
        image = drawing.absorb(image, 1.3 * dark, drawing.MELANIN)
    if _seen(look.scale):
        flakes = drawing.flakes(draws, view, look.scale)
        image = drawing.blend(
            image, drawing.KERATIN, 0.85 * _cover(look.scale) * flakes * drawing.step(plain, 0.06)
        )
    return image


def _cover(strength: float) -> float:
    """Return how opaque a structure is: a weak one is faint, one of half strength is nearly as opaque as any."""
    return min(0.72, 1.5 * strength)


def _seen(strength: float) -> float:
    return strength if strength >= ABSENT else 0.0
