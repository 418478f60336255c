"""Runs against each other: every figure with its interval, and on the same images a test of each difference.

Whether two runs differ is not read off two intervals. Where both scored the same images, these are paired and each
figure's difference has an interval, a test corrected for all that were made, and a sentence; where they did not,
nothing is tested and the sentence says why. Several trainings of a recipe are compared as what they are: a sample of
what the recipe gives.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.comparison.entries import Entry, entries
from dermkit.comparison.leaderboard import board, wide
from dermkit.comparison.paired import corrected, differences
from dermkit.comparison.repeated import (  # fmt: skip
    Drawn,
    differences_of_trainings,
    differences_over_folds,
    draw,
    figures_of,
    moved_by,
    moved_over_folds,
)
from dermkit.comparison.variance import Sources
from dermkit.comparison.verdict import Difference, verdict
from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError
from dermkit.files import read_json
from dermkit.runs.predictions import read_groups, read_predictions, scored_of

RUN_FORMAT = 1
DISAGREEMENT_COLUMNS = ("image_id", "path", "label", "wrong_in")
SEED = 0


@dataclass(frozen=True)
class Pair:
    """Two runs, or recipes by several trainings, on one split.

    n: images that both scored; differences: empty where `reason` says why none is tested. kind: "runs", "trainings"
    (on the same images) or "folds".
    """

    first: str
    second: str
    split: str
    n: int
    differences: tuple[Difference, ...]
    reason: str = ""
    kind: str = "runs"

    def sentences(self) -> list[str]:
        """Return the verdict on every figure, or why there is none."""
        if self.reason:
            return [f"{self.first} and {self.second} on {self.split}: {self.reason}."]
        return [verdict(item, self.first, self.second) for item in self.differences]


@dataclass(frozen=True)
class Comparison:
    """table: a row per run or group, split and metric (`board.COLUMNS`). same_images: split -> all scored the same.

    pairs: every two entries on every split that both have. disagreements: split -> images that not all runs have right,
    with each one's answer. entries: what was compared with what; spreads: group -> split -> figure -> what moves it.
    """

    table: pd.DataFrame
    same_images: dict[str, bool]
    pairs: tuple[Pair, ...]
    disagreements: dict[str, pd.DataFrame]
    entries: tuple[Entry, ...] = ()
    spreads: Mapping[str, Mapping[str, Mapping[str, Sources]]] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Return what a reader should know of how runs came together."""
        return [entry.note for entry in self.entries if entry.note]

    @property
    def folders(self) -> list[Path]:
        """Return all runs that were read."""
        return [run for entry in self.entries for run in entry.runs]

    def wide(self, metrics: Sequence[str], *, split: str) -> pd.DataFrame:
        """Return one row per run or group, one text column per metric: `0.466 [0.379, 0.556], n 118`."""
        return wide(self.table, metrics, split=split)


@dataclass(frozen=True, eq=False)
class _Side:
    """What a run says of its images: its classes, predictions, their groups, and which data set they are of.

    trained: how many images it learnt from, 0 where it does not say.
    """

    name: str
    classes: tuple[LesionClass, ...]
    predictions: pd.DataFrame
    groups: Mapping[str, int] | None
    data: str
    trained: int

    def part(self, split: str) -> pd.DataFrame:
        """Return the predictions of one split."""
        return self.predictions[self.predictions["split"] == split]


