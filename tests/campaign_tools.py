"""What the campaigns of test_campaigns.py are made of: runs that can be killed, and what has to be true afterwards."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from dermkit.data.cache.segments import is_intact
from dermkit.files import TEMP_PREFIX, sha256_file

RUNNER = Path(__file__).with_name("campaign_run.py")
STARTED: "list[Launch]" = []
"""Every launch of this process: whatever a test comes to, it leaves none behind (`end_all`)."""
MARK = "DERMKIT_CAMPAIGN_MARK"
TIMES = ["seconds", "train_seconds", "images_per_second"]
LIMIT = 900.0
"""Seconds until a launch that does not end counts as one that hangs."""


@dataclass
class Counts:
    """What a campaign did and saw; `write` adds it as a row to $DERMKIT_CAMPAIGN_CSV."""

    campaign: str
    seed: int
    processes: int = 1
    workers: int = 0
    temporary_folder: str = "own filesystem"
    done: int = 0
    inside_a_save: int = 0
    went_on: int = 0
    torn_files: int = 0
    left_processes: int = 0
    runs_compared: int = 0
    runs_different: int = 0
    seconds: float = 0.0
    notes: str = ""
    began: float = field(default_factory=time.monotonic, repr=False)

    def write(self) -> None:
        """Add a row to the file that the environment names, if it names one."""
        self.seconds = round(time.monotonic() - self.began, 1)
        path = os.environ.get("DERMKIT_CAMPAIGN_CSV")
        if not path:
            return
        row = {name: value for name, value in asdict(self).items() if name != "began"}
        is_new = not Path(path).exists()
        with Path(path).open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, row, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)


# One launch ---------------------------------------------------------------------------------------------------------


class Launch:
    """A started command with all processes that come of it, told by a mark in their environment."""

    def __init__(self, words: list[str], messages: Path, temporary: Path | None) -> None:
        self.mark = uuid.uuid4().hex
        self.messages = messages
        environment = {**os.environ, MARK: self.mark, "OMP_WAIT_POLICY": "PASSIVE"}
        if temporary is not None:
            environment["TMPDIR"] = str(temporary)
        with messages.open("wb") as stream:
            self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=stream, env=environment)
        STARTED.append(self)

    def alive(self) -> dict[int, int]:
        """Return process number -> rank of all that live, -1 for one that is no rank."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if f"{MARK}={self.mark}".encode() in environment:
                    rank = [int(item[5:]) for item in environment if item.startswith(b"RANK=")]
                    found[int(entry.name)] = rank[0] if rank else -1
        return found

    def kill(self) -> None:
        """Kill the process that was started, and it alone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def left(self, patience: float = 20.0) -> dict[int, int]:
        """Return the processes that still live after a while; they are then killed."""
        deadline = time.monotonic() + patience
        while (found := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for number in found:
            os.kill(number, signal.SIGKILL)
        while self.alive():
            time.sleep(0.05)
        return found

    def said(self) -> str:
        """Return what came on standard error."""
        return self.messages.read_text(errors="replace")

    def finish(self) -> str:
        """Wait for a good end; returns what came on standard error."""
        assert self.process.wait(LIMIT) == 0, self.said()
        return self.said()


@dataclass
class Bench:
    """A recipe, a data set of one's own, and an output folder, for launches of one kind.

    temporary: TMPDIR. checkpoints: where they lie below an output folder.
    """

    folder: Path
    recipe: Path
    images: Path
    processes: int
    workers: int
    temporary: Path | None = None
    runner: tuple[str, ...] = (str(RUNNER),)

    @property
    def data(self) -> Path:
        """Return the data set's folder: a copy, so that its cache is this bench's."""
        return self.folder / "data"

    @property
    def out(self) -> Path:
        """Return the output folder."""
        return self.folder / "out"

    def fresh(self) -> None:
        """Begin anew: no run, no decoded pixels, no features."""
        for path in (self.data, self.out):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.images, self.data, ignore=shutil.ignore_patterns("cache"))

    def words(self, *more: str) -> list[str]:
        """Return the command."""
        words = [
            sys.executable, *self.runner, "train", self.recipe, self.data, "--out", self.out, "--device", "cpu",
            "--workers", self.workers, *(["--devices", self.processes] if self.processes > 1 else []), *more,
        ]  # fmt: skip
        return [str(word) for word in words]

    def start(self, *more: str) -> Launch:
        """Start the command."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Launch(self.words(*more), self.folder / "messages.txt", self.temporary)

    def run(self) -> Path | None:
        """Return the run folder, once it is there."""
        found = [path for path in self.out.glob("*/*") if path.is_dir() and path.name != "trials"]
        return found[0] if found else None


