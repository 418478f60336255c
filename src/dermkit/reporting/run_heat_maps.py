"""The heat maps of a run's own mistakes and best hits, for its report: read from heat_maps/, made nowhere here."""

import base64
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermkit.files import read_regular
from dermkit.render.cells import undefused
from dermkit.runs.folder import RunFolder, read_table
from dermkit.runs.layout import HEAT_MAPS, HEAT_MAPS_FOLDER, HEAT_MAPS_TABLE
from dermkit.runs.predictions import ScoredImage

_MAX_PICTURE_BYTES = 200_000
"""A picture is some 8 kB: a larger file is none of ours, and would fill the report."""

_COLUMNS = (
    "image_id", "path", "kind", "is_malignant_missed", "label", "predicted", "p_predicted", "p_label", "picture",
    "overlay", "note",
)  # fmt: skip


@dataclass(frozen=True)
class HeatMapItem(ScoredImage):
    """An image with its map. The URIs are "" where there is no map; `note` says why."""

    is_missed: bool
    picture_uri: str
    overlay_uri: str
    note: str


@dataclass(frozen=True)
class RunHeatMaps:
    """reason: why there are no maps, "" where there are. colours: stops of the colour bar, as CSS.

    sentences: what a reader of the maps has to know. check: what their comparison with random weights gave, "" where
    it was not made; check_fails: the maps do not depend on what was learned.
    """

    reason: str
    mistakes: tuple[HeatMapItem, ...] = ()
    hits: tuple[HeatMapItem, ...] = ()
    sentences: tuple[str, ...] = ()
    colours: str = ""
    check: str = ""
    check_fails: bool = False

    @property
    def mistake_ids(self) -> frozenset[str]:
        """The ids of the mistakes that are shown with a map, so that they are not shown twice."""
        return frozenset(item.image_id for item in self.mistakes)


def read_heat_maps(run: RunFolder) -> RunHeatMaps | None:
    """Return a run's heat maps; None where none were made, their table is gone, or they are of another split.

    Raises `DataError` for a broken file.
    """
    folder = run.path / HEAT_MAPS_FOLDER
    content = HEAT_MAPS.read_optional(folder)
    if content.get("split") != run.headline_split:
        return None
    if content["reason"]:
        return RunHeatMaps(reason=str(content["reason"]))
    if not (folder / HEAT_MAPS_TABLE).is_file():
        return None
    table = read_table(folder / HEAT_MAPS_TABLE, *_COLUMNS).map(undefused)
    rows = [(row["kind"], _item(folder, row)) for row in table.to_dict("records")]
    check = content["random_nets"] or {}
    return RunHeatMaps(
        reason="",
        mistakes=tuple(item for kind, item in rows if kind == "mistake"),
        hits=tuple(item for kind, item in rows if kind == "hit"),
        sentences=tuple(str(text) for text in content["sentences"]),
        colours=_css_colours(str(content["colours"])),
        check=str(check.get("text", "")),
        check_fails=bool(check.get("fails")),
    )


def _item(folder: Path, row: Mapping[Hashable, Any]) -> HeatMapItem:
    return HeatMapItem(
        row["image_id"], row["path"], row["label"], row["predicted"], float(row["p_predicted"]),
        float(row["p_label"]), row["is_malignant_missed"] == "1", _uri(folder, row["picture"]),
        _uri(folder, row["overlay"]), row["note"],
    )  # fmt: skip


def _uri(folder: Path, name: str) -> str:
    """Return a JPEG file of the folder as a data URI, "" where it is not there."""
    if not name or Path(name).name != name:
        return ""
    try:
        data = read_regular(folder / name, max_bytes=_MAX_PICTURE_BYTES)
    except OSError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def _css_colours(text: str) -> str:
    """Return the stops of a gradient, "" for a text that is none: it goes into the page's style."""
    return text if re.fullmatch(r"#[0-9a-f]{6}(, #[0-9a-f]{6})*", text) else ""
