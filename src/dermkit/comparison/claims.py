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
    PublishedFigure,
    are_consistent,
    compatible_matrices,
    count_and_interval,
    parse_figure,
)
from dermkit.errors import UsageError

COUNT_KEYS = ("n", "positives")
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
    """A published proportion with the count behind it and its 95 % interval."""

    metric: str
    value: float
    successes: int
    n: int
    ci95: tuple[float, float]
    method: str


@dataclass(frozen=True)
class CheckedClaim:
    """A checked claim.

    fits_by_average: for "binary" and "averaged" (macro) metrics, whether some confusion matrix gives all figures; None:
    undecided. problems: figures that no count gives.
    """

    claim: Claim
    counted_figures: tuple[CountedFigure, ...]
    fits_by_average: dict[str, bool | None]
    problems: tuple[str, ...]

    @property
    def is_consistent(self) -> bool:
        """Whether all figures can be true at once, as binary or as macro-averaged metrics."""
        return not self.problems and any(is_fitting is not False for is_fitting in self.fits_by_average.values())

    def sentences(self) -> list[str]:
        """Return the result of the check as sentences."""
        name = self.claim.name
        sentences = [
            f"{name}: {figure.metric} {figure.value:g} is {figure.successes} of {figure.n} images, 95 % interval "
            f"{100 * figure.ci95[0]:.1f} to {100 * figure.ci95[1]:.1f} % ({figure.method})."
            for figure in self.counted_figures
        ]
        sentences += [f"{name}: {problem}." for problem in self.problems]
        sentences += [f"{name}: {self._missing_count()}."] if self._missing_count() else []
        figure_list = ", ".join(f"{figure.name} {figure.value:g}" for figure in self.claim.figures)
        size_text = f" of {self.claim.n} images" if self.claim.n else ""
        if len(self.claim.figures) > 1 and all(
            is_fitting is False for is_fitting in self.fits_by_average.values()
        ):
            sentences.append(
                f"{name}: no single confusion matrix{size_text} gives {figure_list}, whether precision, "
                f"recall and F1 are of "
                "the positive class or means over both classes; at least one figure is of something else."
            )
        elif len(self.claim.figures) > 1:
            average_texts = {"binary": "of the positive class", "averaged": "as means over both classes"}
            fitting_averages = " or ".join(
                average_texts[average] for average, is_fitting in self.fits_by_average.items() if is_fitting
            )
            open_averages = " or ".join(
                average_texts[average]
                for average, is_fitting in self.fits_by_average.items()
                if is_fitting is None
            )
            sentences.append(
                f"{name}: {figure_list} can be true at once ({fitting_averages})."
                if fitting_averages
                else f"{name}: {figure_list} are not excluded ({open_averages}), but no confusion "
                f"matrix was found that gives "
                "them."
            )
        return sentences

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
                figure.metric: {"value": figure.value, "successes": figure.successes, "n": figure.n,
                              "ci95": list(figure.ci95), "method": figure.method}
                for figure in self.counted_figures
            },
            "is_consistent": self.is_consistent,
            "fits_by_average": dict(self.fits_by_average),
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
    """Give every proportion its interval, and check whether one confusion matrix could have given all figures."""
    counted_figures, problems = [], []
    for figure in claim.figures:
        n = _figure_images(figure.name, claim)
        if n is None:
            continue
        try:
            successes, ci95, method = count_and_interval(figure, n)
        except ValueError as error:
            problems.append(str(error))
        else:
            counted_figures.append(CountedFigure(figure.name, figure.value, successes, n, ci95, method))
    fits_by_average = {
        average: _is_possible(claim, macro=average == "averaged") for average in ("binary", "averaged")
    }
    return CheckedClaim(claim, tuple(counted_figures), fits_by_average, tuple(problems))


def _figure_images(metric: str, claim: Claim) -> int | None:
    """Return the denominator of a proportion of images; None if unknown, or if the metric is no such proportion."""
    if metric == "accuracy":
        return claim.n
    if claim.n is None or claim.positives is None:
        return None
    return {"sensitivity": claim.positives, "specificity": claim.n - claim.positives}.get(metric)


def _is_possible(claim: Claim, *, macro: bool) -> bool | None:
    outcome = are_consistent(claim.figures, macro=macro)
    if outcome is False or claim.n is None:
        return outcome
    n, positive_counts = claim.n, range(1, claim.n) if claim.positives is None else (claim.positives,)
    if sum((n_positives + 1) * (n - n_positives + 1) for n_positives in positive_counts) > _MAX_MATRICES:
        return outcome
    return any(
        compatible_matrices(claim.figures, positives=n_positives, negatives=n - n_positives, macro=macro)
        for n_positives in positive_counts
    )


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
