"""Kills imports at each operation on the output folder, or fills its disk there, and repeats the same command.

Run as a script, it forks: everything is loaded once, and what is killed is a process. Prints a JSON object.
"""

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dermkit.audit.cleaning import CleaningPlan, apply_cleaning
from dermkit.data.importers.run import import_dataset
from dermkit.data.manifest import load_dataset
from dermkit.errors import DataError, DermkitError
from dermkit.files import lock

OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "open"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NAMES = [f"{label}/{number}.png" for label in ("melanoma", "nevus") for number in range(4)]


class Scenario(NamedTuple):
    """prepare: makes what is there before. command: what is killed and repeated."""

    name: str
    prepare: Callable[[Path], None]
    command: Callable[[Path], object]


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_source(root: Path) -> None:
    for seed, name in enumerate(NAMES):
        draw(root / "src" / name, seed)
    (root / "src" / "nevus" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")


def make_archive(root: Path) -> None:
    make_source(root)
    with zipfile.ZipFile(root / "src.zip", "w") as archive:
        for name in NAMES:
            archive.write(root / "src" / name, name)


def make_imported(root: Path) -> None:
    make_source(root)
    bring(root)
    draw(root / "src" / "nevus" / "new.png", 99)


def make_unclean(root: Path) -> None:
    make_source(root)
    bring(root)


def make_worked_on(root: Path) -> None:
    """A data set that was cleaned, with an acceptance, a split by hand, and a list of dropped rows."""
    make_source(root)
    bring(root)
    clean(root)
    path = root / "ds" / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "accepted": {"DA020": {"n": 1}}}))
    (root / "ds" / "splits").mkdir()
    (root / "ds" / "splits" / "mine.csv").write_text("image_id,split,fold\nnevus/1,train,\n")


def clean(root: Path) -> None:
    with lock(root / "ds"):
        dataset = load_dataset(root / "ds")
        keep_mask = (dataset.manifest["image_id"] != "nevus/0").to_numpy()
        if keep_mask.all():
            return
        rows = dataset.manifest.loc[~keep_mask, ["image_id", "path", "label"]].assign(reason="same", code="DA010")
        groups = dataset.manifest["copy_group"].to_numpy(dtype=object)
        apply_cleaning(dataset, CleaningPlan(keep_mask, rows.reset_index(drop=True), groups), date="2026-01-01")


def bring(root: Path) -> None:
    import_dataset("folder", root / "src", out=root / "ds")


SCENARIOS = [
    Scenario("folder", make_source, bring),
    Scenario("archive", make_archive, lambda root: import_dataset("folder", root / "src.zip", out=root / "ds")),
    Scenario("changed source", make_imported, bring),
    Scenario(
        "replaced work",
        make_worked_on,
        lambda root: import_dataset("folder", root / "src", out=root / "ds", replace_earlier=True),
    ),
    Scenario("cleaning", make_unclean, clean),
]


# One process ---------------------------------------------------------------------------------------------------------


def run(
    command: Callable[[], object], *, folder: Path, at: int = 0, action: str = "kill", delay: float = 0.0
) -> tuple[str, int]:
    """Run a command in a fork; returns how it ended, and how many operations on the folder it began.

    at: the number of the operation before which it is killed or the disk is full, 0 = none. delay: seconds to a kill.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_child(command, str(folder), at, action, writer))
    os.close(writer)
    if delay:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)  # it is a zombie at worst: nobody has waited for it
    with os.fdopen(reader) as stream:
        count = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed", 0
    return {0: "done", 5: "refused"}.get(os.WEXITSTATUS(status), "fault"), int(count or 0)


def _child(command: Callable[[], object], folder: str, at: int, action: str, writer: int) -> int:
    counter = [0]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not str(arguments[0]).startswith(folder):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        if action == "full" and event not in ("open", "os.mkdir"):
            return  # nothing else needs space
        counter[0] += 1
        if counter[0] == at and action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if at and counter[0] >= at and action == "full":
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))

    sys.addaudithook(watch)
    try:
        command()
        code = 0
    except (DermkitError, OSError) as error:
        code = 5 if isinstance(error, DermkitError) or error.errno == errno.ENOSPC else 99
    except BaseException:  # noqa: BLE001  whatever it is, it is counted as a fault
        traceback.print_exc()
        code = 99
    os.write(writer, str(counter[0]).encode())
    return code


# A campaign ----------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file, hidden ones too, but those of locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


def check(root: Path, scenario: Scenario, expected: dict[str, bytes], where: str) -> list[str]:
    """Return what is wrong after a kill: a mixed data set, a command that cannot be repeated, or other bytes."""
    problems = []

    def read() -> None:
        try:
            dataset = load_dataset(root / "ds")
        except DataError as error:
            if (root / "ds" / "dataset.json").exists():
                raise RuntimeError(f"it cannot be read: {error}") from error
            return
        if json.loads((root / "ds" / "dataset.json").read_text())["counts"]["images"] != len(dataset.manifest):
            raise RuntimeError("dataset.json is of another manifest")

    if run(read, folder=root / "ds")[0] != "done":
        problems.append(f"{where}: what was left is no data set, old or new")
    ended, _ = run(lambda: scenario.command(root), folder=root / "ds")
    if ended != "done":
        problems.append(f"{where}: the same command is {ended}")
    now = contents(root / "ds")
    if different := [name for name in {*now, *expected} if now.get(name) != expected.get(name)]:
        problems.append(f"{where}: other bytes in {sorted(different)}")
    return problems


def campaign(root: Path, *, every: int, n_random: int, seed: int = 0) -> dict[str, Any]:
    """Stop every scenario at each `every`-th operation, by a kill and by a full disk, and at random times."""
    rng, counts, problems = random.Random(seed), {"kill": 0, "full": 0, "random": 0}, []
    for scenario in SCENARIOS:
        base, work = root / f"{scenario.name} base", root / "work"
        _restore(root / "empty", work)
        run(partial(scenario.prepare, work), folder=root)
        _restore(work, base)
        command, started = partial(scenario.command, work), time.perf_counter()
        _, n_kills = run(command, folder=work / "ds")
        seconds, expected = time.perf_counter() - started, contents(work / "ds")
        _restore(base, work)
        _, n_full = run(command, folder=work / "ds", action="full")
        moments = [("kill", at, 0.0) for at in range(1, n_kills + 1, every)]
        moments += [("full", at, 0.0) for at in range(1, n_full + 1, every + 2)]
        moments += [("random", 0, rng.uniform(0.0, seconds)) for _ in range(n_random)]
        for action, at, delay in moments:
            _restore(base, work)
            ended, _ = run(command, folder=work / "ds", at=at, action=action, delay=delay)
            where = f"{scenario.name}, {action} at {at or round(delay, 3)}"
            if ended == "fault" or (action == "kill" and ended != "killed"):
                problems.append(f"{where}: it {ended}")
            problems += check(work, scenario, expected, where)
            counts[action] += 1
    return {"counts": counts, "problems": problems}


def _restore(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    source.mkdir(exist_ok=True)
    shutil.copytree(source, target)


if __name__ == "__main__":
    outcome = campaign(Path(sys.argv[1]), every=int(sys.argv[2]), n_random=int(sys.argv[3]))
    sys.stdout.write(json.dumps(outcome))
