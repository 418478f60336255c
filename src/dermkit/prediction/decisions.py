"""What validation settled, as a prediction shows it: decided.csv, what predict.json and the sheets say of it.

The arrays are made by `metrics.applied`; here they become words, and what a person asks for becomes a choice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermkit.data.manifest import LesionClass
from dermkit.errors import UsageError
from dermkit.files import write_rows
from dermkit.metrics.decisions.apply import ActivePolicy, PolicyOutput, select
from dermkit.metrics.stats.arrays import Floats

if TYPE_CHECKING:
    from dermkit.metrics.decisions.policy import DecisionPolicy
    from dermkit.metrics.decisions.thresholds import Threshold

DECISIONS_FILE = "decided.csv"
GUARANTEE_SCOPE = (
    "Promises hold for images drawn like the validation images (same cameras, same kind of patients, lesions chosen "
    "the same way) and for all of them, those that are referred included. The validation images also chose the epoch, "
    "so they can be a little too good."
)
NO_POLICY_TEXT = "the model settled nothing on validation images"
_NO_CALL_TEXT = "no call was made: no operating point is promised (--at names one)"
_NO_POINT_TEXT = "no call was made: the model settled no operating point"
_SEPARATOR = "; "
_CHUNK_ROWS = 1024
"""Images that are decided at once: memory does not grow with their number."""

_ScoredRow = tuple[str, str, Sequence[str]]
"""One scored image: image_id, path, and its probabilities as predictions.csv holds them."""


@dataclass
class DecisionCounts:
    """What became of the images. at: the operating point that said positive, "" for none; refers: some may be referred.

    sizes: of the sets of classes. cautions: what a person should know before believing the calls. no_call: why no
    image was called positive or negative, "" where they were.
    """

    operating_point: str
    has_referral: bool
    warnings: tuple[str, ...]
    no_call_reason: str
    n_positive: int = 0
    n_referred: int = 0
    set_sizes: Counter[int] = field(default_factory=Counter)

    def add(self, policy: ActivePolicy, output: PolicyOutput) -> None:
        """Count some more images."""
        if policy.point_index is not None:
            self.n_positive += int(output.is_positive[:, policy.point_index].sum())
        self.n_referred += int((~output.is_answered).sum())
        self.set_sizes.update(output.prediction_sets.sum(axis=1).tolist())

    def __str__(self) -> str:
        call_text = self.no_call_reason or f"{self.n_positive} positive at {self.operating_point}"
        return f"{call_text}, {self.n_referred} referred" if self.has_referral else call_text


# What is asked for ------------------------------------------------------------------------------------------------


def select_policy(
    fitted_policy: "DecisionPolicy | None",
    classes: Sequence[LesionClass],
    *,
    target: str | None = None,
    coverage: float | None = None,
) -> ActivePolicy | None:
    """Return what is applied, as `--at` and `--refer` ask for it; None where the model settled nothing.

    at: such as "sensitivity=.95"; None = the first operating point whose promise is kept. refer: share of images to
    answer. Raises `UsageError` for what was not settled, and lists what was.
    """
    if fitted_policy is None:
        if target is not None or coverage is not None:
            option = f"--at {target}" if target is not None else f"--refer {coverage:g}"
            raise UsageError(
                f"{option}: {NO_POLICY_TEXT}, so there is nothing to apply",
                remedy="leave it out, or let `dermkit evaluate RUN` settle it and use that run's model",
            )
        return None
    is_malignant = np.array([entry.malignancy == "malignant" for entry in classes])
    parsed_target = None if target is None else _parse_target(target, fitted_policy)
    if coverage is not None and not any(
        abs(entry.target_coverage - coverage) < 1e-9 for entry in fitted_policy.referral_thresholds
    ):
        raise _no_coverage_error(coverage, fitted_policy)
    try:
        return select(fitted_policy, is_malignant, target=parsed_target, coverage=coverage)
    except LookupError:
        raise _no_point_error(target or "", fitted_policy) from None


def _parse_target(text: str, policy: "DecisionPolicy") -> tuple[str, float]:
    """Read "sensitivity=.95" or "sensitivity 0.95"."""
    rate, _, number = text.strip().replace("=", " ").partition(" ")
    try:
        return rate, float(number)
    except ValueError:
        raise _no_point_error(text, policy) from None


def _no_point_error(text: str, policy: "DecisionPolicy") -> UsageError:
    if not policy.operating_points:
        return UsageError(
            f"--at {text!r}: this model settled no operating point: its class table or its validation images have no "
            "two sides, malignant and other",
            remedy="leave --at out",
        )
    available = _SEPARATOR.join(
        f"{point_name(rate, point)} ({guarantee_text(rate, point)})" for rate, point in policy.operating_points
    )
    rate, point = policy.operating_points[0]
    return UsageError(
        f"--at {text!r}: this model settled no such operating point. It settled: {available}",
        remedy=f'one of these, such as --at "{rate}={point.target:g}"',
    )


def _no_coverage_error(coverage: float, policy: "DecisionPolicy") -> UsageError:
    if not policy.referral_thresholds:
        return UsageError(
            f"--refer {coverage:g}: this model does not hold from which confidence an image is "
            f"answered: it was settled "
            "by an older version",
            remedy="leave --refer out, or let `dermkit evaluate RUN` settle it anew and use that run's model",
        )
    available = ", ".join(f"{threshold.target_coverage:g}" for threshold in policy.referral_thresholds)
    return UsageError(
        f"--refer {coverage:g}: no confidence was settled for that share of answered images",
        remedy=f"one of {available}",
    )


# In words ---------------------------------------------------------------------------------------------------------


def point_name(rate: str, point: "Threshold") -> str:
    """Return an operating point's name: its wish."""
    return f"{rate} {point.target:g}"


