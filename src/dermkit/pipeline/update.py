"""Update: a challenger trained on old and new data, compared with the champion on sealed tests, promoted or refused.

Every step is on disk before the next: the same command again goes on where it was stopped, and one that is done gives
its decision again without training or opening anything.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dermkit.comparison.promotion import DEFAULT_MARGIN, PromotionDecision, PromotionRule, decide_promotion
from dermkit.comparison.promotion_sentences import check_sentence, decision_sentences
from dermkit.data.manifest import Dataset
from dermkit.data.readers import reading
from dermkit.errors import UsageError
from dermkit.files import check_writable, fingerprint, lock, make_folder
from dermkit.models.card import card_policy, read_card
from dermkit.models.requirements import check_requirements
from dermkit.pipeline.plan import Machine, RunSettings, check_classes, make_plans, prepare_machine, say_licence
from dermkit.pipeline.run import run_plan
from dermkit.pipeline.trials import resuming
from dermkit.pipeline.update_champion import Champion, check_same_classes, find_champion
from dermkit.pipeline.update_data import LIMITS_NOTE, NewSplitOptions, UpdateData, join_data
from dermkit.pipeline.update_scores import (
    CHALLENGER,
    CHAMPION,
    TestScores,
    check_test_sizes,
    opening_counts,
    read_paired_tests,
    score_tests,
    seal_tests,
)
from dermkit.progress import Progress
from dermkit.recipes.schema import recipe_to_dict
from dermkit.reporting.update_page import write_update_page
from dermkit.runs.layout import MODEL_FOLDER, UPDATE, UPDATE_PAGE, run_of_model
from dermkit.runs.model_key import folder_model_key
from dermkit.runs.registry import (
    UPDATES_FOLDER,
    RegistryVersion,
    check_champion,
    check_registry_place,
    is_registry,
    read_registry,
    record_decision,
    record_step,
    register_first,
)
from dermkit.runs.registry_record import BEGIN


@dataclass(frozen=True)
class UpdateOptions:
    """metric: the figure that matters, None = AUROC for two classes of which one is malignant, else balanced accuracy.

    margin, sensitivity_margin: largest losses that count as none. dataset: the folder that the champion was trained on,
    None = as recorded. new_split: how new data is divided.
    """

    metric: str | None = None
    margin: float = DEFAULT_MARGIN
    sensitivity_margin: float = DEFAULT_MARGIN
    dataset: Path | None = None
    new_split: NewSplitOptions = field(default_factory=NewSplitOptions)


@dataclass(frozen=True)
class UpdateOutcome:
    """What an update decided. version: the challenger's name in the registry. page: its decision, with all figures."""

    registry: Path
    folder: Path
    page: Path
    version: str
    is_promoted: bool
    sentences: tuple[str, ...]


def update(
    model: Path,
    new: Dataset,
    *,
    registry: Path,
    options: UpdateOptions | None = None,
    settings: RunSettings | None = None,
    progress: Progress | None = None,
) -> UpdateOutcome:
    """Train a challenger of the champion's recipe on old and new data; it serves if it is not worse.

    model: the champion's run, or the registry. registry: a folder that holds all versions; it is made with the champion
    as v1. settings: `out` is not used. Raises before any training `UsageError` for a model or registry that does not
    fit, `DataError` for data that cannot be used, `UntrustedError` for a damaged registry; then what `train` raises.
    """
    options, progress, settings = options or UpdateOptions(), progress or Progress(), settings or RunSettings()
    check_classes(new)
    if (decided := _decided_before(model, new, registry, options)) is not None:
        progress.say(f"{registry}: this update was decided before; nothing to do")
        return decided
    champion = find_champion(model, registry, options.dataset)
    check_same_classes(champion.dataset, new)
    check_requirements(champion.recipe, settings.weights)
    rule = PromotionRule(
        options.metric or default_metric(champion.dataset), options.margin, options.sensitivity_margin
    )
    _check_metric(rule, champion.dataset)
    check_registry_place(registry)
    check_writable(registry)
    register_first(registry, champion.run, details={"dataset": champion.dataset.name})
    champion = find_champion(model, registry, options.dataset)  # from here on the copy in the registry
    folder = make_folder(registry / UPDATES_FOLDER / _key(champion, new, rule, options))
    with lock(folder), reading(champion.dataset, "update"), reading(new, "update"):
        recorded = [version for version in read_registry(registry).versions if version.update == folder.name]
        version = (
            recorded[0]
            if recorded
            else _decide(champion, new, registry, folder, rule, options, settings, progress)
        )
    return _outcome(registry, folder, version)


def _decided_before(model: Path, new: Dataset, registry: Path, options: UpdateOptions) -> UpdateOutcome | None:
    """Return what the same command decided before, though another version serves since; None for a new one."""
    if not is_registry(registry):
        return None
    versions = [version for version in read_registry(registry).versions if version.update]
    if model.resolve() == registry.resolve():
        versions = versions[-1:]  # the one that this command compared with is not known any more
    for version in reversed(versions):
        folder = registry / UPDATES_FOLDER / version.update
        content = UPDATE.read(folder)
        rule = PromotionRule(
            options.metric or content["rule"]["metric"], options.margin, options.sensitivity_margin
        )
        is_same = (
            content["new_manifest_sha256"] == new.manifest_sha256
            and content["rule"] == asdict(rule)
            and content["new_split"] == asdict(options.new_split)
        )
        is_named = model.resolve() == registry.resolve() or content["champion_key"] == folder_model_key(
            run_of_model(model) / MODEL_FOLDER
        )
        if is_same and is_named:
            return _outcome(registry, folder, version)
    return None


