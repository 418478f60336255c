"""fastai through its public API: ImageDataLoaders, vision_learner on timm nets, fit, get_preds.

Settings: `defaults`, or `channels-last` (its ChannelsLast callback), `workers0`, `same` (s2: our split, frozen batch
norm, plain Adam). Its bfloat16 callback is for CUDA: it enters `autocast("cuda")`.
"""

import csv
import time
from functools import partial

import pandas as pd
import torch
from asked import Asked, Clock, answer, asked, pictures, side_folder
from fastai import __version__
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.training import BnFreeze
from fastai.vision.all import (
    Adam,
    Callback,
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    ResizeMethod,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)
from safetensors.torch import load_file
from torch import nn

NETS = {"resnet50": ("resnet50", {}), "mobilenetv2": ("mobilenetv2_100", {"pad_type": "same"})}
WIDTHS = {"resnet50": 2048, "mobilenetv2": 1280}


class Timing(Callback):
    """Tells the clock of every training batch."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.total, self.seen = 0.0, 0

    def before_train(self) -> None:
        self.total, self.seen = 0.0, 0
        self.clock.epoch()

    def after_batch(self) -> None:
        if self.training:
            n = len(self.yb[0])
            self.total, self.seen = self.total + float(self.loss_grad.detach()) * n, self.seen + n
            self.clock.batch(n)

    def train_loss(self) -> float:
        """Return the last epoch's mean; the recorder's is smoothed over batches."""
        return self.total / self.seen

    def after_train(self) -> None:
        self.clock.end()


def loading(given: Asked) -> dict:
    """What every loader here is given; workers stay at fastai's own default unless a setting says otherwise."""
    workers = {"num_workers": 0} if "workers0" in given.switches else {}
    return {"item_tfms": Resize(given.size, method=ResizeMethod.Squish), "bs": given.batch, **workers}


def learner(given: Asked, loaders: ImageDataLoaders, *, hidden: tuple[int, ...], **options: object) -> Learner:
    name, arguments = NETS[given.net]
    layers, width = [nn.AdaptiveAvgPool2d(1), nn.Flatten()], WIDTHS[given.net]
    for item in hidden:
        layers += [nn.Linear(width, item), nn.ReLU()]
        width = item
    head = nn.Sequential(*layers, nn.Linear(width, loaders.c))
    made = vision_learner(
        loaders, name, pretrained=False, custom_head=head, metrics=accuracy, **arguments, **options
    )
    if given.weights is not None:
        state = {key: value.float() for key, value in load_file(given.weights).items()}
        missing, unknown = made.model[0].model.load_state_dict(state, strict=False)
        if unknown or any(not key.endswith("num_batches_tracked") for key in missing):
            raise SystemExit(f"the weights are not those of {name}: {missing[:3]} {unknown[:3]}")
    if "channels-last" in given.switches:
        made.add_cb(ChannelsLast())
    return made


def s2(given: Asked) -> None:
    """Frozen backbone, own head, ten epochs, then the test folder and the saved learner."""
    given.only("channels-last", "workers0", "same")
    set_seed(given.seed)
    same = "same" in given.switches
    tfms = [Normalize.from_stats([0.5] * 3, [0.5] * 3)] if given.normalise == "half" else []
    options: dict = {}
    if same:
        table = pd.read_csv(given.sides)
        table["is_valid"] = table["side"] == "validation"
        table = table[table["side"].isin(("train", "validation"))]
        loaders = ImageDataLoaders.from_df(
            table,
            path="/",
            fn_col="path",
            label_col="label",
            valid_col="is_valid",
            batch_tfms=tfms,
            **loading(given),
        )
        options = {
            "opt_func": partial(Adam, sqr_mom=0.999, eps=1e-8, wd=0.0),
            "moms": (0.9, 0.9, 0.9),
            "cbs": BnFreeze(),
            "train_bn": False,
            "init": None,
        }
    else:
        train = side_folder(given.images, "train") or given.images
        loaders = ImageDataLoaders.from_folder(
            train, valid_pct=0.2, seed=given.seed, batch_tfms=tfms, **loading(given)
        )
    learn = learner(given, loaders, hidden=(256,), **options)
    clock = Clock()
    timing = Timing(clock)
    learn.freeze()
    learn.fit(given.epochs, lr=1e-3, cbs=timing)
    _, val_loss, val_accuracy = (float(value) for value in learn.recorder.values[-1])
    test = None if same else side_folder(given.images, "test")
    test_accuracy = None
    if test is not None:
        files = pictures(test)
        truth = [loaders.vocab.o2i[item.parent.name] for item in files]
        scores, _ = learn.get_preds(dl=loaders.test_dl(files))
        test_accuracy = float((scores.argmax(1) == torch.tensor(truth)).float().mean())
    learn.path = given.out
    learn.export("export.pkl")
    answer(
        **clock.figures(), n=len(loaders.train_ds), train_loss=timing.train_loss(), val_loss=val_loss,
        val_accuracy=val_accuracy, test_accuracy=test_accuracy, versions=versions(),
    )  # fmt: skip


def finetune(given: Asked) -> None:
    """All layers, `aug_transforms()` as documented (flip, rotate, zoom, warp, lighting, on batches)."""
    given.only("channels-last", "workers0")
    set_seed(given.seed)
    loaders = ImageDataLoaders.from_folder(
        given.images, train="train", valid="test", batch_tfms=aug_transforms(), **loading(given)
    )
    learn, clock = learner(given, loaders, hidden=()), Clock()
    timing = Timing(clock)
    learn.fit(given.epochs, lr=1e-4, cbs=timing)
    learn.path = given.out
    learn.export("export.pkl")
    answer(
        **clock.figures(),
        n=len(loaders.train_ds),
        train_loss=timing.train_loss(),
        versions=versions(),
    )


def score(given: Asked) -> None:
    """A folder through `test_dl` and `get_preds` to a CSV."""
    given.only("channels-last", "workers0")
    files = pictures(given.images)
    table = pd.DataFrame(
        {"path": [str(item) for item in files[:90]], "label": [str(i % 9) for i in range(len(files[:90]))]}
    )
    loaders = ImageDataLoaders.from_df(table, path="/", fn_col="path", label_col="label", **loading(given))
    learn = learner(given, loaders, hidden=())
    started = time.perf_counter()
    if "channels-last" in given.switches:
        learn.model.to(memory_format=torch.channels_last)  # the callback acts in fit alone
    scores, _ = learn.get_preds(dl=loaders.test_dl(files))
    with (given.out / "predictions.csv").open("w", newline="") as stream:
        rows = zip(files, scores.tolist(), strict=True)
        csv.writer(stream).writerows([path.name, *row] for path, row in rows)
    seconds = time.perf_counter() - started
    answer(inner_seconds=seconds, images_per_second=len(files) / seconds, n=len(files), versions=versions())


def versions() -> str:
    return f"fastai {__version__} torch {torch.__version__}"


if __name__ == "__main__":
    request = asked()
    {"s2": s2, "finetune": finetune, "score": score}[request.job](request)
