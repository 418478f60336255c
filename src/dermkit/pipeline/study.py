"""A study: the trials of a search in one Optuna storage, which several processes or machines may share.

The storage is a journal file or a database. In a journal, a trial that runs is marked by a locked file beside it: the
system releases the lock when its process dies, so that the next process finds the trial and repeats it. In a database,
where there may be no common drive, a running trial is marked by Optuna's own heartbeat.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dermkit.errors import DataError, OutputError, UntrustedError, UsageError
from dermkit.files import make_folder, output_errors
from dermkit.pipeline.study_database import heartbeat, open_database, without_experimental_warnings
from dermkit.recipes.search_space import Choice, SearchSpace, values_key

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

JOURNAL_FILE = "study.journal"
_GATE_SECONDS = 600.0
"""The longest wait for another process to take a trial."""
STARTUP_TRIALS = 10
"""Trials at random before the sampler learns from them, and completed trials before one may be pruned (half)."""

REPEATS = "repeats"
"""User attribute: the number of the trial that this one repeats, whose process died."""


@dataclass
class Study:
    """An open study.

    space: what its trials draw from. seed: of the sampler. marks: folder of the files that running trials lock, None
    for a database. running: what ends with the trial of this process.
    """

    optuna_study: "optuna.Study"
    space: SearchSpace
    seed: int
    marks: Path | None
    running: ExitStack = field(default_factory=ExitStack)

    def trials(self, *states: str) -> "list[FrozenTrial]":
        """Return the trials in some of the states COMPLETE, PRUNED, RUNNING, WAITING and FAIL; all without one."""
        trials = self.optuna_study.get_trials(deepcopy=False)
        return [trial for trial in trials if not states or trial.state.name in states]

    def n_finished(self) -> int:
        """Return how many trials count: those that were trained to their end, pruned or diverged."""
        return len(self.trials("COMPLETE", "PRUNED"))

    def claim(self, n_trials: int | None) -> "Trial | None":
        """Take the next trial, None where `n_trials` are finished or running; dead ones are taken again first."""
        with self._gate():
            self._requeue_dead()
            if n_trials is not None and len(self.trials("COMPLETE", "PRUNED", "RUNNING")) >= n_trials:
                return None
            trial = self._ask()
            self._mark(trial)
        if n_trials is not None and self._n_claimed_before(trial.number) >= n_trials:
            self.finish(trial, "FAIL", {"reason": "another process took the last trial"})
            return None
        return trial

    def finish(
        self, trial: "Trial", state: str, attributes: Mapping[str, Any], *, value: float | None = None
    ) -> None:
        """End a trial that this process took."""
        from optuna.trial import TrialState

        for name, attribute in attributes.items():
            trial.set_user_attr(name, attribute)
        self.optuna_study.tell(trial, value, state=TrialState[state])
        self.running.close()

    def give_back(self, trial: "Trial", reason: str) -> None:
        """End a trial that was interrupted, so that it is taken again."""
        with self._gate():
            self.finish(trial, "FAIL", {"reason": reason})
            self._requeue_unrepeated()

    def values_of(self, trial: "Trial | FrozenTrial") -> dict[str, Any]:
        """Return the values that a trial gives to the fields of the space."""
        values = {}
        for path, dimension in self.space.dimensions.items():
            drawn = trial.params[path]
            if isinstance(dimension, Choice):
                values[path] = next(value for value in dimension.values if values_key({"": value}) == drawn)
            else:
                values[path] = dimension.rounded(float(drawn))
        return values

    def wait_for_others(self, seconds: float = 0.5) -> bool:
        """Wait a moment and return whether another process runs a trial; dead ones are put back."""
        with self._gate():
            self._requeue_dead()
        if not self.trials("RUNNING"):
            return False
        time.sleep(seconds)
        return True

    def _ask(self) -> "Trial":
        import optuna

        # Processes that share the seed must not draw the same values.
        sampler_seed = (self.seed + 7919 * len(self.trials())) % 2**32
        self.optuna_study.sampler = optuna.samplers.TPESampler(seed=sampler_seed, n_startup_trials=STARTUP_TRIALS)
        with without_experimental_warnings():
            return self.optuna_study.ask(distributions(self.space))

    def _n_claimed_before(self, number: int) -> int:
        return sum(trial.number < number for trial in self.trials("COMPLETE", "PRUNED", "RUNNING"))

    # Who lives ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _gate(self) -> Iterator[None]:
        """Hold the lock under which trials are taken and put back; a database keeps its own order."""
        if self.marks is None:
            yield
            return
        gate = FileLock(self.marks / "gate.lock", timeout=_GATE_SECONDS)
        with output_errors(self.marks):
            try:
                gate.acquire()
            except Timeout as error:
                raise OutputError(
                    f"{self.marks}: another process has held the study for {_GATE_SECONDS:.0f} s",
                    outcome="the study as it was",
                    remedy="end it, then give the same command again",
                ) from error
        try:
            yield
        finally:
            gate.release()

    def _mark(self, trial: "Trial") -> None:
        if self.marks is not None:
            self.running.enter_context(FileLock(self._mark_file(trial.number), timeout=0))
        else:
            self.running.enter_context(heartbeat(self.optuna_study._storage, trial._trial_id))

    def _mark_file(self, number: int) -> Path:
        assert self.marks is not None  # noqa: S101  for the type checker: a journal has marks
        return self.marks / f"trial-{number}.lock"

    def _requeue_dead(self) -> None:
        from optuna.trial import TrialState

        if self.marks is None:
            import optuna

            with without_experimental_warnings():
                optuna.storages.fail_stale_trials(self.optuna_study)
        for trial in self.trials("RUNNING") if self.marks is not None else []:
            if self._is_dead(trial.number):
                self.optuna_study.tell(trial.number, state=TrialState.FAIL)
        self._requeue_unrepeated()

    def _is_dead(self, number: int) -> bool:
        try:
            with FileLock(self._mark_file(number), timeout=0):
                return True
        except Timeout:
            return False

    def _requeue_unrepeated(self) -> None:
        """Put back every trial that failed and has no repetition yet; a surplus one is left."""
        repeated = {trial.user_attrs.get(REPEATS) for trial in self.trials()}
        for trial in self.trials("FAIL"):
            is_surplus = str(trial.user_attrs.get("reason", "")).startswith("another process")
            if trial.number not in repeated and not is_surplus and trial.params:
                self.optuna_study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})


def distributions(space: SearchSpace) -> "dict[str, BaseDistribution]":
    """Return a space as Optuna's distributions; the values of a choice as JSON texts."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    result: dict[str, BaseDistribution] = {}
    for path, dimension in space.dimensions.items():
        if isinstance(dimension, Choice):
            result[path] = CategoricalDistribution([values_key({"": value}) for value in dimension.values])
        elif dimension.is_whole:
            step = int(dimension.step or 1)
            result[path] = IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
        else:
            result[path] = FloatDistribution(
                float(dimension.low), float(dimension.high), log=dimension.log, step=dimension.step
            )
    return result


