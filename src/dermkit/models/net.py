"""A net of a timm backbone and a head: built, loaded, frozen, and its parameters grouped by learning rate.

Shapes: N images of S x S pixels, C features of an image, M columns of encoded metadata, K classes.
"""

import contextlib
import difflib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dermkit.errors import DermkitError, UntrustedError, UsageError, first_of
from dermkit.images.preprocess import Preprocessing
from dermkit.models import cnn
from dermkit.models.backbone_args import reserved_arguments
from dermkit.models.heads import build_head
from dermkit.models.precision import non_finite_tensors
from dermkit.models.size_limit import TooLargeError, check_arguments, size_limit
from dermkit.models.weights import (
    BackboneWeights,
    check_backbone,
    check_weights_unchanged,
    import_timm,
    is_in_blocks,
    read_tensors,
    tensors_of_backbone,
)
from dermkit.recipes.schema import ImageSpec, ModelSpec
from dermkit.recipes.training_specs import Phase


class Net(nn.Module):
    """Normalised images (N, 3, S, S) float32 -> logits (N, K) float32, classes in the data set's order.

    n_metadata: columns of the second input, M, which the head gets beside the features; 0 = none.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        n_features: int,
        spec: ModelSpec | None = None,
        n_metadata: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.n_features = n_features
        self.spec = spec
        """What it can be built from again without the hub: timm's name and all its arguments."""
        self.n_metadata = n_metadata

    def features(self, x: Tensor) -> Tensor:
        """Return the backbone's pooled features, (N, C) float32."""
        features: Tensor = self.backbone(x)
        return features

    def forward(self, x: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return logits; metadata: encoded, (N, M) float32, None = unknown for all images."""
        return self.classify(self.features(x), metadata)

    def classify(self, features: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return logits (N, K) of pooled features (N, C); metadata: as `forward` takes it."""
        if self.n_metadata:
            # `shape[0]`, not `len`: a trace for any number of images must not take it for a constant.
            second_input = features.new_zeros(features.shape[0], self.n_metadata) if metadata is None else metadata
            features = torch.cat([features, second_input], dim=1)
        logits: Tensor = self.head(features)
        return logits


def build_net(
    spec: ModelSpec,
    n_classes: int,
    *,
    weights: BackboneWeights,
    seed: int,
    device: str = "cpu",
    n_metadata: int = 0,
) -> Net:
    """Build a net on the CPU in float32, backbone loaded and head new; the same seed gives the same tensors.

    device: "meta" builds the shapes alone. n_metadata: columns of the second input, as the encoder of `spec.metadata`
    has them.

    torch's global random state is left as found. Raises `UsageError` for an unknown backbone, argument or block,
    `UntrustedError` for weights whose tensors are not those of the net.
    """
    spec = weights.model_spec(spec)
    check_backbone(spec.backbone)
    is_ours_to_load = weights.origin == "file" or weights.net is not None
    tensors = read_tensors(weights) if is_ours_to_load else {}
    with _seeded_cpu(seed), torch.device(device):
        with _hub_size_limit(spec, weights, tensors):
            backbone, probe_size = _build_backbone(spec, weights)
        _skip_blocks(backbone, spec.skip_blocks)
        if is_ours_to_load:
            _load_weights(backbone, spec, weights, tensors)
        _check_finite_weights(backbone, weights)
        n_features = _count_features(backbone, probe_size)
        head = build_head(n_features + n_metadata, spec, n_classes)
    return Net(backbone, head, n_features, spec, n_metadata)


@contextlib.contextmanager
def _seeded_cpu(seed: int) -> Iterator[None]:
    """Seed the CPU generator within a block; `torch.manual_seed` would also seed every GPU's."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def _build_backbone(spec: ModelSpec, weights: BackboneWeights) -> tuple[nn.Module, int]:
    """Return the backbone without a classifier, and an input size that it accepts, for probing."""
    if spec.backbone in cnn.CNN_BUILDERS:
        if spec.backbone_args:
            raise UsageError(f"{spec.backbone}: takes no arguments, got {spec.backbone_args}")
        return cnn.CNN_BUILDERS[spec.backbone](), 64
    if reserved_args := reserved_arguments(spec.backbone_args):
        raise UsageError(f"{spec.backbone}: model.backbone_args may not set {', '.join(reserved_args)}")
    drop_path = {"drop_path_rate": spec.drop_path} if spec.drop_path else {}
    hub_kwargs = (
        {"pretrained_cfg_overlay": {"file": str(weights.path)}}
        if weights.origin == "hub" and not weights.net
        else {}
    )
    if hub_kwargs:
        check_weights_unchanged(weights)  # timm reads the file itself, because it knows how to rename old tensors
    try:
        backbone: nn.Module = import_timm().create_model(
            spec.backbone,
            pretrained=bool(hub_kwargs),
            num_classes=0,
            **hub_kwargs,
            **drop_path,
            **spec.backbone_args,
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        if drop_path and "drop_path_rate" in str(error):
            raise _no_drop_path_error(spec) from error
        raise _build_error(spec, weights, error) from error
    if drop_path and not any(getattr(module, "drop_prob", 0.0) for module in backbone.modules()):
        raise _no_drop_path_error(spec)
    default_size = getattr(backbone, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
    return backbone, int(spec.backbone_args.get("img_size", default_size))


def _no_drop_path_error(spec: ModelSpec) -> UsageError:
    problem = f"{spec.backbone}: timm has no stochastic depth for it, and model.drop_path is {spec.drop_path:g}"
    return UsageError(
        problem, remedy="set model.drop_path to 0, or use another backbone (resnet, convnext, vit, ...)"
    )


def _build_error(spec: ModelSpec, weights: BackboneWeights, error: Exception) -> DermkitError:
    description = f"{spec.backbone} with {spec.backbone_args}"
    if weights.net is not None:
        return UntrustedError(
            f"{weights.path}: timm cannot build {description}, as its config.json and the recipe say: {error}",
            outcome="nothing was trained",
            remedy="correct the recipe's model.backbone_args, or name another repository",
        )
    if weights.origin == "hub" and isinstance(error, RuntimeError | KeyError):
        return UntrustedError(
            f"{weights.path}: does not fit {description}: {error}",
            outcome="nothing was trained",
            remedy="correct the recipe's model.backbone_args, or remove that file so that it is fetched again",
        )
    return UsageError(
        f"timm cannot build {description}: {error}", remedy="correct the recipe's model.backbone_args"
    )


def _skip_blocks(backbone: nn.Module, blocks: tuple[str, ...]) -> None:
    """Replace named modules by the identity; raises `UsageError` with the closest name."""
    names = [name for name, _ in backbone.named_modules() if name]
    for block in blocks:
        if block not in names:
            close_matches = difflib.get_close_matches(block, names, n=1)
            raise UsageError(
                f"{block}: the backbone has no such block"
                + (f"; did you mean `{close_matches[0]}`?" if close_matches else ""),
                remedy="correct the recipe's model.skip_blocks",
            )
        backbone.set_submodule(block, nn.Identity())


def _load_weights(
    backbone: nn.Module, spec: ModelSpec, weights: BackboneWeights, file_tensors: Mapping[str, Tensor]
) -> None:
    """Load a file strictly: every tensor of the net and no other, except those that the file's JSON lists."""
    if weights.net is not None:
        file_tensors = tensors_of_backbone(backbone, file_tensors, weights.net.classifiers)
    tensors = {name: value for name, value in file_tensors.items() if not is_in_blocks(name, spec.skip_blocks)}
    expected_state = backbone.state_dict()
    # Counters are absent from files of older torch versions and carry no weight.
    required_names = {name for name in expected_state if not name.endswith("num_batches_tracked")}
    problems = [
        *(f"{name} is missing" for name in sorted(required_names - set(tensors) - set(weights.missing))),
        *(f"{name} is not part of the net" for name in sorted(set(tensors) - set(expected_state))),
        *(
            f"{name} is {tuple(value.shape)}, the net has {tuple(expected_state[name].shape)}"
            for name, value in sorted(tensors.items())
            if name in expected_state and value.shape != expected_state[name].shape
        ),
    ]
    if problems:
        raise UntrustedError(
            f"{weights.path}: does not fit {spec.backbone}: {first_of(problems, 5, '; ')}",
            outcome="nothing was trained",
            remedy="use the weights of this very net, and let model.skip_blocks name only blocks to leave out",
        )
    backbone.load_state_dict(tensors, strict=False)  # copies: the net stays float32 whatever the file's type


@contextlib.contextmanager
def _hub_size_limit(spec: ModelSpec, weights: BackboneWeights, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Stop the build of a net of the hub that outgrows its weights: its arguments are other people's input."""
    if weights.net is None:
        yield
        return
    check_arguments(spec, len(tensors))
    try:
        with size_limit(tensors):
            yield
    except TooLargeError as error:
        raise UntrustedError(
            f"{weights.path}: does not fit {spec.backbone} with {spec.backbone_args}: {error}",
            outcome="nothing was trained",
            remedy="name another repository",
        ) from None


def _check_finite_weights(backbone: nn.Module, weights: BackboneWeights) -> None:
    if names := non_finite_tensors(backbone) if weights.path is not None else []:
        raise UntrustedError(
            f"{weights.path}: {len(names)} tensors hold numbers that are not finite: {', '.join(names[:5])}",
            outcome="nothing was trained",
            remedy="get the weights again from where they were made",
        )


def _count_features(backbone: nn.Module, image_size: int) -> int:
    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.zeros(2, 3, image_size, image_size))
    backbone.train()
    if features.ndim != 2:
        raise UsageError(
            f"the backbone gives {tuple(features.shape)} for two images, not one row of features each"
        )
    return int(features.shape[1])


def layer_groups(net: Net) -> list[list[str]]:
    """Return the backbone's parameter names in timm's layer groups, from the image to the features."""
    timm = import_timm()
    matcher = getattr(net.backbone, "group_matcher", None)
    if matcher is None:
        raise UsageError(
            "this backbone has no layer groups",
            remedy='use train_backbone "none" or "all" and layer_decay 1 in the recipe, or another backbone',
        )
    groups = timm.models.group_parameters(net.backbone, matcher(coarse=False))
    return [list(group) for _, group in sorted(groups.items())]


def freeze(net: Net, phase: Phase) -> None:
    """Set `requires_grad` for a phase: always for the head, for the backbone as `train_backbone` says.

    Raises `UsageError` where the backbone has fewer layer groups than `train_backbone`.
    """
    trainable_names = _trainable_names(net, phase.train_backbone)
    for name, parameter in net.backbone.named_parameters():
        parameter.requires_grad_(name in trainable_names)
    for parameter in net.head.parameters():
        parameter.requires_grad_(True)


def _trainable_names(net: Net, train_backbone: str | int) -> set[str]:
    if train_backbone == "none":
        return set()
    if not isinstance(train_backbone, int):
        return {name for name, _ in net.backbone.named_parameters()}
    groups = layer_groups(net)
    if not 1 <= train_backbone <= len(groups):
        raise UsageError(
            f"train_backbone is {train_backbone}, but this backbone has {len(groups)} layer groups",
            remedy=f'give 1 to {len(groups)}, "none" or "all" in the recipe',
        )
    return {name for group in groups[-train_backbone:] for name in group}  # the last ones are nearest to the head


def set_train_mode(net: Net, phase: Phase) -> None:
    """Set trainable parts to training mode and frozen parts to evaluation mode; call it after `freeze`.

    Frozen parts keep their batch-norm statistics and drop nothing out. With `freeze_batch_norm` every batch-norm
    layer of the backbone keeps its statistics, while its scale and offset learn where their group does.
    """
    net.train()
    _set_mode(net.backbone, is_trainable=False)
    if phase.freeze_batch_norm:
        for module in net.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _set_mode(module: nn.Module, *, is_trainable: bool) -> None:
    """Set training mode where a module has trainable parameters; one without parameters follows its parent."""
    trainable_flags = [parameter.requires_grad for parameter in module.parameters()]
    is_trainable = any(trainable_flags) if trainable_flags else is_trainable
    module.training = is_trainable
    for child in module.children():
        _set_mode(child, is_trainable=is_trainable)


def has_batch_norm(net: Net) -> bool:
    """Return whether any layer normalises by statistics of batches."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


def count_batch_norms(net: Net, phase: Phase) -> tuple[int, int, int]:
    """Return (batch-norm layers, those that update their statistics in the phase, those of these without trainable
    weights); the modes and `requires_grad` of the net are restored.
    """
    trainable_flags = [parameter.requires_grad for parameter in net.parameters()]
    training_flags = [module.training for module in net.modules()]
    freeze(net, phase)
    set_train_mode(net, phase)
    batch_norms = [layer for layer in net.backbone.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    updating_layers = [layer for layer in batch_norms if layer.training and layer.track_running_stats]
    frozen_layers = [
        layer for layer in updating_layers if not any(weight.requires_grad for weight in layer.parameters())
    ]
    for parameter, is_trainable in zip(net.parameters(), trainable_flags, strict=True):
        parameter.requires_grad_(is_trainable)
    for module, is_training in zip(net.modules(), training_flags, strict=True):
        module.training = is_training
    return len(batch_norms), len(updating_layers), len(frozen_layers)


def parameter_groups(net: Net, phase: Phase) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups with their learning rates; call it after `freeze`.

    The head's is first, then what is trained of the backbone: one group, or with `layer_decay` one for each layer
    group, from the features down to the image.
    """
    parameters = dict(net.backbone.named_parameters())
    layers = [list(parameters)] if phase.layer_decay == 1.0 else layer_groups(net)[::-1]
    rates_and_parameters = [
        (phase.head_lr, list(net.head.parameters())),
        *(
            (phase.backbone_lr * phase.layer_decay**depth, [parameters[name] for name in names])
            for depth, names in enumerate(layers)
        ),
    ]
    groups = [{"params": [p for p in group if p.requires_grad], "lr": lr} for lr, group in rates_and_parameters]
    return [group for group in groups if group["params"]]


def backbone_fingerprint(net: Net) -> str:
    """Return the SHA-256 of the backbone's tensors: their names, types, shapes and bytes, buffers included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.backbone.state_dict().items()):
        cpu_tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {cpu_tensor.dtype} {tuple(cpu_tensor.shape)}\n".encode())
        digest.update(cpu_tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def preprocessing_for(image: ImageSpec, weights: BackboneWeights) -> Preprocessing:
    """Return the preprocessing: the recipe's geometry, with the weights' mean and standard deviation or 0 and 1."""
    use_statistics = image.normalise == "weights"
    return Preprocessing(
        size=image.size,
        resize=image.resize,
        interpolation=image.interpolation,
        divide_by=255.0,
        mean=weights.mean if use_statistics else (0.0, 0.0, 0.0),
        std=weights.std if use_statistics else (1.0, 1.0, 1.0),
    )
