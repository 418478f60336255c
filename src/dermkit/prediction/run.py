"""New images -> predictions.csv, decided.csv and picture sheets; what cannot be read is listed, the rest is scored.

Nothing is held that grows with the number of images: they are listed, scored in parts and put together on disk. A
prediction that was stopped goes on when the same command is given again.
"""

import csv
import errno
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError, Interrupted, OutputError, Refusal
from dermkit.files import check_output, check_writable, lock, sha256_file, sweep_temp, write_parts, write_rows
from dermkit.models.checksums import SUMS
from dermkit.models.locate import check_model_folder
from dermkit.prediction import decisions
from dermkit.prediction.decisions import Decided
from dermkit.prediction.inputs import Found, check_arguments
from dermkit.prediction.resume import FOLDER, Job, Row, is_unfinished, open_job, progress
from dermkit.progress import Watch
from dermkit.render import sheets as render_sheets
from dermkit.runs.predictions import write_predictions
from dermkit.threads import ahead, cores

if TYPE_CHECKING:
    from dermkit.metrics.decisions.apply import Chosen
    from dermkit.prediction.pixels import KeptPixels, Scored
    from dermkit.prediction.predictor import Predictor

FORMAT = 2
_PER_SHEET = 48
_SHEETS = 5
"""Pictures for the first 240 images; every image is in predictions.csv."""
_SIDE = 160


@dataclass(frozen=True)
class PredictOutcome:
    """What became of the images, counted; the lists are read from the output when they are asked for.

    decided: None where the model settled nothing on its validation images.
    """

    out: Path
    scored: int
    n_refused: int
    n_notes: int
    n_seen: int
    decided: Decided | None = None

    @property
    def refused(self) -> list[tuple[str, str, str]]:
        """Return (name, reason, detail) of the images that were not scored."""
        return list(_read_refused(self.out))

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Return (name, note) of what the gate decided on the way."""
        return [(item["image"], item["note"]) for item in self._facts()["notes"]]

    @property
    def seen(self) -> list[tuple[str, str]]:
        """Return (name, split) of the images that the model's training looked at."""
        return [(item["image"], item["split"]) for item in self._facts()["seen_in_training"]]

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.out / "predict.json").read_text(encoding="utf-8"))
        return facts


def _read_refused(out: Path) -> Iterator[tuple[str, str, str]]:
    with (out / "refused.csv").open(newline="", encoding="utf-8") as stream:
        for row in islice(csv.reader(stream), 1, None):
            yield row[0], row[1], row[2]


def predict(
    model: Path,
    images: Sequence[str],
    *,
    out: Path,
    batch_size: int | None = None,
    workers: int = 0,
    cache: Path | None = None,
    device: str = "auto",
    restart: bool = False,
    at: str | None = None,
    refer: float | None = None,
    watch: Watch | None = None,
) -> PredictOutcome:
    """Score images with a model folder; writes predictions.csv, decided.csv, refused.csv, predict.json, sheet-*.png.

    Goes on where the same prediction was stopped before, unless `restart`. batch_size: images per forward pass, None
    = as the device likes it. workers: threads, 0 = all cores. cache: a folder that keeps the resized pixels. at: the
    operating point that says positive, such as "sensitivity=.95". refer: share of images to answer, the others are
    referred. Raises `UntrustedError` for the model, `UsageError` where another prediction is unfinished in `out` or
    `at` or `refer` was not settled, `DataError` where no image could be read, `Interrupted` on Ctrl-C, wherever it
    comes.
    """
    asked = Asked(at, refer)
    with _telling_what_is_kept(out):
        return _predict(model, images, out, batch_size, workers, cache, device, restart, asked, watch or Watch())


@dataclass(frozen=True)
class Asked:
    """What of the settled things is to answer: an operating point, and the share of images to answer."""

    at: str | None
    refer: float | None


@contextmanager
def _telling_what_is_kept(out: Path) -> Iterator[None]:
    """Name what is on disk where a prediction is interrupted or its device is full."""
    try:
        yield
    except KeyboardInterrupt:
        done = progress(out)
        raise Interrupted(
            f"interrupted: {done[0]} of {done[1]} images are scored or refused" if done else "interrupted",
            kept=f"they are in {out / FOLDER}" if done else f"what was whole in {out}",
            remedy="give the same command again to go on" if done else "give the same command again",
        ) from None
    except OutputError as error:
        done, cause = progress(out), error.__cause__
        if done is None or not isinstance(cause, OSError) or isinstance(cause, BlockingIOError):
            raise
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        raise OutputError(
            error.message,
            kept=f"{done[0]} of {done[1]} images, scored or refused, in {out / FOLDER}",
            remedy=f"{'free space' if full else error.remedy}, then the same command again",
        ) from cause


