"""Where a backbone's weights come from, and why they may be believed: a hub, a file with its JSON, or nowhere."""

import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dermkit.errors import UntrustedError, UsageError
from dermkit.files import read_json, sha256_bytes, sha256_file
from dermkit.models import cnn
from dermkit.recipes.schema import ModelSpec

FORMAT = 1
Triple = tuple[float, float, float]

HUB_TIMEOUT = 5.0
"""Seconds that the hub has to answer; its client's own retries take 23 s to notice a missing network."""

_stand_ins: list[torch.library.Library] = []


@dataclass(frozen=True)
class Weights:
    """A backbone's weights before they are loaded.

    sha256: of the file ("" for `none`). mean, std: of the pixels in 0..1 that the weights were trained with.
    missing: tensors that the file is allowed to lack. note: for people, what is unusual.
    """

    origin: Literal["hub", "file", "none"]
    path: Path | None
    sha256: str
    mean: Triple
    std: Triple
    licence: str
    missing: tuple[str, ...]
    note: str


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
    _stand_ins.append(library)  # the declaration lives as long as this object
    for module in [key for key in sys.modules if key.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[module]  # half imported: the next import must start afresh


def check_backbone(name: str) -> None:
    """Raise `UsageError` with the closest name unless `name` is one of our nets or timm's."""
    if name in cnn.NETS:
        return
    timm = import_timm()
    known = timm.list_models() + timm.list_pretrained() if "." in name else timm.list_models()
    if name in known:
        return
    close = difflib.get_close_matches(name, [*known, *cnn.NETS], n=1, cutoff=0.5)
    raise UsageError(
        f"{name}: no such backbone" + (f"; did you mean `{close[0]}`?" if close else ""),
        remedy="name a timm model, `dermkit/cnn-s1` or `dermkit/cnn-s4` in the recipe's model.backbone",
    )


def resolve_weights(spec: ModelSpec, file: Path | None) -> Weights:
    """Find the weights that a recipe asks for, and refuse those that do not prove what they are.

    file: a safetensors file with its JSON beside it, instead of the hub. Raises `UsageError` for an unknown
    backbone or a file that the recipe has no use for, `UntrustedError` for weights that are not there, changed,
    or of another net.
    """
    check_backbone(spec.backbone)
    if spec.weights == "none":
        if file is not None:
            raise UsageError(
                f"{file}: weights are given, but the recipe trains from scratch",
                kept="nothing was trained",
                remedy='leave --weights out, or use a recipe with model.weights = "imagenet"',
            )
        mean, std = default_normalisation(spec.backbone)
        return Weights("none", None, "", mean, std, "", (), "trained from scratch")
    return _from_file(spec, file) if file is not None else _from_hub(spec)


def default_normalisation(backbone: str) -> tuple[Triple, Triple]:
    """Return mean and standard deviation that timm's table states for a backbone; 0.5 where it states none."""
    config = None if backbone in cnn.NETS else import_timm().get_pretrained_cfg(backbone)
    if config is None:
        return cnn.MEAN, cnn.STD
    return _triple(config.mean), _triple(config.std)


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _from_file(spec: ModelSpec, file: Path) -> Weights:
    card = Path(f"{file}.json")
    if not file.is_file():
        raise _untrusted(file, "there is no such weights file")
    if not card.is_file():
        raise _untrusted(file, f"has no {card.name} beside it, so nothing says which net and scaling it is for")
    facts = read_json(card, format=FORMAT, error=UntrustedError)
    _check_card(card, facts)
    found = sha256_file(file)
    if found != facts["sha256"]:
        raise _untrusted(file, f"sha256 is {found}, but {card.name} says {facts['sha256']}")
    _check_same_net(card, facts, spec)
    missing = tuple(facts.get("missing", ()))
    return Weights(
        "file", file, found, _triple(facts["mean"]), _triple(facts["std"]), facts["licence"], missing,
        _file_note(facts, missing, spec.skip_blocks),
    )  # fmt: skip


def _untrusted(file: Path, problem: str) -> UntrustedError:
    return UntrustedError(
        f"{file}: {problem}",
        kept="nothing was trained",
        remedy="get the weights and their JSON again from where they were made, and pass both unchanged",
    )


def _check_card(card: Path, facts: dict[str, Any]) -> None:
    """Refuse a JSON that lacks a fact or states it in the wrong type."""
    types = {"model": str, "model_args": dict, "licence": str, "sha256": str}
    wrong = [name for name, kind in types.items() if not isinstance(facts.get(name), kind)]
    for name, least in (("mean", 0.0), ("std", 1e-3)):
        values = facts.get(name)
        if not isinstance(values, list) or not (
            len(values) == 3 and all(isinstance(value, int | float) and least <= value <= 1 for value in values)
        ):
            wrong.append(name)
    missing = facts.get("missing", [])
    if not isinstance(missing, list) or not all(isinstance(name, str) for name in missing):
        wrong.append("missing")
    if wrong:
        raise _untrusted(card, f"these fields are absent or malformed: {', '.join(wrong)}")


def _check_same_net(card: Path, facts: dict[str, Any], spec: ModelSpec) -> None:
    """Wrong padding or another net of the same shapes would load silently: names and arguments must agree."""
    arguments = dict(facts["model_args"])
    if arguments.pop("num_classes", 0) != 0:
        raise _untrusted(card, "describes a net with a classifier (num_classes is not 0)")
    if (facts["model"], arguments) != (spec.backbone, spec.backbone_args):
        raise UntrustedError(
            f"{card}: is for {facts['model']} with {arguments}, "
            f"the recipe asks for {spec.backbone} with {spec.backbone_args}",
            kept="nothing was trained",
            remedy="use the weights of the recipe's net, or set model.backbone and model.backbone_args to the file's",
        )


def _file_note(facts: dict[str, Any], missing: tuple[str, ...], skipped: tuple[str, ...]) -> str:
    fresh = [name for name in missing if not inside(name, skipped)]
    origin = [f"origin: {facts['origin']}"] if facts.get("origin") else []
    return "; ".join(origin + ([f"absent, so initialised from scratch: {', '.join(fresh)}"] if fresh else []))


def inside(tensor: str, blocks: tuple[str, ...]) -> bool:
    """Tell whether a tensor's name lies in one of the named modules."""
    return any(tensor.startswith(block + ".") for block in blocks)


def _from_hub(spec: ModelSpec) -> Weights:
    config = None if spec.backbone in cnn.NETS else import_timm().get_pretrained_cfg(spec.backbone)
    if config is None or not config.hf_hub_id:
        raise UsageError(
            f"{spec.backbone}: no hub has weights for it",
            remedy='use a recipe with model.weights = "none", another backbone, or --weights FILE with its JSON',
        )
    name = config.hf_hub_filename or "model.safetensors"
    if not name.endswith(".safetensors"):
        raise _no_hub(spec, "the hub has no safetensors file for it, and dermkit opens no other kind")
    path = _fetch(spec, config.hf_hub_id, name)
    licence = config.license or "unstated"
    note = f"from the hub: {config.hf_hub_id}"
    return Weights(
        "hub", path, sha256_file(path), _triple(config.mean), _triple(config.std), licence, (), note
    )  # fmt: skip


def _fetch(spec: ModelSpec, repository: str, name: str) -> Path:
    """Return the hub's file from the local cache, or fetch it; fails within seconds where there is no network.

    No token is sent: the weights are public.
    """
    import huggingface_hub as hub

    with contextlib.suppress(FileNotFoundError):
        return Path(hub.hf_hub_download(repository, name, local_files_only=True))
    try:
        with _quiet("huggingface_hub"):
            # One request without retries first, because the download itself retries for long.
            hub.get_hf_file_metadata(hub.hf_hub_url(repository, name), token=False, timeout=HUB_TIMEOUT)
            return Path(hub.hf_hub_download(repository, name, token=False))
    except Exception as error:  # the HTTP library, and so its exceptions, differ by the hub client's version
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise _no_hub(spec, f"the hub did not give them ({type(error).__name__}: {reason})") from error


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _no_hub(spec: ModelSpec, reason: str) -> UntrustedError:
    return UntrustedError(
        f"{spec.backbone}: its ImageNet weights are not here: {reason}",
        kept="nothing was trained",
        remedy=(
            "one of three: connect to the network once, and they are fetched and kept; "
            "pass --weights FILE.safetensors with FILE.safetensors.json beside it; "
            'or edit the recipe to model.weights = "none", which trains from scratch'
        ),
    )


def check_unchanged(weights: Weights) -> None:
    """Raise `UntrustedError` if a weights file is no longer the one that was resolved."""
    if weights.path is not None and sha256_file(weights.path) != weights.sha256:
        raise _untrusted(weights.path, "changed while dermkit was starting")


def read_tensors(weights: Weights) -> dict[str, Tensor]:
    """Read a weights file's tensors in their own types, refusing bytes that are not those resolved."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = weights.path
    if path is None:
        return {}
    try:
        data = path.read_bytes()
        if sha256_bytes(data) != weights.sha256:
            raise _untrusted(path, "changed while dermkit was starting")
        return dict(load(data))
    except (OSError, SafetensorError) as error:
        raise _untrusted(path, f"is not a readable safetensors file: {error}") from error
