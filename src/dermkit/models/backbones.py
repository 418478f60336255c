"""Backbones by name, without torch: those that are known with size and cost, those at hand, and all that timm has."""

import difflib
import importlib.util
import os
import re
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from dermkit.errors import DermkitError, UsageError
from dermkit.files import read_json
from dermkit.models.hub_names import is_hub_name, parse_hub_name
from dermkit.recipes.schema import ModelSpec

OWN_PREFIX = "dermkit/"
WEIGHTS_CARD_FORMAT = 1


class Backbone(NamedTuple):
    """A net with figures. image_size: of its pretrained weights, in pixels. multiply-adds: for one such image."""

    name: str
    image_size: int
    million_parameters: float
    giga_multiply_adds: float
    hub_id: str
    licence: str


# Computed by benchmarks/backbones.py with timm 1.0.31, without a classifier; a test computes some again.
KNOWN_BACKBONES = (
    Backbone("dermkit/cnn-s1", 64, 0.09, 0.04, "", ""),
    Backbone("dermkit/cnn-s4", 64, 0.39, 0.06, "", ""),
    Backbone("mobilenetv3_small_100", 224, 1.52, 0.06, "timm/mobilenetv3_small_100.lamb_in1k", "apache-2.0"),
    Backbone("mobilenetv3_large_100", 224, 4.2, 0.22, "timm/mobilenetv3_large_100.ra_in1k", "apache-2.0"),
    Backbone("mobilenetv2_100", 224, 2.22, 0.3, "timm/mobilenetv2_100.ra_in1k", "apache-2.0"),
    Backbone("mobilenetv4_conv_small", 224, 2.49, 0.18, "timm/mobilenetv4_conv_small.e2400_r224_in1k", "apache-2.0"),
    Backbone("mobilenetv4_conv_medium", 256, 8.43, 1.08, "timm/mobilenetv4_conv_medium.e500_r256_in1k", "apache-2.0"),
    Backbone("efficientnet_lite0", 224, 3.37, 0.38, "timm/efficientnet_lite0.ra_in1k", "apache-2.0"),
    Backbone("efficientnet_b0", 224, 4.01, 0.38, "timm/efficientnet_b0.ra_in1k", "apache-2.0"),
    Backbone("efficientnet_b1", 240, 6.51, 0.69, "timm/efficientnet_b1.ra4_e3600_r240_in1k", "apache-2.0"),
    Backbone("efficientnet_b2", 256, 7.7, 0.86, "timm/efficientnet_b2.ra_in1k", "apache-2.0"),
    Backbone("efficientnet_b3", 288, 10.7, 1.59, "timm/efficientnet_b3.ra2_in1k", "apache-2.0"),
    Backbone("efficientnet_b4", 320, 17.55, 3.06, "timm/efficientnet_b4.ra2_in1k", "apache-2.0"),
    Backbone("tf_efficientnetv2_b0", 192, 5.86, 0.53, "timm/tf_efficientnetv2_b0.in1k", "apache-2.0"),
    Backbone("tf_efficientnetv2_s", 300, 20.18, 5.31, "timm/tf_efficientnetv2_s.in21k_ft_in1k", "apache-2.0"),
    Backbone("resnet18", 224, 11.18, 1.81, "timm/resnet18.a1_in1k", "apache-2.0"),
    Backbone("resnet34", 224, 21.28, 3.66, "timm/resnet34.a1_in1k", "apache-2.0"),
    Backbone("resnet50", 224, 23.51, 4.09, "timm/resnet50.a1_in1k", "apache-2.0"),
    Backbone("resnet101", 224, 42.5, 7.8, "timm/resnet101.a1h_in1k", "apache-2.0"),
    Backbone("resnet152", 224, 58.14, 11.51, "timm/resnet152.a1h_in1k", "apache-2.0"),
    Backbone("resnext50_32x4d", 224, 22.98, 4.23, "timm/resnext50_32x4d.a1h_in1k", "apache-2.0"),
    Backbone("seresnext50_32x4d", 224, 25.51, 4.23, "timm/seresnext50_32x4d.racm_in1k", "apache-2.0"),
    Backbone("regnety_008", 224, 5.49, 0.8, "timm/regnety_008.pycls_in1k", "mit"),
    Backbone("regnety_016", 224, 10.31, 1.61, "timm/regnety_016.tv2_in1k", "bsd-3-clause"),
    Backbone("regnety_032", 224, 17.92, 3.17, "timm/regnety_032.ra_in1k", "apache-2.0"),
    Backbone("densenet121", 224, 6.95, 2.83, "timm/densenet121.ra_in1k", "apache-2.0"),
    Backbone("densenet169", 224, 12.48, 3.36, "timm/densenet169.tv_in1k", "apache-2.0"),
    Backbone("inception_v3", 299, 21.79, 5.71, "timm/inception_v3.tv_in1k", "apache-2.0"),
    Backbone("vgg16", 224, 134.26, 15.47, "timm/vgg16.tv_in1k", "bsd-3-clause"),
    Backbone("convnext_atto", 224, 3.37, 0.55, "timm/convnext_atto.d2_in1k", "apache-2.0"),
    Backbone("convnext_nano", 224, 14.95, 2.44, "timm/convnext_nano.in12k_ft_in1k", "apache-2.0"),
    Backbone("convnext_tiny", 224, 27.82, 4.45, "timm/convnext_tiny.in12k_ft_in1k", "apache-2.0"),
    Backbone("convnext_small", 224, 49.45, 8.68, "timm/convnext_small.in12k_ft_in1k", "apache-2.0"),
    Backbone("convnextv2_nano", 224, 14.98, 2.44, "timm/convnextv2_nano.fcmae_ft_in22k_in1k", "cc-by-nc-4.0"),
    Backbone("convnextv2_tiny", 224, 27.87, 4.45, "timm/convnextv2_tiny.fcmae_ft_in22k_in1k", "cc-by-nc-4.0"),
    Backbone("vit_tiny_patch16_224", 224, 5.52, 1.25, "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "apache-2.0"),
    Backbone("vit_small_patch16_224", 224, 21.67, 4.6, "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", "apache-2.0"),
    Backbone("vit_base_patch16_224", 224, 85.8, 17.56, "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", "apache-2.0"),
    Backbone("deit3_small_patch16_224", 224, 21.67, 4.6, "timm/deit3_small_patch16_224.fb_in1k", "apache-2.0"),
    Backbone("swin_tiny_patch4_window7_224", 224, 27.52, 4.49, "timm/swin_tiny_patch4_window7_224.ms_in1k", "mit"),
    Backbone("maxvit_tiny_tf_224", 224, 30.4, 5.55, "timm/maxvit_tiny_tf_224.in1k", "apache-2.0"),
    Backbone("coatnet_0_rw_224", 224, 26.67, 4.41, "timm/coatnet_0_rw_224.sw_in1k", "apache-2.0"),
    Backbone("vit_small_patch14_dinov2", 518, 22.06, 46.7, "timm/vit_small_patch14_dinov2.lvd142m", "apache-2.0"),
)  # fmt: skip


class ListedBackbone(NamedTuple):
    """A backbone as `dermkit recipes backbones` lists it.

    figures: None where dermkit has none. weights: local (part of dermkit, or a file), cached (fetched from the hub
    before) or known (fetched when first used).
    """

    name: str
    figures: Backbone | None
    weights: Literal["local", "cached", "known"]
    source: str


def list_backbones(pattern: str = "", weights_folder: Path | None = None) -> list[ListedBackbone]:
    """Return the known backbones, those whose weights are cached, and those of weights files in a folder.

    pattern: part of a name; if given, all names of timm that hold it are listed too.
    """
    figures_by_name = {backbone.name: backbone for backbone in KNOWN_BACKBONES}
    cached_names = _cached_backbones()
    names = {**dict.fromkeys(figures_by_name), **dict.fromkeys(name.partition(".")[0] for name in cached_names)}
    if pattern:
        names |= dict.fromkeys(sorted(backbone_names()))
    listed = [
        _listed(name, figures_by_name.get(name), cached_names) for name in names if pattern.lower() in name.lower()
    ]
    files = _weights_files(weights_folder) if weights_folder else []
    return [
        *(ListedBackbone(name, figures_by_name.get(name), "local", str(path)) for name, path in files),
        *listed,
    ]


def _listed(name: str, figures: Backbone | None, cached_names: set[str]) -> ListedBackbone:
    if name.startswith(OWN_PREFIX):
        return ListedBackbone(name, figures, "local", "part of dermkit; trained from random weights")
    cached = sorted(cached_name for cached_name in cached_names if cached_name.partition(".")[0] == name)
    default = figures.hub_id.partition("/")[2] if figures else ""
    if not cached:
        return ListedBackbone(name, figures, "known", default)
    note = "" if not default or default in cached else f" (not {default}, which {name} alone means)"
    return ListedBackbone(name, figures, "cached", ", ".join(cached) + note)


def _cached_backbones() -> set[str]:
    """Return the timm names, with tags, whose safetensors file the hub's cache holds."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache_folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return {
        path.parents[2].name.removeprefix("models--timm--")
        for path in cache_folder.glob("models--timm--*/snapshots/*/*.safetensors")
        if path.exists()
    }


def _weights_files(folder: Path) -> list[tuple[str, Path]]:
    """Return (backbone, file) of every weights file in a folder that has its JSON beside it."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: is not a folder", remedy="name the folder that holds FILE.safetensors")
    files = []
    for path in sorted(folder.glob("*.safetensors")):
        card_path = path.with_name(f"{path.name}.json")
        if card_path.is_file():
            name = read_json(card_path, format=WEIGHTS_CARD_FORMAT, error=DermkitError).get("model")
            files += [(name, path)] if isinstance(name, str) else []
    return files


