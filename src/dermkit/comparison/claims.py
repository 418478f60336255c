"""Claims: published figures as a user states them, with the missing intervals and a check of their consistency.

NAME: accuracy=.4661,n=118
accuracy=.74,precision=.76,recall=.71,specificity=.75
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dermkit.comparison.published import (
    CHECKED_METRICS,
    MACRO_METRICS,
    READINGS,
    BinaryMatrix,
    PublishedFigure,
    Reading,
    are_consistent,
    compatible_matrices,
    count_and_interval,
    n_compatible_matrices,
    parse_figure,
    read_as,
)
from dermkit.errors import UsageError

COUNT_KEYS = ("n", "positives")
AVERAGES = {"binary": "of the positive class", "averaged": "as means over both classes"}
"""What precision, recall and F1 can be."""

CLAIM_USAGE = f"figures: {', '.join(CHECKED_METRICS)}; numbers of images: n, positives"
_MAX_MATRICES = 4_000_000
"""Most confusion matrices of a known size that are tried one by one; with more, bounds alone decide."""


@dataclass(frozen=True)
class Claim:
    """The published figures of one test set. n, positives: numbers of images, None if not stated."""

    name: str
    figures: tuple[PublishedFigure, ...]
    n: int | None
    positives: int | None


@dataclass(frozen=True)
class CountedFigure:
    """A published proportion with the counts that can be behind it, and the 95 % interval that spans theirs."""

    metric: str
    value: float
    counts: tuple[int, ...]
    n: int
    ci95: tuple[float, float]
    method: str

    @property
    def successes(self) -> int:
        """The count nearest to what is printed."""
        return min(self.counts, key=lambda count: abs(count / self.n - self.value))

    def sentence(self) -> str:
        """Return which counts and which interval it stands for."""
        interval = f"95 % interval {100 * self.ci95[0]:.1f} to {100 * self.ci95[1]:.1f} % ({self.method}"
        if len(self.counts) == 1:
            return f"{self.metric} {self.value:g} is {self.counts[0]} of {self.n} images, {interval})."
        return (
            f"{self.metric} {self.value:g} is any of {len(self.counts)} counts of {self.n} images, {self.counts[0]} to "
            f"{self.counts[-1]}: {interval}, over all of them)."
        )


@dataclass(frozen=True)
class Fit:
    """Whether some confusion matrix gives all figures, None if undecided; how many do, None if not counted.

    average: "binary" or "averaged" (macro). matrix: the one, if it is the only one.
    """

    average: str
    reading: Reading
    is_possible: bool | None
    n_matrices: int | None = None
    matrix: BinaryMatrix | None = None


@dataclass(frozen=True)
class CheckedClaim:
    """A checked claim.

    fits: one for each average and each way to print. problems: figures that no count gives. is_mixed_possible: whether
    figures that do not fit could be true if some were rounded and others cut off.
    """

    claim: Claim
    counted_figures: tuple[CountedFigure, ...]
    fits: tuple[Fit, ...]
    problems: tuple[str, ...]
    is_mixed_possible: bool = False

    @property
    def fits_by_average(self) -> dict[str, bool | None]:
        """For "binary" and "averaged" metrics, whether some matrix gives all figures, however they were printed."""
        outcomes = {
            average: [fit.is_possible for fit in self.fits if fit.average == average] for average in AVERAGES
        }
        return {
            average: True if True in values else None if None in values else False
            for average, values in outcomes.items()
        }

    @property
    def is_consistent(self) -> bool:
        """Whether all figures can be true at once, as binary or as macro-averaged metrics."""
        return not self.problems and any(is_fitting is not False for is_fitting in self.fits_by_average.values())

    def sentences(self) -> list[str]:
        """Return the result of the check as sentences."""
        name = self.claim.name
        sentences = [f"{name}: {figure.sentence()}" for figure in self.counted_figures]
        sentences += [f"{name}: {problem}." for problem in self.problems]
        sentences += [f"{name}: {self._missing_count()}."] if self._missing_count() else []
        figure_list = ", ".join(f"{figure.name} {figure.value:g}" for figure in self.claim.figures)
        outcomes = self.fits_by_average.values()
        if len(self.claim.figures) < 2:
            return sentences
        if any(outcomes):
            fitting_text = self._fitting_text()
            details = f" ({fitting_text})" if fitting_text else ""
            return [*sentences, f"{name}: {figure_list} can be true at once{details}."]
        if None in outcomes:
            open_averages = [AVERAGES[average] for average, value in self.fits_by_average.items() if value is None]
            return [
                *sentences,
                f"{name}: {figure_list} are not excluded ({' or '.join(open_averages)}), but no confusion matrix was "
                "found that gives them.",
            ]
        size_text = f" of {self.claim.n} images" if self.claim.n else ""
        mixed_text = ", or some figures are rounded and others cut off" if self.is_mixed_possible else ""
        return [
            *sentences,
            f"{name}: no single confusion matrix{size_text} gives {figure_list}, whether precision, recall and F1 are "
            "of the positive class or means over both classes, and whether digits are rounded or cut off; at least one "
            f"figure is of something else{mixed_text}.",
        ]

    def _fitting_text(self) -> str:
        """Return how the figures can be true at once: rounded if that is possible, else cut off."""
        reading = next(fit.reading for fit in self.fits if fit.is_possible)
        fits = [fit for fit in self.fits if fit.reading == reading and fit.is_possible]
        if any(figure.name in MACRO_METRICS for figure in self.claim.figures):
            text = " or ".join(": ".join(filter(None, (AVERAGES[f.average], _matrices_text(f)))) for f in fits)
        else:  # the same in both
            text = _matrices_text(fits[0])
        remark = "" if reading == "rounded" else "only if digits are cut off, not rounded"
        return "; ".join(filter(None, (text, remark)))

    def _missing_count(self) -> str:
        """Return which count is missing for intervals; "" if none is, or if the figures are inconsistent."""
        names = {figure.name for figure in self.claim.figures}
        rates = names & {"sensitivity", "specificity"}
        if not any(self.fits_by_average.values()):
            return ""
        if self.claim.n is None:
            return (
                "without n, the number of images, there is no count and no interval; give n=... with the figures"
            )
        if self.claim.positives is None and rates:
            rate_names = " and ".join(sorted(rates))
            return f"without positives there is no count and no interval of {rate_names}; give positives=..."
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Return what comparison.json holds of it."""
        return {
            "name": self.claim.name,
            "figures": {figure.name: figure.value for figure in self.claim.figures},
            "n": self.claim.n,
            "positives": self.claim.positives,
            "intervals": {
                figure.metric: {"value": figure.value, "counts": [figure.counts[0], figure.counts[-1]],
                              "successes": figure.successes if len(figure.counts) == 1 else None, "n": figure.n,
                              "ci95": list(figure.ci95), "method": figure.method}
                for figure in self.counted_figures
            },
            "is_consistent": self.is_consistent,
            "fits_by_average": dict(self.fits_by_average),
            "readings": [
                {"average": fit.average, "digits": fit.reading, "fits": fit.is_possible, "matrices": fit.n_matrices}
                for fit in self.fits
            ],
            "sentences": self.sentences(),
        }  # fmt: skip


