"""From rows of the log to units that may be taken for independent: one image of a request, each image once.

The log knows neither patients nor lesions. Images of one request are most often of one person, and the same pixels sent
again say nothing new; either would look like drift.
"""

import hashlib
import math
from collections.abc import Iterator
from datetime import datetime

import numpy as np

from dermkit.monitoring.reference import MonitoredModel
from dermkit.monitoring.values import NUMBER_FIELDS, STATISTICS, TEXT_FIELDS, UnitChunk
from dermkit.prediction_log.read import LoggedPrediction, read_log
from dermkit.prediction_log.rows import PREDICT

CHUNK_UNITS = 200
_TABLE_BITS = 2**27


class RepeatFilter:
    """Whether a text came before, in 16 MB however many there are.

    Of a million different ones below 1 % are wrongly taken for repeated; which, depends on their hash alone.
    """

    def __init__(self) -> None:
        self._bits = np.zeros(_TABLE_BITS // 8, dtype=np.uint8)

    def is_repeated(self, text: str) -> bool:
        """Say whether the text came before, and remember it."""
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        index, bit = divmod(number % _TABLE_BITS, 8)
        is_set = bool(self._bits[index] >> bit & 1)
        self._bits[index] |= 1 << bit
        return is_set


class UnitReader:
    """Reads the units of one model from a log, in bounded memory.

    n_rows: rows of the model so far; n_units: units among them; n_repeated: first images of a request whose pixels came
    before. first_time, last_time: of rows, in seconds. operating_point: of the first decision, or the one given;
    `positive` and what rests on it are known for rows of this point alone. n_other_points: units decided at another
    one. n_unknown_outcomes: outcomes that are neither a class nor a known diagnosis.
    n_unused_outcomes: outcomes of rows that are no unit, or were refused.
    """

    def __init__(
        self,
        log: str,
        model: MonitoredModel,
        since: datetime | None,
        until: datetime | None,
        operating_point: str = "",
    ) -> None:
        self._log, self._model, self._since, self._until = log, model, since, until
        self._requests, self._pixels = RepeatFilter(), RepeatFilter()
        self.n_rows = self.n_units = self.n_repeated = self.n_other_points = 0
        self.n_unknown_outcomes = self.n_unused_outcomes = 0
        self.operating_point = operating_point
        self.first_time, self.last_time = math.inf, -math.inf

    def chunks(self) -> Iterator[UnitChunk]:
        """Yield the units, `CHUNK_UNITS` at a time; raises as `read_log` does."""
        units: list[LoggedPrediction] = []
        for prediction in read_log(self._log, self._since, self._until, model_key=self._model.key, route=PREDICT):
            time = prediction.row.time.timestamp()
            self.n_rows += 1
            self.first_time, self.last_time = min(self.first_time, time), max(self.last_time, time)
            is_unit = self._is_unit(prediction)
            self.n_unused_outcomes += prediction.outcome is not None and (
                not is_unit or bool(prediction.row.refusal_reason)
            )
            if is_unit:
                units.append(prediction)
            if len(units) == CHUNK_UNITS:
                yield self._chunk(units)
                units = []
        if units:
            yield self._chunk(units)

    def _is_unit(self, prediction: LoggedPrediction) -> bool:
        row = prediction.row
        if self._requests.is_repeated(row.request_id):
            return False
        if row.pixel_sha256 and self._pixels.is_repeated(row.pixel_sha256):
            self.n_repeated += 1
            return False
        self.n_units += 1
        if row.operating_point and not self.operating_point:
            self.operating_point = row.operating_point
        self.n_other_points += row.operating_point not in ("", self.operating_point)
        return True

    def _chunk(self, units: list[LoggedPrediction]) -> UnitChunk:
        values = [self._numbers(prediction) for prediction in units]
        numbers = {
            name: np.array([np.nan if (value := one.get(name)) is None else value for one in values], dtype=np.float64)
            for name in NUMBER_FIELDS
        }  # fmt: skip
        rows = [prediction.row for prediction in units]
        return UnitChunk(
            [row.row_id for row in rows], [row.pixel_sha256 for row in rows],
            np.array([row.time.timestamp() for row in rows], dtype=np.float64),
            np.array([np.nan if one.outcome is None else one.outcome.time.timestamp() for one in units]),
            np.array([int(row.row_id[:16], 16) for row in rows], dtype=np.uint64),
            numbers, {name: [str(getattr(row, name)) for row in rows] for name in TEXT_FIELDS},
        )  # fmt: skip

    def _numbers(self, prediction: LoggedPrediction) -> dict[str, float | None]:
        """Return column -> value of a unit; what is absent or None is unknown."""
        row, statistics = prediction.row, prediction.row.statistics
        values: dict[str, float | None] = {"refused": float(bool(row.refusal_reason))}
        if statistics is not None:
            values |= {name: getattr(statistics, name) for name in STATISTICS}
            values["brightness"] = (statistics.mean_red + statistics.mean_green + statistics.mean_blue) / 3
            values |= {"pixels": float(statistics.width * statistics.height), "aspect": statistics.aspect}
        if row.refusal_reason:
            return values
        probabilities = row.calibrated_probabilities or row.probabilities
        values |= {
            "distance": row.distance, "malignant_probability": row.malignant_probability,
            "outside": None if row.outside_training_distribution is None else float(row.outside_training_distribution),
            "highest_probability": max(probabilities.values(), default=None),
        }  # fmt: skip
        if row.positive is not None and row.operating_point == self.operating_point:
            values["positive"] = float(row.positive)
        return values | self._outcome_numbers(prediction, values)

    def _outcome_numbers(
        self, prediction: LoggedPrediction, values: dict[str, float | None]
    ) -> dict[str, float | None]:
        if prediction.outcome is None:
            return {}
        is_malignant = self._model.malignancy_of(prediction.outcome.diagnosis)
        if is_malignant is None:
            self.n_unknown_outcomes += 1
            return {}
        positive, probability = values.get("positive"), values["malignant_probability"]
        numbers: dict[str, float | None] = {
            "outcome_sequence": float(prediction.outcome.sequence),
            "observed": float(is_malignant),
        }
        if positive is not None:
            numbers["sensitivity" if is_malignant else "specificity"] = positive if is_malignant else 1 - positive
        if probability is not None:
            numbers["residual"] = float(is_malignant) - probability
        return numbers
