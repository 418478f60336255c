"""Which of the folders that somebody names are trainings of one recipe: a parent of repeats, or runs unlike in seed.

What a recipe gives is not what one of its trainings gave; `compare` therefore takes such runs together.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dermkit.errors import DataError, UsageError
from dermkit.files import canonical_json, read_json, sha256_file

SUMMARY = "summary.json"
SUMMARY_FORMAT = 1
RUN_FORMAT = 1
NOT_THE_RECIPE = ("format", "about", "system", "seed", "repeats")
"""Fields of recipe.json that do not tell recipes apart."""

FEWEST_NAMED = 3
"""Folders from which on single runs are taken together: two runs are always compared as two runs."""

_SEED = re.compile(r"-s\d+(-f\d+)?$")


@dataclass(frozen=True)
class Entry:
    """What is compared as one: a single run, or several trainings of a recipe.

    names, runs: of the members, in order. note: what a reader should know of how they came together, "" for a run.
    """

    name: str
    names: tuple[str, ...]
    runs: tuple[Path, ...]
    note: str = ""

    @property
    def is_group(self) -> bool:
        """Whether these are several trainings."""
        return len(self.runs) > 1


def entries(folders: Sequence[Path]) -> tuple[Entry, ...]:
    """Return what is compared with what, in the order given; a group that was recognised stands at its first run.

    Raises `UsageError` for a folder named twice or fewer than two runs, `DataError` for a parent without its runs.
    """
    inside = [_runs_of(folder) for folder in folders]
    everything = [run for runs in inside for run in runs]
    if len({run.resolve() for run in everything}) < max(len(everything), 2):
        raise UsageError(
            "compare needs two different runs or more", remedy="dermkit compare RUN RUN..., or a folder of repeats"
        )
    short = dict(zip(everything, _names(everything), strict=True))
    parents = [folder for folder in folders if _is_parent(folder)]
    named = dict(zip(parents, _names(parents), strict=True)) if parents else {}
    single = [folder for folder in folders if folder not in named]
    together = _recognised(single) if len(folders) >= FEWEST_NAMED else {}
    made: list[Entry] = []
    for folder, runs in zip(folders, inside, strict=True):
        if folder in named:
            names = tuple(short[run] for run in runs)
            made.append(Entry(named[folder], names, tuple(runs), _final(folder, named[folder])))
        elif folder not in together:
            made.append(Entry(short[folder], (short[folder],), (folder,)))
        elif together[folder][0] == folder:
            made.append(_joined(together[folder], short))
    return _told_apart(made)


def _is_parent(folder: Path) -> bool:
    return (folder / SUMMARY).is_file()


def _runs_of(folder: Path) -> list[Path]:
    """Return the runs of a parent folder, as its summary lists them, or the folder itself."""
    if not _is_parent(folder):
        return [folder]
    listed = read_json(folder / SUMMARY, format=SUMMARY_FORMAT, error=DataError).get("runs", [])
    runs = [folder / str(row["folder"]) for row in listed]
    gone = [run.name for run in runs if not (run / "run.json").is_file()]
    if gone or not runs:
        raise DataError(
            f"{folder / SUMMARY}: {'these runs are not there: ' + ', '.join(gone) if gone else 'lists no run'}",
            kept="nothing was written",
            remedy="restore them, or name the runs that are there one by one",
        )
    return runs


def _final(folder: Path, name: str) -> str:
    """Return the warning that belongs to a parent folder's model."""
    final = read_json(folder / SUMMARY, format=SUMMARY_FORMAT, error=DataError).get("final", {})
    if not final:
        return ""
    return (
        f"{name}: its final model is {final.get('folder')}, the best of its trainings on validation. That model's test "
        "figure is one training's; for the recipe stands the mean of all."
    )


def _recognised(runs: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return each single run that has others of its recipe, split and data beside it, with all of them."""
    families: dict[str, list[tuple[tuple[object, object], Path]]] = {}
    for run in runs:
        mark = _mark(run)
        if mark is not None:
            families.setdefault(mark[0], []).append((mark[1], run))
    # Of two copies of a seed nobody knows which one counts: such runs stay single.
    whole = [family for family in families.values() if 1 < len(family) == len({which for which, _ in family})]
    return {run: [item for _, item in family] for family in whole for _, run in family}


def _mark(run: Path) -> tuple[str, tuple[object, object]] | None:
    """Return what a run has in common with others that differ in seed or fold, and its own seed and fold.

    None where the files do not say: predictions of other tools, runs without their recipe.
    """
    if not all((run / name).is_file() for name in ("run.json", "recipe.json", "split.csv")):
        return None
    facts = read_json(run / "run.json", format=RUN_FORMAT, error=DataError)
    data, recipe = facts.get("dataset", {}), _plain(run / "recipe.json")
    if recipe is None or not isinstance(facts.get("seed"), int) or not data.get("manifest_sha256"):
        return None
    same = {
        "recipe": {key: value for key, value in recipe.items() if key not in NOT_THE_RECIPE},
        "data": data["manifest_sha256"],
        "classes": data.get("classes"),
        "weights": facts.get("weights", {}).get("sha256"),
        # The sides differ from fold to fold; what the folds are, the recipe and the data decide.
        "split": sha256_file(run / "split.csv")
        if facts.get("fold") is None
        else facts.get("split", {}).get("name"),
    }
    return canonical_json(same), (facts["seed"], facts.get("fold"))


def _plain(path: Path) -> dict[str, Any] | None:
    """Return a recipe's fields as they stand, of whatever format: nobody trains by it here. None where it is broken."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _joined(runs: Sequence[Path], short: Mapping[Path, str]) -> Entry:
    names = [short[run] for run in runs]
    stems = {_SEED.sub("", name) for name in names}
    name = stems.pop() if len(stems) == 1 else f"{names[0]} and {len(runs) - 1} more"
    note = (
        f"{name}: {len(runs)} runs share recipe, split and data and differ in the seed or fold alone "
        f"({', '.join(run.name for run in runs)}), so they are taken as trainings of one recipe."
    )
    return Entry(name, tuple(names), tuple(runs), note)


def _told_apart(made: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return the entries with names that no other entry has."""
    taken = [entry.name for entry in made]
    names = [
        name if taken.count(name) == 1 else f"{name} ({taken[:number].count(name) + 1})"
        for number, name in enumerate(taken)
    ]
    return tuple(
        replace(entry, name=name, note=entry.note.replace(entry.name, name, 1))
        for entry, name in zip(made, names, strict=True)
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last two parts of each path, and as many more as it takes to tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = next(
        n for n in range(2, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(folders)
    )
    return ["/".join(part[-depth:]) for part in parts]
