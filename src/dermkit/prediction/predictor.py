"""A loaded model: pixels, image files and images in memory become probabilities, decisions and distances.

Without torch: a `Runtime` runs the nets (`models.net_engine`). Shapes: N images, K classes, `size` pixels a side.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import LesionClass
from dermkit.errors import UsageError
from dermkit.files import sha256_bytes
from dermkit.images.preprocess import Preprocessing
from dermkit.metrics.decisions.apply import ActivePolicy
from dermkit.metrics.decisions.guarantees import BrokenGuarantee
from dermkit.metrics.decisions.policy import DecisionPolicy
from dermkit.models.card import MODEL_JSON, TRAINING_IMAGES_FILE
from dermkit.models.card_fields import read_broken_guarantees, read_card_policy
from dermkit.models.ensemble_engine import EnsembleEngine
from dermkit.models.exported_folder import FLOAT32
from dermkit.models.members import (
    MemberFields,
    distinct_resizings,
    encode_for_members,
    metadata_fields,
    rows_for_members,
)
from dermkit.models.model_content import ModelContent
from dermkit.models.net_engine import (
    Features,
    Metadata,
    NetEngine,
    PixelBatch,
    Runtime,
    default_batch_size,
)
from dermkit.models.training_features import ReferenceFeatures
from dermkit.models.training_images import parse_training_images
from dermkit.prediction import image_forms
from dermkit.prediction.decisions import broken_sentences, select_policy
from dermkit.prediction.image_forms import ImageForm
from dermkit.prediction.image_prediction import ImagePrediction, describe_scores, prediction_frame
from dermkit.prediction.inputs import ImageRef, find_images, image_batches
from dermkit.prediction.metadata_table import find_metadata, metadata_lines
from dermkit.prediction.out_of_distribution import Distances, OutlierTest, join_distances, pairs_of
from dermkit.prediction.pixels import DecodedImage, ImageScore, ImageSource, PixelStore, decode_batch, score_frame
from dermkit.progress import Progress
from dermkit.threads import cpu_count

if TYPE_CHECKING:
    from dermkit.data.cache.store import StoredRows
    from dermkit.models.net import Net

_ENGINE_LOCK = threading.Lock()


@dataclass(frozen=True)
class Predictor:
    """A verified model, ready to score images.

    Threads may share it. It is pickled as the path of its folder, and loaded and verified again elsewhere.

    members: of each net, how an image becomes its input and its output a part of the mean. runtime: what runs the nets,
    one or several whose weighted mean is the model. progress: told when a device's memory is too small for a batch.
    policy: the decision policy fitted on validation images, None where there is none. training_images: (pixel_sha256,
    isic_id, split) of the images that the training used, from the bytes that were verified. broken_guarantees: those
    that the test images broke, as the model says. training_features: what each net's training images look like to it,
    None where the folder holds none. sha256: of model.json; files_sha256: of the list of hashes of all files that were
    loaded; model_key: of what decides answers. "" = in no folder. precision: float32, or
    int8, for which thresholds and test figures of the card do not hold. reload: a function and its arguments, with
    which another process loads it; None = it cannot.
    """

    folder: Path
    classes: tuple[LesionClass, ...]
    members: tuple[MemberFields, ...]
    runtime: Runtime
    card: Mapping[str, Any]
    sha256: str
    progress: Progress = field(default_factory=Progress)
    policy: DecisionPolicy | None = None
    training_images: tuple[tuple[str, str, str], ...] = ()
    broken_guarantees: tuple[BrokenGuarantee, ...] = ()
    training_features: tuple[ReferenceFeatures | None, ...] = ()
    files_sha256: str = ""
    model_key: str = ""
    precision: str = FLOAT32
    reload: tuple[Callable[..., "Predictor"], tuple[Any, ...]] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the class names in the order of the probabilities."""
        return tuple(lesion_class.name for lesion_class in self.classes)

    @property
    def passes(self) -> tuple[int, ...]:
        """Return how many times each net runs for one image: once a view."""
        return tuple(len(member.views) for member in self.members)

    @property
    def metadata_fields(self) -> tuple[str, ...]:
        """Return which of age, sex and site the model takes beside the image, () for none."""
        return metadata_fields(self.members)

    @property
    def resizings(self) -> tuple[Preprocessing, ...]:
        """Return a preprocessing for each way in which the nets' images are resized; most models have one."""
        return distinct_resizings(self.members)[0]

    @property
    def preprocessing(self) -> Preprocessing:
        """Return how pixels become the input of the net; raises `UsageError` where members differ in it."""
        distinct = {member.preprocessing for member in self.members}
        if len(distinct) > 1:
            raise UsageError(
                f"{self.folder}: its nets have {len(distinct)} ways of preprocessing, so there is no single one",
                remedy="take `resizings`, and give `probabilities` an array for each",
            )
        return self.members[0].preprocessing

    @property
    def engine(self) -> NetEngine | EnsembleEngine:
        """Return the net prepared for fast float32 inference; made at first use, which runs it on test pictures."""
        if (engine := vars(self).get("_engine")) is not None:
            return engine  # type: ignore[no-any-return]
        with _ENGINE_LOCK:  # two threads would prepare it twice, and on a GPU not take turns
            return self._engine

    @cached_property
    def _engine(self) -> NetEngine | EnsembleEngine:
        engines = self.runtime.engines(self.members, self.progress.say)
        is_plain = len(engines) == 1 and self.members[0].calibration is None
        return engines[0] if is_plain else EnsembleEngine(engines, self.members)

    @property
    def net_engines(self) -> tuple[NetEngine, ...]:
        """Return the engine of each net, before calibration and the mean over nets."""
        engine = self.engine
        return engine.engines if isinstance(engine, EnsembleEngine) else (engine,)

    @property
    def nets(self) -> "tuple[Net, ...]":
        """Return the torch nets; raises `UsageError` where another engine runs the model."""
        if not self.runtime.nets:
            raise UsageError(
                f"{self.folder}: its nets are run by {self.engine.net_variant}, and this needs those of torch",
                remedy="load the model folder, with torch (dermkit[train])",
            )
        return self.runtime.nets

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reload is None:
            raise UsageError(f"{self.folder}: on another engine than torch it cannot be sent to a process")
        return self.reload

    @property
    def batch_size(self) -> int:
        """Return the default number of images per forward pass on the model's device."""
        return default_batch_size(self.runtime.device_type)

    def probabilities(self, batch: PixelBatch, metadata: pd.DataFrame | None = None) -> NDArray[np.float64]:
        """Score resized pixels (N, size, size, 3) uint8; returns probabilities (N, K) float64.

        batch: of a model whose nets resize in several ways an array for each of `resizings`. metadata: a row for each
        image with the columns age, sex and site that the model takes, "" = unknown; None = all unknown.
        """
        return self.outputs((batch, encode_for_members(self.members, metadata)))[0]

    def outputs(
        self, batch: tuple[PixelBatch, Sequence[Metadata]], names: Sequence[str] = ()
    ) -> tuple[NDArray[np.float64], list[Features]]:
        """Return the probabilities of a batch and each net's features (N, C), from one pass.

        batch: pixels, in one array or in those of each resizing, and each member's encoded metadata.
        """
        pixels, metadata = batch
        if isinstance(self.engine, EnsembleEngine):
            return self.engine.score(pixels, names, metadata)
        array = pixels if isinstance(pixels, np.ndarray) else pixels[0]
        probabilities, features = self.engine.score(array, names, metadata[0])
        return probabilities, [features]

    def _score(
        self, batch: tuple[PixelBatch, Sequence[Metadata]], names: Sequence[str] = ()
    ) -> tuple[NDArray[np.float64], Distances | None]:
        """Return the probabilities of a batch, and how far its images lie from the training images."""
        probabilities, features = self.outputs(batch, names)
        return probabilities, self.outlier_test.distances(features)

    @property
    def outlier_test(self) -> OutlierTest:
        """Return the test of whether an image lies outside the training distribution."""
        return OutlierTest(self.training_features)

    def features(self, batch: PixelBatch) -> list[Features]:
        """Return each net's features (N, C) float32 of resized pixels, as in `probabilities`."""
        return self.outputs((batch, encode_for_members(self.members, None)))[1]

    def select_policy(self, *, target: str | None = None, coverage: float | None = None) -> ActivePolicy | None:
        """Return the decision policy, to `apply` to `probabilities`; None where the model has none.

        target, coverage: as in `predict`. Raises `UsageError` for what the policy does not hold.
        """
        return select_policy(
            self.policy, self.classes, target=target, coverage=coverage, broken=self.broken_guarantees
        )

    def predict(
        self, images: ImageForm | Iterable[ImageForm], metadata: Path | pd.DataFrame | None = None
    ) -> pd.DataFrame:
        """Score images: a row for each with `image_id`, `path`, `predicted` and `p_<class>`.

        images: one or many in any form; where all are paths these may be folders and patterns too, and a file that is
        named twice has one row. metadata: as in `dk.predict`. Column `refused` says why an image was not scored; its
        probabilities are nan then.
        """
        paths, others = image_forms.divide_paths(image_forms.iterate_images(images))
        if others is not None:
            pairs = list(self._score_forms(others, metadata))
            return score_frame([ref for ref, _ in pairs], [score for _, score in pairs], self.class_names)
        refs = find_images(paths)
        known = find_metadata(metadata, refs, self.members, self.folder)
        for line in metadata_lines(known, self.members) if known else ():
            self.progress.say(line)
        table = None if known is None else known.table
        scores = self.score_files(((ref.name, Path(ref.path)) for ref in refs), metadata=table)
        return score_frame(refs, list(scores), self.class_names)

    def predict_images(
        self,
        images: ImageForm | Iterable[ImageForm],
        metadata: Path | pd.DataFrame | None = None,
        *,
        target: str | None = None,
        coverage: float | None = None,
        batch_size: int | None = None,
        workers: int = 0,
    ) -> Generator[ImagePrediction, None, None]:
        """Yield a prediction for each image, in order and in bounded memory, refused ones too (docs/predict.md).

        images: one, a list of them, or an iterator. metadata: as in `predict`; of a list only. target, coverage: as in
        `dk.predict`. workers: threads, 0 = all cores, and one in a worker of a DataLoader. Raises `UsageError` for what
        is no image in any form, a wrong target or coverage, and metadata that the model does not take.
        """
        policy = self.select_policy(target=target, coverage=coverage)
        for sentence in broken_sentences(policy) if policy else ():
            self.progress.say(f"warning: {sentence}")
        pairs = self._score_forms(
            image_forms.iterate_images(images), metadata, batch_size=batch_size, workers=workers
        )
        return describe_scores(pairs, self.classes, policy, self.training_images)

    def to_frame(self, predictions: Iterable[ImagePrediction]) -> pd.DataFrame:
        """Return predictions of this model as a table: the columns of predictions.csv, and `refused`."""
        return prediction_frame(predictions, self.class_names)

    def _score_forms(
        self, images: Iterable[Any], metadata: Path | pd.DataFrame | None,
        *, batch_size: int | None = None, workers: int = 0,
    ) -> Generator[tuple[ImageRef, ImageScore], None, None]:  # fmt: skip
        """Return the name and score of each image as they come; metadata are checked at once."""
        table, lines = image_forms.metadata_of_images(metadata, images, self.members, self.folder)
        for line in lines:
            self.progress.say(line)
        refs: deque[ImageRef] = deque()

        def sources() -> Generator[tuple[str, ImageSource], None, None]:
            for ref, source in image_forms.image_sources(image_forms.stream_names(images), self.resizings):
                refs.append(ref)
                yield source

        scores = self.score_files(sources(), batch_size=batch_size, workers=workers, metadata=table)
        return ((refs.popleft(), score) for score in scores)

    def score_pixels(
        self,
        pixels: "NDArray[np.uint8] | StoredRows | list[NDArray[np.uint8]] | list[StoredRows]",
        rows: Sequence[int],
        *,
        batch_size: int | None = None,
        workers: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
        metadata: pd.DataFrame | None = None,
    ) -> NDArray[np.float64]:
        """Score rows of a pixel cache (N, size, size, 3); returns (len(rows), K) in the order of `rows`.

        pixels: a list of the caches of each of `resizings`, or the only one. workers: threads, 0 = as many as the
        runtime takes. on_progress: told (images done, images). metadata: as in `probabilities`, in the order of `rows`;
        a model that takes none leaves them out.
        """
        return self.score_with_distances(
            pixels, rows, batch_size=batch_size, workers=workers, on_progress=on_progress, metadata=metadata
        )[0]

    def score_with_distances(
        self,
        pixels: "NDArray[np.uint8] | StoredRows | list[NDArray[np.uint8]] | list[StoredRows]",
        rows: Sequence[int],
        *,
        batch_size: int | None = None,
        workers: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
        metadata: pd.DataFrame | None = None,
    ) -> tuple[NDArray[np.float64], Distances | None]:
        """Return the same probabilities, and how far each image lies from the training images.

        None instead of distances where the model cannot tell them (`outlier_test.reason`).
        """
        size = batch_size or self.batch_size
        result = np.empty((len(rows), len(self.classes)))
        row_indices = np.asarray(rows, dtype=np.int64)
        caches: Sequence[NDArray[np.uint8] | StoredRows] = pixels if isinstance(pixels, list) else [pixels]
        encoded = encode_for_members(self.members, metadata)
        batches = (
            (
                [cache[row_indices[start : start + size]] for cache in caches],
                rows_for_members(encoded, slice(start, start + size)),
            )
            for start in range(0, len(rows), size)
        )
        n_done, distances = 0, []
        for batch_scores, batch_distances in self.runtime.parallel_batches(
            self._score, batches, workers=workers or self.runtime.n_threads
        ):
            result[n_done : n_done + len(batch_scores)] = batch_scores
            n_done += len(batch_scores)
            distances.append(batch_distances)
            if on_progress:
                on_progress(n_done, len(rows))
        return result, join_distances(distances)

    def score_files(
        self,
        images: Iterable[tuple[str, ImageSource]],
        *,
        batch_size: int | None = None,
        workers: int = 0,
        n_thumbnails: int = 0,
        pixel_store: PixelStore | None = None,
        metadata: pd.DataFrame | None = None,
    ) -> Generator[ImageScore, None, None]:
        """Score files, given as (name, path), in order and in bounded memory; a refused one has no probabilities.

        In place of a path may stand a decoded image, or why it was refused. workers: threads, 0 = all cores, or one in
        a worker of a DataLoader; each reads, decodes and scores a batch of its own, so that none waits for another.
        n_thumbnails: number of first images that get a thumbnail. pixel_store: where resized pixels are looked up and
        added, where all images are files. metadata: as in `probabilities`, a row for each image.
        """
        size = batch_size or self.batch_size
        encoded = encode_for_members(self.members, metadata)
        score_batch = partial(
            self._score_batch, encoded=encoded, n_thumbnails=n_thumbnails, pixel_store=pixel_store
        )
        threads = workers or (1 if _is_data_loader_worker() else cpu_count())
        self.engine  # noqa: B018  made once, before the threads start
        try:
            batches = image_batches(images, size)
            for scores, new_images in self.runtime.parallel_batches(score_batch, batches, workers=threads):
                if pixel_store is not None:
                    pixel_store.add(new_images)
                yield from scores
        finally:  # also after an interrupt: these images were decoded
            if pixel_store is not None:
                pixel_store.flush()

    def _score_batch(
        self,
        batch: tuple[int, Sequence[tuple[str, ImageSource]]],
        *,
        encoded: Sequence[Metadata],
        n_thumbnails: int,
        pixel_store: PixelStore | None,
    ) -> tuple[list[ImageScore], list[DecodedImage]]:
        """Return the score of each image, and the decoded images that the pixel store does not hold yet."""
        start, images = batch
        decoded, new_images = decode_batch(
            images, self.resizings, n_thumbnails=n_thumbnails - start, pixel_store=pixel_store
        )
        rows = [row for row, image in enumerate(decoded) if isinstance(image.content, DecodedImage)]
        pixels = [image.content.pixels for image in decoded if isinstance(image.content, DecodedImage)]
        arrays = [np.stack(of_resizing) for of_resizing in zip(*pixels, strict=True)]
        metadata = rows_for_members(encoded, start + np.array(rows, np.int64))
        names = [images[row][0] for row in rows]
        p, distances = self._score((arrays, metadata), names) if rows else ((), None)
        scored = zip(p, pairs_of(distances, len(rows)), strict=True)
        return [image.with_score(scored) for image in decoded], new_images


def _is_data_loader_worker() -> bool:
    """Return whether this process is a worker of a torch DataLoader, which has loaded torch then."""
    loaders: Any = sys.modules.get("torch.utils.data")
    return loaders is not None and loaders.get_worker_info() is not None


def predictor_of(
    content: ModelContent, runtime: Runtime, progress: Progress, *, model_key: str,
    training_features: tuple[ReferenceFeatures | None, ...], precision: str = FLOAT32,
) -> Predictor:  # fmt: skip
    """Return the model of a folder that was verified and read. runtime: what runs its nets."""
    folder, files, card = content.folder, content.files, content.card
    return Predictor(
        folder, content.classes, content.members, runtime, card, sha256_bytes(files[MODEL_JSON.name]), progress,
        read_card_policy(folder, card), parse_training_images(files[TRAINING_IMAGES_FILE], folder),
        read_broken_guarantees(folder, card), training_features, files_sha256=files.sha256, model_key=model_key,
        precision=precision,
    )  # fmt: skip