def default_metric(dataset: Dataset) -> str:
    """Return the figure that matters for a data set's classes."""
    is_binary = len(dataset.classes) == 2 and len(dataset.malignant_classes) == 1
    return "auroc" if is_binary else "balanced_accuracy"


def _check_metric(rule: PromotionRule, dataset: Dataset) -> None:
    n_malignant = len(dataset.malignant_classes)
    if rule.metric == "auroc" and not 0 < n_malignant < len(dataset.classes):
        raise UsageError(
            f"--metric auroc: {dataset.folder} has not both malignant and other classes",
            outcome="nothing was trained", remedy="give --metric balanced_accuracy",
        )  # fmt: skip


def _key(champion: Champion, new: Dataset, rule: PromotionRule, options: UpdateOptions) -> str:
    """Return what names an update: its champion, data, rule and division; the same command has the same key."""
    return fingerprint(
        folder_model_key(champion.model), champion.version, champion.dataset.manifest_sha256, new.manifest_sha256,
        recipe_to_dict(champion.recipe), asdict(rule), asdict(options.new_split),
    )  # fmt: skip


def _decide(
    champion: Champion,
    new: Dataset,
    registry: Path,
    folder: Path,
    rule: PromotionRule,
    options: UpdateOptions,
    settings: RunSettings,
    progress: Progress,
) -> RegistryVersion:
    data = join_data(
        champion, new, folder / "dataset", options.new_split, workers=settings.workers, progress=progress
    )
    has_points = card_policy(read_card(champion.model)) is not None
    check_test_sizes(data, rule, has_points=has_points)
    # Stated before any test is opened.
    record_step(registry, BEGIN, update=folder.name, details=_plan(champion, new, data, rule, options.new_split))
    run = _train_challenger(champion, data, folder, settings, progress)
    check_champion(read_registry(registry), champion.version)
    seal_tests(champion, new, data, new_split=options.new_split.name, name=f"update-{folder.name}")
    runs = {CHAMPION: champion.run, CHALLENGER: run}
    score_tests(data, runs, folder, device=settings.device, progress=progress)
    scores = read_paired_tests(data, runs, folder)
    decision = decide_promotion(scores.tests, rule)
    UPDATE.write(folder, _document(champion, new, data, scores, decision, run, options.new_split))
    # The page follows in `_outcome`: none says "promoted" of what the registry has not recorded.
    return record_decision(
        registry, run, champion=champion.version, update=folder.name, is_promoted=decision.is_promoted,
        details={"champion": champion.version, "reasons": decision_sentences(decision)},
    )  # fmt: skip


def _train_challenger(
    champion: Champion, data: UpdateData, folder: Path, settings: RunSettings, progress: Progress
) -> Path:
    """Train the champion's recipe on the joined data, or go on with what is there; the tests are not scored."""
    machine: Machine = prepare_machine(replace(settings, out=folder / "runs", resume=False), progress)
    if machine.fabric.world_size > 1:
        raise UsageError(
            "update: trains with one process",
            outcome="nothing was trained",
            remedy="leave out --devices and --nodes",
        )
    with reading(data.dataset, "update"):
        (plan,) = make_plans(champion.recipe, data.dataset, data.split, machine)
        say_licence(plan, progress)
        return run_plan(plan, resuming(plan, machine))


# What is written ----------------------------------------------------------------------------------------------------


def _plan(
    champion: Champion, new: Dataset, data: UpdateData, rule: PromotionRule, new_split: NewSplitOptions
) -> dict[str, Any]:
    return {
        "new_split": asdict(new_split),
        "champion": champion.version, "recipe": champion.recipe.name, "new_data": new.name,
        "new_manifest_sha256": new.manifest_sha256, "rule": asdict(rule), "counts": dict(data.counts),
    }  # fmt: skip


def _document(
    champion: Champion,
    new: Dataset,
    data: UpdateData,
    scores: TestScores,
    decision: PromotionDecision,
    run: Path,
    new_split: NewSplitOptions,
) -> dict[str, Any]:
    """Return what promotion.json holds."""
    return {
        **_plan(champion, new, data, decision.rule, new_split),
        "champion_key": folder_model_key(champion.model),
        "challenger_key": folder_model_key(run / MODEL_FOLDER),
        "challenger_run": run.relative_to(run.parents[2]).as_posix(),
        "old_data": champion.dataset.name,
        "operating_point": scores.operating_point,
        "is_promoted": decision.is_promoted,
        "sentences": [*decision_sentences(decision), *_data_sentences(data)],
        "group_level": decision.group_level,
        "openings": opening_counts(data),
        "checks": [{**check.as_dict(), "sentence": check_sentence(check)} for check in decision.checks],
    }


def _data_sentences(data: UpdateData) -> list[str]:
    """Return what a reader has to know of the data before believing a decision on it."""
    leaks = data.split.leaks
    leak_texts = [
        f"{leaks['total']:,} of {leaks['n']:,} test images share a lesion, a patient or their pixels with training or "
        "validation images, in the champion's split or in that of the new data."
    ] * bool(leaks["total"])
    return leak_texts + [str(text) for text in data.dataset.notes.get(LIMITS_NOTE, ())]


def _outcome(registry: Path, folder: Path, version: RegistryVersion) -> UpdateOutcome:
    document: Mapping[str, Any] = UPDATE.read(folder)
    if not (folder / UPDATE_PAGE).is_file():
        write_update_page(folder)
    return UpdateOutcome(
        registry, folder, folder / UPDATE_PAGE, version.name, bool(document["is_promoted"]),
        tuple(document["sentences"]),
    )  # fmt: skip
