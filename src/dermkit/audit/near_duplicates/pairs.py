"""Copies of images by their pixels: exact, resaved, resized, flipped, turned, cropped; within one set or across two.

First neighbours by description (`search`), then each candidate laid over the other (`register`). Thresholds were set
on 1,000 images of HAM10000, one per lesion, with copies planted by `data.planting`; the measured recall and precision
on others stand in benchmarks/audit.md.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dermkit.audit.near_duplicates.neighbours import find_neighbours, nearest_of
from dermkit.audit.near_duplicates.registration import Agreement, Match, disc_guess, frame_guess, prepare, register
from dermkit.audit.scan.scan import Scan
from dermkit.data.leakage import codes
from dermkit.progress import Watch
from dermkit.threads import cores

FRAME_NEAR = 4.0
"""Whole-frame copies lay within 1.3 of each other; different lesions rarely within 6."""
DISC_NEAR = 0.36
"""Nearly all best discs of crops and turns lay within 0.35; so do some strangers', hence the limits that follow."""
MOST_FRAMES, MOST_DISCS = 16, 8
"""Candidates followed per image: of more than this many copies of one image, the chain still holds all together."""
MOST_OF_DISC, GUESSES = 3, 2
"""Neighbours followed per disc, and discs tried per pair of images."""
MOST_VECTORS = 1_500_000
"""Discs searched at once, 270 MB; larger sets use fewer discs of each image."""
EXACT_ALL = 30
"""Up to this many identical images every pair is listed; of more, enough to see every label and side."""
CHUNK = 256
"""Pairs registered at once: about 100 MB per thread."""

COLUMNS = ("a", "b", "distance", "kind")
KINDS = ("exact", "reencoded", "resized", "flipped", "rotated", "cropped")
"""What a pair's second image is, seen from the first. `rotated`: by any angle; `flipped`: also with a turn."""


