"""A net at its fastest in float32: batch norms folded into convolutions, one thread per batch, batches side by side."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermkit.errors import DataError, UsageError
from dermkit.images.preprocess import Preprocessing
from dermkit.models.precision import is_out_of_memory
from dermkit.threads import ahead

FOLDED, AS_BUILT = "batch norms folded into convolutions", "as built"
TOLERANCE = 5e-5
"""Largest difference that folding may make to an output, in standard deviations of the outputs. Float32 itself is not
closer to the truth: MobileNetV2 as built was 1.1e-5 away from float64 in a probability, folded 0.9e-5; its features, of
random weights, 2e-5 deviations away from each other."""

_BATCH = {"cpu": 16, "cuda": 64}
"""Images per forward pass: a core works on what its own cache holds, a GPU on what fills it."""

PASS = {"cpu": 16, "cuda": 256}
"""The same for validation and for features, where nobody else uses the device."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; raises `UsageError`."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: unknown", remedy="one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here", remedy="--device cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def default_batch(device: torch.device) -> int:
    """Return how many images go through a net at once on a device."""
    return _BATCH[device.type]


def passes(rows: NDArray[np.int64], device: torch.device) -> list[NDArray[np.int64]]:
    """Cut rows into what goes through a net at once."""
    size = PASS[device.type]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def streams(device: torch.device) -> int:
    """Return how many passes run side by side on a device."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def side_by_side(make: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """Yield make(item) in order, from `workers` threads, each of which multiplies alone.

    Two threads that share every multiplication wait for each other at the end of each; two batches side by side
    do not, and a batch's figures are the same on any number of threads.
    """

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)  # of this thread, and of those that begin later
        return make(item)

    with _threads_given_back():
        yield from ahead(alone, items, workers=max(1, workers))


@contextmanager
def _threads_given_back() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Forward:
    """uint8 pixels -> class probabilities. way: `FOLDED` or `AS_BUILT`. at_most: images at once, less after a refusal.

    Any number of threads may call it. say: told when the device's memory was too small for a batch.
    """

    def __init__(
        self, net: nn.Module, preprocessing: Preprocessing, say: Callable[[str], None] = lambda _line: None
    ) -> None:
        parameter = next(net.parameters())
        self.device = parameter.device
        self.at_most = 2**31
        self.say = say
        self._turn = threading.Lock() if self.device.type == "cuda" else nullcontext()
        self._preprocessing, self._tables = preprocessing, level_tables(preprocessing)
        self._net = net
        side = preprocessing.size
        with _threads_given_back(), plain_float32(self.device):
            torch.set_num_threads(1)  # or the choice could be another on another number of threads
            folded = fold(net, self._inputs(made_pictures(side)))
        self._net, self.way = (folded, FOLDED) if folded is not None else (net, AS_BUILT)

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Score resized pixels (N, S, S, 3) uint8; returns softmax probabilities (N, classes) float64."""
        inputs = self._inputs(batch)
        with torch.inference_mode(), self._turn, plain_float32(self.device):
            logits = self._logits(inputs)
        return np.asarray(torch.softmax(logits.cpu().double(), dim=1).numpy(), dtype=np.float64)

    def _inputs(self, batch: NDArray[np.uint8]) -> Tensor:
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
            raise DataError(f"batch is {batch.shape} {batch.dtype}, expected (N, S, S, 3) uint8")
        if self.device.type != "cpu":
            return computed(torch.from_numpy(batch).to(self.device), self._preprocessing)
        return looked_up(batch, self._tables)

    def _logits(self, inputs: Tensor) -> Tensor:
        while True:
            parts = [self._attempt(part) for part in torch.split(inputs, self.at_most)]
            whole = [part for part in parts if part is not None]
            if len(whole) == len(parts):
                return torch.cat(whole)
            del parts, whole
            self._halve(len(inputs))

    def _attempt(self, inputs: Tensor) -> Tensor | None:
        """Return logits, or None where the memory was too small; the error is gone, and with it what it held."""
        try:
            logits: Tensor = self._net(inputs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return logits

    def _halve(self, images: int) -> None:
        tried = min(self.at_most, images)
        if tried == 1:
            raise UsageError(
                f"{self.device}: its memory is too small for one image",
                kept="what was scored before",
                remedy="--device cpu, or end what else uses the device",
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.at_most = tried // 2
        self.say(f"{self.device}: out of memory with {tried} images at once; going on with {self.at_most}")


def level_tables(preprocessing: Preprocessing) -> tuple[NDArray[np.float32], ...]:
    """Return, for each channel, the normalised value of the 256 levels: the same numbers as `images.normalise`."""
    levels = np.arange(256, dtype=np.float64) / preprocessing.divide_by
    pairs = zip(preprocessing.mean, preprocessing.std, strict=True)
    return tuple(((levels - mean) / std).astype(np.float32) for mean, std in pairs)


def looked_up(batch: NDArray[np.uint8], tables: tuple[NDArray[np.float32], ...]) -> Tensor:
    """Return normalised pixels (N, 3, S, S), written straight in the order of memory that convolutions like."""
    out = np.empty(batch.shape, np.float32)
    for channel, table in enumerate(tables):
        np.take(table, batch[..., channel], out=out[..., channel], mode="clip")
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def computed(batch: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the same, computed on the batch's device: a quarter of the bytes travels there."""
    mean, std = (torch.tensor(values, device=batch.device) for values in (preprocessing.mean, preprocessing.std))
    return batch.float().div_(preprocessing.divide_by).sub_(mean).div_(std).permute(0, 3, 1, 2)


def plain_float32(device: torch.device) -> AbstractContextManager[None]:
    """On CUDA, convolutions would round their inputs to 10 bits (TF32) unless told not to."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def fast_backbone(net: nn.Module, preprocessing: Preprocessing) -> tuple[nn.Module, str]:
    """Return a frozen backbone for many forward passes, and its way: `FOLDED` where that is exact, else `AS_BUILT`."""
    device = next(net.parameters()).device
    with _threads_given_back(), plain_float32(device):
        torch.set_num_threads(1)
        images = looked_up(made_pictures(preprocessing.size), level_tables(preprocessing)).to(device)
        folded = fold(net, images)
    return (net, AS_BUILT) if folded is None else (folded, FOLDED)


def made_pictures(side: int) -> NDArray[np.uint8]:
    """Return made pictures (4, side, side, 3): noise, a dark spot on a gradient, both, and one colour."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3))
    y, x = np.mgrid[0:side, 0:side] / side
    spot = 120 * np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.05)
    skin = (np.array([220, 170, 150]) - 40 * x[..., None]) - spot[..., None]
    pictures = [noise, skin, 0.8 * skin + 0.2 * noise, np.full_like(noise, 128)]
    return np.asarray(np.clip(np.stack(pictures), 0, 255), dtype=np.uint8)


# Folding -----------------------------------------------------------------------------------------------------------


def fold(net: nn.Module, images: Tensor) -> nn.Module | None:
    """Return a copy of the net with batch norms folded into the convolutions that feed them.

    Returns None where there is nothing to fold, or where the copy's outputs on the images are not the net's within
    `TOLERANCE` of their deviation. Logits or features are compared, never probabilities: where these are all near 0
    or 1, a wrong copy would pass. First every kind of convolution is tried, then plain ones alone: some kinds change
    their weights on the way.
    """
    with torch.inference_mode():
        expected = net(images).double()
    for kinds in (lambda _: True, lambda conv: type(conv) is nn.Conv2d):
        candidate = _folded(net, images, kinds)
        if candidate is not None and _agrees(candidate, images, expected):
            return candidate
    return None


def _folded(net: nn.Module, probe: Tensor, kinds: Callable[[nn.Conv2d], bool]) -> nn.Module | None:
    candidate = copy.deepcopy(net).eval()
    pairs = [(conv, norm) for conv, norm in _pairs(candidate, probe) if kinds(conv)]
    names = {id(module): name for name, module in candidate.named_modules()}
    for conv, norm in pairs:
        _fold_pair(conv, norm)
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        candidate.set_submodule(names[id(norm)], nn.Sequential(*rest) if rest else nn.Identity())
    return candidate.requires_grad_(False) if pairs else None


def _pairs(net: nn.Module, probe: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return convolutions and the batch norms that take their output as it is, each used once: seen, not guessed."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are held, so that no id is used twice
    uses: dict[int, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        uses[id(module)] = uses.get(id(module), 0) + 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, output)
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made and module.running_mean is not None:
            pairs.append((made[id(inputs[0])][0], module))

    kept = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    hooks = [module.register_forward_hook(after) for module in kept]
    with torch.inference_mode():
        net(probe)
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in pairs if uses[id(conv)] == uses[id(norm)] == 1]


def _fold_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Change a convolution's weights to what it and the batch norm do together, in double precision."""
    mean, var = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    gamma = norm.weight.double() if norm.affine else torch.ones_like(mean)
    beta = norm.bias.double() if norm.affine else torch.zeros_like(mean)
    bias = conv.bias.double() if conv.bias is not None else torch.zeros_like(mean)
    scale = gamma / torch.sqrt(var + norm.eps)
    weight = (conv.weight.double() * scale.reshape(-1, 1, 1, 1)).float()
    conv.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    conv.bias = nn.Parameter((beta + (bias - mean) * scale).float(), requires_grad=False)


def _agrees(candidate: nn.Module, probe: Tensor, expected: Tensor) -> bool:
    try:
        with torch.inference_mode():
            found = candidate(probe).double()
    except (RuntimeError, TypeError, AttributeError):
        return False
    return found.shape == expected.shape and bool((found - expected).abs().max() <= TOLERANCE * expected.std())
