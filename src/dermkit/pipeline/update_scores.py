"""The tests of an update: sealed in the data sets that they are of, scored once by each model, each opening counted."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermkit.comparison.promotion import PairedTest, PromotionRule
from dermkit.data.groups import leakage_groups
from dermkit.data.manifest import Dataset, load_dataset
from dermkit.data.seal import find_seal, seal_path, seal_split
from dermkit.data.split import Split, save_split
from dermkit.data.split_file import excluded_frame
from dermkit.errors import DataError
from dermkit.evaluation.openings import PlannedOpening, log_openings, openings_of_images, seal_folder
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.subgroups import UNKNOWN_GROUP, age_band
from dermkit.metrics.decisions.apply import select
from dermkit.metrics.decisions.policy import policy_from_dict
from dermkit.metrics.stats.arrays import Bools
from dermkit.metrics.stats.intervals import MIN_GROUPS
from dermkit.metrics.stats.paired_proportions import fewest_pairs
from dermkit.models.card import card_policy, read_card
from dermkit.pipeline.data import load_dataset_split
from dermkit.pipeline.update_champion import Champion
from dermkit.pipeline.update_data import NEW, OLD, SOURCES_NOTE, UpdateData
from dermkit.progress import Progress
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import CHALLENGER_TABLE, CHAMPION_TABLE, MODEL_FOLDER
from dermkit.runs.predictions import (
    ATTRIBUTES,
    probabilities_of,
    read_predictions,
    to_scored_set,
    write_predictions,
)

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True, eq=False)
class TestScores:
    """The paired tests, and the operating point that both models have, such as "sensitivity=0.95" ("" = none)."""

    __test__ = False
    tests: tuple[PairedTest, ...]
    operating_point: str


# Sealing ------------------------------------------------------------------------------------------------------------


def seal_tests(champion: Champion, new: Dataset, data: UpdateData, *, new_split: str | None, name: str) -> None:
    """Seal the champion's test in the old data set and the new test in the new one, unless they are sealed.

    new_split: the split of the new data set that was used, None: `name` is given to the one that was drawn.
    """
    old = champion.dataset
    if find_seal(seal_folder(old), old.manifest, champion.split) is None:
        split_name = str(RunFolder(champion.run).split_json.get("name") or "champion")
        if seal_path(seal_folder(old), split_name).exists():  # of a later split of that name
            split_name = name
        seal_split(seal_folder(old), split_name, champion.split.assign(fold=-1), old.manifest)
    if new_split is not None:
        frame = load_dataset_split(new, new_split).frame
        seal_split(seal_folder(new), Path(new_split).stem, frame, new.manifest)
        return
    rows = data.split.frame[data.split.frame["image_id"].str.startswith(f"{NEW}/")]
    frame = rows.assign(image_id=rows["image_id"].str.removeprefix(f"{NEW}/")).reset_index(drop=True)
    if find_seal(seal_folder(new), new.manifest, frame) is None:
        save_split(Split(name, frame, excluded_frame([], []), {}, None), seal_folder(new))
        seal_split(seal_folder(new), name, frame, new.manifest)


def check_test_sizes(data: UpdateData, rule: PromotionRule, *, has_points: bool) -> None:
    """Raise `DataError` where a test has too few independent images for a promotion, with the number needed.

    has_points: whether the champion has operating points, so that sensitivity is asked about.
    """
    test_rows = data.split.frame[data.split.frame["split"] == "test"]
    manifest = data.dataset.manifest
    groups = dict(zip(manifest["image_id"], leakage_groups(manifest).tolist(), strict=True))
    labels = dict(zip(manifest["image_id"], manifest["label"], strict=True))
    malignant = set(data.dataset.malignant_classes)
    for part in (OLD, NEW):
        ids = [one for one in test_rows["image_id"] if one.startswith(f"{part}/")]
        sides: dict[str, set[int]] = (
            {"malignant": set(), "other": set()}
            if rule.metric == "auroc"
            else {name: set() for name in data.dataset.class_names}
        )
        for one in ids:
            label = labels[one]
            side = ("malignant" if label in malignant else "other") if rule.metric == "auroc" else label
            sides[side].add(groups[one])
        counts = {name: (len(units), MIN_GROUPS) for name, units in sides.items()}
        if has_points and 0 < len(malignant) < len(data.dataset.classes):
            n_malignant = len({groups[one] for one in ids if labels[one] in malignant})
            counts["malignant"] = (n_malignant, max(MIN_GROUPS, fewest_pairs(rule.sensitivity_margin)))
        name, (n_units, fewest) = min(counts.items(), key=lambda count: count[1][0] / count[1][1])
        if n_units < fewest:
            folder = data.dataset.notes[SOURCES_NOTE][part]
            needed = -(-len(ids) * fewest // max(n_units, 1))
            raise DataError(
                f"{folder}: the {part} test has {n_units} independent {name} lesions or patients in {len(ids)} "
                f"images, and with these margins no promotion rests on fewer than {fewest}",
                outcome="nothing was trained and no test was opened",
                remedy=f"give about {needed} test images of this mix: more new data, or a larger --test"
                if part == NEW
                else f"train a first model with a larger test, of about {needed} images of this mix",
            )


# Scoring ------------------------------------------------------------------------------------------------------------


def score_tests(
    data: UpdateData, runs: Mapping[str, Path], folder: Path, *, device: str, progress: Progress
) -> None:
    """Score the tests with each model, role -> run folder; what is scored already is not opened again."""
    for role, run in runs.items():
        if not predictions_path(folder, role).is_file():
            _score(data, role, run, folder, device, progress)


def predictions_path(folder: Path, role: str) -> Path:
    """Return the table of a model's answers to the tests."""
    return folder / {CHAMPION: CHAMPION_TABLE, CHALLENGER: CHALLENGER_TABLE}[role]


