"""Fast float32 inference: batch norms fused into convolutions, one single-threaded batch per core.

Shapes: N images of S x S pixels, C features of an image, K classes. Pixels are uint8 (N, S, S, 3); inputs of a net
float32 (N, 3, S, S) in channels_last order; logits and features float32 (N, K) and (N, C).
"""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dermkit.errors import UsageError
from dermkit.images.preprocess import Preprocessing
from dermkit.models.fork import limit_threads_after_fork
from dermkit.models.members import MemberFields
from dermkit.models.net_engine import (
    FUSED_NET,
    UNFUSED_NET,
    Features,
    Metadata,
    NetEngine,
    check_finite_rows,
    check_pixels,
    software_versions,
)
from dermkit.models.precision import is_out_of_memory
from dermkit.models.test_pictures import draw_test_pictures
from dermkit.models.view_pixels import view_of
from dermkit.models.views import IDENTITY_VIEW
from dermkit.threads import SharedContext, SharedSetting, ordered_map

if TYPE_CHECKING:
    from dermkit.models.net import Net

_FUSION_TOLERANCE = 5e-5
"""Largest allowed difference of an output after fusion, in standard deviations of the outputs. For scale: a probability
of MobileNetV2 was 1.1e-5 from float64 unfused and 0.9e-5 fused; its features, with random weights, differed by 2e-5."""

EVAL_BATCH_SIZE = {"cpu": 16, "cuda": 256}
"""Images per forward pass in validation and feature extraction. On a GPU nothing else uses its memory then."""

_TORCH_THREADS = SharedSetting(torch.get_num_threads, torch.set_num_threads)
_EXACT_CUDNN = SharedContext(
    lambda: torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
)
_Batch = TypeVar("_Batch")
_Output = TypeVar("_Output")


def pick_device(name: str) -> torch.device:
    """Return the device for `auto` (a GPU if there is one), `cpu` or `cuda`; raises `UsageError` for any other name."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: unknown", remedy="one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here", remedy="--device cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def torch_versions() -> dict[str, str]:
    """Return the versions of software that numbers of torch nets depend on."""
    return {**software_versions(), "torch": torch.__version__, "timm": version("timm")}


def eval_batches(rows: NDArray[np.int64], device: torch.device) -> list[NDArray[np.int64]]:
    """Split row numbers, (N,), into batches for validation and feature extraction."""
    size = EVAL_BATCH_SIZE[device.type]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def n_parallel_batches(device: torch.device) -> int:
    """Return how many batches are computed in parallel on a device."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def parallel_batches(
    compute: Callable[[_Batch], _Output], batches: Iterable[_Batch], *, workers: int
) -> Iterator[_Output]:
    """Yield compute(batch) in order from `workers` threads, each limited to one torch thread.

    Faster than sharing one matrix product, at whose end all threads wait for each other; and a batch's numbers do not
    depend on the number of threads.
    """

    def compute_single_threaded(batch: _Batch) -> _Output:
        torch.set_num_threads(1)  # acts on this thread and on threads that start later
        return compute(batch)

    limit_threads_after_fork()
    with _TORCH_THREADS.restored():
        yield from ordered_map(compute_single_threaded, batches, n_threads=max(1, workers))


