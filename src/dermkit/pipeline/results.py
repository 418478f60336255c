"""The commands about results as functions: evaluate, compare, report. They read a run's files and need no torch.

Each way to evaluate is imported inside the function that takes it, which keeps the import chain short.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dermkit.comparison.claims import CheckedClaim, check_claims
from dermkit.comparison.compare import NO_COMPARISON, Comparison, compare_runs
from dermkit.data.manifest import Dataset
from dermkit.data.split import Split
from dermkit.errors import DataError, UsageError
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.files import check_output, check_writable
from dermkit.prediction.locate import check_folder, check_model_folder, suggest_run
from dermkit.progress import Progress
from dermkit.reporting.comparison_page import (
    headline_sentences,
    run_verdicts,
    write_comparison_page,
    write_comparison_tables,
)
from dermkit.reporting.report import write_report, write_summary_report
from dermkit.reporting.terminal import metric_lines
from dermkit.runs.documents import saved_content
from dermkit.runs.folder import RunFolder, writing_into
from dermkit.runs.layout import (
    METRICS,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    RUN,
    SUMMARY,
)
from dermkit.runs.registry import is_registry, read_registry, serving_model

PRINTED_METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "auroc_macro")
"""Metrics of each run that are printed beside the verdicts."""


def evaluate(
    folder: Path | None,
    *,
    dataset: Dataset | None = None,
    mapping: Path | None = None,
    predictions: Path | None = None,
    out: Path | None = None,
    open_test: Dataset | None = None,
    progress: Progress | None = None,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    split: str | None = None,
    malignancy: Mapping[str, str] = MappingProxyType({}),
    probabilities: str | None = None,
) -> Path:
    """Evaluate a run again, a model on another data set (`dataset`), or another tool's predictions; returns the report.

    options: what this evaluation adds to the default; the next one does not remember them. open_test: the data set
    whose sealed test split may be scored; every opening is logged and counted (docs/seal.md). split: of `dataset`, to
    say which of another tool's predictions are of test images; by default the given split does. malignancy: class ->
    benign, malignant or indeterminate, for another tool's predictions without a data set. probabilities: what its
    numbers are, if not probabilities (logits, percent, independent).
    """
    progress, is_opening_allowed = progress or Progress(), _is_opening_allowed(open_test, dataset)
    is_run = dataset is None and predictions is None
    _check_run_options(options, is_run)
    _check_out(out, is_run)
    _check_split(split, probabilities, predictions, dataset)
    _check_malignancy(malignancy, predictions, dataset)
    if predictions is not None:
        _check_alone(folder, mapping)
        from dermkit.evaluation.foreign_predictions import evaluate_foreign

        evaluated_folder = evaluate_foreign(
            predictions, dataset=dataset, out=out, progress=progress, options=options, open_test=is_opening_allowed,
            split=_split_of(dataset, split), malignancy=malignancy, probabilities=probabilities,
        )  # fmt: skip
        return report(evaluated_folder)
    if folder is None:
        raise UsageError("nothing to evaluate", remedy="name a run folder, or add --predictions FILE")
    check_folder(folder)
    if dataset is not None:
        check_model_folder(folder)
        from dermkit.evaluation.external import evaluate_external

        evaluated_folder = evaluate_external(
            serving_model(folder), dataset, mapping_path=mapping, out=out, progress=progress, options=options,
            open_test=is_opening_allowed,
        )  # fmt: skip
        return report(evaluated_folder)
    return _evaluate_again(folder, mapping, open_test, progress, options)


def _evaluate_again(
    folder: Path, mapping: Path | None, open_test: Dataset | None, progress: Progress, options: EvaluationOptions
) -> Path:
    if mapping is not None:
        raise UsageError("--map goes with --on: a run is evaluated in its own classes", remedy="add --on DATASET")
    if open_test is not None:
        return _open_test(folder, open_test, progress, options)
    _check_evaluable(folder)
    from dermkit.pipeline.run import evaluate_and_report

    with writing_into(folder):
        return evaluate_and_report(folder, RunFolder(folder).images_root(), options=options, progress=progress)


def _check_alone(folder: Path | None, mapping: Path | None) -> None:
    """Raise `UsageError` where another tool's predictions come with a run, a model or a class map."""
    if folder is not None or mapping is not None:
        raise UsageError(
            "--predictions stands for a run or model, so neither these nor --map go with it",
            remedy="dermkit evaluate --predictions FILE [--on DATASET] [--out FOLDER]",
        )


