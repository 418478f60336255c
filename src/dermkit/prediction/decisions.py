"""The decision policy applied to predictions: decisions.csv, the policy in predict.json, captions of the sheets.

The numbers come from `metrics.decisions.apply`; this module selects the operating point and writes sentences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermkit.data.manifest import LesionClass
from dermkit.errors import UsageError
from dermkit.files import write_rows
from dermkit.metrics.decisions.apply import ActivePolicy, PolicyOutput, find_broken, parse_target, select
from dermkit.metrics.decisions.guarantees import BrokenGuarantee
from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.prediction.inputs import ImageRef, utf8_safe
from dermkit.render.cells import defused
from dermkit.runs.sentences import plain_text
from dermkit.runs.verdict import guarantee_fragments

if TYPE_CHECKING:
    from dermkit.metrics.decisions.operating_points import OperatingPoint
    from dermkit.metrics.decisions.policy import DecisionPolicy

DECISIONS_FILE = "decisions.csv"
OLD_DECISIONS_FILE = "decided.csv"
"""Its name before predict.json format 3; removed from a folder that is written again."""
GUARANTEE_SCOPE = (
    "Guarantees hold for images drawn like the validation images (same cameras, same kind of patients, lesions chosen "
    "the same way) and for all of them, those that are referred included. The validation images also selected the "
    "epoch, so the guarantees can be slightly optimistic."
)
NO_POLICY_TEXT = "the model has no decision policy: it was not evaluated on validation images"
_NO_GUARANTEE_TEXT = "no decision was made: no operating point is guaranteed (--target names one)"
_NO_POINT_TEXT = "no decision was made: the model has no operating point"
OUTSIDE_COLUMN = "outside_training_distribution"
_SEPARATOR = "; "


@dataclass(frozen=True)
class DecisionCounts:
    """Counts of the decisions on a list of images.

    operating_point: the one that decides positive or negative, "" for none. has_referral: whether images may be
    referred. warnings: what limits the decisions. no_call_reason: why no image was called positive or negative, ""
    where they were. set_sizes: number of images by size of their prediction set, 0 to K classes. is_point_broken: the
    test images broke the guarantee of the operating point. n_withheld: images outside the training distribution that
    get no answer; they are in none of the other counts.
    """

    operating_point: str
    has_referral: bool
    warnings: tuple[str, ...]
    no_call_reason: str
    n_positive: int
    n_referred: int
    set_sizes: tuple[int, ...]
    is_point_broken: bool = False
    n_withheld: int = 0

    def __str__(self) -> str:
        broken_text = ", whose guarantee the test images broke" if self.is_point_broken else ""
        call_text = self.no_call_reason or f"{self.n_positive} positive at {self.operating_point}{broken_text}"
        text = f"{call_text}, {self.n_referred} referred" if self.has_referral else call_text
        return f"{text}, {self.n_withheld} withheld" if self.n_withheld else text


# Selecting the operating point and the referral threshold ---------------------------------------------------------


def select_policy(
    fitted_policy: "DecisionPolicy | None",
    classes: Sequence[LesionClass],
    *,
    target: str | None = None,
    coverage: float | None = None,
    broken: tuple[BrokenGuarantee, ...] = (),
) -> ActivePolicy | None:
    """Return the policy to apply, None where the model has none.

    target: an operating point, such as "sensitivity=.95"; None = the first that was guaranteed on validation.
    coverage: fraction of images to answer, the others are referred; None = all. broken: guarantees that the test images
    broke. Raises `UsageError` for what the policy does not hold, and lists what it holds.
    """
    if fitted_policy is None:
        if target is not None or coverage is not None:
            option = f"--target {target}" if target is not None else f"--coverage {coverage:g}"
            raise UsageError(
                f"{option}: {NO_POLICY_TEXT}, so there is nothing to apply",
                remedy="leave it out, or let `dermkit evaluate RUN` fit a policy and use that run's model",
            )
        return None
    is_malignant = np.array([entry.malignancy == "malignant" for entry in classes])
    try:
        parsed_target = None if target is None else parse_target(target)
    except ValueError:
        raise _no_point_error(target or "", fitted_policy, broken) from None
    if coverage is not None and not any(
        abs(entry.target_coverage - coverage) < 1e-9 for entry in fitted_policy.referral_thresholds
    ):
        raise _no_coverage_error(coverage, fitted_policy)
    try:
        return replace(select(fitted_policy, is_malignant, target=parsed_target, coverage=coverage), broken=broken)
    except LookupError:
        raise _no_point_error(target or "", fitted_policy, broken) from None


def _no_point_error(text: str, policy: "DecisionPolicy", broken: tuple[BrokenGuarantee, ...]) -> UsageError:
    if not policy.operating_points:
        return UsageError(
            f"--target {text!r}: this model has no operating point: its class table or its validation images are not "
            "both malignant and other",
            remedy="leave --target out",
        )
    available = _SEPARATOR.join(
        f"{point.name} ({guarantee_text(point, find_broken(broken, point.name))})"
        for point in policy.operating_points
    )
    point = policy.operating_points[0]
    return UsageError(
        f"--target {text!r}: this model has no such operating point. It has: {available}",
        remedy=f'one of these, such as --target "{point.rate}={point.target:g}"',
    )


def _no_coverage_error(coverage: float, policy: "DecisionPolicy") -> UsageError:
    if not policy.referral_thresholds:
        return UsageError(
            f"--coverage {coverage:g}: this model has no referral thresholds: its policy was fitted by an older "
            "version",
            remedy="leave --coverage out, or let `dermkit evaluate RUN` fit the policy again and use that run's model",
        )
    available = ", ".join(f"{threshold.target_coverage:g}" for threshold in policy.referral_thresholds)
    return UsageError(
        f"--coverage {coverage:g}: this model has no referral threshold for that coverage",
        remedy=f"one of {available}",
    )


# Sentences --------------------------------------------------------------------------------------------------------


def guarantee_text(point: "OperatingPoint", broken: BrokenGuarantee | None = None) -> str:
    """Return whether an operating point is guaranteed, with what confidence and on how many images.

    broken: what the test images showed of it, None where they did not break its guarantee.
    """
    if broken is not None:
        low, high = (f"{100 * bound:.1f}" for bound in broken.ci95)
        return (
            f"guarantee broken: {100 * broken.value:.1f} % on the test images, 95 % interval {low} to {high} %, "
            f"n = {broken.n}"
        )
    group_name = "malignant" if point.rate == "sensitivity" else "other"
    sample_text = f"{point.n} independent {group_name} validation image{'s' if point.n > 1 else ''}"
    if not point.guaranteed:
        return f"not guaranteed: {sample_text}, too few"
    return f"guaranteed with {format_percent(point.confidence)} confidence, on {sample_text}"


def format_percent(fraction: float) -> str:
    """Return a fraction as whole percent."""
    return f"{100 * fraction:.0f} %"


def broken_sentences(policy: ActivePolicy) -> tuple[str, ...]:
    """Return a sentence for each guarantee that the test images broke: to be read before any decision."""
    return tuple(plain_text(guarantee_fragments(broken)) for broken in policy.broken)


def policy_warnings(policy: ActivePolicy) -> tuple[str, ...]:
    """Return the warnings about the operating point in use."""
    if policy.point_index is not None:
        point = policy.policy.operating_points[policy.point_index]
        return () if point.guaranteed else (f"{point.name} is {guarantee_text(point)}",)
    if not policy.policy.operating_points:
        return ()
    point_names = _SEPARATOR.join(point.name for point in policy.policy.operating_points)
    return (f"{_NO_GUARANTEE_TEXT}. Fitted, but without a guarantee for too few validation images: {point_names}",)


def ensemble_warnings(passes: Sequence[int], note: str = "", *, is_tested: bool = False) -> tuple[str, ...]:
    """Return what limits the decisions of a model of several nets; nothing of one. passes: of each net, an image.

    note: what an ensemble of recipes says of itself, "" = nets of a cross-validation. is_tested: whether their mean
    has scored test images.
    """
    if len(passes) == 1:
        return ()
    if note:
        return (f"the model is an ensemble of {len(passes)} nets ({sum(passes)} passes an image): {note}",)
    test_text = (
        "the test images, which the mean scored, show what it reaches"
        if is_tested
        else "the mean itself was tested on no image"
    )
    return (
        f"the model is the mean of {len(passes)} nets of a cross-validation ({sum(passes)} passes an image): what its "
        f"policy guarantees was fitted on images that single nets had scored, and {test_text}",
    )


def no_call_reason(policy: ActivePolicy) -> str:
    """Return why no image is called positive or negative, "" where they are: silence would read as a negative."""
    if policy.point_index is not None:
        return ""
    return _NO_GUARANTEE_TEXT if policy.policy.operating_points else _NO_POINT_TEXT


# decisions.csv ----------------------------------------------------------------------------------------------------


def decision_columns(policy: ActivePolicy, classes: Sequence[LesionClass]) -> tuple[str, ...]:
    """Return the columns of decisions.csv: decisions first, then the numbers behind them.

    Those about malignancy are there where the class table has malignant and other classes. Their sum is not called
    p_malignant, because a class may have that name.
    """
    point_columns = tuple(
        f"positive_at_{point.name.replace(' ', '_')}" for point in policy.policy.operating_points
    )
    return (
        "image_id", "path", "predicted", "confidence", "referral", OUTSIDE_COLUMN,
        *(("positive", "malignant_probability") if policy.has_both_sides else ()),
        "prediction_set", "set_size", *point_columns, *(f"p_{entry.name}" for entry in classes),
    )  # fmt: skip


def write_decisions(
    path: Path,
    policy: ActivePolicy,
    classes: Sequence[LesionClass],
    images: Sequence[ImageRef],
    p: Floats,
    *,
    is_outside: Bools | None = None,
    withholds_outside: bool = False,
    is_raw: bool = False,
) -> DecisionCounts:
    """Write decisions.csv of scored images. p: their probabilities as the net gave them, (N, K) float64.

    is_outside: which lie outside the training distribution, (N,), None where the model cannot tell. withholds_outside:
    these get no answer.
    """
    output, columns = policy.apply(p), decision_columns(policy, classes)
    is_withheld = np.zeros(len(p), dtype=bool) if is_outside is None or not withholds_outside else is_outside
    outside_cells = [""] * len(p) if is_outside is None else [_yes_no(one) for one in is_outside]
    rows = (
        (
            utf8_safe(image.image_id), utf8_safe(image.path),
            *(_withheld_cells(columns) if is_withheld[row] else
              _decision_cells(policy, classes, output, row, outside_cells[row])),
        )
        for row, image in enumerate(images)
    )  # fmt: skip
    write_rows(path, columns, rows if is_raw else map(defused, rows))
    point_index, is_told = policy.point_index, ~is_withheld
    set_sizes = np.bincount(output.prediction_sets[is_told].sum(axis=1), minlength=len(classes) + 1)
    return DecisionCounts(
        operating_point="" if point_index is None else policy.policy.operating_points[point_index].name,
        has_referral=policy.referral is not None,
        warnings=policy_warnings(policy),
        no_call_reason=no_call_reason(policy),
        n_positive=0 if point_index is None else int(output.is_positive[is_told, point_index].sum()),
        n_referred=int((~output.is_answered[is_told]).sum()),
        set_sizes=tuple(set_sizes.tolist()),
        is_point_broken=policy.broken_point is not None,
        n_withheld=int(is_withheld.sum()),
    )


def _withheld_cells(columns: Sequence[str]) -> list[str]:
    """Return the cells of an image that gets no answer, after its id and path: all but two are empty."""
    return [{"referral": "withheld", OUTSIDE_COLUMN: "yes"}.get(name, "") for name in columns[2:]]


def _decision_cells(
    policy: ActivePolicy, classes: Sequence[LesionClass], output: PolicyOutput, row: int, outside: str
) -> Iterator[object]:
    yield classes[int(output.y_pred[row])].name
    yield float(output.confidence[row])
    yield "" if policy.referral is None else "answered" if output.is_answered[row] else "referred"
    yield outside
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
    """Return the classes of one image's prediction set."""
    return [
        lesion_class.name
        for lesion_class, is_in_set in zip(classes, output.prediction_sets[row], strict=True)
        if is_in_set
    ]


