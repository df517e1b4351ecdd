"""Vectors as colours: the first three principal components of a field as red, green and blue.

Owns the fit, on a sample of a field's blocks, and the painting. A field has one fit for all its periods, so that a
colour means the same in each, and in every picture of it; colours of two fields do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from aefcli.extent import Tile

_FITTED = 50_000  # vectors the components are fitted on
_BLOCKS = 64  # that these come from, where a field has so many
_BLOCK = 256  # pixels along a block's side, at least, unless the field is smaller
_AT_ONCE = 200_000  # vectors painted together

Read = Callable[[Tile, int], np.ndarray]  # a window of one period: float32 (d, h, w), NaN where nodata


@dataclass(frozen=True, eq=False)
class Colours:
    """Three components of vectors of d dimensions, and the stretch of each: 0 at `low`, 255 at `low + span`."""

    mean: np.ndarray  # (d,)
    axes: np.ndarray  # (3, d)
    low: np.ndarray  # (3,)
    span: np.ndarray  # (3,)

    @classmethod
    def fit(cls, vectors: np.ndarray) -> Colours:
        """Of a sample (n, d) of finite vectors; each component is stretched from its 2nd to its 98th percentile.

        A component that does not vary is drawn half bright, and so are all three of fewer than three vectors.
        """
        from sklearn.decomposition import PCA

        if len(vectors) < 3:
            dimensions = vectors.shape[1]
            return cls(np.zeros(dimensions), np.zeros((3, dimensions)), np.full(3, -0.5), np.ones(3))
        found = PCA(3, svd_solver="full").fit(vectors)
        low, high = np.percentile((vectors - found.mean_) @ found.components_.T, (2, 98), axis=0)
        flat = high - low < 1e-6
        low, span = np.where(flat, (low + high - 1) / 2, low), np.where(flat, 1, high - low)
        return cls(found.mean_, found.components_, low, span)

    def paint(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (n, d), NaN where nodata -> RGBA uint8 (n, 4), transparent where nodata."""
        rgba = np.zeros((len(vectors), 4), dtype=np.uint8)
        for start in range(0, len(vectors), _AT_ONCE):
            block = vectors[start : start + _AT_ONCE]
            there = np.isfinite(block).all(axis=1)
            shares = ((block[there] - self.mean) @ self.axes.T - self.low) / self.span
            painted = rgba[start : start + _AT_ONCE]
            painted[there, :3] = np.rint(np.clip(shares, 0, 1) * 255)
            painted[there, 3] = 255
        return rgba


def fit(read: Read, shape: tuple[int, int], periods: int, block: tuple[int, int]) -> Colours:
    """Of a field of `shape` (rows, columns) that is stored in blocks of `block` px: the same for the same field."""
    return Colours.fit(sample(read, shape, periods, block))


def sample(read: Read, shape: tuple[int, int], periods: int, block: tuple[int, int]) -> np.ndarray:
    """Some 50,000 vectors (n, d) that are data, from 64 blocks or more, every period having its part.

    Blocks are read one after the other, at random places, until there are enough.
    """
    rng = np.random.default_rng(0)
    tiles = list(blocks(shape, block))
    order = np.stack([rng.permutation(len(tiles)) for _ in range(periods)], axis=1)
    quota = math.ceil(_FITTED / min(order.size, _BLOCKS))
    found: list[np.ndarray] = []
    count = 0
    for index, time in ((int(index), time) for row in order for time, index in enumerate(row)):
        window = read(tiles[index], time)
        vectors = window.reshape(len(window), -1)
        there = np.flatnonzero(np.isfinite(vectors).all(axis=0))
        found.append(vectors[:, rng.permutation(there)[:quota]].T)
        count += len(found[-1])
        if count >= _FITTED:
            break
    return np.concatenate(found)


def blocks(shape: tuple[int, int], block: tuple[int, int]) -> Iterator[Tile]:
    """Tiles of whole blocks, 256 px or more along each side, row by row."""
    rows, columns = (-(-_BLOCK // size) * size for size in block)
    for top in range(0, shape[0], rows):
        for left in range(0, shape[1], columns):
            yield Tile(top, left, min(top + rows, shape[0]), min(left + columns, shape[1]))
