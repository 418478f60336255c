"""The charts of a report: drawn from a run's tables, written beside them, and embedded in the page."""

import base64
from collections.abc import Collection, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.files import write_rows
from dermkit.metrics.classification.reader_studies import ANCHORS, Anchor
from dermkit.render import charts, curves
from dermkit.reporting.labels import BARS, LABELS, SAME_AS
from dermkit.runs import folder
from dermkit.runs.folder import Run

MALIGNANT_VIEW = "malignant classes"
"""The name under which roc_<split>.csv holds the curve of all malignant classes together."""


@dataclass(frozen=True)
class Picture:
    """An embedded chart: data URI, its content in words, and the file that holds its numbers."""

    uri: str
    alt: str
    data: str


def metric_names(run: Run) -> list[str]:
    """Return the metrics worth a row: no figure twice, `_macro_present` only where `_macro` is not defined."""
    bodies = [run.metrics["splits"][split]["metrics"] for split in run.splits]
    found = dict.fromkeys(name for body in bodies for name in body)
    return worth_a_row(
        found, {name for name in found if all(name in b and b[name]["value"] is not None for b in bodies)}
    )


def worth_a_row(found: Collection[str], everywhere: Collection[str]) -> list[str]:
    """Return the names in order; everywhere: those that are defined in every column."""
    known = [name for name in LABELS if name in found] + [name for name in found if name not in LABELS]
    fallback = {f"{name}_present" for name in everywhere}
    return [name for name in known if SAME_AS.get(name) not in found and name not in fallback]


def pictures(run: Run) -> dict[str, Picture]:
    """Draw every chart whose numbers are there; keys are the file stems."""
    drawn = {"intervals": _intervals(run)}
    if run.log is not None and len(run.log):
        path = run.folder / "progress.png"
        charts.draw_progress(_typed(run.log), path, best_epoch=(run.facts.get("best") or {}).get("epoch"))
        drawn["progress"] = Picture(
            embed(path), "Loss and accuracies of training and validation by epoch", "log.csv"
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
    yield path.stem, Picture(embed(path), f"Confusion matrix of {n} {split} images; the counts are in words and tables", f"figures/{path.stem}.csv")  # fmt: skip  # noqa: E501
    yield from _malignant_pictures(run, split, title)
    lines = folder.read_table(figures / f"roc_{split}.csv")
    if lines is not None and len(lines):
        path = figures / f"roc_{split}.png"
        positive = [*run.metrics.get("positive", []), MALIGNANT_VIEW]
        if len(positive) == 2:  # one malignant class: the curve of all of them together is its own
            lines = lines[lines["class"] != MALIGNANT_VIEW]
        curves.draw_roc(lines, path, auroc=_aurocs(body), positive=positive, title=title)
        yield path.stem, Picture(embed(path), f"ROC curves, each class against the rest, of {n} {split} images", f"figures/{path.stem}.csv")  # fmt: skip  # noqa: E501
    bins = folder.read_table(figures / f"calibration_{split}.csv")
    if bins is not None and len(bins):
        path = figures / f"calibration_{split}.png"
        curves.draw_calibration(bins, path, title=title)
        yield path.stem, Picture(embed(path), f"Accuracy against confidence of {n} {split} images, in bins", f"figures/{path.stem}.csv")  # fmt: skip  # noqa: E501


def _malignant_pictures(run: Run, split: str, title: str) -> Iterator[tuple[str, Picture]]:
    """Yield what there is where some classes are malignant and some are not, and the split has images of both."""
    figures, n = run.folder / "figures", run.metrics["splits"][split]["n"]
    lines = folder.read_table(figures / f"roc_{split}.csv")
    own = None if lines is None else lines[lines["class"] == MALIGNANT_VIEW]
    if own is not None and len(own):
        path, people = figures / f"roc_malignant_{split}.png", figures / "anchors.csv"
        told = _auroc_in_words(run.metrics["splits"][split]["metrics"].get("auroc") or {})
        curves.draw_roc_with_people(own, path, people=ANCHORS, auroc=told, title=title)
        write_rows(people, [field.name for field in fields(Anchor)], [astuple(item) for item in ANCHORS])
        alt = f"ROC curve of malignant against the rest on {n} {split} images, and {len(ANCHORS)} published points"
        yield path.stem, Picture(embed(path), alt, f"figures/roc_{split}.csv and figures/anchors.csv")
    table = folder.read_table(figures / f"net_benefit_{split}.csv")
    if table is not None and len(table):
        path = figures / f"net_benefit_{split}.png"
        curves.draw_net_benefit(table, path, title=title)
        alt = f"Net benefit against the threshold on {n} {split} images, with calling everyone and calling no one"
        yield path.stem, Picture(embed(path), alt, f"figures/{path.stem}.csv")


def _auroc_in_words(estimate: Mapping[str, Any]) -> str:
    if estimate.get("value") is None:
        return ""
    bounds = estimate.get("ci95")
    return f"{estimate['value']:.2f}" + (f" ({bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else "")


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
        embed(path), "The figures of the table above as bars with their intervals", "figures/intervals.csv"
    )


def embed(path: Path) -> str:
    """Return a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
