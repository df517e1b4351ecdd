"""Probes and metrics: plain functions of matrices, taught on one set of rows and measured on another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from aefcli.probe.nearest import nearest

PROBES = ("knn1", "knn3", "linear", "ridge")
NEAREST = {"knn1": 1, "knn3": 3}
METRICS = {"class": ("balanced_accuracy", "macro_f1"), "value": ("r2", "mae")}
PRIMARY = {"class": "balanced_accuracy", "value": "r2"}
BOOTSTRAP = 100

_PENALTIES = 10.0 ** np.arange(-6, 1)
_PENALTY = 0.1  # where there are too few rows to choose by
_FEW = 20


# --- probes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Taught:
    """A probe that has learned. Its answers are for float matrices (m, d) of the width it was taught on."""

    kind: Literal["class", "value"]
    decide: Callable[[np.ndarray], np.ndarray]

    def scores(self, z: np.ndarray) -> np.ndarray:
        """Float (m, classes): decision values, or the share of votes of a kNN. For values (m, 1): the guess."""
        return self.decide(z)

    def predict(self, z: np.ndarray) -> np.ndarray:
        """Codes int64 (m,) of the best score, of equals the lowest; or measurements float64 (m,)."""
        scores = self.scores(z)
        return scores.argmax(axis=1) if self.kind == "class" else scores[:, 0]


def teach(probe: str, x: np.ndarray, y: np.ndarray, kind: Literal["class", "value"], names_count: int) -> Taught:
    """Teach one of PROBES finite features (n, d) and their codes below `names_count`, or measurements, (n,)."""
    if probe in NEAREST:
        return Taught(kind, partial(_by_neighbours, x, y, NEAREST[probe], kind, names_count))
    assert probe in PROBES, probe
    target = 2.0 * (y[:, None] == np.arange(names_count)) - 1 if kind == "class" else y[:, None].astype(np.float64)
    weights, offset = (least_squares if probe == "linear" else ridge)(x, target)
    if kind == "class":
        offset = np.where(np.isin(np.arange(names_count), y), offset, -np.inf)  # a class never shown is never said
    return Taught(kind, partial(_by_plane, weights, offset))


def neighbours(x: np.ndarray, test: np.ndarray, k: int) -> np.ndarray:
    """Rows of `x` nearest to each row of `test` by L2, int64 (m, k): nearest first, ties by the lowest row."""
    return nearest(x, test, k)[0]


def votes(near: np.ndarray, kind: str, names_count: int) -> np.ndarray:
    """Share of each class (m, classes), or mean (m, 1), of the k neighbours' targets (m, k).

    The majority is the largest share; a tie goes to the lowest code, as in scikit-learn. So kNN with k = 3 at one
    shot, where three neighbours are always three classes, leans to the low codes: that is the protocol's figure, and
    no fault of the field.
    """
    if kind == "value":
        return near.mean(axis=1, keepdims=True)
    return (near[:, :, None] == np.arange(names_count)).mean(axis=1)


def _by_neighbours(x: np.ndarray, y: np.ndarray, k: int, kind: str, names_count: int, z: np.ndarray) -> np.ndarray:
    return votes(y[neighbours(x, z, k)], kind, names_count)


def _by_plane(weights: np.ndarray, offset: np.ndarray, z: np.ndarray) -> np.ndarray:
    return z @ weights + offset


def least_squares(x: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (d, t) and offset (t,) of plain least squares on targets (n, t), without regularisation.

    With fewer rows than columns the solution of least norm. scikit-learn drops singular values below 1e-15 whatever
    the features' unit, so that at 12 shots of reflectances up to 10,000 the null space is divided by its own rounding
    (measured: 0.95 instead of 0.98 balanced accuracy). Here the limit is that of numpy's `matrix_rank`: eps *
    max(n, d) of the matrix's norm.
    """
    centre, mean = x.mean(axis=0), target.mean(axis=0)
    left, values, right = np.linalg.svd(x - centre, full_matrices=False)
    kept = values > np.finfo(np.float64).eps * max(x.shape) * np.linalg.norm(x)
    weights = right[kept].T @ ((left[:, kept].T @ (target - mean)) / values[kept, None])
    return weights, mean - centre @ weights


