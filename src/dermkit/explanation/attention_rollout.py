"""Attention roll-out of timm's transformers: how much of the tokens that a net reads comes from each patch.

Two methods, from the attention matrices A of all blocks (heads averaged), R = the identity before the first block:
- gradient-weighted (Chefer, Gur and Wolf 2021), of one class: R + mean(max(0, dA * A)) R, dA the gradient of its score;
- plain (Abnar and Zuidema 2020), the same for every class: (A + identity) / 2 R.

timm's fused attention hides the matrices. Its AttentionExtract runs the backbone alone, without the head and its
gradient, so the modules' own flag `fused_attn` is turned off for one pass here, and turned back.

Shapes: L tokens, P of them before those of the image (class token, registers), H heads, S x S pixels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dermkit.explanation.target import ROLLOUT_NAME
from dermkit.models.net import Net

RolloutMethod = Literal["gradient-rollout", "rollout"]
ROLLOUT_NAMES = {"gradient-rollout": "gradient-weighted attention roll-out", "rollout": ROLLOUT_NAME}

_ATTENTION_CLASSES = ("Attention", "AttentionRope", "EvaAttention")
"""timm's attention of all tokens to all tokens, one matrix a head, which goes through `attn_drop`. Windows, differences
of two matrices and linear attention are other classes."""


def why_no_rollout(net: Net) -> str:
    """Return why a net has no attention roll-out, "" if it has."""
    blocks = getattr(net.backbone, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(net.backbone, "num_prefix_tokens"):
        return "attention roll-out needs blocks in which every token attends to all (ViT, DeiT, EVA)"
    foreign_blocks = [type(block).__name__ for block in blocks if not _is_global(block)]
    if foreign_blocks:
        return (
            f"attention roll-out needs blocks in which every token attends to all, and {foreign_blocks[0]} is none"
        )
    if not _attentions(net.backbone):
        return "attention roll-out needs blocks with attention, and the net has none"
    if _read_tokens(net.backbone) is None:
        return "attention roll-out needs a net that reads a class token or the mean of all patches"
    return ""


def _is_global(block: nn.Module) -> bool:
    """Whether a block has attention of all tokens to all; a block that a recipe skips is an identity."""
    return isinstance(block, nn.Identity) or type(getattr(block, "attn", None)).__name__ in _ATTENTION_CLASSES


def _attentions(backbone: Any) -> list[Any]:
    """Return the attention of each block, from the image to the features."""
    return [block.attn for block in backbone.blocks if not isinstance(block, nn.Identity)]


def _read_tokens(backbone: Any) -> slice | None:
    """Return which tokens pooling takes the mean of, None where it does something else."""
    if getattr(backbone, "attn_pool", None) is not None:
        return None
    if getattr(backbone, "dist_token", None) is not None:
        return slice(0, 2)  # DeiT's distillation token beside the class token, whatever `global_pool` says
    pooling = getattr(backbone, "global_pool", "")
    if pooling == "token":
        return slice(0, 1)
    has_prefix = getattr(backbone, "pool_include_prefix", False)
    return slice(0 if has_prefix else backbone.num_prefix_tokens, None) if pooling == "avg" else None


def reads_class_token(net: Net) -> bool:
    """Whether a net reads its class token (and DeiT's distillation token) and no patch."""
    tokens = _read_tokens(net.backbone)
    return tokens is not None and tokens.stop is not None


@contextmanager
def attention_matrices(net: Net) -> Iterator[list[Tensor]]:
    """Collect the attention matrices of a net's passes within a block, (N, H, L, L) each, from the first block on."""
    matrices: list[Tensor] = []

    def collect(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        matrices.append(output)

    modules = _attentions(net.backbone)
    flags = [module.fused_attn for module in modules]
    handles = []
    try:
        for module in modules:
            module.fused_attn = False
            handles.append(module.attn_drop.register_forward_hook(collect))
        yield matrices
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in zip(modules, flags, strict=True):
            module.fused_attn = flag


def rollout_evidence(
    net: Net, inputs: Tensor, score: Callable[[Tensor], Tensor], *, method: RolloutMethod
) -> Tensor:
    """Return how much of the tokens that a net reads comes from each pixel, (S, S), at least 0.

    score: inputs (1, 3, S, S) float32 -> what is explained, (1,), through `net`.
    """
    has_gradient = method == "gradient-rollout"
    with attention_matrices(net) as matrices, torch.set_grad_enabled(has_gradient):
        value = score(inputs.requires_grad_(has_gradient))
    flows = _gradient_flows(value, matrices) if has_gradient else _plain_flows(matrices)
    identity = torch.eye(len(flows[0]), device=inputs.device)
    relevance = identity
    for flow in flows:
        relevance = flow @ relevance
    if (
        has_gradient
    ):  # the identity says nothing of a class: without it a net that attends to nothing has no evidence
        relevance = relevance - identity
    patches = relevance[_read_tokens(net.backbone)].mean(dim=0)[net.backbone.num_prefix_tokens :]
    n_patches_across = math.isqrt(len(patches))  # inputs are square, so are their patches
    grid = patches.reshape(1, 1, n_patches_across, n_patches_across)
    size = inputs.shape[-2:]
    return torch.nn.functional.interpolate(grid, size, mode="bilinear", align_corners=False)[0, 0].detach()


def _gradient_flows(value: Tensor, matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return identity + the mean over heads of the positive part of gradient times attention, (L, L) a block."""
    gradients = torch.autograd.grad(value.sum(), matrices)
    flows = [(dA * A)[0].clamp_min(0).mean(dim=0) for dA, A in zip(gradients, matrices, strict=True)]
    return [flow + torch.eye(len(flow), device=flow.device) for flow in flows]


def _plain_flows(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean of a block's attention, over heads, and the identity, (L, L), which stands for the residual."""
    means = [matrix[0].mean(dim=0) for matrix in matrices]
    return [(mean + torch.eye(len(mean), device=mean.device)) / 2 for mean in means]
