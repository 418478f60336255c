"""The files of a finished prediction: predictions.csv, decisions.csv, metadata.csv, refused.csv, picture sheets, and
predict.json last.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import DataError, RejectionReason
from dermkit.files import read_json, write_json, write_rows
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.card import ENSEMBLE_FIELD, is_tested_ensemble
from dermkit.models.card_fields import known_performance
from dermkit.prediction import decisions
from dermkit.prediction.decisions import DecisionCounts
from dermkit.prediction.inputs import utf8_safe
from dermkit.prediction.metadata_table import METADATA_FILE, ImageMetadata, describe_metadata, write_used_metadata
from dermkit.prediction.out_of_distribution import (
    OUTSIDE_LEGEND,
    describe_test,
    is_outside,
    write_distance_table,
)
from dermkit.prediction.resume import PredictionJob, ScoreTable
from dermkit.render import sheets as render_sheets
from dermkit.render.cells import defused, undefused
from dermkit.runs.layout import DISTANCES_FILE, PREDICTIONS_FILE
from dermkit.runs.predictions import write_predictions
from dermkit.threads import ordered_map

if TYPE_CHECKING:
    from dermkit.metrics.decisions.apply import ActivePolicy
    from dermkit.prediction.predictor import Predictor

PREDICT_JSON_FORMAT = 5
_MIGRATIONS = {
    3: lambda document: {**document, "metadata": None, "format": 4},
    4: lambda document: {**document, "out_of_distribution": None, "format": 5},
}
PREDICT_FILE, _REFUSED_FILE = "predict.json", "refused.csv"
_TILES_PER_SHEET = 48
_MAX_SHEETS = 5
N_TILES = _TILES_PER_SHEET * _MAX_SHEETS
"""Pictures of the first 240 images; every image is in predictions.csv."""
_TILE_SIZE = 160
Thumbnails = dict[int, NDArray[np.uint8]]
"""Position in the list of images -> (H, W, 3) uint8."""


@dataclass(frozen=True)
class PredictOutcome:
    """Counts of scored and refused images; the lists are read from the output folder on demand.

    decision_counts: None where the model has no decision policy. n_outside: images outside the training distribution,
    None where the model cannot tell; why_no_test says then why.
    """

    out: Path
    n_scored: int
    n_rejected: int
    n_notes: int
    n_training_images: int
    decision_counts: DecisionCounts | None = None
    n_outside: int | None = None
    why_no_test: str = ""

    @property
    def rejected_images(self) -> list[tuple[str, str, str]]:
        """Return (name, reason, detail) of the images that were not scored."""
        return list(_read_rejected(self.out))

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Return (name, note) of what opening an image decided, such as "alpha composited on white"."""
        return [(entry["image"], entry["note"]) for entry in self._read_predict_json()["notes"]]

    @property
    def training_images(self) -> list[tuple[str, str]]:
        """Return (name, split) of the images that the model's training used."""
        return [(entry["image"], entry["split"]) for entry in self._read_predict_json()["training_images"]]

    def _read_predict_json(self) -> dict[str, Any]:
        return read_json(self.out / PREDICT_FILE, format=PREDICT_JSON_FORMAT, migrations=_MIGRATIONS)


def write_output(
    job: PredictionJob,
    scores: ScoreTable,
    predictor: "Predictor",
    policy: "ActivePolicy | None",
    metadata: ImageMetadata | None,
    thumbnails: Thumbnails,
    workers: int,
    *,
    is_raw: bool,
    withholds_outside: bool = False,
) -> PredictOutcome:
    """Write every file of the output: sheets first, as they take longest, and predict.json last.

    The job is still there meanwhile: if this is stopped, the next start writes all of it again.
    """
    if not scores.is_done.all():
        raise DataError(
            f"{job.folder}: {int(scores.is_done.sum())} of {len(job.images)} images",
            remedy="give the command again",
        )
    out, scored = job.folder.parent, scores.scored
    tiles = _tiles(job, scores, predictor, policy, thumbnails, workers, withholds_outside=withholds_outside)
    are_outside = scores.is_outside
    legend = f"{known_performance(predictor.card)} {decisions.sheet_legend(policy, len(predictor.members))}"
    sheets = _write_sheets(out, tiles, legend + OUTSIDE_LEGEND * (are_outside is not None), workers)
    _write_tables(job, scores, is_raw=is_raw)
    write_used_metadata(
        out / METADATA_FILE, metadata, predictor.members, job.images, scored.tolist(), is_raw=is_raw
    )
    decision_counts = _write_decisions(
        job, scores, predictor, policy, is_raw=is_raw, withholds_outside=withholds_outside
    )
    n_notes = sum(map(len, scores.notes.values()))
    outcome = PredictOutcome(
        out, len(scored), len(scores.refusals), n_notes, len(scores.training_splits), decision_counts,
        None if are_outside is None else int(are_outside.sum()), predictor.outlier_test.reason,
    )  # fmt: skip
    outside = None if are_outside is None else _outside_images(job, scores)
    test_fields = describe_test(predictor.outlier_test, outside, is_withheld=withholds_outside)
    _write_predict_json(outcome, job, scores, predictor, policy, metadata, sheets, test_fields)
    return outcome


