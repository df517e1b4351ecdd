"""The rectangle that the sites share: stacks of frames, at 10 m or as means of larger cells."""

from __future__ import annotations

import numpy as np

from aefcli.simulate.land import Grid
from aefcli.simulate.passes import Layer


def blank(grid: Grid, frames: int, layer: Layer) -> np.ndarray:
    """Frames of the whole rectangle at 10 m, as stored; nodata until a site is written."""
    return np.full((frames, *grid.shape(10)), layer.nodata, layer.dtype)


class Canvas:
    """Means over cells of `factor` x `factor` pixels, which may lie across sites. float32 (frame, row, column)."""

    def __init__(self, grid: Grid, factor: int, frames: int) -> None:
        shape = (frames, *grid.shape(10 * factor))
        self.grid, self.factor = grid, factor
        self.sum, self.count = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def add(self, site: int, stack: np.ndarray, there: np.ndarray | None = None) -> None:
        """A site's pixels (frame, y, x); `there`: those that were delivered, all unless said."""
        rows, cols = (corner + np.arange(self.grid.size) for corner in self.grid.corner(site))
        rows, cols = rows // self.factor, cols // self.factor
        place = (slice(None), slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
        if there is None:
            there = np.ones((1, *stack.shape[1:]), bool)
        self.sum[place] += _sums(np.where(there, stack, 0).astype(np.float32), rows, cols)
        self.count[place] += _sums(there.astype(np.float32), rows, cols)

    def mean(self) -> np.ndarray:
        """NaN where nothing was delivered."""
        lost = self.count == 0
        return np.where(lost, np.float32(np.nan), self.sum / np.where(lost, np.float32(1), self.count))


def _sums(stack: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Sums over the pixels of each cell; rows and cols: the cells that pixels lie in, ascending."""
    down, across = ((np.arange(axis[0], axis[-1] + 1)[:, None] == axis).astype(np.float32) for axis in (rows, cols))
    return down @ stack @ across.T
