"""The same net with random weights: what a map shows without anything learned (Adebayo and others 2018)."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from dermkit.models.heads import ClassifierHead
from dermkit.models.net import Net, build_net
from dermkit.models.weights import resolve_weights
from dermkit.recipes.schema import ModelSpec

_SPEC: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


def random_net(net: Net, spec: Mapping[str, Any], n_classes: int, *, seed: int) -> Net:
    """Return a net as a recipe's training from scratch begins with it, in evaluation mode on the device of `net`.

    spec: the member's of model.json. A classifier of scikit-learn is kept as it is, on the features of a random net: it
    has nothing that could be drawn at random.
    """
    unloaded_spec = dataclasses.replace(_SPEC.validate_json(json.dumps(spec)), weights="none")
    weights = resolve_weights(unloaded_spec, None)
    twin = build_net(unloaded_spec, n_classes, weights=weights, seed=seed, n_metadata=net.n_metadata)
    if isinstance(net.head, ClassifierHead):
        twin.head = net.head
    return twin.to(next(net.parameters()).device).eval().requires_grad_(False)
