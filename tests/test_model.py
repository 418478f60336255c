"""Building, loading and freezing nets; every refusal of weights."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dermkit.errors import UntrustedError, UsageError
from dermkit.files import sha256_file
from dermkit.models import net as models_net
from dermkit.models.net import Net, build_net, freeze, parameter_groups, set_train_mode
from dermkit.models.weights import BackboneWeights, import_timm, resolve_weights
from dermkit.recipes.schema import ImageSpec, ModelSpec
from dermkit.recipes.training_specs import Phase

NONE = BackboneWeights("none", None, "", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "", (), "")
RESNET = ModelSpec(
    backbone="test_resnet",
    backbone_args={},
    weights="imagenet",
    skip_blocks=(),
    hidden=(8,),
    dropout=0.5,
    drop_path=0.0,
    classifier=None,
    metadata=None,
)
BOTH = ["test_resnet", "test_efficientnet", "dermkit/cnn-s4"]


def spec(backbone: str) -> ModelSpec:
    return replace(RESNET, backbone=backbone, weights="none")


def phase(train_backbone: Any, *, freeze_batch_norm: bool = False) -> Phase:
    return Phase(
        epochs=1, train_backbone=train_backbone, head_lr=0.1, backbone_lr=0.01, views=0,
        freeze_batch_norm=freeze_batch_norm, patience=0,
        layer_decay=1.0, image_size=0,
    )  # fmt: skip


def net_of(backbone: str, seed: int = 0) -> Net:
    return build_net(spec(backbone), 3, weights=NONE, seed=seed)


def train_step(net: Net, how: Phase) -> set[str]:
    """Take two steps as the trainer would and return the names of the backbone's tensors that changed."""
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    freeze(net, how)
    optimizer = torch.optim.AdamW(parameter_groups(net, how), weight_decay=0.1)
    for _ in range(2):
        set_train_mode(net, how)
        logits = net(torch.rand(4, 3, 64, 64))
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, value in net.backbone.state_dict().items() if not torch.equal(value, before[name])}


