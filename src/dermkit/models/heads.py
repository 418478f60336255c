"""Heads of a net: dense layers, or a classifier of scikit-learn as tensors, so that nothing is unpickled and a net with
one is saved and loaded like any other.

What a classifier's head holds depends on the images (support vectors, neighbours, trees), so its tensors take the
shapes of those that are loaded into it, after these were checked. Everything is computed in float64.

Shapes: N images, C features, K classes, R stored vectors, T trees of M nodes.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from dermkit.recipes.schema import ClassifierSpec, ModelSpec

ABSENT_PROBABILITY = 1e-6
"""Probability of a class without training images: scikit-learn's is 0 (it does not know the class), whose logarithm is
not finite."""

_ROWS_AT_ONCE = 4096
"""Stored vectors that are compared at once, so that memory does not grow with them. Chosen, not measured."""


class ClassifierHead(nn.Module):
    """Features (N, C) float32 -> logits (N, K) float32, whose softmax is the classifier's probabilities.

    mean, scale: (C,) float32, what features are standardised with. is_absent: (K,), classes without training images.
    """

    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = {"mean": ("C",), "scale": ("C",), "is_absent": ("K",)}
    """Tensor -> its dimensions; a letter that is neither C nor K is any number that fits."""
    mean: Tensor
    scale: Tensor
    is_absent: Tensor

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {"C": n_features, "K": n_classes}
        self.add("mean", torch.zeros(n_features))
        self.add("scale", torch.ones(n_features))
        self.add("is_absent", torch.zeros(n_classes, dtype=torch.bool))

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor that is saved with the net."""
        self.register_buffer(name, tensor)

    def standardise(self, x: Tensor) -> Tensor:
        """Return standardised features (N, C) float32, to the same bits in training and afterwards."""
        return (x.float() - self.mean) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        logits = self.scores(self.standardise(x).double())
        known = torch.where(self.is_absent, -torch.inf, logits)
        total = known.logsumexp(1, keepdim=True)
        absent = torch.log(torch.tensor(ABSENT_PROBABILITY, dtype=torch.float64, device=x.device))
        return torch.where(self.is_absent, absent, known - total).float()

    def scores(self, z: Tensor) -> Tensor:
        """Return logits (N, K) float64 of standardised features (N, C) float64."""
        raise NotImplementedError

    def problem_of_values(self, tensors: Mapping[str, Tensor]) -> str:  # noqa: ARG002
        """Return why tensors of the right shapes cannot be used, "" if they can."""
        return ""

    def limit(self, letter: str, size: int) -> str:  # noqa: ARG002
        """Return why a free dimension cannot be of this size, "" if it can."""
        return "" if size else "is empty"

    def problem(self, tensors: Mapping[str, Tensor]) -> str:
        """Return why tensors cannot be those of this head, "" if they can. Nothing is allocated."""
        sizes = dict(self.sizes)
        for name, dimensions in self.shapes.items():
            tensor, expected = tensors.get(name), self._buffers[name]
            if tensor is None or expected is None:
                return f"{name} is missing"
            if tensor.dtype != expected.dtype or tensor.ndim != len(dimensions):
                return f"{name} is {tuple(tensor.shape)} {tensor.dtype}"
            for letter, size in zip(dimensions, tensor.shape, strict=True):
                reason = "" if letter in sizes else self.limit(letter, size)
                if reason or sizes.setdefault(letter, size) != size:
                    return f"{name} is {tuple(tensor.shape)}: {reason or f'{sizes[letter]} are expected'}"
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return f"{name} holds numbers that are not finite"
        return self.problem_of_values(tensors)

    def resize(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the shapes of tensors that `problem` found none in."""
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.shape != tensors[name].shape:
                self._buffers[name] = torch.empty_like(tensors[name], device=buffer.device)

    def on_loaded(self) -> None:
        """Prepare what is not saved, once the tensors are there."""

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: object, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        tensors = {name: state_dict[prefix + name] for name in self.shapes if prefix + name in state_dict}
        if problem := self.problem(tensors):
            error_msgs.append(f"{prefix.rstrip('.')}: {problem}")
            return
        self.resize(tensors)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.on_loaded()


class LogisticHead(ClassifierHead):
    """Logistic regression: one linear layer."""

    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **ClassifierHead.shapes,
        "weight": ("K", "C"),
        "bias": ("K",),
    }
    weight: Tensor
    bias: Tensor

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__(n_features, n_classes)
        self.add("weight", torch.zeros(n_classes, n_features))
        self.add("bias", torch.zeros(n_classes))

    def scores(self, z: Tensor) -> Tensor:
        """Return the linear layer's logits, (N, K)."""
        return z @ self.weight.double().T + self.bias


class NearestNeighboursHead(ClassifierHead):
    """Votes of the k nearest training images, weighted by 1 / distance and by class; an image at distance 0 votes
    alone, with others at 0.

    One more vote is shared out as `prior` says (the classes' weighted frequencies), so that no probability is 0: with
    p of the votes, a class has (k p + prior) / (k + 1). vectors: (R, C) float32. labels: (R,) int64. votes: (K,).
    """

    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **ClassifierHead.shapes, "vectors": ("R", "C"), "labels": ("R",), "votes": ("K",), "prior": ("K",),
    }  # fmt: skip
    vectors: Tensor
    labels: Tensor
    votes: Tensor
    prior: Tensor

    def __init__(self, n_features: int, n_classes: int, n_neighbours: int) -> None:
        super().__init__(n_features, n_classes)
        self.n_neighbours = n_neighbours
        self.add("vectors", torch.zeros(0, n_features))
        self.add("labels", torch.zeros(0, dtype=torch.int64))
        self.add("votes", torch.ones(n_classes))
        self.add("prior", torch.full((n_classes,), 1 / n_classes))

    def problem_of_values(self, tensors: Mapping[str, Tensor]) -> str:
        """Return why the labels cannot be used, "" if they can."""
        if _outside(tensors["labels"], self.sizes["K"]):
            return "labels holds other classes"
        has_weights = bool((tensors["votes"] > 0).all()) and bool((tensors["prior"] >= 0).all())
        return "" if has_weights else "votes and prior are no weights"

    def scores(self, z: Tensor) -> Tensor:
        """Return the logarithm of the smoothed votes, (N, K)."""
        rows = self._nearest(z)
        # Image by image: all at once would need k vectors for each in memory. Exact, so that a copy is at distance 0.
        differences = (self.vectors[row].double() - image for row, image in zip(rows, z, strict=True))
        distances = torch.stack([difference.square().sum(1).sqrt() for difference in differences])
        is_same = distances == 0
        weights = torch.where(is_same.any(1, keepdim=True), is_same.double(), 1 / distances)
        labels = self.labels[rows]
        votes = z.new_zeros(len(z), self.sizes["K"]).scatter_add_(1, labels, weights * self.votes.double()[labels])
        shares = votes / votes.sum(1, keepdim=True)
        k = rows.shape[1]
        return ((k * shares + self.prior.double()) / (k + 1)).clamp_min(ABSENT_PROBABILITY).log()

    def _nearest(self, z: Tensor) -> Tensor:
        """Return the rows of each image's nearest vectors, (N, k) int64."""
        n_kept = min(self.n_neighbours, len(self.vectors))
        distances, rows = z.new_empty(len(z), 0), torch.empty(len(z), 0, dtype=torch.int64, device=z.device)
        for start in range(0, len(self.vectors), _ROWS_AT_ONCE):
            block = _squared_distances(z, self.vectors[start : start + _ROWS_AT_ONCE])
            block_rows = torch.arange(start, start + block.shape[1], device=z.device).expand(len(z), -1)
            distances, rows = torch.cat([distances, block], 1), torch.cat([rows, block_rows], 1)
            distances, order = distances.topk(min(n_kept, distances.shape[1]), dim=1, largest=False)
            rows = rows.gather(1, order)
        return rows


