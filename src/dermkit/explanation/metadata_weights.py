"""What metadata weigh in an answer: the class's probability with a field set to unknown, one by one. Without torch.

A field that is set to unknown is what a net saw in training where the field was not known. The image is taken away by
filling it with its mean colour, as in the deletion curves. All answers about one image are scored in one batch.

Shapes: S x S pixels of an input, V variants of one image, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.explanation.target import EvidenceTarget
from dermkit.files import write_rows
from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.estimate import reliability
from dermkit.metrics.stats.intervals import proportion_estimate
from dermkit.render.cells import defused

METADATA_WEIGHTS_TABLE = "metadata_weights.csv"
ALL_METADATA, IMAGE = "all metadata", "image"
"""Parts of the input beside the single fields."""

_MIN_P = 1e-30
"""A probability of 0, which float32 rounds to, counts as this much: a change of log-odds has to be a number."""

ScoreWithMetadata = Callable[[list[NDArray[np.uint8]], pd.DataFrame], Floats]
"""Resized pixels (V, S, S, 3) for each way in which the model resizes, and their metadata -> probabilities (V, K)."""


@dataclass(frozen=True)
class InputWeight:
    """What one part of the input weighs in the answer about one image.

    part: a metadata field, `all metadata` or `image`. value: of the field. p, p_without: the probability of the class,
    0..1, with all that is known and without this part; with a class to set it against, among the two. log_odds_change:
    log-odds of `p` less those of `p_without`, natural logarithm: above 0 the part speaks for the class. predicted,
    predicted_without: the most probable class.
    """

    part: str
    value: str
    p: float
    p_without: float
    log_odds_change: float
    predicted: str
    predicted_without: str

    def sentence(self, class_name: str, against: str | None) -> str:
        """Return what would be without the part, for people."""
        without = (
            f"the {self.part} ({self.value})" if self.value else f"{'the ' * (self.part == IMAGE)}{self.part}"
        )
        rest = " (filled with its mean colour)" if self.part == IMAGE else ""
        of = f"P({class_name})" if against is None else f"P({class_name}), of {class_name} and {against} alone,"
        answer_change = (
            "" if self.predicted_without == self.predicted else f", and the answer {self.predicted_without}"
        )
        return (
            f"Without {without}{rest}, {of} would be {_p_text(self.p_without)} instead of "
            f"{_p_text(self.p)}{answer_change}."
        )


def _p_text(p: float) -> str:
    """Return a probability for people: one that is not 0 or 1 is not written as such."""
    return "below 0.001" if p < 0.001 else "above 0.999" if p > 0.999 else f"{p:.3f}"


def weigh_inputs(
    score: ScoreWithMetadata, inputs: Sequence[NDArray[np.uint8]], row: pd.DataFrame, target: EvidenceTarget,
    class_names: Sequence[str],
) -> tuple[InputWeight, ...]:  # fmt: skip
    """Return what each known field, all of them and the image weigh; () where no field is known.

    inputs: pixels (S, S, 3) for each way of resizing. row: the metadata of the image, one row with a column for each
    field that the model takes, "" = unknown.
    """
    fields = [name for name in row.columns if row[name].iloc[0]]
    if not fields:
        return ()
    parts = [(name, [name]) for name in fields] + ([(ALL_METADATA, fields)] if len(fields) > 1 else [])
    table = pd.concat(
        [row, *(row.assign(**dict.fromkeys(names, "")) for _, names in parts), row], ignore_index=True
    )
    variants = []
    for pixels in inputs:
        mean_colour = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
        image_is_hidden = np.arange(len(table)) == len(table) - 1
        variants.append(np.where(image_is_hidden[:, None, None, None], mean_colour, pixels[None]))
    probabilities = score(variants, table)
    p, log_odds = target.probability(probabilities), _log_odds(probabilities, target)
    predicted = [class_names[index] for index in probabilities.argmax(axis=1).tolist()]
    return tuple(
        InputWeight(
            part, str(row[part].iloc[0]) if part in fields else "", float(p[0]), float(p[number]),
            log_odds[0] - log_odds[number], predicted[0], predicted[number],
        )
        for number, part in enumerate([*(name for name, _ in parts), IMAGE], start=1)
    )  # fmt: skip


def _log_odds(probabilities: Floats, target: EvidenceTarget) -> list[float]:
    """Return the log-odds of the target's class, (V,), from the others' probabilities: 1 - p has no digits near 1."""
    if target.against_index is None:
        opposite = np.delete(probabilities, target.class_index, axis=1).sum(axis=1)
    else:
        opposite = probabilities[:, target.against_index]
    p = probabilities[:, target.class_index]
    odds: list[float] = (np.log(np.maximum(p, _MIN_P)) - np.log(np.maximum(opposite, _MIN_P))).tolist()
    return odds


def write_metadata_weights(
    out: Path, weights: Sequence[tuple[str, str, str | None, Sequence[InputWeight]]], *, is_raw: bool
) -> None:
    """Write metadata_weights.csv, or remove that of an earlier explanation where no image has weights.

    weights: image_id, class, the class that it is set against, and the weights of each image.
    """
    if not any(parts for *_, parts in weights):
        (out / METADATA_WEIGHTS_TABLE).unlink(missing_ok=True)
        return
    clean = tuple if is_raw else defused
    header = (
        "image_id", "class", "against", "part", "value", "p", "p_without", "log_odds_change", "predicted",
        "predicted_without",
    )  # fmt: skip
    rows = (
        clean((image_id, class_name, against or "", *asdict(one).values()))
        for image_id, class_name, against, parts in weights
        for one in parts
    )
    write_rows(out / METADATA_WEIGHTS_TABLE, header, rows)


def summarise_weights(weights: Sequence[Sequence[InputWeight]]) -> list[dict[str, Any]]:
    """Return of each part the fraction of images whose answer would be another without it, as metrics.json holds it."""
    summary = []
    for part in dict.fromkeys(one.part for parts in weights for one in parts):
        is_other = np.array(
            [one.predicted != one.predicted_without for of in weights for one in of if one.part == part]
        )
        estimate = proportion_estimate(is_other, np.arange(len(is_other)))
        summary.append({"part": part, "n_other_answer": int(is_other.sum()), **estimate.as_dict()})
    return summary


def summary_sentence(summary: Sequence[Mapping[str, Any]]) -> str:
    """Return the summary for people, "" without any."""
    if not summary:
        return ""
    texts, has_mark = [], False
    for one in summary:
        is_doubtful = reliability(one) == "doubtful"
        has_mark = has_mark or is_doubtful
        low, high = (100 * bound for bound in one["ci95"])
        texts.append(
            f"without {'the ' * (one['part'] != ALL_METADATA)}{one['part']} in {one['n_other_answer']} of {one['n']} "
            f"image{'s' * (one['n'] != 1)} (95 % interval {low:.0f} to {high:.0f} %{'*' * is_doubtful})"
        )
    footnote = " * An interval of few images: take it as a hint." if has_mark else ""
    return f"The answer would be another class {', '.join(texts)}.{footnote}"
