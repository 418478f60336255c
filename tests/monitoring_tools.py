"""Simulated prediction logs for tests of monitoring: units as arrays, rows of a log, and a small model folder."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermkit.files import sha256_bytes, write_text
from dermkit.images.statistics import ImageStatistics
from dermkit.models.card import TRAINING_IMAGES_FILE, WEIGHTS_FILE, card_files
from dermkit.models.checksums import write_checksums
from dermkit.monitoring.checks import MONITOR_CHECKS
from dermkit.monitoring.drift import CheckState, follow, start_checks
from dermkit.monitoring.model_reference import read_monitored_model
from dermkit.monitoring.reference import KnownRate, MonitoredModel
from dermkit.monitoring.values import NUMBER_FIELDS, TEXT_FIELDS, UnitChunk
from dermkit.prediction_log.rows import PredictionRow
from dermkit.prediction_log.writer import open_log

POINT = "sensitivity 0.9"
START = datetime(2026, 1, 1, tzinfo=UTC)
CLASSES = ("nv", "mel", "bkl")
Change = Callable[[dict[str, Any], np.random.Generator], None]

REFERENCE = MonitoredModel(
    "simulated", "ab" * 32, {"nv": False, "mel": True, "bkl": False},
    {POINT: {"sensitivity": KnownRate(0.9, 300, 300), "specificity": KnownRate(0.7, 500, 500)}}, 0,
)  # fmt: skip


def right_probability(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of malignant images at each score of `draw_units`, (n,): right probabilities."""
    log_odds = np.log(0.15 / 0.85) + (3.5 * scores + (2.5**2 - 1) / 2) / 1.3**2
    return np.asarray(1 / (1 + np.exp(-log_odds)), dtype=np.float64)


def draw_units(generator: np.random.Generator, n: int) -> dict[str, Any]:
    """Draw what a log says of n images without drift: column -> (n,) values, texts as arrays of str."""
    is_malignant = generator.random(n) < 0.15
    log_odds = generator.normal(np.where(is_malignant, 1.0, -2.5), 1.3)
    probability = right_probability(log_odds)
    site = generator.choice(["clinic A", "clinic B", "clinic C"], n, p=[0.5, 0.3, 0.2])
    light = generator.normal(0, 12, n)
    units: dict[str, Any] = {
        f"mean_{name}": level + light + generator.normal(0, 6, n)
        for name, level in (("red", 185), ("green", 145), ("blue", 135))
    }
    units |= {f"sd_{name}": generator.gamma(20, 1.5, n) for name in ("red", "green", "blue")}
    is_refused = generator.random(n) < 0.02
    units |= {
        "sharpness": generator.normal(1.1, 0.15, n), "width": generator.choice([600, 1024, 4000], n),
        "distance": generator.gamma(30, 0.02, n), "outside": generator.random(n) < 0.04, "refused": is_refused,
        "malignant_probability": probability, "is_malignant": is_malignant, "site": site,
        "device": generator.choice(["D1", "D2"], n),
        "predicted": np.where(probability > 0.5, "mel", np.where(generator.random(n) < 0.8, "nv", "bkl")),
        "positive": generator.random(n) < np.where(is_malignant, 0.9, 0.3),
        "has_outcome": generator.random(n) < 0.3,
    }  # fmt: skip
    return units


