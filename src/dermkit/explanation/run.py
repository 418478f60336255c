"""Images -> heat maps, their checks and explain.html; unreadable images are listed, the others are explained."""

import importlib.util
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermkit.errors import DataError, ImageRejected, UsageError
from dermkit.explanation.deletion import CurveSummary, summarise_curves
from dermkit.explanation.image_masks import ImageMasks, find_image_masks
from dermkit.explanation.map_verdict import judge_maps, map_remedies
from dermkit.explanation.metadata_input import MetadataInput, find_metadata_input
from dermkit.explanation.nearest_cases import (
    NO_CASES,
    TrainingCases,
    images_root,
    training_cases,
    with_pictures,
)
from dermkit.explanation.overlay import blend_map, draw_overlay
from dermkit.explanation.page import MAX_IMAGES_SHOWN, write_page
from dermkit.explanation.random_net_check import (
    RandomNetCheck,
    compare_with_random_nets,
    image_correlations,
)
from dermkit.explanation.records import (
    EXPLAIN,
    MAP_FOLDER,
    OVERLAY_FOLDER,
    REFUSED_TABLE,
    ImageExplanation,
    check_fields,
    method_text,
    target_text,
    write_tables,
)
from dermkit.explanation.target import EvidenceTarget, MapMethod, TargetChoice, choose_target
from dermkit.files import check_output, check_writable, lock, make_folder, sweep_temp, write_bytes, write_rows
from dermkit.images.decode import LesionImage, open_image
from dermkit.images.lesion_masks import LesionShare, lesion_share
from dermkit.metrics.stats.arrays import Floats
from dermkit.prediction.inputs import ImageRef, find_images, utf8_safe
from dermkit.prediction.locate import check_folder, check_model_folder
from dermkit.prediction.out_of_distribution import is_outside
from dermkit.progress import Progress
from dermkit.render.cells import defused
from dermkit.render.sheets import data_uri, thumbnail
from dermkit.runs.model_verdict import ModelVerdict, read_model_verdict

if TYPE_CHECKING:
    import pandas as pd

    from dermkit.explanation.model_maps import ModelExplainer, ModelMap
    from dermkit.metrics.decisions.apply import ActivePolicy
    from dermkit.prediction.predictor import Predictor

_PICTURE_SIDE = 512
"""Longest side of an overlay in pixels; a map of 7 to 14 positions a side has no more to show."""

_PAGE_SIDE = 420
_CellMaps = tuple[NDArray[np.float32], list[NDArray[np.float32]]]
"""The map of one image and those of random nets, as means of cells."""


@dataclass(frozen=True)
class ExplainOutcome:
    """What `explain` wrote: counts, the checks over all images (None = not made), and (name, reason, detail) of refused
    images.
    """

    out: Path
    page: Path
    n_explained: int
    rejected_images: tuple[tuple[str, str, str], ...]
    random_net_check: RandomNetCheck | None
    curves: CurveSummary | None


@dataclass(frozen=True)
class _Job:
    """What is done with each image; `explain` says what the options mean."""

    predictor: "Predictor"
    explainer: "ModelExplainer"
    choice: TargetChoice
    out: Path
    masks: ImageMasks
    has_checks: bool
    training_splits: dict[str, str]
    cases: TrainingCases | None
    case_images: Path | None
    metadata: MetadataInput
    verdict: ModelVerdict | None
    policy: "ActivePolicy | None"

    def decision_probabilities(self, p: Floats) -> Floats:
        """Return the (K,) probabilities that decide the class, as those of `predict` do: calibrated by the policy."""
        return p if self.policy is None else self.policy.policy.calibration.apply(p[None])[0]


def explain(
    model: Path,
    images: Sequence[str],
    *,
    out: Path = Path("explanations"),
    class_name: str | None = None,
    against: str | None = None,
    method: MapMethod = "auto",
    masks: Path | None = None,
    metadata: "Path | pd.DataFrame | None" = None,
    checks: bool = True,
    device: str = "auto",
    batch_size: int | None = None,
    raw: bool = False,
    progress: Progress | None = None,
) -> ExplainOutcome:
    """Map where a model finds evidence for a class: overlays, maps, explanations.csv, explain.json, explain.html.

    images: files, folders, patterns. class_name: the class to explain, None = the one that is
    answered for each image, after calibration. against: the class to set it against, None = all others. method: of the
    maps (docs/explain.md); `auto` takes gradients where
    the table of layers knows the net. masks: a folder of lesion masks, PNG by image name; None =
    those of the data set, for its own images. metadata: age, sex and site
    of the images, for a model that takes them, as in `predict`; None = unknown. checks: compare with random nets, and
    draw deletion and insertion curves. device: auto, cpu or cuda. batch_size: pictures per forward pass. raw: names
    that a spreadsheet would compute stay as they are.

    Raises `UsageError` for an unknown class or option and for an `out` that holds other things, `UntrustedError` for
    the model, `DataError` where no image can be read, a mask does not fit its image or a table cannot be read; all
    before the first map.
    """
    options = _ExplainOptions(class_name, against, method, masks, metadata, checks, device, batch_size, raw)
    return _explain(model, images, out, options, progress or Progress())


