"""The charts of a report: drawn from a run's tables, written next to them, and embedded in the page."""

import base64
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.files import write_rows
from dermkit.metrics.classification.reader_studies import READER_STUDIES, ReaderStudy
from dermkit.metrics.stats.estimate import reliability
from dermkit.render import charts, curves, panels
from dermkit.reporting.labels import ALIASES, BAR_METRICS, METRIC_TITLES
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import FIGURES_FOLDER, LOG_FILE, MALIGNANT_CURVE, PROGRESS_CHART


@dataclass(frozen=True)
class EmbeddedFigure:
    """An embedded chart: data URI, alternative text, and the file with its numbers."""

    uri: str
    alt: str
    data: str


def metric_names(run: RunFolder) -> list[str]:
    """Return the metrics to print: none twice, `_macro_present` only if `_macro` is undefined."""
    metrics_by_split = [run.metrics["splits"][split]["metrics"] for split in run.split_names]
    names = dict.fromkeys(name for metrics in metrics_by_split for name in metrics)
    return visible_metrics(
        names,
        {
            name
            for name in names
            if all(
                name in metrics_of_split and metrics_of_split[name]["value"] is not None
                for metrics_of_split in metrics_by_split
            )
        },
    )


def visible_metrics(names: Collection[str], defined_everywhere: Collection[str]) -> list[str]:
    """Return the names in order, without `_present` of `defined_everywhere`, those defined in every column."""
    ordered_names = [name for name in METRIC_TITLES if name in names] + [
        name for name in names if name not in METRIC_TITLES
    ]
    redundant_names = {f"{name}_present" for name in defined_everywhere}
    return [name for name in ordered_names if ALIASES.get(name) not in names and name not in redundant_names]


def draw_figures(run: RunFolder) -> dict[str, EmbeddedFigure]:
    """Draw every chart whose numbers exist; returns file stem -> chart."""
    figures = {"intervals": _draw_intervals(run)}
    if run.log is not None and len(run.log):
        path = run.path / PROGRESS_CHART
        charts.draw_progress(_numeric_log(run.log), path, best_epoch=(run.run_json.get("best") or {}).get("epoch"))
        figures["progress"] = EmbeddedFigure(
            png_data_uri(path), "Loss and accuracies of training and validation by epoch", LOG_FILE
        )
    for split in run.split_names:
        figures |= dict(_split_figures(run, split))
    return figures


def _numeric_log(log: pd.DataFrame) -> pd.DataFrame:
    """Return the log with numbers as numbers; the phase keeps its name."""
    numeric_columns = {name: pd.to_numeric(log[name], errors="coerce") for name in log.columns if name != "phase"}
    return log.assign(**numeric_columns)


def _split_figures(run: RunFolder, split: str) -> Iterator[tuple[str, EmbeddedFigure]]:
    split_metrics, figures_folder = run.metrics["splits"][split], run.path / FIGURES_FOLDER
    title, n = f"{split.capitalize()}, {split_metrics['n']} images", split_metrics["n"]
    path = figures_folder / f"confusion_{split}.png"
    charts.draw_confusion(split_metrics["confusion_matrix"], run.metrics["classes"], path, title=title)
    yield path.stem, EmbeddedFigure(png_data_uri(path), f"Confusion matrix of {n} {split} images; the counts are in words and tables", f"figures/{path.stem}.csv")  # fmt: skip  # noqa: E501
    yield from _small_figures(run, split, title)
    yield from _malignant_figures(run, split, title)
    roc_points = run.figures_table(f"roc_{split}.csv")
    if roc_points is not None and len(roc_points):
        path = figures_folder / f"roc_{split}.png"
        positive = [*run.metrics.get("positive", []), MALIGNANT_CURVE]
        if len(positive) == 2:  # one malignant class: the curve of all of them together is its own
            roc_points = roc_points[roc_points["class"] != MALIGNANT_CURVE]
        curves.draw_roc(roc_points, path, auroc=_aurocs(split_metrics), malignant_classes=positive, title=title)
        yield path.stem, EmbeddedFigure(png_data_uri(path), f"ROC curves, each class against the rest, of {n} {split} images", f"figures/{path.stem}.csv")  # fmt: skip  # noqa: E501
    bins = run.figures_table(f"calibration_{split}.csv")
    if bins is not None and len(bins):
        path = figures_folder / f"calibration_{split}.png"
        curves.draw_calibration(bins, path, title=title)
        yield path.stem, EmbeddedFigure(png_data_uri(path), f"Accuracy against confidence of {n} {split} images, in bins", f"figures/{path.stem}.csv")  # fmt: skip  # noqa: E501


