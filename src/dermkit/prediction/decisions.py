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
from dermkit.metrics.decisions.apply import Applied, Chosen, choose
from dermkit.metrics.stats.arrays import Floats

if TYPE_CHECKING:
    from dermkit.metrics.decisions.policy import Decision
    from dermkit.metrics.decisions.thresholds import Threshold

FILE = "decided.csv"
HOLDS_FOR = (
    "Promises hold for images drawn like the validation images (same cameras, same kind of patients, lesions chosen "
    "the same way) and for all of them, those that are referred included. The validation images also chose the epoch, "
    "so they can be a little too good."
)
NOTHING = "the model settled nothing on validation images"
NO_CALL = "no call was made: no operating point is promised (--at names one)"
ONE_SIDED = "no call was made: the model settled no operating point"
SEPARATOR = "; "
_ROWS = 1024
"""Images that are decided at once: memory does not grow with their number."""

Item = tuple[str, str, Sequence[str]]
"""One scored image: image_id, path, and its probabilities as predictions.csv holds them."""


@dataclass
class Decided:
    """What became of the images. at: the operating point that said positive, "" for none; refers: some may be referred.

    sizes: of the sets of classes. cautions: what a person should know before believing the calls. no_call: why no
    image was called positive or negative, "" where they were.
    """

    at: str
    refers: bool
    cautions: tuple[str, ...]
    no_call: str
    positive: int = 0
    referred: int = 0
    sizes: Counter[int] = field(default_factory=Counter)

    def add(self, chosen: Chosen, applied: Applied) -> None:
        """Count some more images."""
        if chosen.point is not None:
            self.positive += int(applied.positive[:, chosen.point].sum())
        self.referred += int((~applied.answered).sum())
        self.sizes.update(applied.sets.sum(axis=1).tolist())

    def __str__(self) -> str:
        called = self.no_call or f"{self.positive} positive at {self.at}"
        return f"{called}, {self.referred} referred" if self.refers else called


# What is asked for ------------------------------------------------------------------------------------------------


def choose_for(
    decision: "Decision | None",
    classes: Sequence[LesionClass],
    *,
    at: str | None = None,
    refer: float | None = None,
) -> Chosen | None:
    """Return what is applied, as `--at` and `--refer` ask for it; None where the model settled nothing.

    at: such as "sensitivity=.95"; None = the first operating point whose promise is kept. refer: share of images to
    answer. Raises `UsageError` for what was not settled, and lists what was.
    """
    if decision is None:
        if at is not None or refer is not None:
            asked = f"--at {at}" if at is not None else f"--refer {refer:g}"
            raise UsageError(
                f"{asked}: {NOTHING}, so there is nothing to apply",
                remedy="leave it out, or let `dermkit evaluate RUN` settle it and use that run's model",
            )
        return None
    malignant = np.array([item.malignancy == "malignant" for item in classes])
    wish = None if at is None else _wish(at, decision)
    if refer is not None and not any(abs(item.share - refer) < 1e-9 for item in decision.answering):
        raise _no_share(refer, decision)
    try:
        return choose(decision, malignant, at=wish, refer=refer)
    except LookupError:
        raise _no_point(at or "", decision) from None


def _wish(text: str, decision: "Decision") -> tuple[str, float]:
    """Read "sensitivity=.95" or "sensitivity 0.95"."""
    rate, _, number = text.strip().replace("=", " ").partition(" ")
    try:
        return rate, float(number)
    except ValueError:
        raise _no_point(text, decision) from None


def _no_point(text: str, decision: "Decision") -> UsageError:
    if not decision.points:
        return UsageError(
            f"--at {text!r}: this model settled no operating point: its class table or its validation images have no "
            "two sides, malignant and other",
            remedy="leave --at out",
        )
    known = SEPARATOR.join(f"{named(rate, point)} ({promise(rate, point)})" for rate, point in decision.points)
    rate, point = decision.points[0]
    return UsageError(
        f"--at {text!r}: this model settled no such operating point. It settled: {known}",
        remedy=f'one of these, such as --at "{rate}={point.wish:g}"',
    )


def _no_share(refer: float, decision: "Decision") -> UsageError:
    if not decision.answering:
        return UsageError(
            f"--refer {refer:g}: this model does not hold from which confidence an image is answered: it was settled "
            "by an older version",
            remedy="leave --refer out, or let `dermkit evaluate RUN` settle it anew and use that run's model",
        )
    shares = ", ".join(f"{item.share:g}" for item in decision.answering)
    return UsageError(
        f"--refer {refer:g}: no confidence was settled for that share of answered images",
        remedy=f"one of {shares}",
    )


