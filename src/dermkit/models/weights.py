"""Pretrained weights of a backbone, verified: from the Hugging Face hub, from a file with a JSON beside it, or none."""

import contextlib
import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dermkit.errors import UntrustedError, UsageError
from dermkit.files import MAX_READ_BYTES, read_json, read_regular, sha256_bytes, sha256_file
from dermkit.models import cnn
from dermkit.models.backbones import WEIGHTS_CARD_FORMAT, check_backbone_name
from dermkit.models.hub import HubNet, is_local_copy, resolve_hub_net
from dermkit.models.hub_files import HUB_SECONDS, WEIGHTS_FILE_NAME, muted_logger
from dermkit.models.hub_names import is_hub_name
from dermkit.recipes.schema import ModelSpec

_Rgb = tuple[float, float, float]

_ARGS_OF_INPUT = frozenset({"dynamic_img_size"})
"""Arguments of a net that let it take images of other sizes and leave all its tensors as they are."""

_operator_declarations: list[torch.library.Library] = []


@dataclass(frozen=True)
class BackboneWeights:
    """A backbone's weights before they are loaded.

    sha256: of the file ("" for `none`). mean, std: the normalisation of pixels in 0..1 (RGB) that the weights were
    trained with. missing: tensors that the file may lack. note: what a person should know about them. net: what a
    repository of the hub says of its net; None = what timm knows by the backbone's name.
    """

    origin: Literal["hub", "file", "none"]
    path: Path | None
    sha256: str
    mean: _Rgb
    std: _Rgb
    licence: str
    missing: tuple[str, ...]
    note: str
    net: HubNet | None = None

    def model_spec(self, spec: ModelSpec) -> ModelSpec:
        """Return the spec with timm's name and all arguments of the net in place of its name on the hub."""
        if self.net is None:
            return spec
        return replace(
            spec, backbone=self.net.architecture, backbone_args={**self.net.arguments, **spec.backbone_args}
        )


def import_timm() -> Any:
    """Import timm, also where torchvision was built for CUDA and torch is CPU-only; returns the module.

    That pair fails at `import torchvision`, which registers shape functions for compiled operators (nms, qnms)
    that its binary could not load. dermkit uses none of these operators, so a declaration without code is enough.
    A sound installation never gets here and is not touched.
    """
    for _ in range(12):
        try:
            import timm
        except RuntimeError as error:
            name = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if name is None:
                raise
            _declare_operator(name[1])
        else:
            return timm
    raise UsageError(
        "torchvision cannot be imported: too many of its compiled operators are missing",
        remedy="install torch and torchvision from the same index, see PyTorch's installation page",
    )


