"""The engine is exact, whatever happens to it: kills at any moment, writes that fail, lost ranks, a second run.

Each campaign has a short version in `make test`. The long one has the numbers below, or $DERMKIT_CAMPAIGN_COUNT for
each part of it; $DERMKIT_CAMPAIGN_SEED draws other moments; $DERMKIT_CAMPAIGN_CSV is a file for the counts.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

import dermkit as dk
from campaign_faults import KINDS, Faults, failing
from campaign_tools import (
    Bench,
    Counts,
    Launch,
    differences,
    end_all,
    kill_again_and_again,
    position,
    stage,
    torn,
    wait_until,
)
from conftest import Invoke
from dermkit.files import sha256_file
from dermkit.models.net import build_net
from dermkit.models.weights import resolve_weights
from dermkit.recipes.experiments import full_phase, head_phase
from dermkit.recipes.schema import Recipe, load_recipe, save_recipe
from dermkit.training import loop as engine
from dermkit.training.checkpoint import load_checkpoint

KILLS, INSIDE = 15, 6
"""For each of 1 and 2 processes with 0 and 2 workers: 60 in all, 24 inside a save."""
FAULTS_SAVING, FAULTS_ANYWHERE, TOO_LONG = 60, 30, 10
"""Calls that fail while checkpoints are saved; anywhere in a run; files cut by the system's own limit. 100 in all."""
FULL_DEVICES = 4
LOST_RANKS = 20
SEED = int(os.environ.get("DERMKIT_CAMPAIGN_SEED", "0"))

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def count(usual: int) -> int:
    """Return how often a part of a long campaign does its harm."""
    return int(os.environ.get("DERMKIT_CAMPAIGN_COUNT", usual))


# What is trained ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe with frozen and fine-tuned layers, batch norm, dropout and augmentation; checkpoints of 5 MB."""
    chosen = replace(
        tiny,
        name="campaign",
        image=replace(tiny.image, size=32),
        model=replace(tiny.model, backbone="dermkit/cnn-s4", hidden=(256,), dropout=0.3),
        phases=(head_phase(2, views=2), full_phase(3, lr=1e-3)),
        optim=replace(tiny.optim, batch_size=4),
    )
    path = tmp_path_factory.mktemp("recipe") / "campaign.json"
    save_recipe(chosen, path)
    return path


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """Return a folder for temporary files on another filesystem than the runs, if this machine has one."""
    memory = Path("/dev") / "shm"
    if not memory.is_dir() or memory.stat().st_dev == tmp_path_factory.getbasetemp().stat().st_dev:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def leave_nothing() -> Iterator[None]:
    """End what a test that failed has started."""
    yield
    end_all()


@pytest.fixture(scope="module")
def alone(recipe: Path, binary: Path, tmp_path_factory: pytest.TempPathFactory) -> "Alone":
    """Return what knows the runs that were left alone."""
    return Alone(recipe, binary, tmp_path_factory.mktemp("alone"))


class Alone:
    """Runs left alone, one per number of processes: plain `dermkit train`, without workers."""

    def __init__(self, recipe: Path, images: Path, folder: Path) -> None:
        self.recipe, self.images, self.folder = recipe, images, folder
        self.seconds: dict[int, float] = {}
        self.calls: list[tuple[str, str]] = []

    def bench(self, folder: Path, processes: int, workers: int, temporary: Path | None) -> Bench:
        """Return a bench for the same run."""
        return Bench(folder, self.recipe, self.images, processes, workers, temporary)

    def run(self, processes: int) -> Path:
        """Return the run folder."""
        bench = self.bench(self.folder / str(processes), processes, 0, None)
        bench.runner = ("-m", "dermkit.cli")
        if processes not in self.seconds:
            bench.fresh()
            began = time.monotonic()
            bench.start().finish()
            self.seconds[processes] = time.monotonic() - began
        return sound(bench)

    def here(self) -> Path:
        """Return the run folder of a run in this process; all calls that changed a file are noted in `calls`."""
        bench = self.bench(self.folder / "here", 1, 0, None)
        if not self.calls:
            bench.fresh()
            often = patch.object(engine, "SAVE_SECONDS", 0.0)
            with often, failing(Faults((bench.out, bench.data))) as faults:
                where = dk.RunSettings(out=bench.out, device="cpu")
                dk.train(load_recipe(self.recipe), dk.load_dataset(bench.data), settings=where)
            self.calls = faults.calls
        return sound(bench)


