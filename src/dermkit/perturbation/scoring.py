"""Every image decoded once, changed in every way, and scored: the net's answers, saved as they come.

Shapes: N images, V variants, K classes.
"""

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.errors import ImageRejected
from dermkit.files import fingerprint, write_bytes
from dermkit.images.decode import open_image
from dermkit.images.lesion_masks import LesionMasks, Mask
from dermkit.images.preprocess import Preprocessing, RgbPixels, resize_pixels
from dermkit.metrics.stats.arrays import Floats
from dermkit.perturbation.artefacts import add_artefact
from dermkit.perturbation.hiding import LesionArea, find_lesion, hide_background, hide_lesion
from dermkit.perturbation.plan import LESION_HIDDEN, MaskSource, Variant
from dermkit.progress import Progress
from dermkit.render.sheets import thumbnail
from dermkit.threads import cpu_count, ordered_map

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor

MAX_CHANGED_SIDE = 1024
"""Longer images are shrunk to this side first, the unchanged one too: artefacts on 24 megapixels would take seconds."""
_LARGEST_INPUT_IN_THREADS = 512
"""Above this input size images are changed one at a time: all variants of one take a hundred megabytes."""
_SAVE_SECONDS = 20.0
PARTIAL_SCORES_FILE = "scores.npz"
"""The answers of an unfinished run of the command, which the same command continues."""


@dataclass(frozen=True)
class ChangeSettings:
    """What is done with each image. masks: of the lesions, None = none. seed: of what is drawn."""

    variants: tuple[Variant, ...]
    seed: int
    masks: LesionMasks | None = None


@dataclass(eq=False)
class Answers:
    """What the net answered so far: image_id -> probabilities (V, K), where its lesion was, or why it was refused."""

    probabilities: dict[str, Floats] = field(default_factory=dict)
    mask_sources: dict[str, MaskSource] = field(default_factory=dict)
    rejected: dict[str, ImageRejected] = field(default_factory=dict)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.probabilities


class _ChangedImage(NamedTuple):
    """inputs: of each of the net's resizings, all variants (V, S, S, 3) uint8."""

    image_id: str
    inputs: list[NDArray[np.uint8]]
    mask_source: MaskSource


def open_for_changes(path: Path, name: str) -> RgbPixels:
    """Return an image at the size at which it is changed, (H, W, 3) uint8; raises `ImageRejected`."""
    pixels = open_image(path, name=name).pixels
    return np.asarray(thumbnail(pixels, MAX_CHANGED_SIDE)) if max(pixels.shape[:2]) > MAX_CHANGED_SIDE else pixels


def lesion_of(pixels: RgbPixels, path: Path, image_id: str, masks: LesionMasks | None) -> LesionArea:
    """Return where the lesion of an image is; raises `DataError` for a mask of another size than the image's file."""
    return find_lesion(pixels, None if masks is None else _fitting_mask(pixels, path, image_id, masks))


