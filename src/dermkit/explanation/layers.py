"""The table of timm families: which layer's output is the map that a net's pooling reads, and how it lies in memory.

A family is the file of timm that defines the net (`timm.models.resnet`), since the nets of one file share their parts.
Shapes: N images, C channels, H x W positions of the map, L = H * W of them after P prefix tokens.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from dermkit.models.heads import ClassifierHead, LogisticHead, SvmHead
from dermkit.models.net import Net


@dataclass(frozen=True)
class MapLayer:
    """A layer of a backbone whose output has positions.

    name: of the module; `-1` is the last child. layout: of its output. is_pooled: whether the net takes nothing but the
    mean over the positions; then Grad-CAM and the product of gradient and activation are the same, and else only the
    product is true to the net (Draelos and Carin 2020).
    """

    name: str
    layout: Literal["NCHW", "NHWC", "tokens"]
    is_pooled: bool = True

    @property
    def method(self) -> str:
        """Return the method's name in the literature."""
        return "Grad-CAM" if self.is_pooled else "HiResCAM"


MAP_LAYERS: Mapping[str, MapLayer] = MappingProxyType(
    {
        "cnn": MapLayer(
            "blocks.-1", "NCHW", is_pooled=False
        ),  # dermkit's own: cnn-s1 has a dense layer over a grid
        "resnet": MapLayer("layer4", "NCHW"),
        "resnetv2": MapLayer("norm", "NCHW"),
        "densenet": MapLayer("features", "NCHW"),
        "inception_v3": MapLayer("Mixed_7c", "NCHW"),
        "regnet": MapLayer("final_conv", "NCHW"),
        "efficientnet": MapLayer("bn2", "NCHW"),
        "mobilenetv3": MapLayer("blocks", "NCHW"),
        "convnext": MapLayer("norm_pre", "NCHW"),
        "swin_transformer": MapLayer("norm", "NHWC"),
        "swin_transformer_v2": MapLayer("norm", "NHWC"),
        "maxxvit": MapLayer("norm", "NCHW"),
        "byobnet": MapLayer("final_conv", "NCHW"),
        "vision_transformer": MapLayer("norm", "tokens"),
        "deit": MapLayer("norm", "tokens"),
        "eva": MapLayer("norm", "tokens"),
    }
)
"""Family -> layer. maxxvit (CoAtNet, MaxViT) and byobnet's MobileViT are hybrids of convolution and attention; a ViT on
a ResNet stem is of the family vision_transformer."""

_CLASS_TOKEN_LAYER = MapLayer("blocks.-1.norm1", "tokens", is_pooled=False)
"""Of a ViT that reads a class token: after the last attention its patch tokens lead nowhere, so that their gradient is
0; what the last block's attention reads of them is the last map that counts."""


def family_of(net: Net) -> str:
    """Return the family of a net's backbone: the name of the file that defines it."""
    return type(net.backbone).__module__.rpartition(".")[2]


def find_map_layer(net: Net) -> MapLayer | None:
    """Return the layer for a gradient-based map, None where the table has none for this net."""
    layer = MAP_LAYERS.get(family_of(net))
    if layer is None or layer.layout != "tokens":
        return layer
    pooling = getattr(net.backbone, "global_pool", "")
    if pooling == "token":
        return _CLASS_TOKEN_LAYER
    return layer if pooling == "avg" else MapLayer(layer.name, layer.layout, is_pooled=False)


def why_no_gradient(net: Net) -> str:
    """Return why a net can have no gradient at a layer of the table, "" if it can."""
    if reason := why_no_head_gradient(net):
        return reason
    if find_map_layer(net) is None:
        return f"the table of layers does not know its family ({family_of(net)})"
    return ""


def why_no_head_gradient(net: Net) -> str:
    """Return why a net's output has no gradient, "" if it has."""
    if isinstance(net.head, ClassifierHead) and not isinstance(net.head, LogisticHead | SvmHead):
        return "the classifier on its features has no useful gradient"
    return ""


def module_name(backbone: nn.Module, name: str) -> str:
    """Return a layer's name with `-1` replaced by the name of the last child."""
    words: list[str] = []
    for word in name.split("."):
        parent = backbone.get_submodule(".".join(words))
        words.append([child for child, _ in parent.named_children()][-1] if word == "-1" else word)
    return ".".join(words)


class GridView(nn.Module):
    """A layer whose output passes through `grid` as a map (N, C, H, W) and goes on unchanged.

    n_prefix: tokens before those of the image, such as the class token; they bypass the map.
    """

    def __init__(self, layer: nn.Module, layout: str, n_prefix: int) -> None:
        super().__init__()
        self.layer, self.layout, self.n_prefix = layer, layout, n_prefix
        self.grid = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        if self.layout == "NCHW":
            grid: Tensor = self.grid(output)
            return grid
        if self.layout == "NHWC":
            view: Tensor = self.grid(output.permute(0, 3, 1, 2))
            return view.permute(0, 2, 3, 1)
        prefix, patches = output[:, : self.n_prefix], output[:, self.n_prefix :]
        n_patches_across = math.isqrt(patches.shape[1])  # inputs are square, so are their patches
        tokens: Tensor = self.grid(
            patches.transpose(1, 2).reshape(len(output), -1, n_patches_across, n_patches_across)
        )
        return torch.cat([prefix, tokens.flatten(2).transpose(1, 2)], dim=1)


@contextmanager
def grid_view(net: Net, layer: MapLayer) -> Iterator[nn.Module]:
    """Put a `GridView` around a layer of a net within a block; gives the module whose output is the map."""
    name = module_name(net.backbone, layer.name)
    original = net.backbone.get_submodule(name)
    view = GridView(original, layer.layout, getattr(net.backbone, "num_prefix_tokens", 0))
    net.backbone.set_submodule(name, view)
    try:
        yield view.grid
    finally:
        net.backbone.set_submodule(name, original)
