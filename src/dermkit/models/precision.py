"""Numerical precision on a device, numbers that are not finite, and how running out of memory is recognised."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dermkit.recipes.training_specs import ComputeSpec


def has_fast_bfloat16(device: str) -> bool:
    """Return whether a device ("cpu", "cuda") has bfloat16 in hardware; elsewhere it is slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has these checks under private names alone.
    probe_names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in probe_names)


def resolve_precision(spec: ComputeSpec, device: str) -> ComputeSpec:
    """Replace precision `fastest` by the device's fastest supported one."""
    if spec.precision != "fastest":
        return spec
    return replace(spec, precision="bfloat16" if has_fast_bfloat16(device) else "float32")


@contextmanager
def autocast(spec: ComputeSpec, device: torch.device) -> Iterator[None]:
    """Compute a forward pass in the precision of a recipe.

    On a CPU that trains in bfloat16, depthwise convolutions with a stride or a kernel over 3x3 stay in float32.
    """
    is_low = spec.precision == "bfloat16"
    is_slow_backward = is_low and device.type == "cpu" and torch.is_grad_enabled() and not spec.compile
    depthwise = _DepthwiseInFloat32() if is_slow_backward else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=is_low), depthwise:
        yield


class _DepthwiseInFloat32(TorchFunctionMode):
    """Keeps depthwise convolutions whose bfloat16 gradient is slow in float32; their output is bfloat16 again.

    oneDNN has no fast kernel for the gradient of their input: 29.8 ms in bfloat16 against 2.1 in float32, casts
    included, for 144 channels of 40x40 pixels with stride 2, in batches of 32 (two cores with AVX-512 BF16). A
    training step takes .64 of its time before with MobileNetV2 at 160 px, .60 with EfficientNet-B0 at 128 px.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch: all but these convolutions as they are."""
        options = dict(kwargs or {})
        if func is not torch.conv2d or not _is_slow_in_bfloat16(*args, **options):
            return func(*args, **options)
        with torch.autocast("cpu", enabled=False):
            floats = {name: _in_float32(value) for name, value in options.items()}
            return func(*map(_in_float32, args), **floats).bfloat16()


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value


def _is_slow_in_bfloat16(
    _input: object = None,
    weight: torch.Tensor | None = None,
    _bias: object = None,
    stride: int | Sequence[int] = 1,
    *_: object,
    **__: object,
) -> bool:
    """Return whether arguments of torch.conv2d are of a depthwise convolution, strided or larger than 3x3."""
    if weight is None or weight.shape[1] != 1 or weight.shape[0] == 1:
        return False
    strides = (stride,) if isinstance(stride, int) else stride
    return max(strides) > 1 or max(weight.shape[2:]) > 3


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: a GPU has its own exception, on the CPU the allocator's message says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def non_finite_tensors(net: nn.Module) -> list[str]:
    """Return the names of weights that hold nan or inf, and of buffers that hold nan; a mask may hold -inf."""
    names = [name for name, weight in net.named_parameters() if not bool(torch.isfinite(weight).all())]
    return names + [name for name, buffer in net.named_buffers() if bool(torch.isnan(buffer).any())]
