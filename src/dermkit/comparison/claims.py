"""Figures that somebody published, put beside our own: with the interval that they left out, and checked for sense.

NAME: accuracy=.4661,n=118
accuracy=.74,precision=.76,recall=.71,specificity=.75
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dermkit.comparison.published import NAMES, Printed, can_be, interval_of, matrices, printed
from dermkit.errors import UsageError

NUMBERS = ("n", "positives")
HELP = f"figures: {', '.join(NAMES)}; numbers of images: n, positives"
_MOST_CELLS = 4_000_000
"""Matrices of a known size are tried one by one up to so many; beyond, bounds alone decide."""


@dataclass(frozen=True)
class Claim:
    """What was published of one test. n, positives: images, None where it was not said."""

    name: str
    figures: tuple[Printed, ...]
    n: int | None
    positives: int | None


@dataclass(frozen=True)
class Counted:
    """A published share with the count behind it."""

    figure: str
    value: float
    successes: int
    n: int
    ci95: tuple[float, float]
    method: str


@dataclass(frozen=True)
class Checked:
    """A claim that was looked at. fits: "binary", "averaged": whether some confusion matrix gives all figures so.

    None there means: not excluded, but no example was found either.
    """

    claim: Claim
    counted: tuple[Counted, ...]
    fits: dict[str, bool | None]
    problems: tuple[str, ...]

    @property
    def is_consistent(self) -> bool:
        """Whether all figures can be true at once, in one reading or the other."""
        return not self.problems and any(fits is not False for fits in self.fits.values())

    def sentences(self) -> list[str]:
        """Return what there is to say of it."""
        name = self.claim.name
        said = [
            f"{name}: {item.figure} {item.value:g} is {item.successes} of {item.n} images, 95 % interval "
            f"{100 * item.ci95[0]:.1f} to {100 * item.ci95[1]:.1f} % ({item.method})."
            for item in self.counted
        ]
        said += [f"{name}: {problem}." for problem in self.problems]
        said += [f"{name}: {self._uncounted()}."] if self._uncounted() else []
        listed = ", ".join(f"{item.name} {item.value:g}" for item in self.claim.figures)
        size = f" of {self.claim.n} images" if self.claim.n else ""
        if len(self.claim.figures) > 1 and all(fits is False for fits in self.fits.values()):
            said.append(
                f"{name}: no single confusion matrix{size} gives {listed}, whether precision, recall and F1 are of "
                "the positive class or means over both classes; at least one figure is of something else."
            )
        elif len(self.claim.figures) > 1:
            how = {"binary": "of the positive class", "averaged": "as means over both classes"}
            ways = " or ".join(how[way] for way, fits in self.fits.items() if fits)
            open_ways = " or ".join(how[way] for way, fits in self.fits.items() if fits is None)
            said.append(
                f"{name}: {listed} can be true at once ({ways})."
                if ways
                else f"{name}: {listed} are not excluded ({open_ways}), but no confusion matrix was found that gives "
                "them."
            )
        return said

    def _uncounted(self) -> str:
        """Return what to add so that figures get intervals, "" where nothing is missing or they cannot be true."""
        names = {item.name for item in self.claim.figures}
        sides = names & {"sensitivity", "specificity"}
        if not any(self.fits.values()):
            return ""
        if self.claim.n is None:
            return (
                "without n, the number of images, there is no count and no interval; give n=... with the figures"
            )
        if self.claim.positives is None and sides:
            of = " and ".join(sorted(sides))
            return f"without positives there is no count and no interval of {of}; give positives=..."
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Return what comparison.json holds of it."""
        return {
            "name": self.claim.name,
            "figures": {item.name: item.value for item in self.claim.figures},
            "n": self.claim.n,
            "positives": self.claim.positives,
            "intervals": {
                item.figure: {"value": item.value, "successes": item.successes, "n": item.n,
                              "ci95": list(item.ci95), "method": item.method}
                for item in self.counted
            },
            "consistent": self.is_consistent,
            "fits": dict(self.fits),
            "sentences": self.sentences(),
        }  # fmt: skip


def parse_claim(text: str) -> Claim:
    """Read one claim; raises `UsageError` that says which part is wrong."""
    name, colon, rest = text.partition(":")
    name, rest = (name.strip(), rest) if colon else ("published", text)
    figures, numbers = [], dict.fromkeys(NUMBERS, None)  # type: list[Printed], dict[str, int | None]
    for part in re.split(r"[,\s]+", rest.strip()):
        key, equals, value = part.partition("=")
        if not equals:
            raise _wrong(text, f"{part!r} is not KEY=VALUE")
        if key in numbers:
            if not value.isdecimal() or int(value) < 1:
                raise _wrong(text, f"{key} must be a number of images, not {value!r}")
            numbers[key] = int(value)
            continue
        try:
            figures.append(printed(key, value))
        except ValueError as error:
            raise _wrong(text, str(error)) from error
    n, positives = numbers["n"], numbers["positives"]
    if not figures:
        raise _wrong(text, "it names no figure")
    if len({item.name for item in figures}) < len(figures):
        raise _wrong(text, "it names a figure twice")
    if positives is not None and (n is None or positives >= n):
        raise _wrong(text, "positives must be fewer than n, which must be given with it")
    return Claim(name, tuple(figures), n, positives)


def _wrong(text: str, what: str) -> UsageError:
    return UsageError(f"--published {text!r}: {what}", kept="nothing was written", remedy=HELP)


def check_claim(claim: Claim) -> Checked:
    """Give every share its interval, and see whether one confusion matrix could have given all of them."""
    counted, problems = [], []
    for item in claim.figures:
        n = _images_of(item.name, claim)
        if n is None:
            continue
        try:
            successes, ci95, method = interval_of(item, n)
        except ValueError as error:
            problems.append(str(error))
        else:
            counted.append(Counted(item.name, item.value, successes, n, ci95, method))
    fits = {way: _fits(claim, averaged=way == "averaged") for way in ("binary", "averaged")}
    return Checked(claim, tuple(counted), fits, tuple(problems))


def _images_of(figure: str, claim: Claim) -> int | None:
    """Return the images that a share is of, None where they are unknown or it is no share of images."""
    if figure == "accuracy":
        return claim.n
    if claim.n is None or claim.positives is None:
        return None
    return {"sensitivity": claim.positives, "specificity": claim.n - claim.positives}.get(figure)


def _fits(claim: Claim, *, averaged: bool) -> bool | None:
    found = can_be(claim.figures, averaged=averaged)
    if found is False or claim.n is None:
        return found
    n, sides = claim.n, range(1, claim.n) if claim.positives is None else (claim.positives,)
    if sum((a + 1) * (n - a + 1) for a in sides) > _MOST_CELLS:
        return found
    return any(matrices(claim.figures, positives=a, negatives=n - a, averaged=averaged) for a in sides)


def checked_claims(texts: Sequence[str]) -> list[Checked]:
    """Read and check claims as they are given on the command line; a name that occurs twice gets a number."""
    claims = [parse_claim(text) for text in texts]
    names = [claim.name for claim in claims]
    numbered = [
        Claim(f"{claim.name} {place + 1}" if names.count(claim.name) > 1 else claim.name, claim.figures, claim.n,
              claim.positives)
        for place, claim in enumerate(claims)
    ]  # fmt: skip
    return [check_claim(claim) for claim in numbered]
