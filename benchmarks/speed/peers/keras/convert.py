"""timm's `mobilenetv2_100` (pad_type "same") -> keras.applications.MobileNetV2(alpha=1, include_top=False).

timm's batch norm adds 1e-5 to the variance, Keras's 1e-3: the difference is folded into the variance, which may
become negative, while variance + epsilon stays what it was.
"""

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Tensors = Mapping[str, NDArray[np.float32]]
TIMM_EPSILON = 1e-5
STAGES = (1, 2, 3, 4, 3, 3, 1)
"""Blocks in each of timm's seven stages; Keras numbers them through."""


def load(net: keras.Model, file: Path) -> None:
    """Set every weight of the net from a safetensors file; raises where a tensor is missing, left over or misshapen."""
    tensors = {name: value.astype(np.float32) for name, value in load_file(file).items()}
    used: set[str] = set()
    _convolution(net, "Conv1", tensors, "conv_stem", used)
    _batch_norm(net, "bn_Conv1", tensors, "bn1", used)
    blocks = [f"blocks.{stage}.{index}" for stage, count in enumerate(STAGES) for index in range(count)]
    for number, block in enumerate(blocks):
        ours = "expanded_conv" if number == 0 else f"block_{number}"
        parts = [("depthwise", "conv_dw"), ("project", "conv_pw")]
        if number:
            parts = [("expand", "conv_pw"), ("depthwise", "conv_dw"), ("project", "conv_pwl")]
        for place, (part, name) in enumerate(parts, start=1):
            _convolution(net, f"{ours}_{part}", tensors, f"{block}.{name}", used)
            _batch_norm(net, f"{ours}_{part}_BN", tensors, f"{block}.bn{place}", used)
    _convolution(net, "Conv_1", tensors, "conv_head", used)
    _batch_norm(net, "Conv_1_bn", tensors, "bn2", used)
    left = {name for name in tensors if not name.endswith("num_batches_tracked")} - used
    if left:
        raise SystemExit(f"{file}: not a mobilenetv2_100 without classifier: left over {sorted(left)[:5]}")


def _convolution(net: keras.Model, layer: str, tensors: Tensors, name: str, used: set[str]) -> None:
    kernel = tensors[
        f"{name}.weight"
    ]  # (out, in, h, w); a depthwise one (channels, 1, h, w) becomes (h, w, channels, 1)
    order = (2, 3, 0, 1) if "depthwise" in layer else (2, 3, 1, 0)
    net.get_layer(layer).set_weights([kernel.transpose(order)])
    used.add(f"{name}.weight")


def _batch_norm(net: keras.Model, layer: str, tensors: Tensors, name: str, used: set[str]) -> None:
    scale, offset, mean, variance = (
        tensors[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    target = net.get_layer(layer)
    target.set_weights([scale, offset, mean, variance + (TIMM_EPSILON - target.epsilon)])
    used.update(f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
