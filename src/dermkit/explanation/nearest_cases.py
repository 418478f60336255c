"""The training cases that an image lies nearest to in the net's features: of all classes, and of each other class.

Shapes: R training images that a model's nets hold together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import DermkitError
from dermkit.files import write_rows
from dermkit.images.decode import open_image
from dermkit.models.members import MemberFields
from dermkit.models.training_features import ReferenceFeatures
from dermkit.prediction.inputs import ImageRef, utf8_safe
from dermkit.render.cells import defused
from dermkit.render.sheets import data_uri, thumbnail
from dermkit.runs.layout import LOCATION, run_of_model

NEAREST_CASES_TABLE = "nearest_cases.csv"
NO_CASES = "the model folder holds no training features: it was trained by an older version"
N_NEAREST = 4
_COLUMNS = ("image_id", "path", "rank", "case", "label", "distance", "is_nearest_of_class")
_ENDINGS = ("", ".jpg", ".jpeg", ".png", ".JPG", ".webp", ".bmp", ".tif", ".tiff")
_PICTURE_SIDE = 120
_Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class NearestCase:
    """A training image near to an image. distance: in the net's features, 0 to 4; of several nets their mean.

    is_nearest_of_class: not among the nearest of all, and there as the nearest of its class. uri: its picture for the
    page, "" where the data set is not at hand.
    """

    image_id: str
    label: str
    distance: float
    is_nearest_of_class: bool
    uri: str = ""


@dataclass(frozen=True, eq=False)
class TrainingCases:
    """The training images that the nets of a model hold, each once.

    image_ids, labels (positions in the model's classes), groups, pixel_keys: (R,). columns: of each net which of the R
    its own are, in its order.
    """

    nets: tuple[ReferenceFeatures, ...]
    class_names: tuple[str, ...]
    image_ids: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    pixel_keys: NDArray[np.uint64]
    columns: tuple[NDArray[np.int64], ...]

    def nearest(self, features: Sequence[_Floats32], pixel_sha256: str) -> list[NearestCase]:
        """Return the nearest cases, nearest first, one of a lesion or patient; then the nearest of other classes.

        features: (1, C) of each net. pixel_sha256: of the image; the lesion and the patient of a training image are not
        its own neighbours.
        """
        distances = self._distances(features)
        groups_of_image = self.groups[self.pixel_keys == np.uint64(int(pixel_sha256[:16] or "0", 16))]
        distances[np.isin(self.groups, groups_of_image)] = np.nan
        order = np.argsort(distances, kind="stable")[: np.count_nonzero(~np.isnan(distances))]
        nearest = list(islice(self._one_of_a_group(order), N_NEAREST))
        nearest_labels = {int(self.labels[row]) for row in nearest}
        rows_of_other_classes = []
        for row in order.tolist():  # of all images: a patient whose nevus is shown may have the nearest melanoma
            if int(self.labels[row]) not in nearest_labels:
                nearest_labels.add(int(self.labels[row]))
                rows_of_other_classes.append(row)
        return [
            NearestCase(
                utf8_safe(self.image_ids[row]), self.class_names[self.labels[row]], float(distances[row]), is_other
            )
            for rows, is_other in ((nearest, False), (rows_of_other_classes, True))
            for row in rows
        ]  # fmt: skip

    def _distances(self, features: Sequence[_Floats32]) -> _Floats32:
        """Return the mean over nets of the distances to their training images, (R,)."""
        total, n_nets = np.zeros(len(self.image_ids)), np.zeros(len(self.image_ids))
        for net, of_net, columns in zip(self.nets, features, self.columns, strict=True):
            total[columns] += net.pair_distances(of_net)[0]
            n_nets[columns] += 1
        return np.asarray(total / n_nets, dtype=np.float32)

    def _one_of_a_group(self, order: NDArray[np.int64]) -> Iterator[int]:
        nearest_groups = set()
        for row in order.tolist():
            if int(self.groups[row]) not in nearest_groups:
                nearest_groups.add(int(self.groups[row]))
                yield row


def training_cases(
    nets: Sequence[ReferenceFeatures | None], members: Sequence[MemberFields], class_names: Sequence[str]
) -> TrainingCases | None:
    """Return the training images of a model; None where one of its nets holds none."""
    references = [net for net in nets if net is not None]
    if not references or len(references) < len(nets):
        return None
    places: dict[tuple[str, int], int] = {}
    columns: list[NDArray[np.int64]] = []
    rows: list[tuple[str, int, int, int]] = []
    for net, member in zip(references, members, strict=True):
        class_of = np.argsort(member.class_order)  # the column of a net's output -> the model's class
        keys = list(zip(net.image_ids, net.pixel_keys.tolist(), strict=True))
        for key, label, group in zip(keys, net.labels, net.groups.tolist(), strict=True):
            if places.setdefault(key, len(places)) == len(rows):
                rows.append((key[0], int(class_of[label]), group, key[1]))
        columns.append(np.array([places[key] for key in keys], dtype=np.int64))
    ids, labels, groups, pixel_keys = zip(*rows, strict=True)
    return TrainingCases(
        tuple(references), tuple(class_names), ids, np.array(labels, np.int64), np.array(groups, np.int64),
        np.array(pixel_keys, np.uint64), tuple(columns),
    )  # fmt: skip


def images_root(model: Path) -> Path | None:
    """Return the folder of the images that a model was trained on, as its run says it; None where it is not there."""
    for run in (model, run_of_model(model)):
        if LOCATION.exists(run):
            root = Path(str(LOCATION.read(run)["images"]))
            return root if root.is_dir() else None
    return None


def with_pictures(cases: Sequence[NearestCase], root: Path | None) -> tuple[NearestCase, ...]:
    """Return the cases with their pictures, as far as these are found below a folder."""
    return tuple(cases if root is None else (replace(case, uri=_picture(root, case.image_id)) for case in cases))


def _picture(root: Path, image_id: str) -> str:
    for ending in _ENDINGS:
        path = root / f"{image_id}{ending}"
        if path.is_file() and path.resolve().is_relative_to(root.resolve()):
            try:
                return data_uri(np.asarray(thumbnail(open_image(path).pixels, _PICTURE_SIDE)), _PICTURE_SIDE)
            except DermkitError:
                return ""
    return ""


def write_nearest_cases(
    out: Path, cases_of_images: Sequence[tuple[ImageRef, Sequence[NearestCase]]], *, is_raw: bool
) -> None:
    """Write nearest_cases.csv: a row for each image and case."""
    clean = tuple if is_raw else defused
    rows = (
        clean((
            image.image_id, image.path, rank, case.image_id, case.label, case.distance,
            "yes" if case.is_nearest_of_class else "no",
        ))
        for image, cases in cases_of_images
        for rank, case in enumerate(cases, start=1)
    )  # fmt: skip
    write_rows(out / NEAREST_CASES_TABLE, _COLUMNS, rows)
