"""Attention roll-out: against a reference on timm's fused attention, planted evidence, the net's state, refusals."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermkit.errors import UsageError
from dermkit.explanation.attention_rollout import attention_matrices, rollout_evidence, why_no_rollout
from dermkit.explanation.heat_maps import NetExplainer
from dermkit.explanation.target import EvidenceTarget, MapMethod
from dermkit.models.heads import BoostedTreesHead
from dermkit.models.net import Net
from dermkit.models.weights import import_timm
from test_heat_maps import SMALL_SWIN, make_backbone, make_net, preprocessing_of

SMALL_VIT = {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 2}
NETS: dict[str, tuple[str, dict[str, Any], list[int] | None]] = {
    "class token": ("vit_tiny_patch16_224", SMALL_VIT, [0]),
    "mean": ("vit_tiny_patch16_224", {**SMALL_VIT, "global_pool": "avg"}, None),
    "mean without a class token": (
        "vit_tiny_patch16_224", {**SMALL_VIT, "global_pool": "avg", "class_token": False, "reg_tokens": 3}, None,
    ),
    "registers": ("vit_tiny_patch16_224", {**SMALL_VIT, "reg_tokens": 3}, [0]),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL_VIT, [0, 1]),
    "rotary": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2, "embed_dim": 24, "num_heads": 2}, None),
    "convolutional stem": ("vit_tiny_r_s16_p8_224", SMALL_VIT, [0]),
}  # fmt: skip
"""Name -> backbone, arguments, and the tokens that it reads; None = those of the patches."""


@pytest.fixture
def matrices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Put softmax(q k' / sqrt(d)) v in the place of torch's fused attention, and collect its matrices."""
    collected: list[Tensor] = []

    def by_hand(q: Tensor, k: Tensor, v: Tensor, **_options: Any) -> Tensor:
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        collected.append(weights)
        return weights @ v

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", by_hand)
    yield collected


def reference_rollout(
    matrices: list[NDArray[np.float64]], gradients: list[NDArray[np.float64]] | None, rows: list[int]
) -> NDArray[np.float64]:
    """Return the relevance of all tokens, (L,), written anew: a row vector goes back through the blocks."""
    n = matrices[0].shape[-1]
    row = np.isin(np.arange(n), rows) / len(rows)
    start = row.copy()
    for index in reversed(range(len(matrices))):
        heads = matrices[index] if gradients is None else np.maximum(matrices[index] * gradients[index], 0)
        flow = np.einsum("hij->ij", heads) / len(heads)
        row = (row @ flow + row) / (2 if gradients is None else 1)
    return row if gradients is None else row - start