def guarantee_text(rate: str, point: "Threshold") -> str:
    """Return what an operating point promises, and on how many images."""
    group_name = "malignant" if rate == "sensitivity" else "other"
    sample_text = f"{point.n} independent {group_name} validation image{'s' if point.n > 1 else ''}"
    if not point.guaranteed:
        return f"not promised: {sample_text}, too few"
    return f"promised with {format_percent(point.confidence)} confidence, on {sample_text}"


def format_percent(fraction: float) -> str:
    """Return a share as whole percent."""
    return f"{100 * fraction:.0f} %"


def policy_warnings(policy: ActivePolicy) -> tuple[str, ...]:
    """Return what a person should know before believing the calls."""
    if policy.point_index is not None:
        rate, point = policy.policy.operating_points[policy.point_index]
        return () if point.guaranteed else (f"{point_name(rate, point)} is {guarantee_text(rate, point)}",)
    if not policy.policy.operating_points:
        return ()
    point_names = _SEPARATOR.join(point_name(rate, point) for rate, point in policy.policy.operating_points)
    return (f"{_NO_CALL_TEXT}. Settled, but without a promise for want of validation images: {point_names}",)


def no_call_reason(policy: ActivePolicy) -> str:
    """Return why no image is called positive or negative, "" where they are: silence would read as a negative."""
    if policy.point_index is not None:
        return ""
    return _NO_CALL_TEXT if policy.policy.operating_points else _NO_POINT_TEXT


# decided.csv ------------------------------------------------------------------------------------------------------


def decision_columns(policy: ActivePolicy, classes: Sequence[LesionClass]) -> tuple[str, ...]:
    """Return the columns of decided.csv: what was decided first, then the numbers behind it.

    Those about malignancy are there where the class table has two sides. The sum is not called p_malignant: a class
    may have that name.
    """
    point_columns = tuple(
        f"positive_at_{point_name(*entry).replace(' ', '_')}" for entry in policy.policy.operating_points
    )
    return (
        "image_id", "path", "predicted", "confidence", "answer",
        *(("positive", "malignant_probability") if policy.has_both_sides else ()),
        "classes", "set_size", *point_columns, *(f"p_{entry.name}" for entry in classes),
    )  # fmt: skip


