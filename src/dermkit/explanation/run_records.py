"""What is saved of a run's heat maps: heat_maps.json, heat_maps.csv and small pictures. Without torch."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermkit.explanation.overlay import colour_stops
from dermkit.explanation.random_net_check import RandomNetCheck
from dermkit.explanation.run_images import RunImage
from dermkit.files import make_folder, write_bytes, write_rows
from dermkit.images.lesion_masks import LesionShare
from dermkit.render.cells import defused
from dermkit.runs.layout import HEAT_MAPS, HEAT_MAPS_TABLE

_COLUMNS = (
    "image_id", "path", "kind", "is_malignant_missed", "label", "predicted", "p_predicted", "p_label", "method",
    "layer", "mask_inside", "mask_area", "picture", "overlay", "map", "note",
)  # fmt: skip
_NOTICE = "Research use only. Not a medical device."


@dataclass(frozen=True, eq=False)
class MapPictures:
    """picture, overlay: JPEG files of the image, alone and under its map. heat_map: (h, w) float32 in [0, 1], NaN where
    no net saw the image.
    """

    picture: bytes
    overlay: bytes
    heat_map: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RunImageMap:
    """An image with its map. pictures: None where there is no map. share: None without a mask. note: what is amiss."""

    image: RunImage
    method: str = ""
    layer: str = ""
    pictures: MapPictures | None = None
    share: LesionShare | None = None
    note: str = ""

    @property
    def notes(self) -> list[str]:
        """Return what a reader of this map has to know."""
        notes = [self.note] if self.note else []
        if self.share is not None and self.share.sentence:
            notes.append(self.share.sentence)
        if self.pictures is None:
            return notes
        heat_map = self.pictures.heat_map
        if not np.nanmax(heat_map) > 0:
            notes.append(f"Nothing in the image speaks for {self.image.predicted}: the map is empty.")
        visible_fraction = float((~np.isnan(heat_map)).mean())
        if visible_fraction < 0.995:
            notes.append(f"The net saw {100 * visible_fraction:.0f} % of the image; the hatched rest was cut off.")
        return notes


@dataclass(frozen=True)
class MapFacts:
    """What holds for all maps of a run. is_pooled: every image has the map of the one net that scored it.

    n_nets: nets of a map. reasons: why nets have no gradient-based map. has_metadata: whether the nets got the metadata
    of the images, as for the answers. n_unverified: images of which the run does not say what pixels were scored.
    check: against random weights, None = not made.
    """

    is_pooled: bool
    methods: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    metadata_fields: tuple[str, ...] = ()
    has_metadata: bool = False
    has_views: bool = False
    n_nets: int = 1
    n_unverified: int = 0
    check: RandomNetCheck | None = None

    def with_model(
        self, *, methods: Sequence[str], layers: Sequence[str], reasons: Sequence[str],
        metadata_fields: Sequence[str], has_views: bool,
    ) -> "MapFacts":  # fmt: skip
        """Return the facts with those of a further model; methods, layers: of each of its nets."""
        return replace(
            self,
            methods=tuple(dict.fromkeys((*self.methods, *methods))),
            layers=tuple(dict.fromkeys((*self.layers, *(layer for layer in layers if layer)))),
            reasons=tuple(dict.fromkeys((*self.reasons, *reasons))),
            metadata_fields=tuple(dict.fromkeys((*self.metadata_fields, *metadata_fields))),
            has_views=self.has_views or has_views,
            n_nets=max(self.n_nets, len(methods)),
        )

    def with_check(self, check: RandomNetCheck | None) -> "MapFacts":
        """Return the facts with the check of all maps."""
        return replace(self, check=check)

    def sentences(self) -> Iterator[str]:
        """Yield what a reader of the maps has to know, for people."""
        layers = f" at layer {', '.join(self.layers)}" if self.layers else ""
        yield f"Method: {', '.join(self.methods)}{layers}."
        for reason in self.reasons:
            yield f"Occlusion with windows of a quarter of the side, which needs no gradient: {reason}."
        if self.is_pooled and self.n_nets == 1:
            yield "Each map is of the one net that scored the image."
        elif self.n_nets > 1:
            yield f"Each map is the mean over the model's {self.n_nets} nets."
        if self.metadata_fields:
            yield f"The model takes {', '.join(self.metadata_fields)} beside the image; {self._metadata_text()}"
        if self.has_views:
            yield "The model averages several views of an image; the maps are of the unturned one."
        if self.n_unverified:
            yield (
                f"Whether {self.n_unverified} image{'s' * (self.n_unverified != 1)} shown here changed since the "
                "answers is not known: this run does not hold what their pixels were."
            )

    def _metadata_text(self) -> str:
        if self.has_metadata:
            return "each map is of the image with its own, as its answer is."
        return (
            "the answers had these and the maps are with them unknown, since this run does not hold them. A map may "
            "differ from what led to its answer."
        )


def write_maps(out: Path, images: Sequence[RunImageMap], facts: MapFacts, *, split: str, key: str) -> None:
    """Write pictures, heat_maps.csv and heat_maps.json, the last, and remove what an earlier evaluation left.

    split, key: of the answers that the maps are of. Raises `OutputError`.
    """
    _begin(out)
    stems = _stems(images)
    names = {HEAT_MAPS.name, HEAT_MAPS_TABLE}
    for one, stem in zip(images, stems, strict=True):
        names |= _write_pictures(out, one, stem)
    write_rows(
        out / HEAT_MAPS_TABLE, _COLUMNS,
        (defused(_row(one, stem)) for one, stem in zip(images, stems, strict=True)),
    )  # fmt: skip
    _remove_earlier_files(out, names)
    check = facts.check
    HEAT_MAPS.write(out, {
        "is_complete": all(one.pictures is not None for one in images),
        "split": split,
        "key": key,
        "reason": "",
        "methods": list(facts.methods),
        "layers": list(facts.layers),
        "why_no_gradient": list(facts.reasons),
        "unknown_metadata": [] if facts.has_metadata else list(facts.metadata_fields),
        "random_nets": None if check is None else {**asdict(check), "fails": check.fails, "text": check.sentence},
        "sentences": list(facts.sentences()),
        "colours": colour_stops(),
        "notice": _NOTICE,
    })  # fmt: skip


def write_no_maps(out: Path, reason: str, *, split: str, key: str) -> None:
    """Write why a run has no heat maps, and remove those that it had; raises `OutputError`."""
    _begin(out)
    _remove_earlier_files(out, {HEAT_MAPS.name})
    HEAT_MAPS.write(out, {"is_complete": False, "split": split, "key": key, "reason": reason, "notice": _NOTICE})


def remove_maps(out: Path) -> None:
    """Remove a run's heat maps, and their folder unless it holds other things."""
    if not HEAT_MAPS.exists(out):
        return
    _begin(out)
    _remove_earlier_files(out, set())
    if not any(out.iterdir()):
        out.rmdir()