def _write_decisions(
    job: PredictionJob,
    scores: ScoreTable,
    predictor: "Predictor",
    policy: "ActivePolicy | None",
    *,
    is_raw: bool,
    withholds_outside: bool,
) -> DecisionCounts | None:
    """Write decisions.csv; returns its counts, None without a policy."""
    out = job.folder.parent
    (out / decisions.OLD_DECISIONS_FILE).unlink(missing_ok=True)
    if policy is None:  # the table of an earlier prediction would be of another model
        (out / decisions.DECISIONS_FILE).unlink(missing_ok=True)
        return None
    images, p = [job.images[index] for index in scores.scored.tolist()], scores.probabilities[scores.scored]
    counts = decisions.write_decisions(
        out / decisions.DECISIONS_FILE, policy, predictor.classes, images, p, is_raw=is_raw,
        is_outside=scores.is_outside, withholds_outside=withholds_outside,
    )  # fmt: skip
    return replace(counts, warnings=(*counts.warnings, *_ensemble_warnings(predictor)))


def _write_tables(job: PredictionJob, scores: ScoreTable, *, is_raw: bool) -> None:
    """Write predictions.csv, out_of_distribution.csv and refused.csv."""
    out, clean = job.folder.parent, tuple if is_raw else defused
    p = scores.probabilities[scores.scored]
    images = (job.images[index] for index in scores.scored.tolist())
    predictions = (
        clean((utf8_safe(image.image_id), utf8_safe(image.path), "", "", "", "", job.class_names[k], *row))
        for image, k, row in zip(images, p.argmax(axis=1).tolist(), _iter_rows(p), strict=True)
    )
    write_predictions(out / PREDICTIONS_FILE, job.class_names, predictions)
    pairs = None if scores.is_outside is None else (
        (job.images[index], (float(scores.distances[index, 0]), float(scores.distances[index, 1])))
        for index in scores.scored.tolist()
    )  # fmt: skip
    write_distance_table(out / DISTANCES_FILE, pairs, is_raw=is_raw)
    refused = (
        clean((utf8_safe(job.images[index].name), *cells)) for index, cells in sorted(scores.refusals.items())
    )
    write_rows(out / _REFUSED_FILE, ("path", "reason", "detail"), refused)


def _outside_images(job: PredictionJob, scores: ScoreTable) -> list[dict[str, Any]]:
    """Return the images outside the training distribution, with distance and p value."""
    positions = np.flatnonzero(is_outside(scores.distances[:, 1]))  # false for nan
    return [
        {"image": utf8_safe(job.images[index].name), "distance": distance, "p_value": p}
        for index, (distance, p) in zip(positions.tolist(), scores.distances[positions].tolist(), strict=True)
    ]


def _ensemble_warnings(predictor: "Predictor") -> tuple[str, ...]:
    note = str((predictor.card.get(ENSEMBLE_FIELD) or {}).get("note", ""))
    return decisions.ensemble_warnings(predictor.passes, note, is_tested=is_tested_ensemble(predictor.card))


def _iter_rows(p: Floats) -> Iterator[list[float]]:
    """Yield rows as Python floats, which are written with all their digits; one by one, to save memory."""
    for row in p:
        yield row.tolist()


