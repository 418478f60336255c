"""explain.html: the checks first, then each image beside its map; one file that loads nothing."""

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dermkit.explanation.deletion import CurveSummary
from dermkit.explanation.overlay import colour_stops, draw_curves
from dermkit.explanation.random_net_check import RandomNetCheck
from dermkit.explanation.records import (
    CURVES_PICTURE,
    EXPLAIN_PAGE,
    ImageExplanation,
    method_text,
    target_text,
)
from dermkit.files import write_bytes, write_text
from dermkit.render.html import template_environment
from dermkit.runs.model_verdict import ModelVerdict

if TYPE_CHECKING:
    from dermkit.explanation.map_verdict import MapVerdict

MAX_IMAGES_SHOWN = 60
"""Images on the page, which stays below 5 MB with them; the tables and overlays are of all."""
_N_OPEN = 8
"""Images that are not folded away: four rows of two."""


def write_page(
    out: Path, explanations: Sequence[ImageExplanation], *, model: str, verdict: ModelVerdict | None,
    reasons: Sequence[str], second_input: str,
    check: RandomNetCheck | None, summary: CurveSummary | None, rejected: Sequence[tuple[str, str, str]],
    map_verdict: "MapVerdict", remedies: Sequence[str],
) -> Path:  # fmt: skip
    """Write explain.html and, where there are curves, their picture; returns the page's path.

    verdict: of the model's report, None without one. reasons: why nets have no gradient-based map. second_input: what
    is said of metadata that the model takes, "" without. rejected: (name, reason, detail) of the images that were
    refused. map_verdict, remedies: what the checks say together, and what to do next.
    """
    curve_uris = _write_curves(out, explanations) if summary is not None else []
    entries = [
        {"image": one, "target": target_text(one), "facts": list(image_facts(one))}
        for one in explanations[:MAX_IMAGES_SHOWN]
    ]
    html = template_environment().get_template("explain.html.j2").render(
        title="Where the net looked", lead=_lead(explanations, model), verdict=verdict, reasons=reasons,
        map_verdict=map_verdict, remedies=remedies,
        check=check, second_input=second_input,
        summary=summary, curve_uris=curve_uris, mask_sentence=_mask_sentence(explanations),
        open_images=entries[:_N_OPEN], more_images=entries[_N_OPEN:],
        n_images=len(explanations), gradient=colour_stops(), rejected=rejected,
    )  # fmt: skip
    write_text(out / EXPLAIN_PAGE, html)
    return out / EXPLAIN_PAGE


def _lead(explanations: Sequence[ImageExplanation], model: str) -> str:
    n = len(explanations)
    methods = ", ".join(dict.fromkeys(method_text(one) for one in explanations))
    images = "One image" if n == 1 else f"{n:,} images"
    return (
        f"{images}, and over each a map of where the model {model} found evidence for the class that is named. "
        f"Method: {methods}."
    )


def _mask_sentence(explanations: Sequence[ImageExplanation]) -> str:
    """Return how much of the maps lies in the lesions, "" without masks."""
    shares = [one.share for one in explanations if one.share is not None]
    located = [(share.inside, share.area) for share in shares if share.inside is not None]
    if not located:
        return "Not applicable: no map with evidence has a mask." if shares else ""
    inside, area = np.mean(located, axis=0)
    n_outside = sum(one < 0.5 for one, _ in located)
    return (
        f"{100 * inside:.0f} % of a map lies inside the lesion on average, and {100 * area:.0f} % of an even map would "
        f"(n = {len(located)}). Most of the map lies outside in {n_outside} of them."
    )


def image_facts(one: ImageExplanation) -> Iterator[tuple[str, str]]:
    """Yield what was measured for one image, name and value."""
    if one.predicted != one.class_name:
        yield "predicted", one.predicted
    if one.predicted_uncalibrated not in ("", one.predicted):
        yield "most probable without calibration", one.predicted_uncalibrated
    if one.random_net_correlation is not None:
        yield "rank correlation with maps of random weights", f"{one.random_net_correlation:z.2f}"
    if one.curves is not None:
        yield "deletion: area below the random order", f"{one.curves.deletion_gain:+.3f}"
        yield "insertion: area above the random order", f"{one.curves.insertion_gain:+.3f}"
    if one.share is not None and one.share.inside is not None:
        yield "map inside the lesion", f"{100 * one.share.inside:.0f} % (even map: {100 * one.share.area:.0f} %)"


def _write_curves(out: Path, explanations: Sequence[ImageExplanation]) -> list[str]:
    """Draw the mean curves over images, all in one file; returns a picture of each for the page."""
    curves = [one.curves for one in explanations if one.curves is not None]
    mean_deletion, mean_insertion = (
        np.mean([getattr(one, name) for one in curves], axis=0) for name in ("deletion", "insertion")
    )
    random_deletion, random_insertion = (
        np.mean([getattr(one, name).mean(axis=0) for one in curves], axis=0)
        for name in ("random_deletion", "random_insertion")
    )
    series = [
        ("Deletion: cells are hidden", mean_deletion, random_deletion),
        ("Insertion: cells are shown", mean_insertion, random_insertion),
    ]
    label = "mean probability"
    write_bytes(out / CURVES_PICTURE, draw_curves(curves[0].fractions, series, label))
    pictures = [draw_curves(curves[0].fractions, [one], label) for one in series]
    return ["data:image/png;base64," + base64.b64encode(picture).decode("ascii") for picture in pictures]
