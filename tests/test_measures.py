"""What is measured on an image: known answers, odd images, and artefacts found on made photographs and only there."""

import math
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from dermkit.audit.scan.artefacts import ARTEFACT_COLUMNS, MIN_ARTEFACT_SIDE, MIN_RULER_SIDE, PRESENCE_THRESHOLDS
from dermkit.audit.scan.measures import (
    MEASURE_COLUMNS,
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    empty_measures,
    measure,
)
from dermkit.data.synthetic.lesions import ARTEFACT_RATES, CLASSES, draw_photograph, make_lesion, random_artefacts
from dermkit.images.decode import LesionImage, open_image
from dermkit.images.jpeg_tables import UNKNOWN_TABLES, JpegTables, read_jpeg_tables
from dermkit.images.statistics import reduce_pixels

Pixels = NDArray[np.uint8]
MADE = {"hair": "hair", "ruler": "ruler", "ink": "ink", "dark_corners": "dark_corner"}
"""Artefact of the made photographs -> its score."""


def _jpeg(pixels: Pixels, quality: int = 90, subsampling: int = 2, progressive: bool = False) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    return stream.getvalue()


def _measured(pixels: Pixels) -> dict[str, float]:
    row = measure(LesionImage(pixels, (), "PNG", "", ""), b"")
    return {name: float(row[name]) for name in NUMBER_COLUMNS}


def _photograph(label: str, seed: int, *artefacts: str, size: int = 160) -> Pixels:
    """A photograph that shows these artefacts and, where chance gives others, another one of the same lesion."""
    truth = make_lesion(label, seed=seed)
    photo = next(n for n in range(500) if not any(random_artefacts(truth, n).values()))
    return draw_photograph(truth, photo_seed=photo, size=size, artefacts=frozenset(artefacts))


def test_every_column_is_there_and_the_file_is_measured() -> None:
    pixels = np.full((90, 120, 3), (200, 100, 50), np.uint8)
    data = _jpeg(pixels, quality=75)
    row = measure(open_image(data), data)
    assert tuple(row) == tuple(empty_measures())
    assert set(row) == set(MEASURE_COLUMNS) == {*TEXT_COLUMNS, *NUMBER_COLUMNS}
    assert (row["format"], row["width"], row["height"], row["bytes"]) == ("JPEG", 120, 90, len(data))
    assert row["jpeg_quality"] == 75
    assert row["notes"] == ""
    for channel, value in zip("rgb", (200, 100, 50), strict=True):
        assert row[f"mean_{channel}"] == pytest.approx(value, abs=2)
        assert row[f"border_{channel}"] == pytest.approx(value, abs=2)
    assert row["brightness"] == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50, abs=2)
    assert row["contrast"] == pytest.approx(0, abs=1)


def test_the_border_is_measured_apart_from_the_middle() -> None:
    pixels = np.full((200, 200, 3), 30, np.uint8)
    pixels[20:-20, 20:-20] = 220
    row = _measured(pixels)
    assert row["border_r"] == 30
    assert row["border_spread"] == 0
    assert row["dark_fraction"] == 0
    assert row["low_level"] == 30
    assert row["high_level"] == 220
    assert row["mean_g"] == pytest.approx(30 * 0.36 + 220 * 0.64)


@pytest.mark.parametrize("quality", [10, 35, 50, 75, 92, 99])
def test_the_quality_of_a_common_encoder_is_read_back(quality: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    assert read_jpeg_tables(_jpeg(noise, quality)).quality == quality


def test_jpeg_tables_are_named_by_what_they_hold() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 255, (40, 56, 3), dtype=np.uint8) for _ in range(2))
    name = read_jpeg_tables(_jpeg(first)).key
    assert len(name) == 10
    assert read_jpeg_tables(_jpeg(second)).key == name
    assert read_jpeg_tables(_jpeg(first, quality=91)).key != name
    assert read_jpeg_tables(_jpeg(first, subsampling=0)).key != name


def test_the_keys_of_jpeg_tables_are_those_of_earlier_scans() -> None:
    """Made by commit 6429fce, which took the file apart byte by byte."""
    pixels = np.arange(48 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(48, 48, 3)
    assert read_jpeg_tables(_jpeg(pixels, 75, subsampling=2)) == JpegTables("1d7559ca54", 75.0)
    assert read_jpeg_tables(_jpeg(pixels, 90, subsampling=0, progressive=True)) == JpegTables("b10b801a83", 90.0)


@given(st.binary(max_size=400), st.integers(0, 700))
@settings(max_examples=200, deadline=None)
def test_broken_tables_are_unknown_and_never_raise(junk: bytes, cut: int) -> None:
    whole = _jpeg(np.full((16, 16, 3), 90, np.uint8))
    assert read_jpeg_tables(junk).key == "" or junk.startswith(b"\xff\xd8")
    read_jpeg_tables(b"\xff\xd8" + junk)
    read_jpeg_tables(whole[:cut] + junk)
    assert read_jpeg_tables(b"\x89PNG") == UNKNOWN_TABLES


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 90), st.integers(1, 90), st.just(3)), elements=st.integers(0, 255))
    | st.tuples(st.integers(1, 400), st.integers(1, 400), st.integers(0, 255)).map(
        lambda given: np.full((given[0], given[1], 3), given[2], np.uint8)
    )
)
@settings(max_examples=80, deadline=None)
def test_no_image_is_too_odd_to_measure(pixels: Pixels) -> None:
    row = _measured(pixels)
    assert row["brightness"] == pytest.approx(
        reduce_pixels(pixels).mean(axis=(1, 2)) @ [0.299, 0.587, 0.114], abs=0.5
    )
    for name in ARTEFACT_COLUMNS:
        least = MIN_RULER_SIDE if name == "ruler" else MIN_ARTEFACT_SIDE
        assert math.isnan(row[name]) == (min(reduce_pixels(pixels).shape[1:]) < least)
        assert math.isnan(row[name]) or 0 <= row[name] <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (8, 8), (64, 4000), (2000, 70)])