@cache
def backbone_names() -> frozenset[str]:
    """Return all names that a recipe may give, without the tags of their weights; empty where timm is not installed.

    They are read from the text of the installed timm, because to import it loads torch.
    """
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return frozenset()
    own_names = {backbone.name for backbone in KNOWN_BACKBONES if backbone.name.startswith(OWN_PREFIX)}
    return frozenset(
        own_names.union(*map(_names_in_module, sorted((Path(spec.origin).parent / "models").glob("*.py"))))
    )


def _names_in_module(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(r"^@register_model\b.*\n(?:\s*#.*\n)*def (\w+)\(", text, re.M)


def check_backbone_name(spec: ModelSpec) -> None:
    """Raise `UsageError` for a backbone that does not exist, one of dermkit's own with pretrained weights, or one of
    the hub without.

    As `weights.check_backbone`, before torch is loaded. Whether a repository exists is seen when it is needed.
    """
    if is_hub_name(spec.backbone):
        parse_hub_name(spec.backbone)
        if spec.weights == "none":
            raise UsageError(
                f"{spec.backbone}: means weights of the hub, but the recipe has model.weights none",
                outcome="nothing was trained",
                remedy="add --set model.weights=imagenet, which stands for all pretrained weights, or name timm's net",
            )
        return
    if ":" in spec.backbone:
        raise UsageError(
            f"{spec.backbone}: names the source of a net in another way than dermkit does",
            outcome="nothing was trained",
            remedy="hf-hub:OWNER/NAME for the hub; for a folder timm's name of the net, and --weights FOLDER",
        )
    names = backbone_names()
    architecture = spec.backbone.partition(".")[0]  # before the tag of its weights, as in resnet50.a1_in1k
    if names and architecture not in names:
        close_matches = difflib.get_close_matches(architecture, sorted(names), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(f'`{match}`' for match in close_matches)}?" if close_matches else ""
        raise UsageError(
            f"{spec.backbone}: no such backbone{hint}",
            outcome="nothing was trained",
            remedy="`dermkit recipes backbones` lists known ones, `dermkit recipes backbones TEXT` all that hold TEXT",
        )
    if spec.backbone.startswith(OWN_PREFIX) and spec.weights != "none":
        raise UsageError(
            f"{spec.backbone}: there are no pretrained weights of it, but the recipe has model.weights {spec.weights}",
            outcome="nothing was trained",
            remedy="add --set model.weights=none, which trains from random weights",
        )