def _score(data: UpdateData, role: str, run: Path, folder: Path, device: str, progress: Progress) -> None:
    from dermkit.data.cache.pixels import dataset_pixels
    from dermkit.prediction.load import load_model

    dataset = data.dataset
    ids = data.split.frame.loc[data.split.frame["split"] == "test", "image_id"].tolist()
    predictor = load_model(run, device=device, progress=progress)
    # All images, as the training has them in the cache.
    pixels = [
        dataset_pixels(dataset, dataset.manifest["image_id"].tolist(), preprocessing, progress)
        for preprocessing in predictor.resizings
    ]
    manifest = dataset.manifest.set_index("image_id").loc[ids]
    run_json = RunFolder(run).run_json
    openings = _planned_openings(dataset, ids, run, str(run_json.get("recipe", "")))
    with _counted(openings, role, progress):
        p = predictor.score_with_distances(
            [cache.pixels for cache in pixels], [pixels[0].index[one] for one in ids],
            on_progress=lambda count, total: progress.step("scoring", count, total), metadata=manifest,
        )[0]  # fmt: skip
        names = predictor.class_names
        rows = (
            (one, row.path, row.label, "test", "", run_json.get("seed", ""), names[int(scores.argmax())], *scores)
            for one, row, scores in zip(ids, manifest.itertuples(), p, strict=True)
        )
        write_predictions(predictions_path(folder, role), names, rows)


def _planned_openings(dataset: Dataset, ids: Sequence[str], run: Path, recipe: str) -> list[PlannedOpening]:
    """Return the openings of a joined data set, and of every data set that it was joined from."""
    openings = openings_of_images(
        dataset, ids, is_allowed=True, model=run / MODEL_FOLDER, opened_by="update", recipe=recipe, run=run.name
    )
    for part, folder in dict(dataset.notes.get(SOURCES_NOTE, {})).items():
        part_ids = [one.removeprefix(f"{part}/") for one in ids if one.startswith(f"{part}/")]
        openings += _planned_openings(load_dataset(Path(folder)), part_ids, run, recipe)
    return openings