def _small_figures(run: RunFolder, split: str, title: str) -> Iterator[tuple[str, EmbeddedFigure]]:
    """Yield the small pictures of the first screen and of the section on performance, for which there are tables."""
    split_metrics, folder = run.metrics["splits"][split], run.path / FIGURES_FOLDER
    metrics, classes = split_metrics["metrics"], run.metrics["classes"]
    path = folder / f"confusion_small_{split}.svg"
    panels.draw_small_confusion(split_metrics["confusion_matrix"], classes, path, title="Confusion matrix")
    alt = f"Confusion matrix of {split_metrics['n']} {split} images; the commonest confusions are listed under Mistakes"
    yield path.stem, EmbeddedFigure(svg_data_uri(path), alt, f"figures/confusion_{split}.csv")
    n_malignant = sum(split_metrics["per_class"][name]["n"] for name in run.metrics.get("positive", ()))
    prevalence = n_malignant / split_metrics["n"]
    auroc = _auroc_text(metrics.get("auroc") or {})
    drawings: Mapping[str, tuple[Callable[[pd.DataFrame, Path], None], str]] = {
        "roc_band": (
            lambda table, path: panels.draw_roc_band(table, path, auroc=auroc, title="ROC, malignant"),
            f"ROC curve of malignant against the rest with its band, AUROC {auroc}",
        ),
        "precision_recall": (
            lambda table, path: panels.draw_precision_recall(
                table, path, prevalence=prevalence, title="Precision and recall"
            ),
            "Precision against recall of malignant with its band",
        ),
        "calibration_malignant": (
            lambda table, path: panels.draw_calibration_band(table, path, title=_title_of(table, "Calibration")),
            "Share of malignant images against the stated probability, with intervals",
        ),
        "decision_curve": (
            lambda table, path: panels.draw_decision_curve(table, path, title=_title_of(table, "Decision curve")),
            "Net benefit over thresholds of 1 to 50 % with its band, beside calling all and calling none malignant",
        ),
    }
    for name, (draw, alt) in drawings.items():
        table = run.figures_table(f"{name}_{split}.csv")
        if table is not None and len(table):
            path = folder / f"{name}_{split}.svg"
            draw(table, path)
            yield path.stem, EmbeddedFigure(svg_data_uri(path), f"{alt}; {title}", f"figures/{path.stem}.csv")


def _malignant_figures(run: RunFolder, split: str, title: str) -> Iterator[tuple[str, EmbeddedFigure]]:
    """Yield the charts of malignant against benign, for splits with images of both."""
    figures_folder, n = run.path / FIGURES_FOLDER, run.metrics["splits"][split]["n"]
    roc_points = run.figures_table(f"roc_{split}.csv")
    malignant_points = None if roc_points is None else roc_points[roc_points["class"] == MALIGNANT_CURVE]
    if malignant_points is not None and len(malignant_points):
        path, readers_path = figures_folder / f"roc_malignant_{split}.png", figures_folder / "reader_studies.csv"
        auroc_text = _auroc_text(run.metrics["splits"][split]["metrics"].get("auroc") or {})
        curves.draw_roc_with_readers(malignant_points, path, studies=READER_STUDIES, auroc=auroc_text, title=title)
        (figures_folder / "anchors.csv").unlink(missing_ok=True)  # the old name
        write_rows(
            readers_path,
            [field.name for field in fields(ReaderStudy)],
            [astuple(reader_study) for reader_study in READER_STUDIES],
        )
        alt = (
            f"ROC curve of malignant against the rest on {n} {split} images, and "
            f"{len(READER_STUDIES)} published points"
        )
        yield (
            path.stem,
            EmbeddedFigure(png_data_uri(path), alt, f"figures/roc_{split}.csv and figures/reader_studies.csv"),
        )
    net_benefit = run.figures_table(f"net_benefit_{split}.csv")
    if net_benefit is not None and len(net_benefit):
        path = figures_folder / f"net_benefit_{split}.png"
        # As dermkit 6429fce wrote the table.
        net_benefit = net_benefit.rename(columns={"model": "as_trained"})
        curves.draw_net_benefit(net_benefit, path, title=title)
        alt = f"Net benefit against the threshold on {n} {split} images, with calling everyone and calling no one"
        yield path.stem, EmbeddedFigure(png_data_uri(path), alt, f"figures/{path.stem}.csv")


def _title_of(table: pd.DataFrame, name: str) -> str:
    """Return the title of a curve of probabilities, which says whether they are those after calibration."""
    is_calibrated = "calibrated" in table and str(table["calibrated"].iloc[0]) == "1"
    return f"{name} ({'calibrated' if is_calibrated else 'raw probabilities'})"


def _auroc_text(estimate: Mapping[str, Any]) -> str:
    """Return an AUROC with its interval, which has the page's sign where it is not reliable, and goes if misleading."""
    if estimate.get("value") is None:
        return ""
    grade = reliability(estimate)
    if grade == "none":
        return f"{estimate['value']:.2f}"
    low, high = estimate["ci95"]
    return f"{estimate['value']:.2f} ({low:.2f} to {high:.2f}{'†' if grade else ''})"


def _aurocs(split_metrics: dict[str, Any]) -> dict[str, float | None]:
    values = {
        name: (class_metrics.get("auroc") or {}).get("value")
        for name, class_metrics in split_metrics["per_class"].items()
    }
    return {MALIGNANT_CURVE: (split_metrics["metrics"].get("auroc") or {}).get("value"), **values}


def _draw_intervals(run: RunFolder) -> EmbeddedFigure:
    """Draw the metrics between 0 and 1 with their intervals, and write them as a table of the same stem."""
    header = ("metric", "split", "value", "low", "high", "n")
    rows = []
    for name in metric_names(run):
        for split in run.split_names:
            estimate = run.metrics["splits"][split]["metrics"].get(name)
            if estimate and name in BAR_METRICS:
                value = "" if estimate["value"] is None else estimate["value"]
                rows.append((name, split, value, *(estimate.get("ci95") or ("", "")), estimate["n"]))
    path = run.path / FIGURES_FOLDER / "intervals.png"
    write_rows(path.with_suffix(".csv"), header, rows)
    frame = pd.DataFrame(rows, columns=list(header))
    charts.draw_metric_bars(
        frame.assign(metric=frame["metric"].map(lambda name: METRIC_TITLES.get(name, name))), path
    )
    return EmbeddedFigure(
        png_data_uri(path), "The figures of the table above as bars with their intervals", "figures/intervals.csv"
    )


def panel_stems(split: str) -> list[str]:
    """Return the pictures of the section on performance, in their order."""
    names = ("roc_band", "precision_recall", "calibration_malignant", "decision_curve")
    return [f"{name}_{split}" for name in names]


def svg_data_uri(path: Path) -> str:
    """Return an SVG file as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def png_data_uri(path: Path) -> str:
    """Return a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
