"""What a row of the prediction log holds, as typed values that are checked before anything is written."""

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Self

from dermkit.errors import UsageError, printable
from dermkit.files import canonical_json
from dermkit.images.statistics import ImageStatistics

MAX_TEXT_LENGTH = 300
"""Longest text of a field, in characters: the name of a folder, which a class may be, has 255."""
GROUP_FIELDS = ("site", "device", "age_group")
"""What a client may say about an image, to compare groups by. No names, no dates of birth, no free notes."""
PREDICT, EXPLAIN = "predict", "explain"
"""What was asked of an image: probabilities and a decision, or a heat map, which names the predicted class too."""
OUTCOME, OVERRIDE = "outcome", "override"
OUTCOME_KINDS = (OUTCOME, OVERRIDE)

_HEX = frozenset("0123456789abcdef")


def new_row_id() -> str:
    """Return a random id of 32 hex digits, which nobody can guess from another."""
    return uuid.uuid4().hex


def time_text(time: datetime) -> str:
    """Return a time in UTC as text of fixed length, which sorts by time; raises `UsageError` without a time zone."""
    if time.tzinfo is None:
        raise _wrong("time", "has no time zone", "give it one, such as datetime.now(UTC)")
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


def parse_time(text: str) -> datetime:
    """Return the time of an ISO 8601 text in UTC; a text without a time zone is UTC. Raises `UsageError`."""
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise _wrong(
            "time", f"{text!r} is no time", "write it as 2026-11-30 or 2026-11-30T08:15:00+01:00"
        ) from None
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError:
        raise _wrong("time", f"{text!r} is out of range", "check the year") from None


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """One image that was scored or refused, as it is written before the answer is given.

    row_id: 32 hex digits; the same row may be given again and is written once. request_id, position: of the request,
    and the image's place in it, from 0. route: `PREDICT` or `EXPLAIN`. time: when it was scored. model_key: hex SHA-256
    of what decides the model's answers. preprocessing_sha256: of the model's preprocessing. pixel_sha256: of the
    decoded pixels, "" where they could not be decoded. probabilities, calibrated_probabilities: class -> probability.
    predicted: the class that was answered, after calibration where there is one.
    operating_point, threshold, positive: the decision, None = no decision was made.
    referral: "answered", "referred", "withheld" or "". prediction_set: class names, None = the model has none.
    distance, p_value, outside_training_distribution: None where the model cannot tell. statistics: of the decoded
    pixels. site, device, age_group: groups that the client gave, "" = not given. refusal_reason: a code, "" = scored;
    the detail is left out, since it may quote the file. sequence: the place in the log, from 1; 0 = not written yet.
    Raises `UsageError` for a value that the log does not take.
    """

    row_id: str = field(default_factory=new_row_id)
    request_id: str
    position: int
    route: str = PREDICT
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    dermkit_version: str
    model_key: str
    preprocessing_sha256: str = ""
    pixel_sha256: str = ""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    calibrated_probabilities: Mapping[str, float] = field(default_factory=dict)
    predicted: str = ""
    operating_point: str = ""
    threshold: float | None = None
    malignant_probability: float | None = None
    positive: bool | None = None
    referral: str = ""
    prediction_set: Sequence[str] | None = None
    distance: float | None = None
    p_value: float | None = None
    outside_training_distribution: bool | None = None
    statistics: ImageStatistics | None = None
    site: str = ""
    device: str = ""
    age_group: str = ""
    refusal_reason: str = ""
    sequence: int = 0

    def __post_init__(self) -> None:
        check_hex("row_id", self.row_id, 32)
        check_hex("model_key", self.model_key, 64)
        for name in ("preprocessing_sha256", "pixel_sha256"):
            if getattr(self, name):
                check_hex(name, getattr(self, name), 64)
        for name in _TEXT_FIELDS:
            check_text(name, getattr(self, name))
        if bool(self.refusal_reason) == bool(self.predicted):
            raise _wrong(
                "refusal_reason", "and predicted: exactly one must be given", "a row is scored or refused"
            )
        if self.route not in (PREDICT, EXPLAIN):
            raise _wrong("route", f"{self.route!r} is unknown", f"one of {PREDICT}, {EXPLAIN}")
        if not 0 <= self.position < 2**31:
            raise _wrong("position", f"{self.position} is out of range", "number the images of a request from 0")
        for name in _NUMBER_FIELDS:
            _check_number(name, getattr(self, name))
        for probability in (*self.probabilities.values(), *self.calibrated_probabilities.values()):
            _check_number("a probability", probability)

    def columns(self) -> dict[str, Any]:
        """Return column -> value as the database holds it; unknown values are None, and `sequence` is left out."""
        values: dict[str, Any] = {
            "row_id": self.row_id, "request_id": self.request_id, "position": self.position, "route": self.route,
            "time": time_text(self.time), "dermkit_version": self.dermkit_version, "model_key": self.model_key,
            "probabilities": _json_or_none(dict(self.probabilities)),
            "calibrated_probabilities": _json_or_none(dict(self.calibrated_probabilities)),
            "positive": _yes_no(self.positive),
            "prediction_set": None if self.prediction_set is None else canonical_json(list(self.prediction_set)),
            "outside_training_distribution": _yes_no(self.outside_training_distribution),
        }  # fmt: skip
        values |= {name: getattr(self, name) or None for name in _OPTIONAL_TEXT_FIELDS}
        values |= {name: _plain(getattr(self, name)) for name in _NUMBER_FIELDS}
        statistics = dict.fromkeys(STATISTIC_COLUMNS) if self.statistics is None else asdict(self.statistics)
        return values | {name: _plain(value) for name, value in statistics.items()}

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """Return the row of a mapping as `columns` gives it; keys of the chain are ignored."""
        size = columns.get("width")
        plain_fields: dict[str, Any] = {name: columns[name] or "" for name in _OPTIONAL_TEXT_FIELDS}
        plain_fields |= {name: columns[name] for name in (*_REQUIRED_FIELDS, *_NUMBER_FIELDS)}
        return cls(
            time=parse_time(columns["time"]),
            probabilities=json.loads(columns["probabilities"] or "{}"),
            calibrated_probabilities=json.loads(columns["calibrated_probabilities"] or "{}"),
            positive=_is_yes(columns["positive"]),
            prediction_set=None
            if columns["prediction_set"] is None
            else tuple(json.loads(columns["prediction_set"])),
            outside_training_distribution=_is_yes(columns["outside_training_distribution"]),
            statistics=None
            if size is None
            else ImageStatistics(**{name: columns[name] for name in STATISTIC_COLUMNS}),
            sequence=columns.get("sequence") or 0,
            **plain_fields,
        )