def make_chunk(units: Mapping[str, Any], generator: np.random.Generator, times: NDArray[np.float64]) -> UnitChunk:
    """Return drawn units as monitoring reads them from a log; their outcomes are written in the same order."""
    n, is_refused = len(times), units["refused"]
    numbers = {name: np.full(n, np.nan) for name in NUMBER_FIELDS}
    for name in ("mean_red", "mean_green", "mean_blue", "sd_red", "sd_green", "sd_blue", "sharpness"):
        numbers[name] = np.array(units[name], dtype=np.float64)
    numbers["brightness"] = (units["mean_red"] + units["mean_green"] + units["mean_blue"]) / 3
    numbers["pixels"], numbers["aspect"] = units["width"] ** 2 * 0.75, np.full(n, 4 / 3)
    numbers["refused"] = is_refused.astype(np.float64)
    for name in ("distance", "outside", "malignant_probability", "positive"):
        numbers[name] = np.where(is_refused, np.nan, units[name])
    numbers["highest_probability"] = np.maximum(
        numbers["malignant_probability"], 1 - numbers["malignant_probability"]
    )
    has_outcome, is_malignant = units["has_outcome"] & ~is_refused, units["is_malignant"]
    numbers["sensitivity"] = np.where(has_outcome & is_malignant, numbers["positive"], np.nan)
    numbers["specificity"] = np.where(has_outcome & ~is_malignant, 1 - numbers["positive"], np.nan)
    numbers["observed"] = np.where(has_outcome, is_malignant, np.nan)
    numbers["residual"] = numbers["observed"] - numbers["malignant_probability"]
    numbers["outcome_sequence"] = np.where(has_outcome, times, np.nan)
    texts = {name: [str(one) for one in units.get(name, [""] * n)] for name in TEXT_FIELDS}
    texts["predicted"] = ["" if one else name for one, name in zip(is_refused, texts["predicted"], strict=True)]
    return UnitChunk(
        [f"{number:032x}" for number in range(n)], [f"{number:064x}" for number in range(n)], times,
        np.where(has_outcome, times, np.nan), generator.integers(0, 2**63, n).astype(np.uint64), numbers, texts,
    )  # fmt: skip


@dataclass
class SimulatedReader:
    """Stands for `UnitReader`: chunks of one simulated deployment."""

    simulated: list[UnitChunk]

    def chunks(self) -> Iterator[UnitChunk]:
        yield from self.simulated


