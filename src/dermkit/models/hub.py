"""Nets of the Hugging Face hub that timm can build: found once, pinned to a revision, described by their config.json.

A repository's files are other people's input: of config.json only known fields are read, each of its type and range,
and weights are opened as safetensors alone.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dermkit.errors import UntrustedError
from dermkit.files import read_regular
from dermkit.models.backbone_args import MAX_ARGUMENT, reserved_arguments
from dermkit.models.backbones import OWN_PREFIX, backbone_names
from dermkit.models.hub_files import CONFIG_FILE, HubFiles, fetch_hub_files, local_files
from dermkit.models.hub_names import HubName, is_hub_name, parse_hub_name
from dermkit.recipes.schema import Recipe

_Rgb = tuple[float, float, float]
Argument = bool | int | float | str

_MAX_CONFIG_BYTES = 2**20
_MAX_TEXT = 100
_SIDES = range(16, 2049)
_ARGUMENT_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DROP_RATES = ("drop_rate", "drop_path_rate", "drop_block_rate")


@dataclass(frozen=True)
class HubNet:
    """A net of the hub. name: with its revision; None for a folder that no repository is named for.

    architecture, arguments: timm's name of the net and what it is built with. mean, std: of pixels in 0..1 (RGB).
    input_size: pixels a side of the images that it was made for; interpolation and crop (fraction of the image's
    side) are how these were made, "" and 0 where it is not said. classifiers: modules that a backbone does without.
    """

    name: HubName | None
    file: Path
    architecture: str
    arguments: Mapping[str, Argument]
    mean: _Rgb
    std: _Rgb
    input_size: int
    interpolation: str
    crop: float
    classifiers: tuple[str, ...]
    licence: str

    def note(self) -> str:
        """Return what a person should know of it: where it is from, what it is, how its images were made."""
        origin = f"a local copy, {CONFIG_FILE} and weights"
        if self.name and self.name.revision:
            origin = f"from the hub: {self.name.repository}, revision {self.name.revision}"
        elif self.name:
            origin = f"{origin}, said to be {self.name.repository}"
        arguments = f" with {dict(self.arguments)}" if self.arguments else ""
        images = [
            f"images of {self.input_size} px",
            self.interpolation,
            f"crop {self.crop:g}" if self.crop else "",
        ]
        return (
            f"{origin}: timm's {self.architecture}{arguments}, made for {', '.join(filter(None, images))}; "
            "whether its licence allows your use is for you to check"
        )


def resolve_hub_net(backbone: str, local: Path | None = None) -> HubNet:
    """Return the net that a backbone names, with the exact revision of its files.

    local: a folder that holds a copy of the repository, or the weights file in it; then the hub is not asked, and a
    name of timm is looked up there too. Raises `UsageError` for a malformed name, `UntrustedError` for files that are
    not there, or not those of a net that timm can build.
    """
    name = parse_hub_name(backbone) if is_hub_name(backbone) else None
    if local is not None or name is None:
        return _describe(name, local_files(backbone, local or Path()))
    files = fetch_hub_files(name)
    return _describe(replace(name, revision=files.revision), files)


def pin_hub_revision(recipe: Recipe, net: HubNet | None) -> Recipe:
    """Return the recipe with the exact revision of its net, also in its record of changes."""
    if net is None or net.name is None or recipe.model.backbone == str(net.name):
        return recipe
    record = recipe.derived_from
    if record is not None:
        changes = tuple(
            replace(change, after=json.dumps(str(net.name))) if change.field == "model.backbone" else change
            for change in record.changes
        )
        record = replace(record, changes=changes)
    return replace(recipe, model=replace(recipe.model, backbone=str(net.name)), derived_from=record)


# config.json -------------------------------------------------------------------------------------------------------


def _describe(name: HubName | None, files: HubFiles) -> HubNet:
    config = _read_config(files.config)
    architecture = _architecture(config, files.config)
    facts = config.get("pretrained_cfg", config)
    arguments = config.get("model_args", {})
    if not isinstance(facts, dict) or not isinstance(arguments, dict):
        raise _config_error(files.config, "pretrained_cfg or model_args is no group of fields")
    size = _input_size(facts, files.config)
    built_with = _arguments(facts, arguments, size, files.config)
    licence = facts.get("license")
    return HubNet(
        name, files.weights, architecture, built_with,
        _rgb(facts, "mean", 0.0, files.config), _rgb(facts, "std", 1e-3, files.config),
        int(built_with.get("img_size", size)),
        _text(facts.get("interpolation")), _crop(facts.get("crop_pct")), _classifiers(facts.get("classifier")),
        files.licence or _text(licence),
    )  # fmt: skip


def _config_error(path: Path, problem: str) -> UntrustedError:
    return UntrustedError(
        f"{path}: {problem}",
        outcome="nothing was trained",
        remedy="use a repository that timm wrote (timm.models.save_for_hf, push_to_hf_hub), or another backbone",
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_regular(path, max_bytes=_MAX_CONFIG_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _config_error(path, f"cannot be read: {str(error)[:200]}") from error
    if not isinstance(config, dict):
        raise _config_error(path, "is not a group of fields")
    return config


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        library = "; it is one of the library transformers" if "model_type" in config else ""
        raise _config_error(path, f"names no `architecture`, so this is no model of timm{library}")
    if architecture.startswith(OWN_PREFIX) or architecture not in backbone_names():
        raise _config_error(
            path, f"`architecture` {architecture[:_MAX_TEXT]!r} is none that the installed timm has"
        )
    return architecture


def _is_whole(value: object) -> bool:
    return type(value) is int


def _input_size(facts: Mapping[str, Any], path: Path) -> int:
    """Return the side of the square RGB images that the net was trained with."""
    size: Any = facts.get("input_size")
    is_shape = isinstance(size, list) and len(size) == 3 and all(_is_whole(number) for number in size)
    if not is_shape or size[0] != 3 or size[1] != size[2] or size[1] not in _SIDES:
        raise _config_error(
            path, f"`input_size` {str(size)[:_MAX_TEXT]} is not [3, S, S] with S from {_SIDES[0]} to {_SIDES[-1]}"
        )
    return int(size[1])


def _rgb(facts: Mapping[str, Any], field: str, minimum: float, path: Path) -> _Rgb:
    values: Any = facts.get(field)
    is_triple = isinstance(values, list) and len(values) == 3
    if not is_triple or not all(type(value) in (int, float) and minimum <= value <= 1 for value in values):
        raise _config_error(
            path, f"`{field}` {str(values)[:_MAX_TEXT]} is not three numbers from {minimum:g} to 1"
        )
    red, green, blue = map(float, values)
    return red, green, blue


def _text(value: object) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _crop(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value <= 2 else 0.0


def _classifiers(value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(name for name in names if isinstance(name, str) and name)


def _arguments(
    facts: Mapping[str, Any], model_args: Mapping[str, Any], size: int, path: Path
) -> dict[str, Argument]:
    """Return what timm builds the net with; dropout is the recipe's matter, and the classifier is left out."""
    given = {name: value for name, value in model_args.items() if value is not None and not _is_of_training(name)}
    if given.pop("in_chans", 3) != 3:
        raise _config_error(path, "its images have other channels than red, green and blue")
    given.pop("num_classes", None)
    if facts.get("fixed_input_size") is True and not given.get("dynamic_img_size"):
        given.setdefault("img_size", size)
    arguments = {name: _argument(name, value, path) for name, value in given.items()}
    if names := reserved_arguments(arguments):
        raise _config_error(path, f"`model_args` may not set {', '.join(names)}")
    return arguments


