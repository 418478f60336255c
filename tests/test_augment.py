"""Augmentation: what may change, by how much, and what its random numbers depend on."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dermkit.data import augment as augmentation
from dermkit.data.augment import augment_batch, epoch_order, image_key
from dermkit.recipe import AugmentSpec

ZERO = AugmentSpec(
    horizontal_flip=False, vertical_flip=False, rotate=0.0, shift=0.0, zoom=0.0,
    brightness=0.0, contrast=0.0, saturation=0.0, fill="black",
)  # fmt: skip
FULL = replace(
    ZERO, horizontal_flip=True, vertical_flip=True, rotate=180.0, shift=0.1, zoom=0.2, brightness=0.2,
    contrast=0.2, saturation=0.3, fill="reflect",
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
@given(order=st.permutations(range(8)), size=st.integers(1, 8), fill=st.sampled_from(["reflect", "black", "edge"]))
def test_batch_size_and_order_change_nothing(
    order: list[int], size: int, fill: Literal["reflect", "black", "edge"]
) -> None:
    batch, spec = images(8), replace(FULL, fill=fill)
    whole = augment(batch, spec)
    for start in range(0, 8, size):
        part = order[start : start + size]
        alone = augment(batch[part], spec, [KEYS[index] for index in part])
        assert torch.equal(alone, whole[part])


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
    assert augmentation._mix(first)[0] == 0xE220A8397B1DCDAF  # splitmix64's published first number from state 0
    assert image_key("ISIC_0000000") == 18017197994878011488
    assert epoch_order(8, seed=0, epoch=1).tolist() == [4, 6, 1, 5, 3, 2, 0, 7]


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
