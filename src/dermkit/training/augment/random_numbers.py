"""Counter-based random numbers: every number is a hash of (seed, epoch, stream, image), without a generator's state.

So batch size, order, workers, devices and a resume within an epoch change no number. The idea: Salmon and others 2011,
"Parallel random numbers: as easy as 1, 2, 3". NumPy alone.

Shapes: N images (or samples); a stream has one number per image, a matrix several.
"""

import hashlib
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

ImageKeys = Sequence[int] | NDArray[np.uint64]
_Subset = NDArray[np.int64] | slice


class Stream(IntEnum):
    """One stream of random numbers per purpose, so that switching one augmentation on does not change another's draws.

    The numbers must never change: runs of older versions are repeated by them.
    """

    FLIP_X = 0
    FLIP_Y = 1
    ROTATE = 2
    SHIFT_X = 3
    SHIFT_Y = 4
    ZOOM = 5
    BRIGHTNESS = 6
    CONTRAST = 7
    SATURATION = 8
    TRANSPOSE = 9
    APPLY_AFFINE = 10
    APPLY_BRIGHTNESS = 11
    APPLY_CONTRAST = 12
    APPLY_SATURATION = 13
    HSV = 14
    HSV_HUE = 15
    HSV_SATURATION = 16
    HSV_VALUE = 17
    BLUR_NOISE = 18
    BLUR_NOISE_KIND = 19
    BLUR_SIZE = 20
    BLUR_ANGLE = 21
    NOISE_VARIANCE = 22
    NOISE = 23
    DISTORT = 24
    DISTORT_KIND = 25
    OPTICAL = 26
    GRID = 27
    ELASTIC = 28
    CLAHE = 29
    CLAHE_CLIP = 30
    CUTOUT = 31
    CUTOUT_X = 32
    CUTOUT_Y = 33
    MIX = 34
    MIX_KIND = 35
    MIX_WEIGHT = 36
    MIX_PARTNER = 37
    MIX_X = 38
    MIX_Y = 39
    UNKNOWN_AGE = 40
    UNKNOWN_SEX = 41
    UNKNOWN_SITE = 42
    ORDER = 100
    BALANCE = 101
    BALANCE_CLASSES = 102
    BALANCE_OFFSET = 103


# The constants of splitmix64 (Steele, Lea and Flood 2014): the odd integer nearest to 2^64 / golden ratio, and the two
# multipliers of its finaliser (Stafford's variant 13).
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_MULTIPLIER_1, MIX_MULTIPLIER_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MODULUS = 2**64


def image_key(image_id: str, copy: int = 0) -> int:
    """Return a stable 64-bit number for an image; `copy` tells the oversampled copies of one image apart."""
    return int.from_bytes(hashlib.sha256(f"{image_id}\0{copy}".encode()).digest()[:8], "little")