# predict.json -----------------------------------------------------------------------------------------------------


def describe_policy(
    policy: ActivePolicy | None, classes: Sequence[LesionClass], counts: DecisionCounts | None
) -> dict[str, Any]:
    """Return the entry `policy` of predict.json: the policy in use, its fit, and counts of its results."""
    if policy is None or counts is None:
        return {"file": None, "reason": NO_POLICY_TEXT}
    policy_fields, class_names = policy.policy.as_dict(), [lesion_class.name for lesion_class in classes]
    rule, point, referral = policy.policy.conformal_rule, None, None
    if policy.point_index is not None:
        reason = "named by --target" if policy.is_requested else "the first guaranteed on validation"
        point = {**policy.policy.operating_points[policy.point_index].as_dict(), "selected_by": reason}
    if policy.referral is not None:
        referral = {**policy.referral.as_dict(), "n_referred": counts.n_referred}
    min_probability = dict(zip(class_names, rule.min_probability.tolist(), strict=True))
    return {
        "file": DECISIONS_FILE,
        "n_validation_images": policy.policy.n_validation,
        "calibration": policy_fields["calibration"],
        "operating_point": point,
        "n_positive": counts.n_positive if point else None,
        "why_no_call": counts.no_call_reason or None,
        "operating_points": policy_fields["operating_points"],
        "broken_guarantees": [broken.as_dict() for broken in policy.broken],
        "conformal": {
            "coverage_target": 1 - rule.alpha,
            "min_probability": min_probability,
            "n_images": dict(zip(class_names, rule.n_images.tolist(), strict=True)),
            "always_included": [name for name, minimum in min_probability.items() if minimum <= 0],
            "set_sizes": list(counts.set_sizes),
        },
        "referral": referral,
        "warnings": [*broken_sentences(policy), *counts.warnings],
        "scope": GUARANTEE_SCOPE,
    }