def _check_split(
    split: str | None, probabilities: str | None, predictions: Path | None, dataset: Dataset | None
) -> None:
    """Raise `UsageError` for a split without a table and a data set that it divides, or a scale without a table."""
    if probabilities is not None and predictions is None:
        raise UsageError(
            "--probabilities goes with --predictions: it says what the numbers of another tool are",
            outcome="nothing was evaluated",
            remedy="dermkit evaluate --predictions FILE --probabilities logits",
        )
    if split is not None and (predictions is None or dataset is None):
        raise UsageError(
            "--split goes with --predictions and --on: it says which of the data set's images are test images",
            outcome="nothing was evaluated",
            remedy="dermkit evaluate --predictions FILE --on DATASET --split NAME",
        )


def _check_malignancy(malignancy: Mapping[str, str], predictions: Path | None, dataset: Dataset | None) -> None:
    """Raise `UsageError` for a malignancy where a data set, or a run's, says it."""
    if malignancy and (predictions is None or dataset is not None):
        raise UsageError(
            "--malignancy goes with --predictions alone: otherwise the data set says which classes are malignant",
            outcome="nothing was evaluated",
            remedy="import the data set again with --malignancy CLASS=VALUE",
        )


def _split_of(dataset: Dataset | None, name: str | None) -> Split | None:
    if dataset is None or name is None:
        return None
    from dermkit.pipeline.data import load_dataset_split

    return load_dataset_split(dataset, name)


def _check_evaluable(folder: Path) -> None:
    if is_registry(folder):
        registry = read_registry(folder)
        run = registry.version_folder(registry.current)
        raise UsageError(
            f"{folder}: is a registry, and only a run is evaluated without other data",
            outcome="nothing was evaluated",
            remedy=f"name the run of a version, such as {run}, or add --on DATASET to test the version that serves",
        )
    if not (folder / PREDICTIONS_FILE).is_file():
        raise UsageError(
            f"{folder}: has no predictions.csv, so it is not a run folder",
            remedy=suggest_run(folder, "name a run folder, or add --on DATASET to test a model on other data"),
        )


def _check_run_options(options: EvaluationOptions, is_run: bool) -> None:
    """Raise `UsageError` for options of a run folder that come with anything else."""
    if options.save_targets and not is_run:
        raise UsageError(
            "--save-targets: only for a run folder, whose validation images the targets are fitted on",
            remedy="name the run alone",
        )

    if options.masks is None:
        return
    if not is_run:
        raise UsageError(
            "--masks: only for a run folder, whose mistakes get heat maps",
            outcome="nothing was evaluated",
            remedy="name the run alone; dermkit explain MODEL IMAGE... --masks MASKS takes any images",
        )
    check_folder(options.masks)


def _check_out(out: Path | None, is_run: bool) -> None:
    if out is not None and is_run:
        raise UsageError(
            "--out goes with --on or --predictions: a run is evaluated in its own folder",
            outcome="nothing was evaluated",
            remedy="leave out --out",
        )


def _is_opening_allowed(open_test: Dataset | None, dataset: Dataset | None) -> bool:
    if open_test is not None and dataset is not None and open_test.folder.resolve() != dataset.folder.resolve():
        raise UsageError(
            f"--open-test {open_test.folder}: another data set than --on {dataset.folder}",
            remedy="name the same one",
        )
    return open_test is not None


def _open_test(folder: Path, dataset: Dataset, progress: Progress, options: EvaluationOptions) -> Path:
    """Open the sealed test split for a run, an ensemble of folds, or each run of repeats; returns the report."""
    from dermkit.pipeline import open_test as pipeline_open_test
    from dermkit.pipeline.next_steps import remove_opening_step
    from dermkit.pipeline.repeats import summarise_repeats
    from dermkit.pipeline.run import evaluate_and_report
    from dermkit.recipes.schema import load_recipe

    if not SUMMARY.exists(folder) or RunFolder(folder).scores_test_by_ensemble:
        pipeline_open_test.open_test(folder, dataset, progress=progress)
        remove_opening_step(folder)
        with writing_into(folder):
            return evaluate_and_report(folder, dataset.image_root, options=options, progress=progress)
    summary = SUMMARY.read(folder)
    runs = [folder / str(summary_row["folder"]) for summary_row in summary["runs"]]
    for number, run in enumerate(runs, start=1):
        progress.say(f"version {number} of {len(runs)}: {run.name}")
        pipeline_open_test.open_test(run, dataset, progress=progress)
        remove_opening_step(run)
        with writing_into(run):
            evaluate_and_report(run, dataset.image_root, options=options, progress=progress)
    monitor = load_recipe(runs[0] / RECIPE_FILE).monitor
    return summarise_repeats(folder, runs, monitor=monitor, options=options, progress=progress) / REPORT_FILE


