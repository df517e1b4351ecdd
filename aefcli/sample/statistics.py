"""What values a recipe's sources have in the training samples, to standardise by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aefcli.cube import Cube, CubeSource
from aefcli.extent import Period, Tile
from aefcli.recipe import Moments, Recipe
from aefcli.sample.memory import Cubes
from aefcli.sample.table import Samples
from aefcli.sample.window import in_period, transformed
from aefcli.sources import SOURCES, Source

_ROWS = 128  # of the table that are looked at, evenly over it
_FRAMES = 8  # of a source in the support of one, evenly over it


def measure(cubes: Sequence[Cube], samples: Samples, recipe: Recipe) -> dict[str, Moments]:
    """Mean and standard deviation of every continuous source of the recipe, over clear values of training samples.

    Of transformed values, as `normalise` standardises them. Sources that the recipe has statistics for keep them; a
    band that was never delivered, or never varied, has those of the table of sources.
    """
    train, found = samples.of("train"), dict(recipe.statistics)
    asked = [name for name in (*recipe.data.sources, *recipe.data.targets) if SOURCES[name].kind == "continuous"]
    if not set(asked) - set(found):
        return found
    rows = np.unique(np.linspace(0, len(train) - 1, _ROWS).astype(int))
    given = {str(cube.path): cube for cube in Cubes(cubes, recipe)}
    for name in asked:
        if name in found:
            continue
        row, sums = SOURCES[name], np.zeros((3, len(SOURCES[name].bands)))
        for one in rows:
            if (source := given[train.cube[one]].sources.get(name)) is None:
                continue
            top, left, side = int(train.top[one]), int(train.left[one]), int(train.side[one])
            support = Period(int(train.start[one]), int(train.end[one]))
            sums += _sums(source, Tile(top, left, top + side, left + side), support)
            row = source.source
        found[name] = _moments(row, *sums)
    return found


def _sums(source: CubeSource, tile: Tile, support: Period) -> np.ndarray:
    """Of each band: how many clear values a few frames have, their sum and that of their squares (3, c)."""
    sums, frames = np.zeros((3, len(source.source.bands))), in_period(source, support)
    if source.source.static:
        frames = np.array([np.abs(source.times - (support.start + support.end) // 2).argmin()])
    frames = frames[source.clear(tile, frames).any(axis=(1, 2))] if len(frames) else frames
    if not len(frames):
        return sums
    frames = frames[np.unique(np.linspace(0, len(frames) - 1, _FRAMES).astype(int))]
    stored, weight = source.read(tile, frames)
    for index, band in enumerate(source.bands):
        clear = (weight > 0) & source.delivered[frames, index][:, None, None]
        values = transformed(stored[:, index], source, frames, band)[clear].astype("float64")
        values = values[np.isfinite(values)]
        place = [one.name for one in source.source.bands].index(band)
        sums[:, place] = len(values), values.sum(), (values**2).sum()
    return sums


def _moments(row: Source, count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> Moments:
    some = np.maximum(count, 1)
    mean = total / some
    std = np.sqrt(np.maximum(squares / some - mean**2, 0))
    known = std > 1e-6 * np.maximum(1, np.abs(mean))
    means = [float(m) if k else band.mean for m, k, band in zip(mean, known, row.bands, strict=True)]
    stds = [float(s) if k else band.std for s, k, band in zip(std, known, row.bands, strict=True)]
    return Moments(mean=tuple(means), std=tuple(stds))
