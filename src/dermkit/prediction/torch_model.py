"""The torch nets of a model folder, rebuilt from its verified bytes."""

import json

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from dermkit.models.fork import limit_threads_after_fork
from dermkit.models.inference import TorchRuntime
from dermkit.models.model_content import ModelContent, broken_model
from dermkit.models.net import Net
from dermkit.models.net_fit import rebuild_net
from dermkit.models.training_features import ReferenceFeatures
from dermkit.models.training_features_file import parse_training_features
from dermkit.recipes.schema import ModelSpec

_SPEC: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


def build_torch_nets(content: ModelContent, device: torch.device) -> TorchRuntime:
    """Return the nets of a model on a device; raises `UntrustedError` where weights do not fit their net."""
    limit_threads_after_fork()  # a net is run once where it is built
    try:
        specs = [_SPEC.validate_json(json.dumps(member.spec)) for member in content.members]
        states = [load_safetensors(content.files[member.file]) for member in content.members]
    except (KeyError, TypeError, ValueError, ValidationError, SafetensorError) as error:
        raise broken_model(content.folder, error) from error
    nets = [
        rebuild_net(content.folder, spec, len(content.classes), state, member).to(device)
        for spec, state, member in zip(specs, states, content.members, strict=True)
    ]
    return TorchRuntime(tuple(nets))


def read_training_features(content: ModelContent, nets: tuple[Net, ...]) -> tuple[ReferenceFeatures | None, ...]:
    """Return the training features of each net, None where the folder holds none; raises `UntrustedError`."""
    return tuple(
        None if (file := member.training_features) is None else parse_training_features(
            content.files[file], content.folder / file, n_features=net.n_features, n_classes=len(content.classes)
        )
        for member, net in zip(content.members, nets, strict=True)
    )  # fmt: skip
