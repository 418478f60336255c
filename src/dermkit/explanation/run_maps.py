"""Heat maps of a run's own mistakes and best hits: made by the code of `explain`, saved in the run folder.

Every evaluation calls `update_heat_maps`; maps of the same answers by the same nets are made once. Only images with a
row in predictions.csv are opened, so never those of a sealed test split.
"""

import importlib.util
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.errors import DataError, DermkitError, ImageRejected, OutputError, UntrustedError
from dermkit.explanation.overlay import blend_map
from dermkit.explanation.random_net_check import compare_with_random_nets
from dermkit.explanation.run_images import RunImage, choose_run_images
from dermkit.explanation.run_records import (
    MapFacts,
    MapPictures,
    RunImageMap,
    remove_maps,
    write_maps,
    write_no_maps,
)
from dermkit.explanation.target import EvidenceTarget
from dermkit.files import file_stat, fingerprint
from dermkit.images.decode import LesionImage, open_image
from dermkit.images.lesion_masks import LesionMasks, LesionShare, lesion_share
from dermkit.models.checksums import expected_hashes
from dermkit.progress import Progress
from dermkit.render.sheets import jpeg_bytes, thumbnail
from dermkit.runs.dataset_masks import masks_of_run
from dermkit.runs.documents import saved_content
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import HEAT_MAPS, HEAT_MAPS_FOLDER, HEAT_MAPS_TABLE, MODEL_FOLDER, SUMMARY

if TYPE_CHECKING:
    from dermkit.explanation.model_maps import ModelExplainer
    from dermkit.prediction.predictor import Predictor

_PICTURE_SIDE = 200
"""Longer side of the pictures in pixels: sharp at 150 on a page, and some 8 kB each."""

_CellMaps = tuple[NDArray[np.float32], list[NDArray[np.float32]]]


