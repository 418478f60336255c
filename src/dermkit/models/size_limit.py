"""A net that is built from other people's arguments grows no larger than the weights that are to fill it."""

import contextlib
import threading
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from dermkit.errors import UntrustedError
from dermkit.models.backbone_args import MAX_ARGUMENT
from dermkit.recipes.schema import ModelSpec


class TooLargeError(Exception):
    """A net became larger than the weights that are to fill it."""


def check_arguments(spec: ModelSpec, n_tensors: int) -> None:
    """Refuse a number that no net has; a layer has a tensor, so there are no more layers than tensors."""
    for name, value in spec.backbone_args.items():
        is_depth = any(word in name for word in ("depth", "layers", "blocks", "stages", "repeat"))
        limit = min(MAX_ARGUMENT, n_tensors) if is_depth else MAX_ARGUMENT
        if isinstance(value, int | float) and not abs(value) <= limit:
            raise UntrustedError(
                f"{spec.backbone}: {name} is {value}; at most {limit} can be of this model",
                outcome="nothing was built",
                remedy="copy the model folder anew",
            )


@contextlib.contextmanager
def size_limit(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Stop a build in this thread that registers more numbers, tensors or modules than these weights can fill."""
    n_numbers = [
        2 * sum(tensor.numel() for tensor in state.values()) + 10**8
    ]  # blocks to leave out are built first
    n_tensors, n_modules = [2 * len(state) + 1000], [20 * len(state) + 10_000]
    thread = threading.get_ident()

    def take(counter: list[int], amount: int, kind: str) -> None:
        if threading.get_ident() == thread:
            counter[0] -= amount
            if counter[0] < 0:
                raise TooLargeError(f"it has more {kind} than they could fill")

    def on_parameter(_module: nn.Module, _name: str, parameter: Tensor | None) -> None:
        take(n_tensors, 1, "tensors")
        take(n_numbers, 0 if parameter is None else parameter.numel(), "numbers")

    def on_module(_module: nn.Module, _name: str, _child: object) -> None:
        take(n_modules, 1, "layers")

    hooks = [
        nn.modules.module.register_module_parameter_registration_hook(on_parameter),
        nn.modules.module.register_module_module_registration_hook(on_module),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
