"""Training in bfloat16 on a CPU: which convolutions stay in float32, and that nothing else changes."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from dermkit.models.precision import autocast
from dermkit.models.weights import import_timm
from dermkit.recipes.training_specs import ComputeSpec

CPU = torch.device("cpu")
LOW = ComputeSpec(precision="bfloat16", compile=False)


def depthwise(kernel: int, stride: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(8, 8, kernel, stride=stride, padding=kernel // 2, groups=8, bias=bias)


SLOW = {"strided": depthwise(3, 2), "5x5": depthwise(5, 1, bias=True)}
OTHERS = {
    "3x3": depthwise(3, 1),
    "dense, strided": nn.Conv2d(8, 4, 3, stride=2),
    "in two groups": nn.Conv2d(8, 8, 5, stride=2, groups=2),
}


def pixels() -> torch.Tensor:
    return torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(0)).bfloat16()


def gradients(layer: nn.Conv2d, convolve: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """Output, and gradients of the input and the weights, for a loss that is no mean."""
    inputs = pixels().requires_grad_()
    layer.zero_grad()
    output = convolve(inputs)
    (output.float() * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()  # type: ignore[no-untyped-call]
    assert inputs.grad is not None
    assert layer.weight.grad is not None
    return [output.detach(), inputs.grad, layer.weight.grad.clone()]


def in_training(layer: nn.Conv2d) -> list[torch.Tensor]:
    with autocast(LOW, CPU):
        return gradients(layer, layer)


def as_torch_casts(layer: nn.Conv2d) -> list[torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return gradients(layer, layer)


@pytest.mark.parametrize("name", SLOW)
def test_slow_depthwise_convolutions_are_computed_in_float32_and_rounded_once(name: str) -> None:
    layer = SLOW[name]
    exact = gradients(layer, lambda inputs: layer(inputs.float()).bfloat16())
    for one, other in zip(in_training(layer), exact, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert not torch.equal(as_torch_casts(layer)[2], exact[2]), "bfloat16 would show"


@pytest.mark.parametrize("name", OTHERS)
def test_all_other_convolutions_are_as_torch_casts_them(name: str) -> None:
    layer = OTHERS[name]
    assert all(map(torch.equal, in_training(layer), as_torch_casts(layer)))


def test_scoring_and_float32_change_nothing() -> None:
    layer = SLOW["strided"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cast = layer(pixels())
    with torch.no_grad(), autocast(LOW, CPU):
        assert torch.equal(layer(pixels()), cast), "cached features of frozen nets stay what they were"
    plain = layer(pixels().float())
    with autocast(ComputeSpec(precision="float32", compile=False), CPU):
        assert torch.equal(layer(pixels().float()), plain)


def test_arguments_by_name_are_understood() -> None:
    layer = SLOW["strided"]
    with autocast(LOW, CPU):
        by_name = functional.conv2d(input=pixels(), weight=layer.weight, stride=2, padding=1, groups=8)
        assert torch.equal(by_name, layer(pixels()))


def test_gradients_of_a_whole_net_are_no_further_from_float32_than_those_that_torch_casts() -> None:
    """A net without ReLU: with random weights its kinks alone move the gradient by half."""
    torch.manual_seed(0)
    net = import_timm().create_model("efficientnet_b0", num_classes=3).eval()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 2])

    def gradient(spec: ComputeSpec | None) -> torch.Tensor:
        net.zero_grad()
        context = torch.autocast("cpu", torch.bfloat16) if spec is None else autocast(spec, CPU)
        with context:
            logits = net(images)
        functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        return torch.cat([weight.grad.flatten() for weight in net.parameters()])

    exact = gradient(ComputeSpec(precision="float32", compile=False))
    ours, cast = ((gradient(spec) - exact).norm() / exact.norm() for spec in (LOW, None))
    assert ours <= 1.02 * cast
    assert ours < 0.1
