"""How numbers are multiplied: precision, and what an exhausted memory looks like."""

from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from dermkit.recipes.schema import ComputeSpec


def has_fast_bfloat16(device: str) -> bool:
    """Tell whether a device ("cpu", "cuda") multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch names these with an underscore, and has no other words for them.
    probe_names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in probe_names)


def resolve_precision(spec: ComputeSpec, device: str) -> ComputeSpec:
    """Return the spec with `fastest` decided for a device."""
    if spec.precision != "fastest":
        return spec
    return replace(spec, precision="bfloat16" if has_fast_bfloat16(device) else "float32")


def autocast(spec: ComputeSpec, device: torch.device) -> AbstractContextManager[object]:
    """Return the context that a forward pass of training runs in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bfloat16")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out: on a GPU by its own exception, on the CPU by the allocator's words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
