"""Keras 3 on TensorFlow through its public API, written the way S2 was.

Settings: `defaults`, or `cache` (dataset.cache().prefetch()), `bf16` (mixed_bfloat16), `jit` (jit_compile=True),
`features` (s2: the frozen net predicts once, the head is fitted on arrays), `same` (with `features`: our split, our
resized pixels), `batch128` (score).
"""

import csv
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from asked import Asked, Clock, answer, asked, side_folder
from convert import load
from keras import layers
from PIL import Image

KNOWN = ("cache", "bf16", "jit")


class Timing(keras.callbacks.Callback):
    """Tells the clock of every training batch; `n` images an epoch, the last batch may be short."""

    def __init__(self, clock: Clock, batch: int, n: int) -> None:
        super().__init__()
        self.clock, self.size, self.n = clock, batch, n

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:  # noqa: ARG002
        self.clock.epoch()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:  # noqa: ARG002
        self.clock.batch(min(self.size, self.n - batch * self.size))
        if (batch + 1) * self.size >= self.n:  # before the validation
            self.clock.end()


def backbone(given: Asked) -> keras.Model:
    shape = (given.size, given.size, 3)
    if given.net == "resnet50":
        if given.weights is not None:
            raise SystemExit("resnet50: no conversion of weights here; leave --weights out (time only)")
        return keras.applications.ResNet50(include_top=False, weights=None, input_shape=shape, pooling="avg")
    net = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=shape, pooling="avg", alpha=1.0
    )
    if given.weights is not None:
        load(net, given.weights)
    return net


def rescaling(given: Asked) -> layers.Layer:
    return layers.Rescaling(1 / 127.5, offset=-1.0) if given.normalise == "half" else layers.Rescaling(1 / 255)


def prepare(given: Asked) -> bool | str:
    """Set the seed and the precision; returns `jit_compile`."""
    keras.utils.set_random_seed(given.seed)
    if "bf16" in given.switches:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    return True if "jit" in given.switches else "auto"


def dataset(given: Asked, folder: Path, **options: object) -> tf.data.Dataset:
    return keras.utils.image_dataset_from_directory(
        folder, image_size=(given.size, given.size), batch_size=given.batch, verbose=False, **options
    )


def quick(given: Asked, data: tf.data.Dataset) -> tf.data.Dataset:
    return data.cache().prefetch(tf.data.AUTOTUNE) if "cache" in given.switches else data


def s2(given: Asked) -> None:
    """Frozen backbone, Dense 256 and softmax, Adam 1e-3, ten epochs, validation split 0.2, then the test folder."""
    given.only(*KNOWN, "features", "same")
    jit = prepare(given)
    if "features" in given.switches:
        s2_features(given, jit)
        return
    folder = side_folder(given.images, "train") or given.images
    halves = {"validation_split": 0.2, "seed": given.seed, "label_mode": "categorical"}
    train, validation = (dataset(given, folder, subset=name, **halves) for name in ("training", "validation"))
    names, n = train.class_names, len(train.file_paths)
    base = backbone(given)
    base.trainable = False
    model = keras.Sequential(
        [
            keras.Input((given.size, given.size, 3)), rescaling(given), base, layers.Dense(256, activation="relu"),
            layers.Dense(len(names), activation="softmax", dtype="float32"),
        ]
    )  # fmt: skip
    fit_and_save(given, model, jit, quick(given, train), quick(given, validation), n, names)


def fit_and_save(
    given: Asked, model: keras.Model, jit: bool | str, train: object, validation: object, n: int, names: list[str]
) -> None:
    model.compile(keras.optimizers.Adam(1e-3), "categorical_crossentropy", metrics=["accuracy"], jit_compile=jit)
    clock = Clock()
    timing = Timing(clock, given.batch, n)
    seen = model.fit(train, validation_data=validation, epochs=given.epochs, verbose=0, callbacks=[timing]).history
    test, test_accuracy = side_folder(given.images, "test"), None
    if test is not None:
        data = dataset(given, test, shuffle=False, label_mode="categorical", class_names=names)
        test_accuracy = float(model.evaluate(data, verbose=0)[1])
    model.save(given.out / "model.keras")
    answer(
        **clock.figures(), n=n, train_loss=seen["loss"][-1], val_loss=seen["val_loss"][-1],
        val_accuracy=seen["val_accuracy"][-1], test_accuracy=test_accuracy, versions=versions(),
    )  # fmt: skip


