"""What the inputs of a cube say of some pixels, and of those around them, in valid periods. One reading of the cube.

A pixel is known by its number in the cube, row by row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aefcli.baselines import season
from aefcli.baselines.learned import PATCH, POOL, Filters
from aefcli.baselines.series import Group, Series, apart, joined, of_group, read, with_indices
from aefcli.cube import Cube
from aefcli.extent import Period
from aefcli.sources import INPUTS

_AT_ONCE = 256  # neighbourhoods whose patches are held at once


@dataclass(frozen=True, eq=False)
class Seen:
    """Features at points, and the image around them.

    made   name -> float32 (n, p, d): 0 for a channel that a pixel never has, NaN for a pixel without any
    near   int64 (m,), the pixels of the image, in order
    image  float32 (m, p, c): composites of the channels, 0 and NaN as above; empty where nobody asked for it
    """

    shape: tuple[int, int]
    made: Mapping[str, np.ndarray]
    near: np.ndarray
    image: np.ndarray

    def patches(self, points: np.ndarray) -> np.ndarray:
        """The patch of the image around each point, float32 (n, p, PATCH * PATCH * c).

        A neighbour that was never seen is taken to be like the point; NaN where the point was not seen either.
        """
        around = self._at(_around(points, self.shape, PATCH // 2))
        filled = np.where(np.isnan(around), self._at(points)[:, None], around)
        return filled.transpose(0, 2, 1, 3).reshape(len(points), self.image.shape[1], -1)

    def pooled(self, points: np.ndarray, filters: Filters) -> np.ndarray:
        """The filters' features over the neighbourhood of each point, float32 (n, p, d); NaN as in `patches`."""
        found = []
        for chosen in np.array_split(points, -(-len(points) // _AT_ONCE)):
            around, own = _around(chosen, self.shape, POOL // 2), self.patches(chosen)
            patches = self.patches(around.reshape(-1)).reshape(*around.shape, *own.shape[1:])
            found.append(filters.pool(np.where(np.isnan(patches), own[:, None], patches)))
        return np.concatenate(found)

    def _at(self, pixels: np.ndarray) -> np.ndarray:
        return self.image[np.searchsorted(self.near, pixels)]


def see(cube: Cube, layout: Cube, names: Collection[str], points: np.ndarray, periods: Sequence[Period]) -> Seen:
    """What `names` says, of `composite`, `percentiles`, `harmonics`, `raw` and `image`, at distinct points in order.

    Channels are those of `layout`. The image reaches as far as the filters' neighbourhoods do.
    """
    groups, imaged = joined(layout), "image" in names
    near = np.unique(_around(points, cube.shape, PATCH // 2 + POOL // 2)) if imaged else points
    places, pieces = [np.empty(0, "int64")], []
    order, blocks = [], []
    for at, block in read(cube, INPUTS, *np.divmod(near, cube.shape[1])):
        known = [with_indices(group, of_group(group, block)) for group in groups]
        if imaged:
            places.append(at)
            pieces.append(_composites(groups, known, periods))
        mine = np.isin(near[at], points)
        if mine.any():  # the others are there for the image
            order.append(np.searchsorted(points, near[at][mine]))
            blocks.append(_features([series.at(mine) for series in known], names, periods))
            if "composite" in names:
                alone = [of_group(group, block.at(mine)) for group in apart(layout)]
                blocks[-1]["composite"] = _composites(apart(layout), alone, periods)
    where = np.argsort(np.concatenate(order))
    made = {name: np.concatenate([found[name] for found in blocks])[where] for name in blocks[0]}
    image = np.concatenate(pieces)[np.argsort(np.concatenate(places))] if imaged else np.empty((0, len(periods), 0))
    return Seen(cube.shape, made, near, image)


def _around(points: np.ndarray, shape: tuple[int, int], reach: int) -> np.ndarray:
    """The pixels (n, side * side) of the square around each, row by row; those beyond an edge are the edge's."""
    steps = np.arange(-reach, reach + 1)
    row = np.clip(points[:, None] // shape[1] + steps, 0, shape[0] - 1)
    column = np.clip(points[:, None] % shape[1] + steps, 0, shape[1] - 1)
    return (row[:, :, None] * shape[1] + column[:, None]).reshape(len(points), -1)


def _features(known: Sequence[Series], names: Collection[str], periods: Sequence[Period]) -> dict[str, np.ndarray]:
    """Percentiles, harmonics and raw of all channels, (n, p, d)."""
    found, steps = {}, season.steps_of(periods)
    for name in ("percentiles", "harmonics", "raw"):
        if name in names:
            parts = [[_summary(name, series, period, steps) for period in periods] for series in known]
            found[name] = _usual(np.concatenate([np.stack(part, axis=1) for part in parts], axis=2))
    return found


def _summary(name: str, series: Series, period: Period, steps: int) -> np.ndarray:
    """One feature of one period, (n, d)."""
    inside = season.within(series, season.year_around(period) if name == "harmonics" else period)
    if name == "harmonics":
        found = season.harmonics(inside, period)
    else:
        found = season.percentiles(inside) if name == "percentiles" else season.regular(inside, period, steps)
    return found.reshape(len(found), -1)


def _composites(groups: Sequence[Group], known: Sequence[Series], periods: Sequence[Period]) -> np.ndarray:
    """Composites (n, p, c) of all channels of some groups, given their series."""
    parts = []
    for group, series in zip(groups, known, strict=True):
        reduce = season.mean if group.radar else season.median
        parts.append(np.stack([reduce(season.within(series, period).values) for period in periods], axis=1))
    return _usual(np.concatenate(parts, axis=2))


def _usual(values: np.ndarray) -> np.ndarray:
    """Features (n, p, d) with 0, the usual value, where a pixel lacks some; NaN where it lacks all."""
    nothing = np.isnan(values).all(axis=2, keepdims=True)
    return np.where(np.isnan(values) & ~nothing, np.float32(0), values)
