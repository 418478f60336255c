"""New images -> predictions.csv and picture sheets; what cannot be read is listed, the rest is scored."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermkit import pictures
from dermkit.errors import DataError, Refusal, UsageError
from dermkit.files import check_output, check_writable, write_json, write_rows
from dermkit.predictions import write_predictions
from dermkit.watch import Watch

if TYPE_CHECKING:
    from dermkit.predictor import Predictor, Scored

FORMAT = 1
_PER_SHEET = 48
_SHEETS = 5
"""Pictures for the first 240 images; every image is in predictions.csv."""
_SIDE = 160
_NOT_PICTURES = frozenset(
    (".csv", ".tsv", ".json", ".txt", ".md", ".html", ".xml", ".yaml", ".yml", ".ini", ".db", ".py")
)
"""What lies beside photographs in a folder and is left alone; all else is opened, and listed where it is no image."""


@dataclass
class PredictOutcome:
    """What became of the images. refused: (name, reason, detail). seen: images that the model's training looked at."""

    out: Path
    scored: int = 0
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    tiles: list[pictures.Tile] = field(default_factory=list)


def find_images(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """Expand files, folders (searched through) and patterns into (relative name, path), in order, each path once.

    A name never holds a parent folder of the argument; a folder that a pattern matches is searched through, as where
    the shell expands the pattern. Raises `UsageError` for an argument that matches nothing.
    """
    found: dict[Path, tuple[str, Path]] = {}
    for argument in arguments:
        if Path(argument).exists() or not glob.has_magic(argument):
            pairs = _below(Path(argument))
        else:
            pairs = [pair for item in _matches(argument) for pair in _below(Path(item))]
        if not pairs:
            raise UsageError(
                f"{argument}: no images there",
                kept="nothing was predicted",
                remedy="name image files, a folder that holds some, or a pattern in quotes",
            )
        for name, item in pairs:
            found.setdefault(item.absolute(), (name, item))
    return _unique(list(found.values()))


def _below(path: Path) -> list[tuple[str, Path]]:
    if not path.is_dir():
        return [(path.name, path)]
    files = [item for item in sorted(path.rglob("*")) if _is_candidate(item, path)]
    return [(item.relative_to(path).as_posix(), item) for item in files]


def _matches(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern


def _is_candidate(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() not in _NOT_PICTURES and not hidden and path.is_file()


def _unique(pairs: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Number repeated names (`x.jpg`, `x.jpg#2`): two folders may hold one name each."""
    counts: dict[str, int] = {}
    result = []
    for name, path in pairs:
        counts[name] = counts.get(name, 0) + 1
        result.append((name if counts[name] == 1 else f"{name}#{counts[name]}", path))
    return result


def predict(
    model: Path, images: Sequence[str], *, out: Path, batch_size: int = 32, watch: Watch | None = None
) -> PredictOutcome:
    """Score images with a model folder; writes predictions.csv, refused.csv, predict.json and sheet-*.png.

    Raises `UntrustedError` for the model, `DataError` when no image could be read. Images refused while others
    were scored are in the outcome.
    """
    from dermkit.predictor import load_model, read_seen

    watch = watch or Watch()
    pairs = find_images(images)
    check_output(out, marker="predict.json", what="a folder of predictions")
    predictor = load_model(model)
    check_writable(out)
    for sheet in out.glob("sheet-*.png"):  # of an earlier prediction: there may be fewer now
        sheet.unlink()
    outcome = PredictOutcome(out)
    seen = read_seen(predictor.folder)
    rows = _rows(predictor, pairs, batch_size, outcome, seen, watch)
    write_predictions(out / "predictions.csv", predictor.class_names, rows)
    write_rows(out / "refused.csv", ("path", "reason", "detail"), outcome.refused)
    _write_facts(outcome, predictor, _write_sheets(outcome))
    if not outcome.scored:
        absent = all(reason == Refusal.MISSING for _, reason, _ in outcome.refused)
        raise DataError(
            f"none of {len(pairs)} images could be read; first: {': '.join(outcome.refused[0])}",
            kept=f"{out / 'refused.csv'} lists each with its reason",
            remedy="check the path" if absent else "give JPEG, PNG, WebP, BMP or TIFF photographs",
        )
    return outcome


def _rows(
    predictor: "Predictor",
    pairs: Sequence[tuple[str, Path]],
    batch_size: int,
    outcome: PredictOutcome,
    seen: dict[str, str],
    watch: Watch,
) -> Iterator[tuple[object, ...]]:
    names = predictor.class_names
    ids = _image_ids([name for name, _ in pairs])
    for number, item in enumerate(predictor.score_files(pairs, batch_size=batch_size), start=1):
        watch.step("scoring", number, len(pairs))
        if item.refusal is not None or item.probabilities is None:
            refusal = item.refusal
            outcome.refused.append(
                (item.name, refusal.reason.value if refusal else "", refusal.detail if refusal else "")
            )
            continue
        outcome.scored += 1
        outcome.notes += [(item.name, note) for note in item.notes]
        if item.pixel_sha256 in seen:
            outcome.seen.append((item.name, seen[item.pixel_sha256]))
        if len(outcome.tiles) < _PER_SHEET * _SHEETS:
            outcome.tiles.append(_tile(item, predictor, item.probabilities))
        label = names[int(item.probabilities.argmax())]
        yield (
            ids[number - 1],
            pairs[number - 1][1].as_posix(),
            "",
            "",
            "",
            "",
            label,
            *map(float, item.probabilities),
        )


def _image_ids(names: Sequence[str]) -> list[str]:
    """Return names without their ending, as in a manifest; both keep it where they would collide."""
    bare = [str(PurePosixPath(name).with_suffix("")) for name in names]
    return [short if bare.count(short) == 1 else name for name, short in zip(names, bare, strict=True)]


def _tile(item: "Scored", predictor: "Predictor", probabilities: NDArray[np.float64]) -> pictures.Tile:
    order = probabilities.argsort()[::-1][:2]
    lines = [f"{predictor.classes[k].name} {probabilities[k]:.2f}" for k in order]
    colours = {"malignant": "#b3261e", "benign": "#2b6a4d", "indeterminate": "#8a6100"}
    pixels = item.thumbnail if item.thumbnail is not None else np.zeros((8, 8, 3), np.uint8)
    return pictures.Tile(pixels, "\n".join([PurePosixPath(item.name).name, *lines]),
                         colours[predictor.classes[int(order[0])].malignancy])  # fmt: skip


def _write_sheets(outcome: PredictOutcome) -> list[str]:
    names = []
    for start in range(0, len(outcome.tiles), _PER_SHEET):
        name = f"sheet-{start // _PER_SHEET + 1}.png"
        part = outcome.tiles[start : start + _PER_SHEET]
        title = f"Predictions, images {start + 1} to {start + len(part)}. Research use only. Not a medical device."
        pictures.save_png(pictures.contact_sheet(part, columns=6, side=_SIDE, title=title), outcome.out / name)
        names.append(name)
    return names


def _write_facts(outcome: PredictOutcome, predictor: "Predictor", sheets: Sequence[str]) -> None:
    write_json(
        outcome.out / "predict.json",
        {
            "model_sha256": predictor.sha256,
            "recipe": predictor.card["recipe"].get("name"),
            "classes": list(predictor.class_names),
            "scored": outcome.scored,
            "refused": len(outcome.refused),
            "notes": [{"image": name, "note": note} for name, note in outcome.notes],
            "seen_in_training": [{"image": name, "split": side} for name, side in outcome.seen],
            "sheets": list(sheets),
            "notice": "Research use only. Not a medical device.",
        },
        format=FORMAT,
    )