class SvmHead(ClassifierHead):
    """Support vector machines with a radial kernel, one per class against the rest: softmax(decision / temperature +
    offset).

    Of two classes one machine decides: the first class has its decision negated. vectors: (R, C) float32, the support
    vectors of all; dual: (K, R) float32; intercept: (K,). gamma: (1,), of the kernel.
    """

    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **ClassifierHead.shapes, "vectors": ("R", "C"), "dual": ("K", "R"), "intercept": ("K",), "gamma": ("1",),
        "temperature": ("1",), "offset": ("K",),
    }  # fmt: skip
    vectors: Tensor
    dual: Tensor
    intercept: Tensor
    gamma: Tensor
    temperature: Tensor
    offset: Tensor

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__(n_features, n_classes)
        self.sizes["1"] = 1
        self.add("vectors", torch.zeros(0, n_features))
        self.add("dual", torch.zeros(n_classes, 0))
        for name in ("intercept", "offset"):
            self.add(name, torch.zeros(n_classes))
        for name in ("gamma", "temperature"):
            self.add(name, torch.ones(1))

    def problem_of_values(self, tensors: Mapping[str, Tensor]) -> str:
        """Return why gamma or the temperature cannot be used, "" if they can."""
        bad = [name for name in ("gamma", "temperature") if not bool((tensors[name] > 0).all())]
        return f"{bad[0]} is not above 0" if bad else ""

    def decisions(self, z: Tensor) -> Tensor:
        """Return the decision function of each class against the rest, (N, K) float64."""
        total = self.intercept.double().expand(len(z), -1)
        for start in range(0, len(self.vectors), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            kernel = (-self.gamma.double() * _squared_distances(z, self.vectors[rows])).exp()
            total = total + kernel @ self.dual[:, rows].double().T
        return total

    def scores(self, z: Tensor) -> Tensor:
        """Return calibrated decisions, (N, K)."""
        return self.decisions(z) / self.temperature.double() + self.offset.double()


class BoostedTreesHead(ClassifierHead):
    """Gradient-boosted trees: each adds the value of the leaf that an image reaches to the score of its class.

    feature, left, right: (T, M) int32, threshold, value: (T, M) float32; a node sends an image whose feature is at most
    the threshold to `left`, and a leaf points to itself. Children have higher numbers than their node, so that no tree
    is endless. tree_class: (T,) int64. baseline: (K,).
    """

    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **ClassifierHead.shapes, "feature": ("T", "M"), "threshold": ("T", "M"), "left": ("T", "M"),
        "right": ("T", "M"), "value": ("T", "M"), "tree_class": ("T",), "baseline": ("K",),
    }  # fmt: skip
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    tree_class: Tensor
    baseline: Tensor

    def __init__(self, n_features: int, n_classes: int, n_iterations: int, max_leaves: int) -> None:
        super().__init__(n_features, n_classes)
        self.max_trees, self.max_nodes, self.depth = n_iterations * n_classes, 2 * max_leaves - 1, 0
        for name in ("feature", "left", "right"):
            self.add(name, torch.zeros(0, 0, dtype=torch.int32))
        for name in ("threshold", "value"):
            self.add(name, torch.zeros(0, 0))
        self.add("tree_class", torch.zeros(0, dtype=torch.int64))
        self.add("baseline", torch.zeros(n_classes))

    def limit(self, letter: str, size: int) -> str:
        """Return why there cannot be so many trees or nodes, "" if there can."""
        limit = {"T": self.max_trees, "M": self.max_nodes}[letter]
        return f"1 to {limit} {'trees' if letter == 'T' else 'nodes a tree'} can be" * (not 1 <= size <= limit)

    def problem_of_values(self, tensors: Mapping[str, Tensor]) -> str:
        """Return why the trees cannot be walked, "" if they can."""
        n_nodes = tensors["left"].shape[1]
        left, right, nodes = tensors["left"], tensors["right"], torch.arange(n_nodes)
        is_leaf = (left == nodes) & (right == nodes)
        is_inner = (left > nodes) & (right > nodes) & (left < n_nodes) & (right < n_nodes)
        if not bool((is_leaf | is_inner).all()):
            return "left and right are no trees"
        if _outside(tensors["feature"], self.sizes["C"]) or _outside(tensors["tree_class"], self.sizes["K"]):
            return "feature or tree_class is out of range"
        return ""

    def on_loaded(self) -> None:
        """Find the depth of the deepest tree: how many steps lead every image to a leaf."""
        level = torch.zeros(self.left.shape, dtype=torch.int64)
        left, right = self.left.cpu().long(), self.right.cpu().long()
        for node in range(left.shape[1]):
            below = level[:, node] + 1
            for child in (left[:, node], right[:, node]):
                is_inner = child > node
                level[is_inner, child[is_inner]] = below[is_inner]
        self.depth = int(level.max())

    def scores(self, z: Tensor) -> Tensor:
        """Return the classes' summed leaf values, (N, K)."""
        n_images, (n_trees, n_nodes) = len(z), self.left.shape
        first = torch.arange(n_trees, device=z.device) * n_nodes  # trees lie behind each other in flat tensors
        feature, threshold = self.feature.flatten(), self.threshold.double().flatten()
        left, right = self.left.flatten(), self.right.flatten()
        nodes = first.expand(n_images, -1)
        for _ in range(self.depth):
            goes_left = z.gather(1, feature[nodes].long()) <= threshold[nodes]
            nodes = first + torch.where(goes_left, left[nodes], right[nodes])
        values = self.value.double().flatten()[nodes]
        return self.baseline.double().expand(n_images, -1).clone().index_add_(1, self.tree_class, values)