def simulate(
    seed: int,
    *,
    n_reference: int,
    n_months: int,
    n_per_month: int,
    change: Change | None = None,
    change_month: int = 0,
) -> tuple[SimulatedReader, datetime]:
    """Return a deployment, and the end of its reference: 30 days before `START`, then months of 30 days.

    change: put on the units from `change_month` on.
    """
    generator = np.random.default_rng(seed)
    begin = START.timestamp()
    chunks = [make_chunk(draw_units(generator, n_reference), generator,
                         begin - 30 * 86400 + np.sort(generator.random(n_reference)) * 29 * 86400)]  # fmt: skip
    months_per_chunk = max(1, 200 // n_per_month)
    for month in range(0, n_months, months_per_chunk):
        n_here = min(months_per_chunk, n_months - month)
        times = begin + (month + np.arange(n_here * n_per_month) / n_per_month) * 30 * 86400
        units = draw_units(generator, len(times))
        if change is not None:
            altered = {name: np.array(values) for name, values in units.items()}
            change(altered, generator)
            is_later = times >= begin + change_month * 30 * 86400
            units = {
                name: np.where(is_later, altered[name], values)
                if values.dtype.kind != "U"
                else np.where(is_later, altered[name].astype(object), values.astype(object))
                for name, values in units.items()
            }
        chunks.append(make_chunk(units, generator, times))
    return SimulatedReader(chunks), START


def text_counts(reader: SimulatedReader) -> dict[str, Counter[str]]:
    """Return how many units of the reference have each value of the text fields."""
    first = reader.simulated[0]
    return {name: Counter(text for text in first.texts[name] if text) for name in TEXT_FIELDS}


def run_checks(reader: SimulatedReader, end: datetime, *, alpha: float = 0.05) -> dict[str, CheckState]:
    """Take a deployment through the checks, as `dermkit monitor` does, and return them."""
    checks = start_checks(
        REFERENCE, POINT, text_counts(reader), limit=float(np.log(len(MONITOR_CHECKS) / alpha)), date="2026-01-01"
    )
    follow(reader, checks, reference_until=end, period="month")  # type: ignore[arg-type]
    return checks


def write_model(folder: Path, *, n_test: int = 400) -> MonitoredModel:
    """Write a model folder without nets, whose card knows sensitivity and specificity on test images."""
    folder.mkdir(parents=True)
    rate = {"value": 0.9, "ci95": [0.867, 0.9257], "n": n_test, "text": "90 %"}
    card: dict[str, Any] = {
        "members": [{"views": ["identity"], "spec": {"backbone": "resnet18", "metadata": None},
                     "metadata": None, "calibration": None,
                     "file": WEIGHTS_FILE, "weight": 1.0, "class_order": list(range(len(CLASSES))),
                     "training_features": None, "preprocessing": {
                         "size": 16, "resize": "squash", "interpolation": "bilinear", "divide_by": 255.0,
                         "mean": [0, 0, 0], "std": [1, 1, 1]}}],
        "classes": [{"name": name, "diagnosis": "", "malignancy": "malignant" if name == "mel" else "benign"}
                    for name in CLASSES],
        "recipe": {"name": "simulated", "about": ""}, "dataset": {"name": "d", "n": 10}, "weights": {}, "training": {},
        "calibration": {"kind": "none"}, "operating_points": [], "conformal": None,
        "evaluation": {"split": "test", "n": n_test, "outcome": "", "verdict": "", "figures": {},
                       "broken_guarantees": [],
                       "operating_points": {POINT: {"sensitivity": rate, "specificity": rate}}},
    }  # fmt: skip
    for name, text in {**card_files(card), TRAINING_IMAGES_FILE: "", WEIGHTS_FILE: ""}.items():
        write_text(folder / name, text)
    write_checksums(folder)
    return read_monitored_model(folder)


def log_row(units: Mapping[str, Any], index: int, time: datetime, model_key: str) -> PredictionRow:
    """Return one drawn unit as a row of a log."""
    probability = float(units["malignant_probability"][index])
    width = int(units["width"][index])
    colours = {
        f"{kind}_{name}": float(units[f"{kind}_{name}"][index])
        for kind in ("mean", "sd")
        for name in ("red", "green", "blue")
    }
    statistics = ImageStatistics(width, width * 3 // 4, sharpness=float(units["sharpness"][index]), **colours)
    request = f"request-{time.timestamp()}-{index}"
    row_id = sha256_bytes(f"id of {request}".encode())[:32]  # random ids would break ties another way each time
    if units["refused"][index]:
        return PredictionRow(
            row_id=row_id, request_id=request, position=0, time=time, dermkit_version="0", model_key=model_key,
            refusal_reason="truncated",
        )  # fmt: skip
    probabilities = {"mel": probability, "nv": 1 - probability}
    return PredictionRow(
        row_id=row_id, request_id=request, position=0, time=time, dermkit_version="0", model_key=model_key,
        pixel_sha256=sha256_bytes(request.encode()), probabilities=probabilities,
        calibrated_probabilities=probabilities, predicted=str(units["predicted"][index]), operating_point=POINT,
        threshold=0.2, malignant_probability=probability, positive=bool(units["positive"][index]),
        distance=float(units["distance"][index]), p_value=0.5,
        outside_training_distribution=bool(units["outside"][index]), statistics=statistics,
        site=str(units["site"][index]), device=str(units["device"][index]),
    )  # fmt: skip


def write_log(
    log: Path, model_key: str, *, n: int, change: Change | None = None, seed: int = 0, first: datetime = START,
    days: float = 60.0,
) -> list[PredictionRow]:  # fmt: skip
    """Append n drawn rows, evenly over some days, to a log; returns them."""
    generator = np.random.default_rng(seed)
    units = draw_units(generator, n)
    if change is not None:
        change(units, generator)
    rows = [log_row(units, index, first + timedelta(days=days * index / n), model_key) for index in range(n)]
    with open_log(str(log)) as prediction_log:
        for start in range(0, n, 250):
            prediction_log.append(rows[start : start + 250])
    return rows
