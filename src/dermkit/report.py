"""A run folder as one offline HTML file that a person reads from the top; reads files, never a model.

Figures are printed from metrics.json and nowhere computed again: the element that shows one names its place there
in `data-metric` and holds it in full in `data-value`.
"""

import base64
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit import cautions, charts, findings
from dermkit.data.images import open_image
from dermkit.errors import DataError, ImageRefused
from dermkit.files import read_json, write_rows, write_text
from dermkit.findings import Run
from dermkit.labels import BARS, FIRST, LABELS, SAME_AS, page_templates
from dermkit.lint.rules import read_lint
from dermkit.pictures import data_uri

Images = Callable[[str], NDArray[np.uint8] | None]

SUMMARY_FORMAT = 1
MAX_BYTES = 5_000_000
"""The file must travel by mail: the worst mistakes lose their thumbnails before it grows past this."""

THUMBNAILS = (24, 8, 0)
"""How many of the worst mistakes are shown; the first number that keeps the file under MAX_BYTES is taken."""

SIDE = 144
"""Pixels of a thumbnail's side: colours and border of a lesion can be told, at about 6 kB."""

MALIGNANT_VIEW = "malignant classes"
"""The name under which roc_<split>.csv holds the curve of all malignant classes together."""


@dataclass(frozen=True)
class Picture:
    """An embedded chart: data URI, its content in words, and the file that holds its numbers."""

    uri: str
    alt: str
    data: str


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction; uri is "" where the image is not at hand."""

    image_id: str
    path: str
    label: str
    predicted: str
    p_predicted: float
    p_label: float
    uri: str


def write_report(run: Path, *, images: Images | None = None, images_root: Path | None = None) -> Path:
    """Write `run/report.html`, one offline file, and the charts it shows beside their numbers; returns its path.

    images: pixels (H, W, 3) of an image_id, None where they are not at hand; without it, images are opened below
    `images_root`. Raises `DataError` without a metrics.json, `OutputError`.
    """
    content = findings.read_run(run)
    wrong = findings.read_table(run / "figures" / f"mistakes_{content.headline}.csv")
    wrong = pd.DataFrame() if wrong is None else wrong
    context = {**_words(content), "pictures": _pictures(content), "n_mistakes": len(wrong)}
    template = page_templates().get_template("report.html.j2")
    mistakes = _mistakes(wrong.head(max(THUMBNAILS)), images, images_root)
    for count in THUMBNAILS:
        html = template.render(**context, mistakes=mistakes[:count])
        if len(html.encode()) < MAX_BYTES:
            break
    write_text(run / "report.html", html)
    return run / "report.html"


def _words(run: Run) -> dict[str, Any]:
    """Return what the template says, apart from pictures."""
    figures = run.folder / "figures"
    names = metric_names(run)
    used = {name: _methods(run, name) for name in names}
    first = list(LABELS)[: FIRST + 1]
    return {
        "run": run,
        "split_names": run.splits,
        "bodies": run.metrics["splits"],
        "names": [name for name in names if name in first],
        "more": [name for name in names if name not in first],
        "used": used,
        "methods": sorted({method for methods in used.values() for method in methods}),
        "verdict": findings.verdict(run, run.headline),
        "warnings": cautions.warnings(run),
        "trained": findings.training_counts(run),
        "excluded": findings.excluded(run),
        "confusions": {split: findings.confusions(run, split) for split in run.splits},
        "texts": {
            split: findings.read_text(figures / f"classification_report_{split}.txt") for split in run.splits
        },
        "recipe_rows": findings.recipe_rows(run.recipe),
        "environment": list(findings.flat(run.environment)),
        "log": findings.log_rows(run.log),
        "lint": read_lint(run.folder),
    }


def metric_names(run: Run) -> list[str]:
    """Return the metrics worth a row: no figure twice, `_macro_present` only where `_macro` is not defined."""
    bodies = [run.metrics["splits"][split]["metrics"] for split in run.splits]
    found = dict.fromkeys(name for body in bodies for name in body)
    return _worth_a_row(
        found, {name for name in found if all(name in b and b[name]["value"] is not None for b in bodies)}
    )


def _methods(run: Run, name: str) -> set[str]:
    """Return how the intervals of a figure were made; none where no split has one."""
    items = [run.metrics["splits"][split]["metrics"].get(name) for split in run.splits]
    return {str(item["method"]) for item in items if item and item.get("ci95")}


def _worth_a_row(found: Collection[str], everywhere: Collection[str]) -> list[str]:
    """Return the names in order; everywhere: those that are defined in every column."""
    known = [name for name in LABELS if name in found] + [name for name in found if name not in LABELS]
    fallback = {f"{name}_present" for name in everywhere}
    return [name for name in known if SAME_AS.get(name) not in found and name not in fallback]


# --- pictures ---


def _pictures(run: Run) -> dict[str, Picture]:
    """Draw every chart whose numbers are there; keys are the file stems."""
    drawn = {"intervals": _intervals(run)}
    if run.log is not None and len(run.log):
        path = run.folder / "progress.png"
        charts.draw_progress(_typed(run.log), path, best_epoch=(run.facts.get("best") or {}).get("epoch"))
        drawn["progress"] = Picture(
            _embed(path), "Loss and accuracies of training and validation by epoch", "log.csv"
        )
    for split in run.splits:
        drawn |= dict(_split_pictures(run, split))
    return drawn


def _typed(log: pd.DataFrame) -> pd.DataFrame:
    """Return the log with numbers as numbers; the phase keeps its name."""
    numbers = {name: pd.to_numeric(log[name], errors="coerce") for name in log.columns if name != "phase"}
    return log.assign(**numbers)


def _split_pictures(run: Run, split: str) -> Iterator[tuple[str, Picture]]:
    body, figures = run.metrics["splits"][split], run.folder / "figures"
    title, n = f"{split.capitalize()}, {body['n']} images", body["n"]
    path = figures / f"confusion_{split}.png"
    charts.draw_confusion(body["confusion_matrix"], run.metrics["classes"], path, title=title)
    yield path.stem, Picture(_embed(path), f"Confusion matrix of {n} {split} images; the counts are in words and tables", f"figures/{path.stem}.csv")  # fmt: skip  # noqa: E501
    curves = findings.read_table(figures / f"roc_{split}.csv")
    if curves is not None and len(curves):
        path = figures / f"roc_{split}.png"
        positive = [*run.metrics.get("positive", []), MALIGNANT_VIEW]
        if len(positive) == 2:  # one malignant class: the curve of all of them together is its own
            curves = curves[curves["class"] != MALIGNANT_VIEW]
        charts.draw_roc(curves, path, auroc=_aurocs(body), positive=positive, title=title)
        yield path.stem, Picture(_embed(path), f"ROC curves, each class against the rest, of {n} {split} images", f"figures/{path.stem}.csv")  # fmt: skip  # noqa: E501
    bins = findings.read_table(figures / f"calibration_{split}.csv")
    if bins is not None and len(bins):
        path = figures / f"calibration_{split}.png"
        charts.draw_calibration(bins, path, title=title)
        yield path.stem, Picture(_embed(path), f"Accuracy against confidence of {n} {split} images, in bins", f"figures/{path.stem}.csv")  # fmt: skip  # noqa: E501


def _aurocs(body: dict[str, Any]) -> dict[str, float | None]:
    values = {name: (item.get("auroc") or {}).get("value") for name, item in body["per_class"].items()}
    return {MALIGNANT_VIEW: (body["metrics"].get("auroc") or {}).get("value"), **values}


def _intervals(run: Run) -> Picture:
    """Draw the figures between 0 and 1 with their intervals, and write them as a table of the same stem."""
    header = ("metric", "split", "value", "low", "high", "n")
    rows = []
    for name in metric_names(run):
        for split in run.splits:
            item = run.metrics["splits"][split]["metrics"].get(name)
            if item and name in BARS:
                value = "" if item["value"] is None else item["value"]
                rows.append((name, split, value, *(item.get("ci95") or ("", "")), item["n"]))
    path = run.folder / "figures" / "intervals.png"
    write_rows(path.with_suffix(".csv"), header, rows)
    frame = pd.DataFrame(rows, columns=list(header))
    charts.draw_metric_bars(frame.assign(metric=frame["metric"].map(lambda name: LABELS.get(name, name))), path)
    return Picture(
        _embed(path), "The figures of the table above as bars with their intervals", "figures/intervals.csv"
    )


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


# --- mistakes ---


def _mistakes(wrong: pd.DataFrame, images: Images | None, root: Path | None) -> list[Mistake]:
    find = images or opener(wrong, root)
    return [
        Mistake(
            row["image_id"], row["path"], row["label"], row["predicted"],
            float(row["p_predicted"]), float(row["p_label"]), thumbnail(find(row["image_id"])),
        )
        for row in wrong.to_dict("records")
    ]  # fmt: skip


def thumbnail(pixels: NDArray[np.uint8] | None) -> str:
    """Return a small picture as a data URI, "" where there are no pixels."""
    return "" if pixels is None else data_uri(pixels, SIDE)


def opener(wrong: pd.DataFrame, root: Path | None) -> Images:
    """Return what opens an image of a table (image_id, path) below `root`, but no path that leads out of it."""
    paths = dict(zip(wrong["image_id"], wrong["path"], strict=True)) if len(wrong) else {}

    def find(image_id: str) -> NDArray[np.uint8] | None:
        path = None if root is None else root / paths[image_id]
        if root is None or path is None or not path.resolve().is_relative_to(root.resolve()):
            return None
        try:
            return open_image(path, name=image_id).pixels
        except ImageRefused:
            return None

    return find


# --- repeats and folds ---


def write_summary_report(parent: Path) -> Path:
    """Write `parent/report.html` of repeats or folds from its summary.json: every run, the spread, the final model.

    Raises `DataError` without a summary.json, `OutputError`.
    """
    summary = read_json(parent / "summary.json", format=SUMMARY_FORMAT, error=DataError)
    splits = [name for name in ("validation", "test") if summary["metrics"].get(name)]
    names = {split: _summary_names(summary, split) for split in splits}
    html = (
        page_templates()
        .get_template("summary.html.j2")
        .render(
            title=str(summary.get("recipe") or parent.resolve().name),
            summary=summary,
            **_final(parent, summary["final"]["folder"]),
            images={split: _images(parent, summary, split) for split in splits},
            one_seed=len({run["seed"] for run in summary["runs"]}) == 1,
            split_names=splits,
            names=names,
            pictures={split: _spread(summary, split, names[split], parent) for split in splits},
        )
    )
    write_text(parent / "report.html", html)
    return parent / "report.html"


def _final(parent: Path, folder: str) -> dict[str, Any]:
    """Return the final run's verdict (None without its metrics.json) and its serious warnings."""
    if not _inside(parent, folder):
        return {"verdict": None, "serious": [], "final_run": None}
    run = findings.read_run(parent / folder)
    serious = [warn.text for warn in cautions.warnings(run) if warn.level == "serious"]
    return {"verdict": findings.verdict(run, run.headline), "serious": serious, "final_run": run}


