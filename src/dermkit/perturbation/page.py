"""counterfactuals.html: what moves the answers, worst first, with pictures and curves; one file that loads nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dermkit.files import write_bytes, write_text
from dermkit.images.preprocess import RgbPixels
from dermkit.metrics.stats.estimate import Estimate
from dermkit.perturbation.changes import AnswerChange
from dermkit.perturbation.curve import curve_svg
from dermkit.perturbation.first_screen import answer_fields, remedies
from dermkit.perturbation.plan import BACKGROUND_HIDDEN, LESION_HIDDEN, ORIGINAL_INDEX, PICTURES_FOLDER, STRENGTHS
from dermkit.perturbation.results import ArtefactResult, CounterfactualResult, most_changed_image
from dermkit.perturbation.scoring import ChangeSettings, change_image, lesion_of, open_for_changes
from dermkit.perturbation.sentences import difference_text, needs_footnote
from dermkit.render.html import template_environment
from dermkit.render.sheets import data_uri, jpeg_bytes, thumbnail
from dermkit.runs.layout import COUNTERFACTUALS_PAGE

_PICTURE_SIDE = 240
_N_UNFOLDED = 3
"""Artefacts that are shown in full at once; the others are folded."""


@dataclass(frozen=True)
class ShownPicture:
    """A picture on the page. text: below it."""

    uri: str
    text: str


@dataclass(frozen=True)
class ShownArtefact:
    """An artefact on the page: its sentence, pictures from the unchanged image to the strongest, curve, and figures."""

    result: ArtefactResult
    pictures: tuple[ShownPicture, ...]
    curve: str
    image_id: str


def write_counterfactuals_page(
    out: Path, result: CounterfactualResult, settings: ChangeSettings, *, model: str,
    rejected: Sequence[tuple[str, str, str]], warning: str,
) -> Path:  # fmt: skip
    """Write counterfactuals.html and the pictures and curves on it; returns the page's path."""
    largest = max((_reach(change) for one in result.artefacts for change in one.changes), default=0.0)
    shown = [_show(out, result, settings, one, max(largest, 0.05)) for one in result.artefacts]
    answer = answer_fields(result)
    html = template_environment().get_template("counterfactuals.html.j2").render(
        title="What moves the answers", model=model, result=result, wording=result.wording,
        answer=answer, remedies=list(remedies(result)),
        artefacts=[(one, _table_row(one.result, largest)) for one in shown], n_unfolded=_N_UNFOLDED,
        hidden=list(_show_hidden(out, result, settings)), all_rows=list(_all_rows(result)),
        has_footnote=any(needs_footnote(figure) for one in result.artefacts for figure in _figures(one.strongest)),
        n_artefacts=len(result.artefacts), rejected=rejected, warning=warning, difference=difference_text,
    )  # fmt: skip
    write_text(out / COUNTERFACTUALS_PAGE, html)
    return out / COUNTERFACTUALS_PAGE


def _figures(change: AnswerChange) -> tuple[Estimate, ...]:
    return change.score, change.sensitivity, change.specificity


def _reach(change: AnswerChange) -> float:
    """Return how far from 0 a change and its interval go."""
    low, high = change.score.ci95 or (0.0, 0.0)
    return max(abs(change.score.value or 0.0), abs(low), abs(high))


# Pictures -----------------------------------------------------------------------------------------------------------


def _show(
    out: Path, result: CounterfactualResult, settings: ChangeSettings, one: ArtefactResult, largest: float
) -> ShownArtefact:
    """Return an artefact with the image that it moves most; also writes its strip of pictures and its curve."""
    name = one.artefact.name
    image = most_changed_image(result, name)
    numbers = [number for number, variant in enumerate(result.variants) if variant.name == name]
    pixels = _render(result, settings, image, [ORIGINAL_INDEX, *numbers])
    texts = [
        f"{'unchanged' if number == ORIGINAL_INDEX else f'strength {result.variants[number].strength:.2f}'}: "
        f"{_answer_text(result, image, number)}"
        for number in (ORIGINAL_INDEX, *numbers)
    ]
    pictures = tuple(
        ShownPicture(data_uri(picture, _PICTURE_SIDE), text) for picture, text in zip(pixels, texts, strict=True)
    )
    curve = curve_svg(STRENGTHS, [change.score for change in one.changes], largest, label=one.sentence)
    _write_strip(out / PICTURES_FOLDER / f"{name}.jpg", pixels)
    write_text(out / PICTURES_FOLDER / f"{name}.svg", curve)
    return ShownArtefact(one, pictures, curve, str(result.selection.rows["image_id"].iloc[image]))