def write_decisions(
    path: Path, policy: ActivePolicy, classes: Sequence[LesionClass], scored_rows: Iterable[_ScoredRow]
) -> DecisionCounts:
    """Write decided.csv, some rows at a time; returns what was decided, counted."""
    operating_point = (
        "" if policy.point_index is None else point_name(*policy.policy.operating_points[policy.point_index])
    )
    counts = DecisionCounts(
        operating_point, policy.referral is not None, policy_warnings(policy), no_call_reason(policy)
    )
    write_rows(path, decision_columns(policy, classes), _decision_rows(policy, classes, scored_rows, counts))
    return counts


def _decision_rows(
    policy: ActivePolicy, classes: Sequence[LesionClass], scored_rows: Iterable[_ScoredRow], counts: DecisionCounts
) -> Iterator[tuple[object, ...]]:
    remaining = iter(scored_rows)
    while chunk := list(islice(remaining, _CHUNK_ROWS)):
        output = policy.apply(_to_probabilities(cells for _, _, cells in chunk))
        counts.add(policy, output)
        for row, (image_id, path, _) in enumerate(chunk):
            yield (image_id, path, *_decision_cells(policy, classes, output, row))


def _to_probabilities(cells: Iterable[Sequence[str]]) -> Floats:
    """Return (N, K) probabilities from the cells of predictions.csv, to the same bits."""
    return np.array(list(cells), dtype=np.float64)


def _decision_cells(
    policy: ActivePolicy, classes: Sequence[LesionClass], output: PolicyOutput, row: int
) -> Iterator[object]:
    yield classes[int(output.y_pred[row])].name
    yield float(output.confidence[row])
    yield "" if policy.referral is None else "answered" if output.is_answered[row] else "referred"
    if policy.has_both_sides:
        yield "" if policy.point_index is None else _yes_no(output.is_positive[row, policy.point_index])
        yield float(output.p_malignant[row])
    set_names = _set_names(classes, output, row)
    yield _SEPARATOR.join(set_names)
    yield len(set_names)
    yield from map(_yes_no, output.is_positive[row])
    yield from output.probabilities[row].tolist()


def _yes_no(is_positive: np.bool_) -> str:
    return "yes" if is_positive else "no"


def _set_names(classes: Sequence[LesionClass], output: PolicyOutput, row: int) -> list[str]:
    """Return the classes of one image's set."""
    return [
        lesion_class.name
        for lesion_class, is_in_set in zip(classes, output.prediction_sets[row], strict=True)
        if is_in_set
    ]


# predict.json -----------------------------------------------------------------------------------------------------


def describe_policy(
    policy: ActivePolicy | None, classes: Sequence[LesionClass], counts: DecisionCounts | None
) -> dict[str, Any]:
    """Return what predict.json says was applied."""
    if policy is None or counts is None:
        return {"file": None, "why": NO_POLICY_TEXT}
    policy_fields, class_names = policy.policy.as_dict(), [lesion_class.name for lesion_class in classes]
    rule, point, referral = policy.policy.conformal_rule, None, None
    if policy.point_index is not None:
        reason = "named by --at" if policy.is_requested else "the first whose promise is kept"
        point = {**policy_fields["operating_points"][policy.point_index], "chosen": reason}
    if policy.referral is not None:
        referral = {**policy.referral.as_dict(), "referred": counts.n_referred}
    return {
        "file": DECISIONS_FILE,
        "validation_images": policy.policy.n_validation,
        "calibration": policy_fields["calibration"],
        "operating_point": point,
        "positive": counts.n_positive if point else None,
        "no_call": counts.no_call_reason or None,
        "operating_points": policy_fields["operating_points"],
        "sets": {
            "promised": 1 - rule.alpha,
            "least": dict(zip(class_names, rule.min_probability.tolist(), strict=True)),
            "n": dict(zip(class_names, rule.n_images.tolist(), strict=True)),
            "in_every_set": [
                name
                for name, min_probability in zip(class_names, rule.min_probability, strict=True)
                if min_probability <= 0
            ],
            "sizes": [counts.set_sizes[size] for size in range(len(class_names) + 1)],
        },
        "refer": referral,
        "cautions": list(counts.warnings),
        "holds_for": GUARANTEE_SCOPE,
    }