def parse_claim(text: str) -> Claim:
    """Read one claim; raises `UsageError` that says which part is wrong."""
    name, colon, fields_text = text.partition(":")
    name, fields_text = (name.strip(), fields_text) if colon else ("published", text)
    figures: list[PublishedFigure] = []
    counts: dict[str, int | None] = dict.fromkeys(COUNT_KEYS)
    for field_text in re.split(r"[,\s]+", fields_text.strip()):
        key, equals, value = field_text.partition("=")
        if not equals:
            raise _claim_error(text, f"{field_text!r} is not KEY=VALUE")
        if key in counts:
            if not value.isdecimal() or int(value) < 1:
                raise _claim_error(text, f"{key} must be a number of images, not {value!r}")
            counts[key] = int(value)
            continue
        try:
            figures.append(parse_figure(key, value))
        except ValueError as error:
            raise _claim_error(text, str(error)) from error
    n, positives = counts["n"], counts["positives"]
    if not figures:
        raise _claim_error(text, "it names no figure")
    if len({figure.name for figure in figures}) < len(figures):
        raise _claim_error(text, "it names a figure twice")
    if positives is not None and (n is None or positives >= n):
        raise _claim_error(text, "positives must be fewer than n, which must be given with it")
    return Claim(name, tuple(figures), n, positives)


