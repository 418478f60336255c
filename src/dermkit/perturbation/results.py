"""The finished result: from the net's answers to changes, worst first, and what is still answered with parts hidden."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dermkit.metrics.classification.scored_set import p_malignant
from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.metrics.stats.delong import auroc_interval
from dermkit.metrics.stats.estimate import Estimate, undefined_estimate
from dermkit.metrics.stats.fold_auroc import placement_values
from dermkit.metrics.stats.intervals import proportion_estimate
from dermkit.perturbation.artefacts import Artefact
from dermkit.perturbation.changes import (
    NO_SIDES_REASON,
    AnswerChange,
    VariantAnswers,
    measure_changes,
    order_worst_first,
)
from dermkit.perturbation.plan import (
    BACKGROUND_HIDDEN,
    CONTROL_INDEX,
    LESION_HIDDEN,
    MASK_SOURCE_TEXTS,
    ORIGINAL_INDEX,
    STRENGTHS,
    Variant,
)
from dermkit.perturbation.selection import ImageSelection
from dermkit.perturbation.sentences import (
    Wording,
    artefact_sentence,
    control_sentence,
    hidden_sentence,
    multiplicity_sentence,
)

if TYPE_CHECKING:
    from dermkit.metrics.decisions.apply import ActivePolicy
    from dermkit.perturbation.scoring import Answers
    from dermkit.prediction.predictor import Predictor


@dataclass(frozen=True)
class ArtefactResult:
    """One artefact: its change at each of `STRENGTHS`, and the sentence of the strongest."""

    artefact: Artefact
    changes: tuple[AnswerChange, ...]
    sentence: str

    @property
    def strongest(self) -> AnswerChange:
        """The change at strength 1."""
        return self.changes[-1]


@dataclass(frozen=True)
class HiddenResult:
    """The net's answers with a part hidden. name: lesion_hidden or background_hidden. measure: AUROC or accuracy."""

    name: str
    title: str
    change: AnswerChange
    measure: str
    original: Estimate
    remaining: Estimate
    sentence: str


@dataclass(frozen=True, eq=False)
class CounterfactualResult:
    """All that the page, the tables and the JSON file say.

    artefacts: worst first. answers: what they are computed from. probabilities: (N, V, K), as the net gave them.
    mask_counts: how many lesions are known from a mask, were found, or are an ellipse.
    """

    selection: ImageSelection
    variants: tuple[Variant, ...]
    wording: Wording
    artefacts: tuple[ArtefactResult, ...]
    hidden: tuple[HiddenResult, ...]
    control_change: float
    control_text: str
    multiplicity_text: str
    mask_counts: dict[str, int]
    answers: VariantAnswers
    probabilities: Floats
    largest_deviation: float | None

    @property
    def mask_text(self) -> str:
        """How the lesion is known, for people."""
        texts = [
            f"{count:,} by {text}"
            for source, text in MASK_SOURCE_TEXTS.items()
            if (count := self.mask_counts.get(source))
        ]
        return f"Where the lesion is: {', '.join(texts)}."


def build_result(
    selection: ImageSelection, answers: "Answers", variants: tuple[Variant, ...], artefacts: tuple[Artefact, ...],
    predictor: "Predictor", policy: "ActivePolicy | None", *, seed: int,
) -> CounterfactualResult:  # fmt: skip
    """Measure the changes of the scored images and put them into words. selection: the images that were scored."""
    probabilities = np.stack([answers.probabilities[image_id] for image_id in selection.rows["image_id"]])
    malignant = np.array([lesion_class.malignancy == "malignant" for lesion_class in predictor.classes])
    table, point = _variant_answers(selection, probabilities, malignant, policy)
    tested = [number for number, variant in enumerate(variants) if variant.kind == "artefact"]
    changes = measure_changes(table, tested=tested, seed=seed)
    has_sides = table.is_malignant is not None
    wording = Wording(
        "P(malignant)" if has_sides else "the probability of the true class", len(selection), selection.n_units,
        selection.has_units, point,
    )  # fmt: skip
    control_change = float(
        np.abs(probabilities[:, CONTROL_INDEX] - probabilities[:, ORIGINAL_INDEX]).max(initial=0)
    )
    sources = [answers.mask_sources[image_id] for image_id in selection.rows["image_id"]]
    return CounterfactualResult(
        selection=selection,
        variants=variants,
        wording=wording,
        artefacts=_artefact_results(artefacts, variants, changes, wording),
        hidden=_hidden_results(table, variants, changes, wording),
        control_change=control_change,
        control_text=control_sentence(control_change),
        multiplicity_text=multiplicity_sentence(len(tested)),
        mask_counts={source: sources.count(source) for source in MASK_SOURCE_TEXTS},
        answers=table,
        probabilities=probabilities,
        largest_deviation=None if selection.recorded is None
        else float(np.abs(selection.recorded - probabilities[:, ORIGINAL_INDEX]).max()),
    )  # fmt: skip


