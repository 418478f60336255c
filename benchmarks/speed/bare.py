"""The bare model: torch and timm alone on tensors that are ready; what no pipeline around it can beat.

Runs in dermkit's environment and, for another version of torch, in timm's. Settings: `defaults` (float32,
channels_last), `bf16` (autocast), `contiguous`.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from asked import Asked, answer, asked
from torch import Tensor, nn
from torch.nn import functional as F

CAP = 1024
"""Images that are really put through; more would only repeat them. The answer counts all that were asked for."""
CLASSES = 9
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": ("resnet50", {}),
    "mobilenetv2": ("mobilenetv2_100", {"pad_type": "same"}),
}


def timm_module() -> Any:
    """Return timm, in dermkit's environment the way that dermkit imports it."""
    try:
        from dermkit.models.weights import import_timm
    except ImportError:
        import timm

        return timm
    return import_timm()


def net_of(given: Asked, classes: int) -> nn.Module:
    name, arguments = NETS[given.net]
    torch.manual_seed(given.seed)
    net: nn.Module = timm_module().create_model(name, pretrained=False, num_classes=classes, **arguments)
    return net if "contiguous" in given.switches else net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def ready(given: Asked, n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(given.seed)
    made = torch.randn(n, 3, given.size, given.size, generator=generator)
    if "contiguous" not in given.switches:
        made = made.contiguous(memory_format=torch.channels_last)
    return list(torch.split(made, given.batch))


def within(given: Asked) -> Callable[[], AbstractContextManager[Any]]:
    if "bf16" in given.switches:
        return lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext


def rate(step: Callable[[Tensor], Any], batches: list[Tensor]) -> float:
    """Return images per second over all batches, two steps of warming up aside."""
    for batch in batches[:2]:
        step(batch)
    started = time.perf_counter()
    for batch in batches:
        step(batch)
    return sum(len(batch) for batch in batches) / (time.perf_counter() - started)


def forward_rate(given: Asked, classes: int) -> float:
    net, context = net_of(given, classes).eval(), within(given)

    def step(batch: Tensor) -> None:
        with torch.inference_mode(), context():
            net(batch)

    return rate(step, ready(given, min(given.count, CAP)))


def training_step(
    net: nn.Module, context: Callable[[], AbstractContextManager[Any]], classes: int = CLASSES
) -> Callable[[Tensor], None]:
    """Return one step of Adam on cross-entropy, with nothing around it."""
    optimizer = torch.optim.Adam([item for item in net.parameters() if item.requires_grad], lr=1e-4)
    net.train()

    def step(batch: Tensor) -> None:
        labels = torch.arange(len(batch)) % classes
        with context():
            loss = F.cross_entropy(net(batch), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def s2(given: Asked) -> None:
    """Every image once through the frozen net, then the head's epochs on features in memory."""
    given.only("bf16", "contiguous")
    forward = given.count / forward_rate(given, 0)
    width = 2048 if given.net == "resnet50" else 1280
    head = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    features = torch.randn(given.count, width)
    step = training_step(head, nullcontext)
    started = time.perf_counter()
    for _ in range(given.epochs):
        for batch in torch.split(features, given.batch):
            step(batch)
    seconds = forward + time.perf_counter() - started
    answer(inner_seconds=seconds, images_per_second=given.count / forward, n=given.count, versions=versions())


def finetune(given: Asked) -> None:
    given.only("bf16", "contiguous")
    step = training_step(net_of(given, CLASSES), within(given))
    value = rate(step, ready(given, min(given.count, CAP)))
    answer(images_per_second=value, steady_images_per_second=value, n=given.count, versions=versions())


def score(given: Asked) -> None:
    given.only("bf16", "contiguous")
    value = forward_rate(given, CLASSES)
    answer(inner_seconds=given.count / value, images_per_second=value, n=given.count, versions=versions())


def features(given: Asked) -> None:
    """Write timm's features of given pixels under given weights: what Keras's conversion is held against."""
    import numpy as np
    from safetensors.torch import load_file

    if given.weights is None:
        raise SystemExit("features: --weights is missing")
    net = net_of(given, 0).eval()
    net.load_state_dict({name: value.float() for name, value in load_file(given.weights).items()}, strict=False)
    pixels = torch.from_numpy(np.load(given.images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.inference_mode():
        np.save(given.out / "timm.npy", net(pixels).numpy())
    answer(n=len(pixels), versions=versions())


def versions() -> str:
    return f"timm {timm_module().__version__} torch {torch.__version__}"


if __name__ == "__main__":
    request = asked()
    {"s2": s2, "finetune": finetune, "score": score, "features": features}[request.job](request)