# Building


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "dermkit/cnn-s1", "dermkit/cnn-s4"])
def test_a_seed_decides_every_tensor_and_the_global_generator_is_left_alone(backbone: str) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, again, other = net_of(backbone, 1), net_of(backbone, 1), net_of(backbone, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert models_net.backbone_fingerprint(first) == models_net.backbone_fingerprint(again)
    assert models_net.backbone_fingerprint(first) != models_net.backbone_fingerprint(other)
    pairs = zip(first.head.parameters(), again.head.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_head_follows_the_recipe() -> None:
    net = build_net(replace(spec("test_resnet"), hidden=(16, 8)), 5, weights=NONE, seed=0)
    kinds = [type(layer).__name__ for layer in net.head.children()]
    assert kinds == ["Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert net.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert net.features(torch.rand(2, 3, 32, 32)).shape == (2, net.n_features)


@pytest.mark.parametrize(("backbone", "features"), [("dermkit/cnn-s1", 2048), ("dermkit/cnn-s4", 256)])
@pytest.mark.parametrize("side", [16, 50, 96])
def test_own_nets_take_any_side(backbone: str, features: int, side: int) -> None:
    net = net_of(backbone).eval()
    assert net.n_features == features
    assert net.features(torch.rand(2, 3, side, side)).shape == (2, features)


def test_a_skipped_block_is_left_out_and_changes_the_features() -> None:
    whole = net_of("test_resnet")
    cut = build_net(replace(spec("test_resnet"), skip_blocks=("layer4",)), 3, weights=NONE, seed=0)
    assert isinstance(cut.backbone.get_submodule("layer4"), torch.nn.Identity)
    assert not any(name.startswith("layer4") for name in cut.backbone.state_dict())
    assert cut.n_features != whole.n_features


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": "resnet5O"}, "did you mean `resnet50`"),
        ({"backbone": "resnet50.a1_in1"}, "did you mean `resnet50.a1_in1k`"),
        ({"backbone": "dermkit/cnn-s2"}, "did you mean `dermkit/cnn-s"),
        ({"skip_blocks": ("layer44",)}, "did you mean `layer4`"),
        ({"backbone_args": {"pad_tipe": "same"}}, "cannot build"),
        ({"backbone_args": {"checkpoint_path": "weights.pth"}}, "may not set checkpoint_path"),
        ({"backbone": "dermkit/cnn-s1", "backbone_args": {"width": 2}}, "takes no arguments"),
    ],
)
def test_a_wrong_net_is_a_usage_error(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_net(replace(spec("test_resnet"), **change), 3, weights=NONE, seed=0)


# Freezing


@pytest.mark.parametrize("backbone", BOTH)
def test_a_frozen_backbone_stays_bit_identical_batch_norm_statistics_too(backbone: str) -> None:
    net = net_of(backbone)
    fingerprint = models_net.backbone_fingerprint(net)
    assert train_step(net, phase("none")) == set()
    assert models_net.backbone_fingerprint(net) == fingerprint
    assert not any(module.training for module in net.backbone.modules())
    assert net.head.training


@pytest.mark.parametrize("backbone", BOTH)
def test_a_backbone_that_learns_changes_its_weights_and_statistics(backbone: str) -> None:
    net = net_of(backbone)
    fingerprint = models_net.backbone_fingerprint(net)
    changed = train_step(net, phase("all"))
    assert {name for name, _ in net.backbone.named_parameters()} <= changed
    assert any(name.endswith("running_mean") for name in changed)
    assert models_net.backbone_fingerprint(net) != fingerprint


@pytest.mark.parametrize("backbone", BOTH)
def test_the_last_groups_learn_and_the_others_do_not(backbone: str) -> None:
    net = net_of(backbone)
    groups = models_net.layer_groups(net)
    assert sorted(name for group in groups for name in group) == sorted(
        name for name, _ in net.backbone.named_parameters()
    )
    last = set(groups[-1]) | set(groups[-2])
    layers = {name.rpartition(".")[0] for name in last}
    changed = train_step(net, phase(2))
    assert last <= changed
    assert {name for name in changed if name.rpartition(".")[0] not in layers} == set()


def test_frozen_batch_norm_keeps_its_statistics_while_weights_learn() -> None:
    changed = train_step(net_of("test_resnet"), phase("all", freeze_batch_norm=True))
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert "bn1.weight" in changed


def test_an_impossible_number_of_groups_is_refused() -> None:
    with pytest.raises(UsageError, match="layer groups"):
        freeze(net_of("test_resnet"), phase(99))


def test_parameter_groups_hold_what_learns_at_its_own_rate() -> None:
    net = net_of("test_resnet")
    freeze(net, phase("none"))
    assert [group["lr"] for group in parameter_groups(net, phase("none"))] == [0.1]
    freeze(net, phase(1))
    groups = parameter_groups(net, phase(1))
    assert [group["lr"] for group in groups] == [0.1, 0.01]
    assert len(groups[1]["params"]) == len(models_net.layer_groups(net)[-1])


# Weights


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """A float16 file of another seed's test_resnet, with its JSON."""
    tensors = {
        name: value.half() if value.is_floating_point() else value
        for name, value in net_of("test_resnet", seed=7).backbone.state_dict().items()
    }
    return write_weights(tmp_path / "made.safetensors", tensors)


def write_weights(path: Path, tensors: dict[str, Tensor], **facts: Any) -> Path:
    save_file(tensors, path)
    card = {
        "format": 1, "model": "test_resnet", "model_args": {"num_classes": 0}, "size": 160, "licence": "made here",
        "origin": "a test", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "dtype": "float16",
        "sha256": sha256_file(path),
    }  # fmt: skip
    Path(f"{path}.json").write_text(json.dumps({**card, **facts}))
    return path


def test_a_file_is_loaded_whole_in_float32_and_brings_its_normalisation(weights_file: Path) -> None:
    weights = resolve_weights(RESNET, weights_file)
    assert (weights.origin, weights.sha256, weights.licence) == ("file", sha256_file(weights_file), "made here")
    net = build_net(RESNET, 3, weights=weights, seed=0)
    expected = net_of("test_resnet", seed=7).backbone.state_dict()
    for name, value in net.backbone.state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name].half().float().to(value.dtype))
    image = ImageSpec(size=32, resize="squash", interpolation="bilinear", normalise="weights")
    stored = models_net.preprocessing_for(image, weights)
    assert (stored.size, stored.divide_by, stored.mean, stored.std) == (
        32,
        255.0,
        (0.4, 0.5, 0.6),
        (0.2, 0.3, 0.25),
    )
    plain = models_net.preprocessing_for(replace(image, normalise="zero_one"), weights)
    assert (plain.mean, plain.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def refused(weights_file: Path, wanted: ModelSpec = RESNET) -> str:
    with pytest.raises(UntrustedError) as caught:
        build_net(wanted, 3, weights=resolve_weights(wanted, weights_file), seed=0)
    assert caught.value.remedy
    return caught.value.message


def test_a_file_without_its_json_is_refused(weights_file: Path) -> None:
    Path(f"{weights_file}.json").unlink()
    assert "made.safetensors.json" in refused(weights_file)


def test_no_file_at_all_is_refused(tmp_path: Path) -> None:
    assert "no such weights file" in refused(tmp_path / "absent.safetensors")


def test_one_changed_byte_is_refused(weights_file: Path) -> None:
    data = bytearray(weights_file.read_bytes())
    data[-1] ^= 1
    weights_file.write_bytes(data)
    assert "sha256" in refused(weights_file)


def test_a_byte_changed_after_the_check_is_refused(weights_file: Path) -> None:
    weights = resolve_weights(RESNET, weights_file)
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"x")
    with pytest.raises(UntrustedError, match="changed"):
        build_net(RESNET, 3, weights=weights, seed=0)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"model": "test_vit"}, "is for test_vit"),
        ({"model_args": {"num_classes": 0, "pad_type": "same"}}, "pad_type"),
        ({"model_args": {"num_classes": 9}}, "classifier"),
        ({"mean": [127.5, 127.5, 127.5]}, "malformed: mean"),
        ({"std": [0.0, 0.5, 0.5]}, "malformed: std"),
        ({"sha256": None}, "malformed: sha256"),
        ({"format": 2}, "format 2"),
    ],
)
def test_a_json_for_something_else_is_refused(weights_file: Path, facts: dict[str, Any], words: str) -> None:
    card = Path(f"{weights_file}.json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **facts}))
    assert words in refused(weights_file)


def test_tensors_must_be_those_of_the_net(tmp_path: Path) -> None:
    tensors = net_of("test_resnet", seed=7).backbone.state_dict()
    lacking = {name: value for name, value in tensors.items() if name != "layer4.0.conv1.weight"}
    path = tmp_path / "w.safetensors"
    assert "layer4.0.conv1.weight is missing" in refused(write_weights(path, lacking))
    assert "extra is not part" in refused(write_weights(path, {**tensors, "extra": torch.zeros(1)}))
    assert "bn1.bias is (1,)" in refused(write_weights(path, {**tensors, "bn1.bias": torch.zeros(1)}))

    excused = write_weights(path, lacking, missing=["layer4.0.conv1.weight"])
    weights = resolve_weights(RESNET, excused)
    assert "initialised from scratch: layer4.0.conv1.weight" in weights.note
    assert build_net(RESNET, 3, weights=weights, seed=0).n_features > 0
    skipping = replace(RESNET, skip_blocks=("layer4",))
    weights = resolve_weights(skipping, excused)
    assert "scratch" not in weights.note
    build_net(skipping, 3, weights=weights, seed=0)


def test_not_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)})
    path.write_bytes(b"\x80\x04 a pickle")
    card = Path(f"{path}.json")
    card.write_text(json.dumps({**json.loads(card.read_text()), "sha256": sha256_file(path)}))
    assert "not a readable safetensors" in refused(path)


