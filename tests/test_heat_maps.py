"""Heat maps of nets: each family of the table against a reference, occlusion against a formula, ensembles, frames."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermkit.data.manifest import LesionClass
from dermkit.errors import UsageError
from dermkit.explanation.frames import to_image, to_input
from dermkit.explanation.heat_maps import NetExplainer, log_odds, occlusion_evidence, scale_to_one
from dermkit.explanation.layers import MAP_LAYERS, family_of, find_map_layer
from dermkit.explanation.model_maps import ModelExplainer
from dermkit.explanation.target import EvidenceTarget, choose_target
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.metrics.decisions.recalibration import ProbabilityCalibration
from dermkit.models.cnn import cnn_s1, cnn_s4
from dermkit.models.heads import BoostedTreesHead
from dermkit.models.inference import TorchRuntime
from dermkit.models.members import MemberFields
from dermkit.models.net import Net
from dermkit.models.weights import import_timm
from dermkit.prediction.predictor import Predictor

SMALL_SWIN = {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}
SMALL_VIT = {"img_size": 64, "depth": 2}
BACKBONES: list[tuple[str, str, dict[str, Any]]] = [
    ("cnn", "dermkit/cnn-s1", {}),
    ("cnn", "dermkit/cnn-s4", {}),
    ("resnet", "resnet10t", {}),
    ("resnetv2", "resnetv2_50", {"layers": (1, 1, 1, 1)}),
    ("densenet", "densenet121", {"block_config": (1, 1, 1, 1)}),
    ("inception_v3", "inception_v3", {}),
    ("regnet", "regnetx_002", {}),
    ("efficientnet", "mobilenetv2_035", {}),
    ("mobilenetv3", "mobilenetv3_small_050", {}),
    ("convnext", "convnext_atto", {"depths": (1, 1, 1, 1)}),
    ("swin_transformer", "swin_tiny_patch4_window7_224", SMALL_SWIN),
    ("swin_transformer_v2", "swinv2_tiny_window8_256", SMALL_SWIN),
    ("maxxvit", "coatnet_pico_rw_224", {"img_size": 64}),
    ("byobnet", "mobilevit_xxs", {}),
    ("vision_transformer", "vit_tiny_patch16_224", SMALL_VIT),
    ("vision_transformer", "vit_tiny_patch16_224", {**SMALL_VIT, "global_pool": "avg"}),
    ("vision_transformer", "vit_tiny_r_s16_p8_224", SMALL_VIT),
    ("deit", "deit_tiny_distilled_patch16_224", SMALL_VIT),
    ("eva", "eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}),
]


def preprocessing_of(size: int, **changes: Any) -> Preprocessing:
    return Preprocessing(
        **{
            "size": size, "resize": "squash", "interpolation": "bilinear", "divide_by": 255.0,
            "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), **changes,
        }
    )  # fmt: skip


def make_net(backbone: nn.Module, n_features: int, n_classes: int = 3) -> Net:
    net = Net(backbone, nn.Sequential(nn.Linear(n_features, n_classes)), n_features)
    return net.eval().requires_grad_(False)


def make_backbone(name: str, arguments: dict[str, Any]) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    if name.startswith("dermkit/"):
        return (cnn_s1(), 2048) if name.endswith("s1") else (cnn_s4(), 256)
    backbone: nn.Module = import_timm().create_model(name, num_classes=0, **arguments)
    size = int(arguments.get("img_size", 96))
    with torch.no_grad():
        n_features = backbone.eval()(torch.zeros(1, 3, size, size)).shape[1]
    return backbone, n_features


def reference_map(net: Net, x: Tensor, target: EvidenceTarget) -> NDArray[np.float32]:
    """Grad-CAM, written anew: on what timm's own `forward_features` gives, or at a hook where a class token is read."""
    backbone: Any = net.backbone
    reads_class_token = getattr(backbone, "global_pool", "") == "token"
    outputs: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output)

    x = x.clone().requires_grad_(True)
    if not hasattr(backbone, "forward_features"):
        activation = x
        for block in backbone.blocks:
            activation = block(activation)
        logits = net.head(backbone.pool(activation))
    elif reads_class_token:
        handle = backbone.blocks[-1].norm1.register_forward_hook(hook)
        logits = net(x)
        handle.remove()
        activation = outputs[0]
    else:
        activation = backbone.forward_features(x)
        logits = net.head(backbone.forward_head(activation))
    other_logits = torch.cat([logits[0, : target.class_index], logits[0, target.class_index + 1 :]])
    gradient = torch.autograd.grad(logits[0, target.class_index] - other_logits.logsumexp(0), activation)[0]
    maps = [as_channels(backbone, tensor[0].detach()) for tensor in (activation, gradient)]
    is_mean = not reads_class_token and hasattr(backbone, "forward_features")
    weights = maps[1].mean(dim=(1, 2), keepdim=True) if is_mean else maps[1]
    cam = (weights * maps[0]).sum(0).clamp_min(0)[None, None]
    enlarged = nn.functional.interpolate(cam, x.shape[-2:], mode="bilinear", align_corners=False)[0, 0].numpy()
    return np.asarray(enlarged / enlarged.max() if enlarged.max() > 0 else enlarged, dtype=np.float32)


