"""Augmentation: what may change, by how much, and what its random numbers depend on."""

import colorsys
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.ndimage import convolve, map_coordinates, median_filter
from scipy.stats import binom, chisquare, kstest
from torch import Tensor
from torch.nn import functional as F

from dermkit.recipes.augmentation import (
    PRESETS,
    AugmentSpec,
    BlurNoiseSpec,
    ClaheSpec,
    CutoutSpec,
    DistortSpec,
    HsvSpec,
)
from dermkit.training.augment import batch as augmentation
from dermkit.training.augment import blur_noise, colour, geometry
from dermkit.training.augment import random_numbers as numbers
from dermkit.training.augment.batch import (
    augment_and_normalise,
    augment_batch,
    balanced_order,
    epoch_order,
    image_key,
)
from dermkit.training.augment.random_numbers import CounterRng, Stream

ZERO = replace(PRESETS["none"], fill="black")
FULL = replace(
    ZERO, horizontal_flip=True, vertical_flip=True, rotate=180.0, shift=0.1, zoom=0.2, brightness=0.2,
    contrast=0.2, saturation=0.3, fill="reflect",
)  # fmt: skip
ROTATED = -14.029995057029307
CHANGED = "6fcb67375b76e74d"
"""Of the first version: a draw, and the digest of a batch."""

DISTORT = DistortSpec(p=1.0, optical=0.8, grid=0.5, grid_steps=5, elastic=0.1, elastic_cells=4)
BLUR_NOISE = BlurNoiseSpec(p=1.0, motion=5, median=5, gaussian=7, noise=(20.0, 80.0))
HSV = HsvSpec(p=1.0, hue=40.0, saturation=0.2, value=0.1)
CLAHE = ClaheSpec(p=1.0, clip=6.0, tiles=4)
CUTOUT = CutoutSpec(p=1.0, side=0.375)
ALL = replace(
    FULL, transpose=True, p_geometric=0.7, p_colour=0.6, distort=replace(DISTORT, p=0.6), hsv=replace(HSV, p=0.5),
    blur_noise=replace(BLUR_NOISE, p=0.7), clahe=replace(CLAHE, p=0.5), cutout=replace(CUTOUT, p=0.5),
)  # fmt: skip
KEYS = [image_key(f"lesion/{number}") for number in range(64)]


def images(n: int, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def augment(batch: Tensor, spec: AugmentSpec, keys: Any = None, *, seed: int = 1, epoch: int = 1) -> Tensor:
    return augment_batch(batch, spec, seed=seed, epoch=epoch, keys=KEYS[: len(batch)] if keys is None else keys)


def dot(n: int, row: int, column: int, side: int = 65) -> Tensor:
    """Return images that are black but for a soft bright spot, whose centre of mass can be measured."""
    rows, columns = torch.arange(side).view(-1, 1), torch.arange(side).view(1, -1)
    spot = torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8.0)
    return spot.expand(n, 3, side, side).contiguous()


def centres(batch: Tensor) -> Tensor:
    """Return (N, 2): row and column of the centre of mass, from the image's middle."""
    mass = batch.mean(dim=1)
    side = mass.shape[-1]
    axis = torch.arange(side) - (side - 1) / 2
    total = mass.sum(dim=(1, 2))
    return torch.stack([(mass.sum(dim=2) @ axis) / total, (mass.sum(dim=1) @ axis) / total], dim=1)


# What the random numbers depend on


@settings(max_examples=20, deadline=None)
@given(
    order=st.permutations(range(8)), size=st.integers(1, 8), fill=st.sampled_from(["reflect", "black", "edge"]),
    spec=st.sampled_from([FULL, ALL]), side=st.sampled_from([16, 32, 45]),
)  # fmt: skip
def test_batch_size_and_order_change_nothing(
    order: list[int], size: int, fill: Literal["reflect", "black", "edge"], spec: AugmentSpec, side: int
) -> None:
    batch, spec = images(8, side), replace(spec, fill=fill)
    whole = augment(batch, spec)
    for start in range(0, 8, size):
        part = order[start : start + size]
        alone = augment(batch[part], spec, [KEYS[index] for index in part])
        assert torch.equal(alone, whole[part])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_threads_parts_and_the_order_in_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = images(4, 112)  # large enough that torch divides the work
    results = []
    for count, cached, form in (
        (1, 2**20, torch.contiguous_format), (3, 2**20, torch.contiguous_format), (1, 1, torch.contiguous_format),
        (1, 2**20, torch.channels_last),
    ):  # fmt: skip
        torch.set_num_threads(count)
        monkeypatch.setattr(augmentation, "_CHUNK_BYTES", cached)
        results.append(augment(batch.contiguous(memory_format=form), ALL))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("side", [64, 128, 160, 224, 299])
