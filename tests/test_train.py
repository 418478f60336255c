"""The loop: what is frozen, what learns, what is kept, and that a resumed run ends with the same bits."""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dermkit.errors import DivergenceError, RunInterrupt, UntrustedError
from dermkit.files import sha256_bytes
from dermkit.images.preprocess import Preprocessing
from dermkit.models.net import Net, build_net
from dermkit.models.weights import resolve_weights
from dermkit.progress import Progress
from dermkit.recipes.augmentation import NO_AUGMENTATION, PRESETS
from dermkit.recipes.experiments import DEMO, ROTATE_FLIP_ZOOM, full_phase, head_phase
from dermkit.recipes.frozen import CLASSIFIERS
from dermkit.recipes.schema import ModelSpec, OversampleSpec, Recipe
from dermkit.recipes.training_specs import ComputeSpec, MixupSpec, Phase
from dermkit.training import features
from dermkit.training.checkpoint import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    TrainingProgress,
    load_checkpoint,
    save_checkpoint,
)
from dermkit.training.distributed import process_group
from dermkit.training.features import FeatureJob, FeatureSource, feature_source
from dermkit.training.loop import train_net
from dermkit.training.samples import PixelSource, Samples
from dermkit.training.state import TrainingHooks, TrainingJob

SIZE = 32
N = 60
SMALL = ModelSpec(
    backbone="mobilenetv2_100",
    backbone_args={},
    weights="none",
    skip_blocks=(),
    hidden=(),
    dropout=0.2,
    drop_path=0.0,
    classifier=None,
    metadata=None,
)
BASE: Recipe = replace(DEMO, image=replace(DEMO.image, size=SIZE), optim=replace(DEMO.optim, batch_size=8))


