"""Features that are learned from random pixels of a cube, and from nothing else: principal axes, random filters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AXES = 64
PATCH = 3  # px, as in MOSAIKS
POOL = 5  # px. On Belgian months kNN gains .02 at 7 and loses .02 at 15; where parcels are small, 3 is as good
# 256 features. With 512 the unregularised probe meets its peak of errors at some 500 points
_FILTERS = 128
# Of the mean variance. Six crops of a simpler world: .42 by kNN, .53 by ridge; .41 and .48 at 0.001, .36 and .50 at 1
_WHITENING = 0.1


@dataclass(frozen=True, eq=False)
class Axes:
    """The principal axes of some vectors: mean (d,), directions (d, k), the widest first."""

    mean: np.ndarray
    directions: np.ndarray

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Coordinates (..., k) of vectors (..., d). Not brought to one variance: the last are mostly noise."""
        return (vectors - self.mean) @ self.directions


def axes(vectors: np.ndarray) -> Axes:
    """The first 64 principal axes, or as many as there are, of vectors (n, d); of none, some axes."""
    mean, covariance = _moments(vectors)
    _, directions = np.linalg.eigh(covariance)
    found = directions[:, ::-1][:, :AXES]
    largest = np.abs(found).argmax(axis=0)  # a direction's sign is free: its largest number is positive
    return Axes(mean, found * np.sign(found[largest, np.arange(found.shape[1])]))


def _moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = vectors.sum(axis=0, dtype="float64") / max(1, len(vectors))
    centred = vectors - mean
    return mean, centred.T @ centred / max(1, len(vectors))


@dataclass(frozen=True, eq=False)
class Filters:
    """Random convolutional features of an image: MOSAIKS (Rolf et al. 2021), pooled over a neighbourhood of 50 m.

    weights       (PATCH * PATCH * channels, filters): of patches whitened (ZCA), each a whitened patch of the cube
    bias          (filters,)
    mean, spread  (2 * filters,) of the features of random patches, unpooled
    """

    weights: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    def features(self, patches: np.ndarray) -> np.ndarray:
        """Both signs' rectified answers to patches (..., PATCH * PATCH * channels), (..., 2 * filters)."""
        answer = patches @ self.weights - self.bias
        return np.concatenate([np.maximum(answer, 0), np.maximum(-answer, 0)], axis=-1)

    def pool(self, patches: np.ndarray) -> np.ndarray:
        """Features (n, 2 * filters), standardised, of the patches (n, neighbours, ...) of neighbourhoods."""
        return (self.features(patches).mean(axis=1) - self.mean) / self.spread


def filters(patches: np.ndarray, rng: np.random.Generator) -> Filters:
    """Filters of random patches (n, PATCH * PATCH * channels); of none, filters that answer nothing."""
    patches = patches if len(patches) else np.zeros((1, patches.shape[1]), "float32")
    mean, covariance = _moments(patches)
    variance, directions = np.linalg.eigh(covariance)
    whiten = directions / np.sqrt(np.maximum(variance, 0) + _WHITENING * max(variance.mean(), 1e-6)) @ directions.T
    chosen = (patches[rng.choice(len(patches), _FILTERS, replace=len(patches) < _FILTERS)] - mean) @ whiten
    weights = whiten @ (chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-6)).T
    plain = Filters(weights.astype("float32"), (mean @ weights).astype("float32"), np.zeros(1), np.ones(1))
    answers = plain.features(patches)
    return Filters(plain.weights, plain.bias, answers.mean(axis=0), np.maximum(answers.std(axis=0), np.float32(1e-6)))
