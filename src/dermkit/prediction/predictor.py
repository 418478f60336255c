"""A trained model as one folder: members, classes by name, preprocessing, calibration; and `predict`.

The folder holds safetensors, `model.json`, `MODEL_CARD.md`, `seen.csv` and `SHA256SUMS`. It is verified before
use and never unpickled. Everything runs in float32.
"""

import csv
import dataclasses
import json
import platform
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from dermkit import __version__
from dermkit.data.manifest import LesionClass
from dermkit.errors import UntrustedError, UsageError
from dermkit.files import (
    make_folder,
    output_errors,
    sha256_bytes,
    write_bytes,
    write_rows,
    write_text,
)
from dermkit.images.preprocess import Preprocessing
from dermkit.metrics.decisions.apply import Chosen
from dermkit.metrics.decisions.policy import Decision, from_dict
from dermkit.models.card import RESEARCH_ONLY, UNSETTLED, card_files, read_card, settled
from dermkit.models.checksums import SUMS, verified, write_sums
from dermkit.models.inference import Forward, default_batch, pick_device, side_by_side
from dermkit.models.net import Net, build_net, resolve_weights
from dermkit.prediction.decisions import choose_for
from dermkit.prediction.inputs import file_stat
from dermkit.prediction.pixels import KeptPixels, Look, Scored, look_at
from dermkit.recipes.schema import ModelSpec
from dermkit.threads import cores

if TYPE_CHECKING:
    from dermkit.data.cache.store import Rows

__all__ = ["ModelFacts", "Predictor", "load_model", "read_seen", "save_model", "versions"]


_SPEC: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)
_CLASSES: TypeAdapter[tuple[LesionClass, ...]] = TypeAdapter(tuple[LesionClass, ...])
_PREPROCESSING: TypeAdapter[Preprocessing] = TypeAdapter(Preprocessing)


@dataclass(frozen=True)
class ModelFacts:
    """What a model folder says about its origin: all of it plain JSON values.

    seen: (pixel_sha256, isic_id, split) of every image that training looked at, so that a later prediction on
    one of them can be named as such.
    """

    recipe: Mapping[str, Any]
    dataset: Mapping[str, Any]
    weights: Mapping[str, Any]
    training: Mapping[str, Any]
    seen: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Predictor:
    """A verified model, ready to score. say: told when a device's memory is too small for a batch.

    decision: what its validation images settled, None where they settled nothing.
    """

    folder: Path
    classes: tuple[LesionClass, ...]
    preprocessing: Preprocessing
    net: Net
    card: Mapping[str, Any]
    sha256: str
    say: Callable[[str], None] = lambda _line: None
    decision: Decision | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the class names in the order of the probabilities."""
        return tuple(item.name for item in self.classes)

    @cached_property
    def forward(self) -> Forward:
        """Return the net at its fastest in float32; it is tried out on made pictures first."""
        return Forward(self.net, self.preprocessing, self.say)

    @property
    def batch_size(self) -> int:
        """Return how many images go through the net at once on its device, unless a caller says otherwise."""
        return default_batch(self.forward.device)

    def probabilities(self, batch: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Score resized pixels (N, size, size, 3) uint8; returns softmax probabilities (N, classes) float64."""
        return self.forward(batch)

    def chosen(self, *, at: str | None = None, refer: float | None = None) -> Chosen | None:
        """Return what validation settled, to `apply` to `probabilities`; None where it settled nothing.

        at, refer: as `dermkit predict --at --refer` take them. Raises `UsageError` for what was not settled.
        """
        return choose_for(self.decision, self.classes, at=at, refer=refer)

    def score_pixels(
        self,
        pixels: "NDArray[np.uint8] | Rows",
        rows: Sequence[int],
        *,
        batch_size: int | None = None,
        workers: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float64]:
        """Score rows of a pixel cache (N, size, size, 3); returns (len(rows), classes) in the order of `rows`.

        workers: threads, 0 = as many as torch uses.
        """
        size = batch_size or self.batch_size
        result = np.empty((len(rows), len(self.classes)))
        where = np.asarray(rows, dtype=np.int64)
        batches = (pixels[where[start : start + size]] for start in range(0, len(rows), size))
        done = 0
        for part in side_by_side(self.forward, batches, workers=workers or torch.get_num_threads()):
            result[done : done + len(part)] = part
            done += len(part)
            if on_progress:
                on_progress(done, len(rows))
        return result

    def score_files(
        self,
        images: Iterable[tuple[str, Path]],
        *,
        batch_size: int | None = None,
        workers: int = 0,
        thumbnails: int = 0,
        kept: KeptPixels | None = None,
    ) -> Generator[Scored, None, None]:
        """Score files, given as (name, path), in order and in bounded memory; a refused one is yielded as such.

        workers: threads, 0 = all cores; each reads, decodes and scores a whole batch, so that none waits for another.
        thumbnails: of the first so many images. kept: where resized pixels are looked up and added.
        """
        size = batch_size or self.batch_size
        task = partial(self._score_batch, thumbnails=thumbnails, kept=kept)
        threads = workers or cores()
        self.forward  # noqa: B018  made here, once, not by whichever thread is first
        try:
            for scored, new in side_by_side(task, _batches(images, size), workers=threads):
                if kept is not None:
                    kept.add(new)
                yield from scored
        finally:  # an interrupted prediction has decoded them too
            if kept is not None:
                kept.flush()

    def _score_batch(
        self, batch: tuple[int, Sequence[tuple[str, Path]]], *, thumbnails: int, kept: KeptPixels | None
    ) -> tuple[list[Scored], list[Look]]:
        """Return what became of each image, and the looks that are not kept yet."""
        start, images = batch
        stats = [file_stat(path) for _, path in images]
        found = kept.find([path for _, path in images]) if kept else [None] * len(images)
        geometry = kept.geometry if kept else b""
        looks = [
            look or look_at(
                path, name, self.preprocessing, with_thumbnail=start + at < thumbnails, geometry=geometry
            )
            for at, (look, (name, path)) in enumerate(zip(found, images, strict=True))
        ]  # fmt: skip
        resized = [look.resized for look in looks if isinstance(look, Look)]
        scores = iter(self.probabilities(np.stack(resized)) if resized else ())
        scored = [
            Scored(name, next(scores), look.thumbnail, look.pixel_sha256, look.notes, None, stat)
            if isinstance(look, Look)
            else Scored(name, None, None, "", (), look, stat)
            for (name, _), look, stat in zip(images, looks, stats, strict=True)
        ]
        new = [look for look, old in zip(looks, found, strict=True) if old is None and isinstance(look, Look)]
        return scored, new if kept else []


