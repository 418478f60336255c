"""The speed of nets and of decoding on this machine, measured in a few seconds.

The steps are those of training: augmentation, forward and backward pass, update. Their speed is measured anew each
time, because the same machine was seen four times slower on another day.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset
from dermkit.errors import DermkitError
from dermkit.images.decode import open_image
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.pipeline.estimate_cost import FitTime, NetSpeed
from dermkit.recipes.frozen import CLASSIFIERS, ClassifierKind
from dermkit.recipes.schema import ClassifierSpec, ImageSpec, Recipe
from dermkit.recipes.strong import STRONG_5MIN
from dermkit.recipes.training_specs import ComputeSpec

if TYPE_CHECKING:
    import torch

    from dermkit.models.net import Net

_SECONDS_PER_MEASUREMENT = 1.0
_MIN_STEPS = 2
_IMAGES_DECODED = 48
_FIT_ROWS = 400
_FEWEST_OF_CLASS = 3
_FIT_SCORINGS = 3
"""Times that the rows of a fit are scored: training images, and validation images with eight views."""


def measure_net(recipe: Recipe, weights_file: Path | None, n_classes: int, device: "torch.device") -> NetSpeed:
    """Return the speed of a recipe's net, measured in some seconds on random pixels."""
    from dermkit.models.net import build_net, has_batch_norm, preprocessing_for
    from dermkit.models.precision import has_fast_bfloat16
    from dermkit.models.weights import resolve_weights
    from dermkit.training.memory import kept_memory

    weights = resolve_weights(recipe.model, weights_file)
    net = build_net(recipe.model, n_classes, weights=weights, seed=0).to(device)
    preprocessing = preprocessing_for(recipe.image, weights)
    forward = _images_per_second(*_forward_step(net, preprocessing, device, "float32"))
    validate = _images_per_second(_validation_step(recipe, net, device), recipe.optim.batch_size)
    precisions = ["float32", *(["bfloat16"] if has_fast_bfloat16(device.type) else [])]
    low_forward = (
        _images_per_second(*_forward_step(net, preprocessing, device, "bfloat16")) if len(precisions) > 1 else 0.0
    )
    with kept_memory():
        speeds = {
            precision: _images_per_second(
                _train_step(recipe, net, n_classes, device, precision), recipe.optim.batch_size
            )
            for precision in precisions
        }
    fastest = max(speeds, key=lambda precision: speeds[precision])
    return NetSpeed(
        speeds[fastest], validate, forward, fastest, net.n_features, has_batch_norm(net),
        bfloat16_forward=low_forward if low_forward > forward else None,
    )  # fmt: skip


def _images_per_second(step: Callable[[], None], batch_size: int) -> float:
    step()  # the first one also builds what the later ones reuse
    start, n_steps = time.perf_counter(), 0
    while n_steps < _MIN_STEPS or time.perf_counter() - start < _SECONDS_PER_MEASUREMENT:
        step()
        n_steps += 1
    return n_steps * batch_size / (time.perf_counter() - start)


