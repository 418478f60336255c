"""A small model.json that asks for everything: it is compared with its weights before anything of that size exists."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dermkit.errors import UntrustedError, UsageError
from dermkit.models.checksums import write_checksums
from dermkit.models.net import build_net
from dermkit.models.net_fit import check_fits
from dermkit.models.weights import resolve_weights
from dermkit.prediction.load import load_model
from dermkit.recipes.experiments import DEMO
from dermkit.recipes.schema import parse_recipe, recipe_to_dict

SPEC = DEMO.model


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


def rewrite(model: Path, path: tuple[str | int, ...], value: Any) -> None:
    card = json.loads((model / "model.json").read_text())
    place: Any = card
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (model / "model.json").write_text(json.dumps(card))
    write_checksums(model)


SPEC_PATH = ("members", 0, "spec")
GREEDY: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "seven billion weights": ((*SPEC_PATH, "backbone"), "vit_7b_patch16_dinov3"),
    "a big net": ((*SPEC_PATH, "backbone"), "convnext_xxlarge"),
    "20,000 hidden layers": ((*SPEC_PATH, "hidden"), [8] * 20_000),
    "sixteen wide ones": ((*SPEC_PATH, "hidden"), [16_000] * 16),
    "one wider layer": ((*SPEC_PATH, "hidden"), [9]),
    "a layer of 10^9": ((*SPEC_PATH, "hidden"), [10**9]),
    "no hidden layer": ((*SPEC_PATH, "hidden"), []),
    "size 4096": (("members", 0, "preprocessing", "size"), 4096),
    "size 10^9": (("members", 0, "preprocessing", "size"), 10**9),
    "a deviation of nothing": (("members", 0, "preprocessing", "std"), [1e-300] * 3),
    "a class more": (("classes",), [{"name": str(n), "diagnosis": "", "malignancy": "benign"} for n in range(3)]),
    "20,000 classes": (("classes",), [{"name": "", "diagnosis": "", "malignancy": "benign"}] * 20_000),
    "one name twice": (("classes",), [{"name": "x", "diagnosis": "", "malignancy": "benign"}] * 2),
}


@pytest.mark.parametrize("case", GREEDY)
def test_a_card_that_asks_for_more_than_its_weights_is_refused_at_once(
    model: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def build(*args: Any, **kwargs: Any) -> Any:
        devices.append(kwargs.get("device", "cpu"))
        return build_net(*args, **kwargs)

    monkeypatch.setattr("dermkit.models.net_fit.build_net", build)
    rewrite(model, *GREEDY[case])
    start = time.process_time()
    with pytest.raises(UntrustedError):
        load_model(model)
    assert time.process_time() - start < 20
    assert "cpu" not in devices  # shapes alone were built


DEEP: dict[str, tuple[str, dict[str, bool | int | float | str]]] = {
    "depth": ("vit_tiny_patch16_224", {"depth": 1_000_000}),
    "negative": ("vit_tiny_patch16_224", {"depth": -1_000_000}),
    "wide": ("vit_tiny_patch16_224", {"embed_dim": 10**9}),
    "as wide as may be": ("vit_tiny_patch16_224", {"embed_dim": 16_383, "num_heads": 1}),
    "multiplied": ("vit_tiny_patch16_224", {"mlp_ratio": 1e12}),
    "inputs": ("vit_tiny_patch16_224", {"img_size": 16_000, "patch_size": 1}),
}


@pytest.mark.parametrize("case", DEEP)
def test_arguments_of_a_backbone_are_bounded(case: str) -> None:
    backbone, args = DEEP[case]
    spec = replace(SPEC, backbone=backbone, backbone_args=args, weights="none", hidden=())
    start = time.process_time()
    with pytest.raises(UntrustedError):
        check_fits(spec, 2, {f"x{n}": torch.zeros(2) for n in range(50)}, image_size=224)
    assert time.process_time() - start < 20


def test_small_weights_that_take_for_ever_are_refused() -> None:
    """Patches of one pixel: a few numbers, and 50,176 x 50,176 products for each head."""
    args: dict[str, bool | int | float | str] = {"patch_size": 1, "embed_dim": 8, "num_heads": 1, "depth": 2}
    spec = replace(SPEC, backbone="vit_tiny_patch16_224", backbone_args={**args, "patch_size": 16}, weights="none")
    fitting = build_net(spec, 2, weights=resolve_weights(spec, None), seed=0).state_dict()
    check_fits(spec, 2, fitting, image_size=224)
    greedy = replace(spec, backbone_args={**args, "depth": 12, "img_size": 1024})
    with torch.device("meta"):
        state = build_net(greedy, 2, weights=resolve_weights(greedy, None), seed=0, device="meta").state_dict()
    with pytest.raises(UntrustedError, match="operations for one image of 1024 x 1024"):
        check_fits(greedy, 2, state, image_size=1024)


@pytest.mark.parametrize("backbone", ["dermkit/cnn-s1", "resnet18", "mobilenetv2_035", "vit_tiny_patch16_224"])
def test_what_fits_is_let_in(backbone: str) -> None:
    spec = replace(SPEC, backbone=backbone, backbone_args={}, weights="none", skip_blocks=())
    net = build_net(spec, 3, weights=resolve_weights(spec, None), seed=0)
    check_fits(spec, 3, net.state_dict(), image_size=224)
    with pytest.raises(UntrustedError, match=r"head.*is \(3,"):
        check_fits(spec, 4, net.state_dict(), image_size=224)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("repeats",), 10**9),
        (("image", "size"), 4096),
        (("model", "hidden"), [8] * 20_000),
        (("model", "hidden"), [10**9]),
        (("optim", "batch_size"), 10**9),
        (("phases", 0, "epochs"), 10**9),
        (("phases", 0, "head_lr"), 1e300),
        (("phases", 0, "views"), 10**9),
        (("split", "folds"), 10**9),
    ],
)
def test_every_number_of_a_recipe_has_a_range(path: tuple[str | int, ...], value: Any) -> None:
    fields = recipe_to_dict(DEMO)
    assert parse_recipe(fields, "x") == DEMO
    place: Any = fields
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UsageError):
        parse_recipe(fields, "x")
