"""The engine's promises: what changes no number, what is done when a number or the memory gives out, and many ranks."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors

from dermkit.errors import DivergenceError, RunInterrupt, UntrustedError, UsageError
from dermkit.files import canonical_json
from dermkit.models.precision import is_out_of_memory, resolve_precision
from dermkit.progress import Progress
from dermkit.recipes.augmentation import NO_AUGMENTATION
from dermkit.recipes.experiments import ROTATE_FLIP_ZOOM, full_phase, head_phase
from dermkit.recipes.schema import Recipe
from dermkit.recipes.training_specs import ComputeSpec, MixupSpec
from dermkit.threads import ordered_map
from dermkit.training import loop as engine
from dermkit.training.checkpoint import LAST_CHECKPOINT, TrainingProgress, load_checkpoint, save_checkpoint
from dermkit.training.distributed import process_group
from dermkit.training.learning_rates import LearningRates
from dermkit.training.loop import MAX_NAN_RECOVERIES, train_net
from dermkit.training.loss import TrainingLoss, make_loss
from dermkit.training.samples import PixelSource, Samples
from dermkit.training.state import MICRO_BATCH, TrainingHooks
from dermkit.training.step import TrainStep, train_batches
from dermkit.training.validation import validation_metrics
from test_train import BASE, SMALL, equal, make_job, make_net, run, state

PIXELS: Recipe = replace(BASE, phases=(full_phase(2, lr=1e-3),), augment=ROTATE_FLIP_ZOOM)
MIXED = replace(PIXELS, mix=MixupSpec(mixup=0.4, cutmix=1.0, p=0.7))
AVERAGED = replace(PIXELS, keep="last", optim=replace(PIXELS.optim, ema_decay=0.9))
RATES = LearningRates((0.0,), PIXELS.phases[0], PIXELS.optim, 1, 1.0)
BALANCED = replace(PIXELS, optim=replace(PIXELS.optim, sampling="balanced", class_weights="balanced"))


# What changes no number --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [PIXELS, MIXED, BALANCED], ids=["plain", "mixed", "balanced"])
def test_workers_change_nothing(tmp_path: Path, recipe: Recipe) -> None:
    alone, _ = run(recipe, tmp_path / "0")
    for workers in (1, 3):
        net = make_net(recipe)
        folder = tmp_path / str(workers)
        folder.mkdir()
        train_net(
            replace(make_job(recipe, folder), workers=workers),
            net,
            folder,
            fabric=process_group.start_fabric("cpu"),
        )
        assert equal(state(alone), state(net))


@pytest.mark.parametrize(
    "recipe",
    [
        PIXELS,
        MIXED,
        AVERAGED,
        *(replace(recipe, optim=replace(recipe.optim, batch_norm_images=20)) for recipe in (MIXED, AVERAGED)),
    ],
    ids=["plain", "mixed", "averaged", "mixed, batch norm", "averaged, batch norm"],
)
def test_stopped_at_every_batch_and_resumed_it_ends_with_the_same_bits(tmp_path: Path, recipe: Recipe) -> None:
    alone, progress = run(recipe, tmp_path / "alone")
    hooks = TrainingHooks(should_stop=lambda: True)
    for _ in range(100):
        try:
            net, resumed = run(recipe, tmp_path / "often", hooks=hooks)
            break
        except RunInterrupt as error:
            assert "interrupted in epoch" in str(error)
    assert equal(state(alone), state(net))
    figures = ("train_loss", "train_accuracy", "val_loss")
    for one, two in zip(progress.log_rows, resumed.log_rows, strict=True):
        assert [one[name] for name in figures] == [two[name] for name in figures]


def test_checkpoints_inside_an_epoch_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, _ = run(PIXELS, tmp_path / "alone")
    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    saves = [0]

    def counting(*args: object, **options: object) -> None:
        saves[0] += 1
        keep(*args, **options)  # type: ignore[arg-type]

    keep = save_checkpoint
    monkeypatch.setattr("dermkit.training.state.save_checkpoint", counting)
    often, _ = run(PIXELS, tmp_path / "often")
    assert saves[0] > 2 * len(train_batches(np.arange(44), 8))
    assert equal(state(alone), state(often))


def test_work_ahead_keeps_its_order_and_raises_where_it_is_due() -> None:
    assert list(ordered_map(lambda k: k * k, range(50), n_threads=4)) == [k * k for k in range(50)]

    def broken(k: int) -> int:
        if k == 7:
            raise KeyError(k)
        return k

    got = []
    with pytest.raises(KeyError):
        for item in ordered_map(broken, range(100), n_threads=2):
            got.append(item)  # noqa: PERF402
    assert got == list(range(7))


def test_no_more_work_is_ahead_than_memory_expects() -> None:
    begun: list[int] = []

    def note(k: int) -> int:
        begun.append(k)
        return k

    coming = ordered_map(note, range(1000), n_threads=2)
    next(coming)
    coming.close()
    assert len(begun) < 10


# Drawing and mixing ------------------------------------------------------------------------------------------------


def test_balanced_sampling_shows_classes_equally_often(tmp_path: Path) -> None:
    job = make_job(BALANCED, tmp_path)
    few = np.concatenate([np.arange(0, 40, 2), np.arange(1, 9, 2)])  # 20 of one class, 4 of the other
    samples = Samples.build(job.image_ids, job.labels, few, NO_AUGMENTATION, None, seed=0)
    order = samples.order("balanced", seed=0, epoch=1)
    assert len(order) == 24
    assert np.bincount(samples.labels[order]).tolist() == [12, 12]
    assert samples.order("shuffled", seed=0, epoch=1).tolist() != order.tolist()
    assert sorted(samples.order("shuffled", seed=0, epoch=1)) == list(range(24))


def test_mixing_mixes_images_and_labels_alike(tmp_path: Path) -> None:
    recipe = replace(MIXED, augment=NO_AUGMENTATION, mix=MixupSpec(mixup=1.0, cutmix=0.0, p=1.0))
    job = make_job(recipe, tmp_path)
    samples = Samples.build(
        job.image_ids, job.labels, job.train_rows, NO_AUGMENTATION, None, seed=0, mixup=recipe.mix
    )
    source = PixelSource(samples, job.pixels, job.validation_rows, job.preprocessing, torch.device("cpu"))
    rows = np.arange(8)
    shares = source.targets(rows, epoch=1, seed=0, n_classes=2)
    assert shares.shape == (8, 2)
    assert torch.allclose(shares.sum(1), torch.ones(8))
    mixes = samples.mix_plan(rows, seed=0, epoch=1)
    assert mixes is not None
    unit = job.pixels[samples.rows].transpose(0, 3, 1, 2) / np.float32(255)
    lam = np.asarray(mixes.self_weight, dtype=np.float32)[:, None, None, None]
    expected = (unit[rows] * lam + unit[mixes.partner] * (1 - lam) - 0.5) / 0.5
    np.testing.assert_allclose(source.batch(rows, epoch=1, seed=0).numpy(), expected, atol=1e-5)


# Precision ---------------------------------------------------------------------------------------------------------


def test_the_fastest_precision_is_decided_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fastest = ComputeSpec(precision="fastest", compile=False)
    monkeypatch.setattr("dermkit.models.precision.has_fast_bfloat16", lambda _device: True)
    assert resolve_precision(fastest, "cpu").precision == "bfloat16"
    monkeypatch.setattr("dermkit.models.precision.has_fast_bfloat16", lambda _device: False)
    assert resolve_precision(fastest, "cpu").precision == "float32"
    exact = ComputeSpec(precision="bfloat16", compile=False)
    assert resolve_precision(exact, "cpu") == exact


def test_bfloat16_changes_training_a_little_and_validation_stays_in_float32(tmp_path: Path) -> None:
    half = replace(PIXELS, compute=ComputeSpec(precision="bfloat16", compile=False))
    _, exact = run(PIXELS, tmp_path / "a")
    net, coarse = run(half, tmp_path / "b")
    one, two = exact.log_rows[0]["train_loss"], coarse.log_rows[0]["train_loss"]
    assert one != two
    assert one == pytest.approx(two, abs=0.05)
    assert all(item.dtype == torch.float32 for item in net.state_dict().values() if item.is_floating_point())
    job = make_job(half, tmp_path)
    samples = Samples.build(job.image_ids, job.labels, job.train_rows, NO_AUGMENTATION, None, seed=0)
    source = PixelSource(samples, job.pixels, job.validation_rows, job.preprocessing, torch.device("cpu"))
    with torch.inference_mode():
        logits = net(source.validation_batch(np.arange(16))).double().numpy()
    guides = validation_metrics(logits, job.labels[job.validation_rows])
    best = min(coarse.log_rows, key=lambda row: row["val_loss"])
    assert guides["val_loss"] == pytest.approx(best["val_loss"], abs=1e-6)


# Numbers and memory that give out ----------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_steps_back_at_half_the_rates_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    recipe = replace(PIXELS, phases=(full_phase(3, lr=1e-3),))
    job = make_job(recipe, tmp_path)

    class Breaks(torch.nn.Module):
        """The third pass of the first attempt gives no numbers."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.passes = inner, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.passes += self.training
            y: torch.Tensor = self.inner(x)
            return y * float("nan") if self.passes == 3 and self.training else y

    net = make_net(recipe)
    net.head = torch.nn.Sequential(Breaks(net.head))
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    progress = train_net(
        job,
        net,
        checkpoints,
        fabric=process_group.start_fabric("cpu"),
        hooks=TrainingHooks(progress=Progress(say=said.append)),
    )
    (setback,) = progress.nan_recoveries
    assert (setback["epoch"], setback["batch"], setback["lr_scale"]) == (1, 3, 0.5)
    order = Samples.build(job.image_ids, job.labels, job.train_rows, NO_AUGMENTATION, None, seed=0).order(
        "shuffled", seed=0, epoch=1
    )
    assert setback["images"] == [job.image_ids[k] for k in order[16:20]]
    assert len(progress.log_rows) == 3
    assert {row["lr"] for row in progress.log_rows} == {5e-4}
    assert "not a number in epoch 1, batch 3" in said[0]
    reloaded = load_checkpoint(checkpoints / LAST_CHECKPOINT, net)
    assert reloaded is not None
    assert reloaded.nan_recoveries == progress.nan_recoveries


