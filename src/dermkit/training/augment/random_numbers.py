"""Random numbers without a generator: every number is a hash of (seed, epoch, what it is for, image).

So batch size, order, workers, devices and a resume in the middle of an epoch change no number. NumPy alone.
"""

import hashlib
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

ImageKeys = Sequence[int] | NDArray[np.uint64]
_Subset = NDArray[np.int64] | slice


class Stream(IntEnum):
    """One column of random numbers per change, so that switching one change on leaves the others' draws alone.

    A number that was once given stays: older runs are repeated by it.
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
    ORDER = 100
    BALANCE = 101
    BALANCE_CLASSES = 102


GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_MULTIPLIER_1, MIX_MULTIPLIER_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MODULUS = 2**64


def image_key(image_id: str, copy: int = 0) -> int:
    """Return a stable 64-bit number for an image; `copy` tells the grown copies of one image apart."""
    return int.from_bytes(hashlib.sha256(f"{image_id}\0{copy}".encode()).digest()[:8], "little")


def epoch_order(n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of n images in an epoch, from (seed, epoch) alone and the same in every NumPy version."""
    ranks = hash_words(np.arange(n, dtype=np.uint64), seed=seed, epoch=epoch, stream=Stream.ORDER)
    return np.argsort(ranks, kind="stable").astype(np.int64)


def balanced_order(labels: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return as many samples as there are labels, every class that is present equally often, to within one.

    A class's samples come in a new order each time round, and none comes again before all others of its class came.
    Which classes get the samples that are left over is drawn anew each epoch. From (seed, epoch) alone.
    """
    class_labels = np.unique(labels)
    if not len(class_labels):
        return np.empty(0, dtype=np.int64)
    base_quota, n_extra = divmod(len(labels), len(class_labels))
    class_order = np.argsort(
        hash_words(class_labels.astype(np.uint64), seed=seed, epoch=epoch, stream=Stream.BALANCE_CLASSES),
        kind="stable",
    )
    quotas = np.full(len(class_labels), base_quota)
    quotas[class_order[:n_extra]] += 1
    rng = CounterRng(np.arange(len(labels), dtype=np.uint64), seed, epoch)
    slots = np.repeat(class_labels, quotas)[epoch_order(len(labels), seed=seed, epoch=epoch)]
    order = np.empty(len(labels), dtype=np.int64)
    for class_index, quota in zip(class_labels, quotas, strict=True):
        order[slots == class_index] = _cycle_class(np.flatnonzero(labels == class_index), int(quota), rng)
    return order


def _cycle_class(class_samples: NDArray[np.int64], quota: int, rng: "CounterRng") -> NDArray[np.int64]:
    """Return `quota` of a class's samples: one permutation of all after another."""
    n_rounds = -(-quota // len(class_samples))
    ranks = rng.select(class_samples).hash_matrix(Stream.BALANCE, n_rounds)
    order = np.argsort(ranks, axis=0, kind="stable")
    return class_samples[order.T.reshape(-1)[:quota]]


def mix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit moves half of the output bits."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(MIX_MULTIPLIER_1)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(MIX_MULTIPLIER_2)
    return words ^ (words >> np.uint64(31))


def hash_words(words: NDArray[np.uint64], *, seed: int, epoch: int, stream: int) -> NDArray[np.uint64]:
    """Return one 64-bit hash per word. Array arithmetic wraps around silently, which is what is meant."""
    state = 0
    for number in (seed, epoch, stream):
        state = _mix64_int((state + number * GOLDEN_GAMMA + GOLDEN_GAMMA) % _MODULUS)
    return mix64(np.uint64(state) + mix64(words + np.uint64(GOLDEN_GAMMA)))


def _mix64_int(word: int) -> int:
    """`mix64` of a single word: Python's own numbers are the quickest there."""
    word = (word ^ (word >> 30)) * MIX_MULTIPLIER_1 % _MODULUS
    word = (word ^ (word >> 27)) * MIX_MULTIPLIER_2 % _MODULUS
    return word ^ (word >> 31)


def _to_unit(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


class CounterRng:
    """The random numbers of one batch in one epoch: a column of them per change, an entry per image.

    words: (N,) uint64, the images' keys. A column is hashed once for all images, however many parts are taken.
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
        """Return the draws of some of the images."""
        return CounterRng(self.keys[subset], self.seed, self.epoch, (self, subset))

    def hashes(self, stream: int) -> NDArray[np.uint64]:
        """Return one 64-bit hash per image."""
        if stream not in self._hash_cache:
            if self._parent:
                parent, subset = self._parent
                self._hash_cache[stream] = parent.hashes(stream)[subset]
            else:
                self._hash_cache[stream] = hash_words(self.keys, seed=self.seed, epoch=self.epoch, stream=stream)
        return self._hash_cache[stream]

    def hash_matrix(self, stream: int, n_columns: int) -> NDArray[np.uint64]:
        """Return (N, count) hashes: as many per image as a field has positions."""
        steps = np.arange(1, n_columns + 1, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
        return mix64(self.hashes(stream)[:, None] + steps)

    def random(self, stream: int) -> NDArray[np.float64]:
        """Return one number per image, uniform in 0 <= x < 1."""
        return _to_unit(self.hashes(stream))

    def uniform(self, stream: int, spread: float) -> NDArray[np.float64]:
        """Return one number per image, uniform in -spread..spread."""
        return (2.0 * self.random(stream) - 1.0) * spread

    def uniform_matrix(self, stream: int, n_columns: int, spread: float) -> NDArray[np.float64]:
        """Return (N, count) numbers, uniform in -spread..spread."""
        return (2.0 * _to_unit(self.hash_matrix(stream, n_columns)) - 1.0) * spread

    def sign(self, stream: int, is_enabled: bool) -> NDArray[np.float64]:
        """Return -1 for a flip and 1 for none, at even odds; all 1 where flips are not wanted."""
        return np.where(self.uniform(stream, 1.0) < 0.0, -1.0 if is_enabled else 1.0, 1.0)

    def bernoulli(self, stream: int, p: float) -> NDArray[np.bool_]:
        """Return which images are among the given share; all at 1, none at 0."""
        return self.random(stream) < p

    def integers(self, stream: int, high: int) -> NDArray[np.int64]:
        """Return a whole number per image in 0..count - 1, at equal odds."""
        return np.minimum(np.floor(self.random(stream) * high), high - 1).astype(np.int64)