# In words ---------------------------------------------------------------------------------------------------------


def named(rate: str, point: "Threshold") -> str:
    """Return an operating point's name: its wish."""
    return f"{rate} {point.wish:g}"


def promise(rate: str, point: "Threshold") -> str:
    """Return what an operating point promises, and on how many images."""
    side = "malignant" if rate == "sensitivity" else "other"
    images = f"{point.n} independent {side} validation image{'s' if point.n > 1 else ''}"
    if not point.kept:
        return f"not promised: {images}, too few"
    return f"promised with {percent(point.confidence)} confidence, on {images}"


def percent(share: float) -> str:
    """Return a share as whole percent."""
    return f"{100 * share:.0f} %"


def cautions(chosen: Chosen) -> tuple[str, ...]:
    """Return what a person should know before believing the calls."""
    if chosen.point is not None:
        rate, point = chosen.decision.points[chosen.point]
        return () if point.kept else (f"{named(rate, point)} is {promise(rate, point)}",)
    if not chosen.decision.points:
        return ()
    listed = SEPARATOR.join(named(rate, point) for rate, point in chosen.decision.points)
    return (f"{NO_CALL}. Settled, but without a promise for want of validation images: {listed}",)


def no_call(chosen: Chosen) -> str:
    """Return why no image is called positive or negative, "" where they are: silence would read as a negative."""
    if chosen.point is not None:
        return ""
    return NO_CALL if chosen.decision.points else ONE_SIDED


# decided.csv ------------------------------------------------------------------------------------------------------


def columns(chosen: Chosen, classes: Sequence[LesionClass]) -> tuple[str, ...]:
    """Return the columns of decided.csv: what was decided first, then the numbers behind it.

    Those about malignancy are there where the class table has two sides. The sum is not called p_malignant: a class
    may have that name.
    """
    points = tuple(f"positive_at_{named(*item).replace(' ', '_')}" for item in chosen.decision.points)
    return (
        "image_id", "path", "predicted", "confidence", "answer",
        *(("positive", "malignant_probability") if chosen.two_sided else ()),
        "classes", "set_size", *points, *(f"p_{item.name}" for item in classes),
    )  # fmt: skip


def write_decided(path: Path, chosen: Chosen, classes: Sequence[LesionClass], items: Iterable[Item]) -> Decided:
    """Write decided.csv, some rows at a time; returns what was decided, counted."""
    at = "" if chosen.point is None else named(*chosen.decision.points[chosen.point])
    decided = Decided(at, chosen.answering is not None, cautions(chosen), no_call(chosen))
    write_rows(path, columns(chosen, classes), _rows(chosen, classes, items, decided))
    return decided


def _rows(
    chosen: Chosen, classes: Sequence[LesionClass], items: Iterable[Item], decided: Decided
) -> Iterator[tuple[object, ...]]:
    left = iter(items)
    while some := list(islice(left, _ROWS)):
        applied = chosen.apply(as_probabilities(cells for _, _, cells in some))
        decided.add(chosen, applied)
        for row, (image_id, path, _) in enumerate(some):
            yield (image_id, path, *_cells(chosen, classes, applied, row))


def as_probabilities(cells: Iterable[Sequence[str]]) -> Floats:
    """Return (N, K) probabilities from the cells of predictions.csv, to the same bits."""
    return np.array(list(cells), dtype=np.float64)


def _cells(chosen: Chosen, classes: Sequence[LesionClass], applied: Applied, row: int) -> Iterator[object]:
    yield classes[int(applied.predicted[row])].name
    yield float(applied.confidence[row])
    yield "" if chosen.answering is None else "answered" if applied.answered[row] else "referred"
    if chosen.two_sided:
        yield "" if chosen.point is None else _yes(applied.positive[row, chosen.point])
        yield float(applied.p_malignant[row])
    inside = _names(classes, applied, row)
    yield SEPARATOR.join(inside)
    yield len(inside)
    yield from map(_yes, applied.positive[row])
    yield from applied.probabilities[row].tolist()


def _yes(called: np.bool_) -> str:
    return "yes" if called else "no"


def _names(classes: Sequence[LesionClass], applied: Applied, row: int) -> list[str]:
    """Return the classes of one image's set."""
    return [item.name for item, held in zip(classes, applied.sets[row], strict=True) if held]


# predict.json -----------------------------------------------------------------------------------------------------