class Poison(torch.nn.Module):
    """Gives no numbers in evaluation mode, the first so many times."""

    def __init__(self, inner: torch.nn.Module, times: int) -> None:
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        if self.training or not self.times:
            return y
        self.times -= 1
        return y * float("nan")


def test_validation_that_gives_no_numbers_steps_back_too(tmp_path: Path) -> None:
    net = make_net(PIXELS)
    net.head = torch.nn.Sequential(Poison(net.head, 1))
    progress = train_net(make_job(PIXELS, tmp_path), net, tmp_path, fabric=process_group.start_fabric("cpu"))
    assert [item["what"] for item in progress.nan_recoveries] == ["a validation score"]
    assert len(progress.log_rows) == 2


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_weight_that_is_no_number_after_the_last_batch_is_never_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """The loss of the last batch is finite, and what it does to the weights is not."""
    steps = len(train_batches(np.arange(44), 8))
    taken = [0]

    class Breaking(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            done = super().step(closure)
            taken[0] += 1
            if taken[0] == epoch * steps:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].fill_(float("nan"))
            return done

    monkeypatch.setattr(torch.optim, "Adam", Breaking)
    net, progress = run(PIXELS, tmp_path)
    assert [(item["what"], item["epoch"], item["batch"]) for item in progress.nan_recoveries] == [
        ("a weight", epoch, steps)
    ]
    assert all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())


