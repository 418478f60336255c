"""Nets of the hub: the same features as timm's, pinned, kept without the hub, and refused where they are no such net.

No test asks a network: the hub's cache is made here, of tiny nets with random weights.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors as hub_errors

import dermkit as dk
from dermkit.errors import UntrustedError, UsageError
from dermkit.files import sha256_file
from dermkit.models.backbones import check_backbone_name
from dermkit.models.hub import pin_hub_revision, resolve_hub_net
from dermkit.models.hub_names import HubName, parse_hub_name
from dermkit.models.net import backbone_fingerprint, build_net
from dermkit.models.weights import import_timm, resolve_weights
from dermkit.pipeline import measure_speed
from dermkit.pipeline.auto_nets import input_size, weights_identity
from dermkit.prediction.load import load_model
from dermkit.recipes.derive import check_record, derive_recipe, parse_assignment
from dermkit.recipes.schema import ModelSpec, Recipe, load_recipe

timm = import_timm()

Invoke = Callable[..., tuple[int, str, str]]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "hf-hub:clinic/tiny-net"
PINNED = f"{NAME}@{COMMIT}"
CARD = "---\nlicense: other\nlicense_name: clinic-research-only\n---\n# Tiny net\nlicense: mit\n"


def made_net(architecture: str, seed: int = 7, **arguments: Any) -> torch.nn.Module:
    """Return a net of random weights, its scales and statistics not those of a new net."""
    torch.manual_seed(seed)
    net: torch.nn.Module = timm.create_model(architecture, num_classes=5, **arguments)
    for name, value in net.state_dict().items():
        if value.is_floating_point() and (value.ndim == 1 or name == "pos_embed"):
            value.uniform_(0.5, 1.5)
    return net.eval()


def save_repository(folder: Path, net: torch.nn.Module, **changes: Any) -> Path:
    """Write a net as timm writes it for the hub, with these fields of config.json changed (None: left out)."""
    timm.models.save_for_hf(net, str(folder), safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        group, _, field = path.rpartition("__")
        target = config.setdefault(group, {}) if group else config
        target.pop(field, None)
        target |= {} if value is None else {field: value}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text(CARD)
    return folder


def spec(backbone: str = NAME, **fields: Any) -> ModelSpec:
    return replace(
        dk.find_recipe("demo").model, backbone=backbone, weights="imagenet", hidden=(), dropout=0.0, **fields
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the one repository in the hub's cache; there is no network."""
    repository = tmp_path / "hub" / "models--clinic--tiny-net"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