def sound(bench: Bench) -> Path:
    """Return the run folder, in which every file is whole."""
    run = bench.run()
    assert run is not None
    assert torn(run) == []
    return run


def counts_of(bench: Bench, campaign: str) -> Counts:
    """Return counts for a bench."""
    where = "own filesystem" if bench.temporary is None else "another filesystem"
    return Counts(campaign, SEED, bench.processes, bench.workers, where)


# Kills --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@linux
def test_killed_inside_a_save_it_ends_with_the_same_bits(
    alone: Alone, elsewhere: Path | None, tmp_path: Path
) -> None:
    bench = alone.bench(tmp_path, 1, 2, elsewhere)
    counts, rng = counts_of(bench, "kills"), random.Random(SEED)
    kill_again_and_again(bench, alone.here(), counts, kills=1, inside=1, longest=0.0, rng=rng)
    assert (counts.runs_different, counts.torn_files, counts.left_processes) == (0, 0, 0), counts


@linux
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_kills_at_random_moments(
    alone: Alone, elsewhere: Path | None, tmp_path: Path, processes: int, workers: int
) -> None:
    bench = alone.bench(tmp_path, processes, workers, elsewhere)
    reference, longest = alone.run(processes), alone.seconds[processes]
    counts, rng = counts_of(bench, "kills"), random.Random(f"{SEED} {processes} {workers}")
    often = count(KILLS)
    inside = -(-often * INSIDE // KILLS)
    try:
        kill_again_and_again(bench, reference, counts, kills=often, inside=inside, longest=longest, rng=rng)
    finally:
        counts.write()
    assert counts.done >= often, counts
    assert counts.went_on == counts.done, counts
    assert (counts.runs_different, counts.torn_files, counts.left_processes) == (0, 0, 0), counts
    if elsewhere is None:
        pytest.skip(f"passed, but no other filesystem for TMPDIR is here: {counts}")


# Writes that fail ---------------------------------------------------------------------------------------------------


class Faulty:
    """A run in this process whose writes fail now and then; checkpoints are written after every batch."""

    def __init__(self, alone: Alone, folder: Path, invoke: Invoke, rng: random.Random) -> None:
        self.bench, self.invoke, self.rng = alone.bench(folder, 1, 0, None), invoke, rng
        self.bench.fresh()
        self.reference = alone.here()
        self.counts = counts_of(self.bench, "write faults")
        self.seen: dict[str, int] = {}

    def train(self) -> tuple[int, str, str]:
        """Run the command in this process."""
        return self.invoke(*self.bench.words("--resume")[2:])

    def strike(self, counts: Callable[[str], bool], at: int) -> None:
        """Let one call fail: what is said, and what is still there."""
        faults = Faults(
            (self.bench.out, self.bench.data), counts, at, self.rng.choice(KINDS), self.rng.random() < 0.5
        )
        kept = self.checkpoints()
        with failing(faults):
            code, _, messages = self.train()
        kept.update({path: mark for path, mark in faults.whole.items() if path.parent.name == "checkpoints"})
        # What lies inside an epoch goes when the epoch is kept whole; `torn` looks whether it is sound.
        lasting = ("last.safetensors", "best.safetensors")
        assert self.checkpoints() == {path: kept[path] for path in kept if path.name in lasting}
        assert torn(self.bench.out, self.bench.data) == []
        if faults.struck is not None:
            self.judge(faults, code, messages)
        if code == 0:  # after the judgement, which looks at what the fault struck
            self.compare()
            self.bench.fresh()

    def judge(self, faults: Faults, code: int, messages: str) -> None:
        """Count a fault that was refused as it should be, or borne."""
        assert faults.struck is not None
        call, path = faults.struck
        what = f"{call} {Path(path).name[:12]}: {os.strerror(faults.number)}: exit code {code}\n{messages}"
        if code == 0:
            self.counts.notes += f"borne: {call} {Path(path).name}; "
            assert Path(path).is_dir() or Path(path).name == ".lock", what  # another way was found; no output
            return
        assert code == 5, what
        assert "cannot be written" in messages and os.strerror(faults.number) in messages, what
        assert str(self.bench.folder) in messages and "Traceback" not in messages, what
        self.counts.done += 1
        kind = f"{call} {Path(path).parent.name}" if is_other(path) else call
        self.seen[kind] = self.seen.get(kind, 0) + 1
        self.check_loads()

    def checkpoints(self) -> dict[Path, str]:
        """Return the hash of every checkpoint that is there."""
        return {path: sha256_file(path) for path in self.bench.out.rglob("checkpoints/[bl]*.safetensors")}

    def check_loads(self) -> None:
        """Assert that the checkpoints that are there load into the net."""
        model = load_recipe(self.bench.recipe).model
        for path in self.checkpoints():
            net = build_net(model, 2, weights=resolve_weights(model, None), seed=1)
            assert load_checkpoint(path, net) is not None

    def compare(self) -> None:
        """Assert that a run that ended well ended like the one that nothing befell."""
        self.counts.runs_compared += 1
        assert differences(sound(self.bench), self.reference) == []
        self.counts.went_on = self.counts.done

    def finish(self) -> None:
        """End the last run without a fault, and compare it."""
        code, _, messages = self.train()
        assert code == 0, messages
        self.compare()
        self.counts.notes += ", ".join(f"{kind}: {n}" for kind, n in sorted(self.seen.items()))
        self.counts.write()


@pytest.fixture
def faulty(alone: Alone, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Faulty:
    """Return a run whose writes can fail."""
    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    return Faulty(alone, tmp_path, invoke, random.Random(f"{SEED} faults"))


def is_checkpoint(path: str) -> bool:
    """Tell whether a path belongs to the saving of checkpoints."""
    return f"{os.sep}checkpoints{os.sep}" in path


def is_other(path: str) -> bool:
    """Tell whether a path belongs to anything else: pixels, features, logs, the model, figures, the report."""
    return not is_checkpoint(path)


def strike_often(faulty: Faulty, calls: int, counts: Callable[[str], bool], wanted: int) -> None:
    """Let calls fail, one a launch, each launch going on from the one before. calls: how many a run makes."""
    while faulty.counts.done < wanted:
        faulty.strike(counts, faulty.rng.randint(1, calls))
    faulty.finish()


@linux
def test_a_write_that_fails_leaves_the_checkpoint_before_it(faulty: Faulty, alone: Alone) -> None:
    calls = sum(is_checkpoint(path) for _, path in alone.calls)
    strike_often(faulty, calls // 4, is_checkpoint, 4)


@linux
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_write_faults_while_checkpoints_are_saved(faulty: Faulty, alone: Alone) -> None:
    calls = sum(is_checkpoint(path) for _, path in alone.calls)
    strike_often(faulty, calls // 2, is_checkpoint, count(FAULTS_SAVING))
    assert faulty.counts.done == faulty.counts.went_on, faulty.counts


@linux
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_write_faults_anywhere_else(faulty: Faulty, alone: Alone) -> None:
    faulty.counts.campaign = "write faults: anywhere else"
    strike_often(faulty, sum(is_other(path) for _, path in alone.calls), is_other, count(FAULTS_ANYWHERE))
    assert faulty.counts.done == faulty.counts.went_on, faulty.counts


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse longer files of this process, in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@linux
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_files_that_the_system_cuts(faulty: Faulty) -> None:
    faulty.counts.campaign = "write faults: file size limit"
    for _ in range(count(TOO_LONG)):
        kept = faulty.checkpoints()
        with files_of_at_most(faulty.rng.randint(1_000_000, 5_000_000)):
            code, _, messages = faulty.train()
        assert code == 5 and "File too large" in messages and str(faulty.bench.folder) in messages, messages
        assert all(path in faulty.checkpoints() for path in kept)
        assert torn(faulty.bench.out, faulty.bench.data) == []
        faulty.check_loads()
        faulty.counts.done += 1
        if faulty.rng.random() < 0.5:
            assert faulty.train()[0] == 0
            faulty.compare()
            faulty.bench.fresh()
    faulty.finish()


DEVICE = """
mount -t tmpfs -o size=60m none "$0" || exit 99
wait=$1 copy=$2; shift 2
( until ls "$0"/out/*/*/checkpoints/best.safetensors; do sleep 0.02; done
  sleep "$wait"; head -c 100000000 /dev/zero > "$0/ballast" ) > "$copy/filler" 2>&1 &
"$@" 2> "$copy/full.txt"
code=$?
wait
cp -a "$0/out" "$copy/full"
rm "$0/ballast"
"$@" 2> "$copy/resumed.txt" || exit 98
cp -a "$0/out" "$copy/resumed"
exit $code
"""
"""In a mount of its own: a run whose device is filled by somebody else, and the same command once there is room."""


@linux
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_device_that_fills_up_during_training(alone: Alone, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} device")
    reference = alone.run(1)
    bench = alone.bench(tmp_path, 1, 0, None)
    bench.fresh()
    counts = counts_of(bench, "write faults: full device")
    while counts.done < count(FULL_DEVICES):
        small, copy = tmp_path / "small", tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        small.mkdir(exist_ok=True)
        copy.mkdir()
        words = [str(small / "out") if word == str(bench.out) else word for word in bench.words("--resume")]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", DEVICE, small, f"{rng.uniform(0, 0.6):.2f}", copy, *words],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        if done.returncode == 99 or "unshare" in done.stderr:
            pytest.skip("a small device cannot be mounted here")
        said = (copy / "full.txt").read_text()
        assert done.returncode == 5, f"{done.returncode} {done.stderr} {said} {(copy / 'filler').read_text()}"
        assert "No space left on device" in said and str(small) in said and "Traceback" not in said, said
        assert torn(copy / "full") == []
        (full,) = (copy / "full").glob("*/*")
        assert position(full) > (0, -1)
        counts.notes += f"{stage(full)} "
        (resumed,) = (copy / "resumed").glob("*/*")
        assert differences(resumed, reference) == []
        counts.done += 1
        counts.runs_compared += 1
    counts.went_on = counts.done
    counts.write()


# Lost ranks ---------------------------------------------------------------------------------------------------------


AFRESH = "launching afresh from the last checkpoint"


def ranks(launch: Launch) -> dict[int, int]:
    """Return rank -> process number of the ranks that live."""
    return {rank: number for number, rank in launch.alive().items() if rank >= 0}


def lose_ranks(
    bench: Bench, reference: Path, counts: Counts, *, wanted: int, longest: float, rng: random.Random
) -> None:
    """Kill rank 0 or 1 at random moments, until so many were killed; every run is compared."""
    while counts.done < wanted:
        bench.fresh()
        launch, lost, at = bench.start("--restarts", "100"), 0, (0, -1)
        while launch.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                launch.process.wait(rng.uniform(0.02, 0.6) * longest)
            if counts.done < wanted and lose(launch, rng.randint(0, 1)):
                counts.done, lost = counts.done + 1, lost + 1
                counts.notes += f"{stage(bench.run())} "
                wait_until(lambda: launch.said().count(AFRESH) == lost, launch)  # noqa: B023  waited for here
                assert position(bench.run()) >= at, "a checkpoint went back"
                at = position(bench.run())
        recovered(launch, lost)
        counts.left_processes += len(launch.left())
        counts.runs_compared += 1
        found = differences(sound(bench), reference)
        counts.runs_different += bool(found)
        assert not found, found
        counts.went_on = counts.done


def lose(launch: Launch, rank: int) -> bool:
    """Kill a rank, if it lives."""
    number = ranks(launch).get(rank)
    if number is not None and launch.process.poll() is None:
        os.kill(number, signal.SIGKILL)
    return number is not None


def recovered(launch: Launch, lost: int) -> None:
    """Assert that a launch ended well, with as many fresh launches as ranks were killed."""
    messages = launch.finish()
    assert messages.count(AFRESH) == lost, messages
    assert messages.count("was lost: killed by SIGKILL") == lost, messages


@linux
def test_no_rank_outlives_its_supervisor(alone: Alone, tmp_path: Path) -> None:
    bench = alone.bench(tmp_path, 2, 0, None)
    bench.fresh()
    launch = bench.start()
    assert wait_until(lambda: len(ranks(launch)) == 2, launch)
    launch.kill()
    assert launch.left() == {}


@linux
@pytest.mark.slow  # tests/test_ranks.py kills a rank within a step in every run of the tests
def test_a_lost_rank_is_launched_afresh_while_a_second_run_is_refused(
    alone: Alone, tmp_path: Path, invoke: Invoke
) -> None:
    bench = alone.bench(tmp_path, 2, 0, None)
    bench.fresh()
    launch = bench.start()
    assert wait_until(lambda: position(bench.run()) > (0, -1), launch)
    assert_refused(bench, launch, invoke)
    assert lose(launch, 1)
    recovered(launch, 1)
    assert launch.left() == {}
    assert sound(bench)


@linux
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_lost_ranks(alone: Alone, elsewhere: Path | None, tmp_path: Path) -> None:
    bench = alone.bench(tmp_path, 2, 0, elsewhere)
    reference = alone.run(2)
    counts = counts_of(bench, "lost ranks")
    rng, wanted = random.Random(f"{SEED} ranks"), count(LOST_RANKS)
    try:
        lose_ranks(bench, reference, counts, wanted=wanted, longest=alone.seconds[2], rng=rng)
    finally:
        counts.write()
    assert counts.done == counts.went_on == wanted, counts
    assert (counts.runs_different, counts.left_processes) == (0, 0), counts


# Two runs on one folder ---------------------------------------------------------------------------------------------


def assert_refused(bench: Bench, launch: Launch, invoke: Invoke, *more: str) -> None:
    """Start a second run in this process, and see it refused, naming the first one's process, host and time."""
    first = ranks(launch).get(0, launch.process.pid)
    second = replace(bench, processes=1)  # the folder is the same, however many processes
    code, _, messages = invoke(*second.words(*more)[2:])
    assert code == 5, f"exit code {code}: {messages}"
    assert f"is in use by process {first} on {socket.gethostname()} since 2" in messages, messages
    assert str(bench.run()) in messages
    assert launch.process.poll() is None, "the first one was disturbed"


@linux
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_run_is_refused_at_every_stage(
    alone: Alone, tmp_path: Path, invoke: Invoke, processes: int
) -> None:
    bench = alone.bench(tmp_path, processes, 0, None)
    reference = alone.run(processes)
    bench.fresh()
    counts = counts_of(bench, "second run")
    launch = bench.start()
    for name in ("environment.json", "checkpoints/last.safetensors", "log.csv", "model", "predictions.csv"):
        assert wait_until(lambda: (run := bench.run()) and (run / name).exists(), launch)  # noqa: B023  waited for here
        for more in ([], ["--resume"]):
            assert_refused(bench, launch, invoke, *more)
            counts.done += 1
    launch.finish()
    assert differences(sound(bench), reference) == []
    counts.runs_compared, counts.went_on = 1, counts.done
    counts.write()


@linux
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_two_runs_started_at_once_one_is_refused(alone: Alone, tmp_path: Path) -> None:
    bench = alone.bench(tmp_path, 1, 0, None)
    bench.fresh()
    second = Bench(tmp_path / "second", bench.recipe, bench.images, 1, 0)
    second.folder.mkdir()
    words = bench.words()
    launches = [Launch(words, folder / "messages.txt", None) for folder in (bench.folder, second.folder)]
    codes = {launch.process.wait(300): launch for launch in launches}
    assert set(codes) == {0, 5}, [launch.said() for launch in launches]
    assert f"is in use by process {codes[0].process.pid} on {socket.gethostname()}" in codes[5].said()
    assert differences(sound(bench), alone.run(1)) == []
