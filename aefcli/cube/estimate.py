"""What a fetch would read and write, before it does: from headers of a few files and a sample of slabs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.cube.fetch import Archive, Request, check, plan, stacks_of
from aefcli.cube.frames import Frame
from aefcli.cube.grid import shape_of
from aefcli.cube.read import Reads
from aefcli.cube.write import IN_FLIGHT, SLAB, Stack, Work, packed
from aefcli.extent import Tile, tiles

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_FRAMES = 8  # of each source are looked at, spread over its time
_TILES = 2  # of each source are read, in those frames
_HEAD = 16384  # bytes of a file that are read before any of its blocks


@dataclass(frozen=True)
class Estimate:
    """Items and frames of a plan, and what fetching them would take."""

    items: int
    frames: Mapping[str, int]
    bytes_read: int
    bytes_written: int
    bytes_free: int  # on the disk that the cube would be written to
    seconds: float
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "frames": dict(self.frames), "seconds": round(self.seconds, 1)}


def estimate(request: Request, out: Path, work: Work) -> Estimate:
    """Search and plan as a fetch would, and scale up a sample. Writes nothing.

    A few frames of each source: the headers of their files say how large the blocks are that the box touches, and a few
    of their slabs are read and packed. Raises what `fetch` would raise of the search and of reading.
    """
    planned = plan(request)
    stacks = stacks_of(planned["items"], check(request), request)
    read = written = 0
    seconds = 0.0
    for stack in stacks:
        count = len(stack.times)
        chosen = np.unique(np.linspace(0, count - 1, min(count, _FRAMES)).round().astype(int))
        assert isinstance(stack.read, Archive)
        frames = [stack.read.frames[index] for index in chosen]
        items = sum(len(frame.items) for frame in stack.read.frames) / sum(len(frame.items) for frame in frames)
        read += round(items * sum(_blocks(frame, stack.grid) for frame in frames))
        size, spent = _sample(stack, chosen, work.threads)
        written += round(size * count / len(chosen))
        seconds += spent * count / len(chosen)
    return Estimate(
        items=sum(map(len, planned["items"].values())),
        frames={stack.source.name: len(stack.times) for stack in stacks},
        bytes_read=read,
        bytes_written=written,
        bytes_free=_free(out),
        seconds=seconds,
        notes=tuple(planned["notes"]),
    )


def _sample(stack: Stack, frames: np.ndarray, threads: int) -> tuple[float, float]:
    """Bytes packed, and seconds, of these frames over the whole grid: a few tiles of it are read."""
    every = list(tiles(shape_of(stack.grid), SLAB))
    chosen = [every[index] for index in np.unique(np.linspace(0, len(every) - 1, _TILES + 2).round().astype(int))[1:-1]]
    chosen = chosen or every[:1]
    share = sum(_area(tile) for tile in every) / sum(_area(tile) for tile in chosen)
    size, began = 0, time.monotonic()
    reading = packing = 0.0
    for tile in chosen:
        slab = stack.read(frames, tile, threads)
        done = time.monotonic()
        reading, began = reading + done - began, done
        size += packed(stack, frames, slab)
        done = time.monotonic()
        packing, began = packing + done - began, done
    # While one slab is packed another is read, on as many cores as there are.
    both = min(IN_FLIGHT, os.cpu_count() or 1, threads)
    return size * share, share * max((reading + packing) / both, reading)


def _area(tile: Tile) -> int:
    return tile.shape[0] * tile.shape[1]


def _blocks(frame: Frame, grid: GeoBox) -> int:
    """Bytes of the files' blocks that a frame's assets have under the grid."""
    hrefs = [asset.href for item in frame.items for asset in item.assets.values()]
    return sum(Reads(mask=True).window(href, lambda opened: _under(opened, grid)) or 0 for href in hrefs)


def _under(opened: Any, grid: GeoBox) -> int:
    from odc.geo.converters import rio_geobox
    from odc.geo.overlap import compute_reproject_roi
    from odc.loader._reader import pick_overview

    with opened() as file:
        place = compute_reproject_roi(rio_geobox(file), grid)
        shrink = max(1, int(place.read_shrink))
        levels = file.overviews(1)
        level = pick_overview(shrink, levels) if shrink > 1 and levels else None
        region = place.roi_src
        head = _HEAD
        if level is None:
            return head + _sizes(file, region, 1)
    with opened(overview_level=level) as file:
        return head + _sizes(file, region, levels[level])


def _sizes(file: Any, region: Any, shrink: int) -> int:
    rows, columns = file.block_shapes[0]
    spans = [
        range(part.start // shrink // size, -(-part.stop // shrink // size) if part.stop > part.start else 0)
        for part, size in zip(region, (rows, columns), strict=True)
    ]
    return sum(_size(file, row, column) for row in spans[0] for column in spans[1])


def _size(file: Any, row: int, column: int) -> int:
    """Bytes of one block as it lies in the file; 0 for one that is not there."""
    found = file.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=1)
    return int(found) if found else 0


def _free(out: Path) -> int:
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free