def update_heat_maps(
    folder: Path, images: Path | None, *, is_wanted: bool = True, masks: Path | None = None, device: str = "auto",
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Make and save the heat maps of an evaluated run, unless those of the same answers by the same nets are there.

    images: where the run's images lie, None = nowhere. is_wanted: False makes none, and removes those of other answers.
    masks: a folder of lesion masks, which makes them anew; None = those of the data set, if it has any. device: auto,
    cpu or cuda. A folder without a model has none. What cannot be made is said in heat_maps.json and by `progress`; it
    ends no run. Raises `OutputError`.
    """
    progress = progress or Progress()
    if not (folder / MODEL_FOLDER).is_dir():
        return
    with saved_content(folder):
        given_masks = None if masks is None else LesionMasks(masks)
        job = _Job(RunFolder(folder), images, given_masks, device, progress)
        is_current = _is_current(job, is_wanted=is_wanted)
    if is_current:
        return
    if is_wanted:
        _make_and_write(job)
    else:
        remove_maps(job.out)


@dataclass(frozen=True)
class _Job:
    """The images of one run that get heat maps, and what they are made with."""

    run: RunFolder
    images_root: Path | None
    given_masks: LesionMasks | None
    device: str
    progress: Progress

    @property
    def out(self) -> Path:
        return self.run.path / HEAT_MAPS_FOLDER

    @cached_property
    def masks(self) -> LesionMasks | None:
        """The lesion masks: those that were given, else those of the run's data set."""
        return self.given_masks or masks_of_run(self.run.path, self.progress)

    @property
    def split(self) -> str:
        return self.run.headline_split

    @cached_property
    def chosen(self) -> list[RunImage]:
        rows = self.run.predictions[self.run.predictions["split"] == self.split]
        positive = self.run.metrics.get("positive", [])
        return choose_run_images(rows, self.run.class_names, positive, self.run.groups())

    @cached_property
    def images_by_model(self) -> dict[Path, list[RunImage]]:
        """The folder of the model that scored an image -> its images."""
        by_model: dict[Path, list[RunImage]] = {}
        for image in self.chosen:
            by_model.setdefault(self._model_folder(image), []).append(image)
        return by_model

    def _model_folder(self, image: RunImage) -> Path:
        """Return the run's model; of pooled folds that of the one net which scored the image."""
        if self.run.pooled is None or not image.fold:
            return self.run.path / MODEL_FOLDER
        runs = {
            (str(row["seed"]), str(row["fold"])): str(row["folder"]) for row in SUMMARY.read(self.run.path)["runs"]
        }
        return self.run.path / runs[image.seed, image.fold] / MODEL_FOLDER

    @cached_property
    def metadata(self) -> pd.DataFrame | None:
        """Age, sex and site by image_id, "" = unknown, as the answers had them; None where the run lacks an image's."""
        attributes = self.run.attributes()
        ids = [image.image_id for image in self.chosen]
        if attributes is None or not set(ids) <= set(attributes.index):
            return None
        return attributes[~attributes.index.duplicated()].loc[ids]

    @cached_property
    def pixel_hashes(self) -> dict[str, str]:
        """image_id -> hash of the pixels that were scored, where the run says it."""
        return self.run.pixel_hashes()

    @cached_property
    def key(self) -> str:
        """What tells these answers of these nets from any others."""
        return fingerprint(
            self.split,
            [list(vars(image).values()) for image in self.chosen],
            [_net_hashes(model) for model in self.images_by_model],
            *self._dataset_masks(),
        )

    def _dataset_masks(self) -> list[list[str]]:
        """Return the files of the data set's masks of these images with size and time; none where it has no mask."""
        if self.masks is None or self.masks is self.given_masks:
            return []
        files = [self.masks.path(mask_name(image)) for image in self.chosen]
        # A mask that was drawn anew has the same path.
        return [[f"{file} {file_stat(file)}" if file else "" for file in files]] if any(files) else []

    @property
    def why_none(self) -> str:
        """Why no map can be made here and now, "" where they can."""
        if self.split == "test" and (self.run.leaves_test_to_ensemble or self._is_sealed):
            return "the test images are sealed, or left to an ensemble"
        if self.run.ensemble.get("fitted_on") == "out-of-fold images" and self.split != "test":
            return "each image was scored by other nets than those of the model, which learned from it"
        if importlib.util.find_spec("captum") is None:
            return "the package captum is not installed (pip install 'dermkit[train]')"
        if self.images_root is None or not self.images_root.is_dir():
            return "the images are not at hand on this machine"
        return ""

    @property
    def _is_sealed(self) -> bool:
        return bool(self.run.seal) and self.run.seal["opening_number"] is None


def mask_name(image: RunImage) -> str:
    """Return the name by which the mask of an image is found: its id with the ending of its file."""
    return f"{image.image_id}{Path(image.path).suffix}"


def _is_current(job: _Job, *, is_wanted: bool) -> bool:
    """Return whether what is saved is of these answers, and nothing better can or shall be made now."""
    record = HEAT_MAPS.read_optional(job.out)
    if record.get("key") != job.key or job.given_masks is not None:
        return False
    if record["is_complete"] and not (job.out / HEAT_MAPS_TABLE).is_file():
        return False
    # Earlier versions left the metadata of every image unknown.
    is_best = record["is_complete"] and not (record.get("unknown_metadata") and job.metadata is not None)
    return bool(is_best or job.why_none or not is_wanted)


def _net_hashes(model: Path) -> list[tuple[str, ...]]:
    """Return the hashes of a model's nets; of one that is gone or not trusted none, as loading it will say."""
    try:
        hashes_by_name = expected_hashes(model)
    except UntrustedError:
        return []
    return [hashes for name, hashes in sorted(hashes_by_name.items()) if name.endswith(".safetensors")]


def _make_and_write(job: _Job) -> None:
    reason = job.why_none
    if not reason:
        try:
            maps, facts = _map_all(job)
        except OutputError:
            raise
        except (DermkitError, ImportError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            # A picture of where a net looked is not worth a finished training: torch and captum raise these for nets
            # that they cannot handle, and for memory that is too small.
            reason = (
                f"they could not be made: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            )
            job.progress.say(f"warning: no heat maps: {reason}")
        else:
            write_maps(job.out, maps, facts, split=job.split, key=job.key)
            return
    write_no_maps(job.out, reason, split=job.split, key=job.key)


def _map_all(job: _Job) -> tuple[list[RunImageMap], MapFacts]:
    """Return every chosen image, mistakes first, with its map where there is one, and what holds for all maps."""
    from dermkit.explanation.heat_maps import COARSE_WINDOWS_PER_SIDE
    from dermkit.explanation.model_maps import ModelExplainer
    from dermkit.prediction.load import load_model

    maps: dict[RunImage, RunImageMap] = {}
    cell_maps: list[_CellMaps] = []
    facts = MapFacts(is_pooled=len(job.images_by_model) > 1 or job.run.pooled is not None)
    for model, images in job.images_by_model.items():
        predictor = load_model(model, device=job.device)
        explainer = ModelExplainer(predictor, windows_per_side=COARSE_WINDOWS_PER_SIDE)
        facts = facts.with_model(
            methods=explainer.methods, layers=explainer.layers, reasons=explainer.reasons,
            metadata_fields=predictor.metadata_fields, has_views=max(predictor.passes) > 1,
        )  # fmt: skip
        # Three nets of random weights for each net, and three maps more: cheap for gradients of one net alone.
        is_checked = len(job.images_by_model) == len(predictor.members) == 1 and not explainer.reasons
        for image in images:
            maps[image], cells = _map_image(job, predictor, explainer, image, is_checked=is_checked)
            cell_maps += cells
            job.progress.step("heat maps", len(maps), len(job.chosen))
    if job.given_masks is not None and all(one.share is None for one in maps.values()):
        job.progress.say(f"warning: {job.given_masks.folder}: holds no mask of these images that can be used")
    facts = facts.with_check(compare_with_random_nets(cell_maps) if cell_maps else None)
    n_unverified = sum(
        image.image_id not in job.pixel_hashes for image, one in maps.items() if one.pictures is not None
    )
    facts = replace(facts, has_metadata=job.metadata is not None, n_unverified=n_unverified)
    return [maps[image] for image in job.chosen], facts


def _map_image(
    job: _Job, predictor: "Predictor", explainer: "ModelExplainer", image: RunImage, *, is_checked: bool
) -> tuple[RunImageMap, list[_CellMaps]]:
    """Return one image with its map, and what the map is checked with."""
    lesion_image = _open(job, image)
    if isinstance(lesion_image, str):
        return RunImageMap(image, note=lesion_image), []
    picture = np.asarray(thumbnail(lesion_image.pixels, _PICTURE_SIDE))
    shape = (picture.shape[0], picture.shape[1])
    inputs = explainer.resize(lesion_image.pixels)
    target = EvidenceTarget(predictor.class_names.index(image.predicted))
    table = job.metadata if predictor.metadata_fields else None
    metadata = None if table is None else table.loc[[image.image_id]]
    model_map = explainer.map_image(inputs, target, shape, metadata)
    share, note = _lesion_share(job, image, lesion_image, model_map.combined)
    pictures = MapPictures(
        picture=jpeg_bytes(picture), overlay=jpeg_bytes(blend_map(picture, model_map.combined)),
        heat_map=model_map.combined,
    )  # fmt: skip
    layers = ", ".join(dict.fromkeys(layer for layer in explainer.layers if layer))
    methods = ", ".join(dict.fromkeys(explainer.methods))
    cell_maps: list[_CellMaps] = []
    if is_checked:
        random_maps = explainer.random_maps(inputs, target, shape, metadata)
        cell_maps = [(explainer.cells(model_map), [explainer.cells(one) for one in random_maps])]
    return RunImageMap(image, methods, layers, pictures, share, note), cell_maps


def _open(job: _Job, image: RunImage) -> LesionImage | str:
    """Return an image below the folder of images, or why it has no map."""
    assert job.images_root is not None  # noqa: S101  `why_none` said so
    path = job.images_root / image.path
    if not path.resolve().is_relative_to(job.images_root.resolve()):
        return "The image lies outside the folder of images."
    try:
        lesion_image = open_image(path, name=image.image_id)
    except ImageRejected as refusal:
        job.progress.say(f"warning: no heat map of {image.image_id}: {refusal.reason.value}")
        return f"The image cannot be read any more ({refusal.reason.value.replace('_', ' ')})."
    if lesion_image.pixel_sha256 != job.pixel_hashes.get(image.image_id, lesion_image.pixel_sha256):
        job.progress.say(f"warning: no heat map of {image.image_id}: its file holds another image than was scored")
        return "The file holds another image than the one that was scored, so a map would not be of this answer."
    return lesion_image


def _lesion_share(
    job: _Job, image: RunImage, lesion_image: LesionImage, heat_map: NDArray[np.float32]
) -> tuple[LesionShare | None, str]:
    """Return how much of a map lies inside the lesion, None without a mask, and why one cannot be used."""
    if job.masks is None:
        return None, ""
    try:
        mask = job.masks.mask(mask_name(image), (lesion_image.pixels.shape[0], lesion_image.pixels.shape[1]))
    except DataError as error:
        job.progress.say(f"warning: {error.message}")
        return None, f"Its mask cannot be used: {error.message}."
    return None if mask is None else lesion_share(heat_map, mask), ""