def make_job(recipe: Recipe, cache: Path, *, seed: int = 0, imbalanced: bool = False) -> TrainingJob:
    """Two classes that differ in brightness, so that there is something to learn; imbalanced: three of one to one."""
    rng = np.random.default_rng(0)
    labels = (np.arange(N) % 4 == 0) * 1 if imbalanced else np.arange(N) % 2
    pixels = np.clip(rng.normal(90 + 70 * labels[:, None, None, None], 40, (N, SIZE, SIZE, 3)), 0, 255)
    return TrainingJob(
        recipe=recipe,
        seed=seed,
        pixels=pixels.astype(np.uint8),
        pixel_keys=np.frombuffer(
            b"".join(hashlib.sha256(f"made {k}".encode()).digest() for k in range(N)), np.uint8
        ).reshape(N, 32),
        labels=labels.astype(np.int64),
        image_ids=tuple(f"image-{k}" for k in range(N)),
        train_rows=np.arange(0, 44),
        validation_rows=np.arange(44, N),
        n_classes=2,
        preprocessing=Preprocessing(
            size=SIZE,
            resize="squash",
            interpolation="bilinear",
            divide_by=255.0,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        cache_folder=cache,
    )


def make_net(recipe: Recipe, seed: int = 0) -> Net:
    return build_net(recipe.model, 2, weights=resolve_weights(recipe.model, None), seed=seed)


def run(
    recipe: Recipe,
    folder: Path,
    *,
    hooks: TrainingHooks | None = None,
    seed: int = 0,
    imbalanced: bool = False,
) -> tuple[Net, TrainingProgress]:
    net = make_net(recipe, seed)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    progress = train_net(
        make_job(recipe, folder / "cache", seed=seed, imbalanced=imbalanced),
        net,
        checkpoints,
        fabric=process_group.start_fabric("cpu"),
        hooks=hooks,
    )
    return net, progress


def state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def pixels_recipe() -> Recipe:
    return replace(BASE, phases=(full_phase(3, lr=1e-2),), augment=ROTATE_FLIP_ZOOM)


def test_it_learns_what_can_be_learnt(tmp_path: Path, pixels_recipe: Recipe) -> None:
    recipe = replace(pixels_recipe, phases=(full_phase(8, lr=1e-2),))
    _, progress = run(recipe, tmp_path)
    assert progress.log_rows[-1]["train_loss"] < progress.log_rows[0]["train_loss"] / 2
    assert max(row["val_accuracy"] for row in progress.log_rows) > 0.9
    log = pd.read_csv(tmp_path / "log.csv")
    assert log["epoch"].tolist() == list(range(1, 9))
    assert log["val_loss"].tolist() == [row["val_loss"] for row in progress.log_rows]


def test_the_same_run_twice_gives_the_same_bits_and_another_seed_does_not(
    tmp_path: Path, pixels_recipe: Recipe
) -> None:
    first, one = run(pixels_recipe, tmp_path / "a")
    second, two = run(pixels_recipe, tmp_path / "b")
    other, _ = run(pixels_recipe, tmp_path / "c", seed=1)
    assert equal(state(first), state(second))
    assert [row["train_loss"] for row in one.log_rows] == [row["train_loss"] for row in two.log_rows]
    assert not equal(state(first), state(other))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("stop_at", [2, 9, 14])
def test_stopped_inside_an_epoch_and_resumed_it_ends_with_the_same_bits(
    tmp_path: Path, pixels_recipe: Recipe, stop_at: int, optimizer: Any
) -> None:
    optim = replace(pixels_recipe.optim, optimizer=optimizer, momentum=0.9, schedule="cosine")
    recipe = replace(pixels_recipe, optim=optim, phases=(head_phase(1), full_phase(2, lr=1e-3)))
    alone, _ = run(recipe, tmp_path / "alone")
    steps = [0]

    def stop() -> bool:
        steps[0] += 1
        return steps[0] == stop_at

    with pytest.raises(RunInterrupt) as caught:
        run(recipe, tmp_path / "stopped", hooks=TrainingHooks(should_stop=stop))
    assert caught.value.exit_code == 130
    resumed, progress = run(recipe, tmp_path / "stopped")
    assert [row["epoch"] for row in progress.log_rows] == [1, 2, 3]
    assert equal(state(alone), state(resumed))


def test_frozen_means_frozen_batch_norm_too(tmp_path: Path) -> None:
    recipe = replace(BASE, model=SMALL, phases=(head_phase(2),))
    before = state(make_net(recipe).backbone)
    net, _ = run(recipe, tmp_path)
    assert equal(before, state(net.backbone))
    assert not equal(state(make_net(recipe).head), state(net.head))


def test_fine_tuning_moves_the_top_and_leaves_the_rest(tmp_path: Path) -> None:
    tune = Phase(
        epochs=1,
        train_backbone=2,
        head_lr=1e-3,
        backbone_lr=1e-3,
        views=0,
        freeze_batch_norm=True,
        patience=0,
        layer_decay=1.0,
        image_size=0,
    )
    recipe = replace(BASE, model=SMALL, phases=(head_phase(1), tune), keep="last")
    before = state(make_net(recipe).backbone)
    net, _ = run(recipe, tmp_path)
    changed = [name for name, tensor in net.backbone.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed
    assert all(not name.startswith(("conv_stem", "blocks.0")) for name in changed)
    assert not [name for name in changed if "running" in name]


def test_the_best_epoch_of_all_phases_is_kept_whole(tmp_path: Path) -> None:
    ruin = Phase(
        epochs=2,
        train_backbone="all",
        head_lr=1.0,
        backbone_lr=1.0,
        views=0,
        freeze_batch_norm=False,
        patience=0,
        layer_decay=1.0,
        image_size=0,
    )
    recipe = replace(BASE, model=SMALL, phases=(head_phase(2), ruin), keep="best", monitor="val_loss")
    net, progress = run(recipe, tmp_path)
    assert progress.best_epoch in (1, 2)
    assert equal(state(make_net(recipe).backbone), state(net.backbone))


def test_patience_ends_a_phase(tmp_path: Path) -> None:
    recipe = replace(BASE, phases=(full_phase(30, lr=5e-2, patience=2),))
    _, progress = run(recipe, tmp_path)
    assert len(progress.log_rows) < 30
    assert len(progress.log_rows) == progress.best_epoch + 2


def test_a_loss_that_is_not_a_number_ends_with_code_4_and_names_the_batch(tmp_path: Path) -> None:
    recipe = replace(BASE, phases=(full_phase(3, lr=1e30),))
    with pytest.raises(DivergenceError, match=r"epoch \d+, batch \d+ \(images image-") as caught:
        run(recipe, tmp_path)
    assert caught.value.exit_code == 4
    assert (tmp_path / "checkpoints" / LAST_CHECKPOINT).exists()


def test_features_give_the_losses_that_pixels_give(tmp_path: Path) -> None:
    """A frozen backbone on cached features is the same training as through the whole net."""
    recipe = replace(BASE, model=replace(SMALL, dropout=0.0), phases=(head_phase(2),), augment=NO_AUGMENTATION)
    through = replace(
        recipe.phases[0], train_backbone="all", backbone_lr=0.0, freeze_batch_norm=True, head_lr=1e-3
    )
    _, cached = run(recipe, tmp_path / "a")
    _, direct = run(replace(recipe, phases=(through,)), tmp_path / "b")
    for one, two in zip(cached.log_rows, direct.log_rows, strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-4)
        assert one["val_loss"] == pytest.approx(two["val_loss"], abs=1e-4)


def making_of(recipe: Recipe, job: TrainingJob, folder: Path, counted: list[int] | None = None) -> FeatureJob:
    counted = counted if counted is not None else [0]
    return FeatureJob(
        net=make_net(recipe), model=recipe.model, compute=recipe.compute, pixel_keys=job.pixel_keys,
        device=torch.device("cpu"), cache_folder=folder, process_group=process_group.SINGLE_PROCESS,
        progress=Progress(step=lambda *_: counted.__setitem__(0, counted[0] + 1)), should_stop=lambda: False,
    )  # fmt: skip


def features_of(
    recipe: Recipe, folder: Path, *, views: int, seed: int = 0, job: TrainingJob | None = None
) -> FeatureSource:
    """Return a source of features; `passes` counts the forward passes that it took."""
    job = job or make_job(recipe, folder)
    samples = Samples.build(
        job.image_ids, job.labels, job.train_rows, recipe.augment, recipe.grow, seed=seed, mixup=recipe.mix
    )
    pixels = PixelSource(samples, job.pixels, job.validation_rows, job.preprocessing, torch.device("cpu"))
    counted = [0]
    source = feature_source(pixels, making_of(recipe, job, folder, counted), seed=seed, views=views)
    source.passes = counted[0]  # type: ignore[attr-defined]
    return source


def test_views_differ_and_repeat(tmp_path: Path) -> None:
    recipe = replace(BASE, model=SMALL, augment=ROTATE_FLIP_ZOOM)
    source = features_of(recipe, tmp_path, views=2)
    rows = np.arange(44)
    one, two, three = (source.batch(rows, epoch=epoch, seed=0) for epoch in (1, 2, 3))
    assert torch.equal(one, three)
    assert not torch.isclose(one, two).all(dim=1).any()


def test_heads_of_all_kinds_share_features(tmp_path: Path) -> None:
    recipe = replace(BASE, model=SMALL, augment=ROTATE_FLIP_ZOOM, phases=(head_phase(1),))
    assert features_of(recipe, tmp_path, views=2).passes == 3 + 3 + 1  # type: ignore[attr-defined]
    layers = replace(recipe.model, hidden=(8,), dropout=0.5)
    logistic = replace(recipe.model, dropout=0.0, classifier=CLASSIFIERS["logistic"])
    for model in (layers, logistic):
        other = features_of(replace(recipe, model=model), tmp_path, views=2)
        assert other.passes == 0  # type: ignore[attr-defined]


def test_features_are_computed_once_for_all_runs_that_mean_the_same(tmp_path: Path) -> None:
    """Plain features belong to an image: another seed finds them. Random views belong to the seed.

    44 training and 16 validation images, 16 at a time.
    """
    recipe = replace(BASE, model=SMALL, augment=ROTATE_FLIP_ZOOM)
    assert features_of(recipe, tmp_path, views=0).passes == 4  # type: ignore[attr-defined]
    again = features_of(recipe, tmp_path, views=0, seed=1)
    assert again.passes == 0  # type: ignore[attr-defined]
    assert features_of(recipe, tmp_path, views=1).passes == 3  # type: ignore[attr-defined]
    assert features_of(recipe, tmp_path, views=1, seed=1).passes == 3  # type: ignore[attr-defined]
    assert features_of(recipe, tmp_path, views=2).passes == 3  # type: ignore[attr-defined]
    padded = replace(recipe, model=replace(SMALL, backbone_args={"pad_type": "same"}))
    other = features_of(padded, tmp_path, views=0)
    assert other.passes == 4  # type: ignore[attr-defined]
    rows = np.arange(44)
    assert not torch.allclose(other.batch(rows, epoch=1, seed=0), again.batch(rows, epoch=1, seed=0))
    fresh = features_of(padded, tmp_path / "clean", views=0)
    assert torch.equal(other.batch(rows, epoch=1, seed=0), fresh.batch(rows, epoch=1, seed=0))


def test_a_feature_does_not_depend_on_what_else_was_missing(tmp_path: Path) -> None:
    """A pass of another shape may round otherwise; the second run here lacks other images than the first."""
    recipe = replace(BASE, model=SMALL, augment=NO_AUGMENTATION)
    rows = np.arange(44)
    alone = features_of(recipe, tmp_path / "alone", views=0).batch(rows, epoch=1, seed=0)
    job = make_job(recipe, tmp_path / "shared")
    for some in (np.array([3, 40]), np.arange(7, 30)):
        samples = Samples.build(job.image_ids, job.labels, some, recipe.augment, None, seed=0)
        pixels = PixelSource(samples, job.pixels, job.validation_rows, job.preprocessing, torch.device("cpu"))
        feature_source(pixels, making_of(recipe, job, tmp_path / "shared"), seed=0, views=0)
    shared = features_of(recipe, tmp_path / "shared", views=0).batch(rows, epoch=1, seed=0)
    assert torch.equal(alone, shared)


def test_a_key_of_a_feature_is_that_of_earlier_versions() -> None:
    """The digest was made by commit 6429fce: a field renamed since must not make a cache of before useless."""
    grow = OversampleSpec(target_fraction=0.5, max_copies=4, augment=PRESETS["s4"])
    mixup = MixupSpec(mixup=0.2, cutmix=1.0, p=0.5)
    ids, labels = tuple(f"i{n}" for n in range(8)), np.array([0] * 6 + [1] * 2)
    samples = Samples.build(ids, labels, np.arange(8), PRESETS["winner-2020"], grow, seed=3, mixup=mixup)
    job: Any = SimpleNamespace(
        pixel_keys=np.arange(8 * 32, dtype=np.uint8).reshape(8, 32), compute=SimpleNamespace(precision="float32")
    )
    keys = features._sample_keys(samples, job, seed=3, view=1, is_unaugmented=False)
    assert sha256_bytes(keys.tobytes()) == "574d790fdd23dd9238166e8d2a3ba0fe84ec7440631037783ae5a7560081f19e"


@pytest.mark.parametrize("part", ["size", "precision", "mix", "grow", "seed", "net", "pixels"])
def test_everything_that_decides_a_feature_is_in_its_key(tmp_path: Path, part: str) -> None:
    mixed = MixupSpec(mixup=1.0, cutmix=0.0, p=1.0)
    recipe = replace(BASE, model=SMALL, augment=ROTATE_FLIP_ZOOM)
    other, seed = recipe, 0
    if part == "precision":
        other = replace(recipe, compute=ComputeSpec(precision="bfloat16", compile=False))
    elif part == "mix":
        other = replace(recipe, mix=mixed)
    elif part == "grow":
        few = OversampleSpec(target_fraction=1.0, max_copies=2, augment=ROTATE_FLIP_ZOOM)
        recipe, other = replace(recipe, grow=few), replace(recipe, grow=replace(few, augment=NO_AUGMENTATION))
    elif part == "seed":
        seed = 1
    elif part == "net":
        other = replace(recipe, model=replace(SMALL, backbone_args={"pad_type": "same"}))
    features_of(recipe, tmp_path, views=1)
    job = make_job(other, tmp_path)
    if part == "size":
        job = replace(job, preprocessing=replace(job.preprocessing, mean=(0.4, 0.5, 0.5)))
    if part == "pixels":
        job = replace(job, pixel_keys=job.pixel_keys[::-1].copy())
    again = features_of(other, tmp_path, views=1, seed=seed, job=job)
    assert again.passes >= 3  # type: ignore[attr-defined]


def test_growth_brings_small_classes_up_on_training_rows_alone() -> None:
    labels = np.array([0] * 20 + [1] * 5 + [2] * 2 + [1] * 4)
    train_rows = np.arange(27)
    grow = OversampleSpec(target_fraction=1.0, max_copies=6, augment=ROTATE_FLIP_ZOOM)
    names = tuple(f"i{k}" for k in range(len(labels)))
    samples = Samples.build(names, labels, train_rows, NO_AUGMENTATION, grow, seed=0)
    assert np.bincount(samples.labels).tolist() == [20, 20, 12]  # 2 images, at most six of each
    assert set(samples.rows.tolist()) == set(train_rows.tolist())
    assert len(np.unique(samples.keys)) == len(samples)
    per_image = np.bincount(samples.rows[samples.labels == 1])[20:25]
    assert per_image.max() - per_image.min() <= 1


def test_a_copy_is_augmented_and_the_image_itself_is_not() -> None:
    recipe = replace(
        BASE,
        augment=NO_AUGMENTATION,
        grow=OversampleSpec(target_fraction=1.0, max_copies=3, augment=ROTATE_FLIP_ZOOM),
    )
    job = make_job(recipe, Path("unused"))
    few = np.concatenate([np.arange(0, 40, 2), np.arange(1, 11, 2)])
    samples = Samples.build(job.image_ids, job.labels, few, recipe.augment, recipe.grow, seed=0)
    source = PixelSource(samples, job.pixels, job.validation_rows, job.preprocessing, torch.device("cpu"))
    rows = np.arange(len(samples))
    batch = source.batch(rows, epoch=1, seed=0).numpy()
    unit = job.pixels[samples.rows].transpose(0, 3, 1, 2) / np.float32(255)
    same = np.isclose(batch, (unit - 0.5) / 0.5, atol=1e-5).all(axis=(1, 2, 3))
    assert same[samples.copy_numbers == 0].all()
    assert not same[samples.copy_numbers > 0].any()


def test_a_checkpoint_of_another_net_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    net = make_net(BASE)
    save_checkpoint(tmp_path / BEST_CHECKPOINT, net, TrainingProgress(), with_backbone=True)
    other = make_net(replace(BASE, model=replace(BASE.model, hidden=(16,))))
    with pytest.raises(UntrustedError):
        load_checkpoint(tmp_path / BEST_CHECKPOINT, other)
    data = (tmp_path / BEST_CHECKPOINT).read_bytes()
    (tmp_path / BEST_CHECKPOINT).write_bytes(data[: len(data) // 2])
    with pytest.raises(UntrustedError, match="not a checkpoint"):
        load_checkpoint(tmp_path / BEST_CHECKPOINT, net)
    assert load_checkpoint(tmp_path / "absent", net) is None


@pytest.mark.parametrize("at", [BEST_CHECKPOINT, LAST_CHECKPOINT])
def test_killed_at_any_save_of_a_phase_border_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Every save in turn is the last thing that a run does; resumed, each ends as the one left alone."""
    recipe = replace(BASE, phases=(head_phase(1), full_phase(2, lr=1e-3)), augment=ROTATE_FLIP_ZOOM)
    alone, whole_progress = run(recipe, tmp_path / "alone")
    for number in range(1, 4):
        saves = [0]

        def dying(path: Path, *args: Any, saves: list[int] = saves, number: int = number, **options: Any) -> None:
            save_checkpoint(path, *args, **options)
            saves[0] += path.name == at
            if saves[0] == number and path.name == at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("dermkit.training.state.save_checkpoint", dying)
            with pytest.raises(KeyboardInterrupt):
                run(recipe, tmp_path / f"killed-{number}")
        resumed, progress = run(recipe, tmp_path / f"killed-{number}")
        assert equal(state(alone), state(resumed)), (at, number)
        assert [r["val_loss"] for r in progress.log_rows] == [r["val_loss"] for r in whole_progress.log_rows]
        assert len(pd.read_csv(tmp_path / f"killed-{number}" / "log.csv")) == len(progress.log_rows)
