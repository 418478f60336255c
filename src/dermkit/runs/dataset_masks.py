"""The lesion masks of a run: those of the data set that it was trained on, while that is still the same one."""

from pathlib import Path

from dermkit.data.masks import masks_of_dataset
from dermkit.files import sha256_file
from dermkit.images.lesion_masks import LesionMasks
from dermkit.progress import Progress
from dermkit.runs.layout import LOCATION, RUN


def masks_of_run(folder: Path, progress: Progress | None = None) -> LesionMasks | None:
    """Return the usable masks of the data set that a run was trained on; None where that is not there or has none.

    A folder may hold another data set by now, whose images have the same names: where its manifest is not the run's,
    there are none either, which `progress` says. Raises `DataError` as `masks_of_dataset`.
    """
    dataset = str(LOCATION.read_optional(folder).get("dataset", ""))
    masks = masks_of_dataset(Path(dataset)) if dataset else None
    if masks is None or _is_same(folder, Path(dataset)):
        return masks
    if progress is not None:
        progress.say(
            f"warning: the lesion masks of {dataset} are not used: its manifest.csv is not the one that {folder} was "
            "trained with; name a folder of masks with --masks"
        )
    return None


def _is_same(run: Path, dataset: Path) -> bool:
    """Tell whether a data set's folder holds the manifest that a run was trained with."""
    facts, manifest = RUN.read_optional(run).get("dataset"), dataset / "manifest.csv"
    expected = facts.get("manifest_sha256") if isinstance(facts, dict) else None
    return manifest.is_file() and sha256_file(manifest) == expected