def ridge(x: np.ndarray, target: np.ndarray, penalty: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Weights (d, t) and offset (t,) of a lightly regularised least squares. Not of the paper: an addition of ours.

    On standardised features, so that units do not matter. `penalty` is in units of their mean squared singular value;
    None chooses among 1e-6 ... 1 by the error of leaving one row out, in closed form, inside the training draw. Why
    chosen: on AEF's vectors (9 classes) 3 / 10 / 30 / 90 shots score .556 / .649 / .723 / .746 so, .541 / .648 / .723
    / .744 at a fixed .1, .479 / .539 / .712 / .747 at .001, and .476 / .499 / .710 / .747 without; 200 noisy features
    want 1, six clean ones none. With a single row of a class nothing can be left out: .1, also below 20 values.
    """
    centre, mean, spread = x.mean(axis=0), target.mean(axis=0), x.std(axis=0)
    spread[spread <= 1e-12 * np.abs(x).max(axis=0)] = np.inf  # a constant column has no weight
    left, values, right = np.linalg.svd((x - centre) / spread, full_matrices=False)
    squares = values**2
    unit = squares.sum() / len(values) or 1.0
    aim = target - mean
    inner = left.T @ aim
    if penalty is None:
        penalty = _penalty(left, squares / unit, inner, aim) if _enough(target) else _PENALTY
    weights = right.T @ ((values / (squares + penalty * unit))[:, None] * inner) / spread[:, None]
    return weights, mean - centre @ weights


def _enough(target: np.ndarray) -> bool:
    """Whether every row can be left out: no class of one, or twenty values."""
    rows, count = target.shape
    return bool(((target > 0).sum(axis=0) != 1).all()) if count > 1 else rows >= _FEW


def _penalty(left: np.ndarray, squares: np.ndarray, inner: np.ndarray, aim: np.ndarray) -> float:
    """The penalty with the least mean squared error of each row (n, t) left out."""
    errors = []
    for penalty in _PENALTIES:
        shrunk = squares / (squares + penalty)
        leverage = 1 / len(left) + np.square(left) @ shrunk
        residual = aim - left @ (shrunk[:, None] * inner)
        errors.append(np.square(residual / np.maximum(1 - leverage, 1e-9)[:, None]).mean())
    return float(_PENALTIES[int(np.argmin(errors))])


# --- metrics --------------------------------------------------------------------------------------------------


def resamples(n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n points is drawn when n are drawn with replacement, float64 (BOOTSTRAP, n)."""
    drawn = rng.integers(n, size=(BOOTSTRAP, n)) + n * np.arange(BOOTSTRAP)[:, None]
    return np.bincount(drawn.ravel(), minlength=BOOTSTRAP * n).reshape(BOOTSTRAP, n).astype(np.float64)


def measure(truth: np.ndarray, guess: np.ndarray, kind: str, weight: np.ndarray | None = None) -> np.ndarray:
    """The two metrics of `kind` on a test set (m,): one row, or one for each row of `weight` (replicates, m)."""
    weight = np.ones((1, len(truth))) if weight is None else weight
    return (_of_classes if kind == "class" else _of_values)(truth, guess, weight)


def confusion(truth: np.ndarray, guess: np.ndarray, names_count: int) -> np.ndarray:
    """How often each class (row) was called each class (column), float64 (classes, classes)."""
    cells = np.bincount(truth * names_count + guess, minlength=names_count**2)
    return cells.reshape(names_count, names_count).astype(np.float64)


def _of_classes(truth: np.ndarray, guess: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Balanced accuracy and macro-F1 over the classes of each replicate of the test set, (replicates, 2)."""
    codes = np.arange(int(max(truth.max(), guess.max())) + 1)
    true, said = (np.equal.outer(each, codes) for each in (truth, guess))
    support, claimed, hit = (weight @ which.astype(np.float64) for which in (true, said, true & said))
    there = support > 0
    recall = np.divide(hit, support, out=np.zeros_like(hit), where=there)
    f1 = np.divide(2 * hit, support + claimed, out=np.zeros_like(hit), where=there)
    return np.column_stack([recall.sum(axis=1), f1.sum(axis=1)]) / there.sum(axis=1)[:, None]


def _of_values(truth: np.ndarray, guess: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """R2 and mean absolute error of each replicate of the test set, (replicates, 2).

    R2 of a test set of one value is 1 if it is hit and else 0, as in scikit-learn.
    """
    n = len(truth)
    centred, residual = truth - truth.mean(), truth - guess
    squares = weight @ centred**2
    spread = squares - (weight @ centred) ** 2 / n
    error = weight @ residual**2
    # Below this a replicate holds one value, and what is left of it is rounding
    varied = spread > 1e-12 * squares
    r2 = np.where(error > 0, 0.0, 1.0)
    np.subtract(1, np.divide(error, spread, where=varied, out=np.zeros(len(r2))), out=r2, where=varied)
    return np.column_stack([r2, weight @ np.abs(residual) / n])