@dataclass(frozen=True)
class _ExplainOptions:
    class_name: str | None
    against: str | None
    method: MapMethod
    masks: Path | None
    metadata: "Path | pd.DataFrame | None"
    checks: bool
    device: str
    batch_size: int | None
    raw: bool


def _explain(
    model: Path, images: Sequence[str], out: Path, options: _ExplainOptions, progress: Progress
) -> ExplainOutcome:
    job, image_list = _prepare(model, images, out, options, progress)
    readable, rejected = _check_images(image_list, job.masks, progress)
    check_writable(out)
    with lock(out):
        sweep_temp(out)
        clean = tuple if options.raw else defused
        write_rows(out / REFUSED_TABLE, ("path", "reason", "detail"), (clean(cells) for cells in rejected))
        if not readable:
            raise _all_rejected_error(len(image_list), rejected[0], out)
        _write_json(job, [], rejected, None, None)  # marks the folder as ours, whatever happens below
        explanations, cell_maps = _explain_all(job, readable, progress)
        return _write_results(job, explanations, cell_maps, rejected, is_raw=options.raw)


def _prepare(
    model: Path, images: Sequence[str], out: Path, options: _ExplainOptions, progress: Progress
) -> tuple[_Job, list[ImageRef]]:
    """Check the arguments, cheap ones first, and load the model; returns it with the list of images."""
    _check_captum()
    if options.method not in get_args(MapMethod):
        raise UsageError(f"--method {options.method}: unknown", remedy=f"one of {', '.join(get_args(MapMethod))}")
    if options.method == "rollout" and options.against is not None:
        raise UsageError(
            f"--method rollout --against {options.against}: plain roll-out is the same for every class, so it cannot "
            "set two against each other",
            outcome="nothing was explained",
            remedy="--method gradient-rollout, or leave out --against",
        )
    check_model_folder(model)
    if options.masks is not None:
        check_folder(options.masks)
    image_list = find_images(images, exclude=[out])
    check_output(out, marker=EXPLAIN.name, description="a folder of explanations")
    from dermkit.explanation.model_maps import ModelExplainer
    from dermkit.prediction.load import load_model

    predictor = load_model(model, device=options.device, progress=progress)
    choice = choose_target(predictor.class_names, options.class_name, options.against)
    explainer = ModelExplainer(predictor, method=options.method, batch_size=options.batch_size)
    metadata = find_metadata_input(options.metadata, image_list, predictor.members, predictor.folder)
    for line in metadata.lines():
        progress.say(line)
    training_splits = {pixels: split for pixels, _, split in predictor.training_images}
    cases = training_cases(predictor.training_features, predictor.members, predictor.class_names)
    return _Job(
        predictor, explainer, choice, out, find_image_masks(options.masks, predictor.folder, progress), options.checks,
        training_splits, cases,
        images_root(predictor.folder), metadata, read_model_verdict(predictor.folder), predictor.select_policy(),
    ), image_list  # fmt: skip


def _check_captum() -> None:
    if importlib.util.find_spec("captum") is None:
        raise UsageError(
            "explain needs the package captum, which is not installed",
            outcome="nothing was explained",
            remedy="pip install 'dermkit[train]'",
        )


def _check_images(
    image_list: Sequence[ImageRef], masks: ImageMasks, progress: Progress
) -> tuple[list[ImageRef], list[tuple[str, str, str]]]:
    """Return the images that can be read, and (name, reason, detail) of the others; raises `DataError` for a mask."""
    readable, rejected, n_masks = [], [], 0
    for number, image in enumerate(image_list, start=1):
        try:
            shape = open_image(Path(image.path), name=image.name).pixels.shape
        except ImageRejected as refusal:
            rejected.append((utf8_safe(image.name), refusal.reason.value, refusal.detail))
            continue
        finally:
            progress.step("checking images", number, len(image_list))
        readable.append(image)
        n_masks += masks.mask(image, (shape[0], shape[1])) is not None
    if readable:
        masks.check_used(n_masks, readable[0].image_id)
    return readable, rejected