def _claim_error(text: str, problem: str) -> UsageError:
    return UsageError(f"--published {text!r}: {problem}", outcome="nothing was written", remedy=CLAIM_USAGE)


def check_claim(claim: Claim) -> CheckedClaim:
    """Give every proportion its interval, and check whether one confusion matrix could have given all figures.

    Papers round or cut off their digits, and do not say which: a figure is called impossible only if it is both ways.
    """
    fits = tuple(_fit(claim, average, reading) for reading in READINGS for average in AVERAGES)
    possible_readings = [reading for reading in READINGS if _is_open(fits, reading)]
    counted_figures, problems = [], []
    for figure in claim.figures:
        n = _figure_images(figure.name, claim)
        if n is None:
            continue
        try:
            counts, ci95, method = count_and_interval(figure, n, possible_readings or READINGS)
        except ValueError as error:
            problems.append(str(error))
        else:
            counted_figures.append(CountedFigure(figure.name, figure.value, counts, n, ci95, method))
    is_mixed_possible = not possible_readings and any(
        _fit(claim, average, "either").is_possible is not False for average in AVERAGES
    )
    return CheckedClaim(claim, tuple(counted_figures), fits, tuple(problems), is_mixed_possible)


def _is_open(fits: Sequence[Fit], reading: Reading) -> bool:
    return any(fit.is_possible is not False for fit in fits if fit.reading == reading)


def _figure_images(metric: str, claim: Claim) -> int | None:
    """Return the denominator of a proportion of images; None if unknown, or if the metric is no such proportion."""
    if metric == "accuracy":
        return claim.n
    if claim.n is None or claim.positives is None:
        return None
    return {"sensitivity": claim.positives, "specificity": claim.n - claim.positives}.get(metric)


def _fit(claim: Claim, average: str, reading: Reading) -> Fit:
    figures, macro = read_as(claim.figures, reading), average == "averaged"
    outcome = are_consistent(figures, macro=macro)
    if outcome is False or claim.n is None:
        return Fit(average, reading, outcome)
    n, positive_counts = claim.n, range(1, claim.n) if claim.positives is None else (claim.positives,)
    if sum((n_positives + 1) * (n - n_positives + 1) for n_positives in positive_counts) > _MAX_MATRICES:
        return Fit(average, reading, outcome)
    sizes = [
        (
            n_compatible_matrices(figures, positives=n_positives, negatives=n - n_positives, macro=macro),
            n_positives,
        )
        for n_positives in positive_counts
    ]
    n_matrices = sum(count for count, _ in sizes)
    if n_matrices != 1:
        return Fit(average, reading, n_matrices > 0, n_matrices)
    positives = max(sizes)[1]
    (matrix,) = compatible_matrices(figures, positives=positives, negatives=n - positives, macro=macro)
    return Fit(average, reading, True, 1, matrix)


def _matrices_text(fit: Fit) -> str:
    """Return how many confusion matrices fit; "" if they were not counted."""
    if fit.matrix is not None:
        m = fit.matrix
        return (
            f"one confusion matrix, {m.tp} true and {m.fp} false positives, {m.tn} true and {m.fn} false negatives"
        )
    return "" if fit.n_matrices is None else f"{fit.n_matrices} confusion matrices"


def check_claims(texts: Sequence[str]) -> list[CheckedClaim]:
    """Parse and check claims from the command line; names that occur twice are numbered."""
    claims = [parse_claim(text) for text in texts]
    names = [claim.name for claim in claims]
    numbered_claims = [
        Claim(f"{claim.name} {index + 1}" if names.count(claim.name) > 1 else claim.name, claim.figures, claim.n,
              claim.positives)
        for index, claim in enumerate(claims)
    ]  # fmt: skip
    return [check_claim(claim) for claim in numbered_claims]
