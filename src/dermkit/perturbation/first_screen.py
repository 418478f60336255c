"""The first screen of counterfactuals.html: a word on the decisions that artefacts change, at any strength."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dermkit.perturbation.changes import AnswerChange, decision_bounds
from dermkit.perturbation.plan import LESION_HIDDEN, STRENGTHS
from dermkit.perturbation.results import ArtefactResult, CounterfactualResult
from dermkit.perturbation.sentences import artefact_sentence
from dermkit.render.forest import forest_rows
from dermkit.render.titles import lower_first

_N_IN_ANSWER = 5
"""Artefacts on the first screen."""
SERIOUS_SHARE = 0.05
"""Where clearly more decisions than this change by an artefact alone, the box is red; green needs clearly fewer."""


@dataclass(frozen=True)
class _WorstStrength:
    """An artefact at the strength at which it turns most decisions round; of equal ones the greatest."""

    result: ArtefactResult
    strength: float
    change: AnswerChange

    @property
    def title(self) -> str:
        title = self.result.artefact.title
        return title if self.strength == STRENGTHS[-1] else f"{title} at strength {self.strength:.2f}"


def _worst_strengths(result: CounterfactualResult) -> list[_WorstStrength]:
    """Return each artefact at its worst strength, worst first."""
    worst = []
    for one in result.artefacts:
        number = max(range(len(STRENGTHS)), key=lambda index: (one.changes[index].n_decisions, index))
        worst.append(_WorstStrength(one, STRENGTHS[number], one.changes[number]))
    return sorted(worst, key=lambda item: item.change.n_decisions, reverse=True)


def answer_fields(result: CounterfactualResult) -> dict[str, Any]:
    """Return the word on the answers, its kind, and a forest plot of the artefacts that turn most decisions round."""
    what = "decisions" if result.wording.point else "labels"
    worst = _worst_strengths(result)
    items = [(one.title, one.change.decisions.as_dict()) for one in worst[:_N_IN_ANSWER]]
    items += [(one.title, one.change.decisions.as_dict()) for one in result.hidden]
    word, about, kind = _word(result, worst, what)
    sentences = [
        artefact_sentence(one.result.artefact.title, one.change, result.wording, strength=one.strength)
        for one in worst[:1]
    ]
    return {
        "word": word, "about": about, "kind": kind, "what": what, "rows": forest_rows(items, low=0.0, high=1.0),
        "sentences": sentences,
    }  # fmt: skip


def _word(result: CounterfactualResult, worst: list[_WorstStrength], what: str) -> tuple[str, str, str]:
    """Return word, what it rests on, and kind. The bounds hold for all artefacts and strengths at once."""
    if not worst:
        return "Not measured", "no artefact was put on the images", "care"
    numbers = [number for number, variant in enumerate(result.variants) if variant.kind == "artefact"]
    bounds = decision_bounds(result.answers, numbers).values()
    low, high = max(low for low, _ in bounds), max(high for _, high in bounds)
    first = worst[0]
    n_images = first.change.decisions.n
    all_at_once = "95 % for all artefacts and strengths at once"
    if not first.change.n_decisions:
        word = f"No {what} change: at most {_percent(high)} would"
        kind = "good" if high <= SERIOUS_SHARE else "care"
        return word, f"by an artefact, on these {n_images:,} images ({all_at_once})", kind
    about = (
        f"by an artefact alone: {lower_first(first.title)}; {_percent(low)} to {_percent(high)} ({all_at_once})"
    )
    kind = "bad" if low > SERIOUS_SHARE else "care"
    return f"{first.change.n_decisions} of {n_images:,} {what} change", about, kind


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def remedies(result: CounterfactualResult) -> Iterator[str]:
    """Yield what to do next, in plain words."""
    strong = [
        lower_first(one.result.artefact.title)
        for one in _worst_strengths(result)[:3]
        if one.change.n_decisions and one.change.is_shown
    ]
    if strong:
        names = ", ".join(strong)
        yield f"Keep the model from images with these, or train on such images too (docs/augmentation.md): {names}."
    for one in result.hidden:
        if one.name == LESION_HIDDEN and one.measure == "AUROC" and (one.remaining.ci95 or (0.0, 0.0))[0] > 0.5:
            yield "Find what gives the class away beside the lesion: `dermkit audit DATASET`."
    if not result.mask_counts.get("mask"):
        yield "Name lesion masks, if there are any: without them the place of the lesion is a guess. `--masks FOLDER`."
    yield "Look at real photographs with these artefacts: here they are drawn."
