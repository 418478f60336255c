"""Whether saved tensors are those of a net that a model folder describes, before anything of its size is allocated; the
net with these tensors.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dermkit.errors import UntrustedError, UsageError, first_of
from dermkit.models.heads import take_shapes
from dermkit.models.members import MemberFields
from dermkit.models.net import Net, build_net
from dermkit.models.precision import non_finite_tensors
from dermkit.models.size_limit import TooLargeError, check_arguments, size_limit
from dermkit.models.weights import resolve_weights
from dermkit.recipes.schema import ModelSpec

MAX_FLOPS = 5e12
"""Operations for one image: a ViT of a billion weights takes 1e12 at 518 pixels, and a minute on a few cores."""


def check_fits(
    spec: ModelSpec, n_classes: int, state: Mapping[str, Tensor], *, image_size: int, n_metadata: int = 0
) -> None:
    """Raise `UntrustedError` unless a net has just these tensors and scores an image in bearable time.

    Nothing of its size is allocated: the net is built as shapes, and given up as soon as it outgrows the weights. A
    net that cannot be built that way is judged by its arguments alone.
    """
    check_arguments(spec, len(state))
    try:
        with size_limit(state):
            weights = resolve_weights(spec, None)
            net = build_net(spec, n_classes, weights=weights, seed=0, device="meta", n_metadata=n_metadata).eval()
        if problem := take_shapes(net.head, state):
            raise _misfit_error(spec, problem)
        flops = _count_flops(net, image_size)
    except TooLargeError as error:
        raise UntrustedError(
            f"{spec.backbone} with {spec.backbone_args}: is larger than the weights beside it: {error}",
            outcome="nothing was built",
            remedy="copy the model folder anew",
        ) from None
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return
    _compare_shapes(spec, net.state_dict(), state)
    if flops > MAX_FLOPS:
        raise UntrustedError(
            f"{spec.backbone} with {spec.backbone_args}: takes {flops:.2g} operations for one image of "
            f"{image_size} x {image_size}; at most {MAX_FLOPS:.0e} are run",
            outcome="nothing was built",
            remedy="use a smaller net or image size",
        )


def _count_flops(net: Net, image_size: int) -> float:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, image_size, image_size, device="meta"))
    return float(counter.get_total_flops())


def _compare_shapes(spec: ModelSpec, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    problems = [
        *(f"{name} is missing" for name in sorted(set(expected) - set(state))),
        *(f"{name} is not part of the net" for name in sorted(set(state) - set(expected))),
        *(
            f"{name} is {tuple(state[name].shape)}, the net has {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ),
    ]
    if problems:
        raise _misfit_error(spec, first_of(problems, 5, "; "))


def _check_kinds(spec: ModelSpec, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise `UntrustedError` for whole numbers where the net has weights: loading them would only convert them."""
    problems = [
        f"{name} holds {state[name].dtype}, the net has {tensor.dtype}"
        for name, tensor in expected.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    if problems:
        raise _misfit_error(spec, first_of(problems, 5, "; "))


def _misfit_error(spec: ModelSpec, problem: str) -> UntrustedError:
    head = f" with {spec.classifier.kind}" if spec.classifier else ""
    return UntrustedError(
        f"weights do not fit {spec.backbone}{head}: {problem}",
        outcome="nothing was built",
        remedy="copy the model folder anew",
    )


def rebuild_net(
    folder: Path, spec: ModelSpec, n_classes: int, state: dict[str, torch.Tensor], member: MemberFields
) -> Net:
    """Return the net of a model folder with its weights, ready to score; raises `UntrustedError` where they do not fit.

    state: the tensors of its file. member: what the folder says of this net.
    """
    unloaded_spec = dataclasses.replace(spec, weights="none")
    n_metadata = 0 if member.metadata is None else member.metadata.width
    try:
        check_fits(unloaded_spec, n_classes, state, image_size=member.preprocessing.size, n_metadata=n_metadata)
        weights = resolve_weights(unloaded_spec, None)
        net = build_net(unloaded_spec, n_classes, weights=weights, seed=0, n_metadata=n_metadata)
        _check_kinds(unloaded_spec, net.state_dict(), state)
        net.load_state_dict(state, strict=True)
    except UntrustedError as error:
        message = f"{folder / member.file}: {error.message}"
        raise UntrustedError(message, outcome=error.outcome, remedy=error.remedy) from error
    except (RuntimeError, UsageError) as error:
        raise UntrustedError(
            f"{folder}: weights do not fit {spec.backbone}: {error}", remedy="copy it anew"
        ) from error
    if names := non_finite_tensors(net):
        raise UntrustedError(
            f"{folder}: {len(names)} tensors hold numbers that are not finite (nan or inf): {', '.join(names[:5])}",
            outcome="nothing was predicted",
            remedy="train the model again, or copy it anew",
        )
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.eval().requires_grad_(False)
