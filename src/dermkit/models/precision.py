"""Numerical precision on a device, numbers that are not finite, and how running out of memory is recognised."""

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import nn

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


def autocast(spec: ComputeSpec, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast context of a forward pass in training."""
    return torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bfloat16")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: a GPU has its own exception, on the CPU the allocator's message says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def non_finite_tensors(net: nn.Module) -> list[str]:
    """Return the names of weights that hold nan or inf, and of buffers that hold nan; a mask may hold -inf."""
    names = [name for name, weight in net.named_parameters() if not bool(torch.isfinite(weight).all())]
    return names + [name for name, buffer in net.named_buffers() if bool(torch.isnan(buffer).any())]