def end_all() -> None:
    """End what is left of every launch."""
    while STARTED:
        launch = STARTED.pop()
        launch.process.kill()
        launch.process.wait(60)
        launch.left(0.0)


# What has to be true ------------------------------------------------------------------------------------------------


def torn(*folders: Path) -> list[str]:
    """Return the files below folders that are not whole; temporary files of killed writes are no files yet."""
    problems = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        if not path.name.startswith(TEMP_PREFIX):
            try:
                check_whole(path)
            except (ValueError, OSError, SafetensorError, SyntaxError, KeyError) as error:
                problems.append(f"{path}: {type(error).__name__}: {error}")
    return problems


def check_whole(path: Path) -> None:
    """Raise where a file is not whole, as its kind tells."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".seg":
        with path.open("rb") as stream:
            require(is_intact(stream), "its hash is another")
    elif path.suffix == ".csv":
        text = path.read_bytes().decode()
        widths = {len(row) for row in csv.reader(text.splitlines(), strict=True)}
        require(text.endswith("\n") and len(widths) == 1, f"rows of {sorted(widths)} cells")
    elif path.suffix == ".html":
        require(path.read_text().rstrip().endswith("</html>"), "has no end")
    elif path.name == "SHA256SUMS":
        # What is about to be exchanged is announced in a comment, and may be there already.
        lines = [line.removeprefix("# next ") for line in path.read_text().splitlines()]
        require(bool(lines), "names no file")
        for name in {line[66:] for line in lines}:
            require(f"{sha256_file(path.with_name(name))}  {name}" in lines, f"{name} has another hash")


def require(condition: bool, what: str) -> None:
    """Raise `ValueError` where something is not true."""
    if not condition:
        raise ValueError(what)


def temporaries(folder: Path) -> set[str]:
    """Return the checkpoints that are being written, or whose writing was killed."""
    try:
        names = os.listdir(folder)  # noqa: PTH208  asked for a thousand times a second
    except OSError:
        return set()
    return {name for name in names if name.startswith(TEMP_PREFIX) and name.endswith(".safetensors")}


def differences(run: Path, alone: Path) -> list[str]:
    """Return in what a finished run differs from one left alone, apart from times, and what it left behind."""
    found = [
        f"{name} differs"
        for name in ("model/member-0.safetensors", "predictions.csv", "image_blind_rules.csv", "metrics.json")
        if (run / name).read_bytes() != (alone / name).read_bytes()
    ]
    for name in ("last", "best"):
        one, two = (load_file(folder / f"checkpoints/{name}.safetensors") for folder in (run, alone))
        if one.keys() != two.keys() or not all(torch.equal(one[key], two[key]) for key in one):
            found.append(f"{name}.safetensors differs")
    one_log, two_log = (pd.read_csv(folder / "log.csv").drop(columns=TIMES) for folder in (run, alone))
    if not one_log.equals(two_log):
        found.append("log.csv differs")
    return found + [f"{path} was left" for path in run.rglob(f"{TEMP_PREFIX}*")]


def position(run: Path | None) -> tuple[int, int]:
    """Return how far the last checkpoint is: finished epochs, and batches of the next one."""
    path = run / "checkpoints" / "last.safetensors" if run else None
    if path is None or not path.exists():
        return (0, -1)
    with safe_open(path, framework="pt") as stream:
        progress = json.loads(stream.metadata()["progress"])
    return (len(progress["log_rows"]), int(progress["step"]))


def stage(run: Path | None) -> str:
    """Return in what a kill fell, as the files tell."""
    if run is None:
        return "start"
    for name, what in (
        ("report.html", "end"), ("metrics.json", "report"), ("model/SHA256SUMS", "scoring"),
        ("checkpoints/last.safetensors", "training"),
    ):  # fmt: skip
        if (run / name).exists():
            return what
    return "preparation"


# The campaigns of kills ---------------------------------------------------------------------------------------------


MARKS = ("environment.json", "checkpoints/last.safetensors", "model", "predictions.csv", "metrics.json")
"""Files that tell that a stage of a run has begun."""


def wait_until(condition: Callable[[], object], launch: Launch, patience: float = 120.0) -> bool:
    """Wait until something is true; tells whether it was before the launch ended."""
    deadline = time.monotonic() + patience
    while not condition():
        if launch.process.poll() is not None:
            return False
        assert time.monotonic() < deadline, launch.said()
        time.sleep(0.02)
    return True


def kill_inside_a_save(launch: Launch, folder: Path, rng: random.Random) -> bool:
    """Kill a launch while a checkpoint is being written, as far as that can be aimed at; False if it ended before."""
    before, seen = temporaries(folder), set[str]()
    wanted, wait = rng.randint(1, 15), rng.choice([0.0, rng.uniform(0.0, 0.005)])
    while launch.process.poll() is None:
        seen |= temporaries(folder) - before
        if len(seen) >= wanted:
            time.sleep(wait)
            launch.kill()
            return True
        time.sleep(0.0003)
    return False


def kill_at(launch: Launch, moment: float) -> bool:
    """Kill a launch at a moment, in seconds; False if it ended before."""
    try:
        launch.process.wait(moment)
    except subprocess.TimeoutExpired:
        launch.kill()
        return True
    return False


def kill_at_random(launch: Launch, run: Path, longest: float, rng: random.Random) -> bool:
    """Kill a launch at a random moment of a run, or soon after a random stage has begun; False if it ended before."""
    mark = run / rng.choice(MARKS)
    if rng.random() < 0.5 or mark.exists():
        return kill_at(launch, rng.uniform(0.05, 1.0) * longest)
    return wait_until(mark.exists, launch, LIMIT) and kill_at(launch, rng.uniform(0.0, 0.05) * longest)


def kill_again_and_again(
    bench: Bench, alone: Path, counts: Counts, *, kills: int, inside: int, longest: float, rng: random.Random
) -> None:
    """Kill a run and go on, `kills` times and `inside` times inside a save; whenever it is finished, compare it.

    alone: the run folder to compare with. longest: seconds of a run left alone.
    """
    folder = bench.out / alone.parent.name / alone.name
    checkpoints = folder / "checkpoints"
    stages: dict[str, int] = {}
    bench.fresh()
    at, launch = (0, -1), bench.start("--resume")
    while counts.done < kills or counts.inside_a_save < inside:
        wanted = counts.inside_a_save < inside and (counts.done >= kills or rng.random() < 0.6)
        before = temporaries(checkpoints)
        if wanted:
            killed = kill_inside_a_save(launch, checkpoints, rng)
        else:
            killed = kill_at_random(launch, folder, longest, rng)
        counts.left_processes += len(launch.left())
        if killed:
            counts.done += 1
            counts.inside_a_save += bool(temporaries(checkpoints) - before)
            problems = torn(bench.out, bench.data)
            counts.torn_files += len(problems)
            assert not problems, problems
            what = stage(bench.run())
            stages[what] = stages.get(what, 0) + 1
            counts.notes = " ".join(f"{name}:{n}" for name, n in stages.items())
            reached = position(bench.run())
            assert reached >= at, "a checkpoint went back"
            at = reached
        else:
            launch.finish()
            _compare(bench, alone, counts)
            bench.fresh()
            at = (0, -1)
            assert counts.runs_compared < 5 + 2 * kills, f"they end before they are killed: {counts}"
        launch = bench.start("--resume")
    launch.finish()
    _compare(bench, alone, counts)


def _compare(bench: Bench, alone: Path, counts: Counts) -> None:
    run = bench.run()
    assert run is not None
    counts.runs_compared += 1
    counts.went_on = counts.done  # every kill so far was of a run that has now ended well
    found = differences(run, alone) + torn(bench.out, bench.data)
    counts.runs_different += bool(found)
    assert not found, found