def _images(parent: Path, summary: dict[str, Any], split: str) -> list[int]:
    """Return the different numbers of images that the runs were evaluated on, ascending; runs not at hand left out."""
    folders = [parent / run["folder"] for run in summary["runs"] if _inside(parent, run["folder"])]
    bodies = [findings.read_run(folder).metrics["splits"].get(split) for folder in folders]
    return sorted({body["n"] for body in bodies if body})


def _inside(parent: Path, folder: str) -> bool:
    """Say whether an evaluated run of this name lies in the folder itself."""
    path = parent / folder / "metrics.json"
    return path.exists() and path.resolve().is_relative_to(parent.resolve())


def _summary_names(summary: dict[str, Any], split: str) -> list[str]:
    found = dict.fromkeys(name for run in summary["runs"] for name in run.get(split) or {})
    runs = len(summary["runs"])
    return _worth_a_row(
        found, {name for name, item in summary["metrics"][split].items() if item["n_runs"] == runs}
    )


def _spread(summary: dict[str, Any], split: str, names: list[str], parent: Path) -> Picture:
    """Draw each run as a dot per figure, and write the dots as a table of the same stem."""
    rows = [
        (run["folder"], name, run[split][name])
        for name in names
        for run in summary["runs"]
        if name in BARS and (run.get(split) or {}).get(name) is not None
    ]
    path = parent / f"spread_{split}.png"
    write_rows(path.with_suffix(".csv"), ("run", "metric", "value"), rows)
    frame = pd.DataFrame(rows, columns=["run", "metric", "value"])
    frame["metric"] = frame["metric"].map(lambda name: LABELS.get(name, name))
    charts.draw_spread(frame, path, final=summary["final"]["folder"], title=f"{split.capitalize()}, a dot per run")
    return Picture(_embed(path), f"{split.capitalize()} figures, a dot per run", path.with_suffix(".csv").name)
