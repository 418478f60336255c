"""A run and its images -> how its answers change with artefacts: tables, pictures and counterfactuals.html."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dermkit.data.manifest import Dataset
from dermkit.data.masks import masks_of_dataset
from dermkit.errors import DataError, UsageError
from dermkit.files import check_output, check_writable, lock, make_folder, sweep_temp, write_rows
from dermkit.images.lesion_masks import LesionMasks
from dermkit.perturbation.artefacts import Artefact
from dermkit.perturbation.page import write_counterfactuals_page
from dermkit.perturbation.plan import PICTURES_FOLDER, find_artefacts, plan_variants
from dermkit.perturbation.records import (
    REFUSED_IMAGES_TABLE,
    write_counterfactuals,
    write_curves,
    write_image_rows,
    write_unfinished,
)
from dermkit.perturbation.results import CounterfactualResult, build_result
from dermkit.perturbation.scoring import PARTIAL_SCORES_FILE, Answers, ChangeSettings, score_variants
from dermkit.perturbation.selection import (
    ImageSelection,
    check_enough,
    images_of_dataset,
    images_of_run,
    sample_units,
)
from dermkit.prediction.inputs import utf8_safe
from dermkit.prediction.locate import check_folder, check_model_folder, suggest_run
from dermkit.progress import Progress
from dermkit.render.cells import defused
from dermkit.runs.dataset_masks import masks_of_run
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import COUNTERFACTUALS, COUNTERFACTUALS_FOLDER, PREDICTIONS_FILE, RUN, run_of_model
from dermkit.runs.registry import serving_model

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor

DEFAULT_N_IMAGES = 500
"""Images that are changed unasked; intervals of a mean change are then about a twentieth of its spread wide."""
MAX_DEVIATION = 1e-3
"""Above this difference from predictions.csv the images or the net are not those that the run has scored."""
_N_TOLD = 3


@dataclass(frozen=True)
class CounterfactualOutcome:
    """What `counterfactuals` wrote.

    sentences: what to read first, worst first. rejected_images: (name, reason, detail). n_images: that were changed.
    seconds: of scoring.
    """

    out: Path
    page: Path
    n_images: int
    seconds: float
    sentences: tuple[str, ...]
    rejected_images: tuple[tuple[str, str, str], ...]


def counterfactuals(
    run: Path,
    *,
    dataset: Dataset | None = None,
    out: Path | None = None,
    split: Literal["test", "validation"] | None = None,
    n_images: int | None = DEFAULT_N_IMAGES,
    artefacts: Sequence[str] = (),
    masks: Path | None = None,
    target: str | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    raw: bool = False,
    progress: Progress | None = None,
) -> CounterfactualOutcome:
    """Put artefacts on a run's images and measure how the net's answers change; writes a folder with a page.

    run: a run folder, or with `dataset` a model folder. dataset: other images; the run's own data set says where its
    images lie now. split: of the run; None = test, but validation where the test split is sealed or was not scored.
    n_images: about how many, whole lesions at random; None = all. artefacts: names, none = all. masks: a folder of
    lesion masks, None = those of the data set, if any. target: the operating point, None = the first guaranteed one.
    seed: of the sample and the drawing.

    Interrupted, it continues if repeated. Raises `UsageError`, `DataError` for fewer than ten images or a mask that
    does not fit, `UntrustedError` for the model; all but the last of these before anything is scored.
    """
    settings = ChangeSettings(
        plan_variants(find_artefacts(artefacts)), seed, None if masks is None else LesionMasks(masks)
    )
    options = _Options(find_artefacts(artefacts), split, n_images, target, device, batch_size, raw)
    return _counterfactuals(run, dataset, out, settings, options, progress or Progress())


@dataclass(frozen=True)
class _Options:
    artefacts: tuple[Artefact, ...]
    split: Literal["test", "validation"] | None
    n_images: int | None
    target: str | None
    device: str
    batch_size: int | None
    raw: bool


def parse_image_count(text: str) -> int | None:
    """Return the number of `--images`, None for "all"; raises `UsageError` for anything else."""
    if text.strip() == "all":
        return None
    if not text.strip().isdecimal() or int(text) < 1:
        raise UsageError(f"--images {text}: neither a number from 1 nor `all`", remedy="e.g. --images 500")
    return int(text)


def _counterfactuals(
    folder: Path, dataset: Dataset | None, out: Path | None, settings: ChangeSettings, options: _Options,
    progress: Progress,
) -> CounterfactualOutcome:  # fmt: skip
    folder = serving_model(folder)
    run_folder = _find_run(folder, dataset)
    if settings.masks is not None:
        check_folder(settings.masks.folder)
    out = out or _default_out(folder, run_folder, dataset)
    check_output(out, marker=COUNTERFACTUALS.name, description="counterfactuals of a run")
    selection = None if run_folder is None else _select_from_run(run_folder, dataset, options)
    from dermkit.prediction.load import load_model

    predictor = load_model(folder, device=options.device, progress=progress)
    if selection is None and dataset is not None:
        selection = images_of_dataset(predictor, dataset)
    if selection is None:
        raise _no_images_error(folder)
    check_enough(selection)
    if settings.masks is None:
        settings = replace(settings, masks=_masks_of_images(run_folder, dataset, progress))
    else:
        _check_masks(settings.masks, selection)
    selection = sample_units(selection, options.n_images, settings.seed)
    check_enough(selection)
    progress.say(f"{len(selection):,} of {selection.n_available:,} images: {selection.text}")
    check_writable(out)
    with lock(out):
        sweep_temp(out)
        return _change_and_write(out, selection, predictor, settings, options, progress)


def _masks_of_images(run: RunFolder | None, dataset: Dataset | None, progress: Progress) -> LesionMasks | None:
    """Return the masks that belong to the data set of the images; None where it has none."""
    if dataset is not None:
        return masks_of_dataset(dataset.folder)
    return None if run is None else masks_of_run(run.path, progress)


def _check_masks(masks: LesionMasks, selection: ImageSelection) -> None:
    """Raise `DataError` for a folder that holds no mask of these images."""
    names = [
        f"{image_id}{Path(path).suffix}"
        for image_id, path in zip(selection.rows["image_id"], selection.rows["path"], strict=True)
    ]
    if not any(masks.path(name) for name in names):
        raise DataError(
            f"{masks.folder}: holds no mask of these images",
            outcome="nothing was scored",
            remedy=f"name each mask as its image, such as {Path(names[0]).stem}.png",
        )


def _find_run(folder: Path, dataset: Dataset | None) -> RunFolder | None:
    """Return the run whose own images are to be changed; None where those of `dataset` are."""
    check_model_folder(folder)
    run = _run_or_folder(folder)
    if not RUN.exists(run) or not (run / PREDICTIONS_FILE).is_file():
        if dataset is None:
            raise _no_images_error(folder)
        return None
    run_folder = RunFolder(run)
    return run_folder if dataset is None or run_folder.dataset_hash == dataset.manifest_sha256 else None


def _run_or_folder(folder: Path) -> Path:
    """Return the run that a model folder lies in; a folder without one around it as it is."""
    run = run_of_model(folder)
    return run if RUN.exists(run) else folder


def _no_images_error(folder: Path) -> UsageError:
    return UsageError(
        f"{folder}: is no run that has scored images, so there is nothing to change",
        outcome="nothing was scored",
        remedy=suggest_run(folder, "name a run folder, or add --on DATASET"),
    )


def _default_out(folder: Path, run: RunFolder | None, dataset: Dataset | None) -> Path:
    base = _run_or_folder(folder)
    if run is not None:
        return run.path / COUNTERFACTUALS_FOLDER
    name = COUNTERFACTUALS_FOLDER if dataset is None else f"{COUNTERFACTUALS_FOLDER}-{dataset.name}"
    return base / name if RUN.exists(base) else Path(name)


def _select_from_run(run: RunFolder, dataset: Dataset | None, options: _Options) -> ImageSelection:
    return images_of_run(run, split=options.split, images_root=None if dataset is None else dataset.image_root)


def _change_and_write(
    out: Path, selection: ImageSelection, predictor: "Predictor", settings: ChangeSettings, options: _Options,
    progress: Progress,
) -> CounterfactualOutcome:  # fmt: skip
    facts: dict[str, Any] = {
        "model_sha256": predictor.sha256,
        "files_sha256": predictor.files_sha256,
        "model_key": predictor.model_key,
        "recipe": str(predictor.card["recipe"].get("name") or "unnamed"),
        "seed": settings.seed,
    }
    policy = predictor.select_policy(target=options.target)
    write_unfinished(out, facts)
    started_at = time.monotonic()
    answers = score_variants(
        predictor, selection.rows, settings, out=out, batch_size=options.batch_size, progress=progress
    )
    seconds = time.monotonic() - started_at
    rejected = _write_rejected(out, answers, is_raw=options.raw)
    scored_index = [number for number, image_id in enumerate(selection.rows["image_id"]) if image_id in answers]
    if not scored_index:
        raise _all_rejected(selection, rejected, out)
    scored = selection.take(scored_index)
    check_enough(scored)
    progress.say("measuring the changes")
    result = build_result(
        scored, answers, settings.variants, options.artefacts, predictor, policy, seed=settings.seed
    )
    page = _write_results(
        out, result, predictor, settings, facts | {"seconds": round(seconds, 1)}, rejected, options
    )
    return CounterfactualOutcome(out, page, len(scored), seconds, _first_sentences(result), tuple(rejected))


def _write_results(
    out: Path, result: CounterfactualResult, predictor: "Predictor", settings: ChangeSettings, facts: dict[str, Any],
    rejected: list[tuple[str, str, str]], options: _Options,
) -> Path:  # fmt: skip
    """Write tables, pictures and page, and last counterfactuals.json, which says that all is there."""
    make_folder(out / PICTURES_FOLDER)
    write_image_rows(out, result, predictor.class_names, is_raw=options.raw)
    write_curves(out, result)
    page = write_counterfactuals_page(
        out, result, settings, model=facts["recipe"], rejected=rejected, warning=deviation_warning(result)
    )
    write_counterfactuals(out, result, {**facts, "n_refused": len(rejected)})
    (out / PARTIAL_SCORES_FILE).unlink(missing_ok=True)
    return page


def deviation_warning(result: CounterfactualResult) -> str:
    """Return what to say where the unchanged images do not get the probabilities of predictions.csv, "" otherwise."""
    deviation = result.largest_deviation
    if deviation is None or deviation <= MAX_DEVIATION:
        return ""
    return (
        f"The unchanged images get other probabilities than predictions.csv has, by up to {deviation:.3f}: images "
        "larger than 1,024 pixels were shrunk first, or they are not the files that the run has scored."
    )


def _write_rejected(out: Path, answers: Answers, *, is_raw: bool) -> list[tuple[str, str, str]]:
    rejected = [
        (utf8_safe(name), refusal.reason.value, refusal.detail) for name, refusal in answers.rejected.items()
    ]
    clean = tuple if is_raw else defused
    write_rows(out / REFUSED_IMAGES_TABLE, ("image_id", "reason", "detail"), (clean(cells) for cells in rejected))
    return rejected


def _all_rejected(selection: ImageSelection, rejected: list[tuple[str, str, str]], out: Path) -> DataError:
    first = ", ".join(cell for cell in rejected[0] if cell) if rejected else ""
    return DataError(
        f"none of {len(selection)} images could be read; first: {first}",
        outcome=f"{out / REFUSED_IMAGES_TABLE} lists each with its reason",
        remedy="add --on DATASET, the same data set where it lies now",
    )


def _first_sentences(result: CounterfactualResult) -> tuple[str, ...]:
    worst = [one.sentence for one in result.artefacts[:_N_TOLD]]
    hidden = [one.sentence for one in result.hidden]
    warning = deviation_warning(result)
    return (*worst, *hidden, result.control_text, *([f"warning: {warning}"] if warning else []))
