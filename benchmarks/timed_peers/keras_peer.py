"""Keras as its guide to transfer learning: the top alone at 1e-3, then all layers at 1e-5 with frozen batch norm.

Half the epochs go to each part; light flips and rotations; the data set is cached, as its guide to speed advises.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from given import BATCH, STARTED, answer, class_names, given, test_files, write_predictions  # noqa: I001

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "speed" / "peers" / "keras"))

import keras
import tensorflow as tf
from convert import load
from keras import layers


class EpochTimes(keras.callbacks.Callback):
    """The seconds of each epoch, validation included."""

    def on_train_begin(self, logs: dict | None = None) -> None:  # noqa: ARG002
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:  # noqa: ARG002
        self.begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:  # noqa: ARG002
        self.seconds.append(time.perf_counter() - self.begun)


def main() -> None:
    options = given()
    keras.utils.set_random_seed(options.seed)
    names, shape = class_names(options.images), (options.size, options.size)

    def read(split: str, **more: object) -> tf.data.Dataset:
        return keras.utils.image_dataset_from_directory(
            options.images / split, image_size=shape, batch_size=BATCH, verbose=False, **more
        )

    change = keras.Sequential([layers.RandomFlip("horizontal_and_vertical"), layers.RandomRotation(0.1)])
    train = read("train", class_names=names, seed=options.seed).cache()
    train = train.map(lambda x, y: (change(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
    train = train.prefetch(tf.data.AUTOTUNE)
    validation = read("validation", class_names=names, shuffle=False).cache().prefetch(tf.data.AUTOTUNE)
    base = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(*shape, 3), pooling="avg", alpha=1.0
    )
    load(base, options.weights)
    base.trainable = False
    inputs = keras.Input((*shape, 3))
    features = base(layers.Rescaling(1 / 127.5, offset=-1.0)(inputs), training=False)
    outputs = layers.Dense(len(names), activation="softmax")(layers.Dropout(0.2)(features))
    model, times = keras.Model(inputs, outputs), EpochTimes()
    n_frozen = max(1, options.epochs // 2)
    for rate, epochs in ((1e-3, n_frozen), (1e-5, max(1, options.epochs - n_frozen))):
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(train, validation_data=validation, epochs=epochs, verbose=0, callbacks=[times])
        base.trainable = True
    model.save(options.out / "model.keras")
    seconds = time.perf_counter() - STARTED
    files = test_files(options.images)
    test = tf.data.Dataset.from_tensor_slices([str(file) for file in files]).map(
        lambda path: tf.image.resize(tf.io.decode_image(tf.io.read_file(path), 3, expand_animations=False), shape)
    )
    scores = model.predict(test.batch(BATCH), verbose=0)
    write_predictions(options, files, scores.tolist())
    answer(seconds, times.seconds[-1], f"keras {keras.__version__} tensorflow {tf.__version__}")


if __name__ == "__main__":
    main()