@dataclass(frozen=True, kw_only=True)
class OutcomeRow:
    """What became known of an image later: its diagnosis (`outcome`), or what the reviewer decided (`override`).

    prediction_id: row_id of a prediction, "" where pixel_sha256 alone names the image. diagnosis: a class of the model
    or any diagnosis. source: how it is known, such as "histopathology". observed: when it became known. time: when it
    was written. A correction is a new row; the one observed last holds.
    """

    kind: str
    prediction_id: str = ""
    pixel_sha256: str = ""
    diagnosis: str
    source: str
    observed: datetime
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    sequence: int = 0

    def __post_init__(self) -> None:
        if self.kind not in OUTCOME_KINDS:
            raise _wrong("kind", f"{self.kind!r} is unknown", f"one of {', '.join(OUTCOME_KINDS)}")
        if not self.prediction_id and not self.pixel_sha256:
            raise _wrong("prediction_id", "and pixel_sha256 are both empty", "give one of them")
        if self.prediction_id:
            check_hex("prediction_id", self.prediction_id, 32)
        if self.pixel_sha256:
            check_hex("pixel_sha256", self.pixel_sha256, 64)
        for name in ("diagnosis", "source"):
            check_text(name, getattr(self, name))
            if not getattr(self, name).strip():
                raise _wrong(name, "is empty", "say it in a few words")

    def columns(self) -> dict[str, Any]:
        """Return column -> value as the database holds it. The id is of what is said: the same is written once."""
        values = {
            "kind": self.kind, "prediction_id": self.prediction_id or None, "pixel_sha256": self.pixel_sha256 or None,
            "diagnosis": self.diagnosis, "source": self.source, "observed": time_text(self.observed),
        }  # fmt: skip
        row_id = uuid.uuid5(_OUTCOME_IDS, canonical_json(values)).hex
        return {"row_id": row_id, "time": time_text(self.time), **values}

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """Return the row of a mapping as `columns` gives it."""
        return cls(
            kind=columns["kind"], prediction_id=columns["prediction_id"] or "",
            pixel_sha256=columns["pixel_sha256"] or "", diagnosis=columns["diagnosis"], source=columns["source"],
            observed=parse_time(columns["observed"]), time=parse_time(columns["time"]), sequence=columns["sequence"],
        )  # fmt: skip


STATISTIC_COLUMNS = tuple(entry.name for entry in fields(ImageStatistics))
_REQUIRED_FIELDS = ("row_id", "request_id", "position", "route", "dermkit_version", "model_key")
_OPTIONAL_TEXT_FIELDS = (
    "preprocessing_sha256", "pixel_sha256", "predicted", "operating_point", "referral", *GROUP_FIELDS,
    "refusal_reason",
)  # fmt: skip
_TEXT_FIELDS = (
    "request_id", "dermkit_version", "predicted", "operating_point", "referral", *GROUP_FIELDS, "refusal_reason",
)  # fmt: skip
_NUMBER_FIELDS = ("threshold", "malignant_probability", "distance", "p_value")
_OUTCOME_IDS = uuid.UUID("6a0f2b3e-5d0c-5b5e-9c53-0f3e5a1f7d11")
"""Name space of the ids of outcomes."""


def check_hex(name: str, text: str, length: int) -> None:
    """Raise `UsageError` where a text is not so many lower-case hex digits."""
    if not isinstance(text, str) or len(text) != length or set(text) - _HEX:
        raise _wrong(name, f"is not {length} lower-case hex digits", "give the value as dermkit wrote it")


def check_text(name: str, text: str) -> None:
    """Raise `UsageError` for a text that is too long, or has characters that move a cursor or break a line."""
    if not isinstance(text, str) or len(text) > MAX_TEXT_LENGTH:
        raise _wrong(name, f"is not a text of at most {MAX_TEXT_LENGTH} characters", "shorten it")
    if text != printable(text) or "\n" in text or "\t" in text:
        raise _wrong(name, "has control characters or line breaks", "leave them out")


def _check_number(name: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise _wrong(name, f"is {value}", "the log holds finite numbers alone; None = unknown")


def _wrong(name: str, problem: str, remedy: str) -> UsageError:
    return UsageError(f"prediction log: {name} {problem}", outcome="nothing was written for it", remedy=remedy)


def _plain(value: float | None) -> float | int | None:
    """Return a number as the database gives it back: SQLite forgets the sign of zero."""
    return value if value is None or isinstance(value, int) else float(value) + 0.0


def _json_or_none(value: Mapping[str, float]) -> str | None:
    return canonical_json({name: _plain(float(number)) for name, number in value.items()}) if value else None


def _yes_no(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _is_yes(text: str | None) -> bool | None:
    return None if text is None else text == "yes"
