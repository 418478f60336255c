"""Mixing: who is mixed with whom, how much, where; and that labels say what the pixels are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta as beta_of
from scipy.stats import binom, chisquare, kstest
from torch import Tensor

from dermkit.recipes.training_specs import MixupSpec
from dermkit.training.augment.mixup import CUTMIX, MIXUP, NO_MIX, MixPlan, make_mix_plan, mix_batch, mix_labels
from dermkit.training.augment.random_numbers import image_key

N = 4000
KEYS = np.array([image_key(f"lesion/{number}") for number in range(N)], dtype=np.uint64)
OWN = np.arange(N)
BOTH = MixupSpec(mixup=0.4, cutmix=1.0, p=0.8)
ONLY_MIXUP = MixupSpec(mixup=0.4, cutmix=0.0, p=1.0)
ONLY_CUTMIX = MixupSpec(mixup=0.0, cutmix=1.0, p=1.0)


def drawn(spec: MixupSpec, index: NDArray[np.int64] = OWN, *, seed: int = 1, epoch: int = 1) -> MixPlan:
    return make_mix_plan(KEYS[index], spec, index, seed=seed, epoch=epoch, n=N)


def images(n: int, side: int = 20) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


@settings(max_examples=25, deadline=None)
@given(index=st.lists(st.integers(0, N - 1), min_size=1, max_size=12), epoch=st.integers(1, 9))
def test_a_sample_is_mixed_the_same_in_any_batch(index: list[int], epoch: int) -> None:
    part = np.array(index)
    whole, alone = drawn(BOTH, epoch=epoch), drawn(BOTH, part, epoch=epoch)
    for name in ("partner", "kind", "self_weight", "centres"):
        assert np.array_equal(getattr(whole, name)[part], getattr(alone, name))
    pool = images(N // 100)
    batch, partners = pool[part % len(pool)], pool[alone.partner % len(pool)]
    mixed = mix_batch(batch, partners, alone)
    for row in range(len(part)):
        one = drawn(BOTH, part[row : row + 1], epoch=epoch)
        assert torch.equal(mix_batch(batch[row : row + 1], partners[row : row + 1], one)[0], mixed[row])


def test_seed_and_epoch_change_everything_that_is_drawn() -> None:
    first = drawn(BOTH)
    for other in (drawn(BOTH, seed=2), drawn(BOTH, epoch=2)):
        for name in ("partner", "kind", "self_weight", "centres"):
            assert not np.array_equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 5.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_are_beta_distributed(alpha: float, kind: str) -> None:
    spec = replace(ONLY_MIXUP, mixup=alpha) if kind == "mixup" else replace(ONLY_CUTMIX, cutmix=alpha)
    share = drawn(spec).self_weight
    assert share.dtype == np.float64
    assert kstest(share, beta_of(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e6])
def test_an_extreme_alpha_still_gives_shares(alpha: float) -> None:
    share = drawn(replace(ONLY_MIXUP, mixup=alpha)).self_weight
    assert np.isfinite(share).all()
    assert share.min() >= 0.0
    assert share.max() <= 1.0


def test_kinds_and_shares_of_the_samples_are_those_asked_for() -> None:
    kind = drawn(BOTH).kind
    for item, expected in ((NO_MIX, 0.2), (MIXUP, 0.4), (CUTMIX, 0.4)):
        count = int((kind == item).sum())
        assert binom.ppf(1e-4, N, expected) <= count <= binom.ppf(1 - 1e-4, N, expected)
    assert set(drawn(ONLY_MIXUP).kind) == {MIXUP}
    assert set(drawn(ONLY_CUTMIX).kind) == {CUTMIX}
    assert set(drawn(replace(BOTH, p=0.0)).kind) == {NO_MIX}


def test_partners_are_any_samples_of_the_epoch_at_equal_odds() -> None:
    mixes = make_mix_plan(KEYS, replace(BOTH, p=1.0), OWN, seed=1, epoch=1, n=10)
    assert mixes.partner.max() == 9
    assert chisquare(np.bincount(mixes.partner, minlength=10)).pvalue > 1e-4
    partly = drawn(BOTH)
    assert np.array_equal(partly.partner[partly.kind == NO_MIX], OWN[partly.kind == NO_MIX])
    assert (partly.self_weight[partly.kind == NO_MIX] == 1.0).all()


def test_a_sample_that_stays_alone_is_not_changed_and_keeps_its_label() -> None:
    mixes = drawn(replace(BOTH, p=0.5), OWN[:64])
    batch, partners = images(64), images(63)[torch.arange(64) % 63]
    mixed = mix_batch(batch, partners, mixes)
    targets = mix_labels(OWN[:64] % 5, mixes.partner % 5, mixes, 5, size=20)
    alone = mixes.kind == NO_MIX
    assert 16 < alone.sum() < 48
    assert torch.equal(mixed[alone], batch[alone])
    assert torch.equal(targets[alone], torch.eye(5)[OWN[:64] % 5][alone])
    assert not (mixed[~alone] == batch[~alone]).flatten(1).all(dim=1).all()


def test_mixup_blends_pixels_and_labels_by_one_share() -> None:
    mixes = drawn(ONLY_MIXUP, OWN[:16])
    batch, partners = images(16), images(17)[:16]
    share = torch.from_numpy(mixes.self_weight).view(-1, 1, 1, 1)
    expected = batch.double() * share + partners.double() * (1 - share)
    assert torch.allclose(mix_batch(batch, partners, mixes).double(), expected, atol=1e-6)
    targets = mix_labels(np.zeros(16, np.int64), np.ones(16, np.int64), mixes, 3, size=20)
    assert targets.dtype == torch.float32
    assert np.allclose(
        targets.numpy(), np.stack([mixes.self_weight, 1 - mixes.self_weight, 0 * mixes.self_weight], 1), atol=1e-7
    )


@pytest.mark.parametrize("side", [16, 20, 37, 160])
def test_the_area_that_cutmix_pastes_is_exactly_the_partners_label(side: int) -> None:
    mixes = drawn(ONLY_CUTMIX, OWN[:400])
    own, other = torch.zeros(400, 3, side, side), torch.ones(400, 3, side, side)
    pasted = mix_batch(own, other, mixes)
    area = pasted[:, 0].double().sum(dim=(1, 2))
    targets = mix_labels(np.zeros(400, np.int64), np.ones(400, np.int64), mixes, 2, size=side)
    assert np.array_equal(np.rint((1 - mixes.label_weights(side)) * side**2), area.numpy())
    assert torch.equal(targets[:, 1], (area / side**2).float())
    assert (area == 0).sum() < 200
    for image in pasted[:20, 0]:
        rows, columns = torch.nonzero(image, as_tuple=True)
        if len(rows):
            assert len(rows) == (int(rows.max() - rows.min()) + 1) * (int(columns.max() - columns.min()) + 1)


def test_a_square_in_the_middle_keeps_the_share_that_was_drawn() -> None:
    kind, share = np.full(3, CUTMIX), np.array([0.75, 0.36, 1.0])
    mixes = MixPlan(partner=np.zeros(3, np.int64), kind=kind, self_weight=share, centres=np.full((3, 2), 0.5))
    assert mixes.boxes(20).tolist() == [[5, 15, 5, 15], [2, 18, 2, 18], [10, 10, 10, 10]]
    assert np.allclose(mixes.label_weights(20), share)


def test_cutmix_pastes_what_lay_in_the_same_place() -> None:
    mixes = drawn(ONLY_CUTMIX, OWN[:32])
    batch, partners = images(32), images(33)[:32]
    mixed = mix_batch(batch, partners, mixes)
    assert ((mixed == batch) | (mixed == partners)).all()
    top, bottom, left, right = mixes.boxes(20)[int(np.argmin(mixes.self_weight))]
    assert (bottom - top) * (right - left) > 0
    row = int(np.argmin(mixes.self_weight))
    assert torch.equal(mixed[row, :, top:bottom, left:right], partners[row, :, top:bottom, left:right])


def test_labels_have_mass_one_and_mixing_keeps_the_classes_balance() -> None:
    mixes = drawn(BOTH)
    labels = OWN % 4
    targets = mix_labels(labels, labels[mixes.partner], mixes, 4, size=160)
    assert targets.shape == (N, 4)
    assert torch.allclose(targets.sum(dim=1), torch.ones(N), atol=1e-6)
    assert targets.min() >= 0.0
    assert torch.allclose(targets.mean(dim=0), torch.full((4,), 0.25), atol=0.02)
    same = labels == labels[mixes.partner]
    assert torch.equal(targets[same].max(dim=1).values, torch.ones(int(same.sum())))


def test_as_many_keys_as_samples_are_needed() -> None:
    with pytest.raises(ValueError, match="3 keys for 4 samples"):
        make_mix_plan(KEYS[:3], BOTH, OWN[:4], seed=1, epoch=1, n=N)