def _batches(images: Iterable[tuple[str, Path]], size: int) -> Iterator[tuple[int, list[tuple[str, Path]]]]:
    """Yield (position of its first image, images) of each batch."""
    items = iter(images)
    start = 0
    while batch := list(islice(items, size)):
        yield start, batch
        start += len(batch)


def save_model(
    folder: Path,
    net: Net,
    *,
    spec: ModelSpec,
    classes: Sequence[LesionClass],
    preprocessing: Preprocessing,
    facts: ModelFacts,
) -> Path:
    """Write a model folder, its checksums last; returns the folder."""
    make_folder(folder)
    # A model of before is gone from here on: its checksums do not vouch for the new one.
    with output_errors(folder):
        (folder / SUMS).unlink(missing_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    write_bytes(folder / "member-0.safetensors", save_safetensors(state))
    write_rows(folder / "seen.csv", ("pixel_sha256", "isic_id", "split"), facts.seen)
    card = {
        "members": [{"file": "member-0.safetensors", "spec": asdict(spec), "views": ["identity"]}],
        "classes": [asdict(item) for item in classes],
        "preprocessing": asdict(preprocessing),
        **UNSETTLED,
        "recipe": facts.recipe,
        "dataset": facts.dataset,
        "weights": facts.weights,
        "training": facts.training,
        "versions": versions(),
        "notice": RESEARCH_ONLY,
    }
    for name, text in card_files(card).items():
        write_text(folder / name, text)
    write_sums(folder)
    return folder


def versions() -> dict[str, str]:
    """Return the versions that decide a number."""
    return {
        "dermkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": np.__version__,
    }


def load_model(folder: Path, *, device: str = "cpu", say: Callable[[str], None] = lambda _line: None) -> Predictor:
    """Verify and load a model folder. device: auto, cpu or cuda.

    Raises `UntrustedError` when a byte differs or anything does not match, `UsageError` for a device that is absent.
    """
    where = pick_device(device)
    folder = folder / "model" if (folder / "model" / SUMS).is_file() else folder
    content = verified(folder)
    for name in ("model.json", "seen.csv"):
        if name not in content:
            raise UntrustedError(f"{folder / SUMS}: does not list {name}", remedy="copy the model anew")
    card = read_card(folder)
    try:
        classes = _CLASSES.validate_json(json.dumps(card["classes"]))
        preprocessing = _PREPROCESSING.validate_json(json.dumps(card["preprocessing"]))
        members = [(item["file"], _SPEC.validate_json(json.dumps(item["spec"]))) for item in card["members"]]
        (file, spec), *others = members
        state = load_safetensors(content[file])
    except (KeyError, TypeError, ValueError, ValidationError, SafetensorError) as error:
        raise UntrustedError(f"{folder}: not a model folder: {error}", remedy="copy it anew") from error
    if others:
        raise UntrustedError(f"{folder}: {len(members)} members; this version reads one", remedy="update dermkit")
    net = _rebuild(folder, spec, len(classes), state).to(where)
    decision = _decision_of(folder, card)
    return Predictor(folder, classes, preprocessing, net, card, sha256_bytes(content["model.json"]), say, decision)


def _decision_of(folder: Path, card: Mapping[str, Any]) -> Decision | None:
    """Return what the model settled on its validation images, None where it settled nothing."""
    try:
        body, k = settled(card), len(card["classes"])
        if body is None:
            return None
        decision = from_dict(body)
        lengths = {len(decision.calibration.bias), len(decision.rule.least), len(decision.rule.n)}
        if lengths != {k} or not decision.calibration.temperature > 0:
            raise ValueError(f"it is not for {k} classes, or its temperature is not above 0")
    except (KeyError, TypeError, ValueError) as error:
        raise UntrustedError(
            f"{folder / 'model.json'}: what validation settled is broken: {error}", remedy="copy it anew"
        ) from error
    return decision


def _rebuild(folder: Path, spec: ModelSpec, n_classes: int, state: dict[str, torch.Tensor]) -> Net:
    bare = dataclasses.replace(spec, weights="none")
    try:
        net = build_net(bare, n_classes, weights=resolve_weights(bare, None), seed=0)
        net.load_state_dict(state, strict=True)
    except (RuntimeError, UsageError) as error:
        raise UntrustedError(
            f"{folder}: weights do not fit {spec.backbone}: {error}", remedy="copy it anew"
        ) from error
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.eval().requires_grad_(False)


def read_seen(folder: Path) -> dict[str, str]:
    """Return pixel hash -> split of the images that the model's training looked at."""
    path = folder / "seen.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["pixel_sha256"]: row["split"] for row in csv.DictReader(stream)}
