"""Tiles that are written once, the patches laid over them, and the memory that both take.

Patches have a halo, which is read and trimmed: blending the overlap instead needs the patches around a tile too, and
leaves the same pixel under two tilings as different (`python -m bench.tiling`). They lie on one lattice that starts at
the cube's corner, so that a part of a cube has the vectors that the whole has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aefcli import field
from aefcli.cube import Cube
from aefcli.cube.grid import crs_of
from aefcli.errors import BadInput, NoResources
from aefcli.extent import BBox, Tile, tiles
from aefcli.recipe import Embed

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_MOST = 4  # chunks along a tile's side
AT_ONCE = 4  # valid periods summarised together; memory grows with it, time hardly falls beyond
JOBS = 2  # tiles at hand in a process
_PIXEL = 9  # bytes of a value read and of what is kept beside it: float32, float32 weight, one bool
# Bytes that encoding takes, and more for each byte of frames: above what nano and small were seen at.
_ENCODING, _BY_FRAMES = 448 << 20, 16


def tile_side(sizes: Embed, chunk: int | None = None) -> int:
    """Pixels along a tile's side: the fewest chunks over which patches fit almost as well as over any."""
    step, chunk = step_of(sizes), chunk or field.CHUNK
    waste = {count: -(-count * chunk // step) * step / (count * chunk) for count in range(1, _MOST + 1)}
    return chunk * next(count for count in waste if waste[count] <= 1.02 * min(waste.values()))


def step_of(sizes: Embed) -> int:
    return sizes.patch - 2 * sizes.halo


@dataclass(frozen=True)
class Part:
    """The part of a cube that a field covers."""

    grid: GeoBox
    top: int  # of its first row in the cube
    left: int
    area: str | None = None  # WKT in degrees; pixels whose centre lies outside are nodata

    @property
    def shape(self) -> tuple[int, int]:
        return self.grid.shape[0], self.grid.shape[1]

    def in_cube(self, tile: Tile) -> Tile:
        return Tile(tile.top + self.top, tile.left + self.left, tile.bottom + self.top, tile.right + self.left)

    def wanted(self, tile: Tile) -> np.ndarray:
        """Which pixels of a tile have their centre in the area: bool (h, w)."""
        if self.area is None:
            return np.ones(tile.shape, dtype=bool)
        import shapely
        from odc.geo.geom import Geometry

        outline = Geometry(shapely.from_wkt(self.area), "EPSG:4326").to_crs(crs_of(self.grid), resolution=float("inf"))
        shapely.prepare(outline.geom)
        rows, columns = np.arange(tile.top, tile.bottom) + 0.5, np.arange(tile.left, tile.right) + 0.5
        affine = self.grid.transform
        x, y = np.meshgrid(affine.c + affine.a * columns, affine.f + affine.e * rows)
        return np.asarray(shapely.contains_xy(outline.geom, x, y))


def part_of(cube: Cube, sizes: Embed, box: BBox | None = None, area: str | None = None) -> Part:
    """The whole of a cube, or what a box in degrees touches of it, out to whole patches."""
    if box is None:
        return Part(cube.grid, 0, 0)
    from odc.geo.geom import box as rectangle

    east = box.east + 360 * (box.east < box.west)
    outline = rectangle(box.west, box.south, east, box.north, "EPSG:4326").to_crs(crs_of(cube.grid), resolution=0.01)
    west, south, right, north = outline.boundingbox.bbox
    affine, step = cube.grid.transform, step_of(sizes)
    rows = ((north - affine.f) / affine.e, (south - affine.f) / affine.e)
    columns = ((west - affine.c) / affine.a, (right - affine.c) / affine.a)
    spans = []
    for (first, last), size in zip((rows, columns), cube.shape, strict=True):
        if last <= 0 or first >= size:
            raise BadInput(f"{box} does not touch {cube.path}", f"aef info {cube.path} says where it lies")
        spans.append((max(0, int(first // step) * step), min(size, -int(-last // step) * step)))
    (top, bottom), (left, right_) = spans
    return Part(cube.grid[top:bottom, left:right_], top, left, area)


def cells(tile: Tile, sizes: Embed) -> list[Tile]:
    """The pixels that each patch writes of a tile, in rows and columns of the field."""
    return [
        Tile(cell.top + tile.top, cell.left + tile.left, cell.bottom + tile.top, cell.right + tile.left)
        for cell in tiles(tile.shape, step_of(sizes))
    ]


def around(cell: Tile, sizes: Embed) -> Tile:
    """The patch that writes a cell, with its halo."""
    top, left = cell.top - sizes.halo, cell.left - sizes.halo
    return Tile(top, left, top + sizes.patch, left + sizes.patch)


def runs(found: Sequence[Tile], most: int) -> Iterator[list[Tile]]:
    """Neighbouring cells of one row, at most so many, that are read at once."""
    row: list[Tile] = []
    for cell in found:
        if row and (cell.top != row[-1].top or cell.left != row[-1].right or len(row) == most):
            yield row
            row = []
        row.append(cell)
    if row:
        yield row


@dataclass(frozen=True)
class Room:
    """How much is computed at once, so that it stays within an amount of memory."""

    workers: int
    patches: int  # read at once by each, at most
    periods: int  # valid periods of a tile computed at once

    def share(self, tile: Tile, sizes: Embed) -> int:
        """Patches that a worker reads at once of a tile: so few that each has two turns, or one would end late."""
        return max(1, min(self.patches, len(cells(tile, sizes)) // (2 * self.workers)))


def room(memory: int, workers: int, frames: int, values: int, periods: int, sizes: Embed, itemsize: int) -> Room:
    """Share out `memory` bytes: fewer periods at once first, then fewer workers, a patch at a time at least.

    `frames` of the fullest support, all sources; `values`: bands of these frames, summed. Raises NoResources where
    one patch of one period is too much.
    """
    side, together = tile_side(sizes), min(AT_ONCE, periods)
    patch = sizes.patch**2 * (4 * values + (_PIXEL - 4) * frames)
    buffer = JOBS * side**2 * (field.DIMENSIONS * itemsize + 8)  # of one period
    working = _ENCODING + patch * (1 + _BY_FRAMES)
    least = working + together * buffer
    if memory < least:
        what = f"one patch of {sizes.patch} px with {frames} frames takes about {_size(least)}"
        raise NoResources(f"--memory {_size(memory)}: {what}", "give more, or lower embed.patch by --set")
    count = max(1, min(workers, (memory - together * buffer) // working))
    left = memory - count * working
    at_once = max(together, min(periods, left // buffer // AT_ONCE * AT_ONCE))
    spare = (left - at_once * buffer) // (count * max(1, patch))  # a support may hold no frame
    return Room(int(count), int(max(1, min(side // step_of(sizes) + 1, 1 + spare))), int(at_once))


def _size(count: int) -> str:
    return f"{count / 2**30:.2g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