@contextmanager
def _counted(openings: Sequence[PlannedOpening], role: str, progress: Progress) -> Iterator[None]:
    with log_openings(openings) as sentences:
        for sentence in sentences:
            progress.say(f"{role}: {sentence}")
        yield


# Pairs --------------------------------------------------------------------------------------------------------------


def read_paired_tests(data: UpdateData, runs: Mapping[str, Path], folder: Path) -> TestScores:
    """Return the answers of both models as paired tests, one of old and one of new images."""
    dataset = data.dataset
    manifest = dataset.manifest
    groups = dict(zip(manifest["image_id"], leakage_groups(manifest).tolist(), strict=True))
    tables = {
        role: read_predictions(predictions_path(folder, role), dataset.class_names).sort_values("image_id")
        for role in runs
    }
    cards = {role: card_policy(read_card(run / MODEL_FOLDER)) for role, run in runs.items()}
    point = _common_point(cards)
    tests = []
    for part in (OLD, NEW):
        rows = {role: table[table["image_id"].str.startswith(f"{part}/")] for role, table in tables.items()}
        sets = {role: to_scored_set(rows[role], dataset.classes, groups) for role in runs}
        calls = {role: _calls(cards[role], sets[role], rows[role], dataset, point) for role in runs}
        tests.append(
            PairedTest(
                part, sets[CHAMPION], sets[CHALLENGER], calls[CHAMPION], calls[CHALLENGER],
                _attributes(manifest, rows[CHAMPION]["image_id"].tolist()),
            )
        )  # fmt: skip
    return TestScores(tuple(tests), "" if point is None else f"{point[0]}={point[1]:g}")


def _common_point(cards: Mapping[str, Mapping[str, Any] | None]) -> tuple[str, float] | None:
    """Return the champion's operating point in use, else the first one that both models have."""
    policies = [None if card is None else policy_from_dict(card) for card in cards.values()]
    known = [policy for policy in policies if policy is not None]
    if len(known) < len(policies):
        return None
    common = [
        point
        for point in known[0].operating_points
        if all((point.rate, point.target) in policy.targets for policy in known)
    ]
    point = next((one for one in common if one.guaranteed), common[0] if common else None)
    return None if point is None else (point.rate, point.target)


def _calls(
    card: Mapping[str, Any] | None,
    scored: ScoredSet,
    rows: pd.DataFrame,
    dataset: Dataset,
    point: tuple[str, float] | None,
) -> Bools | None:
    """Return which images a model calls malignant at an operating point, in the order of the scored set."""
    if card is None or point is None or not scored.has_both_sides:
        return None
    policy = select(policy_from_dict(card), scored.malignant_classes, target=point)
    assert policy.point_index is not None  # noqa: S101  it was selected by its target
    calls: Bools = policy.apply(probabilities_of(rows, dataset.class_names)).is_positive[:, policy.point_index]
    return np.asarray(calls, dtype=bool)


def _attributes(manifest: pd.DataFrame, ids: Sequence[str]) -> dict[str, list[str]]:
    rows = manifest.set_index("image_id").loc[list(ids)]
    columns = {
        name: [age_band(value) if name == "age" else value or UNKNOWN_GROUP for value in rows[name]]
        for name in ATTRIBUTES
    }
    return {name: values for name, values in columns.items() if set(values) != {UNKNOWN_GROUP}}


def opening_counts(data: UpdateData) -> dict[str, int]:
    """Return how often the seal of the joined test, and of each test that it was joined from, was opened."""
    from dermkit.data.seal import read_seals

    folders = {"update": data.dataset.folder, **dict(data.dataset.notes[SOURCES_NOTE])}
    return {
        f"{part}: {seal.name}": len(seal.openings)
        for part, folder in folders.items()
        for seal in read_seals(Path(folder) / "splits")
    }