def facts(chosen: Chosen | None, classes: Sequence[LesionClass], decided: Decided | None) -> dict[str, Any]:
    """Return what predict.json says was applied."""
    if chosen is None or decided is None:
        return {"file": None, "why": NOTHING}
    settled, names = chosen.decision.as_dict(), [item.name for item in classes]
    rule, point, refer = chosen.decision.rule, None, None
    if chosen.point is not None:
        by = "named by --at" if chosen.by_name else "the first whose promise is kept"
        point = {**settled["operating_points"][chosen.point], "chosen": by}
    if chosen.answering is not None:
        refer = {**chosen.answering.as_dict(), "referred": decided.referred}
    return {
        "file": FILE,
        "validation_images": chosen.decision.n,
        "calibration": settled["calibration"],
        "operating_point": point,
        "positive": decided.positive if point else None,
        "no_call": decided.no_call or None,
        "operating_points": settled["operating_points"],
        "sets": {
            "promised": 1 - rule.alpha,
            "least": dict(zip(names, rule.least.tolist(), strict=True)),
            "n": dict(zip(names, rule.n.tolist(), strict=True)),
            "in_every_set": [name for name, least in zip(names, rule.least, strict=True) if least <= 0],
            "sizes": [decided.sizes[size] for size in range(len(names) + 1)],
        },
        "refer": refer,
        "cautions": list(decided.cautions),
        "holds_for": HOLDS_FOR,
    }


# Sheets -----------------------------------------------------------------------------------------------------------

RED, GREEN, AMBER = "#b3261e", "#2b6a4d", "#8a6100"
OF_SIDE = {"malignant": RED, "benign": GREEN, "indeterminate": AMBER}


def legend(chosen: Chosen | None) -> str:
    """Return what the tiles of a sheet mean."""
    if chosen is None:
        return "Probabilities as the net gave them, not calibrated. Border: of the most probable class."
    kind, n = chosen.decision.calibration.kind, chosen.decision.n
    own = "Probabilities as the net gave them (validation asked for no calibration)."
    lines = [own if kind == "none" else f"Probabilities calibrated on {n} validation images."]
    if chosen.point is not None:
        rate, point = chosen.decision.points[chosen.point]
        lines.append(f"Positive (red), else negative (green): at {named(rate, point)}, {promise(rate, point)}.")
    else:
        why = no_call(chosen)
        lines.append(f"{why[0].upper()}{why[1:]}. Border: of the most probable class.")
    if chosen.answering is not None:
        lines.append(
            f"Referred (amber): less sure than {chosen.answering.least:.2f}, "
            f"which {percent(chosen.answering.answered)} of the validation images reached."
        )
    promised = percent(1 - chosen.decision.rule.alpha)
    return " ".join(
        [
            *lines,
            f"Set: classes that hold the true one, in {promised} of the images of each class; "
            "shown unless it is the predicted class alone.",
        ]
    )


def caption(chosen: Chosen | None, classes: Sequence[LesionClass], cells: Sequence[str]) -> tuple[list[str], str]:
    """Return the lines below one image of a sheet and the colour of its border, from its cells of predictions.csv."""
    raw = as_probabilities([cells])
    applied = None if chosen is None else chosen.apply(raw)
    p = raw[0] if applied is None else applied.probabilities[0]
    order = p.argsort()[::-1][:2].tolist()
    lines, colour = [f"{classes[k].name} {p[k]:.2f}" for k in order], OF_SIDE[classes[order[0]].malignancy]
    if chosen is None or applied is None:
        return lines, colour
    inside, call = _names(classes, applied, 0), ""
    if chosen.point is not None:
        called = bool(applied.positive[0, chosen.point])
        call, colour = ("POSITIVE", RED) if called else ("negative", GREEN)
        if not {*np.flatnonzero(chosen.malignant).tolist()} <= {*order}:
            lines.append(f"malignant in all {applied.p_malignant[0]:.2f}")
    # A set of one class need not hold the predicted one: that is when a reader most needs to see it.
    if inside != [classes[order[0]].name]:
        lines.append(f"set: {_set_in_words(inside, len(classes))}")
    if not applied.answered[0]:
        call, colour = f"REFERRED ({call.lower()})" if call else "REFERRED", AMBER
    return [call, *lines] if call else lines, colour


def _set_in_words(inside: Sequence[str], k: int) -> str:
    if not inside:
        return "no class"
    return f"all {k} classes" if len(inside) == k else ", ".join(inside)