def _variant_answers(
    selection: ImageSelection, probabilities: Floats, malignant: Bools, policy: "ActivePolicy | None"
) -> tuple[VariantAnswers, str]:
    """Return the answers as figures are computed from them, and the name of the operating point."""
    n, n_variants, n_classes = probabilities.shape
    y_pred = np.asarray(probabilities.argmax(axis=2), dtype=np.int64)
    is_positive, point = None, ""
    if selection.is_malignant is not None:
        flat = probabilities.reshape(-1, n_classes)
        score = p_malignant(flat, malignant).reshape(n, n_variants)
        is_positive, point = _decisions(flat, malignant, policy)
        is_positive = is_positive.reshape(n, n_variants)
    else:
        index = np.maximum(selection.label_index, 0)
        score = np.take_along_axis(probabilities, index[:, None, None], axis=2)[:, :, 0]
    return VariantAnswers(
        score, y_pred, is_positive, selection.is_malignant, selection.label_index, selection.groups
    ), point


def _decisions(probabilities: Floats, malignant: Bools, policy: "ActivePolicy | None") -> tuple[Bools, str]:
    """Return which images are positive at the operating point, (M,), and its name; without one, by the label."""
    if policy is None or not policy.policy.operating_points:
        return np.asarray(malignant[probabilities.argmax(axis=1)]), "a malignant class is the most probable"
    index = policy.point_index or 0
    point = policy.policy.operating_points[index]
    guarantee = "" if point.guaranteed else ", fitted without guarantee"
    return policy.apply(probabilities).is_positive[:, index], f"operating point {point.name}{guarantee}"


def _artefact_results(
    artefacts: tuple[Artefact, ...], variants: tuple[Variant, ...], changes: list[AnswerChange], wording: Wording
) -> tuple[ArtefactResult, ...]:
    results = []
    for artefact in artefacts:
        by_strength = tuple(
            change
            for change, variant in zip(changes, variants, strict=True)
            if variant.kind == "artefact" and variant.name == artefact.name
        )
        sentence = artefact_sentence(artefact.title, by_strength[-1], wording, strength=STRENGTHS[-1])
        results.append(ArtefactResult(artefact, by_strength, sentence))
    order = order_worst_first([result.strongest for result in results])
    return tuple(results[number] for number in order)


def _hidden_results(
    answers: VariantAnswers, variants: tuple[Variant, ...], changes: list[AnswerChange], wording: Wording
) -> tuple[HiddenResult, ...]:
    results = []
    for name, hidden in ((LESION_HIDDEN, "lesion"), (BACKGROUND_HIDDEN, "background")):
        number = next(index for index, variant in enumerate(variants) if variant.name == name)
        measure = "AUROC" if answers.is_malignant is not None else "accuracy"
        original, remaining = (_separation(answers, index) for index in (ORIGINAL_INDEX, number))
        sentence = hidden_sentence(hidden, original, remaining, changes[number], wording, measure)
        title = f"{hidden.capitalize()} hidden"
        results.append(HiddenResult(name, title, changes[number], measure, original, remaining, sentence))
    return tuple(results)


def _separation(answers: VariantAnswers, number: int) -> Estimate:
    """Return the AUROC of malignant against other images, or the accuracy where there are no such sides."""
    is_malignant, score, n = answers.is_malignant, answers.score[:, number], len(answers.score)
    if is_malignant is None:
        has_label = answers.y_true >= 0
        if not has_label.any():
            return undefined_estimate(0, NO_SIDES_REASON)
        is_correct = (answers.y_pred[:, number] == answers.y_true)[has_label]
        return proportion_estimate(is_correct, answers.groups[has_label])
    if is_malignant.all() or not is_malignant.any():
        return undefined_estimate(n, "not applicable: the images are not of malignant and other classes")
    value = float(placement_values(score[is_malignant], score[~is_malignant])[0].mean())
    return Estimate(value, auroc_interval(score, is_malignant, answers.groups), n, "DeLong")


def most_changed_image(result: CounterfactualResult, name: str) -> int:
    """Return the number of the image whose answer a change moves most, at its full strength."""
    numbers = [number for number, variant in enumerate(result.variants) if variant.name == name]
    deltas = result.answers.score[:, numbers[-1]] - result.answers.score[:, ORIGINAL_INDEX]
    return int(np.argmax(np.abs(deltas)))
