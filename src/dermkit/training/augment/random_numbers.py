"""Random numbers without a generator: every number is a hash of (seed, epoch, what it is for, image).

So batch size, order, workers, devices and a resume in the middle of an epoch change no number. NumPy alone.
"""

import hashlib
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Keys = Sequence[int] | NDArray[np.uint64]
Part = NDArray[np.int64] | slice


class Column(IntEnum):
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
    MOVED = 10
    BRIGHTENED = 11
    CONTRASTED = 12
    SATURATED = 13
    HSV = 14
    HSV_HUE = 15
    HSV_SATURATION = 16
    HSV_VALUE = 17
    BLUR_NOISE = 18
    BLUR_NOISE_KIND = 19
    BLUR_SIDE = 20
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
    MIX_SHARE = 36
    MIX_PARTNER = 37
    MIX_X = 38
    MIX_Y = 39
    ORDER = 100
    BALANCE = 101
    BALANCE_CLASSES = 102


GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64


def image_key(image_id: str, copy: int = 0) -> int:
    """Return a stable 64-bit number for an image; `copy` tells the grown copies of one image apart."""
    return int.from_bytes(hashlib.sha256(f"{image_id}\0{copy}".encode()).digest()[:8], "little")


def epoch_order(n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of n images in an epoch, from (seed, epoch) alone and the same in every NumPy version."""
    ranks = hashed(np.arange(n, dtype=np.uint64), seed=seed, epoch=epoch, column=Column.ORDER)
    return np.argsort(ranks, kind="stable").astype(np.int64)


def balanced_order(labels: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return as many samples as there are labels, every class that is present equally often, to within one.

    A class's samples come in a new order each time round, and none comes again before all others of its class came.
    Which classes get the samples that are left over is drawn anew each epoch. From (seed, epoch) alone.
    """
    present = np.unique(labels)
    if not len(present):
        return np.empty(0, dtype=np.int64)
    each, over = divmod(len(labels), len(present))
    lucky = np.argsort(
        hashed(present.astype(np.uint64), seed=seed, epoch=epoch, column=Column.BALANCE_CLASSES), kind="stable"
    )
    quotas = np.full(len(present), each)
    quotas[lucky[:over]] += 1
    draws = Draws(np.arange(len(labels), dtype=np.uint64), seed, epoch)
    slots = np.repeat(present, quotas)[epoch_order(len(labels), seed=seed, epoch=epoch)]
    order = np.empty(len(labels), dtype=np.int64)
    for item, quota in zip(present, quotas, strict=True):
        order[slots == item] = _cycled(np.flatnonzero(labels == item), int(quota), draws)
    return order


def _cycled(own: NDArray[np.int64], quota: int, draws: "Draws") -> NDArray[np.int64]:
    """Return `quota` of a class's samples: one permutation of all after another."""
    rounds = -(-quota // len(own))
    ranks = draws.take(own).words_at(Column.BALANCE, rounds)
    order = np.argsort(ranks, axis=0, kind="stable")
    return own[order.T.reshape(-1)[:quota]]


def mix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit moves half of the output bits."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(FIRST)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(SECOND)
    return words ^ (words >> np.uint64(31))


def hashed(words: NDArray[np.uint64], *, seed: int, epoch: int, column: int) -> NDArray[np.uint64]:
    """Return one 64-bit hash per word. Array arithmetic wraps around silently, which is what is meant."""
    state = 0
    for part in (seed, epoch, column):
        state = _mixed((state + part * GOLDEN + GOLDEN) % _WORD)
    return mix64(np.uint64(state) + mix64(words + np.uint64(GOLDEN)))


def _mixed(word: int) -> int:
    """`mix64` of a single word: Python's own numbers are the quickest there."""
    word = (word ^ (word >> 30)) * FIRST % _WORD
    word = (word ^ (word >> 27)) * SECOND % _WORD
    return word ^ (word >> 31)


def _unit(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Draws:
    """The random numbers of one batch in one epoch: a column of them per change, an entry per image.

    words: (N,) uint64, the images' keys. A column is hashed once for all images, however many parts are taken.
    """

    def __init__(
        self, words: NDArray[np.uint64], seed: int, epoch: int, part_of: "tuple[Draws, Part] | None" = None
    ) -> None:
        self.words = words
        self.seed = seed
        self.epoch = epoch
        self._part_of = part_of
        self._known: dict[int, NDArray[np.uint64]] = {}

    def __len__(self) -> int:
        return len(self.words)

    def take(self, part: Part) -> "Draws":
        """Return the draws of some of the images."""
        return Draws(self.words[part], self.seed, self.epoch, (self, part))

    def hashes(self, column: int) -> NDArray[np.uint64]:
        """Return one 64-bit hash per image."""
        if column not in self._known:
            if self._part_of:
                whole, part = self._part_of
                self._known[column] = whole.hashes(column)[part]
            else:
                self._known[column] = hashed(self.words, seed=self.seed, epoch=self.epoch, column=column)
        return self._known[column]

    def words_at(self, column: int, count: int) -> NDArray[np.uint64]:
        """Return (N, count) hashes: as many per image as a field has positions."""
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        return mix64(self.hashes(column)[:, None] + steps)

    def unit(self, column: int) -> NDArray[np.float64]:
        """Return one number per image, uniform in 0 <= x < 1."""
        return _unit(self.hashes(column))

    def uniform(self, column: int, spread: float) -> NDArray[np.float64]:
        """Return one number per image, uniform in -spread..spread."""
        return (2.0 * self.unit(column) - 1.0) * spread

    def uniforms(self, column: int, count: int, spread: float) -> NDArray[np.float64]:
        """Return (N, count) numbers, uniform in -spread..spread."""
        return (2.0 * _unit(self.words_at(column, count)) - 1.0) * spread

    def sign(self, column: int, wanted: bool) -> NDArray[np.float64]:
        """Return -1 for a flip and 1 for none, at even odds; all 1 where flips are not wanted."""
        return np.where(self.uniform(column, 1.0) < 0.0, -1.0 if wanted else 1.0, 1.0)

    def chosen(self, column: int, share: float) -> NDArray[np.bool_]:
        """Return which images are among the given share; all at 1, none at 0."""
        return self.unit(column) < share

    def one_of(self, column: int, count: int) -> NDArray[np.int64]:
        """Return a whole number per image in 0..count - 1, at equal odds."""
        return np.minimum(np.floor(self.unit(column) * count), count - 1).astype(np.int64)