class InferenceEngine:
    """Turns uint8 pixels into class probabilities. Thread-safe.

    views: whose probabilities are averaged, one pass each. net_variant: `FUSED_NET` or `UNFUSED_NET`. max_batch_size:
    images per forward pass, halved whenever the device runs out of memory; `say` then gets a line.
    """

    def __init__(
        self,
        net: nn.Module,
        preprocessing: Preprocessing,
        say: Callable[[str], None] = lambda _line: None,
        *,
        views: Sequence[str] = IDENTITY_VIEW,
    ) -> None:
        parameter = next(net.parameters())
        self.device = parameter.device
        self.max_batch_size = 2**31
        self.views = tuple(views)
        self.say = say
        # Threads take turns on a GPU: two batches at once would only share it, and need the memory of both.
        self._device_lock = threading.Lock() if self.device.type == "cuda" else nullcontext()
        self._net, self._preprocessing, self._tables = net, preprocessing, _normalisation_tables(preprocessing)
        (fused_net,) = parallel_batches(self._fuse, [draw_test_pictures(preprocessing.size)], workers=1)
        self._net, self.net_variant = (fused_net, FUSED_NET) if fused_net is not None else (net, UNFUSED_NET)

    def _fuse(self, images: NDArray[np.uint8]) -> nn.Module | None:
        with exact_float32(self.device):  # sums round by the number of threads: `parallel_batches` gives it one
            probes = self._inputs(images)
            with torch.inference_mode():
                check_finite(self._net(probes), "the model", [f"test picture {n}" for n in range(1, 5)])
            return fuse_batch_norm(self._net, probes)

    def __call__(
        self, batch: NDArray[np.uint8], names: Sequence[str] = (), metadata: Metadata = None
    ) -> NDArray[np.float64]:
        """Score resized pixels (N, S, S, 3) uint8; returns softmax probabilities (N, classes) float64.

        metadata: of a net with a second input, encoded; None = unknown for all images. Raises `UntrustedError` where an
        output is not finite, naming these images (by their place, without `names`).
        """
        return self.score(batch, names, metadata)[0]

    def score(
        self, batch: NDArray[np.uint8], names: Sequence[str] = (), metadata: Metadata = None
    ) -> tuple[NDArray[np.float64], Features]:
        """Return the same probabilities, and the backbone's features of the first view, from one pass.

        Features are (N, C) float32, None of a net without a head of its own.
        """
        limit_threads_after_fork()
        views, features = self._score_views(batch, names, metadata)
        return np.asarray(views[0] if len(self.views) == 1 else views.mean(axis=0)), features

    def view_probabilities(
        self, batch: NDArray[np.uint8], names: Sequence[str] = (), metadata: Metadata = None
    ) -> NDArray[np.float64]:
        """Score every view of resized pixels (N, S, S, 3) uint8; returns probabilities (views, N, classes) float64.

        One view is in memory at a time. Raises `UntrustedError` as a call of the engine does.
        """
        return self._score_views(batch, names, metadata)[0]

    def _score_views(
        self, batch: NDArray[np.uint8], names: Sequence[str], metadata: Metadata
    ) -> tuple[NDArray[np.float64], Features]:
        inputs = self._inputs(batch)
        second_input = () if metadata is None else (torch.from_numpy(metadata).to(self.device),)
        scored = [self._score_view(inputs, second_input, view, names) for view in self.views]
        return np.stack([probabilities for probabilities, _ in scored]), scored[0][1]

    def _score_view(
        self, inputs: Tensor, second_input: tuple[Tensor, ...], view: str, names: Sequence[str]
    ) -> tuple[NDArray[np.float64], Features]:
        with torch.inference_mode(), self._device_lock, exact_float32(self.device):
            logits, features = self._outputs(view_of(inputs, view), *second_input)
        check_finite(logits, "the model", names)
        # In float64: in float32 probabilities near 1 are rounded to 1, and images that differ would tie.
        probabilities = np.asarray(torch.softmax(logits.cpu().double(), dim=1).numpy(), dtype=np.float64)
        return probabilities, None if features is None else np.asarray(features.float().cpu().numpy())

    def _inputs(self, batch: NDArray[np.uint8]) -> Tensor:
        check_pixels(batch)
        if self.device.type != "cpu":
            return normalise_on_device(torch.from_numpy(batch).to(self.device), self._preprocessing)
        return normalise_by_table(batch, self._tables)

    def _outputs(self, *inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (N, K) and features (N, C), in as many passes as the device's memory asks for."""
        while True:
            chunks = zip(*(torch.split(tensor, self.max_batch_size) for tensor in inputs), strict=True)
            outputs = [self._outputs_or_none(*chunk) for chunk in chunks]
            computed = [chunk for chunk in outputs if chunk is not None]
            if len(computed) == len(outputs):
                features = [chunk for _, chunk in computed if chunk is not None]
                return torch.cat([logits for logits, _ in computed]), torch.cat(features) if features else None
            del outputs, computed
            self._halve_batch_size(len(inputs[0]))

    def _outputs_or_none(self, *inputs: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Return logits and features, None where memory ran out: returning drops the exception and its tensors."""
        try:
            if not hasattr(self._net, "classify"):
                return self._net(*inputs), None
            net = cast("Net", self._net)
            features = net.features(inputs[0])
            return net.classify(features, *inputs[1:]), features
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _halve_batch_size(self, n_images: int) -> None:
        batch_size = min(self.max_batch_size, n_images)
        if batch_size == 1:
            raise UsageError(
                f"{self.device}: its memory is too small for one image",
                outcome="what was scored before",
                remedy="--device cpu, or end what else uses the device",
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.max_batch_size = batch_size // 2
        self.say(
            f"{self.device}: out of memory with {batch_size} images at once; going on with {self.max_batch_size}"
        )


@dataclass(frozen=True)
class TorchRuntime:
    """The torch nets of a model, all on one device, as its `Runtime`."""

    nets: tuple["Net", ...]

    @property
    def device_type(self) -> str:
        """Return cpu or cuda."""
        return next(self.nets[0].parameters()).device.type

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of software that the numbers depend on."""
        return torch_versions()

    @property
    def n_threads(self) -> int:
        """Return how many batches are computed at once by default: as many as torch has threads."""
        return torch.get_num_threads()

    def engines(self, members: Sequence[MemberFields], say: Callable[[str], None]) -> list[NetEngine]:
        """Return the engine of each net, prepared for inference, which runs it on test pictures."""
        return [
            InferenceEngine(net, member.preprocessing, say, views=member.views)
            for net, member in zip(self.nets, members, strict=True)
        ]

    def parallel_batches(
        self, compute: Callable[[_Batch], _Output], batches: Iterable[_Batch], *, workers: int
    ) -> Iterator[_Output]:
        """Yield compute(batch) in order from `workers` threads, each limited to one torch thread."""
        return parallel_batches(compute, batches, workers=workers)


def check_finite(outputs: Tensor, subject: str, names: Sequence[str] = ()) -> None:
    """Raise `UntrustedError` where a row of outputs (N, ...) holds nan or inf."""
    check_finite_rows(torch.isfinite(outputs).flatten(1).all(dim=1).cpu().numpy(), subject, names)


def _normalisation_tables(preprocessing: Preprocessing) -> tuple[NDArray[np.float32], ...]:
    """Return for each channel the normalised values of the levels 0 to 255, (256,) float32."""
    levels = np.arange(256, dtype=np.float64) / preprocessing.divide_by
    pairs = zip(preprocessing.mean, preprocessing.std, strict=True)
    return tuple(((levels - mean) / std).astype(np.float32) for mean, std in pairs)


def normalise_by_table(batch: NDArray[np.uint8], tables: tuple[NDArray[np.float32], ...]) -> Tensor:
    """Return normalised pixels (N, 3, S, S) float32 in channels_last order, in which convolutions are fastest.

    batch: (N, S, S, 3) uint8. tables: the 256 normalised values of each channel; a look-up is faster than arithmetic.
    """
    out = np.empty(batch.shape, np.float32)
    for channel, table in enumerate(tables):
        np.take(table, batch[..., channel], out=out[..., channel], mode="clip")
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def normalise_on_device(batch: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the same, computed on the device of `batch`: copying uint8 there moves a quarter of the bytes."""
    mean, std = (torch.tensor(values, device=batch.device) for values in (preprocessing.mean, preprocessing.std))
    return batch.float().div_(preprocessing.divide_by).sub_(mean).div_(std).permute(0, 3, 1, 2)


def exact_float32(device: torch.device) -> AbstractContextManager[None]:
    """Return a context without TF32: CUDA convolutions would else round their inputs to 10 bits of mantissa.

    Threads may be in it at once, as with the nets of a model that threads share: it ends with the last of them.
    """
    if device.type != "cuda":
        return nullcontext()
    return _EXACT_CUDNN.shared()


def fused_backbone(net: nn.Module, preprocessing: Preprocessing) -> tuple[nn.Module, str]:
    """Return a frozen backbone for many forward passes and its variant.

    `FUSED_NET` where fusion leaves its outputs within `_FUSION_TOLERANCE`, else `UNFUSED_NET` and the net itself.
    """
    device, tables = next(net.parameters()).device, _normalisation_tables(preprocessing)

    def fuse(images: NDArray[np.uint8]) -> nn.Module | None:
        with exact_float32(device):
            return fuse_batch_norm(net, normalise_by_table(images, tables).to(device))

    (fused_net,) = parallel_batches(fuse, [draw_test_pictures(preprocessing.size)], workers=1)
    return (net, UNFUSED_NET) if fused_net is None else (fused_net, FUSED_NET)


# Fusing ------------------------------------------------------------------------------------------------------------


def fuse_batch_norm(net: nn.Module, probes: Tensor) -> nn.Module | None:
    """Return a copy of the net with batch norms fused into the convolutions that feed them.

    probes: (N, 3, S, S) float32, normalised. Returns None where there is nothing to fuse, or where the copy's outputs
    differ from the net's by more than `_FUSION_TOLERANCE` of their standard deviation. It compares logits or features:
    saturated probabilities would hide a wrong copy. All kinds of convolution are tried first, then plain ones alone:
    some kinds change their weights in the forward pass (weight standardisation), and would change fused ones too.
    """
    with torch.inference_mode():
        expected = net(probes).double()
    for is_eligible in (lambda _: True, lambda conv: type(conv) is nn.Conv2d):
        candidate = _fused_copy(net, probes, is_eligible)
        if candidate is not None and _matches_outputs(candidate, probes, expected):
            return candidate
    return None


def _fused_copy(net: nn.Module, probe: Tensor, is_eligible: Callable[[nn.Conv2d], bool]) -> nn.Module | None:
    candidate = copy.deepcopy(net).eval()
    pairs = [(conv, norm) for conv, norm in _conv_norm_pairs(candidate, probe) if is_eligible(conv)]
    names = {id(module): name for name, module in candidate.named_modules()}
    for conv, norm in pairs:
        _fuse_pair(conv, norm)
        trailing_layers = [
            layer for layer in (getattr(norm, "drop", None), getattr(norm, "act", None)) if layer is not None
        ]
        # timm's BatchNormAct2d holds dropout and activation too: these remain in the norm's place.
        candidate.set_submodule(
            names[id(norm)], nn.Sequential(*trailing_layers) if trailing_layers else nn.Identity()
        )
    return candidate.requires_grad_(False) if pairs else None


def _conv_norm_pairs(net: nn.Module, probe: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return (conv, norm) pairs observed in one forward pass: the norm takes the conv's output, and both run once."""
    conv_outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holding the tensors keeps their ids unique
    call_counts: dict[int, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def record_call(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        call_counts[id(module)] = call_counts.get(id(module), 0) + 1
        if isinstance(module, nn.Conv2d):
            conv_outputs[id(output)] = (module, output)
        elif (
            isinstance(module, nn.BatchNorm2d)
            and id(inputs[0]) in conv_outputs
            and module.running_mean is not None
        ):
            pairs.append((conv_outputs[id(inputs[0])][0], module))

    hooked_modules = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    hooks = [module.register_forward_hook(record_call) for module in hooked_modules]
    with torch.inference_mode():
        net(probe)
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in pairs if call_counts[id(conv)] == call_counts[id(norm)] == 1]


def _fuse_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Change a convolution's weights to what it and the batch norm do together.

    torch's fusion, on float64 copies: in float32 its own rounding would come on top of that of the result.
    """
    fused = fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(norm).double())
    weight = fused.weight.float().contiguous(memory_format=torch.channels_last)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(fused.get_parameter("bias").float(), requires_grad=False)


def _matches_outputs(candidate: nn.Module, probe: Tensor, expected: Tensor) -> bool:
    try:
        with torch.inference_mode():
            outputs = candidate(probe).double()
    except (RuntimeError, TypeError, AttributeError):
        return False
    return outputs.shape == expected.shape and bool(
        (outputs - expected).abs().max() <= _FUSION_TOLERANCE * expected.std()
    )
