"""The verbs about results: evaluate, compare, report. They read what a run wrote, and need no torch.

Each way to evaluate is imported where it is taken: together they would hang every stage below one import.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dermkit.comparison.claims import checked_claims
from dermkit.comparison.compare import compare_runs
from dermkit.data.manifest import Dataset
from dermkit.errors import DataError, UsageError
from dermkit.evaluation.options import NOTHING, Asked
from dermkit.files import check_output, check_writable, read_json
from dermkit.models.locate import check_folder, check_model_folder, which_run
from dermkit.progress import Watch
from dermkit.reporting.comparison_page import headline, write_comparison, write_versus
from dermkit.reporting.report import write_report, write_summary_report

COMPARED = ("accuracy", "balanced_accuracy", "f1_macro", "auroc_macro")
"""What is printed of each run beside the verdicts."""


def evaluate(
    target: Path | None,
    *,
    on: Dataset | None = None,
    mapping: Path | None = None,
    predictions: Path | None = None,
    out: Path | None = None,
    open_test: Dataset | None = None,
    watch: Watch | None = None,
    asked: Asked = NOTHING,
) -> Path:
    """Evaluate a run again, a model on another data set (`on`), or another tool's predictions; returns the report.

    asked: what this evaluation shows beside the usual; the next one has to be asked again. open_test: the data set
    whose sealed test side may be scored; every opening is logged and counted (docs/seal.md).
    """
    watch, may_open = watch or Watch(), _may_open(open_test, on)
    of_a_run = on is None and predictions is None
    _check_keep(asked, of_a_run)
    _check_out(out, of_a_run)
    if predictions is not None:
        if target is not None or mapping is not None:
            raise UsageError(
                "--predictions stands for a run or model, so neither these nor --map go with it",
                remedy="dermkit evaluate --predictions FILE [--on DATASET] [--out FOLDER]",
            )
        from dermkit.evaluation.foreign_predictions import evaluate_brought

        return report(evaluate_brought(predictions, on=on, out=out, watch=watch, asked=asked, open_test=may_open))
    if target is None:
        raise UsageError("nothing to evaluate", remedy="name a run folder, or add --predictions FILE")
    check_folder(target)
    if on is not None:
        check_model_folder(target)
        from dermkit.evaluation.external import evaluate_on

        return report(
            evaluate_on(target, on, mapping=mapping, out=out, watch=watch, asked=asked, open_test=may_open)
        )
    if mapping is not None:
        raise UsageError("--map goes with --on: a run is evaluated in its own classes", remedy="add --on DATASET")
    if open_test is not None:
        return _open_test(target, open_test, watch, asked)
    _check_evaluable(target)
    from dermkit.pipeline.run import finish

    return finish(target, images_of(target), asked=asked)


def _check_evaluable(target: Path) -> None:
    if not (target / "predictions.csv").is_file():
        raise UsageError(
            f"{target}: has no predictions.csv, so it is not a run folder",
            remedy=which_run(target, "name a run folder, or add --on DATASET to test a model on other data"),
        )


def _check_keep(asked: Asked, of_a_run: bool) -> None:
    if asked.keep and not of_a_run:
        raise UsageError(
            "--keep: a run's own validation images settle what its model keeps", remedy="name the run alone"
        )


def _check_out(out: Path | None, of_a_run: bool) -> None:
    if out is not None and of_a_run:
        raise UsageError(
            "--out goes with --on or --predictions: a run is evaluated in its own folder",
            kept="nothing was evaluated",
            remedy="leave --out out",
        )


def _may_open(open_test: Dataset | None, on: Dataset | None) -> bool:
    if open_test is not None and on is not None and open_test.folder.resolve() != on.folder.resolve():
        raise UsageError(
            f"--open-test {open_test.folder}: another data set than --on {on.folder}", remedy="name the same one"
        )
    return open_test is not None


def _open_test(target: Path, dataset: Dataset, watch: Watch, asked: Asked) -> Path:
    """Open the sealed test side for a run, or for each run of repeats, and evaluate; returns the report."""
    from dermkit.pipeline import open_test as pipeline_open_test
    from dermkit.pipeline.repeats import summarise
    from dermkit.pipeline.run import finish
    from dermkit.pipeline.run_facts import drop_opening_step
    from dermkit.recipes.schema import load

    if not (target / "summary.json").is_file():
        pipeline_open_test.open_test(target, dataset, watch=watch)
        drop_opening_step(target)
        return finish(target, dataset.images, asked=asked)
    summary = read_json(target / "summary.json", format=1, error=DataError)
    runs = [target / str(item["folder"]) for item in summary["runs"]]
    for number, run in enumerate(runs, start=1):
        watch.say(f"version {number} of {len(runs)}: {run.name}")
        pipeline_open_test.open_test(run, dataset, watch=watch)
        drop_opening_step(run)
        finish(run, dataset.images, asked=asked)
    return summarise(target, runs, monitor=load(runs[0] / "recipe.json").monitor) / "report.html"


@dataclass(frozen=True)
class CompareOutcome:
    """page: comparison.html. sentences: what to read first. tables: split -> the runs' own figures as text.

    notes: which runs were taken together as trainings of one recipe, and what their final model is.
    """

    page: Path
    sentences: list[str]
    tables: dict[str, str]
    same_images: dict[str, bool]
    notes: list[str]


def compare(runs: Sequence[Path], *, published: Sequence[str] = (), out: Path) -> CompareOutcome:
    """Compare runs or folders of repeats with each other, and look at published figures; writes a folder with a page.

    published: as `--published` takes them. Raises `UsageError` for one run alone or a claim that cannot be read,
    `DataError` for a folder that is no run.
    """
    claims = checked_claims(published)
    if not runs and not claims:
        raise UsageError("nothing to compare", remedy="dermkit compare RUN RUN... or --published TEXT")
    for run in runs:
        _check_run(run)
    check_output(out, marker="comparison.json", what="a comparison")
    check_writable(out)
    comparison = compare_runs(runs) if runs else None
    tables = {}
    if comparison is not None:
        write_comparison(comparison, out)
        tables = {split: comparison.wide(COMPARED, split=split).to_string() for split in comparison.same_images}
    folders = comparison.folders if comparison else []
    roots = [root for run in folders if (root := images_of(run)) is not None]
    page = write_versus(comparison, claims, out, images=roots[0] if roots else None)
    same = comparison.same_images if comparison else {}
    notes = comparison.notes if comparison else []
    return CompareOutcome(page, headline(comparison, claims), tables, same, notes)


def _check_run(folder: Path) -> None:
    """Raise `DataError` for what is neither a run nor a folder of repeats."""
    check_folder(folder)
    if not any((folder / name).is_file() for name in ("run.json", "summary.json")):
        raise DataError(
            f"{folder}: has no run.json, so it is not a run folder",
            kept="nothing was written",
            remedy=which_run(folder, "name a run folder"),
        )


def report(target: Path) -> Path:
    """Write a run's report again; returns its path."""
    check_folder(target)
    if (target / "summary.json").is_file():
        return write_summary_report(target)
    if not (target / "metrics.json").is_file():
        raise UsageError(
            f"{target}: has no metrics.json, so it is not a run folder",
            remedy=which_run(target, "name a run folder"),
        )
    return write_report(target, images_root=images_of(target))


def images_of(folder: Path) -> Path | None:
    """Return where a run's images lay on this machine, if they still do."""
    path = folder / "location.json"
    if not path.is_file():
        return None
    images = Path(str(read_json(path, format=1)["images"]))
    return images if images.is_dir() else None