@dataclass(frozen=True)
class CompareOutcome:
    """page: comparison.html. sentences: what to read first. tables: split -> the runs' own figures as text.

    image_texts: split -> which images they have in common. verdicts: of each single run, as its report has it.

    notes: which runs were taken together as trainings of one recipe, and what their final model is.
    """

    page: Path
    sentences: list[str]
    tables: dict[str, str]
    same_images: dict[str, bool]
    notes: list[str]
    image_texts: dict[str, str]
    verdicts: list[str]


def compare(runs: Sequence[Path], *, claim_texts: Sequence[str] = (), out: Path) -> CompareOutcome:
    """Compare runs or folders of repeats with each other, and look at published figures; writes a folder with a page.

    A table of another tool's predictions is evaluated first, without a data set, as `evaluate` does.
    published: as `--published` takes them. Raises `UsageError` for one run alone or a claim that cannot be read,
    `DataError` for a folder that is no run.
    """
    claims = check_claims(claim_texts)
    if not runs and not claims:
        raise UsageError("nothing to compare", remedy="dermkit compare RUN RUN... or --published TEXT")
    for run in runs:
        if not run.is_file():
            _check_run_or_repeats(run)
    check_output(out, marker="comparison.json", description="a comparison")
    check_writable(out)
    runs = [evaluate(None, predictions=run).parent if run.is_file() else run for run in runs]
    with saved_content(*runs):
        comparison = compare_runs(runs) if runs else NO_COMPARISON
    with writing_into(out), saved_content(*runs):
        return _write_comparison(comparison, claims, out)


def _write_comparison(comparison: Comparison, claims: Sequence[CheckedClaim], out: Path) -> CompareOutcome:
    if comparison is not NO_COMPARISON:
        write_comparison_tables(comparison, out)
    tables = {
        split: "\n".join(metric_lines(comparison.wide_table(PRINTED_METRICS, split=split)))
        for split in comparison.same_images
    }
    roots = [root for run in comparison.folders if (root := RunFolder(run).images_root()) is not None]
    run_verdict_texts = run_verdicts(comparison)
    page = write_comparison_page(
        comparison, claims, out, verdicts=run_verdict_texts, images=roots[0] if roots else None
    )
    sentences = headline_sentences(comparison, claims)
    same_images, image_texts = dict(comparison.same_images), dict(comparison.image_texts)
    singles = {entry.name for entry in comparison.entries if not entry.is_group}
    verdicts = [f"{name}: {' '.join(texts)}" for name, texts in run_verdict_texts if name in singles]
    return CompareOutcome(page, sentences, tables, same_images, comparison.notes, image_texts, verdicts)


def _check_run_or_repeats(folder: Path) -> None:
    """Raise `DataError` for what is neither a run nor a folder of repeats."""
    check_folder(folder)
    if not any((folder / name).is_file() for name in (RUN.name, SUMMARY.name)):
        raise DataError(
            f"{folder}: has no run.json, so it is not a run folder",
            outcome="nothing was written",
            remedy=suggest_run(folder, "name a run folder"),
        )


def report(folder: Path) -> Path:
    """Write a run's report again; returns its path."""
    check_folder(folder)
    if SUMMARY.exists(folder):
        with writing_into(folder):
            return write_summary_report(folder)
    if not METRICS.exists(folder):
        raise UsageError(
            f"{folder}: has no metrics.json, so it is not a run folder",
            remedy=suggest_run(folder, "name a run folder"),
        )
    with writing_into(folder):
        return write_report(folder, images_root=RunFolder(folder).images_root())
