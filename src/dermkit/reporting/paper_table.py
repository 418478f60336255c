"""The figures of a report as a table for a paper: CSV, and LaTeX that needs the package booktabs alone."""

from collections.abc import Iterator

from dermkit.files import write_rows, write_text
from dermkit.metrics.stats.estimate import reliability
from dermkit.reporting.labels import METRIC_TITLES, is_share
from dermkit.runs.folder import Json, RunFolder
from dermkit.runs.layout import FIGURES_FOLDER

TABLE_METRICS = (
    "balanced_accuracy", "accuracy", "sensitivity", "specificity", "precision", "f1", "auroc", "average_precision",
    "auroc_macro", "brier", "ece", "calibration_slope", "calibration_intercept",
)  # fmt: skip

_ESCAPES = str.maketrans(
    {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", **{sign: f"\\{sign}" for sign in "#$%&_"},
     "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)  # fmt: skip


def write_paper_table(run: RunFolder) -> None:
    """Write figures/paper_table.csv, numbers in full, and paper_table.tex, rounded; the test images come first.

    Raises `OutputError`.
    """
    folder, splits = run.path / FIGURES_FOLDER, run.split_names[::-1]
    rows = [(split, name, estimate) for split in splits for name, estimate in _estimates(run, split)]
    write_rows(
        folder / "paper_table.csv",
        ("split", "metric", "value", "low", "high", "n", "reliable"),
        [
            (split, name, estimate["value"], *(estimate.get("ci95") or ("", "")), estimate["n"],
             int(reliability(estimate) == ""))
            for split, name, estimate in rows
        ],
    )  # fmt: skip
    write_text(folder / "paper_table.tex", "\n".join(_latex_lines(run, splits)) + "\n")


def _estimates(run: RunFolder, split: str) -> Iterator[tuple[str, Json]]:
    metrics = run.metrics["splits"][split]["metrics"]
    for name in TABLE_METRICS:
        if (metrics.get(name) or {}).get("value") is not None:
            yield name, metrics[name]


def _latex_lines(run: RunFolder, splits: list[str]) -> Iterator[str]:
    yield r"\begin{tabular}{lrrr}"
    yield r"\toprule"
    yield r"Figure & Value & 95\,\% interval & $n$ \\"
    for split in splits:
        yield r"\midrule"
        title = f"{latex_text(split.capitalize())}, {run.metrics['splits'][split]['n']} images"
        yield rf"\multicolumn{{4}}{{l}}{{{title}}} \\"
        for name, estimate in _estimates(run, split):
            value, *bounds = (
                _number(name, number) for number in (estimate["value"], *(estimate.get("ci95") or ()))
            )
            mark = "" if reliability(estimate) == "" else r"$^\dagger$"
            interval = f"{bounds[0]} to {bounds[1]}{mark}" if bounds and reliability(estimate) != "none" else "--"
            yield rf"{latex_text(METRIC_TITLES.get(name, name))} & {value} & {interval} & {estimate['n']} \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"% dagger: the interval is not reliable, mostly for too few independent images; metrics.json says why"


def latex_text(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    return text.translate(_ESCAPES)


def _number(name: str, value: float) -> str:
    return rf"{100 * value:.1f}\,\%" if is_share(name) else f"{value:.3f}"
