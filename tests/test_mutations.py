"""One field changed in any JSON or CSV that is read back: a result or a message that names the file, never a fault."""

import csv
import io
import json
import os
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Invoke
from dermkit.audit.status import audit_state
from dermkit.data.manifest import load_dataset
from dermkit.data.split import load_split
from dermkit.errors import DermkitError
from dermkit.evaluation import evaluate
from dermkit.models.checksums import write_checksums
from dermkit.prediction.load import load_model
from dermkit.reporting import report
from dermkit.runs.documents import saved_content
from dermkit.runs.folder import RunFolder

N_FAST, N_SLOW = 60, 2000
HANDLED = {0, 2, 3, 4, 5, 6, 7}
VALUES: tuple[Any, ...] = (
    None, "", "x", "../x", "nan", -1, 0, 1, 0.5, 1e308, 10**30, True, False, [], {}, [None], [[]],
    {"x": []}, "x" * 5000, "\u0000", "<b>", "train", "test",
)  # fmt: skip
CELLS = (
    "",
    "x",
    "-1",
    "0",
    "nan",
    "1e999",
    "1e308",
    "0.5",
    '"',
    "../x",
    "train",
    "x" * 5000,
    "\u0000",
    "=1+1",
    "é",
)


def paths_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every field of a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*at, key)
        yield from paths_in(entry, (*at, key))


def mutate_json(text: str, rng: random.Random) -> tuple[str, str]:
    """Return the text with one field dropped or replaced, and what was done."""
    document = json.loads(text)
    # Every depth gets its turn: half of the changes are to one of the first two levels.
    ways = list(paths_in(document))
    short = [way for way in ways if len(way) <= 2]
    way = rng.choice(short if rng.random() < 0.5 else ways)
    place = document
    for key in way[:-1]:
        place = place[key]
    if rng.random() < 0.2:
        del place[way[-1]]
        return json.dumps(document), f"{way} dropped"
    place[way[-1]] = rng.choice(VALUES)
    return json.dumps(document), f"{way} = {str(place[way[-1]])[:30]!r}"


def mutate_csv(text: str, rng: random.Random) -> tuple[str, str]:
    """Return the table with one cell, column, row or header changed, and what was done."""
    rows = list(csv.reader(io.StringIO(text)))
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    kind = rng.choice(
        ["cell", "cell", "cell", "header", "drop column", "drop row", "double row", "short row", "empty"]
    )
    cell = rng.choice(CELLS)
    if kind == "cell":
        rows[max(row, min(1, len(rows) - 1))][column] = cell
    elif kind == "header":
        rows[0][column] = cell
    elif kind == "drop column":
        rows = [[*cells[:column], *cells[column + 1 :]] for cells in rows]
    elif kind == "drop row":
        del rows[row]
    elif kind == "double row":
        rows.insert(row, rows[row])
    elif kind == "short row":
        rows[row] = rows[row][:column]
    else:
        rows = []
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue(), f"{kind} ({row}, {column}) {cell[:20]!r}"


def linked_copy(source: Path, target: Path) -> Path:
    """Copy a folder; large files are hard links, since no mutation touches them."""
    return Path(shutil.copytree(source, target, copy_function=lambda one, other: (
        os.link(one, other) if Path(one).suffix in (".safetensors", ".png", ".npy", ".seg", ".jpg")
        else shutil.copy2(one, other)
    ), dirs_exist_ok=True))  # fmt: skip


Commands = Callable[[Path, Path, random.Random], list[list[str | Path]]]


