"""Backbones are listed with figures that can be computed again, and a wrong name is refused before torch is loaded."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from conftest import Invoke
from dermkit.errors import UsageError
from dermkit.models.backbones import KNOWN_BACKBONES, Backbone, backbone_names, check_backbone_name, list_backbones
from dermkit.models.cnn import CNN_BUILDERS
from dermkit.models.weights import import_timm
from dermkit.recipes.experiments import RECIPES

COUNT: Callable[[str], Backbone] = runpy.run_path(
    str(Path(__file__).parents[1] / "benchmarks" / "backbones.py"), run_name="benchmark"
)["count_backbone"]


def test_the_names_read_from_timms_text_are_those_that_it_has() -> None:
    assert backbone_names() == {*import_timm().list_models(), *CNN_BUILDERS}
    assert {backbone.name for backbone in KNOWN_BACKBONES} <= backbone_names()


@pytest.mark.parametrize("name", ["dermkit/cnn-s1", "dermkit/cnn-s4", "resnet18", "mobilenetv3_small_100"])
def test_the_figures_are_computed(name: str) -> None:
    assert COUNT(name) == next(backbone for backbone in KNOWN_BACKBONES if backbone.name == name)


def test_the_figures_are_those_that_are_published() -> None:
    """Multiply-adds of He 2016 (table 1, rounded) and parameters less the classifier's, by hand: 25.557 - 2.049."""
    figures = {backbone.name: backbone for backbone in KNOWN_BACKBONES}
    assert figures["resnet50"].million_parameters == 23.51
    assert [figures[name].giga_multiply_adds for name in ("resnet18", "resnet34", "resnet50", "resnet101")] == (
        pytest.approx([1.8, 3.6, 4.1, 7.8], abs=0.1)
    )


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("convnext_tny", "none", "convnext_tny: no such backbone; did you mean `convnext_tiny`"),
        ("resnet5.a1_in1k", "imagenet", "did you mean `resnet50`"),
        ("dermkit/cnn-s3", "none", "did you mean `dermkit/cnn-s4`"),
        ("dermkit/cnn-s4", "imagenet", "there are no pretrained weights of it"),
    ],
)
def test_a_wrong_backbone_is_refused(name: str, weights: Literal["imagenet", "none"], words: str) -> None:
    spec = replace(RECIPES["demo"].model, backbone=name, weights=weights)
    with pytest.raises(UsageError) as caught:
        check_backbone_name(spec)
    assert words in caught.value.message
    check_backbone_name(replace(spec, backbone="resnet50.a1_in1k", weights="imagenet"))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--backbone", "convnext_tny"), "did you mean `convnext_tiny`"),
        (("--set", "optim.bath_size=3"), "did you mean `optim.batch_size`"),
        (("--set", "optim.batch_size=0"), "greater than or equal to 1"),
    ],
)
def test_that_is_before_torch_is_loaded(tmp_path: Path, words: tuple[str, ...], meant: str) -> None:
    script = (
        "import sys\nfrom dermkit import cli\n"
        f"sys.argv = ['dermkit', 'train', 'demo', 'data', *{words!r}]\n"
        "try:\n    cli.main()\nfinally:\n    print('loaded:', sorted({'torch', 'timm'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2 and meant in done.stderr and "loaded: []" in done.stdout, done.stderr


def test_what_is_cached_or_beside_a_json_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    snapshot = tmp_path / "hub" / "models--timm--resnet18.tv_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"x")
    (tmp_path / "hub" / "models--timm--resnet34.a1_in1k" / "snapshots" / "abc").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "net.safetensors").write_bytes(b"x")
    (tmp_path / "net.safetensors.json").write_text(json.dumps({"format": 1, "model": "mobilenetv2_100"}))
    (tmp_path / "alone.safetensors").write_bytes(b"x")
    rows = list_backbones(weights_folder=tmp_path)
    assert (rows[0].name, rows[0].weights, rows[0].source) == (
        "mobilenetv2_100", "local", str(tmp_path / "net.safetensors"),
    )  # fmt: skip
    by_name = {row.name: row for row in rows[1:]}
    assert (
        by_name["resnet18"].weights == "cached"
        and "resnet18.tv_in1k (not resnet18.a1_in1k" in by_name["resnet18"].source
    )
    assert (by_name["resnet34"].weights, by_name["dermkit/cnn-s1"].weights) == ("known", "local")
    code, out, _ = invoke("recipes", "backbones", "resnet18")
    assert code == 0 and "seresnet18" not in by_name and "seresnet18" in out
    assert invoke("recipes", "backbones", "--weights", tmp_path / "none")[0] == 2