def images(size: int) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("architecture", "arguments", "own_arguments", "size"),
    [
        ("test_resnet", {}, {}, 64),
        ("test_efficientnet", {"pad_type": "same"}, {}, 64),
        ("test_vit", {"global_pool": "avg", "class_token": False}, {}, 160),
        ("test_vit", {"img_size": 96}, {}, 96),
        ("test_vit", {}, {"img_size": 96}, 96),
        ("test_vit", {}, {"dynamic_img_size": True}, 96),
    ],
)
def test_features_are_those_of_the_net_that_timm_makes(
    cache: Path, architecture: str, arguments: dict[str, Any], own_arguments: dict[str, Any], size: int
) -> None:
    save_repository(cache, made_net(architecture, **arguments))
    wanted = spec(backbone_args=own_arguments)
    weights = resolve_weights(wanted, None)
    net = build_net(wanted, 2, weights=weights, seed=0).eval()
    theirs = timm.create_model(f"local-dir:{cache}", pretrained=True, num_classes=0, **own_arguments).eval()
    with torch.inference_mode():
        ours, expected = net.features(images(size)), theirs(images(size))
    assert expected.std() > 1e-4, "equal features of an empty net would show nothing"
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert net.spec is not None and net.spec.backbone == architecture
    assert {**net.spec.backbone_args, **own_arguments} == net.spec.backbone_args
    again = build_net(
        replace(net.spec, weights="none"),
        2,
        weights=resolve_weights(replace(net.spec, weights="none"), None),
        seed=0,
    )
    again.load_state_dict(net.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(again.eval().features(images(size)), ours), "model.json holds all that makes the net"


def test_a_net_is_found_once_and_its_revision_scaling_and_licence_are_known(cache: Path) -> None:
    save_repository(
        cache, made_net("test_vit"), pretrained_cfg__mean=[0.4, 0.5, 0.6], pretrained_cfg__crop_pct=0.9
    )
    net = resolve_hub_net(NAME)
    assert net.name == HubName("clinic/tiny-net", COMMIT) and net.architecture == "test_vit"
    assert (net.mean, net.input_size, net.crop) == ((0.4, 0.5, 0.6), 160, 0.9)
    assert net.licence == "clinic-research-only", "of the card's front matter, not of its text"
    assert net == resolve_hub_net(PINNED)
    weights = resolve_weights(spec(), None)
    assert (weights.origin, weights.mean) == ("hub", (0.4, 0.5, 0.6))
    for fact in ("clinic/tiny-net", COMMIT, "test_vit", "160 px", "bicubic", "crop 0.9", "licence"):
        assert fact in weights.note


def test_a_net_that_was_built_for_one_size_is_made_for_it(cache: Path) -> None:
    """timm leaves `input_size` as it was for a net whose size is not fixed."""
    save_repository(cache, made_net("test_vit", img_size=96))
    net = resolve_hub_net(NAME)
    assert (net.input_size, net.arguments["img_size"]) == (96, 96) and "images of 96 px" in net.note()


@pytest.mark.parametrize("size", ["x", True, 10**9, [96, 64], 2.5])
def test_a_size_that_is_none_is_refused(cache: Path, size: object) -> None:
    save_repository(cache, made_net("test_vit"), model_args__img_size=size)
    with pytest.raises(UntrustedError, match=r"config\.json"):
        resolve_hub_net(NAME)


def test_features_of_a_net_are_cached_under_its_weights_and_arguments(cache: Path) -> None:
    """The key is that of timm's own net with these weights, and another one for other weights."""
    save_repository(cache, made_net("test_resnet"))
    first = build_net(spec(), 2, weights=resolve_weights(spec(), None), seed=0)
    assert first.spec == replace(spec(), backbone="test_resnet", backbone_args=first.spec.backbone_args)  # type: ignore[union-attr]
    save_repository(cache, made_net("test_resnet", seed=8))
    second = build_net(spec(), 2, weights=resolve_weights(spec(), None), seed=0)
    assert backbone_fingerprint(first) != backbone_fingerprint(second)


def test_a_run_keeps_all_that_it_needs_of_the_hub(
    cache: Path, binary: Path, tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_repository(cache, made_net("test_resnet"), pretrained_cfg__mean=[0.4, 0.5, 0.6])
    recipe = derive_recipe(
        tiny, [parse_assignment(f"model.backbone={NAME}"), parse_assignment("model.weights=imagenet")]
    )
    dataset, settings = dk.load_dataset(binary), dk.RunSettings(out=tmp_path / "runs", device="cpu")
    told: list[str] = []
    run = dk.train(recipe, dataset, settings=settings, progress=dk.Progress(say=told.append))
    assert [line for line in told if "licence clinic-research-only" in line and PINNED in line], told
    saved = load_recipe(run / "recipe.json")
    assert saved.model.backbone == PINNED
    check_record(saved, "recipe.json")
    assert dk.train(saved, dataset, settings=settings) == run, "the saved recipe names the same run"

    card = json.loads((run / "model" / "model.json").read_text())
    assert (
        card["members"][0]["spec"]["backbone"] == "test_resnet"
        and card["weights"]["licence"] == "clinic-research-only"
    )
    text = (run / "model" / "MODEL_CARD.md").read_text()
    assert COMMIT in text and "clinic-research-only" in text and "for you to check" in text
    image = np.full((1, saved.image.size, saved.image.size, 3), 128, np.uint8)
    before = load_model(run / "model").probabilities(image)
    shutil.rmtree(cache.parents[1])
    after = load_model(run / "model")
    np.testing.assert_array_equal(after.probabilities(image), before)
    with pytest.raises(UntrustedError, match="is not in the cache"):
        dk.train(replace(saved, seed=99), dataset, settings=settings)


def test_speed_is_measured_and_rates_are_found_with_such_a_net(
    cache: Path, binary: Path, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_repository(cache, made_net("test_resnet"))
    monkeypatch.setattr(measure_speed, "_SECONDS_PER_MEASUREMENT", 0.0)
    recipe = replace(tiny, model=spec())
    speed = measure_speed.measure_net(recipe, None, 2, torch.device("cpu"))
    assert speed.train > 0 and speed.forward > 0
    found = dk.find_lr(
        recipe, dk.load_dataset(binary), steps=20, settings=dk.RunSettings(out=tmp_path / "lr", device="cpu")
    )
    assert len(found.sweep.rates) <= 20 and found.table.exists()


def test_a_plan_takes_such_a_net_and_its_folder_is_that_of_its_name(
    cache: Path, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_repository(cache, made_net("test_vit"))
    monkeypatch.setattr(measure_speed, "_SECONDS_PER_MEASUREMENT", 0.0)
    dataset, settings = dk.load_dataset(binary), dk.RunSettings(out=tmp_path / "runs", device="cpu")
    for weights, backbone in ((Path(NAME), PINNED), (folder, "test_vit")):
        plan = dk.plan(dataset, dk.AutoOptions(seconds=600, weights=(weights,)), settings=settings).plan
        assert {candidate.recipe.model.backbone for candidate in plan.candidates} == {backbone}
        assert any(candidate.recipe.model.classifier for candidate in plan.candidates)
    assert weights_identity(Path(NAME)) == NAME
    assert (
        weights_identity(folder)
        == weights_identity(folder / "model.safetensors")
        == sha256_file(folder / "model.safetensors")
    )
    assert weights_identity(tmp_path / "absent.safetensors") is None


def test_an_input_is_a_multiple_of_the_patches() -> None:
    assert input_size(replace(spec("vit_small_patch14_dinov2"), backbone_args={}), 600) == 154
    assert input_size(spec("vit_small_patch16_224"), 600) == 160


# Local copies


def test_a_folder_stands_for_the_repository_or_for_timms_net(tmp_path: Path) -> None:
    folder = save_repository(tmp_path / "copy", made_net("test_resnet"))
    for path in (folder, folder / "model.safetensors"):
        for backbone in (NAME, "test_resnet"):
            weights = resolve_weights(spec(backbone), path)
            assert (weights.origin, weights.licence) == ("file", "clinic-research-only")
            assert build_net(spec(backbone), 2, weights=weights, seed=0).n_features > 0
    assert (
        pin_hub_revision(replace(dk.find_recipe("demo"), model=spec()), resolve_hub_net(NAME, folder)).model
        == spec()
    )
    with pytest.raises(UntrustedError, match=r"is of test_resnet, as its config\.json says"):
        resolve_weights(spec("test_vit"), folder)


def test_a_folder_of_pickles_or_without_description_is_refused(tmp_path: Path) -> None:
    folder = save_repository(tmp_path / "copy", made_net("test_resnet"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UntrustedError, match=r"pytorch_model\.bin may be a pickle") as caught:
        resolve_weights(spec(), folder)
    assert "save_for_hf" in caught.value.remedy and caught.value.exit_code == 6
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(UntrustedError, match=r"has no config\.json beside it"):
        resolve_weights(spec(), folder)


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architecture": None, "model_type": "clip"},
            "no `architecture`, so this is no model of timm; it is one of the library",
        ),
        ({"architecture": "no_such_net"}, "none that the installed timm has"),
        ({"architecture": "dermkit/cnn-s1"}, "none that the installed timm has"),
        ({"pretrained_cfg": "x"}, "no group of fields"),
        ({"pretrained_cfg__mean": None}, "`mean` None"),
        ({"pretrained_cfg__mean": [127.5, 127.5, 127.5]}, "`mean`"),
        ({"pretrained_cfg__std": [0.0, 0.5, 0.5]}, "`std`"),
        ({"pretrained_cfg__input_size": [3, 160, 224]}, "`input_size`"),
        ({"pretrained_cfg__input_size": [3, 10**9, 10**9]}, "`input_size`"),
        ({"pretrained_cfg__input_size": [1, 160, 160]}, "`input_size`"),
        ({"model_args__in_chans": 1}, "other channels"),
        ({"model_args__checkpoint_path": "/etc/passwd"}, "may not set checkpoint_path"),
        ({"model_args__pretrained_cfg": {"file": "x"}}, "does not pass on"),
        ({"model_args__global_pool": ""}, "may not set global_pool"),
        ({"model_args__layers": 10**6}, "does not pass on"),
        ({"model_args__layers": [1, 1]}, "does not pass on"),
        ({"model_args__Bad-Name": 1}, "does not pass on"),
        ({"model_args__no_such_argument": 1}, "timm cannot build test_resnet"),
        ({"model_args__stem_width": 16_384}, "does not fit test_resnet"),
        ({"model_args__stem_width": 9}, "does not fit test_resnet"),
    ],
)
def test_a_hostile_or_foreign_config_is_refused(cache: Path, changes: dict[str, Any], words: str) -> None:
    save_repository(cache, made_net("test_resnet"), **changes)
    with pytest.raises(UntrustedError) as caught:
        build_net(spec(), 2, weights=resolve_weights(spec(), None), seed=0)
    assert words in caught.value.message and caught.value.exit_code == 6 and caught.value.remedy


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"architecture": NaN}'])
def test_a_config_that_is_no_group_of_fields_is_refused(cache: Path, text: str) -> None:
    save_repository(cache, made_net("test_resnet"))
    (cache / "config.json").write_text(text)
    with pytest.raises(UntrustedError, match=r"config\.json"):
        resolve_hub_net(NAME)


def test_weights_that_lack_a_tensor_are_refused(cache: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_repository(cache, made_net("test_resnet"))
    tensors = load_file(cache / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if name != "layer4.0.conv1.weight"},
        cache / "model.safetensors",
    )
    with pytest.raises(UntrustedError, match=r"layer4\.0\.conv1\.weight is missing"):
        build_net(spec(), 2, weights=resolve_weights(spec(), None), seed=0)


def test_weights_that_changed_after_they_were_found_are_refused(cache: Path) -> None:
    save_repository(cache, made_net("test_resnet"))
    weights = resolve_weights(spec(), None)
    save_repository(cache, made_net("test_resnet", seed=8))
    with pytest.raises(UntrustedError, match="changed while"):
        build_net(spec(), 2, weights=weights, seed=0)


class Response:
    """What the hub's client reads of an HTTP answer when it makes an error."""

    def __init__(self, status: int) -> None:
        self.status_code, self.headers, self.request = status, {}, None  # type: ignore[var-annotated]


def http_error(kind: type[Exception], status: int) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} Client Error")
    error.response = Response(status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "words", "way_out"),
    [
        (http_error(hub_errors.GatedRepoError, 403), "only to people whom they admitted", "hf auth login"),
        (http_error(hub_errors.HfHubHTTPError, 403), "only to people whom they admitted", "hf auth login"),
        (http_error(hub_errors.RepositoryNotFoundError, 404), "no such repository, or it is private", "correct"),
        (http_error(hub_errors.HfHubHTTPError, 401), "there is no such repository, or it is private", "log in"),
        (http_error(hub_errors.RevisionNotFoundError, 404), "has no revision v9", "follows @"),
        (http_error(hub_errors.RemoteEntryNotFoundError, 404), "no config.json, so this is no model", "another"),
        (ConnectionError("Name or service not known"), "ConnectionError: Name or", "--weights FOLDER"),
        (hub_errors.OfflineModeIsEnabled("offline mode"), "OfflineModeIsEnabled", "connect to the network once"),
    ],
)  # fmt: skip
def test_what_the_hub_answers_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, way_out: str
) -> None:
    def answer(*_args: Any, **_kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    with pytest.raises(UntrustedError) as caught:
        resolve_hub_net(f"{NAME}@v9")
    assert words in caught.value.message and NAME in caught.value.message
    assert way_out in caught.value.remedy and caught.value.exit_code == 6


def test_a_repository_without_safetensors_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_repository(cache, made_net("test_resnet"))
    (cache / "model.safetensors").rename(cache / "pytorch_model.bin")

    def answer(*_args: Any, **_kwargs: Any) -> None:
        raise http_error(hub_errors.RemoteEntryNotFoundError, 404)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    with pytest.raises(
        UntrustedError, match=r"has no model\.safetensors; dermkit opens weights as safetensors alone"
    ):
        resolve_hub_net(NAME)


def test_a_missing_client_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UntrustedError, match="huggingface_hub is not installed") as caught:
        resolve_hub_net(NAME)
    assert "pip install" in caught.value.remedy