def test_a_file_for_a_recipe_from_scratch_is_a_usage_error(weights_file: Path) -> None:
    with pytest.raises(UsageError, match="from scratch"):
        resolve_weights(spec("test_resnet"), weights_file)


def test_from_scratch_takes_the_backbones_stated_normalisation() -> None:
    assert resolve_weights(spec("resnet50"), None).mean == (0.485, 0.456, 0.406)
    assert resolve_weights(spec("dermkit/cnn-s1"), None).std == (0.5, 0.5, 0.5)


def test_no_hub_is_refused_with_three_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Name or service not known")

    def not_cached(*args: Any, local_files_only: bool = False, **kwargs: Any) -> None:
        assert local_files_only, "the slow download must not be tried when the hub does not answer"
        raise FileNotFoundError

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", not_cached)
    with pytest.raises(UntrustedError, match="Name or service not known") as caught:
        resolve_weights(RESNET, None)
    assert caught.value.exit_code == 6
    for way in ("connect", "--weights FILE", "model.weights=none"):
        assert way in caught.value.remedy
    with pytest.raises(UsageError, match="no hub has weights"):
        resolve_weights(replace(RESNET, backbone="dermkit/cnn-s1"), None)


def test_hub_weights_are_loaded_from_the_cached_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = import_timm().create_model("test_resnet")  # as the hub keeps it: with a classifier
    path = tmp_path / "model.safetensors"
    save_file(whole.state_dict(), path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(path))
    weights = resolve_weights(RESNET, None)
    assert (weights.origin, weights.path, weights.sha256) == ("hub", path, sha256_file(path))
    loaded = build_net(RESNET, 3, weights=weights, seed=0).backbone.state_dict()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in loaded.items())

    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UntrustedError, match="changed"):
        build_net(RESNET, 3, weights=weights, seed=0)


# torchvision without its operators

BROKEN_PAIR = """
import torch
MODE = __import__("os").environ["MODE"]
if MODE == "other":
    raise RuntimeError("something else")
if MODE == "broken":
    for name in ("nms", "qnms"):
        torch.library.register_fake(f"torchvision::{name}")(lambda dets, scores, threshold: dets)
whole = True
"""


@pytest.mark.parametrize(
    ("mode", "stand_ins", "outcome"), [("broken", 2, "True"), ("sound", 0, "True"), ("other", 0, "something else")]
)
def test_missing_operators_are_declared_and_nothing_else_is(
    tmp_path: Path, mode: str, stand_ins: int, outcome: str
) -> None:
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text(BROKEN_PAIR)
    code = (
        "from dermkit.models import weights\n"
        "try: outcome = weights.import_timm().whole\n"
        "except RuntimeError as error: outcome = error\n"
        "print(len(weights._operator_declarations), outcome)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MODE": mode}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split(maxsplit=1) == [str(stand_ins), f"{outcome}\n"]