def _predict(
    model: Path,
    images: Sequence[str],
    out: Path,
    batch_size: int | None,
    workers: int,
    cache: Path | None,
    device: str,
    restart: bool,
    asked: Asked,
    watch: Watch,
) -> PredictOutcome:
    from dermkit.prediction.pixels import KeptPixels
    from dermkit.prediction.predictor import load_model

    check_model_folder(model)
    workers = workers or cores()
    leave_out = [out, *([cache] if cache else [])]
    check_arguments(images, leave_out=leave_out)
    if not is_unfinished(out):
        check_output(out, marker="predict.json", what="a folder of predictions")
    predictor = load_model(model, device=device, say=watch.say)
    chosen = predictor.chosen(at=asked.at, refer=asked.refer)
    check_writable(out)
    with lock(out):
        sweep_temp(out)
        job = open_job(
            out, images, _identity(predictor), batch_size=batch_size or predictor.batch_size,
            class_names=predictor.class_names, leave_out=leave_out, restart=restart,
        )  # fmt: skip
        kept = KeptPixels(cache, predictor.preprocessing) if cache else None
        thumbnails = _score(job, predictor, workers, kept, watch)
        outcome = _finish(job, predictor, chosen, out, thumbnails, workers)
        job.remove()
    if not outcome.scored:
        _refuse_all(job.n, out)
    return outcome


def _identity(predictor: "Predictor") -> dict[str, Any]:
    """Return what decides the figures beside the images; a stopped prediction goes on only with the same."""
    from dermkit.prediction.predictor import versions

    return {
        "model": sha256_file(predictor.folder / SUMS),
        "recipe": predictor.card["recipe"].get("name") or "unnamed",
        "device": predictor.forward.device.type,
        "net": predictor.forward.way,
        "versions": versions(),
    }


def _score(
    job: Job, predictor: "Predictor", workers: int, kept: "KeptPixels | None", watch: Watch
) -> dict[str, NDArray[np.uint8]]:
    """Score what has no part yet; returns name -> thumbnail of the first images, as far as they were decoded here."""
    from dermkit.prediction.predictor import read_seen

    gaps = _todo(job, watch)
    seen = read_seen(predictor.folder)
    thumbnails: dict[str, NDArray[np.uint8]] = {}
    done = written = job.n - sum(end - start for start, end in gaps)

    def on_part(rows: int) -> None:
        nonlocal written
        written += rows
        if watch.step is Watch.step:  # no bar is shown: a log would stay silent for hours
            watch.say(f"{written} of {job.n} images scored or refused")

    for start, end in gaps:
        scored = _scored(job, predictor, workers, kept, (start, end), thumbnails)
        with closing(scored), closing(job.write(start, end, scored, seen, on_part)) as positions:
            for _ in positions:
                done += 1
                if done % job.batch_size == 0 or done == job.n:
                    watch.step("scoring", done, job.n)
    return thumbnails


def _todo(job: Job, watch: Watch) -> list[tuple[int, int]]:
    """Return the stretches to score, and say what an earlier start of the same prediction left."""
    stale = job.drop_stale()
    if stale:
        watch.say(f"{stale} files changed since they were scored; their parts are scored again")
    gaps = job.gaps()
    done = job.n - sum(end - start for start, end in gaps)
    if done:
        watch.say(f"going on: {done} of {job.n} images were scored or refused before")
    return gaps


def _scored(
    job: Job,
    predictor: "Predictor",
    workers: int,
    kept: "KeptPixels | None",
    stretch: tuple[int, int],
    thumbnails: dict[str, NDArray[np.uint8]],
) -> Generator["Scored", None, None]:
    """Yield the images of a stretch; thumbnails are put aside for the sheets."""
    pictured = max(0, _PER_SHEET * _SHEETS - stretch[0])
    files = ((image.name, Path(image.path)) for image in job.images(*stretch))
    scored = predictor.score_files(
        files, batch_size=job.batch_size, workers=workers, thumbnails=pictured, kept=kept
    )
    with closing(scored):
        for item in scored:
            if item.thumbnail is not None:
                thumbnails[item.name] = item.thumbnail
            yield item


# The output -------------------------------------------------------------------------------------------------------


def _finish(
    job: Job,
    predictor: "Predictor",
    chosen: "Chosen | None",
    out: Path,
    thumbnails: Mapping[str, NDArray[np.uint8]],
    workers: int,
) -> PredictOutcome:
    """Put the parts together, row by row: sheets first, as they take longest, and predict.json last.

    While the parts are there, whatever of this was written is written again by the next start.
    """
    tiles = _tiles(job, predictor, chosen, thumbnails, workers)
    sheets = _write_sheets(out, tiles, decisions.legend(chosen), workers)
    counts = {"scored": 0, "refused": 0, "notes": 0, "seen": 0}

    def counted() -> Iterator[tuple[object, ...]]:
        for row in job.rows():
            counts["scored" if row.predicted else "refused"] += 1
            counts["notes"] += len(row.notes)
            counts["seen"] += bool(row.seen)
            if row.predicted:
                yield (row.image_id, row.path, "", "", "", "", row.predicted, *row.probabilities)

    write_predictions(out / "predictions.csv", job.class_names, counted())
    there = counts["scored"] + counts["refused"]  # notes and seen are counted of the same images
    if there != job.n:
        raise DataError(f"{job.folder}: {there} of {job.n} images", remedy="give the command again")
    refused = ((row.name, *row.refusal) for row in job.rows() if not row.predicted)
    write_rows(out / "refused.csv", ("path", "reason", "detail"), refused if counts["refused"] else ())
    done = _decide(job, chosen, predictor.classes, out)
    outcome = PredictOutcome(out, counts["scored"], counts["refused"], counts["notes"], counts["seen"], done)
    _write_facts(outcome, job, predictor, chosen, sheets)
    return outcome