@dataclass(frozen=True, eq=False)
class _Stock:
    """Images that are searched: places in their scan's maps, and which scan they belong to (0 or 1)."""

    scans: tuple[Scan, ...]
    which: NDArray[np.int64]
    place: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.place)

    def get(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the entries `rows` of a map, from whichever scan they are in."""
        if len(self.scans) == 1:
            return np.asarray(getattr(self.scans[0], name)[self.place[rows]])
        first = getattr(self.scans[0], name)
        out = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for number, scan in enumerate(self.scans):
            mine = self.which[rows] == number
            out[mine] = getattr(scan, name)[self.place[rows[mine]]]
        return out


def find_copies(frame: pd.DataFrame, scan: Scan, *, watch: Watch | None = None, workers: int = 0) -> pd.DataFrame:
    """Return the pairs of copies within a set: row numbers a < b, distance (0 = same pixels .. 1), kind.

    frame: the manifest's rows (pixel_sha256, width, height), in the order of the scan.
    """
    stock = _Stock((scan,), np.zeros(len(frame), np.int64), scan.rows)
    pairs = _find(_pictures(frame, scan.table), stock, watch or Watch(), workers)
    return pairs.sort_values(["a", "b"], ignore_index=True)


def find_common(
    frames: tuple[pd.DataFrame, pd.DataFrame],
    scans: tuple[Scan, Scan],
    *,
    watch: Watch | None = None,
    workers: int = 0,
) -> pd.DataFrame:
    """Return the pairs of copies across two sets: a is a row of the first, b of the second."""
    both = pd.concat([_pictures(frame, scan.table) for frame, scan in zip(frames, scans, strict=True)])
    which = np.repeat([0, 1], [len(table) for table in frames])
    stock = _Stock(scans, which, np.concatenate([scan.rows for scan in scans]))
    pairs = _find(both.reset_index(drop=True), stock, watch or Watch(), workers)
    across: pd.DataFrame = pairs[which[pairs["a"]] != which[pairs["b"]]]
    return across.assign(b=across["b"] - len(frames[0])).sort_values(["a", "b"], ignore_index=True)


def _pictures(frame: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return hash and size of each row's picture; a file that changed since the import has no known hash."""
    known = (table["changed"] == "").to_numpy()
    return frame[["width", "height"]].assign(pixel_sha256=frame["pixel_sha256"].where(known, ""))


def _find(frame: pd.DataFrame, stock: _Stock, watch: Watch, workers: int) -> pd.DataFrame:
    picture = codes(frame["pixel_sha256"])
    first = np.flatnonzero(~pd.Series(picture).duplicated().to_numpy())
    chosen = _Stock(stock.scans, stock.which[first], stock.place[first])
    near = _near_pairs(chosen, frame.iloc[first].reset_index(drop=True), watch, workers)
    rows = pd.Series(np.arange(len(frame)))
    # In the order in which the pictures first come, which is that of `first`.
    members = rows.groupby(picture, sort=False).agg(list).tolist()
    exact = exact_pairs(frame["pixel_sha256"], pd.Series(stock.which))
    return pd.concat([exact, _spread(near, members)], ignore_index=True)


def exact_pairs(pixels: "pd.Series[str]", *apart: "pd.Series[Any]") -> pd.DataFrame:
    """Return the pairs of images with identical pixels, "" = unknown; columns `COLUMNS`.

    Of more than `EXACT_ALL` identical images, each is paired with the first of every combination of the values
    `apart` (label, side): whatever has a twin under another label or on another side then has one here.
    """
    frame = pd.DataFrame(
        {"pixels": pixels.to_numpy(), **{str(n): part.to_numpy() for n, part in enumerate(apart)}}
    )
    known = frame[(frame["pixels"] != "") & frame["pixels"].duplicated(keep=False)]
    rows: list[tuple[int, int]] = []
    for _, same in known.groupby("pixels", sort=False):
        members = same.index.to_numpy()
        heads = members
        if len(members) > EXACT_ALL:
            heads = same.drop_duplicates([str(n) for n in range(len(apart))] or "pixels").index.to_numpy()
        rows += {(int(min(a, b)), int(max(a, b))) for a in heads for b in members if a != b}
    pairs = np.array(sorted(rows), np.int64).reshape(-1, 2)
    return pd.DataFrame({"a": pairs[:, 0], "b": pairs[:, 1], "distance": 0.0, "kind": "exact"})


def _spread(near: pd.DataFrame, members: list[list[int]]) -> pd.DataFrame:
    """Return near pairs of pictures as pairs of images: an identical copy of a picture is near what that is near."""
    rows = [
        (min(a, b), max(a, b), distance, kind)
        for one, other, distance, kind in near.itertuples(index=False)
        for a in members[one][:EXACT_ALL]
        for b in members[other][:EXACT_ALL]
    ]
    made = pd.DataFrame(rows, columns=list(COLUMNS))
    return made.astype({"a": np.int64, "b": np.int64, "distance": np.float64, "kind": "str"})


def _near_pairs(stock: _Stock, frame: pd.DataFrame, watch: Watch, workers: int) -> pd.DataFrame:
    """Return near copies among different pictures, numbered as in `frame`."""
    usable = _usable(stock)
    # Frames first: what they prove needs no discs.
    proved = _proved(stock, frame, _frame_candidates(stock, usable), watch, workers)
    discs = _disc_candidates(stock, usable)
    known = pd.MultiIndex.from_frame(proved[["a", "b"]])
    discs = discs[~pd.MultiIndex.from_frame(discs[["a", "b"]]).isin(known)].reset_index(drop=True)
    return pd.concat([proved, _proved(stock, frame, discs, watch, workers)], ignore_index=True)


def _usable(stock: _Stock) -> NDArray[np.int64]:
    """Return the images that were read and show something: a plain surface is like every other one."""
    usable = []
    for start in range(0, len(stock), 4096):
        rows = np.arange(start, min(start + 4096, len(stock)))
        square = stock.get("square", rows).astype(np.float32).mean(axis=-1)
        usable.append(rows[square.std(axis=(1, 2)) >= PLAIN])
    return np.concatenate(usable) if usable else np.empty(0, np.int64)


PLAIN = 2.0
"""Grey levels of standard deviation below which a picture has nothing to be recognised by."""


def _frame_candidates(stock: _Stock, usable: NDArray[np.int64]) -> pd.DataFrame:
    found = find_neighbours(stock.get("frame", usable), np.arange(len(usable)), near=FRAME_NEAR, most=MOST_FRAMES)
    table = {"a": usable[found.first], "b": usable[found.second], "disc_a": -1, "disc_b": -1}
    return pd.DataFrame(table | {"apart": found.distance})


def _disc_candidates(stock: _Stock, usable: NDArray[np.int64]) -> pd.DataFrame:
    """Return pairs of images with a pair of discs that are alike: the best two of each pair of images."""
    slots = max(4, min(stock.scans[0].disc.shape[1], MOST_VECTORS // max(len(usable), 1)))
    vectors, owner, slot = [], [], []
    for start in range(0, len(usable), 4096):
        rows = usable[start : start + 4096]
        there = stock.get("place", rows)[:, :slots, 2] > 0
        image, number = np.nonzero(there)
        vectors.append(stock.get("disc", rows)[image, number])
        owner.append(rows[image])
        slot.append(number)
    if not owner:
        return pd.DataFrame({name: np.empty(0, np.int64) for name in ("a", "b", "disc_a", "disc_b", "apart")})
    owners, numbers = np.concatenate(owner), np.concatenate(slot)
    found = find_neighbours(np.concatenate(vectors), owners, near=DISC_NEAR, most=MOST_OF_DISC)
    table = pd.DataFrame(
        {
            "a": owners[found.first], "b": owners[found.second], "disc_a": numbers[found.first],
            "disc_b": numbers[found.second], "apart": found.distance,
        }
    )  # fmt: skip
    table = table.sort_values(["a", "b", "apart"], kind="stable", ignore_index=True)
    place = table.groupby(["a", "b"], sort=False).cumcount().to_numpy()
    best = table[place == 0]
    kept = nearest_of(best["a"].to_numpy(), best["b"].to_numpy(), best["apart"].to_numpy(), MOST_DISCS)
    followed = np.repeat(kept, np.diff(np.r_[np.flatnonzero(place == 0), len(table)]))
    return table[followed & (place < GUESSES)].reset_index(drop=True)


def _proved(
    stock: _Stock, frame: pd.DataFrame, candidates: pd.DataFrame, watch: Watch, workers: int
) -> pd.DataFrame:
    """Lay the pictures of each candidate over each other; return those that are copies, each pair once."""
    if candidates.empty:
        return pd.DataFrame({"a": [], "b": [], "distance": [], "kind": []}).astype(
            {"a": int, "b": int, "kind": "str"}
        )
    parts = [candidates.iloc[at : at + CHUNK] for at in range(0, len(candidates), CHUNK)]
    found = []
    with threadpool_limits(1), ThreadPoolExecutor(workers or cores()) as pool:
        for number, part in enumerate(pool.map(lambda part: _compared(stock, frame, part), parts), 1):
            found.append(part)
            watch.step("candidates compared", min(number * CHUNK, len(candidates)), len(candidates))
    table = pd.concat(found, ignore_index=True).sort_values(["a", "b", "distance"], kind="stable")
    return table.drop_duplicates(["a", "b"]).reset_index(drop=True)


def _compared(stock: _Stock, frame: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame:
    a, b = part["a"].to_numpy(), part["b"].to_numpy()
    sizes = [stock.get("size", rows).astype(np.int64) for rows in (a, b)]
    if part["disc_a"].iloc[0] < 0:
        guess, agree = frame_guess((stock.get("square", a), stock.get("square", b)), (sizes[0], sizes[1]))
    else:
        numbers = part["disc_a"].to_numpy(), part["disc_b"].to_numpy()
        each = [(rows, np.arange(len(rows)), number) for rows, number in zip((a, b), numbers, strict=True)]
        polar, place = ([stock.get(name, rows)[at, n] for rows, at, n in each] for name in ("polar", "place"))
        guess, agree = disc_guess((polar[0], polar[1]), (place[0], place[1]))
    kept = np.flatnonzero(agree >= LEAST_AGREEMENT)
    rough = _laid(stock, (a[kept], b[kept]), guess[kept], rough=True)
    near = _hopeful(rough.everywhere) | _hopeful(rough.inner)
    again = np.flatnonzero(near & _possible(rough))
    fine = _laid(stock, (a[kept[again]], b[kept[again]]), rough.matrix[again], rough=False)
    copy = is_copy(fine)
    rows = kept[again][copy]
    kinds = kinds_of(
        fine, [size[kept[again]] for size in sizes], _same_size(frame, a[kept[again]], b[kept[again]])
    )
    # 1e-6: only identical pixels have distance 0.
    distance = (1 - np.maximum(fine.everywhere.whole, fine.inner.whole)[copy]).clip(1e-6, 1)
    return pd.DataFrame({"a": a[rows], "b": b[rows], "distance": distance, "kind": kinds[copy]})


def _laid(
    stock: _Stock, rows: tuple[NDArray[np.int64], NDArray[np.int64]], guess: NDArray[np.float64], *, rough: bool
) -> Match:
    """Lay pictures over each other; each picture of the chunk is prepared once."""
    images, place = np.unique(np.concatenate(rows), return_inverse=True)
    pictures = prepare(stock.get("canvas", images), stock.get("size", images).astype(np.int64), rough=rough)
    half = len(rows[0])
    return register(pictures.take(place[:half]), pictures.take(place[half:]), guess, rough=rough)


LEAST_AGREEMENT = 0.7
SQUASH = 1.2
"""Largest ratio of the two scales of a map that does not cover whole frames."""
ROUGH_WHOLE, ROUGH_DIFFERENCE = 0.95, 9.0
"""What a pair must reach in the first round: 99 % of the copies reached .991 and 4.2, 9 of 10 strangers did not."""


def _hopeful(seen: Agreement) -> NDArray[np.bool_]:
    return np.asarray((seen.whole > ROUGH_WHOLE) & (seen.difference < ROUGH_DIFFERENCE))


def _possible(match: Match) -> NDArray[np.bool_]:
    """Say which maps a copy can have: no more than three times larger, much in common, and hardly squashed.

    Only whole frames are squashed, to fit a net. An oval spot laid on a round one needs as much, and is a stranger.
    """
    stretch = np.linalg.svd(match.matrix[:, :, :2], compute_uv=False)
    squash = stretch[:, 0] / np.maximum(stretch[:, 1], 1e-6)
    framed = match.overlap.min(axis=1) > 0.85
    sane = (stretch[:, 0] < 3) & (stretch[:, 1] > 1 / 3) & (squash < np.where(framed, 2.0, SQUASH))
    return np.asarray(sane & (match.overlap.max(axis=1) > 0.55) & (match.overlap.min(axis=1) > 0.2))


def is_copy(match: Match) -> NDArray[np.bool_]:
    """Say which pairs are copies: they agree in the whole overlap, or in its inner part."""
    agree = _agrees(match.everywhere) | _agrees(match.inner)
    seen = match.everywhere
    recoloured = (seen.whole > 0.995) & (seen.detail > 0.95) & (match.overlap.max(axis=1) > 0.8)
    return np.asarray((agree | recoloured) & _possible(match))


def _agrees(seen: Agreement) -> NDArray[np.bool_]:
    """Say where grey levels and fine detail agree.

    Planted copies reached 0.993, 0.74 and 3.1 grey levels; nearest strangers 0.988, 0.91 and 4.4, never together.
    """
    same = (seen.difference < 2.2) & (seen.whole > 0.99) & (seen.detail > 0.35)
    close = (seen.difference < 3.7) & (seen.whole > 0.985) & (seen.detail > 0.6)
    crisp = (seen.difference < 4.6) & (seen.whole > 0.985) & (seen.detail > 0.9)
    sharp = (seen.difference < 6.5) & (seen.whole > 0.992) & (seen.detail > 0.85)
    return np.asarray(same | close | crisp | sharp)


def _same_size(frame: pd.DataFrame, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
    sides = frame[["width", "height"]].to_numpy()
    return np.asarray((sides[a] == sides[b]).all(axis=1))


def kinds_of(match: Match, sizes: list[NDArray[np.int64]], same_size: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Name what each map does: `KINDS` but for exact. sizes: of both canvases, (P, 2) each."""
    half = [(size - 1) / 2 for size in sizes]
    linear = match.matrix[:, :, :2]
    unit = linear * half[0][:, None, :] / half[1][:, :, None]
    middle = np.einsum("pij,pj->pi", linear, half[0]) + match.matrix[:, :, 2]
    centred = (np.abs(middle - half[1]) / half[1]).max(axis=1) < 0.05
    whole = (np.abs(unit - np.rint(unit)).max(axis=(1, 2)) < 0.05) & centred
    flipped = np.linalg.det(linear) < 0
    straight = np.abs(unit - np.eye(2)).max(axis=(1, 2)) < 0.05
    turn = np.degrees(np.arctan2(linear[:, 1, 0] - linear[:, 0, 1], linear[:, 0, 0] + linear[:, 1, 1]))
    upright = ~flipped & (np.abs(turn) < 2)
    return np.select(
        [whole & straight & same_size, whole & straight, whole & flipped, whole, upright, flipped],
        ["reencoded", "resized", "flipped", "rotated", "cropped", "flipped"],
        "rotated",
    )