@pytest.mark.parametrize("recipe", [PIXELS, AVERAGED], ids=["plain", "averaged"])
def test_a_setback_is_the_same_whether_the_run_was_stopped_before_it_or_not(
    tmp_path: Path, recipe: Recipe
) -> None:
    """It goes back to where the epoch began, not to wherever somebody stopped."""

    def attempt(folder: Path, stop_after: int) -> tuple[Any, TrainingProgress]:
        folder.mkdir(exist_ok=True)
        net = make_net(recipe)
        net.head = torch.nn.Sequential(net.head, PoisonAt(5))
        asked = [0]

        def stop() -> bool:
            asked[0] += 1
            return asked[0] == stop_after

        job = make_job(recipe, folder)
        try:
            return net, train_net(
                job, net, folder, fabric=process_group.start_fabric("cpu"), hooks=TrainingHooks(should_stop=stop)
            )
        except RunInterrupt:
            assert (folder / "mid-epoch.safetensors").exists()
            again = make_net(recipe)
            again.head = torch.nn.Sequential(again.head, PoisonAt(5 - stop_after))
            return again, train_net(job, again, folder, fabric=process_group.start_fabric("cpu"))

    (alone, one), (stopped, two) = attempt(tmp_path / "a", 0), attempt(tmp_path / "b", 3)
    assert one.nan_recoveries == two.nan_recoveries != []
    assert equal(state(alone), state(stopped))
    assert not (tmp_path / "b" / "mid-epoch.safetensors").exists()


