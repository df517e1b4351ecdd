"""A plan without its cube: what the cube would be, and parts of its ground as small cubes that need not be kept.

The frames of a part are those of the whole, with the times and the numbers that they have there, so that what reads a
part reads what it would read of the whole. Frames that do not touch the part are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import ledger
from aefcli.cube.fetch import Archive, Request
from aefcli.cube.grid import coarser, grid_attrs, outline
from aefcli.cube.store import Cube, CubeSource, open_cube
from aefcli.cube.write import FORMAT, Parts, Stack, Work, write
from aefcli.extent import BBox, Period, Tile

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_MARGIN = 0.05  # degrees around a part: the boxes of items are those of outlines, which may be rough
_GLOBE = [-180.0, -90.0, 180.0, 90.0]


@dataclass(frozen=True)
class Planned:
    """A cube that is planned, and not fetched: its request, its grid and its stacks, which read when asked to."""

    request: Request
    grid: GeoBox
    stacks: tuple[Stack, ...]

    def cube(self, path: Path) -> Cube:
        """What `open_cube` would give of it, but for the pixels."""
        attrs = {"aef:key": ledger.digest(self.request.as_dict()), "aef:grid": grid_attrs(self.grid)}
        sources = {stack.source.name: CubeSource.of(stack, self.grid, {}) for stack in self.stacks}
        return Cube(path, self.grid, self.request.period, sources, attrs)

    def within(self, tile: Tile) -> Tile:
        """The least part that holds what lies of a tile in the grid, and shares its corner with cells of all stacks."""
        step, (height, width) = lcm(*(stack.factor(self.grid) for stack in self.stacks)), self.grid.shape
        top, left = (max(0, corner) // step * step for corner in (tile.top, tile.left))
        return Tile(top, left, min(tile.bottom, height), min(tile.right, width))

    def part(self, tile: Tile, supports: Sequence[Period]) -> Planned:
        """What is planned of a part of the grid and some periods; a source without a frame there has an empty one."""
        grid = self.grid[tile.slices]
        around = outline(grid).wider(_MARGIN)
        stacks = tuple(_part_of(stack, grid, stack.factor(self.grid), around, supports) for stack in self.stacks)
        return replace(self, grid=grid, stacks=stacks)

    def fetch(self, out: Path, work: Work) -> Cube:
        """Write it as a cube, or go on with one; it knows itself by its frames and its grid."""
        frames = {stack.source.name: [stack.times.tolist(), list(stack.lineage["items"])] for stack in self.stacks}
        asked = {"format": FORMAT, "grid": grid_attrs(self.grid), "frames": ledger.digest(frames)}
        with ledger.build(out, asked, dict) as build:
            if not build.complete:
                write(build, Parts(self.grid, self.request.period, self.stacks, {}, asked), work)
        return open_cube(out)


def _part_of(stack: Stack, grid: GeoBox, factor: int, around: BBox, supports: Sequence[Period]) -> Stack:
    """The frames of a stack that touch a box and serve a period, on a part of its grid.

    The layers stay those of the whole, so that the same numbers are read of them.
    """
    archive = stack.read
    assert isinstance(archive, Archive), "a stack that was not planned"
    served = [any(period.start <= time < period.end for period in supports) for time in stack.times.tolist()]
    boxes = [[item.bbox or _GLOBE for item in frame.items] for frame in archive.frames]
    which = [at for at, serves in enumerate(served) if serves and any(_meet(_flat(each), around) for each in boxes[at])]
    cells, empty = coarser(grid, factor), not which
    which = which or [0]
    frames = [archive.frames[at] for at in which]
    delivered = stack.delivered[which]
    lineage: dict[str, Any] = {name: np.asarray(values)[which] for name, values in stack.lineage.items()}
    if empty:
        delivered = np.zeros_like(delivered)
        frames = [replace(frames[0], items=(), delivered=tuple(False for _ in frames[0].delivered))]
        lineage |= {name: [""] for name in ("items", "platform", "orbit")}
    return replace(
        stack,
        grid=cells,
        times=stack.times[which],
        delivered=delivered,
        scale=stack.scale[which],
        offset=stack.offset[which],
        lineage={name: values if isinstance(values, list) else _listed(values) for name, values in lineage.items()},
        read=replace(archive, frames=tuple(frames), grid=cells),
    )


def _listed(values: np.ndarray) -> Sequence[str] | np.ndarray:
    """Words as a list, numbers as they are: how a stack keeps its lineage."""
    return values if values.dtype.kind in "fiub" else [str(value) for value in values]


def _flat(box: Sequence[float]) -> tuple[float, float, float, float]:
    """West, south, east, north of an item's box, which may have heights too; its east is never below its west."""
    half = len(box) // 2
    west, south, east, north = box[0], box[1], box[half], box[half + 1]
    return west, south, east + 360 * (east < west), north


def _meet(box: tuple[float, float, float, float], other: BBox) -> bool:
    """Whether two boxes in degrees touch, however often either is counted around the globe."""
    west, south, east, north = box
    far = other.east + 360 * (other.east < other.west)
    return (
        south <= other.north
        and other.south <= north
        and any(west + turn <= far and other.west <= east + turn for turn in (-360, 0, 360))
    )