def test_odd_shapes_are_measured(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)
    row = _measured(noise)
    assert (row["width"], row["height"]) == (shape[1], shape[0])
    assert 0 < row["brightness"] < 255


def test_blur_lowers_the_sharpness_whatever_the_light() -> None:
    for seed in range(2):
        pixels = _photograph("melanoma", seed).astype(np.float32)
        sharp = _measured(pixels.astype(np.uint8))["sharpness"]
        dim = _measured((pixels * 0.6 + 30).astype(np.uint8))["sharpness"]
        soft = [
            _measured(gaussian_filter(pixels, (s, s, 0)).astype(np.uint8))["sharpness"] for s in (0.7, 1.4, 2.8)
        ]
        assert sharp > soft[0] > soft[1] >= soft[2]
        assert soft[1] < 0.5 * sharp
        assert dim == pytest.approx(sharp, rel=0.25)


@pytest.mark.parametrize("artefact", [name for name in ARTEFACT_RATES if name in MADE])
def test_an_artefact_is_found_where_it_is_drawn_and_nowhere_else(artefact: str) -> None:
    """In every class, so that network, globules, veil and vessels are not taken for it."""
    column = MADE[artefact]
    lesions = [(label, seed) for seed in (40, 41) for label in CLASSES]
    drawn = [
        _measured(_photograph(*lesion, artefact))[column] >= PRESENCE_THRESHOLDS[column] for lesion in lesions
    ]
    clean = [_measured(_photograph(*lesion)) for lesion in lesions]
    assert np.mean(drawn) > (0.6 if artefact == "ink" else 0.9)
    assert sum(row[column] >= PRESENCE_THRESHOLDS[column] for row in clean) == 0


def test_one_straight_bar_is_a_scale_and_no_hair() -> None:
    skin = np.full((160, 200, 3), (210, 160, 140), np.uint8)
    bar = skin.copy()
    bar[120:122, 60:140] = 30
    assert _measured(bar)["hair"] == 0
    bar[30:130, 40:42] = 30
    assert _measured(bar)["hair"] > 0.1


def test_marks_are_counted_at_any_angle_and_unevenly_spaced_ones_are_not() -> None:
    def lines(places: NDArray[np.floating], turn: float) -> Pixels:
        image = Image.new("RGB", (200, 200), (210, 160, 140))
        for place in places:
            image.paste((40, 40, 45), (int(20 + place), 90, int(20 + place) + 2, 102))
        return np.asarray(image.rotate(turn, Image.Resampling.BICUBIC, fillcolor=(210, 160, 140)))

    even = np.arange(12) * 13.0
    rng = np.random.default_rng(3)
    for turn in (0, 20, 45, 90, 130):
        assert _measured(lines(even, turn))["ruler"] >= PRESENCE_THRESHOLDS["ruler"]
    for _ in range(5):
        uneven = np.sort(rng.choice(np.arange(0, 156, 6), 9, replace=False)) + rng.integers(-2, 3, 9)
        assert _measured(lines(uneven.astype(float), 0))["ruler"] < PRESENCE_THRESHOLDS["ruler"]


@pytest.mark.parametrize(
    ("colour", "present"),
    [
        ((70, 45, 150), True),
        ((25, 60, 170), True),
        ((20, 130, 90), True),
        ((110, 60, 45), False),
        ((30, 25, 22), False),
    ],
)
def test_pens_are_told_from_pigment(colour: tuple[int, int, int], present: bool) -> None:
    skin = np.full((150, 200, 3), (215, 165, 145), np.uint8)
    skin[10:20, 15:60] = colour
    assert (_measured(skin)["ink"] >= PRESENCE_THRESHOLDS["ink"]) == present
    middle = np.full((150, 200, 3), (215, 165, 145), np.uint8)
    middle[60:90, 80:120] = colour  # a blue lesion is no ink
    assert _measured(middle)["ink"] == 0


def test_a_tinted_light_is_no_ink() -> None:
    for cast in ((0.8, 0.9, 1.25), (1.0, 0.85, 1.2), (0.9, 1.1, 0.9)):
        pixels = _photograph("nevus", 5) * np.array(cast)
        assert _measured(np.clip(pixels, 0, 255).astype(np.uint8))["ink"] < PRESENCE_THRESHOLDS["ink"]