@pytest.mark.parametrize(
    "name", [f"hf-hub:{text}" for text in ("", "net", "a/b/c", "../b", "a/..", "a/b@", "a/b@../x", "a/b c")]
)
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a repository"):
        check_backbone_name(spec(name))


def test_names_are_read_and_other_sources_and_random_weights_refused() -> None:
    assert parse_hub_name("hf-hub:a/b@refs/pr/1") == HubName("a/b", "refs/pr/1")
    assert str(parse_hub_name("hf-hub:a/b.c_d-1@v2")) == "hf-hub:a/b.c_d-1@v2"
    check_backbone_name(spec("hf-hub:a/b"))
    with pytest.raises(UsageError, match=r"model\.weights none"):
        check_backbone_name(replace(spec(), weights="none"))
    for name in ("local-dir:copy", "hf_hub:a/b"):
        with pytest.raises(UsageError, match="in another way") as caught:
            check_backbone_name(spec(name))
        assert "--weights FOLDER" in caught.value.remedy


def test_the_command_line_refuses_what_is_not_cached(invoke: Invoke, binary: Path, cache: Path) -> None:
    code, _, message = invoke(
        "train", "demo", binary, "--backbone", "hf-hub:clinic/absent", "--set", "model.weights=imagenet"
    )
    assert code == 6 and "hf-hub:clinic/absent" in message and "nothing was trained" in message.lower(), cache