class PoisonAt(torch.nn.Module):
    """Gives no numbers in one training pass."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.passes = number, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return x * float("nan") if self.training and self.passes == self.number else x


def test_after_some_setbacks_it_stops_with_code_4_and_the_last_sound_checkpoint(tmp_path: Path) -> None:
    recipe = replace(PIXELS, phases=(full_phase(3, lr=1e30),))
    with pytest.raises(DivergenceError, match=r"epoch 1, batch \d+ \(images image-") as caught:
        run(recipe, tmp_path)
    assert caught.value.exit_code == 4
    kept = load_checkpoint(tmp_path / "checkpoints" / LAST_CHECKPOINT, make_net(recipe))
    assert kept is not None
    assert len(kept.nan_recoveries) == MAX_NAN_RECOVERIES
    assert kept.lr_scale == 0.5**MAX_NAN_RECOVERIES


class Small(torch.nn.Module):
    """Holds `room` images at a time."""

    def __init__(self, inner: torch.nn.Module, room: int) -> None:
        super().__init__()
        self.inner, self.room = inner, room

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        y: torch.Tensor = self.inner(x)
        return y


def test_where_memory_runs_out_batches_are_added_up_to_the_same_step(tmp_path: Path) -> None:
    recipe = replace(PIXELS, model=replace(PIXELS.model, dropout=0.0), augment=NO_AUGMENTATION)
    _, whole_batches = run(recipe, tmp_path / "plain")
    said: list[str] = []
    net = make_net(recipe)
    net.backbone = Small(net.backbone, 3)
    checkpoints = tmp_path / "small" / "checkpoints"
    checkpoints.mkdir(parents=True)
    progress = train_net(
        make_job(recipe, tmp_path),
        net,
        checkpoints,
        fabric=process_group.start_fabric("cpu"),
        hooks=TrainingHooks(progress=Progress(say=said.append)),
    )
    assert json.loads((checkpoints / MICRO_BATCH.name).read_text())["size"] == 2
    assert progress.micro_batch_size == 2
    assert [line.split(";")[0] for line in said] == [
        f"out of memory: batches are now added up from passes of {n} images" for n in (4, 2)
    ]
    assert [row["epoch"] for row in progress.log_rows] == [row["epoch"] for row in whole_batches.log_rows]


def test_passes_are_even_so_that_batch_norm_never_sees_a_lonely_image(tmp_path: Path) -> None:
    job = make_job(PIXELS, tmp_path)
    samples = Samples.build(job.image_ids, job.labels, job.train_rows, NO_AUGMENTATION, None, seed=0)
    source = PixelSource(samples, job.pixels, job.validation_rows, job.preprocessing, torch.device("cpu"))
    fabric = process_group.start_fabric("cpu")
    for size, micro, expected in ((9, 4, [3, 3, 3]), (8, 4, [4, 4]), (5, 4, [3, 2]), (1, 4, [1]), (7, 0, [7])):
        stepper = TrainStep(
            module=None,
            optimizer=None,
            fabric=fabric,
            process_group=process_group.SINGLE_PROCESS,
            source=source,
            compute=PIXELS.compute,
            rates=RATES,
            loss=TrainingLoss(None, 0.0),
            n_classes=2,
            seed=0,
            micro_batch_size=micro,
        )
        assert [len(images) for (images,), _ in stepper.prepare(np.arange(size), epoch=1)] == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("micro", [0, 3])
def test_a_step_has_the_loss_of_one_call_on_the_whole_batch(
    tmp_path: Path, smoothing: float, weights: Any, micro: int
) -> None:
    """Against torch's own mean reduction: weighted, smoothed, and added up from passes."""
    job = make_job(PIXELS, tmp_path)
    few = np.concatenate([np.arange(0, 30, 2), np.arange(1, 9, 2)])
    samples = Samples.build(job.image_ids, job.labels, few, NO_AUGMENTATION, None, seed=0)
    source = PixelSource(samples, job.pixels, job.validation_rows, job.preprocessing, torch.device("cpu"))
    layer = torch.nn.Linear(3 * 32 * 32, 2)
    net = torch.nn.Sequential(torch.nn.Flatten(), layer)
    fabric = process_group.start_fabric("cpu")
    optim = replace(PIXELS.optim, class_weights=weights, label_smoothing=smoothing)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    loss = make_loss(samples.labels, 2, optim, torch.device("cpu"))
    module, stepping = fabric.setup(net, optimizer)
    stepper = TrainStep(
        module=module,
        optimizer=stepping,
        fabric=fabric,
        process_group=process_group.SINGLE_PROCESS,
        source=source,
        compute=PIXELS.compute,
        rates=RATES,
        loss=loss,
        n_classes=2,
        seed=0,
        micro_batch_size=micro,
    )
    rows = np.arange(3, 17)
    stepper(0, rows, stepper.prepare(rows, epoch=1), epoch=1)
    assert layer.weight.grad is not None
    kept = layer.weight.grad.clone()
    stepper.flush()
    net.zero_grad()
    expected = torch.nn.functional.cross_entropy(
        net(source.batch(rows, epoch=1, seed=0)), torch.from_numpy(samples.labels[rows]), weight=loss.class_weights,
        label_smoothing=smoothing,
    )  # fmt: skip
    expected.backward()  # type: ignore[no-untyped-call]
    assert stepper.loss_sum / len(rows) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(kept, layer.weight.grad, atol=1e-6)


