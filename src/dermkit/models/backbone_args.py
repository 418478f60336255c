"""Arguments of timm's nets: which ones neither a recipe nor a repository on the hub may set."""

from collections.abc import Mapping
from typing import Any

_RESERVED_ARGS = frozenset({
    "num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args",
    "pretrained_strict", "pretrained_filter_fn", "checkpoint_path", "cache_dir", "features_only", "feature_cfg",
    "out_indices", "model_cfg", "kwargs_filter", "variant", "pruned", "scriptable", "exportable", "no_jit", "device",
    "dtype",
})  # fmt: skip
"""They load other files, change the kind of output, or say where a net is built."""

_POOLINGS = ("avg", "max", "avgmax", "catavgmax", "token", "map")
"""Poolings of timm that give one row of features an image."""

MAX_ARGUMENT = 16_384


def reserved_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """Return the names of arguments that may not be set, sorted; of `global_pool` the values without pooling."""
    is_pooled = arguments.get("global_pool", "avg") in _POOLINGS
    return sorted((set(arguments) & _RESERVED_ARGS) | ({"global_pool"} if not is_pooled else set()))