def _render(
    result: CounterfactualResult, settings: ChangeSettings, image: int, numbers: Sequence[int]
) -> list[RgbPixels]:
    """Return some variants of an image, as they were scored."""
    row = result.selection.rows.iloc[image]
    image_id, path = str(row["image_id"]), Path(str(row["path"]))
    pixels = open_for_changes(path, image_id)
    lesion = lesion_of(pixels, path, image_id, settings.masks)
    return [
        change_image(pixels, result.variants[number], lesion, image_id=image_id, seed=settings.seed)
        for number in numbers
    ]


def _answer_text(result: CounterfactualResult, image: int, number: int) -> str:
    """Return the answer to a picture for people."""
    name = "P(malignant)" if result.answers.is_malignant is not None else "P(true class)"
    text = f"{name} {result.answers.score[image, number]:.2f}"
    if result.answers.is_positive is None:
        return text
    return f"{text}, {'positive' if result.answers.is_positive[image, number] else 'negative'}"


def _write_strip(path: Path, pictures: Sequence[RgbPixels]) -> None:
    """Write pictures of one shape side by side as one JPEG."""
    strip = np.concatenate([np.asarray(thumbnail(picture, _PICTURE_SIDE)) for picture in pictures], axis=1)
    write_bytes(path, jpeg_bytes(Image.fromarray(strip)))


def _show_hidden(
    out: Path, result: CounterfactualResult, settings: ChangeSettings
) -> Iterator[tuple[str, str, tuple[ShownPicture, ...]]]:
    """Yield title, sentence and pictures of each hidden part, of the image whose answer it moves most."""
    names = {LESION_HIDDEN: "lesion hidden", BACKGROUND_HIDDEN: "background hidden"}
    for one in result.hidden:
        image = most_changed_image(result, one.name)
        number = next(index for index, variant in enumerate(result.variants) if variant.name == one.name)
        pixels = _render(result, settings, image, [ORIGINAL_INDEX, number])
        _write_strip(out / PICTURES_FOLDER / f"{one.name}.jpg", pixels)
        texts = [f"unchanged: {_answer_text(result, image, ORIGINAL_INDEX)}"]
        texts.append(f"{names[one.name]}: {_answer_text(result, image, number)}")
        pictures = [
            ShownPicture(data_uri(picture, _PICTURE_SIDE), text)
            for picture, text in zip(pixels, texts, strict=True)
        ]
        yield one.title, one.sentence, tuple(pictures)


# Tables -------------------------------------------------------------------------------------------------------------


def _table_row(one: ArtefactResult, largest: float) -> dict[str, str]:
    """Return the cells of an artefact at full strength, and the places of its bar on a scale of -largest to largest."""
    change, scale = one.strongest, max(largest, 0.05)
    low, high = change.score.ci95 or (change.score.value or 0.0,) * 2

    def place(value: float) -> str:
        return f"{50 + 50 * value / scale:.1f}"

    return {
        "low": place(low),
        "width": f"{50 * (high - low) / scale:.1f}",
        "value": place(change.score.value or 0.0),
        "change": difference_text(change.score),
        "decisions": f"{change.n_decisions} of {change.decisions.n}",
        "directions": "" if change.n_to_positive is None else f"{change.n_to_positive} / {change.n_to_negative}",
        "sensitivity": difference_text(change.sensitivity),
        "specificity": difference_text(change.specificity),
    }


def _all_rows(result: CounterfactualResult) -> Iterator[tuple[str, ...]]:
    """Yield a row of text for each artefact and strength."""
    for one in result.artefacts:
        for strength, change in zip(STRENGTHS, one.changes, strict=True):
            crossing = "" if change.n_to_positive is None else f"{change.n_to_positive} / {change.n_to_negative}"
            p_holm = "" if change.p_holm is None else "< .001" if change.p_holm < 0.001 else f"{change.p_holm:.3f}"
            yield (
                one.artefact.title, f"{strength:.2f}", difference_text(change.score), p_holm.replace("0.", "."),
                str(change.n_label_changes), crossing, difference_text(change.sensitivity),
                difference_text(change.specificity), difference_text(change.accuracy),
            )  # fmt: skip
