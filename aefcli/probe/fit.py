"""Probes and metrics: plain functions of matrices, taught on one set of rows and measured on another."""

from __future__ import annotations

import numpy as np

PROBES = ("knn1", "knn3", "linear")
METRICS = {"class": ("balanced_accuracy", "macro_f1"), "value": ("r2", "mae")}
BOOTSTRAP = 100


# --- probes ---------------------------------------------------------------------------------------------------


def neighbours(x: np.ndarray, test: np.ndarray, k: int) -> np.ndarray:
    """Rows of `x` nearest to each row of `test` by L2, int64 (m, k), nearest first; fewer where `x` has fewer.

    Rows at exactly the same distance come in no particular order, which may differ by k.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(k, len(x)), algorithm="brute").fit(x)
    return search.kneighbors(test, return_distance=False)


def vote(near: np.ndarray, kind: str) -> np.ndarray:
    """Majority or mean over the k neighbours' targets (m, k). A tie goes to the lowest code, as in scikit-learn.

    So kNN with k = 3 at one shot, where three neighbours are always three classes, leans to the low codes: that
    is the protocol's figure, and no fault of the field.
    """
    if kind == "value":
        return near.mean(axis=1)
    votes = near[:, :, None] == np.arange(near.max() + 1)
    return votes.sum(axis=1).argmax(axis=1)


def linear(x: np.ndarray, y: np.ndarray, test: np.ndarray, kind: str) -> np.ndarray:
    """Least squares without regularisation: one versus rest on -1/+1 and argmax for classes, plain for values.

    With fewer rows than columns the solution of least norm. scikit-learn drops singular values below 1e-15
    whatever the features' unit, so that at 12 shots of reflectances up to 10,000 the null space is divided by its
    own rounding (measured: 0.95 instead of 0.98 balanced accuracy). One factor for the whole matrix changes no
    prediction, and puts that limit where numpy's `matrix_rank` has it: at eps * max(n, d) of the matrix's norm.
    """
    from sklearn.linear_model import Ridge, RidgeClassifier

    norm = float(np.linalg.norm(x)) or 1.0
    factor = 1e-15 / (np.finfo(np.float64).eps * max(x.shape) * norm)
    # The default solver warns of a singular matrix and answers otherwise; Ridge with alpha 0 is LinearRegression
    # without that one's cutoff at 1e-6 of the largest singular value, which eats columns of small units
    model = (RidgeClassifier if kind == "class" else Ridge)(alpha=0, solver="svd")
    return model.fit(x * factor, y).predict(test * factor)


# --- metrics --------------------------------------------------------------------------------------------------


def measure(truth: np.ndarray, guess: np.ndarray, kind: str, rng: np.random.Generator | None = None) -> np.ndarray:
    """The two metrics of `kind` on a test set (m,): one row, or with `rng` a row for each of its bootstraps."""
    return (_of_classes if kind == "class" else _of_values)(truth, guess, rng)


def _of_classes(truth: np.ndarray, guess: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Balanced accuracy and macro-F1 over the classes of the test set, (replicates, 2).

    To draw a test set again with replacement is a multinomial draw over the cells of its confusion matrix.
    """
    classes = int(max(truth.max(), guess.max())) + 1
    cells, count = np.unique(truth * classes + guess, return_counts=True)
    draws = count[None] if rng is None else rng.multinomial(len(truth), count / len(truth), BOOTSTRAP)
    true, said = np.divmod(cells, classes)
    one = np.eye(classes)
    support, claimed = draws @ one[true], draws @ one[said]
    hit = draws @ (one[true] * (true == said)[:, None])
    there = support > 0
    recall = np.divide(hit, support, out=np.zeros_like(hit), where=there)
    f1 = np.divide(2 * hit, support + claimed, out=np.zeros_like(hit), where=there)
    return np.column_stack([recall.sum(axis=1), f1.sum(axis=1)]) / there.sum(axis=1)[:, None]


def _of_values(truth: np.ndarray, guess: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """R2 and mean absolute error of the test set, (replicates, 2).

    R2 of a test set of one value is 1 if it is hit and else 0, as in scikit-learn.
    """
    n = len(truth)
    weight = np.ones((1, n)) if rng is None else _resamples(n, rng)
    centred, residual = truth - truth.mean(), truth - guess
    squares = weight @ centred**2
    spread = squares - (weight @ centred) ** 2 / n
    error = weight @ residual**2
    # Below this a replicate holds one value, and what is left of it is rounding
    varied = spread > 1e-12 * squares
    r2 = np.where(error > 0, 0.0, 1.0)
    np.subtract(1, np.divide(error, spread, where=varied, out=np.zeros(len(r2))), out=r2, where=varied)
    return np.column_stack([r2, weight @ np.abs(residual) / n])


def _resamples(n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n points is drawn when n are drawn with replacement, float64 (BOOTSTRAP, n)."""
    drawn = rng.integers(n, size=(BOOTSTRAP, n)) + n * np.arange(BOOTSTRAP)[:, None]
    return np.bincount(drawn.ravel(), minlength=BOOTSTRAP * n).reshape(BOOTSTRAP, n).astype(np.float64)
