"""A net with its preprocessing and test-time views as one graph, from pixels to probabilities, written as ONNX.

Shapes: N images of S x S pixels, V views, C features of an image, K classes, M columns of metadata.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dermkit.errors import UsageError, out_of_memory
from dermkit.images.preprocess import Preprocessing
from dermkit.models.engines.packages import load_onnx
from dermkit.models.engines.sessions import METADATA_INPUT, OUTPUTS, PIXELS_INPUT
from dermkit.models.heads import NearestNeighboursHead
from dermkit.models.net import Net
from dermkit.models.precision import is_out_of_memory
from dermkit.models.view_pixels import crop_of, view_of
from dermkit.models.views import CROP_VIEWS

OPSET = 18
"""Version of ONNX's operators: that of torch's own translations, which ONNX Runtime reads since 1.14 (2023)."""

MAX_BYTES = 1_900_000_000
"""Of weights in an ONNX file, which cannot be larger than 2 GiB."""


class PixelNet(nn.Module):
    """Resized pixels (N, S, S, 3) uint8 -> probabilities (N, K), logits (N, V, K) and features (N, C), float32.

    All views run as one batch of V times N images, so that the graph holds the net once.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Net, preprocessing: Preprocessing, views: Sequence[str]) -> None:
        super().__init__()
        self.net = net
        self.views = tuple(views)
        self.divide_by = preprocessing.divide_by
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor, metadata: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        n_views = len(self.views)
        inputs = (pixels.permute(0, 3, 1, 2).float() / self.divide_by - self.mean) / self.std
        views = inputs if n_views == 1 else torch.cat([_view(inputs, view) for view in self.views])
        features = self.net.features(views)
        second_input = None if metadata is None else metadata.repeat(n_views, 1)
        logits = self.net.classify(features, second_input)
        logits = logits.reshape(n_views, -1, logits.shape[1]).permute(1, 0, 2)
        probabilities = torch.softmax(logits, dim=2).mean(dim=1)
        return probabilities, logits, features.reshape(n_views, -1, features.shape[1])[0]


def _view(inputs: Tensor, view: str) -> Tensor:
    """Return a view; crops without antialiasing, which changes nothing where an image grows, and no format has."""
    if view not in CROP_VIEWS:
        return view_of(inputs, view)
    size = inputs.shape[-1]
    return F.interpolate(crop_of(inputs, view), (size, size), mode="bilinear", align_corners=False)


def onnx_bytes(
    net: Net,
    preprocessing: Preprocessing,
    views: Sequence[str],
    *,
    properties: Mapping[str, str],
    description: str,
) -> bytes:
    """Return the ONNX file of a net on the CPU. properties, description: texts that the file holds for its reader.

    Raises `UsageError` for a net with an operator that ONNX does not hold, one whose graph depends on the number of
    images, and one of 2 GB, or where a package is broken; `ResourceError` where memory runs out.
    """
    onnx = load_onnx()
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    if n_bytes > MAX_BYTES:
        raise _export_error(net, f"its weights have {n_bytes / 1e9:.1f} GB, and an ONNX file holds 2 GB")
    if isinstance(net.head, NearestNeighboursHead):
        raise _export_error(net, "its head, k nearest neighbours, goes through the images one by one")
    try:
        model = _translate(net, preprocessing, views)
        for graph in (model.graph, *model.functions):
            _drop_source_paths(graph)
        model.doc_string = description
        onnx.helper.set_model_props(model, dict(properties))
        onnx.checker.check_model(model)
        content = bytes(model.SerializeToString())
    except Exception as error:
        if any(is_out_of_memory(cause) for cause in _causes(error)):
            raise out_of_memory(f"{_backbone(net)}: writing it as ONNX") from error
        raise _export_error(net, _first_sentence(error)) from error
    if model.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise _export_error(net, "its graph would hold for one number of images alone")
    return content


def _translate(net: Net, preprocessing: Preprocessing, views: Sequence[str]) -> Any:
    """Return the graph as an ONNX model."""
    # Two images: torch takes one for a constant (a graph for single images), and metadata for as many.
    example: dict[str, Tensor] = {PIXELS_INPUT: torch.zeros(2, *[preprocessing.size] * 2, 3, dtype=torch.uint8)}
    if net.n_metadata:
        example[METADATA_INPUT] = torch.zeros(2, net.n_metadata)
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            PixelNet(net, preprocessing, views).eval(), (), kwargs=example, dynamo=True, opset_version=OPSET,
            input_names=list(example), output_names=list(OUTPUTS), verbose=False,
            dynamic_shapes={name: {0: batch} for name in example},
        )  # fmt: skip
    if program is None:
        raise ValueError("torch gave no graph")
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the remarks that torch and onnxscript make about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _drop_source_paths(graph: Any) -> None:
    """Drop what torch says of where in its source a node came from: it has paths of this machine's folders."""
    for entry in (*graph.node, *graph.value_info, *getattr(graph, "input", ()), *getattr(graph, "output", ())):
        if hasattr(entry, "metadata_props"):
            del entry.metadata_props[:]
        if hasattr(entry, "doc_string"):
            entry.doc_string = ""


def _first_sentence(error: Exception) -> str:
    """Return the root of an error in one line: torch wraps it in pages of advice."""
    root = _causes(error)[-1]
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return f"{type(root).__name__}: {(lines or ['no message'])[0][:300]}"


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what it was raised from, the root last."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return causes


def _backbone(net: Net) -> str:
    return net.spec.backbone if net.spec is not None else "the net"


def _export_error(net: Net, problem: str) -> UsageError:
    return UsageError(
        f"{_backbone(net)}: cannot be written as ONNX: {problem}",
        outcome="nothing was written",
        remedy="score images with torch, `dermkit predict MODEL IMAGES --out DIR`, or train a model of another "
        "backbone or head",
    )