def _all_rejected_error(n_images: int, first: tuple[str, str, str], out: Path) -> DataError:
    return DataError(
        f"none of {n_images} images could be read; first: {', '.join(cell for cell in first if cell)}",
        outcome=f"{out / REFUSED_TABLE} lists each with its reason",
        remedy="check the paths; give JPEG, PNG, WebP, BMP or TIFF photographs",
    )


# Each image ---------------------------------------------------------------------------------------------------------


def _explain_all(
    job: _Job, images: Sequence[ImageRef], progress: Progress
) -> tuple[list[ImageExplanation], list[_CellMaps]]:
    for folder in (OVERLAY_FOLDER, MAP_FOLDER):
        make_folder(job.out / folder)
    explanations, cell_maps = [], []
    for number, image in enumerate(images, start=1):
        lesion_image = open_image(Path(image.path), name=image.name)
        explanation, maps = _explain_image(job, image, lesion_image, number)
        explanations.append(explanation)
        cell_maps += maps
        progress.step("explaining", number, len(images))
    return explanations, cell_maps


def _explain_image(
    job: _Job, image: ImageRef, lesion_image: LesionImage, number: int
) -> tuple[ImageExplanation, list[_CellMaps]]:
    picture = np.asarray(_picture(lesion_image.pixels))
    shape = (picture.shape[0], picture.shape[1])
    inputs = job.explainer.resize(lesion_image.pixels)
    row = job.metadata.row(image)
    p = job.predictor.probabilities([array[None] for array in inputs], row)[0]
    target = job.choice.for_image(job.decision_probabilities(p))
    model_map = job.explainer.map_image(inputs, target, shape, row)
    explanation = _describe(job, image, p, target, model_map, number)
    explanation = replace(
        explanation,
        training_split=job.training_splits.get(lesion_image.pixel_sha256, ""),
        share=_share(job, image, lesion_image, model_map),
        weights=job.metadata.weigh(job.predictor.probabilities, inputs, image, target, job.predictor.class_names),
        **_place_in_training(job, inputs, lesion_image.pixel_sha256, has_pictures=number <= MAX_IMAGES_SHOWN),
    )
    cell_maps: list[_CellMaps] = []
    if job.has_checks:
        rng = np.random.default_rng(number)
        cells = job.explainer.cells(model_map)
        random_cells = [job.explainer.cells(one) for one in job.explainer.random_maps(inputs, target, shape, row)]
        correlations = image_correlations(cells, random_cells)
        cell_maps = [(cells, random_cells)]
        explanation = replace(
            explanation,
            random_net_correlation=float(np.mean(correlations)) if correlations else None,
            curves=job.explainer.curves(inputs, model_map.combined, target, rng, row),
        )
    return _write_pictures(job, explanation, picture, model_map, number), cell_maps