@dataclass(frozen=True, eq=False)
class _Team:
    """An entry with what its runs say, and figures on resamples as they are asked for."""

    entry: Entry
    sides: tuple[_Side, ...]
    drawn: dict[tuple[str, tuple[str, ...], bytes], Drawn] = field(default_factory=dict)

    def divisions(self, split: str) -> dict[frozenset[str], list[_Side]]:
        """Return the sets of images that its runs scored, with the runs: one set for seeds, one per fold for folds."""
        found: dict[frozenset[str], list[_Side]] = {}
        for side in self.sides:
            found.setdefault(frozenset(side.part(split)["image_id"]), []).append(side)
        return found

    def draw(self, side: _Side, split: str, common: tuple[str, ...], groups: Mapping[str, int] | None) -> Drawn:
        """Return a run's figures on resamples of the shared images, made once."""
        part = side.part(split).set_index("image_id").loc[list(common)].reset_index()
        # The order of the classes moves no figure, but resamples must be of the same units.
        scored = scored_of(part, sorted(side.classes, key=lambda item: item.name), groups)
        key = (side.name, common, scored.groups.tobytes())
        if key not in self.drawn:
            self.drawn[key] = draw(scored, seed=SEED)
        return self.drawn[key]


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Compare evaluated runs, or folders of repeats; raises `UsageError` for fewer than two runs, `DataError` for none.

    What belongs together, and is compared as trainings of a recipe, `trainings.entries` says.
    """
    found = entries(runs)
    table = board(found)
    teams = [_team(entry) for entry in found]
    sides = [side for team in teams for side in team.sides]
    splits = list(dict.fromkeys(split for side in sides for split in side.predictions["split"]))
    pairs = [_pair_of(*both, split) for split in splits for both in combinations(teams, 2)]
    return Comparison(
        table=table,
        same_images={split: len({_images(team, split) for team in teams}) == 1 for split in splits},
        pairs=_corrected(pairs),
        disagreements={split: seen for split in splits if (seen := _disagreements(teams, split)) is not None},
        entries=found,
        spreads={team.entry.name: _spreads(team, splits) for team in teams if team.entry.is_group},
    )


def _team(entry: Entry) -> _Team:
    return _Team(entry, tuple(_side(name, run) for name, run in zip(entry.names, entry.runs, strict=True)))


def _side(name: str, run: Path) -> _Side:
    about = read_json(run / "run.json", format=RUN_FORMAT, error=DataError)
    data = about.get("dataset", {})
    classes = tuple(LesionClass(**item) for item in data.get("classes", []))
    predictions = read_predictions(run / "predictions.csv", [item.name for item in classes])
    trained = about.get("split", {}).get("counts", {}).get("train", 0)
    return _Side(name, classes, predictions, read_groups(run), str(data.get("manifest_sha256", "")), int(trained))


def _images(team: _Team, split: str) -> frozenset[tuple[str, ...]]:
    """Return which images were scored, of which data set: two sets may both hold a benign/1.jpg."""
    return frozenset(
        (side.data, *pair)
        for side in team.sides
        for pair in zip(side.part(split)["image_id"], side.part(split)["label"], strict=True)
    )


# Pairs ------------------------------------------------------------------------------------------------------------


def _pair_of(first: _Team, second: _Team, split: str) -> Pair:
    """Compare two runs as two runs, and whatever holds several trainings as recipes."""
    if not (first.entry.is_group or second.entry.is_group):
        return _pair(first.sides[0], second.sides[0], split)
    divisions = first.divisions(split), second.divisions(split)
    folds = max(map(len, divisions)) > 1
    kind = "folds" if folds else "trainings"
    shared = [frozenset.intersection(*item) if not folds else frozenset().union(*item) for item in divisions]
    common = tuple(sorted(shared[0] & shared[1]))
    reason = _unlike([*first.sides, *second.sides], common, split)
    if not reason and folds:
        reason = _unlike_folds(first, second, split)
    found: Sequence[Difference] = ()
    if not reason:
        found = _over_folds(first, second, split) if folds else _of_trainings(first, second, split, common)
    return Pair(first.entry.name, second.entry.name, split, len(common), tuple(found), reason, kind)


def _of_trainings(first: _Team, second: _Team, split: str, common: tuple[str, ...]) -> Sequence[Difference]:
    groups = _shared_groups([*first.sides, *second.sides], common)
    made = [[team.draw(side, split, common, groups) for side in team.sides] for team in (first, second)]
    return differences_of_trainings(*made)


def _over_folds(first: _Team, second: _Team, split: str) -> Sequence[Difference]:
    like, own, other = first.sides[0], first.divisions(split), second.divisions(split)
    figures = [
        [_figures_of_fold(division[fold], like.classes, split) for fold in own] for division in (own, other)
    ]
    pooled = pd.concat([side.part(split) for side in first.sides]).drop_duplicates("image_id")
    trained = np.mean([side.trained for side in (*first.sides, *second.sides)])
    tested = np.mean([len(fold) for fold in own])
    return differences_over_folds(
        *figures, like=scored_of(pooled, like.classes, None), n_train=round(trained), n_test=round(tested)
    )


def _figures_of_fold(sides: Sequence[_Side], classes: Sequence[LesionClass], split: str) -> list[dict[str, float]]:
    """Return each training's figures: what hangs together moves none, and a run knows it of its own images alone."""
    return [figures_of(scored_of(side.part(split), classes, None)) for side in sides]


def _unlike_folds(first: _Team, second: _Team, split: str) -> str:
    """Return why two recipes cannot be compared fold by fold; "" where they can."""
    divisions = [team.divisions(split) for team in (first, second)]
    for team, found in zip((first, second), divisions, strict=True):
        if frozenset() in found:
            return f"not tested, since a run of {team.entry.name} has no {split} images"
    if min(map(len, divisions)) == 1:
        return "not tested, since one was tested on folds and the other was not"
    if divisions[0].keys() != divisions[1].keys():
        alike = len(divisions[0].keys() & divisions[1].keys())
        counts = " and ".join(str(len(found)) for found in divisions)
        return f"not tested, since they were tested on different folds ({counts}, {alike} of them with the same images)"
    silent = [side.name for team in (first, second) for side in team.sides if side.trained < 1]
    return f"not tested, since {silent[0]} does not say how many images it learnt from" if silent else ""


