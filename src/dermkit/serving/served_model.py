"""The model in the worker: images become answers, with the numbers of `dermkit predict`; and what the model is."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from dermkit.errors import DermkitError, ImageRejected, ResourceError, printable
from dermkit.images.decode import LesionImage, open_image
from dermkit.images.statistics import ImageStatistics, image_statistics
from dermkit.models.card import card_text
from dermkit.prediction.image_prediction import ImagePrediction
from dermkit.prediction.inputs import ImageRef
from dermkit.prediction.metadata_table import find_metadata
from dermkit.serving.jobs import ExplainJob, ImageJob, JobListener, WorkerRefusal, WorkerSettings
from dermkit.serving.model_facts import model_facts, why_no_maps
from dermkit.threads import cpu_count, ordered_map

if TYPE_CHECKING:
    import pandas as pd

    from dermkit.serving.heat_map import MapMaker

_UNCHECKED_PIXELS = 1_000_000
"""Of an image from a stranger: 16 million pixels in 2 KB, which the command line takes, cost a second of the queue."""
_MAX_GROUP_PIXELS = 100_000_000
"""Decoded pixels that are held at one time: 300 MB. A batch of larger photographs goes to the model in parts."""


@dataclass(frozen=True, eq=False)
class _OpenedImage:
    """An image that was decoded, with its place in the batch and what was sent with it."""

    index: int
    job: ImageJob
    image: LesionImage
    statistics: ImageStatistics


class ServedModel:
    """A loaded model that answers the jobs of a server; raises what `dk.load_model` raises."""

    def __init__(self, settings: WorkerSettings) -> None:
        from dermkit.prediction.load import (
            load_model,
        )  # here: its imports take seconds, and the server does without

        self._predictor = load_model(settings.model, device=settings.device)
        self._target, self._coverage = settings.target, settings.coverage
        self._threads = settings.workers or cpu_count()
        self._policy = self._predictor.select_policy(target=self._target, coverage=self._coverage)

    @property
    def is_on_cpu(self) -> bool:
        """Return whether a CPU runs the nets."""
        return self._predictor.runtime.device_type == "cpu"

    def facts(self) -> dict[str, Any]:
        """Return what the model is, as /v1/model gives it, but for the limits of the server."""
        self._predictor.engine  # noqa: B018  made now, so that the first request does not wait for it
        text = card_text(self._predictor.card)  # of the verified bytes: the file may have been written anew since
        return model_facts(self._predictor, self._policy, coverage=self._coverage, card_text=text)

    # Predictions -----------------------------------------------------------------------------------------------------

    def predict(self, jobs: Sequence[ImageJob], report: JobListener) -> None:
        """Report the answer for each image as it comes; refused ones too."""
        decodings = ordered_map(partial(self._open, report), enumerate(jobs), n_threads=self._threads)
        group: list[_OpenedImage] = []
        for entry in decodings:
            if entry is None:
                continue
            group.append(entry)
            if sum(member.image.pixels.size // 3 for member in group) > _MAX_GROUP_PIXELS:
                self._answer(group, report)
                group = []
        self._answer(group, report)

    def _open(self, report: JobListener, numbered_job: tuple[int, ImageJob]) -> _OpenedImage | None:
        index, job = numbered_job
        report("begin", index)
        try:
            image = open_image(job.data, name="image", unchecked_pixels=_UNCHECKED_PIXELS)
        except ImageRejected as refusal:
            report("answer", index, _refusal(refusal.reason.value, refusal.detail))
            return None
        except ResourceError:
            report("answer", index, _refusal(WorkerRefusal.OUT_OF_MEMORY.value))
            return None
        statistics = image_statistics(image.pixels)
        report("end", index)
        return _OpenedImage(index, job, image, statistics)

    def _answer(self, group: Sequence[_OpenedImage], report: JobListener) -> None:
        """Score a group; where that fails, each image alone, so that one image costs the others nothing."""
        if not group:
            return
        try:
            for entry, prediction in zip(group, self._score(group), strict=True):
                report("answer", entry.index, self._describe(entry, prediction))
        except (DermkitError, MemoryError, RuntimeError, ValueError) as error:
            if len(group) > 1:
                for entry in group:
                    self._answer([entry], report)
                return
            is_memory = isinstance(error, MemoryError | ResourceError) or "memory" in str(error).lower()
            reason = WorkerRefusal.OUT_OF_MEMORY if is_memory else WorkerRefusal.NOT_SCORED
            report("answer", group[0].index, _refusal(reason.value))

    def _score(self, group: Sequence[_OpenedImage]) -> Iterator[ImagePrediction]:
        return self._predictor.predict_images(
            [entry.image.pixels for entry in group], self._metadata([entry.job for entry in group]),
            target=self._target, coverage=self._coverage, batch_size=self._batch_size(len(group)),
            workers=self._threads,
        )  # fmt: skip

    def _metadata(self, jobs: Sequence[ImageJob | ExplainJob]) -> "pd.DataFrame | None":
        """Return age, sex and site of the images, None where the model takes none or nothing is known."""
        names = self._predictor.metadata_fields
        if not names or not any(job.metadata for job in jobs):
            return None
        import pandas as pd

        rows = [{"image": str(index), **{name: job.metadata.get(name, "") for name in names}}
                for index, job in enumerate(jobs)]  # fmt: skip
        return pd.DataFrame(rows)

    def _batch_size(self, n_images: int) -> int:
        """Return how many images go through the net together: on a CPU so that every thread has some."""
        default = self._predictor.batch_size
        return min(default, -(-n_images // self._threads)) if self.is_on_cpu else default

    def _describe(self, entry: _OpenedImage, prediction: ImagePrediction) -> dict[str, Any]:
        if prediction.refused:
            reason = WorkerRefusal.NOT_SCORED if prediction.reason is None else prediction.reason
            return _refusal(reason.value, prediction.detail)
        height, width = entry.image.pixels.shape[:2]
        return {
            "refusal": None, "predicted": prediction.predicted, "classes": self._classes(prediction),
            "decisions": _decisions(prediction), "distribution": _distribution(prediction),
            "notes": [printable(note) for note in dict.fromkeys((*entry.image.notes, *prediction.notes))],
            "training_split": prediction.training_split, "pixel_sha256": entry.image.pixel_sha256,
            "width": int(width), "height": int(height), "blurred": entry.statistics.is_blurred,
            "statistics": asdict(entry.statistics),
        }  # fmt: skip

    def _classes(self, prediction: ImagePrediction) -> list[dict[str, Any]]:
        calibrated = {} if prediction.decisions is None else prediction.decisions.probabilities
        return [
            {
                "name": entry.name, "malignancy": entry.malignancy,
                "probability": prediction.probabilities[entry.name],
                "calibrated_probability": calibrated.get(entry.name),
            }
            for entry in self._predictor.classes
        ]  # fmt: skip

    # Heat maps -------------------------------------------------------------------------------------------------------

    @cached_property
    def _map_maker(self) -> "MapMaker":
        from dermkit.serving.heat_map import MapMaker

        return MapMaker(self._predictor, self._policy)

    def _metadata_row(self, job: ExplainJob) -> "pd.DataFrame | None":
        """Return age, sex and site as the nets take them, None = all unknown."""
        table = self._metadata([job])
        metadata = None if table is None else find_metadata(
            table, [ImageRef("0", "0", "")], self._predictor.members, self._predictor.folder
        )  # fmt: skip
        return None if metadata is None else metadata.table

    def explain(self, job: ExplainJob) -> dict[str, Any]:
        """Return the heat map of one image, why the image was refused, or why there are no maps of this model."""
        if reason := why_no_maps(self._predictor):
            return {"not_supported": reason}
        try:
            image = open_image(job.data, name="image", unchecked_pixels=_UNCHECKED_PIXELS)
        except ImageRejected as refusal:
            return _refusal(refusal.reason.value, refusal.detail)
        except ResourceError:
            return _refusal(WorkerRefusal.OUT_OF_MEMORY.value)
        try:
            map_fields = self._map_maker.explain(image, job, self._metadata_row(job))
        except (
            DermkitError,
            ImportError,
            RuntimeError,
            ValueError,
            TypeError,
            AssertionError,
            MemoryError,
        ) as error:
            # captum and torch raise these for nets that they cannot handle, and for memory that is too small.
            return {"not_supported": f"no heat map of this image could be made ({type(error).__name__})"}
        return {"refusal": None, **map_fields}


def _refusal(reason: str, detail: str = "") -> dict[str, Any]:
    return {"refusal": {"reason": reason, "detail": printable(detail)[:300]}}


def _decisions(prediction: ImagePrediction) -> dict[str, Any] | None:
    decisions = prediction.decisions
    if decisions is None:
        return None
    return {
        "predicted": decisions.predicted, "confidence": decisions.confidence, "referral": decisions.referral,
        "positive": decisions.positive, "operating_point": decisions.operating_point,
        "malignant_probability": decisions.malignant_probability, "prediction_set": list(decisions.prediction_set),
        "positive_at": dict(decisions.positive_at), "is_point_broken": decisions.is_point_broken,
    }  # fmt: skip


def _distribution(prediction: ImagePrediction) -> dict[str, Any] | None:
    if prediction.distance is None or prediction.p_value is None:
        return None
    return {
        "distance": prediction.distance, "p_value": prediction.p_value,
        "outside_training_distribution": bool(prediction.outside_training_distribution),
    }  # fmt: skip
