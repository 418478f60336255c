"""What is watched: the checks, and the statistics of each.

Each check has an equal share of the false-alarm rate. A check holds the mean capital of its statistics, so their number
costs nothing but a little delay.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from dermkit.files import sha256_bytes
from dermkit.metrics.stats.arrays import Floats
from dermkit.monitoring.values import UnitChunk

OTHER = "(any other)"
"""Stands for all values of a text field that the reference does not have, or seldom."""
MAX_VALUES = 8
"""Values of a text field that are watched one by one, the most frequent of the reference."""
MIN_GROUP_UNITS = 50
"""Units that a site or device needs in the reference to be watched for itself."""
MIX_FIELDS = ("site", "device", "age_group")
GROUP_FIELDS_WATCHED = ("site", "device")
GROUP_STATISTICS = ("malignant_probability", "distance", "brightness")


@dataclass(frozen=True)
class Check:
    """A check. name: in files. title: for people. action: what to do when it raises an alarm."""

    name: str
    title: str
    action: str


MONITOR_CHECKS = (
    Check("colour", "Colour and contrast of the images",
          "Look at the images below. Ask the sites for a new camera, lamp, white balance or picture program; until "
          "it is clear, treat answers for such images as untested."),
    Check("size_and_sharpness", "Size, shape and sharpness of the images",
          "Look at the images below. Ask for a new device, a crop or a resize before the upload, and a dirty lens."),
    Check("refusals", "Images that were refused",
          "See `refusal_reason` in the log: a client that sends another format, cut files or too large ones."),
    Check("case_mix", "Sites, devices and ages",
          "See which site, device or age group sends more or fewer images. A new one was not in the reference: compare "
          "its figures before its answers are used."),
    Check("distance", "Distance from the training images",
          "Look at the images below: a class that the model does not know, no lesion at all, or another camera. "
          "Consider `dermkit predict --withhold-outside`, and training with such images."),
    Check("probabilities", "Probabilities",
          "Compare with the input checks: if none of them moved, other lesions are sent. Collect outcomes before any "
          "threshold is changed."),
    Check("decisions", "Predicted classes and positive decisions",
          "More or fewer positives mean other work for people and other predictive values. Look at the mix of sites "
          "first, then collect outcomes."),
    Check("within_groups", "Drift within a site or device",
          "Compare this site or device with the others on this page, and ask there what changed."),
    Check("sensitivity", "Sensitivity, where outcomes came back",
          "Look at the missed malignant images below. Have the selection of outcomes checked first; if it is as "
          "before, stop relying on this operating point and evaluate the model anew on recent images."),
    Check("specificity", "Specificity, where outcomes came back",
          "Look at the false positives below, then evaluate the model anew on recent images."),
    Check("calibration", "Calibration, where outcomes came back",
          "Probabilities mean something else than before. Evaluate on recent images, which fits calibration and "
          "operating points anew."),
)  # fmt: skip
RATE_CHECKS = frozenset({"sensitivity", "specificity"})
PERFORMANCE_CHECKS = RATE_CHECKS | {"calibration"}


@dataclass(frozen=True)
class Column:
    """A column of units. title: for people. unit: of its values. position: value -> 0..1, fixed for ever.

    is_event: 0 or 1.
    """

    title: str
    position: Callable[[Floats], Floats]
    unit: str = ""
    is_event: bool = False


def _linear(low: float, high: float) -> Callable[[Floats], Floats]:
    return lambda values: (values - low) / (high - low)


def _logarithmic(low: float, high: float) -> Callable[[Floats], Floats]:
    return lambda values: np.log(np.maximum(values, low) / low) / math.log(high / low)


def _log_odds(values: Floats) -> Floats:
    probabilities = np.clip(values, 1e-5, 1 - 1e-5)
    return np.asarray(np.log(probabilities / (1 - probabilities)) / (2 * math.log(1e5)) + 0.5, dtype=np.float64)


def _event(title: str) -> Column:
    return Column(title, _linear(0, 1), is_event=True)


COLUMNS: Mapping[str, Column] = MappingProxyType({
    **{f"mean_{name}": Column(f"mean {name}", _linear(0, 255), "of 255") for name in ("red", "green", "blue")},
    **{f"sd_{name}": Column(f"contrast of {name}", _linear(0, 128), "of 255") for name in ("red", "green", "blue")},
    "brightness": Column("brightness", _linear(0, 255), "of 255"),
    "sharpness": Column("sharpness", _linear(0, 3)),
    "pixels": Column("number of pixels", _logarithmic(2**10, 2**30)),
    "aspect": Column("width over height", _logarithmic(1 / 16, 16)),
    "distance": Column("distance from the training images", _linear(0, 4)),
    "outside": _event("outside the training distribution"),
    "malignant_probability": Column("P(malignant)", _log_odds),
    "highest_probability": Column("probability of the predicted class", _log_odds),
    "positive": _event("positive"),
    "refused": _event("refused"),
    "sensitivity": _event("malignant images called positive"),
    "specificity": _event("other images called negative"),
    "residual": Column("observed less expected malignant", _linear(-1, 1)),
})  # fmt: skip


@dataclass(frozen=True)
class Statistic:
    """One number of each unit that is watched.

    check: name of its check. column: of `COLUMNS`, or a text field where `value` is given: then the number is whether
    the text has this value, or, for `OTHER`, none of `known_values`. group: (field, value) of the units that count,
    None for all. is_one_sided: only a rise is drift, since the reference says no more than an upper limit.
    """

    check: str
    column: str
    value: str | None = None
    known_values: tuple[str, ...] = ()
    group: tuple[str, str] | None = None
    is_one_sided: bool = False

    @property
    def is_event(self) -> bool:
        """Return whether its values are 0 and 1."""
        return self.value is not None or COLUMNS[self.column].is_event

    @property
    def is_residual(self) -> bool:
        """Return whether its values are outcomes less their probabilities, which need no reference."""
        return self.column == "residual"

    @property
    def unit(self) -> str:
        """Return the unit of its values, "" for none."""
        return "" if self.value is not None else COLUMNS[self.column].unit

    @property
    def title(self) -> str:
        """Return what it is, for people."""
        name = (
            COLUMNS[self.column].title if self.value is None else f"{self.column.replace('_', ' ')} {self.value}"
        )
        return name if self.group is None else f"{name}, {self.group[0]} {self.group[1]}"

    @property
    def salt(self) -> int:
        """Return a number that differs from that of any other statistic."""
        text = "\n".join((self.check, self.column, self.value or "", *(self.group or ())))
        return int(sha256_bytes(text.encode())[:16], 16)

    def values(self, chunk: UnitChunk) -> Floats:
        """Return the number of each unit, (N,), NaN where it has none."""
        is_number = self.value is None
        numbers = chunk.numbers[self.column].copy() if is_number else self._matches(chunk.texts[self.column])
        if self.group is not None:
            field, value = self.group
            numbers[np.array([text != value for text in chunk.texts[field]], dtype=bool)] = np.nan
        return numbers

    def _matches(self, texts: Sequence[str]) -> Floats:
        def number(text: str) -> float:
            if not text:
                return math.nan
            return float(text not in self.known_values if self.value == OTHER else text == self.value)

        return np.array([number(text) for text in texts], dtype=np.float64)

    def positions(self, values: Floats) -> Floats:
        """Return values as positions of 0..1."""
        return values if self.is_event else COLUMNS[self.column].position(values)


def statistics_of(text_counts: Mapping[str, Counter[str]]) -> list[Statistic]:
    """Return every statistic that is watched. text_counts: of each text field, the units of the reference by value."""
    numbers = {
        "colour": [f"{kind}_{name}" for kind in ("mean", "sd") for name in ("red", "green", "blue")],
        "size_and_sharpness": ["pixels", "aspect", "sharpness"],
        "refusals": ["refused"],
        "distance": ["distance", "outside"],
        "probabilities": ["malignant_probability", "highest_probability"],
        "decisions": ["positive"],
        "sensitivity": ["sensitivity"],
        "specificity": ["specificity"],
        "calibration": ["residual"],
    }
    statistics = [Statistic(check, column) for check, columns in numbers.items() for column in columns]
    statistics += [one for field in MIX_FIELDS for one in _value_statistics("case_mix", field, text_counts[field])]
    statistics += _value_statistics("decisions", "predicted", text_counts["predicted"])
    return [*statistics, *_group_statistics(text_counts)]


def _value_statistics(check: str, field: str, counts: Counter[str]) -> Iterator[Statistic]:
    names = tuple(name for name, _ in counts.most_common(MAX_VALUES))
    for name in names:
        yield Statistic(check, field, name)
    if names:
        yield Statistic(check, field, OTHER, known_values=names)


def _group_statistics(text_counts: Mapping[str, Counter[str]]) -> Iterator[Statistic]:
    for field in GROUP_FIELDS_WATCHED:
        names = [name for name, n in text_counts[field].most_common(MAX_VALUES) if n >= MIN_GROUP_UNITS]
        for name in names if len(names) > 1 else ():
            for column in GROUP_STATISTICS:
                yield Statistic("within_groups", column, group=(field, name))