def _is_of_training(name: str) -> bool:
    return name in _DROP_RATES or name.endswith("_drop_rate")


def _argument(name: str, value: object, path: Path) -> Argument:
    if name == "img_size":
        value = value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value
        if not _is_whole(value) or value not in _SIDES:
            raise _config_error(
                path, f"`model_args` img_size is {str(value)[:_MAX_TEXT]}, no side of a square image"
            )
    is_in_range = isinstance(value, str) and len(value) <= _MAX_TEXT
    if isinstance(value, int | float):  # a bool too; not a number fails every comparison
        is_in_range = abs(value) <= MAX_ARGUMENT
    if not is_in_range or not _ARGUMENT_NAME.fullmatch(name) or not isinstance(value, bool | int | float | str):
        raise _config_error(
            path, f"`model_args` {name[:_MAX_TEXT]!r} is {str(value)[:_MAX_TEXT]}, which dermkit does not pass on"
        )
    return value


def licence_sentence(net: HubNet) -> str:
    """Return the licence of a net as its repository states it, and whose matter it is."""
    licence = f"licence {net.licence}, as it states" if net.licence else "it states no licence"
    return f"{net.name or net.file.parent}: {licence}; whether that allows your use is for you to check"


def is_local_copy(weights_file: Path) -> bool:
    """Return whether a weights file is described by a repository's config.json, having no JSON of its own."""
    return (
        weights_file.with_name(CONFIG_FILE).is_file()
        and not weights_file.with_name(f"{weights_file.name}.json").is_file()
    )