def epoch_order(n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of n images in an epoch, (n,) int64, from (seed, epoch) alone.

    Sorted hashes and not NumPy's `permutation`, whose order may differ between versions.
    """
    ranks = hash_words(np.arange(n, dtype=np.uint64), seed=seed, epoch=epoch, stream=Stream.ORDER)
    return np.argsort(ranks, kind="stable").astype(np.int64)


def class_shares(counts: NDArray[np.int64], sampling: str) -> NDArray[np.float64]:
    """Return each class's fraction of an epoch, (K,), as `OptimSpec.sampling` says; counts: (K,) samples of each."""
    if sampling == "balanced":
        weights = (counts > 0).astype(np.float64)
    else:
        weights = np.sqrt(counts) if sampling == "square_root" else counts.astype(np.float64)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def balanced_order(labels: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return N samples of N labels in which every class that is present is equally frequent, to within one.

    labels: (N,) int64; returns (N,) int64 indices. A sample is repeated only after all others of its class, in a new
    order each round. Where N is no multiple of the number of classes, which classes get one more is drawn anew each
    epoch. From (seed, epoch) alone.
    """
    class_labels = np.unique(labels)
    if not len(class_labels):
        return np.empty(0, dtype=np.int64)
    base_quota, n_extra = divmod(len(labels), len(class_labels))
    quotas = np.full(len(class_labels), base_quota)
    quotas[_class_order(class_labels, seed=seed, epoch=epoch)[:n_extra]] += 1
    return _order_by_quota(labels, class_labels, quotas, seed=seed, epoch=epoch)


def square_root_order(labels: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return N samples of N labels in which each class is as frequent as the square root of its size, to within one.

    Otherwise as `balanced_order`. A class that would have a fraction of a sample more has it in that fraction of epochs
    (systematic sampling of the remainders), so that the mean over epochs is exact.
    """
    class_labels, counts = np.unique(labels, return_counts=True)
    if not len(class_labels):
        return np.empty(0, dtype=np.int64)
    exact_quotas = class_shares(counts, "square_root") * len(labels)
    quotas = np.floor(exact_quotas).astype(np.int64)
    class_order = _class_order(class_labels, seed=seed, epoch=epoch)
    cumulative = np.cumsum((exact_quotas - quotas)[class_order])
    cumulative[-1] = round(cumulative[-1])  # a whole number but for rounding: the quotas add up to N
    offset = _to_unit(hash_words(np.zeros(1, np.uint64), seed=seed, epoch=epoch, stream=Stream.BALANCE_OFFSET))
    quotas[class_order] += np.diff(np.floor(cumulative + offset), prepend=0.0).astype(np.int64)
    return _order_by_quota(labels, class_labels, quotas, seed=seed, epoch=epoch)


def _class_order(class_labels: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    hashes = hash_words(class_labels.astype(np.uint64), seed=seed, epoch=epoch, stream=Stream.BALANCE_CLASSES)
    return np.argsort(hashes, kind="stable")


def _order_by_quota(
    labels: NDArray[np.int64], class_labels: NDArray[np.int64], quotas: NDArray[np.int64], *, seed: int, epoch: int
) -> NDArray[np.int64]:
    rng = CounterRng(np.arange(len(labels), dtype=np.uint64), seed, epoch)
    slots = np.repeat(class_labels, quotas)[epoch_order(len(labels), seed=seed, epoch=epoch)]
    order = np.empty(len(labels), dtype=np.int64)
    for class_index, quota in zip(class_labels, quotas, strict=True):
        order[slots == class_index] = _cycle_class(np.flatnonzero(labels == class_index), int(quota), rng)
    return order


def _cycle_class(class_samples: NDArray[np.int64], quota: int, rng: "CounterRng") -> NDArray[np.int64]:
    """Return `quota` of a class's samples: as many permutations of all of them, one after another, as it takes."""
    n_rounds = -(-quota // len(class_samples))
    ranks = rng.select(class_samples).hash_matrix(Stream.BALANCE, n_rounds)
    order = np.argsort(ranks, axis=0, kind="stable")
    return class_samples[order.T.reshape(-1)[:quota]]


def mix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64-bit words by splitmix64's finaliser: each input bit flips half of the output bits on average."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(MIX_MULTIPLIER_1)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(MIX_MULTIPLIER_2)
    return words ^ (words >> np.uint64(31))


def hash_words(words: NDArray[np.uint64], *, seed: int, epoch: int, stream: int) -> NDArray[np.uint64]:
    """Return one 64-bit hash per word, (N,) uint64. Array arithmetic modulo 2^64 is intended; NumPy wraps silently."""
    state = 0
    for number in (seed, epoch, stream):
        state = _mix64_int((state + number * GOLDEN_GAMMA + GOLDEN_GAMMA) % _MODULUS)
    return mix64(np.uint64(state) + mix64(words + np.uint64(GOLDEN_GAMMA)))


def _mix64_int(word: int) -> int:
    """Return `mix64` of a single word, in Python's integers: faster than an array of one."""
    word = (word ^ (word >> 30)) * MIX_MULTIPLIER_1 % _MODULUS
    word = (word ^ (word >> 27)) * MIX_MULTIPLIER_2 % _MODULUS
    return word ^ (word >> 31)


def _to_unit(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    # The upper 53 bits: as many as a float64 holds exactly, so that all values are equally likely and below 1.
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


class CounterRng:
    """The random numbers of N images in one epoch: a stream for each purpose, a number for each image.

    keys: (N,) uint64, from `image_key`. A stream is hashed once for all images and cached, also for selections.
    """

    def __init__(
        self, keys: NDArray[np.uint64], seed: int, epoch: int, parent: "tuple[CounterRng, _Subset] | None" = None
    ) -> None:
        self.keys = keys
        self.seed = seed
        self.epoch = epoch
        self._parent = parent
        self._hash_cache: dict[int, NDArray[np.uint64]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, subset: _Subset) -> "CounterRng":
        """Return the random numbers of some of the images: the same numbers, whatever the selection."""
        return CounterRng(self.keys[subset], self.seed, self.epoch, (self, subset))

    def hashes(self, stream: int) -> NDArray[np.uint64]:
        """Return one 64-bit hash per image, (N,) uint64."""
        if stream not in self._hash_cache:
            if self._parent:
                parent, subset = self._parent
                self._hash_cache[stream] = parent.hashes(stream)[subset]
            else:
                self._hash_cache[stream] = hash_words(self.keys, seed=self.seed, epoch=self.epoch, stream=stream)
        return self._hash_cache[stream]

    def hash_matrix(self, stream: int, n_columns: int) -> NDArray[np.uint64]:
        """Return (N, n_columns) hashes, uint64: splitmix64's sequence from each image's hash."""
        steps = np.arange(1, n_columns + 1, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
        return mix64(self.hashes(stream)[:, None] + steps)

    def random(self, stream: int) -> NDArray[np.float64]:
        """Return one number per image, (N,) float64, uniform in 0 <= x < 1."""
        return _to_unit(self.hashes(stream))

    def uniform(self, stream: int, spread: float) -> NDArray[np.float64]:
        """Return one number per image, (N,) float64, uniform in -spread..spread."""
        return (2.0 * self.random(stream) - 1.0) * spread

    def uniform_matrix(self, stream: int, n_columns: int, spread: float) -> NDArray[np.float64]:
        """Return (N, n_columns) float64 numbers, uniform in -spread..spread."""
        return (2.0 * _to_unit(self.hash_matrix(stream, n_columns)) - 1.0) * spread

    def sign(self, stream: int, is_enabled: bool) -> NDArray[np.float64]:
        """Return (N,) float64: -1 (flip) or 1 (none) with probability 1/2 each; all 1 where not enabled."""
        return np.where(self.uniform(stream, 1.0) < 0.0, -1.0 if is_enabled else 1.0, 1.0)

    def bernoulli(self, stream: int, p: float) -> NDArray[np.bool_]:
        """Return (N,) bool, true with probability p: all at 1, none at 0."""
        return self.random(stream) < p

    def integers(self, stream: int, high: int) -> NDArray[np.int64]:
        """Return (N,) int64 in 0..high - 1, equally likely (to within 2^-53 * high)."""
        return np.minimum(np.floor(self.random(stream) * high), high - 1).astype(np.int64)