class Campaign:
    """Folders whose files are changed one at a time, and the commands that read them."""

    def __init__(self, trained: Path, binary: Path, root: Path) -> None:
        self.trained, self.binary, self.root = trained, binary, root
        self.image = next((binary.parent / "images").rglob("*.jpg"))
        self.runs = {"model": trained / "model", "run": trained, "data": binary}

    def files(self) -> list[tuple[str, str]]:
        """Return (kind of folder, file) of everything that is read back."""
        model = [("model", name) for name in ("model.json", "seen.csv")]
        names = sorted(path.name for path in self.trained.iterdir() if path.suffix in (".json", ".csv"))
        data = sorted(
            path.relative_to(self.binary).as_posix()
            for path in self.binary.rglob("*")
            if path.suffix in (".json", ".csv") and "scan" not in path.parts and "cache" not in path.parts
        )
        return 2 * model + [("run", name) for name in names] + [("data", name) for name in data]  # fmt: skip

    def commands(self, kind: str, folder: Path, rng: random.Random) -> list[list[str | Path]]:
        if kind == "model":
            return [["predict", folder, self.image, "--out", self.root / "out"]]
        out: list[str | Path] = ["--out", self.root / "out"]
        of_data: list[list[str | Path]] = [
            ["split", folder, "--scheme", "holdout", "--name", "again"],
            ["evaluate", self.trained, "--on", folder, *out],
            ["audit", folder],
        ]
        of_run: list[list[str | Path]] = [
            ["report", folder],
            ["evaluate", folder],
            ["compare", folder, self.trained, *out],
            ["predict", folder, self.image, *out],
        ]
        return [rng.choice(of_data if kind == "data" else of_run)]

    def read(self, kind: str, folder: Path) -> None:
        """Read what a folder holds without scoring or drawing anything; raises `DermkitError` or `OSError`."""
        if kind == "model":
            load_model(folder)
        elif kind == "data":
            dataset = load_dataset(folder)
            for path in sorted((folder / "splits").glob("*.csv")):
                if not path.stem.endswith(".excluded"):
                    audit_state(dataset, load_split(path, dataset.manifest).frame)
        else:
            run = RunFolder(folder)
            assert run.classes and len(run.predictions)
            evaluate._recorded_policy(run)
            run.groups()
            run.attributes()
            with saved_content(folder):  # as every command that shows a run does
                report._report_context(run)

    def change(self, seed: int) -> tuple[str, Path, str, random.Random]:
        """Copy a folder and change one field of one file; return its kind, the folder and what was done."""
        rng = random.Random(seed)
        kind, name = rng.choice(self.files())
        shutil.rmtree(self.root, ignore_errors=True)
        folder = linked_copy(self.runs[kind], self.root / kind)
        path = folder / name
        text, change = (mutate_json if path.suffix == ".json" else mutate_csv)(
            path.read_text(encoding="utf-8"), rng
        )
        path.write_text(text, encoding="utf-8")
        if kind == "model":
            write_checksums(folder)
        return kind, folder, f"{seed}: {kind}/{name} {change}", rng

    def play(self, seed: int, invoke: Invoke) -> str:
        """Change one field and run what reads it; return what went wrong, "" for nothing."""
        kind, folder, change, rng = self.change(seed)
        for command in self.commands(kind, folder, rng):
            code, out, said = invoke(*command)
            if code not in HANDLED or "fault in dermkit" in said or "Traceback" in said + out:
                return f"{change}: {command[0]}: {code} {said.strip()[-300:]}"
        return ""

    def play_quickly(self, seed: int) -> str:
        """Change one field and read the folder."""
        kind, folder, change, _ = self.change(seed)
        try:
            self.read(kind, folder)
        except (DermkitError, OSError):
            return ""
        except Exception as error:  # noqa: BLE001  this is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"{change}: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"[:400]
        return ""


@pytest.fixture
def campaign(trained: Path, binary: Path, tmp_path: Path) -> Campaign:
    return Campaign(trained, binary, tmp_path / "case")


def test_a_changed_field_is_handled(campaign: Campaign) -> None:
    problems = [problem for seed in range(N_FAST) if (problem := campaign.play_quickly(seed))]
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_two_thousand_changed_fields_are_handled(campaign: Campaign, invoke: Invoke) -> None:
    first, n = (
        int(os.environ.get(f"DERMKIT_MUTATIONS_{name}", value)) for name, value in (("FROM", 1000), ("N", N_SLOW))
    )
    seeds = range(first, first + n)
    problems = [problem for seed in seeds if (problem := campaign.play_quickly(seed))]
    # A command takes seconds where reading takes a tenth of one.
    problems += [problem for seed in seeds[::10] if (problem := campaign.play(seed, invoke))]
    kinds = Counter(problem.split(" ", 2)[1] for problem in problems)
    assert not problems, f"{len(problems)} of {n}: {kinds}\n" + "\n".join(problems)


@pytest.mark.parametrize("seed", range(30))
def test_one_field_differs(seed: int) -> None:
    document = {"format": 1, "a": {"b": [1, 2, {"c": None}]}, "d": "x"}
    text, _ = mutate_json(json.dumps(document), random.Random(seed))
    assert isinstance(json.loads(text), dict)
    table, _ = mutate_csv("a,b\n1,2\n3,4\n", random.Random(seed))
    assert isinstance(table, str)
