"""Batch normalisation over the whole batch of all ranks, so that its statistics do not depend on the number of devices.

It does what torch.nn.SyncBatchNorm does, which refuses tensors on the CPU; this one runs wherever its process group
does (docs/decisions/0010-libraries.md). Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 1 and section 3.

Shapes: inputs (N, C, ...), N this rank's images and C channels; statistics (C,) in float32, or the
input's type if that is wider.
"""

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dermkit.errors import UsageError

SUPPORTED_LAYERS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNormAct2d")
"""Layers that compute batch norm, then `drop` and `act` if they have these: torch's, and timm's with activation."""


def convert_sync_batch_norm(net: nn.Module) -> nn.Module:
    """Let every batch-norm layer of `net` that is in training mode use the statistics of all ranks; returns `net`.

    Parameters, buffers, their names, hooks and modes stay the same objects: only the layer's class changes, so an
    optimizer may be made before or after. In evaluation mode, and where no process group is joined, a layer runs as
    before. Every rank must run the same layers in the same order, a rank with no image too. A second call changes
    nothing. Raises `UsageError` for a kind of batch norm that is not known.

    Gradients: the loss of a rank is sum(own images) * ranks / count(all images), which DistributedDataParallel's mean
    over ranks makes the mean over all images. The backward pass here sums over ranks what reaches the statistics, and
    does not sum scale and offset, as DistributedDataParallel does that: all gradients then are those of one process
    with the whole batch.
    """
    for name, layer in net.named_modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, _SyncBatchNormMixin):
            if type(layer).__name__ not in SUPPORTED_LAYERS:
                raise UsageError(
                    f"{name}: {type(layer).__name__} cannot be trained on several devices",
                    remedy="use one device, or freeze_batch_norm in the recipe's phases",
                )
            layer.__class__ = _sync_class(type(layer))  # type: ignore[assignment, arg-type]
    return net


class _SyncBatchNormMixin:
    """Replaces a layer's `forward`, which takes (N, C, ...); N may be 0 on some ranks."""

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        if not (layer.training and dist.is_initialized()):
            output: Tensor = super().forward(x)  # type: ignore[misc]
            return output
        layer._check_input_dim(x)
        y: Tensor = _SyncNormalise.apply(x, layer.weight, layer.bias, layer.eps, *_running_statistics(layer))  # type: ignore[no-untyped-call]
        for attribute in ("drop", "act"):
            y = getattr(layer, attribute, nn.Identity())(y)
        return y


@cache
def _sync_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a layer's class with the `forward` of `_SyncBatchNormMixin`, under the same name."""
    return type(layer_class.__name__, (_SyncBatchNormMixin, layer_class), {"__doc__": layer_class.__doc__})


def _running_statistics(layer: Any) -> tuple[Tensor | None, Tensor | None, float]:
    """Return the running mean and variance to update, and the weight of this batch in them (torch's momentum)."""
    if not layer.track_running_stats or layer.running_mean is None:
        return None, None, 0.0
    layer.num_batches_tracked.add_(1)
    momentum = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else float(layer.momentum)
    return layer.running_mean, layer.running_var, momentum


class _SyncNormalise(torch.autograd.Function):
    """The normalisation of one layer over all ranks; statistics in float32, results in the type of the input."""

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
    ) -> Tensor:
        mean, variance, count = _global_statistics(x)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            # The running variance is the unbiased one, as in torch; the batch is normalised by the biased one.
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
        context.save_for_backward(x, weight, mean, variance)
        context.eps, context.count = eps, count
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps) if len(x) else x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of batch norm in training; its two sums over images are taken over all ranks."""
        x, weight, mean, variance = context.saved_tensors
        needs_x, needs_weight, needs_bias = context.needs_input_grad[:3]
        slope, offset = _local_sums(gradient, x, mean, variance, context.eps)
        totals = torch.cat([slope, offset])
        if needs_x:  # every rank has the same layers frozen, so all come here or none
            dist.all_reduce(totals)
        scale = torch.rsqrt(variance + context.eps)
        input_gradient = (
            _input_gradient(gradient, x, mean, scale, weight, totals / context.count) if needs_x else None
        )
        parameter_gradients = [
            gradient_sum.to(weight.dtype) if is_needed else None
            for gradient_sum, is_needed in ((slope, needs_weight), (offset, needs_bias))
        ]
        return input_gradient, *parameter_gradients, None, None, None, None


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean and biased variance per channel, (C,), and the number of values per channel, over all ranks.

    The ranks' statistics are combined in rank order and float64, by the rule of Chan, Golub and LeVeque 1979, so that
    all ranks get the same bits.
    """
    channels, dtype = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    local_statistics = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if x.numel():
        # With running statistics to write to, torch keeps their float32 also for a bfloat16 input.
        scratch = torch.zeros(2, channels, dtype=dtype, device=x.device)
        local_statistics[:-1] = torch.cat(torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0))
        local_statistics[-1] = x.numel() // channels
    rank_statistics = [torch.empty_like(local_statistics) for _ in range(dist.get_world_size())]
    dist.all_gather(rank_statistics, local_statistics)
    table = torch.stack(rank_statistics)
    means, variances, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
    count = float(counts.sum())
    if count < 2:
        raise ValueError("batch norm cannot train on one value per channel")  # as torch's own layer
    mean = (means * counts).sum(0) / count
    variance = ((variances + (means - mean) ** 2) * counts).sum(0) / count
    return mean.to(dtype), variance.to(dtype), count


def _local_sums(gradient: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the sums over this rank's values of gradient * normalised x, and of gradient, (C,) each."""
    if not len(x):
        return torch.zeros_like(mean), torch.zeros_like(mean)
    mask = [False, True, True]
    _, slope, offset = torch.ops.aten.native_batch_norm_backward(
        gradient, x, torch.ones_like(mean), mean, variance, None, None, False, eps, mask
    )
    return slope, offset


def _input_gradient(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, mean_sums: Tensor
) -> Tensor:
    """Return weight * scale * (gradient - mean gradient - normalised x * mean slope), rounded once to x's type."""
    slope, offset = mean_sums.chunk(2)
    gain = scale if weight is None else scale * weight
    shape = (1, -1, *[1] * (x.dim() - 2))
    gradient_factor, x_factor = gain.view(shape), (-gain * slope * scale).view(shape)
    constant = (gain * (slope * scale * mean - offset)).view(shape)
    dtype = mean.dtype
    return torch.addcmul(torch.addcmul(constant, gradient.to(dtype), gradient_factor), x.to(dtype), x_factor).to(
        x.dtype
    )