def s2_features(given: Asked, jit: bool | str) -> None:
    """The same by hand: features once, the head on arrays, and one net of both for the file."""
    base = backbone(given)
    base.trainable = False
    front = keras.Sequential([keras.Input((given.size, given.size, 3)), rescaling(given), base])
    front.compile(jit_compile=jit)
    sides = shared_sides(given) if "same" in given.switches else own_sides(given)
    names = sides["names"]
    parts = {}
    for side in ("train", "validation"):
        pixels, labels = sides[side]
        parts[side] = (
            front.predict(pixels, batch_size=given.batch, verbose=0),
            keras.utils.to_categorical(labels, len(names)),
        )
    like = torch_like() if "same" in given.switches else {}
    head = keras.Sequential(
        [
            keras.Input(parts["train"][0].shape[1:]),
            layers.Dense(256, activation="relu", **like),
            layers.Dense(len(names), activation="softmax", dtype="float32", **like),
        ]
    )
    head.compile(keras.optimizers.Adam(1e-3), "categorical_crossentropy", metrics=["accuracy"], jit_compile=jit)
    # Left to `fit`, the shuffling of arrays ends at other losses than torch's on the same features; README.md.
    n = len(parts["train"][0])
    rows = tf.data.Dataset.from_tensor_slices(parts["train"]).shuffle(n, seed=given.seed).batch(given.batch)
    fitted = (rows,) if "same" in given.switches else parts["train"]
    sizes = {} if "same" in given.switches else {"batch_size": given.batch}
    seen = head.fit(*fitted, **sizes, epochs=given.epochs, validation_data=parts["validation"], verbose=0).history
    whole = keras.Sequential([front, head])
    whole.compile(loss="categorical_crossentropy", metrics=["accuracy"], jit_compile=jit)
    test, test_accuracy = side_folder(given.images, "test"), None
    if test is not None and "same" not in given.switches:
        data = dataset(given, test, shuffle=False, label_mode="categorical", class_names=names)
        test_accuracy = float(whole.evaluate(data, verbose=0)[1])
    whole.save(given.out / "model.keras")
    answer(
        n=len(parts["train"][0]), train_loss=seen["loss"][-1], val_loss=seen["val_loss"][-1],
        val_accuracy=seen["val_accuracy"][-1], test_accuracy=test_accuracy, versions=versions(),
    )  # fmt: skip


def torch_like() -> dict:
    """Return the distribution that torch draws a linear layer's first weights from: uniform, 1 / sqrt(inputs)."""
    return {"kernel_initializer": keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")}


def own_sides(given: Asked) -> dict:
    folder = side_folder(given.images, "train") or given.images
    halves = {"validation_split": 0.2, "seed": given.seed}
    found: dict = {}
    for side, name in (("train", "training"), ("validation", "validation")):
        data = dataset(given, folder, subset=name, **halves)
        found["names"] = data.class_names
        pairs = [(pixels.numpy().astype(np.uint8), labels.numpy()) for pixels, labels in data]
        found[side] = tuple(np.concatenate(part) for part in zip(*pairs, strict=True))
    return found


def shared_sides(given: Asked) -> dict:
    """Our split and our resizing (Pillow, bilinear), so that nets and losses can be compared."""
    with given.sides.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = sorted({row["label"] for row in rows})
    found: dict = {"names": names}
    for side in ("train", "validation"):
        chosen = [row for row in rows if row["side"] == side]
        found[side] = (
            np.stack([pixels_of(Path(row["path"]), given.size) for row in chosen]),
            np.array([names.index(row["label"]) for row in chosen]),
        )
    return found


def pixels_of(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def finetune(given: Asked) -> None:
    """All layers; flips and rotations as preprocessing layers in `map`, as the documentation shows for a CPU."""
    given.only(*KNOWN)
    jit = prepare(given)
    data = dataset(given, given.images / "train", seed=given.seed)
    n, classes = len(data.file_paths), len(data.class_names)
    change = keras.Sequential([layers.RandomFlip("horizontal_and_vertical"), layers.RandomRotation(0.1)])
    if "cache" in given.switches:
        data = data.cache()
    data = data.map(lambda x, y: (change(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
    data = data.prefetch(tf.data.AUTOTUNE)
    base = backbone(given)
    model = keras.Sequential(
        [
            keras.Input((given.size, given.size, 3)), rescaling(given), base,
            layers.Dense(classes, activation="softmax", dtype="float32"),
        ]
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=jit)
    clock = Clock()
    seen = model.fit(data, epochs=given.epochs, verbose=0, callbacks=[Timing(clock, given.batch, n)]).history
    model.save(given.out / "model.keras")
    answer(**clock.figures(), n=n, train_loss=seen["loss"][-1], versions=versions())


def score(given: Asked) -> None:
    """A folder through image_dataset_from_directory and predict to a CSV."""
    switches = given.only("bf16", "jit", "batch128")
    jit = prepare(given)
    base = backbone(given)
    outputs = layers.Dense(9, activation="softmax", dtype="float32")
    model = keras.Sequential([keras.Input((given.size, given.size, 3)), rescaling(given), base, outputs])
    model.compile(jit_compile=jit)
    started = time.perf_counter()
    data = keras.utils.image_dataset_from_directory(
        given.images, labels=None, shuffle=False, image_size=(given.size, given.size), verbose=False,
        batch_size=128 if "batch128" in switches else given.batch,
    )  # fmt: skip
    scores = model.predict(data, verbose=0)
    with (given.out / "predictions.csv").open("w", newline="") as stream:
        rows = zip(data.file_paths, scores.tolist(), strict=True)
        csv.writer(stream).writerows([Path(path).name, *row] for path, row in rows)
    seconds = time.perf_counter() - started
    answer(inner_seconds=seconds, images_per_second=len(scores) / seconds, n=len(scores), versions=versions())


def features(given: Asked) -> None:
    """Write the features of given pixels: what `run.py features` compares with timm's."""
    pixels = np.load(given.images).astype(np.float32) / 127.5 - 1.0
    net = backbone(given)
    np.save(given.out / "keras.npy", net.predict(pixels, batch_size=given.batch, verbose=0))
    answer(n=len(pixels), versions=versions())


def versions() -> str:
    return f"keras {keras.__version__} tensorflow {tf.__version__}"


if __name__ == "__main__":
    request = asked()
    {"s2": s2, "finetune": finetune, "score": score, "features": features}[request.job](request)
