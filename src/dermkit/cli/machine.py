"""Where and how a command trains: its options, the processes that it starts, and the result that one of them prints."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from dermkit.cli.console import echo, print_result, progress_bar
from dermkit.errors import UsageError
from dermkit.files import shell_path
from dermkit.progress import Progress
from dermkit.threads import cpu_count
from dermkit.training.distributed.environment import is_first_rank, is_rank

if TYPE_CHECKING:
    from collections.abc import Callable

    from dermkit.data.manifest import Dataset
    from dermkit.pipeline.plan import RunSettings


class MachineOptions(NamedTuple):
    """The options of train and tune that say where and how to train."""

    out: Path
    device: str
    devices: int
    nodes: int
    restarts: int
    workers: int
    weights: Path | None
    resume: bool
    teacher: Path | None = None
    heat_maps: bool = True

    def command(self) -> str:
        """Return the command as it was typed, without what a message proposes in its place."""
        words, rest = [], iter(sys.argv[1:])
        for word in rest:
            if word == "--continue":
                next(rest, None)
            elif word != "--resume" and not word.startswith("--continue="):
                words.append(shell_path(word))
        return " ".join(["dermkit", *words])


def _launch_ranks(devices: int, nodes: int, restarts: int) -> None:
    """If several processes are asked for and this is none of them, start them, wait, and exit with their code."""
    if devices * nodes == 1:
        return
    max_devices = max(2, cpu_count())
    if devices > max_devices:  # each rank is a process with a net: thousands would take the machine down
        raise UsageError(
            f"--devices {devices}: this machine has {max_devices} cores, and every process needs one",
            outcome="nothing was started",
            remedy=f"--devices {max_devices} or less; several machines with --nodes (docs/machines.md)",
        )
    if is_rank():
        return
    from dermkit.training.distributed.launcher import supervise

    def print_line(line: str) -> None:  # rank 0 draws the bar; a second one would draw over it
        echo(line, err=True)

    raise typer.Exit(supervise(sys.argv[1:], devices=devices, nodes=nodes, restarts=restarts, say=print_line))


def train_on(
    dataset: Path, options: MachineOptions, train: "Callable[[Dataset, RunSettings, Progress], Path]"
) -> Path:
    """Load a data set and call `train` on it, in every process; returns the run folder."""
    _launch_ranks(options.devices, options.nodes, options.restarts)
    import dermkit as dk

    settings = dk.RunSettings(
        out=options.out, device=options.device, devices=options.devices, nodes=options.nodes,
        workers=options.workers, weights=options.weights, resume=options.resume,
        teacher=options.teacher, command=options.command(), heat_maps=options.heat_maps,
    )  # fmt: skip
    loaded_dataset = dk.load_dataset(dataset)
    with progress_bar() as progress:
        return train(loaded_dataset, settings, progress)


def print_run(folder: Path, *pages: Path) -> None:
    """Print the result and what was written, once: of several processes, the first one does."""
    if is_first_rank():
        print_result(folder, *pages)