def _squared_distances(x: Tensor, vectors: Tensor) -> Tensor:
    """Return squared distances (N, R) float64 of x (N, C) float64 and vectors (R, C) float32.

    In float64 what the binomial formula loses is far below the rounding of the features.
    """
    y = vectors.double()
    squares = x.square().sum(1, keepdim=True) - 2 * (x @ y.T) + y.square().sum(1)
    return squares.clamp_min(0.0)


def _outside(numbers: Tensor, limit: int) -> bool:
    return bool(((numbers < 0) | (numbers >= limit)).any())


def build_head(n_features: int, spec: ModelSpec, n_classes: int) -> nn.Module:
    """Return dense layers, new: dropout before each, ReLU after the hidden ones; or an empty head for a classifier."""
    if spec.classifier is not None:
        return _build_classifier_head(spec.classifier, n_features, n_classes)
    layers: list[nn.Module] = []
    for width in spec.hidden:
        layers += [nn.Dropout(spec.dropout), nn.Linear(n_features, width), nn.ReLU()]
        n_features = width
    return nn.Sequential(*layers, nn.Dropout(spec.dropout), nn.Linear(n_features, n_classes))


def _build_classifier_head(spec: ClassifierSpec, n_features: int, n_classes: int) -> ClassifierHead:
    if spec.kind == "logistic":
        return LogisticHead(n_features, n_classes)
    if spec.kind == "k_nearest":
        return NearestNeighboursHead(n_features, n_classes, spec.neighbours)
    if spec.kind == "svm":
        return SvmHead(n_features, n_classes)
    return BoostedTreesHead(n_features, n_classes, spec.iterations, spec.max_leaves)


def take_shapes(head: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Give a head without content the shapes of the net's tensors; returns why they are not its own, "" if they are."""
    if not isinstance(head, ClassifierHead):
        return ""
    tensors = {name.removeprefix("head."): tensor for name, tensor in state.items() if name.startswith("head.")}
    problem = head.problem(tensors)
    if not problem:
        head.resize(tensors)
    return problem
