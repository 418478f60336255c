"""The colour baseline: classes predicted from the mean colour of an image alone, for comparison with a net.

On one well-known set of 10,000 images it comes close to published nets, because the two classes were photographed
differently. A net that is no better may have learned nothing about lesions.

Arrays: N images in the pixel cache, M selected rows of it, S pixels a side, K classes.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dermkit.images.preprocess import PixelArray

_CHUNK = 512
_ITERATIONS = 2000


def mean_colours(pixels: PixelArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return mean red, green and blue, (M, 3) float64, 0 to 255. pixels: (N, S, S, 3) uint8; rows: (M,)."""
    chunks = [_means(pixels[rows[start : start + _CHUNK]]) for start in range(0, len(rows), _CHUNK)]
    return np.concatenate(chunks) if chunks else np.empty((0, 3))


def _means(batch: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return exact means, (M, 3). Integers are summed axis by axis, which is ten times as fast as `mean`."""
    sums = batch.sum(axis=1, dtype=np.uint32).sum(axis=1, dtype=np.uint64)
    means: NDArray[np.float64] = sums / (batch.shape[1] * batch.shape[2])
    return means


def predict_by_colour(
    pixels: PixelArray,
    labels: NDArray[np.int64],
    *,
    train_rows: NDArray[np.int64],
    score_rows: NDArray[np.int64],
    n_classes: int,
) -> NDArray[np.float64]:
    """Fit a logistic regression on the mean colours of `train_rows`; returns probabilities of `score_rows`, (M, K).

    labels: (N,) class indices. Deterministic. A class without training images gets probability 0.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    classes_present = np.unique(labels[train_rows])
    probabilities = np.zeros((len(score_rows), n_classes))
    if len(classes_present) == 1:
        probabilities[:, classes_present[0]] = 1.0
        return probabilities
    classifier.fit(mean_colours(pixels, train_rows), labels[train_rows])
    probabilities[:, classes_present] = classifier.predict_proba(mean_colours(pixels, score_rows))
    return probabilities
