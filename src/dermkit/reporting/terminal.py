"""The result of a run as lines of text for a terminal: figures, verdict and serious warnings. The page has the rest."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.lint.rules import read_lint
from dermkit.metrics.stats.estimate import humanise
from dermkit.reporting.warnings import report_warnings
from dermkit.runs.belief import judge_belief
from dermkit.runs.documents import saved_content
from dermkit.runs.folder import SEEN_SPLIT, RunFolder
from dermkit.runs.layout import METRICS, SUMMARY
from dermkit.runs.rule_verdict import beaten_rules_text
from dermkit.runs.sentences import Figure, plain_text
from dermkit.runs.verdict import (
    SUMMARY_METRICS,
    estimate_text,
    guarantee_fragments,
    judge_run,
)

WIDTH = 100
"""Characters of a line; a path is never broken."""

MAX_WARNINGS = 6
"""Serious warnings printed; the page has all."""

MAX_NAME_WIDTH = 60
"""A longer name of a run has a line of its own."""

_NAMES = {
    "sensitivity": "sensitivity, malignant",
    "specificity": "specificity, malignant",
    "auroc": "AUROC, malignant",
}
_NAME_WIDTH = max(map(len, _NAMES.values()))


def result_lines(folder: Path) -> list[str]:
    """Return what to read first of an evaluated run, or of a folder of repeats or folds.

    Broken guarantees, figures with interval and n, the verdict, serious warnings. Raises `DataError` for a folder that
    was not evaluated.
    """
    with saved_content(folder):
        if SUMMARY.exists(folder) and not METRICS.exists(folder):
            return list(_repeat_lines(folder))
        return list(_run_lines(RunFolder(folder)))


def wrapped(text: str, *, indent: str = "") -> list[str]:
    """Return a sentence as lines of at most `WIDTH` characters; the second and later ones are indented."""
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def figure_lines(rows: Sequence[tuple[str, str]], *, name_width: int = 0) -> list[str]:
    """Return name and text in two columns, each row within `WIDTH`: a text that is too long goes on below."""
    name_width = min(MAX_NAME_WIDTH, max([name_width, *(len(name) for name, _ in rows)]))
    lines = []
    for name, text in rows:
        texts = textwrap.wrap(text, WIDTH - name_width - 4, break_long_words=False) or [""]
        *long_name, name = [name, ""] if len(name) > name_width else [name]  # a long name has a line of its own
        lines += [f"  {line}" for line in long_name]
        lines += [f"  {name if row == 0 else '':<{name_width}}  {line}" for row, line in enumerate(texts)]
    return lines


def metric_lines(table: pd.DataFrame) -> list[str]:
    """Return a table of runs by metrics as text: a block for each metric, a line for each run."""
    return [
        line
        for metric in table.columns
        for line in (
            str(metric).replace("_", " "),
            *figure_lines([(str(run), str(text)) for run, text in table[metric].items()]),
        )
    ]


def _run_lines(run: RunFolder) -> Iterator[str]:
    verdict = judge_run(run)
    belief = judge_belief(run, verdict, read_lint(run.path))
    for broken in verdict.broken:
        yield from wrapped(plain_text(guarantee_fragments(broken, verdict.split)), indent="  ")
    for split in _shown_splits(run, verdict.split):
        yield from _split_lines(run, split)
    yield f"verdict: {belief.word}"
    for doubt in belief.reasons:
        yield from wrapped(f"  because: {humanise(doubt.text)}", indent="    ")
    if verdict.text not in [doubt.text for doubt in belief.reasons]:
        yield from wrapped(f"simple rules: {humanise(verdict.text)}", indent="  ")
    rules = plain_text(verdict.rule_headline) or beaten_rules_text(
        run.metrics["splits"][verdict.split], verdict.split
    )
    if rules:
        yield from wrapped(f"image-blind rules: {rules[0].lower()}{rules[1:]}", indent="  ")
    yield from _warning_lines(run)


def _shown_splits(run: RunFolder, headline: str) -> list[str]:
    """Return the splits whose figures are printed: the headline's, after what goes with it."""
    if SEEN_SPLIT in run.split_names:
        return [SEEN_SPLIT, headline]
    return list(dict.fromkeys(["validation", headline])) if run.scores_test_by_ensemble else [headline]


def _split_title(run: RunFolder, split: str) -> str:
    """Return the split's name; of folds beside test images, also what scored it."""
    if run.pooled is None or not run.scores_test_by_ensemble or run.pooled["n_folds"] == 1:
        return split
    return {"validation": "validation, out-of-fold (single nets)", "test": "test, the ensemble"}.get(split, split)


def _split_lines(run: RunFolder, split: str) -> Iterator[str]:
    split_metrics = run.metrics["splits"][split]
    n, n_groups = split_metrics["n"], split_metrics.get("n_groups", split_metrics["n"])
    groups = f" in {n_groups} groups (lesion, patient, copies)" if n_groups != n else ""
    yield f"{_split_title(run, split)}: {n} images{groups}"
    metrics = split_metrics["metrics"]
    yield from figure_lines(
        [
            (_label(name), estimate_text(metrics[name]))
            for name in SUMMARY_METRICS
            if _is_shown(run, metrics, name)
        ],
        name_width=_NAME_WIDTH,
    )


def _label(metric: str) -> str:
    return _NAMES.get(metric, metric.replace("_", " "))


def _is_shown(run: RunFolder, metrics: Any, name: str) -> bool:
    """Return whether a figure is printed: those of malignancy only where classes are malignant."""
    return name in metrics and (name not in _NAMES or bool(run.metrics.get("positive")))


def _warning_lines(run: RunFolder) -> Iterator[str]:
    serious = [warning.text for warning in report_warnings(run) if warning.level == "serious"]
    for text in serious[:MAX_WARNINGS]:
        yield from wrapped(f"warning: {humanise(text)}", indent="  ")
    if len(serious) > MAX_WARNINGS:
        yield f"warning: {len(serious) - MAX_WARNINGS} more serious warnings are in the report"


# Repeats and folds ------------------------------------------------------------------------------------------------


def _repeat_lines(parent: Path) -> Iterator[str]:
    """Yield the mean and spread over runs, then the verdict on the final model."""
    summary = SUMMARY.read(parent)
    split = "test" if summary["metrics"].get("test") else "validation"
    spreads = summary["metrics"].get(split) or {}
    yield f"{split}: mean of {len(summary['runs'])} runs"
    rows = [(_label(name), _spread_text(spreads[name])) for name in SUMMARY_METRICS if name in spreads]
    yield from figure_lines(rows, name_width=_NAME_WIDTH)
    final = parent / str(summary["final"].get("folder") or "")
    if METRICS.exists(final):
        yield f"final model: {final.name}"
        yield from _run_lines(RunFolder(final))


def _spread_text(spread: dict[str, Any]) -> str:
    low, high = Figure(spread["min"], ""), Figure(spread["max"], "")
    sd = "" if spread["std"] is None else f"SD {Figure(spread['std'], '')}, "
    return f"{Figure(spread['mean'], '')} ({sd}{low} to {high}, {spread['n_runs']} runs)"