# Opening ------------------------------------------------------------------------------------------------------------


def open_study(
    folder: Path, name: str, *, storage: str | None, space: SearchSpace, seed: int, identity: Mapping[str, str],
    higher_is_better: bool, prunes: bool,
) -> Study:  # fmt: skip
    """Open a study, or begin it; raises an error for one of another recipe, data set, space, split or seed.

    storage: a journal file or the URL of a database; None: `study.journal` in the folder. identity: what makes it the
    same study: name -> hash.
    """
    check_optuna()
    import optuna
    from optuna.study import StudyDirection

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    is_database = storage is not None and "://" in storage
    journal = None if is_database else Path(storage) if storage else folder / JOURNAL_FILE
    opened = _open_journal(journal) if journal is not None else open_database(str(storage))
    pruner = (
        optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS // 2, n_warmup_steps=1)
        if prunes
        else optuna.pruners.NopPruner()
    )
    direction = StudyDirection.MAXIMIZE if higher_is_better else StudyDirection.MINIMIZE
    study = optuna.create_study(
        storage=opened, study_name=name, direction=direction, load_if_exists=True, pruner=pruner
    )
    marks = None if journal is None else make_folder(journal.with_name(f"{journal.name}.{name}.marks"))
    result = Study(study, space, seed, marks)
    with result._gate():
        _check_identity(study, name, identity)
        _enqueue_combinations(result)
    return result


def check_optuna() -> None:
    """Raise `UsageError` where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "tuning needs Optuna, which is not installed",
            outcome="nothing was trained",
            remedy="pip install 'dermkit[tune]'",
        ) from error


def _open_journal(path: Path) -> "optuna.storages.BaseStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    make_folder(path.parent)
    with output_errors(path):
        try:
            return JournalStorage(JournalFileBackend(str(path), lock_obj=_journal_lock(path)))
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"{path}: is no journal of a study: {' '.join(str(error).split())[:120]}",
                outcome="the file as it is",
                remedy="give another --storage, or delete it to begin anew",
            ) from error


def _journal_lock(path: Path) -> Any:
    """Return a lock of the journal that the system releases when its holder dies; a half line is cut off first.

    Optuna's own locks stay behind a killed process, and a line that it had half written would make the file unreadable.
    """
    file_lock = FileLock(f"{path}.lock")

    class _Lock:
        def acquire(self) -> bool:
            file_lock.acquire()
            _cut_half_line(path)
            return True

        def release(self) -> None:
            file_lock.release()

    return _Lock()


def _cut_half_line(path: Path) -> None:
    with path.open("rb+") as stream:
        size = stream.seek(0, 2)
        start = max(0, size - 2**20)
        stream.seek(start)
        tail = stream.read()
        if tail and not tail.endswith(b"\n"):
            stream.truncate(start + tail.rfind(b"\n") + 1)


def _check_identity(study: "optuna.Study", name: str, identity: Mapping[str, str]) -> None:
    saved = study.user_attrs.get("identity")
    if saved is None:
        study.set_user_attr("identity", dict(identity))
        return
    differing = [key for key in identity if saved.get(key) != identity[key]]
    if not differing:
        return
    kinds = {"data set": DataError, "split": DataError, "weights": UntrustedError}
    raise kinds.get(differing[0], UsageError)(
        f"the study {name} is of another {' and another '.join(differing)}: its trials cannot be compared with these",
        outcome="the study as it was",
        remedy="give the command that began it, or another name with --study",
    )


def _enqueue_combinations(study: Study) -> None:
    """Put every combination of a small space in the queue: drawn at random, some would come twice and some never."""
    n_combinations = study.space.size
    if n_combinations is None or n_combinations > STARTUP_TRIALS or study.trials():
        return
    for values in study.space.combinations():
        params = {
            path: values_key({"": values[path]}) if isinstance(dimension, Choice) else values[path]
            for path, dimension in study.space.dimensions.items()
        }
        study.optuna_study.enqueue_trial(params)


def importances(study: Study) -> Sequence[tuple[str, float]]:
    """Return (field, importance), the largest first, by PED-ANOVA; empty where too few trials have different values."""
    import optuna

    trials = study.trials("COMPLETE")
    if len(trials) < STARTUP_TRIALS // 2 or len({trial.value for trial in trials}) < 2:
        return ()
    with without_experimental_warnings():
        return tuple(optuna.importance.get_param_importances(study.optuna_study).items())