def _spreads(team: _Team, splits: Sequence[str]) -> dict[str, dict[str, Sources]]:
    """Return split -> figure -> what moves it, for the splits on which a group can be looked at."""
    made: dict[str, dict[str, Sources]] = {}
    classes = team.sides[0].classes
    for split in splits:
        divisions = team.divisions(split)
        if _unlike(team.sides, tuple(frozenset().union(*divisions)), split) or frozenset() in divisions:
            continue
        if len(divisions) == 1:
            common = tuple(sorted(next(iter(divisions))))
            groups = _shared_groups(team.sides, common)
            made[split] = moved_by([team.draw(side, split, common, groups) for side in team.sides])
        else:
            made[split] = moved_over_folds([_figures_of_fold(fold, classes, split) for fold in divisions.values()])
    return made


def _unlike(sides: Sequence[_Side], common: Sequence[str], split: str) -> str:
    """Return why runs cannot be compared image by image; "" where they can."""
    if len({side.data for side in sides}) > 1:
        return "not comparable, since they are of different data sets"
    if len({frozenset(item.name for item in side.classes) for side in sides}) > 1:
        return "not comparable, since their classes differ"
    if len({frozenset((item.name, item.malignancy) for item in side.classes) for side in sides}) > 1:
        return "not comparable, since they do not call the same classes malignant"
    if not common:
        return "not comparable, since they share no image"
    parts = [side.part(split) for side in sides]
    if any(part["image_id"].duplicated().any() for part in parts):
        return "not compared, since an image was scored more than once"
    labels = pd.concat([part.loc[part["image_id"].isin(common), ["image_id", "label"]] for part in parts])
    if labels.drop_duplicates()["image_id"].duplicated().any():
        return "not comparable, since the labels of shared images differ"
    return ""


def _pair(first: _Side, second: _Side, split: str) -> Pair:
    parts = [side.part(split) for side in (first, second)]
    common = sorted(set(parts[0]["image_id"]) & set(parts[1]["image_id"]))
    reason = _unlike([first, second], common, split)
    if reason:
        return Pair(first.name, second.name, split, len(common), (), reason)
    chosen = [part.set_index("image_id").loc[common].reset_index() for part in parts]
    shared = _shared_groups([first, second], common)
    scored = [scored_of(part, first.classes, shared) for part in chosen]
    return Pair(first.name, second.name, split, len(common), tuple(differences(*scored, seed=SEED)))


def _shared_groups(sides: Sequence[_Side], common: Sequence[str]) -> dict[str, int] | None:
    """Return the groups that one of them states for all shared images; all read the same data set."""
    for side in sides:
        if side.groups is not None and all(name in side.groups for name in common):
            return dict(side.groups)
    return None


def _corrected(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Correct all questions of a split for each other; validation and test are asked apart."""
    made: dict[int, Pair] = {}
    for split in dict.fromkeys(pair.split for pair in pairs):
        places = [place for place, pair in enumerate(pairs) if pair.split == split]
        families = corrected([pairs[place].differences for place in places])
        for place, family in zip(places, families, strict=True):
            made[place] = replace(pairs[place], differences=tuple(family))
    return tuple(made[place] for place in range(len(pairs)))


def _disagreements(teams: Sequence[_Team], split: str) -> pd.DataFrame | None:
    """Return images that some runs have right and others wrong, most divided first; None where no image is shared."""
    sides = [side for team in teams for side in team.sides]
    if len({side.data for side in sides}) > 1:
        return None
    parts = {side.name: side.part(split).set_index("image_id") for side in sides}
    shared = set.intersection(*(set(part.index) for part in parts.values()))
    if not shared or any(part.index.has_duplicates for part in parts.values()):
        return None
    common = sorted(shared)
    table = parts[sides[0].name].loc[common, ["path", "label"]].reset_index()
    wrong = np.zeros(len(common), dtype=np.int64)
    for team in teams:
        answers = np.stack(
            [parts[side.name].loc[common, "predicted"].to_numpy(dtype=object) for side in team.sides]
        )
        table[team.entry.name] = [_most(column) for column in answers.T.tolist()]
        wrong += (answers != table["label"].to_numpy(dtype=object)).sum(axis=0)
    table.insert(3, "wrong_in", wrong)
    table = table[(wrong > 0) & (wrong < len(sides))]
    divided = np.abs(table["wrong_in"] - len(sides) / 2)
    order = np.lexsort((table["image_id"], divided))
    return table.iloc[order].reset_index(drop=True)


def _most(answers: Sequence[str]) -> str:
    """Return a run's answer, or what most trainings of a group say and how many: `melanoma (4 of 6)`."""
    answer, times = max(Counter(answers).items(), key=lambda item: (item[1], item[0]))
    return answer if len(answers) == 1 else f"{answer} ({times} of {len(answers)})"