def _decide(job: Job, chosen: "Chosen | None", classes: Sequence[LesionClass], out: Path) -> Decided | None:
    """Write decided.csv, or remove that of an earlier prediction where the model settled nothing."""
    if chosen is None:
        (out / decisions.FILE).unlink(missing_ok=True)
        return None
    rows = ((row.image_id, row.path, row.probabilities) for row in job.rows() if row.predicted)
    return decisions.write_decided(out / decisions.FILE, chosen, classes, rows)


def _refuse_all(n: int, out: Path) -> None:
    absent = all(reason == Refusal.MISSING for _, reason, _ in _read_refused(out))
    raise DataError(
        f"none of {n} images could be read; first: {', '.join(next(_read_refused(out)))}",
        kept=f"{out / 'refused.csv'} lists each with its reason",
        remedy="check the path" if absent else "give JPEG, PNG, WebP, BMP or TIFF photographs",
    )


def _tiles(
    job: Job,
    predictor: "Predictor",
    chosen: "Chosen | None",
    thumbnails: Mapping[str, NDArray[np.uint8]],
    workers: int,
) -> list[render_sheets.Tile]:
    """Return the tiles of the first images that were scored; what has no thumbnail here is opened for it."""
    from dermkit.prediction.pixels import picture_of

    pairs = (pair for pair in zip(job.rows(), job.images(), strict=True) if pair[0].predicted)

    def tile(pair: tuple[Row, Found]) -> render_sheets.Tile:
        row, image = pair
        small = thumbnails.get(image.name)
        return _tile(row, predictor.classes, chosen, picture_of(Path(image.path)) if small is None else small)

    return list(ahead(tile, islice(pairs, _PER_SHEET * _SHEETS), workers=workers))


def _tile(
    row: Row, classes: Sequence[LesionClass], chosen: "Chosen | None", small: NDArray[np.uint8] | None
) -> render_sheets.Tile:
    lines, colour = decisions.caption(chosen, classes, row.probabilities)
    pixels = small if small is not None else np.zeros((8, 8, 3), np.uint8)
    return render_sheets.Tile(pixels, "\n".join([PurePosixPath(row.name).name, *lines]), colour)


def _write_sheets(out: Path, tiles: Sequence[render_sheets.Tile], legend: str, workers: int) -> list[str]:
    def write(start: int) -> str:
        name = f"sheet-{start // _PER_SHEET + 1}.png"
        part = tiles[start : start + _PER_SHEET]
        title = f"Predictions, images {start + 1} to {start + len(part)}. Research use only. Not a medical device."
        sheet = render_sheets.contact_sheet(part, columns=6, side=_SIDE, title=title, note=legend)
        render_sheets.save_png(sheet, out / name)
        return name

    names = list(ahead(write, range(0, len(tiles), _PER_SHEET), workers=workers))
    for sheet in out.glob("sheet-*.png"):  # of an earlier prediction: there may be fewer now
        if sheet.name not in names:
            sheet.unlink()
    return names


def _write_facts(
    outcome: PredictOutcome, job: Job, predictor: "Predictor", chosen: "Chosen | None", sheets: Sequence[str]
) -> None:
    facts = {
        "format": FORMAT,
        "model_sha256": predictor.sha256,
        "recipe": predictor.card["recipe"].get("name"),
        "classes": list(predictor.class_names),
        "scored": outcome.scored,
        "refused": outcome.n_refused,
        "sheets": list(sheets),
        "notice": "Research use only. Not a medical device.",
        "device": predictor.forward.device.type,
        "batch_size": min(job.batch_size, predictor.forward.at_most),
        "net": predictor.forward.way,
        "decision": decisions.facts(chosen, predictor.classes, outcome.decided),
    }
    notes = ({"image": row.name, "note": note} for row in job.rows() for note in row.notes)
    seen = ({"image": row.name, "split": row.seen} for row in job.rows() if row.seen)
    lists = {"notes": notes if outcome.n_notes else (), "seen_in_training": seen if outcome.n_seen else ()}
    write_parts(outcome.out / "predict.json", _json_with_lists(facts, lists))


def _json_with_lists(facts: dict[str, Any], lists: Mapping[str, Iterable[Mapping[str, str]]]) -> Iterator[str]:
    """Yield a JSON object in pieces: its lists are as long as the list of images, and never lie in memory."""
    yield json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)[:-2]
    for name, items in lists.items():
        yield f',\n "{name}": ['
        for number, item in enumerate(items):
            yield ("," if number else "") + "\n  " + json.dumps(item, ensure_ascii=False)
        yield "]"
    yield "\n}\n"