@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_feels_the_batch_or_the_threads(name: str, side: int) -> None:
    batch, rng = images(40, side), np.random.default_rng(side)
    torch.set_num_threads(1)
    whole = augment(batch, PRESETS[name], epoch=side)
    for _ in range(4):
        torch.set_num_threads(int(rng.integers(1, 4)))
        part = rng.permutation(40)[: int(rng.integers(1, 41))]
        assert torch.equal(augment(batch[part], PRESETS[name], [KEYS[at] for at in part], epoch=side), whole[part])


@pytest.mark.parametrize("spec", [ZERO, FULL, ALL], ids=["none", "plain", "all"])
def test_from_pixels_gives_the_same_numbers_as_the_steps_one_by_one(spec: AugmentSpec) -> None:
    pixels = torch.randint(0, 256, (9, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    unit = pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
    centre, spread = (torch.tensor(item).view(1, 3, 1, 1) for item in (mean, std))
    batch = augment_and_normalise(
        pixels, spec, seed=1, epoch=1, keys=KEYS[:9], divide_by=255.0, mean=mean, std=std
    )
    assert torch.equal(batch, augment(unit, spec).sub(centre).div_(spread))
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_seed_epoch_key_and_copy_each_change_the_result() -> None:
    batch = images(1).expand(4, -1, -1, -1).contiguous()
    whole = augment(batch, FULL)
    assert torch.equal(augment(batch, FULL), whole)
    assert all(not torch.equal(whole[0], other) for other in whole[1:])
    assert not torch.equal(augment(batch, FULL, seed=2), whole)
    assert not torch.equal(augment(batch, FULL, epoch=2), whole)
    assert image_key("a") != image_key("a", 1) != image_key("a1")


def test_keys_and_orders_are_the_same_in_every_version() -> None:
    # Written down from the first version: a change would silently break the resume of older runs.
    first = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)
    assert numbers.mix64(first)[0] == 0xE220A8397B1DCDAF  # splitmix64's published first number from state 0
    assert image_key("ISIC_0000000") == 18017197994878011488
    assert epoch_order(8, seed=0, epoch=1).tolist() == [4, 6, 1, 5, 3, 2, 0, 7]
    names = "FLIP_X FLIP_Y ROTATE SHIFT_X SHIFT_Y ZOOM BRIGHTNESS CONTRAST SATURATION"
    assert [Stream[name] for name in names.split()] == list(range(9))
    assert int(Stream.ORDER) == 100
    assert len(set(Stream)) == len(Stream.__members__)
    draws = CounterRng(np.array(KEYS[:1], dtype=np.uint64), 7, 3)
    assert draws.uniform(Stream.ROTATE, 30.0)[0] == ROTATED
    batch = torch.arange(3 * 16 * 16).view(1, 3, 16, 16).float() / 768
    spec = replace(ZERO, horizontal_flip=True, brightness=0.2, saturation=0.3)
    changed = augment(batch.expand(4, -1, -1, -1).contiguous(), spec, seed=7, epoch=3)
    assert hashlib.sha256(changed.numpy().tobytes()).hexdigest()[:16] == CHANGED


def test_keys_may_be_an_array_and_must_be_as_many_as_images() -> None:
    batch = images(4)
    assert torch.equal(augment(batch, FULL, np.array(KEYS[:4], dtype=np.uint64)), augment(batch, FULL))
    with pytest.raises(ValueError, match="3 keys for 4 images"):
        augment(batch, FULL, KEYS[:3])


def test_switching_one_change_on_leaves_the_draws_of_others_alone() -> None:
    batch = images(8)
    flipped = augment(batch, replace(ZERO, horizontal_flip=True))
    darker = augment(batch, replace(ZERO, horizontal_flip=True, brightness=0.1))
    ratio = darker / flipped.clamp_min(1e-3)
    assert ratio.amin(dim=(1, 2, 3)).ge(0.5).any()  # the same pixels, scaled
    for before, after in zip(flipped, darker, strict=True):
        factor = (before * after).sum() / (before * before).sum()
        assert torch.allclose(after, (before * factor).clamp(0, 1), atol=0.02)


@given(n=st.integers(0, 300), seed=st.integers(-5, 2**63), epoch=st.integers(0, 10_000))
def test_an_epochs_order_is_a_permutation_from_seed_and_epoch(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, epoch_order(n, seed=seed, epoch=epoch))
    if n > 50:
        assert not np.array_equal(order, epoch_order(n, seed=seed, epoch=epoch + 1))
        assert not np.array_equal(order, epoch_order(n, seed=seed + 1, epoch=epoch))


# What changes, and by how much


def test_zeros_return_the_batch_itself() -> None:
    batch = images(4)
    assert augment(batch, ZERO) is batch


@pytest.mark.parametrize("fill", ["reflect", "black", "edge"])
def test_the_result_stays_in_range_and_the_input_is_untouched(fill: Literal["reflect", "black", "edge"]) -> None:
    batch = images(16)
    before = batch.clone()
    changed = augment(batch, replace(FULL, fill=fill, brightness=0.9, contrast=0.9, saturation=0.9))
    assert changed.shape == batch.shape
    assert changed.dtype == torch.float32
    assert changed.min() >= 0.0
    assert changed.max() <= 1.0
    assert torch.equal(batch, before)


@pytest.mark.parametrize(
    ("spec", "axis"), [(replace(ZERO, horizontal_flip=True), -1), (replace(ZERO, vertical_flip=True), -2)]
)
def test_flips_move_pixels_exactly_in_about_half_of_the_images(spec: AugmentSpec, axis: int) -> None:
    batch = images(64)
    changed = augment(batch, spec)
    flipped = [torch.equal(new, old.flip(axis)) for new, old in zip(changed, batch, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(changed, batch, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 20 <= sum(flipped) <= 44  # 99.8 % of fair coins
    # The affine path flips the same images to the same pixels, up to interpolation.
    nearly = augment(batch, replace(spec, zoom=1e-12))
    assert torch.allclose(nearly, changed, atol=1e-4)


def test_rotation_keeps_the_distance_from_the_middle_and_stays_within_its_angle() -> None:
    start = dot(64, row=32, column=52)
    moved = centres(augment(start, replace(ZERO, rotate=30.0)))
    assert torch.allclose(moved.norm(dim=1), torch.full((64,), 20.0), atol=0.2)
    angles = torch.rad2deg(torch.atan2(moved[:, 0], moved[:, 1]))
    assert angles.abs().max() <= 30.5
    assert angles.min() < -20
    assert angles.max() > 20


def test_shift_and_zoom_stay_within_their_shares() -> None:
    shifted = centres(augment(dot(64, row=32, column=32), replace(ZERO, shift=0.1)))
    for axis in (0, 1):
        assert -6.6 <= shifted[:, axis].min() < -5.0  # 10 % of 65 pixels
        assert 5.0 < shifted[:, axis].max() <= 6.6
    zoomed = centres(augment(dot(64, row=32, column=48), replace(ZERO, zoom=0.25)))
    assert torch.allclose(zoomed[:, 0], torch.zeros(64), atol=0.05)
    assert zoomed[:, 1].min() >= 16 * 0.75 - 0.1
    assert zoomed[:, 1].max() <= 16 * 1.25 + 0.1
    assert zoomed[:, 1].max() - zoomed[:, 1].min() > 5


def test_fill_decides_what_lies_outside() -> None:
    white = torch.ones(8, 3, 32, 32)
    spec = replace(ZERO, rotate=45.0, shift=0.2)
    assert augment(white, replace(spec, fill="black")).min() == 0.0
    for fill in ("reflect", "edge"):
        assert augment(white, replace(spec, fill=fill)).min() > 0.999


def test_a_rotation_in_a_wide_image_is_a_rotation() -> None:
    wide = torch.zeros(32, 3, 33, 65)
    wide[:, :, 15:18, 42:45] = 1.0  # 11 pixels to the right of the middle
    mass = augment(wide, replace(ZERO, rotate=180.0))[:, 0]
    rows, columns = torch.arange(33) - 16.0, torch.arange(65) - 32.0
    total = mass.sum(dim=(1, 2))
    place = torch.stack([(mass.sum(dim=2) @ rows) / total, (mass.sum(dim=1) @ columns) / total])
    assert torch.allclose(place.norm(dim=0), torch.full((32,), 11.0), atol=0.3)


def test_brightness_scales_contrast_keeps_the_mean_saturation_keeps_the_grey() -> None:
    batch = 0.35 + 0.3 * images(16)  # far enough from 0 and 1 that nothing is clamped
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)

    factors = augment(batch, replace(ZERO, brightness=0.2)) / batch
    assert factors.amin() >= 0.8
    assert factors.amax() <= 1.2
    assert (factors.amax(dim=(1, 2, 3)) - factors.amin(dim=(1, 2, 3))).max() < 1e-5

    contrast = augment(batch, replace(ZERO, contrast=0.3))
    grey = [(part * luma).sum(dim=1).mean(dim=(1, 2)) for part in (batch, contrast)]
    assert torch.allclose(grey[0], grey[1], atol=1e-5)
    spread = contrast.std(dim=(1, 2, 3)) / batch.std(dim=(1, 2, 3))
    assert 0.7 <= spread.min() < 0.9
    assert 1.1 < spread.max() <= 1.3

    saturated = augment(batch, replace(ZERO, saturation=0.5))
    assert torch.allclose((saturated * luma).sum(dim=1), (batch * luma).sum(dim=1), atol=1e-5)
    assert not torch.allclose(saturated, batch, atol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_images() -> None:
    batch = images(8)
    assert torch.allclose(augment(batch.cuda(), FULL).cpu(), augment(batch, FULL), atol=1e-4)


# Each change against an independent reference


def draws(n: int = 8, *, seed: int = 1, epoch: int = 1) -> CounterRng:
    return CounterRng(
        np.array([image_key(f"lesion/{number}") for number in range(n)], dtype=np.uint64), seed, epoch
    )


def smooth(n: int, side: int = 48) -> Tensor:
    """Return images of low waves, which interpolation hardly changes."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    one = torch.stack([0.5 + 0.4 * torch.sin(3 * x + 2 * y), 0.5 + 0.4 * torch.cos(4 * y), 0.2 + 0.6 * x * y])
    return one.expand(n, -1, -1, -1).contiguous()


def read(image: Tensor, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the image read at places in -1..1, by SciPy; what lies outside is reflected."""
    side = image.shape[-1]
    places = [(axis + 1) * side / 2 - 0.5 for axis in (y, x)]
    return np.stack([map_coordinates(part, places, order=1, mode="reflect") for part in image.double().numpy()])


def middles(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    at = (2 * np.arange(side) + 1) / side - 1
    y, x = np.meshgrid(at, at, indexing="ij")
    return y, x


SIDE = 48


def test_the_places_are_those_of_torchs_own_affine_grid() -> None:
    for height, width in ((48, 48), (33, 65)):
        theta = torch.from_numpy(geometry._affine_matrices(FULL, draws(16), height, width))
        expected = F.affine_grid(theta, [16, 3, height, width], align_corners=False)
        assert torch.allclose(
            geometry._affine_grid(theta, height, width).permute(0, 2, 3, 1), expected, atol=5e-7, rtol=0
        )


def test_the_eight_positions_of_a_square_are_taken_evenly() -> None:
    one = torch.arange(3 * 4 * 4).view(1, 3, 4, 4).float() / 48
    spec = replace(ZERO, horizontal_flip=True, vertical_flip=True, transpose=True)
    changed = augment(one.expand(4000, -1, -1, -1).contiguous(), spec, draws(4000).keys)
    positions = [base.rot90(turns, (-2, -1)) for base in (one[0], one[0].flip(-1)) for turns in range(4)]
    names = {position.numpy().tobytes(): number for number, position in enumerate(positions)}
    counts = Counter(names[image.numpy().tobytes()] for image in changed)
    assert chisquare([counts[number] for number in range(8)]).pvalue > 1e-4


def test_a_transposed_image_is_moved_like_any_other() -> None:
    spec = replace(ZERO, horizontal_flip=True, vertical_flip=True, transpose=True)
    batch = images(32)
    assert torch.allclose(augment(batch, replace(spec, zoom=1e-12)), augment(batch, spec), atol=1e-4)
    with pytest.raises(ValueError, match="16 x 32 pixels cannot be transposed"):
        augment(torch.zeros(1, 3, 16, 32), spec)


def test_images_that_are_not_moved_keep_their_pixels() -> None:
    batch = images(64)
    changed = augment(batch, replace(ZERO, rotate=30.0, p_geometric=0.5))
    kept = [torch.equal(*pair) for pair in zip(batch, changed, strict=True)]
    assert 16 < sum(kept) < 48


def test_optical_distortion_reads_where_its_formula_says() -> None:
    spec = replace(DISTORT, grid=0.0, elastic=0.0)
    batch = smooth(8, SIDE)
    changed = augment(batch, replace(ZERO, distort=spec), draws().keys)
    y, x = middles(SIDE)
    square = (x**2 + y**2) / 4
    ks = draws().uniform(Stream.OPTICAL, 0.8)
    assert ks.min() < 0 < ks.max()
    for image, before, k in zip(changed, batch, ks, strict=True):
        factor = 1 + k * square if k > 0 else 1 / (1 - k * square)
        assert np.abs(image.numpy() - read(before, y * factor, x * factor))[:, 1:-1, 1:-1].max() < 2e-3


def test_grid_distortion_stretches_strips_and_fills_the_image() -> None:
    spec = replace(DISTORT, optical=0.0, elastic=0.0)
    batch = smooth(8, SIDE)
    changed = augment(batch, replace(ZERO, distort=spec), draws().keys)
    widths = geometry.strip_widths(spec, draws())
    assert np.allclose(widths.sum(axis=2), 2.0)
    ratio = widths.max(axis=2) / widths.min(axis=2)
    assert 1.5 < ratio.max() < 3.0
    y, x = middles(SIDE)
    even = np.linspace(-1, 1, 6)
    for image, before, (across, down) in zip(changed, batch, widths, strict=True):
        to_x = np.interp(x, even, np.concatenate([[-1], -1 + np.cumsum(across)]))
        to_y = np.interp(y, even, np.concatenate([[-1], -1 + np.cumsum(down)]))
        assert np.abs(image.numpy() - read(before, to_y, to_x))[:, 1:-1, 1:-1].max() < 2e-3


def test_elastic_distortion_is_a_smooth_spline_within_its_reach() -> None:
    spec = replace(DISTORT, optical=0.0, grid=0.0)
    batch = smooth(8, SIDE)
    changed = augment(batch, replace(ZERO, distort=spec), draws().keys)
    field = 2 * draws().uniform_matrix(Stream.ELASTIC, 2 * 7 * 7, 0.1).reshape(8, 2, 7, 7)
    assert np.abs(field).max() <= 0.2  # a tenth of the side, of which there are two units
    basis = BSpline(np.arange(-3, 8), np.eye(7), 3)((np.arange(SIDE) + 0.5) / SIDE * 4)
    y, x = middles(SIDE)
    for image, before, nodes in zip(changed, batch, field, strict=True):
        dx, dy = (basis @ part @ basis.T for part in nodes)
        assert np.abs(image.numpy() - read(before, y + dy, x + dx))[:, 1:-1, 1:-1].max() < 2e-3


@pytest.mark.parametrize("kind", ["optical", "grid", "elastic"])
def test_a_distortion_of_next_to_nothing_changes_next_to_nothing(kind: str) -> None:
    tiny = {name: 1e-9 if name == kind else 0.0 for name in ("optical", "grid", "elastic")}
    nothing = replace(DISTORT, optical=tiny["optical"], grid=tiny["grid"], elastic=tiny["elastic"])
    batch = images(4)
    assert torch.allclose(augment(batch, replace(ZERO, distort=nothing)), batch, atol=1e-4)


def test_a_distortion_mixes_no_black_into_the_image() -> None:
    white = torch.ones(32, 3, 32, 32)
    strong = replace(DISTORT, optical=1.0, grid=1.0, elastic=0.5)
    assert augment(white, replace(ZERO, distort=strong, fill="black")).min() > 0.999
    # What the move exposes stays the fill's: as much black with the distortion as without.
    moved = replace(ZERO, rotate=45.0, shift=0.3)
    black = [
        (augment(white, spec) < 0.5).float().mean(dim=(1, 2, 3))
        for spec in (moved, replace(moved, distort=strong))
    ]
    assert black[0].max() > 0.2
    assert (black[0] - black[1]).abs().max() < 0.02


def test_motion_kernels_are_straight_lines_through_the_middle() -> None:
    kernels = blur_noise.motion_kernels(draws(200), 7)
    sides = np.count_nonzero(kernels, axis=(1, 2))
    assert set(sides) == {3, 5, 7}
    assert np.allclose(kernels.sum(axis=(1, 2)), 1.0)
    assert np.array_equal(kernels, kernels[:, ::-1, ::-1])
    for kernel, side in zip(kernels, sides, strict=True):
        rows, columns = np.nonzero(kernel)
        spread = np.linalg.eigvalsh(np.cov(np.stack([rows, columns])))
        assert spread[0] < 0.3  # across the line: half a pixel of rounding
        assert max(np.ptp(rows), np.ptp(columns)) == side - 1
    assert len({kernel.tobytes() for kernel in kernels}) > 15


def only(**kinds: Any) -> BlurNoiseSpec:
    return replace(BLUR_NOISE, **{"motion": 0, "median": 0, "gaussian": 0, "noise": (0.0, 0.0), **kinds})


def test_motion_blur_is_a_convolution_with_a_mirrored_border() -> None:
    batch = images(12)
    changed = blur_noise.blur_or_noise(batch, only(motion=7), draws(12))
    for image, before, kernel in zip(changed, batch, blur_noise.motion_kernels(draws(12), 7), strict=True):
        expected = convolve(before.double().numpy(), kernel[None].astype(np.float64), mode="mirror")
        assert np.abs(image.numpy() - expected).max() < 1e-6


def test_gaussian_blur_is_opencvs_kernel() -> None:
    batch = images(12)
    changed = blur_noise.blur_or_noise(batch, only(gaussian=7), draws(12))
    sides = blur_noise.kernel_sizes(draws(12), 7)
    assert set(sides) == {3, 5, 7}
    for image, before, side in zip(changed, batch, sides, strict=True):
        sigma = 0.3 * ((side - 1) / 2 - 1) + 0.8
        line = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * sigma**2))
        kernel = np.outer(line, line) / line.sum() ** 2
        expected = convolve(before.double().numpy(), kernel[None], mode="mirror")
        assert np.abs(image.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("side", [3, 5, 7])
def test_the_median_is_scipys(side: int) -> None:
    batch = images(3, 21)
    batch[1] = (batch[1] * 4).floor() / 4  # ties
    expected = median_filter(batch.numpy(), size=(1, 1, side, side), mode="mirror")
    assert np.array_equal(blur_noise.median_filter(batch, side).numpy(), expected)


def test_noise_is_normal_of_the_variance_asked_for_and_the_same_on_every_device() -> None:
    grey = torch.full((6, 3, 64, 64), 0.5)
    changed = blur_noise.blur_or_noise(grey, only(noise=(20.0, 80.0)), draws(6))
    variances = 20 + 60 * draws(6).random(Stream.NOISE_VARIANCE)
    values = ((changed - grey) * 255).double().numpy().reshape(6, -1)
    assert np.allclose(values.var(axis=1), variances, rtol=0.05)
    assert np.abs(values.mean(axis=1)).max() < 0.3
    standard = blur_noise.standard_normals(draws(6), (3, 64, 64), torch.device("cpu")).double().numpy()
    assert kstest(standard.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(standard.reshape(18, -1)) - np.eye(18)).max() < 0.07
    hashes = draws(6).hash_matrix(Stream.NOISE, 10)[:, :, None] >> (np.arange(5, dtype=np.uint64) * np.uint64(12))
    expected = blur_noise.normal_table()[(hashes & np.uint64(4095)).astype(np.int64)].reshape(6, -1)
    assert np.array_equal(standard.reshape(6, -1)[:, :50], expected)


def test_hue_saturation_and_value_shift_as_colorsys_says() -> None:
    batch = images(6, 16)
    batch[:, :, 0] = batch[:, :1, 0]  # a grey row
    batch[:, :, 1] = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1)
    batch[:, :, 2] = torch.tensor([0.2, 0.7, 0.7]).view(1, 3, 1)
    batch[:, :, 3] = 0.0
    changed = colour.shift_hsv(batch, HSV, draws(6))
    shifts = zip(
        draws(6).uniform(Stream.HSV_HUE, 40.0) / 360, draws(6).uniform(Stream.HSV_SATURATION, 0.2),
        draws(6).uniform(Stream.HSV_VALUE, 0.1), strict=True,
    )  # fmt: skip
    for image, before, (turn, more, lighter) in zip(changed, batch, shifts, strict=True):
        pixels = before.permute(1, 2, 0).reshape(-1, 3).double().tolist()
        for pixel, after in zip(pixels, image.permute(1, 2, 0).reshape(-1, 3).tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            saturation = min(max(saturation + more, 0.0), 1.0) if saturation else 0.0
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, min(max(value + lighter, 0.0), 1.0))
            assert np.allclose(after, expected, atol=2e-5)


def equalised(levels: NDArray[np.int64], tiles: int, clip: float) -> NDArray[np.float64]:
    """CLAHE tile by tile and pixel by pixel, as its description reads."""
    n = len(levels)
    side = -(-n // tiles)
    padded = np.pad(levels, (0, side * tiles - n), mode="reflect")
    curves = np.zeros((tiles, tiles, 256))
    for row in range(tiles):
        for column in range(tiles):
            tile = padded[row * side : (row + 1) * side, column * side : (column + 1) * side]
            counts = [int((tile == level).sum()) for level in range(256)]
            limit = max(int(clip * side * side / 256), 1)
            over = sum(max(count - limit, 0) for count in counts)
            counts = [min(count, limit) + over // 256 for count in counts]
            left, at = over % 256, 0
            step = max(256 // left, 1) if left else 1
            while left > 0 and at < 256:
                counts[at] += 1
                left, at = left - 1, at + step
            curves[row, column] = np.cumsum(counts) / side**2
    out = np.empty(levels.shape)
    for y, x in np.ndindex(*levels.shape):
        at_y, at_x = y / side - 0.5, x / side - 0.5
        sum_, first_y, first_x = 0.0, int(np.floor(at_y)), int(np.floor(at_x))
        for row, share_y in ((first_y, 1 - at_y + first_y), (first_y + 1, at_y - first_y)):
            for column, share_x in ((first_x, 1 - at_x + first_x), (first_x + 1, at_x - first_x)):
                curve = curves[min(max(row, 0), tiles - 1), min(max(column, 0), tiles - 1)]
                sum_ += share_y * share_x * curve[levels[y, x]]
        out[y, x] = sum_
    return out


@pytest.mark.parametrize(
    ("side", "tiles", "range_"), [(32, 4, 0.4), (30, 4, 0.4), (17, 8, 0.4), (16, 1, 0.4), (64, 1, 0.03)]
)
def test_clahe_equalises_as_its_description_reads(side: int, tiles: int, range_: float) -> None:
    batch = 0.3 + range_ * (smooth(2, side) + 0.25 * images(2, side))
    spec = replace(CLAHE, tiles=tiles)
    limits = 1 + 5 * draws(2).random(Stream.CLAHE_CLIP)
    for image, before, limit in zip(colour.clahe(batch, spec, draws(2)), batch, limits, strict=True):
        luma = colour.to_grey(before[None])[0, 0].numpy()
        levels = np.floor(luma * 255 + 0.5).astype(np.int64)
        added = equalised(levels, tiles, float(limit)) - levels / 255
        assert np.abs(image.numpy() - (before.numpy() + added).clip(0, 1)).max() < 2e-6


def test_clahe_keeps_colour_differences_and_raises_local_contrast() -> None:
    batch = 0.45 + 0.05 * images(4, 64)
    changed = colour.clahe(batch, replace(CLAHE, clip=20.0), draws(4))
    assert torch.allclose(changed[:, 0] - changed[:, 1], batch[:, 0] - batch[:, 1], atol=1e-5)
    assert (colour.to_grey(changed).std(dim=(2, 3)) > 1.5 * colour.to_grey(batch).std(dim=(2, 3))).all()


def test_cutout_is_one_black_square_of_its_share() -> None:
    batch = torch.ones(400, 3, 40, 40)
    changed = augment(batch, replace(ZERO, cutout=CUTOUT), draws(400).keys)
    areas = []
    for image in changed:
        black = image == 0
        assert torch.equal(black[0], black[1])
        rows, columns = torch.nonzero(black[0], as_tuple=True)
        height, width = (int(axis.max() - axis.min()) + 1 for axis in (rows, columns))
        assert height * width == len(rows)
        at_border = {0, 39} & {int(edge) for axis in (rows, columns) for edge in (axis.min(), axis.max())}
        assert height == width == 15 or at_border
        areas.append(len(rows))
    assert max(areas) == 15 * 15  # 37.5 % of 40 pixels
    assert 0.1 < np.mean([area < 15 * 15 for area in areas]) < 0.9
    assert ((changed == 0).float().mean(dim=(0, 1)) > 0).all()  # every pixel is hit by some square


@pytest.mark.parametrize(
    ("spec", "share"),
    [
        (replace(ZERO, shift=0.3, p_geometric=0.85), 0.85),
        (replace(ZERO, brightness=0.2, p_colour=0.75), 0.75),
        (replace(ZERO, contrast=0.2, p_colour=0.75), 0.75),
        (replace(ZERO, brightness=0.2, saturation=0.2, p_colour=0.5), 0.75),  # each for itself: 1 - 0.5 * 0.5
        (replace(ZERO, distort=replace(DISTORT, p=0.7)), 0.7),
        (replace(ZERO, hsv=replace(HSV, p=0.5)), 0.5),
        (replace(ZERO, blur_noise=replace(BLUR_NOISE, p=0.7)), 0.7),
        (replace(ZERO, clahe=replace(CLAHE, p=0.3)), 0.3),
        (replace(ZERO, cutout=replace(CUTOUT, p=0.6)), 0.6),
        (replace(ZERO, transpose=True), 0.5),
    ],
    ids=[
        "moved",
        "brightness",
        "contrast",
        "toned",
        "distort",
        "hsv",
        "blur_noise",
        "clahe",
        "cutout",
        "transpose",
    ],
)
def test_each_change_reaches_its_share_of_the_images(spec: AugmentSpec, share: float) -> None:
    batch = (0.2 + 0.6 * images(1, 16)).expand(4000, -1, -1, -1).contiguous()
    changed = augment(batch, spec, draws(4000).keys)
    count = int((changed != batch).flatten(1).any(dim=1).sum())
    assert binom.ppf(1e-4, 4000, share) <= count <= binom.ppf(1 - 1e-4, 4000, share)


def test_kinds_are_taken_evenly() -> None:
    counts = Counter(draws(4000).integers(Stream.BLUR_NOISE_KIND, 4).tolist())
    assert chisquare([counts[kind] for kind in range(4)]).pvalue > 1e-4


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), low=st.floats(0, 1), high=st.floats(0, 1), side=st.integers(16, 40),
    name=st.sampled_from([*PRESETS]),
)  # fmt: skip
def test_every_preset_keeps_any_image_in_range(seed: int, low: float, high: float, side: int, name: str) -> None:
    batch = low + (high - low) * images(6, side)
    before = batch.clone()
    changed = augment(batch, PRESETS[name], seed=seed)
    assert torch.isfinite(changed).all()
    assert changed.min() >= 0.0
    assert changed.max() <= 1.0
    assert torch.equal(batch, before)


# The order that shows every class equally often


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 6), max_size=120), seed=st.integers(0, 2**32 - 1), epoch=st.integers(1, 50))
def test_a_balanced_order_shows_classes_equally_and_samples_in_turn(
    labels: list[int], seed: int, epoch: int
) -> None:
    known = np.array(labels, dtype=np.int64)
    order = balanced_order(known, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert len(order) == len(labels)
    assert np.array_equal(order, balanced_order(known, seed=seed, epoch=epoch))
    per_class = [int((known[order] == item).sum()) for item in np.unique(known)]
    assert not per_class or max(per_class) - min(per_class) <= 1
    for item in np.unique(known):
        shown, own = order[known[order] == item], int((known == item).sum())
        for start in range(0, len(shown), own):
            once_round = shown[start : start + own]
            assert len(set(once_round.tolist())) == len(once_round)


def test_a_balanced_order_changes_with_epoch_and_seed_and_misses_no_sample_for_long() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    orders = [balanced_order(labels, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (1, 2)]
    assert len({order.tobytes() for order in orders}) == 4
    seen = {int(sample) for epoch in range(1, 15) for sample in balanced_order(labels, seed=0, epoch=epoch)}
    assert seen == set(range(100))
    uneven = np.array([0, 0, 1, 2, 2, 2, 3])  # seven samples, four classes: one of each, and three more
    more = [np.bincount(uneven[balanced_order(uneven, seed=0, epoch=epoch)]) - 1 for epoch in range(1, 21)]
    assert {int(extra.argmin()) for extra in more} == {0, 1, 2, 3}  # the class that goes short is not always one
    classes = labels[balanced_order(labels, seed=0, epoch=1)]
    assert 15 < classes[:50].sum() < 35  # mixed, not one class after the other