def as_channels(backbone: Any, tensor: Tensor) -> Tensor:
    """Return (C, h, w) of a map, of a map with channels last, or of tokens behind a class token."""
    if tensor.ndim == 2:
        patches = tensor[backbone.num_prefix_tokens :]
        n_across = round(len(patches) ** 0.5)
        return patches.T.reshape(-1, n_across, n_across)
    return tensor.permute(2, 0, 1) if tensor.shape[-1] == getattr(backbone, "num_features", 0) else tensor


@pytest.mark.parametrize(("family", "name", "arguments"), BACKBONES)
def test_a_family_agrees_with_an_independent_grad_cam(family: str, name: str, arguments: dict[str, Any]) -> None:
    size = int(arguments.get("img_size", 96))
    net = make_net(*make_backbone(name, arguments))
    assert family_of(net) == family
    names = [module for module, _ in net.named_modules()]
    pixels = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    explainer = NetExplainer(net, preprocessing_of(size), method="gradient", batch_size=4)
    x = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25
    largest = []
    for class_index in range(3):
        target = EvidenceTarget(class_index)
        expected = reference_map(net, x, target)
        np.testing.assert_allclose(explainer(pixels, target), expected, atol=2e-4)
        largest.append(expected.max())
    assert max(largest) == 1.0
    assert [module for module, _ in net.named_modules()] == names


def test_every_family_of_the_table_is_tested() -> None:
    assert set(MAP_LAYERS) == {family for family, _, _ in BACKBONES}


class CornerHead(nn.Module):
    """Reads the first of the 4 x 4 cells of cnn-s1 alone: logit 1 is its mean, logit 0 is 0."""

    def forward(self, features: Tensor) -> Tensor:
        corner = features.reshape(len(features), 128, 16)[:, :, 0].mean(dim=1)
        return torch.stack([torch.zeros_like(corner), corner], dim=1)


def test_a_net_that_reads_one_corner_has_its_map_there() -> None:
    torch.manual_seed(0)
    net = Net(cnn_s1(), CornerHead(), 2048).eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[:32, :32] = pixels[32:, 32:] = rng.integers(0, 256, (32, 32, 3))
    for method in ("gradient", "occlusion"):
        heat_map = NetExplainer(net, preprocessing_of(64), method=method, batch_size=16)(pixels, EvidenceTarget(1))
        assert heat_map.max() == 1
        assert heat_map[:28, :28].sum() > 0.9 * heat_map.sum(), method


def test_occlusion_of_a_linear_net_is_its_formula() -> None:
    size, window, stride = 36, 5, 2
    torch.manual_seed(0)
    linear = nn.Linear(3 * size * size, 2).double()
    net = nn.Sequential(nn.Flatten(), linear)
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    evidence = occlusion_evidence(x, lambda z: log_odds(net(z), EvidenceTarget(1)), batch_size=7)
    weight = (linear.weight[1] - linear.weight[0]).detach().reshape(3, size, size)
    loss = (weight * (x[0] - x[0].mean(dim=(1, 2), keepdim=True))).sum(0).numpy()
    total, count = np.zeros((size, size)), np.zeros((size, size))
    for top in range(0, size - window + stride, stride):
        for left in range(0, size - window + stride, stride):
            area = np.s_[top : top + window, left : left + window]
            total[area] += loss[area].sum()
            count[area] += 1
    np.testing.assert_allclose(evidence.numpy(), total / count, rtol=1e-5, atol=1e-6)