# Sheets -----------------------------------------------------------------------------------------------------------

_RED, _GREEN, _AMBER = "#b3261e", "#2b6a4d", "#8a6100"
_COLOUR_BY_MALIGNANCY = {"malignant": _RED, "benign": _GREEN, "indeterminate": _AMBER}


def sheet_legend(policy: ActivePolicy | None, n_nets: int = 1) -> str:
    """Return the legend of a sheet: its colours and words. n_nets: that the model is the mean of."""
    if policy is None:
        return "Probabilities as the net gave them, not calibrated. Border: of the most probable class."
    kind, n = policy.policy.calibration.kind, policy.policy.n_validation
    uncalibrated_text = (
        "Probabilities as the net gave them (calibration would not have improved them on validation images)."
    )
    lines = [uncalibrated_text if kind == "none" else f"Probabilities calibrated on {n} validation images."]
    if n_nets > 1:
        lines = [
            f"Probabilities: the mean of {n_nets} nets, calibrated on {n} validation images of single nets; the mean "
            "itself was not tested."
        ]
    if policy.point_index is not None:
        point = policy.policy.operating_points[policy.point_index]
        lines.append(
            f"Positive (red), else negative (green): at {point.name}, {guarantee_text(point, policy.broken_point)}."
        )
    else:
        reason = no_call_reason(policy)
        lines.append(f"{reason[0].upper()}{reason[1:]}. Border: of the most probable class.")
    if policy.referral is not None:
        lines.append(
            f"Referred to a person (amber): highest probability below {policy.referral.min_confidence:.2f}; "
            f"{format_percent(policy.referral.validation_coverage)} of the validation images reached it."
        )
    set_coverage = format_percent(1 - policy.policy.conformal_rule.alpha)
    return " ".join(
        [
            *lines,
            f"Set: classes that include the true one for {set_coverage} of the images of each class"
            f"{_broken_sets_text(policy)}; shown unless it is the predicted class alone.",
        ]
    )


def _broken_sets_text(policy: ActivePolicy) -> str:
    """Return the classes for which the test images broke the guarantee of the sets, "" for none."""
    names = [broken.class_name for broken in policy.broken if broken.rate == "coverage"]
    return f" (broken on the test images for {', '.join(names)})" if names else ""


def tile_caption(
    policy: ActivePolicy | None,
    classes: Sequence[LesionClass],
    raw_p: Floats,
    *,
    is_outside: bool = False,
    withholds_outside: bool = False,
) -> tuple[list[str], str]:
    """Return the lines below one image of a sheet and the colour of its border. raw_p: (K,), as the net gave it.

    is_outside, withholds_outside: as in `write_decisions`.
    """
    if is_outside:
        lines = [] if withholds_outside else tile_caption(policy, classes, raw_p)[0]
        return ["OUTSIDE TRAINING DATA", *(lines or ["no answer"])], _AMBER
    output = None if policy is None else policy.apply(raw_p[None])
    p = raw_p if output is None else output.probabilities[0]
    order = np.argsort(-p, kind="stable")[:2].tolist()  # of equals the first, as `predicted`
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
