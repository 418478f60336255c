"""Duplicate images by their pixels: exact, resaved, resized, flipped, rotated, cropped; within a set or across two.

Candidates are neighbours of descriptors (`neighbours`); each is then registered onto the other (`registration`).
Thresholds were set on 1,000 images of HAM10000, one per lesion, with copies planted by `data.synthetic.duplicates`;
recall and precision measured on others are in benchmarks/audit.md.

Shapes: P pairs or candidates, N images in a pool; rows are (P,) or (N,) int64 row numbers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dermkit.audit.near_duplicates.neighbours import among_nearest, find_neighbours
from dermkit.audit.near_duplicates.registration import (
    Registration,
    Similarity,
    guess_from_discs,
    guess_from_frames,
    prepare_images,
    register_images,
)
from dermkit.audit.scan.scan import Scan
from dermkit.data.groups import distinct_codes
from dermkit.progress import Progress
from dermkit.threads import cpu_count, worker_pool

MAX_FRAME_DISTANCE = 4.0
"""Distance of global descriptors. Whole-frame copies lie within 1.3; different lesions rarely within 6."""
MAX_DISC_DISTANCE = 0.36
"""The best discs of crops and rotations lie within 0.35; so do some of unrelated images, hence the limits below."""
MAX_FRAME_CANDIDATES, MAX_DISC_CANDIDATES = 16, 8
"""Candidates compared per image. An image with more duplicates stays in one component through the others."""
MAX_DISC_NEIGHBOURS, MAX_GUESSES = 3, 2
"""Neighbours per disc, and disc pairs tried per pair of images."""
MAX_VECTORS = 1_500_000
"""Discs searched at once, 270 MB; larger sets use fewer discs of each image."""
MAX_IDENTICAL = 30
"""Up to this many identical images every pair is listed; of more, enough to include every label and split."""
_PAIRS_PER_CHUNK = 256
"""Pairs registered at once: about 100 MB per thread."""

DUPLICATE_COLUMNS = ("a", "b", "distance", "kind")
KINDS = ("exact", "reencoded", "resized", "flipped", "rotated", "cropped")
"""How the second image of a pair differs from the first. `rotated`: by any angle; `flipped`: rotated or not."""


@dataclass(frozen=True, eq=False)
class _ImagePool:
    """N images to search. scan_index: (N,) the scan of each, 0 or 1. store_rows: (N,) its row in that scan's maps."""

    scans: tuple[Scan, ...]
    scan_index: NDArray[np.int64]
    store_rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.store_rows)

    def get(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return (len(rows), ...) entries of the map `name`, each from its scan."""
        if len(self.scans) == 1:
            return np.asarray(getattr(self.scans[0], name)[self.store_rows[rows]])
        first_map = getattr(self.scans[0], name)
        values = np.empty((len(rows), *first_map.shape[1:]), first_map.dtype)
        for scan_number, scan in enumerate(self.scans):
            in_scan = self.scan_index[rows] == scan_number
            values[in_scan] = getattr(scan, name)[self.store_rows[rows[in_scan]]]
        return values


def find_duplicates(
    frame: pd.DataFrame, scan: Scan, *, progress: Progress | None = None, workers: int = 0
) -> pd.DataFrame:
    """Return the duplicate pairs within a set: row numbers a < b, distance (0 = same pixels .. 1), kind.

    frame: the manifest's rows (pixel_sha256, width, height), in the order of the scan.
    """
    image_pool = _ImagePool((scan,), np.zeros(len(frame), np.int64), scan.store_rows)
    pairs = _find_pairs(_picture_table(frame, scan.table), image_pool, progress or Progress(), workers)
    return pairs.sort_values(["a", "b"], ignore_index=True)


def find_duplicates_across(
    frames: tuple[pd.DataFrame, pd.DataFrame],
    scans: tuple[Scan, Scan],
    *,
    progress: Progress | None = None,
    workers: int = 0,
) -> pd.DataFrame:
    """Return the duplicate pairs across two sets: a is a row of the first, b of the second."""
    all_pictures = pd.concat(
        [_picture_table(frame, scan.table) for frame, scan in zip(frames, scans, strict=True)]
    )
    set_index = np.repeat([0, 1], [len(table) for table in frames])
    image_pool = _ImagePool(scans, set_index, np.concatenate([scan.store_rows for scan in scans]))
    pairs = _find_pairs(all_pictures.reset_index(drop=True), image_pool, progress or Progress(), workers)
    cross_pairs: pd.DataFrame = pairs[set_index[pairs["a"]] != set_index[pairs["b"]]]
    return cross_pairs.assign(b=cross_pairs["b"] - len(frames[0])).sort_values(["a", "b"], ignore_index=True)


def _picture_table(frame: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return size and pixel hash of each image; a file that changed since the import has no known hash ("")."""
    is_unchanged = (table["state"] == "").to_numpy()
    return frame[["width", "height"]].assign(pixel_sha256=frame["pixel_sha256"].where(is_unchanged, ""))


def _find_pairs(frame: pd.DataFrame, image_pool: _ImagePool, progress: Progress, workers: int) -> pd.DataFrame:
    picture_codes = distinct_codes(frame["pixel_sha256"])
    first_rows = np.flatnonzero(~pd.Series(picture_codes).duplicated().to_numpy())
    distinct_pool = _ImagePool(
        image_pool.scans, image_pool.scan_index[first_rows], image_pool.store_rows[first_rows]
    )
    near_pairs = _find_near_pairs(distinct_pool, frame.iloc[first_rows].reset_index(drop=True), progress, workers)
    rows = pd.Series(np.arange(len(frame)))
    # In order of first occurrence, as `first_rows`.
    members = rows.groupby(picture_codes, sort=False).agg(list).tolist()
    identical_pairs = exact_duplicate_pairs(frame["pixel_sha256"], pd.Series(image_pool.scan_index))
    return pd.concat([identical_pairs, _expand_to_images(near_pairs, members)], ignore_index=True)


def exact_duplicate_pairs(pixels: "pd.Series[str]", *attributes: "pd.Series[Any]") -> pd.DataFrame:
    """Return the pairs of images with identical pixels, "" = unknown; columns `DUPLICATE_COLUMNS`.

    Of more than `MAX_IDENTICAL` identical images, each is paired with the first of every combination of `attributes`
    (label, split): an image with a duplicate under another label or in another split then has such a pair.
    """
    frame = pd.DataFrame(
        {"pixels": pixels.to_numpy(), **{str(n): values.to_numpy() for n, values in enumerate(attributes)}}
    )
    repeated = frame[(frame["pixels"] != "") & frame["pixels"].duplicated(keep=False)]
    rows: list[tuple[int, int]] = []
    for _, identical in repeated.groupby("pixels", sort=False):
        members = identical.index.to_numpy()
        partners = members
        if len(members) > MAX_IDENTICAL:
            partners = identical.drop_duplicates(
                [str(n) for n in range(len(attributes))] or "pixels"
            ).index.to_numpy()
        rows += {(int(min(a, b)), int(max(a, b))) for a in partners for b in members if a != b}
    pairs = np.array(sorted(rows), np.int64).reshape(-1, 2)
    return pd.DataFrame({"a": pairs[:, 0], "b": pairs[:, 1], "distance": 0.0, "kind": "exact"})


def _expand_to_images(near_pairs: pd.DataFrame, members: list[list[int]]) -> pd.DataFrame:
    """Expand near pairs of distinct pictures to pairs of images: identical copies inherit the near duplicates."""
    rows = [
        (min(a, b), max(a, b), distance, kind)
        for first_picture, second_picture, distance, kind in near_pairs.itertuples(index=False)
        for a in members[first_picture][:MAX_IDENTICAL]
        for b in members[second_picture][:MAX_IDENTICAL]
    ]
    image_pairs = pd.DataFrame(rows, columns=list(DUPLICATE_COLUMNS))
    return image_pairs.astype({"a": np.int64, "b": np.int64, "distance": np.float64, "kind": "str"})


def _find_near_pairs(
    image_pool: _ImagePool, frame: pd.DataFrame, progress: Progress, workers: int
) -> pd.DataFrame:
    """Return the near pairs among distinct pictures, numbered as in `frame`."""
    usable_rows = _usable_rows(image_pool)
    # Whole frames first: pairs that they confirm need no discs.
    confirmed = _confirm_candidates(
        image_pool, frame, _frame_candidates(image_pool, usable_rows), progress, workers
    )
    disc_candidates = _disc_candidates(image_pool, usable_rows)
    confirmed_index = pd.MultiIndex.from_frame(confirmed[["a", "b"]])
    disc_candidates = disc_candidates[
        ~pd.MultiIndex.from_frame(disc_candidates[["a", "b"]]).isin(confirmed_index)
    ].reset_index(drop=True)
    return pd.concat(
        [confirmed, _confirm_candidates(image_pool, frame, disc_candidates, progress, workers)], ignore_index=True
    )


def _usable_rows(image_pool: _ImagePool) -> NDArray[np.int64]:
    """Return the rows of images that were read and have contrast: all plain surfaces are alike."""
    usable_blocks = []
    for start in range(0, len(image_pool), 4096):
        rows = np.arange(start, min(start + 4096, len(image_pool)))
        square = image_pool.get("square", rows).astype(np.float32).mean(axis=-1)
        usable_blocks.append(rows[square.std(axis=(1, 2)) >= MIN_CONTRAST])
    return np.concatenate(usable_blocks) if usable_blocks else np.empty(0, np.int64)


MIN_CONTRAST = 2.0
"""Standard deviation in grey levels below which an image has nothing to be recognised by."""


def _frame_candidates(image_pool: _ImagePool, usable_rows: NDArray[np.int64]) -> pd.DataFrame:
    neighbours = find_neighbours(
        image_pool.get("global_descriptor", usable_rows),
        np.arange(len(usable_rows)),
        max_distance=MAX_FRAME_DISTANCE,
        max_neighbours=MAX_FRAME_CANDIDATES,
    )
    table = {"a": usable_rows[neighbours.first], "b": usable_rows[neighbours.second], "disc_a": -1, "disc_b": -1}
    return pd.DataFrame(table | {"descriptor_distance": neighbours.distance})


def _disc_candidates(image_pool: _ImagePool, usable_rows: NDArray[np.int64]) -> pd.DataFrame:
    """Return candidate pairs of images with similar discs: the best `MAX_GUESSES` disc pairs of each image pair."""
    n_slots = max(4, min(image_pool.scans[0].patch_descriptors.shape[1], MAX_VECTORS // max(len(usable_rows), 1)))
    vector_blocks, owner_blocks, slot_blocks = [], [], []
    for start in range(0, len(usable_rows), 4096):
        rows = usable_rows[start : start + 4096]
        has_disc = image_pool.get("keypoints", rows)[:, :n_slots, 2] > 0
        image, disc_number = np.nonzero(has_disc)
        vector_blocks.append(image_pool.get("patch_descriptors", rows)[image, disc_number])
        owner_blocks.append(rows[image])
        slot_blocks.append(disc_number)
    if not owner_blocks:
        return pd.DataFrame(
            {name: np.empty(0, np.int64) for name in ("a", "b", "disc_a", "disc_b", "descriptor_distance")}
        )
    owners, disc_numbers = np.concatenate(owner_blocks), np.concatenate(slot_blocks)
    neighbours = find_neighbours(
        np.concatenate(vector_blocks), owners, max_distance=MAX_DISC_DISTANCE, max_neighbours=MAX_DISC_NEIGHBOURS
    )
    table = pd.DataFrame(
        {
            "a": owners[neighbours.first], "b": owners[neighbours.second], "disc_a": disc_numbers[neighbours.first],
            "disc_b": disc_numbers[neighbours.second], "descriptor_distance": neighbours.distance,
        }
    )  # fmt: skip
    table = table.sort_values(["a", "b", "descriptor_distance"], kind="stable", ignore_index=True)
    rank = table.groupby(["a", "b"], sort=False).cumcount().to_numpy()
    best_pairs = table[rank == 0]
    is_nearest = among_nearest(
        best_pairs["a"].to_numpy(),
        best_pairs["b"].to_numpy(),
        best_pairs["descriptor_distance"].to_numpy(),
        MAX_DISC_CANDIDATES,
    )
    is_followed = np.repeat(is_nearest, np.diff(np.r_[np.flatnonzero(rank == 0), len(table)]))
    return table[is_followed & (rank < MAX_GUESSES)].reset_index(drop=True)


def _confirm_candidates(
    image_pool: _ImagePool, frame: pd.DataFrame, candidates: pd.DataFrame, progress: Progress, workers: int
) -> pd.DataFrame:
    """Register each candidate pair; return those that are duplicates, each pair once."""
    if candidates.empty:
        return pd.DataFrame({"a": [], "b": [], "distance": [], "kind": []}).astype(
            {"a": int, "b": int, "kind": "str"}
        )
    chunks = [
        candidates.iloc[start : start + _PAIRS_PER_CHUNK] for start in range(0, len(candidates), _PAIRS_PER_CHUNK)
    ]
    results = []
    with threadpool_limits(1), worker_pool(workers or cpu_count()) as pool:
        for n_chunks, chunk in enumerate(
            pool.map(lambda chunk: _compare_chunk(image_pool, frame, chunk), chunks), 1
        ):
            results.append(chunk)
            progress.step(
                "candidates compared", min(n_chunks * _PAIRS_PER_CHUNK, len(candidates)), len(candidates)
            )
    table = pd.concat(results, ignore_index=True).sort_values(["a", "b", "distance"], kind="stable")
    return table.drop_duplicates(["a", "b"]).reset_index(drop=True)


def _compare_chunk(image_pool: _ImagePool, frame: pd.DataFrame, chunk: pd.DataFrame) -> pd.DataFrame:
    a, b = chunk["a"].to_numpy(), chunk["b"].to_numpy()
    sizes = [image_pool.get("size", pair_rows).astype(np.int64) for pair_rows in (a, b)]
    if chunk["disc_a"].iloc[0] < 0:
        initial_maps, correlation = guess_from_frames(
            (image_pool.get("square", a), image_pool.get("square", b)), (sizes[0], sizes[1])
        )
    else:
        disc_numbers = chunk["disc_a"].to_numpy(), chunk["disc_b"].to_numpy()
        disc_lookup = [
            (pair_rows, np.arange(len(pair_rows)), disc_number_array)
            for pair_rows, disc_number_array in zip((a, b), disc_numbers, strict=True)
        ]
        polar_patches, keypoints = (
            [image_pool.get(name, pair_rows)[index, disc_number] for pair_rows, index, disc_number in disc_lookup]
            for name in ("polar_patches", "keypoints")
        )
        initial_maps, correlation = guess_from_discs(
            (polar_patches[0], polar_patches[1]), (keypoints[0], keypoints[1])
        )
    candidate_rows = np.flatnonzero(correlation >= MIN_GUESS_CORRELATION)
    rough_match = _register_pairs(
        image_pool, (a[candidate_rows], b[candidate_rows]), initial_maps[candidate_rows], is_rough=True
    )
    is_promising = _is_promising(rough_match.full_similarity) | _is_promising(rough_match.inner_similarity)
    refined_rows = np.flatnonzero(is_promising & _is_plausible(rough_match))
    fine_match = _register_pairs(
        image_pool,
        (a[candidate_rows[refined_rows]], b[candidate_rows[refined_rows]]),
        rough_match.matrix[refined_rows],
        is_rough=False,
    )
    is_duplicate = is_near_duplicate(fine_match)
    pair_rows = candidate_rows[refined_rows][is_duplicate]
    kinds = transformation_kinds(
        fine_match,
        [size[candidate_rows[refined_rows]] for size in sizes],
        _same_size(frame, a[candidate_rows[refined_rows]], b[candidate_rows[refined_rows]]),
    )
    # 1e-6: only identical pixels have distance 0.
    distance = (
        1
        - np.maximum(fine_match.full_similarity.correlation, fine_match.inner_similarity.correlation)[is_duplicate]
    ).clip(1e-6, 1)
    return pd.DataFrame({"a": a[pair_rows], "b": b[pair_rows], "distance": distance, "kind": kinds[is_duplicate]})


def _register_pairs(
    image_pool: _ImagePool,
    rows: tuple[NDArray[np.int64], NDArray[np.int64]],
    initial_maps: NDArray[np.float64],
    *,
    is_rough: bool,
) -> Registration:
    """Register P pairs, rows: two (P,) arrays, from (P, 2, 3) maps; each picture of the chunk is prepared once."""
    images, position = np.unique(np.concatenate(rows), return_inverse=True)
    pictures = prepare_images(
        image_pool.get("canvas", images), image_pool.get("size", images).astype(np.int64), is_rough=is_rough
    )
    n_pairs = len(rows[0])
    return register_images(
        pictures.select(position[:n_pairs]), pictures.select(position[n_pairs:]), initial_maps, is_rough=is_rough
    )


MIN_GUESS_CORRELATION = 0.7
MAX_ANISOTROPY = 1.2
"""Largest ratio of the two singular values of a map that does not cover whole frames."""
ROUGH_MIN_CORRELATION, ROUGH_MAX_DIFFERENCE = 0.95, 9.0
"""Required in the first round: 99 % of copies reached .991 and 4.2, 9 of 10 unrelated pairs did not."""


def _is_promising(similarity: Similarity) -> NDArray[np.bool_]:
    return np.asarray(
        (similarity.correlation > ROUGH_MIN_CORRELATION) & (similarity.rms_difference < ROUGH_MAX_DIFFERENCE)
    )


def _is_plausible(registration: Registration) -> NDArray[np.bool_]:
    """Return (P,) flags of plausible maps: scaled by less than 3, with enough overlap, and nearly isotropic.

    Only whole frames are squeezed, to fit a net's input. An oval lesion registered on a round one is squeezed as much,
    and is unrelated.
    """
    singular_values = np.linalg.svd(registration.matrix[:, :, :2], compute_uv=False)
    anisotropy = singular_values[:, 0] / np.maximum(singular_values[:, 1], 1e-6)
    covers_frame = registration.overlap_fractions.min(axis=1) > 0.85
    within_limits = (
        (singular_values[:, 0] < 3)
        & (singular_values[:, 1] > 1 / 3)
        & (anisotropy < np.where(covers_frame, 2.0, MAX_ANISOTROPY))
    )
    return np.asarray(
        within_limits
        & (registration.overlap_fractions.max(axis=1) > 0.55)
        & (registration.overlap_fractions.min(axis=1) > 0.2)
    )


def is_near_duplicate(registration: Registration) -> NDArray[np.bool_]:
    """Return (P,) flags of duplicates: pairs that agree in the full overlap or in its inner part."""
    is_similar = _is_similar(registration.full_similarity) | _is_similar(registration.inner_similarity)
    similarity = registration.full_similarity
    is_recoloured = (
        (similarity.correlation > 0.995)
        & (similarity.detail_correlation > 0.95)
        & (registration.overlap_fractions.max(axis=1) > 0.8)
    )
    return np.asarray((is_similar | is_recoloured) & _is_plausible(registration))


def _is_similar(similarity: Similarity) -> NDArray[np.bool_]:
    """Return (P,) flags: grey levels and fine detail agree.

    Planted copies reached 0.993, 0.74 and 3.1 grey levels; nearest unrelated pairs 0.988, 0.91 and 4.4, never at once.
    """
    tight_difference = (
        (similarity.rms_difference < 2.2)
        & (similarity.correlation > 0.99)
        & (similarity.detail_correlation > 0.35)
    )
    balanced = (
        (similarity.rms_difference < 3.7)
        & (similarity.correlation > 0.985)
        & (similarity.detail_correlation > 0.6)
    )
    high_detail = (
        (similarity.rms_difference < 4.6)
        & (similarity.correlation > 0.985)
        & (similarity.detail_correlation > 0.9)
    )
    high_correlation = (
        (similarity.rms_difference < 6.5)
        & (similarity.correlation > 0.992)
        & (similarity.detail_correlation > 0.85)
    )
    return np.asarray(tight_difference | balanced | high_detail | high_correlation)


def _same_size(frame: pd.DataFrame, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
    sizes = frame[["width", "height"]].to_numpy()
    return np.asarray((sizes[a] == sizes[b]).all(axis=1))


def transformation_kinds(
    registration: Registration, sizes: list[NDArray[np.int64]], same_size: NDArray[np.bool_]
) -> NDArray[np.str_]:
    """Return the kind of each map, (P,): `KINDS` but for exact. sizes: of both canvases, two (P, 2) arrays."""
    half_sizes = [(size - 1) / 2 for size in sizes]
    linear = registration.matrix[:, :, :2]
    unit_map = linear * half_sizes[0][:, None, :] / half_sizes[1][:, :, None]
    mapped_centre = np.einsum("pij,pj->pi", linear, half_sizes[0]) + registration.matrix[:, :, 2]
    is_centred = (np.abs(mapped_centre - half_sizes[1]) / half_sizes[1]).max(axis=1) < 0.05
    maps_full_frame = (np.abs(unit_map - np.rint(unit_map)).max(axis=(1, 2)) < 0.05) & is_centred
    is_flipped = np.linalg.det(linear) < 0
    is_axis_aligned = np.abs(unit_map - np.eye(2)).max(axis=(1, 2)) < 0.05
    rotation_degrees = np.degrees(np.arctan2(linear[:, 1, 0] - linear[:, 0, 1], linear[:, 0, 0] + linear[:, 1, 1]))
    is_upright = ~is_flipped & (np.abs(rotation_degrees) < 2)
    return np.select(
        [
            maps_full_frame & is_axis_aligned & same_size,
            maps_full_frame & is_axis_aligned,
            maps_full_frame & is_flipped,
            maps_full_frame,
            is_upright,
            is_flipped,
        ],
        ["reencoded", "resized", "flipped", "rotated", "cropped", "flipped"],
        "rotated",
    )
