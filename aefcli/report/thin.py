"""A field thinned out for a picture: every so many pixels, read block by block, never whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import colours
from aefcli.errors import BadInput
from aefcli.extent import Period
from aefcli.field import degrees, locate

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from aefcli.published import Vectors

Part = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Thinned:
    """Every `step`-th row and column of anybody's field, beginning in the middle of the first `step`; north up."""

    vectors: Vectors
    step: int = 1

    @classmethod
    def to(cls, vectors: Vectors, longest: float) -> Thinned:
        """At most `longest` pixels along the longer side, and no thinner than that needs."""
        return cls(vectors, max(1, math.ceil(max(vectors.grid.shape) / max(longest, 1))))

    @property
    def first(self) -> tuple[int, int]:
        """Row and column of the field that the picture's first row, as stored, and first column are."""
        height, width = self.vectors.grid.shape
        return min(self.step // 2, (height - 1) // 2), min(self.step // 2, (width - 1) // 2)

    @property
    def shape(self) -> tuple[int, int]:
        (height, width), (top, left) = self.vectors.grid.shape, self.first
        return -(-(height - top) // self.step), -(-(width - left) // self.step)

    @cached_property
    def grid(self) -> GeoBox:
        """Pixels `step` times as wide around the centres of those read, the first row in the north."""
        from affine import Affine
        from odc.geo.geobox import GeoBox

        a, _, c, _, e, f = tuple(self.vectors.grid.transform)[:6]
        (rows, _), (top, left), step = self.shape, self.first, self.step
        row = top + (rows - 1) * step if e > 0 else top
        # Corners as offsets from the field's own: a picture that is not thinned has its grid to the last digit
        west, north = c + a * (left + (1 - step) / 2), f + e * (row + 0.5) + abs(e) * step / 2
        if step == 1 and e < 0:
            west, north = c, f
        return GeoBox(self.shape, Affine(a * step, 0, west, 0, -abs(e) * step, north), self.vectors.grid.crs)

    def parts(self, times: Sequence[int]) -> Iterator[tuple[Part, np.ndarray]]:
        """Where a part lies in the picture, and its vectors in some periods: float32 (len(times), d, h, w)."""
        shape, step, turned = self.vectors.grid.shape, self.step, self.vectors.grid.transform.e > 0
        above, before = self.first
        for tile in colours.blocks((shape[0], shape[1]), self.vectors.block):
            # The first pixel of the picture that is not before the tile; and where the tile has it
            top, left = max(0, -((above - tile.top) // step)), max(0, -((before - tile.left) // step))
            row, column = above + top * step - tile.top, before + left * step - tile.left
            if row >= tile.shape[0] or column >= tile.shape[1]:
                continue
            cut = (..., slice(row, None, step), slice(column, None, step))
            found = []
            for time in times:
                codes, scales = self.vectors.stored(tile, time)
                found.append(self.vectors.decode(codes[cut], None if scales is None else scales[cut]))
            values = np.stack(found)
            bottom, right = top + values.shape[2], left + values.shape[3]
            if turned:
                top, bottom, values = self.shape[0] - bottom, self.shape[0] - top, values[:, :, ::-1]
            yield (slice(top, bottom), slice(left, right)), values

    def picture(
        self, times: Sequence[int], draw: Callable[..., np.ndarray], dtype: Any, depth: tuple[int, ...] = ()
    ) -> np.ndarray:
        """What `draw` makes of the vectors (n, d) of each of the periods, over the whole: (y, x, *depth)."""
        out = np.zeros((*self.shape, *depth), dtype=dtype)
        for place, values in self.parts(times):
            flat = values.reshape(*values.shape[:2], -1).swapaxes(1, 2)
            out[place] = draw(*flat).reshape(*values.shape[2:], *depth)
        return out

    def painted(self, time: int, painter: colours.Colours) -> np.ndarray:
        """A period as colours: RGBA uint8 (y, x, 4)."""
        return self.picture([time], painter.paint, np.uint8, (4,))


def painter_of(vectors: Vectors) -> colours.Colours:
    """The one fit of a field's colours."""
    shape = vectors.grid.shape
    return colours.fit(vectors.window, (shape[0], shape[1]), len(vectors.periods), vectors.block)


def title(period: Period) -> str:
    """A valid period as one would say it: 2023, 2023-06, 2023-06-01, 2022-11:2023-10, or the dates of both its ends."""
    start, _ = period.dates()
    year, last = f"{start.year:04d}", period.dates()[1] - timedelta(milliseconds=1)
    months = f"{year}-{start:%m}:{last.year:04d}-{last:%m}"
    for text in (year, f"{year}-{start:%m}", f"{year}-{start:%m-%d}", months):
        if Period.parse(text) == period:
            return text
    return str(period)


def time_of(vectors: Vectors, period: Period) -> int:
    """Which time of a field is a valid period."""
    if period not in vectors.periods:
        known = [title(each) for each in vectors.periods]
        listed = ", ".join(known if len(known) <= 24 else [*known[:12], "...", *known[-11:]])
        raise BadInput(f"{vectors.path} has no period {title(period)}", f"it has {listed}")
    return vectors.periods.index(period)


def vectors_at(vectors: Vectors, lon: float, lat: float) -> np.ndarray:
    """Of each period the vector at a place, of length 1: float32 (t, d), NaN where it has no data there.

    Raises BadInput where the place is outside the field, or has no data in any period.
    """
    found = [vectors.sample(np.array([lon]), np.array([lat]), time) for time in range(len(vectors.periods))]
    values = np.concatenate([each for each, _ in found])
    covered = "{:.4f},{:.4f},{:.4f},{:.4f}".format(*degrees(vectors.grid))
    if not found[0][1][0]:
        raise BadInput(f"--at {lon:g},{lat:g} lies outside {vectors.path}", f"it covers {covered} (W,S,E,N)")
    if not np.isfinite(values).any():
        raise BadInput(f"{vectors.path} has no data at --at {lon:g},{lat:g}", "name another place")
    return unit(values)


def position(thin: Thinned, lon: float, lat: float) -> tuple[int, int]:
    """Row and column of the pixel of a picture that is nearest to a place inside the field."""
    grid, step = thin.vectors.grid, thin.step
    rows, columns, _ = locate(grid, np.array([lon]), np.array([lat]))
    found = [round((int(at[0]) - first) / step) for at, first in zip((rows, columns), thin.first, strict=True)]
    row, column = (min(max(at, 0), size - 1) for at, size in zip(found, thin.shape, strict=True))
    return (thin.shape[0] - 1 - row if grid.transform.e > 0 else row), column


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, d) divided by their lengths; NaN where they have none."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, np.nan)


def cosines(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float32 (n,) of vectors (n, d) with one other (d,), or with one each (n, d); NaN where either is nodata."""
    return np.clip((unit(vectors) * unit(np.atleast_2d(others))).sum(axis=1), -1, 1)