def _forward_step(
    net: "Net", preprocessing: Preprocessing, device: "torch.device", precision: str
) -> tuple[Callable[[], None], int]:
    """Return a step of scoring, as features are computed, and its images."""
    import torch

    from dermkit.models.inference import fused_backbone, n_parallel_batches, parallel_batches
    from dermkit.models.net_engine import default_batch_size
    from dermkit.models.precision import autocast

    net.eval()
    backbone, _ = fused_backbone(net.backbone, preprocessing)
    n_batches, size = n_parallel_batches(device), preprocessing.size
    batch_size = default_batch_size(device.type)
    batch = torch.zeros(batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    spec = ComputeSpec(precision=precision, compile=False)  # type: ignore[arg-type]

    def compute(_number: int) -> float:
        with torch.inference_mode(), autocast(spec, device):
            return float(backbone(batch).sum())

    def step() -> None:
        list(parallel_batches(compute, range(n_batches), workers=n_batches))

    return step, n_batches * batch_size


def _validation_step(recipe: Recipe, net: "Net", device: "torch.device") -> Callable[[], None]:
    import torch

    size = recipe.image.size
    batch = torch.zeros(recipe.optim.batch_size, 3, size, size, device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step() -> None:
        net.eval()
        with torch.inference_mode():
            float(net(batch).sum())  # waits for the device

    return step


def _train_step(
    recipe: Recipe, net: "Net", n_classes: int, device: "torch.device", precision: str
) -> Callable[[], None]:
    import torch

    from dermkit.models.net import freeze, set_train_mode
    from dermkit.models.precision import autocast
    from dermkit.training.augment.batch import augment_and_normalise
    from dermkit.training.loss import make_loss
    from dermkit.training.optimizer import make_optimizer

    phase, n, size = recipe.phases[-1], recipe.optim.batch_size, recipe.image.size
    freeze(net, phase)
    optimizer = make_optimizer(net, replace(phase, head_lr=0.0, backbone_lr=0.0), recipe.optim)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8))
    labels = rng.integers(0, 2, n)
    loss = make_loss(labels, n_classes, recipe.optim, device)
    targets, compute = torch.from_numpy(labels).to(device), ComputeSpec(precision=precision, compile=False)  # type: ignore[arg-type]

    def step() -> None:
        set_train_mode(net, phase)
        batch = augment_and_normalise(
            pixels.to(device), recipe.augment, seed=0, epoch=1, keys=np.arange(n, dtype=np.uint64),
            divide_by=255.0, mean=(0.5,) * 3, std=(0.5,) * 3,
        )  # fmt: skip
        with autocast(compute, device):
            logits = net(batch)
        optimizer.zero_grad()
        (loss.sum(logits.float(), targets) / n).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def measure_fits(
    kinds: Iterable[ClassifierKind], n_features: int, class_counts: Sequence[int], *, seed: int, limit: float
) -> tuple[FitTime, ...]:
    """Return the time of each kind of classifier on made features, in classes of a data set's proportions.

    No image is read. Labels are drawn, so that classes overlap as much as they can, and features go together as those
    of nets do: both make a fit slower. A kind whose fit fails here is left out, and so are all that are not begun when
    `limit` seconds are over, as on a busy machine.
    """
    features, labels = _made_features(n_features, np.array([count for count in class_counts if count]), seed)
    times: list[FitTime] = []
    start = time.monotonic()
    for kind in kinds:
        if times and time.monotonic() - start > limit:
            break
        try:
            seconds = _fit_seconds(CLASSIFIERS[kind], features, labels, seed)
        except DermkitError:  # another version of scikit-learn, whose classifier cannot be exported
            continue
        times.append(FitTime(kind, len(labels), seconds))
    return tuple(times)


def _made_features(
    n_features: int, class_counts: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features whose variances along their axes fall as 1 / rank, and labels in these proportions."""
    rng = np.random.default_rng(seed)
    n_rows = min(_FIT_ROWS, int(class_counts.sum()))
    counts = np.maximum(_FEWEST_OF_CLASS, np.round(n_rows * class_counts / class_counts.sum()).astype(np.int64))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    rank = np.arange(1, n_features + 1)
    latent = rng.normal(size=(len(labels), n_features)) / np.sqrt(rank)
    features = latent @ rng.normal(size=(n_features, n_features))
    return features.astype(np.float32), labels.astype(np.int64)


def _fit_seconds(
    spec: ClassifierSpec, features: NDArray[np.float32], labels: NDArray[np.int64], seed: int
) -> float:
    """Return the seconds of a fit, and of scoring its rows some times."""
    import torch

    from dermkit.models.heads import ClassifierHead, build_head
    from dermkit.training.classifiers import ClassifierFit, TrainingFeatures, fit_classifier

    n_classes, rows = int(labels.max()) + 1, np.arange(len(labels))
    head = build_head(features.shape[1], replace(STRONG_5MIN.model, classifier=spec), n_classes).eval()
    if not isinstance(head, ClassifierHead):
        raise TypeError(f"{spec.kind}: not the head of a classifier")
    data = TrainingFeatures(features, labels, groups=rows, views=np.ones_like(rows))
    optim = replace(STRONG_5MIN.optim, class_weights="balanced")
    start = time.perf_counter()
    fit_classifier(head, data, ClassifierFit(spec, optim, None, n_classes, seed))
    with torch.inference_mode():
        for _ in range(_FIT_SCORINGS):
            head(torch.from_numpy(features))
    return time.perf_counter() - start


def measure_decoding(dataset: Dataset, image: ImageSpec) -> float:
    """Return images a second from file to pixels of a net's size, of images spread over the manifest."""
    image_ids = dataset.manifest["image_id"].tolist()
    preprocessing = Preprocessing(
        size=image.size, resize=image.resize, interpolation=image.interpolation, divide_by=255.0, mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )  # fmt: skip
    chosen = image_ids[:: max(1, len(image_ids) // _IMAGES_DECODED)][:_IMAGES_DECODED]
    start = time.perf_counter()
    for image_id in chosen:
        resize_pixels(open_image(dataset.image_path(image_id)).pixels, preprocessing)
    return len(chosen) / (time.perf_counter() - start)
