"""The rule without eyes finds colour where it is planted, and nothing where it is not."""

import numpy as np

from dermkit.evaluation.colour_baseline import mean_colours, predict_by_colour


def test_mean_colours_are_the_means() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1100, 4, 4, 3), dtype=np.uint8)
    rows = np.arange(1099, -1, -1)
    np.testing.assert_allclose(mean_colours(pixels, rows), pixels[rows].reshape(1100, -1, 3).mean(axis=1))


def test_a_planted_colour_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400)
    noise = rng.integers(60, 200, (400, 8, 8, 3))
    train, score = np.arange(300), np.arange(300, 400)
    tinted = np.clip(noise + 30 * labels[:, None, None, None] * np.array([1, 0, 0]), 0, 255).astype(np.uint8)
    for pixels, low, high in ((tinted, 0.95, 1.0), (noise.astype(np.uint8), 0.3, 0.7)):
        p = predict_by_colour(pixels, labels, train_rows=train, score_rows=score, n_classes=2)
        assert p.shape == (100, 2)
        np.testing.assert_allclose(p.sum(axis=1), 1.0)
        assert low <= (p.argmax(axis=1) == labels[score]).mean() <= high


def test_classes_without_training_images_get_nothing() -> None:
    pixels = np.zeros((6, 2, 2, 3), np.uint8)
    pixels[3:] = 200
    labels = np.array([0, 0, 0, 2, 2, 2])
    p = predict_by_colour(pixels, labels, train_rows=np.arange(6), score_rows=np.arange(6), n_classes=3)
    assert (p[:, 1] == 0).all()
    only = predict_by_colour(pixels, labels, train_rows=np.arange(3), score_rows=np.arange(6), n_classes=3)
    assert only.tolist() == [[1.0, 0.0, 0.0]] * 6
