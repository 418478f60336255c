"""One run, from a plan to its report.

Pixels -> training -> model folder -> predictions -> metrics -> report; each stage leaves files, and the next one
reads them. Heavy imports are inside functions, so that a typo costs no torch.
"""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.split import save_split
from dermkit.errors import DataError, Interrupted, UsageError
from dermkit.evaluation.evaluate import DECISION, DECISION_FORMAT, evaluate_run
from dermkit.evaluation.options import NOTHING, Asked
from dermkit.evaluation.score_run import score_sides
from dermkit.evaluation.seal_log import Logged, end_openings, log_meetings, write_kept
from dermkit.files import (
    lock,
    make_folder,
    read_json,
    sweep_temp,
    write_json,
    write_rows,
)
from dermkit.models.card import settle, wishes_kept, with_kept
from dermkit.pipeline.plan import Plan, Where
from dermkit.pipeline.run_facts import (
    environment,
    model_facts,
    other_environment,
    run_facts,
    training_facts,
    training_lint,
    training_warnings,
    write_next_steps,
)
from dermkit.progress import Watch
from dermkit.recipes.schema import save as save_recipe
from dermkit.render import charts, sheets
from dermkit.reporting.report import write_report
from dermkit.runs.reader import KEPT_SEAL

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from dermkit.data.cache.pixels import PixelCache
    from dermkit.models.net import Net
    from dermkit.prediction.predictor import Predictor
    from dermkit.training.checkpoint import Progress
    from dermkit.training.state import Job

RUN_FORMAT = 1
_TRAINS = "trains"
_REDRAW_SECONDS = 5.0
"""progress.png is redrawn at most this often: drawing costs more than an epoch on cached features."""


def run(plan: Plan, where: Where, watch: Watch, fabric: "Fabric") -> Path:
    """Train, save, score, evaluate and report one run; a finished one is left as it is.

    Where several processes train together, all of them call this: rank 0 does everything, the others train along.
    """
    from dermkit.training.distributed.process_group import ranks_of

    ranks = ranks_of(fabric)
    if ranks.first:
        _lead(plan, where, watch, fabric)
    elif ranks.tell("") == _TRAINS:
        _train(plan, _job(plan, where, Watch()), Watch(), fabric)
    ranks.barrier()  # what comes next may read the files of this run
    return plan.folder


def _lead(plan: Plan, where: Where, watch: Watch, fabric: "Fabric") -> None:
    from dermkit.training.distributed.process_group import ranks_of

    folder, ranks = plan.folder, ranks_of(fabric)
    if (folder / ("metrics.json" if plan.trial else "report.html")).exists():
        watch.say(f"{folder}: already finished; nothing to do")
        if plan.seal is not None and not plan.trial and not (folder / KEPT_SEAL).exists():
            watch.say(f"warning: it scored these test images before they were sealed as {plan.seal.name}")
        ranks.tell("finished")
        return
    with lock(folder):  # first of all: a run that is going on is nothing to resume or to delete
        if (folder / "checkpoints" / "last.safetensors").exists() and not where.resume:
            raise UsageError(
                f"{folder}: was started before and is not finished",
                kept="its checkpoints",
                remedy="add --resume to go on from them, or delete the folder to start anew",
            )
        sweep_temp(folder)
        _write_start(plan, where, watch)
        began = time.perf_counter()
        job = _job(plan, where, watch)
        ranks.tell(_TRAINS)  # every image is decoded: the others find them in the cache
        _fill_run(plan, job, where, watch, fabric, began)


@dataclass(frozen=True)
class _Prepared:
    """A job with the net that it starts from, and the cache that its pixels lie in."""

    job: "Job"
    net: "Net"
    pixels: "PixelCache"
    lint: list[dict[str, Any]]


def _job(plan: Plan, where: Where, watch: Watch) -> _Prepared:
    from dermkit.data.cache.pixels import pixel_cache, row_keys
    from dermkit.models.net import build_net, with_normalisation
    from dermkit.training.state import Job

    recipe, sides = plan.recipe, plan.sides
    net = build_net(recipe.model, len(plan.dataset.classes), weights=plan.weights, seed=plan.seed)
    preprocessing = with_normalisation(recipe.image, plan.weights)
    lint = training_lint(plan, net, preprocessing)
    manifest = plan.dataset.manifest
    cache = plan.dataset.folder / "cache"
    # The whole data set is decoded once, so that every split, fold and recipe of this size shares the files.
    pixels = pixel_cache(
        plan.dataset,
        manifest["image_id"].tolist(),
        preprocessing,
        folder=cache,
        on_progress=lambda n, total: watch.step("images", n, total),
    )
    names = pd.Index(plan.dataset.class_names)
    job = Job(
        recipe=recipe,
        seed=plan.seed,
        pixels=pixels.pixels,
        row_keys=row_keys(manifest, preprocessing),
        labels=names.get_indexer(pd.Index(manifest["label"])).astype(np.int64),
        image_ids=tuple(manifest["image_id"]),
        train=_rows(sides, "train", pixels.index),
        validation=_rows(sides, "validation", pixels.index),
        n_classes=len(names),
        preprocessing=preprocessing,
        cache=cache,
        workers=where.workers,
    )
    return _Prepared(job, net, pixels, lint)