def _fitting_mask(pixels: RgbPixels, path: Path, image_id: str, masks: LesionMasks) -> Mask | None:
    name = f"{image_id}{path.suffix}"
    if masks.path(name) is None:
        return None
    if max(pixels.shape[:2]) < MAX_CHANGED_SIDE:
        return masks.mask(name, (pixels.shape[0], pixels.shape[1]))
    full_shape = open_image(path).pixels.shape
    mask = masks.mask(name, (full_shape[0], full_shape[1]))
    if mask is None:
        return None
    as_image = np.repeat(mask[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    return np.asarray(thumbnail(as_image, MAX_CHANGED_SIDE))[:, :, 0] > 127


def change_image(
    pixels: RgbPixels, variant: Variant, lesion: LesionArea, *, image_id: str, seed: int
) -> RgbPixels:
    """Return one variant of an image."""
    if variant.kind == "artefact":
        return add_artefact(pixels, variant.name, variant.strength, image_id=image_id, seed=seed)
    if variant.kind == "hidden":
        return (hide_lesion if variant.name == LESION_HIDDEN else hide_background)(pixels, lesion.mask)
    if variant.kind == "control":
        return add_artefact(pixels, "hair", 0.0, image_id=image_id, seed=seed)
    return pixels


def score_variants(
    predictor: "Predictor", rows: pd.DataFrame, settings: ChangeSettings, *, out: Path, batch_size: int | None = None,
    progress: Progress,
) -> Answers:  # fmt: skip
    """Score all variants of the images in `rows`; what an interrupted command has scored is continued.

    rows: image_id, path, and age, sex and site for a model that takes them. out: where unfinished answers are saved.
    """
    key = _fingerprint(predictor, settings)
    answers = _read_answers(out / PARTIAL_SCORES_FILE, key, rows)
    if answers.probabilities:
        progress.say(f"{len(answers.probabilities):,} images were scored before; the others follow")
    todo = rows[[image_id not in answers for image_id in rows["image_id"]]]
    saved_at, n_before = time.monotonic(), len(rows) - len(todo)
    try:
        for number, changed in enumerate(_changed_images(todo, settings, predictor.resizings), start=n_before + 1):
            if isinstance(changed, ImageRejected):
                answers.rejected[changed.name] = changed
            else:
                metadata = rows[rows["image_id"] == changed.image_id]
                answers.probabilities[changed.image_id] = _score(predictor, changed, metadata, batch_size)
                answers.mask_sources[changed.image_id] = changed.mask_source
            progress.step("scoring changed images", number, len(rows))
            if time.monotonic() - saved_at > _SAVE_SECONDS:
                _save_answers(out / PARTIAL_SCORES_FILE, key, answers, rows)
                saved_at = time.monotonic()
    except (KeyboardInterrupt, SystemExit):
        _save_answers(out / PARTIAL_SCORES_FILE, key, answers, rows)
        raise
    return answers


def _score(
    predictor: "Predictor", changed: _ChangedImage, metadata: pd.DataFrame, batch_size: int | None
) -> Floats:
    n_variants = len(changed.inputs[0])
    repeated = metadata.loc[metadata.index.repeat(n_variants)] if predictor.metadata_fields else None
    return predictor.score_pixels(changed.inputs, range(n_variants), batch_size=batch_size, metadata=repeated)


def _changed_images(
    rows: pd.DataFrame, settings: ChangeSettings, resizings: Sequence[Preprocessing]
) -> Iterator[_ChangedImage | ImageRejected]:
    """Yield every image with all its variants, in order, made ahead in threads."""

    def change(row: tuple[str, str]) -> _ChangedImage | ImageRejected:
        try:
            return _change_in_every_way(row[0], Path(row[1]), settings, resizings)
        except ImageRejected as refusal:
            return refusal

    is_small = max(resizing.size for resizing in resizings) <= _LARGEST_INPUT_IN_THREADS
    inputs = zip(rows["image_id"], rows["path"], strict=True)
    yield from ordered_map(change, inputs, n_threads=cpu_count() if is_small else 0)


def _change_in_every_way(
    image_id: str, path: Path, settings: ChangeSettings, resizings: Sequence[Preprocessing]
) -> _ChangedImage:
    pixels = open_for_changes(path, image_id)
    lesion = lesion_of(pixels, path, image_id, settings.masks)
    arrays = [
        np.empty((len(settings.variants), resizing.size, resizing.size, 3), np.uint8) for resizing in resizings
    ]
    for number, variant in enumerate(settings.variants):
        changed = change_image(pixels, variant, lesion, image_id=image_id, seed=settings.seed)
        for array, resizing in zip(arrays, resizings, strict=True):
            array[number] = resize_pixels(changed, resizing)
    return _ChangedImage(image_id, arrays, lesion.source)


# Unfinished answers -------------------------------------------------------------------------------------------------


def _fingerprint(predictor: "Predictor", settings: ChangeSettings) -> str:
    variants = [(variant.name, variant.strength) for variant in settings.variants]
    masks = str(settings.masks and settings.masks.identity)
    return fingerprint(predictor.model_key, variants, settings.seed, masks)


def _save_answers(path: Path, key: str, answers: Answers, rows: pd.DataFrame) -> None:
    """Write what is there. rows: image_id and path of all images; an answer is good for the file at its path alone."""
    if not answers.probabilities:
        return
    path_of = dict(zip(rows["image_id"], rows["path"], strict=True))
    ids = [image_id for image_id in answers.probabilities if image_id in path_of]
    buffer = io.BytesIO()
    np.savez(
        buffer, key=np.array(key), image_ids=np.array(ids), paths=np.array([path_of[image_id] for image_id in ids]),
        probabilities=np.stack([answers.probabilities[image_id] for image_id in ids]),
        mask_sources=np.array([answers.mask_sources[image_id] for image_id in ids]),
    )  # fmt: skip
    write_bytes(path, buffer.getvalue())


def _read_answers(path: Path, key: str, rows: pd.DataFrame) -> Answers:
    """Return the saved answers to images in `rows`; none where they are of other changes or nets, or cannot be read."""
    answers = Answers()
    try:
        with np.load(path, allow_pickle=False) as arrays:
            columns = [arrays[name] for name in ("image_ids", "paths", "probabilities", "mask_sources")]
            is_same = str(arrays["key"]) == key
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return answers
    path_of = dict(zip(rows["image_id"], rows["path"], strict=True))
    for image_id, image_path, probabilities, source in zip(*columns, strict=True) if is_same else ():
        if path_of.get(str(image_id)) == str(image_path):
            answers.probabilities[str(image_id)] = probabilities
            answers.mask_sources[str(image_id)] = _MASK_SOURCES[str(source)]
    return answers


_MASK_SOURCES: dict[str, MaskSource] = {"mask": "mask", "automatic": "automatic", "ellipse": "ellipse"}