@pytest.mark.parametrize("name", NETS)
def test_it_agrees_with_a_reference_on_fused_attention(name: str, matrices: list[Tensor]) -> None:
    backbone_name, arguments, read = NETS[name]
    backbone, n_features = make_backbone(backbone_name, arguments)
    n_prefix: Any = backbone.num_prefix_tokens
    net = make_net(backbone, n_features)
    assert why_no_rollout(net) == ""
    matrices.clear()
    size = arguments["img_size"]
    pixels = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    x = ((torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25).requires_grad_(True)
    logits = net(x)[0]
    assert len(matrices) == 2
    gradients = torch.autograd.grad(logits[2] - torch.logsumexp(logits[:2], 0), matrices)
    attention, gradient = ([one.detach()[0].double().numpy() for one in group] for group in (matrices, gradients))
    rows = read or list(range(n_prefix, attention[0].shape[-1]))
    matrices.clear()
    for method, weights in (("gradient-rollout", gradient), ("rollout", None)):
        patches = reference_rollout(attention, weights, rows)[n_prefix:].reshape(
            1, 1, round((len(attention[0][0]) - n_prefix) ** 0.5), -1
        )
        grid = torch.from_numpy(patches)
        expected = nn.functional.interpolate(grid, (size, size), mode="bilinear")[0, 0].numpy()
        assert expected.max() > 0
        explainer = NetExplainer(net, preprocessing_of(size), method=method, batch_size=4)  # type: ignore[arg-type]
        assert explainer.name.endswith("attention roll-out") and explainer.layer == ""
        np.testing.assert_allclose(explainer(pixels, EvidenceTarget(2)), expected / expected.max(), atol=2e-4)
    assert matrices == []  # the fused attention was not used


def test_the_net_is_left_as_it_was() -> None:
    net = make_net(*make_backbone("vit_tiny_patch16_224", SMALL_VIT))
    blocks: Any = net.backbone.blocks
    blocks[0].attn.fused_attn = False
    blocks[1].attn.fused_attn = True
    pixels = np.zeros((64, 64, 3), np.uint8)
    NetExplainer(net, preprocessing_of(64), method="gradient-rollout", batch_size=4)(pixels, EvidenceTarget(0))
    with pytest.raises(ZeroDivisionError), attention_matrices(net):
        assert [block.attn.fused_attn for block in blocks] == [False, False]
        raise ZeroDivisionError
    assert [block.attn.fused_attn for block in blocks] == [False, True]
    assert not any(module._forward_hooks for module in net.modules())


def test_a_block_that_the_recipe_skips_changes_nothing() -> None:
    backbone, n_features = make_backbone("vit_tiny_patch16_224", {**SMALL_VIT, "depth": 3})
    net, x = make_net(backbone, n_features), torch.randn(1, 3, 64, 64)
    blocks: Any = backbone.blocks
    blocks[2] = nn.Identity()
    with_identity = rollout_evidence(net, x, lambda z: net(z)[:, 0], method="gradient-rollout")
    backbone.blocks = blocks[:2]
    assert torch.equal(with_identity, rollout_evidence(net, x, lambda z: net(z)[:, 0], method="gradient-rollout"))


@pytest.mark.parametrize(
    ("backbone", "arguments", "reason"),
    [
        ("swin_tiny_patch4_window7_224", SMALL_SWIN, "needs blocks in which every token attends to all"),
        ("vit_tiny_patch16_224", {**SMALL_VIT, "attn_layer": "diff"}, "and Block is none"),
        ("vit_tiny_patch16_224", {**SMALL_VIT, "global_pool": "map"}, "reads a class token or the mean"),
        ("vit_tiny_patch16_224", {**SMALL_VIT, "global_pool": "max"}, "reads a class token or the mean"),
        ("resnet10t", {}, "needs blocks in which every token attends to all"),
    ],
)
def test_other_nets_are_refused_with_the_reason(backbone: str, arguments: dict[str, Any], reason: str) -> None:
    net = make_net(*make_backbone(backbone, arguments))
    methods: tuple[MapMethod, ...] = ("gradient-rollout", "rollout")
    for method in methods:
        with pytest.raises(UsageError, match=rf"--method {method}: attention roll-out .*{reason}") as caught:
            NetExplainer(net, preprocessing_of(64), method=method, batch_size=4)
        assert "occlusion" in caught.value.remedy


def test_without_a_gradient_the_plain_roll_out_is_left() -> None:
    backbone, n_features = make_backbone("vit_tiny_patch16_224", SMALL_VIT)
    net = Net(backbone, BoostedTreesHead(n_features, 3, 2, 3), n_features).eval().requires_grad_(False)
    with pytest.raises(UsageError, match="no useful gradient"):
        NetExplainer(net, preprocessing_of(64), method="gradient-rollout", batch_size=4)
    explainer = NetExplainer(net, preprocessing_of(64), method="rollout", batch_size=4)
    assert explainer(np.zeros((64, 64, 3), np.uint8), EvidenceTarget(0)).max() == 1


def planted_net(pooling: str) -> Net:
    """Return a ViT of 4 x 4 patches with weights written by hand: logit 1 is the redness of one patch, logit 0 is 0.

    Channels of a token: 0 redness, 1 to 17 its position (0 = class token), 18 what block 1 and 19 what block 2 brings.
    With a class token the redness of patch 16 goes to patch 1 in block 1, and from there to the class token in block 2.
    Without, the mean is read of tokens whose attention is off.
    """
    vit = import_timm().models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=20, depth=2, num_heads=1, mlp_ratio=0.1, num_classes=0,
        global_pool=pooling, class_token=pooling == "token", norm_layer=nn.Identity,
    )  # fmt: skip
    for parameter in vit.parameters():
        parameter.data.zero_()
    vit.patch_embed.proj.weight.data[0, 0] = 1 / 64
    head = nn.Linear(20, 2)
    head.weight.data.zero_()
    head.bias.data.zero_()
    if pooling == "token":
        vit.pos_embed.data[0, :, 1:18] = torch.eye(17)
        for block, (reader, source, channel) in zip(vit.blocks, [(1, 16, 0), (0, 1, 18)], strict=True):
            q, k, v = block.attn.qkv.weight.data.split(20)
            q[0, 1 + reader], k[0, 1 + source] = (
                20 * 20**0.5,
                1,
            )  # `reader` attends to `source` alone, others evenly
            v[0, channel] = 1
            block.attn.proj.weight.data[19 if channel else 18, 0] = 1
        head.weight.data[1, 19] = 1
    else:
        head.weight.data[1, 0] = 1
    return Net(vit, nn.Sequential(head), 20).eval().requires_grad_(False)


def patch_means(heat_map: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(heat_map.reshape(4, 8, 4, 8).mean(axis=(1, 3)).ravel(), dtype=np.float64)


def maps_of(net: Net, *methods: MapMethod) -> list[NDArray[np.float64]]:
    pixels = np.full((32, 32, 3), 255, np.uint8)  # red in all patches: where the net looks decides
    explainers = [NetExplainer(net, preprocessing_of(32), method=method, batch_size=64) for method in methods]
    return [patch_means(explainer(pixels, EvidenceTarget(1))) for explainer in explainers]


def test_evidence_that_goes_through_two_blocks_is_found_by_roll_out_and_not_at_the_last_layer() -> None:
    net = planted_net("token")
    x = torch.full((1, 3, 32, 32), 2.0)
    assert net(x)[0, 1] == pytest.approx(2.0, abs=1e-4)
    x[:, :, 24:, 24:] = 0.5  # patch 16
    assert net(x)[0, 1] == pytest.approx(0.5, abs=1e-4)
    last_layer, rollout = maps_of(net, "gradient", "gradient-rollout")
    assert last_layer[0] == last_layer.max() and last_layer[15] < 1e-6
    assert (
        rollout[15] == rollout.max()
        and rollout[15] > rollout[0] > 10 * np.delete(rollout, [0, 1, 4, 5, 10, 11, 14, 15]).max()
    )
    assert NetExplainer(net, preprocessing_of(32), method="auto", batch_size=4).name.startswith(
        "gradient-weighted"
    )


def test_evidence_that_goes_past_attention_is_found_at_the_last_layer_alone() -> None:
    net = planted_net("avg")
    last_layer, rollout = maps_of(net, "gradient", "gradient-rollout")
    assert last_layer.min() > 0.9 and rollout.max() == 0
    assert NetExplainer(net, preprocessing_of(32), method="auto", batch_size=4).layer == "norm"