def _declare_operator(name: str) -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _operator_declarations.append(library)  # the declaration lives as long as this object
    for module in [key for key in sys.modules if key.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[module]  # partly imported; remove so that the next import is clean


def check_backbone(name: str) -> None:
    """Raise `UsageError` with the closest name unless `name` is one of our nets or timm's."""
    if name in cnn.CNN_BUILDERS:
        return
    timm = import_timm()
    available = timm.list_models() + timm.list_pretrained() if "." in name else timm.list_models()
    if name in available:
        return
    close_matches = difflib.get_close_matches(name, [*available, *cnn.CNN_BUILDERS], n=1, cutoff=0.5)
    raise UsageError(
        f"{name}: no such backbone" + (f"; did you mean `{close_matches[0]}`?" if close_matches else ""),
        remedy="name a timm model, `dermkit/cnn-s1` or `dermkit/cnn-s4` in the recipe's model.backbone",
    )


def resolve_weights(spec: ModelSpec, file: Path | None) -> BackboneWeights:
    """Return the weights that a recipe names; refuse a file whose hash or description does not fit.

    file: a safetensors file with its JSON or a repository's config.json beside it, or a folder that holds
    model.safetensors, instead of the hub. Raises `UsageError` for an unknown backbone or a file that the recipe has no
    use for, `UntrustedError` for weights that are not there, changed, or of another net.
    """
    if is_hub_name(spec.backbone):
        check_backbone_name(spec)
        return _resolve_hub_net(spec, file)
    check_backbone(spec.backbone)
    file = file / WEIGHTS_FILE_NAME if file is not None and file.is_dir() else file
    if spec.weights == "none":
        if file is not None:
            raise UsageError(
                f"{file}: weights are given, but the recipe trains from scratch",
                outcome="nothing was trained",
                remedy='leave --weights out, or use a recipe with model.weights = "imagenet"',
            )
        mean, std = _default_normalisation(spec.backbone)
        return BackboneWeights("none", None, "", mean, std, "", (), "trained from scratch")
    if file is None:
        return _resolve_hub(spec)
    return _resolve_hub_net(spec, file) if is_local_copy(file) else _resolve_file(spec, file)


def _resolve_hub_net(spec: ModelSpec, file: Path | None) -> BackboneWeights:
    """Return the weights of a repository on the hub, or of a local copy; refuse one of another net than the spec's."""
    net = resolve_hub_net(spec.backbone, file)
    named = spec.backbone.partition(".")[0]
    if net.name is None and named != net.architecture:
        raise UntrustedError(
            f"{net.file}: is of {net.architecture}, as its config.json says, and the recipe asks for {spec.backbone}",
            outcome="nothing was trained",
            remedy=f"use the weights of the recipe's net, or --backbone {net.architecture}",
        )
    origin: Literal["hub", "file"] = "hub" if file is None else "file"
    sha256 = sha256_file(net.file)
    return BackboneWeights(origin, net.file, sha256, net.mean, net.std, net.licence, (), net.note(), net)


def _default_normalisation(backbone: str) -> tuple[_Rgb, _Rgb]:
    """Return mean and standard deviation of pixels in timm's table of a backbone; 0.5 where there is none."""
    config = None if backbone in cnn.CNN_BUILDERS else import_timm().get_pretrained_cfg(backbone)
    if config is None:
        return cnn.MEAN, cnn.STD
    return _rgb(config.mean), _rgb(config.std)


def _rgb(values: Any) -> _Rgb:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _resolve_file(spec: ModelSpec, file: Path) -> BackboneWeights:
    card_path = Path(f"{file}.json")
    if not file.is_file():
        raise _untrusted_error(file, "there is no such weights file")
    if not card_path.is_file():
        raise _untrusted_error(
            file, f"has no {card_path.name} beside it, so nothing says which net and scaling it is for"
        )
    card_fields = read_json(card_path, format=WEIGHTS_CARD_FORMAT, error=UntrustedError)
    _check_card(card_path, card_fields)
    sha256 = sha256_file(file)
    if sha256 != card_fields["sha256"]:
        raise _untrusted_error(file, f"sha256 is {sha256}, but {card_path.name} says {card_fields['sha256']}")
    _check_architecture(card_path, card_fields, spec)
    missing_names = tuple(card_fields.get("missing", ()))
    return BackboneWeights(
        "file",
        file,
        sha256,
        _rgb(card_fields["mean"]),
        _rgb(card_fields["std"]),
        card_fields["licence"],
        missing_names,
        _file_note(card_fields, missing_names, spec.skip_blocks),
    )


def _untrusted_error(file: Path, problem: str) -> UntrustedError:
    return UntrustedError(
        f"{file}: {problem}",
        outcome="nothing was trained",
        remedy="get the weights and their JSON again from where they were made, and pass both unchanged",
    )


def _check_card(card_path: Path, card_fields: dict[str, Any]) -> None:
    """Refuse a JSON in which a field is missing or of the wrong type."""
    types = {"model": str, "model_args": dict, "licence": str, "sha256": str}
    bad_fields = [
        name for name, expected_type in types.items() if not isinstance(card_fields.get(name), expected_type)
    ]
    # A deviation near 0 would blow the pixels up; 1e-3 is far below any real one (ImageNet's are about 0.23).
    for name, minimum in (("mean", 0.0), ("std", 1e-3)):
        values = card_fields.get(name)
        if not isinstance(values, list) or not (
            len(values) == 3 and all(isinstance(value, int | float) and minimum <= value <= 1 for value in values)
        ):
            bad_fields.append(name)
    missing_names = card_fields.get("missing", [])
    if not isinstance(missing_names, list) or not all(isinstance(name, str) for name in missing_names):
        bad_fields.append("missing")
    if bad_fields:
        raise _untrusted_error(card_path, f"these fields are absent or malformed: {', '.join(bad_fields)}")


def _check_architecture(card_path: Path, card_fields: dict[str, Any], spec: ModelSpec) -> None:
    """Refuse a file of another backbone or other arguments: weights of the same shapes would load silently."""
    model_args = dict(card_fields["model_args"])
    if model_args.pop("num_classes", 0) != 0:
        raise _untrusted_error(card_path, "describes a net with a classifier (num_classes is not 0)")
    recipe_args = {name: value for name, value in spec.backbone_args.items() if name not in _ARGS_OF_INPUT}
    model_args = {name: value for name, value in model_args.items() if name not in _ARGS_OF_INPUT}
    if (card_fields["model"], model_args) != (spec.backbone, recipe_args):
        raise UntrustedError(
            f"{card_path}: is for {card_fields['model']} with {model_args}, "
            f"the recipe asks for {spec.backbone} with {spec.backbone_args}",
            outcome="nothing was trained",
            remedy="use the weights of the recipe's net, or set model.backbone and model.backbone_args to the file's",
        )


def _file_note(card_fields: dict[str, Any], missing_names: tuple[str, ...], skip_blocks: tuple[str, ...]) -> str:
    random_names = [name for name in missing_names if not is_in_blocks(name, skip_blocks)]
    origin = [f"origin: {card_fields['origin']}"] if card_fields.get("origin") else []
    return "; ".join(
        origin + ([f"absent, so initialised from scratch: {', '.join(random_names)}"] if random_names else [])
    )


def is_in_blocks(tensor: str, blocks: tuple[str, ...]) -> bool:
    """Return whether a tensor belongs to one of the named modules."""
    return any(tensor.startswith(block + ".") for block in blocks)


def _resolve_hub(spec: ModelSpec) -> BackboneWeights:
    config = None if spec.backbone in cnn.CNN_BUILDERS else import_timm().get_pretrained_cfg(spec.backbone)
    if config is None or not config.hf_hub_id:
        raise UsageError(
            f"{spec.backbone}: no hub has weights for it",
            remedy='use a recipe with model.weights = "none", another backbone, or --weights FILE with its JSON',
        )
    file_name = config.hf_hub_filename or "model.safetensors"
    if not file_name.endswith(".safetensors"):  # other kinds are pickles: reading one runs code of whoever made it
        raise _no_hub_weights_error(
            spec, "the hub has no safetensors file for it, and dermkit opens no other kind"
        )
    path = _fetch_from_hub(spec, config.hf_hub_id, file_name)
    licence = config.license or "unstated"
    note = f"from the hub: {config.hf_hub_id}"
    return BackboneWeights(
        "hub", path, sha256_file(path), _rgb(config.mean), _rgb(config.std), licence, (), note
    )  # fmt: skip


def _fetch_from_hub(spec: ModelSpec, repository: str, file_name: str) -> Path:
    """Return the hub's file from the local cache, or fetch it; fails within seconds where there is no network.

    No token is sent: the weights are public.
    """
    import huggingface_hub as hub

    with contextlib.suppress(FileNotFoundError):
        return Path(hub.hf_hub_download(repository, file_name, local_files_only=True))
    try:
        with muted_logger("huggingface_hub"):
            # One request without retries first, because the download itself retries for long.
            hub.get_hf_file_metadata(hub.hf_hub_url(repository, file_name), token=False, timeout=HUB_SECONDS)
            return Path(hub.hf_hub_download(repository, file_name, token=False))
    except Exception as error:  # the HTTP library and its exceptions depend on the hub client's version
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise _no_hub_weights_error(
            spec, f"the hub did not give them ({type(error).__name__}: {reason})"
        ) from error


def _no_hub_weights_error(spec: ModelSpec, reason: str) -> UntrustedError:
    from dermkit.models.requirements import scratch_recipe  # all named recipes, for this message alone

    return UntrustedError(
        f"{spec.backbone}: its ImageNet weights are not here: {reason}",
        outcome="nothing was trained",
        remedy=(
            "one of three: connect to the network once, and they are fetched and kept; "
            "pass --weights FILE.safetensors with FILE.safetensors.json beside it; "
            f"or train from scratch, which needs none: `dermkit train {scratch_recipe('', spec.backbone)} DATASET`, or "
            "this recipe with --set model.weights=none"
        ),
    )


def check_weights_unchanged(weights: BackboneWeights) -> None:
    """Raise `UntrustedError` if the file's bytes are no longer those that `resolve_weights` saw."""
    if weights.path is not None and sha256_file(weights.path) != weights.sha256:
        raise _untrusted_error(weights.path, "changed while dermkit was starting")


def read_tensors(weights: BackboneWeights) -> dict[str, Tensor]:
    """Return tensor name -> tensor of a weights file, in the file's types.

    Raises `UntrustedError` where the file cannot be read or is not the one that `resolve_weights` saw.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = weights.path
    if path is None:
        return {}
    try:
        data = read_regular(path, max_bytes=MAX_READ_BYTES)
        if sha256_bytes(data) != weights.sha256:
            raise _untrusted_error(path, "changed while dermkit was starting")
        return dict(load(data))
    except (OSError, SafetensorError) as error:
        raise _untrusted_error(path, f"is not a readable safetensors file: {error}") from error


def tensors_of_backbone(
    backbone: nn.Module, tensors: Mapping[str, Tensor], classifiers: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return a repository's tensors as its backbone has them: renamed by timm where need be, without a classifier.

    Files that timm wrote hold a net's own tensors. Those of other code, or for images of another size, are converted by
    the function that timm has for the kind of net. Whether all fits is for the caller to check.
    """
    expected = backbone.state_dict()
    fitting = _without_classifiers(tensors, expected, classifiers)
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None or {name: value.shape for name, value in fitting.items()} == {
        name: value.shape for name, value in expected.items()
    }:
        return fitting
    try:
        return _without_classifiers(convert(dict(tensors), backbone), expected, classifiers)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return fitting  # whoever loads them says what does not fit


def _without_classifiers(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], classifiers: tuple[str, ...]
) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in tensors.items()
        if name in expected or not any(name.startswith(f"{classifier}.") for classifier in classifiers)
    }