class OddBackbone(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def test_a_family_that_the_table_does_not_know_gets_occlusion_and_says_so() -> None:
    net = make_net(OddBackbone(), 3)
    assert find_map_layer(net) is None
    explainer = NetExplainer(net, preprocessing_of(24), method="auto", batch_size=8)
    assert (explainer.name, explainer.layer) == ("occlusion", "")
    assert "does not know its family" in explainer.reason
    with pytest.raises(UsageError, match="does not know its family"):
        NetExplainer(net, preprocessing_of(24), method="gradient", batch_size=8)


def test_a_tree_head_gets_occlusion() -> None:
    net = Net(cnn_s4(), BoostedTreesHead(256, 3, 2, 3), 256).eval().requires_grad_(False)
    explainer = NetExplainer(net, preprocessing_of(32), method="auto", batch_size=8)
    assert explainer.name == "occlusion"
    assert "no useful gradient" in explainer.reason


def test_evidence_is_the_log_odds_of_the_probability() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    p = torch.softmax(logits, 1)
    torch.testing.assert_close(log_odds(logits, EvidenceTarget(2)), torch.log(p[:, 2] / (1 - p[:, 2])))
    torch.testing.assert_close(log_odds(logits, EvidenceTarget(2, 0)), torch.log(p[:, 2] / p[:, 0]))
    torch.testing.assert_close(log_odds(logits + 7, EvidenceTarget(1)), log_odds(logits, EvidenceTarget(1)))


def test_evidence_against_a_class_is_no_evidence_for_it() -> None:
    assert scale_to_one(np.array([[-2.0, 1.0], [0.5, 0.0]])).tolist() == [[0.0, 1.0], [0.5, 0.0]]
    assert scale_to_one(np.array([[-2.0, -1.0]])).tolist() == [[0.0, 0.0]]


def test_the_target_follows_the_prediction_and_the_names() -> None:
    names = ("nevus", "melanoma", "keratosis")
    p = np.array([0.5, 0.2, 0.3])
    assert choose_target(names, None, None).for_image(p) == EvidenceTarget(0)
    assert choose_target(names, "melanoma", "nevus").for_image(p) == EvidenceTarget(1, 0)
    assert choose_target(names, None, "nevus").for_image(p) == EvidenceTarget(2, 0)
    assert EvidenceTarget(1, 0).for_columns((2, 0, 1)) == EvidenceTarget(0, 2)
    assert EvidenceTarget(1, 0).probability(p[None])[0] == pytest.approx(0.2 / 0.7)
    with pytest.raises(UsageError, match="did you mean `melanoma`"):
        choose_target(names, "melanom", None)
    with pytest.raises(UsageError, match="against itself"):
        choose_target(names, "nevus", "nevus")


def make_predictor(nets: Sequence[Net], members: Sequence[MemberFields]) -> Predictor:
    classes = tuple(LesionClass(name, "", "benign") for name in ("a", "b", "c"))
    return Predictor(Path("model"), classes, tuple(members), TorchRuntime(tuple(nets)), {}, "")


def test_an_ensemble_has_the_weighted_mean_of_its_members_maps() -> None:
    calibration = ProbabilityCalibration("none", 1.0, (0.0, 0.0, 0.0))
    fields = MemberFields("a", {}, preprocessing_of(32), calibration, (0, 1, 2), ("identity", "flip"), 0.25)
    members = [fields, replace(fields, file="b", class_order=(2, 0, 1), weight=0.75)]
    nets = []
    for seed in range(2):
        torch.manual_seed(seed)
        nets.append(make_net(cnn_s1(), 2048))
    explainer = ModelExplainer(make_predictor(nets, members))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    heat_map = explainer.map_image(explainer.resize(pixels), EvidenceTarget(1, 2), (32, 32))
    alone = [
        NetExplainer(net, preprocessing_of(32), method="auto", batch_size=4)(pixels, target)
        for net, target in zip(nets, (EvidenceTarget(1, 2), EvidenceTarget(0, 1)), strict=True)
    ]
    mean = 0.25 * alone[0] + 0.75 * alone[1]
    np.testing.assert_allclose(heat_map.combined, mean / mean.max(), atol=1e-6)
    np.testing.assert_array_equal(heat_map.members[1], alone[1])


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (80, 80)])
def test_a_map_lies_where_the_image_was(resize: str, shape: tuple[int, int]) -> None:
    pixels = np.zeros((*shape, 3), np.uint8)
    top, left = shape[0] // 2 - 18, shape[1] // 2 + 6
    pixels[top : top + 12, left : left + 12] = 255
    preprocessing = preprocessing_of(40, resize=resize)
    resized = np.asarray(resize_pixels(pixels, preprocessing)[..., 0] / 255, dtype=np.float32)
    framed = to_image(resized, preprocessing, shape)
    assert framed.shape == shape
    is_seen = ~np.isnan(framed)
    n_across = min(shape)
    assert is_seen.sum() == (n_across * n_across if resize == "crop" else shape[0] * shape[1])
    rows, columns = np.indices(shape)
    weights = np.nan_to_num(framed)
    centre = (rows * weights).sum() / weights.sum(), (columns * weights).sum() / weights.sum()
    assert centre == pytest.approx((top + 5.5, left + 5.5), abs=1.0)
    back = np.nan_to_num(to_input(np.asarray(np.nan_to_num(framed), np.float32), preprocessing))
    assert np.abs(back - resized).mean() < 0.03


def test_a_net_with_a_second_input_is_explained_with_it_unknown() -> None:
    torch.manual_seed(0)
    net = Net(cnn_s4(), nn.Sequential(nn.Linear(256 + 5, 3)), 256, n_metadata=5).eval().requires_grad_(False)
    plain = Net(net.backbone, nn.Sequential(nn.Linear(256, 3)), 256).eval().requires_grad_(False)
    plain.head[0].weight.data = net.head[0].weight[:, :256]  # type: ignore[index]
    plain.head[0].bias.data = net.head[0].bias  # type: ignore[index]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    maps = [
        NetExplainer(one, preprocessing_of(32), method="auto", batch_size=4)(pixels, EvidenceTarget(1))
        for one in (net, plain)
    ]
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-6)
