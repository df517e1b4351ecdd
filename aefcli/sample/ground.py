"""Where on the ground windows of cubes lie, so that what shares ground is known in cubes of any grid and CRS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from pyproj import Transformer

from aefcli.cube import Cube

_MARGIN = 0.25  # px: what touches shares nothing, and the edges of windows bend from one CRS to another


class Grounds:
    """The ground of some cubes: in their CRS if they have one CRS, else in degrees, cut opposite to the first cube."""

    def __init__(self, cubes: Sequence[Cube]) -> None:
        self._places = [(cube.grid.transform.c, cube.grid.transform.f, cube.grid.resolution.x) for cube in cubes]
        names = [str(cube.grid.crs) for cube in cubes]
        self._to_degrees: list[Transformer] = []
        if len(set(names)) > 1:
            made = {name: Transformer.from_crs(name, "EPSG:4326", always_xy=True) for name in set(names)}
            self._to_degrees = [made[name] for name in names]
            self._centre = made[names[0]].transform(*self._places[0][:2])[0]

    def of(self, cube: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Polygons (n) of boxes (n, 4), each top, left, bottom, right in px of the cube of that number (n)."""
        x, y, step = (np.array(self._places)[cube].T[..., None]).copy()
        top, left, bottom, right = boxes.T[..., None] + np.array([1, 1, -1, -1])[:, None, None] * _MARGIN
        columns = np.concatenate([left, right, right, left], axis=1)
        rows = np.concatenate([top, top, bottom, bottom], axis=1)
        corners = np.stack([x + step * columns, y - step * rows], axis=-1)
        for index, transformer in enumerate(self._to_degrees):
            mine = cube == index
            lon, lat = transformer.transform(corners[mine, :, 0], corners[mine, :, 1])
            lon = (lon - self._centre + 180) % 360 - 180
            corners[mine] = np.stack([lon, lat], axis=-1)
        return np.asarray(shapely.polygons(corners))


def shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairs (2, m) of an index of `a` and one of `b` whose polygons share ground."""
    found: np.ndarray = shapely.STRtree(b).query(a, predicate="intersects")
    return found