def _place_in_training(
    job: _Job, inputs: Sequence[NDArray[np.uint8]], pixel_sha256: str, *, has_pictures: bool
) -> dict[str, Any]:
    """Return the nearest training cases of an image, and whether it lies outside the training distribution."""
    if job.cases is None:
        return {}
    features = [one for one in job.predictor.features([array[None] for array in inputs]) if one is not None]
    distances = job.predictor.outlier_test.distances(features)
    nearest = job.cases.nearest(features, pixel_sha256)
    return {
        "cases": with_pictures(nearest, job.case_images if has_pictures else None),
        "is_outside": distances is not None and bool(is_outside(distances.p_value[0])),
    }


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return an image at the size of its overlay; a small one is not enlarged."""
    return thumbnail(pixels, min(_PICTURE_SIDE, max(pixels.shape[:2])))


def _share(job: _Job, image: ImageRef, lesion_image: LesionImage, model_map: "ModelMap") -> LesionShare | None:
    height, width = lesion_image.pixels.shape[:2]
    mask = job.masks.mask(image, (height, width))
    return None if mask is None else lesion_share(model_map.combined, mask)


def _describe(
    job: _Job, image: ImageRef, p: Floats, target: EvidenceTarget, model_map: "ModelMap", number: int
) -> ImageExplanation:
    names = job.predictor.class_names
    against = target.against_index
    layers = dict.fromkeys(layer for layer in job.explainer.layers if layer)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", utf8_safe(image.image_id))[-60:].strip("._") or "image"
    return ImageExplanation(
        image=ImageRef(*(utf8_safe(text) for text in image)),
        predicted=names[int(np.argmax(job.decision_probabilities(p)))],
        predicted_uncalibrated=names[int(np.argmax(p))],
        class_name=names[target.class_index],
        against=None if against is None else names[against],
        p=float(p[target.class_index]),
        p_against=None if against is None else float(p[against]),
        method=", ".join(dict.fromkeys(job.explainer.methods)),
        layer=", ".join(layers),
        file_stem=f"{number:04d}-{slug}",
        seen=float((~np.isnan(model_map.combined)).mean()),
        has_evidence=bool(np.nanmax(model_map.combined) > 0),
    )


def _write_pictures(
    job: _Job, explanation: ImageExplanation, picture: NDArray[np.uint8], model_map: "ModelMap", number: int
) -> ImageExplanation:
    """Write the overlay and the maps; returns the explanation with its pictures for the page."""
    blended = blend_map(picture, model_map.combined)
    against = f" against {explanation.against}" if explanation.against else ""
    overlay = draw_overlay(
        blended, explanation.class_name,
        [target_text(explanation), method_text(explanation), explanation.image.image_id],
        label=f"evidence for {explanation.class_name}{against}", has_unseen=explanation.seen < 1,
    )  # fmt: skip
    write_bytes(job.out / explanation.overlay, overlay)
    write_bytes(job.out / explanation.map_file, _npz_bytes(model_map))
    if number > MAX_IMAGES_SHOWN:
        return explanation
    return replace(
        explanation, original_uri=data_uri(picture, _PAGE_SIDE), overlay_uri=data_uri(blended, _PAGE_SIDE)
    )


def _npz_bytes(model_map: "ModelMap") -> bytes:
    """Return the maps as a NumPy archive: of each net at its input size, and `image`, their mean over the picture."""
    buffer = io.BytesIO()
    members = {f"member_{index}": values for index, values in enumerate(model_map.members)}
    np.savez_compressed(buffer, image=model_map.combined, **members)  # type: ignore[arg-type]
    return buffer.getvalue()


# The results --------------------------------------------------------------------------------------------------------


def _write_results(
    job: _Job, explanations: Sequence[ImageExplanation], cell_maps: Sequence[_CellMaps],
    rejected: Sequence[tuple[str, str, str]], *, is_raw: bool,
) -> ExplainOutcome:  # fmt: skip
    """Write tables, page and explain.json, the last, and remove pictures of an earlier explanation."""
    check = compare_with_random_nets(cell_maps) if job.has_checks else None
    curves = summarise_curves([one.curves for one in explanations if one.curves is not None])
    map_verdict = judge_maps(explanations, check)
    write_tables(job.out, explanations, is_raw=is_raw)
    page = write_page(
        job.out, explanations, model=str(job.predictor.card["recipe"].get("name") or "unnamed"),
        verdict=job.verdict,
        reasons=job.explainer.reasons, check=check, summary=curves,
        second_input=job.metadata.page_text([one.weights for one in explanations]), rejected=rejected,
        map_verdict=map_verdict, remedies=list(map_remedies(explanations, map_verdict, job.verdict)),
    )  # fmt: skip
    names = {name for one in explanations for name in (one.overlay, one.map_file)}
    for path in (*(job.out / OVERLAY_FOLDER).glob("*.png"), *(job.out / MAP_FOLDER).glob("*.npz")):
        if f"{path.parent.name}/{path.name}" not in names:
            path.unlink()
    _write_json(job, explanations, rejected, check, curves)
    return ExplainOutcome(job.out, page, len(explanations), tuple(rejected), check, curves)


def _write_json(
    job: _Job, explanations: Sequence[ImageExplanation], rejected: Sequence[tuple[str, str, str]],
    check: RandomNetCheck | None, curves: CurveSummary | None,
) -> None:  # fmt: skip
    """Write explain.json; without explanations it only marks the folder."""
    names = job.predictor.class_names
    fields = {
        "is_complete": bool(explanations),
        "model_sha256": job.predictor.sha256,
        "recipe": job.predictor.card["recipe"].get("name"),
        "classes": list(names),
        "class": None if job.choice.class_index is None else names[job.choice.class_index],
        "against": None if job.choice.against_index is None else names[job.choice.against_index],
        "members": [
            {"file": member.file, "weight": member.weight, "method": method, "layer": layer or None}
            for member, method, layer in zip(
                job.predictor.members, job.explainer.methods, job.explainer.layers, strict=True
            )
        ],
        **job.metadata.json_fields([one.weights for one in explanations]),
        "nearest_cases": NO_CASES if job.cases is None else "",
        "why_no_gradient": list(job.explainer.reasons),
        "checks": check_fields(check, curves),
        "verdict": None if job.verdict is None else asdict(job.verdict),
        "n_explained": len(explanations),
        "n_refused": len(rejected),
        "notice": "Research use only. Not a medical device.",
    }
    EXPLAIN.write(job.out, fields)
