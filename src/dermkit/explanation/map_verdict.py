"""The first screen of explain.html: what the checks say of all maps in a word, their figures, and what to do next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermkit.explanation.random_net_check import RandomNetCheck
from dermkit.explanation.records import ImageExplanation
from dermkit.metrics.stats.estimate import Estimate
from dermkit.metrics.stats.intervals import mean_estimate
from dermkit.render.forest import forest_rows
from dermkit.runs.model_verdict import ModelVerdict

_FEW_IMAGES = 10
"""With fewer, the checks decide nothing: more images are asked for."""


@dataclass(frozen=True)
class MapVerdict:
    """What the checks say of the maps. kind: good, care or bad. rows: of a forest plot from -reach to reach.

    curves_kind: what the curves alone say: "serious", "passed", "" for neither.
    """

    word: str
    about: str
    kind: str
    rows: tuple[dict[str, Any], ...]
    reach: float
    curves_kind: str


@dataclass(frozen=True)
class _Gains:
    """What hiding, and showing, what the maps mark changes, more than random parts: means over images."""

    deletion: Estimate
    insertion: Estimate

    @property
    def fails(self) -> bool:
        """Whether hiding it is shown to change no more than hiding anything else: the whole interval says so."""
        return self.deletion.ci95 is not None and self.deletion.ci95[1] <= 0

    @property
    def is_deletion_shown(self) -> bool:
        return self.deletion.ci95 is not None and self.deletion.ci95[0] > 0

    @property
    def is_insertion_shown(self) -> bool:
        return self.insertion.ci95 is not None and self.insertion.ci95[0] > 0


def judge_maps(explanations: Sequence[ImageExplanation], check: RandomNetCheck | None) -> MapVerdict:
    """Return what the checks over all images say. check: with nets of random weights, None = not made."""
    figures = list(_figures(explanations))
    ends = [abs(end) for _, item in figures for end in (item.ci95 or (item.value or 0.0,))]
    reach = next((end for end in (0.1, 0.2, 0.5) if max(ends, default=0.0) <= end), 1.0)
    rows = forest_rows([(name, item.as_dict()) for name, item in figures], low=-reach, high=reach)
    gains = _gains(explanations)
    word, about, kind = _word(len(explanations), check, gains)
    return MapVerdict(word, about, kind, tuple(rows), reach, _curves_kind(len(explanations), gains))


def _gains(explanations: Sequence[ImageExplanation]) -> _Gains | None:
    curves = [one.curves for one in explanations if one.curves is not None]
    if not curves:
        return None
    return _Gains(_mean([one.deletion_gain for one in curves]), _mean([one.insertion_gain for one in curves]))


def _curves_kind(n_images: int, gains: _Gains | None) -> str:
    if gains is None or n_images < _FEW_IMAGES:
        return ""
    return "serious" if gains.fails else "passed" if gains.is_deletion_shown and gains.is_insertion_shown else ""


def _word(n_images: int, check: RandomNetCheck | None, gains: _Gains | None) -> tuple[str, str, str]:
    """Return word, what it rests on, and kind."""
    is_compared = check is not None and check.p is not None
    if not is_compared and gains is None:
        return "Not checked", "whether the maps show what the net learned", "care"
    is_same = check is not None and check.fails
    if n_images < _FEW_IMAGES:
        hint = "; these maps are much the same without training" if is_same else ""
        return "Too few images", f"{n_images} of the {_FEW_IMAGES} that the checks need{hint}", "care"
    if is_same:
        return "Do not rely on the maps", "they are much the same without training", "bad"
    if gains is not None and gains.fails:
        return "Do not rely on the maps", "hiding what they mark changes no more than hiding anything else", "bad"
    part = _part_that_is_open(check, gains)
    if part:
        return "The maps pass in part", part, "care"
    return "The maps pass their checks", "they show what the net learned, right or wrong", "good"


def _part_that_is_open(check: RandomNetCheck | None, gains: _Gains | None) -> str:
    """Return what is not passed though nothing fails, "" where all is passed."""
    if check is None or check.p is None:
        return "they were not compared with maps of random weights"
    if check.is_beyond_chance:
        return "a part of them is the same without training"
    if gains is None:
        return "what they mark was not hidden"
    if not gains.is_deletion_shown:
        return "hiding what they mark is not shown to change more than hiding anything else"
    return "" if gains.is_insertion_shown else "what they mark is not shown to carry the answer alone"


def _figures(explanations: Sequence[ImageExplanation]) -> Iterator[tuple[str, Estimate]]:
    """Yield what was measured over the images; above 0 is good, but for the likeness to random nets, where 0 is."""
    gains = _gains(explanations)
    if gains is not None:
        yield "hiding what a map marks lowers the probability, more than random parts", gains.deletion
        yield "showing it raises the probability, more than random parts", gains.insertion
    correlations = [one.random_net_correlation for one in explanations if one.random_net_correlation is not None]
    if correlations:
        yield "likeness to maps of random weights (0: none, which is good)", _mean(correlations)
    shares = [one.share for one in explanations if one.share is not None]
    inside = [share.inside - share.area for share in shares if share.inside is not None]
    if inside:
        yield "part of a map inside the lesion, more than of an even map", _mean(inside)


def _mean(values: Sequence[float]) -> Estimate:
    return mean_estimate(np.array(values, dtype=np.float64))


def map_remedies(
    explanations: Sequence[ImageExplanation], verdict: MapVerdict, model: ModelVerdict | None
) -> Iterator[str]:
    """Yield what to do next, in plain words. model: the verdict of the model's report, None without one."""
    if model is not None and model.word == "do not believe":
        yield "Mend the model first: its report says do not believe, and a map does not make an answer right."
    if verdict.kind == "bad":
        yield "Do not show these maps as explanations. Try a method without gradients: `--method occlusion`."
    if verdict.word == "Not checked":
        yield "Check the maps: the same command without `--no-checks`."
    elif len(explanations) < _FEW_IMAGES:
        yield f"Explain more images: checks of {len(explanations)} say little. `dermkit explain MODEL FOLDER`."
    n_outside = sum(one.share is not None and bool(one.share.sentence) for one in explanations)
    if n_outside:
        yield f"Look at the {n_outside} image{'s' * (n_outside != 1)} whose map lies mostly outside the lesion."
    elif all(one.share is None for one in explanations):
        yield "Give lesion masks, to measure how much of each map lies in the lesion: `--masks FOLDER`."
    yield "See what moves the answers, such as the background hidden: `dermkit counterfactuals RUN`."
