"""fastai as its documentation starts: ImageDataLoaders, aug_transforms, vision_learner, fine_tune at its defaults."""

from given import BATCH, STARTED, answer, class_names, given, test_files, write_predictions  # noqa: I001

import time

import torch
from fastai import __version__
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Normalize,
    Resize,
    ResizeMethod,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)
from safetensors.torch import load_file


class EpochTimes(Callback):
    """The seconds of each epoch, validation included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_epoch(self) -> None:
        self.begun = time.perf_counter()

    def after_epoch(self) -> None:
        self.seconds.append(time.perf_counter() - self.begun)


def main() -> None:
    options, times = given(), EpochTimes()
    set_seed(options.seed)
    loaders = ImageDataLoaders.from_folder(
        options.images, train="train", valid="validation", bs=BATCH,
        item_tfms=Resize(options.size, method=ResizeMethod.Squish), vocab=class_names(options.images),
        batch_tfms=[*aug_transforms(), Normalize.from_stats([0.5] * 3, [0.5] * 3)],
    )  # fmt: skip
    learn = vision_learner(
        loaders, "mobilenetv2_100", pretrained=False, metrics=accuracy, pad_type="same", cbs=times
    )
    state = {key: value.float() for key, value in load_file(options.weights).items()}
    missing, unknown = learn.model[0].model.load_state_dict(state, strict=False)
    if unknown or any(not key.endswith("num_batches_tracked") for key in missing):
        raise SystemExit(f"other weights: {missing[:3]} {unknown[:3]}")
    learn.fine_tune(options.epochs)
    learn.path = options.out
    learn.export("export.pkl")
    seconds = time.perf_counter() - STARTED
    files = test_files(options.images)
    scores, _ = learn.get_preds(dl=loaders.test_dl(files))
    write_predictions(options, files, scores.tolist())
    answer(seconds, times.seconds[-1], f"fastai {__version__} torch {torch.__version__}")


if __name__ == "__main__":
    main()