# Sheets -----------------------------------------------------------------------------------------------------------

_RED, _GREEN, _AMBER = "#b3261e", "#2b6a4d", "#8a6100"
_COLOUR_BY_MALIGNANCY = {"malignant": _RED, "benign": _GREEN, "indeterminate": _AMBER}


def sheet_legend(policy: ActivePolicy | None) -> str:
    """Return what the tiles of a sheet mean."""
    if policy is None:
        return "Probabilities as the net gave them, not calibrated. Border: of the most probable class."
    kind, n = policy.policy.calibration.kind, policy.policy.n_validation
    uncalibrated_text = "Probabilities as the net gave them (validation asked for no calibration)."
    lines = [uncalibrated_text if kind == "none" else f"Probabilities calibrated on {n} validation images."]
    if policy.point_index is not None:
        rate, point = policy.policy.operating_points[policy.point_index]
        lines.append(
            f"Positive (red), else negative (green): at {point_name(rate, point)}, {guarantee_text(rate, point)}."
        )
    else:
        reason = no_call_reason(policy)
        lines.append(f"{reason[0].upper()}{reason[1:]}. Border: of the most probable class.")
    if policy.referral is not None:
        lines.append(
            f"Referred (amber): less sure than {policy.referral.min_confidence:.2f}, "
            f"which {format_percent(policy.referral.validation_coverage)} of the validation images reached."
        )
    set_coverage = format_percent(1 - policy.policy.conformal_rule.alpha)
    return " ".join(
        [
            *lines,
            f"Set: classes that hold the true one, in {set_coverage} of the images of each class; "
            "shown unless it is the predicted class alone.",
        ]
    )


def tile_caption(
    policy: ActivePolicy | None, classes: Sequence[LesionClass], cells: Sequence[str]
) -> tuple[list[str], str]:
    """Return the lines below one image of a sheet and the colour of its border, from its cells of predictions.csv."""
    raw_probabilities = _to_probabilities([cells])
    output = None if policy is None else policy.apply(raw_probabilities)
    p = raw_probabilities[0] if output is None else output.probabilities[0]
    order = p.argsort()[::-1][:2].tolist()
    lines, colour = (
        [f"{classes[k].name} {p[k]:.2f}" for k in order],
        _COLOUR_BY_MALIGNANCY[classes[order[0]].malignancy],
    )
    if policy is None or output is None:
        return lines, colour
    set_names, call = _set_names(classes, output, 0), ""
    if policy.point_index is not None:
        is_positive = bool(output.is_positive[0, policy.point_index])
        call, colour = ("POSITIVE", _RED) if is_positive else ("negative", _GREEN)
        if not {*np.flatnonzero(policy.malignant_classes).tolist()} <= {*order}:
            lines.append(f"malignant in all {output.p_malignant[0]:.2f}")
    # A set of one class need not hold the predicted one: that is when a reader most needs to see it.
    if set_names != [classes[order[0]].name]:
        lines.append(f"set: {_set_text(set_names, len(classes))}")
    if not output.is_answered[0]:
        call, colour = f"REFERRED ({call.lower()})" if call else "REFERRED", _AMBER
    return [call, *lines] if call else lines, colour


def _set_text(set_names: Sequence[str], n_classes: int) -> str:
    if not set_names:
        return "no class"
    return f"all {n_classes} classes" if len(set_names) == n_classes else ", ".join(set_names)