def test_what_cannot_be_made_any_smaller_is_told(tmp_path: Path) -> None:
    net = make_net(PIXELS)
    net.backbone = Small(net.backbone, 0)
    with pytest.raises(UsageError, match="does not hold 2 images"):
        train_net(make_job(PIXELS, tmp_path), net, tmp_path, fabric=process_group.start_fabric("cpu"))


def test_what_running_out_of_memory_looks_like() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_no_room_for_checkpoints_is_told_before_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(engine, "check_writable", lambda _folder, need: asked.append(need))
    net, _ = run(replace(PIXELS, phases=(full_phase(1, lr=1e-3),)), tmp_path)
    weights = sum(item.nbytes for item in net.parameters())
    assert asked[0] > 9 * weights


# Two processes -----------------------------------------------------------------------------------------------------

WORKER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from test_train import make_job, make_net
from dermkit.recipes import schema
from dermkit.training.distributed import process_group
from dermkit.training.loop import train_net
folder = Path(sys.argv[2])
spec = schema.parse_recipe(json.loads((folder / "recipe.json").read_text()), "recipe")
fabric = process_group.start_fabric("cpu")
net = make_net(spec)
progress = train_net(make_job(spec, folder / "cache"), net, folder / "checkpoints", fabric=fabric)
import hashlib
digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in net.state_dict().values())).hexdigest()
name = f"rank-{fabric.global_rank}.json"
(folder / name).write_text(json.dumps({"rows": progress.log_rows, "weights": digest}))
"""


def test_two_processes_divide_a_batch_into_as_many_passes(tmp_path: Path) -> None:
    """Shares of 6 and 5 with room for 5: two passes each, or the batch norms would wait for each other for ever."""
    (tmp_path / "two" / "checkpoints").mkdir(parents=True)
    MICRO_BATCH.write(tmp_path / "two" / "checkpoints", {"size": 5})
    model = replace(SMALL, backbone="resnet10t", dropout=0.0)
    recipe = replace(
        PIXELS, model=model, optim=replace(PIXELS.optim, batch_size=11), phases=(full_phase(1, lr=1e-3),)
    )
    both = two_processes(recipe, tmp_path / "two")
    assert both[0]["weights"] == both[1]["weights"]


def two_processes(recipe: Recipe, folder: Path) -> list[dict[str, object]]:
    from dermkit.recipes.schema import recipe_to_dict

    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(canonical_json(recipe_to_dict(recipe)))
    (folder / "worker.py").write_text(WORKER)
    port = str(20000 + os.getpid() % 20000)
    places = [
        {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        for rank in range(2)
    ]  # fmt: skip
    words = [sys.executable, str(folder / "worker.py"), str(Path(__file__).parent), str(folder)]
    processes = [subprocess.Popen(words, env={**os.environ, **place}) for place in places]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["mixed, balanced, uneven", "features"])
def test_two_processes_and_one_give_the_same_curve(tmp_path: Path, name: str) -> None:
    """44 images in batches of 11: shares of 6 and 5. Nothing here draws dropout. Weights are averaged in one of them.

    The net has no kinks (SiLU, no max-pooling), so a difference in the last bit does not grow: 1e-6 in its weights
    moves the loss by 5e-7 in two epochs, on one process. With ReLU and max-pooling 1e-7 moved it by 4e-4 on a
    processor without AVX-512, because one unit switched.
    """
    sgd = replace(BALANCED.optim, optimizer="sgd", momentum=0.9, batch_size=11)
    smooth: dict[str, bool | int | float | str] = {"act_layer": "silu", "replace_stem_pool": True}
    residual = replace(SMALL, backbone="resnet10t", backbone_args=smooth, dropout=0.0)
    phases = (full_phase(2, lr=1e-2),)
    recipe = {
        "mixed, balanced, uneven": replace(
            MIXED, model=residual, optim=replace(sgd, ema_decay=0.5, batch_norm_images=44), phases=phases
        ),
        "features": replace(PIXELS, model=residual, phases=(head_phase(3, views=2),)),
    }[name]
    _, alone = run(recipe, tmp_path / "one")
    both = two_processes(recipe, tmp_path / "two")
    assert both[0]["weights"] == both[1]["weights"], "the ranks' nets are one net"
    rows = both[0]["rows"]
    assert isinstance(rows, list)
    for one, two in zip(alone.log_rows, rows, strict=True):
        for figure in ("train_loss", "val_loss"):
            assert one[figure] == pytest.approx(two[figure], rel=1e-5)


def test_progress_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"net.x": torch.zeros(1)}, tmp_path / LAST_CHECKPOINT, metadata={"format": "1", "progress": "{}"})
    with pytest.raises(Exception, match="format 1"):
        load_checkpoint(tmp_path / LAST_CHECKPOINT, make_net(PIXELS))
    assert TrainingProgress().micro_batch_size == 0


def test_a_checkpoint_of_format_2_is_read_under_the_names_of_today(tmp_path: Path) -> None:
    net, path = torch.nn.Linear(2, 2), tmp_path / "old.safetensors"
    old_fields = {
        "phase": 1, "phase_epoch": 2, "step": 3, "loss": 1.5, "hits": 7.0, "seconds": 0.25, "lr_scale": 0.5,
        "setbacks": [{"what": "loss", "epoch": 1}], "micro": 4, "waited": 1, "best_value": 0.75, "best_epoch": 2,
        "rows": [{"epoch": 1.0}],
    }  # fmt: skip
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    header = {"progress": json.dumps(old_fields), "optimizer": json.dumps({"groups": [], "scalars": {}})}
    for version in ("1", "2", "5"):
        path.write_bytes(save_safetensors(tensors, metadata={**header, "format": version}))
        if version == "2":
            progress = load_checkpoint(path, net)
            assert progress == TrainingProgress(
                1, 2, 3, 1.5, 7.0, 0.25, 0.5, [{"what": "loss", "epoch": 1}], 4, 1, 0.75, 2, [{"epoch": 1.0}]
            )
        else:
            with pytest.raises(UntrustedError, match=f"format {version}, this dermkit reads format 4"):
                load_checkpoint(path, net)
