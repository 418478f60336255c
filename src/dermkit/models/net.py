"""A backbone and a head: building, loading, freezing, and which parameters learn how fast (timm underneath)."""

import contextlib
import difflib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dermkit.errors import DermkitError, UntrustedError, UsageError
from dermkit.images.preprocess import Preprocessing
from dermkit.models import cnn
from dermkit.models.weights import (
    Weights,
    check_backbone,
    check_unchanged,
    import_timm,
    inside,
    read_tensors,
    resolve_weights,
)
from dermkit.recipes.schema import ImageSpec, ModelSpec, Phase

__all__ = [
    "Net",
    "Weights",
    "backbone_fingerprint",
    "batch_norm_state",
    "build_net",
    "freeze",
    "import_timm",
    "layer_groups",
    "parameter_groups",
    "resolve_weights",
    "set_train_mode",
    "with_normalisation",
]

OURS = ("num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
        "cache_dir", "features_only", "scriptable", "exportable", "no_jit", "global_pool")  # fmt: skip
"""Arguments of timm that a recipe may not set: they load other files or change what comes out of the backbone."""


class Net(nn.Module):
    """Images (N, 3, S, S) float32, normalised -> logits (N, n_classes), classes in the data set's order."""

    def __init__(self, backbone: nn.Module, head: nn.Module, n_features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.n_features = n_features

    def features(self, x: Tensor) -> Tensor:
        """Return the backbone's pooled features, (N, n_features)."""
        features: Tensor = self.backbone(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def build_net(spec: ModelSpec, n_classes: int, *, weights: Weights, seed: int) -> Net:
    """Build a net on the CPU in float32, backbone loaded and head new; the same seed gives the same tensors.

    torch's global random state is left as found. Raises `UsageError` for an unknown backbone, argument or block,
    `UntrustedError` for weights whose tensors are not those of the net.
    """
    check_backbone(spec.backbone)
    with _seeded(seed), torch.device("cpu"):
        backbone, side = _build_backbone(spec, weights)
        _skip(backbone, spec.skip_blocks)
        if weights.origin == "file":
            _load(backbone, spec, weights)
        n_features = _count_features(backbone, side)
        head = _build_head(n_features, spec, n_classes)
    return Net(backbone, head, n_features)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generator alone: `torch.manual_seed` would also move every GPU's."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def _build_backbone(spec: ModelSpec, weights: Weights) -> tuple[nn.Module, int]:
    """Return the backbone without a classifier, and the side of an image that it surely takes."""
    if spec.backbone in cnn.NETS:
        if spec.backbone_args:
            raise UsageError(f"{spec.backbone}: takes no arguments, got {spec.backbone_args}")
        return cnn.NETS[spec.backbone](), 64
    ours = sorted(set(spec.backbone_args) & set(OURS))
    if ours:
        raise UsageError(f"{spec.backbone}: model.backbone_args may not set {', '.join(ours)}")
    hub = {"pretrained_cfg_overlay": {"file": str(weights.path)}} if weights.origin == "hub" else {}
    if hub:
        check_unchanged(weights)  # timm reads the file itself, because it knows how to rename old tensors
    try:
        backbone: nn.Module = import_timm().create_model(
            spec.backbone, pretrained=bool(hub), num_classes=0, **hub, **spec.backbone_args
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        raise _not_built(spec, weights, error) from error
    default = getattr(backbone, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
    return backbone, int(spec.backbone_args.get("img_size", default))


def _not_built(spec: ModelSpec, weights: Weights, error: Exception) -> DermkitError:
    what = f"{spec.backbone} with {spec.backbone_args}"
    if weights.origin == "hub" and isinstance(error, RuntimeError | KeyError):
        return UntrustedError(
            f"{weights.path}: does not fit {what}: {error}",
            kept="nothing was trained",
            remedy="correct the recipe's model.backbone_args, or remove that file so that it is fetched again",
        )
    return UsageError(f"timm cannot build {what}: {error}", remedy="correct the recipe's model.backbone_args")


def _skip(backbone: nn.Module, blocks: tuple[str, ...]) -> None:
    """Replace named modules by the identity; raises `UsageError` with the closest name."""
    names = [name for name, _ in backbone.named_modules() if name]
    for block in blocks:
        if block not in names:
            close = difflib.get_close_matches(block, names, n=1)
            raise UsageError(
                f"{block}: the backbone has no such block" + (f"; did you mean `{close[0]}`?" if close else ""),
                remedy="correct the recipe's model.skip_blocks",
            )
        backbone.set_submodule(block, nn.Identity())


def _load(backbone: nn.Module, spec: ModelSpec, weights: Weights) -> None:
    """Load a file strictly: every tensor of the net, and no other, but for those that the file's JSON excuses."""
    tensors = {name: value for name, value in read_tensors(weights).items() if not inside(name, spec.skip_blocks)}
    own = backbone.state_dict()
    # Counters are absent from files of older torch versions and carry no weight.
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    problems = [
        *(f"{name} is missing" for name in sorted(needed - set(tensors) - set(weights.missing))),
        *(f"{name} is not part of the net" for name in sorted(set(tensors) - set(own))),
        *(
            f"{name} is {tuple(value.shape)}, the net has {tuple(own[name].shape)}"
            for name, value in sorted(tensors.items())
            if name in own and value.shape != own[name].shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UntrustedError(
            f"{weights.path}: does not fit {spec.backbone}: {'; '.join(problems[:5])}{more}",
            kept="nothing was trained",
            remedy="use the weights of this very net, and let model.skip_blocks name only blocks to leave out",
        )
    backbone.load_state_dict(tensors, strict=False)  # copies: the net stays float32 whatever the file's type


def _count_features(backbone: nn.Module, side: int) -> int:
    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.zeros(2, 3, side, side))
    backbone.train()
    if features.ndim != 2:
        raise UsageError(
            f"the backbone gives {tuple(features.shape)} for two images, not one row of features each"
        )
    return int(features.shape[1])


def _build_head(n_features: int, spec: ModelSpec, n_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in spec.hidden:
        layers += [nn.Dropout(spec.dropout), nn.Linear(n_features, width), nn.ReLU()]
        n_features = width
    return nn.Sequential(*layers, nn.Dropout(spec.dropout), nn.Linear(n_features, n_classes))


def layer_groups(net: Net) -> list[list[str]]:
    """Return the backbone's parameter names in timm's layer groups, from the image to the features."""
    timm = import_timm()
    matcher = getattr(net.backbone, "group_matcher", None)
    if matcher is None:
        raise UsageError(
            "this backbone has no layer groups",
            remedy='use train_backbone "none" or "all" in the recipe, or another backbone',
        )
    groups = timm.models.group_parameters(net.backbone, matcher(coarse=False))
    return [list(group) for _, group in sorted(groups.items())]


def freeze(net: Net, phase: Phase) -> None:
    """Set `requires_grad` for a phase: the head always learns, the backbone as `train_backbone` says.

    Raises `UsageError` where the backbone has fewer layer groups than asked for.
    """
    trained = _trained_names(net, phase.train_backbone)
    for name, parameter in net.backbone.named_parameters():
        parameter.requires_grad_(name in trained)
    for parameter in net.head.parameters():
        parameter.requires_grad_(True)


def _trained_names(net: Net, choice: str | int) -> set[str]:
    if choice == "none":
        return set()
    if not isinstance(choice, int):
        return {name for name, _ in net.backbone.named_parameters()}
    groups = layer_groups(net)
    if not 1 <= choice <= len(groups):
        raise UsageError(
            f"train_backbone is {choice}, but this backbone has {len(groups)} layer groups",
            remedy=f'give 1 to {len(groups)}, "none" or "all" in the recipe',
        )
    return {name for group in groups[-choice:] for name in group}


def set_train_mode(net: Net, phase: Phase) -> None:
    """Put what learns in training mode and all frozen parts in evaluation mode; call it after `freeze`.

    Frozen parts keep their batch-norm statistics and drop nothing out. With `freeze_batch_norm` every batch-norm
    layer of the backbone keeps its statistics, while its scale and offset learn where their group does.
    """
    net.train()
    _set_mode(net.backbone, learns=False)
    if phase.freeze_batch_norm:
        for module in net.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _set_mode(module: nn.Module, *, learns: bool) -> None:
    """A module without parameters (dropout, activation) does as its parent; others as their own parameters."""
    own = [parameter.requires_grad for parameter in module.parameters()]
    learns = any(own) if own else learns
    module.training = learns
    for child in module.children():
        _set_mode(child, learns=learns)


def batch_norm_state(net: Net, phase: Phase) -> tuple[int, int, int]:
    """Return how many batch-norm layers the backbone has, how many move in a phase, and how many of these are frozen.

    A layer moves when it updates its statistics. The net is left as it was found.
    """
    grads = [parameter.requires_grad for parameter in net.parameters()]
    modes = [module.training for module in net.modules()]
    freeze(net, phase)
    set_train_mode(net, phase)
    layers = [item for item in net.backbone.modules() if isinstance(item, nn.modules.batchnorm._BatchNorm)]
    moving = [item for item in layers if item.training and item.track_running_stats]
    frozen = [item for item in moving if not any(own.requires_grad for own in item.parameters())]
    for parameter, learns in zip(net.parameters(), grads, strict=True):
        parameter.requires_grad_(learns)
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode
    return len(layers), len(moving), len(frozen)


def parameter_groups(net: Net, phase: Phase) -> list[dict[str, Any]]:
    """Return the optimizer's groups, head first, then the backbone if any of it learns; call it after `freeze`."""
    parts: Iterable[tuple[nn.Module, float]] = ((net.head, phase.head_lr), (net.backbone, phase.backbone_lr))
    groups = [{"params": [p for p in part.parameters() if p.requires_grad], "lr": lr} for part, lr in parts]
    return [group for group in groups if group["params"]]


def backbone_fingerprint(net: Net) -> str:
    """Return the SHA-256 of the backbone's names, types, shapes and bytes, buffers included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.backbone.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def with_normalisation(image: ImageSpec, weights: Weights) -> Preprocessing:
    """Return the preprocessing in plain numbers: the recipe's geometry, the weights' mean and deviation."""
    scaled = image.normalise == "weights"
    return Preprocessing(
        size=image.size,
        resize=image.resize,
        interpolation=image.interpolation,
        divide_by=255.0,
        mean=weights.mean if scaled else (0.0, 0.0, 0.0),
        std=weights.std if scaled else (1.0, 1.0, 1.0),
    )