def raise_all_rejected(n_images: int, out: Path) -> None:
    """Raise `DataError` that names the first of the images, none of which could be read."""
    all_missing = all(reason == RejectionReason.MISSING for _, reason, _ in _read_rejected(out))
    raise DataError(
        f"none of {n_images} images could be read; first: {', '.join(next(_read_rejected(out)))}",
        outcome=f"{out / _REFUSED_FILE} lists each with its reason",
        remedy="check the path" if all_missing else "give JPEG, PNG, WebP, BMP or TIFF photographs",
    )


def _read_rejected(out: Path) -> Iterator[tuple[str, str, str]]:
    with (out / _REFUSED_FILE).open(newline="", encoding="utf-8") as stream:
        for row in islice(csv.reader(stream), 1, None):
            yield undefused(row[0]), row[1], row[2]


def _tiles(
    job: PredictionJob,
    scores: ScoreTable,
    predictor: "Predictor",
    policy: "ActivePolicy | None",
    thumbnails: Mapping[int, NDArray[np.uint8]],
    workers: int,
    *,
    withholds_outside: bool,
) -> list[render_sheets.Tile]:
    """Return the tiles of the first scored images; one without a thumbnail is opened again."""
    from dermkit.prediction.pixels import file_thumbnail

    def make_tile(index: int) -> render_sheets.Tile:
        image = job.images[index]
        thumbnail = thumbnails[index] if index in thumbnails else file_thumbnail(Path(image.path))
        lines, colour = decisions.tile_caption(
            policy, predictor.classes, scores.probabilities[index], withholds_outside=withholds_outside,
            is_outside=bool(is_outside(scores.distances[index, 1])),
        )  # fmt: skip
        pixels = thumbnail if thumbnail is not None else np.zeros((8, 8, 3), np.uint8)
        title = PurePosixPath(utf8_safe(image.name)).name
        return render_sheets.Tile(pixels, "\n".join([title, *lines]), colour)

    first_scored = scores.scored[:N_TILES].tolist()
    return list(ordered_map(make_tile, first_scored, n_threads=workers))


def _write_sheets(out: Path, tiles: Sequence[render_sheets.Tile], legend: str, workers: int) -> list[str]:
    def write_sheet(start: int) -> str:
        name = f"sheet-{start // _TILES_PER_SHEET + 1}.png"
        sheet_tiles = tiles[start : start + _TILES_PER_SHEET]
        title = (
            f"Predictions, images {start + 1} to {start + len(sheet_tiles)}. Research use only. Not "
            f"a medical device."
        )
        sheet = render_sheets.contact_sheet(sheet_tiles, columns=6, edge=_TILE_SIZE, title=title, note=legend)
        render_sheets.save_png(sheet, out / name)
        return name

    names = list(ordered_map(write_sheet, range(0, len(tiles), _TILES_PER_SHEET), n_threads=workers))
    for sheet in out.glob("sheet-*.png"):  # of an earlier prediction: there may be fewer now
        if sheet.name not in names:
            sheet.unlink()
    return names


def _write_predict_json(
    outcome: PredictOutcome,
    job: PredictionJob,
    scores: ScoreTable,
    predictor: "Predictor",
    policy: "ActivePolicy | None",
    metadata: ImageMetadata | None,
    sheets: Sequence[str],
    test_fields: Mapping[str, Any],
) -> None:
    names = {index: utf8_safe(job.images[index].name) for index in {*scores.notes, *scores.training_splits}}
    fields = {
        "model_sha256": predictor.sha256,
        "recipe": predictor.card["recipe"].get("name"),
        "classes": list(predictor.class_names),
        "n_scored": outcome.n_scored,
        "n_refused": outcome.n_rejected,
        "sheets": list(sheets),
        "notice": "Research use only. Not a medical device.",
        "device": predictor.runtime.device_type,
        "batch_size": min(job.batch_size, predictor.engine.max_batch_size),
        "inference_mode": predictor.engine.net_variant,
        "policy": decisions.describe_policy(policy, predictor.classes, outcome.decision_counts),
        "metadata": describe_metadata(metadata, predictor.members),
        "out_of_distribution": test_fields,
        "notes": [
            {"image": names[index], "note": note} for index in sorted(scores.notes) for note in scores.notes[index]
        ],
        "training_images": [
            {"image": names[index], "split": split_name}
            for index, split_name in sorted(scores.training_splits.items())
        ],
    }
    write_json(outcome.out / PREDICT_FILE, fields, format=PREDICT_JSON_FORMAT)
