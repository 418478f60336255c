"""Ultralytics classify: YOLO(yaml).train on torchvision's MobileNetV2 with the weights at hand, then predict.

Its own augmentation and optimizer. The weights are timm's, tensor by tensor in the same order; timm pads them as
TensorFlow does, torchvision evenly. It saves the epoch that is best on the validation images.
"""

from given import BATCH, STARTED, answer, class_names, given, test_files, write_predictions  # noqa: I001

import time

import torch
from safetensors.torch import load_file
from ultralytics import YOLO, __version__, settings


def load_backbone(net: torch.nn.Module, file: str) -> None:
    """Copy timm's tensors into torchvision's layers of the same order and shape."""
    tensors = {key: value.float() for key, value in load_file(file).items() if not key.endswith("tracked")}
    own = {key: value for key, value in net.state_dict().items() if not key.endswith("tracked")}
    pairs = list(zip(own.items(), tensors_in_order(tensors), strict=False))
    for (key, value), tensor in pairs:
        if value.shape != tensor.shape:
            raise SystemExit(f"{key}: {tuple(value.shape)} and {tuple(tensor.shape)}")
        value.copy_(tensor)
    print("tensors copied:", len(pairs), "of", len(tensors))
    if len(pairs) < len(tensors):
        raise SystemExit("weights are left over")


def tensors_in_order(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return timm's tensors in the order of the net: stem, blocks, head; each convolution before its batch norm."""
    expanded = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    modules = ["conv_stem", "bn1"]
    for block in sorted({".".join(key.split(".")[:3]) for key in tensors if key.startswith("blocks.")}):
        parts = ("conv_dw", "bn1", "conv_pw", "bn2") if block == "blocks.0.0" else expanded
        modules += [f"{block}.{part}" for part in parts]
    names = [
        f"{module}.{part}"
        for module in [*modules, "conv_head", "bn2"]
        for part in ("weight", "bias", "running_mean", "running_var")
    ]
    return [tensors[name] for name in names if name in tensors]


def main() -> None:
    options = given()
    settings.update({"sync": False})
    path = options.out / "mobilenet_v2-cls.yaml"
    path.write_text(
        "nc: 9\nbackbone:\n  - [-1, 1, TorchVision, [1280, mobilenet_v2, null, True, 1]]\n"
        "head:\n  - [-1, 1, Classify, [nc]]\n"
    )
    model, begun, epochs = YOLO(str(path), task="classify"), [0.0], []

    def start(trainer: object) -> None:
        for net in (trainer.model, trainer.ema.ema):
            load_backbone(net.model[0], str(options.weights))

    model.add_callback("on_pretrain_routine_end", start)
    model.add_callback("on_train_epoch_start", lambda _trainer: begun.__setitem__(0, time.perf_counter()))
    model.add_callback("on_fit_epoch_end", lambda _trainer: epochs.append(time.perf_counter() - begun[0]))
    model.train(
        data=str(options.images.resolve()), epochs=options.epochs, imgsz=options.size, batch=BATCH, pretrained=False,
        project=str(options.out.resolve()), device="cpu", seed=options.seed, cache="ram", plots=False, exist_ok=True,
    )  # fmt: skip
    seconds = time.perf_counter() - STARTED
    best, files = YOLO(str(model.trainer.best)), test_files(options.images)
    results = best.predict(
        [str(file) for file in files], stream=True, imgsz=options.size, verbose=False, device="cpu"
    )
    order = [name for _, name in sorted(best.names.items())]
    columns = [order.index(name) for name in class_names(options.images)]
    rows = [[result.probs.data.tolist()[column] for column in columns] for result in results]
    write_predictions(options, files, rows)
    answer(seconds, sorted(epochs)[len(epochs) // 2], f"ultralytics {__version__} torch {torch.__version__}")


if __name__ == "__main__":
    main()
