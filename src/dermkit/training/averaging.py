"""An exponential moving average of the weights of a phase, which is validated and saved in their place.

The net's own tensors stay the raw ones, which the optimizer changes; the averaged ones are beside it.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of what a phase trains. tensors: name in the net's state -> averaged value, on the net's device.

    Averaged are the weights, and the statistics of batch norm too, as timm's ModelEmaV3 does by default: they belong
    to the averaged weights as little as the last batch's belong to the last weights. Integers, which are counters, are
    copied, as there.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        """Begin with the net's tensors that train; call it after `freeze` and `set_train_mode`."""
        self.decay = decay
        state = net.state_dict()
        self.tensors: dict[str, Tensor] = {name: state[name].clone() for name in _trained_names(net)}

    def step_decay(self, step: int) -> float:
        """Return the decay at a step of the phase, from 0: at most (1 + step) / (10 + step).

        That is the rule of TensorFlow's ExponentialMovingAverage: the tensors with which the phase began, the new
        head's above all, would otherwise weigh in for as long as the decay says.
        """
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take in the net's tensors after a step."""
        weight = 1.0 - self.step_decay(step)
        state = net.state_dict()
        averaged, raw = [], []
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point():
                averaged.append(tensor)
                raw.append(state[name])
            else:
                tensor.copy_(state[name])
        torch._foreach_lerp_(averaged, raw, weight)

    @torch.no_grad()
    def write_to(self, net: nn.Module) -> None:
        """Copy the average into the net, whose raw tensors are lost."""
        load_tensors(net, self.tensors)

    @torch.no_grad()
    def read_from(self, net: nn.Module) -> None:
        """Copy the average back from a net that holds it, with statistics that were computed for its weights."""
        state = net.state_dict()
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])

    @contextlib.contextmanager
    def applied(self, net: nn.Module) -> Iterator[None]:
        """Let the net hold the average within a block.

        Values are copied and tensors stay the same objects, which the optimizer and a compiled step hold.
        """
        state = net.state_dict()
        raw = {name: state[name].clone() for name in self.tensors}
        self.write_to(net)
        try:
            yield
        finally:
            load_tensors(net, raw)


@torch.no_grad()
def load_tensors(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the net's state by name; the others stay."""
    state = net.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def _trained_names(net: nn.Module) -> list[str]:
    """Return the names of what training changes: weights that learn, and buffers of modules in training mode."""
    weights = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    buffers = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in net.named_modules()
        if module.training
        for name, _ in module.named_buffers(recurse=False)
    }
    return [name for name in net.state_dict() if name in weights or name in buffers]