def _begin(out: Path) -> None:
    """Mark the folder as unfinished, whatever happens until its heat_maps.json is written again."""
    HEAT_MAPS.write(make_folder(out), {"is_complete": False, "split": "", "key": "", "notice": _NOTICE})


def _remove_earlier_files(out: Path, names: set[str]) -> None:
    """Remove our files of an earlier evaluation; what else lies in the folder is not ours."""
    patterns = [HEAT_MAPS.name, HEAT_MAPS_TABLE, "mistake-*.jpg", "mistake-*.png", "hit-*.jpg", "hit-*.png"]
    for path in [path for pattern in patterns for path in out.glob(pattern)]:
        if path.name not in names:
            path.unlink()


def _stems(images: Sequence[RunImageMap]) -> list[str]:
    """Return a file name without ending for each image: no name of an image, which may be a patient's, is in it."""
    counts = {"mistake": 0, "hit": 0}
    stems = []
    for one in images:
        kind = _kind(one)
        counts[kind] += 1
        stems.append(f"{kind}-{counts[kind]}")
    return stems


def _kind(one: RunImageMap) -> str:
    return "mistake" if one.image.is_mistake else "hit"


def _write_pictures(out: Path, one: RunImageMap, stem: str) -> set[str]:
    """Write the pictures of one image; returns their names."""
    if one.pictures is None:
        return set()
    files = {
        f"{stem}.jpg": one.pictures.picture,
        f"{stem}-overlay.jpg": one.pictures.overlay,
        f"{stem}-map.png": map_png(one.pictures.heat_map),
    }
    for name, data in files.items():
        write_bytes(out / name, data)
    return set(files)


def map_png(heat_map: NDArray[np.float32]) -> bytes:
    """Return a map as a grey PNG: 0 no evidence, 255 the most in this image, transparent where no net saw it."""
    is_seen = ~np.isnan(heat_map)
    grey = np.where(is_seen, np.nan_to_num(heat_map) * 255, 0).round().astype(np.uint8)
    alpha = np.where(is_seen, 255, 0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([grey, alpha])).save(buffer, "PNG")
    return buffer.getvalue()


def _row(one: RunImageMap, stem: str) -> list[Any]:
    image, share = one.image, one.share
    inside = None if share is None else share.inside
    names = ("", "", "") if one.pictures is None else (f"{stem}.jpg", f"{stem}-overlay.jpg", f"{stem}-map.png")
    return [
        image.image_id, image.path, _kind(one), int(image.is_missed), image.label, image.predicted,
        image.p_predicted, image.p_label, one.method, one.layer, "" if inside is None else inside,
        "" if share is None else share.area, *names, " ".join(one.notes),
    ]  # fmt: skip