def _fill_run(plan: Plan, prepared: _Prepared, where: Where, watch: Watch, fabric: "Fabric", began: float) -> None:
    from dermkit.data.cache.pixels import keep_within
    from dermkit.prediction.predictor import load_model

    progress = _train(plan, prepared, watch, fabric)
    _save(plan, prepared, progress, began)
    predictor = load_model(plan.folder / "model", device=fabric.device.type)
    _score(plan, predictor, prepared.pixels, watch)
    keep_within(prepared.job.cache)
    size = sum(item.stat().st_size for item in prepared.job.cache.rglob("*") if item.is_file())
    watch.say(
        f"cache: {size / 1e6:,.0f} MB in {prepared.job.cache}, shared by all runs; it may be deleted at any time"
    )
    if plan.trial:
        evaluate_run(plan.folder)
        return
    write_next_steps(plan.folder, plan.dataset.folder, where.weights, sealed=plan.seal is not None)
    write_json(plan.folder / "location.json", {"images": str(plan.dataset.images.resolve())}, format=1)
    finish(plan.folder, plan.dataset.images)
    watch.say(f"report: {plan.folder / 'report.html'}")


def _rows(sides: pd.DataFrame, side: str, index: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the pixel rows of one side, in the split's own order."""
    return np.array([index[name] for name in sides.loc[sides["split"] == side, "image_id"]], dtype=np.int64)


def finish(folder: Path, images: Path | None, *, asked: Asked = NOTHING) -> Path:
    """Evaluate a scored folder and write its report with pictures from `images`; returns the report.

    The model folder takes over what validation settled; of what was asked for beside it, what is to be kept. What it
    keeps from before is settled and shown every time.
    """
    model = folder / "model"
    kept = wishes_kept(model) if model.is_dir() else ()
    evaluate_run(folder, asked=asked.beside(kept))
    if (folder / DECISION).is_file() and model.is_dir():
        decision = read_json(folder / DECISION, format=DECISION_FORMAT, error=DataError)
        settle(model, with_kept(decision, {*kept, *(asked.wishes if asked.keep else ())}))
    return write_report(folder, images_root=images)


def _train(plan: Plan, prepared: _Prepared, watch: Watch, fabric: "Fabric") -> "Progress":
    from dermkit.training.loop import train
    from dermkit.training.state import Hooks

    job, drawn = prepared.job, [time.monotonic()]

    def epoch(row: Mapping[str, Any], epochs: int) -> None:
        watch.say(_epoch_line(row, epochs))
        if time.monotonic() - drawn[0] > _REDRAW_SECONDS and fabric.global_rank == 0:
            _draw_progress(plan.folder)
            drawn[0] = time.monotonic()

    with _interruptible() as stopped:
        hooks = Hooks(
            epoch=epoch, step=watch.step, say=watch.say, stop=lambda: stopped[0],
            first_batch=lambda batch, labels: _draw_batch(plan, job, batch, labels),
        )  # fmt: skip
        progress = train(job, prepared.net, make_folder(plan.folder / "checkpoints"), fabric=fabric, hooks=hooks)
    if stopped[0]:
        raise Interrupted(
            "interrupted when training was done",
            kept=f"{plan.folder / 'checkpoints'}, all epochs",
            remedy="run the same command with --resume; it goes on with scoring",
        )
    return progress


def _save(plan: Plan, prepared: _Prepared, progress: "Progress", began: float) -> None:
    """Write what training came to: its last chart, run.json, the model folder."""
    from dermkit.prediction.predictor import save_model

    _draw_progress(plan.folder)
    training = training_facts(plan, progress)
    learning = sum(row["seconds"] for row in progress.rows) / 60
    # After a resume this process saw only the end; the log's epochs were all trained.
    minutes = {"minutes": max((time.perf_counter() - began) / 60, learning), "minutes_training": learning}
    facts = run_facts(plan)
    facts["warnings"] = [*facts["warnings"], *training_warnings(plan, progress)]
    write_json(
        plan.folder / "run.json", {**facts, **training, **minutes, "lint": prepared.lint}, format=RUN_FORMAT
    )
    save_model(
        plan.folder / "model",
        prepared.net,
        spec=plan.recipe.model,
        classes=plan.dataset.classes,
        preprocessing=prepared.job.preprocessing,
        facts=model_facts(plan, training),
    )


def _score(plan: Plan, predictor: "Predictor", pixels: "PixelCache", watch: Watch) -> None:
    """Write predictions.csv for validation and test; a trial's or a sealed test side is left alone."""
    wanted = ["validation"] if plan.hides_test else ["validation", "test"]
    folder, split = plan.folder, plan.split.name
    opened: list[Logged] = []
    if not plan.hides_test:
        model, recipe = folder / "model", plan.recipe.name
        opened = log_meetings(
            plan.dataset, plan.meetings, model=model, recipe=recipe, run=folder.name, split=split
        )
    score_sides(
        folder, plan.dataset, plan.sides, wanted,
        predictor=predictor, pixels=pixels, seed=plan.seed, fold=plan.fold, watch=watch,
    )  # fmt: skip
    end_openings(plan.dataset, opened)


def _write_start(plan: Plan, where: Where, watch: Watch) -> None:
    folder = plan.folder
    save_recipe(replace(plan.recipe, seed=plan.seed, repeats=1), folder / "recipe.json")
    for line in other_environment(folder, where):
        watch.say(f"warning: {line}")
    write_json(folder / "environment.json", environment(where), format=1)
    # The sides as they were trained on, with the reasons and the scheme: a fold's run is then repeated like any other.
    save_split(replace(plan.split, name="split", frame=plan.sides.assign(fold=-1)), folder)
    write_rows(
        folder / "excluded.csv", ("image_id", "reason"), plan.split.excluded[["image_id", "reason"]].to_numpy()
    )
    if plan.seal is not None:
        write_kept(folder, plan.seal, opening=None)
        watch.say(f"test side sealed ({len(plan.seal.rows)} images): it is not scored (docs/seal.md)")
    for meeting in plan.meetings:
        watch.say(f"warning: {meeting.sentence()}")
    if not (folder / "run.json").exists():
        write_json(folder / "run.json", run_facts(plan), format=RUN_FORMAT)


@contextmanager
def _interruptible() -> Iterator[list[bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop with a checkpoint; a second one ends at once."""
    stopped = [False]

    def handle(_number: int, _frame: object) -> None:
        if stopped[0]:
            raise KeyboardInterrupt
        stopped[0] = True

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(item, handle) for item in signals]
    except ValueError:  # not the main thread: the caller keeps its own way of stopping
        yield stopped
        return
    try:
        yield stopped
    finally:
        for item, handler in zip(signals, before, strict=True):
            signal.signal(item, handler)


def _epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    return (
        f"epoch {int(row['epoch'])}/{epochs}  train loss {_short(row['train_loss'])}"
        f" accuracy {row['train_accuracy']:.3f}"
        f"  validation loss {_short(row['val_loss'])} accuracy {row['val_accuracy']:.3f}"
        f" balanced {row['val_balanced_accuracy']:.3f}  {row['images_per_second']:.0f} images/s  {row['seconds']:.1f} s"
    )


def _short(loss: float) -> str:
    return f"{loss:.4f}" if abs(loss) < 1e4 else f"{loss:.2e}"


def _draw_progress(folder: Path) -> None:
    charts.draw_progress(pd.read_csv(folder / "log.csv"), folder / "progress.png")


def _draw_batch(plan: Plan, job: "Job", batch: Any, labels: Any) -> None:
    """Draw augmented.png: a training batch as the net sees it, its normalisation undone for the eye."""
    names = plan.dataset.class_names
    mean = np.array(job.preprocessing.mean).reshape(1, 3, 1, 1)
    std = np.array(job.preprocessing.std).reshape(1, 3, 1, 1)
    unit = batch.cpu().numpy() * std + mean
    pixels = (unit.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    tiles = [sheets.Tile(image, names[int(label)]) for image, label in zip(pixels, labels, strict=True)]
    sheet = sheets.contact_sheet(tiles, columns=6, title="A training batch as the net sees it")
    sheets.save_png(sheet, plan.folder / "augmented.png")
